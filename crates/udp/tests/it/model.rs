//! Random scripts of pushes beside a model: for each socket and destination, a list of what was pushed.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use proptest::prelude::*;
use udp::{Data, Inbox, Outbox, Outgoing, Socket, SocketId};

use crate::{V4, V6, bytes, receive, send, socket, wait};

/// One step: a datagram, or a flush.
#[derive(Clone, Debug)]
enum Step {
    Flush,
    Push {
        socket: usize,
        peer: usize,
        head: usize,
        /// Bytes to copy, or where in which datagram of the inbox.
        data: Result<usize, (usize, usize, usize)>,
        padding: u8,
        dont_fragment: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    // Few lengths, so that there are runs of them.
    let copied = prop_oneof![Just(0_usize), Just(100), Just(100), 0..120_usize, Just(1_200)];
    let span = (0..KEPT, 0..100_usize, prop_oneof![Just(100_usize), 0..100_usize]);
    let data = prop_oneof![copied.prop_map(Ok), span.prop_map(Err)];
    let head = prop_oneof![Just(0_usize), Just(4), 0..=48_usize];
    let push = (0..3_usize, 0..2_usize, head, data, 0..=3_u8, any::<u8>());
    let push = push.prop_map(|(socket, peer, head, data, padding, dice)| Step::Push {
        socket,
        peer,
        head,
        data,
        padding,
        dont_fragment: dice < 20,
    });
    prop_oneof![1 => Just(Step::Flush), 30 => push]
}

/// Datagrams in the inbox for spans to name, of 200 bytes each.
const KEPT: usize = 10;

struct World {
    /// The third is of IPv6.
    sockets: [Socket; 3],
    /// Two of IPv4, two of IPv6.
    peers: [Socket; 4],
    inbox: Inbox,
    outbox: Outbox,
}

impl World {
    fn new(gso: bool, gro: bool) -> World {
        let sockets = [V4, V4, V6].map(|address| socket(address, gso));
        let peers = [V4, V4, V6, V6].map(|address| socket(address, gro));
        World { sockets, peers, inbox: Inbox::new(16), outbox: Outbox::default() }
    }

    fn run(&mut self, steps: &[Step]) -> Result<(), TestCaseError> {
        let World { sockets, peers, inbox, outbox } = self;
        let to = sockets[0].local_address();
        let kept: Vec<_> = (0..KEPT).map(|i| (to, bytes(i, 200))).collect();
        send(&sockets[1], outbox, &kept);
        inbox.clear();
        let mut spans = Vec::new();
        while spans.len() < KEPT {
            wait(inbox, &sockets[0]);
            spans.extend(inbox.datagrams().map(|datagram| datagram.span));
        }

        let mut model: BTreeMap<(SocketAddr, usize), Vec<Vec<u8>>> = BTreeMap::new();
        for (number, step) in steps.iter().chain([&Step::Flush]).enumerate() {
            let Step::Push { socket, peer, head, data, padding, dont_fragment } = step else {
                outbox.flush(inbox, |id| sockets.get(id.0 as usize));
                check(peers, &mut model)?;
                continue;
            };
            let peer = if *socket == 2 { peer + 2 } else { *peer };
            let (head, copy) = (bytes(number, *head), bytes(number + 1, data.unwrap_or(0)));
            let (data, expected) = match *data {
                Ok(_) => (Data::Copied(&copy), &copy[..]),
                Err((which, begin, length)) => {
                    let span = spans[which].part(begin..begin + length).expect("200 bytes");
                    (Data::Span(span), &kept[which].1[begin..begin + length])
                }
            };
            let to = peers[peer].local_address();
            let plain = Outgoing::new(SocketId(*socket as u32), to, data);
            let (padding, dont_fragment) = (*padding, *dont_fragment);
            outbox.push(&Outgoing { head: &head, padding, dont_fragment, ..plain });
            let whole = [&head[..], expected, &vec![0; padding.into()]].concat();
            let from = sockets[*socket].local_address();
            model.entry((from, peer)).or_default().push(whole);
        }
        let counted = outbox.sent();
        prop_assert_eq!(counted.dropped_full + counted.dropped_error + counted.dropped_bound, 0);
        Ok(())
    }
}

/// Looks whether what the model has arrives, and empties it.
fn check(
    peers: &[Socket],
    model: &mut BTreeMap<(SocketAddr, usize), Vec<Vec<u8>>>,
) -> Result<(), TestCaseError> {
    let mut inbox = Inbox::new(16);
    for (index, peer) in peers.iter().enumerate() {
        let of_peer = |key: &(SocketAddr, usize)| key.1 == index;
        let expected = model.iter().filter(|(key, _)| of_peer(key));
        let count = expected.map(|(_, list)| list.len()).sum();
        let mut came: BTreeMap<(SocketAddr, usize), Vec<Vec<u8>>> = BTreeMap::new();
        for (from, data) in receive(&mut inbox, peer, count) {
            came.entry((from, index)).or_default().push(data);
        }
        let expected = model.extract_if(.., |key, _| of_peer(key)).collect();
        prop_assert_eq!(came, expected);
    }
    Ok(())
}

fn scripts_arrive(gso: bool, gro: bool) {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let steps = prop::collection::vec(step(), 0..300);
    // A case that fails leaves datagrams behind, so each has a world of its own.
    let done = runner.run(&steps, |steps| World::new(gso, gro).run(&steps));
    if let Err(error) = done {
        panic!("gso {gso}, gro {gro}: {error}");
    }
    // One world that goes on is what a worker has.
    let mut world = World::new(gso, gro);
    for round in 0..20 {
        let steps: Vec<Step> = (0..50)
            .map(|i| Step::Push {
                socket: (i + round) % 3,
                peer: i / 3 % 2,
                head: 4,
                data: if i % 5 == 0 { Ok(100) } else { Err((i % KEPT, round, 100)) },
                padding: 0,
                dont_fragment: round % 4 == 3,
            })
            .collect();
        world.run(&steps).expect("arrives");
    }
}

#[test]
fn scripts_arrive_with_segments() {
    scripts_arrive(true, true);
}

#[test]
fn scripts_arrive_as_segments_at_plain_sockets() {
    scripts_arrive(true, false);
}

#[test]
fn scripts_arrive_without_segments() {
    scripts_arrive(false, false);
}
