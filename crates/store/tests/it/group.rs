//! Group commit: many writers share few transactions, and events come in the order of the feed.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use kv4::store::{Event, Listener, Seq, Store, StoreError};
use kv4::write::WriteError;
use redb::{Database, TableDefinition};
use store::EmbeddedStore;
use store::contract::{Heard, block_on};
use store::embedded::Options;

use super::{entry, put};

const WRITERS: usize = 64;
const WRITES: usize = 20;

#[test]
fn many_writers_share_commits_and_events_come_in_feed_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&folder.path().join("s"), Options::default()).unwrap();
    let heard = Arc::new(Heard::default());
    store.listen(heard.clone());
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let store = &store;
            scope.spawn(move || {
                for nth in 0..WRITES {
                    let entry = entry("/", &format!("{writer}-{}", nth % 3));
                    let answers = block_on(store.write(vec![put(&entry, "x")]));
                    assert!(answers[0].is_ok(), "{answers:?}");
                }
            });
        }
    });
    let commits = store.commits();
    let writes = (WRITERS * WRITES) as u64;
    assert_eq!(commits.requests, writes);
    assert!(commits.commits * 4 < writes, "{commits:?} is not « {writes} writes");

    let bucket = entry("/", "x").node.bucket;
    let (changes, last) = block_on(store.changes(&bucket, Seq(0), usize::MAX)).unwrap();
    assert_eq!(last, Seq(writes));
    let told: Vec<_> = heard.take();
    assert_eq!(told, changes.into_iter().map(Event::Changed).collect::<Vec<_>>());
}

#[test]
fn damage_of_one_entry_is_not_the_trouble_of_others_in_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let (bad, good) = (entry("/", "bad"), entry("/", "good"));
    let store = EmbeddedStore::open(&path, Options::default()).unwrap();
    assert!(block_on(store.write(vec![put(&bad, "x")]))[0].is_ok());
    drop(store);
    let heads: TableDefinition<&[u8], &[u8]> = TableDefinition::new("heads");
    let database = Database::open(&path).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(heads)
        .unwrap()
        .insert(b"\0\0\0\x01*data\0/\0bad".as_slice(), &b"?"[..])
        .unwrap();
    txn.commit().unwrap();
    drop(database);

    let store = EmbeddedStore::open(&path, Options::default()).unwrap();
    let (release, held) = channel();
    store.listen(Arc::new(Held(Mutex::new(held))));
    let damaged = |error: &StoreError| matches!(error, StoreError::Damaged(_));
    thread::scope(|scope| {
        let store = &store;
        // The first commit is held in the listener until three requests wait for the next.
        let first = scope.spawn(|| block_on(store.write(vec![put(&entry("/", "1"), "x")])));
        while store.commits().commits == 0 {
            thread::yield_now();
        }
        let erased = scope.spawn(|| block_on(store.erase(&bad)));
        let refused = scope.spawn(|| block_on(store.write(vec![put(&bad, "y")])));
        let written = scope.spawn(|| block_on(store.write(vec![put(&good, "y")])));
        while store.queue_depth() < 3 {
            thread::yield_now();
        }
        drop(release);
        assert!(first.join().unwrap()[0].is_ok());
        assert!(damaged(&erased.join().unwrap().unwrap_err()));
        let refused = refused.join().unwrap().remove(0).unwrap_err();
        assert!(matches!(refused, WriteError::Store(error) if damaged(&error)));
        assert!(written.join().unwrap()[0].is_ok());
    });
    assert!(damaged(&block_on(store.newest(&bad)).unwrap_err()));
    assert!(block_on(store.newest(&good)).unwrap().is_some());
}

#[test]
fn a_listener_that_panics_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&folder.path().join("s"), Options::default()).unwrap();
    store.listen(Arc::new(Panics));
    for key in ["a", "b"] {
        let answers = block_on(store.write(vec![put(&entry("/", key), "x")]));
        assert!(answers[0].is_ok(), "{answers:?}");
        assert!(block_on(store.newest(&entry("/", key))).unwrap().is_some());
    }
}

struct Panics;

impl Listener for Panics {
    fn committed(&self, _: &[Event]) {
        panic!("a listener may");
    }
}

/// Holds the committer until the other end is dropped.
struct Held(Mutex<Receiver<()>>);

impl Listener for Held {
    fn committed(&self, _: &[Event]) {
        let _ = self.0.lock().unwrap().recv();
    }
}
