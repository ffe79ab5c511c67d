//! KV4's reference engine as a neuron's disk would give it: commits take time, come in batches,
//! fail in spells of trouble, and a crash takes whatever was not committed.
//!
//! What survives is a [`Platter`]: the operations that were committed, in order. Opening a store
//! carries them out again. A batch becomes durable, visible and told at one moment, and its writers
//! are answered later: a crash between the two keeps what nobody was told of.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kv4::address::{Bucket, Entry, Node};
use kv4::memory::MemoryStore;
use kv4::store::{
    BoxFuture, Change, Listener, Retention, Seq, SeriesQuery, Stat, StatCell, StatQuery, Store,
    StoreError,
};
use kv4::write::{Write, WriteError, Written};
use kv4::{Head, Version};
use services::Clock as _;
use wire::names::{Key, Layer, Path};
use wire::timegroup::TimeGroup;

use crate::executor::Machine;
use crate::random::Random;

/// Longest time until a batch is begun, until its writers are told, and until a read is answered.
const COMMIT_MAX: Duration = Duration::from_millis(20);
const ANSWER_MAX: Duration = Duration::from_millis(5);
const READ_MAX: Duration = Duration::from_millis(10);

/// What a crash leaves.
#[derive(Clone, Debug, Default)]
pub struct Platter(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    committed: Vec<Operation>,
    openings: u32,
    /// Every commit and some reads fail while this is set.
    is_troubled: bool,
}

#[derive(Clone, Debug)]
enum Operation {
    Write(Vec<Write>),
    Erase(Entry),
    Prune(Node, Retention),
    DropBucket(Bucket),
    PutStats(Vec<(StatCell, Stat)>),
}

/// What an operation came to.
#[derive(Debug)]
enum Outcome {
    Write(Vec<Result<Written, WriteError>>),
    Erase(bool),
    Prune(u64),
    Done,
}

type Answer = Promise<Result<Outcome, StoreError>>;

impl Platter {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_troubled(&self, is_troubled: bool) {
        self.kept().is_troubled = is_troubled;
    }
}

/// An open store.
pub struct SimStore {
    rows: MemoryStore,
    queue: Mutex<VecDeque<(Operation, Answer)>>,
    platter: Platter,
    machine: Machine,
    random: Mutex<Random>,
    incarnation: u32,
}

impl std::fmt::Debug for SimStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimStore").field("incarnation", &self.incarnation).finish_non_exhaustive()
    }
}

impl SimStore {
    /// Opens what is on a platter. [`SimStore::commit`] has to run beside it.
    pub fn open(platter: &Platter, machine: Machine, random: Random) -> Arc<SimStore> {
        let rows = MemoryStore::new();
        let mut kept = platter.kept();
        kept.openings += 1;
        for operation in &kept.committed {
            drop(carry_out(&rows, operation.clone()));
        }
        Arc::new(SimStore {
            rows,
            queue: Mutex::default(),
            platter: platter.clone(),
            machine,
            random: Mutex::new(random),
            incarnation: kept.openings,
        })
    }

