//! Views by hand: loads, commits and the telling of commits in any order.
//!
//! A commit is on the store before it is told, rows may be read at any point between, and a load
//! may take as long as it likes or be given up. Whatever the order, a view shows nothing that is
//! older than what was told, and nothing that was never so.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use event_listener::EventListener;
use kv4::Head;
use kv4::address::Node;
use kv4::memory::MemoryStore;
use kv4::store::{Store, StoreError};
use kv4::view::{Limits, Load, Lookup, Table, Ticket, Views};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::model::{Commit, Heard, History};
use super::{Held, key, node, now, try_cases, write};

const BUCKETS: usize = 2;
const NODES: usize = 2;
const KEYS: usize = 2;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A put of so many letters, or a deletion, reaches the store.
    Commit(usize, usize, usize, Option<usize>),
    Erase(usize, usize, usize),
    Drop(usize),
    /// The views are told the first so many commits of those that they do not know.
    Tell(usize),
    /// A reader misses, and loads or waits.
    Load(usize, usize),
    /// A load under way reads its rows.
    Read(usize),
    /// A load under way gives its rows, or says that they are too many.
    Finish(usize),
    /// A load under way is given up.
    Abandon(usize),
    Look(usize, usize),
    /// Seconds pass; the clock may also be set back.
    Tick(i32),
}

fn step() -> impl Strategy<Value = Step> {
    let (of, nth, key) = (0..BUCKETS, 0..NODES, 0..KEYS);
    let value = prop_oneof![4 => (0usize..600).prop_map(Some), 1 => Just(None)];
    prop_oneof![
        8 => (of.clone(), nth.clone(), key.clone(), value)
            .prop_map(|(of, nth, key, value)| Step::Commit(of, nth, key, value)),
        1 => (of.clone(), nth.clone(), key).prop_map(|(of, nth, key)| Step::Erase(of, nth, key)),
        1 => of.clone().prop_map(Step::Drop),
        6 => (1usize..4).prop_map(Step::Tell),
        5 => (of.clone(), nth.clone()).prop_map(|(of, nth)| Step::Load(of, nth)),
        5 => (0usize..4).prop_map(Step::Read),
        4 => (0usize..4).prop_map(Step::Finish),
        1 => (0usize..4).prop_map(Step::Abandon),
        8 => (of, nth).prop_map(|(of, nth)| Step::Look(of, nth)),
        1 => (-30i32..30).prop_map(Step::Tick),
    ]
}

#[test]
fn a_view_shows_what_was_told_or_committed_since() {
    let limits = (2_000usize..20_000, 400usize..4_000, 15u32..60);
    try_cases(&(limits, vec(step(), 1..120)), |((bytes_max, node_bytes_max, idle_s), steps)| {
        Run::new().take(Limits { bytes_max, node_bytes_max, idle_s }, steps)
    });
}

struct Run {
    store: MemoryStore,
    heard: Arc<Heard>,
    /// Commits that the views do not know, in order.
    untold: Vec<Commit>,
    history: History,
    now_s: u32,
}

/// A load under way.
struct Loading<'a> {
    node: Node,
    ticket: Ticket<'a>,
    /// [`History::drops_told`] when it began.
    drops_told: usize,
    rows: Option<Result<Vec<Head>, StoreError>>,
}

/// Seconds after which a load is late.
const LOADING_S: u32 = 2;
/// Commits during a load after which it is given up.
const LOADING_TOLD_MAX: usize = 1_000;

