//! A few threads that carry out reads, so that a page that has to come from the disk never stops an
//! async runtime.
//!
//! Threads of our own and not the runtime's blocking pool: the store works under any executor, the
//! work on snapshots that pin old pages is bounded, and a burst of misses becomes a queue instead of
//! hundreds of threads. Views serve warm reads; what comes here are misses, series and listings.
//!
//! Top accounts take turns. A turn is one slice of one read; what is left of that read waits for
//! another turn of its account. So a read waits for at most a slice of each other account, and its own
//! account's longer ones, however long the reads are.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use redb::ReadTransaction;
use tokio::sync::{Semaphore, mpsc, oneshot};

use kv4::address::Bucket;
use kv4::store::StoreError;

use super::committer::Request;
use super::engine::{Engine, ReadError};
use super::read::{Scan, Slice};

/// Threads that read.
pub const READERS: usize = 2;
/// Most reads of one top account that wait; whoever comes then, waits to be let in.
pub const QUEUE_READS_MAX: usize = 1_024;
/// Most reads of one top account that are begun and not through: each holds a snapshot and the part of
/// its answer that it has.
pub const BEGUN_READS_MAX: usize = 4;

/// Carries out one slice of a read; `true` when there is more to do.
type Job = Box<dyn FnMut(&Engine) -> bool + Send>;

#[derive(Debug)]
pub(crate) struct Readers {
    queue: Arc<Queue>,
    slice_rows: usize,
    /// Told when a read meets a failed engine.
    committer: mpsc::WeakSender<Request>,
}

impl Readers {
    pub(crate) fn start(
        engine: &Arc<Engine>,
        committer: mpsc::WeakSender<Request>,
        slice_rows: usize,
    ) -> io::Result<(Readers, Vec<JoinHandle<()>>)> {
        let readers = Readers { queue: Arc::default(), slice_rows, committer };
        let mut threads = Vec::new();
        for nth in 0..READERS {
            let (engine, queue) = (engine.clone(), readers.queue.clone());
            let thread = thread::Builder::new().name(format!("store-read-{nth}"));
            threads.push(thread.spawn(move || {
                while let Some((account, mut job)) = queue.take() {
                    let rest = job(&engine).then_some(job);
                    queue.put_back(account, rest);
                }
            })?);
        }
        Ok((readers, threads))
    }

    /// Carries out the read that `make` makes, in turns of a top account, on a snapshot taken after
    /// this call. It is made again when the engine is opened anew meanwhile.
    pub(crate) async fn read<T: Send + 'static, S: Scan<T>>(
        &self,
        account: Bucket,
        make: impl Fn() -> S + Send + 'static,
    ) -> Result<T, StoreError> {
        let place = self.queue.entry(&account).acquire_owned().await;
        let place = place.expect("nobody closes it");
        let (answer, answered) = oneshot::channel();
        let (mut answer, mut snapshot, mut scan) = (Some(answer), None, make());
        let slice_rows = self.slice_rows;
        let job = move |engine: &Engine| {
            let _place = &place;
            // A caller that has gone away needs no answer.
            if answer.as_ref().is_none_or(oneshot::Sender::is_closed) {
                return false;
            }
            let read =
                |transaction: &ReadTransaction| scan(transaction, &mut Slice::of(slice_rows));
            let found = match engine.read_on(&mut snapshot, read) {
                Ok(None) => return true,
                Err(ReadError::Lost) => {
                    scan = make();
                    return true;
                }
                Ok(Some(found)) => Ok(found),
                Err(error) => Err(error),
            };
            if let Some(answer) = answer.take() {
                let _ = answer.send(found);
            }
            false
        };
        self.queue.put(account, Box::new(job));
        let closed = || StoreError::Unavailable("it is closed".to_owned());
        let result = answered.await.map_err(|_| closed())?;
        if matches!(result, Err(ReadError::Engine(_) | ReadError::Away))
            && let Some(committer) = self.committer.upgrade()
        {
            // A full queue has writers in it, who find out as well.
            let _ = committer.try_send(Request::Recover);
        }
        result.map_err(ReadError::into_store_error)
    }
}