    /// The neuron's number in stamps: how many times this was opened.
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// Commits what waits, batch by batch, for as long as it is polled.
    pub async fn commit(self: Arc<Self>) {
        loop {
            self.machine.sleep(Duration::from_millis(1)).await;
            let waiting = self.queue().len();
            if waiting == 0 {
                continue;
            }
            self.machine.pause(COMMIT_MAX).await;
            let count = 1 + self.random().place(waiting);
            let batch: Vec<_> = self.queue().drain(..count).collect();
            let mut answers = Vec::new();
            {
                let mut kept = self.platter.kept();
                for (operation, answer) in batch {
                    if kept.is_troubled {
                        answers.push((answer, Err(trouble())));
                        continue;
                    }
                    kept.committed.push(operation.clone());
                    answers.push((answer, Ok(carry_out(&self.rows, operation))));
                }
            }
            for (answer, outcome) in answers {
                self.machine.pause(ANSWER_MAX).await;
                answer.keep(outcome);
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<(Operation, Answer)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn random(&self) -> MutexGuard<'_, Random> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, operation: Operation) -> Result<Outcome, StoreError> {
        let answer = Answer::default();
        self.queue().push_back((operation, answer.clone()));
        answer.await
    }

    /// Reads at one moment within the time that it takes.
    fn read<'a, T: Send + 'a>(
        &'a self,
        read: impl FnOnce(&'a MemoryStore) -> BoxFuture<'a, Result<T, StoreError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        Box::pin(async move {
            self.machine.pause(READ_MAX).await;
            if self.platter.kept().is_troubled && self.random().one_in(4) {
                return Err(trouble());
            }
            let rows = read(&self.rows).await;
            self.machine.pause(READ_MAX).await;
            rows
        })
    }
}

fn trouble() -> StoreError {
    StoreError::Unavailable("simulated: no space left on device".to_owned())
}

fn carry_out(rows: &MemoryStore, operation: Operation) -> Outcome {
    match operation {
        Operation::Write(writes) => Outcome::Write(at_once(rows.write(writes))),
        Operation::Erase(entry) => Outcome::Erase(at_once(rows.erase(&entry)) == Ok(true)),
        Operation::Prune(node, retention) => {
            Outcome::Prune(at_once(rows.prune(&node, retention)).unwrap_or(0))
        }
        Operation::DropBucket(bucket) => {
            drop(at_once(rows.drop_bucket(&bucket)));
            Outcome::Done
        }
        Operation::PutStats(cells) => {
            drop(at_once(rows.put_stats(cells)));
            Outcome::Done
        }
    }
}

/// The output of a future of the store in memory, which never waits.
fn at_once<T>(future: BoxFuture<'_, T>) -> T {
    let mut future = future;
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => unreachable!("the store in memory waits for nothing"),
    }
}

impl Store for SimStore {
    fn write(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Written, WriteError>>> {
        Box::pin(async move {
            let count = writes.len();
            match self.ask(Operation::Write(writes)).await {
                Ok(Outcome::Write(answers)) => answers,
                Ok(other) => unreachable!("a write came to {other:?}"),
                Err(error) => vec![Err(WriteError::Store(error)); count],
            }
        })
    }

    fn listen(&self, listener: Arc<dyn Listener>) {
        self.rows.listen(listener);
    }

    fn node(&self, node: &Node, bytes_max: usize) -> BoxFuture<'_, Result<Vec<Head>, StoreError>> {
        let node = node.clone();
        self.read(move |rows| rows.node(&node, bytes_max))
    }

    fn newest(&self, entry: &Entry) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        let entry = entry.clone();
        self.read(move |rows| rows.newest(&entry))
    }

    fn by_secondary(
        &self,
        node: &Node,
        nth: u8,
        key: &Key,
    ) -> BoxFuture<'_, Result<Option<Head>, StoreError>> {
        let (node, key) = (node.clone(), key.clone());
        self.read(move |rows| rows.by_secondary(&node, nth, &key))
    }

    fn keys(
        &self,
        node: &Node,
        after: Option<&Key>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Key>, StoreError>> {
        let (node, after) = (node.clone(), after.cloned());
        self.read(move |rows| rows.keys(&node, after.as_ref(), limit))
    }

    fn series(
        &self,
        query: &SeriesQuery,
    ) -> BoxFuture<'_, Result<Vec<(Key, Version)>, StoreError>> {
        let query = query.clone();
        self.read(move |rows| rows.series(&query))
    }

