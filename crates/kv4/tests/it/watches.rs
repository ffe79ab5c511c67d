//! Watches: each sees one moment and every later version once, whatever commits, loads and ends come
//! in between; and nothing is left of them.
//!
//! The store here is [`Staged`]: what it has taken is readable before it is told, as with an engine
//! that commits, tells and then answers, and every step of it waits until the test lets it go on.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread;

use kv4::address::{Bucket, Entry, Node};
use kv4::memory::MemoryStore;
use kv4::store::{
    BoxFuture, Change, Event, Listener, Retention, Seq, SeriesQuery, Stat, StatCell, StatQuery,
    Store, StoreError,
};
use kv4::view;
use kv4::watch::{Ended, Full, Guard, Limits, Sink, Start, Told, Watch, WatchError};
use kv4::write::{Write, WriteError, Written};
use kv4::{Head, Kv4, Ver, Version};
use proptest::prelude::*;
use wire::names::{Key, Layer, Path};
use wire::timegroup::TimeGroup;

use super::{Held, block_on, bucket, key, node, now, try_cases, write};

const BUCKETS: usize = 2;
const NODES: usize = 2;
const KEYS: usize = 3;

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    /// Writes of one batch: which entry, and how long its value is, or that it is deleted.
    Commit(Vec<(usize, Option<usize>)>),
    Erase(usize),
    Drop(usize),
    /// The batch that was committed is told.
    Tell,
    /// Begins to watch a node (number below [`BUCKETS`] × [`NODES`]), all or one key, with room for
    /// so many changes.
    Watch(usize, Option<usize>, usize),
    /// Lets one that begins go on.
    GoOn(usize),
    /// Ends the nth.
    End(usize),
    Deny(usize),
    Drain,
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    let entry = 0..BUCKETS * NODES * KEYS;
    let chars = prop_oneof![3 => (0usize..300).prop_map(Some), 2 => Just(None)];
    prop_oneof![
        8 => prop::collection::vec((entry.clone(), chars), 1..5).prop_map(Step::Commit),
        1 => entry.prop_map(Step::Erase),
        1 => (0..BUCKETS).prop_map(Step::Drop),
        8 => Just(Step::Tell),
        4 => (0..BUCKETS * NODES, prop::option::of(0..KEYS), prop_oneof![9 => Just(1_000), 1 => 0usize..4])
            .prop_map(|(node, key, room)| Step::Watch(node, key, room)),
        12 => (0usize..8).prop_map(Step::GoOn),
        1 => (0usize..20).prop_map(Step::End),
        1 => (0usize..20).prop_map(Step::Deny),
        3 => Just(Step::Drain),
        1 => Just(Step::Tick),
    ]
}

fn nth_node(nth: usize) -> Node {
    node(nth / NODES, nth % NODES)
}

fn nth_entry(nth: usize) -> Entry {
    nth_node(nth / KEYS).entry(key(nth % KEYS))
}

#[test]
fn a_watch_sees_one_moment_and_every_later_version_once() {
    try_cases(&prop::collection::vec(step(), 1..120), |steps| {
        let store = Arc::new(Staged::default());
        // Two long values are too much for a node, and three nodes for all.
        let limits = view::Limits { bytes_max: 5_000, node_bytes_max: 1_600, idle_s: 2 };
        let kv = Kv4::with_watches(store.clone(), limits, Limits::default());
        play(&steps, &store, &kv)
    });
}

/// A watch of the test's: what it was told, and of what moments it may speak.
struct Seen {
    watch: Watch,
    ear: Arc<Ear>,
    /// Events that had been told when it was asked for.
    asked_at: usize,
    start: Option<Vec<(Key, Ver)>>,
    /// Events that were committed when it had its start.
    begun_at: usize,
    guard: Option<Guard>,
    /// Its own owner has ended it.
    is_left: bool,
}

type Begun = Result<(Start, Guard), WatchError>;

