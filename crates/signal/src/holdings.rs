//! How many bytes of what was said are held, and who holds most of them.

use std::collections::{BTreeMap, BTreeSet};

use kv4::Bucket;

use crate::ids::RoomId;

/// Who holds more is told apart by so many bytes, so that few messages change the order.
const GRAIN_BYTES: usize = 16 << 10;

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
    heaviest: BTreeSet<(usize, RoomId)>,
}

impl Holdings {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn bytes_of(&self, owner: &Bucket) -> usize {
        self.owners.get(owner).map_or(0, |owner| owner.bytes)
    }

    /// Notes that a room of an account holds so many bytes in place of so many.
    pub(crate) fn change(&mut self, owner: &Bucket, room: RoomId, before: usize, after: usize) {
        if before == after {
            return;
        }
        if !self.owners.contains_key(owner) {
            self.owners.insert(owner.clone(), Owner::default());
        }
        let Some(of_owner) = self.owners.get_mut(owner) else { return };
        self.bytes = self.bytes + after - before;
        let bytes_before = of_owner.bytes;
        of_owner.bytes = bytes_before + after - before;
        let bytes = of_owner.bytes;
        move_to(&mut of_owner.heaviest, &room, before, after);
        move_to(&mut self.heaviest, owner, bytes_before, bytes);
        if bytes == 0 {
            self.owners.remove(owner);
        }
    }

    /// A room of those that hold most, of the account that does.
    pub(crate) fn heaviest(&self) -> Option<RoomId> {
        let (_, owner) = self.heaviest.last()?;
        self.heaviest_of(owner)
    }

    /// A room of those of an account that hold most.
    pub(crate) fn heaviest_of(&self, owner: &Bucket) -> Option<RoomId> {
        self.owners.get(owner)?.heaviest.last().map(|(_, room)| *room)
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
    use super::*;

    #[test]
    fn who_holds_most_is_known() {
        let [ann, bob] = ["kv4_$ann_data", "kv4_$bob_data"].map(Bucket::from_stored);
        let mut holdings = Holdings::default();
        assert_eq!(holdings.heaviest(), None);
        holdings.change(&ann, RoomId(1), 0, GRAIN_BYTES);
        holdings.change(&ann, RoomId(2), 0, 2 * GRAIN_BYTES);
        holdings.change(&bob, RoomId(3), 0, 2 * GRAIN_BYTES);
        assert_eq!(holdings.heaviest(), Some(RoomId(2)), "ann's two rooms together hold more");
        assert_eq!(holdings.heaviest_of(&bob), Some(RoomId(3)));
        holdings.change(&bob, RoomId(3), 2 * GRAIN_BYTES, 5 * GRAIN_BYTES);
        assert_eq!(holdings.heaviest(), Some(RoomId(3)));
        assert_eq!(holdings.bytes(), 8 * GRAIN_BYTES);
        for (owner, room, bytes) in [(&ann, 1, 1), (&ann, 2, 2), (&bob, 3, 5)] {
            holdings.change(owner, RoomId(room), bytes * GRAIN_BYTES, 0);
        }
        assert_eq!(holdings.heaviest(), None);
        assert!(holdings.owners.is_empty() && holdings.heaviest.is_empty());
        assert_eq!((holdings.bytes(), holdings.bytes_of(&ann)), (0, 0));
    }
}
