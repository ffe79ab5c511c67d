//! KV4 over the store in memory against a plain map: every read after every kind of write, with
//! budgets so small that nodes are too large, dropped and loaded again all the time.

use std::collections::BTreeMap;
use std::sync::Arc;

use kv4::address::Entry;
use kv4::memory::MemoryStore;
use kv4::store::StoreError;
use kv4::version::SecondaryKeys;
use kv4::view::Limits;
use kv4::write::{Condition, KeyChange, WriteError};
use kv4::{Head, Kv4};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use wire::names::Key;

use super::{bucket, key, node, now, try_cases, write};

const BUCKETS: usize = 2;
const NODES: usize = 2;
const KEYS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Put {
        entry: (usize, usize, usize),
        chars: usize,
        keys: [KeyChange; 3],
        locked: Option<bool>,
    },
    Delete(usize, usize, usize),
    Erase(usize, usize, usize),
    Drop(usize),
    Tick(u32),
    /// Ask everything about a node.
    Look(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..BUCKETS, 0..NODES, 0..KEYS);
    let change = || {
        prop_oneof![
            3 => Just(KeyChange::Keep),
            2 => (0..KEYS).prop_map(|nth| KeyChange::Set(key(nth))),
            1 => Just(KeyChange::Clear),
        ]
    };
    let keys = (change(), change(), change()).prop_map(|(k2, k3, k4)| [k2, k3, k4]);
    let locked = prop_oneof![3 => Just(None), 1 => any::<bool>().prop_map(Some)];
    prop_oneof![
        8 => (place(), 0usize..900, keys, locked).prop_map(|(entry, chars, keys, locked)| {
            Step::Put { entry, chars, keys, locked }
        }),
        2 => place().prop_map(|(of, nth, key)| Step::Delete(of, nth, key)),
        1 => place().prop_map(|(of, nth, key)| Step::Erase(of, nth, key)),
        1 => (0..BUCKETS).prop_map(Step::Drop),
        1 => (0u32..20).prop_map(Step::Tick),
        8 => (0..BUCKETS, 0..NODES).prop_map(|(of, nth)| Step::Look(of, nth)),
    ]
}

#[test]
fn reads_show_the_newest_of_what_was_written() {
    let limits = (2_000usize..20_000, 400usize..4_000);
    try_cases(&(limits, vec(step(), 1..80)), |((bytes_max, node_bytes_max), steps)| {
        let limits = Limits { bytes_max, node_bytes_max, idle_s: 10 };
        let kv = Kv4::new(Arc::new(MemoryStore::new()), limits);
        let mut model = Model::default();
        let mut now_s = 0;
        for step in steps {
            take(&kv, &mut model, &mut now_s, step)?;
            let stats = kv.view_stats();
            prop_assert!(stats.bytes <= bytes_max, "{:?} over {}", stats, bytes_max);
        }
        Ok(())
    });
}

/// The live heads, and the newest generation of every entry that was not erased.
#[derive(Default)]
struct Model {
    live: BTreeMap<Entry, Head>,
    generations: BTreeMap<Entry, u64>,
}

fn take(kv: &Kv4, model: &mut Model, now_s: &mut u32, step: Step) -> TestCaseResult {
    match step {
        Step::Put { entry: (of, nth, at), chars, keys, locked } => {
            put(kv, model, &node(of, nth).entry(key(at)), chars, keys, locked)?;
        }
        Step::Delete(of, nth, at) => {
            let entry = node(of, nth).entry(key(at));
            let answer = now(kv.write(write(&entry, None, Default::default())));
            match model.live.remove(&entry) {
                None => prop_assert_eq!(answer, Err(WriteError::Missing)),
                Some(_) => {
                    prop_assert!(answer.is_ok(), "{:?}", answer);
                    *model.generations.entry(entry).or_default() += 1;
                }
            }
        }
        Step::Erase(of, nth, at) => {
            let entry = node(of, nth).entry(key(at));
            model.live.remove(&entry);
            let was_there = model.generations.remove(&entry).is_some();
            prop_assert_eq!(now(kv.erase(&entry)), Ok(was_there));
        }
        Step::Drop(of) => {
            model.live.retain(|entry, _| entry.node.bucket != bucket(of));
            model.generations.retain(|entry, _| entry.node.bucket != bucket(of));
            prop_assert_eq!(now(kv.drop_bucket(&bucket(of))), Ok(()));
        }
        Step::Tick(by) => {
            *now_s += by;
            kv.tick(*now_s);
        }
        Step::Look(of, nth) => look(kv, model, of, nth)?,
    }
    Ok(())
}

