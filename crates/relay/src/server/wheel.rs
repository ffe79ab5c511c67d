//! Timers by the second: who is due is found without looking at who is not.

use std::time::{Duration, Instant};

/// Seconds that the wheel looks ahead; who is due later is put off until then.
const SECONDS: u64 = 4_096;

/// Numbers of slots, each under the second at which it is to be looked at. One that is put in twice is
/// given twice: whoever takes it looks whether it is due.
#[derive(Debug)]
pub(crate) struct Wheel {
    begun: Instant,
    /// The next second that has not been given.
    next_s: u64,
    seconds: Box<[Vec<u32>]>,
    count: usize,
}

impl Wheel {
    pub(crate) fn new(begun: Instant) -> Wheel {
        Wheel { begun, next_s: 0, seconds: vec![Vec::new(); SECONDS as usize].into(), count: 0 }
    }

    /// Puts a slot in; answers the second at which it is given, which is the first that is not before the
    /// time, or the last of the wheel.
    pub(crate) fn insert(&mut self, at: Instant, slot: u32) -> u64 {
        let second = self.second(at);
        self.seconds[(second % SECONDS) as usize].push(slot);
        self.count += 1;
        second
    }

    /// The second at which one would be given that is put in now.
    pub(crate) fn second(&self, at: Instant) -> u64 {
        let whole = at.saturating_duration_since(self.begun);
        let second = whole.as_secs() + u64::from(whole.subsec_nanos() > 0);
        second.clamp(self.next_s, self.next_s + SECONDS - 1)
    }

    /// Takes the next of those that are due, and at which second it was put.
    pub(crate) fn take(&mut self, now: Instant) -> Option<(u64, u32)> {
        let now_s = now.saturating_duration_since(self.begun).as_secs();
        while self.next_s <= now_s {
            if self.count == 0 {
                self.next_s = now_s + 1;
                return None;
            }
            let second = &mut self.seconds[(self.next_s % SECONDS) as usize];
            if let Some(slot) = second.pop() {
                self.count -= 1;
                return Some((self.next_s, slot));
            }
            // A second of many once is not to hold their room for ever.
            second.shrink_to(64);
            self.next_s += 1;
        }
        None
    }

    /// When somebody may be due; `None` when nobody will be.
    pub(crate) fn next(&self) -> Option<Instant> {
        (self.count > 0).then(|| self.begun + Duration::from_secs(self.next_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_given_once_and_not_early() {
        let begun = <Instant>::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut wheel = Wheel::new(begun);
        assert_eq!(wheel.next(), None);
        for (ms, slot) in [(0, 1), (1, 2), (999, 3), (1_000, 4), (1_001, 5), (5_000_000, 6)] {
            wheel.insert(at(ms), slot);
        }
        let mut due = |ms| {
            let mut slots: Vec<u32> = std::iter::from_fn(|| Some(wheel.take(at(ms))?.1)).collect();
            slots.sort_unstable();
            slots
        };
        assert_eq!(due(0), [1]);
        assert!(due(999).is_empty());
        assert_eq!(due(1_000), [2, 3, 4]);
        assert_eq!(due(2_500), [5]);
        // Put off to the end of the wheel.
        assert_eq!(due(4_095_000), [6]);
        assert_eq!(wheel.next(), None);
        wheel.insert(at(0), 7);
        assert_eq!(wheel.take(at(4_095_500)), None, "of the past: the next second");
        assert_eq!(wheel.next(), Some(at(4_096_000)));
        assert_eq!(wheel.take(at(4_096_000)), Some((4_096, 7)));
    }

    /// Seconds that nobody was due in cost nothing.
    #[test]
    fn a_long_rest_is_skipped() {
        let begun = <Instant>::now();
        let mut wheel = Wheel::new(begun);
        let late = begun + Duration::from_secs(1 << 40);
        assert_eq!(wheel.take(late), None);
        wheel.insert(late, 1);
        assert_eq!(wheel.take(late + Duration::from_secs(1)).map(|(_, slot)| slot), Some(1));
    }
}
