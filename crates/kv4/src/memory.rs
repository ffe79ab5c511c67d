//! The reference engine: plain ordered maps behind one lock, nothing durable.
//!
//! For tests and simulation. It is what the other engines are compared with, so it is written to be
//! read, not to be fast.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wire::names::{Key, Layer, Path};
use wire::timegroup::TimeGroup;

use crate::address::{Bucket, Entry, Node};
use crate::store::{
    BoxFuture, Change, Event, Listener, Retention, Seq, SeriesQuery, Stat, StatCell, StatQuery,
    Store, StoreError,
};
use crate::version::{Head, Version};
use crate::write::{self, Write, WriteError, Written};

/// A store in memory.
#[derive(Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Every version of every entry, oldest first; the last is the newest.
    series: BTreeMap<Entry, Vec<Version>>,
    /// Per bucket, in order: which entry, which generation; 0 for a version that is gone, since an
    /// erased entry's generations begin anew.
    feed: BTreeMap<Bucket, Vec<(Entry, u64)>>,
    stats: BTreeMap<StatCell, Stat>,
    listener: Option<Arc<dyn Listener>>,
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

impl MemoryStore {
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn of_node<'a>(
        &'a self,
        node: &'a Node,
    ) -> impl Iterator<Item = (&'a Entry, &'a Vec<Version>)> {
        self.series.iter().filter(move |(entry, _)| entry.node == *node)
    }

    fn heads(&self, node: &Node) -> Vec<Head> {
        self.of_node(node)
            .filter_map(|(entry, series)| Head::of(&entry.key, series.last()?))
            .collect()
    }

    fn carry_out(&mut self, write: &Write) -> Result<Written, WriteError> {
        let newest = self.series.get(&write.entry).and_then(|series| series.last());
        let version = write::decide(write, newest)?;
        let created = newest.is_none_or(|version| version.value.is_none());
        if version.value.is_some() {
            for head in self.heads(&write.entry.node) {
                for (nth, (ours, theirs)) in (2u8..).zip(version.keys.iter().zip(&head.keys)) {
                    if head.key != write.entry.key && ours.is_some() && ours == theirs {
                        return Err(WriteError::KeyTaken(nth));
                    }
                }
            }
        }
        self.series.entry(write.entry.clone()).or_default().push(version.clone());
        let feed = self.feed.entry(write.entry.node.bucket.clone()).or_default();
        feed.push((write.entry.clone(), version.ver.generation));
        let change = Change {
            seq: Seq(feed.len() as u64),
            entry: write.entry.clone(),
            version: Some(version.clone()),
        };
        self.tell(Event::Changed(change));
        Ok(Written { version, created })
    }

    fn cells<'a>(
        &'a self,
        bucket: &'a Bucket,
        measure: &'a Layer,
    ) -> impl Iterator<Item = (&'a StatCell, &'a Stat)> {
        self.stats
            .iter()
            .filter(move |(cell, _)| cell.bucket == *bucket && cell.measure == *measure)
    }

    /// Marks the feed rows of versions that are gone.
    fn forget_told(&mut self) {
        for (entry, generation) in self.feed.values_mut().flatten() {
            let is_there = self.series.get(entry).is_some_and(|series| {
                series.iter().any(|version| version.ver.generation == *generation)
            });
            if !is_there {
                *generation = 0;
            }
        }
    }

    fn tell(&self, event: Event) {
        if let Some(listener) = &self.listener {
            listener.committed(&[event]);
        }
    }
}

fn ready<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, T> {
    Box::pin(std::future::ready(value))
}

impl Store for MemoryStore {
    fn write(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Written, WriteError>>> {
        let mut inner = self.inner();
        ready(writes.iter().map(|write| inner.carry_out(write)).collect())
    }

    fn listen(&self, listener: Arc<dyn Listener>) {
        self.inner().listener = Some(listener);
    }

    fn node(&self, node: &Node, bytes_max: usize) -> BoxFuture<'_, Result<Vec<Head>, StoreError>> {
        let heads = self.inner().heads(node);
        let bytes: usize =
            heads.iter().map(|head| head.key.as_str().len() + head.value.as_str().len()).sum();
        ready(if bytes > bytes_max { Err(StoreError::TooLarge) } else { Ok(heads) })
    }

