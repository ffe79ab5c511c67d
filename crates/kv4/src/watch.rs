//! Watches: who wants to hear of every change of a node, or of one key of it, from a start value on.
//!
//! A watch begins with what its node (or key) holds at one moment, and is then told of every later
//! version of each watched key, in commit order, each once. Commits are queued here on the committer's
//! thread, which waits for nobody; [`Watches::drain`] makes each change's text once and hands it to all
//! who watch it. Driven by commits ([`crate::kv::Kv4`]), by whoever drains, and by those who watch.
//!
//! How a start and what follows it fit together: the views number the commits that they apply. A watch
//! is registered under the registry's lock, and reads its start there, with the number of the last
//! commit that is in it; what was queued up to that number is not for it. A table that was read from
//! the store may hold a commit that was not told yet, so a watch waits until it was
//! ([`crate::view::Started::Untold`]).
//!
//! Not here: sockets and streams (they are [`Sink`]s), and who may watch (`services`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use event_listener::listener;
use foldhash::fast::RandomState;
use imbl::OrdMap;
use wire::json::push_string;
use wire::names::Key;

use crate::address::{Bucket, Entry, Node};
use crate::store::{self, StoreError};
use crate::version::{Head, Version};
use crate::view::{Started, Table, Untold, Views};

/// Bytes that a queued change is taken to have beside its texts.
const TOLD_BYTES: usize = 256;
/// Keys whose changes are kept for watches of a node that have no start yet; past it these are not
/// begun.
const STARTING_KEYS_MAX: usize = 10_000;
/// Changes of one target that are handed on before the next one's turn, and how often they are told
/// then, unless one change alone is told more often.
const CHANGES_AT_ONCE: usize = 256;
const TOLD_AT_ONCE: usize = 4_096;

/// How many watches there may be, and how much may wait for them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Watches that one top account pays for.
    pub per_account: usize,
    /// Bytes of changes that were committed and not handed on yet. Past it the watches that most of
    /// them wait for end as [`Ended::Slow`].
    pub queued_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { per_account: 20_000, queued_bytes: 64 << 20 }
    }
}

/// What is watched, and by whom.
#[derive(Clone, Debug)]
pub struct Watch {
    pub node: Node,
    /// One key of it, or all.
    pub key: Option<Key>,
    /// The top account's bucket, which the watch counts for.
    pub payer: Bucket,
    /// As [`Version::who`].
    pub who: Arc<str>,
    /// The client's, which rules are about.
    pub address: IpAddr,
}

/// Where a watch's changes go.
///
/// Called by whoever drains, and [`Sink::ended`] by whoever ends a watch: both look and return, and
/// wait for nobody.
pub trait Sink: Send + Sync {
    /// Takes a change. It may come before the caller of [`crate::Kv4::watch`] has its start; it
    /// follows the start all the same.
    ///
    /// # Errors
    /// [`Full`], which ends the watch as [`Ended::Slow`].
    fn told(&self, change: &Arc<Told>) -> Result<(), Full>;

    /// The watch is over, and nothing is told after this. Not called when its [`Guard`] is dropped.
    fn ended(&self, why: Ended);
}

/// A sink has no room for a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Full;

/// Why a watch is over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// Its sink, or the queue before it, was full: what it was not told is lost to it.
    Slow,
    /// Its bucket was dropped.
    Gone,
    /// Who watches may no longer.
    Denied,
    /// The neuron stops.
    Stopping,
}

/// A watch that was not begun.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// Its account has as many as it may have.
    #[error("{0} watches of this account are open")]
    TooMany(usize),
    /// It was over before it began.
    #[error("it was over before it began")]
    Ended(Ended),
    /// The store's; [`StoreError::TooLarge`] for all of a node that is too large to be held.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a watch begins with.
#[derive(Clone, Debug)]
pub enum Start {
    Node(Arc<Table>),
    Key(Option<Arc<Head>>),
}

