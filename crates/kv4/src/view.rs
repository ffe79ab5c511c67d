//! Views: the newest version of every entry of the nodes in use, in memory.
//!
//! A node is loaded on first use, kept current by the commits it is told of, and dropped when it is
//! not used or when the byte budget needs it. A reader of a loaded node takes no lock: it picks up
//! an immutable table, which a writer replaces as a whole (persistent maps share what is unchanged).
//!
//! Not here: when to load (`kv.rs`), where rows come from ([`crate::store::Store`]). Input: lookups,
//! loaded rows, committed events, and the time as whole seconds.

use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use event_listener::{Event, EventListener};
use imbl::OrdMap;
use wire::names::Key;

use crate::address::{Bucket, Node};
use crate::store;
use crate::version::Head;

/// Bytes that an entry costs beside its texts: a place in the map, whose nodes are between half and
/// wholly full, the head, and what the allocator adds to each text.
///
/// This and the two below are fitted to the growth of the resident memory of a process of its own for
/// each of some shapes of views, loaded and written, from one large node to many of one entry, under
/// the system's allocator: `tests/it/memory.rs`, which holds the sum to 15 %.
const ENTRY_BYTES: usize = 296;
/// Bytes that a secondary key costs beside its text: a place in its map, and the allocator's.
const SECONDARY_BYTES: usize = 104;
/// Bytes that a node costs beside its entries and names.
const NODE_BYTES: usize = 832;

/// Seconds after which a load is late, give or take one: it is large, or whoever loads is not polled,
/// and who wants one entry does not wait for it.
const LOADING_S: u32 = 2;
/// Commits that are kept for a load; with more it is given up, and whoever loads goes on by himself.
const LOADING_TOLD_MAX: usize = 1_000;

/// How much views may hold, and for how long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Bytes of all views together; beyond it the fullest bucket gives up its least used nodes.
    pub bytes_max: usize,
    /// A node with more bytes than this is not held: its reads go to the store. At most half of
    /// `bytes_max`, so that a node that is held does not push itself out.
    pub node_bytes_max: usize,
    /// Seconds without a read after which a node is dropped, and after which one that was too large
    /// is tried again.
    pub idle_s: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { bytes_max: 256 << 20, node_bytes_max: 64 << 20, idle_s: 600 }
    }
}

/// The live entries of one node at one moment.
#[derive(Clone, Debug, Default)]
pub struct Table {
    entries: OrdMap<Key, Arc<Head>>,
    secondary: [OrdMap<Key, Key>; 3],
    bytes: usize,
}

impl Table {
    /// Rows of a store, but for the keys that are as `changed` says.
    pub(crate) fn of<'a>(
        rows: Vec<Head>,
        changed: impl Iterator<Item = (&'a Key, Option<&'a Arc<Head>>)>,
    ) -> Table {
        let mut table = Table::default();
        for row in rows {
            table.put(Arc::new(row));
        }
        for (key, head) in changed {
            match head {
                Some(head) => table.put(head.clone()),
                None => table.remove(key.as_str()),
            }
        }
        table
    }

    pub fn get(&self, key: &str) -> Option<&Arc<Head>> {
        self.entries.get(key)
    }

    /// The entry that has `key` as k2 (`nth` = 2), k3 or k4.
    pub fn by_secondary(&self, nth: u8, key: &str) -> Option<&Arc<Head>> {
        let index = self.secondary.get(usize::from(nth).checked_sub(2)?)?;
        self.entries.get(index.get(key)?)
    }

    /// Entries in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Head>> {
        self.entries.values()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes over what a commit says of one entry, unless a newer version of it is here already.
    fn take(&mut self, told: &Told) {
        let newest = self.get(told.key.as_str()).map_or(0, |head| head.ver.generation);
        if newest > told.generation {
            return;
        }
        match &told.head {
            Some(head) => self.put(head.clone()),
            None => self.remove(told.key.as_str()),
        }
    }

    fn put(&mut self, head: Arc<Head>) {
        self.remove(head.key.as_str());
        self.bytes += head_bytes(&head);
        for (index, key) in self.secondary.iter_mut().zip(&head.keys) {
            if let Some(key) = key {
                index.insert(key.clone(), head.key.clone());
            }
        }
        self.entries.insert(head.key.clone(), head);
    }

    fn remove(&mut self, key: &str) {
        let Some(old) = self.entries.remove(key) else { return };
        self.bytes -= head_bytes(&old);
        for (index, secondary) in self.secondary.iter_mut().zip(&old.keys) {
            if let Some(secondary) = secondary {
                index.remove(secondary);
            }
        }
    }
}

