//! Failed logins: how many an address may make before it has to wait.
//!
//! Two buckets of tokens, one per (address, account) and a wider one per address, so that a person
//! who mistypes is never shut out by others behind the same address quickly, and a list of stolen
//! passwords does not get through. A blocked address is refused before its secret is looked at. Who
//! hangs up has failed if what he sent turns out to be wrong, and not if nobody has begun to look.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How many failures in a row are let pass, and seconds until there is one more.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: f64,
    refill_s: f64,
}

/// Of one address at one account.
const AT_ACCOUNT: Rate = Rate { burst: 10.0, refill_s: 6.0 };
/// Of one address at all accounts together.
const AT_ALL: Rate = Rate { burst: 60.0, refill_s: 1.0 };
/// Addresses and pairs remembered, beside those of which an attempt is pending.
const BUCKETS_MAX: usize = 100_000;

/// Counts failed logins.
#[derive(Debug, Default)]
pub struct Failures {
    buckets: Mutex<HashMap<Key, Tokens>>,
    /// Attempts that were wrong.
    pub failed: AtomicU64,
    /// Attempts that were not looked at, after too many wrong ones.
    pub refused: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Tokens {
    left: f64,
    at_s: f64,
    /// Of those that were taken, how many may still come back.
    pending: u32,
}

/// Why an attempt may not be looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Charge {
    /// Others are being looked at that may turn out to be right, and leave room then.
    Later,
    /// Too many failed: seconds to wait.
    Never(u64),
}

/// An attempt that is being looked at, until this is dropped. It is given back then, unless somebody
/// has said that it was wrong.
#[derive(Debug)]
pub struct Attempt {
    failures: Arc<Failures>,
    keys: [(Key, Rate); 2],
    was_wrong: AtomicBool,
}

impl Failures {
    /// Takes one attempt of an address at an account, before it is looked at, so that attempts made
    /// at the same time count too.
    ///
    /// # Errors
    /// None is left.
    pub fn charge(
        self: &Arc<Failures>,
        address: IpAddr,
        account: &str,
        now_micros: u64,
    ) -> Result<Attempt, Charge> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let now_s = now_micros as f64 / 1e6;
        make_room(&mut buckets, now_s);
        let keys = keys(address, account);
        let mut refused = None;
        for (key, rate) in &keys {
            let full = Tokens { left: rate.burst, at_s: now_s, pending: 0 };
            let tokens = buckets.entry(key.clone()).or_insert(full);
            *tokens = tokens.refilled(now_s, *rate);
            if tokens.left + f64::from(tokens.pending) < 1.0 {
                let seconds = ((1.0 - tokens.left) * rate.refill_s).ceil().max(1.0) as u64;
                let wait = match refused {
                    Some(Charge::Never(others)) => seconds.max(others),
                    _ => seconds,
                };
                refused = Some(Charge::Never(wait));
            } else if tokens.left < 1.0 {
                refused = refused.or(Some(Charge::Later));
            }
        }
        if let Some(refused) = refused {
            let is_over = matches!(refused, Charge::Never(_));
            self.refused.fetch_add(u64::from(is_over), Ordering::Relaxed);
            return Err(refused);
        }
        for (key, _) in &keys {
            if let Some(tokens) = buckets.get_mut(key) {
                tokens.left -= 1.0;
                tokens.pending += 1;
            }
        }
        drop(buckets);
        Ok(Attempt { failures: self.clone(), keys, was_wrong: AtomicBool::new(false) })
    }
}

impl Attempt {
    /// It was a failure, and stays charged.
    pub fn wrong(&self) {
        if !self.was_wrong.swap(true, Ordering::Relaxed) {
            self.failures.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut buckets = self.failures.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, rate) in &self.keys {
            if let Some(tokens) = buckets.get_mut(key) {
                tokens.pending = tokens.pending.saturating_sub(1);
                if !*self.was_wrong.get_mut() {
                    tokens.left = (tokens.left + 1.0).min(rate.burst);
                }
            }
        }
    }
}

type Key = (IpAddr, Option<String>);

/// What an address counts as: an IPv6 address as its /64, which is what one customer is given.
pub(crate) fn counted_as(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        address => address,
    }
}

/// The two buckets of an attempt, and how they fill.
fn keys(address: IpAddr, account: &str) -> [(Key, Rate); 2] {
    let address = counted_as(address);
    let account = account.chars().take(64).collect();
    [((address, None), AT_ALL), ((address, Some(account)), AT_ACCOUNT)]
}

/// Forgets the buckets that are full again, if that is not enough those that are fullest, and at last
/// all of which nothing is pending.
fn make_room(buckets: &mut HashMap<Key, Tokens>, now_s: f64) {
    let mut keep_below = 1.0;
    while buckets.len() >= BUCKETS_MAX && keep_below > 0.0 {
        buckets.retain(|(_, account), tokens| {
            let rate = if account.is_some() { AT_ACCOUNT } else { AT_ALL };
            let tokens = tokens.refilled(now_s, rate);
            tokens.pending > 0 || tokens.left < rate.burst * keep_below
        });
        keep_below -= 0.25;
    }
    if buckets.len() >= BUCKETS_MAX {
        buckets.retain(|_, tokens| tokens.pending > 0);
    }
}

impl Tokens {
    fn refilled(self, now_s: f64, rate: Rate) -> Tokens {
        // Time that passed, or that the clock was set back by: nobody waits until it catches up.
        let gained = (now_s - self.at_s).abs() / rate.refill_s;
        // What may come back finds its room.
        let room = rate.burst - f64::from(self.pending);
        Tokens { left: (self.left + gained).min(room), at_s: now_s, ..self }
    }
}
