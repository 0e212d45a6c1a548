//! Sparse files: GNU format 1.0, where the map of the data stands before it.
//!
//! After the ustar block, in whole blocks: the number of entries, then for each its offset in the file and its length,
//! every number in decimal on a line of its own; zeros to the end of the block; then the data of all entries, one after
//! the other. The last entry is `size, 0`: without it GNU tar forgets a hole at the end.
//!
//! Source: the GNU tar manual, "Storing Sparse Files", PAX format version 1.0; that readers begin each entry's data at a
//! block is in GNU tar's sparse.c (`sparse_extract_region`), so every entry but the file's last bytes is whole blocks.

use super::header::BLOCK;

/// A run of a sparse file's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Offset in the file, in bytes; a multiple of 512.
    pub offset: u64,
    /// Number of bytes, at least 1; a multiple of 512 unless it reaches the end of the file.
    pub len: u64,
}

impl Extent {
    /// Offset in the file after the last byte.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// Bytes of the data of all extents; `None` if they are not what [`Extent`] says, ascending, apart and inside of the
/// file's `size`.
pub(super) fn data_len(extents: &[Extent], size: u64) -> Option<u64> {
    let mut at = 0;
    let mut data = 0u64;
    for extent in extents {
        let end = extent.offset.checked_add(extent.len)?;
        let whole = extent.offset.is_multiple_of(BLOCK)
            && (extent.len.is_multiple_of(BLOCK) || end == size);
        if extent.len == 0 || extent.offset < at || end > size || !whole {
            return None;
        }
        at = end;
        data = data.checked_add(extent.len)?;
    }
    Some(data)
}

/// Appends the map, without the zeros to the end of its last block.
pub(super) fn put_map(out: &mut Vec<u8>, extents: &[Extent], size: u64) {
    let mut line = |number: u64| {
        out.extend_from_slice(number.to_string().as_bytes());
        out.push(b'\n');
    };
    line(extents.len() as u64 + 1);
    for extent in extents {
        line(extent.offset);
        line(extent.len);
    }
    line(size);
    line(0);
}
