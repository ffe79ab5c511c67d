//! The log: what it must be for a store to open, what is told when it is not, and what is left in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kv4::store::{Seq, Store, StoreError};
use kv4::write::WriteError;
use store::EmbeddedStore;
use store::contract::block_on;
use store::embedded::{
    BackupError, LOG_BYTES_MIN, OpenError, Options, Rule, fsck, fsck_on, restore,
};

use super::disk::{Boundary, Disk, Fault, Image, Which};
use super::{dump, entry, open_on, options, put};

/// Where the first record is, and the places of its fields.
const RECORDS_AT: usize = 8_192;
const LENGTH: usize = 8;
const HEADER_BYTES: usize = 28;
const BLOCK: usize = 4_096;
/// So long a log is left as it is, at the least.
const QUIET: Duration = Duration::from_secs(8);
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[test]
fn writes_go_to_the_log_and_the_engine_follows() {
    let disk = Disk::default();
    let store = open_on(&disk);
    let before = disk.durable().store;
    for nth in 0..5 {
        write(&store, "a", &format!("{nth}"));
    }
    assert_eq!(disk.durable().store, before, "a write needs no sync of the engine");
    assert_eq!(records(&disk.durable().log).len(), 5);
    assert_eq!(store.commits().checkpoints, 0);
    let there = dump(&store);
    assert!(dump(&open_on(&Disk::of(disk.durable()))) == there);
    drop(store);
    // Closed, the store is in its own file alone, and the log holds nothing.
    let Image { store, log } = disk.durable();
    assert!(log[RECORDS_AT..].iter().all(|byte| *byte == 0));
    assert!(dump(&open_on(&Disk::of(Image { store, log: Vec::new() }))) == there);
}

#[test]
fn a_full_log_and_a_batch_too_large_for_it_are_checkpoints() {
    let disk = Disk::default();
    let store = open_on(&disk);
    let large = "x".repeat(usize::try_from(LOG_BYTES_MIN).unwrap());
    write(&store, "large", &large);
    assert_eq!(store.commits().checkpoints, 1);
    // Each is two records' worth of a log of three.
    let half = "x".repeat(9_000);
    for nth in 2..=6 {
        write(&store, "a", &half);
        write(&store, "a", "small");
        write(&store, "b", &half);
        assert_eq!(store.commits().checkpoints, nth, "after each two large ones and the third");
        assert!(disk.durable().log.len() == usize::try_from(LOG_BYTES_MIN).unwrap());
        assert!(dump(&open_on(&Disk::of(disk.durable()))) == dump(&store));
    }
}

#[test]
fn a_quiet_log_is_emptied() {
    let disk = Disk::default();
    let store = open_on(&disk);
    write(&store, "a", "quiet");
    let start = Instant::now();
    let deadline = start + Duration::from_secs(60);
    while disk.durable().log[RECORDS_AT..].iter().any(|byte| *byte != 0) {
        assert!(Instant::now() < deadline, "it is not emptied");
        std::thread::yield_now();
    }
    assert!(start.elapsed() >= QUIET, "a write each second has to pay for a checkpoint");
    let commits = store.commits();
    assert_eq!((commits.checkpoints, commits.failures), (1, 0));
}

#[test]
fn what_is_erased_or_dropped_is_not_in_the_log_when_that_is_answered() {
    let disk = Disk::default();
    let store = open_on(&disk);
    let secret = "a value that its owner erased";
    let is_there = || disk.durable().log.windows(secret.len()).any(|it| it == secret.as_bytes());
    for nth in 0..3 {
        write(&store, "secret", &format!("{nth} {secret}"));
        assert!(is_there());
        assert!(block_on(store.erase(&entry("/", "secret"))).unwrap());
        assert!(!is_there());
    }
    write(&store, "secret", secret);
    block_on(store.drop_bucket(&entry("/", "secret").node.bucket)).unwrap();
    assert!(!is_there());
}

