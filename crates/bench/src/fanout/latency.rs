//! Latencies by the million, in buckets of 1.6 % or one microsecond.

/// Buckets of each doubling, as a power of two.
const FINE_BITS: u32 = 6;
const FINE: usize = 1 << FINE_BITS;
/// Enough for an hour.
const BUCKETS: usize = FINE * 28;

/// How often which latency was seen.
#[derive(Clone, Debug)]
pub(super) struct Latencies {
    buckets: Vec<u64>,
    count: u64,
    max_us: u64,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { buckets: vec![0; BUCKETS], count: 0, max_us: 0 }
    }
}

impl Latencies {
    pub(super) fn add(&mut self, us: u64) {
        self.buckets[bucket(us).min(BUCKETS - 1)] += 1;
        self.count += 1;
        self.max_us = self.max_us.max(us);
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn max_us(&self) -> f64 {
        self.max_us as f64
    }

    /// The smallest latency of the bucket below or in which this share lies, in microseconds.
    pub(super) fn percentile_us(&self, share: f64) -> f64 {
        let wanted = ((self.count as f64) * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return start(at) as f64;
            }
        }
        f64::NAN
    }
}

/// The bucket of a latency: exact below `2 * FINE`, then `FINE` buckets a doubling.
fn bucket(us: u64) -> usize {
    let doublings = (u64::BITS - us.leading_zeros()).saturating_sub(FINE_BITS + 1);
    (doublings as usize) * FINE + (us >> doublings) as usize
}

/// The smallest latency of a bucket.
fn start(bucket: usize) -> u64 {
    let doublings = (bucket / FINE).saturating_sub(1);
    ((bucket - doublings * FINE) as u64) << doublings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_starts_at_its_smallest_latency_and_is_narrow() {
        let mut last = None;
        for us in (0..5_000).chain((13..32).map(|bits| (1 << bits) - 1)).chain([3_600_000_000]) {
            let at = bucket(us);
            assert!(at < BUCKETS, "{us}");
            assert!(start(at) <= us && us < start(at + 1), "{us} is not in {at}");
            assert!(start(at + 1) - start(at) <= 1 + us / FINE as u64, "{us}");
            assert!(last <= Some(at), "{us}");
            last = Some(at);
        }
    }

    #[test]
    fn a_percentile_is_a_latency_that_was_seen() {
        let mut latencies = Latencies::default();
        assert!(latencies.percentile_us(0.5).is_nan());
        for us in 1..=100 {
            latencies.add(us);
        }
        assert_eq!(latencies.percentile_us(0.5), 50.0);
        assert_eq!(latencies.percentile_us(0.99), 99.0);
        assert_eq!((latencies.count(), latencies.max_us()), (100, 100.0));
    }
}
