//! A check finds each kind of damage and names it.

use std::path::Path;

use kv4::store::Store;
use kv4::write::{KeyChange, Op};
use redb::{Database, ReadableTable, TableDefinition, WriteTransaction};
use store::EmbeddedStore;
use store::contract::block_on;
use store::embedded::{Options, Report, Rule, fsck};
use wire::names::Key;

use super::{entry, put};

type Bytes = &'static [u8];
const HEADS: TableDefinition<Bytes, Bytes> = TableDefinition::new("heads");
const SERIES: TableDefinition<Bytes, Bytes> = TableDefinition::new("series");
const UNIQUE: TableDefinition<Bytes, Bytes> = TableDefinition::new("unique");
const FEED: TableDefinition<Bytes, Bytes> = TableDefinition::new("feed");
const NODES: TableDefinition<Bytes, Bytes> = TableDefinition::new("nodes");
const STATS: TableDefinition<Bytes, Bytes> = TableDefinition::new("stats");
const BUCKETS: TableDefinition<&str, u32> = TableDefinition::new("buckets");

/// Where the stamp and the generation are in a version's bytes.
const GENERATION: usize = 9;

#[test]
fn an_undamaged_store_is_clean() {
    let report = check(|_| {});
    assert!(report.is_clean(), "{report}: {:?}", report.violations);
    assert_eq!((report.buckets, report.entries, report.versions), (1, 3, 6));
}

#[test]
fn each_damage_is_named() {
    let found = |rule: Rule, damage: fn(&WriteTransaction)| {
        let report = check(damage);
        let of_rule = report.violations.iter().filter(|violation| violation.rule == rule).count();
        assert!(of_rule > 0, "{rule}: {report}: {:?}", report.violations);
        assert_eq!(report.counts[&rule], of_rule as u64);
    };
    found(Rule::Readable, |txn| {
        change_first(txn, HEADS, |key, value| (key, value[..12].to_vec()));
    });
    found(Rule::Readable, |txn| {
        change_first(txn, SERIES, |key, mut value| {
            value[0] |= 0x80;
            (key, value)
        });
    });
    found(Rule::Readable, |txn| insert(txn, STATS, &[0, 0, 0, 1, b'x'], b"x"));
    found(Rule::BucketKnown, |txn| insert(txn, FEED, &[0, 0, 9, 9, 1], b""));
    found(Rule::BucketIds, |txn| {
        txn.open_table(BUCKETS).unwrap().insert("kv4_$twin_data", 1).unwrap();
    });
    found(Rule::NodeCount, |txn| {
        change_first(txn, NODES, |key, _| (key, 7u64.to_be_bytes().to_vec()));
    });
    found(Rule::NodeCount, |txn| remove_first(txn, NODES));
    found(Rule::NodeCount, |txn| {
        insert(txn, NODES, b"\0\0\0\x01*data\0/0", &1u64.to_be_bytes());
    });
    found(Rule::UniqueMissing, |txn| remove_first(txn, UNIQUE));
    found(Rule::UniqueStray, |txn| {
        change_first(txn, UNIQUE, |mut key, value| {
            key.push(b'x');
            (key, value)
        });
    });
    found(Rule::UniqueStray, |txn| {
        insert(txn, UNIQUE, b"\0\0\0\x01*data\0/a\0\x02gone key", b"gone");
    });
    found(Rule::FeedDense, |txn| remove_first(txn, FEED));
    found(Rule::FeedRow, |txn| {
        change_first(txn, FEED, |key, mut value| {
            value[7] ^= 0x40;
            (key, value)
        });
    });
    found(Rule::SeriesOrphan, |txn| remove_first(txn, HEADS));
    found(Rule::SeriesDense, |txn| {
        // The second of the entry "a", between its first and its third.
        let mut series = txn.open_table(SERIES).unwrap();
        let key = series.iter().unwrap().nth(1).unwrap().unwrap().0.value().to_vec();
        series.remove(key.as_slice()).unwrap();
    });
    found(Rule::SeriesDense, |txn| {
        change_first(txn, HEADS, |key, mut value| {
            value[GENERATION + 7] += 1;
            (key, value)
        });
    });
    found(Rule::StampsRise, |txn| {
        change_first(txn, HEADS, |key, mut value| {
            value[GENERATION + 8..GENERATION + 16].fill(0);
            (key, value)
        });
    });
    found(Rule::StampsRise, |txn| {
        change_first(txn, SERIES, |mut key, value| {
            *key.last_mut().unwrap() += 100;
            (key, value)
        });
    });
}

#[test]
fn damage_below_the_tables_is_the_engines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    fill(&path);
    // Any byte of a value: only redb's checksums know.
    let mut bytes = std::fs::read(&path).unwrap();
    let needle = b"a value to damage";
    let places: Vec<usize> =
        (0..bytes.len() - needle.len()).filter(|at| bytes[*at..].starts_with(needle)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at] ^= 1;
    }
    std::fs::write(&path, bytes).unwrap();
    match fsck(&path) {
        Ok(report) => assert!(report.counts.contains_key(&Rule::Engine), "{report}"),
        Err(error) => assert!(error.to_string().contains("damaged"), "{error}"),
    }
}

fn check(damage: impl FnOnce(&WriteTransaction)) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    fill(&path);
    let database = Database::open(&path).unwrap();
    let txn = database.begin_write().unwrap();
    damage(&txn);
    txn.commit().unwrap();
    drop(database);
    fsck(&path).unwrap()
}

/// Three entries of one node: `a` with three versions and a secondary key, `b`, and `gone`.
fn fill(path: &Path) {
    let store = EmbeddedStore::open(path, Options::default()).unwrap();
    let (a, b, gone) = (entry("/a", "a"), entry("/a", "b"), entry("/a", "gone"));
    let mut first = put(&a, "1");
    if let Op::Put { keys, .. } = &mut first.op {
        keys[0] = KeyChange::Set(Key::parse("second").unwrap());
    }
    let mut delete = put(&gone, "");
    delete.op = Op::Delete;
    let writes = vec![
        first,
        put(&a, "2"),
        put(&a, "3"),
        put(&b, "a value to damage"),
        put(&gone, "x"),
        delete,
    ];
    assert!(block_on(store.write(writes)).iter().all(Result::is_ok));
}

fn change_first(
    txn: &WriteTransaction,
    table: TableDefinition<Bytes, Bytes>,
    change: impl FnOnce(Vec<u8>, Vec<u8>) -> (Vec<u8>, Vec<u8>),
) {
    let mut table = txn.open_table(table).unwrap();
    let (key, value) = {
        let (key, value) = table.pop_first().unwrap().unwrap();
        change(key.value().to_vec(), value.value().to_vec())
    };
    table.insert(key.as_slice(), value.as_slice()).unwrap();
}

fn remove_first(txn: &WriteTransaction, table: TableDefinition<Bytes, Bytes>) {
    txn.open_table(table).unwrap().pop_first().unwrap().unwrap();
}

fn insert(
    txn: &WriteTransaction,
    table: TableDefinition<Bytes, Bytes>,
    key: &'static [u8],
    value: &[u8],
) {
    txn.open_table(table).unwrap().insert(key, value).unwrap();
}