fn play(steps: &[Step], store: &Arc<Staged>, kv: &Arc<Kv4>) -> Result<(), TestCaseError> {
    let mut starting: VecDeque<(usize, Held<'_, Begun>)> = VecDeque::new();
    let mut all: Vec<Seen> = Vec::new();
    let mut seconds = 0;
    let sinks: Mutex<Vec<Arc<dyn Sink>>> = Mutex::default();
    let closing = [Step::Tell, Step::Drain].into_iter().cycle().take(40);
    for step in steps.iter().cloned().chain(closing) {
        match step {
            Step::Commit(writes) => store.commit(|inner| {
                let writes = writes
                    .iter()
                    .map(|(entry, chars)| write(&nth_entry(*entry), *chars, Default::default()));
                let _ = now(inner.write(writes.collect()));
            }),
            Step::Erase(entry) => store.commit(|inner| {
                let _ = now(inner.erase(&nth_entry(entry)));
            }),
            Step::Drop(nth) => store.commit(|inner| {
                let _ = now(inner.drop_bucket(&bucket(nth)));
            }),
            Step::Tell => store.tell(),
            Step::Watch(of, one, room) => {
                let ear = Arc::new(Ear { room, ..Ear::default() });
                let node = nth_node(of);
                let watch = Watch { payer: node.bucket.clone(), key: one.map(key), ..watch(node) };
                let sink: Arc<dyn Sink> = ear.clone();
                sinks.lock().unwrap().push(sink.clone());
                let (of_watch, at) = (watch.clone(), all.len());
                starting
                    .push_back((at, Held::new(async move { kv.watch(&of_watch, &sink).await })));
                let asked_at = store.log.0.lock().unwrap().told;
                let (start, guard) = (None, None);
                all.push(Seen { watch, ear, asked_at, start, begun_at: 0, guard, is_left: false });
            }
            Step::GoOn(nth) if !starting.is_empty() => {
                let nth = nth % starting.len();
                let (at, held) = &mut starting[nth];
                if let Some(done) = held.poll() {
                    settle(&mut all[*at], done, store)?;
                    starting.remove(nth);
                }
            }
            Step::End(nth) if !all.is_empty() => {
                let nth = nth % all.len();
                if all[nth].guard.take().is_some() {
                    all[nth].is_left = true;
                }
            }
            Step::Deny(nth) if !all.is_empty() => {
                let bucket = all[nth % all.len()].watch.node.bucket.clone();
                let is_of = |watch: &Watch| watch.node.bucket == bucket && watch.key.is_some();
                kv.watches().end_where(Ended::Denied, &is_of);
            }
            Step::Drain => drop(kv.watches().drain()),
            Step::Tick => {
                seconds += 1;
                kv.tick(seconds);
            }
            Step::GoOn(_) | Step::End(_) | Step::Deny(_) => {}
        }
    }
    // Whoever begins still, does to the end.
    let mut turns = 0;
    while let Some((at, mut held)) = starting.pop_front() {
        store.tell();
        match held.poll() {
            Some(done) => settle(&mut all[at], done, store)?,
            None => starting.push_back((at, held)),
        }
        turns += 1;
        prop_assert!(turns < 1_000, "a watch never begins");
    }
    while kv.watches().drain() {}
    let log = store.log.0.lock().unwrap();
    for seen in &all {
        check(seen, &log.events)?;
    }
    drop(log);
    drop(all);
    while kv.watches().drain() {}
    prop_assert!(kv.watches().is_empty(), "{:?}", kv.watches());
    for sink in sinks.lock().unwrap().iter() {
        prop_assert_eq!(Arc::strong_count(sink), 1, "a sink is kept");
    }
    Ok(())
}

fn settle(seen: &mut Seen, done: Begun, store: &Staged) -> Result<(), TestCaseError> {
    match done {
        Ok((start, guard)) => {
            let entries = start.entries().map(|head| (head.key.clone(), head.ver)).collect();
            seen.start = Some(entries);
            seen.begun_at = store.log.0.lock().unwrap().events.len();
            seen.guard = Some(guard);
        }
        Err(WatchError::Store(StoreError::TooLarge)) => prop_assert!(seen.watch.key.is_none()),
        Err(WatchError::Ended(_)) => {}
        Err(error) => prop_assert!(false, "{error}"),
    }
    Ok(())
}

/// Looks for a moment of which the start, and after which all that was told, are true.
fn check(seen: &Seen, events: &[Event]) -> Result<(), TestCaseError> {
    let Some(start) = &seen.start else { return Ok(()) };
    let heard = seen.ear.heard.lock().unwrap();
    let is_watched = |entry: &Entry| {
        entry.node == seen.watch.node && seen.watch.key.as_ref().is_none_or(|key| *key == entry.key)
    };
    let is_true_of = |moment: usize| {
        let mut state: BTreeMap<Key, Ver> = BTreeMap::new();
        for event in &events[..moment] {
            match event {
                Event::Changed(change) if is_watched(&change.entry) => {
                    let version = change.version.as_ref().unwrap();
                    match version.value {
                        Some(_) => state.insert(change.entry.key.clone(), version.ver),
                        None => state.remove(&change.entry.key),
                    };
                }
                Event::Erased(entry) if is_watched(entry) => drop(state.remove(&entry.key)),
                Event::Dropped(bucket) if *bucket == seen.watch.node.bucket => state.clear(),
                _ => {}
            }
        }
        if state.into_iter().collect::<Vec<_>>() != *start {
            return false;
        }
        let mut expected = Vec::new();
        let mut is_gone = false;
        for event in &events[moment..] {
            match event {
                Event::Changed(change) if is_watched(&change.entry) => {
                    let version = change.version.as_ref().unwrap();
                    let is_live = version.value.is_some();
                    expected.push((change.entry.key.clone(), Some(version.ver), is_live));
                }
                Event::Erased(entry) if is_watched(entry) => {
                    expected.push((entry.key.clone(), None, false));
                }
                Event::Dropped(bucket) if *bucket == seen.watch.node.bucket => {
                    is_gone = true;
                    break;
                }
                _ => {}
            }
        }
        match heard.ended[..] {
            // A part, if it was cut off.
            [Ended::Slow | Ended::Denied] => expected.starts_with(&heard.changes),
            [Ended::Gone] => is_gone && expected == heard.changes,
            [] if seen.is_left => expected.starts_with(&heard.changes),
            [] => !is_gone && expected == heard.changes,
            _ => false,
        }
    };
    let found = (seen.asked_at..=seen.begun_at).any(is_true_of);
    prop_assert!(
        found,
        "{:?} from {start:?} at {}..={}: {heard:?}\n{events:#?}",
        seen.watch,
        seen.asked_at,
        seen.begun_at
    );
    Ok(())
}

fn watch(node: Node) -> Watch {
    let payer = node.bucket.top();
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    Watch { node, key: None, payer, who: Arc::from("elena"), address }
}

/// Notes what it is told.
#[derive(Default)]
struct Ear {
    room: usize,
    heard: Mutex<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    /// The key, its version, and whether it is live.
    changes: Vec<(Key, Option<Ver>, bool)>,
    ended: Vec<Ended>,
}

impl Sink for Ear {
    fn told(&self, change: &Arc<Told>) -> Result<(), Full> {
        let mut heard = self.heard.lock().unwrap();
        assert!(heard.ended.is_empty(), "told after the end");
        if heard.changes.len() >= self.room {
            return Err(Full);
        }
        heard.changes.push((change.entry().key.clone(), change.ver(), change.head().is_some()));
        Ok(())
    }

    fn ended(&self, why: Ended) {
        self.heard.lock().unwrap().ended.push(why);
    }
}

#[test]
fn changes_and_starts_are_told_in_one_line_each() {
    let kv = Kv4::new(Arc::new(MemoryStore::new()), view::Limits::default());
    let of = node(0, 0);
    let put = |nth: usize, value: &str| {
        let mut write = write(&of.entry(key(nth)), Some(0), Default::default());
        let value = wire::json::Json::parse(value).unwrap();
        write.op = kv4::write::Op::Put { value, keys: Default::default() };
        now(kv.write(write)).unwrap().version.ver
    };
    let first = put(0, "{\n \"a\": \"\\n\"\r\n}");
    let lines = Arc::new(Lines::default());
    let sink: Arc<dyn Sink> = lines.clone();
    let (start, guard) = now(kv.watch(&watch(of.clone()), &sink)).unwrap();
    let value = "{  \"a\": \"\\n\"  }";
    let expected =
        format!("{{\"entries\":[{{\"k\":\"key0\",\"v\":{value},\"_ver_\":\"{first}\"}}]}}");
    assert_eq!(start.json(), expected);
    let second = put(1, "1");
    let deleted = now(kv.write(write(&of.entry(key(1)), None, Default::default()))).unwrap();
    now(kv.erase(&of.entry(key(0)))).unwrap();
    while kv.watches().drain() {}
    let expected = [
        format!("{{\"k\":\"key1\",\"v\":1,\"_ver_\":\"{second}\"}}"),
        format!("{{\"k\":\"key1\",\"_ver_\":\"{}\",\"deleted\":true}}", deleted.version.ver),
        "{\"k\":\"key0\",\"deleted\":true}".to_owned(),
    ];
    assert_eq!(*lines.0.lock().unwrap(), expected);
    let one = Watch { key: Some(key(0)), ..watch(of) };
    let (start, _guard) = now(kv.watch(&one, &sink)).unwrap();
    assert_eq!(start.json(), "{\"entries\":[]}");
    drop(guard);
}

#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl Sink for Lines {
    fn told(&self, change: &Arc<Told>) -> Result<(), Full> {
        let json = String::from_utf8(change.json().to_vec()).unwrap();
        let event = String::from_utf8(change.event().to_vec()).unwrap();
        assert_eq!(event, format!("event: change\ndata: {json}\n\n"));
        self.0.lock().unwrap().push(json);
        Ok(())
    }

    fn ended(&self, _: Ended) {}
}

