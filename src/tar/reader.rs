//! Bytes of the archive at any offset.

use super::layout::{Layout, MemberId, Part, Scratch};

/// Where the bodies of a layout's files come from.
pub trait Source<T> {
    /// What stops a read. Whether a file that shrank is an error or zeros is the source's to decide.
    type Error;

    /// Fills all of `buf` with the bytes of `member`'s file from `offset` on.
    ///
    /// `offset + buf.len()` never exceeds the file's length in the layout, and `buf` is never empty. Of a sparse member
    /// only what lies in its extents is asked for.
    fn read_body(
        &self,
        layout: &Layout<T>,
        member: MemberId,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), Self::Error>;
}

/// Reads the archive from `offset` (bytes) into `buf` and answers how many bytes it wrote.
///
/// That is all of `buf` but at the end of the archive; 0 at and beyond it. On an error, what `buf` holds is
/// unspecified.
pub fn read_at<T, S: Source<T>>(
    layout: &Layout<T>,
    source: &S,
    offset: u64,
    buf: &mut [u8],
) -> Result<usize, S::Error> {
    let mut scratch = Scratch::default();
    let mut at = offset;
    let mut written = 0;
    let mut next = layout.locate(at);
    while let (Some((index, segment)), Some(rest)) = (next, buf.get_mut(written..)) {
        let room = rest.len() as u64;
        let mut take = segment.end().saturating_sub(at).min(room);
        let Some(now) = rest.get_mut(..take as usize) else {
            break;
        };
        if now.is_empty() {
            break;
        }
        let within = at - segment.start;
        match segment.part {
            Part::Header(member) => {
                let header = layout.header(member, &mut scratch);
                let from = header.get(within as usize..).unwrap_or_default();
                for (to, byte) in now.iter_mut().zip(from) {
                    *to = *byte;
                }
            }
            Part::Body(member) => {
                let (offset, run) = layout.in_file(member, within);
                take = take.min(run);
                let Some(now) = now.get_mut(..take as usize).filter(|now| !now.is_empty()) else {
                    break;
                };
                source.read_body(layout, member, offset, now)?;
            }
            Part::Padding(_) | Part::Trailer => now.fill(0),
        }
        at += take;
        written += take as usize;
        next = layout.locate_from(index, at);
    }
    Ok(written)
}
