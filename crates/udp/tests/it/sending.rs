//! What is pushed arrives, byte for byte and in order, in as few messages as can be; what cannot be sent is
//! lost alone.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use socket2::{SockAddr, SockRef};
use udp::{
    Data, Inbox, Outbox, Outgoing, PADDING_BYTES_MAX, SEGMENTED_BYTES_MAX, SEGMENTS_MAX, Sent,
    SocketId,
};

use crate::{SOCKET, V4, V6, bytes, receive, send, socket, wait};

/// A plain socket, which knows nothing of batches.
fn plain(address: &str) -> UdpSocket {
    let peer = UdpSocket::bind(address).expect("bind");
    peer.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    SockRef::from(&peer).set_recv_buffer_size(4 << 20).expect("a buffer");
    peer
}

fn next(peer: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 70_000];
    let bytes = peer.recv(&mut buffer).expect("a datagram");
    buffer.truncate(bytes);
    buffer
}

/// Lengths with runs, short tails, empty ones, and steps up and down.
fn lengths() -> Vec<usize> {
    let mut lengths = vec![100; 70];
    lengths.extend([40, 100, 100, 100, 0, 100, 0, 0, 1, 1, 1]);
    lengths.extend(vec![1_200; 60]);
    lengths.extend([1_201, 1_200, 9_000, 9_000, 8_999, 9_000, 65_000, 1, 2, 3]);
    lengths
}

#[test]
fn what_is_sent_arrives_in_order() {
    for address in [V4, V6] {
        for (gso, gro) in [(true, true), (true, false), (false, true), (false, false)] {
            let (from, to) = (socket(address, gso), socket(address, gro));
            let target = to.local_address();
            let sent: Vec<_> =
                lengths().iter().enumerate().map(|(i, n)| (target, bytes(i, *n))).collect();
            let (mut inbox, mut outbox) = (Inbox::new(16), Outbox::default());
            send(&from, &mut outbox, &sent);
            let received = receive(&mut inbox, &to, sent.len());
            let source = from.local_address();
            let expected: Vec<_> = sent.into_iter().map(|(_, data)| (source, data)).collect();
            assert!(received == expected, "{address}, gso {gso}, gro {gro}");

            let counted = *outbox.sent();
            let total: usize = lengths().iter().sum();
            assert_eq!(counted.datagrams as usize, expected.len());
            assert_eq!((counted.bytes as usize, counted.dropped_error), (total, 0));
            assert_eq!(counted.messages < counted.datagrams, gso, "{counted:?}");
            assert_eq!(counted.calls, 1);
            let received = inbox.received();
            assert_eq!(received.datagrams, counted.datagrams);
            assert_eq!(received.bytes, counted.bytes);
            assert_eq!((received.truncated, received.lost), (0, 0));
            assert_eq!(received.messages < received.datagrams, gso && gro, "{received:?}");
        }
    }
}

/// Messages that datagrams of these lengths become.
fn messages_of(lengths: &[usize]) -> u64 {
    let (from, to) = (socket(V4, true), plain(V4));
    let target = to.local_addr().expect("bound");
    let sent: Vec<_> = lengths.iter().enumerate().map(|(i, n)| (target, bytes(i, *n))).collect();
    let mut outbox = Outbox::default();
    send(&from, &mut outbox, &sent);
    for (_, data) in &sent {
        assert!(next(&to) == *data);
    }
    let sent = outbox.sent();
    assert_eq!((sent.dropped_error, sent.dropped_full, sent.dropped_bound), (0, 0, 0));
    sent.messages
}

#[test]
fn messages_are_as_long_as_they_may_be() {
    assert_eq!(messages_of(&[10; SEGMENTS_MAX]), 1);
    assert_eq!(messages_of(&[10; SEGMENTS_MAX + 1]), 2);
    assert_eq!(SEGMENTED_BYTES_MAX, 50 * 1_300);
    assert_eq!(messages_of(&[1_300; 50]), 1);
    assert_eq!(messages_of(&[1_300; 51]), 2);
    assert_eq!(messages_of(&[[1_300; 50].as_slice(), &[1]].concat()), 2);
    assert_eq!(messages_of(&[1_301; 50]), 2);
    assert_eq!(messages_of(&[32_500; 2]), 1);
    assert_eq!(messages_of(&[32_501, 32_499]), 1);
    assert_eq!(messages_of(&[32_501; 2]), 2);
    assert_eq!(messages_of(&[65_001, 1]), 2);
}

#[test]
fn a_message_ends_with_a_shorter_datagram_and_before_a_longer_or_empty_one() {
    assert_eq!(messages_of(&[10, 10, 9]), 1);
    assert_eq!(messages_of(&[10, 10, 9, 9]), 2);
    assert_eq!(messages_of(&[10, 10, 9, 10]), 2);
    assert_eq!(messages_of(&[10, 11]), 2);
    assert_eq!(messages_of(&[10, 0, 10]), 3);
    assert_eq!(messages_of(&[0, 0]), 2);
    assert_eq!(messages_of(&[0, 10]), 2);
}

