//! The embedded engine: a redb file with a log in front of it, group commit, nothing to operate.
//!
//! Writes go through one thread that shares each sync among all who wait ([`committer`]); what is
//! synced is a record of the [`log`], and redb follows now and then ([`engine`]). Reads run on
//! snapshots, on a few threads of their own ([`readers`]). The format is
//! `docs/design/store-format.md`.

mod apply;
mod backup;
mod committer;
mod engine;
mod format;
mod fsck;
mod keys;
mod log;
mod medium;
mod read;
mod readers;
mod record;
mod redo;

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use redb::{ReadableTableMetadata, StorageBackend};
use tokio::sync::{mpsc, oneshot};
use wire::names::{Key, Layer, Path as DataPath};
use wire::timegroup::TimeGroup;

use kv4::address::{Bucket, Entry, Node};
use kv4::store::{
    BoxFuture, Change, Listener, Retention, Seq, SeriesQuery, Stat, StatCell, StatQuery, Store,
    StoreError,
};
use kv4::write::{Write, WriteError, Written};
use kv4::{Head, Version};

use committer::{Committer, Counters, Request};
use engine::Engine;
use log::Place;
use medium::Medium;
use readers::Readers;

pub use backup::{BackupError, restore};
pub use committer::{BATCH_BYTES_MAX, BATCH_OPS_MAX, Commits, QUEUE_REQUESTS_MAX};
pub use format::{FORMAT, FORMAT_OLDEST, OpenError};
pub use fsck::{Report, Rule, VIOLATIONS_MAX, Violation, fsck, fsck_on};
pub use log::{LOG_BYTES, LOG_BYTES_MAX, LOG_BYTES_MIN};
pub use read::{ANSWER_BYTES_MAX, SLICE_ROWS};
pub use readers::{BEGUN_READS_MAX, QUEUE_READS_MAX, READERS};

/// Name of the thread that does all writing, as the operating system shows it.
pub const COMMITTER_THREAD: &str = "store-commit";

/// How to keep a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for pages of the file, read and about to be written. Views serve the warm reads, so
    /// this is small.
    pub cache_bytes: usize,
    /// Pause before a failed engine is tried again, when it failed twice in a row; it doubles with
    /// each further failure.
    pub retry: Duration,
    /// Length of the log's file, which is filled with zeros ahead of use; from [`LOG_BYTES_MIN`] to
    /// [`LOG_BYTES_MAX`]. A longer log that is there already stays as it is.
    pub log_bytes: u64,
    /// Rows after which a read lets those of other accounts go first.
    pub slice_rows: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            cache_bytes: 16 << 20,
            retry: Duration::from_millis(50),
            log_bytes: LOG_BYTES,
            slice_rows: SLICE_ROWS,
        }
    }
}

/// A store in a file of this machine, with its log beside it.
///
/// Dropping it waits for the writes that were accepted and closes the files, as [`close`] does; then
/// the store is in its own file alone.
///
/// [`close`]: EmbeddedStore::close
pub struct EmbeddedStore {
    queue: mpsc::Sender<Request>,
    readers: Option<Readers>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    engine: Arc<Engine>,
    listener: Arc<OnceLock<Arc<dyn Listener>>>,
    counters: Arc<Counters>,
    incarnation: u32,
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("incarnation", &self.incarnation)
            .field("commits", &self.commits())
            .finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the store at `path` with its log at `path` and `.log`, or creates an empty one there.
    /// Blocks; after a crash of a large store for as long as it takes to read the file, and for what
    /// its log has to be made again.
    ///
    /// # Errors
    /// Another process has it open, its format is not read by this program, it or its log is damaged,
    /// the log that it needs is not there or not its own, or I/O.
    pub fn open(path: &Path, options: Options) -> Result<EmbeddedStore, OpenError> {
        if !path.try_exists()? {
            format::create(path)?;
        }
        EmbeddedStore::start(
            Medium::new(Box::new(format::open_file(path)?))?,
            Place::beside(path),
            options,
        )
    }

    /// Opens the store on anything that redb can use as files, the second for the log, and creates one
    /// where they are empty: for simulated disks.
    ///
    /// # Errors
    /// As [`EmbeddedStore::open`].
    pub fn open_on(
        file: impl StorageBackend,
        log: impl StorageBackend,
        options: Options,
    ) -> Result<EmbeddedStore, OpenError> {
        EmbeddedStore::start(Medium::new(Box::new(file))?, Place::On(Box::new(log)), options)
    }

