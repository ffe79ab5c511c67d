//! Requests (RFC 8656 §7–§12): what a client may ask for, and what it is answered.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::Server;
use super::allocation::{Allocation, Channel};
use super::auth::{Answering, Proven};
use super::output::{Client, Why};
use crate::framing::CHANNEL_NUMBERS;
use crate::stun::{Attributes, Class, ErrorCode, Family, Kind, Message, Method};

/// Longest answer to a binding request: header, address, fingerprint; or the error and eight unknown kinds in
/// place of the address.
const BOUND_BYTES: usize = 20 + 24 + 8;
const UNKNOWN_BYTES: usize = 20 + 28 + 20 + 8;

impl Server {
    pub(super) fn handle_request(
        &mut self,
        now: Instant,
        client: Client,
        message: &Message<'_>,
        method: Method,
    ) {
        if method == Method::Binding {
            return self.bind(now, client, message);
        }
        let proven = match self.authenticate(now, client, message) {
            Ok(proven) => proven,
            Err(code) => return self.refuse(now, client, message, method, code),
        };
        self.caps.came(message.bytes());
        let answering = Answering {
            signed: Some((&proven.key, proven.hash)),
            ..Answering::to(client, message, method)
        };
        let unknown = message.attributes().unknown;
        if !unknown.is_empty() {
            let output = answering.write(Class::Error, |writer| {
                writer.error(ErrorCode::UnknownAttribute).unknown(unknown.as_slice());
            });
            return self.outputs.push_back(output);
        }
        let done = match method {
            Method::Allocate => return self.allocate(now, &answering, message, &proven),
            Method::Refresh => self.refresh(now, &answering, message, &proven),
            Method::CreatePermission => self.permit(now, &answering, message, &proven),
            Method::ChannelBind => self.bind_channel(now, &answering, message, &proven),
            _ => Err(ErrorCode::BadRequest),
        };
        if let Err(code) = done {
            self.outputs.push_back(answering.error(code));
        }
    }

    /// Tells a client where it is seen (RFC 8489 §3).
    fn bind(&mut self, now: Instant, client: Client, message: &Message<'_>) {
        let mut unknown = message.attributes().unknown;
        if message.attributes().change_request.is_some() {
            // There is no other address to answer from (RFC 5780 §6.1).
            unknown.push(Kind::CHANGE_REQUEST);
        }
        let most = match (unknown.is_empty(), client.address) {
            (true, SocketAddr::V4(_)) => BOUND_BYTES - 12,
            (true, SocketAddr::V6(_)) => BOUND_BYTES,
            (false, _) => UNKNOWN_BYTES,
        };
        if !self.may_answer(now, client, message, most) {
            return;
        }
        let answering = Answering::to(client, message, Method::Binding);
        let output = match unknown.is_empty() {
            true => answering.write(Class::Success, |writer| {
                writer.address(Kind::XOR_MAPPED_ADDRESS, client.address);
            }),
            false => answering.write(Class::Error, |writer| {
                writer.error(ErrorCode::UnknownAttribute).unknown(unknown.as_slice());
            }),
        };
        self.counters.bindings += 1;
        self.outputs.push_back(output);
    }

    /// The allocation of a client, if it is that user's.
    fn owned(&self, now: Instant, client: Client, proven: &Proven) -> Result<u32, ErrorCode> {
        let slot = self.clients.get(&client).copied().ok_or(ErrorCode::AllocationMismatch)?;
        let allocation = self.allocation(slot).filter(|allocation| allocation.is_live(now));
        let allocation = allocation.ok_or(ErrorCode::AllocationMismatch)?;
        match allocation.username == proven.username {
            true => Ok(slot),
            false => Err(ErrorCode::WrongCredentials),
        }
    }

    fn refresh(
        &mut self,
        now: Instant,
        answering: &Answering<'_>,
        message: &Message<'_>,
        proven: &Proven,
    ) -> Result<(), ErrorCode> {
        let slot = self.owned(now, answering.client, proven)?;
        let these = message.attributes();
        let lifetime = self.lifetime(these)?;
        let only = match these.requested_family {
            None => None,
            Some(value) => {
                Some(Attributes::family(value).ok_or(ErrorCode::AddressFamilyNotSupported)?)
            }
        };
        let allocation = self.allocation_mut(slot).ok_or(ErrorCode::AllocationMismatch)?;
        if only.is_some_and(|family| allocation.live(now, family).is_none()) {
            return Err(ErrorCode::PeerFamilyMismatch);
        }
        for family in Family::ALL {
            let place = allocation.relay_mut(family).as_mut();
            let place = place.filter(|relay| relay.expires > now);
            if let Some(relay) = place.filter(|_| only.is_none_or(|only| only == family)) {
                relay.expires = now + lifetime;
            }
        }
        let is_over = !allocation.is_live(now);
        self.outputs.push_back(answering.write(Class::Success, |writer| {
            writer.number(Kind::LIFETIME, seconds(lifetime));
        }));
        if is_over {
            self.remove(slot, Why::Left);
            return Ok(());
        }
        for family in Family::ALL {
            self.close_if_over(now, slot, family);
        }
        self.arrange(slot);
        Ok(())
    }

