//! Threads that read, write, load and evict at the same time: no update is lost, no reader goes
//! back in time, nobody waits for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use kv4::Kv4;
use kv4::address::Entry;
use kv4::memory::MemoryStore;
use kv4::store::{
    BoxFuture, Change, Listener, Retention, Seq, SeriesQuery, Stat, StatCell, StatQuery, Store,
    StoreError,
};
use kv4::view::Limits;
use kv4::write::{Write, WriteError, Written};
use kv4::{Bucket, Head, Node, Version};
use wire::names::{Key, Layer, Path};
use wire::timegroup::TimeGroup;

use super::{block_on, key, node, write};

const WRITERS: usize = 2;
const READERS: usize = 3;
const NODES: usize = 3;
const KEYS: usize = 3;
const WRITES: usize = 4_000;

#[test]
fn nothing_is_lost_among_threads() {
    // Nodes 0 and 1 are held in turns; node 2 is often too large.
    let limits = Limits { bytes_max: 6_000, node_bytes_max: 3_000, idle_s: 3 };
    let store = Arc::new(Yielding(MemoryStore::new()));
    let kv = Kv4::new(store, limits);
    let acknowledged: Vec<AtomicU64> = (0..NODES * KEYS).map(|_| AtomicU64::new(0)).collect();
    let writing = AtomicU64::new(WRITERS as u64);
    thread::scope(|scope| {
        for nth in 0..WRITERS {
            let (kv, acknowledged, writing) = (&kv, &acknowledged, &writing);
            scope.spawn(move || {
                // Each writer owns every second entry, so it knows which version is its last.
                let own: Vec<usize> = (nth..NODES * KEYS).step_by(WRITERS).collect();
                for turn in 0..WRITES {
                    let at = own[turn % own.len()];
                    let chars = if at / KEYS == 2 { turn % 2_500 } else { turn % 300 };
                    let entry = entry(at);
                    let written =
                        block_on(kv.write(write(&entry, Some(chars), Default::default())));
                    let generation = written.unwrap().version.ver.generation;
                    acknowledged[at].store(generation, SeqCst);
                    let own = block_on(kv.get(&entry.node, &entry.key)).unwrap();
                    let own = own.expect("just written").ver.generation;
                    assert_eq!(own, generation, "a writer does not read its own write");
                }
                writing.fetch_sub(1, SeqCst);
            });
        }
        for nth in 0..READERS {
            let (kv, acknowledged, writing) = (&kv, &acknowledged, &writing);
            scope.spawn(move || {
                let mut seen = [0; NODES * KEYS];
                let mut at = nth;
                while writing.load(SeqCst) > 0 {
                    at = (at + 5) % (NODES * KEYS);
                    let least = seen[at].max(acknowledged[at].load(SeqCst));
                    let entry = entry(at);
                    let head = block_on(kv.get(&entry.node, &entry.key)).unwrap();
                    let generation = head.map_or(0, |head| head.ver.generation);
                    assert!(generation >= least, "{entry:?}: {generation} after {least}");
                    seen[at] = generation;
                    block_on(kv.reached(&entry.node, &entry.key, ver(least))).unwrap();
                }
            });
        }
        let (kv, writing) = (&kv, &writing);
        scope.spawn(move || {
            let mut now_s = 0;
            while writing.load(SeqCst) > 0 {
                now_s += 1;
                kv.tick(now_s);
                thread::yield_now();
            }
        });
    });
    let stats = kv.view_stats();
    assert!(stats.evicted > 0 && stats.hits > 0, "nothing was tried: {stats:?}");
    assert!(stats.bytes <= limits.bytes_max, "{stats:?}");
}

/// One node, taken up and dropped as fast as threads can: whoever loads it, finds it too large or
/// drops it meets the writer at every point.
#[test]
fn a_node_comes_and_goes_under_a_writer() {
    for chars in [10, 3_000] {
        // Dropped at each tick.
        let limits = Limits { bytes_max: 4_000, node_bytes_max: 2_000, idle_s: 0 };
        let kv = Kv4::new(Arc::new(Yielding(MemoryStore::new())), limits);
        let (acknowledged, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        let entry = entry(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_over.load(SeqCst) {
                        let least = acknowledged.load(SeqCst);
                        let head = block_on(kv.get(&entry.node, &entry.key)).unwrap();
                        let generation = head.map_or(0, |head| head.ver.generation);
                        assert!(generation >= least, "{generation} after {least}");
                        kv.tick(1);
                    }
                });
            }
            for generation in 1.. {
                if generation > WRITES as u64 && kv.view_stats().evicted > 200 {
                    break;
                }
                block_on(kv.write(write(&entry, Some(chars), Default::default()))).unwrap();
                acknowledged.store(generation, SeqCst);
                thread::yield_now();
            }
            is_over.store(true, SeqCst);
        });
    }
}

