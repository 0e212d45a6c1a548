//! A text about a machine that was looked up.

use crate::tree::Time;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the bytes of a text are kept for an open(2) that may follow the lookup.
const KEPT: Duration = Duration::from_secs(60);

/// One text, as it was when the name was looked up.
#[derive(Clone, Debug)]
pub(super) struct Text {
    /// `None`: not needed for a while, to be made again if it still says the same.
    pub(super) bytes: Option<Arc<[u8]>>,
    pub(super) size: u64,
    pub(super) hash: u64,
    /// Since when it says so.
    pub(super) since: Time,
    pub(super) made: Instant,
}

impl Text {
    /// Lets go of the bytes of a text that nobody has open.
    pub(super) fn tidy(&mut self) {
        if self.made.elapsed() > KEPT {
            self.bytes.take_if(|bytes| Arc::strong_count(bytes) == 1);
        }
    }
}
