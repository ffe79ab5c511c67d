//! Failed logins: how many an address may make before it has to wait.
//!
//! Two buckets of tokens, one per (address, account) and a wider one per address, so that a person
//! who mistypes is never shut out by others behind the same address quickly, and a list of stolen
//! passwords does not get through. A blocked address is refused before its secret is looked at.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// Failures in a row that one address may make at one account, and seconds until it gets one back.
const ACCOUNT_BURST: f64 = 10.0;
const ACCOUNT_REFILL_S: f64 = 6.0;
/// The same for one address at all accounts together.
const ADDRESS_BURST: f64 = 60.0;
const ADDRESS_REFILL_S: f64 = 1.0;
/// Addresses and pairs remembered; beyond it the fullest are forgotten.
const BUCKETS_MAX: usize = 100_000;

/// Counts failed logins.
#[derive(Debug, Default)]
pub struct Failures {
    buckets: Mutex<HashMap<Key, Tokens>>,
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

/// An attempt that is being looked at. It failed, unless somebody says that it was right.
#[derive(Debug)]
pub struct Attempt<'a> {
    failures: &'a Failures,
    keys: [(Key, Rate); 2],
    was_right: bool,
}

impl Failures {
    /// Takes one attempt of an address at an account, before it is looked at, so that attempts made
    /// at the same time count too.
    ///
    /// # Errors
    /// None is left.
    pub fn charge(
        &self,
        address: IpAddr,
        account: &str,
        now_micros: u64,
    ) -> Result<Attempt<'_>, Charge> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let now_s = now_micros as f64 / 1e6;
        make_room(&mut buckets, now_s);
        let keys = keys(address, account);
        let mut refused = None;
        for (key, (burst, refill_s)) in &keys {
            let full = Tokens { left: *burst, at_s: now_s, pending: 0 };
            let tokens = buckets.entry(key.clone()).or_insert(full);
            *tokens = tokens.refilled(now_s, *burst, *refill_s);
            if tokens.left + f64::from(tokens.pending) < 1.0 {
                let seconds = ((1.0 - tokens.left) * refill_s).ceil().max(1.0) as u64;
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
            return Err(refused);
        }
        for (key, _) in &keys {
            if let Some(tokens) = buckets.get_mut(key) {
                tokens.left -= 1.0;
                tokens.pending += 1;
            }
        }
        drop(buckets);
        Ok(Attempt { failures: self, keys, was_right: false })
    }
}

impl Attempt<'_> {
    /// It was no failure.
    pub fn right(mut self) {
        self.was_right = true;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut buckets = self.failures.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, (burst, _)) in &self.keys {
            if let Some(tokens) = buckets.get_mut(key) {
                tokens.pending = tokens.pending.saturating_sub(1);
                if self.was_right {
                    tokens.left = (tokens.left + 1.0).min(*burst);
                }
            }
        }
    }
}

type Key = (IpAddr, Option<String>);
/// The burst, and seconds to refill one.
type Rate = (f64, f64);

/// The two buckets of an attempt, and how they fill. An IPv6 address counts
/// as its /64, which is what one customer is given.
fn keys(address: IpAddr, account: &str) -> [(Key, Rate); 2] {
    let address = match address {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        address => address,
    };
    let account = account.chars().take(64).collect();
    [
        ((address, None), (ADDRESS_BURST, ADDRESS_REFILL_S)),
        ((address, Some(account)), (ACCOUNT_BURST, ACCOUNT_REFILL_S)),
    ]
}

/// Forgets the buckets that are full again, and if that is not enough those that are fullest.
fn make_room(buckets: &mut HashMap<Key, Tokens>, now_s: f64) {
    let mut keep_below = 1.0;
    while buckets.len() >= BUCKETS_MAX && keep_below > 0.0 {
        buckets.retain(|(_, account), tokens| {
            let (burst, refill_s) = match account {
                Some(_) => (ACCOUNT_BURST, ACCOUNT_REFILL_S),
                None => (ADDRESS_BURST, ADDRESS_REFILL_S),
            };
            let tokens = tokens.refilled(now_s, burst, refill_s);
            tokens.pending > 0 || tokens.left < burst * keep_below
        });
        keep_below -= 0.25;
    }
}

impl Tokens {
    fn refilled(self, now_s: f64, burst: f64, refill_s: f64) -> Tokens {
        // Time that passed, or that the clock was set back by: nobody waits until it catches up.
        let gained = (now_s - self.at_s).abs() / refill_s;
        // What may come back finds its room.
        let room = burst - f64::from(self.pending);
        Tokens { left: (self.left + gained).min(room), at_s: now_s, ..self }
    }
}
