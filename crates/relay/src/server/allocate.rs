//! How an allocation comes to be (RFC 8656 §7.2): it is asked for, admitted, opened, and told.

use std::time::Instant;

use super::Server;
use super::allocation::{Allocation, Made, Meter, Relay, Request, Stage};
use super::auth::{Answering, Proven};
use super::output::{Asked, Client, Output, Traffic, Why};
use super::relayed::{Parity, Payer, QuotaReached, RelayId};
use super::requests::seconds;
use crate::stun::{Attributes, Class, ErrorCode, Family, Hash, Key, Kind, Message, Method};

/// UDP, as REQUESTED-TRANSPORT has it (RFC 8656 §18.7).
const UDP: u8 = 17;
/// Refusals in a second of an allocation's own, such as that its nonce is stale: others' floods take none of
/// them.
const REFUSALS_PER_SECOND: u64 = 4;
/// Ports that are tried when they cannot be opened.
const OPEN_TRIES: u8 = 8;

/// Why somebody may have no allocation, though he is who he says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unadmitted {
    /// By a rule, or since what he came with was revoked.
    Forbidden,
    /// He, or his account, has as much as he may.
    Quota,
    /// There is no room.
    Capacity,
    /// It cannot be known.
    Unknown,
}

impl Unadmitted {
    fn code(self) -> ErrorCode {
        match self {
            Unadmitted::Forbidden => ErrorCode::Forbidden,
            Unadmitted::Quota => ErrorCode::AllocationQuotaReached,
            Unadmitted::Capacity => ErrorCode::InsufficientCapacity,
            Unadmitted::Unknown => ErrorCode::ServerError,
        }
    }
}

/// Whose request is to be answered, from what its allocation keeps.
struct Kept {
    client: Client,
    request: Request,
    key: Key,
}

impl Kept {
    fn of(allocation: &Allocation) -> Kept {
        Kept {
            client: allocation.client,
            request: *allocation.request(),
            key: allocation.key.clone(),
        }
    }

    fn answering(&self) -> Answering<'_> {
        Answering {
            client: self.client,
            method: Method::Allocate,
            transaction: self.request.transaction,
            has_fingerprint: self.request.has_fingerprint,
            signed: Some((&self.key, self.request.hash)),
        }
    }
}

impl Server {
    pub(super) fn allocate(
        &mut self,
        now: Instant,
        answering: &Answering<'_>,
        message: &Message<'_>,
        proven: &Proven,
    ) {
        if let Some(&slot) = self.clients.get(&answering.client) {
            self.look_after_early(now, slot);
        }
        if let Some(&slot) = self.clients.get(&answering.client) {
            let Some(allocation) = self.allocation(slot) else { return };
            let is_it = allocation.request().transaction == message.transaction();
            match (&allocation.stage, is_it && allocation.username == proven.username) {
                // Its answer was lost.
                (Stage::Live { made, .. }, true) => {
                    let made = *made;
                    let output = self.made(answering, slot, &made);
                    self.outputs.push_back(output);
                }
                (Stage::Asked { .. } | Stage::Opening { .. }, true) => {}
                (_, false) => {
                    self.outputs.push_back(answering.error(ErrorCode::AllocationMismatch));
                }
            }
            return;
        }
        if let Some(alternates) = &self.draining {
            self.counters.unallocated += 1;
            let alternate = alternates.get(&answering.client.listener);
            let output = answering.write(Class::Error, |writer| match alternate {
                Some(alternate) => {
                    writer.error(ErrorCode::TryAlternate);
                    writer.plain_address(Kind::ALTERNATE_SERVER, *alternate);
                }
                None => {
                    writer.error(ErrorCode::InsufficientCapacity);
                }
            });
            return self.outputs.push_back(output);
        }
        let hash = proven.hash;
        let request = match self.wanted(now, message, &proven.username, hash) {
            Ok(request) => request,
            Err(code) => {
                self.counters.unallocated += 1;
                return self.outputs.push_back(answering.error(code));
            }
        };
        let (packets, bytes) = (self.settings.packets_per_second, self.settings.bytes_per_second);
        let slot = self.insert(Allocation {
            client: answering.client,
            username: proven.username.clone(),
            key: proven.key.clone(),
            stage: Stage::Asked { request, until: now + self.settings.making_lasts },
            v4: None,
            v6: None,
            permissions: Vec::new(),
            channels: Vec::new(),
            sent: Traffic::default(),
            received: Traffic::default(),
            refusals: Meter::new(now, REFUSALS_PER_SECOND),
            packets: Meter::new(now, u64::from(packets)),
            bytes: Meter::new(now, bytes),
        });
        let generation = self.slots[slot as usize].generation;
        self.outputs.push_back(Output::Admit {
            asked: Asked { slot, generation },
            username: proven.username.clone(),
            client: answering.client,
        });
    }

    /// An allocation that is over and was not looked at yet makes way.
    fn look_after_early(&mut self, now: Instant, slot: u32) {
        let is_over = self.allocation(slot).is_some_and(|allocation| match &allocation.stage {
            Stage::Asked { until, .. } | Stage::Opening { until, .. } => *until <= now,
            Stage::Live { .. } => !allocation.is_live(now),
        });
        if is_over {
            self.remove(slot, Why::Expired);
        }
    }

