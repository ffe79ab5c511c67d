//! The store seen through its views: what services read and write.
//!
//! Runtime-free: plain `async` over the [`Store`] trait, no task of its own. Warm reads finish
//! without waiting.

use std::sync::{Arc, PoisonError, RwLock};

use wire::names::{Key, Layer, Path};
use wire::timegroup::TimeGroup;

use crate::address::{Bucket, Entry, Node};
use crate::store::{
    BoxFuture, Change, Event, Listener, Retention, Seq, SeriesQuery, Stat, StatCell, StatQuery,
    Store, StoreError,
};
use crate::version::{Head, Ver, Version};
use crate::view::{Limits, Load, Lookup, Stats, Table, Views};
use crate::watch::{self, Guard, Registered, Sink, Start, Watch, WatchError, Watches};
use crate::write::{Write, WriteError, Written};

/// Keys that one page of a large node's listing asks the store for.
const KEYS_PAGE: usize = 10_000;
/// Times that a watch looks for its node among the views. Where they are too small for all that are
/// wanted, it may be gone each time; then the store is asked.
const VIEW_ATTEMPTS: usize = 6;

/// KV4 on one neuron.
pub struct Kv4 {
    store: Arc<dyn Store>,
    heard: Arc<Heard>,
}

/// What hears the store's commits: the views, then whoever else asked.
struct Heard {
    views: Views,
    watches: Arc<Watches>,
    /// Caches compiled from layers; told after the views are up to date.
    listeners: RwLock<Vec<Arc<dyn Listener>>>,
}

impl std::fmt::Debug for Kv4 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kv4").field("views", &self.heard.views.stats()).finish_non_exhaustive()
    }
}

impl Kv4 {
    /// Puts views before a store and begins to hear its commits.
    pub fn new(store: Arc<dyn Store>, limits: Limits) -> Arc<Kv4> {
        Kv4::with_watches(store, limits, watch::Limits::default())
    }

    /// The same with limits on watches.
    pub fn with_watches(
        store: Arc<dyn Store>,
        limits: Limits,
        of_watches: watch::Limits,
    ) -> Arc<Kv4> {
        let heard = Arc::new(Heard {
            views: Views::new(limits),
            watches: Watches::new(of_watches),
            listeners: RwLock::new(Vec::new()),
        });
        store.listen(heard.clone());
        Arc::new(Kv4 { store, heard })
    }

