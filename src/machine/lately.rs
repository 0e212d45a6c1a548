//! What is looked for on the disk once in a while: every look at a file of ours asks for it.

use parking_lot::{Condvar, Mutex};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long it is believed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long a disk is waited for.
const FIND_TIMEOUT: Duration = Duration::from_secs(5);

/// Something as it was found last.
pub(super) struct Lately<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    found: Condvar,
}

struct State<T> {
    last: Option<(Instant, T)>,
    is_looking: bool,
}

impl<T> Default for Lately<T> {
    fn default() -> Self {
        let state = Mutex::new(State { last: None, is_looking: false });
        Self(Arc::new(Shared { state, found: Condvar::new() }))
    }
}

impl<T: fmt::Debug> fmt::Debug for Lately<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lately").field(&self.0.state.lock().last).finish()
    }
}

impl<T: Clone + Send + 'static> Lately<T> {
    /// At most some seconds old; older, or nothing, where the disk does not answer. One thread at a time looks, so that a disk that
    /// never answers keeps one, and nobody else for long.
    pub(super) fn or_find(&self, find: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let mut state = self.0.state.lock();
        if let Some((at, known)) = &state.last
            && at.elapsed() < LOOK_AGAIN
        {
            return Some(known.clone());
        }
        if !state.is_looking {
            let shared = Arc::clone(&self.0);
            let finder = std::thread::Builder::new().name("codchifs-find".into());
            state.is_looking = finder.spawn(move || shared.find(find)).is_ok();
        }
        let asked = Instant::now();
        while state.is_looking && asked.elapsed() < FIND_TIMEOUT {
            self.0.found.wait_until(&mut state, asked + FIND_TIMEOUT);
        }
        state.last.as_ref().map(|(_, known)| known.clone())
    }
}

impl<T> Shared<T> {
    fn find(&self, find: impl FnOnce() -> T) {
        // Whatever happens in it, those who wait must be woken.
        let new = std::panic::catch_unwind(std::panic::AssertUnwindSafe(find));
        let mut state = self.state.lock();
        state.is_looking = false;
        match new {
            Ok(new) => state.last = Some((Instant::now(), new)),
            // Dropping what a panic carries may panic in turn.
            Err(panic) => std::mem::forget(panic),
        }
        drop(state);
        self.found.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_looked_for_once_in_a_while() {
        let lately = Lately::default();
        let find = |name: &'static str| lately.or_find(move || name);
        assert_eq!([find("a"), find("b")], [Some("a"), Some("a")]);
        let long_ago = Instant::now().checked_sub(LOOK_AGAIN);
        lately.0.state.lock().last.as_mut().unwrap().0 = long_ago.unwrap();
        assert_eq!(find("c"), Some("c"));
    }

    #[test]
    fn what_is_never_found_is_looked_for_by_one_thread_and_waited_for_for_a_while() {
        let lately = Lately::<&str>::default();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let first = lately.or_find(move || {
            let _ = released.recv();
            "late"
        });
        assert_eq!(first, None);
        assert_eq!(lately.or_find(|| panic!("a second look")), None);
        drop(release);
        while lately.or_find(|| panic!("a second look")).is_none() {}
    }
}