    fn start(medium: Medium, log: Place, options: Options) -> Result<EmbeddedStore, OpenError> {
        let (engine, incarnation) =
            Engine::open(medium, log, options.cache_bytes, options.log_bytes)?;
        let engine = Arc::new(engine);
        let has_dropped = engine.read(|transaction| {
            let dropped = transaction.open_table(format::DROPPED)?;
            Ok(!dropped.is_empty()?)
        });
        let has_dropped = has_dropped
            .map_err(|error| OpenError::Damaged(error.into_store_error().to_string()))?;
        let (queue, requests) = mpsc::channel(QUEUE_REQUESTS_MAX);
        let listener = Arc::new(OnceLock::new());
        let counters = Arc::new(Counters::default());
        let committer = Committer::new(
            engine.clone(),
            requests,
            listener.clone(),
            counters.clone(),
            options.retry,
            has_dropped,
        );
        let (readers, mut threads) =
            Readers::start(&engine, queue.downgrade(), options.slice_rows)?;
        let thread = thread::Builder::new().name(COMMITTER_THREAD.to_owned());
        threads.push(thread.spawn(move || committer.run())?);
        Ok(EmbeddedStore {
            queue,
            readers: Some(readers),
            threads: Mutex::new(threads),
            engine,
            listener,
            counters,
            incarnation,
        })
    }

    /// How many times this store was opened, this time included: the neuron's number in stamps.
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// Figures of the writing side since the opening.
    pub fn commits(&self) -> Commits {
        self.counters.snapshot()
    }

    /// Requests that wait for a batch.
    pub fn queue_depth(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Lets the writes that were accepted finish, then closes the files. What is asked afterwards is
    /// answered as unavailable.
    pub async fn close(&self) {
        let (answer, closed) = oneshot::channel();
        if self.queue.send(Request::Close(answer)).await.is_ok() {
            self.engine.will_close();
            let _ = closed.await;
        }
    }

    /// Copies the store as it is at this moment to a new file at `to`, while writes go on. The copy
    /// holds the rows of the store and no trace of erased ones. Blocks until it is durable.
    ///
    /// # Errors
    /// There is something at `to`, reading or writing failed, or the store is closed meanwhile; then
    /// nothing is left there.
    pub fn backup(&self, to: &Path) -> Result<(), BackupError> {
        backup::backup(&self.engine, to)
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(committer::Answer<T>) -> Request,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(request(answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    fn readers(&self) -> &Readers {
        self.readers.as_ref().expect("taken in `drop` only")
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        // Both kinds of threads end when their queue has no sender.
        self.readers = None;
        let (unconnected, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.queue, unconnected));
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // A listener may be what held the store last: the committer does not wait for itself.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Store for EmbeddedStore {
    fn write(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Written, WriteError>>> {
        Box::pin(async move {
            let count = writes.len();
            if count == 0 {
                return Vec::new();
            }
            let (answer, answered) = oneshot::channel();
            if self.queue.send(Request::Write(writes, answer)).await.is_ok()
                && let Ok(answers) = answered.await
            {
                return answers;
            }
            vec![Err(WriteError::Store(closed())); count]
        })
    }

    fn listen(&self, listener: Arc<dyn Listener>) {
        assert!(self.listener.set(listener).is_ok(), "a store is listened to by one");
    }

    fn node(&self, node: &Node, bytes_max: usize) -> BoxFuture<'_, Result<Vec<Head>, StoreError>> {
        let (node, account) = (node.clone(), node.bucket.top());
        Box::pin(self.readers().read(account, move || read::node(node.clone(), bytes_max)))
    }

    fn newest(&self, entry: &Entry) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        let (entry, account) = (entry.clone(), entry.node.bucket.top());
        Box::pin(self.readers().read(account, move || read::newest(entry.clone())))
    }

    fn by_secondary(
        &self,
        node: &Node,
        nth: u8,
        key: &Key,
    ) -> BoxFuture<'_, Result<Option<Head>, StoreError>> {
        let (node, key, account) = (node.clone(), key.clone(), node.bucket.top());
        let make = move || read::by_secondary(node.clone(), nth, key.clone());
        Box::pin(self.readers().read(account, make))
    }

    fn keys(
        &self,
        node: &Node,
        after: Option<&Key>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Key>, StoreError>> {
        let (node, after, account) = (node.clone(), after.cloned(), node.bucket.top());
        let make = move || read::keys(node.clone(), after.clone(), limit);
        Box::pin(self.readers().read(account, make))
    }

    fn series(
        &self,
        query: &SeriesQuery,
    ) -> BoxFuture<'_, Result<Vec<(Key, Version)>, StoreError>> {
        let (query, account) = (query.clone(), query.node.bucket.top());
        Box::pin(self.readers().read(account, move || read::series(query.clone())))
    }

    fn layers(&self, bucket: &Bucket) -> BoxFuture<'_, Result<Vec<Layer>, StoreError>> {
        let bucket = bucket.clone();
        Box::pin(self.readers().read(bucket.top(), move || read::layers(bucket.clone())))
    }

    fn paths(
        &self,
        bucket: &Bucket,
        layer: &Layer,
        under: &DataPath,
    ) -> BoxFuture<'_, Result<Vec<(DataPath, u64)>, StoreError>> {
        let (bucket, layer, under) = (bucket.clone(), layer.clone(), under.clone());
        let account = bucket.top();
        let make = move || read::paths(bucket.clone(), layer.clone(), under.clone());
        Box::pin(self.readers().read(account, make))
    }

