//! Disks that are full or fail: nothing acknowledged is lost, nothing refused is there, and writing
//! goes on when the disk does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv4::store::{Event, Seq, Store, StoreError};
use kv4::write::WriteError;
use store::EmbeddedStore;
use store::contract::{Heard, block_on, cases};
use store::embedded::{Options, fsck_on};

use super::disk::{Disk, Fault, Which};
use super::{dump, entry, open_on, options, put};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
/// Fault points tried of each kind when `GANGLION_CASES` does not say.
const CASES: u32 = 30;
/// The calls of a run are about this many, and those to the log; points are spread over them.
const CALLS: u64 = 160;
const CALLS_OF_LOG: u64 = 24;
const WRITES: usize = 10;

#[test]
fn a_disk_that_fails_once_at_any_call() {
    try_faults(1, false, None);
}

#[test]
fn a_log_that_fails_once_at_any_call() {
    try_faults(1, false, Some(Which::Log));
}

#[test]
fn a_log_that_fails_from_any_call_on_until_it_is_healed() {
    try_faults(u64::MAX / 2, false, Some(Which::Log));
}

#[test]
fn an_engine_that_fails_once_at_any_call() {
    try_faults(1, false, Some(Which::Store));
}

#[test]
fn a_disk_that_fails_from_any_call_on_until_it_is_healed() {
    try_faults(u64::MAX / 2, false, None);
}

#[test]
fn a_disk_that_fails_some_calls_reads_included() {
    try_faults(4, true, None);
}

#[test]
fn a_full_disk_refuses_writes_and_goes_on_with_reads() {
    let disk = Disk::default();
    // A log that holds more than the engine's cache, so that it is not made again without room.
    let log_bytes = 1 << 20;
    let options = Options { cache_bytes: 64 << 10, log_bytes, ..options() };
    let store = EmbeddedStore::open_on(disk.store(), disk.log(), options).unwrap();
    let write = |nth: usize| {
        let entry = entry("/a", &format!("{}", nth % 50));
        let value = format!("{nth}{}", "x".repeat(5_000));
        block_on(store.write(vec![put(&entry, &value)])).remove(0).map(drop)
    };
    assert!(write(0).is_ok());
    disk.fill(true);
    let mut there = dump(&store);
    for round in 0..3 {
        let mut nth = 1;
        let deadline = Instant::now() + Duration::from_secs(20);
        while write(nth).is_ok() || store.commits().recoveries <= round {
            there = dump(&store);
            nth += 1;
            assert!(Instant::now() < deadline, "the disk does not fill");
        }
        assert!(dump(&store) == there, "reads go on, and a refused write changes nothing");
        assert!(dump(&open_on(&Disk::of(disk.durable()))) == there);
    }
    disk.fill(false);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut before = store.commits();
    while block_on(store.erase(&entry("/a", "0"))).is_err() {
        assert!(Instant::now() < deadline, "not recovered");
        std::thread::yield_now();
        before = store.commits();
    }
    assert!(write(0).is_ok());
    // The first checkpoint gives back the memory that reads had while the disk was full.
    let after = store.commits();
    assert_eq!((after.failures, after.recoveries), (before.failures, before.recoveries + 1));
    assert!(dump(&open_on(&Disk::of(disk.durable()))) == dump(&store));
}

fn try_faults(count: u64, reads: bool, of: Option<Which>) {
    let mut failed = 0;
    let cases = u64::from(cases(CASES));
    let calls = if of == Some(Which::Log) { CALLS_OF_LOG } else { CALLS };
    for case in 0..cases {
        for (error, lands) in [(EIO, false), (EIO, true), (ENOSPC, false)] {
            let fault = Fault { error, after: case * calls / cases, count, reads, of, lands };
            failed += u64::from(run(fault));
        }
    }
    assert!(failed > cases / 2, "only {failed} of the faults were met");
}

/// Writes on a disk that begins to fail; whether it did.
fn run(fault: Fault) -> bool {
    let disk = Disk::default();
    // A cache that does not hold all pages, so that reads meet the disk.
    let options = Options { cache_bytes: 64 << 10, ..options() };
    let store = EmbeddedStore::open_on(disk.store(), disk.log(), options).unwrap();
    let heard = Arc::new(Heard::default());
    store.listen(heard.clone());
    let mut acknowledged = 0;
    let mut write = |nth: usize| {
        let entry = entry("/a", &format!("{}", nth % 4));
        let value = format!("{nth}{}", "x".repeat(5_000));
        let mut answers = block_on(store.write(vec![put(&entry, &value), put(&entry, "then")]));
        assert_eq!(answers[0].is_ok(), answers[1].is_ok(), "{fault:?}: half of a batch");
        match answers.remove(0) {
            Ok(_) => acknowledged += 2,
            Err(WriteError::Store(StoreError::Unavailable(_))) => return None,
            Err(other) => panic!("{fault:?}: {other}"),
        }
        Some(acknowledged)
    };
    assert!(write(0).is_some(), "before any fault");
    disk.fail(fault);
    // The power goes when the first write that is acknowledged after a fault is answered.
    let mut cut = None;
    for nth in 1..WRITES {
        if let Some(acknowledged) = write(nth)
            && cut.is_none()
            && disk.has_failed()
        {
            cut = Some((acknowledged, disk.durable()));
        }
    }
    let has_failed = disk.has_failed();
    disk.heal();
    let deadline = Instant::now() + Duration::from_secs(20);
    while write(WRITES).is_none() {
        assert!(Instant::now() < deadline, "{fault:?}: not recovered");
        std::thread::yield_now();
    }

    let bucket = entry("/a", "0").node.bucket;
    let (changes, last) = block_on(store.changes(&bucket, Seq(0), usize::MAX)).unwrap();
    assert_eq!(last, Seq(acknowledged), "{fault:?}: the feed is what was acknowledged");
    if let Some((acknowledged, image)) = cut {
        let store = open_on(&Disk::of(image));
        let (found, _) = block_on(store.changes(&bucket, Seq(0), usize::MAX)).unwrap();
        let expected = &changes[..usize::try_from(acknowledged).unwrap()];
        assert!(found == expected, "{fault:?}: acknowledged is what a power cut leaves");
    }
    let told: Vec<Event> = changes.into_iter().map(Event::Changed).collect();
    assert!(heard.take() == told, "{fault:?}: the listener heard what the feed tells");

    let before = dump(&store);
    let image = disk.durable();
    let checked = Disk::of(image.clone());
    let report = fsck_on(checked.store(), checked.log()).unwrap();
    assert!(report.is_clean(), "{fault:?}: {report}: {:?}", report.violations);
    let after = dump(&open_on(&Disk::of(image)));
    assert!(before == after, "{fault:?}: a power cut after the fault took something");
    has_failed
}