    /// What a request asks for.
    fn wanted(
        &mut self,
        now: Instant,
        message: &Message<'_>,
        username: &str,
        hash: Hash,
    ) -> Result<Request, ErrorCode> {
        let these = message.attributes();
        match these.requested_transport {
            Some([UDP, _, _, _]) => {}
            Some([_, _, _, _]) => return Err(ErrorCode::UnsupportedTransport),
            _ => return Err(ErrorCode::BadRequest),
        }
        let lifetime = self.lifetime(these)?;
        // Nothing is allocated for no time at all.
        let lifetime = if lifetime.is_zero() { self.settings.lifetime } else { lifetime };
        let family = |value: Option<&[u8]>| match value {
            None => Ok(None),
            Some(value) => {
                Attributes::family(value).map(Some).ok_or(ErrorCode::AddressFamilyNotSupported)
            }
        };
        let parity = match these.even_port {
            None => Parity::Any,
            Some([flags]) if flags & 0x80 == 0 => Parity::Even,
            Some([_]) => Parity::Pair,
            Some(_) => return Err(ErrorCode::BadRequest),
        };
        let has_family = these.requested_family.is_some() || these.additional_family.is_some();
        let is_muddled = these.requested_family.is_some() && these.additional_family.is_some()
            || these.reservation_token.is_some() && (has_family || parity != Parity::Any)
            || these.additional_family.is_some() && parity == Parity::Pair;
        if is_muddled {
            return Err(ErrorCode::BadRequest);
        }
        let (requested, additional) =
            (family(these.requested_family)?, family(these.additional_family)?);
        if additional == Some(Family::V4) {
            return Err(ErrorCode::BadRequest);
        }
        if self.len() >= self.settings.allocations_max.min(RelayId::SLOTS_MAX - 1) {
            return Err(ErrorCode::InsufficientCapacity);
        }
        let reserved = match these.reservation_token {
            None => None,
            Some(token) => {
                let claimed = self.relayed.claim(now, token, username);
                Some(claimed.ok_or(ErrorCode::InsufficientCapacity)?)
            }
        };
        let only = requested.or(reserved.map(|(family, _)| family)).unwrap_or(Family::V4);
        let wants = |family| only == family || additional.is_some();
        let (wants_v4, wants_v6) = (wants(Family::V4), wants(Family::V6));
        let has_any = Family::ALL.into_iter().any(|one| wants(one) && self.relayed.has(one));
        if !has_any {
            return Err(ErrorCode::AddressFamilyNotSupported);
        }
        Ok(Request {
            transaction: message.transaction(),
            hash,
            has_fingerprint: these.has_fingerprint,
            lifetime,
            wants_v4,
            wants_v6,
            parity,
            reserved,
            failed: 0,
        })
    }

    /// Takes what was decided of who asked for an allocation: for whom it counts, or what it is refused
    /// with.
    pub fn handle_admission(
        &mut self,
        now: Instant,
        asked: Asked,
        verdict: Result<Payer, Unadmitted>,
    ) {
        let Some(slot) = self.slots.get_mut(asked.slot as usize) else { return };
        if slot.generation != asked.generation {
            return;
        }
        let Some(allocation) = slot.allocation.as_deref_mut() else { return };
        let Stage::Asked { request, .. } = allocation.stage else { return };
        let counted =
            verdict.map_err(Unadmitted::code).and_then(|payer| match self.relayed.count(&payer) {
                Ok(()) => Ok(payer),
                Err(QuotaReached::User | QuotaReached::Account) => {
                    Err(ErrorCode::AllocationQuotaReached)
                }
                Err(QuotaReached::Neuron) => Err(ErrorCode::InsufficientCapacity),
            });
        let payer = match counted {
            Ok(payer) => payer,
            Err(code) => return self.give_up(asked.slot, code),
        };
        let until = now + self.settings.making_lasts;
        allocation.stage = Stage::Opening { request, until, payer };
        for (family, is_wanted) in [(Family::V4, request.wants_v4), (Family::V6, request.wants_v6)]
        {
            if is_wanted {
                self.open(now, asked.slot, family);
            }
        }
        self.arrange(asked.slot);
        self.settle(now, asked.slot);
    }

    /// Takes what became of a socket that was to be opened.
    pub fn handle_opened(&mut self, now: Instant, relay: RelayId, is_open: bool) {
        let slot = self.slots.get_mut(relay.slot as usize);
        let slot = slot.filter(|slot| slot.generation == relay.generation);
        let allocation = slot.and_then(|slot| slot.allocation.as_deref_mut());
        let waiting = allocation.filter(|allocation| {
            matches!(allocation.stage, Stage::Opening { .. })
                && allocation.relay(relay.family).is_some_and(|relay| !relay.is_open)
        });
        let Some(allocation) = waiting else {
            // Whoever asked for it is gone.
            if is_open {
                self.outputs.push_back(Output::Close { relay });
            }
            return;
        };
        if is_open {
            if let Some(place) = allocation.relay_mut(relay.family) {
                place.is_open = true;
            }
        } else {
            self.open_another(now, relay);
        }
        self.settle(now, relay.slot);
    }

