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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use redb::backends::InMemoryBackend;
    use wire::names::Ident;

    use super::super::log::{LOG_BYTES_MIN, Place};
    use super::super::medium::Medium;
    use super::*;
    use crate::contract::block_on;

    fn account(name: &str) -> Bucket {
        let ident = Ident::parse(name).expect("a legal name");
        Bucket::account(&ident, None).expect("short")
    }

    fn engine() -> Arc<Engine> {
        let medium = Medium::new(Box::new(InMemoryBackend::new())).expect("memory");
        let log = Place::On(Box::new(InMemoryBackend::new()));
        let (engine, _) = Engine::open(medium, log, 1 << 20, LOG_BYTES_MIN).expect("memory");
        Arc::new(engine)
    }

    /// Reads of (account, number, slices) carried out by one thread: who had each turn, in order.
    fn turns(engine: &Engine, reads: &[(&str, u32, u32)]) -> Vec<(Bucket, u32)> {
        let queue = Queue::default();
        let told = Arc::new(Mutex::new(Vec::new()));
        for (of, number, slices) in reads.iter().copied() {
            let (told, of, mut left) = (told.clone(), account(of), slices);
            let place = of.clone();
            let job = move |_: &Engine| {
                told.lock().expect("no panic").push((place.clone(), number));
                left -= 1;
                left > 0
            };
            queue.put(of, Box::new(job));
        }
        while !queue.waiting().turns.is_empty() {
            let (of, mut job) = queue.take().expect("it is not closed");
            let rest = job(engine).then_some(job);
            queue.put_back(of, rest);
        }
        assert!(queue.waiting().accounts.is_empty(), "who is through is forgotten");
        let told = told.lock().expect("no panic");
        told.clone()
    }

    #[test]
    fn accounts_take_turns_and_so_do_short_and_long_reads_of_one() {
        let (engine, a, b) = (engine(), account("a"), account("b"));
        let reads = [("a", 1, 4), ("a", 2, 1), ("a", 3, 1), ("b", 4, 2), ("a", 5, 1), ("b", 6, 1)];
        let told = turns(&engine, &reads);
        let (both, rest) = told.split_at(6);
        assert!(both.chunks(2).all(|turns| turns[0].0 == a && turns[1].0 == b), "{told:?}");
        assert!(rest.iter().all(|(of, _)| *of == a), "{told:?}");
        let of_a: Vec<u32> = told.iter().filter(|(of, _)| *of == a).map(|turn| turn.1).collect();
        assert_eq!(of_a, [1, 1, 2, 1, 3, 1, 5]);
    }

    #[test]
    fn few_reads_of_an_account_are_begun_at_a_time() {
        let reads: Vec<_> = (0..20).map(|number| ("a", number, 5)).collect();
        let mut begun: BTreeMap<u32, u32> = BTreeMap::new();
        for (_, number) in turns(&engine(), &reads) {
            *begun.entry(number).or_default() += 1;
            let under_way = begun.values().filter(|slices| **slices < 5).count();
            assert!(under_way <= BEGUN_READS_MAX, "{begun:?}");
        }
        assert!(begun.len() == 20 && begun.values().all(|slices| *slices == 5));
    }

    #[derive(Default)]
    struct Seen {
        made: AtomicUsize,
        slices: AtomicUsize,
        is_opened_anew: AtomicBool,
    }

    #[test]
    fn a_read_whose_snapshot_was_lost_begins_again() {
        let engine = engine();
        let (committer, _requests) = mpsc::channel(1);
        let (readers, threads) =
            Readers::start(&engine, committer.downgrade(), 1).expect("threads");
        let seen = Arc::new(Seen::default());
        let make = {
            let seen = seen.clone();
            move || {
                let (seen, made) = (seen.clone(), seen.made.fetch_add(1, SeqCst));
                move |_: &ReadTransaction, _: &mut Slice| {
                    seen.slices.fetch_add(1, SeqCst);
                    Ok(seen.is_opened_anew.load(SeqCst).then_some(made))
                }
            }
        };
        let found = thread::scope(|scope| {
            let reading = scope.spawn(|| block_on(readers.read(account("a"), make)));
            while seen.slices.load(SeqCst) < 3 {
                thread::yield_now();
            }
            engine.recover().expect("memory does not fail");
            seen.is_opened_anew.store(true, SeqCst);
            reading.join().expect("no panic")
        });
        assert_eq!(found, Ok(1), "the second that was made has the answer");
        assert_eq!(seen.made.load(SeqCst), 2);
        drop(readers);
        for thread in threads {
            thread.join().expect("no panic");
        }
    }
}
