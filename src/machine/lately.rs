//! What is looked for on the disk once in a while: every look at a file of ours asks for it.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// How long it is believed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Something as it was found last.
#[derive(Debug)]
pub(super) struct Lately<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Lately<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Lately<T> {
    /// At most some seconds old.
    pub(super) fn or_find(&self, find: impl FnOnce() -> T) -> T {
        // Held meanwhile: whoever else asks waits for the answer and does not look as well.
        let mut found = self.0.lock();
        if let Some((at, known)) = &*found
            && at.elapsed() < LOOK_AGAIN
        {
            return known.clone();
        }
        let new = find();
        *found = Some((Instant::now(), new.clone()));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_looked_for_once_in_a_while() {
        let lately = Lately::default();
        let find = |name: &'static str| lately.or_find(|| name);
        assert_eq!([find("a"), find("b")], ["a", "a"]);
        let long_ago = Instant::now().checked_sub(LOOK_AGAIN);
        lately.0.lock().as_mut().unwrap().0 = long_ago.unwrap();
        assert_eq!(find("c"), "c");
    }
}
