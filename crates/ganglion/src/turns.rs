//! Turns: how many requests of one account are carried out at a time.
//!
//! An account that floods waits for itself, and past a bound is refused, so that its requests do not
//! fill the queues that others use.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kv4::Bucket;
use neuron::requests::Admission;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Accounts remembered; idle ones are forgotten beyond it.
const ACCOUNTS_MAX: usize = 10_000;

/// The turns of every account.
#[derive(Debug)]
pub(crate) struct Turns {
    at_once: usize,
    waiting_max: usize,
    accounts: papaya::HashMap<Bucket, Arc<Account>>,
}

#[derive(Debug)]
struct Account {
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Counts a request as waiting for as long as this is held.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Turns {
    pub(crate) fn new(at_once: usize, waiting_max: usize) -> Turns {
        Turns { at_once, waiting_max, accounts: papaya::HashMap::new() }
    }

    fn account(&self, bucket: &Bucket) -> Arc<Account> {
        let accounts = self.accounts.pin();
        if let Some(account) = accounts.get(bucket) {
            return account.clone();
        }
        if accounts.len() >= ACCOUNTS_MAX {
            accounts.retain(|_, account| account.running.available_permits() < self.at_once);
        }
        let fresh = || {
            let running = Arc::new(Semaphore::new(self.at_once));
            Arc::new(Account { running, waiting: AtomicUsize::new(0) })
        };
        accounts.get_or_insert_with(bucket.clone(), fresh).clone()
    }
}

impl Admission for Turns {
    type Turn = OwnedSemaphorePermit;

    async fn turn(&self, bucket: &Bucket) -> Option<OwnedSemaphorePermit> {
        let account = self.account(bucket);
        if let Ok(turn) = account.running.clone().try_acquire_owned() {
            return Some(turn);
        }
        let before = account.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&account.waiting);
        if before >= self.waiting_max {
            return None;
        }
        account.running.clone().acquire_owned().await.ok()
    }
}
