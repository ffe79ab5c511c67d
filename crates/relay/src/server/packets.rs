//! The way of data: what each packet costs. No parser but for indications, no lock, no allocation.

use std::net::SocketAddr;
use std::time::Instant;

use super::Server;
use super::output::{Client, Forward, Head};
use super::relayed::{Found, RelayId};
use crate::framing::{self, ChannelData};
use crate::stun::{Class, Family, Message, Method, TransactionId};

/// Longest data of an indication: with what is around it, it is no longer than a message may be.
const INDICATED_BYTES_MAX: usize = 65_535 - 64;

impl Server {
    /// Takes a datagram of a client, or a frame of its stream, of which padding may be left.
    pub fn handle_client<'a>(
        &mut self,
        now: Instant,
        client: Client,
        bytes: &'a [u8],
    ) -> Forward<'a> {
        if framing::is_channel_data(bytes) {
            let Some(data) = ChannelData::read(bytes) else {
                self.counters.malformed += 1;
                return Forward::Nowhere;
            };
            return self.handle_channel_data(now, client, data);
        }
        let Ok(message) = Message::read(bytes) else {
            self.counters.malformed += 1;
            return Forward::Nowhere;
        };
        match (message.class(), message.method()) {
            (Class::Indication, Some(Method::Send)) => {
                return self.handle_send(now, client, &message);
            }
            (Class::Request, Some(method)) => self.handle_request(now, client, &message, method),
            _ => self.counters.malformed += 1,
        }
        Forward::Nowhere
    }

    /// Takes a datagram of a peer, that came to a relayed address.
    pub fn handle_peer<'a>(
        &mut self,
        now: Instant,
        relay: RelayId,
        peer: SocketAddr,
        data: &'a [u8],
    ) -> Forward<'a> {
        let Server { slots, counters, indications, .. } = self;
        let slot = slots.get_mut(relay.slot as usize);
        let slot = slot.filter(|slot| slot.generation == relay.generation);
        let Some(allocation) = slot.and_then(|slot| slot.allocation.as_deref_mut()) else {
            return Forward::Nowhere;
        };
        if allocation.live(now, relay.family).is_none() {
            return Forward::Nowhere;
        }
        let bound = allocation.channels.iter().find(|channel| channel.peer == peer);
        let bound = bound.filter(|channel| channel.expires > now);
        let is_permitted = match bound {
            Some(channel) => channel.permitted > now,
            None => allocation.is_permitted(now, peer.ip()),
        };
        if !is_permitted {
            counters.unpermitted += 1;
            return Forward::Nowhere;
        }
        let channel = bound.map(|channel| channel.number);
        if !allocation.may_pass(now, data.len()) {
            counters.limited += 1;
            return Forward::Nowhere;
        }
        let client = allocation.client;
        let padding = data.len().next_multiple_of(4) - data.len();
        let (head, padding) = match channel.map(|number| ChannelData::header(number, data.len())) {
            Some(Some(header)) => {
                (Head::of_channel(header), if client.is_stream { padding } else { 0 })
            }
            None if data.len() <= INDICATED_BYTES_MAX => {
                *indications = indications.wrapping_add(1);
                let mut id = [0; 12];
                id[4..].copy_from_slice(&indications.to_be_bytes());
                (Head::of_indication(TransactionId(id), peer, data.len()), padding)
            }
            _ => return Forward::Nowhere,
        };
        allocation.received.add(data.len());
        Forward::ToClient { client, head, data, padding }
    }

    fn handle_channel_data<'a>(
        &mut self,
        now: Instant,
        client: Client,
        data: ChannelData<'a>,
    ) -> Forward<'a> {
        let Some(&slot) = self.clients.get(&client) else {
            self.counters.unbound += 1;
            return Forward::Nowhere;
        };
        let bound = self.allocation(slot).and_then(|allocation| {
            let mut channels = allocation.channels.iter();
            let channel = channels.find(|channel| channel.number == data.number)?;
            let is_open = channel.expires > now && channel.permitted > now;
            is_open.then_some(channel.peer)
        });
        let Some(peer) = bound else {
            self.counters.unbound += 1;
            return Forward::Nowhere;
        };
        self.send(now, slot, peer, data.data, false)
    }

    /// A Send indication: what is wrong with it is dropped (RFC 8656 §11.2).
    fn handle_send<'a>(
        &mut self,
        now: Instant,
        client: Client,
        message: &Message<'a>,
    ) -> Forward<'a> {
        let these = message.attributes();
        let peer = these.peer.and_then(|value| message.address(value));
        let slot = self.clients.get(&client).copied();
        let (Some(slot), Some(peer), Some(data), true) =
            (slot, peer, these.data, these.unknown.is_empty())
        else {
            self.counters.unbound += 1;
            return Forward::Nowhere;
        };
        let allocation = self.allocation(slot);
        if !allocation.is_some_and(|allocation| allocation.is_permitted(now, peer.ip())) {
            self.counters.unbound += 1;
            return Forward::Nowhere;
        }
        if self.look(peer).is_err() {
            self.counters.denied += 1;
            return Forward::Nowhere;
        }
        self.send(now, slot, peer, data, these.dont_fragment)
    }

    /// Sends data to a peer that its client may send to: through its relayed address, or in the process
    /// when the peer is another relayed address of this neuron.
    fn send<'a>(
        &mut self,
        now: Instant,
        slot: u32,
        peer: SocketAddr,
        data: &'a [u8],
        dont_fragment: bool,
    ) -> Forward<'a> {
        let relay = self.id(slot, Family::of(peer.ip()));
        let Server { slots, counters, relayed, number, .. } = self;
        let Some(allocation) = slots[slot as usize].allocation.as_deref_mut() else {
            return Forward::Nowhere;
        };
        let Some(from) = allocation.live(now, relay.family).map(|relay| relay.address) else {
            counters.unbound += 1;
            return Forward::Nowhere;
        };
        if !allocation.may_pass(now, data.len()) {
            counters.limited += 1;
            return Forward::Nowhere;
        }
        let target = match relayed.find(peer) {
            Found::Dead => {
                counters.denied += 1;
                return Forward::Nowhere;
            }
            Found::Live(target) => Some(target),
            Found::Foreign => None,
        };
        allocation.sent.add(data.len());
        match target {
            None => Forward::ToPeer { relay, peer, data, dont_fragment },
            Some(target) if target.server == *number => self.handle_peer(now, target, from, data),
            Some(relay) => Forward::ToServer { relay, from, data },
        }
    }
}
