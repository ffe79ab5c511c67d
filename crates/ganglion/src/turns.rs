//! Turns: how many requests of one account are carried out at a time.
//!
//! An account that floods waits for itself, and past a bound is refused, so that its requests do not
//! fill the queues that others use. While several accounts call, reads of one account, which are
//! work for a core and not for the disk, leave one worker to the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use kv4::Bucket;
use neuron::requests::Admission;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Accounts remembered; idle ones are forgotten beyond it.
const ACCOUNTS_MAX: usize = 10_000;

/// Ticks for which accounts count as in company after two of them have called in turn.
const COMPANY_TICKS: u32 = 2;

/// The turns of every account.
#[derive(Debug)]
pub(crate) struct Turns {
    at_once: usize,
    /// Reads at once of one account in company.
    reads_in_company: usize,
    waiting_max: usize,
    accounts: papaya::HashMap<Bucket, Arc<Account>, foldhash::fast::RandomState>,
    /// Grows with each [`Turns::tick`].
    now: AtomicU32,
    /// When two accounts called in turn, last.
    met: AtomicU32,
    /// Which account called last.
    last: AtomicU64,
    next_number: AtomicU64,
}

#[derive(Debug)]
struct Account {
    number: u64,
    running: Arc<Semaphore>,
    reading: Arc<Semaphore>,
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
    pub(crate) fn new(at_once: usize, waiting_max: usize, workers: usize) -> Turns {
        Turns {
            at_once,
            reads_in_company: workers.saturating_sub(1).clamp(1, at_once),
            waiting_max,
            accounts: papaya::HashMap::default(),
            now: AtomicU32::new(COMPANY_TICKS + 1),
            met: AtomicU32::new(0),
            last: AtomicU64::new(0),
            next_number: AtomicU64::new(1),
        }
    }

    /// Tells that a second or so has passed.
    pub(crate) fn tick(&self) {
        self.now.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether other accounts than this one call as well.
    fn in_company(&self, account: &Account) -> bool {
        let now = self.now.load(Ordering::Relaxed);
        if self.last.load(Ordering::Relaxed) != account.number {
            let before = self.last.swap(account.number, Ordering::Relaxed);
            if before != 0 {
                self.met.store(now, Ordering::Relaxed);
            }
        }
        now.wrapping_sub(self.met.load(Ordering::Relaxed)) <= COMPANY_TICKS
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
            Arc::new(Account {
                number: self.next_number.fetch_add(1, Ordering::Relaxed),
                running: Arc::new(Semaphore::new(self.at_once)),
                reading: Arc::new(Semaphore::new(self.reads_in_company)),
                waiting: AtomicUsize::new(0),
            })
        };
        accounts.get_or_insert_with(bucket.clone(), fresh).clone()
    }
}

/// What a request holds while it is carried out.
#[derive(Debug)]
pub(crate) struct Turn {
    _running: OwnedSemaphorePermit,
    _reading: Option<OwnedSemaphorePermit>,
}

impl Account {
    async fn permit(
        &self,
        semaphore: &Arc<Semaphore>,
        waiting_max: usize,
    ) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = semaphore.clone().try_acquire_owned() {
            return Some(permit);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= waiting_max {
            return None;
        }
        semaphore.clone().acquire_owned().await.ok()
    }
}

impl Admission for Turns {
    type Turn = Turn;

    async fn turn(&self, bucket: &Bucket, is_read: bool) -> Option<Turn> {
        let account = self.account(bucket);
        let in_company = self.in_company(&account);
        let running = account.permit(&account.running, self.waiting_max).await?;
        let reading = match is_read && in_company {
            true => Some(account.permit(&account.reading, self.waiting_max).await?),
            false => None,
        };
        Some(Turn { _running: running, _reading: reading })
    }
}
