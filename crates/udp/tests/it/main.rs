//! Batches of datagrams over loopback: beside plain sockets, at their limits, and against a small model.

mod allocations;
mod binding;
mod model;
mod receiving;
mod sending;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use udp::{Data, Inbox, Options, Outbox, Outgoing, Socket, SocketId};

const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";
const SOCKET: SocketId = SocketId(0);

/// A socket with room for all that a test sends.
fn socket(address: &str, offload: bool) -> Socket {
    let bytes = Some(4 << 20);
    let options = Options {
        gro: offload,
        gso: offload,
        receive_buffer_bytes: bytes,
        send_buffer_bytes: bytes,
        ..Options::default()
    };
    Socket::bind(address.parse().expect("an address"), &options).expect("bind")
}

/// Bytes that differ by number and place.
fn bytes(number: usize, length: usize) -> Vec<u8> {
    (0..length).map(|place| (number * 31 + place * 7) as u8).collect()
}

/// Sends copies.
fn send(socket: &Socket, outbox: &mut Outbox, datagrams: &[(SocketAddr, Vec<u8>)]) {
    for (to, data) in datagrams {
        outbox.push(&Outgoing::new(SOCKET, *to, Data::Copied(data)));
    }
    outbox.flush(&Inbox::new(1), |_| Some(socket));
}

/// What comes next at a socket, so many datagrams; the inbox is cleared.
fn receive(inbox: &mut Inbox, socket: &Socket, datagrams: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut received = Vec::new();
    inbox.clear();
    while received.len() < datagrams {
        wait(inbox, socket);
        received.extend(inbox.datagrams().map(|read| (read.from, read.bytes.to_vec())));
        inbox.clear();
    }
    received
}

/// Waits until something comes, and keeps what is there.
fn wait(inbox: &mut Inbox, socket: &Socket) {
    let begun = Instant::now();
    while inbox.receive(socket).expect("receive") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "nothing comes");
        std::thread::yield_now();
    }
}