    /// Adds one who hears every commit, in order, before its writer is told.
    pub fn on_commit(&self, listener: Arc<dyn Listener>) {
        self.heard.listeners.write().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    /// The view of a node, loaded if need be; `None` when the node is too large to be held.
    ///
    /// # Errors
    /// The store's, when the node has to be loaded.
    pub async fn table(&self, node: &Node) -> Result<Option<Arc<Table>>, StoreError> {
        self.view(node, true).await
    }

    /// The same; `None` too for a node that takes long to load, where nobody `waits` for that.
    async fn view(&self, node: &Node, waits: bool) -> Result<Option<Arc<Table>>, StoreError> {
        loop {
            match self.heard.views.lookup(node) {
                Lookup::Ready(table) => return Ok(Some(table)),
                Lookup::Large => return Ok(None),
                Lookup::Absent => {}
            }
            match self.heard.views.load(node) {
                Load::Done => {}
                Load::Late(_) if !waits => return Ok(None),
                Load::Wait(listener) | Load::Late(listener) => listener.await,
                Load::Mine(ticket) => {
                    let bytes_max = self.heard.views.limits().node_bytes_max;
                    match self.store.node(node, bytes_max).await {
                        Ok(rows) => return Ok(Some(ticket.loaded(rows))),
                        Err(StoreError::TooLarge) => {
                            ticket.too_large();
                            return Ok(None);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }

    /// The newest version of a live entry.
    ///
    /// # Errors
    /// The store's, when it has to be asked.
    pub async fn get(&self, node: &Node, key: &Key) -> Result<Option<Arc<Head>>, StoreError> {
        match self.view(node, false).await? {
            Some(table) => Ok(table.get(key.as_str()).cloned()),
            None => {
                let newest = self.store.newest(&node.entry(key.clone())).await?;
                Ok(newest.and_then(|version| Head::of(key, &version)).map(Arc::new))
            }
        }
    }

    /// The live entry that has `key` as k2 (`nth` = 2), k3 or k4.
    ///
    /// # Errors
    /// The store's, when it has to be asked.
    pub async fn get_by(
        &self,
        node: &Node,
        nth: u8,
        key: &Key,
    ) -> Result<Option<Arc<Head>>, StoreError> {
        match self.view(node, false).await? {
            Some(table) => Ok(table.by_secondary(nth, key.as_str()).cloned()),
            None => Ok(self.store.by_secondary(node, nth, key).await?.map(Arc::new)),
        }
    }

    /// Live keys of a node in order.
    ///
    /// # Errors
    /// The store's, when it has to be asked.
    pub async fn keys(&self, node: &Node) -> Result<Vec<Key>, StoreError> {
        self.keys_after(node, None, usize::MAX).await
    }

    /// At most `limit` live keys of a node after one of them, in order.
    ///
    /// # Errors
    /// The store's, when it has to be asked.
    pub async fn keys_after(
        &self,
        node: &Node,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<Key>, StoreError> {
        if let Some(table) = self.view(node, false).await? {
            let is_after = |head: &&Arc<Head>| after.is_none_or(|after| head.key > *after);
            return Ok(table.iter().filter(is_after).take(limit).map(|h| h.key.clone()).collect());
        }
        let mut keys: Vec<Key> = Vec::new();
        loop {
            let asked = KEYS_PAGE.min(limit - keys.len());
            let page = self.store.keys(node, keys.last().or(after), asked).await?;
            let is_last = page.len() < KEYS_PAGE;
            keys.extend(page);
            if is_last {
                return Ok(keys);
            }
        }
    }

    /// Live keys of a node after one of them, in order, from the store: for who goes through a node
    /// once.
    ///
    /// # Errors
    /// The store's.
    pub fn key_page(
        &self,
        node: &Node,
        after: Option<&Key>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Key>, StoreError>> {
        self.store.keys(node, after, limit)
    }

    /// Live entries of a node in key order.
    ///
    /// # Errors
    /// The store's; [`StoreError::TooLarge`] for a node that is too large to be held.
    pub async fn heads(&self, node: &Node) -> Result<Vec<Arc<Head>>, StoreError> {
        match self.table(node).await? {
            Some(table) => Ok(table.iter().cloned().collect()),
            None => Err(StoreError::TooLarge),
        }
    }

    /// Live entries of a node after a key, in key order, from the store: for nodes that are too large
    /// to be held.
    ///
    /// # Errors
    /// The store's.
    pub async fn page(
        &self,
        node: &Node,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<Arc<Head>>, StoreError> {
        let mut page = Vec::new();
        for key in self.store.keys(node, after, limit).await? {
            let newest = self.store.newest(&node.entry(key.clone())).await?;
            page.extend(newest.and_then(|version| Head::of(&key, &version)).map(Arc::new));
        }
        Ok(page)
    }

    /// Waits until the node's view holds `ver` of an entry or a newer one. The caller sets the
    /// deadline by dropping this.
    ///
    /// # Errors
    /// The store's, when it has to be asked.
    pub async fn reached(&self, node: &Node, key: &Key, ver: Ver) -> Result<(), StoreError> {
        loop {
            let listener = self.heard.views.changed(node);
            let newest = match self.get(node, key).await? {
                Some(head) => head.ver.generation,
                None => {
                    let entry = node.entry(key.clone());
                    self.store.newest(&entry).await?.map_or(0, |version| version.ver.generation)
                }
            };
            if newest >= ver.generation {
                return Ok(());
            }
            if let Some(listener) = listener {
                listener.await;
            }
        }
    }

    /// Begins a watch: its start, and the guard that keeps it. All that is committed after the start
    /// goes to `sink`, by way of whoever drains [`Kv4::watches`].
    ///
    /// # Errors
    /// [`WatchError`]; a node that is too large to be held can be watched by single keys only.
    pub async fn watch(
        &self,
        watch: &Watch,
        sink: &Arc<dyn Sink>,
    ) -> Result<(Start, Guard), WatchError> {
        let Heard { views, watches, .. } = &*self.heard;
        for _ in 0..VIEW_ATTEMPTS {
            // For one key nobody waits for a load that takes long.
            if self.view(&watch.node, watch.key.is_none()).await?.is_none() {
                match &watch.key {
                    Some(_) => break,
                    None => return Err(StoreError::TooLarge.into()),
                }
            }
            match watches.register(views, watch, sink)? {
                Registered::Done(start, guard) => return Ok((start, guard)),
                Registered::Absent | Registered::Large => {}
                Registered::Busy(listener) => listener.await,
                Registered::Untold(untold) => {
                    self.told().await?;
                    untold.told();
                }
            }
        }
        let starting = watches.begin(watch, sink)?;
        let rows = match &watch.key {
            None => self.store.node(&watch.node, views.limits().node_bytes_max).await?,
            Some(key) => {
                let newest = self.store.newest(&watch.node.entry(key.clone())).await?;
                newest.and_then(|version| Head::of(key, &version)).into_iter().collect()
            }
        };
        self.told().await?;
        watches.start(starting, rows)
    }

    /// Waits until all that is in the store has been told: a request that changes nothing takes its
    /// turn among the commits, each of which is told before the next.
    async fn told(&self) -> Result<(), StoreError> {
        self.store.put_stats(Vec::new()).await
    }

    /// Every watch.
    pub fn watches(&self) -> &Arc<Watches> {
        &self.heard.watches
    }

    /// Carries out one write; durable, and in the view, when it is answered.
    ///
    /// # Errors
    /// [`WriteError`]; nothing has changed then.
    pub async fn write(&self, write: Write) -> Result<Written, WriteError> {
        let mut answers = self.store.write(vec![write]).await;
        answers.pop().unwrap_or_else(|| {
            Err(WriteError::Store(StoreError::Unavailable("no answer from the store".to_owned())))
        })
    }

    /// Carries out many writes, each on its own; see [`Store::write`].
    pub fn write_all(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Written, WriteError>>> {
        self.store.write(writes)
    }

    /// The newest version of one entry, deletions included, from the store.
    pub fn newest(&self, entry: &Entry) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        self.store.newest(entry)
    }

    pub fn series(
        &self,
        query: &SeriesQuery,
    ) -> BoxFuture<'_, Result<Vec<(Key, Version)>, StoreError>> {
        self.store.series(query)
    }

    pub fn layers(&self, bucket: &Bucket) -> BoxFuture<'_, Result<Vec<Layer>, StoreError>> {
        self.store.layers(bucket)
    }

    pub fn paths(
        &self,
        bucket: &Bucket,
        layer: &Layer,
        under: &Path,
    ) -> BoxFuture<'_, Result<Vec<(Path, u64)>, StoreError>> {
        self.store.paths(bucket, layer, under)
    }

    pub fn changes(
        &self,
        bucket: &Bucket,
        since: Seq,
        limit: usize,
    ) -> BoxFuture<'_, Result<(Vec<Change>, Seq), StoreError>> {
        self.store.changes(bucket, since, limit)
    }

    pub fn erase(&self, entry: &Entry) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.store.erase(entry)
    }

    pub fn prune(
        &self,
        node: &Node,
        retention: Retention,
    ) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.store.prune(node, retention)
    }

    pub fn drop_bucket(&self, bucket: &Bucket) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.drop_bucket(bucket)
    }

    pub fn buckets(&self) -> BoxFuture<'_, Result<Vec<Bucket>, StoreError>> {
        self.store.buckets()
    }

    pub fn put_stats(&self, cells: Vec<(StatCell, Stat)>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.put_stats(cells)
    }

    pub fn stats(
        &self,
        query: &StatQuery,
    ) -> BoxFuture<'_, Result<Vec<(TimeGroup, Stat)>, StoreError>> {
        self.store.stats(query)
    }

