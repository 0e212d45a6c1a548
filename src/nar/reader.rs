//! Bytes of the archive at any offset.

use super::layout::{CLOSE, Layout};

/// Where the bodies of a layout's files come from.
pub trait Source {
    /// What stops a read.
    type Error;

    /// Fills all of `buf` with the bytes of the file `entry` from `offset` (bytes) on.
    ///
    /// `offset + buf.len()` never exceeds the file's size in the layout, and `buf` is never empty.
    fn read_body(
        &self,
        layout: &Layout,
        entry: u32,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), Self::Error>;
}

/// Reads the archive from `offset` (bytes) into `buf` and answers how many bytes it wrote.
///
/// That is all of `buf` but at the end of the archive; 0 at and beyond it. On an error, what `buf` holds is unspecified.
pub fn read_at<S: Source>(
    layout: &Layout,
    source: &S,
    offset: u64,
    buf: &mut [u8],
) -> Result<usize, S::Error> {
    let mut head = Vec::new();
    let mut written = 0;
    while let Some(rest) = buf.get_mut(written..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(written as u64);
        let Some(place) = layout.place(at) else { break };
        let mut within = at - place.start;
        // The first of the entry's four parts that the offset is in.
        let mut part = 0;
        let parts = [place.head, place.body, place.padding, place.tail];
        for len in parts {
            if within < len {
                break;
            }
            within -= len;
            part += 1;
        }
        let left = parts.get(part).map_or(0, |len| len - within);
        let take = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
        let Some(now) = rest.get_mut(..take).filter(|now| !now.is_empty()) else { break };
        match part {
            0 => {
                layout.head(place.entry, &mut head);
                let from = head.get(within as usize..).unwrap_or_default();
                for (to, byte) in now.iter_mut().zip(from) {
                    *to = *byte;
                }
            }
            1 => source.read_body(layout, place.entry, within, now)?,
            2 => now.fill(0),
            _ => {
                let from = CLOSE.iter().cycle().skip((within % CLOSE.len() as u64) as usize);
                for (to, byte) in now.iter_mut().zip(from) {
                    *to = *byte;
                }
            }
        }
        written += take;
    }
    Ok(written)
}