impl Start {
    /// The live entries, in key order.
    pub fn entries(&self) -> Box<dyn Iterator<Item = &Arc<Head>> + '_> {
        match self {
            Start::Node(table) => Box::new(table.iter()),
            Start::Key(head) => Box::new(head.iter()),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Start::Node(table) => table.len(),
            Start::Key(head) => usize::from(head.is_some()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `{"entries":[{"k":…,"v":…,"_ver_":…}…]}`, in one line.
    pub fn json(&self) -> String {
        let mut text = String::from("{\"entries\":[");
        for (at, head) in self.entries().enumerate() {
            if at > 0 {
                text.push(',');
            }
            push_change(&mut text, &head.key, &What::Put(head.clone()));
        }
        text.push_str("]}");
        text
    }
}

/// One change, with its texts, each made once for all who are told.
#[derive(Debug)]
pub struct Told {
    entry: Entry,
    what: What,
    json: OnceLock<Bytes>,
    event: OnceLock<Bytes>,
    frame: OnceLock<Bytes>,
}

/// What became of an entry.
#[derive(Clone, Debug)]
enum What {
    Put(Arc<Head>),
    /// With the `_ver_` of the deletion.
    Deleted(crate::Ver),
    Erased,
}

impl Told {
    fn new(entry: &Entry, what: What) -> Arc<Told> {
        let (json, event, frame) = Default::default();
        Arc::new(Told { entry: entry.clone(), what, json, event, frame })
    }

    fn of(entry: &Entry, version: &Version) -> Arc<Told> {
        let what = match Head::of(&entry.key, version) {
            Some(head) => What::Put(Arc::new(head)),
            None => What::Deleted(version.ver),
        };
        Told::new(entry, what)
    }

    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The entry as it is from here on; `None` when it is gone.
    pub fn head(&self) -> Option<&Arc<Head>> {
        match &self.what {
            What::Put(head) => Some(head),
            What::Deleted(_) | What::Erased => None,
        }
    }

    /// The version that this change is; `None` for an erasure, which is none.
    pub fn ver(&self) -> Option<crate::Ver> {
        match &self.what {
            What::Put(head) => Some(head.ver),
            What::Deleted(ver) => Some(*ver),
            What::Erased => None,
        }
    }

    /// `{"k":…,"v":…,"_ver_":…}`, or `{"k":…,"_ver_":…,"deleted":true}`, for an erasure without
    /// `_ver_`; in one line.
    pub fn json(&self) -> &Bytes {
        self.json.get_or_init(|| {
            let mut text = String::with_capacity(self.bytes());
            push_change(&mut text, &self.entry.key, &self.what);
            Bytes::from(text)
        })
    }

    /// The same as a server-sent event (HTML, 9.2.5), `change`.
    pub fn event(&self) -> &Bytes {
        self.event.get_or_init(|| {
            let json = self.json();
            let mut text = Vec::with_capacity(json.len() + 32);
            text.extend_from_slice(b"event: change\ndata: ");
            text.extend_from_slice(json);
            text.extend_from_slice(b"\n\n");
            Bytes::from(text)
        })
    }

    /// The same in a form that the sinks of one kind share: made by the first of them, so all of that
    /// kind make the same of it.
    pub fn frame(&self, make: impl FnOnce(&Told) -> Bytes) -> &Bytes {
        self.frame.get_or_init(|| make(self))
    }

    fn bytes(&self) -> usize {
        let value = self.head().map_or(0, |head| head.value.as_str().len());
        TOLD_BYTES + self.entry.key.as_str().len() + value
    }
}

fn push_change(text: &mut String, key: &Key, what: &What) {
    text.push_str("{\"k\":");
    push_string(text, key.as_str());
    if let What::Put(head) = what {
        text.push_str(",\"v\":");
        // A line's end in JSON is white space, and would be the end of an event's line.
        let mut lines = head.value.as_str().split(['\n', '\r']);
        text.extend(lines.next());
        for line in lines {
            text.push(' ');
            text.push_str(line);
        }
    }
    let ver = match what {
        What::Put(head) => Some(head.ver),
        What::Deleted(ver) => Some(*ver),
        What::Erased => None,
    };
    if let Some(ver) = ver {
        text.push_str(&format!(",\"_ver_\":\"{ver}\""));
    }
    if !matches!(what, What::Put(_)) {
        text.push_str(",\"deleted\":true");
    }
    text.push('}');
}

/// Figures of all watches, for metrics.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    pub watches: usize,
    /// Nodes, and keys of nodes, that somebody watches.
    pub targets: usize,
    pub queued_bytes: usize,
    /// Changes that were handed on, counted for each who was told.
    pub told: u64,
    /// Watches that were not begun, over [`Limits::per_account`].
    pub refused: u64,
    /// Watches that were ended since their sink was full.
    pub slow: u64,
    /// Watches that were ended over [`Limits::queued_bytes`].
    pub overflowed: u64,
}

/// Every watch of a neuron.
#[derive(Debug)]
pub struct Watches {
    limits: Limits,
    registry: Mutex<Registry>,
    /// How many watches the registry has: what a commit looks at before anything else.
    watching: AtomicUsize,
    /// Held while changes are handed on: of two who drain, one could overtake the other.
    draining: Mutex<()>,
    /// Told when there is something to hand on.
    moved: event_listener::Event,
    told: AtomicU64,
    refused: AtomicU64,
    slow: AtomicU64,
    overflowed: AtomicU64,
}

/// What is watched, keyed by where commits find it.
#[derive(Default)]
struct Registry {
    next: u64,
    /// The last commit that was looked at.
    commit: u64,
    nodes: HashMap<Node, OfNode, RandomState>,
    targets: HashMap<u64, Target, RandomState>,
    /// Targets that changes wait for, each once.
    ready: VecDeque<u64>,
    /// Watches that a commit has ended, to be told so.
    over: VecDeque<Over>,
    queued_bytes: usize,
    of_account: HashMap<Bucket, usize, RandomState>,
    is_closed: bool,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("targets", &self.targets.len()).finish_non_exhaustive()
    }
}