#[test]
fn the_longest_datagram_arrives_and_one_that_is_longer_is_lost_alone() {
    for (address, longest) in [(V4, 65_507), (V6, 65_527)] {
        for gso in [true, false] {
            let (from, to) = (socket(address, gso), socket(address, gso));
            let target = to.local_address();
            let lengths = [5, 5, longest, longest + 1, 5, 65_535, 65_536, 70_000, 5];
            let sent: Vec<_> =
                lengths.iter().enumerate().map(|(i, n)| (target, bytes(i, *n))).collect();
            let mut outbox = Outbox::default();
            send(&from, &mut outbox, &sent);
            let received = receive(&mut Inbox::new(8), &to, 5);
            let fits = sent.iter().filter(|(_, data)| data.len() <= longest);
            assert!(received.iter().map(|read| &read.1).eq(fits.map(|sent| &sent.1)));
            assert_eq!((outbox.sent().datagrams, outbox.sent().dropped_error), (5, 4));
        }
    }
}

#[test]
fn heads_and_padding_are_put_around_copies_and_what_came_in() {
    let (relay, from, to) = (socket(V4, true), socket(V4, true), plain(V4));
    let (mut inbox, mut outbox) = (Inbox::new(8), Outbox::default());
    let came: Vec<_> = (0..20).map(|i| (relay.local_address(), bytes(i, 50))).collect();
    send(&from, &mut outbox, &came);
    let mut spans = Vec::new();
    while spans.len() < came.len() {
        wait(&mut inbox, &relay);
        spans.extend(inbox.datagrams().map(|datagram| datagram.span));
    }
    let before = *outbox.sent();
    let head = bytes(99, 48);
    let mut expected = Vec::new();
    for (i, span) in spans.iter().enumerate() {
        for padding in 0..=PADDING_BYTES_MAX {
            let part = span.part(i..50).expect("some of it");
            for data in [Data::Span(part), Data::Copied(&came[i].1[i..])] {
                let head = &head[..2 * i];
                let plain = Outgoing::new(SOCKET, to.local_addr().unwrap(), data);
                outbox.push(&Outgoing { head, padding, ..plain });
                let zeros = vec![0; padding.into()];
                expected.push([head, &came[i].1[i..], &zeros].concat());
            }
        }
    }
    outbox.flush(&inbox, |_| Some(&relay));
    for expected in &expected {
        assert!(next(&to) == *expected);
    }
    let messages = outbox.sent().messages - before.messages;
    assert!(messages < expected.len() as u64, "{messages}");
}

#[test]
fn destinations_between_do_not_part_messages() {
    let from = socket(V4, true);
    let peers: Vec<UdpSocket> = (0..10).map(|_| plain(V4)).collect();
    let mut sent = Vec::new();
    for i in 0..600 {
        let peer = (i * 7 + i / 10) % peers.len();
        sent.push((peers[peer].local_addr().unwrap(), bytes(i, 100)));
    }
    let mut outbox = Outbox::default();
    send(&from, &mut outbox, &sent);
    for peer in &peers {
        let address = peer.local_addr().unwrap();
        for (_, data) in sent.iter().filter(|(to, _)| *to == address) {
            assert!(next(peer) == *data);
        }
    }
    assert_eq!((outbox.sent().messages, outbox.sent().calls), (10, 1));
}

#[test]
fn more_messages_than_one_call_takes_are_sent_by_several() {
    for gso in [true, false] {
        let from = socket(V4, gso);
        let peers: Vec<_> = (0..10).map(|_| socket(V4, gso)).collect();
        // No two fit into one message.
        let data = |i| bytes(i, i % 2);
        let sent: Vec<_> = (0..2_500).map(|i| (peers[i / 250].local_address(), data(i))).collect();
        let mut outbox = Outbox::default();
        send(&from, &mut outbox, &sent);
        for (peer, sent) in peers.iter().zip(sent.chunks(250)) {
            let received = receive(&mut Inbox::new(32), peer, sent.len());
            assert!(received.iter().map(|read| &read.1).eq(sent.iter().map(|sent| &sent.1)));
        }
        assert_eq!((outbox.sent().messages, outbox.sent().calls), (2_500, 3));
    }
}

