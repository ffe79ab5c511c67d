//! One room: the names present in it and their sockets.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use kv4::Bucket;
use wire::frames::{Generation, Name, Present};
use wire::names::{NameError, Path};

use crate::history::History;
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

/// Who is in one room, and what was said there. It exists while somebody is in it, or may come back.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) address: Arc<Address>,
    /// The account that it is of, in whose share it holds what was said.
    pub(crate) owner: Bucket,
    /// No name is without a socket.
    members: BTreeMap<Name, Member>,
    /// How many sockets of each generation `members` holds.
    sockets: [usize; Generation::ALL.len()],
    /// All of `members`' sockets of each generation, as broadcasts share them; made when one needs it,
    /// dropped when somebody comes or goes.
    lists: [Option<Arc<[SocketId]>>; Generation::ALL.len()],
    /// What v4 sockets may come back to; none in a room that never had one.
    pub(crate) history: Option<Box<History>>,
}

/// One name in a room.
#[derive(Debug, Default)]
pub(crate) struct Member {
    /// The longest here first.
    sockets: Vec<(SocketId, Generation)>,
    /// What stands beside the name, as JSON text: the last that one of its sockets said.
    pub(crate) data: Option<Arc<str>>,
}

impl Member {
    pub(crate) fn sockets(&self) -> impl ExactSizeIterator<Item = SocketId> + '_ {
        self.sockets.iter().map(|(socket, _)| *socket)
    }
}

/// Whether a socket's coming or going changes who is present.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Presence {
    Changed,
    Same,
}

impl Room {
    pub(crate) fn new(address: Address) -> Room {
        Room {
            owner: address.bucket.top(),
            address: Arc::new(address),
            members: BTreeMap::new(),
            sockets: [0; 3],
            lists: [const { None }; 3],
            history: None,
        }
    }

    pub(crate) fn join(
        &mut self,
        name: &Name,
        socket: SocketId,
        generation: Generation,
    ) -> Presence {
        let member = self.members.entry(name.clone()).or_default();
        member.sockets.push((socket, generation));
        let presence = if member.sockets.len() == 1 { Presence::Changed } else { Presence::Same };
        self.sockets[generation as usize] += 1;
        self.lists[generation as usize] = None;
        presence
    }

    pub(crate) fn leave(&mut self, name: &Name, socket: SocketId) -> Presence {
        let Some(member) = self.members.get_mut(name) else {
            return Presence::Same;
        };
        if let Some(at) = member.sockets.iter().position(|(known, _)| *known == socket) {
            let (_, generation) = member.sockets.remove(at);
            self.sockets[generation as usize] -= 1;
            self.lists[generation as usize] = None;
        }
        if member.sockets.is_empty() {
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
        self.sockets.iter().sum()
    }

    /// Number of sockets of a generation.
    pub(crate) fn sockets_of_generation(&self, generation: Generation) -> usize {
        self.sockets[generation as usize]
    }

    /// Names present, sorted.
    pub(crate) fn names(&self) -> impl ExactSizeIterator<Item = &Name> {
        self.members.keys()
    }

    /// Names present with what stands beside them, sorted.
    pub(crate) fn present(&self) -> impl Iterator<Item = Present<'_>> {
        self.members.iter().map(|(name, member)| Present { name, data: member.data.as_deref() })
    }

    /// Names and what is known of them, sorted by name.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&Name, &Member)> {
        self.members.iter()
    }

    pub(crate) fn member(&self, name: &str) -> Option<&Member> {
        self.members.get(name)
    }

    /// Sets what stands beside a name; answers whether that was something else.
    pub(crate) fn set_data(&mut self, name: &Name, data: Option<Arc<str>>) -> bool {
        let Some(member) = self.members.get_mut(name) else { return false };
        let is_new = member.data != data;
        member.data = data;
        is_new
    }

    /// The sockets of one name, the longest here first.
    pub(crate) fn sockets_of(&self, name: &str) -> &[(SocketId, Generation)] {
        self.members.get(name).map_or(&[], |member| &member.sockets)
    }

    /// The name that `to` means, present or not: a name as frames spell it, the same below the room's
    /// path, or an identity that is not yet percent-encoded. Who else is here makes no difference to it.
    pub(crate) fn named(&self, to: &str) -> Option<Name> {
        let path = &self.address.path;
        let below = to.strip_prefix(path.as_str()).and_then(|rest| match path.is_root() {
            true => Some(rest),
            false => rest.strip_prefix('/'),
        });
        Name::meant(below.unwrap_or(to)).ok()
    }

    /// The same, if it is present, or was lost and may come back.
    pub(crate) fn resolve(&self, to: &str) -> Option<&Name> {
        let name = self.named(to)?;
        let present = self.members.get_key_value(&name).map(|(name, _)| name);
        present.or_else(|| self.history.as_ref()?.lost(&name))
    }

    /// Every socket of a generation once.
    pub(crate) fn everyone(&mut self, generation: Generation) -> Arc<[SocketId]> {
        let members = &self.members;
        let everyone = self.lists[generation as usize].get_or_insert_with(|| {
            let sockets = members.values().flat_map(|member| &member.sockets);
            let of_it = sockets.filter(|(_, speaks)| *speaks == generation);
            of_it.map(|(socket, _)| *socket).collect()
        });
        Arc::clone(everyone)
    }
}
