//! Which message is the last of a socket and a destination, until a flush.
//!
//! A table of our own, since it is emptied at each flush by a count that goes up, at no cost for what it
//! once held. Addresses come from the network, so the hash has a seed that nobody knows.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};

use crate::SocketId;

/// Places that a table begins with, a power of two.
const PLACES: usize = 64;

#[derive(Debug)]
pub(crate) struct Flows {
    /// A power of two; at most half of them are taken.
    places: Vec<Place>,
    taken: usize,
    /// What is marked otherwise is of an earlier flush, and free.
    mark: u32,
    seeds: [u64; 3],
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    mark: u32,
    message: u32,
    hash: u64,
}

impl Flows {
    pub(crate) fn new() -> Flows {
        let state = RandomState::new();
        Flows {
            places: vec![Place::default(); PLACES],
            taken: 0,
            mark: 1,
            seeds: [1, 2, 3].map(|number: u64| state.hash_one(number)),
        }
    }

    /// Forgets all messages.
    pub(crate) fn clear(&mut self) {
        self.taken = 0;
        self.mark = self.mark.wrapping_add(1);
        if self.mark == 0 {
            self.places.fill(Place::default());
            self.mark = 1;
        }
    }

    /// Where the number of a flow's message is kept, for the caller to set; 0 when it has none yet. `is_of`
    /// says whether a message is of the flow.
    pub(crate) fn message(
        &mut self,
        socket: SocketId,
        to: SocketAddr,
        is_of: impl Fn(u32) -> bool,
    ) -> &mut u32 {
        if 2 * (self.taken + 1) > self.places.len() {
            self.grow();
        }
        let hash = self.hash(socket, to);
        let mut at = self.first(hash);
        loop {
            let place = self.places[at];
            if place.mark != self.mark {
                self.places[at] = Place { mark: self.mark, message: 0, hash };
                self.taken += 1;
                break;
            }
            if place.hash == hash && is_of(place.message) {
                break;
            }
            at = (at + 1) & (self.places.len() - 1);
        }
        &mut self.places[at].message
    }

    fn grow(&mut self) {
        let places = vec![Place::default(); 2 * self.places.len()];
        for place in std::mem::replace(&mut self.places, places) {
            if place.mark != self.mark {
                continue;
            }
            let mut at = self.first(place.hash);
            while self.places[at].mark == self.mark {
                at = (at + 1) & (self.places.len() - 1);
            }
            self.places[at] = place;
        }
    }

    fn first(&self, hash: u64) -> usize {
        hash as usize & (self.places.len() - 1)
    }

    fn hash(&self, socket: SocketId, to: SocketAddr) -> u64 {
        let [a, b, c] = self.seeds;
        let rest = u64::from(socket.0) << 16 | u64::from(to.port());
        match to.ip() {
            IpAddr::V4(ip) => fold(u64::from(u32::from(ip)) ^ a, rest ^ b),
            IpAddr::V6(ip) => {
                let bits = u128::from(ip);
                let ip = fold((bits >> 64) as u64 ^ a, bits as u64 ^ b);
                fold(ip, rest ^ c)
            }
        }
    }
}

/// Both halves of a product, of which each bit depends on bits of both factors.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}