#[test]
fn a_record_that_is_cut_is_not_there_and_one_before_others_is_damage() {
    let disk = Disk::default();
    let store = open_on(&disk);
    let mut dumps = vec![dump(&store)];
    for nth in 0..4 {
        write(&store, "a", &format!("{nth}{}", "x".repeat(700)));
        dumps.push(dump(&store));
    }
    let image = disk.durable();
    let places = records(&image.log);
    for (nth, place) in places.iter().enumerate() {
        let is_last = nth + 1 == places.len();
        for at in place.clone().filter(|at| at % 97 == 0 || *at < place.start + HEADER_BYTES) {
            let mut image = image.clone();
            image.log[at] ^= 0x10;
            let disk = Disk::of(image);
            let opened = EmbeddedStore::open_on(disk.store(), disk.log(), options());
            if is_last {
                assert!(dump(&opened.unwrap()) == dumps[nth], "{at} of the last record");
                continue;
            }
            let error = opened.unwrap_err();
            assert!(matches!(error, OpenError::LogDamaged(_)), "{at} of record {nth}: {error}");
            let report = fsck_on(disk.store(), disk.log()).unwrap();
            assert_eq!(report.counts.keys().collect::<Vec<_>>(), [&Rule::Log], "{report}");
        }
    }
}

#[test]
fn records_of_an_earlier_generation_are_not_taken_for_later_ones() {
    let disk = Disk::default();
    let store = open_on(&disk);
    // Two generations whose records lie at the same places, and the second is shorter.
    for nth in 0..5 {
        write(&store, "a", &format!("first {nth}"));
    }
    let fault = Fault { error: EIO, after: 0, count: 1, reads: false, of: None, lands: false };
    disk.fail(Fault { of: Some(Which::Log), ..fault });
    assert!(try_write(&store, "a", "refused").is_err());
    write(&store, "a", "begins a generation");
    let rest = disk.durable().log;
    write(&store, "a", "second");
    let there = dump(&store);
    assert!(dump(&open_on(&Disk::of(disk.durable()))) == there);
    // Also where the disk did not clear what was there.
    let mut image = disk.durable();
    let first = records(&image.log).remove(0);
    let mut uncleared = rest;
    uncleared[first.clone()].copy_from_slice(&image.log[first]);
    image.log = uncleared;
    assert!(dump(&open_on(&Disk::of(image))) == there);
}

#[test]
fn stale_records_behind_a_short_generation_are_ignored() {
    let disk = Disk::default();
    let store = open_on(&disk);
    for nth in 0..6 {
        write(&store, "a", &format!("first {nth}"));
    }
    let stale = disk.durable().log;
    assert!(block_on(store.erase(&entry("/", "none"))).is_ok());
    write(&store, "b", "x");
    assert!(block_on(store.erase(&entry("/", "b"))).unwrap());
    write(&store, "a", "second");
    let mut image = disk.durable();
    let own = records(&image.log);
    assert_eq!(own.len(), 1);
    let behind = own[0].end.next_multiple_of(BLOCK);
    image.log[behind..].copy_from_slice(&stale[behind..]);
    assert!(records(&image.log).len() > 1, "there are stale records behind");
    assert!(dump(&open_on(&Disk::of(image))) == dump(&store));
}

/// The record of a refused batch may be whole on the disk: the running process does not serve it,
/// not when the engine fails behind it either, and after the next commit no process does.
#[test]
fn a_refused_record_that_reached_the_disk_is_not_served() {
    for engine_fails_too in [false, true] {
        let disk = Disk::default();
        let store = open_on(&disk);
        write(&store, "a", "kept");
        let before = dump(&store);
        // The write of the record succeeds, its sync says that it did not.
        let fault = Fault { error: EIO, after: 1, count: 1, reads: false, of: None, lands: true };
        disk.fail(Fault { of: Some(Which::Log), ..fault });
        assert!(try_write(&store, "a", "refused").is_err());
        assert!(disk.has_failed());
        assert_eq!(records(&disk.durable().log).len(), 2, "it is on the disk");
        assert!(dump(&store) == before);
        if engine_fails_too {
            disk.fail(Fault { after: 0, of: Some(Which::Store), lands: false, ..fault });
            assert!(try_write(&store, "b", "refused too").is_err());
            assert!(dump(&store) == before);
            assert!(store.commits().recoveries > 0);
        }
        disk.heal();
        while try_write(&store, "c", "acknowledged").is_err() {
            std::thread::yield_now();
        }
        let there = dump(&store);
        assert!(dump(&open_on(&Disk::of(disk.durable()))) == there);
    }
}

#[test]
fn a_log_that_fails_for_long_is_done_without() {
    let disk = Disk::default();
    let store = open_on(&disk);
    write(&store, "a", "before");
    disk.fail(Fault {
        error: ENOSPC,
        after: 0,
        count: u64::MAX / 2,
        reads: false,
        of: Some(Which::Log),
        lands: false,
    });
    let refused = try_write(&store, "a", "refused").unwrap_err();
    let WriteError::Store(StoreError::Unavailable(text)) = refused else { panic!("{refused}") };
    assert!(text.contains("its log cannot be written") && text.contains("os error 28"), "{text}");
    for nth in 0..20 {
        write(&store, "a", &format!("{nth}"));
        assert!(dump(&open_on(&Disk::of(disk.durable()))) == dump(&store));
    }
    disk.heal();
    let checkpoints = store.commits().checkpoints;
    assert!(checkpoints >= 20);
    // It is used again.
    let mut commits = store.commits();
    while commits.commits - commits.checkpoints < 2 {
        write(&store, "a", "after");
        commits = store.commits();
    }
    assert!(dump(&open_on(&Disk::of(disk.durable()))) == dump(&store));
}

