//! The embedded store's tests: contract, crash images, faults, files.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod contract;
mod crash;
mod disk;
mod fair;
mod faults;
mod files;
mod fsck;
mod group;
mod log;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use kv4::Stamp;
use kv4::address::{Bucket, Entry, Node};
use kv4::store::{Change, Seq, Stat, StatQuery, Store};
use kv4::write::{Condition, KeyChange, Op, Write};
use store::EmbeddedStore;
use store::contract::block_on;
use store::embedded::{LOG_BYTES_MIN, Options};
use wire::json::Json;
use wire::names::{Key, Layer, Path};
use wire::timegroup::TimeGroup;

/// Options of stores on simulated disks: a log that is full after a few steps, and a slice for each
/// row that is read.
fn options() -> Options {
    Options { retry: Duration::ZERO, log_bytes: LOG_BYTES_MIN, slice_rows: 1, ..Options::default() }
}

fn open_on(disk: &disk::Disk) -> EmbeddedStore {
    EmbeddedStore::open_on(disk.store(), disk.log(), options()).unwrap()
}

fn entry(path: &str, key: &str) -> Entry {
    let (layer, path) = (Layer::parse("*data").unwrap(), Path::parse(path).unwrap());
    Node::new(Bucket::sys(), layer, path).entry(Key::parse(key).unwrap())
}

fn put(entry: &Entry, value: &str) -> Write {
    Write {
        entry: entry.clone(),
        op: Op::Put {
            value: Json::string(value),
            keys: [KeyChange::Keep, KeyChange::Keep, KeyChange::Keep],
        },
        condition: Condition::Any,
        who: Arc::from("elena"),
        stamp: Stamp { micros: 1, neuron: 1 },
    }
}

/// All that a store holds, as its feeds and its statistics tell it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Dump {
    changes: Vec<(Bucket, Vec<Change>)>,
    stats: Vec<(StatQuery, Vec<(TimeGroup, Stat)>)>,
}

fn dump(store: &dyn Store) -> Dump {
    let mut dump = Dump::default();
    for bucket in block_on(store.buckets()).unwrap() {
        let (changes, last) = block_on(store.changes(&bucket, Seq(0), usize::MAX)).unwrap();
        let seqs: Vec<u64> = changes.iter().map(|change| change.seq.0).collect();
        assert_eq!(seqs, (1..=last.0).collect::<Vec<_>>(), "a feed is dense");
        for measure in block_on(store.stat_measures(&bucket)).unwrap() {
            let paths = store.stat_paths(&bucket, &measure, &Path::root(), usize::MAX);
            for path in block_on(paths).unwrap() {
                let keys = store.stat_keys(&bucket, &measure, &path, usize::MAX);
                for key in block_on(keys).unwrap() {
                    let query = StatQuery {
                        bucket: bucket.clone(),
                        measure: measure.clone(),
                        path: Some(path.clone()),
                        key: Some(key),
                        from_minute: 0,
                        to_minute: u32::MAX,
                        depth: 5,
                        groups_max: usize::MAX,
                    };
                    let minutes = block_on(store.stats(&query)).unwrap();
                    dump.stats.push((query, minutes));
                }
            }
        }
        dump.changes.push((bucket, changes));
    }
    dump
}
