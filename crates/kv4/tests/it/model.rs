//! The reference: every state that each entry has had, in the order of commits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use kv4::Head;
use kv4::address::{Bucket, Entry, Node};
use kv4::store::{Event, Listener};

/// Commits that were carried out and not told yet.
#[derive(Debug, Default)]
pub(crate) struct Untold(pub(crate) Mutex<Vec<Event>>);

impl Listener for Untold {
    fn committed(&self, events: &[Event]) {
        self.0.lock().unwrap().extend_from_slice(events);
    }
}

/// What readers may see: of each entry the states from the last one that was told to the last one
/// that was committed.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// `None` where the entry is not live. The first state is that of an entry never written.
    states: BTreeMap<Entry, Vec<Option<Head>>>,
    /// Place of the newest state that was told.
    told: BTreeMap<Entry, usize>,
    /// Buckets that were dropped at some time.
    dropped: BTreeSet<Bucket>,
}

impl History {
    /// Notes a commit that is not told yet.
    pub(crate) fn commit(&mut self, event: &Event) {
        match event {
            Event::Changed(change) => {
                let version = change.version.as_ref().expect("a commit has its version");
                let head = Head::of(&change.entry.key, version);
                self.push(change.entry.clone(), head);
            }
            Event::Erased(entry) => self.push(entry.clone(), None),
            Event::Dropped(bucket) => {
                self.dropped.insert(bucket.clone());
                for entry in self.of_bucket(bucket) {
                    self.push(entry, None);
                }
            }
        }
    }

    /// Notes that an event was told to the views.
    pub(crate) fn tell(&mut self, event: &Event) {
        match event {
            Event::Changed(change) => *self.told.entry(change.entry.clone()).or_default() += 1,
            Event::Erased(entry) => *self.told.entry(entry.clone()).or_default() += 1,
            Event::Dropped(bucket) => {
                for entry in self.of_bucket(bucket) {
                    *self.told.entry(entry).or_default() += 1;
                }
            }
        }
    }

    /// Whether a reader of an entry may see this.
    pub(crate) fn may_show(&self, entry: &Entry, shown: Option<&Head>) -> bool {
        let Some(states) = self.states.get(entry) else { return shown.is_none() };
        let told = self.told.get(entry).copied().unwrap_or(0);
        states[told..].iter().any(|state| state.as_ref() == shown)
    }

    pub(crate) fn was_dropped(&self, bucket: &Bucket) -> bool {
        self.dropped.contains(bucket)
    }

    /// Entries of a node that ever were.
    pub(crate) fn entries(&self, node: &Node) -> Vec<Entry> {
        self.states.keys().filter(|entry| entry.node == *node).cloned().collect()
    }

    fn of_bucket(&self, bucket: &Bucket) -> Vec<Entry> {
        self.states.keys().filter(|entry| entry.node.bucket == *bucket).cloned().collect()
    }

    fn push(&mut self, entry: Entry, head: Option<Head>) {
        self.states.entry(entry).or_insert_with(|| vec![None]).push(head);
    }
}

/// Shares what hears a store with the test that reads it.
pub(crate) fn untold() -> Arc<Untold> {
    Arc::default()
}
