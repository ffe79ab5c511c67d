//! How many bytes of what was said, and of sessions that may come back, are held, and who holds most of
//! them.

use std::collections::{BTreeMap, BTreeSet};

use kv4::Bucket;

use crate::ids::RoomId;

/// Who holds more is told apart by so many bytes, so that few messages change the order.
const GRAIN_BYTES: usize = 16 << 10;

/// Bytes that somebody holds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Held {
    pub(crate) messages: usize,
    pub(crate) sessions: usize,
}

impl Held {
    fn all(self) -> usize {
        self.messages + self.sessions
    }
}

/// What an account lets go of first: sessions when it has no messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Heaviest {
    Messages(RoomId),
    Sessions(RoomId),
}

/// Bytes of all histories, by account and room.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    bytes: usize,
    owners: BTreeMap<Bucket, Owner>,
    /// By their grains, those who hold something.
    heaviest: BTreeSet<(usize, Bucket)>,
}

/// What the rooms of one account hold, its sub-accounts' too.
#[derive(Debug, Default)]
struct Owner {
    bytes: usize,
    by_messages: BTreeSet<(usize, RoomId)>,
    by_sessions: BTreeSet<(usize, RoomId)>,
}

impl Holdings {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn bytes_of(&self, owner: &Bucket) -> usize {
        self.owners.get(owner).map_or(0, |owner| owner.bytes)
    }

    /// Notes that a room of an account holds so much in place of so much.
    pub(crate) fn change(&mut self, owner: &Bucket, room: RoomId, before: Held, after: Held) {
        if before == after {
            return;
        }
        if !self.owners.contains_key(owner) {
            self.owners.insert(owner.clone(), Owner::default());
        }
        let Some(of_owner) = self.owners.get_mut(owner) else { return };
        self.bytes = self.bytes + after.all() - before.all();
        let bytes_before = of_owner.bytes;
        of_owner.bytes = bytes_before + after.all() - before.all();
        let bytes = of_owner.bytes;
        move_to(&mut of_owner.by_messages, &room, before.messages, after.messages);
        move_to(&mut of_owner.by_sessions, &room, before.sessions, after.sessions);
        move_to(&mut self.heaviest, owner, bytes_before, bytes);
        if bytes == 0 {
            self.owners.remove(owner);
        }
    }

    /// What is to be let go of first, of the account that holds most.
    pub(crate) fn heaviest(&self) -> Option<Heaviest> {
        let (_, owner) = self.heaviest.last()?;
        self.heaviest_of(owner)
    }

    /// The same of an account: of the rooms that hold most.
    pub(crate) fn heaviest_of(&self, owner: &Bucket) -> Option<Heaviest> {
        let owner = self.owners.get(owner)?;
        let messages = owner.by_messages.last().map(|(_, room)| Heaviest::Messages(*room));
        messages.or_else(|| owner.by_sessions.last().map(|(_, room)| Heaviest::Sessions(*room)))
    }
}

/// Puts somebody where he belongs among those who hold something.
fn move_to<T: Clone + Ord>(
    heaviest: &mut BTreeSet<(usize, T)>,
    who: &T,
    before: usize,
    after: usize,
) {
    let [before, after] = [before, after].map(|bytes| bytes.div_ceil(GRAIN_BYTES));
    if before == after {
        return;
    }
    heaviest.remove(&(before, who.clone()));
    if after > 0 {
        heaviest.insert((after, who.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::Heaviest::{Messages, Sessions};
    use super::*;

    fn said(grains: usize) -> Held {
        Held { messages: grains * GRAIN_BYTES, sessions: 0 }
    }

    fn lost(grains: usize) -> Held {
        Held { messages: 0, sessions: grains * GRAIN_BYTES }
    }

    #[test]
    fn who_holds_most_is_known() {
        let [ann, bob] = ["kv4_$ann_data", "kv4_$bob_data"].map(Bucket::from_stored);
        let mut holdings = Holdings::default();
        assert_eq!(holdings.heaviest(), None);
        holdings.change(&ann, RoomId(1), said(0), said(1));
        holdings.change(&ann, RoomId(2), said(0), said(2));
        holdings.change(&bob, RoomId(3), said(0), said(2));
        assert_eq!(
            holdings.heaviest(),
            Some(Messages(RoomId(2))),
            "ann's rooms together hold more"
        );
        assert_eq!(holdings.heaviest_of(&bob), Some(Messages(RoomId(3))));
        holdings.change(&bob, RoomId(3), said(2), said(5));
        assert_eq!(holdings.heaviest(), Some(Messages(RoomId(3))));
        assert_eq!(holdings.bytes(), 8 * GRAIN_BYTES);
        for (owner, room, grains) in [(&ann, 1, 1), (&ann, 2, 2), (&bob, 3, 5)] {
            holdings.change(owner, RoomId(room), said(grains), said(0));
        }
        assert_eq!(holdings.heaviest(), None);
        assert!(holdings.owners.is_empty() && holdings.heaviest.is_empty());
        assert_eq!((holdings.bytes(), holdings.bytes_of(&ann)), (0, 0));
    }

    /// Sessions go after the messages of their account, and not after those of others.
    #[test]
    fn who_holds_most_by_his_sessions_lets_go_of_his_own() {
        let [ann, bob] = ["kv4_$ann_data", "kv4_$bob_data"].map(Bucket::from_stored);
        let mut holdings = Holdings::default();
        holdings.change(&ann, RoomId(1), lost(0), lost(3));
        holdings.change(&bob, RoomId(2), said(0), said(2));
        assert_eq!(holdings.heaviest(), Some(Sessions(RoomId(1))));
        holdings.change(&ann, RoomId(3), said(0), said(1));
        assert_eq!(holdings.heaviest(), Some(Messages(RoomId(3))));
        assert_eq!(holdings.bytes_of(&ann), 4 * GRAIN_BYTES);
    }
}