fn node_bytes(node: &Node) -> usize {
    NODE_BYTES + node.path.as_str().len() + node.layer.as_str().len()
}

fn head_bytes(head: &Head) -> usize {
    let secondary = head.keys.iter().flatten().map(|key| SECONDARY_BYTES + key.as_str().len());
    let secondary: usize = secondary.sum();
    ENTRY_BYTES + head.key.as_str().len() + head.value.as_str().len() + secondary
}

/// What a commit says of one entry.
#[derive(Clone, Debug)]
struct Told {
    key: Key,
    /// The version's; `u64::MAX` for an erasure, which ends whatever there was.
    generation: u64,
    /// `None` for a deletion.
    head: Option<Arc<Head>>,
}

/// What a node's slot holds.
#[derive(Debug)]
enum State {
    /// Rows are on their way; commits told meanwhile wait here, in their order.
    Loading(Vec<Told>),
    Ready(Arc<Table>),
    /// Over [`Limits::node_bytes_max`].
    Large,
    /// Dropped from the views; whoever still has the slot looks the node up again.
    Gone,
}

#[derive(Debug)]
struct Slot {
    state: ArcSwap<State>,
    /// Serialises those who replace `state`; readers never take it.
    writer: Mutex<()>,
    /// Bytes counted for this slot in `Views::bytes`.
    bytes: AtomicUsize,
    /// When it was last read, or its load began, in the seconds of [`Views::tick`].
    used_s: AtomicU32,
    /// Whether its load takes long.
    is_late: AtomicBool,
    /// Whether all that its load may have read of the store has been told.
    is_told: AtomicBool,
    /// Told when loading ends, and on each change.
    moved: Event,
}

/// What a lookup found.
#[derive(Clone, Debug)]
pub enum Lookup {
    Ready(Arc<Table>),
    /// The node is too large to be held; ask the store.
    Large,
    /// Not loaded.
    Absent,
}

/// Who loads an absent node.
#[derive(Debug)]
pub enum Load<'a> {
    /// The caller does: read the store, then give the rows to the ticket.
    Mine(Ticket<'a>),
    /// Somebody else does: wait for this, then look again.
    Wait(EventListener),
    /// Somebody else does and takes long: wait for this, or ask the store for what is wanted of it.
    Late(EventListener),
    /// It came in the meantime: look again.
    Done,
}

/// What a watch may begin with.
#[derive(Debug)]
pub(crate) enum Started {
    /// The node after the commit of this number, and after no part of a later one.
    Ready(Arc<Table>, u64),
    /// The store may have had a commit, as the node was read, that was not told yet: what is in the
    /// store by now must be told first.
    Untold(Untold),
    /// A commit is being applied: wait for this, then look again.
    Busy(EventListener),
    Large,
    Absent,
}

/// A node of which more may have been read than was told.
#[derive(Debug)]
pub(crate) struct Untold(Arc<Slot>);

impl Untold {
    /// All that was in the store when this was made has been told.
    pub(crate) fn told(self) {
        self.0.is_told.store(true, Ordering::SeqCst);
    }
}

/// Figures of all views, for statistics and metrics.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    pub hits: u64,
    pub misses: u64,
    /// Commits that changed a loaded node.
    pub writes: u64,
    pub evicted: u64,
    pub nodes: usize,
    pub bytes: usize,
}

/// All views of a neuron, keyed by node.
#[derive(Debug)]
pub struct Views {
    slots: papaya::HashMap<Node, Arc<Slot>, foldhash::fast::RandomState>,
    limits: Limits,
    bytes: AtomicUsize,
    /// Commits whose application has begun, and those that are applied: the same number, or one more
    /// while that one is being applied.
    begun: AtomicU64,
    applied: AtomicU64,
    /// Told when a commit is applied.
    calm: Event,
    now_s: AtomicU32,
    hits: AtomicU64,
    misses: AtomicU64,
    writes: AtomicU64,
    evicted: AtomicU64,
}