#[test]
fn an_account_has_so_many_watches_and_no_more() {
    let limits = Limits { per_account: 2, ..Limits::default() };
    let kv = Kv4::with_watches(Arc::new(MemoryStore::new()), view::Limits::default(), limits);
    let sink: Arc<dyn Sink> = Arc::new(Ear::default());
    let begin = |of: usize| now(kv.watch(&watch(node(of, 0)), &sink));
    let first = begin(0).unwrap();
    let _second = begin(0).unwrap();
    assert_eq!(begin(0).err(), Some(WatchError::TooMany(2)));
    let _other = begin(1).unwrap();
    assert_eq!(kv.watches().stats().refused, 1);
    drop(first);
    let _third = begin(0).unwrap();
    kv.watches().close();
    assert_eq!(begin(1).err(), Some(WatchError::Ended(Ended::Stopping)));
    assert!(kv.watches().is_empty());
}

/// A node that its views cannot keep is read from the store, and what changes meanwhile is kept: of so
/// many keys and no more.
#[test]
fn a_watch_that_is_overrun_before_its_start_is_not_begun() {
    const KEYS_MAX: usize = 10_000;
    for (keys, is_begun) in [(KEYS_MAX, true), (KEYS_MAX + 1, false)] {
        let store = Arc::new(Staged::default());
        let limits = view::Limits { idle_s: 0, ..view::Limits::default() };
        let kv = Kv4::new(store.clone(), limits);
        let sink: Arc<dyn Sink> = Arc::new(Ear { room: usize::MAX, ..Ear::default() });
        let of = watch(node(0, 0));
        let mut begins = Held::new(kv.watch(&of, &sink));
        for second in 0.. {
            assert!(begins.poll().is_none(), "the views never keep it");
            kv.tick(second);
            if kv.watches().stats().watches == 1 {
                break;
            }
        }
        let erasures = (0..keys).map(|nth| Event::Erased(of.node.entry(key(nth))));
        store.listener.lock().unwrap().as_ref().unwrap().committed(&erasures.collect::<Vec<_>>());
        let done = loop {
            if let Some(done) = begins.poll() {
                break done;
            }
        };
        match done {
            Ok((start, _guard)) => assert!(is_begun && start.is_empty()),
            Err(error) => assert!(!is_begun && error == WatchError::Ended(Ended::Slow)),
        }
        while kv.watches().drain() {}
        assert!(kv.watches().is_empty());
    }
}

