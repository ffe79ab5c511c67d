//! Who may have an address, and what a socket says of itself.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};

use udp::{Inbox, Options, Socket};

use crate::{V4, V6, bytes};

const SHARED: Options = Options {
    reuse_port: true,
    receive_buffer_bytes: None,
    send_buffer_bytes: None,
    gro: true,
    gso: true,
};

fn in_use(address: SocketAddr, options: &Options, is_first: bool) -> bool {
    let socket = match is_first {
        true => Socket::bind_first(address, options),
        false => Socket::bind(address, options),
    };
    match socket {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
            true
        }
    }
}

#[test]
fn a_second_first_one_is_refused_and_others_join() {
    for address in [V4, V6] {
        let first = Socket::bind_first(address.parse().unwrap(), &SHARED).unwrap();
        let address = first.local_address();
        assert_ne!(address.port(), 0);
        assert!(in_use(address, &SHARED, true));
        assert!(in_use(address, &Options::default(), true));
        assert!(in_use(address, &Options::default(), false));
        let second = Socket::bind(address, &SHARED).unwrap();
        assert!(in_use(address, &SHARED, true));

        // Each of 64 senders is dealt to one of both: not all to the same, but once in 2⁶³.
        let peers: Vec<UdpSocket> =
            (0..64).map(|_| UdpSocket::bind(SocketAddr::new(address.ip(), 0)).unwrap()).collect();
        for peer in &peers {
            peer.send_to(&bytes(1, 10), address).unwrap();
        }
        let mut came = [0; 2];
        let begun = std::time::Instant::now();
        while came[0] + came[1] < peers.len() {
            assert!(begun.elapsed().as_secs() < 10, "{came:?}");
            for (socket, came) in [&first, &second].into_iter().zip(&mut came) {
                let mut inbox = Inbox::new(64);
                inbox.receive(socket).unwrap();
                *came += inbox.datagrams().count();
            }
        }
        assert!(came[0] > 0 && came[1] > 0, "{came:?}");
    }
}

#[test]
fn one_that_shares_nothing_is_alone() {
    let alone = Socket::bind_first(V4.parse().unwrap(), &Options::default()).unwrap();
    assert!(in_use(alone.local_address(), &SHARED, false));
    assert!(in_use(alone.local_address(), &SHARED, true));
}

#[test]
fn ipv6_leaves_ipv4_alone() {
    let options = Options::default();
    // Somebody else may have one port or another.
    let has_both = (0..20).any(|_| {
        let v6 = Socket::bind_first("[::]:0".parse().unwrap(), &options).unwrap();
        let v4 = SocketAddr::new([0, 0, 0, 0].into(), v6.local_address().port());
        Socket::bind_first(v4, &options).is_ok()
    });
    assert!(has_both);
}

#[test]
fn buffers_are_as_large_as_they_were_asked_to_be() {
    for wanted in [16_384, 65_536] {
        let options = Options { receive_buffer_bytes: Some(wanted), ..Options::default() };
        let socket = Socket::bind(V4.parse().unwrap(), &options).unwrap();
        assert_eq!(socket.receive_buffer_bytes().unwrap(), 2 * wanted, "as the kernel counts");
    }
    let off = Options { gso: false, ..Options::default() };
    assert!(!Socket::bind(V4.parse().unwrap(), &off).unwrap().is_segmenting());
}
