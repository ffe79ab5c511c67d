//! A cycle that has been gone through before takes no memory.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use udp::{Data, Inbox, Outbox, Outgoing, Socket, SocketId};

use crate::{V4, V6, bytes, socket, wait};

thread_local! {
    /// Of this thread: tests run beside one another.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller has promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller has promised.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller has promised.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

/// Sends to the relay, which sends all of it on to each peer, with heads, padding and copies.
fn cycle(relay: &Socket, peers: &[Socket], data: &[u8], inbox: &mut Inbox, outbox: &mut Outbox) {
    for peer in 0..peers.len() as u32 {
        for _ in 0..20 {
            let to = relay.local_address();
            outbox.push(&Outgoing::new(SocketId(peer), to, Data::Copied(data)));
        }
    }
    outbox.flush(inbox, |id| peers.get(id.0 as usize));
    let mut came = 0;
    while came < 20 * peers.len() {
        wait(inbox, relay);
        for datagram in inbox.datagrams() {
            came += 1;
            for (index, peer) in peers.iter().enumerate() {
                let to = peer.local_address();
                let data = match index {
                    0 => Data::Copied(datagram.bytes),
                    _ => Data::Span(datagram.span),
                };
                let plain = Outgoing::new(SocketId(9), to, data);
                outbox.push(&Outgoing { head: b"head", padding: 2, ..plain });
            }
        }
    }
    outbox.flush(inbox, |_| Some(relay));
    inbox.clear();
    for peer in peers {
        let mut came = 0;
        while came < 20 * peers.len() {
            wait(inbox, peer);
            came += inbox.datagrams().count();
            inbox.clear();
        }
    }
}

#[test]
fn a_warmed_cycle_allocates_nothing() {
    for address in [V4, V6] {
        for offload in [true, false] {
            let relay = socket(address, offload);
            let peers: Vec<Socket> = (0..5).map(|_| socket(address, offload)).collect();
            let (mut inbox, mut outbox) = (Inbox::new(128), Outbox::default());
            let data = bytes(1, 160);
            let mut run = || cycle(&relay, &peers, &data, &mut inbox, &mut outbox);
            for _ in 0..3 {
                run();
            }
            let before = ALLOCATIONS.get();
            assert!(before > 0, "they are counted");
            for _ in 0..20 {
                run();
            }
            assert_eq!(ALLOCATIONS.get(), before, "{address}, offload {offload}");
            assert_eq!(outbox.sent().dropped_full + outbox.sent().dropped_error, 0);
        }
    }
}
