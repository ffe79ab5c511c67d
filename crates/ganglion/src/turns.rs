//! Turns: how many requests of one account are carried out at a time.
//!
//! An account that floods waits for itself, and past a bound is refused, so that its requests do not
//! fill the queues that others use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kv4::Bucket;
use kv4::store::BoxFuture;
use neuron::requests::Admission;
use tokio::sync::Semaphore;

/// Accounts remembered; idle ones are forgotten beyond it.
const ACCOUNTS_MAX: usize = 10_000;

/// The turns of every account.
#[derive(Debug)]
pub(crate) struct Turns {
    at_once: usize,
    waiting: usize,
    accounts: Mutex<HashMap<Bucket, Arc<Account>>>,
}

#[derive(Debug)]
struct Account {
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
}

impl Turns {
    pub(crate) fn new(at_once: usize, waiting: usize) -> Turns {
        Turns { at_once, waiting, accounts: Mutex::new(HashMap::new()) }
    }

    fn account(&self, bucket: &Bucket) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(bucket) {
            return account.clone();
        }
        if accounts.len() >= ACCOUNTS_MAX {
            accounts.retain(|_, account| Arc::strong_count(account) > 1);
        }
        let account = Arc::new(Account {
            running: Arc::new(Semaphore::new(self.at_once)),
            admitted: Arc::new(Semaphore::new(self.at_once + self.waiting)),
        });
        accounts.insert(bucket.clone(), account.clone());
        account
    }
}

impl Admission for Turns {
    fn turn(&self, bucket: &Bucket) -> BoxFuture<'static, Option<Box<dyn Send + Sync>>> {
        let account = self.account(bucket);
        Box::pin(async move {
            let admitted = account.admitted.clone().try_acquire_owned().ok()?;
            let running = account.running.clone().acquire_owned().await.ok()?;
            let turn: Box<dyn Send + Sync> = Box::new((admitted, running, account));
            Some(turn)
        })
    }
}
