//! Where the fields of a ustar header block are (POSIX.1-2017 "pax", section "ustar Interchange Format"), for the writer and for
//! the reader of copies.

use std::ops::Range;

/// Bytes of a header block.
pub(crate) const BLOCK: usize = 512;

/// Bytes of a field in the block.
pub(crate) type Field = Range<usize>;

pub(crate) const NAME: Field = 0..100;
pub(crate) const MODE: Field = 100..108;
pub(crate) const UID: Field = 108..116;
pub(crate) const GID: Field = 116..124;
pub(crate) const SIZE: Field = 124..136;
pub(crate) const MTIME: Field = 136..148;
pub(crate) const CHECKSUM: Field = 148..156;
pub(crate) const TYPEFLAG: Field = 156..157;
pub(crate) const LINKNAME: Field = 157..257;
pub(crate) const MAGIC: Field = 257..263;
pub(crate) const VERSION: Field = 263..265;
pub(crate) const DEV_MAJOR: Field = 329..337;
pub(crate) const DEV_MINOR: Field = 337..345;
pub(crate) const PREFIX: Field = 345..500;

/// The bytes of a field.
pub(crate) fn get(block: &[u8; BLOCK], field: Field) -> &[u8] {
    block.get(field).unwrap_or_default()
}

/// The same, to write them.
pub(super) fn get_mut(block: &mut [u8; BLOCK], field: Field) -> &mut [u8] {
    block.get_mut(field).unwrap_or_default()
}

/// The sum of all bytes, where the checksum itself counts as blanks.
pub(crate) fn checksum(block: &[u8; BLOCK]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    sum(block) - sum(get(block, CHECKSUM)) + CHECKSUM.map(|_| u32::from(b' ')).sum::<u32>()
}