/// Who floods is cut off, and not who is told little.
#[test]
fn what_waits_is_bounded_and_the_fullest_go() {
    // A change is 256 bytes, its key 4 and its value with quotes.
    let bytes = |chars: usize| 256 + 4 + chars + 2;
    let limits = Limits { queued_bytes: bytes(0) + 3 * bytes(10), ..Limits::default() };
    let kv = Kv4::with_watches(Arc::new(MemoryStore::new()), view::Limits::default(), limits);
    let ears = [(); 2].map(|()| Arc::new(Ear { room: 100, ..Ear::default() }));
    let guards: Vec<_> = ears
        .iter()
        .enumerate()
        .map(|(of, ear)| {
            let sink: Arc<dyn Sink> = ear.clone();
            now(kv.watch(&watch(node(of, 0)), &sink)).unwrap().1
        })
        .collect();
    let put = |of: usize, chars| {
        now(kv.write(write(&node(of, 0).entry(key(0)), Some(chars), Default::default()))).unwrap();
    };
    put(0, 0);
    for _ in 0..3 {
        put(1, 10);
    }
    assert_eq!(kv.watches().stats().queued_bytes, limits.queued_bytes);
    assert_eq!(kv.watches().stats().overflowed, 0, "at the limit");
    put(0, 0);
    assert_eq!(kv.watches().stats().overflowed, 1, "past it");
    while kv.watches().drain() {}
    assert_eq!(ears[0].heard.lock().unwrap().changes.len(), 2);
    assert_eq!(ears[1].heard.lock().unwrap().ended, [Ended::Slow]);
    assert!(ears[1].heard.lock().unwrap().changes.is_empty());
    drop(guards);
    assert!(kv.watches().is_empty());
}

