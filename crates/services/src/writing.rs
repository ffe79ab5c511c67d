//! Requests that may write, by the bucket that they write to: whoever ends an account waits for
//! those that were let in before, so that nothing is written after it.
//!
//! A request enters first and then looks whether its account still lets it in; who ends an account
//! makes it inactive first and then waits. Whichever came first, one sees the other.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use kv4::Bucket;
use wire::envelope::Fault;
use wire::errors::Code;

use crate::Services;

/// Parts that are locked each on its own, so that requests of different accounts seldom meet.
const SHARDS: usize = 8;
/// How long an end waits for the requests before it, and how often it looks.
const WAIT_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How many requests of each bucket may write right now.
#[derive(Debug, Default)]
pub struct Writing {
    hasher: RandomState,
    shards: [Mutex<HashMap<Bucket, usize, RandomState>>; SHARDS],
}

/// A request that may write, until this is dropped.
#[derive(Debug)]
pub struct Entered<'a> {
    writing: &'a Writing,
    bucket: Bucket,
}

impl Writing {
    /// Counts a request. The account must be looked at after this, and not only before.
    pub fn enter(&self, bucket: &Bucket) -> Entered<'_> {
        *self.shard(bucket).entry(bucket.clone()).or_default() += 1;
        Entered { writing: self, bucket: bucket.clone() }
    }

    /// Waits until no request of the bucket or of one within it may write.
    ///
    /// # Errors
    /// `locked` when one lasts for too long.
    pub(crate) async fn ended(services: &Services, bucket: &Bucket) -> Result<(), Fault> {
        let looks = WAIT_MAX.as_millis() / LOOK_EVERY.as_millis();
        for _ in 0..looks {
            if !services.writing.is_within(bucket) {
                return Ok(());
            }
            services.clock.sleep(LOOK_EVERY).await;
        }
        let why = "requests of this account are still under way; it is inactive, so try again";
        Err(Fault::with(Code::Locked, why))
    }

    fn is_within(&self, top: &Bucket) -> bool {
        self.shards.iter().any(|shard| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.keys().any(|bucket| bucket.is_within(top))
        })
    }

    fn shard(&self, bucket: &Bucket) -> MutexGuard<'_, HashMap<Bucket, usize, RandomState>> {
        let shard = usize::try_from(self.hasher.hash_one(bucket)).unwrap_or(0) % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut shard = self.writing.shard(&self.bucket);
        if let Some(count) = shard.get_mut(&self.bucket) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&self.bucket);
            }
        }
    }
}
