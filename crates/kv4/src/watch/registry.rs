//! Where commits find who watches, and what waits for them.
//!
//! Plain tables under one lock ([`super::Watches`]); not here: when anything of it is done.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use foldhash::fast::RandomState;
use imbl::OrdMap;
use wire::names::Key;

use super::told::Told;
use super::{Ended, Sink, Watch};
use crate::address::{Bucket, Entry, Node};

/// Keys whose changes are kept for watches of a node that have no start yet; past it these are not
/// begun.
pub(super) const STARTING_KEYS_MAX: usize = 10_000;
/// Changes of one target that are handed on before the next one's turn, and how often they are told
/// then, unless one change alone is told more often.
const CHANGES_AT_ONCE: usize = 256;
const TOLD_AT_ONCE: usize = 4_096;

/// What is watched, keyed by where commits find it.
#[derive(Default)]
pub(super) struct Registry {
    pub(super) next: u64,
    /// The last commit that was looked at.
    pub(super) commit: u64,
    pub(super) nodes: HashMap<Node, OfNode, RandomState>,
    pub(super) targets: HashMap<u64, Target, RandomState>,
    /// Targets that changes wait for, each once.
    pub(super) ready: VecDeque<u64>,
    /// Watches that a commit has ended, to be told so.
    pub(super) over: VecDeque<Over>,
    pub(super) queued_bytes: usize,
    pub(super) of_account: HashMap<Bucket, usize, RandomState>,
    pub(super) is_closed: bool,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("targets", &self.targets.len()).finish_non_exhaustive()
    }
}

/// The targets of one node.
#[derive(Default)]
pub(super) struct OfNode {
    pub(super) whole: Option<u64>,
    pub(super) keys: HashMap<Key, u64, RandomState>,
}

/// One node, or one key of a node, that somebody watches.
pub(super) struct Target {
    pub(super) node: Node,
    pub(super) key: Option<Key>,
    pub(super) watchers: Watchers,
    /// With the number of its commit.
    pub(super) queue: VecDeque<(u64, Arc<Told>)>,
    pub(super) bytes: usize,
    /// Watches of it that have no start yet.
    pub(super) starting: usize,
    /// The last change of each key since the first of those began; at most one more than
    /// [`STARTING_KEYS_MAX`].
    pub(super) changed: BTreeMap<Key, Arc<Told>>,
}

/// Persistent, so that whoever drains takes a copy for nothing.
pub(super) type Watchers = OrdMap<u64, Arc<Watcher>>;

pub(super) struct Watcher {
    pub(super) watch: Watch,
    pub(super) sink: Arc<dyn Sink>,
    /// The last commit that is in its start; `u64::MAX` while it has none.
    pub(super) from: AtomicU64,
    pub(super) is_over: AtomicBool,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("watch", &self.watch).finish_non_exhaustive()
    }
}

impl Watcher {
    /// Tells that it is over, once.
    pub(super) fn end(&self, why: Ended) {
        if !self.is_over.swap(true, Ordering::AcqRel) {
            self.sink.ended(why);
        }
    }
}

/// Watches that are to be told that they are over, after what waited for them.
pub(super) struct Over {
    pub(super) watchers: Watchers,
    pub(super) queue: VecDeque<(u64, Arc<Told>)>,
    pub(super) bytes: usize,
    pub(super) why: Ended,
}

/// Changes that are handed on, with the numbers of their commits.
pub(super) struct Ready {
    pub(super) target: u64,
    pub(super) watchers: Watchers,
    pub(super) changes: Vec<(u64, Arc<Told>)>,
}

/// Where the registry has a watch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) target: u64,
    pub(super) id: u64,
}