    fn changes(
        &self,
        bucket: &Bucket,
        since: Seq,
        limit: usize,
    ) -> BoxFuture<'_, Result<(Vec<Change>, Seq), StoreError>> {
        let bucket = bucket.clone();
        let account = bucket.top();
        let make = move || read::changes(bucket.clone(), since, limit);
        Box::pin(self.readers().read(account, make))
    }

    fn erase(&self, entry: &Entry) -> BoxFuture<'_, Result<bool, StoreError>> {
        let entry = entry.clone();
        Box::pin(self.ask(move |answer| Request::Erase(entry, answer)))
    }

    /// A large node is pruned in several transactions, between which other writes go on.
    fn prune(&self, node: &Node, retention: Retention) -> BoxFuture<'_, Result<u64, StoreError>> {
        let node = node.clone();
        Box::pin(async move {
            let (mut gone, mut after) = (0, None);
            loop {
                let node = node.clone();
                let pruned = self
                    .ask(move |answer| Request::Prune { node, retention, after, answer })
                    .await?;
                gone += pruned.gone;
                if pruned.next.is_none() {
                    return Ok(gone);
                }
                after = pruned.next;
            }
        })
    }

    fn drop_bucket(&self, bucket: &Bucket) -> BoxFuture<'_, Result<(), StoreError>> {
        let bucket = bucket.clone();
        Box::pin(self.ask(move |answer| Request::DropBucket(bucket, answer)))
    }

    fn buckets(&self) -> BoxFuture<'_, Result<Vec<Bucket>, StoreError>> {
        Box::pin(self.readers().read(Bucket::sys(), || read::buckets))
    }

    fn put_stats(&self, cells: Vec<(StatCell, Stat)>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ask(move |answer| Request::PutStats(cells, answer)))
    }

    fn stats(
        &self,
        query: &StatQuery,
    ) -> BoxFuture<'_, Result<Vec<(TimeGroup, Stat)>, StoreError>> {
        let (query, account) = (query.clone(), query.bucket.top());
        Box::pin(self.readers().read(account, move || read::stats(query.clone())))
    }

    fn stat_paths(
        &self,
        bucket: &Bucket,
        measure: &Layer,
        under: &DataPath,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DataPath>, StoreError>> {
        let (bucket, measure, under) = (bucket.clone(), measure.clone(), under.clone());
        let account = bucket.top();
        let make = move || read::stat_paths(bucket.clone(), measure.clone(), under.clone(), limit);
        Box::pin(self.readers().read(account, make))
    }

    fn series_paths(
        &self,
        bucket: &Bucket,
        layer: &Layer,
        under: &DataPath,
        after: Option<&DataPath>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DataPath>, StoreError>> {
        let (bucket, layer, under) = (bucket.clone(), layer.clone(), under.clone());
        let (account, after) = (bucket.top(), after.cloned());
        let make = move || {
            let after = after.clone();
            read::series_paths(bucket.clone(), layer.clone(), under.clone(), after, limit)
        };
        Box::pin(self.readers().read(account, make))
    }

    fn stat_keys(
        &self,
        bucket: &Bucket,
        measure: &Layer,
        path: &DataPath,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Key>, StoreError>> {
        let (bucket, measure, path) = (bucket.clone(), measure.clone(), path.clone());
        let account = bucket.top();
        let make = move || read::stat_keys(bucket.clone(), measure.clone(), path.clone(), limit);
        Box::pin(self.readers().read(account, make))
    }

    fn stat_measures(&self, bucket: &Bucket) -> BoxFuture<'_, Result<Vec<Layer>, StoreError>> {
        let bucket = bucket.clone();
        Box::pin(self.readers().read(bucket.top(), move || read::stat_measures(bucket.clone())))
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("it is closed".to_owned())
}
