//! Numbers that stand for sockets and rooms, and the table that they are looked up in.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// One connection. The shell gives each a number that it never gives again.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SocketId(pub u64);

/// One room, for as long as it exists.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct RoomId(pub(crate) u64);

/// A table by id. It is never iterated where order could be seen.
pub(crate) type IdMap<I, T> = HashMap<I, T, BuildHasherDefault<IdHasher>>;

/// Mixes a number that no client chooses: quicker than the standard hasher, which defends against
/// chosen keys, and the same in every run.
#[derive(Debug, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        let mixed = (self.0 ^ id ^ id >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ mixed >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
