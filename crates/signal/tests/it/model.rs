//! Random joins, leaves, messages, kicks and bans by many sockets, against a model that is a flat
//! list of who sits where. After every step: each socket saw exactly what the model says, in that
//! order and once; presence and listings agree; at the end nothing is left.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use signal::{Address, Departure, Kicked, Limits, Refusal, Signal, SocketId, Token};
use wire::frames::Name;
use wire::ws::CloseCode;

use crate::{Seen, address, bucket, drain, ip, join, now, sealer};

const PATHS: [&str; 3] = ["/", "/my/path", "/voice demo"];
const NAMES: [&str; 4] = ["ann", "bob", "a/b", "é"];
const SOCKETS: u64 = 24;

fn limits() -> Limits {
    Limits {
        rooms_per_bucket: 2,
        sockets_per_bucket: 12,
        sockets_per_room: 9,
        sockets_per_name: 4,
        ..Limits::default()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ban(u64),
    Broadcast(u64),
    Direct { from: u64, to: usize, spelling: Spelling },
    Join { socket: u64, path: usize, name: usize },
    Kick { path: usize, name: Option<usize> },
    Leave(u64),
    Ping(u64),
    Pose(u64),
}

/// How a sender writes a name.
#[derive(Clone, Copy, Debug)]
enum Spelling {
    Encoded,
    Full,
    Raw,
}

fn step() -> impl Strategy<Value = Step> {
    let socket = 0..SOCKETS;
    let spelling = prop_oneof![Just(Spelling::Encoded), Just(Spelling::Full), Just(Spelling::Raw)];
    prop_oneof![
        8 => (socket.clone(), 0..PATHS.len(), 0..NAMES.len())
            .prop_map(|(socket, path, name)| Step::Join { socket, path, name }),
        4 => socket.clone().prop_map(Step::Leave),
        6 => socket.clone().prop_map(Step::Broadcast),
        6 => (socket.clone(), 0..NAMES.len(), spelling)
            .prop_map(|(from, to, spelling)| Step::Direct { from, to, spelling }),
        1 => (0..PATHS.len(), prop::option::of(0..NAMES.len()))
            .prop_map(|(path, name)| Step::Kick { path, name }),
        1 => socket.clone().prop_map(Step::Ban),
        1 => socket.clone().prop_map(Step::Ping),
        1 => socket.prop_map(Step::Pose),
    ]
}

/// Who sits where, in the order they came.
#[derive(Default)]
struct Model {
    seats: Vec<Seat>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Seat {
    socket: SocketId,
    path: &'static str,
    name: &'static str,
}

impl Model {
    fn seat(&self, socket: SocketId) -> Option<Seat> {
        self.seats.iter().find(|seat| seat.socket == socket).cloned()
    }

    fn in_room(&self, path: &str) -> impl Iterator<Item = &Seat> {
        self.seats.iter().filter(move |seat| seat.path == path)
    }

    /// The names in a room as the wire spells them, sorted.
    fn names(&self, path: &str) -> BTreeSet<String> {
        self.in_room(path).map(|seat| encoded(seat.name)).collect()
    }

    fn refusal(&self, socket: SocketId, path: &str, name: &str) -> Option<Refusal> {
        let limits = limits();
        let rooms: BTreeSet<_> = self.seats.iter().map(|seat| seat.path).collect();
        let of_name = self.in_room(path).filter(|seat| seat.name == name).count();
        if self.seat(socket).is_some() {
            Some(Refusal::Seated)
        } else if self.seats.len() == limits.sockets_per_bucket {
            Some(Refusal::SocketsPerBucket)
        } else if self.in_room(path).count() == limits.sockets_per_room {
            Some(Refusal::SocketsPerRoom)
        } else if of_name == limits.sockets_per_name {
            Some(Refusal::SocketsPerName)
        } else if !rooms.contains(path) && rooms.len() == limits.rooms_per_bucket {
            Some(Refusal::RoomsPerBucket)
        } else {
            None
        }
    }

    /// Takes sockets away; whoever stays in their rooms hears of each name that is gone.
    fn remove(&mut self, sockets: &[SocketId], seen: &mut Seen) -> Kicked {
        let (gone, stay) =
            self.seats.drain(..).partition(|seat: &Seat| sockets.contains(&seat.socket));
        self.seats = stay;
        let gone: Vec<Seat> = gone;
        let left: BTreeSet<_> = gone
            .iter()
            .map(|seat| (seat.path, encoded(seat.name)))
            .filter(|(path, name)| !self.names(path).contains(name))
            .collect();
        for (path, name) in &left {
            for seat in self.in_room(path) {
                seen.push(seat.socket, frame(path, name, r#","o":"peer_removed""#, "{}"));
            }
        }
        let mut tokens: Vec<_> = gone
            .iter()
            .map(|seat| Token { id: seat.socket.0, expires_unix_s: 1_700_000_060 })
            .collect();
        tokens.sort();
        Kicked { names: left.len(), sockets: gone.len(), tokens }
    }

    fn close(&mut self, sockets: &[SocketId], seen: &mut Seen) -> Kicked {
        for socket in sockets {
            seen.push(*socket, "close 4403 kicked".to_owned());
        }
        self.remove(sockets, seen)
    }
}

fn encoded(name: &str) -> String {
    Name::encode(name).expect("a name").to_string()
}

fn frame(path: &str, name: &str, meta: &str, payload: &str) -> String {
    let slash = if path == "/" { "" } else { "/" };
    format!(r#"{{"t":"u","m":{{"f":"{path}{slash}{name}"{meta}}},"p":{payload}}}"#)
}

fn spelled(path: &str, name: &str, spelling: Spelling) -> String {
    match spelling {
        Spelling::Encoded => encoded(name),
        Spelling::Full => format!("{}/{}", path.trim_end_matches('/'), encoded(name)),
        Spelling::Raw => name.to_owned(),
    }
}

/// One step of both; what the model says was seen.
fn run(step: &Step, number: usize, signal: &mut Signal, model: &mut Model) -> Seen {
    let mut seen = Seen::default();
    match *step {
        Step::Join { socket, path, name } => {
            let (path, name) = (PATHS[path], NAMES[name]);
            let id = SocketId(socket);
            let refusal = model.refusal(id, path, name);
            assert_eq!(signal.join(now(), id, join(path, name, socket)).err(), refusal);
            if refusal.is_some() {
                return seen;
            }
            let is_new = !model.names(path).contains(&encoded(name));
            let others: Vec<_> = model.in_room(path).map(|seat| seat.socket).collect();
            model.seats.push(Seat { socket: id, path, name });
            let users = user_list(&model.names(path));
            seen.push(id, frame(path, "__sys__", r#","o":"peers""#, &users));
            for other in others.into_iter().filter(|_| is_new) {
                let meta = r#","o":"peer_connected""#;
                seen.push(other, frame(path, &encoded(name), meta, "{}"));
            }
            seen.stats.push(("router:sub", path.to_owned(), encoded(name), 1));
        }
        Step::Leave(socket) => {
            signal.leave(now(), SocketId(socket), Departure::Closed);
            model.remove(&[SocketId(socket)], &mut seen);
        }
        Step::Broadcast(socket) => {
            let text = format!(r#"{{"t":"u","m":{{"f":"me","o":"message"}},"p":{number}}}"#);
            signal.handle_text(now(), SocketId(socket), &text);
            let Some(from) = model.seat(SocketId(socket)) else { return seen };
            let name = encoded(from.name);
            let text = frame(from.path, &name, r#","o":"message""#, &number.to_string());
            for seat in model.in_room(from.path).filter(|seat| seat.socket != from.socket) {
                seen.push(seat.socket, text.clone());
            }
            seen.packet(from.path, &name, &text);
        }
        Step::Direct { from, to, spelling } => {
            let from = SocketId(from);
            let seat = model.seat(from);
            let path = seat.as_ref().map_or("/", |seat| seat.path);
            let to_text = spelled(path, NAMES[to], spelling);
            let meta = format!(r#","o":"message","t":"{to_text}""#);
            signal.handle_text(
                now(),
                from,
                &format!(r#"{{"t":"u","m":{{"o":"message","t":"{to_text}"}},"p":{number}}}"#),
            );
            let Some(seat) = seat else { return seen };
            let text = frame(path, &encoded(seat.name), &meta, &number.to_string());
            for receiver in model.in_room(path).filter(|other| other.name == NAMES[to]) {
                seen.push(receiver.socket, text.clone());
            }
            if !seen.sockets.is_empty() {
                seen.packet(path, &encoded(seat.name), &text);
            }
        }
        Step::Kick { path, name } => {
            let (path, name) = (PATHS[path], name.map(|name| NAMES[name]));
            let sockets: Vec<_> = model
                .in_room(path)
                .filter(|seat| name.is_none_or(|name| name == seat.name))
                .map(|seat| seat.socket)
                .collect();
            let kicked = signal.kick(now(), &address(path), name);
            assert_eq!(kicked, model.close(&sockets, &mut seen));
        }
        Step::Ban(socket) => {
            let banned = ip(socket);
            let sockets: Vec<_> = model
                .seats
                .iter()
                .map(|seat| seat.socket)
                .filter(|other| ip(other.0) == banned)
                .collect();
            let kicked =
                signal.close_where(now(), &bucket(), CloseCode::KICKED, "kicked", |view| {
                    view.client_ip == banned
                });
            assert_eq!(kicked, model.close(&sockets, &mut seen));
        }
        Step::Ping(socket) => {
            signal.handle_text(now(), SocketId(socket), "{}");
            signal.handle_text(now(), SocketId(socket), r#"{"t":"ping","ts":5}"#);
            if model.seat(SocketId(socket)).is_some() {
                seen.push(SocketId(socket), r#"{"t":"pong","ts":5}"#.to_owned());
            }
        }
        Step::Pose(socket) => {
            signal.handle_text(now(), SocketId(socket), r#"{"t":"u","m":{"o":"peers"},"p":{}}"#);
            if model.seat(SocketId(socket)).is_some() {
                seen.push(SocketId(socket), crate::ONLY_THE_SERVER.to_owned());
            }
        }
    }
    seen
}

fn user_list(names: &BTreeSet<String>) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
    format!(r#"{{"users":[{}]}}"#, names.join(","))
}

/// Everything that listings and counts show is what the model knows.
fn compare(signal: &Signal, model: &Model) {
    let mut names = 0;
    let mut paths = BTreeMap::new();
    for path in PATHS {
        let expected: Vec<_> = model.names(path).into_iter().collect();
        let address: Address = address(path);
        let keys: Vec<_> = signal.rows(&address).iter().map(|row| row.key.to_string()).collect();
        assert_eq!(keys, expected);
        names += keys.len();
        if !keys.is_empty() {
            paths.insert(path, keys);
        }
    }
    let rooms: Vec<_> = signal.rooms(&bucket()).map(|(path, _)| path.as_str()).collect();
    assert_eq!(rooms, paths.keys().copied().collect::<Vec<_>>());
    let mut seats: Vec<_> = signal
        .sockets(&bucket())
        .map(|view| (view.socket, view.address.path.to_string(), view.name.to_string()))
        .collect();
    let mut expected: Vec<_> = model
        .seats
        .iter()
        .map(|seat| (seat.socket, seat.path.to_owned(), encoded(seat.name)))
        .collect();
    seats.sort();
    expected.sort();
    assert_eq!(seats, expected);
    let stats = signal.stats();
    assert_eq!((stats.names, stats.sockets), (names, model.seats.len()));
    assert_eq!((stats.rooms, stats.buckets), (paths.len(), usize::from(!paths.is_empty())));
}

proptest! {
    #[test]
    fn everyone_sees_what_the_model_says(steps in prop::collection::vec(step(), 0..120)) {
        let mut signal = Signal::new(crate::now(), limits(), 1, sealer());
        let mut model = Model::default();
        for (number, step) in steps.iter().enumerate() {
            let expected = run(step, number, &mut signal, &mut model);
            let seen = drain(&mut signal);
            prop_assert_eq!(seen, expected, "step {}: {:?}", number, step);
            compare(&signal, &model);
        }
        let seats = std::mem::take(&mut model.seats);
        for seat in seats {
            signal.leave(now(), seat.socket, Departure::Closed);
        }
        drain(&mut signal);
        compare(&signal, &model);
        let counters = signal.stats().counters;
        prop_assert_eq!(counters.joins, counters.leaves + counters.closes);
    }
}
