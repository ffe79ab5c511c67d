//! How much one socket may say: so many messages in a second, some seconds' worth at once.

use std::time::Duration;

use neuron::sockets::Crowd;
use tokio::time::Instant;

/// Seconds' worth of messages that may come at once.
const BURST_S: u32 = 10;
/// Bytes that may be said in a second to those of whom one has a queue that is full, or packed: what
/// every reader is to take. Not all that waits is one socket's doing.
const FULL_BYTES_PER_S: u64 = 256 << 10;
const PACKED_BYTES_PER_S: u64 = 32 << 10;
/// Seconds' worth of bytes, at the lower of these, that may come at once wherever they go.
const MUCH: Duration = Duration::from_secs(8);
/// What a relayed message has beside its text, about.
const ENVELOPE_BYTES: u64 = 128;

/// What a socket has said of late, as a time: when it would have said all of that at its pace. One that
/// is a burst ahead of the clock is not read from until it no longer is.
#[derive(Debug)]
pub(super) struct Pace {
    /// Time that a message takes; zero when there is no bound.
    each: Duration,
    said_until: Instant,
    /// The same of bytes, at most [`MUCH`] ahead of the clock.
    sent_until: Instant,
    paused_until: Option<Instant>,
}

impl Pace {
    /// So many messages in a second; 0 for no bound.
    pub(super) fn new(per_second: u32) -> Pace {
        let each = Duration::from_secs(1).checked_div(per_second).unwrap_or_default();
        let now = Instant::now();
        Pace { each, said_until: now, sent_until: now, paused_until: None }
    }

    /// Notes messages; answers whether the socket is to pause for them.
    pub(super) fn spend(&mut self, messages: u32, now: Instant) -> bool {
        self.said_until = self.said_until.max(now) + self.each * messages;
        let allowed = now + Duration::from_secs(BURST_S.into());
        if !self.each.is_zero() && self.said_until > allowed {
            self.pause(now + (self.said_until - allowed));
        }
        self.paused_until.is_some()
    }

    /// Notes a text; answers for how long to pause because of those to whom it went. Whoever says
    /// little is not held up by who reads little.
    pub(super) fn say(&mut self, text_bytes: usize, crowd: Crowd, now: Instant) -> Duration {
        let at =
            |per_s| Duration::from_micros((text_bytes as u64 + ENVELOPE_BYTES) * 1_000_000 / per_s);
        let ahead = self.sent_until.max(now) + at(PACKED_BYTES_PER_S) - now;
        self.sent_until = now + ahead.min(MUCH);
        match crowd {
            Crowd::Full if ahead > MUCH => at(FULL_BYTES_PER_S),
            Crowd::Packed if ahead > MUCH => at(PACKED_BYTES_PER_S),
            _ => Duration::ZERO,
        }
    }

    /// Pauses for another reason, at least until then.
    pub(super) fn pause(&mut self, until: Instant) {
        self.paused_until = Some(self.paused_until.map_or(until, |known| known.max(until)));
    }

    /// Until when the socket is not to be read from.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Ends a pause that is over.
    pub(super) fn look(&mut self, now: Instant) {
        self.paused_until.take_if(|until| *until <= now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_says_too_much_pauses_until_it_no_longer_has() {
        let mut pace = Pace::new(100);
        let begun = Instant::now();
        assert!(!pace.spend(1_000, begun), "ten seconds' worth");
        assert!(pace.spend(1, begun), "and one more");
        let until = pace.paused_until().expect("a pause");
        assert_eq!(until - begun, Duration::from_millis(10));
        pace.look(begun);
        assert!(pace.paused_until().is_some());
        pace.look(until);
        assert!(pace.paused_until().is_none());
        assert!(pace.spend(50, until), "as much again is too much at once");
        pace.look(until + Duration::from_millis(500));
        assert!(!pace.spend(50, until + Duration::from_secs(2)), "but not after a while");
    }

    /// Else the pause for those who do not keep up would end with the short one.
    #[test]
    fn a_pause_is_not_cut_short_by_another() {
        let mut pace = Pace::new(100);
        let now = Instant::now();
        pace.spend(1_000, now);
        let until = now + Duration::from_secs(2);
        pace.pause(until);
        assert!(pace.spend(1, now));
        assert_eq!(pace.paused_until(), Some(until));
    }

    #[test]
    fn who_fills_the_queues_of_others_pauses_for_what_he_says() {
        let mut pace = Pace::new(0);
        let (now, text) = (Instant::now(), (32 << 10) - 128);
        for _ in 0..8 {
            assert_eq!(pace.say(text, Crowd::Packed, now), Duration::ZERO, "it was little");
        }
        assert_eq!(pace.say(text, Crowd::Roomy, now), Duration::ZERO);
        assert_eq!(pace.say(text, Crowd::Full, now), Duration::from_millis(125));
        assert_eq!(pace.say(text, Crowd::Packed, now), Duration::from_secs(1));
        // However much it was, it is little again after a while.
        let later = now + Duration::from_secs(1);
        assert_eq!(pace.say(text, Crowd::Packed, later), Duration::ZERO);
        assert_eq!(pace.say(0, Crowd::Packed, later), Duration::from_micros(3_906));
    }

    #[test]
    fn no_bound_is_none() {
        let mut pace = Pace::new(0);
        assert!(!pace.spend(u32::MAX, Instant::now()));
    }
}
