//! Whose reads wait for whose, and what a read goes by.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use kv4::address::{Bucket, Entry, Node};
use kv4::store::{SeriesQuery, Stat, StatCell, StatQuery, Store};
use store::EmbeddedStore;
use store::contract::block_on;
use store::embedded::Options;
use wire::names::{Ident, Key};

use super::{entry, put};

/// Versions of the loud account's key, 4 KiB each.
const VERSIONS: usize = 1_000;
/// Series reads that the loud account has under way at a time.
const LOUD: usize = 16;
const READS: usize = 100;

fn of(account: &str, key: &str) -> Entry {
    let bucket = Bucket::account(&Ident::parse(account).unwrap(), None).unwrap();
    let Node { layer, path, .. } = entry("/a", key).node;
    Node::new(bucket, layer, path).entry(Key::parse(key).unwrap())
}

/// One account reads long series, as many at a time as it may; another one's small reads do not wait
/// until those are through.
#[test]
fn a_small_read_does_not_wait_for_anothers_series() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&folder.path().join("s"), Options::default()).unwrap();
    let (loud, quiet) = (of("loud", "k"), of("quiet", "k"));
    let value = "v".repeat(4_096);
    for _ in 0..VERSIONS / 100 {
        let writes = (0..100).map(|_| put(&loud, &value)).collect();
        assert!(block_on(store.write(writes)).iter().all(Result::is_ok));
    }
    assert!(block_on(store.write(vec![put(&quiet, "v")]))[0].is_ok());
    let query = SeriesQuery {
        with_deletions: true,
        node: loud.node.clone(),
        key: None,
        from_micros: 0,
        to_micros: u64::MAX,
        limit: usize::MAX,
    };
    let small_reads = || {
        let mut took: Vec<Duration> = (0..READS)
            .map(|_| {
                let begun = Instant::now();
                assert_eq!(block_on(store.node(&quiet.node, usize::MAX)).unwrap().len(), 1);
                begun.elapsed()
            })
            .collect();
        took.sort_unstable();
        (took[READS / 2], took[READS * 99 / 100])
    };
    let begun = Instant::now();
    assert_eq!(block_on(store.series(&query)).unwrap().len(), VERSIONS);
    let whole = begun.elapsed();
    let alone = small_reads();
    let (series, is_over) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let beside = thread::scope(|scope| {
        for _ in 0..LOUD {
            scope.spawn(|| {
                while is_over.load(SeqCst) == 0 {
                    assert_eq!(block_on(store.series(&query)).unwrap().len(), VERSIONS);
                    series.fetch_add(1, SeqCst);
                }
            });
        }
        while series.load(SeqCst) == 0 {
            thread::yield_now();
        }
        let beside = small_reads();
        is_over.store(1, SeqCst);
        beside
    });
    println!("a series {whole:?}; a small read (p50, p99) alone {alone:?}, beside {beside:?}");
    // In one queue for all, half of them wait for several whole series.
    assert!(beside.0 < whole, "{beside:?} where a series takes {whole:?}");
}

/// A query of a few minutes goes by those, and not by all that there are.
#[test]
fn statistics_of_a_few_minutes_do_not_read_the_others() {
    const MINUTES: u32 = 50_000;
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&folder.path().join("s"), Options::default()).unwrap();
    let node = entry("/a", "k").node;
    let cells = (0..MINUTES).map(|minute| {
        let cell = StatCell {
            bucket: Bucket::sys(),
            measure: node.layer.clone(),
            path: node.path.clone(),
            key: Key::parse("k").unwrap(),
            minute,
            neuron: 1,
        };
        (cell, Stat::of(1))
    });
    let cells: Vec<_> = cells.collect();
    for cells in cells.chunks(5_000) {
        block_on(store.put_stats(cells.to_vec())).unwrap();
    }
    let ask = |from_minute, to_minute, key: &str| {
        let query = StatQuery {
            bucket: Bucket::sys(),
            measure: node.layer.clone(),
            path: None,
            key: Some(Key::parse(key).unwrap()),
            from_minute,
            to_minute,
            depth: 1,
            groups_max: 1,
        };
        let took = |_| {
            let begun = Instant::now();
            let groups = block_on(store.stats(&query)).unwrap();
            let count = groups.iter().map(|(_, stat)| stat.count).sum::<u64>();
            (begun.elapsed(), count)
        };
        (0..3).map(took).min().unwrap()
    };
    let (whole, count) = ask(0, u32::MAX, "k");
    assert_eq!(count, u64::from(MINUTES));
    let few = ask(MINUTES / 2, MINUTES / 2 + 9, "k");
    assert_eq!(few.1, 10);
    // Keys on both sides of the only one.
    let none = [ask(0, u32::MAX, "a"), ask(0, u32::MAX, "z")];
    assert!(none.iter().all(|(_, count)| *count == 0));
    println!("{MINUTES} cells {whole:?}; ten of them {:?}; of another key {none:?}", few.0);
    for (took, _) in [few, none[0], none[1]] {
        assert!(took < whole / 10, "{took:?} where all take {whole:?}");
    }
}
