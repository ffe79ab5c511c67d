//! Tokens that are connected, and may come again for a while after they have expired.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// How long after its socket went a token that has expired may connect again, in seconds: deployed
/// clients reconnect with the token they have (`spec/xirsys.md` §1.7).
const GRACE_S: u64 = 300;
/// Connected tokens remembered for that.
const GRACES_MAX: usize = 200_000;

/// Tokens that are connected, or were a moment ago.
#[derive(Debug, Default)]
pub struct Graces {
    by_token: Mutex<HashMap<u64, Grace>>,
    /// Tokens that were connected and not remembered, for want of room.
    pub(crate) lost: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Grace {
    /// Sockets that are open with the token.
    open: usize,
    /// When the last one went, in seconds since 1970.
    gone_s: u64,
}

impl Graces {
    /// Notes that a socket was opened with a token.
    pub fn connected(&self, token: u64, now_s: u64) {
        let mut graces = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        if graces.len() >= GRACES_MAX {
            graces.retain(|_, grace| grace.open > 0 || grace.gone_s + GRACE_S >= now_s);
        }
        if graces.len() < GRACES_MAX || graces.contains_key(&token) {
            graces.entry(token).or_default().open += 1;
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes that such a socket has gone.
    pub fn disconnected(&self, token: u64, now_s: u64) {
        let mut graces = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(grace) = graces.get_mut(&token) {
            grace.open = grace.open.saturating_sub(1);
            grace.gone_s = now_s;
        }
    }

    pub(super) fn holds(&self, token: u64, now_s: u64) -> bool {
        let graces = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        graces.get(&token).is_some_and(|grace| grace.open > 0 || grace.gone_s + GRACE_S >= now_s)
    }

    pub(super) fn forget(&self, token: u64) {
        self.by_token.lock().unwrap_or_else(PoisonError::into_inner).remove(&token);
    }
}
