//! Requests that may write, by the bucket that they write to: whoever ends an account waits for
//! those that were let in before, so that nothing is written after it. A flush of statistics and
//! logs is such a one too, for every bucket that it writes to.
//!
//! A request enters first and then looks whether its account still lets it in; who ends an account
//! makes it inactive first and then waits. Whichever came first, one sees the other.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::BuildHasher as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use kv4::Bucket;
use kv4::store::StoreError;
use wire::envelope::Fault;
use wire::errors::Code;

use crate::{Services, principal};

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
    /// Buckets that are being removed, with those within them: a few at most.
    removed: Mutex<Vec<Bucket>>,
}

/// The removal of a bucket, until this is dropped.
#[derive(Debug)]
pub(crate) struct Removal<'a> {
    writing: &'a Writing,
    top: Bucket,
}

/// What a flush may write, until this is dropped.
#[derive(Debug)]
pub(crate) struct Flushing<'a> {
    /// Buckets that it writes to: their ends wait.
    entered: HashMap<Bucket, Entered<'a>>,
    /// Buckets whose accounts are no more; what is held for them goes.
    gone: HashSet<Bucket>,
}

impl Flushing<'_> {
    /// Whether the bucket may be written to. What is for one that neither may be nor is gone waits.
    pub(crate) fn may_write(&self, bucket: &Bucket) -> bool {
        self.entered.contains_key(bucket)
    }

    pub(crate) fn is_gone(&self, bucket: &Bucket) -> bool {
        self.gone.contains(bucket)
    }
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

    /// Says that a bucket is to be removed: a flush that comes after this leaves it alone, and
    /// [`Writing::ended`] waits for one that came before.
    pub(crate) fn remove(&self, top: Bucket) -> Removal<'_> {
        self.removed().push(top.clone());
        Removal { writing: self, top }
    }

    /// Lets a flush write to those of `buckets` whose accounts are there, active or not.
    pub(crate) async fn flush(
        services: &Services,
        buckets: BTreeSet<Bucket>,
    ) -> Result<Flushing<'_>, StoreError> {
        let mut flushing = Flushing { entered: HashMap::new(), gone: HashSet::new() };
        for bucket in buckets {
            let entered = services.writing.enter(&bucket);
            if services.writing.removed().iter().any(|top| bucket.is_within(top)) {
                continue;
            }
            if principal::is_there(services, &bucket).await? {
                flushing.entered.insert(bucket, entered);
            } else {
                flushing.gone.insert(bucket);
            }
        }
        Ok(flushing)
    }

    fn removed(&self) -> MutexGuard<'_, Vec<Bucket>> {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner)
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

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        let mut removed = self.writing.removed();
        if let Some(at) = removed.iter().position(|top| *top == self.top) {
            removed.swap_remove(at);
        }
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
