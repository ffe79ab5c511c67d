//! One room: the names present in it and their sockets.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use kv4::Bucket;
use wire::frames::{Name, percent_encode};
use wire::names::{NameError, Path};

use crate::ids::SocketId;

/// What a room is called within its path: one path segment.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Topic(Arc<str>);

impl Topic {
    /// # Errors
    /// Anything but exactly one legal path segment.
    pub fn parse(text: &str) -> Result<Topic, NameError> {
        match Path::parse(text)?.split_last() {
            Some((parent, topic)) if parent.is_root() => Ok(Topic(Arc::from(topic))),
            _ => Err(NameError::BadSegment),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Topic {
    /// `topic`, which v2 and everyone who names none gets.
    fn default() -> Topic {
        Topic(Arc::from("topic"))
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a room is. Two topics of one path are two rooms, though frames in both are from
/// `<path>/<name>`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Address {
    pub bucket: Bucket,
    pub path: Path,
    pub topic: Topic,
}

/// Who is in one room. It exists only while somebody is.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) address: Arc<Address>,
    /// The sockets of each name, the longest here first. No name is without one.
    members: BTreeMap<Name, Vec<SocketId>>,
    /// How many sockets `members` holds.
    sockets: usize,
    /// All of `members`' sockets as broadcasts share them; made when one needs it, dropped when
    /// somebody comes or goes.
    everyone: Option<Arc<[SocketId]>>,
}

/// Whether a socket's coming or going changes who is present.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Presence {
    Changed,
    Same,
}

impl Room {
    pub(crate) fn new(address: Address) -> Room {
        Room { address: Arc::new(address), members: BTreeMap::new(), sockets: 0, everyone: None }
    }

    pub(crate) fn join(&mut self, name: &Name, socket: SocketId) -> Presence {
        let sockets = self.members.entry(name.clone()).or_default();
        sockets.push(socket);
        self.sockets += 1;
        self.everyone = None;
        if sockets.len() == 1 { Presence::Changed } else { Presence::Same }
    }

    pub(crate) fn leave(&mut self, name: &Name, socket: SocketId) -> Presence {
        let Some(sockets) = self.members.get_mut(name) else {
            return Presence::Same;
        };
        let before = sockets.len();
        sockets.retain(|known| *known != socket);
        self.sockets -= before - sockets.len();
        self.everyone = None;
        if sockets.is_empty() {
            self.members.remove(name);
            return Presence::Changed;
        }
        Presence::Same
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Number of sockets.
    pub(crate) fn len(&self) -> usize {
        self.sockets
    }

    /// Names present, sorted.
    pub(crate) fn names(&self) -> impl ExactSizeIterator<Item = &Name> {
        self.members.keys()
    }

    /// Names and their sockets, sorted by name.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&Name, &[SocketId])> {
        self.members.iter().map(|(name, sockets)| (name, &sockets[..]))
    }

    /// The sockets of one name.
    pub(crate) fn sockets_of(&self, name: &str) -> &[SocketId] {
        self.members.get(name).map_or(&[], |sockets| sockets)
    }

    /// The member that `to` means: a name as frames spell it, the same below the room's path, or
    /// an identity that is not yet percent-encoded. The first spelling that is present counts.
    pub(crate) fn resolve(&self, to: &str) -> Option<&Name> {
        let present = |name: &str| self.members.get_key_value(name).map(|(name, _)| name);
        let below = || {
            let rest = to.strip_prefix(self.address.path.as_str())?;
            let rest = rest.strip_prefix('/').or(self.address.path.is_root().then_some(rest))?;
            present(rest).or_else(|| present(&percent_encode(rest)))
        };
        present(to).or_else(below).or_else(|| present(&percent_encode(to)))
    }

    /// Every socket once.
    pub(crate) fn everyone(&mut self) -> Arc<[SocketId]> {
        let members = &self.members;
        let everyone =
            self.everyone.get_or_insert_with(|| members.values().flatten().copied().collect());
        Arc::clone(everyone)
    }
}
