//! Who gives up views when they are too many: the bucket that holds most, never one below its share.

use std::sync::Arc;

use kv4::Kv4;
use kv4::memory::MemoryStore;
use kv4::view::Limits;
use proptest::collection::vec;
use proptest::prelude::*;

use super::{key, node, now, try_cases, write};

const BUDGET: usize = 40_000;
/// The quiet account's nodes, which stay far below a third of nine tenths of the budget.
const QUIET_NODES: usize = 3;
const QUIET_CHARS: usize = 1_000;
/// Accounts who read and write as much as they like.
const LOUD: usize = 2;

fn kv() -> Arc<Kv4> {
    let limits = Limits { bytes_max: BUDGET, node_bytes_max: BUDGET / 4, idle_s: 600 };
    Kv4::new(Arc::new(MemoryStore::new()), limits)
}

fn put(kv: &Kv4, of: usize, nth: usize, chars: usize) {
    let entry = node(of, nth).entry(key(0));
    now(kv.write(write(&entry, Some(chars), Default::default()))).unwrap();
}

#[test]
fn a_flood_does_not_evict_an_account_below_its_share() {
    // (whose, which node, how large, whether it is read)
    let flood = vec((1..=LOUD, 0usize..40, 0usize..6_000, any::<bool>()), 1..120);
    try_cases(&flood, |flood| {
        let kv = kv();
        for nth in 0..QUIET_NODES {
            put(&kv, 0, nth, QUIET_CHARS);
            now(kv.table(&node(0, nth))).unwrap();
        }
        for (of, nth, chars, reads) in flood {
            put(&kv, of, nth, chars);
            if reads {
                now(kv.table(&node(of, nth))).unwrap();
            }
            // The time goes on for the loud ones only: the quiet account is always the least used.
            let misses = kv.view_stats().misses;
            let quiet = nth % QUIET_NODES;
            now(kv.table(&node(0, quiet))).unwrap();
            prop_assert_eq!(kv.view_stats().misses, misses, "the quiet account was evicted");
            prop_assert!(kv.view_stats().bytes <= BUDGET);
        }
        Ok(())
    });
}

#[test]
fn the_least_read_node_of_the_fullest_account_goes_first() {
    let kv = kv();
    for nth in 0..4 {
        put(&kv, 0, nth, 7_500);
    }
    for (now_s, nth) in (1..).zip([2, 0, 1]) {
        kv.tick(now_s);
        now(kv.table(&node(0, nth))).unwrap();
    }
    kv.tick(9);
    // With a fourth of 8.5 KB each, all but one are within nine tenths of the budget.
    put(&kv, 1, 0, 8_500);
    now(kv.table(&node(1, 0))).unwrap();
    now(kv.table(&node(0, 3))).unwrap();
    let is_held = |of: usize, nth: usize| {
        let misses = kv.view_stats().misses;
        now(kv.table(&node(of, nth))).unwrap();
        kv.view_stats().misses == misses
    };
    assert!(is_held(1, 0), "another account");
    assert!(is_held(0, 3) && is_held(0, 1) && is_held(0, 0), "read later");
    assert!(!is_held(0, 2), "read the longest time ago");
}

#[test]
fn a_node_at_the_limit_is_held_and_one_byte_more_is_not() {
    let (kv, node) = (kv(), node(0, 0));
    let overhead = {
        now(kv.table(&node)).unwrap();
        let empty = kv.view_stats().bytes;
        put(&kv, 0, 0, 0);
        kv.view_stats().bytes - empty
    };
    put(&kv, 0, 0, BUDGET / 4 - overhead);
    assert!(now(kv.table(&node)).unwrap().is_some(), "at the limit");
    put(&kv, 0, 0, BUDGET / 4 - overhead + 1);
    assert!(now(kv.table(&node)).unwrap().is_none(), "over the limit");
}

/// A node that was too large is listed again once it has shrunk and some time has passed, however
/// often it is read meanwhile.
#[test]
fn a_node_that_has_shrunk_is_held_again() {
    let (kv, node) = (kv(), node(0, 0));
    put(&kv, 0, 0, BUDGET);
    assert!(now(kv.table(&node)).unwrap().is_none());
    put(&kv, 0, 0, 10);
    for now_s in (0..600).step_by(60) {
        kv.tick(now_s);
        now(kv.keys(&node)).unwrap();
    }
    kv.tick(600);
    assert!(now(kv.table(&node)).unwrap().is_some());
}

/// A clock that is set back does not keep views for as long as it was ahead.
#[test]
fn a_view_ages_when_the_clock_was_set_back() {
    let (kv, node) = (kv(), node(0, 0));
    kv.tick(100_000);
    put(&kv, 0, 0, 10);
    now(kv.table(&node)).unwrap();
    kv.tick(1_000);
    assert_eq!(kv.view_stats().nodes, 1, "set back is not idle");
    kv.tick(1_600);
    assert_eq!(kv.view_stats().nodes, 0);
}
