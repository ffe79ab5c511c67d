//! The same bytes to ours and to `turn-server-proto`, which others wrote: the same class of answer, and data
//! that go to the same place.
//!
//! Where the two part by intent, the script keeps away: which peers are forbidden, even ports and
//! reservations (not done there), channels from 0x5000 on (taken there, for RFC 5766's sake), a number that is
//! bound to another peer (taken there too, against RFC 8656 §12.2), and the order of complaints about requests
//! that are wrong twice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use relay::framing::{ChannelData, is_channel_data};
use relay::server::{Client, Forward};
use relay::stun::{Class, Kind, Message, Method, Writer};
use turn_server_proto::api::{Transmit, TurnServerApi, TurnServerPollRet};
use turn_server_proto::server::TurnServer;
use turn_server_proto::types::Instant;
use turn_server_proto::types::stun::TransportType;

use super::{REALM, Stage, at, client, code, signed, udp};

const LISTEN: &str = "192.0.2.9:3478";
const CLIENTS: u16 = 2;
const USERS: [&str; 2] = ["ann", "bob"];
const PEERS: [&str; 4] = ["8.8.8.8:5000", "8.8.8.8:5001", "9.9.9.9:5000", "[2606:4700::1]:5000"];

#[derive(Clone, Debug)]
enum Step {
    Allocate { by: u16, user: usize, family: Option<u8>, additional: bool, transport: u8 },
    Refresh { by: u16, user: usize, lifetime_s: u32 },
    Permit { by: u16, user: usize, peers: Vec<usize> },
    Bind { by: u16, user: usize, number: u16, peer: usize },
    Send { by: u16, peer: usize, length: usize },
    Data { by: u16, number: u16, length: usize },
    Heard { by: u16, peer: usize, length: usize },
    Passes { time: Duration },
}

fn step() -> impl Strategy<Value = Step> {
    let (by, user, peer) = (1..=CLIENTS, 0..USERS.len(), 0..PEERS.len());
    // Each peer has numbers of its own: theirs lets one number be bound to another peer.
    let bound = (0..PEERS.len(), prop_oneof![9 => 0..2_u16, 1 => Just(u16::MAX)]).prop_map(
        |(peer, which)| {
            let number = if which == u16::MAX { 0x3FFF } else { 0x4000 + 2 * peer as u16 + which };
            (number, peer)
        },
    );
    let number = 0x3FFF..0x4009_u16;
    // Of one family: of two theirs permits what it comes to before it refuses.
    let permitted = prop_oneof![
        3 => proptest::collection::vec(0..PEERS.len() - 1, 0..3),
        1 => Just(vec![PEERS.len() - 1]),
    ];
    let family = prop_oneof![4 => Just(None), 1 => Just(Some(1)), 1 => Just(Some(2))];
    let lifetime = prop_oneof![Just(0), Just(600), Just(1_200)];
    // At the very moment of an end theirs goes on: it never comes to that.
    let time_ms = prop_oneof![Just(1_003), Just(100_003), Just(250_003), Just(301_003)];
    let length = 0..1_200_usize;
    prop_oneof![
        4 => (by.clone(), user.clone(), family, any::<bool>(), prop_oneof![9 => Just(17_u8), 1 => Just(99_u8)])
            .prop_map(|(by, user, family, additional, transport)| Step::Allocate {
                by,
                user,
                family,
                additional: additional && family.is_none(),
                transport,
            }),
        2 => (by.clone(), user.clone(), lifetime)
            .prop_map(|(by, user, lifetime_s)| Step::Refresh { by, user, lifetime_s }),
        3 => (by.clone(), user.clone(), permitted)
            .prop_map(|(by, user, peers)| Step::Permit { by, user, peers }),
        4 => (by.clone(), user, bound)
            .prop_map(|(by, user, (number, peer))| Step::Bind { by, user, number, peer }),
        3 => (by.clone(), peer.clone(), length.clone())
            .prop_map(|(by, peer, length)| Step::Send { by, peer, length }),
        3 => (by.clone(), number, length.clone())
            .prop_map(|(by, number, length)| Step::Data { by, number, length }),
        3 => (by, peer, length).prop_map(|(by, peer, length)| Step::Heard { by, peer, length }),
        1 => time_ms.prop_map(|ms| Step::Passes { time: Duration::from_millis(ms) }),
    ]
}

/// What somebody outside sees of a step.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Seen {
    Nothing,
    /// An answer: 0 or its error.
    Code(u16),
    /// Data at a peer.
    AtPeer(SocketAddr, Vec<u8>),
    /// Data at a client: of a channel, or of whom an indication names.
    AtClient(Option<u16>, Option<SocketAddr>, Vec<u8>),
}