/// The targets of one node.
#[derive(Default)]
struct OfNode {
    whole: Option<u64>,
    keys: HashMap<Key, u64, RandomState>,
}

/// One node, or one key of a node, that somebody watches.
struct Target {
    node: Node,
    key: Option<Key>,
    watchers: Watchers,
    /// With the number of its commit.
    queue: VecDeque<(u64, Arc<Told>)>,
    bytes: usize,
    /// Watches of it that have no start yet.
    starting: usize,
    /// The last change of each key since the first of those began; at most one more than
    /// [`STARTING_KEYS_MAX`].
    changed: BTreeMap<Key, Arc<Told>>,
}

/// Persistent, so that whoever drains takes a copy for nothing.
type Watchers = OrdMap<u64, Arc<Watcher>>;

struct Watcher {
    watch: Watch,
    sink: Arc<dyn Sink>,
    /// The last commit that is in its start; `u64::MAX` while it has none.
    from: AtomicU64,
    is_over: AtomicBool,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("watch", &self.watch).finish_non_exhaustive()
    }
}

impl Watcher {
    /// Tells that it is over, once.
    fn end(&self, why: Ended) {
        if !self.is_over.swap(true, Ordering::AcqRel) {
            self.sink.ended(why);
        }
    }
}

/// Watches that are to be told that they are over, after what waited for them.
struct Over {
    watchers: Watchers,
    queue: VecDeque<(u64, Arc<Told>)>,
    bytes: usize,
    why: Ended,
}

/// Changes that are handed on, with the numbers of their commits.
struct Ready {
    target: u64,
    watchers: Watchers,
    changes: Vec<(u64, Arc<Told>)>,
}

/// A watch, until this is dropped.
#[derive(Debug)]
pub struct Guard {
    watches: Arc<Watches>,
    place: Place,
    watcher: Arc<Watcher>,
}

/// Where the registry has a watch.
#[derive(Clone, Copy, Debug)]
struct Place {
    target: u64,
    id: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.watcher.is_over.store(true, Ordering::Release);
        self.watches.end_one(self.place);
    }
}