    /// The lifetime that is given to who asks for one (RFC 8656 §7.2, §8.2); 0 ends an allocation.
    pub(super) fn lifetime(&self, these: &Attributes<'_>) -> Result<Duration, ErrorCode> {
        let Some(value) = these.lifetime else { return Ok(self.settings.lifetime) };
        let value: [u8; 4] = value.try_into().map_err(|_| ErrorCode::BadRequest)?;
        let asked = Duration::from_secs(u64::from(u32::from_be_bytes(value)));
        if asked.is_zero() {
            return Ok(asked);
        }
        let most = self.settings.lifetime_max.max(self.settings.lifetime);
        Ok(asked.clamp(self.settings.lifetime, most))
    }

    fn permit(
        &mut self,
        now: Instant,
        answering: &Answering<'_>,
        message: &Message<'_>,
        proven: &Proven,
    ) -> Result<(), ErrorCode> {
        let slot = self.owned(now, answering.client, proven)?;
        let peers: Option<Vec<SocketAddr>> = message.peers().collect();
        let peers = peers.filter(|peers| !peers.is_empty()).ok_or(ErrorCode::BadRequest)?;
        for peer in &peers {
            // A permission is for every port of an address; each packet's is looked at.
            self.may_reach(now, slot, SocketAddr::new(peer.ip(), u16::MAX))?;
        }
        let ips: Vec<IpAddr> = peers.iter().map(SocketAddr::ip).collect();
        self.add_permissions(now, slot, &ips)?;
        self.outputs.push_back(answering.write(Class::Success, |_| {}));
        Ok(())
    }

    /// All of them, or none.
    fn add_permissions(
        &mut self,
        now: Instant,
        slot: u32,
        ips: &[IpAddr],
    ) -> Result<(), ErrorCode> {
        let expires = now + self.settings.permission_lasts;
        let most = self.settings.permissions_max;
        let allocation = self.allocation_mut(slot).ok_or(ErrorCode::AllocationMismatch)?;
        allocation.sweep(now);
        let mut new: Vec<IpAddr> =
            ips.iter().copied().filter(|ip| !allocation.is_permitted(now, *ip)).collect();
        new.sort_unstable();
        new.dedup();
        if allocation.permissions.len() + new.len() > most {
            return Err(ErrorCode::InsufficientCapacity);
        }
        for ip in ips {
            allocation.permit(*ip, expires);
        }
        self.arrange(slot);
        Ok(())
    }

    /// Whether a peer is of a family that an allocation has, and may be relayed to.
    fn may_reach(&mut self, now: Instant, slot: u32, peer: SocketAddr) -> Result<(), ErrorCode> {
        let family = Family::of(peer.ip());
        let has = |allocation: &Allocation| allocation.live(now, family).is_some();
        if !self.allocation(slot).is_some_and(has) {
            return Err(ErrorCode::PeerFamilyMismatch);
        }
        if self.look(peer).is_err() {
            self.counters.denied += 1;
            return Err(ErrorCode::Forbidden);
        }
        Ok(())
    }

    fn bind_channel(
        &mut self,
        now: Instant,
        answering: &Answering<'_>,
        message: &Message<'_>,
        proven: &Proven,
    ) -> Result<(), ErrorCode> {
        let slot = self.owned(now, answering.client, proven)?;
        let these = message.attributes();
        let number: [u8; 4] = these
            .channel_number
            .and_then(|value| value.try_into().ok())
            .ok_or(ErrorCode::BadRequest)?;
        let number = u16::from_be_bytes([number[0], number[1]]);
        let peer =
            these.peer.and_then(|value| message.address(value)).ok_or(ErrorCode::BadRequest)?;
        if !CHANNEL_NUMBERS.contains(&number) {
            return Err(ErrorCode::BadRequest);
        }
        self.may_reach(now, slot, peer)?;
        let most = self.settings.channels_max;
        let (permitted, expires) =
            (now + self.settings.permission_lasts, now + self.settings.channel_lasts);
        let allocation = self.allocation_mut(slot).ok_or(ErrorCode::AllocationMismatch)?;
        allocation.sweep(now);
        let mut channels = allocation.channels.iter();
        let bound = channels.find(|one| one.number == number || one.peer == peer);
        if bound.is_some_and(|one| one.number != number || one.peer != peer) {
            return Err(ErrorCode::BadRequest);
        }
        if bound.is_none() && allocation.channels.len() >= most {
            return Err(ErrorCode::InsufficientCapacity);
        }
        // Which lets it be heard, too (RFC 8656 §12.2).
        self.add_permissions(now, slot, &[peer.ip()])?;
        let allocation = self.allocation_mut(slot).ok_or(ErrorCode::AllocationMismatch)?;
        match allocation.channels.iter_mut().find(|one| one.number == number) {
            Some(channel) => channel.expires = expires,
            None => allocation.channels.push(Channel { number, peer, expires, permitted }),
        }
        self.arrange(slot);
        self.outputs.push_back(answering.write(Class::Success, |_| {}));
        Ok(())
    }
}

/// A time as LIFETIME has it.
pub(super) fn seconds(lifetime: Duration) -> u32 {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX)
}
