//! What comes in is taken apart rightly, kept until the inbox is cleared, and lost whole or not at all.

use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind};

use udp::{Inbox, Options, Outbox, Socket};

use crate::{V4, V6, bytes, receive, send, socket, wait};

#[test]
fn what_was_coalesced_is_taken_apart() {
    for address in [V4, V6] {
        let (from, to) = (socket(address, true), socket(address, true));
        let (mut inbox, mut outbox) = (Inbox::new(4), Outbox::default());
        for (length, count, tail) in [
            (1, 64, None),
            (2, 63, Some(1)),
            (160, 64, None),
            (160, 10, Some(159)),
            (1_200, 54, Some(1)),
            (32_000, 2, Some(1_000)),
            (65_000, 1, None),
        ] {
            let mut lengths = vec![length; count];
            lengths.extend(tail);
            let sent: Vec<_> = lengths
                .iter()
                .enumerate()
                .map(|(i, n)| (to.local_address(), bytes(i, *n)))
                .collect();
            let before = inbox.received().messages;
            send(&from, &mut outbox, &sent);
            let received = receive(&mut inbox, &to, sent.len());
            assert!(received.iter().map(|read| &read.1).eq(sent.iter().map(|sent| &sent.1)));
            assert!(received.iter().all(|read| read.0 == from.local_address()));
            assert_eq!(inbox.received().messages - before, 1, "{length} × {count}, {tail:?}");
        }
    }
}

#[test]
fn what_is_longer_than_a_slot_is_counted_and_left_out() {
    let (from, to) = (UdpSocket::bind(V4).unwrap(), socket(V4, true));
    let mut inbox = Inbox::with_slot_bytes(16, 100);
    let lengths = [50, 101, 100, 0, 1_000, 99];
    for (i, length) in lengths.iter().enumerate() {
        from.send_to(&bytes(i, *length), to.local_address()).unwrap();
    }
    let received = receive(&mut inbox, &to, 4);
    let fits: Vec<_> = [0, 2, 3, 5].map(|i| bytes(i, lengths[i])).into();
    assert!(received.into_iter().map(|read| read.1).eq(fits));
    let counted = inbox.received();
    assert_eq!((counted.truncated, counted.datagrams, counted.bytes), (2, 4, 249));
}

#[test]
fn a_full_receive_buffer_loses_whole_datagrams() {
    for gso in [true, false] {
        let options = Options { receive_buffer_bytes: Some(20_000), ..Options::default() };
        let (from, to) = (socket(V4, gso), Socket::bind(V4.parse().unwrap(), &options).unwrap());
        let (mut inbox, mut outbox) = (Inbox::new(64), Outbox::default());
        let data = |i: u16| [&i.to_be_bytes()[..], &bytes(i.into(), 300)].concat();
        let sent: Vec<_> = (0..300).map(|i| (to.local_address(), data(i))).collect();
        send(&from, &mut outbox, &sent);
        assert_eq!(outbox.sent().datagrams, 300, "the sender does not know");
        let mut kept = Vec::new();
        wait(&mut inbox, &to);
        loop {
            kept.extend(inbox.datagrams().map(|read| read.bytes.to_vec()));
            inbox.clear();
            if inbox.receive(&to).unwrap() == 0 {
                break;
            }
        }
        assert!(!kept.is_empty() && kept.len() < 300, "{}", kept.len());
        let number = |read: &Vec<u8>| u16::from_be_bytes([read[0], read[1]]);
        assert!(kept.iter().all(|read| *read == data(number(read))), "whole");
        assert!(kept.is_sorted_by_key(number), "in order");

        // The loss is told with what comes after it.
        send(&from, &mut outbox, &[(to.local_address(), data(300))]);
        let last = receive(&mut inbox, &to, 1);
        assert_eq!(last, [(from.local_address(), data(300))]);
        let lost = inbox.received().lost;
        assert_eq!(u64::from(to.lost()), lost);
        if gso {
            // Whether a message that is lost counts as one or as its datagrams is the kernel's.
            assert!((1..=300 - kept.len() as u64).contains(&lost), "{lost}");
        } else {
            assert_eq!(kept.len() as u64 + lost, 300);
        }
    }
}

#[test]
fn spans_hold_until_the_inbox_is_cleared() {
    let (from, first, second) = (UdpSocket::bind(V4).unwrap(), socket(V4, true), socket(V6, true));
    let v6 = UdpSocket::bind(V6).unwrap();
    let mut inbox = Inbox::new(3);
    from.send_to(b"hello", first.local_address()).unwrap();
    wait(&mut inbox, &first);
    let hello = inbox.datagrams().next().expect("one came").span;
    v6.send_to(b"world!", second.local_address()).unwrap();
    wait(&mut inbox, &second);
    let came: Vec<_> = inbox.datagrams().collect();
    assert_eq!(came.len(), 1, "those of the last receive");
    assert_eq!((came[0].from, came[0].bytes), (v6.local_addr().unwrap(), &b"world!"[..]));
    let world = came[0].span;
    assert_eq!(inbox.receive(&first).unwrap(), 0);
    assert_eq!(inbox.datagrams().count(), 0);
    assert_eq!((inbox.bytes(hello), inbox.bytes(world)), (&b"hello"[..], &b"world!"[..]));

    let part = world.part(1..3).expect("it has so many");
    assert_eq!((inbox.bytes(part), part.length()), (&b"or"[..], 2));
    assert_eq!(part.part(0..3), None);
    assert_eq!(inbox.bytes(part.after(1).expect("one more")), b"r");
    assert!(part.after(2).expect("none more").is_empty());
    assert_eq!(part.after(3), None);
    let (begin, end) = (2, 1);
    assert_eq!(part.part(begin..end), None);

    assert!(!inbox.is_full());
    from.send_to(b"", first.local_address()).unwrap();
    wait(&mut inbox, &first);
    assert_eq!(inbox.datagrams().map(|read| read.bytes.len()).collect::<Vec<_>>(), [0]);
    assert!(inbox.is_full());
    assert!(catch_unwind(AssertUnwindSafe(|| inbox.receive(&first))).is_err());
    inbox.clear();
    assert!(!inbox.is_full());
    assert_eq!(inbox.datagrams().count(), 0);
    assert!(catch_unwind(AssertUnwindSafe(|| inbox.bytes(hello).len())).is_err());
}

#[test]
fn one_receive_takes_no_more_than_there_are_slots_for() {
    let (from, to) = (UdpSocket::bind(V4).unwrap(), socket(V4, false));
    for i in 0..10 {
        from.send_to(&bytes(i, i), to.local_address()).unwrap();
    }
    let mut inbox = Inbox::new(4);
    let received = receive(&mut inbox, &to, 10);
    assert!(received.into_iter().map(|read| read.1).eq((0..10).map(|i| bytes(i, i))));
}