#[test]
fn a_log_without_space_is_told_when_a_store_is_opened() {
    let disk = Disk::default();
    let fault = Fault {
        error: ENOSPC,
        after: 0,
        count: 1,
        reads: false,
        of: Some(Which::Log),
        lands: false,
    };
    disk.fail(fault);
    let error = EmbeddedStore::open_on(disk.store(), disk.log(), options()).unwrap_err();
    assert!(matches!(error, OpenError::Log(_)), "{error}");
    assert!(error.to_string().starts_with("the log beside the store cannot be used"), "{error}");
    disk.heal();
    write(&open_on(&disk), "a", "x");

    // Wherever it failed, the next opening sees to a place for all of the log.
    let mut after = 0;
    loop {
        let disk = Disk::default();
        disk.fail(Fault { after, ..fault });
        let opened = EmbeddedStore::open_on(disk.store(), disk.log(), options()).is_ok();
        let has_failed = disk.has_failed();
        disk.heal();
        let store = open_on(&disk);
        assert!(disk.has_place_for_log(), "after {after} calls");
        drop(store);
        if !has_failed {
            assert!(opened && after > 3, "all calls of an opening were tried");
            break;
        }
        after += 1;
    }
}

/// Two stores that were one have logs that cannot be taken for each other's, and a store that went
/// back in time none of what it did before.
#[test]
fn a_log_of_another_time_is_told() {
    let tells = |what: &str, image: Image, is_told: fn(&OpenError) -> bool| {
        let disk = Disk::of(image.clone());
        let error = EmbeddedStore::open_on(disk.store(), disk.log(), options());
        let error = error.err().unwrap_or_else(|| panic!("{what}: it opens"));
        assert!(is_told(&error), "{what}: {error}");
        assert_eq!(disk.durable().log, image.log, "{what}: it is left alone");
    };
    let disk = Disk::default();
    let store = open_on(&disk);
    write(&store, "a", "x");
    let copy = disk.durable();
    let checkpoint = || {
        write(&store, "erased", "x");
        assert!(block_on(store.erase(&entry("/", "erased"))).unwrap());
    };
    checkpoint();
    write(&store, "b", "after a checkpoint");
    let after_one = disk.durable().log;
    checkpoint();
    let cleared = disk.durable().log;
    for nth in 0..4 {
        write(&store, "b", &format!("{nth}"));
    }
    let killed = disk.durable();
    // A checked copy, cut off at any call of the check, or opened, beside the other's log.
    let settled = Disk::of(copy.clone());
    let stores = Arc::new(Mutex::new(Vec::new()));
    let seen = stores.clone();
    settled.on_boundary(Some(Boundary(Box::new(move |store, _| {
        seen.lock().unwrap().push(store.durable.clone());
    }))));
    assert!(fsck_on(settled.store(), settled.log()).unwrap().is_clean());
    settled.on_boundary(None);
    let mut stores = std::mem::take(&mut *stores.lock().unwrap());
    stores.push(settled.durable().store);
    let opened = Disk::of(copy.clone());
    let opened_store = open_on(&opened);
    stores.push(opened.durable().store);
    let alone = |store: &Vec<u8>| *store != copy.store;
    for (nth, store) in stores.into_iter().filter(alone).enumerate() {
        for log in [after_one.clone(), killed.log.clone()] {
            tells(&format!("another's, {nth}"), Image { store: store.clone(), log }, |error| {
                matches!(error, OpenError::LogForeign | OpenError::LogNewer | OpenError::LogOlder)
            });
        }
    }
    drop(opened_store);
    // Copies that were made one after the other, while the store went on.
    let image = Image { store: killed.store.clone(), log: copy.log.clone() };
    tells("an older one", image, |error| matches!(error, OpenError::LogOlder));
    let image = Image { store: copy.store, log: cleared };
    tells("a cleared one", image, |error| matches!(error, OpenError::LogNewer));

    // Also when only one checkpoint is between them.
    let older = killed.log;
    checkpoint();
    let image = Image { store: disk.durable().store, log: older };
    write(&store, "c", "x");
    tells("the one before", image, |error| matches!(error, OpenError::LogOlder));
}