#[test]
fn a_closed_peer_does_not_disturb_others() {
    let (from, open) = (socket(V4, true), plain(V4));
    let closed = UdpSocket::bind(V4).unwrap().local_addr().unwrap();
    // One that is connected is told what ICMP says; others never are.
    SockRef::from(&from.as_fd()).connect(&SockAddr::from(closed)).expect("connect");
    let mut outbox = Outbox::default();
    let to = open.local_addr().unwrap();
    for round in 0..20 {
        let data = |i: usize| bytes(round * 10 + i, 10 + i);
        let sent: Vec<_> =
            (0..6).map(|i| (if i % 2 == 0 { closed } else { to }, data(i))).collect();
        send(&from, &mut outbox, &sent);
        for i in [1, 3, 5] {
            assert!(next(&open) == data(i), "round {round}");
        }
    }
    assert_eq!((outbox.sent().datagrams, outbox.sent().dropped_error), (120, 0));
    assert!(outbox.sent().calls > 20, "there were errors: {:?}", outbox.sent());

    let mut inbox = Inbox::new(2);
    send(&from, &mut outbox, &[(closed, bytes(1, 1))]);
    let begun = Instant::now();
    while inbox.received().unreachable == 0 {
        assert_eq!(inbox.receive(&from).expect("no error of the socket"), 0);
        assert!(begun.elapsed() < Duration::from_secs(10), "no error came");
    }
}

#[test]
fn what_cannot_be_reached_is_lost_alone() {
    let (from, to) = (socket(V4, true), plain(V4));
    let target = to.local_addr().unwrap();
    let nowhere: SocketAddr = "[::1]:9".parse().unwrap();
    let no_port = SocketAddr::new(target.ip(), 0);
    let sent: Vec<_> = [target, nowhere, target, no_port, no_port, target]
        .into_iter()
        .enumerate()
        .map(|(i, to)| (to, bytes(i, 20)))
        .collect();
    let mut outbox = Outbox::default();
    send(&from, &mut outbox, &sent);
    for i in [0, 2, 5] {
        assert!(next(&to) == bytes(i, 20));
    }
    assert_eq!((outbox.sent().datagrams, outbox.sent().dropped_error), (3, 3));
}

#[test]
fn sockets_are_asked_for_once_and_may_be_gone() {
    let (first, second, to) = (socket(V4, true), socket(V4, true), plain(V4));
    let mut outbox = Outbox::default();
    for i in 0..30 {
        let data = bytes(i, 10);
        let id = SocketId([7, 1_000_000, 3][i % 3]);
        outbox.push(&Outgoing::new(id, to.local_addr().unwrap(), Data::Copied(&data)));
    }
    let mut asked = Vec::new();
    outbox.flush(&Inbox::new(1), |id| {
        asked.push(id.0);
        match id.0 {
            7 => Some(&first),
            3 => Some(&second),
            _ => None,
        }
    });
    asked.sort_unstable();
    assert_eq!(asked, [3, 7, 1_000_000]);
    let Sent { datagrams, messages, dropped_error, .. } = *outbox.sent();
    assert_eq!((datagrams, messages, dropped_error), (20, 2, 10));
    assert_eq!(outbox.waiting(), 0);
    outbox.flush(&Inbox::new(1), |_| unreachable!("nothing is held"));
}

#[test]
fn what_may_not_be_fragmented_is_a_message_of_its_own() {
    for address in [V4, V6] {
        let (from, to) = (socket(address, true), plain(address));
        let mut outbox = Outbox::default();
        let mut send = |wanted: &[bool]| {
            let before = outbox.sent().messages;
            for (i, dont_fragment) in wanted.iter().enumerate() {
                let data = bytes(i, 10);
                let to = to.local_addr().unwrap();
                let plain = Outgoing::new(SOCKET, to, Data::Copied(&data));
                outbox.push(&Outgoing { dont_fragment: *dont_fragment, ..plain });
            }
            outbox.flush(&Inbox::new(1), |_| Some(&from));
            for i in 0..wanted.len() {
                assert!(next(&to) == bytes(i, 10));
            }
            outbox.sent().messages - before
        };
        assert_eq!(send(&[true, true, false, false, true]), 3);
        assert_eq!(send(&[true, true]), 1);
        assert_eq!(send(&[false, false]), 1);
    }
}

#[test]
fn an_outbox_is_bounded() {
    let (from, to) = (socket(V4, true), plain(V4));
    let to = to.local_addr().unwrap();
    let mut outbox = Outbox::default();
    for _ in 0..=udp::DATAGRAMS_MAX {
        outbox.push(&Outgoing::new(SOCKET, to, Data::Copied(b"x")));
    }
    assert_eq!((outbox.waiting(), outbox.sent().dropped_bound), (udp::DATAGRAMS_MAX, 1));
    outbox.flush(&Inbox::new(1), |_| Some(&from));
    assert_eq!(outbox.sent().datagrams, udp::DATAGRAMS_MAX as u64);

    let long = bytes(1, 32_768);
    for _ in 0..=udp::COPIED_BYTES_MAX / long.len() {
        outbox.push(&Outgoing::new(SOCKET, to, Data::Copied(&long)));
    }
    assert_eq!(outbox.waiting(), udp::COPIED_BYTES_MAX / long.len());
    assert_eq!(outbox.sent().dropped_bound, 2);
}
