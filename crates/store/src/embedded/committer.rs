//! Group commit: one thread owns the writing side, and makes one transaction of all that waits.
//!
//! While one batch is synced the next one gathers in the queue, so that the cost of a sync is shared
//! by all who came meanwhile, and a lone writer waits for no one.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use kv4::address::{Bucket, Entry, Node};
use kv4::store::{Event, Listener, Retention, Stat, StatCell, StoreError};
use kv4::write::{Write, WriteError, Written};

use super::apply::{KnownBuckets, Pruned, Work, sweep};
use super::engine::{Batch, CommitFailed, Committed, Engine, ReadError, caught, shielded};
use super::redo::Redo;

/// Most requests that wait for a batch; whoever comes then, waits to be let in.
pub const QUEUE_REQUESTS_MAX: usize = 1_024;
/// Most writes and cells in a batch, unless one request alone has more.
pub const BATCH_OPS_MAX: usize = 4_096;
/// Most bytes of values in a batch, unless one request alone has more.
pub const BATCH_BYTES_MAX: usize = 8 << 20;
/// Bytes that a write is taken to have beside its value.
const OP_BYTES: usize = 256;
/// A dropped bucket's rows are removed when nothing waits, or else after this many batches.
const SWEEP_BATCHES: u32 = 32;
/// The log is emptied into the engine when this long has passed since it was empty: it bounds how
/// long a value that is no longer in the store can be read in the log's file. Sooner, and a writer of
/// one a second would pay for a checkpoint with each write.
const CHECKPOINT_AGE: Duration = Duration::from_secs(10);
/// … and after this pause when that, or the log, failed.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(1);
/// Longest pause between attempts to bring a failed engine back.
const RETRY_MAX: Duration = Duration::from_secs(5);

pub(crate) type WriteAnswers = Vec<Result<Written, WriteError>>;
pub(crate) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What callers ask of the committer.
pub(crate) enum Request {
    Write(Vec<Write>, oneshot::Sender<WriteAnswers>),
    Erase(Entry, Answer<bool>),
    Prune {
        node: Node,
        retention: Retention,
        after: Option<Vec<u8>>,
        answer: Answer<Pruned>,
    },
    DropBucket(Bucket, Answer<()>),
    PutStats(Vec<(StatCell, Stat)>, Answer<()>),
    /// A reader met a failed engine.
    Recover,
    /// No more requests after this one; answered when the file is closed.
    Close(oneshot::Sender<()>),
}

/// What a request came to, to be told once it is durable.
enum Outcome {
    Write(WriteAnswers),
    Erase(bool),
    Prune(Pruned),
    Done,
}

/// Figures of the committer since the opening.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Commits {
    /// Durable transactions.
    pub commits: u64,
    /// Times that the engine made all it holds durable, so that the log began anew.
    pub checkpoints: u64,
    /// Requests that they carried.
    pub requests: u64,
    /// Transactions that failed.
    pub failures: u64,
    /// Times that the engine was opened anew after a failure.
    pub recoveries: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    commits: AtomicU64,
    checkpoints: AtomicU64,
    requests: AtomicU64,
    failures: AtomicU64,
    recoveries: AtomicU64,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> Commits {
        Commits {
            commits: self.commits.load(Relaxed),
            checkpoints: self.checkpoints.load(Relaxed),
            requests: self.requests.load(Relaxed),
            failures: self.failures.load(Relaxed),
            recoveries: self.recoveries.load(Relaxed),
        }
    }
}

pub(crate) struct Committer {
    engine: Arc<Engine>,
    queue: mpsc::Receiver<Request>,
    listener: Arc<OnceLock<Arc<dyn Listener>>>,
    counters: Arc<Counters>,
    buckets: KnownBuckets,
    /// The buffer that the next batch's changes are noted in.
    redo: Redo,
    /// First pause between attempts after a second failure in a row; doubled by each further one.
    retry_first: Duration,
    trouble: Option<Trouble>,
    /// There may be rows of dropped buckets.
    has_dropped: bool,
    /// When the log is to be emptied, while there is something in it.
    checkpoint_due: Option<Instant>,
    waker: Waker,
}

/// A failure that was not followed by a success yet.
struct Trouble {
    error: StoreError,
    failures: u32,
    retry_at: Instant,
}

/// A batch that is ready to be committed.
struct Prepared {
    batch: Batch,
    outcomes: Vec<Outcome>,
    events: Vec<Event>,
    is_changed: bool,
}