/// What was closed at a time can be put back at any later one, beside the log as it has become.
#[test]
fn a_closed_store_that_is_put_back_survives_a_kill() {
    for more in 1..6 {
        let disk = Disk::default();
        drop(open_on(&disk));
        let closed = disk.durable().store;
        for _ in 0..more {
            drop(open_on(&disk));
        }
        let disk = Disk::of(Image { store: closed, log: disk.durable().log });
        let store = open_on(&disk);
        write(&store, "a", "x");
        let killed = disk.durable();
        let checked = Disk::of(killed.clone());
        assert!(fsck_on(checked.store(), checked.log()).unwrap().is_clean());
        assert!(dump(&open_on(&Disk::of(killed))) == dump(&store));
    }
}

/// What fails after an erasure became durable does not keep it in the log when it is answered.
#[test]
fn an_erasure_that_stands_is_not_in_the_log_though_the_engine_failed() {
    let secret = "a value that its owner erased";
    let disk = Disk::default();
    let options = Options { log_bytes: 2 << 20, ..options() };
    let store = EmbeddedStore::open_on(disk.store(), disk.log(), options).unwrap();
    for nth in 0..40 {
        write(&store, &format!("{nth}"), &"x".repeat(40_000));
    }
    for nth in 0..40 {
        assert!(block_on(store.erase(&entry("/", &format!("{nth}")))).unwrap());
    }
    // redb gives space back after the sync of a commit.
    disk.fail_to_shorten_store();
    for _ in 0..20 {
        write(&store, "secret", secret);
        assert!(block_on(store.erase(&entry("/", "secret"))).unwrap());
        let log = disk.durable().log;
        assert!(!log.windows(secret.len()).any(|it| it == secret.as_bytes()));
    }
    assert!(store.commits().failures > 0, "it was not met");
}

#[test]
fn a_store_needs_the_log_it_was_left_with() {
    let disk = Disk::default();
    let store = open_on(&disk);
    write(&store, "a", "x");
    let there = dump(&store);
    let left = disk.durable();
    let refuses = |what: &str, log: Vec<u8>, is_told: fn(&OpenError) -> bool| {
        let disk = Disk::of(Image { store: left.store.clone(), log });
        let error = EmbeddedStore::open_on(disk.store(), disk.log(), options()).unwrap_err();
        assert!(is_told(&error), "{what}: {error}");
        let error = fsck_on(disk.store(), disk.log());
        assert!(error.is_err_and(|error| is_told(&error)), "{what}, checked");
    };
    refuses("none", Vec::new(), |error| matches!(error, OpenError::LogMissing));
    let other = Disk::default();
    let other_store = open_on(&other);
    write(&other_store, "a", "another's");
    refuses("another's", other.durable().log, |error| matches!(error, OpenError::LogForeign));

    // The same opening, a later generation.
    assert!(block_on(store.erase(&entry("/", "a"))).unwrap());
    write(&store, "a", "later");
    refuses("a later generation's", disk.durable().log, |error| {
        matches!(error, OpenError::LogNewer)
    });

    let opened_again = Disk::of(left.clone());
    let later = open_on(&opened_again);
    write(&later, "a", "y");
    drop(later);
    let later = open_on(&opened_again);
    write(&later, "a", "z");
    let latest = opened_again.durable();
    refuses("a later one", latest.log, |error| matches!(error, OpenError::LogNewer));
    let disk = Disk::of(Image { store: latest.store, log: left.log.clone() });
    let error = EmbeddedStore::open_on(disk.store(), disk.log(), options()).unwrap_err();
    assert!(matches!(error, OpenError::LogOlder), "{error}");

    // Damage of its length and of its header is a report's, not a refusal to look.
    for (what, log) in [
        ("cut short", left.log[..left.log.len() - BLOCK].to_vec()),
        ("without a header", [&[0; RECORDS_AT], &left.log[RECORDS_AT..]].concat()),
    ] {
        let disk = Disk::of(Image { store: left.store.clone(), log });
        let error = EmbeddedStore::open_on(disk.store(), disk.log(), options()).unwrap_err();
        assert!(matches!(error, OpenError::LogDamaged(_)), "{what}: {error}");
        let report = fsck_on(disk.store(), disk.log()).unwrap();
        assert!(report.counts.contains_key(&Rule::Log), "{what}: {report}");
    }
    assert!(dump(&open_on(&Disk::of(left))) == there);
}

