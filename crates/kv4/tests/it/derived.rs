//! Derived caches: what is compiled from a layer is never older than an acknowledged write.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use kv4::derived::Derived;
use kv4::memory::MemoryStore;
use kv4::view::Limits;
use kv4::{Head, Kv4};
use proptest::collection::vec;
use proptest::prelude::*;
use wire::names::{Layer, Path};

use super::{block_on, bucket, key, node, now, try_cases, write};

/// The generations of all rows, by path and key.
type Compiled = BTreeMap<(String, String), u64>;

fn compile(rows: &[(Path, Arc<Head>)]) -> Compiled {
    let name = |path: &Path, head: &Head| (path.to_string(), head.key.to_string());
    rows.iter().map(|(path, head)| (name(path, head), head.ver.generation)).collect()
}

fn cache(kv: &Kv4) -> Arc<Derived<Compiled>> {
    Derived::new(kv, Layer::parse("*data").unwrap(), compile)
}

fn kv() -> Arc<Kv4> {
    let limits = Limits { bytes_max: 8_000, node_bytes_max: 4_000, idle_s: 5 };
    Kv4::new(Arc::new(MemoryStore::new()), limits)
}

#[test]
fn what_is_compiled_is_what_is_there() {
    // (bucket, node, key, what: put, delete, erase, drop the bucket)
    let steps = vec((0usize..2, 0usize..3, 0usize..3, 0usize..9), 1..60);
    try_cases(&steps, |steps| {
        let kv = kv();
        let cache = cache(&kv);
        let mut model: BTreeMap<(usize, usize, usize), Option<u64>> = BTreeMap::new();
        let mut generations: BTreeMap<(usize, usize, usize), u64> = BTreeMap::new();
        for (of, nth, at, what) in steps {
            let (place, entry) = ((of, nth, at), node(of, nth).entry(key(at)));
            match what {
                0..=4 => {
                    now(kv.write(write(&entry, Some(20), Default::default()))).unwrap();
                    *generations.entry(place).or_default() += 1;
                    model.insert(place, Some(generations[&place]));
                }
                5..=6 => {
                    if now(kv.write(write(&entry, None, Default::default()))).is_ok() {
                        *generations.entry(place).or_default() += 1;
                    }
                    model.remove(&place);
                }
                7 => {
                    now(kv.erase(&entry)).unwrap();
                    generations.remove(&place);
                    model.remove(&place);
                }
                _ => {
                    now(kv.drop_bucket(&bucket(of))).unwrap();
                    generations.retain(|place, _| place.0 != of);
                    model.retain(|place, _| place.0 != of);
                }
            }
            for of in 0..2 {
                let expected: Compiled = model
                    .iter()
                    .filter(|(place, _)| place.0 == of)
                    .map(|((_, nth, at), generation)| {
                        let names = (format!("/path/{nth}"), format!("key{at}"));
                        (names, generation.expect("live"))
                    })
                    .collect();
                prop_assert_eq!(&*now(cache.of(&kv, &bucket(of))).unwrap(), &expected);
            }
        }
        Ok(())
    });
}

thread_local! {
    /// What is done between the reading of rows and the use of what was compiled from them.
    static MEANWHILE: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

fn compile_meanwhile(rows: &[(Path, Arc<Head>)]) -> Compiled {
    let meanwhile = MEANWHILE.with_borrow_mut(Option::take);
    if let Some(mut act) = meanwhile {
        act();
        MEANWHILE.set(Some(act));
    }
    compile(rows)
}

/// A cache of a store into which `account<of>` writes whenever a form is compiled; with how often
/// that was.
fn disturbed(of: usize) -> (Arc<Kv4>, Arc<Derived<Compiled>>, Arc<AtomicU64>) {
    let kv = kv();
    let cache = Derived::new(&kv, Layer::parse("*data").unwrap(), compile_meanwhile);
    let compilations = Arc::new(AtomicU64::new(0));
    let (writing, counted) = (kv.clone(), compilations.clone());
    MEANWHILE.set(Some(Box::new(move || {
        assert!(counted.fetch_add(1, SeqCst) < 10, "compiled again and again");
        now(writing.write(write(&node(of, 0).entry(key(0)), Some(10), Default::default())))
            .unwrap();
    })));
    (kv, cache, compilations)
}

/// A reader that began again whenever somebody wrote would never end under steady writes.
#[test]
fn others_writes_do_not_keep_a_reader_waiting() {
    let (kv, cache, compilations) = disturbed(1);
    now(kv.write(write(&node(0, 0).entry(key(0)), Some(10), Default::default()))).unwrap();
    assert_eq!(now(cache.of(&kv, &bucket(0))).unwrap().len(), 1);
    assert_eq!(compilations.load(SeqCst), 1);
}

/// One account that writes steadily does not keep the others' forms from being kept: but for those
/// that share its place, of which there are few.
#[test]
fn others_writes_do_not_keep_a_form_from_being_kept() {
    let (kv, cache, compilations) = disturbed(1);
    let others = [0, 2, 3, 4];
    for _ in 0..2 {
        for of in others {
            now(cache.of(&kv, &bucket(of))).unwrap();
        }
    }
    let compiled = compilations.load(SeqCst);
    assert!(compiled < 2 * others.len() as u64, "{compiled}");
}

#[test]
fn what_was_read_before_a_write_is_not_kept_after_it() {
    let (kv, cache, _) = disturbed(0);
    let shown = || now(cache.of(&kv, &bucket(0))).unwrap().values().next().copied();
    assert_eq!(shown(), None, "the write came after the rows were read");
    assert_eq!(shown(), Some(1));
    assert_eq!(shown(), Some(2));
    MEANWHILE.set(None);
    assert_eq!(shown(), Some(3));
}

/// Readers of a cache beside a writer: a form that is asked for after an acknowledgement has it.
#[test]
fn an_acknowledged_write_is_compiled_by_whoever_asks_then() {
    const WRITES: u64 = 2_000;
    let kv = kv();
    let cache = cache(&kv);
    let (acknowledged, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let entry = node(0, 0).entry(key(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(SeqCst) {
                    let before = acknowledged.load(SeqCst);
                    let compiled = block_on(cache.of(&kv, &bucket(0))).unwrap();
                    let shown = compiled.values().next().copied().unwrap_or(0);
                    assert!(shown >= before, "stale: {shown} after {before}");
                }
            });
        }
        for nth in 1..=WRITES {
            let written = now(kv.write(write(&entry, Some(10), Default::default()))).unwrap();
            assert_eq!(written.version.ver.generation, nth);
            acknowledged.store(nth, SeqCst);
        }
        is_over.store(true, SeqCst);
    });
}