/// What ended a wait.
enum Next {
    Request(Request),
    Due,
    Closed,
}

/// Ends a wait of the thread that made it.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Committer {
    pub(crate) fn new(
        engine: Arc<Engine>,
        queue: mpsc::Receiver<Request>,
        listener: Arc<OnceLock<Arc<dyn Listener>>>,
        counters: Arc<Counters>,
        retry_first: Duration,
        has_dropped: bool,
    ) -> Committer {
        let checkpoint_due = engine.has_log().then(|| Instant::now() + CHECKPOINT_AGE);
        Committer {
            engine,
            queue,
            listener,
            counters,
            buckets: KnownBuckets::default(),
            redo: Redo::default(),
            retry_first,
            trouble: None,
            has_dropped,
            checkpoint_due,
            waker: Waker::noop().clone(),
        }
    }

    /// Serves the queue until it is closed and empty, then closes the engine.
    pub(crate) fn run(mut self) {
        self.waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut closing = Vec::new();
        let mut since_sweep = 0;
        let mut checkpoints = 0;
        loop {
            match self.next() {
                Next::Request(request) => {
                    let batch = self.gather(request, &mut closing);
                    self.carry_out(batch);
                    since_sweep += 1;
                    if self.has_dropped && since_sweep >= SWEEP_BATCHES {
                        since_sweep = 0;
                        self.sweep();
                    }
                }
                Next::Due if self.has_dropped => self.sweep(),
                Next::Due => {}
                Next::Closed => break,
            }
            if self.checkpoint_due.is_some_and(|due| Instant::now() >= due) {
                self.checkpoint();
            }
            let before = std::mem::replace(&mut checkpoints, self.counters.snapshot().checkpoints);
            if checkpoints > before && self.engine.is_roomy() {
                self.leave_room();
            }
        }
        self.engine.close();
        for answer in closing {
            let _ = answer.send(());
        }
    }

    /// Waits for a request, and for no longer than there is nothing else to do.
    fn next(&mut self) -> Next {
        loop {
            match self.queue.poll_recv(&mut Context::from_waker(&self.waker)) {
                Poll::Ready(Some(request)) => return Next::Request(request),
                Poll::Ready(None) => return Next::Closed,
                Poll::Pending if self.has_dropped => return Next::Due,
                Poll::Pending => {}
            }
            match self.checkpoint_due.map(|due| due.saturating_duration_since(Instant::now())) {
                None => thread::park(),
                Some(Duration::ZERO) => return Next::Due,
                Some(left) => thread::park_timeout(left),
            }
        }
    }

    /// Empties the log into the engine.
    fn checkpoint(&mut self) {
        match self.engine.checkpoint() {
            Ok(()) => {
                self.trouble = None;
                self.counters.checkpoints.fetch_add(1, Relaxed);
            }
            Err(error) => {
                self.commit_failed(error);
            }
        }
        self.checkpoint_due = None;
        self.note_log();
        // What is still there, after a failure, is for the next time.
        if let (Some(due), Some(trouble)) = (&mut self.checkpoint_due, &self.trouble) {
            *due = trouble.retry_at + CHECKPOINT_RETRY;
        }
    }

    /// Gives back the memory that pages had while the disk had no place for them.
    fn leave_room(&mut self) {
        if let Err(error) = self.recover() {
            self.failed(error);
        }
    }

    fn note_log(&mut self) {
        let after = |pause: Duration| Instant::now() + pause;
        self.checkpoint_due = self.engine.has_log().then(|| {
            let due = self.checkpoint_due.unwrap_or_else(|| after(CHECKPOINT_AGE));
            if self.engine.has_broken_log() { due.min(after(CHECKPOINT_RETRY)) } else { due }
        });
    }

    /// The first request and those that wait behind it, within the limits of a batch.
    fn gather(&mut self, first: Request, closing: &mut Vec<oneshot::Sender<()>>) -> Vec<Request> {
        let mut batch = Vec::new();
        let (mut ops, mut bytes) = (0, 0);
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Close(answer) => {
                    self.queue.close();
                    closing.push(answer);
                }
                request => {
                    let (more_ops, more_bytes) = request.size();
                    ops += more_ops;
                    bytes += more_bytes;
                    batch.push(request);
                }
            }
            if ops >= BATCH_OPS_MAX || bytes >= BATCH_BYTES_MAX {
                break;
            }
            next = self.queue.try_recv().ok();
        }
        batch
    }

    /// Carries out a batch in one transaction and answers it.
    fn carry_out(&mut self, batch: Vec<Request>) {
        if batch.is_empty() {
            return;
        }
        if let Some(trouble) = &self.trouble
            && Instant::now() < trouble.retry_at
        {
            let error = trouble.error.clone();
            return refuse(batch, &error);
        }
        let requests = batch.len() as u64;
        let prepared = shielded(|| self.prepare(&batch)).map_err(ReadError::from).flatten();
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return self.not_prepared(batch, error),
        };
        let Prepared { batch: changes, outcomes, events, is_changed } = prepared;
        if is_changed {
            if let Err(error) = self.commit(changes) {
                return refuse(batch, &error);
            }
            self.counters.requests.fetch_add(requests, Relaxed);
        }
        if let Some(listener) = self.listener.get()
            && !events.is_empty()
        {
            // What it is told of is done: its callers are answered, and the next ones served.
            if let Err(panic) = caught(|| listener.committed(&events)) {
                tracing::error!(%panic, "the listener of the store failed");
            }
        }
        for (request, outcome) in batch.into_iter().zip(outcomes) {
            thread::yield_now();
            request.answer(outcome);
        }
    }

    /// Refuses a batch that could not be made ready. One that met damage is carried out request by
    /// request instead: only what asks for the damaged rows is refused.
    fn not_prepared(&mut self, batch: Vec<Request>, error: ReadError) {
        let ReadError::Answer(error @ StoreError::Damaged(_)) = error else {
            let error = self.failed(error);
            return refuse(batch, &error);
        };
        // What is remembered of buckets was true within the transaction only.
        self.buckets = KnownBuckets::default();
        if batch.len() == 1 {
            self.counters.failures.fetch_add(1, Relaxed);
            tracing::warn!(%error, "a request met damage in the store");
            return refuse(batch, &error);
        }
        for request in batch {
            self.carry_out(vec![request]);
        }
    }

    /// Makes a batch's changes durable. On an error nothing of it is there.
    fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        let (committed, redo) = self.engine.commit(batch);
        self.redo = redo;
        match committed {
            Ok(how) => {
                self.trouble = None;
                let is_checkpoint = how == Committed::Checkpointed;
                self.counters.checkpoints.fetch_add(u64::from(is_checkpoint), Relaxed);
            }
            Err(failed) => {
                let stands = matches!(failed, CommitFailed::Engine { stands: true, .. });
                let error = self.commit_failed(failed);
                if !stands {
                    self.note_log();
                    return Err(error);
                }
            }
        }
        self.note_log();
        self.counters.commits.fetch_add(1, Relaxed);
        Ok(())
    }

    fn commit_failed(&mut self, failed: CommitFailed) -> StoreError {
        self.failed(match failed {
            CommitFailed::Engine { error, .. } => ReadError::Engine(error),
            CommitFailed::Log(error) => {
                let text = format!("its log cannot be written: {error}");
                ReadError::Answer(StoreError::Unavailable(text))
            }
        })
    }

    fn prepare(&mut self, requests: &[Request]) -> Result<Prepared, ReadError> {
        let batch = self.begin()?;
        let mut work = Work::begin(batch.writing(), &mut self.buckets)?;
        let mut outcomes = Vec::with_capacity(requests.len());
        for request in requests {
            // A batch is work for a while, beside which others' short work should not wait.
            thread::yield_now();
            outcomes.push(match request {
                Request::Write(writes, _) => {
                    let written: Result<WriteAnswers, ReadError> =
                        writes.iter().map(|write| work.write(write)).collect();
                    Outcome::Write(written?)
                }
                Request::Erase(entry, _) => Outcome::Erase(work.erase(entry)?),
                Request::Prune { node, retention, after, .. } => {
                    Outcome::Prune(work.prune(node, *retention, after.as_deref())?)
                }
                Request::DropBucket(bucket, _) => {
                    self.has_dropped |= work.drop_bucket(bucket)?;
                    Outcome::Done
                }
                Request::PutStats(cells, _) => {
                    work.put_stats(cells)?;
                    Outcome::Done
                }
                Request::Recover => Outcome::Done,
                Request::Close(_) => unreachable!("`gather` keeps these"),
            });
        }
        let (events, is_changed) = work.finish()?;
        Ok(Prepared { batch, outcomes, events, is_changed })
    }

    /// Begins a transaction; an engine that failed under a reader or a while ago is brought back
    /// first.
    fn begin(&mut self) -> Result<Batch, ReadError> {
        if let Ok(batch) = self.engine.begin(std::mem::take(&mut self.redo)) {
            return Ok(batch);
        }
        self.recover()?;
        Ok(self.engine.begin(Redo::default())?)
    }

    fn recover(&mut self) -> Result<(), ReadError> {
        self.buckets = KnownBuckets::default();
        self.engine.recover().map_err(|error| {
            ReadError::Answer(StoreError::Unavailable(format!("it cannot be recovered: {error}")))
        })?;
        self.counters.recoveries.fetch_add(1, Relaxed);
        tracing::info!("the store was opened anew after a failure");
        Ok(())
    }

    /// Notes a failed transaction and brings the engine back if that is possible at once.
    fn failed(&mut self, error: ReadError) -> StoreError {
        self.counters.failures.fetch_add(1, Relaxed);
        self.buckets = KnownBuckets::default();
        let needs_recovery = matches!(error, ReadError::Engine(_));
        let error = error.into_store_error();
        tracing::warn!(%error, "a transaction of the store failed");
        let mut recovery = Duration::ZERO;
        if needs_recovery {
            let start = Instant::now();
            if let Err(error) = self.recover() {
                tracing::warn!(error = %error.into_store_error(), "the store stays away");
            }
            recovery = start.elapsed();
        }
        let failures = self.trouble.as_ref().map_or(0, |trouble| trouble.failures);
        let pause = match failures {
            0 => Duration::ZERO,
            // To open the file after a failure is to read all of it: never most of the time.
            n => (self.retry_first * 2u32.saturating_pow(n - 1)).min(RETRY_MAX).max(recovery * 4),
        };
        let retry_at = Instant::now() + pause;
        self.trouble = Some(Trouble { error: error.clone(), failures: failures + 1, retry_at });
        error
    }

    /// Removes some rows of dropped buckets.
    fn sweep(&mut self) {
        let swept = shielded(|| {
            let batch = self.begin()?;
            let has_more = sweep(batch.writing())?;
            Ok((batch, has_more))
        });
        let swept = match swept.map_err(ReadError::from).flatten() {
            Ok((batch, has_more)) => self.commit(batch).map(|()| has_more),
            Err(error) => Err(self.failed(error)),
        };
        // After a failure the next drop, or the next opening, tries again.
        self.has_dropped = swept.unwrap_or(false);
    }
}