/// Ends the threads: nobody waits for an answer any more.
impl Drop for Readers {
    fn drop(&mut self) {
        self.queue.waiting().is_closed = true;
        self.queue.came.notify_all();
    }
}

/// Reads that wait for a thread.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Told when there is something to take, or the end.
    came: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Those who have reads here, or are about to.
    accounts: BTreeMap<Bucket, Account>,
    /// Those of them whose turn comes, each once, in order.
    turns: VecDeque<Bucket>,
    is_closed: bool,
}

struct Account {
    /// Places for reads of this account.
    places: Arc<Semaphore>,
    fresh: VecDeque<Job>,
    begun: VecDeque<Job>,
    /// How many threads carry out a read of this account.
    under_way: usize,
    /// The last turn was that of a begun read.
    is_fresh_next: bool,
    is_in_turns: bool,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("fresh", &self.fresh.len())
            .field("begun", &self.begun.len())
            .field("under_way", &self.under_way)
            .finish_non_exhaustive()
    }
}

impl Account {
    fn new() -> Account {
        Account {
            places: Arc::new(Semaphore::new(QUEUE_READS_MAX)),
            fresh: VecDeque::new(),
            begun: VecDeque::new(),
            under_way: 0,
            is_fresh_next: true,
            is_in_turns: false,
        }
    }

    fn may_begin(&self) -> bool {
        !self.fresh.is_empty() && self.begun.len() + self.under_way < BEGUN_READS_MAX
    }

    /// Begun reads and fresh ones alternate, so that a short one does not wait for all of a long one.
    fn take(&mut self) -> Option<Job> {
        let begins = self.may_begin() && (self.is_fresh_next || self.begun.is_empty());
        self.is_fresh_next = !begins;
        let job = if begins { self.fresh.pop_front() } else { self.begun.pop_front() };
        self.under_way += usize::from(job.is_some());
        job
    }

    /// Nobody waits here, is carried out or is about to come.
    fn is_idle(&self) -> bool {
        self.fresh.is_empty()
            && self.begun.is_empty()
            && self.under_way == 0
            && Arc::strong_count(&self.places) == 1
    }
}

impl Waiting {
    /// Changes an account, and gives it a turn when it has something to be carried out.
    fn change<T>(&mut self, of: &Bucket, change: impl FnOnce(&mut Account) -> T) -> T {
        if !self.accounts.contains_key(of) {
            self.accounts.insert(of.clone(), Account::new());
        }
        let account = self.accounts.get_mut(of).expect("it is there");
        let changed = change(account);
        if !account.is_in_turns && (account.may_begin() || !account.begun.is_empty()) {
            account.is_in_turns = true;
            self.turns.push_back(of.clone());
        } else if account.is_idle() {
            self.accounts.remove(of);
        }
        changed
    }
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where reads of an account get a place.
    fn entry(&self, account: &Bucket) -> Arc<Semaphore> {
        self.waiting().change(account, |account| account.places.clone())
    }

    fn put(&self, account: Bucket, job: Job) {
        self.waiting().change(&account, |account| account.fresh.push_back(job));
        self.came.notify_one();
    }

    /// Waits for the next turn; `None` at the end.
    fn take(&self) -> Option<(Bucket, Job)> {
        let mut waiting = self.waiting();
        loop {
            if waiting.is_closed {
                return None;
            }
            if let Some(of) = waiting.turns.pop_front() {
                let job = waiting.change(&of, |account| {
                    account.is_in_turns = false;
                    account.take()
                });
                if let Some(job) = job {
                    return Some((of, job));
                }
            } else {
                waiting = self.came.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Takes back what is left of a read that was taken.
    fn put_back(&self, account: Bucket, rest: Option<Job>) {
        self.waiting().change(&account, |account| {
            account.under_way -= 1;
            account.begun.extend(rest);
        });
        self.came.notify_one();
    }
}
