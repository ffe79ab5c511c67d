//! The contract between KV4 and an engine that keeps it: one trait, its rows and its errors.
//!
//! Engines live in the `store` crate; [`crate::memory::MemoryStore`] is the reference.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use wire::names::{Key, Layer, Path};
use wire::timegroup::TimeGroup;

use crate::address::{Bucket, Entry, Node};
use crate::version::{Head, Version};
use crate::write::{Write, WriteError, Written};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A place in one bucket's feed: 0 before its first change, then 1, 2, 3 … without a gap.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Seq(pub u64);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One committed version, as the feed tells it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    pub seq: Seq,
    pub entry: Entry,
    /// `None` when retention or an erasure has removed that version since.
    pub version: Option<Version>,
}

/// What happened to a bucket, told in the order in which it was committed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    Changed(Change),
    /// The entry's whole series is gone, values included.
    Erased(Entry),
    /// The bucket is gone with all that was in it.
    Dropped(Bucket),
}

/// Hears every commit once, in order, after it is durable and before its writer is told.
pub trait Listener: Send + Sync {
    fn committed(&self, events: &[Event]);
}

/// An engine's failure. Nothing was changed, as far as anybody sees while the process lives; should
/// it die before a failed sync is undone, the write may be found whole at the next opening.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No space, an I/O error, or a store that is away; the text says which. Try again later.
    #[error("the store cannot take this now: {0}")]
    Unavailable(String),
    /// More was asked for than fits the given limit.
    #[error("the answer is larger than the limit given")]
    TooLarge,
    /// What is stored cannot be read as this format; `ganglion fsck` tells where.
    #[error("the store is damaged: {0}")]
    Damaged(String),
}

/// Part of a series: stamps in whole µs, both ends inclusive, newest first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SeriesQuery {
    pub node: Node,
    /// One key's series, or that of every key of the node, in key order.
    pub key: Option<Key>,
    pub from_micros: u64,
    pub to_micros: u64,
    /// Most versions in the answer; the newest are kept.
    pub limit: usize,
    /// Whether deletions are among the versions.
    pub with_deletions: bool,
}

impl SeriesQuery {
    /// Whether a version is one that is asked for.
    pub fn asks_for(&self, version: &Version) -> bool {
        let at = version.ver.stamp.micros;
        let is_within = at >= self.from_micros && at <= self.to_micros;
        is_within && (self.with_deletions || version.value.is_some())
    }
}

/// What of a node's series may go: a version goes when it is not the newest of its entry and either
/// bound says so. The series of a deleted entry keeps its deletion until that is too old.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Retention {
    /// Versions stamped before this go; a live newest version stays.
    pub before_micros: Option<u64>,
    /// Most versions kept for an entry, the newest included.
    pub count_max: Option<u64>,
}

/// One cell of statistics: a measure of a path by a key within one minute, by one neuron
/// incarnation. The owner writes it again with grown figures; a repeat changes nothing.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StatCell {
    pub bucket: Bucket,
    /// `api:3`, `router:pkt`, …: the layer without `*stats:`.
    pub measure: Layer,
    pub path: Path,
    pub key: Key,
    /// Minutes since 1970, UTC.
    pub minute: u32,
    pub neuron: u32,
}

/// Cumulative figures of a cell.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stat {
    pub sum: u64,
    pub min: u64,
    pub max: u64,
    pub count: u64,
}

impl Stat {
    /// The figures of one value.
    pub fn of(value: u64) -> Stat {
        Stat { sum: value, min: value, max: value, count: 1 }
    }

    /// The figures of both together.
    #[must_use]
    pub fn merge(self, other: Stat) -> Stat {
        match (self.count, other.count) {
            (0, _) => other,
            (_, 0) => self,
            _ => Stat {
                sum: self.sum.saturating_add(other.sum),
                min: self.min.min(other.min),
                max: self.max.max(other.max),
                count: self.count.saturating_add(other.count),
            },
        }
    }
}

/// What was measured of one measure, in groups of time; minutes inclusive at both ends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StatQuery {
    pub bucket: Bucket,
    pub measure: Layer,
    /// One path, or every path of the measure.
    pub path: Option<Path>,
    /// One key, or every key.
    pub key: Option<Key>,
    pub from_minute: u32,
    pub to_minute: u32,
    /// How long a group is, as of [`TimeGroup::at`]: 1 is a year, 5 a minute.
    pub depth: usize,
    /// Most groups in the answer.
    pub groups_max: usize,
}

