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

mod registry;
mod told;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_listener::listener;
use wire::names::Key;

use self::registry::{Over, Place, Ready, Registry, STARTING_KEYS_MAX, Target, Watcher, Watchers};
use self::told::What;
pub use self::told::{Start, Told};
use crate::address::{Bucket, Node};
use crate::store::{self, StoreError};
use crate::version::Head;
use crate::view::{Started, Table, Untold, Views};

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

/// A watch, until this is dropped.
#[derive(Debug)]
pub struct Guard {
    watches: Arc<Watches>,
    place: Place,
    watcher: Arc<Watcher>,
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
        let mut all: Vec<(u64, Watchers)> = {
            let registry = self.registry();
            registry.targets.iter().map(|(id, target)| (*id, target.watchers.clone())).collect()
        };
        all.sort_unstable_by_key(|(id, _)| *id);
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
                    let mut gone: Vec<u64> =
                        registry.targets.keys().filter(of_bucket).copied().collect();
                    // Whatever the order of the table is.
                    gone.sort_unstable();
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
