//! A TURN server (RFC 8656) over STUN (RFC 8489): who has an allocation, whom it may hear, and where each
//! packet goes.
//!
//! [`Server`] is a state machine. The shell tells it of what comes from clients ([`Server::handle_client`])
//! and from peers ([`Server::handle_peer`]), of time, and of what became of what it asked for; a packet's
//! way is the answer, everything else is drained by [`Server::poll_output`]. A neuron has one for each core,
//! and they share [`Relayed`]. Not here: sockets, and who may be a user at all ([`Passwords`], and
//! [`Output::Admit`], which is answered when it is known).
//!
//! A client is known by where it sends from, so nothing is kept of one that has proven nothing; an
//! allocation by its slot; timers by the second. What a packet costs depends on none of their numbers.

mod allocate;
mod allocation;
mod auth;
mod caps;
mod draw;
mod output;
mod packets;
mod relayed;
mod requests;
mod settings;
mod wheel;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::FixedState;

pub use self::allocate::Unadmitted;
use self::allocation::{Allocation, Stage};
use self::caps::Caps;
use self::draw::Draw;
pub use self::output::{Asked, Client, Forward, Head, Output, Session, Traffic, Why};
pub use self::relayed::{Found, Payer, QuotaReached, Quotas, RelayId, Relayed};
pub use self::settings::{RelayedIp, Settings};
use self::wheel::Wheel;
use crate::nonce::Nonces;
use crate::peers::{Denied, Peers};
use crate::stun::Family;

/// Whose timer is that of the reservations, in the wheel.
const RESERVATIONS: u32 = u32::MAX;

/// Which passwords a user name may have.
pub trait Passwords: Send {
    /// None for a name that is nobody's, or no longer; several while a secret is being changed. `unix_s` is
    /// in seconds since 1970.
    fn of(&self, unix_s: u64, username: &str) -> Vec<String>;
}

/// One server: all clients whose packets come to one thread.
pub struct Server {
    number: u8,
    settings: Settings,
    relayed: Arc<Relayed>,
    peers: Peers,
    /// Where new clients are sent by listener, while it takes none.
    draining: Option<BTreeMap<u16, SocketAddr>>,
    passwords: Box<dyn Passwords>,
    nonces: Nonces,
    caps: Caps,
    draw: Draw,
    begun: Instant,
    /// A moment, and what the clock showed then, in seconds since 1970.
    clock: (Instant, u64),
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Never iterated: its order is nobody's.
    clients: HashMap<Client, u32, FixedState>,
    wheel: Wheel,
    /// The second of the wheel at which the reservations are looked at.
    reservations_due_s: u64,
    indications: u64,
    outputs: VecDeque<Output>,
    counters: Counters,
}

/// A place for an allocation.
#[derive(Debug)]
struct Slot {
    generation: u32,
    allocation: Option<Box<Allocation>>,
    /// The first second of the wheel at which it is looked at, whoever is in it by then.
    due_s: u64,
}

/// Of a slot that is not in the wheel.
const NEVER: u64 = u64::MAX;

/// What happened since the start.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Datagrams and frames that are no message of STUN or TURN, or not to be answered.
    pub malformed: u64,
    /// Answers to who only asked where he is seen.
    pub bindings: u64,
    /// All answers to who has not proven who he is, and those that were left out for a bound of them.
    pub unproven: u64,
    pub capped: u64,
    pub allocated: u64,
    pub ended: u64,
    /// Allocations that were refused after their user was known.
    pub unallocated: u64,
    /// Packets of peers without a permission.
    pub unpermitted: u64,
    /// Data of clients for a channel or an address that they may not send to.
    pub unbound: u64,
    /// Packets beyond the rates of an allocation.
    pub limited: u64,
    /// Requests for, and packets to, peers that are refused.
    pub denied: u64,
}

/// Whether a peer may be relayed to. One at an address that this neuron relays by may be named: each packet
/// asks whose it is.
fn look(peers: &Peers, relayed: &Relayed, peer: SocketAddr) -> Result<(), Denied> {
    if relayed.is_own(peer.ip()) { Ok(()) } else { peers.look(peer) }
}

/// The same, and nothing that is sent elsewhere comes back to where this neuron relays by.
fn with_own(mut peers: Peers, relayed: &Relayed) -> Peers {
    for ip in relayed.ips() {
        peers.own(ip);
    }
    peers
}

/// What it has of what servers share is given back, whatever becomes of its thread.
impl Drop for Server {
    fn drop(&mut self) {
        for slot in 0..self.slots.len() as u32 {
            self.remove(slot, Why::Ended);
        }
    }
}

