//! The server by example: a client written from the RFCs talks to it, in virtual time.

mod allocate;
mod auth;
mod oracle;
mod packets;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use relay::nonce::{Features, Nonces};
use relay::peers::Peers;
use relay::server::{
    Asked, Client, Forward, Output, Passwords, Payer, Quotas, RelayId, Relayed, RelayedIp, Server,
    Session, Settings, Why,
};
use relay::stun::{
    Class, Hash, Key, Kind, Message, Method, PasswordAlgorithm, TransactionId, Writer,
};

pub(crate) const REALM: &str = "relay.test";
pub(crate) const UNIX_S: u64 = 1_700_000_000;
pub(crate) const PORTS: std::ops::RangeInclusive<u16> = 50_000..=50_099;

/// `ann` and `bob` have their names for passwords, `old` had until a moment.
pub(crate) struct Names;

pub(crate) const OLD_UNTIL_S: u64 = UNIX_S + 100;

impl Passwords for Names {
    fn of(&self, unix_s: u64, username: &str) -> Vec<String> {
        match username {
            "ann" | "bob" => vec!["a former one".to_owned(), username.to_owned()],
            "old" if unix_s < OLD_UNTIL_S => vec![username.to_owned()],
            _ => Vec::new(),
        }
    }
}

/// One server, its sockets, and the time.
pub(crate) struct Stage {
    pub(crate) server: Server,
    pub(crate) relayed: Arc<Relayed>,
    pub(crate) now: Instant,
    /// Sockets that are open.
    pub(crate) open: BTreeMap<RelayId, u16>,
    /// Ports that somebody else has.
    pub(crate) broken: BTreeSet<u16>,
    /// Who is let in.
    pub(crate) admits: bool,
    pub(crate) waiting: Vec<(Asked, Arc<str>)>,
    pub(crate) replies: Vec<(Client, Vec<u8>)>,
    pub(crate) began: Vec<Session>,
    pub(crate) ended: Vec<(Session, Why)>,
    transactions: u8,
}

pub(crate) fn relayed(quotas: Quotas) -> Arc<Relayed> {
    let ip = |advertised: &str, bound: Option<&str>| RelayedIp {
        advertised: advertised.parse().expect("an address"),
        bound: bound.map(|ip| ip.parse().expect("an address")),
        ports: PORTS,
    };
    let ips = [ip("192.0.2.1", Some("10.0.0.1")), ip("2001:db8::1", None)];
    Arc::new(Relayed::new(ips, quotas))
}

pub(crate) const QUOTAS: Quotas = Quotas { per_user: 50, per_account: 60, per_neuron: 70 };

pub(crate) fn peers() -> Peers {
    let mut peers = Peers::default();
    for ip in ["192.0.2.1", "10.0.0.1", "2001:db8::1"] {
        peers.own(ip.parse().expect("an address"));
    }
    peers
}

impl Stage {
    pub(crate) fn new() -> Stage {
        Stage::with(|_| {}, QUOTAS)
    }

    pub(crate) fn with(change: impl FnOnce(&mut Settings), quotas: Quotas) -> Stage {
        Stage::offering(Features::default(), change, quotas)
    }

    pub(crate) fn offering(
        features: Features,
        change: impl FnOnce(&mut Settings),
        quotas: Quotas,
    ) -> Stage {
        let now = <Instant>::now();
        let mut settings =
            Settings { realm: REALM.to_owned(), refusals_per_source: 0, ..Settings::default() };
        change(&mut settings);
        let relayed = relayed(quotas);
        let nonces = Nonces::new(b"the cluster's", features);
        let server = Server::new(
            3,
            settings,
            relayed.clone(),
            peers(),
            Box::new(Names),
            nonces,
            [7; 32],
            now,
            UNIX_S,
        );
        Stage {
            server,
            relayed,
            now,
            open: BTreeMap::new(),
            broken: BTreeSet::new(),
            admits: true,
            waiting: Vec::new(),
            replies: Vec::new(),
            began: Vec::new(),
            ended: Vec::new(),
            transactions: 0,
        }
    }