impl Request {
    fn size(&self) -> (usize, usize) {
        match self {
            Request::Write(writes, _) => {
                let values = writes.iter().map(|write| match &write.op {
                    kv4::write::Op::Put { value, .. } => OP_BYTES + value.as_str().len(),
                    kv4::write::Op::Delete => OP_BYTES,
                });
                (writes.len(), values.sum())
            }
            Request::PutStats(cells, _) => (cells.len(), cells.len() * OP_BYTES),
            Request::Prune { .. } => (BATCH_OPS_MAX / 4, OP_BYTES),
            Request::Erase(..) | Request::DropBucket(..) => (1, OP_BYTES),
            Request::Recover | Request::Close(_) => (0, 0),
        }
    }

    /// Tells the caller, who may have gone away.
    fn answer(self, outcome: Outcome) {
        match (self, outcome) {
            (Request::Write(_, to), Outcome::Write(answers)) => drop(to.send(answers)),
            (Request::Erase(_, to), Outcome::Erase(was_there)) => drop(to.send(Ok(was_there))),
            (Request::Prune { answer, .. }, Outcome::Prune(pruned)) => {
                drop(answer.send(Ok(pruned)));
            }
            (Request::DropBucket(_, to) | Request::PutStats(_, to), Outcome::Done) => {
                drop(to.send(Ok(())));
            }
            (Request::Recover, Outcome::Done) => {}
            _ => unreachable!("`prepare` makes the outcome that the request has"),
        }
    }
}

fn refuse(batch: Vec<Request>, error: &StoreError) {
    for request in batch {
        let error = error.clone();
        match request {
            Request::Write(writes, to) => {
                let answers = writes.iter().map(|_| Err(WriteError::Store(error.clone())));
                drop(to.send(answers.collect()));
            }
            Request::Erase(_, to) => drop(to.send(Err(error))),
            Request::Prune { answer, .. } => drop(answer.send(Err(error))),
            Request::DropBucket(_, to) | Request::PutStats(_, to) => drop(to.send(Err(error))),
            Request::Recover | Request::Close(_) => {}
        }
    }
}
