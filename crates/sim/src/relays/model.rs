//! The reference: what a relay answers and forwards, by a list of clients and nothing cleverer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use relay::server::{Client, Traffic};
use relay::stun::TransactionId;

pub(super) const LIFETIME: Duration = Duration::from_secs(600);
pub(super) const LIFETIME_MAX: Duration = Duration::from_secs(3_600);
pub(super) const PERMISSION: Duration = Duration::from_secs(300);
pub(super) const CHANNEL: Duration = Duration::from_secs(600);
pub(super) const MAKING: Duration = Duration::from_secs(10);
pub(super) const PERMISSIONS_MAX: usize = 4;
pub(super) const CHANNELS_MAX: usize = 3;

/// What one client has.
#[derive(Debug)]
pub(super) enum Has {
    Making { transaction: TransactionId, user: &'static str, until: Instant },
    Live(Live),
}

#[derive(Debug)]
pub(super) struct Live {
    pub(super) transaction: TransactionId,
    pub(super) user: &'static str,
    pub(super) relayed: SocketAddr,
    pub(super) expires: Instant,
    pub(super) permissions: BTreeMap<IpAddr, Instant>,
    pub(super) channels: BTreeMap<u16, (SocketAddr, Instant)>,
    pub(super) sent: Traffic,
    pub(super) received: Traffic,
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Allocate,
    Refresh(u32),
    Permit(Vec<SocketAddr>),
    Bind(u16, SocketAddr),
}

/// What is answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    Code(u16),
    /// Nothing yet: it is being made.
    Later,
}

/// Where data go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Way {
    Nowhere,
    Peer(SocketAddr),
    /// By a channel, or by an indication that names the peer.
    Client(Client, Option<u16>, SocketAddr),
}

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) clients: BTreeMap<Client, Has>,
    /// Traffic of those that are over.
    pub(super) sent: Traffic,
    pub(super) received: Traffic,
    pub(super) ended: u64,
}

/// Whether a peer is one that may be relayed to.
pub(super) fn is_allowed(peer: SocketAddr, own: IpAddr) -> bool {
    peer.ip() == own || peer.ip() != "127.0.0.1".parse::<IpAddr>().expect("an address")
}

fn add(sum: &mut Traffic, more: Traffic) {
    sum.packets += more.packets;
    sum.bytes += more.bytes;
}

impl Model {
    /// Forgets whoever is over by now.
    pub(super) fn expire(&mut self, now: Instant) {
        for client in self.clients.keys().copied().collect::<Vec<_>>() {
            self.expire_one(now, client);
        }
    }

    /// The same of one client.
    fn expire_one(&mut self, now: Instant, client: Client) {
        match self.clients.get_mut(&client) {
            Some(Has::Making { until, .. }) if *until <= now => {
                self.clients.remove(&client);
            }
            Some(Has::Live(live)) if live.expires <= now => {
                add(&mut self.sent, live.sent);
                add(&mut self.received, live.received);
                self.ended += 1;
                self.clients.remove(&client);
            }
            Some(Has::Live(live)) => {
                live.permissions.retain(|_, expires| *expires > now);
                live.channels.retain(|_, (_, expires)| *expires > now);
            }
            _ => {}
        }
    }

    fn live(&mut self, now: Instant, client: Client) -> Option<&mut Live> {
        self.expire_one(now, client);
        match self.clients.get_mut(&client)? {
            Has::Live(live) => Some(live),
            Has::Making { .. } => None,
        }
    }

    /// Whose relayed address that is.
    pub(super) fn owner(&self, now: Instant, relayed: SocketAddr) -> Option<Client> {
        let is_it = |has: &Has| matches!(has, Has::Live(live) if live.relayed == relayed && live.expires > now);
        self.clients.iter().find(|(_, has)| is_it(has)).map(|(client, _)| *client)
    }

