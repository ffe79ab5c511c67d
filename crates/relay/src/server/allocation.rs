//! One allocation: its client, its relayed addresses, and whom it may hear.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::output::{Client, Traffic};
use super::relayed::{Parity, Payer};
use crate::stun::{Family, Hash, Key, TransactionId};

/// A client's allocation, from when it was asked for.
#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) client: Client,
    pub(super) username: Arc<str>,
    pub(super) key: Key,
    pub(super) stage: Stage,
    pub(super) v4: Option<Relay>,
    pub(super) v6: Option<Relay>,
    pub(super) permissions: Vec<Permission>,
    pub(super) channels: Vec<Channel>,
    pub(super) sent: Traffic,
    pub(super) received: Traffic,
    pub(super) refusals: Meter,
    pub(super) packets: Meter,
    pub(super) bytes: Meter,
}

/// How far it is.
#[derive(Debug)]
pub(super) enum Stage {
    /// It is asked whether it may be.
    Asked { request: Request, until: Instant },
    /// Its sockets are being opened.
    Opening { request: Request, until: Instant, payer: Payer },
    /// It relays.
    Live { made: Made, payer: Payer },
}

/// What its client asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) transaction: TransactionId,
    pub(super) hash: Hash,
    pub(super) has_fingerprint: bool,
    pub(super) lifetime: Duration,
    pub(super) wants_v4: bool,
    pub(super) wants_v6: bool,
    pub(super) parity: Parity,
    /// The port that a reservation gave.
    pub(super) reserved: Option<(Family, u16)>,
    /// Ports that could not be opened.
    pub(super) failed: u8,
}

/// What is said again when the request that made it comes again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) request: Request,
    pub(super) token: Option<[u8; 8]>,
}

/// One relayed address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relay {
    pub(super) port: u16,
    pub(super) address: SocketAddr,
    pub(super) is_open: bool,
    pub(super) expires: Instant,
}

/// An address that may be heard (RFC 8656 §2.3).
#[derive(Clone, Copy, Debug)]
pub(super) struct Permission {
    pub(super) ip: IpAddr,
    pub(super) expires: Instant,
}

/// A peer with a number (RFC 8656 §2.5).
#[derive(Clone, Copy, Debug)]
pub(super) struct Channel {
    pub(super) number: u16,
    pub(super) peer: SocketAddr,
    pub(super) expires: Instant,
    /// Until when its peer's address has a permission.
    pub(super) permitted: Instant,
}

/// How much of something may pass: no more than a second's worth at once (a leaky bucket, as GCRA).
#[derive(Clone, Copy, Debug)]
pub(super) struct Meter {
    /// Nanoseconds for each; 0 for no bound.
    each_ns: f64,
    /// When all that has passed would have, at the rate.
    passed: Instant,
}

impl Meter {
    pub(super) fn new(now: Instant, per_second: u64) -> Meter {
        let each_ns = if per_second == 0 { 0.0 } else { 1e9 / per_second as f64 };
        Meter { each_ns, passed: now }
    }

    pub(super) fn may_pass(&self, now: Instant) -> bool {
        self.passed.saturating_duration_since(now) < Duration::from_secs(1)
    }

    pub(super) fn pass(&mut self, now: Instant, count: usize) {
        if self.each_ns > 0.0 {
            let costs = Duration::from_nanos((self.each_ns * count as f64) as u64);
            self.passed = self.passed.max(now) + costs;
        }
    }
}

impl Allocation {
    pub(super) fn relay(&self, family: Family) -> Option<&Relay> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    pub(super) fn relay_mut(&mut self, family: Family) -> &mut Option<Relay> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Its relayed address of a family, unless that is over.
    pub(super) fn live(&self, now: Instant, family: Family) -> Option<&Relay> {
        let is_live = matches!(self.stage, Stage::Live { .. });
        self.relay(family).filter(|relay| is_live && relay.expires > now)
    }

    pub(super) fn is_live(&self, now: Instant) -> bool {
        Family::ALL.into_iter().any(|family| self.live(now, family).is_some())
    }

    pub(super) fn payer(&self) -> Option<&Payer> {
        match &self.stage {
            Stage::Asked { .. } => None,
            Stage::Opening { payer, .. } | Stage::Live { payer, .. } => Some(payer),
        }
    }

    /// The request that is being carried out, or was.
    pub(super) fn request(&self) -> &Request {
        match &self.stage {
            Stage::Asked { request, .. } | Stage::Opening { request, .. } => request,
            Stage::Live { made, .. } => &made.request,
        }
    }

    /// When it has to be looked at.
    pub(super) fn due(&self) -> Instant {
        let relays = [self.v4, self.v6].into_iter().flatten().map(|relay| relay.expires);
        match &self.stage {
            Stage::Asked { until, .. } | Stage::Opening { until, .. } => *until,
            Stage::Live { .. } => {
                let permissions = self.permissions.iter().map(|permission| permission.expires);
                let channels = self.channels.iter().map(|channel| channel.expires);
                let all = relays.chain(permissions).chain(channels);
                all.min().expect("what is live has a relayed address")
            }
        }
    }

    /// Lets an address be heard until then.
    pub(super) fn permit(&mut self, ip: IpAddr, expires: Instant) {
        match self.permissions.iter_mut().find(|permission| permission.ip == ip) {
            Some(permission) => permission.expires = expires,
            None => self.permissions.push(Permission { ip, expires }),
        }
        for channel in self.channels.iter_mut().filter(|channel| channel.peer.ip() == ip) {
            channel.permitted = expires;
        }
    }

    /// Whether one more packet is within its rates; counts it if so.
    pub(super) fn may_pass(&mut self, now: Instant, bytes: usize) -> bool {
        let may = self.packets.may_pass(now) && self.bytes.may_pass(now);
        if may {
            self.packets.pass(now, 1);
            self.bytes.pass(now, bytes);
        }
        may
    }

    pub(super) fn is_permitted(&self, now: Instant, ip: IpAddr) -> bool {
        self.permissions.iter().any(|permission| permission.ip == ip && permission.expires > now)
    }

    /// Forgets what is over.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.permissions.retain(|permission| permission.expires > now);
        self.channels.retain(|channel| channel.expires > now);
    }
}
