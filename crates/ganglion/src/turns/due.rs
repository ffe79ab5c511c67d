//! A date until which somebody waits, moved on by what he uses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Time that a payer may save up and spend at once, in ns: about what the alarm is late by. What it
/// spends at once is what somebody else may have to wait for.
const SAVED_NS: u64 = 50_000;

const SECOND_NS: u64 = 1_000_000_000;

/// A limit in virtual time (the generic cell rate algorithm): every use moves a date on, and a use
/// is late or early by how far that date is from now. In ns since [`Turns`](super::Turns) began.
#[derive(Debug, Default)]
pub(super) struct Due(AtomicU64);

impl Due {
    pub(super) fn wait(&self, now: u64) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed).saturating_sub(now))
    }

    /// Pays afterwards; what was not used is forfeited, but for what a timer is late by.
    pub(super) fn charge(&self, now: u64, cost: u64) {
        let next = |due: u64| Some(due.max(now.saturating_sub(SAVED_NS)).saturating_add(cost));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// Pays in advance, unless that is more than a second too early.
    pub(super) fn take(&self, now: u64, a_second: u32) -> bool {
        let cost = SECOND_NS / u64::from(a_second);
        let next = |due: u64| {
            let due = due.max(now) + cost;
            (due - now <= SECOND_NS).then_some(due)
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_lets_a_seconds_worth_through_and_then_one_at_a_time() {
        let due = Due::default();
        let passed = (0..100).filter(|_| due.take(SECOND_NS, 20)).count();
        assert_eq!(passed, 20);
        assert!(!due.take(SECOND_NS + SECOND_NS / 20 - 1, 20));
        assert!(due.take(SECOND_NS + SECOND_NS / 20, 20));
        assert!(!due.take(SECOND_NS + SECOND_NS / 20, 20));
    }
}