/// A store that was closed needs no log; one beside it that holds something may be needed by another
/// and is not written over.
#[test]
fn a_closed_store_writes_over_no_log_that_holds_something() {
    let disk = Disk::default();
    let store = open_on(&disk);
    write(&store, "a", "x");
    drop(store);
    let closed = disk.durable().store;
    let other = Disk::default();
    let other_store = open_on(&other);
    write(&other_store, "a", "another's");
    let held = other.durable().log;
    let disk = Disk::of(Image { store: closed.clone(), log: held.clone() });
    let error = EmbeddedStore::open_on(disk.store(), disk.log(), options()).unwrap_err();
    assert!(matches!(error, OpenError::LogForeign), "{error}");
    assert_eq!(disk.durable().log, held);
    // Emptied by its owner's close it is a file to use.
    drop(other_store);
    open_on(&Disk::of(Image { store: closed, log: other.durable().log }));
}

#[test]
fn a_killed_store_is_found_again_with_its_log_only() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let (path, killed) = (place("s"), place("killed"));
    let store = EmbeddedStore::open(&path, Options::default()).unwrap();
    write(&store, "a", "x");
    assert!(matches!(EmbeddedStore::open(&path, Options::default()), Err(OpenError::Locked)));
    // What a kill leaves, as long as nothing is written meanwhile.
    fs::copy(&path, &killed).unwrap();
    let restored = restore(&killed, &place("restored")).unwrap_err();
    assert!(matches!(restored, BackupError::Open(OpenError::LogMissing)), "{restored}");
    assert!(matches!(fsck(&killed), Err(OpenError::LogMissing)));
    let error = EmbeddedStore::open(&killed, Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::LogMissing));
    assert!(error.to_string().contains("of its name and `.log`"), "{error}");
    assert!(!log_of(&killed).exists(), "an opening that is refused makes none");
    fs::copy(log_of(&path), log_of(&killed)).unwrap();
    assert!(fsck(&killed).unwrap().is_clean());
    // The check has put all into the store's file.
    fs::remove_file(log_of(&killed)).unwrap();
    let found = EmbeddedStore::open(&killed, Options::default()).unwrap();
    assert!(dump(&found) == dump(&store));
    // A copy made by the store itself needs none.
    store.backup(&place("copy")).unwrap();
    restore(&place("copy"), &place("restored")).unwrap();
    let restored = EmbeddedStore::open(&place("restored"), Options::default()).unwrap();
    assert!(dump(&restored) == dump(&store));
}

/// What an opening makes again has one order: the last change of a row is what it is.
#[test]
fn a_replay_of_everything_that_writes_leads_to_the_same_store() {
    let disk = Disk::default();
    let store = open_on(&disk);
    super::files::fill(&store);
    let node = entry("/pruned", "a").node;
    for nth in 0..5 {
        assert!(
            block_on(store.write(vec![put(&entry("/pruned", "a"), &format!("{nth}"))]))[0].is_ok()
        );
    }
    let retention = kv4::store::Retention { before_micros: None, count_max: Some(2) };
    assert_eq!(block_on(store.prune(&node, retention)), Ok(3));
    assert!(!records(&disk.durable().log).is_empty());
    let image = disk.durable();
    let first = open_on(&Disk::of(image.clone()));
    assert!(dump(&first) == dump(&store));
    let disk = Disk::of(image);
    let report = fsck_on(disk.store(), disk.log()).unwrap();
    assert!(report.is_clean(), "{report}: {:?}", report.violations);
    let (_, last) = block_on(first.changes(&node.bucket, Seq(0), 0)).unwrap();
    assert!(last > Seq(5));
}

fn write(store: &EmbeddedStore, key: &str, value: &str) {
    try_write(store, key, value).unwrap();
}

fn try_write(store: &EmbeddedStore, key: &str, value: &str) -> Result<(), WriteError> {
    block_on(store.write(vec![put(&entry("/", key), value)])).remove(0).map(drop)
}

/// Where whole-looking records lie, from the first on, whatever their generation.
fn records(log: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut places = Vec::new();
    let mut at = RECORDS_AT;
    while at + HEADER_BYTES <= log.len() {
        let length = u32::from_be_bytes(log[at + LENGTH..at + LENGTH + 4].try_into().unwrap());
        if length == 0 {
            break;
        }
        let end = at + HEADER_BYTES + length as usize;
        places.push(at..end);
        at = end.next_multiple_of(BLOCK);
    }
    places
}

fn log_of(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".log");
    name.into()
}