#[test]
fn who_drains_is_woken_by_a_commit() {
    let kv = Kv4::new(Arc::new(MemoryStore::new()), view::Limits::default());
    let mut waiting = Held::new(kv.watches().waiting());
    let sink: Arc<dyn Sink> = Arc::new(Ear { room: 1, ..Ear::default() });
    let _guard = now(kv.watch(&watch(node(0, 0)), &sink)).unwrap();
    assert_eq!(waiting.poll(), None);
    now(kv.write(write(&node(1, 0).entry(key(0)), Some(1), Default::default()))).unwrap();
    assert!(!waiting.is_woken(), "nobody watches that");
    now(kv.write(write(&node(0, 0).entry(key(0)), Some(1), Default::default()))).unwrap();
    assert!(waiting.is_woken());
    assert_eq!(waiting.poll(), Some(()));
    assert!(!kv.watches().drain());
}

/// Writers race with those who begin, on nodes that are held, dropped and too large in turns.
#[test]
fn no_version_is_missed_or_told_twice_among_threads() {
    const WRITES: u64 = 6_000;
    let store = Arc::new(MemoryStore::new());
    let limits = view::Limits { bytes_max: 6_000, node_bytes_max: 3_000, idle_s: 1 };
    let kv = Kv4::new(store, limits);
    let (is_over, begun) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let drainer = scope.spawn(|| {
            while !is_over.load(SeqCst) {
                while kv.watches().drain() {}
                thread::yield_now();
            }
        });
        let writers: Vec<_> = (0..2)
            .map(|nth| {
                let (kv, begun) = (&kv, &begun);
                scope.spawn(move || {
                    for turn in 0.. {
                        if turn > WRITES && begun.load(SeqCst) > 300 {
                            break;
                        }
                        let at = (turn as usize * 7 + nth) % (2 * KEYS);
                        // Now and then all of the node is too large.
                        let chars = if turn % 40 < 20 { 100 } else { 1_400 };
                        let chars = (turn % 11 != 0).then_some(chars);
                        let entry = node(0, at / KEYS).entry(key(at % KEYS));
                        let _ = block_on(kv.write(write(&entry, chars, Default::default())));
                        thread::yield_now();
                    }
                })
            })
            .collect();
        let watchers: Vec<_> = (0..3)
            .map(|nth| {
                let (kv, is_over, begun) = (&kv, &is_over, &begun);
                scope.spawn(move || {
                    let mut turn = nth;
                    while !is_over.load(SeqCst) {
                        turn += 1;
                        let one = (turn % 3 != 0).then(|| key(turn % KEYS));
                        let watch = Watch { key: one, ..watch(node(0, turn % 2)) };
                        let ear = Arc::new(Ear { room: usize::MAX, ..Ear::default() });
                        let sink: Arc<dyn Sink> = ear.clone();
                        let (start, guard) = match block_on(kv.watch(&watch, &sink)) {
                            Ok(done) => done,
                            Err(WatchError::Store(StoreError::TooLarge)) => continue,
                            Err(error) => panic!("{error}"),
                        };
                        begun.fetch_add(1, SeqCst);
                        for _ in 0..turn % 50 {
                            thread::yield_now();
                        }
                        drop(guard);
                        let mut newest: BTreeMap<Key, u64> = start
                            .entries()
                            .map(|head| (head.key.clone(), head.ver.generation))
                            .collect();
                        let heard = ear.heard.lock().unwrap();
                        assert!(heard.ended.is_empty());
                        for (key, ver, is_live) in &heard.changes {
                            let generation = ver.unwrap().generation;
                            match newest.insert(key.clone(), generation) {
                                Some(before) => assert_eq!(generation, before + 1, "{key}"),
                                // It was deleted, or not there: what comes is a put.
                                None => assert!(is_live, "{key} was not there"),
                            }
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        is_over.store(true, SeqCst);
        drainer.join().unwrap();
        for watcher in watchers {
            watcher.join().unwrap();
        }
    });
    while kv.watches().drain() {}
    assert!(kv.watches().is_empty());
}

/// Commits whose first change is in the view long before their last one is.
#[test]
fn who_begins_while_a_commit_is_applied_is_told_of_it_or_has_it() {
    const COMMITS: usize = 400;
    let store = Arc::new(Staged::default());
    let kv = Kv4::new(store.clone(), view::Limits::default());
    let others: Vec<Event> =
        (0..2_000).map(|nth| Event::Erased(node(1, nth).entry(key(0)))).collect();
    let is_over = AtomicBool::new(false);
    let begun = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..COMMITS {
                let entry = node(0, 0).entry(key(0));
                let _ = now(store.inner.write(vec![write(&entry, Some(1), Default::default())]));
                let last = store.log.0.lock().unwrap().events.last().cloned();
                let batch: Vec<Event> = last.iter().chain(&others).cloned().collect();
                store.listener.lock().unwrap().as_ref().unwrap().committed(&batch);
                // Whoever waits until all is told, waits for this.
                store.log.0.lock().unwrap().told += 1;
            }
            is_over.store(true, SeqCst);
        });
        scope.spawn(|| {
            while !is_over.load(SeqCst) {
                let ear = Arc::new(Ear { room: usize::MAX, ..Ear::default() });
                let sink: Arc<dyn Sink> = ear.clone();
                let begins = block_on(kv.watch(&watch(node(0, 0)), &sink));
                let (start, _guard) = begins.unwrap();
                begun.fetch_add(1, SeqCst);
                while !is_over.load(SeqCst) && ear.heard.lock().unwrap().changes.is_empty() {
                    kv.watches().drain();
                }
                let mut newest = start.entries().next().map_or(0, |head| head.ver.generation);
                for (_, ver, _) in &ear.heard.lock().unwrap().changes {
                    newest += 1;
                    assert_eq!(ver.unwrap().generation, newest, "of one that began");
                }
            }
        });
    });
    assert!(begun.load(SeqCst) > 50, "hardly anything was tried");
}