    /// Takes a request that is proven.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        client: Client,
        user: &'static str,
        transaction: TransactionId,
        ask: &Ask,
        own: IpAddr,
    ) -> Answer {
        self.expire_one(now, client);
        if let Ask::Allocate = ask {
            let until = now + MAKING;
            return match self.clients.get(&client) {
                None => {
                    self.clients.insert(client, Has::Making { transaction, user, until });
                    Answer::Later
                }
                Some(Has::Making { transaction: by, user: of, .. })
                    if *by == transaction && *of == user =>
                {
                    Answer::Later
                }
                Some(Has::Live(live)) if live.transaction == transaction && live.user == user => {
                    Answer::Code(0)
                }
                Some(_) => Answer::Code(437),
            };
        }
        let Some(live) = self.live(now, client) else { return Answer::Code(437) };
        if live.user != user {
            return Answer::Code(441);
        }
        let code = match ask {
            Ask::Allocate => unreachable!("answered above"),
            Ask::Refresh(0) => {
                live.expires = now;
                self.expire_one(now, client);
                0
            }
            Ask::Refresh(seconds) => {
                let asked = Duration::from_secs(u64::from(*seconds));
                live.expires = now + asked.clamp(LIFETIME, LIFETIME_MAX);
                0
            }
            Ask::Permit(peers) if peers.is_empty() => 400,
            Ask::Permit(peers) if !peers.iter().all(|peer| is_allowed(*peer, own)) => 403,
            Ask::Permit(peers) => live.permit(now, peers),
            Ask::Bind(number, peer) => live.bind(now, *number, *peer, own),
        };
        Answer::Code(code)
    }

    /// What a client was made; its transaction is that of its request.
    pub(super) fn made(&mut self, now: Instant, client: Client, relayed: SocketAddr) {
        let Some(Has::Making { transaction, user, .. }) = self.clients.get(&client) else {
            panic!("{client:?} has asked for nothing")
        };
        let live = Live {
            transaction: *transaction,
            user,
            relayed,
            expires: now + LIFETIME,
            permissions: BTreeMap::new(),
            channels: BTreeMap::new(),
            sent: Traffic::default(),
            received: Traffic::default(),
        };
        self.clients.insert(client, Has::Live(live));
    }

    /// Where data of a client go.
    pub(super) fn send(
        &mut self,
        now: Instant,
        client: Client,
        number: Option<u16>,
        peer: SocketAddr,
        bytes: usize,
        own: IpAddr,
    ) -> Way {
        let Some(live) = self.live(now, client) else { return Way::Nowhere };
        let peer = match number {
            None => peer,
            Some(number) => match live.channels.get(&number) {
                Some((peer, _)) => *peer,
                None => return Way::Nowhere,
            },
        };
        if !live.permissions.contains_key(&peer.ip()) || !is_allowed(peer, own) {
            return Way::Nowhere;
        }
        let from = live.relayed;
        if peer.ip() != own {
            add(&mut live.sent, Traffic { packets: 1, bytes: bytes as u64 });
            return Way::Peer(peer);
        }
        let target = self.owner(now, peer);
        let Some(target) = target else { return Way::Nowhere };
        if let Some(live) = self.live(now, client) {
            add(&mut live.sent, Traffic { packets: 1, bytes: bytes as u64 });
        }
        self.receive(now, target, from, bytes)
    }

    /// Where data of a peer go that came to a client's relayed address.
    pub(super) fn receive(
        &mut self,
        now: Instant,
        client: Client,
        peer: SocketAddr,
        bytes: usize,
    ) -> Way {
        let Some(live) = self.live(now, client) else { return Way::Nowhere };
        if !live.permissions.contains_key(&peer.ip()) {
            return Way::Nowhere;
        }
        let number =
            live.channels.iter().find(|(_, (of, _))| *of == peer).map(|(number, _)| *number);
        add(&mut live.received, Traffic { packets: 1, bytes: bytes as u64 });
        // A channel names no peer.
        let nobody = SocketAddr::from(([0; 4], 0));
        Way::Client(client, number, if number.is_some() { nobody } else { peer })
    }
}

impl Live {
    fn permit(&mut self, now: Instant, peers: &[SocketAddr]) -> u16 {
        let mut all = self.permissions.clone();
        all.extend(peers.iter().map(|peer| (peer.ip(), now + PERMISSION)));
        if all.len() > PERMISSIONS_MAX {
            return 508;
        }
        self.permissions = all;
        0
    }

    fn bind(&mut self, now: Instant, number: u16, peer: SocketAddr, own: IpAddr) -> u16 {
        if !(0x4000..=0x4FFF).contains(&number) {
            return 400;
        }
        if !is_allowed(peer, own) {
            return 403;
        }
        let clashes =
            |(of, (to, _)): (&u16, &(SocketAddr, Instant))| (*of == number) != (*to == peer);
        if self.channels.iter().any(clashes) {
            return 400;
        }
        if !self.channels.contains_key(&number) && self.channels.len() >= CHANNELS_MAX {
            return 508;
        }
        match self.permit(now, &[peer]) {
            0 => {
                self.channels.insert(number, (peer, now + CHANNEL));
                0
            }
            code => code,
        }
    }
}