    /// Takes a port, and asks for a socket there.
    fn open(&mut self, now: Instant, slot: u32, family: Family) {
        let Some(request) = self.allocation(slot).map(|allocation| *allocation.request()) else {
            return;
        };
        let (relayed, draw) = (self.relayed.clone(), &mut self.draw);
        let held = match request.reserved {
            Some((_, port)) => Some(port),
            None => relayed.hold(family, request.parity, || draw.number()),
        };
        let relay = self.id(slot, family);
        let address = held.and_then(|port| Some((port, self.relayed.address(family, port)?)));
        let Some((port, address)) = address else { return };
        let expires = now + request.lifetime;
        if let Some(allocation) = self.allocation_mut(slot) {
            *allocation.relay_mut(family) = Some(Relay { port, address, is_open: false, expires });
            self.outputs.push_back(Output::Open { relay, port });
        }
    }

    /// Tries another port for one that could not be opened, unless it had to be that one.
    fn open_another(&mut self, now: Instant, relay: RelayId) {
        let Some(allocation) = self.allocation_mut(relay.slot) else { return };
        let failed = allocation.relay_mut(relay.family).take();
        let Stage::Opening { request, .. } = &mut allocation.stage else { return };
        request.failed += 1;
        let may_try = request.failed < OPEN_TRIES && request.reserved.is_none();
        // Held until another is taken, so that it is not taken again.
        if may_try {
            self.open(now, relay.slot, relay.family);
        }
        if let (Some(failed), Some(allocation)) = (failed, self.allocation(relay.slot)) {
            self.give_back(allocation, relay.family, failed.port);
        }
    }

    /// Finishes an allocation of which nothing is being opened any more.
    fn settle(&mut self, now: Instant, slot: u32) {
        let Some(allocation) = self.allocation(slot) else { return };
        let Stage::Opening { request, payer, .. } = &allocation.stage else { return };
        let mut relays = [allocation.v4, allocation.v6].into_iter().flatten();
        if relays.any(|relay| !relay.is_open) {
            return;
        }
        if allocation.v4.is_none() && allocation.v6.is_none() {
            return self.give_up(slot, ErrorCode::InsufficientCapacity);
        }
        let (request, payer, username) = (*request, payer.clone(), allocation.username.clone());
        let token = (request.parity == Parity::Pair).then(|| self.draw.bytes());
        let expires = now + request.lifetime;
        let made = Made { request, token };
        let until = now + self.settings.reservation_lasts;
        for family in Family::ALL {
            let id = self.id(slot, family);
            let Some(allocation) = self.allocation_mut(slot) else { return };
            let Some(relay) = allocation.relay_mut(family) else { continue };
            relay.expires = expires;
            let port = relay.port;
            self.relayed.publish(id, port);
            if let Some(token) = token {
                self.relayed.reserve(token, family, port + 1, until, &username);
                self.arrange_reservations(Some(until));
            }
        }
        let Some(allocation) = self.allocation_mut(slot) else { return };
        allocation.stage = Stage::Live { made, payer };
        let kept = Kept::of(allocation);
        let output = self.made(&kept.answering(), slot, &made);
        self.outputs.push_back(output);
        self.counters.allocated += 1;
        self.arrange(slot);
        if let Some(session) = self.session(slot) {
            self.outputs.push_back(Output::Began(session));
        }
    }

    /// Tells a client what it has.
    fn made(&self, answering: &Answering<'_>, slot: u32, made: &Made) -> Output {
        answering.write(Class::Success, |writer| {
            let Some(allocation) = self.allocation(slot) else { return };
            let relays = [
                (Family::V4, made.request.wants_v4, allocation.v4),
                (Family::V6, made.request.wants_v6, allocation.v6),
            ];
            for (family, is_wanted, relay) in relays {
                match relay {
                    Some(relay) => {
                        writer.address(Kind::XOR_RELAYED_ADDRESS, relay.address);
                    }
                    None if is_wanted => {
                        let code = match self.relayed.has(family) {
                            true => ErrorCode::InsufficientCapacity,
                            false => ErrorCode::AddressFamilyNotSupported,
                        };
                        writer.address_error(family, code);
                    }
                    None => {}
                }
            }
            writer.number(Kind::LIFETIME, seconds(made.request.lifetime));
            if let Some(token) = &made.token {
                writer.attribute(Kind::RESERVATION_TOKEN, token);
            }
            writer.address(Kind::XOR_MAPPED_ADDRESS, answering.client.address);
        })
    }

    /// Refuses an allocation that was being made.
    fn give_up(&mut self, slot: u32, code: ErrorCode) {
        let Some(allocation) = self.allocation(slot) else { return };
        let kept = Kept::of(allocation);
        self.counters.unallocated += 1;
        self.outputs.push_back(kept.answering().error(code));
        self.remove(slot, Why::Ended);
    }
}
