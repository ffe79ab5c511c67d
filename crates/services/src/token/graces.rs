//! Tokens that are connected, and may come again for a while after they have expired.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kv4::Bucket;

/// How long after its socket went a token that has expired may connect again, in seconds: deployed
/// clients reconnect with the token they have (`spec/xirsys.md` §1.7).
const GRACE_S: u64 = 300;
/// Connected tokens remembered for that.
const GRACES_MAX: usize = 200_000;
/// The same of one account.
const GRACES_OF_ACCOUNT_MAX: usize = GRACES_MAX / 4;

/// Tokens that are connected, or were a moment ago.
#[derive(Debug, Default)]
pub struct Graces {
    known: Mutex<Known>,
    /// Tokens that were connected and not remembered, for want of room.
    pub(crate) lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    by_token: HashMap<u64, Grace>,
    /// Those of which no socket is open, and when the last one went.
    gone: BTreeSet<(u64, u64)>,
    /// How many each account has.
    of_account: HashMap<Bucket, usize>,
}

#[derive(Debug)]
struct Grace {
    account: Bucket,
    /// Sockets that are open with the token.
    open: usize,
    /// When the last one went, in seconds since 1970.
    gone_s: u64,
}

impl Graces {
    /// Notes that a socket was opened with a token of an account.
    pub fn connected(&self, token: u64, account: &Bucket, now_s: u64) {
        let mut known = self.known();
        while let Some((gone_s, oldest)) = known.gone.first().copied()
            && gone_s + GRACE_S < now_s
        {
            known.forget(oldest);
        }
        let is_known = known.by_token.contains_key(&token);
        let of_account = known.of_account.get(account).copied().unwrap_or(0);
        let is_full = known.by_token.len() >= GRACES_MAX || of_account >= GRACES_OF_ACCOUNT_MAX;
        if is_full && !is_known {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if !is_known {
            *known.of_account.entry(account.clone()).or_default() += 1;
        }
        let new = || Grace { account: account.clone(), open: 0, gone_s: now_s };
        let grace = known.by_token.entry(token).or_insert_with(new);
        grace.open += 1;
        let gone_s = grace.gone_s;
        known.gone.remove(&(gone_s, token));
    }

    /// Notes that such a socket has gone.
    pub fn disconnected(&self, token: u64, now_s: u64) {
        let mut known = self.known();
        let Some(grace) = known.by_token.get_mut(&token) else { return };
        grace.open = grace.open.saturating_sub(1);
        grace.gone_s = now_s;
        if grace.open == 0 {
            known.gone.insert((now_s, token));
        }
    }

    pub(super) fn holds(&self, token: u64, now_s: u64) -> bool {
        let known = self.known();
        let grace = known.by_token.get(&token);
        grace.is_some_and(|grace| grace.open > 0 || grace.gone_s + GRACE_S >= now_s)
    }

    pub(super) fn forget(&self, token: u64) {
        self.known().forget(token);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn forget(&mut self, token: u64) {
        let Some(grace) = self.by_token.remove(&token) else { return };
        self.gone.remove(&(grace.gone_s, token));
        if let Some(count) = self.of_account.get_mut(&grace.account) {
            *count -= 1;
            if *count == 0 {
                self.of_account.remove(&grace.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_takes_no_more_than_its_part() {
        let [ann, bob] = ["kv4_$ann_data", "kv4_$bob_data"].map(Bucket::from_stored);
        let graces = Graces::default();
        for token in 0..GRACES_OF_ACCOUNT_MAX as u64 + 1 {
            graces.connected(token, &ann, 10);
            graces.disconnected(token, 10);
        }
        let last = GRACES_OF_ACCOUNT_MAX as u64;
        assert_eq!(graces.lost.load(Ordering::Relaxed), 1);
        assert!(graces.holds(last - 1, 10 + GRACE_S) && !graces.holds(last, 10));
        graces.connected(last + 1, &bob, 10);
        assert!(graces.holds(last + 1, 10_000), "it is open");
        graces.connected(last, &ann, 11 + GRACE_S);
        assert!(graces.holds(last, 10_000), "there is room again");
        let known = graces.known();
        assert_eq!((known.by_token.len(), known.gone.len(), known.of_account.len()), (2, 0, 2));
    }

    #[test]
    fn one_that_comes_again_is_there() {
        let ann = Bucket::from_stored("kv4_$ann_data");
        let graces = Graces::default();
        graces.connected(1, &ann, 10);
        graces.connected(1, &ann, 10);
        graces.disconnected(1, 20);
        graces.connected(2, &ann, 1_000);
        assert!(graces.holds(1, 1_000), "one of its sockets is open");
        graces.disconnected(1, 1_000);
        graces.connected(1, &ann, 1_100);
        graces.connected(2, &ann, 2_000);
        assert!(graces.holds(1, 2_000), "it came again");
        graces.forget(1);
        graces.forget(2);
        let known = graces.known();
        assert!(known.by_token.is_empty() && known.gone.is_empty() && known.of_account.is_empty());
    }
}