fn put(
    kv: &Kv4,
    model: &mut Model,
    entry: &Entry,
    chars: usize,
    changes: [KeyChange; 3],
    locked: Option<bool>,
) -> TestCaseResult {
    let mut write = write(entry, Some(chars), changes.clone());
    let live = model.live.get(entry).cloned();
    // `true` names the version that is the newest, `false` one that never was.
    if let (Some(right), Some(head)) = (locked, &live) {
        let mut ver = head.ver;
        ver.generation += u64::from(!right);
        write.condition = Condition::At(ver);
    }
    let mut keys: SecondaryKeys = live.map(|head| head.keys).unwrap_or_default();
    for (key, change) in keys.iter_mut().zip(changes) {
        match change {
            KeyChange::Keep => {}
            KeyChange::Set(set) => *key = Some(set),
            KeyChange::Clear => *key = None,
        }
    }
    let others = model.live.iter().filter(|(other, _)| other.node == entry.node && *other != entry);
    let is_taken = others
        .flat_map(|(_, head)| head.keys.iter().zip(&keys))
        .any(|(theirs, ours)| ours.is_some() && theirs == ours);
    let conflicts = locked == Some(false) && model.live.contains_key(entry);
    match now(kv.write(write)) {
        Ok(written) => {
            prop_assert!(!conflicts && !is_taken, "{:?}", written);
            let generation = model.generations.entry(entry.clone()).or_default();
            *generation += 1;
            prop_assert_eq!(written.version.ver.generation, *generation);
            let head = Head::of(&entry.key, &written.version).unwrap();
            prop_assert_eq!(&head.keys, &keys);
            model.live.insert(entry.clone(), head.clone());
            // A neuron reads its own writes.
            let shown = now(kv.get(&entry.node, &entry.key)).unwrap();
            prop_assert_eq!(shown.as_deref(), Some(&head));
        }
        Err(WriteError::Conflict) => prop_assert!(conflicts),
        Err(WriteError::KeyTaken(_)) => prop_assert!(is_taken),
        Err(error) => prop_assert!(false, "{}", error),
    }
    Ok(())
}

fn look(kv: &Kv4, model: &Model, of: usize, nth: usize) -> TestCaseResult {
    let node = node(of, nth);
    let heads: Vec<&Head> =
        model.live.iter().filter(|(entry, _)| entry.node == node).map(|(_, head)| head).collect();
    let keys: Vec<Key> = heads.iter().map(|head| head.key.clone()).collect();
    prop_assert_eq!(now(kv.keys(&node)), Ok(keys));
    for at in 0..KEYS {
        let expected = heads.iter().find(|head| head.key == key(at)).copied();
        let shown = now(kv.get(&node, &key(at))).unwrap();
        prop_assert_eq!(shown.as_deref(), expected);
        for (index, nth) in (2u8..).enumerate().take(3) {
            let expected = heads.iter().find(|head| head.keys[index] == Some(key(at))).copied();
            let shown = now(kv.get_by(&node, nth, &key(at))).unwrap();
            prop_assert_eq!(shown.as_deref(), expected, "k{}", nth);
        }
    }
    match now(kv.heads(&node)) {
        Ok(shown) => {
            let shown: Vec<&Head> = shown.iter().map(|head| &**head).collect();
            prop_assert_eq!(shown, heads);
        }
        Err(StoreError::TooLarge) => prop_assert!(now(kv.table(&node)).unwrap().is_none()),
        Err(error) => prop_assert!(false, "{}", error),
    }
    Ok(())
}