fn seen_by_client(bytes: &[u8]) -> Seen {
    if is_channel_data(bytes) {
        let data = ChannelData::read(bytes).expect("a frame");
        return Seen::AtClient(Some(data.number), None, data.data.to_vec());
    }
    let message = Message::read(bytes).expect("a message");
    if message.class() != Class::Indication {
        return Seen::Code(code(bytes));
    }
    let peer = message.attributes().peer.and_then(|value| message.address(value));
    Seen::AtClient(None, peer, message.attributes().data.expect("data").to_vec())
}

/// Theirs, with its sockets.
struct Theirs {
    server: TurnServer,
    now: Instant,
    next_port: u16,
    relayed: BTreeMap<(SocketAddr, bool), SocketAddr>,
    transactions: u8,
}

impl Theirs {
    fn new() -> Theirs {
        let mut server = TurnServer::new(TransportType::Udp, at(LISTEN), REALM.to_owned());
        for user in USERS {
            server.add_user(user.to_owned(), user.to_owned());
        }
        server.set_nonce_expiry_duration(Duration::from_secs(600));
        let now = Instant::from_nanos(1_000_000_000);
        Theirs { server, now, next_port: 50_000, relayed: BTreeMap::new(), transactions: 0 }
    }

    /// What comes of a datagram, of a client or of a peer.
    fn give(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Seen {
        let transmit = Transmit { data: bytes.to_vec(), transport: TransportType::Udp, from, to };
        let answer = self.server.recv(transmit, self.now).map(|built| built.build());
        let mut all: Vec<Transmit<Vec<u8>>> = answer.into_iter().collect();
        self.settle(&mut all);
        assert!(all.len() <= 1, "{all:?}");
        let Some(one) = all.pop() else { return Seen::Nothing };
        match one.from == at(LISTEN) {
            true => seen_by_client(&one.data),
            false => Seen::AtPeer(one.to, one.data),
        }
    }

    fn settle(&mut self, all: &mut Vec<Transmit<Vec<u8>>>) {
        loop {
            match self.server.poll(self.now) {
                TurnServerPollRet::AllocateSocket {
                    transport,
                    listen_addr,
                    client_addr,
                    allocation_transport,
                    family,
                } => {
                    let is_v4 = format!("{family:?}").contains('4');
                    let ip = if is_v4 { "192.0.2.1" } else { "2001:db8::1" };
                    self.next_port += 1;
                    let port = self.next_port;
                    let address = SocketAddr::new(ip.parse().expect("an address"), port);
                    self.relayed.insert((client_addr, is_v4), address);
                    self.server.allocated_socket(
                        transport,
                        listen_addr,
                        client_addr,
                        allocation_transport,
                        family,
                        Ok(address),
                        self.now,
                    );
                }
                TurnServerPollRet::WaitUntil(_) => break,
                _ => {}
            }
        }
        while let Some(transmit) = self.server.poll_transmit(self.now) {
            all.push(transmit);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.checked_add(time).expect("not so long");
        let mut all = Vec::new();
        self.settle(&mut all);
        assert!(all.is_empty(), "nobody has asked: {all:?}");
    }

    fn nonce(&mut self, by: Client) -> Vec<u8> {
        self.transactions = self.transactions.wrapping_add(1);
        let id = relay::stun::TransactionId([self.transactions; 12]);
        let mut bytes = Vec::new();
        Writer::new(&mut bytes, Class::Request, Method::Refresh, id);
        let transmit = Transmit {
            data: bytes,
            transport: TransportType::Udp,
            from: by.address,
            to: at(LISTEN),
        };
        let reply = self.server.recv(transmit, self.now).expect("a refusal").build();
        let message = Message::read(&reply.data).expect("a message");
        message.attributes().nonce.expect("a nonce").to_vec()
    }
}

/// What ours does with a datagram.
fn ours(stage: &mut Stage, by: Client, bytes: &[u8]) -> Seen {
    let seen = match stage.server.handle_client(stage.now, by, bytes) {
        Forward::Nowhere => None,
        Forward::ToPeer { peer, data, .. } => Some(Seen::AtPeer(peer, data.to_vec())),
        other => panic!("{other:?}"),
    };
    stage.drain();
    let replies = std::mem::take(&mut stage.replies);
    assert!(replies.len() <= 1, "{replies:?}");
    seen.or(replies.first().map(|(_, bytes)| seen_by_client(bytes))).unwrap_or(Seen::Nothing)
}

type Fill<'a> = Box<dyn Fn(&mut Writer<'_>) + 'a>;

fn both(stage: &mut Stage, theirs: &mut Theirs, step: &Step) -> (Seen, Seen) {
    let (by, user, method, fill): (u16, usize, Method, Fill<'_>) = match step {
        Step::Allocate { by, user, family, additional, transport } => {
            let fill: Fill<'_> = Box::new(move |writer| {
                match transport {
                    17 => udp(writer),
                    other => {
                        writer.attribute(Kind::REQUESTED_TRANSPORT, &[*other, 0, 0, 0]);
                    }
                }
                if let Some(family) = family {
                    writer.attribute(Kind::REQUESTED_ADDRESS_FAMILY, &[*family, 0, 0, 0]);
                }
                if *additional {
                    writer.attribute(Kind::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
                }
            });
            (*by, *user, Method::Allocate, fill)
        }
        Step::Refresh { by, user, lifetime_s } => {
            let fill: Fill<'_> = Box::new(move |writer| {
                writer.number(Kind::LIFETIME, *lifetime_s);
            });
            (*by, *user, Method::Refresh, fill)
        }
        Step::Permit { by, user, peers } => {
            let fill: Fill<'_> = Box::new(move |writer| {
                for peer in peers {
                    writer.address(Kind::XOR_PEER_ADDRESS, at(PEERS[*peer]));
                }
            });
            (*by, *user, Method::CreatePermission, fill)
        }
        Step::Bind { by, user, number, peer } => {
            let fill: Fill<'_> = Box::new(move |writer| {
                writer.number(Kind::CHANNEL_NUMBER, u32::from(*number) << 16);
                writer.address(Kind::XOR_PEER_ADDRESS, at(PEERS[*peer]));
            });
            (*by, *user, Method::ChannelBind, fill)
        }
        Step::Send { by, peer, length } => {
            let id = stage.transaction();
            let mut bytes = Vec::new();
            Writer::new(&mut bytes, Class::Indication, Method::Send, id)
                .address(Kind::XOR_PEER_ADDRESS, at(PEERS[*peer]))
                .attribute(Kind::DATA, &vec![7; *length]);
            return data(stage, theirs, *by, &bytes);
        }
        Step::Data { by, number, length } => {
            let header = ChannelData::header(*number, *length).expect("it fits");
            let bytes = [&header[..], &vec![7; *length]].concat();
            return data(stage, theirs, *by, &bytes);
        }
        Step::Heard { by, peer, length } => {
            let (by, peer, data) = (client(*by), at(PEERS[*peer]), vec![7; *length]);
            let relay = stage.open.keys().copied().find(|relay| {
                let is_his = stage.server.sessions().any(|session| {
                    session.client == by
                        && session.relayed.into_iter().flatten().any(|address| {
                            address.port() == stage.open[relay]
                                && address.is_ipv4() == (relay.family == relay::stun::Family::V4)
                        })
                });
                is_his && peer.is_ipv4() == (relay.family == relay::stun::Family::V4)
            });
            let of_ours = match relay {
                None => Seen::Nothing,
                Some(relay) => match stage.server.handle_peer(stage.now, relay, peer, &data) {
                    Forward::Nowhere => Seen::Nothing,
                    forward => seen_by_client(&super::read(forward).1),
                },
            };
            let theirs_at = theirs.relayed.get(&(by.address, peer.is_ipv4())).copied();
            let of_theirs = match theirs_at.filter(|_| relay.is_some()) {
                None => Seen::Nothing,
                Some(relayed) => theirs.give(peer, relayed, &data),
            };
            return (of_ours, of_theirs);
        }
        Step::Passes { time } => {
            stage.pass(*time);
            theirs.pass(*time);
            return (Seen::Nothing, Seen::Nothing);
        }
    };
    let by = client(by);
    let user = USERS[user];
    let (mine, other) = (stage.nonce(by), theirs.nonce(by));
    let id = stage.transaction();
    let bytes = signed(id, user, &mine, method, &fill);
    let of_ours = ours(stage, by, &bytes);
    let bytes = signed(id, user, &other, method, &fill);
    (of_ours, theirs.give(by.address, at(LISTEN), &bytes))
}

fn data(stage: &mut Stage, theirs: &mut Theirs, by: u16, bytes: &[u8]) -> (Seen, Seen) {
    let by = client(by);
    (ours(stage, by, bytes), theirs.give(by.address, at(LISTEN), bytes))
}

proptest! {
    #[test]
    fn theirs_answers_as_ours(steps in proptest::collection::vec(step(), 1..60)) {
        let (mut stage, mut theirs) = (Stage::new(), Theirs::new());
        for step in &steps {
            let (of_ours, mut of_theirs) = both(&mut stage, &mut theirs, step);
            // Whose 5-tuple is in use is told that (RFC 8656 §7.2), whoever he is.
            if of_theirs == Seen::Code(441) && matches!(step, Step::Allocate { .. }) {
                of_theirs = Seen::Code(437);
            }
            // Wrong twice.
            if of_theirs == Seen::Code(443) && matches!(step, Step::Bind { number: 0x3FFF, .. }) {
                of_theirs = Seen::Code(400);
            }
            prop_assert_eq!(of_ours, of_theirs, "ours and theirs, of {:?}", step);
        }
    }
}
