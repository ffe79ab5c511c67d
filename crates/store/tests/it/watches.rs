//! Watches over the real engine, whose commits are readable a moment before they are told: those who
//! begin while nodes are loaded and dropped see every version once.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use kv4::store::StoreError;
use kv4::view::Limits;
use kv4::watch::{Ended, Full, Sink, Told, Watch, WatchError};
use kv4::write::{Op, Write};
use kv4::{Bucket, Kv4};
use store::EmbeddedStore;
use store::contract::block_on;
use store::embedded::Options;
use wire::names::Key;

use super::{entry, put};

const KEYS: u64 = 4;
const BEGUN_MIN: u64 = 150;

/// Notes the key, its generation, and whether it is live.
#[derive(Default)]
struct Ear(Mutex<Vec<(Key, u64, bool)>>);

impl Sink for Ear {
    fn told(&self, change: &Arc<Told>) -> Result<(), Full> {
        let generation = change.ver().unwrap().generation;
        let heard = (change.entry().key.clone(), generation, change.head().is_some());
        self.0.lock().unwrap().push(heard);
        Ok(())
    }

    fn ended(&self, _: Ended) {}
}

#[test]
fn no_version_is_missed_or_told_twice() {
    let folder = tempfile::TempDir::new().unwrap();
    let store = EmbeddedStore::open(&folder.path().join("store"), Options::default()).unwrap();
    let kv = Kv4::new(Arc::new(store), Limits { idle_s: 0, ..Limits::default() });
    let (is_over, begun, told) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        // Batches in which a key is put and deleted more than once.
        for writer in 0..2 {
            let (kv, is_over) = (&kv, &is_over);
            scope.spawn(move || {
                for turn in 0u64.. {
                    if is_over.load(SeqCst) {
                        return;
                    }
                    let writes = (0..1 + turn % 5).map(|nth| {
                        let number = turn * 7 + nth * 3 + writer;
                        let write = put(&entry("/p", &format!("key{}", number % KEYS)), "x");
                        if number.is_multiple_of(3) {
                            Write { op: Op::Delete, ..write }
                        } else {
                            write
                        }
                    });
                    block_on(kv.write_all(writes.collect()));
                }
            });
        }
        scope.spawn(|| {
            while !is_over.load(SeqCst) {
                while kv.watches().drain() {}
                // Nodes go as soon as they are there.
                kv.tick(1);
                thread::yield_now();
            }
        });
        let watchers: Vec<_> = (0..2u64)
            .map(|nth| {
                let (kv, begun, told) = (&kv, &begun, &told);
                scope.spawn(move || {
                    for turn in nth.. {
                        if begun.fetch_add(1, SeqCst) > BEGUN_MIN {
                            return;
                        }
                        told.fetch_add(watch_for_a_while(kv, turn), SeqCst);
                    }
                })
            })
            .collect();
        for watcher in watchers {
            watcher.join().unwrap();
        }
        is_over.store(true, SeqCst);
    });
    while kv.watches().drain() {}
    assert!(kv.watches().is_empty());
    assert!(told.load(SeqCst) > BEGUN_MIN, "hardly anything changed: {told:?}");
}

/// Watches and looks at what it was told; answers how much that was.
fn watch_for_a_while(kv: &Kv4, turn: u64) -> u64 {
    let at = entry("/p", &format!("key{}", turn % KEYS));
    let watch = Watch {
        node: at.node,
        key: turn.is_multiple_of(3).then_some(at.key),
        payer: Bucket::sys(),
        who: Arc::from("elena"),
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let ear = Arc::new(Ear::default());
    let sink: Arc<dyn Sink> = ear.clone();
    let (start, guard) = match block_on(kv.watch(&watch, &sink)) {
        Ok(begun) => begun,
        Err(WatchError::Store(StoreError::TooLarge)) => return 0,
        Err(error) => panic!("{error}"),
    };
    while (ear.0.lock().unwrap().len() as u64) < turn % 4 {
        thread::yield_now();
    }
    drop(guard);
    let mut newest: HashMap<Key, u64> =
        start.entries().map(|head| (head.key.clone(), head.ver.generation)).collect();
    let heard = ear.0.lock().unwrap();
    for (key, generation, is_live) in heard.iter() {
        match newest.insert(key.clone(), *generation) {
            Some(before) => assert_eq!(*generation, before + 1, "{key}"),
            None => assert!(is_live, "{key} was not there"),
        }
    }
    heard.len() as u64
}