/// What a registration came to.
pub(crate) enum Registered {
    Done(Start, Guard),
    /// The node has to be loaded first.
    Absent,
    /// The node is too large to be held.
    Large,
    /// As [`Started::Busy`].
    Busy(event_listener::EventListener),
    /// As [`Started::Untold`].
    Untold(Untold),
}

/// A watch that hears and has no start yet.
pub(crate) struct Starting(Guard);

impl Watches {
    pub(crate) fn new(limits: Limits) -> Arc<Watches> {
        Arc::new(Watches {
            limits,
            registry: Mutex::default(),
            watching: AtomicUsize::new(0),
            draining: Mutex::new(()),
            moved: event_listener::Event::new(),
            told: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
        })
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    pub fn stats(&self) -> Stats {
        let registry = self.registry();
        Stats {
            watches: self.watching.load(Ordering::Relaxed),
            targets: registry.targets.len(),
            queued_bytes: registry.queued_bytes,
            told: self.told.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            slow: self.slow.load(Ordering::Relaxed),
            overflowed: self.overflowed.load(Ordering::Relaxed),
        }
    }

    /// Whether nothing is left of any watch, for checkers.
    pub fn is_empty(&self) -> bool {
        let registry = self.registry();
        let Registry { nodes, targets, over, queued_bytes, of_account, ready, .. } = &*registry;
        nodes.is_empty()
            && targets.is_empty()
            && over.is_empty()
            && of_account.is_empty()
            && *queued_bytes == 0
            && self.watching.load(Ordering::SeqCst) == 0
            && ready.iter().all(|id| !targets.contains_key(id))
    }

    /// Ends the watches that `matches`; answers how many those were.
    pub fn end_where(&self, why: Ended, matches: &dyn Fn(&Watch) -> bool) -> usize {
        if self.watching.load(Ordering::SeqCst) == 0 {
            return 0;
        }
        // Asked without the lock, which a commit may wait for.
        let all: Vec<(u64, Watchers)> = {
            let registry = self.registry();
            registry.targets.iter().map(|(id, target)| (*id, target.watchers.clone())).collect()
        };
        let mut ended = 0;
        for (target, watchers) in &all {
            for (id, watcher) in watchers.iter().filter(|(_, watcher)| matches(&watcher.watch)) {
                if self.end_one(Place { target: *target, id: *id }) {
                    watcher.end(why);
                    ended += 1;
                }
            }
        }
        ended
    }

    /// Ends every watch, and those that are asked for from here on, as the neuron stops.
    pub fn close(&self) {
        self.registry().is_closed = true;
        self.end_where(Ended::Stopping, &|_| true);
    }

    /// Finishes when there is something to [`Watches::drain`].
    pub async fn waiting(&self) {
        loop {
            if self.has_waiting() {
                return;
            }
            listener!(self.moved => moved);
            // It may have come before this listened.
            if self.has_waiting() {
                return;
            }
            moved.await;
        }
    }

    fn has_waiting(&self) -> bool {
        let registry = self.registry();
        !registry.ready.is_empty() || !registry.over.is_empty()
    }

    /// Hands on some of what waits: that of one target. Whether there is more.
    pub fn drain(&self) -> bool {
        let _draining = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        let (over, rest, has_more) = {
            let mut registry = self.registry();
            let over = registry.over.pop_front();
            let rest = if over.is_none() { registry.take_ready() } else { None };
            if let Some(over) = &over {
                registry.queued_bytes -= over.bytes;
            }
            (over, rest, !registry.ready.is_empty() || !registry.over.is_empty())
        };
        if let Some(over) = over {
            for (_, watcher) in &over.watchers {
                let is_full = over.queue.iter().any(|change| self.tell(watcher, change).is_err());
                watcher.end(if is_full { Ended::Slow } else { over.why });
            }
        }
        if let Some(Ready { target, watchers, changes }) = rest {
            for (id, watcher) in &watchers {
                let is_full = changes.iter().any(|change| self.tell(watcher, change).is_err());
                if is_full && self.end_one(Place { target, id: *id }) {
                    self.slow.fetch_add(1, Ordering::Relaxed);
                    watcher.end(Ended::Slow);
                }
            }
        }
        has_more
    }

    fn tell(&self, watcher: &Watcher, (commit, change): &(u64, Arc<Told>)) -> Result<(), Full> {
        let is_for_it = *commit > watcher.from.load(Ordering::Acquire);
        if !is_for_it || watcher.is_over.load(Ordering::Acquire) {
            return Ok(());
        }
        watcher.sink.told(change)?;
        self.told.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Looks at a commit, which the views number and have applied.
    pub(crate) fn committed(&self, commit: u64, events: &[store::Event]) {
        // A watch that is not seen here reads a start that this commit is in: both sides' steps have
        // one order.
        if self.watching.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut registry = self.registry();
        registry.commit = commit;
        for event in events {
            match event {
                store::Event::Changed(change) => {
                    if let Some(version) = &change.version {
                        let told = || Told::of(&change.entry, version);
                        registry.queue(commit, &change.entry, told);
                    }
                }
                store::Event::Erased(entry) => {
                    registry.queue(commit, entry, || Told::new(entry, What::Erased));
                }
                store::Event::Dropped(bucket) => {
                    let of_bucket =
                        |target: &&u64| registry.targets[*target].node.bucket == *bucket;
                    let gone: Vec<u64> =
                        registry.targets.keys().filter(of_bucket).copied().collect();
                    for target in gone {
                        self.end_target(&mut registry, target, Ended::Gone);
                    }
                }
            }
        }
        while registry.queued_bytes > self.limits.queued_bytes
            && let Some(target) = registry.fullest()
        {
            let ended = self.end_target(&mut registry, target, Ended::Slow);
            self.overflowed.fetch_add(ended as u64, Ordering::Relaxed);
        }
        let is_waiting = !registry.ready.is_empty() || !registry.over.is_empty();
        drop(registry);
        if is_waiting {
            self.moved.notify(1);
        }
    }

    /// Begins a watch of what a view holds.
    pub(crate) fn register(
        self: &Arc<Self>,
        views: &Views,
        watch: &Watch,
        sink: &Arc<dyn Sink>,
    ) -> Result<Registered, WatchError> {
        let mut registry = self.registry();
        self.may_begin(&registry, watch)?;
        // Before the view is looked at: see `committed`.
        self.watching.fetch_add(1, Ordering::SeqCst);
        let (table, commit) = match views.start(&watch.node) {
            Started::Ready(table, commit) => (table, commit),
            other => {
                self.watching.fetch_sub(1, Ordering::SeqCst);
                return Ok(match other {
                    Started::Absent => Registered::Absent,
                    Started::Large => Registered::Large,
                    Started::Busy(listener) => Registered::Busy(listener),
                    Started::Untold(untold) => Registered::Untold(untold),
                    Started::Ready(..) => unreachable!("it is the other arm"),
                });
            }
        };
        let (place, watcher) = registry.add(watch, sink, commit);
        drop(registry);
        let start = match &watch.key {
            None => Start::Node(table),
            Some(key) => Start::Key(table.get(key.as_str()).cloned()),
        };
        Ok(Registered::Done(start, Guard { watches: self.clone(), place, watcher }))
    }

    /// Begins a watch without a view: it hears from here on, and is told nothing before
    /// [`Watches::start`].
    pub(crate) fn begin(
        self: &Arc<Self>,
        watch: &Watch,
        sink: &Arc<dyn Sink>,
    ) -> Result<Starting, WatchError> {
        let mut registry = self.registry();
        self.may_begin(&registry, watch)?;
        self.watching.fetch_add(1, Ordering::SeqCst);
        let (place, watcher) = registry.add(watch, sink, u64::MAX);
        if let Some(target) = registry.targets.get_mut(&place.target) {
            target.starting += 1;
        }
        Ok(Starting(Guard { watches: self.clone(), place, watcher }))
    }

    /// Gives a watch its start: `rows` were read from the store after [`Watches::begin`], and all that
    /// was in the store by then has been told.
    pub(crate) fn start(
        &self,
        starting: Starting,
        rows: Vec<Head>,
    ) -> Result<(Start, Guard), WatchError> {
        let Starting(guard) = starting;
        let mut registry = self.registry();
        let commit = registry.commit;
        let Place { target, id } = guard.place;
        let found = registry.targets.get_mut(&target);
        let Some(target) = found.filter(|target| target.watchers.contains_key(&id)) else {
            let why = if registry.is_closed { Ended::Stopping } else { Ended::Gone };
            drop(registry);
            return Err(WatchError::Ended(why));
        };
        // What is changed since is so; of the rest the rows are true.
        let changed = target.changed.clone();
        target.started();
        guard.watcher.from.store(commit, Ordering::Release);
        drop(registry);
        if changed.len() > STARTING_KEYS_MAX {
            return Err(WatchError::Ended(Ended::Slow));
        }
        let changed = changed.iter().map(|(key, told)| (key, told.head()));
        let table = Table::of(rows, changed);
        let start = match &guard.watcher.watch.key {
            None => Start::Node(Arc::new(table)),
            Some(key) => Start::Key(table.get(key.as_str()).cloned()),
        };
        Ok((start, guard))
    }

    fn may_begin(&self, registry: &Registry, watch: &Watch) -> Result<(), WatchError> {
        if registry.is_closed {
            return Err(WatchError::Ended(Ended::Stopping));
        }
        let max = self.limits.per_account;
        if registry.of_account.get(&watch.payer).is_some_and(|count| *count >= max) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(WatchError::TooMany(max));
        }
        Ok(())
    }

    /// Takes one watch out; `false` when it is over already.
    fn end_one(&self, Place { target, id }: Place) -> bool {
        let mut registry = self.registry();
        let Some(found) = registry.targets.get_mut(&target) else { return false };
        let Some(watcher) = found.watchers.remove(&id) else { return false };
        if watcher.from.load(Ordering::Relaxed) == u64::MAX {
            found.started();
        }
        if found.watchers.is_empty() {
            registry.forget(target);
        }
        self.let_go(&mut registry, &watcher);
        true
    }

    /// Takes a target out and has its watches told why; answers how many those were. What waited is
    /// theirs still, unless there was too much of it.
    fn end_target(&self, registry: &mut Registry, target: u64, why: Ended) -> usize {
        let Some(mut target) = registry.forget(target) else { return 0 };
        for (_, watcher) in &target.watchers {
            self.let_go(registry, watcher);
        }
        let count = target.watchers.len();
        if why == Ended::Slow {
            target.queue = VecDeque::new();
            target.bytes = 0;
        }
        registry.queued_bytes += target.bytes;
        let Target { watchers, queue, bytes, .. } = target;
        registry.over.push_back(Over { watchers, queue, bytes, why });
        count
    }

    fn let_go(&self, registry: &mut Registry, watcher: &Watcher) {
        self.watching.fetch_sub(1, Ordering::SeqCst);
        if let Some(count) = registry.of_account.get_mut(&watcher.watch.payer) {
            *count -= 1;
            if *count == 0 {
                registry.of_account.remove(&watcher.watch.payer);
            }
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    fn add(&mut self, watch: &Watch, sink: &Arc<dyn Sink>, from: u64) -> (Place, Arc<Watcher>) {
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
    fn queue(&mut self, commit: u64, entry: &Entry, told: impl FnOnce() -> Arc<Told>) {
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
    fn take_ready(&mut self) -> Option<Ready> {
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
    fn fullest(&self) -> Option<u64> {
        let waiting = self.ready.iter().filter_map(|id| Some((self.targets.get(id)?.bytes, *id)));
        waiting.max().filter(|(bytes, _)| *bytes > 0).map(|(_, id)| id)
    }

    /// Takes a target out, with what waits for it.
    fn forget(&mut self, number: u64) -> Option<Target> {
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
    fn started(&mut self) {
        self.starting -= 1;
        if self.starting == 0 {
            self.changed = BTreeMap::new();
        }
    }
}