impl Hash for Client {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let bits = match self.address.ip() {
            IpAddr::V4(ip) => u128::from(u32::from(ip)),
            IpAddr::V6(ip) => u128::from(ip),
        };
        state.write_u128(bits);
        state.write_u64(u64::from(self.address.port()) << 16 | u64::from(self.listener));
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("number", &self.number)
            .field("allocations", &self.len())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// `number` tells it from others that share `relayed`; `seed` is random and secret; `nonces` are the
    /// cluster's.
    #[expect(clippy::too_many_arguments, reason = "each is another thing, and all are needed")]
    pub fn new(
        number: u8,
        settings: Settings,
        relayed: Arc<Relayed>,
        peers: Peers,
        passwords: Box<dyn Passwords>,
        nonces: Nonces,
        seed: [u8; 32],
        now: Instant,
        unix_s: u64,
    ) -> Server {
        let mut draw = Draw::new(seed);
        Server {
            number,
            peers: with_own(peers, &relayed),
            relayed,
            draining: None,
            passwords,
            nonces,
            caps: Caps::new(settings.refusals_per_source, draw.number()),
            begun: now,
            clock: (now, unix_s),
            slots: Vec::new(),
            free: Vec::new(),
            clients: HashMap::with_hasher(FixedState::with_seed(draw.number())),
            wheel: Wheel::new(now),
            reservations_due_s: NEVER,
            indications: draw.number(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            draw,
            settings,
        }
    }

    /// Tells what the clock shows, in seconds since 1970; in between it goes with `now`.
    pub fn set_clock(&mut self, now: Instant, unix_s: u64) {
        self.clock = (now, unix_s);
    }

    /// Other peers may be relayed to from here on: what is permitted and bound to others is no longer.
    pub fn set_peers(&mut self, peers: Peers) {
        self.peers = with_own(peers, &self.relayed);
        let Server { slots, peers, relayed, .. } = self;
        for allocation in slots.iter_mut().filter_map(|slot| slot.allocation.as_deref_mut()) {
            let may = |peer| look(peers, relayed, peer).is_ok();
            allocation.permissions.retain(|one| may(SocketAddr::new(one.ip, u16::MAX)));
            allocation.channels.retain(|one| may(one.peer));
        }
    }

    /// Takes no new clients; those of a listener are sent to another server, if there is one (RFC 8656 §7.2,
    /// 300), whose address is of the listener's family (RFC 8489 §14.15).
    pub fn drain(&mut self, alternates: BTreeMap<u16, SocketAddr>) {
        self.draining = Some(alternates);
    }

    /// Its stream is closed, or nothing can be sent to it any more.
    pub fn handle_gone(&mut self, client: Client) {
        if let Some(&slot) = self.clients.get(&client) {
            self.remove(slot, Why::Left);
        }
    }

    /// Looks at who is due. To be called when [`Server::poll_timeout`] says.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((second, slot)) = self.wheel.take(now) {
            if slot == RESERVATIONS {
                if second == self.reservations_due_s {
                    self.reservations_due_s = NEVER;
                    self.arrange_reservations(self.relayed.expire(now));
                }
                continue;
            }
            let Some(place) = self.slots.get_mut(slot as usize) else { continue };
            if place.due_s == second {
                place.due_s = NEVER;
                self.look_after(now, slot);
            }
        }
    }

    /// When [`Server::handle_timeout`] is to be called; `None` while there is nothing to wait for.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.next()
    }

    /// The next thing to do. To be drained after every call that takes `&mut self`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Ends the allocations that a test picks, of a credential that was revoked, of a path; those too that
    /// are being made.
    pub fn end_where(&mut self, mut is_over: impl FnMut(&Session) -> bool) -> usize {
        let slots = 0..self.slots.len() as u32;
        let over: Vec<u32> =
            slots.filter(|slot| self.session(*slot).is_some_and(|one| is_over(&one))).collect();
        for slot in &over {
            self.remove(*slot, Why::Ended);
        }
        over.len()
    }

    /// Every allocation that relays.
    pub fn sessions(&self) -> impl Iterator<Item = Session> + '_ {
        let is_live = |slot: &u32| {
            self.allocation(*slot).is_some_and(|one| matches!(one.stage, Stage::Live { .. }))
        };
        (0..self.slots.len() as u32).filter(is_live).filter_map(|slot| self.session(slot))
    }

    /// Allocations, those too that are being made.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn unix_s(&self, now: Instant) -> u64 {
        self.clock.1 + now.saturating_duration_since(self.clock.0).as_secs()
    }

    fn allocation(&self, slot: u32) -> Option<&Allocation> {
        self.slots.get(slot as usize)?.allocation.as_deref()
    }

    fn allocation_mut(&mut self, slot: u32) -> Option<&mut Allocation> {
        self.slots.get_mut(slot as usize)?.allocation.as_deref_mut()
    }

    fn id(&self, slot: u32, family: Family) -> RelayId {
        let generation = self.slots[slot as usize].generation;
        RelayId { server: self.number, slot, generation, family }
    }

    fn session(&self, slot: u32) -> Option<Session> {
        let allocation = self.allocation(slot)?;
        let generation = self.slots[slot as usize].generation;
        Some(Session {
            asked: Asked { slot, generation },
            client: allocation.client,
            username: allocation.username.clone(),
            payer: allocation.payer().cloned(),
            relayed: [allocation.v4, allocation.v6].map(|relay| relay.map(|relay| relay.address)),
            sent: allocation.sent,
            received: allocation.received,
        })
    }

    fn look(&self, peer: SocketAddr) -> Result<(), Denied> {
        look(&self.peers, &self.relayed, peer)
    }

    /// Lets go of what is over of an allocation that is due, or of all of it.
    fn look_after(&mut self, now: Instant, slot: u32) {
        let Some(allocation) = self.allocation_mut(slot) else { return };
        match &allocation.stage {
            Stage::Asked { until, .. } | Stage::Opening { until, .. } => {
                if *until <= now {
                    return self.remove(slot, Why::Expired);
                }
            }
            Stage::Live { .. } => {
                if !allocation.is_live(now) {
                    return self.remove(slot, Why::Expired);
                }
                allocation.sweep(now);
                for family in Family::ALL {
                    self.close_if_over(now, slot, family);
                }
            }
        }
        self.arrange(slot);
    }

    /// Closes one relayed address that is over, of an allocation that goes on.
    fn close_if_over(&mut self, now: Instant, slot: u32, family: Family) {
        let relay = self.id(slot, family);
        let Some(allocation) = self.allocation_mut(slot) else { return };
        let place = allocation.relay_mut(family);
        if let Some(over) = place.take_if(|relay| relay.expires <= now) {
            self.relayed.free(family, over.port);
            self.outputs.push_back(Output::Close { relay });
        }
    }

    /// Sees to it that an allocation is looked at when it has to be.
    fn arrange(&mut self, slot: u32) {
        let Some(due) = self.allocation(slot).map(Allocation::due) else { return };
        let place = &mut self.slots[slot as usize];
        // One that is due later is put off when it is looked at.
        if self.wheel.second(due) < place.due_s {
            place.due_s = self.wheel.insert(due, slot);
        }
    }

    /// The same of the reservations, of which the first is over then.
    fn arrange_reservations(&mut self, until: Option<Instant>) {
        let Some(until) = until else { return };
        if self.wheel.second(until) < self.reservations_due_s {
            self.reservations_due_s = self.wheel.insert(until, RESERVATIONS);
        }
    }

    fn insert(&mut self, allocation: Allocation) -> u32 {
        let client = allocation.client;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, allocation: None, due_s: NEVER });
            self.slots.len() as u32 - 1
        });
        self.slots[slot as usize].allocation = Some(Box::new(allocation));
        self.clients.insert(client, slot);
        self.arrange(slot);
        slot
    }

    /// Lets go of an allocation and of all that it has.
    fn remove(&mut self, slot: u32, why: Why) {
        let session = self.session(slot);
        let ids = Family::ALL.map(|family| self.id(slot, family));
        let place = &mut self.slots[slot as usize];
        let Some(allocation) = place.allocation.take() else { return };
        place.generation = (place.generation + 1) % RelayId::GENERATIONS;
        self.free.push(slot);
        self.clients.remove(&allocation.client);
        for id in ids {
            let Some(relay) = allocation.relay(id.family) else { continue };
            self.give_back(&allocation, id.family, relay.port);
            if relay.is_open {
                self.outputs.push_back(Output::Close { relay: id });
            }
        }
        if let Stage::Asked { request, .. } = &allocation.stage
            && let Some((family, port)) = request.reserved
        {
            self.relayed.free(family, port);
        }
        if let Some(payer) = allocation.payer() {
            self.relayed.discount(payer);
        }
        if let Some(session) = session
            && matches!(allocation.stage, Stage::Live { .. })
        {
            self.counters.ended += 1;
            self.outputs.push_back(Output::Ended { session, why });
        }
    }

    /// Gives back a port of an allocation, and the one that was taken with it and is not reserved yet.
    fn give_back(&self, allocation: &Allocation, family: Family, port: u16) {
        self.relayed.free(family, port);
        if !matches!(allocation.stage, Stage::Live { .. })
            && allocation.request().parity == relayed::Parity::Pair
        {
            self.relayed.free(family, port + 1);
        }
    }
}
