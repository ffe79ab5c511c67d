//! What watches are told: a start, and changes with the texts that those who hear them share.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use wire::json::push_string;
use wire::names::Key;

use crate::address::Entry;
use crate::version::{Head, Version};
use crate::view::Table;

/// Bytes that a queued change is taken to have beside its texts.
const TOLD_BYTES: usize = 256;

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
pub(super) enum What {
    Put(Arc<Head>),
    /// With the `_ver_` of the deletion.
    Deleted(crate::Ver),
    Erased,
}

impl Told {
    pub(super) fn new(entry: &Entry, what: What) -> Arc<Told> {
        let (json, event, frame) = Default::default();
        Arc::new(Told { entry: entry.clone(), what, json, event, frame })
    }

    pub(super) fn of(entry: &Entry, version: &Version) -> Arc<Told> {
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

    pub(super) fn bytes(&self) -> usize {
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