    pub fn stat_paths(
        &self,
        bucket: &Bucket,
        measure: &Layer,
        under: &Path,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Path>, StoreError>> {
        self.store.stat_paths(bucket, measure, under, limit)
    }

    pub fn series_paths(
        &self,
        bucket: &Bucket,
        layer: &Layer,
        under: &Path,
        after: Option<&Path>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Path>, StoreError>> {
        self.store.series_paths(bucket, layer, under, after, limit)
    }

    pub fn stat_keys(
        &self,
        bucket: &Bucket,
        measure: &Layer,
        path: &Path,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Key>, StoreError>> {
        self.store.stat_keys(bucket, measure, path, limit)
    }

    pub fn stat_measures(&self, bucket: &Bucket) -> BoxFuture<'_, Result<Vec<Layer>, StoreError>> {
        self.store.stat_measures(bucket)
    }

    /// Tells the views the time; see [`Views::tick`].
    pub fn tick(&self, now_s: u32) {
        self.heard.views.tick(now_s);
    }

    pub fn view_stats(&self) -> Stats {
        self.heard.views.stats()
    }
}

impl Listener for Heard {
    fn committed(&self, events: &[Event]) {
        let commit = self.views.apply(events);
        self.watches.committed(commit, events);
        for listener in self.listeners.read().unwrap_or_else(PoisonError::into_inner).iter() {
            listener.committed(events);
        }
    }
}