/// A store of which each step is let go on by hand, and whose commits are readable before they are
/// told.
#[derive(Default)]
struct Staged {
    inner: MemoryStore,
    log: Arc<Book>,
    listener: Mutex<Option<Arc<dyn Listener>>>,
}

#[derive(Default)]
struct Log {
    /// All that was committed, in order.
    events: Vec<Event>,
    told: usize,
}

/// Notes what is committed.
#[derive(Default)]
struct Book(Mutex<Log>);

impl Listener for Book {
    fn committed(&self, events: &[Event]) {
        self.0.lock().unwrap().events.extend_from_slice(events);
    }
}

impl Staged {
    /// Commits a batch, once the one before was told.
    fn commit(&self, batch: impl FnOnce(&MemoryStore)) {
        self.tell();
        batch(&self.inner);
    }

    fn tell(&self) {
        let batch = {
            let mut log = self.log.0.lock().unwrap();
            let batch = log.events[log.told..].to_vec();
            log.told = log.events.len();
            batch
        };
        if !batch.is_empty() {
            self.listener.lock().unwrap().as_ref().unwrap().committed(&batch);
        }
    }

    fn is_told(&self) -> bool {
        let log = self.log.0.lock().unwrap();
        log.told == log.events.len()
    }
}

/// Gives way to others, once.
async fn pause() {
    let mut has_paused = false;
    std::future::poll_fn(|context| {
        context.waker().wake_by_ref();
        if std::mem::replace(&mut has_paused, true) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

impl Store for Staged {
    fn write(&self, _: Vec<Write>) -> BoxFuture<'_, Vec<Result<Written, WriteError>>> {
        unreachable!("the test commits by itself")
    }

    fn listen(&self, listener: Arc<dyn Listener>) {
        *self.listener.lock().unwrap() = Some(listener);
        self.inner.listen(self.log.clone());
    }

    fn node(&self, node: &Node, bytes_max: usize) -> BoxFuture<'_, Result<Vec<Head>, StoreError>> {
        let node = node.clone();
        Box::pin(async move {
            pause().await;
            let rows = self.inner.node(&node, bytes_max).await;
            pause().await;
            rows
        })
    }

    fn newest(&self, entry: &Entry) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        let entry = entry.clone();
        Box::pin(async move {
            pause().await;
            let newest = self.inner.newest(&entry).await;
            pause().await;
            newest
        })
    }

    /// Takes its turn after what is being told.
    fn put_stats(&self, cells: Vec<(StatCell, Stat)>) -> BoxFuture<'_, Result<(), StoreError>> {
        assert!(cells.is_empty());
        Box::pin(async move {
            pause().await;
            while !self.is_told() {
                pause().await;
            }
            Ok(())
        })
    }

    fn by_secondary(
        &self,
        node: &Node,
        nth: u8,
        key: &Key,
    ) -> BoxFuture<'_, Result<Option<Head>, StoreError>> {
        self.inner.by_secondary(node, nth, key)
    }

    fn keys(
        &self,
        node: &Node,
        after: Option<&Key>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Key>, StoreError>> {
        self.inner.keys(node, after, limit)
    }

    fn series(
        &self,
        query: &SeriesQuery,
    ) -> BoxFuture<'_, Result<Vec<(Key, Version)>, StoreError>> {
        self.inner.series(query)
    }

    fn layers(&self, bucket: &Bucket) -> BoxFuture<'_, Result<Vec<Layer>, StoreError>> {
        self.inner.layers(bucket)
    }

    fn paths(
        &self,
        bucket: &Bucket,
        layer: &Layer,
        under: &Path,
    ) -> BoxFuture<'_, Result<Vec<(Path, u64)>, StoreError>> {
        self.inner.paths(bucket, layer, under)
    }

    fn changes(
        &self,
        bucket: &Bucket,
        since: Seq,
        limit: usize,
    ) -> BoxFuture<'_, Result<(Vec<Change>, Seq), StoreError>> {
        self.inner.changes(bucket, since, limit)
    }

    fn erase(&self, entry: &Entry) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.inner.erase(entry)
    }

    fn prune(&self, node: &Node, retention: Retention) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.inner.prune(node, retention)
    }

    fn drop_bucket(&self, bucket: &Bucket) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.drop_bucket(bucket)
    }

    fn buckets(&self) -> BoxFuture<'_, Result<Vec<Bucket>, StoreError>> {
        self.inner.buckets()
    }

    fn stats(
        &self,
        query: &StatQuery,
    ) -> BoxFuture<'_, Result<Vec<(TimeGroup, Stat)>, StoreError>> {
        self.inner.stats(query)
    }

    fn stat_paths(
        &self,
        bucket: &Bucket,
        measure: &Layer,
        under: &Path,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Path>, StoreError>> {
        self.inner.stat_paths(bucket, measure, under, limit)
    }

    fn series_paths(
        &self,
        bucket: &Bucket,
        layer: &Layer,
        under: &Path,
        after: Option<&Path>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Path>, StoreError>> {
        self.inner.series_paths(bucket, layer, under, after, limit)
    }

    fn stat_keys(
        &self,
        bucket: &Bucket,
        measure: &Layer,
        path: &Path,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Key>, StoreError>> {
        self.inner.stat_keys(bucket, measure, path, limit)
    }

    fn stat_measures(&self, bucket: &Bucket) -> BoxFuture<'_, Result<Vec<Layer>, StoreError>> {
        self.inner.stat_measures(bucket)
    }
}