/// Whoever loads a node may not be polled for long: he keeps nobody from single entries of it.
#[test]
fn a_load_that_takes_long_is_late_and_fills_the_view_all_the_same() {
    let views = Views::new(Limits::default());
    let node = node(0, 0);
    let is_mine = || matches!(views.load(&node), Load::Mine(_));
    let Load::Mine(slow) = views.load(&node) else { panic!("nobody loads it") };
    views.tick(LOADING_S - 1);
    let Load::Wait(listener) = views.load(&node) else { panic!("it is not late") };
    let mut waiting = Held::new(wait(listener));
    assert!(waiting.poll().is_none());
    views.tick(LOADING_S);
    assert!(waiting.poll().is_some(), "who waits looks again");
    assert!(matches!(views.load(&node), Load::Late(_)));
    slow.loaded(Vec::new());
    assert!(matches!(views.lookup(&node), Lookup::Ready(_)));
    views.tick(2 * Limits::default().idle_s);

    let (store, heard) = (MemoryStore::new(), Arc::new(Heard::default()));
    store.listen(heard.clone());
    let Load::Mine(slow) = views.load(&node) else { panic!("nobody loads it") };
    let entry = node.entry(key(0));
    for at in 0..=LOADING_TOLD_MAX {
        assert!(matches!(views.load(&node), Load::Wait(_)), "after {at}");
        now(store.write(vec![write(&entry, Some(1), Default::default())]));
        views.apply(&heard.take());
    }
    assert!(is_mine());
    drop(slow);
}

impl Run {
    fn new() -> Run {
        let (store, heard) = (MemoryStore::new(), Arc::new(Heard::default()));
        store.listen(heard.clone());
        Run { store, heard, untold: Vec::new(), history: History::default(), now_s: 1_000 }
    }