impl Registry {
    pub(super) fn add(
        &mut self,
        watch: &Watch,
        sink: &Arc<dyn Sink>,
        from: u64,
    ) -> (Place, Arc<Watcher>) {
        let Registry { next, nodes, targets, of_account, .. } = self;
        *next += 2;
        let (id, fresh) = (*next, *next + 1);
        let of_node = nodes.entry(watch.node.clone()).or_default();
        let number = match &watch.key {
            None => *of_node.whole.get_or_insert(fresh),
            Some(key) => *of_node.keys.entry(key.clone()).or_insert(fresh),
        };
        let target = targets.entry(number).or_insert_with(|| Target {
            node: watch.node.clone(),
            key: watch.key.clone(),
            watchers: Watchers::new(),
            queue: VecDeque::new(),
            bytes: 0,
            starting: 0,
            changed: BTreeMap::new(),
        });
        let watcher = Arc::new(Watcher {
            watch: watch.clone(),
            sink: sink.clone(),
            from: AtomicU64::new(from),
            is_over: AtomicBool::new(false),
        });
        target.watchers.insert(id, watcher.clone());
        *of_account.entry(watch.payer.clone()).or_default() += 1;
        (Place { target: number, id }, watcher)
    }

    /// Queues a change for those who watch its entry.
    pub(super) fn queue(&mut self, commit: u64, entry: &Entry, told: impl FnOnce() -> Arc<Told>) {
        let Some(of_node) = self.nodes.get(&entry.node) else { return };
        let numbers = [of_node.whole, of_node.keys.get(&entry.key).copied()];
        if numbers == [None; 2] {
            return;
        }
        let told = told();
        let bytes = told.bytes();
        for number in numbers.into_iter().flatten() {
            let Some(target) = self.targets.get_mut(&number) else { continue };
            if target.starting > 0 && target.changed.len() <= STARTING_KEYS_MAX {
                target.changed.insert(entry.key.clone(), told.clone());
            }
            if target.queue.is_empty() {
                self.ready.push_back(number);
            }
            target.queue.push_back((commit, told.clone()));
            target.bytes += bytes;
            self.queued_bytes += bytes;
        }
    }

    /// Some of what waits for the next target, and who is to be told.
    pub(super) fn take_ready(&mut self) -> Option<Ready> {
        loop {
            let number = self.ready.pop_front()?;
            let Some(target) = self.targets.get_mut(&number) else { continue };
            let some = (TOLD_AT_ONCE / target.watchers.len().max(1)).clamp(1, CHANGES_AT_ONCE);
            let some = target.queue.len().min(some);
            let taken: Vec<_> = target.queue.drain(..some).collect();
            let bytes: usize = taken.iter().map(|(_, told)| told.bytes()).sum();
            target.bytes -= bytes;
            self.queued_bytes -= bytes;
            let watchers = target.watchers.clone();
            if !target.queue.is_empty() {
                self.ready.push_back(number);
            }
            return Some(Ready { target: number, watchers, changes: taken });
        }
    }

    /// The target for which most bytes wait.
    pub(super) fn fullest(&self) -> Option<u64> {
        let waiting = self.ready.iter().filter_map(|id| Some((self.targets.get(id)?.bytes, *id)));
        waiting.max().filter(|(bytes, _)| *bytes > 0).map(|(_, id)| id)
    }

    /// Takes a target out, with what waits for it.
    pub(super) fn forget(&mut self, number: u64) -> Option<Target> {
        let target = self.targets.remove(&number)?;
        self.queued_bytes -= target.bytes;
        if let Some(of_node) = self.nodes.get_mut(&target.node) {
            match &target.key {
                None => of_node.whole = None,
                Some(key) => drop(of_node.keys.remove(key)),
            }
            if of_node.whole.is_none() && of_node.keys.is_empty() {
                self.nodes.remove(&target.node);
            }
        }
        if !target.queue.is_empty() {
            self.ready.retain(|ready| *ready != number);
        }
        Some(target)
    }
}

impl Target {
    /// One of those that had no start has one, or is over.
    pub(super) fn started(&mut self) {
        self.starting -= 1;
        if self.starting == 0 {
            self.changed = BTreeMap::new();
        }
    }
}
