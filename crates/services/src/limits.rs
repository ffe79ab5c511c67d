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
/// Addresses and pairs remembered; beyond it the full ones are forgotten.
const BUCKETS_MAX: usize = 100_000;

/// Counts failed logins.
#[derive(Debug, Default)]
pub struct Failures {
    buckets: Mutex<HashMap<(IpAddr, Option<String>), Tokens>>,
}

#[derive(Clone, Copy, Debug)]
struct Tokens {
    left: f64,
    at_s: f64,
}

impl Failures {
    /// Seconds that this address has to wait before it may try this account; `None` when it may.
    pub fn blocked_s(&self, address: IpAddr, account: &str, now_micros: u64) -> Option<u64> {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.is_empty() {
            return None;
        }
        let now_s = now_micros as f64 / 1e6;
        let wait = |key: &(IpAddr, Option<String>), burst, refill_s| {
            let left = buckets.get(key)?.refilled(now_s, burst, refill_s).left;
            (left < 1.0).then(|| ((1.0 - left) * refill_s).ceil().max(1.0) as u64)
        };
        wait(&(address, None), ADDRESS_BURST, ADDRESS_REFILL_S).max(wait(
            &(address, Some(account.to_owned())),
            ACCOUNT_BURST,
            ACCOUNT_REFILL_S,
        ))
    }

    /// Notes one failure.
    pub fn failed(&self, address: IpAddr, account: &str, now_micros: u64) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let now_s = now_micros as f64 / 1e6;
        if buckets.len() >= BUCKETS_MAX {
            buckets.retain(|(_, account), tokens| {
                let (burst, refill_s) = match account {
                    Some(_) => (ACCOUNT_BURST, ACCOUNT_REFILL_S),
                    None => (ADDRESS_BURST, ADDRESS_REFILL_S),
                };
                tokens.refilled(now_s, burst, refill_s).left < burst
            });
            if buckets.len() >= BUCKETS_MAX {
                buckets.clear();
            }
        }
        let mut take = |account, burst, refill_s| {
            let tokens =
                buckets.entry((address, account)).or_insert(Tokens { left: burst, at_s: now_s });
            *tokens = tokens.refilled(now_s, burst, refill_s);
            tokens.left = (tokens.left - 1.0).max(0.0);
        };
        take(None, ADDRESS_BURST, ADDRESS_REFILL_S);
        take(Some(account.chars().take(64).collect()), ACCOUNT_BURST, ACCOUNT_REFILL_S);
    }
}

impl Tokens {
    fn refilled(self, now_s: f64, burst: f64, refill_s: f64) -> Tokens {
        let gained = (now_s - self.at_s).max(0.0) / refill_s;
        Tokens { left: (self.left + gained).min(burst), at_s: now_s }
    }
}