    fn newest(&self, entry: &Entry) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        ready(Ok(self.inner().series.get(entry).and_then(|series| series.last()).cloned()))
    }

    fn by_secondary(
        &self,
        node: &Node,
        nth: u8,
        key: &Key,
    ) -> BoxFuture<'_, Result<Option<Head>, StoreError>> {
        let heads = self.inner().heads(node);
        let at = usize::from(nth).wrapping_sub(2);
        ready(Ok(heads
            .into_iter()
            .find(|head| head.keys.get(at).and_then(Option::as_ref) == Some(key))))
    }

    fn keys(
        &self,
        node: &Node,
        after: Option<&Key>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Key>, StoreError>> {
        let keys = self.inner().heads(node).into_iter().map(|head| head.key);
        ready(Ok(keys.filter(|key| after.is_none_or(|after| key > after)).take(limit).collect()))
    }

    fn series(
        &self,
        query: &SeriesQuery,
    ) -> BoxFuture<'_, Result<Vec<(Key, Version)>, StoreError>> {
        let inner = self.inner();
        let mut found = Vec::new();
        for (entry, series) in inner.of_node(&query.node) {
            if query.key.as_ref().is_some_and(|key| *key != entry.key) {
                continue;
            }
            for version in series.iter().rev().filter(|version| query.asks_for(version)) {
                if found.len() < query.limit {
                    found.push((entry.key.clone(), version.clone()));
                }
            }
        }
        ready(Ok(found))
    }

    fn layers(&self, bucket: &Bucket) -> BoxFuture<'_, Result<Vec<Layer>, StoreError>> {
        let inner = self.inner();
        let layers: BTreeSet<Layer> = inner
            .series
            .iter()
            .filter(|(entry, series)| entry.node.bucket == *bucket && is_live(series))
            .map(|(entry, _)| entry.node.layer.clone())
            .collect();
        ready(Ok(layers.into_iter().collect()))
    }

    fn paths(
        &self,
        bucket: &Bucket,
        layer: &Layer,
        under: &Path,
    ) -> BoxFuture<'_, Result<Vec<(Path, u64)>, StoreError>> {
        let inner = self.inner();
        let mut paths: BTreeMap<Path, u64> = BTreeMap::new();
        for (entry, series) in &inner.series {
            let node = &entry.node;
            if node.bucket == *bucket
                && node.layer == *layer
                && node.path.is_within(under)
                && is_live(series)
            {
                *paths.entry(node.path.clone()).or_default() += 1;
            }
        }
        ready(Ok(paths.into_iter().collect()))
    }

    fn changes(
        &self,
        bucket: &Bucket,
        since: Seq,
        limit: usize,
    ) -> BoxFuture<'_, Result<(Vec<Change>, Seq), StoreError>> {
        let inner = self.inner();
        let feed = inner.feed.get(bucket).map_or(&[][..], Vec::as_slice);
        let changes = (1..)
            .zip(feed)
            .filter(|(seq, _)| *seq > since.0)
            .take(limit)
            .map(|(seq, (entry, generation))| Change {
                seq: Seq(seq),
                entry: entry.clone(),
                version: inner.series.get(entry).and_then(|series| {
                    series.iter().find(|version| version.ver.generation == *generation).cloned()
                }),
            })
            .collect();
        ready(Ok((changes, Seq(feed.len() as u64))))
    }

    fn erase(&self, entry: &Entry) -> BoxFuture<'_, Result<bool, StoreError>> {
        let mut inner = self.inner();
        let found = inner.series.remove(entry).is_some();
        if found {
            inner.forget_told();
            inner.tell(Event::Erased(entry.clone()));
        }
        ready(Ok(found))
    }

    fn prune(&self, node: &Node, retention: Retention) -> BoxFuture<'_, Result<u64, StoreError>> {
        let mut inner = self.inner();
        let mut gone = 0;
        for (_, series) in inner.series.iter_mut().filter(|(entry, _)| entry.node == *node) {
            let length = series.len() as u64;
            let mut place = length;
            series.retain(|version| {
                place -= 1;
                let old =
                    retention.before_micros.is_some_and(|before| version.ver.stamp.micros < before);
                let many = retention.count_max.is_some_and(|count| place >= count);
                let is_newest = place == 0;
                let goes = if is_newest { old && version.value.is_none() } else { old || many };
                gone += u64::from(goes);
                !goes
            });
        }
        inner.series.retain(|_, series| !series.is_empty());
        inner.forget_told();
        ready(Ok(gone))
    }

    fn drop_bucket(&self, bucket: &Bucket) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut inner = self.inner();
        inner.series.retain(|entry, _| entry.node.bucket != *bucket);
        inner.stats.retain(|cell, _| cell.bucket != *bucket);
        inner.feed.remove(bucket);
        inner.tell(Event::Dropped(bucket.clone()));
        ready(Ok(()))
    }

    fn buckets(&self) -> BoxFuture<'_, Result<Vec<Bucket>, StoreError>> {
        let inner = self.inner();
        let mut buckets: BTreeSet<Bucket> = inner.feed.keys().cloned().collect();
        buckets.extend(inner.stats.keys().map(|cell| cell.bucket.clone()));
        ready(Ok(buckets.into_iter().collect()))
    }

    fn put_stats(&self, cells: Vec<(StatCell, Stat)>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner().stats.extend(cells);
        ready(Ok(()))
    }

    fn stats(
        &self,
        query: &StatQuery,
    ) -> BoxFuture<'_, Result<Vec<(TimeGroup, Stat)>, StoreError>> {
        let inner = self.inner();
        let mut groups: BTreeMap<TimeGroup, Stat> = BTreeMap::new();
        for (cell, stat) in inner.cells(&query.bucket, &query.measure) {
            if query.path.as_ref().is_none_or(|path| *path == cell.path)
                && query.key.as_ref().is_none_or(|key| *key == cell.key)
                && cell.minute >= query.from_minute
                && cell.minute <= query.to_minute
            {
                let group = TimeGroup::at(u64::from(cell.minute) * 60, query.depth);
                let group = groups.entry(group).or_default();
                *group = group.merge(*stat);
            }
        }
        ready(at_most(query.groups_max, groups))
    }

    fn stat_paths(
        &self,
        bucket: &Bucket,
        measure: &Layer,
        under: &Path,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Path>, StoreError>> {
        let inner = self.inner();
        let paths = inner.cells(bucket, measure).map(|(cell, _)| &cell.path);
        let paths: BTreeSet<Path> = paths.filter(|path| path.is_within(under)).cloned().collect();
        ready(at_most(limit, paths))
    }

    fn series_paths(
        &self,
        bucket: &Bucket,
        layer: &Layer,
        under: &Path,
        after: Option<&Path>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Path>, StoreError>> {
        let inner = self.inner();
        let nodes = inner.series.keys().map(|entry| &entry.node);
        let of_layer = nodes.filter(|node| node.bucket == *bucket && node.layer == *layer);
        let paths: BTreeSet<Path> = of_layer
            .map(|node| node.path.clone())
            .filter(|path| path.is_within(under) && after.is_none_or(|after| path > after))
            .collect();
        ready(Ok(paths.into_iter().take(limit).collect()))
    }

    fn stat_keys(
        &self,
        bucket: &Bucket,
        measure: &Layer,
        path: &Path,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Key>, StoreError>> {
        let inner = self.inner();
        let cells = inner.cells(bucket, measure).filter(|(cell, _)| cell.path == *path);
        let keys: BTreeSet<Key> = cells.map(|(cell, _)| cell.key.clone()).collect();
        ready(at_most(limit, keys))
    }

    fn stat_measures(&self, bucket: &Bucket) -> BoxFuture<'_, Result<Vec<Layer>, StoreError>> {
        let inner = self.inner();
        let measures: BTreeSet<Layer> = inner
            .stats
            .keys()
            .filter(|cell| cell.bucket == *bucket)
            .map(|cell| cell.measure.clone())
            .collect();
        ready(Ok(measures.into_iter().collect()))
    }
}

fn at_most<T>(
    limit: usize,
    found: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
) -> Result<Vec<T>, StoreError> {
    let found = found.into_iter();
    if found.len() > limit { Err(StoreError::TooLarge) } else { Ok(found.collect()) }
}

fn is_live(series: &[Version]) -> bool {
    series.last().is_some_and(|version| version.value.is_some())
}
