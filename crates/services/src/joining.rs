//! Equal logins at the same time, as from a pool of connections after a restart: one is looked at,
//! and the others take what comes of it. A guess that is made many times over is one guess.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use foldhash::fast::RandomState;
use wire::envelope::Fault;

use crate::principal::Proof;
use crate::turnstile::Turnstile;

/// What was presented and from where, and after how many changes of accounts: what somebody begins
/// to look at before a change says nothing to who comes after it.
pub(crate) type Presented = ([u8; 32], u64);
type Outcome = Result<Arc<Proof>, Fault>;

/// Logins that are being looked at, each with how many take part in it.
#[derive(Debug, Default)]
pub(crate) struct Joining(Mutex<HashMap<Presented, (usize, Arc<Look>), RandomState>>);

#[derive(Debug, Default)]
struct Look {
    turn: Turnstile,
    outcome: OnceLock<Outcome>,
}

impl Joining {
    /// What comes of `look`, or of an equal one that is under way. Of one that is given up before it
    /// ends another one looks anew.
    ///
    /// # Errors
    /// Those of the one that was looked at.
    pub(crate) async fn join(
        &self,
        presented: Presented,
        look: impl Future<Output = Outcome>,
    ) -> Outcome {
        let part = self.take_part(presented);
        let _turn = part.look.turn.pass().await;
        if let Some(outcome) = part.look.outcome.get() {
            return outcome.clone();
        }
        let outcome = look.await;
        // Nobody else has the turn.
        let _ = part.look.outcome.set(outcome.clone());
        outcome
    }

    fn take_part(&self, presented: Presented) -> Part<'_> {
        let mut under_way = self.under_way();
        let (parts, look) = under_way.entry(presented).or_default();
        *parts += 1;
        Part { joining: self, presented, look: look.clone() }
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<Presented, (usize, Arc<Look>), RandomState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Part in a login, until this is dropped.
struct Part<'a> {
    joining: &'a Joining,
    presented: Presented,
    look: Arc<Look>,
}

impl Drop for Part<'_> {
    /// Whoever comes after the outcome looks anew, as who comes after everybody has gone.
    fn drop(&mut self) {
        let mut under_way = self.joining.under_way();
        let Some((parts, look)) = under_way.get_mut(&self.presented) else { return };
        if !Arc::ptr_eq(look, &self.look) {
            return;
        }
        *parts -= 1;
        if *parts == 0 || self.look.outcome.get().is_some() {
            under_way.remove(&self.presented);
        }
    }
}