impl Views {
    pub fn new(limits: Limits) -> Views {
        let node_bytes_max = limits.node_bytes_max.min(limits.bytes_max / 2);
        let limits = Limits { node_bytes_max, ..limits };
        Views {
            slots: papaya::HashMap::default(),
            limits,
            bytes: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            calm: Event::new(),
            now_s: AtomicU32::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        }
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The node as it is held; counts a hit or a miss.
    pub fn lookup(&self, node: &Node) -> Lookup {
        let slots = self.slots.pin();
        let found = slots.get(node).map_or(Lookup::Absent, |slot| match &**slot.state.load() {
            State::Ready(table) => {
                let now_s = self.now_s.load(Ordering::Relaxed);
                if slot.used_s.load(Ordering::Relaxed) != now_s {
                    slot.used_s.store(now_s, Ordering::Relaxed);
                }
                Lookup::Ready(table.clone())
            }
            // Not a use: it may have shrunk, and is tried again when it has aged.
            State::Large => Lookup::Large,
            State::Loading(_) | State::Gone => Lookup::Absent,
        });
        let counter = if matches!(found, Lookup::Ready(_)) { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Starts loading an absent node, or joins whoever does. From here on every commit to the node
    /// is kept, so rows read from the store after this call can be merged with nothing lost.
    pub fn load(&self, node: &Node) -> Load<'_> {
        let slots = self.slots.pin();
        let fresh = || {
            Arc::new(Slot {
                state: ArcSwap::from_pointee(State::Loading(Vec::new())),
                writer: Mutex::new(()),
                bytes: AtomicUsize::new(0),
                used_s: AtomicU32::new(self.now_s.load(Ordering::Relaxed)),
                is_late: AtomicBool::new(false),
                is_told: AtomicBool::new(false),
                moved: Event::new(),
            })
        };
        match slots.try_insert_with(node.clone(), fresh) {
            Ok(slot) => {
                Load::Mine(Ticket { views: self, node: node.clone(), slot: Some(slot.clone()) })
            }
            Err(slot) => {
                let listener = slot.moved.listen();
                // Listening came first: an end of loading after this look is heard.
                match &**slot.state.load() {
                    State::Loading(_) if slot.is_late.load(Ordering::Relaxed) => {
                        Load::Late(listener)
                    }
                    State::Loading(_) => Load::Wait(listener),
                    State::Ready(_) | State::Large | State::Gone => Load::Done,
                }
            }
        }
    }

    /// A listener for the next change of a loaded node; `None` when it is not loaded.
    pub fn changed(&self, node: &Node) -> Option<EventListener> {
        self.slots.pin().get(node).map(|slot| slot.moved.listen())
    }

    /// The node as a watch may begin with it. It does not load it.
    pub(crate) fn start(&self, node: &Node) -> Started {
        let is_calm = || {
            let applied = self.applied.load(Ordering::SeqCst);
            (self.begun.load(Ordering::SeqCst) == applied).then_some(applied)
        };
        loop {
            let applied = self.applied.load(Ordering::SeqCst);
            let table = match self.lookup(node) {
                Lookup::Ready(table) => table,
                Lookup::Large => return Started::Large,
                Lookup::Absent => return Started::Absent,
            };
            let is_told = self.slots.pin().get(node).map(|slot| {
                slot.is_told.load(Ordering::SeqCst).then_some(()).ok_or_else(|| slot.clone())
            });
            match is_told {
                None => return Started::Absent,
                Some(Err(slot)) => return Started::Untold(Untold(slot)),
                // Nothing was applied since before the look.
                Some(Ok(())) if is_calm() == Some(applied) => {
                    return Started::Ready(table, applied);
                }
                Some(Ok(())) => {}
            }
            let calm = self.calm.listen();
            // Listening came first: an end after this look is heard.
            if is_calm().is_none() {
                return Started::Busy(calm);
            }
        }
    }

    /// Brings loaded nodes up to date with a commit, in the order in which they are told; answers its
    /// number, the first being 1.
    pub fn apply(&self, events: &[store::Event]) -> u64 {
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        self.apply_all(events);
        self.applied.store(number, Ordering::SeqCst);
        self.calm.notify(usize::MAX);
        number
    }

    fn apply_all(&self, events: &[store::Event]) {
        let mut rest = events;
        while let Some(first) = rest.first() {
            match first {
                store::Event::Dropped(bucket) => {
                    self.drop_bucket(bucket);
                    rest = &rest[1..];
                }
                store::Event::Erased(entry) => {
                    let told = Told { key: entry.key.clone(), generation: u64::MAX, head: None };
                    self.change(&entry.node, &[told]);
                    rest = &rest[1..];
                }
                store::Event::Changed(change) => {
                    let node = &change.entry.node;
                    let mut told = Vec::new();
                    while let Some(store::Event::Changed(next)) = rest.first()
                        && next.entry.node == *node
                    {
                        if let Some(version) = &next.version {
                            told.push(Told {
                                key: next.entry.key.clone(),
                                generation: version.ver.generation,
                                head: Head::of(&next.entry.key, version).map(Arc::new),
                            });
                        }
                        rest = &rest[1..];
                    }
                    self.change(node, &told);
                }
            }
        }
        self.make_room();
    }

    /// Tells the time; drops nodes that were not read for [`Limits::idle_s`], and finds loads that take
    /// long.
    pub fn tick(&self, now_s: u32) {
        self.now_s.store(now_s, Ordering::Relaxed);
        let slots = self.slots.pin();
        for (node, slot) in &slots {
            // The clock may have been set back: what was used later than now was used now.
            let used_s = slot.used_s.fetch_min(now_s, Ordering::Relaxed).min(now_s);
            let idle_s = now_s - used_s;
            if !is_loading(slot) {
                if idle_s >= self.limits.idle_s {
                    self.discard(node, slot);
                }
            } else if idle_s >= LOADING_S && !slot.is_late.swap(true, Ordering::Relaxed) {
                slot.moved.notify(usize::MAX);
            }
        }
    }

    pub fn stats(&self) -> Stats {
        Stats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
            nodes: self.slots.len(),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    /// Bytes counted anew from all that is held, for checkers: [`Stats::bytes`] is the same number
    /// whenever nobody loads or writes.
    pub fn recount(&self) -> usize {
        let slots = self.slots.pin();
        let bytes = slots.iter().map(|(node, slot)| match &**slot.state.load() {
            State::Ready(table) => {
                node_bytes(node) + table.iter().map(|head| head_bytes(head)).sum::<usize>()
            }
            State::Large => node_bytes(node),
            State::Loading(_) | State::Gone => 0,
        });
        bytes.sum()
    }

    fn change(&self, node: &Node, told: &[Told]) {
        let slots = self.slots.pin();
        let Some(slot) = slots.get(node) else { return };
        if let State::Loading(before) = &**slot.state.load()
            && before.len() + told.len() > LOADING_TOLD_MAX
        {
            return self.discard(node, slot);
        }
        let _writer = slot.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let next = match &**slot.state.load() {
            State::Gone => return,
            State::Large => State::Large,
            State::Loading(before) => {
                let mut all = before.clone();
                all.extend_from_slice(told);
                State::Loading(all)
            }
            State::Ready(table) => {
                let mut table = Table::clone(table);
                for one in told {
                    table.take(one);
                }
                self.settle(node, slot, table)
            }
        };
        slot.state.store(Arc::new(next));
        self.writes.fetch_add(told.len() as u64, Ordering::Relaxed);
        slot.moved.notify(usize::MAX);
    }

    /// Accounts for a table that is about to stand in its slot, or finds that it is too large.
    fn settle(&self, node: &Node, slot: &Slot, table: Table) -> State {
        if table.bytes > self.limits.node_bytes_max {
            slot.used_s.store(self.now_s.load(Ordering::Relaxed), Ordering::Relaxed);
            self.account(slot, node_bytes(node));
            return State::Large;
        }
        self.account(slot, node_bytes(node) + table.bytes);
        State::Ready(Arc::new(table))
    }

    /// Sets what is counted for a slot; whoever calls this holds the slot's writer lock.
    fn account(&self, slot: &Slot, bytes: usize) {
        let before = slot.bytes.swap(bytes, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes.fetch_sub(before, Ordering::Relaxed);
    }

    /// Makes room down to nine tenths of the budget: always the bucket that holds most gives up the
    /// node that it has not read for the longest time, so no account can push another out of a
    /// smaller share than its own.
    fn make_room(&self) {
        if self.bytes.load(Ordering::Relaxed) <= self.limits.bytes_max {
            return;
        }
        let target = self.limits.bytes_max / 10 * 9;
        let slots = self.slots.pin();
        let mut by_bucket: HashMap<&Bucket, Held<'_>> = HashMap::new();
        for (node, slot) in &slots {
            if is_loading(slot) {
                continue;
            }
            let held = by_bucket.entry(&node.bucket).or_default();
            held.bytes += slot.bytes.load(Ordering::Relaxed);
            held.nodes.push((slot.used_s.load(Ordering::Relaxed), node, slot));
        }
        let mut fullest: BinaryHeap<Held<'_>> = by_bucket
            .into_values()
            .map(|mut held| {
                held.nodes.sort_unstable_by(|a, b| (b.0, b.1).cmp(&(a.0, a.1)));
                held
            })
            .collect();
        while self.bytes.load(Ordering::Relaxed) > target
            && let Some(mut held) = fullest.pop()
        {
            if let Some((_, node, slot)) = held.nodes.pop() {
                held.bytes = held.bytes.saturating_sub(slot.bytes.load(Ordering::Relaxed));
                self.discard(node, slot);
                fullest.push(held);
            }
        }
    }

    fn discard(&self, node: &Node, slot: &Arc<Slot>) {
        let slots = self.slots.pin();
        if matches!(slots.remove_if(node, |_, held| Arc::ptr_eq(held, slot)), Ok(Some(_))) {
            let _writer = slot.writer.lock().unwrap_or_else(PoisonError::into_inner);
            slot.state.store(Arc::new(State::Gone));
            self.account(slot, 0);
            self.evicted.fetch_add(1, Ordering::Relaxed);
            slot.moved.notify(usize::MAX);
        }
    }

    fn drop_bucket(&self, bucket: &Bucket) {
        let slots = self.slots.pin();
        for (node, slot) in &slots {
            if node.bucket == *bucket {
                self.discard(node, slot);
            }
        }
    }
}

/// What one bucket holds, ordered by bytes; of equals by name, so that nothing depends on how maps
/// are hashed.
#[derive(Default)]
struct Held<'a> {
    bytes: usize,
    /// By time of last read, the longest ago at the end.
    nodes: Vec<(u32, &'a Node, &'a Arc<Slot>)>,
}

impl<'a> Ord for Held<'a> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |held: &Held<'a>| (held.bytes, held.nodes.first().map(|(_, node, _)| *node));
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Held<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for Held<'_> {}

impl PartialEq for Held<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

/// The right to fill one node. Dropped unused (a failed or abandoned load), it frees the node for
/// the next reader to try.
#[derive(Debug)]
pub struct Ticket<'a> {
    views: &'a Views,
    node: Node,
    slot: Option<Arc<Slot>>,
}

impl Ticket<'_> {
    /// Fills the node with rows that were read from the store after [`Views::load`]. A commit that
    /// was told meanwhile wins over its row.
    pub fn loaded(mut self, rows: Vec<Head>) -> Arc<Table> {
        let mut table = Table::of(rows, std::iter::empty());
        let Some(slot) = self.slot.take() else { return Arc::new(table) };
        let shown;
        {
            let _writer = slot.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let state = slot.state.load();
            if let State::Loading(told) = &**state {
                for one in told {
                    table.take(one);
                }
            }
            shown = Arc::new(table.clone());
            if !matches!(&**state, State::Gone) {
                slot.state.store(Arc::new(self.views.settle(&self.node, &slot, table)));
            }
        }
        slot.moved.notify(usize::MAX);
        self.views.make_room();
        shown
    }

    /// Marks the node as too large to be held.
    pub fn too_large(mut self) {
        let Some(slot) = self.slot.take() else { return };
        {
            let _writer = slot.writer.lock().unwrap_or_else(PoisonError::into_inner);
            if !matches!(&**slot.state.load(), State::Gone) {
                self.views.account(&slot, node_bytes(&self.node));
                slot.state.store(Arc::new(State::Large));
            }
        }
        slot.moved.notify(usize::MAX);
        self.views.make_room();
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.views.discard(&self.node, &slot);
        }
    }
}

fn is_loading(slot: &Slot) -> bool {
    matches!(&**slot.state.load(), State::Loading(_))
}
