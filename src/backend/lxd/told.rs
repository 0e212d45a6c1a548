//! What a daemon told last, and when it is asked again: in the background, so that whoever wants to know gets the last
//! answer at once, unless that one is of no use or too old.

use super::{Answer, DEADLINE, OWN_WORK};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What was told is believed this long.
const FRESH: Duration = Duration::from_millis(700);
/// And this long where the next answer is on its way: who looks all the time never waits for a daemon. What is older is
/// from before a pause, be it a night.
const LATE: Duration = Duration::from_millis(1000);
/// How long after its question an answer is waited for in place of a late one: a daemon that is well takes
/// milliseconds, and for one that is not, old facts are better than none.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Told {
    state: Mutex<State>,
    /// A question has come to its end.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Arc<Answer>>,
    /// Since when the daemon is being asked.
    asking: Option<Instant>,
}

/// Ends a question, even one that panics.
struct Asking(Arc<Told>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.state.lock().asking = None;
        self.0.done.notify_all();
    }
}

impl Told {
    /// The last answer, which `ask` gets in order to make the next one. The first one is waited for, as is the one after
    /// a pause, unless the daemon was silent before it already: if it hangs, it must not hold everybody up again and
    /// again. `None` if there is none in time.
    pub(super) fn answer(
        self: &Arc<Self>,
        ask: impl FnOnce(Option<&Answer>) -> Answer + Send + 'static,
    ) -> Option<Arc<Answer>> {
        self.start(ask);
        let mut state = self.state.lock();
        while let Some(since) = state.asking {
            let patience = match &state.last {
                None => DEADLINE + OWN_WORK,
                Some(last) if last.why.is_none() && last.checked.elapsed() > LATE => PATIENCE,
                Some(_) => break,
            };
            if self.done.wait_until(&mut state, since + patience).timed_out() {
                break;
            }
        }
        state.last.clone()
    }

    /// Asks in the background, if the last answer is too old and nobody asks.
    pub(super) fn start(
        self: &Arc<Self>,
        ask: impl FnOnce(Option<&Answer>) -> Answer + Send + 'static,
    ) {
        let mut state = self.state.lock();
        if state.asking.is_some()
            || state.last.as_ref().is_some_and(|a| a.checked.elapsed() <= FRESH)
        {
            return;
        }
        state.asking = Some(Instant::now());
        let (asking, before) = (Asking(Arc::clone(self)), state.last.clone());
        let ask = move || {
            let answer = ask(before.as_deref());
            asking.0.state.lock().last = Some(Arc::new(answer));
        };
        // Where there is no thread, `asking` is dropped, which takes the lock.
        drop(state);
        let _ = std::thread::Builder::new().name("codchifs-ask".into()).spawn(ask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::SystemTime;

    fn told(age: Duration, why: Option<&str>) -> Answer {
        Answer {
            online: Some(SystemTime::now()),
            why: why.map(str::to_owned),
            ..Answer::at(Instant::now().checked_sub(age).unwrap())
        }
    }

    fn after(last: Answer) -> Arc<Told> {
        let state = State { last: Some(Arc::new(last)), asking: None };
        Arc::new(Told { state: Mutex::new(state), done: Condvar::new() })
    }

    #[test]
    fn an_answer_from_before_a_pause_is_not_given_while_the_daemon_answers() {
        let night = Duration::from_secs(60);
        let now = || told(Duration::ZERO, Some("now"));
        let answer = after(told(night, None)).answer(move |_| now()).unwrap();
        assert_eq!(answer.why.as_deref(), Some("now"));
        // One that is not late comes before the next, as does what the disk said while the daemon was silent.
        for last in [told(FRESH, None), told(night, Some("silent"))] {
            let (hold, held) = channel::<()>();
            let why = last.why.clone();
            let told = after(last);
            let answer = told.answer(move |_| {
                let _ = held.recv();
                now()
            });
            assert_eq!(answer.unwrap().why, why);
            drop(hold);
        }
    }

    #[test]
    fn a_daemon_that_hangs_holds_nobody_up_for_long() {
        let told = after(told(Duration::from_secs(60), None));
        let (hold, held) = channel::<()>();
        let late = told.answer(move |_| {
            let _ = held.recv();
            panic!("the daemon was let go");
        });
        assert!(late.unwrap().why.is_none(), "old facts in place of none");
        // Who comes later waits for the same question, whose time is over.
        assert!(told.answer(|_| panic!("asked twice")).is_some());
        drop(hold);
    }

    #[test]
    fn a_question_that_panics_is_asked_again() {
        let told = Arc::new(Told::default());
        assert!(told.answer(|_| panic!("this test's")).is_none());
        let next = told.answer(|_| super::tests::told(Duration::ZERO, None));
        assert!(next.is_some());
    }
}
