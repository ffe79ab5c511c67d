//! `reached`: whoever waits for a version is woken when it comes, whatever the node's view is then.

use std::sync::Arc;

use kv4::Kv4;
use kv4::memory::MemoryStore;
use kv4::version::{Stamp, Ver};
use kv4::view::Limits;

use super::{Held, bucket, key, node, now, write};

fn kv() -> Arc<Kv4> {
    let limits = Limits { bytes_max: 8_000, node_bytes_max: 2_000, idle_s: 10 };
    Kv4::new(Arc::new(MemoryStore::new()), limits)
}

/// A version that is yet to come.
fn ver(generation: u64) -> Ver {
    Ver { generation, stamp: Stamp { micros: 1, neuron: 1 } }
}

fn put(kv: &Kv4, nth: usize, chars: usize) {
    now(kv.write(write(&node(0, nth).entry(key(0)), Some(chars), Default::default()))).unwrap();
}

#[test]
fn a_version_that_is_there_is_not_waited_for() {
    let kv = kv();
    put(&kv, 0, 10);
    put(&kv, 0, 10);
    for generation in [1, 2] {
        assert!(Held::new(kv.reached(&node(0, 0), &key(0), ver(generation))).poll().is_some());
    }
}

#[test]
fn a_commit_wakes_who_waits_for_it() {
    let (kv, node, key) = (kv(), node(0, 0), key(0));
    let mut waits = Held::new(kv.reached(&node, &key, ver(3)));
    for _ in 1..3 {
        assert!(waits.poll().is_none());
        put(&kv, 0, 10);
        assert!(waits.is_woken());
    }
    assert!(waits.poll().is_none(), "two of three");
    put(&kv, 0, 10);
    assert!(waits.is_woken());
    assert!(waits.poll().is_some());
}

#[test]
fn a_deletion_is_a_version_too() {
    let (kv, node, key) = (kv(), node(0, 0), key(0));
    put(&kv, 0, 10);
    let mut waits = Held::new(kv.reached(&node, &key, ver(2)));
    assert!(waits.poll().is_none());
    now(kv.write(write(&node.entry(key.clone()), None, Default::default()))).unwrap();
    assert!(waits.is_woken());
    assert!(waits.poll().is_some());
}

/// The view of a node that is too large holds nothing, and still tells that something came.
#[test]
fn a_commit_to_a_node_too_large_to_be_held_wakes_who_waits() {
    let (kv, node, key) = (kv(), node(0, 0), key(0));
    put(&kv, 0, 5_000);
    let mut waits = Held::new(kv.reached(&node, &key, ver(2)));
    assert!(waits.poll().is_none());
    put(&kv, 0, 5_000);
    assert!(waits.is_woken(), "nobody told it");
    assert!(waits.poll().is_some());
}

#[test]
fn a_node_that_becomes_too_large_while_somebody_waits() {
    let (kv, node, key) = (kv(), node(0, 0), key(0));
    put(&kv, 0, 10);
    let mut waits = Held::new(kv.reached(&node, &key, ver(3)));
    assert!(waits.poll().is_none());
    put(&kv, 0, 5_000);
    assert!(waits.is_woken());
    assert!(waits.poll().is_none());
    put(&kv, 0, 5_000);
    assert!(waits.is_woken());
    assert!(waits.poll().is_some());
}

#[test]
fn a_view_that_goes_away_wakes_who_waits_and_is_loaded_again() {
    let (kv, node, key) = (kv(), node(0, 0), key(0));
    put(&kv, 0, 10);
    let mut waits = Held::new(kv.reached(&node, &key, ver(2)));
    assert!(waits.poll().is_none());
    kv.tick(1_000);
    assert!(waits.is_woken(), "aged");
    assert!(waits.poll().is_none());
    now(kv.drop_bucket(&bucket(0))).unwrap();
    assert!(waits.is_woken(), "dropped");
    assert!(waits.poll().is_none());
    put(&kv, 0, 10);
    put(&kv, 0, 10);
    assert!(waits.is_woken());
    assert!(waits.poll().is_some());
}
