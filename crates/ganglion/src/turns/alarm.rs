//! Waiting for less than a millisecond, which the runtime's timer cannot.
//!
//! One thread sleeps until the earliest date that somebody waits for; while nobody waits it does
//! not run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::os;

/// Wakes whoever waits, at his time. Its thread ends when it is dropped.
#[derive(Debug)]
pub(crate) struct AlarmClock(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Somebody waits for an earlier date than all others.
    earlier: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    sleepers: BinaryHeap<Reverse<Sleeper>>,
    is_over: bool,
}

#[derive(Debug)]
struct Sleeper {
    until: Instant,
    wake: oneshot::Sender<()>,
}

impl PartialEq for Sleeper {
    fn eq(&self, other: &Sleeper) -> bool {
        self.until == other.until
    }
}

impl Eq for Sleeper {}

impl PartialOrd for Sleeper {
    fn partial_cmp(&self, other: &Sleeper) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Sleeper {
    fn cmp(&self, other: &Sleeper) -> std::cmp::Ordering {
        self.until.cmp(&other.until)
    }
}

impl AlarmClock {
    pub(crate) fn start() -> std::io::Result<AlarmClock> {
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        std::thread::Builder::new().name("alarm".to_owned()).spawn(move || of_thread.run())?;
        Ok(AlarmClock(shared))
    }

    /// Finishes at `until`, or a few µs later.
    pub(crate) async fn sleep_until(&self, until: Instant) {
        let (wake, woken) = oneshot::channel();
        {
            let mut waiting = self.0.waiting();
            let is_earliest =
                waiting.sleepers.peek().is_none_or(|Reverse(next)| until < next.until);
            waiting.sleepers.push(Reverse(Sleeper { until, wake }));
            if is_earliest {
                self.0.earlier.notify_one();
            }
        }
        // The sender is dropped without a word only when the clock is.
        let _ = woken.await;
    }
}

impl Shared {
    fn run(&self) {
        os::sharpen_timers();
        let mut waiting = self.waiting();
        while !waiting.is_over {
            let now = Instant::now();
            while let Some(Reverse(next)) = waiting.sleepers.peek()
                && next.until <= now
                && let Some(Reverse(sleeper)) = waiting.sleepers.pop()
            {
                // Whoever waited may have gone.
                let _ = sleeper.wake.send(());
            }
            let next = waiting.sleepers.peek().map(|Reverse(next)| next.until - now);
            waiting = match next {
                Some(left) => {
                    let waited = self.earlier.wait_timeout(waiting, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.earlier.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AlarmClock {
    fn drop(&mut self) {
        self.0.waiting().is_over = true;
        self.0.earlier.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn sleepers_wake_in_the_order_of_their_dates_and_not_before() {
        let clock = Arc::new(AlarmClock::start().expect("a thread"));
        let begun = Instant::now();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut sleepers = tokio::task::JoinSet::new();
        for ms in [30, 10, 20] {
            let (clock, order) = (clock.clone(), order.clone());
            sleepers.spawn(async move {
                clock.sleep_until(begun + Duration::from_millis(ms)).await;
                assert!(begun.elapsed() >= Duration::from_millis(ms));
                order.lock().expect("nobody panicked").push(ms);
            });
        }
        sleepers.join_all().await;
        assert_eq!(*order.lock().expect("nobody panicked"), [10, 20, 30]);
    }
}
