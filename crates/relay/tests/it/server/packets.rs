//! The way of data: by channels and indications, to peers and back, and in the process.

use std::net::SocketAddr;

use relay::framing::ChannelData;
use relay::peers::Peers;
use relay::server::{Client, Forward, RelayId, Traffic};
use relay::stun::{Class, Family, Kind, Message, Method, Writer};
use wire::network::Network;

use super::{QUOTAS, Stage, at, client, read, udp};

const PEER: &str = "8.8.8.8:5000";

/// A Send indication.
fn send(peer: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, Class::Indication, Method::Send, relay::stun::TransactionId([1; 12]))
        .address(Kind::XOR_PEER_ADDRESS, peer)
        .attribute(Kind::DATA, data);
    bytes
}

/// ChannelData.
fn channel(number: u16, data: &[u8]) -> Vec<u8> {
    [&ChannelData::header(number, data.len()).expect("it fits"), data].concat()
}

fn only(stage: &Stage) -> RelayId {
    *stage.open.keys().next().expect("a socket")
}

fn to_peer(forward: Forward<'_>) -> Option<(SocketAddr, Vec<u8>)> {
    match forward {
        Forward::ToPeer { peer, data, .. } => Some((peer, data.to_vec())),
        Forward::Nowhere => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn indications_go_where_a_permission_is() {
    let mut stage = Stage::new();
    stage.allocate(client(1), "ann");
    let (relay, now) = (only(&stage), stage.now);
    assert_eq!(
        stage.server.handle_client(now, client(1), &send(at(PEER), b"hi")),
        Forward::Nowhere
    );
    assert_eq!(stage.server.handle_peer(now, relay, at(PEER), b"hi"), Forward::Nowhere);
    assert_eq!(stage.permit(client(1), &["8.8.8.8:1"]), 0);
    for data in [&b"hi"[..], b"", &[7; 1_400]] {
        let bytes = send(at(PEER), data);
        let forward = stage.server.handle_client(stage.now, client(1), &bytes);
        assert_eq!(
            forward,
            Forward::ToPeer { relay, peer: at(PEER), data, dont_fragment: false },
            "any port of the address"
        );
        let (to, bytes) = read(stage.server.handle_peer(stage.now, relay, at(PEER), data));
        assert_eq!(to, client(1));
        let message = Message::read(&bytes).expect("a message");
        assert_eq!((message.class(), message.method()), (Class::Indication, Some(Method::Data)));
        assert_eq!(message.attributes().data, Some(data));
        assert_eq!(message.attributes().peer.and_then(|v| message.address(v)), Some(at(PEER)));
    }
    let mut whole = Vec::new();
    Writer::new(&mut whole, Class::Indication, Method::Send, stage.transaction())
        .attribute(Kind::DONT_FRAGMENT, &[])
        .address(Kind::XOR_PEER_ADDRESS, at(PEER))
        .attribute(Kind::DATA, b"whole");
    let forward = stage.server.handle_client(stage.now, client(1), &whole);
    assert!(matches!(forward, Forward::ToPeer { dont_fragment: true, .. }));
    Writer::new(&mut whole, Class::Indication, Method::Send, stage.transaction());
    let odd = {
        let mut bytes = Vec::new();
        Writer::new(&mut bytes, Class::Indication, Method::Send, stage.transaction())
            .address(Kind::XOR_PEER_ADDRESS, at(PEER))
            .attribute(Kind::DATA, b"odd")
            .attribute(Kind(0x7FFF), &[]);
        bytes
    };
    for dropped in [
        send(at("9.9.9.9:1"), b"x"),
        send(at("8.8.8.8:0"), b"x"),
        send(at("8.8.8.8:80"), b"x"),
        odd,
    ] {
        assert_eq!(stage.server.handle_client(stage.now, client(1), &dropped), Forward::Nowhere);
    }
    let session = stage.server.sessions().next().expect("one");
    assert_eq!(session.sent, Traffic { packets: 4, bytes: 2 + 1_400 + 5 });
    assert_eq!(session.received, Traffic { packets: 3, bytes: 2 + 1_400 });
}

#[test]
fn channels_cost_four_bytes_each_way() {
    let mut stage = Stage::new();
    stage.allocate(client(1), "ann");
    let relay = only(&stage);
    assert_eq!(stage.bind(client(1), 0x4abc, at(PEER)), 0);
    for data in [&b"hello"[..], b"", &[7; 1_400]] {
        let bytes = channel(0x4abc, data);
        let forward = stage.server.handle_client(stage.now, client(1), &bytes);
        assert_eq!(to_peer(forward), Some((at(PEER), data.to_vec())));
        let (to, back) = read(stage.server.handle_peer(stage.now, relay, at(PEER), data));
        assert_eq!((to, back), (client(1), bytes), "no padding over UDP");
    }
    // Padding that came is not handed on.
    let padded = [channel(0x4abc, b"abc"), vec![0]].concat();
    let forward = stage.server.handle_client(stage.now, client(1), &padded);
    assert_eq!(to_peer(forward), Some((at(PEER), b"abc".to_vec())));
    // Another port of the peer is heard, by its permission.
    let (_, bytes) = read(stage.server.handle_peer(stage.now, relay, at("8.8.8.8:9"), b"x"));
    assert!(Message::read(&bytes).is_ok());
    for (from, bytes) in [
        (client(1), channel(0x4abd, b"another number")),
        (client(2), channel(0x4abc, b"another client")),
        (Client { listener: 2, ..client(1) }, channel(0x4abc, b"another listener")),
        (client(1), channel(0x4abc, b"cut")[..6].to_vec()),
    ] {
        assert_eq!(stage.server.handle_client(stage.now, from, &bytes), Forward::Nowhere);
    }
}

#[test]
fn streams_are_padded() {
    let mut stage = Stage::new();
    let stream = Client { is_stream: true, ..client(1) };
    stage.allocate(stream, "ann");
    let relay = only(&stage);
    assert_eq!(stage.bind(stream, 0x4000, at(PEER)), 0);
    for length in 0..9_usize {
        let data = vec![1; length];
        let (_, bytes) = read(stage.server.handle_peer(stage.now, relay, at(PEER), &data));
        assert_eq!(bytes.len(), 4 + length.next_multiple_of(4));
        assert_eq!(bytes[4..4 + length], data);
    }
}

/// Five minutes of permission within ten of the channel (RFC 8656 §9, §12).
#[test]
fn a_permission_may_end_before_its_channel() {
    let mut stage = Stage::new();
    stage.allocate(client(1), "ann");
    let relay = only(&stage);
    stage.refresh(client(1), 3_600);
    assert_eq!(stage.bind(client(1), 0x4000, at(PEER)), 0);
    let goes = |stage: &mut Stage| {
        let bytes = channel(0x4000, b"x");
        let up = to_peer(stage.server.handle_client(stage.now, client(1), &bytes)).is_some();
        let down = stage.server.handle_peer(stage.now, relay, at(PEER), b"x") != Forward::Nowhere;
        (up, down)
    };
    stage.pass_s(299);
    assert_eq!(goes(&mut stage), (true, true));
    stage.pass_s(1);
    assert_eq!(goes(&mut stage), (false, false));
    assert_eq!(stage.permit(client(1), &["8.8.8.8:1"]), 0);
    assert_eq!(goes(&mut stage), (true, true), "the channel was there still");
    stage.pass_s(299);
    assert_eq!(goes(&mut stage), (true, true));
    stage.permit(client(1), &["8.8.8.8:1"]);
    stage.pass_s(1);
    assert_eq!(goes(&mut stage), (false, true), "the channel is over, and indications come");
    let (_, bytes) = read(stage.server.handle_peer(stage.now, relay, at(PEER), b"x"));
    assert!(Message::read(&bytes).is_ok());
}

#[test]
fn what_is_over_relays_nothing() {
    let mut stage = Stage::new();
    stage.allocate(client(1), "ann");
    let relay = only(&stage);
    assert_eq!(stage.bind(client(1), 0x4000, at(PEER)), 0);
    stage.now += std::time::Duration::from_secs(600);
    // Nobody has looked at it yet.
    let bytes = channel(0x4000, b"x");
    assert_eq!(stage.server.handle_client(stage.now, client(1), &bytes), Forward::Nowhere);
    assert_eq!(stage.server.handle_peer(stage.now, relay, at(PEER), b"x"), Forward::Nowhere);
    assert_eq!(stage.refresh(client(1), 600), 437);
    // And one that is asked for again at that moment is another.
    stage.allocate(client(1), "bob");
    assert_eq!(stage.server.handle_peer(stage.now, relay, at(PEER), b"x"), Forward::Nowhere);
    assert_eq!(stage.ended.len(), 1);
}

/// The kernel is not asked to hand over what stays in the house; both sides' permissions hold.
#[test]
fn a_peer_that_is_relayed_here_is_reached_in_the_process() {
    let mut stage = Stage::new();
    let ann = stage.allocate(client(1), "ann");
    let other = stage.allocate(client(2), "ann");
    assert_eq!(stage.bind(client(1), 0x4000, other), 0);
    let bytes = channel(0x4000, b"psst");
    assert_eq!(stage.server.handle_client(stage.now, client(1), &bytes), Forward::Nowhere);
    assert_eq!(stage.permit(client(2), &[&ann.to_string()]), 0);
    let (to, bytes) = read(stage.server.handle_client(stage.now, client(1), &bytes));
    let message = Message::read(&bytes).expect("a message");
    assert_eq!(to, client(2));
    assert_eq!(message.attributes().data, Some(&b"psst"[..]));
    let peer = message.attributes().peer.and_then(|value| message.address(value));
    assert_eq!(peer, Some(ann), "as it would have come by the network");
    assert_eq!(stage.bind(client(2), 0x4001, ann), 0);
    let back = channel(0x4001, b"what");
    let (to, bytes) = read(stage.server.handle_client(stage.now, client(2), &back));
    assert_eq!((to, bytes), (client(1), channel(0x4000, b"what")));
    let traffic: Vec<_> = stage
        .server
        .sessions()
        .map(|session| (session.sent.packets, session.received.packets))
        .collect();
    assert_eq!(traffic, [(2, 1), (1, 1)]);

    // By the address that sockets are bound to it is the same one; every other port there is nobody's.
    let bound = SocketAddr::new(at("10.0.0.1:1").ip(), other.port());
    assert_eq!(stage.permit(client(1), &["10.0.0.1:1", "192.0.2.1:1"]), 0);
    let sent = send(bound, b"x");
    assert!(matches!(
        stage.server.handle_client(stage.now, client(1), &sent),
        Forward::ToClient { .. }
    ));
    for port in [3478, 4006, 50_000, 50_099, u16::MAX] {
        for ip in ["10.0.0.1", "192.0.2.1"] {
            let peer = SocketAddr::new(ip.parse().expect("an address"), port);
            if [ann.port(), other.port()].contains(&port) {
                continue;
            }
            let sent = send(peer, b"x");
            assert_eq!(stage.server.handle_client(stage.now, client(1), &sent), Forward::Nowhere);
        }
    }
    // To itself, if it wants to.
    assert_eq!(stage.permit(client(1), &[&ann.to_string()]), 0);
    let (to, _) = read(stage.server.handle_client(stage.now, client(1), &send(ann, b"me")));
    assert_eq!(to, client(1));
    stage.refresh(client(2), 0);
    let gone = channel(0x4000, b"x");
    assert_eq!(stage.server.handle_client(stage.now, client(1), &gone), Forward::Nowhere);
}

#[test]
fn a_peer_of_another_server_of_the_neuron_is_handed_to_it() {
    let mut stage = Stage::new();
    let ann = stage.allocate(client(1), "ann");
    let mut other = Stage::new();
    other.server = relay::server::Server::new(
        9,
        relay::server::Settings {
            realm: super::REALM.to_owned(),
            ..relay::server::Settings::default()
        },
        stage.relayed.clone(),
        super::peers(),
        Box::new(super::Names),
        relay::nonce::Nonces::new(b"the cluster's", relay::nonce::Features::default()),
        [8; 32],
        other.now,
        super::UNIX_S,
    );
    let bob = other.allocate(client(2), "bob");
    assert_ne!(ann.port(), bob.port(), "they share the ports");
    assert_eq!(stage.bind(client(1), 0x4000, bob), 0);
    let bytes = channel(0x4000, b"over");
    let forward = stage.server.handle_client(stage.now, client(1), &bytes);
    let Forward::ToServer { relay, from, data } = forward else { panic!("{forward:?}") };
    assert_eq!((relay.server, relay.family, from, data), (9, Family::V4, ann, &b"over"[..]));
    assert_eq!(other.server.handle_peer(other.now, relay, from, data), Forward::Nowhere);
    let permitted = other.request(client(2), "bob", Method::CreatePermission, |writer| {
        writer.address(Kind::XOR_PEER_ADDRESS, ann);
    });
    assert_eq!(permitted, 0);
    let (to, _) = read(other.server.handle_peer(other.now, relay, from, data));
    assert_eq!(to, client(2));
}

/// What was permitted and bound under one policy is looked at again under the next.
#[test]
fn a_peer_that_is_denied_later_is_reached_no_longer() {
    let mut stage = Stage::new();
    stage.allocate(client(1), "ann");
    assert_eq!(stage.bind(client(1), 0x4000, at(PEER)), 0);
    let bytes = channel(0x4000, b"x");
    assert!(to_peer(stage.server.handle_client(stage.now, client(1), &bytes)).is_some());
    let mut peers: Peers = super::peers();
    peers.deny(Network::parse("8.8.0.0/16").expect("a network"));
    stage.server.set_peers(peers);
    assert_eq!(stage.server.handle_client(stage.now, client(1), &bytes), Forward::Nowhere);
    let relay = only(&stage);
    assert_eq!(stage.server.handle_peer(stage.now, relay, at(PEER), b"x"), Forward::Nowhere);
    assert_eq!(stage.bind(client(1), 0x4000, at(PEER)), 403);
    stage.server.set_peers(super::peers());
    assert_eq!(stage.bind(client(1), 0x4000, at(PEER)), 0);
    assert!(to_peer(stage.server.handle_client(stage.now, client(1), &bytes)).is_some());
}

#[test]
fn an_allocation_has_a_rate() {
    let mut stage = Stage::with(
        |settings| (settings.packets_per_second, settings.bytes_per_second) = (100, 100_000),
        QUOTAS,
    );
    stage.allocate(client(1), "ann");
    let relay = only(&stage);
    assert_eq!(stage.bind(client(1), 0x4000, at(PEER)), 0);
    let small = channel(0x4000, b"x");
    let large = channel(0x4000, &[0; 10_000]);
    let passes = |stage: &mut Stage, bytes: &[u8]| {
        (0..500)
            .filter(|_| stage.server.handle_client(stage.now, client(1), bytes) != Forward::Nowhere)
            .count()
    };
    assert_eq!(passes(&mut stage, &small), 100);
    assert_eq!(
        stage.server.handle_peer(stage.now, relay, at(PEER), b"x"),
        Forward::Nowhere,
        "both ways together"
    );
    stage.pass_s(1);
    assert_eq!(passes(&mut stage, &large), 10);
    stage.pass_s(10);
    assert_eq!(passes(&mut stage, &small), 100, "nothing is saved up");
}

#[test]
fn a_dual_allocation_relays_both() {
    let mut stage = Stage::new();
    let bytes = stage.signed(client(1), "ann", Method::Allocate, |writer| {
        udp(writer);
        writer.attribute(Kind::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    stage.ask(client(1), &bytes);
    let v6 = at("[2606:4700::1]:5000");
    assert_eq!(stage.bind(client(1), 0x4000, at(PEER)), 0);
    assert_eq!(stage.bind(client(1), 0x4001, v6), 0);
    for (number, peer, family) in [(0x4000, at(PEER), Family::V4), (0x4001, v6, Family::V6)] {
        let bytes = channel(number, b"x");
        let forward = stage.server.handle_client(stage.now, client(1), &bytes);
        let Forward::ToPeer { relay, .. } = forward else { panic!("{forward:?}") };
        assert_eq!(relay.family, family);
        let (_, back) = read(stage.server.handle_peer(stage.now, relay, peer, b"x"));
        assert_eq!(back, bytes);
    }
    let (_, bytes) = {
        let relay = *stage.open.keys().find(|id| id.family == Family::V6).expect("both");
        stage.permit(client(1), &["[2606:4700::2]:1"]);
        read(stage.server.handle_peer(stage.now, relay, at("[2606:4700::2]:7"), b"abc"))
    };
    let message = Message::read(&bytes).expect("a message");
    let peer = message.attributes().peer.and_then(|value| message.address(value));
    assert_eq!(peer, Some(at("[2606:4700::2]:7")));
}

/// However many there are: each packet finds its way by what is there already.
#[test]
fn packets_cost_no_allocation() {
    let mut stage = Stage::with(
        |settings| (settings.packets_per_second, settings.bytes_per_second) = (0, 0),
        QUOTAS,
    );
    let ann = stage.allocate(client(1), "ann");
    stage.allocate(client(2), "ann");
    let relays: Vec<RelayId> = stage.open.keys().copied().collect();
    assert_eq!(stage.bind(client(1), 0x4000, at(PEER)), 0);
    assert_eq!(stage.bind(client(2), 0x4000, ann), 0);
    assert_eq!(stage.permit(client(1), &[&ann.to_string(), "9.9.9.9:5000"]), 0);
    let (up, across) = (channel(0x4000, &[1; 1_000]), channel(0x4000, b"across"));
    let (indicated, nonsense) = (send(at("9.9.9.9:5000"), &[1; 1_000]), [0xFF; 100]);
    let mut went = 0;
    let counted = allocation_counter::measure(|| {
        for _ in 0..1_000 {
            for (from, bytes) in
                [(1, &up[..]), (2, &across), (1, &indicated), (1, &nonsense), (9, &up)]
            {
                let forward = stage.server.handle_client(stage.now, client(from), bytes);
                went += usize::from(forward != Forward::Nowhere);
            }
            for peer in [PEER, "9.9.9.9:7000", "1.1.1.1:1"] {
                let peer = at(peer);
                let forward = stage.server.handle_peer(stage.now, relays[0], peer, &up);
                went += usize::from(forward != Forward::Nowhere);
            }
        }
    });
    assert_eq!((counted.count_total, went), (0, 5_000));
}