    fn layers(&self, bucket: &Bucket) -> BoxFuture<'_, Result<Vec<Layer>, StoreError>> {
        let bucket = bucket.clone();
        self.read(move |rows| rows.layers(&bucket))
    }

    fn paths(
        &self,
        bucket: &Bucket,
        layer: &Layer,
        under: &Path,
    ) -> BoxFuture<'_, Result<Vec<(Path, u64)>, StoreError>> {
        let (bucket, layer, under) = (bucket.clone(), layer.clone(), under.clone());
        self.read(move |rows| rows.paths(&bucket, &layer, &under))
    }

    fn changes(
        &self,
        bucket: &Bucket,
        since: Seq,
        limit: usize,
    ) -> BoxFuture<'_, Result<(Vec<Change>, Seq), StoreError>> {
        let bucket = bucket.clone();
        self.read(move |rows| rows.changes(&bucket, since, limit))
    }

    fn erase(&self, entry: &Entry) -> BoxFuture<'_, Result<bool, StoreError>> {
        let entry = entry.clone();
        Box::pin(async move {
            match self.ask(Operation::Erase(entry)).await? {
                Outcome::Erase(was_there) => Ok(was_there),
                other => unreachable!("an erasure came to {other:?}"),
            }
        })
    }

    fn prune(&self, node: &Node, retention: Retention) -> BoxFuture<'_, Result<u64, StoreError>> {
        let node = node.clone();
        Box::pin(async move {
            match self.ask(Operation::Prune(node, retention)).await? {
                Outcome::Prune(gone) => Ok(gone),
                other => unreachable!("a pruning came to {other:?}"),
            }
        })
    }

    fn drop_bucket(&self, bucket: &Bucket) -> BoxFuture<'_, Result<(), StoreError>> {
        let bucket = bucket.clone();
        Box::pin(async move { self.ask(Operation::DropBucket(bucket)).await.map(|_| ()) })
    }

    fn buckets(&self) -> BoxFuture<'_, Result<Vec<Bucket>, StoreError>> {
        self.read(|rows| rows.buckets())
    }

    fn put_stats(&self, cells: Vec<(StatCell, Stat)>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.ask(Operation::PutStats(cells)).await.map(|_| ()) })
    }

    fn stats(
        &self,
        query: &StatQuery,
    ) -> BoxFuture<'_, Result<Vec<(TimeGroup, Stat)>, StoreError>> {
        let query = query.clone();
        self.read(move |rows| rows.stats(&query))
    }

    fn stat_paths(
        &self,
        bucket: &Bucket,
        measure: &Layer,
        under: &Path,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Path>, StoreError>> {
        let (bucket, measure, under) = (bucket.clone(), measure.clone(), under.clone());
        self.read(move |rows| rows.stat_paths(&bucket, &measure, &under, limit))
    }

    fn series_paths(
        &self,
        bucket: &Bucket,
        layer: &Layer,
        under: &Path,
        after: Option<&Path>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Path>, StoreError>> {
        let (bucket, layer, under) = (bucket.clone(), layer.clone(), under.clone());
        let after = after.cloned();
        self.read(move |rows| rows.series_paths(&bucket, &layer, &under, after.as_ref(), limit))
    }

    fn stat_keys(
        &self,
        bucket: &Bucket,
        measure: &Layer,
        path: &Path,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Key>, StoreError>> {
        let (bucket, measure, path) = (bucket.clone(), measure.clone(), path.clone());
        self.read(move |rows| rows.stat_keys(&bucket, &measure, &path, limit))
    }

    fn stat_measures(&self, bucket: &Bucket) -> BoxFuture<'_, Result<Vec<Layer>, StoreError>> {
        let bucket = bucket.clone();
        self.read(move |rows| rows.stat_measures(&bucket))
    }
}

/// A value that will come.
#[derive(Debug)]
struct Promise<T>(Arc<Mutex<(Option<T>, Option<Waker>)>>);

impl<T> Default for Promise<T> {
    fn default() -> Promise<T> {
        Promise(Arc::new(Mutex::new((None, None))))
    }
}

impl<T> Clone for Promise<T> {
    fn clone(&self) -> Promise<T> {
        Promise(self.0.clone())
    }
}

impl<T> Promise<T> {
    fn keep(&self, value: T) {
        let waker = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.0 = Some(value);
            state.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Promise<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.0.take() {
            Some(value) => Poll::Ready(value),
            None => {
                state.1 = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
