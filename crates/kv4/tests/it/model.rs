//! The reference: every state that each entry has had, in the order of commits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use kv4::Head;
use kv4::address::{Entry, Node};
use kv4::store::{Event, Listener};

/// Hears a store and keeps what it heard for the test.
#[derive(Debug, Default)]
pub(crate) struct Heard(Mutex<Vec<Event>>);

impl Heard {
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Listener for Heard {
    fn committed(&self, events: &[Event]) {
        self.0.lock().unwrap().extend_from_slice(events);
    }
}

/// A commit with what it made of entries: their places in [`History::states`].
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) event: Event,
    leads_to: Vec<(Entry, usize)>,
}

/// What readers may see: of each entry the states from the last one that was told to the last one
/// that was committed.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// `None` where the entry is not live. The first state is that of an entry never written.
    states: BTreeMap<Entry, Vec<Option<Head>>>,
    /// Place of the newest state that was told.
    told: BTreeMap<Entry, usize>,
    /// Entries that lost their series at some time, and so begin again at generation 1.
    begun_anew: BTreeSet<Entry>,
    /// Newest generation that a reader saw.
    seen: BTreeMap<Entry, u64>,
    /// Drops of buckets that were told.
    pub(crate) drops_told: usize,
}

impl History {
    /// Notes a commit that is not told yet.
    pub(crate) fn commit(&mut self, event: Event) -> Commit {
        let states = match &event {
            Event::Changed(change) => {
                let version = change.version.as_ref().expect("a commit has its version");
                vec![(change.entry.clone(), Head::of(&change.entry.key, version))]
            }
            Event::Erased(entry) => vec![(entry.clone(), None)],
            Event::Dropped(bucket) => {
                let entries = self.states.keys().filter(|entry| entry.node.bucket == *bucket);
                entries.map(|entry| (entry.clone(), None)).collect()
            }
        };
        let mut leads_to = Vec::new();
        let is_end = !matches!(event, Event::Changed(_));
        for (entry, state) in states {
            if is_end {
                self.begun_anew.insert(entry.clone());
            }
            let known = self.states.entry(entry.clone()).or_insert_with(|| vec![None]);
            known.push(state);
            leads_to.push((entry, known.len() - 1));
        }
        Commit { event, leads_to }
    }

    /// Notes that a commit was told to the views.
    pub(crate) fn tell(&mut self, commit: Commit) {
        self.told.extend(commit.leads_to);
        self.drops_told += usize::from(matches!(commit.event, Event::Dropped(_)));
    }

    /// Whether a reader of an entry may see this.
    pub(crate) fn may_show(&self, entry: &Entry, shown: Option<&Head>) -> bool {
        let Some(states) = self.states.get(entry) else { return shown.is_none() };
        let told = self.told.get(entry).copied().unwrap_or(0);
        states[told..].iter().any(|state| state.as_ref() == shown)
    }

    /// Whether a reader who sees this does not go back in time: a live version is never followed by
    /// an older one.
    pub(crate) fn goes_on(&mut self, entry: &Entry, shown: Option<&Head>) -> bool {
        let Some(head) = shown.filter(|_| !self.begun_anew.contains(entry)) else { return true };
        let seen = self.seen.entry(entry.clone()).or_default();
        let before = std::mem::replace(seen, head.ver.generation);
        before <= head.ver.generation
    }

    /// Entries of a node that ever were.
    pub(crate) fn entries(&self, node: &Node) -> Vec<Entry> {
        self.states.keys().filter(|entry| entry.node == *node).cloned().collect()
    }
}