    /// Does what the server wants done.
    pub(crate) fn drain(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Reply { client, bytes } => self.replies.push((client, bytes)),
                Output::Admit { asked, username, .. } if self.admits => {
                    let payer = Payer { account: "elena".into(), user: username };
                    self.server.handle_admission(self.now, asked, Ok(payer));
                }
                Output::Admit { asked, username, .. } => self.waiting.push((asked, username)),
                Output::Open { relay, port } => {
                    let is_taken = self
                        .open
                        .iter()
                        .any(|(id, taken)| id.family == relay.family && *taken == port);
                    assert!(!is_taken, "{port} is open already");
                    let is_open = !self.broken.contains(&port);
                    if is_open {
                        self.open.insert(relay, port);
                    }
                    self.server.handle_opened(self.now, relay, is_open);
                }
                Output::Close { relay } => {
                    assert!(self.open.remove(&relay).is_some(), "{relay:?} is not open");
                }
                Output::Began(session) => self.began.push(session),
                Output::Ended { session, why } => self.ended.push((session, why)),
            }
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.server.handle_timeout(self.now);
        self.drain();
    }

    pub(crate) fn pass_s(&mut self, seconds: u64) {
        self.pass(Duration::from_secs(seconds));
    }

    /// Hands over bytes that are no data.
    pub(crate) fn give(&mut self, client: Client, bytes: &[u8]) -> Vec<Vec<u8>> {
        assert_eq!(self.server.handle_client(self.now, client, bytes), Forward::Nowhere);
        self.drain();
        let replies = std::mem::take(&mut self.replies);
        replies
            .into_iter()
            .map(|(to, bytes)| {
                assert_eq!(to, client);
                bytes
            })
            .collect()
    }

    /// The only answer to a message.
    pub(crate) fn ask(&mut self, client: Client, bytes: &[u8]) -> Vec<u8> {
        let mut replies = self.give(client, bytes);
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies.remove(0)
    }

    pub(crate) fn transaction(&mut self) -> TransactionId {
        self.transactions += 1;
        TransactionId([self.transactions; 12])
    }

    /// A nonce for a client.
    pub(crate) fn nonce(&mut self, client: Client) -> Vec<u8> {
        let transaction = self.transaction();
        let mut bytes = Vec::new();
        Writer::new(&mut bytes, Class::Request, Method::Allocate, transaction);
        let reply = self.ask(client, &bytes);
        let message = Message::read(&reply).expect("a message");
        assert_eq!(message.error(), Some(401));
        assert_eq!(message.attributes().realm, Some(REALM.as_bytes()));
        message.attributes().nonce.expect("a nonce").to_vec()
    }

    /// A request that is signed for a user.
    pub(crate) fn signed(
        &mut self,
        client: Client,
        user: &str,
        method: Method,
        fill: impl FnOnce(&mut Writer<'_>),
    ) -> Vec<u8> {
        let nonce = self.nonce(client);
        let transaction = self.transaction();
        signed(transaction, user, &nonce, method, fill)
    }

    /// The same, and its answer's error, 0 for none.
    pub(crate) fn request(
        &mut self,
        client: Client,
        user: &str,
        method: Method,
        fill: impl FnOnce(&mut Writer<'_>),
    ) -> u16 {
        let bytes = self.signed(client, user, method, fill);
        code(&self.ask(client, &bytes))
    }

    /// An allocation with one IPv4 address; answers that.
    pub(crate) fn allocate(&mut self, client: Client, user: &str) -> SocketAddr {
        let bytes = self.signed(client, user, Method::Allocate, udp);
        let reply = self.ask(client, &bytes);
        let message = Message::read(&reply).expect("a message");
        assert_eq!((message.class(), message.error()), (Class::Success, None));
        relayed_of(&message)[0]
    }

    pub(crate) fn permit(&mut self, client: Client, peers: &[&str]) -> u16 {
        self.request(client, "ann", Method::CreatePermission, |writer| {
            for peer in peers {
                writer.address(Kind::XOR_PEER_ADDRESS, peer.parse().expect("an address"));
            }
        })
    }

    pub(crate) fn bind(&mut self, client: Client, number: u16, peer: SocketAddr) -> u16 {
        self.request(client, "ann", Method::ChannelBind, |writer| {
            writer.number(Kind::CHANNEL_NUMBER, u32::from(number) << 16);
            writer.address(Kind::XOR_PEER_ADDRESS, peer);
        })
    }

    pub(crate) fn refresh(&mut self, client: Client, lifetime_s: u32) -> u16 {
        self.request(client, "ann", Method::Refresh, |writer| {
            writer.number(Kind::LIFETIME, lifetime_s);
        })
    }

    /// Nothing is held for anybody.
    pub(crate) fn assert_empty(&self) {
        assert!(self.server.is_empty() && self.open.is_empty(), "{:?}", self.open);
        for family in relay::stun::Family::ALL {
            assert_eq!(self.relayed.taken(family), 0);
        }
        assert_eq!((self.relayed.allocations(), self.relayed.reserved()), (0, 0));
    }
}

pub(crate) fn signed(
    transaction: TransactionId,
    user: &str,
    nonce: &[u8],
    method: Method,
    fill: impl FnOnce(&mut Writer<'_>),
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, Class::Request, method, transaction);
    fill(&mut writer);
    writer
        .attribute(Kind::USERNAME, user.as_bytes())
        .attribute(Kind::REALM, REALM.as_bytes())
        .attribute(Kind::NONCE, nonce)
        .integrity(&key(user), Hash::Sha1);
    bytes
}

pub(crate) fn key(user: &str) -> Key {
    Key::long_term(PasswordAlgorithm::Md5, user.as_bytes(), REALM.as_bytes(), user.as_bytes())
}

pub(crate) fn udp(writer: &mut Writer<'_>) {
    writer.attribute(Kind::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
}

/// The error of an answer; 0 for none.
pub(crate) fn code(reply: &[u8]) -> u16 {
    let message = Message::read(reply).expect("a message");
    match message.class() {
        Class::Success => 0,
        _ => message.error().expect("an error"),
    }
}

/// Every relayed address of an answer.
pub(crate) fn relayed_of(message: &Message<'_>) -> Vec<SocketAddr> {
    let relayed = message.all().filter(|(kind, _)| *kind == Kind::XOR_RELAYED_ADDRESS);
    relayed.map(|(_, value)| message.address(value).expect("an address")).collect()
}

pub(crate) fn client(number: u16) -> Client {
    Client { listener: 1, is_stream: false, address: SocketAddr::from(([198, 51, 100, 7], number)) }
}

pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// What a client would read of a packet that goes to it.
pub(crate) fn read(forward: Forward<'_>) -> (Client, Vec<u8>) {
    let Forward::ToClient { client, head, data, padding } = forward else {
        panic!("{forward:?} does not go to a client");
    };
    (client, [head.as_slice(), data, &vec![0; padding]].concat())
}