fn entry(at: usize) -> Entry {
    node(0, at / KEYS).entry(key(at % KEYS))
}

fn ver(generation: u64) -> kv4::Ver {
    kv4::Ver { generation, stamp: kv4::Stamp { micros: 1, neuron: 1 } }
}

/// A store that lets others go first before and after it reads a node.
struct Yielding(MemoryStore);

impl Store for Yielding {
    fn node(&self, node: &Node, bytes_max: usize) -> BoxFuture<'_, Result<Vec<Head>, StoreError>> {
        let node = node.clone();
        Box::pin(async move {
            thread::yield_now();
            let rows = self.0.node(&node, bytes_max).await;
            thread::yield_now();
            rows
        })
    }

    fn write(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Written, WriteError>>> {
        self.0.write(writes)
    }

    fn listen(&self, listener: Arc<dyn Listener>) {
        self.0.listen(listener);
    }

    fn newest(&self, entry: &Entry) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        self.0.newest(entry)
    }

    fn by_secondary(
        &self,
        node: &Node,
        nth: u8,
        key: &Key,
    ) -> BoxFuture<'_, Result<Option<Head>, StoreError>> {
        self.0.by_secondary(node, nth, key)
    }

    fn keys(
        &self,
        node: &Node,
        after: Option<&Key>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Key>, StoreError>> {
        self.0.keys(node, after, limit)
    }

    fn series(
        &self,
        query: &SeriesQuery,
    ) -> BoxFuture<'_, Result<Vec<(Key, Version)>, StoreError>> {
        self.0.series(query)
    }

    fn layers(&self, bucket: &Bucket) -> BoxFuture<'_, Result<Vec<Layer>, StoreError>> {
        self.0.layers(bucket)
    }

    fn paths(
        &self,
        bucket: &Bucket,
        layer: &Layer,
        under: &Path,
    ) -> BoxFuture<'_, Result<Vec<(Path, u64)>, StoreError>> {
        self.0.paths(bucket, layer, under)
    }

    fn changes(
        &self,
        bucket: &Bucket,
        since: Seq,
        limit: usize,
    ) -> BoxFuture<'_, Result<(Vec<Change>, Seq), StoreError>> {
        self.0.changes(bucket, since, limit)
    }

    fn erase(&self, entry: &Entry) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.0.erase(entry)
    }

    fn prune(&self, node: &Node, retention: Retention) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.0.prune(node, retention)
    }

    fn drop_bucket(&self, bucket: &Bucket) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.drop_bucket(bucket)
    }

    fn buckets(&self) -> BoxFuture<'_, Result<Vec<Bucket>, StoreError>> {
        self.0.buckets()
    }

    fn put_stats(&self, cells: Vec<(StatCell, Stat)>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.put_stats(cells)
    }

    fn stats(
        &self,
        query: &StatQuery,
    ) -> BoxFuture<'_, Result<Vec<(TimeGroup, Stat)>, StoreError>> {
        self.0.stats(query)
    }

    fn stat_paths(
        &self,
        bucket: &Bucket,
        measure: &Layer,
        under: &Path,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Path>, StoreError>> {
        self.0.stat_paths(bucket, measure, under, limit)
    }

    fn series_paths(
        &self,
        bucket: &Bucket,
        layer: &Layer,
        under: &Path,
        after: Option<&Path>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Path>, StoreError>> {
        self.0.series_paths(bucket, layer, under, after, limit)
    }

    fn stat_keys(
        &self,
        bucket: &Bucket,
        measure: &Layer,
        path: &Path,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Key>, StoreError>> {
        self.0.stat_keys(bucket, measure, path, limit)
    }

    fn stat_measures(&self, bucket: &Bucket) -> BoxFuture<'_, Result<Vec<Layer>, StoreError>> {
        self.0.stat_measures(bucket)
    }
}
