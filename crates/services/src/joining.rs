//! Equal logins at the same time, as from a pool of connections after a restart: one is looked at,
//! and the others take what comes of it. A guess that is made many times over is one guess.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use tokio::sync::OnceCell;
use wire::envelope::Fault;

use crate::principal::Proof;

/// A digest of what was presented, and from where.
type Digest = [u8; 32];
type Outcome = OnceCell<Result<Arc<Proof>, Fault>>;

/// Logins that are being looked at.
#[derive(Debug, Default)]
pub(crate) struct Joining(Mutex<HashMap<Digest, Arc<Outcome>, RandomState>>);

impl Joining {
    /// What comes of `look`, or of an equal one that is under way. Of one that is given up before it
    /// ends the next in line looks anew.
    ///
    /// # Errors
    /// Those of the one that was looked at.
    pub(crate) async fn join(
        &self,
        digest: Digest,
        look: impl Future<Output = Result<Arc<Proof>, Fault>>,
    ) -> Result<Arc<Proof>, Fault> {
        let outcome = self.under_way().entry(digest).or_default().clone();
        let joined = Joined { joining: self, digest, outcome };
        joined.outcome.get_or_init(|| look).await.clone()
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Outcome>, RandomState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Part in a login, until this is dropped.
struct Joined<'a> {
    joining: &'a Joining,
    digest: Digest,
    outcome: Arc<Outcome>,
}

impl Drop for Joined<'_> {
    /// What is known, or is waited for by nobody else, is not under way.
    fn drop(&mut self) {
        let mut under_way = self.joining.under_way();
        // The map's own and this one; others are taken under the lock only.
        let is_last = || Arc::strong_count(&self.outcome) == 2;
        let is_this = |held: &Arc<Outcome>| Arc::ptr_eq(held, &self.outcome);
        if under_way.get(&self.digest).is_some_and(is_this)
            && (self.outcome.initialized() || is_last())
        {
            under_way.remove(&self.digest);
        }
    }
}