/// An engine that keeps buckets durably.
///
/// A write that is answered `Ok` is on stable storage: it survives the loss of the process and of
/// the machine's power. Reads see every write that was answered before they began.
pub trait Store: Send + Sync {
    /// Carries out writes as if one after another, each on its own: some may be refused while
    /// others are done. Answers in their order, once all that were done are durable.
    fn write(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Written, WriteError>>>;

    /// Sets who hears of commits from here on. Called once, before the first write.
    fn listen(&self, listener: Arc<dyn Listener>);

    /// The live entries of a node in key order.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] when keys and values together exceed `bytes_max`.
    fn node(&self, node: &Node, bytes_max: usize) -> BoxFuture<'_, Result<Vec<Head>, StoreError>>;

    /// The newest version of one entry, deletions included.
    fn newest(&self, entry: &Entry) -> BoxFuture<'_, Result<Option<Version>, StoreError>>;

    /// The live entry of a node that has `key` as k2 (`nth` = 2), k3 or k4.
    fn by_secondary(
        &self,
        node: &Node,
        nth: u8,
        key: &Key,
    ) -> BoxFuture<'_, Result<Option<Head>, StoreError>>;

    /// Live keys of a node in order, at most `limit`, those after `after`.
    fn keys(
        &self,
        node: &Node,
        after: Option<&Key>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Key>, StoreError>>;

    /// The versions of a query.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] when the values together exceed what the engine gives at once.
    fn series(&self, query: &SeriesQuery)
    -> BoxFuture<'_, Result<Vec<(Key, Version)>, StoreError>>;

    /// The layers of a bucket that have a live entry, in order. Layers of statistics are not among
    /// them: [`Store::stat_measures`] gives those.
    fn layers(&self, bucket: &Bucket) -> BoxFuture<'_, Result<Vec<Layer>, StoreError>>;

    /// Paths of a layer at or below `under` that have a live entry, in order, with how many.
    fn paths(
        &self,
        bucket: &Bucket,
        layer: &Layer,
        under: &Path,
    ) -> BoxFuture<'_, Result<Vec<(Path, u64)>, StoreError>>;

    /// Paths of a layer at or below `under` that have a series, live or not, in order; those after
    /// `after`, at most `limit`.
    fn series_paths(
        &self,
        bucket: &Bucket,
        layer: &Layer,
        under: &Path,
        after: Option<&Path>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Path>, StoreError>>;

    /// The bucket's changes after `since` in order, at most `limit` and fewer when their values are
    /// large, and the bucket's last seq.
    fn changes(
        &self,
        bucket: &Bucket,
        since: Seq,
        limit: usize,
    ) -> BoxFuture<'_, Result<(Vec<Change>, Seq), StoreError>>;

    /// Removes an entry's whole series, values and feed rows' values included. `false` when there
    /// was none.
    fn erase(&self, entry: &Entry) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Removes what retention lets go in one node; answers how many versions went.
    fn prune(&self, node: &Node, retention: Retention) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// Removes a bucket: entries, series, feed and statistics. One that is not there is told as
    /// [`Event::Dropped`] all the same.
    fn drop_bucket(&self, bucket: &Bucket) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Every bucket that was ever written and not dropped, in order.
    fn buckets(&self) -> BoxFuture<'_, Result<Vec<Bucket>, StoreError>>;

    /// Replaces cells of statistics by their newest figures, durably.
    fn put_stats(&self, cells: Vec<(StatCell, Stat)>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The figures of each group of time that has a cell of the query, in order of time; of all paths,
    /// keys and neurons together.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] when there are more groups than the query allows, however many cells.
    fn stats(&self, query: &StatQuery)
    -> BoxFuture<'_, Result<Vec<(TimeGroup, Stat)>, StoreError>>;

    /// Paths at or below `under` at which a measure has a cell, in order.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] when there are more than `limit`.
    fn stat_paths(
        &self,
        bucket: &Bucket,
        measure: &Layer,
        under: &Path,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Path>, StoreError>>;

    /// Keys by which a measure of a path has a cell, in order.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] when there are more than `limit`.
    fn stat_keys(
        &self,
        bucket: &Bucket,
        measure: &Layer,
        path: &Path,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Key>, StoreError>>;

    /// The measures of a bucket that have a cell, in order.
    fn stat_measures(&self, bucket: &Bucket) -> BoxFuture<'_, Result<Vec<Layer>, StoreError>>;
}
