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

/// That a socket is counted among those of a token, to be given back when it closes. One that was opened
/// before its token was forgotten is counted no more.
#[derive(Debug)]
pub struct Counted {
    token: u64,
    grace: u64,
}

#[derive(Debug, Default)]
struct Known {
    /// Graces that there have been.
    made: u64,
    by_token: HashMap<u64, Grace>,
    /// Those of which no socket is open, and when the last one went.
    gone: BTreeSet<(u64, u64)>,
    /// How many each account has.
    of_account: HashMap<Bucket, usize>,
}

#[derive(Debug)]
struct Grace {
    /// Which of all it is: a token that was forgotten may come again.
    number: u64,
    account: Bucket,
    /// Sockets that are open with the token.
    open: usize,
    /// When the last one went, in seconds since 1970.
    gone_s: u64,
}

impl Graces {
    /// Notes that a socket was opened with a token of an account; `None` when there is no room to.
    pub fn connected(&self, token: u64, account: &Bucket, now_s: u64) -> Option<Counted> {
        let mut known = self.known();
        known.expire(now_s);
        let is_known = known.by_token.contains_key(&token);
        let of_account = known.of_account.get(account).copied().unwrap_or(0);
        let is_full = known.by_token.len() >= GRACES_MAX || of_account >= GRACES_OF_ACCOUNT_MAX;
        if is_full && !is_known {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        if !is_known {
            known.made += 1;
            *known.of_account.entry(account.clone()).or_default() += 1;
        }
        let number = known.made;
        let new = || Grace { number, account: account.clone(), open: 0, gone_s: now_s };
        let grace = known.by_token.entry(token).or_insert_with(new);
        grace.open += 1;
        let (gone_s, grace) = (grace.gone_s, grace.number);
        known.gone.remove(&(gone_s, token));
        Some(Counted { token, grace })
    }

    /// Notes that such a socket has gone.
    pub fn disconnected(&self, counted: Counted, now_s: u64) {
        let Counted { token, grace: number } = counted;
        let mut known = self.known();
        let grace = known.by_token.get_mut(&token).filter(|grace| grace.number == number);
        let Some(grace) = grace else { return };
        grace.open -= 1;
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

    /// Takes away the grace of a token of an account; of another's it does nothing.
    pub(super) fn forget(&self, token: u64, account: &Bucket) {
        let mut known = self.known();
        if known.by_token.get(&token).is_some_and(|grace| grace.account == *account) {
            known.forget(token);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Forgets those whose last socket went too long ago.
    fn expire(&mut self, now_s: u64) {
        while self.gone.first().is_some_and(|(gone_s, _)| gone_s + GRACE_S < now_s)
            && let Some((_, token)) = self.gone.pop_first()
        {
            self.forget(token);
        }
    }

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
        let last = GRACES_OF_ACCOUNT_MAX as u64;
        for token in 0..last {
            let counted = graces.connected(token, &ann, 10).expect("there is room");
            graces.disconnected(counted, 10);
        }
        assert!(graces.connected(last, &ann, 10).is_none());
        assert_eq!(graces.lost.load(Ordering::Relaxed), 1);
        assert!(graces.holds(last - 1, 10 + GRACE_S) && !graces.holds(last, 10));
        assert!(graces.connected(last + 1, &bob, 10).is_some());
        assert!(graces.holds(last + 1, 10_000), "it is open");
        assert!(graces.connected(last, &ann, 11 + GRACE_S).is_some());
        assert!(graces.holds(last, 10_000), "there is room again");
        let known = graces.known();
        assert_eq!((known.by_token.len(), known.gone.len(), known.of_account.len()), (2, 0, 2));
    }

    #[test]
    fn one_that_comes_again_is_there() {
        let [ann, bob] = ["kv4_$ann_data", "kv4_$bob_data"].map(Bucket::from_stored);
        let graces = Graces::default();
        let connect = |token, now_s| graces.connected(token, &ann, now_s).expect("there is room");
        let (first, second) = (connect(1, 10), connect(1, 10));
        graces.disconnected(first, 20);
        connect(2, 1_000);
        assert!(graces.holds(1, 1_000), "one of its sockets is open");
        graces.disconnected(second, 1_000);
        connect(1, 1_100);
        connect(2, 2_000);
        assert!(graces.holds(1, 2_000), "it came again");
        graces.forget(1, &bob);
        assert!(graces.holds(1, 2_000), "it is not another's to take away");
        graces.forget(1, &ann);
        graces.forget(2, &ann);
        let known = graces.known();
        assert!(known.by_token.is_empty() && known.gone.is_empty() && known.of_account.is_empty());
    }

    /// A socket was open when its token was forgotten, and another of the token was opened after that.
    #[test]
    fn sockets_from_before_a_revocation_count_for_nothing() {
        let [ann, bob] = ["kv4_$ann_data", "kv4_$bob_data"].map(Bucket::from_stored);
        let graces = Graces::default();
        let connect =
            |token, of: &Bucket, now_s| graces.connected(token, of, now_s).expect("there is room");
        let before = connect(1, &ann, 1);
        graces.forget(1, &ann);
        let after = connect(1, &ann, 5);
        graces.disconnected(before, 10);
        assert!(graces.holds(1, 20 + GRACE_S), "one is open");
        graces.disconnected(after, 12);
        connect(2, &bob, 11 + GRACE_S);
        assert!(graces.holds(1, 12 + GRACE_S));
        connect(3, &bob, 13 + GRACE_S);
        assert!(!graces.holds(1, 13 + GRACE_S));
        let known = graces.known();
        assert_eq!((known.by_token.len(), known.gone.len(), known.of_account.len()), (2, 0, 1));
    }
}