    fn take(mut self, limits: Limits, steps: Vec<Step>) -> TestCaseResult {
        let views = Views::new(limits);
        views.tick(self.now_s);
        let mut loads: Vec<Loading<'_>> = Vec::new();
        let mut waits: Vec<(Node, Held<'_, ()>)> = Vec::new();
        for step in steps {
            self.take_one(&views, &mut loads, &mut waits, step)?;
            check_balance(&views, !loads.is_empty())?;
            check_waits(&views, &mut waits, &loads)?;
        }
        // Everything that is under way comes to its end, and all is told.
        for load in loads {
            self.finish(&views, load)?;
        }
        self.tell(&views, usize::MAX);
        check_waits(&views, &mut waits, &[])?;
        prop_assert!(waits.is_empty(), "somebody waits for a load that nobody does");
        check_balance(&views, false)?;
        for of in 0..BUCKETS {
            for nth in 0..NODES {
                self.look(&views, &node(of, nth))?;
            }
        }
        Ok(())
    }

    fn take_one<'a>(
        &mut self,
        views: &'a Views,
        loads: &mut Vec<Loading<'a>>,
        waits: &mut Vec<(Node, Held<'a, ()>)>,
        step: Step,
    ) -> TestCaseResult {
        match step {
            Step::Commit(of, nth, at, value) => {
                let entry = node(of, nth).entry(key(at));
                let written = now(self.store.write(vec![write(&entry, value, Default::default())]));
                let missing = value.is_none() && written[0].is_err();
                prop_assert!(written[0].is_ok() || missing, "{:?}", written);
                self.gather();
            }
            Step::Erase(of, nth, at) => {
                now(self.store.erase(&node(of, nth).entry(key(at)))).unwrap();
                self.gather();
            }
            Step::Drop(of) => {
                now(self.store.drop_bucket(&super::bucket(of))).unwrap();
                self.gather();
            }
            Step::Tell(count) => self.tell(views, count),
            Step::Load(of, nth) => {
                let node = node(of, nth);
                match views.load(&node) {
                    Load::Mine(ticket) => {
                        // The load of a dropped bucket goes on without a slot; else one at a time.
                        let drops_told = self.history.drops_told;
                        let rival = loads.iter().find(|load| load.node == node);
                        prop_assert!(rival.is_none_or(|load| load.drops_told < drops_told));
                        loads.push(Loading { node, ticket, drops_told, rows: None });
                    }
                    Load::Wait(listener) | Load::Late(listener) => {
                        waits.push((node, Held::new(wait(listener))));
                    }
                    Load::Done => {}
                }
            }
            Step::Read(at) => {
                let limit = views.limits().node_bytes_max;
                if let Some(load) = at_of(loads, at) {
                    load.rows = Some(now(self.store.node(&load.node, limit)));
                }
            }
            Step::Finish(at) => {
                if !loads.is_empty() {
                    let load = loads.remove(at % loads.len());
                    self.finish(views, load)?;
                }
            }
            Step::Abandon(at) => {
                if !loads.is_empty() {
                    drop(loads.remove(at % loads.len()));
                }
            }
            Step::Look(of, nth) => self.look(views, &node(of, nth))?,
            Step::Tick(by) => {
                self.now_s = self.now_s.saturating_add_signed(by);
                views.tick(self.now_s);
            }
        }
        Ok(())
    }

    /// Ends a load with the rows it has, or has now.
    fn finish(&mut self, views: &Views, load: Loading<'_>) -> TestCaseResult {
        let limit = views.limits().node_bytes_max;
        let rows = load.rows.unwrap_or_else(|| now(self.store.node(&load.node, limit)));
        match rows {
            Ok(rows) => {
                let table = load.ticket.loaded(rows);
                // What was read of a bucket before its drop was so when it was read.
                if load.drops_told == self.history.drops_told {
                    self.check(&load.node, &table)?;
                }
            }
            Err(StoreError::TooLarge) => load.ticket.too_large(),
            Err(error) => prop_assert!(false, "{}", error),
        }
        Ok(())
    }

    fn look(&mut self, views: &Views, node: &Node) -> TestCaseResult {
        match views.lookup(node) {
            Lookup::Ready(table) => self.check(node, &table),
            Lookup::Large | Lookup::Absent => Ok(()),
        }
    }

    fn check(&mut self, node: &Node, table: &Table) -> TestCaseResult {
        let entries = self.history.entries(node);
        prop_assert!(table.len() <= entries.len(), "{:?} shows entries that never were", node);
        for entry in entries {
            let shown = table.get(entry.key.as_str()).map(|head| &**head);
            let may = self.history.may_show(&entry, shown);
            prop_assert!(may, "{:?} shows {:?}\n{:#?}", entry, shown, self.history);
            prop_assert!(self.history.goes_on(&entry, shown), "{:?} goes back", entry);
        }
        Ok(())
    }

    /// Takes note of what the store has committed.
    fn gather(&mut self) {
        for event in self.heard.take() {
            self.untold.push(self.history.commit(event));
        }
    }

    fn tell(&mut self, views: &Views, count: usize) {
        let count = count.min(self.untold.len());
        let told: Vec<Commit> = self.untold.drain(..count).collect();
        let events: Vec<_> = told.iter().map(|commit| commit.event.clone()).collect();
        views.apply(&events);
        for commit in told {
            self.history.tell(commit);
        }
    }
}

fn at_of<'a, 'b>(loads: &'b mut [Loading<'a>], at: usize) -> Option<&'b mut Loading<'a>> {
    let count = loads.len();
    loads.get_mut(at % count.max(1))
}

async fn wait(listener: EventListener) {
    listener.await;
}

/// What is counted is what is held, and within the budget.
fn check_balance(views: &Views, is_loading: bool) -> TestCaseResult {
    let stats = views.stats();
    prop_assert_eq!(stats.bytes, views.recount());
    prop_assert!(stats.bytes <= views.limits().bytes_max || is_loading, "{:?}", stats);
    Ok(())
}

/// Whoever waits for a load is woken when there is none any more.
fn check_waits(
    views: &Views,
    waits: &mut Vec<(Node, Held<'_, ()>)>,
    loads: &[Loading<'_>],
) -> TestCaseResult {
    waits.retain_mut(|(_, wait)| wait.poll().is_none());
    for (node, wait) in waits.iter() {
        let is_loading = loads.iter().any(|load| load.node == *node);
        let woken = wait.wakes.0.load(SeqCst) > 0;
        prop_assert!(
            is_loading || woken,
            "a reader of {:?} waits for nobody: {:?}",
            node,
            views.stats()
        );
    }
    Ok(())
}
