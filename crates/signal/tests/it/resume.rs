//! Clients of every generation whose links are slow, lossy and end without a word, against a model
//! that is the list of everything that was said.
//!
//! After every step: each client has read what was said to it, in order and once, with nothing left
//! out unless it was told so; presence and listings agree; nothing is over its bound. At the end all
//! come back and have read everything, and once they are gone for good nothing is left of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use signal::{Coming, Departure, Join, Limits, Output, Signal, SocketId};
use wire::frames::{Cursor, Generation, Incarnation, Session};
use wire::ws::CloseCode;

use crate::{address, join, sealer, text_of};

const PATH: &str = "/my/path";
/// Frames that wait in a link before its socket is cut, as the shell does.
const LINK_MAX: usize = 24;
const LASTS: Duration = Duration::from_secs(60);

fn limits() -> Limits {
    Limits {
        history_lasts: LASTS,
        history_messages: 12,
        history_bytes_per_account: 4_000,
        ..Limits::default()
    }
}

/// Who takes part: two devices of one name, two more of v4, and one of each older generation.
const CLIENTS: [(&str, Generation); 6] = [
    ("ann", Generation::V4),
    ("ann", Generation::V4),
    ("bob", Generation::V4),
    ("cid", Generation::V4),
    ("old", Generation::V2),
    ("older", Generation::V1),
];

#[derive(Clone, Debug)]
enum Step {
    /// Seconds.
    Advance(u64),
    /// The client closes its socket in order, and forgets everything.
    Close(usize),
    Come(usize),
    /// The link is cut, and both sides know.
    Cut(usize),
    /// The client reads some of what its link holds.
    Read(usize, usize),
    Say {
        from: usize,
        to: Option<usize>,
        bytes: usize,
    },
    /// The link is cut, and only the client knows.
    Vanish(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..CLIENTS.len();
    let to = prop::option::of(client.clone());
    prop_oneof![
        2 => (1..40u64).prop_map(Step::Advance),
        1 => client.clone().prop_map(Step::Close),
        8 => client.clone().prop_map(Step::Come),
        3 => client.clone().prop_map(Step::Cut),
        8 => (client.clone(), 1..12usize).prop_map(|(client, count)| Step::Read(client, count)),
        12 => (client.clone(), to, 0..300usize)
            .prop_map(|(from, to, bytes)| Step::Say { from, to, bytes }),
        2 => client.prop_map(Step::Vanish),
    ]
}

/// One message that a room took.
#[derive(Clone, Debug)]
struct Said {
    number: u64,
    by: usize,
    to: Option<&'static str>,
    at: Instant,
}

/// One end of a link.
#[derive(Default)]
struct Client {
    /// The socket that it believes to have.
    socket: Option<SocketId>,
    link: VecDeque<Value>,
    /// Whether it has read what that socket begins with: before, it says nothing.
    is_welcome: bool,
    session: Option<String>,
    cursor: Option<String>,
    /// Numbers of the messages that it read, since it last began anew or was told of a gap.
    read: Vec<u64>,
    /// The first message of the room that it must read, from when it began or was told.
    since: usize,
    /// How much of the room's messages it had read when its link was cut.
    read_before: usize,
    /// When the last link was cut that it had read from.
    cut_at: Option<Instant>,
    /// What it said that nobody acknowledged, and to whom. When it has come back it says again what was
    /// not heard.
    unacknowledged: Vec<(u64, Option<usize>, usize)>,
}

struct Stage {
    signal: Signal,
    now: Instant,
    clients: Vec<Client>,
    /// Whose link each socket of the server is; `None` when its client has left without a word.
    sockets: BTreeMap<SocketId, (usize, bool)>,
    /// When each name was lost, if it may come back.
    lost: BTreeMap<&'static str, Instant>,
    said: Vec<Said>,
    next_socket: u64,
    next_number: u64,
}

impl Stage {
    fn new() -> Stage {
        Stage {
            signal: Signal::new(crate::now(), limits(), 7, sealer()),
            now: crate::now(),
            clients: CLIENTS.iter().map(|_| Client::default()).collect(),
            sockets: BTreeMap::new(),
            lost: BTreeMap::new(),
            said: Vec::new(),
            next_socket: 0,
            next_number: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Advance(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.signal.handle_timeout(self.now);
            }
            Step::Close(client) => {
                if let Some(socket) = self.clients[client].socket {
                    self.gone(socket, Departure::Closed);
                }
                self.clients[client] = Client::default();
            }
            Step::Come(client) => self.come(client),
            Step::Cut(client) => {
                if let Some(socket) = self.clients[client].socket {
                    self.gone(socket, Departure::Lost);
                    self.cut(client);
                }
            }
            Step::Read(client, count) => {
                for _ in 0..count {
                    self.read(client);
                }
            }
            Step::Say { from, to, bytes } => {
                let it = &self.clients[from];
                if it.socket.is_some() && it.is_welcome {
                    self.next_number += 1;
                    let number = self.next_number;
                    if CLIENTS[from].1 == Generation::V4 {
                        self.clients[from].unacknowledged.push((number, to, bytes));
                    }
                    self.say(from, to, number, bytes);
                }
            }
            Step::Vanish(client) => {
                if let Some(socket) = self.clients[client].socket {
                    self.sockets.insert(socket, (client, false));
                    self.cut(client);
                }
            }
        }
    }

    /// The client finds its link cut: what was on its way is lost.
    fn cut(&mut self, client: usize) {
        let now = self.now;
        let it = &mut self.clients[client];
        it.socket = None;
        // What it never heard of has left its cursor as it was.
        if std::mem::take(&mut it.is_welcome) {
            it.cut_at = Some(now);
        }
        it.link.clear();
        if CLIENTS[client].1 != Generation::V4 {
            *it = Client::default();
        }
    }

    /// The server finds a socket gone.
    fn gone(&mut self, socket: SocketId, departure: Departure) {
        let Some((client, _)) = self.sockets.remove(&socket) else { return };
        self.signal.leave(self.now, socket, departure);
        let (name, generation) = CLIENTS[client];
        let is_last = !self.sockets.values().any(|(other, _)| CLIENTS[*other].0 == name);
        if is_last && departure == Departure::Lost && generation == Generation::V4 {
            self.lost.insert(name, self.now);
        }
        self.deliver();
    }

    fn come(&mut self, client: usize) {
        if self.clients[client].socket.is_some() {
            return;
        }
        self.next_socket += 1;
        let socket = SocketId(self.next_socket);
        let (name, generation) = CLIENTS[client];
        let it = &self.clients[client];
        let coming = Coming {
            data: None,
            session: it.session.as_ref().map(|text| text.parse().expect("a session")),
            cursor: it.cursor.as_ref().map(|text| text.parse().expect("a cursor")),
        };
        let has_cursor = coming.cursor.is_some();
        let join = Join { generation, coming, ..join(PATH, name, socket.0) };
        self.signal.join(self.now, socket, join).expect("there is room");
        self.clients[client].socket = Some(socket);
        self.sockets.insert(socket, (client, true));
        self.lost.remove(name);
        if !has_cursor {
            self.clients[client].since = self.said.len();
            self.clients[client].read_before = self.said.len();
            self.clients[client].read.clear();
        }
        self.deliver();
        if let Some(first) = self.clients[client].link.front()
            && first["p"]["resumed"] == false
        {
            assert!(!self.must_resume(client), "nothing is missing: {first}");
        }
    }

    /// Whether everything that a client has not read is new and little enough to be there.
    fn must_resume(&self, client: usize) -> bool {
        let it = &self.clients[client];
        let is_new = |at: Instant| at + LASTS > self.now;
        let unread = &self.said[it.read_before.min(self.said.len())..];
        it.cut_at.is_some_and(is_new)
            && unread.len() <= 4
            && unread.iter().all(|said| is_new(said.at))
    }

    fn say(&mut self, from: usize, to: Option<usize>, number: u64, bytes: usize) {
        let socket = self.clients[from].socket.expect("it is here");
        let payload = format!(r#"{{"n":{number},"x":"{}"}}"#, "x".repeat(bytes));
        let to = to.map(|to| CLIENTS[to].0);
        let target = |member: &str| to.map_or(String::new(), |to| format!(r#","{member}":"{to}""#));
        let text = match CLIENTS[from].1 {
            Generation::V1 => {
                format!(r#"{{"eventName":"o"{},"data":{payload}}}"#, target("targetUserId"))
            }
            Generation::V2 => {
                format!(r#"{{"t":"u","m":{{"o":"o"{}}},"p":{payload}}}"#, target("t"))
            }
            Generation::V4 => {
                let to = target("t");
                format!(r#"{{"t":"u","m":{{"id":{number},"o":"o"{to}}},"p":{payload}}}"#)
            }
        };
        self.signal.handle_text(self.now, socket, &text);
        let is_repeated = self.said.iter().any(|said| said.number == number);
        let is_heard = to.is_none_or(|to| {
            self.sockets.values().any(|(other, _)| CLIENTS[*other].0 == to)
                || self.lost.get(to).is_some_and(|at| *at + LASTS > self.now)
        });
        if is_heard && !is_repeated {
            self.said.push(Said { number, by: from, to, at: self.now });
        }
        self.deliver();
    }

    /// Puts what the core hands out into the links.
    fn deliver(&mut self) {
        let mut outputs = Vec::new();
        while let Some(output) = self.signal.poll_output() {
            match output {
                Output::Begin { socket, frames } => {
                    outputs.extend(frames.into_iter().map(|frame| (socket, Some(frame))));
                }
                Output::Close { socket, .. } => outputs.push((socket, None)),
                Output::Fanout(fanout) => {
                    let frame = Some(fanout.frame.clone());
                    outputs.extend(fanout.receivers().map(|socket| (socket, frame.clone())));
                }
                Output::Send { socket, frame } => outputs.push((socket, Some(frame))),
                Output::Stat(_) => {}
            }
        }
        for (socket, frame) in outputs {
            let Some((client, is_linked)) = self.sockets.get(&socket).copied() else { continue };
            match frame {
                // Its session came back by another one.
                None => {
                    self.sockets.remove(&socket);
                    assert!(!is_linked, "only a socket whose client has gone is replaced");
                }
                Some(frame) if is_linked => {
                    let frame = serde_json::from_str(&text_of(&frame)).expect("JSON");
                    self.clients[client].link.push_back(frame);
                    let frames = &self.clients[client].link;
                    // What a socket begins with is not bounded.
                    let begun = frames.front().is_some_and(|frame| frame["t"] == "welcome");
                    let of_begin = if begun { limits().history_messages + 1 } else { 0 };
                    if frames.len() > LINK_MAX + of_begin {
                        self.gone(socket, Departure::Lost);
                        self.cut(client);
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// A client reads one frame.
    fn read(&mut self, client: usize) {
        let Some(frame) = self.clients[client].link.pop_front() else { return };
        let (kind, meta) = (frame["t"].as_str(), &frame["m"]);
        let generation = CLIENTS[client].1;
        let number = match generation {
            Generation::V1 => &frame["message"]["data"]["n"],
            _ => &frame["p"]["n"],
        };
        self.clients[client].is_welcome = true;
        if let (Generation::V4, Some("welcome")) = (generation, kind) {
            let it = &mut self.clients[client];
            it.session = frame["p"]["session"].as_str().map(str::to_owned);
            if frame["p"]["resumed"] == false {
                // What follows is what is known still: what came before it may be missing.
                it.since = usize::MAX;
            }
            // What was refused is not said again.
            let refused = frame["p"]["refused"].as_array().into_iter().flatten();
            for number in refused.filter_map(|refused| refused[0].as_u64()) {
                it.unacknowledged.retain(|(known, ..)| *known != number);
            }
            match frame["p"]["last"].as_u64() {
                Some(last) => it.unacknowledged.retain(|(number, ..)| *number > last),
                // It is not known whether it was heard.
                None if frame["p"]["resumed"] == false => it.unacknowledged.clear(),
                None => {}
            }
            it.cursor = meta["c"].as_str().map(str::to_owned);
            for (number, to, bytes) in it.unacknowledged.clone() {
                self.say(client, to, number, bytes);
            }
        } else if let (Generation::V4, Some("r")) = (generation, kind) {
            let id = meta["id"].as_u64().expect("a number");
            self.clients[client].unacknowledged.retain(|(number, ..)| *number != id);
        } else if let Some(number) = number.as_u64() {
            self.heard(client, number);
            if let Some(cursor) = meta["c"].as_str() {
                self.clients[client].cursor = Some(cursor.to_owned());
            }
        }
    }

    /// A message has been read: it is the next of those that are for this client.
    fn heard(&mut self, client: usize, number: u64) {
        let at = self.said.iter().position(|said| said.number == number).expect("it was said");
        assert!(self.is_for(client, &self.said[at]), "{number} is not for {client}");
        let it = &self.clients[client];
        if it.since == usize::MAX {
            let last = it.read.last().copied().unwrap_or(0);
            let last = self.said.iter().position(|said| said.number == last);
            assert!(last.is_none_or(|last| at > last), "{number} in order and once");
            self.clients[client].since = at;
            self.clients[client].read.clear();
        }
        let it = &self.clients[client];
        let expected = self.said[it.since..]
            .iter()
            .filter(|said| self.is_for(client, said))
            .nth(it.read.len())
            .map(|said| said.number);
        assert_eq!(expected, Some(number), "client {client}");
        self.clients[client].read.push(number);
        self.clients[client].read_before = at + 1;
    }

    fn is_for(&self, client: usize, said: &Said) -> bool {
        match said.to {
            Some(to) => to == CLIENTS[client].0,
            None => said.by != client,
        }
    }

    fn compare(&self) {
        let mut names: Vec<_> =
            self.sockets.values().map(|(client, _)| CLIENTS[*client].0).collect();
        names.sort_unstable();
        names.dedup();
        let rows = self.signal.rows(&address(PATH));
        let keys: Vec<_> = rows.iter().map(|row| row.key.as_str()).collect();
        assert_eq!(keys, names);
        let stats = self.signal.stats();
        assert_eq!((stats.names, stats.sockets), (names.len(), self.sockets.len()));
        assert_eq!(stats.rooms, usize::from(!names.is_empty()));
        assert!(stats.history_bytes <= limits().history_bytes_per_account, "{stats:?}");
        assert!(stats.history_messages <= limits().history_messages, "{stats:?}");
    }

    /// Everybody comes back and reads all there is; who was not told of a gap has missed nothing.
    fn finish(&mut self) {
        let is_behind = |it: &Client| it.socket.is_none() || !it.link.is_empty();
        while self.clients.iter().any(is_behind) {
            for client in 0..CLIENTS.len() {
                self.come(client);
                while !self.clients[client].link.is_empty() {
                    self.read(client);
                }
            }
        }
        for client in 0..CLIENTS.len() {
            let it = &self.clients[client];
            if it.since == usize::MAX {
                continue;
            }
            let expected: Vec<_> = self.said[it.since..]
                .iter()
                .filter(|said| self.is_for(client, said))
                .map(|said| said.number)
                .collect();
            assert_eq!(it.read, expected, "client {client}");
        }
        for (socket, _) in self.sockets.clone() {
            self.gone(socket, Departure::Lost);
        }
        self.now += LASTS;
        self.signal.handle_timeout(self.now);
        let stats = self.signal.stats();
        let held = [stats.buckets, stats.rooms, stats.names, stats.sockets, stats.histories];
        assert_eq!(held, [0; 5]);
        assert_eq!((stats.history_messages, stats.history_bytes), (0, 0));
        assert_eq!(self.signal.poll_timeout(), None);
    }
}

proptest! {
    #[test]
    fn nobody_misses_anything_or_is_told(steps in prop::collection::vec(step(), 0..160)) {
        let mut stage = Stage::new();
        for step in &steps {
            stage.step(step);
            stage.compare();
        }
        stage.finish();
    }
}

fn v4(name: &str, socket: u64, coming: Coming) -> Join {
    Join { generation: Generation::V4, coming, ..join(PATH, name, socket) }
}

/// Frames of one socket since the last look.
fn frames(signal: &mut Signal, socket: u64) -> Vec<Value> {
    let seen = crate::drain(signal);
    seen.of(socket).iter().filter_map(|text| serde_json::from_str(text).ok()).collect()
}

#[test]
fn what_stands_beside_a_name_is_told_to_those_who_know_of_it() {
    let mut signal = Signal::new(crate::now(), limits(), 1, sealer());
    let now = crate::now();
    let data = |text: &str| Some(Arc::from(text));
    let come = |signal: &mut Signal, name: &str, socket: u64, with: Option<Arc<str>>| {
        let coming = Coming { data: with, ..Coming::default() };
        signal.join(now, SocketId(socket), v4(name, socket, coming)).map_err(|e| e.to_string())
    };
    come(&mut signal, "ann", 1, data(r#"{"hand":"up"}"#)).expect("joins");
    signal.join(now, SocketId(2), join(PATH, "old", 2)).expect("joins");
    crate::drain(&mut signal);
    come(&mut signal, "bob", 3, None).expect("joins");
    let seen = crate::drain(&mut signal);
    assert!(seen.of(3)[0].contains(r#""data":{"ann":{"hand":"up"}}"#), "{:?}", seen.of(3));
    assert_eq!(seen.of(1), [r#"{"t":"joined","m":{"f":"/my/path/bob"},"p":null}"#]);
    assert!(seen.of(2)[0].contains("peer_connected"));

    signal.handle_text(now, SocketId(3), r#"{"t":"presence","m":{"id":"p1"},"p":[1]}"#);
    let seen = crate::drain(&mut signal);
    assert_eq!(seen.of(1), [r#"{"t":"presence","m":{"f":"/my/path/bob"},"p":[1]}"#]);
    assert_eq!(seen.of(3), [r#"{"t":"r","m":{"id":"p1"},"p":{"v":null,"s":"ok"}}"#]);
    assert!(seen.of(2).is_empty(), "who does not know of it");
    assert_eq!(signal.rows(&address(PATH))[1].data.as_deref(), Some("[1]"));

    // At the limit, and past it.
    let long = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    let limit = limits().data_bytes;
    let frame = |bytes| format!(r#"{{"t":"presence","m":{{"id":1}},"p":{}}}"#, long(bytes));
    signal.handle_text(now, SocketId(3), &frame(limit));
    assert_eq!(frames(&mut signal, 3)[0]["p"]["s"], "ok");
    signal.handle_text(now, SocketId(3), &frame(limit + 1));
    assert_eq!(frames(&mut signal, 3)[0]["p"]["v"], "too_large");
    come(&mut signal, "cid", 4, data(&long(limit + 1))).expect_err("too long");
    assert_eq!(signal.stats().counters.refused_data, 2);
    come(&mut signal, "cid", 4, data(&long(limit))).expect("joins");
}

#[test]
fn a_message_counts_once_however_often_it_is_sent() {
    let mut signal = Signal::new(crate::now(), limits(), 1, sealer());
    let now = crate::now();
    for (socket, name) in [(1, "ann"), (2, "bob"), (3, "ann")] {
        signal.join(now, SocketId(socket), v4(name, socket, Coming::default())).expect("joins");
    }
    crate::drain(&mut signal);
    let text = r#"{"t":"u","m":{"id":"7","o":"message"},"p":"once"}"#;
    let mut answers = Vec::new();
    for _ in 0..2 {
        signal.handle_text(now, SocketId(1), text);
        let seen = crate::drain(&mut signal);
        answers.push((seen.of(1)[0].to_owned(), seen.of(2).len()));
    }
    assert_eq!(answers[0].0, answers[1].0, "the same answer");
    assert_eq!((answers[0].1, answers[1].1), (1, 0));
    // The same id of another session is another message, and so is another type of id.
    signal.handle_text(now, SocketId(3), text);
    signal.handle_text(now, SocketId(1), r#"{"t":"u","m":{"id":7},"p":1}"#);
    assert_eq!(frames(&mut signal, 2).len(), 2);
    assert_eq!(signal.stats().counters.duplicates, 1);
    // What nobody can be told is said in the answer.
    signal.handle_text(now, SocketId(1), r#"{"t":"u","m":{"id":8,"t":"zoe"},"p":1}"#);
    assert_eq!(frames(&mut signal, 1)[0]["p"]["v"], "not_found");
}

/// What the server alone writes cannot be written by a client, of whatever generation.
#[test]
fn nobody_forges_a_cursor() {
    let mut signal = Signal::new(crate::now(), limits(), 1, sealer());
    let now = crate::now();
    signal.join(now, SocketId(1), v4("ann", 1, Coming::default())).expect("joins");
    signal.join(now, SocketId(2), join(PATH, "old", 2)).expect("joins");
    signal.join(now, SocketId(3), v4("bob", 3, Coming::default())).expect("joins");
    crate::drain(&mut signal);
    for (socket, text) in [
        (2, r#"{"t":"u","m":{"c":"a0-ff","o":"x"},"p":1}"#),
        (3, r#"{"t":"u","m":{"c":"a0-ff","\u0063":"b","o":"x"},"p":1}"#),
    ] {
        signal.handle_text(now, SocketId(socket), text);
        let seen = crate::drain(&mut signal);
        let [text] = seen.of(1)[..] else { panic!("{seen:?}") };
        assert!(!text.contains("a0-ff"), "{text}");
        assert_eq!(text.matches("\"c\":").count(), 1, "{text}");
    }
}

/// A room that is full of rooms to which somebody may come back has room for a new one.
#[test]
fn a_deserted_room_makes_way() {
    let limits = Limits { rooms_per_bucket: 2, ..limits() };
    let mut signal = Signal::new(crate::now(), limits, 1, sealer());
    let mut now = crate::now();
    let mut kept = Vec::new();
    for (socket, path) in [(1, "/a"), (2, "/b")] {
        let join = Join { address: address(path), ..v4("ann", socket, Coming::default()) };
        signal.join(now, SocketId(socket), join).expect("joins");
        let welcome = frames(&mut signal, socket).remove(0);
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        kept.push((text(&welcome["p"]["session"]), text(&welcome["m"]["c"])));
        now += Duration::from_secs(1);
        signal.leave(now, SocketId(socket), Departure::Lost);
    }
    let stats = signal.stats();
    assert_eq!((stats.rooms, stats.histories, stats.buckets), (0, 2, 0));
    let join_c = Join { address: address("/c"), ..v4("ann", 3, Coming::default()) };
    signal.join(now, SocketId(3), join_c).expect("the room that was left first makes way");
    crate::drain(&mut signal);
    assert_eq!(signal.stats().histories, 2);
    let back = Coming {
        data: None,
        session: Some(kept[1].0.parse().expect("a session")),
        cursor: Some(kept[1].1.parse().expect("a cursor")),
    };
    let join_b = Join { address: address("/b"), ..v4("ann", 4, back) };
    signal.join(now, SocketId(4), join_b).expect("joins");
    assert_eq!(frames(&mut signal, 4)[0]["p"]["resumed"], true);
}

/// Whoever was sent away, and whoever was never there, does not hear what was said without him.
#[test]
fn what_was_said_before_somebody_came_is_not_told_to_him() {
    let mut signal = Signal::new(crate::now(), limits(), 1, sealer());
    let now = crate::now();
    let say = |signal: &mut Signal, text: &str| {
        let frame = format!(r#"{{"t":"u","m":{{"o":"m"}},"p":"{text}"}}"#);
        signal.handle_text(now, SocketId(1), &frame);
        crate::drain(signal);
    };
    let welcome = |signal: &mut Signal, name: &str, socket: u64, coming: Coming| {
        signal.join(now, SocketId(socket), v4(name, socket, coming)).expect("joins");
        let mut frames = frames(signal, socket);
        let welcome = frames.remove(0);
        let texts: Vec<_> = frames.iter().map(|frame| frame["p"].to_string()).collect();
        (welcome, texts)
    };
    let kept = |welcome: &Value| Coming {
        data: None,
        session: welcome["p"]["session"].as_str().map(|text| text.parse().expect("a session")),
        cursor: welcome["m"]["c"].as_str().map(|text| text.parse().expect("a cursor")),
    };
    welcome(&mut signal, "ann", 1, Coming::default());
    let (of_bob, _) = welcome(&mut signal, "bob", 2, Coming::default());
    let (of_cid, _) = welcome(&mut signal, "cid", 3, Coming::default());
    signal.kick(now, &address(PATH), Some("bob"));
    signal.leave(now, SocketId(3), Departure::Lost);
    say(&mut signal, "secret");

    // Sent away; a cursor without a session; the session of somebody else; one that was made up.
    let mut forged = kept(&of_cid);
    forged.session = forged.session.map(|session| Session { seal: session.seal ^ 1, ..session });
    for (name, socket, coming) in [
        ("bob", 4, kept(&of_bob)),
        ("cid", 5, Coming { session: None, ..kept(&of_cid) }),
        ("dan", 6, kept(&of_cid)),
        ("cid", 7, forged),
    ] {
        let (welcome, texts) = welcome(&mut signal, name, socket, coming.clone());
        assert_eq!(welcome["p"]["resumed"], false, "{name}: {welcome}");
        assert_ne!(kept(&welcome).session, coming.session, "{name}");
        assert!(texts.is_empty(), "{name} heard {texts:?}");
        signal.leave(now, SocketId(socket), Departure::Closed);
    }
    let (welcome, texts) = welcome(&mut signal, "cid", 8, kept(&of_cid));
    assert_eq!(
        (&welcome["p"]["resumed"], &texts[..]),
        (&Value::Bool(true), &["\"secret\"".to_owned()][..])
    );
}

/// Members may have one name, so that a session that can be guessed is one that can be ended: only one
/// that was given goes on. And a cursor is what its reader says: what was said before a session began is
/// not for it, whatever it claims to have read.
#[test]
fn nobody_makes_a_session_nor_moves_his_own_back() {
    let mut meeting = Meeting::new();
    let (host, ..) = meeting.come("host", Coming::default());
    for number in 1..=5 {
        meeting.say(host, number, "");
    }
    let (_, given, ..) = meeting.come("bob", Coming::default());
    let session = given.session.expect("a session");
    let forged = [
        Session { number: session.number - 1, ..session },
        Session { born: 0, ..session },
        Session { incarnation: Incarnation(session.incarnation.0 + 1), ..session },
        Session { seal: session.seal ^ 1, ..session },
    ];
    for forged in forged {
        let coming = Coming { session: Some(forged), ..given.clone() };
        let (_, kept, welcome, heard) = meeting.come("bob", coming);
        assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(false), 0), "{forged:?}");
        assert_ne!(kept.session, Some(session));
    }
    meeting.say(host, 6, "");
    for offset in [0, 3, 5, u64::MAX] {
        let cursor = Some(Cursor::of(session.incarnation, offset));
        let (.., heard) = meeting.come("bob", Coming { cursor, ..given.clone() });
        let heard: Vec<_> = heard.iter().map(|frame| frame["p"].as_u64()).collect();
        assert_eq!(heard, [Some(6)], "{offset}");
    }
}

/// One socket of a name that is closed does not end what its others came with.
#[test]
fn a_socket_that_stays_keeps_its_session() {
    let mut meeting = Meeting::new();
    let (laptop, of_laptop, ..) = meeting.come("ann", Coming::default());
    let (phone, of_phone, ..) = meeting.come("ann", Coming::default());
    let (host, ..) = meeting.come("host", Coming::default());
    let bucket = address(PATH).bucket;
    let now = meeting.now;
    meeting.signal.close_where(now, &bucket, CloseCode::UNAUTHORIZED, "revoked", |view| {
        view.socket == laptop
    });
    crate::drain(&mut meeting.signal);
    meeting.lose(phone);
    meeting.say(host, 1, r#","t":"ann""#);
    let (_, _, welcome, heard) = meeting.come("ann", of_phone);
    assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(true), 1));
    let (_, _, welcome, heard) = meeting.come("ann", of_laptop);
    assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(false), 0));
}

/// So many are sent away that not all are remembered, but those who were not are.
#[test]
fn however_many_are_sent_away_none_goes_on() {
    let mut meeting = Meeting::new();
    let (early, of_early, ..) = meeting.come("early", Coming::default());
    let mut kept = Vec::new();
    for number in 0..1_100 {
        let name = format!("n{number}");
        let (_, coming, ..) = meeting.come(&name, Coming::default());
        meeting.signal.kick(meeting.now, &address(PATH), Some(&name));
        crate::drain(&mut meeting.signal);
        kept.push((name, coming));
    }
    let (late, of_late, ..) = meeting.come("late", Coming::default());
    meeting.lose(early);
    meeting.lose(late);
    for (name, coming) in kept.into_iter().step_by(50) {
        assert_eq!(meeting.come(&name, coming).2["resumed"], false, "{name}");
    }
    assert_eq!(meeting.come("early", of_early).2["resumed"], true);
    assert_eq!(meeting.come("late", of_late).2["resumed"], true);
}

/// A rule that closes many sockets at once leaves those alone whom it does not concern, whether they are
/// here or will be back.
#[test]
fn who_stays_when_many_are_sent_away_at_once_goes_on() {
    let mut meeting = Meeting::new();
    let (away, of_away, ..) = meeting.come("away", Coming::default());
    meeting.lose(away);
    let (here, of_here, ..) = meeting.come("here", Coming::default());
    let mut gone = Vec::new();
    for number in 0..1_100 {
        let name = format!("n{number}");
        gone.push((name.clone(), meeting.come(&name, Coming::default()).1));
    }
    let bucket = address(PATH).bucket;
    let kicked =
        meeting.signal.close_where(meeting.now, &bucket, CloseCode::KICKED, "rule", |view| {
            view.name.as_str().starts_with('n')
        });
    assert_eq!(kicked.names, 1_100);
    crate::drain(&mut meeting.signal);
    meeting.lose(here);
    let (host, ..) = meeting.come("host", Coming::default());
    meeting.say(host, 1, "");
    for (name, coming) in [("away", of_away), ("here", of_here)] {
        let (_, _, welcome, heard) = meeting.come(name, coming);
        assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(true), 1), "{name}");
    }
    for (name, coming) in gone.into_iter().step_by(50) {
        let (_, _, welcome, heard) = meeting.come(&name, coming);
        assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(false), 0), "{name}");
    }
}

/// Whoever calls himself by how frames spell another's name neither hears what is said to that one, nor
/// is sent away in his place.
#[test]
fn nobody_stands_in_for_a_name_that_was_lost() {
    for shield in ["ann%20lee", "/my/path/ann lee", "ann%2520lee"] {
        let mut meeting = Meeting::new();
        let (host, ..) = meeting.come("host", Coming::default());
        let (ann, of_ann, ..) = meeting.come("ann lee", Coming::default());
        let (mallory, ..) = meeting.come(shield, Coming::default());
        meeting.lose(ann);
        for to in ["ann%20lee", "ann lee", "/room/ann%20lee", "/room/ann lee"] {
            let to = to.replace("/room", PATH);
            let frame = format!(r#"{{"t":"u","m":{{"id":1{},"t":"{to}"}},"p":1}}"#, to.len());
            meeting.signal.handle_text(meeting.now, host, &frame);
            let seen = crate::drain(&mut meeting.signal);
            assert_eq!(seen.of(mallory.0).len(), 0, "{to}");
        }
        let (ann, of_ann, welcome, heard) = meeting.come("ann lee", of_ann);
        assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(true), 4), "{shield}");
        meeting.lose(ann);
        let kicked = meeting.signal.kick(meeting.now, &address(PATH), Some("ann%20lee"));
        assert_eq!((kicked.names, kicked.sockets, kicked.tokens.len()), (1, 0, 1), "{shield}");
        crate::drain(&mut meeting.signal);
        meeting.say(host, 5, "");
        let (_, _, welcome, heard) = meeting.come("ann lee", of_ann);
        assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(false), 0), "{shield}");
    }
}

/// Else what nobody got would be taken for said.
#[test]
fn what_was_refused_is_told_to_who_was_cut_before_the_answer() {
    let mut meeting = Meeting::new();
    let (ann, of_ann, ..) = meeting.come("ann", Coming::default());
    meeting.say(ann, 1, "");
    meeting.say(ann, 2, r#","t":"nobody""#);
    meeting.say(ann, 3, "");
    meeting.lose(ann);
    let (ann, of_ann, welcome, _) = meeting.come("ann", of_ann);
    assert_eq!((&welcome["last"], &welcome["resumed"]), (&json!(3), &json!(true)));
    assert_eq!(welcome["refused"], json!([[2, "not_found"]]));
    // The first of a session may be one.
    meeting.lose(ann);
    let (bob, of_bob, ..) = meeting.come("bob", Coming::default());
    meeting.say(bob, 1, r#","o":"peers""#);
    meeting.lose(bob);
    let (bob, of_bob, welcome, _) = meeting.come("bob", of_bob);
    assert_eq!(
        (&welcome["last"], &welcome["refused"]),
        (&Value::Null, &json!([[1, "not_allowed"]]))
    );
    // So many that not all are known: then of none it is told that it was heard.
    for id in 2..40 {
        meeting.say(bob, id, r#","t":"nobody""#);
    }
    meeting.say(bob, 40, "");
    meeting.lose(bob);
    let (.., welcome, _) = meeting.come("bob", of_bob);
    assert_eq!(welcome["last"], Value::Null);
    // They are forgotten when nobody waits for an answer any more.
    let (ann, of_ann, ..) = meeting.come("ann", of_ann);
    for id in 10..60 {
        meeting.say(ann, id, r#","t":"nobody""#);
        meeting.pass(LASTS / 20);
    }
    meeting.say(ann, 60, "");
    meeting.lose(ann);
    let (.., welcome, _) = meeting.come("ann", of_ann);
    assert_eq!(welcome["last"], json!(60));
    assert_eq!(welcome["refused"].as_array().map(Vec::len), Some(20));
}

/// Two sockets of one name are two sessions: what one said is no gap of the other.
#[test]
fn what_another_socket_of_its_name_said_is_no_gap_of_a_session() {
    let mut meeting = Meeting::new();
    let (silent, of_silent, ..) = meeting.come("ann", Coming::default());
    let (loud, ..) = meeting.come("ann", Coming::default());
    let (_bob, ..) = meeting.come("bob", Coming::default());
    meeting.lose(silent);
    for id in 1..=60 {
        meeting.say(loud, id, r#","t":"bob""#);
    }
    let (_, _, welcome, heard) = meeting.come("ann", of_silent);
    assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(true), 0));
}

/// Who says much lets go of his own, and not of what others have said, however little room is left.
#[test]
fn who_holds_most_lets_go_first() {
    let limits = Limits {
        history_messages: 1_000,
        history_bytes_per_account: 60_000,
        history_bytes: 100_000,
        ..limits()
    };
    let mut signal = Signal::new(crate::now(), limits, 1, sealer());
    let now = crate::now();
    let places = ["kv4_$loud_data", "kv4_$rude)sub_data", "kv4_$rude)other_data", "kv4_$ann_data"];
    let mut sockets = Vec::new();
    let mut kept = Vec::new();
    for (at, bucket) in places.iter().enumerate() {
        for (name, socket) in [("speaker", at as u64 * 2 + 1), ("other", at as u64 * 2 + 2)] {
            let mut join = v4(name, socket, Coming::default());
            join.address.bucket = kv4::Bucket::from_stored(bucket);
            signal.join(now, SocketId(socket), join.clone()).expect("joins");
            let welcome = frames(&mut signal, socket).remove(0);
            kept.push((socket, join, welcome));
        }
        sockets.push(SocketId(at as u64 * 2 + 1));
    }
    let say = |signal: &mut Signal, socket: SocketId, bytes: usize| {
        let frame = format!(r#"{{"t":"u","m":{{"o":"o"}},"p":"{}"}}"#, "x".repeat(bytes));
        signal.handle_text(now, socket, &frame);
        crate::drain(signal);
        let stats = signal.stats();
        assert!(stats.history_bytes <= 100_000, "{stats:?}");
    };
    // One account, by its sub-accounts, and another fill all there is.
    for _ in 0..40 {
        for socket in &sockets[..3] {
            say(&mut signal, *socket, 2_000);
        }
    }
    let (socket, mut join, welcome) = kept.pop().expect("ann's other");
    signal.leave(now, SocketId(socket), Departure::Lost);
    say(&mut signal, sockets[3], 1_000);
    for socket in &sockets[..3] {
        say(&mut signal, *socket, 2_000);
    }
    join.coming = Coming {
        data: None,
        session: welcome["p"]["session"].as_str().map(|text| text.parse().expect("one")),
        cursor: welcome["m"]["c"].as_str().map(|text| text.parse().expect("one")),
    };
    crate::drain(&mut signal);
    signal.join(now, SocketId(99), join).expect("joins");
    let heard = frames(&mut signal, 99);
    assert_eq!((&heard[0]["p"]["resumed"], heard.len()), (&Value::Bool(true), 2));
}

/// A room whose time a test moves, and members who come back to it.
struct Meeting {
    signal: Signal,
    now: Instant,
    next: u64,
}

impl Meeting {
    fn new() -> Meeting {
        let (now, limits) = (
            crate::now(),
            Limits { history_messages: 40, history_bytes_per_account: 1 << 20, ..limits() },
        );
        let mut meeting =
            Meeting { signal: Signal::new(crate::now(), limits, 1, sealer()), now, next: 1 };
        // Somebody stays, so that the room does; and time enough has passed since the start.
        meeting.come("host", Coming::default());
        meeting.pass(LASTS);
        meeting
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.signal.handle_timeout(self.now);
    }

    /// Answers the socket, what it comes back with, and what followed the welcome.
    fn come(&mut self, name: &str, coming: Coming) -> (SocketId, Coming, Value, Vec<Value>) {
        self.next += 1;
        let socket = SocketId(self.next);
        self.signal.join(self.now, socket, v4(name, self.next, coming)).expect("joins");
        let mut frames = frames(&mut self.signal, self.next);
        let welcome = frames.remove(0);
        let kept = Coming {
            data: None,
            session: welcome["p"]["session"].as_str().map(|text| text.parse().expect("one")),
            cursor: welcome["m"]["c"].as_str().map(|text| text.parse().expect("one")),
        };
        (socket, kept, welcome["p"].clone(), frames)
    }

    fn lose(&mut self, socket: SocketId) {
        self.signal.leave(self.now, socket, Departure::Lost);
        crate::drain(&mut self.signal);
    }

    fn say(&mut self, socket: SocketId, id: u64, to: &str) {
        let frame = format!(r#"{{"t":"u","m":{{"o":"o","id":{id}{to}}},"p":{id}}}"#);
        self.signal.handle_text(self.now, socket, &frame);
        crate::drain(&mut self.signal);
    }
}

/// However long ago he was sent away, and wherever he was then: only what he was given since goes on.
#[test]
fn who_was_sent_away_is_a_newcomer_for_good() {
    for whole in [false, true] {
        let mut meeting = Meeting::new();
        let (bob, of_bob, ..) = meeting.come("bob", Coming::default());
        meeting.lose(bob);
        let gone = meeting.signal.kick(meeting.now, &address(PATH), (!whole).then_some("bob"));
        assert_eq!(gone.sockets, usize::from(whole), "bob had none");
        let (host, ..) = meeting.come("host", Coming::default());
        for _ in 0..3 {
            meeting.pass(LASTS / 2);
            meeting.say(host, 1, "");
        }
        let (bob, anew, welcome, heard) = meeting.come("bob", of_bob.clone());
        assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(false), 0), "{whole}");
        meeting.lose(bob);
        meeting.say(host, 2, "");
        let (_, _, welcome, heard) = meeting.come("bob", anew);
        assert_eq!((&welcome["resumed"], heard.len()), (&Value::Bool(true), 1), "{whole}");
    }
}

/// Who only listens has missed nothing of what was said to others, however much that was.
#[test]
fn what_others_were_told_alone_is_nobody_elses_gap() {
    let mut meeting = Meeting::new();
    let (bob, of_bob, ..) = meeting.come("bob", Coming::default());
    let (_, of_ann, ..) = meeting.come("ann", Coming::default());
    let (cid, of_cid, ..) = meeting.come("cid", Coming::default());
    for number in 0..100 {
        meeting.say(bob, number, r#","t":"ann""#);
    }
    meeting.lose(cid);
    meeting.lose(bob);
    let mut resumed = |name: &str, coming: &Coming| {
        let (_, _, welcome, heard) = meeting.come(name, coming.clone());
        (welcome["resumed"] == true, welcome["last"].as_u64(), heard.len())
    };
    assert_eq!(resumed("cid", &of_cid), (true, None, 0));
    assert_eq!(resumed("bob", &of_bob), (true, Some(99), 0), "what it said itself was heard");
    let (is_whole, _, heard) = resumed("ann", &of_ann);
    assert_eq!((is_whole, heard), (false, 40), "sixty more were to it");
}

/// One name whose sockets come and go does not make the room forget what others said last.
#[test]
fn a_name_that_comes_and_goes_costs_others_nothing() {
    let mut meeting = Meeting::new();
    let (ann, of_ann, ..) = meeting.come("ann", Coming::default());
    meeting.say(ann, 7, "");
    meeting.lose(ann);
    for _ in 0..2_000 {
        let (bob, ..) = meeting.come("bob", Coming::default());
        meeting.say(bob, 1, r#","t":"bob""#);
        meeting.lose(bob);
    }
    assert_eq!(meeting.signal.stats().counters.lost_cut, 2_000 - 16);
    let (_, _, welcome, _) = meeting.come("ann", of_ann);
    assert_eq!(welcome["last"], 7);
}

/// What stands beside a name is left when nothing is said of it, and taken away by `null`.
#[test]
fn who_comes_back_may_take_away_what_stood_beside_him() {
    let mut meeting = Meeting::new();
    let shows =
        |data: Option<&str>, kept: &Coming| Coming { data: data.map(Into::into), ..kept.clone() };
    let (_, kept, ..) = meeting.come("ann", shows(Some("1"), &Coming::default()));
    let (_, kept, welcome, _) = meeting.come("ann", kept);
    assert_eq!(welcome["data"]["ann"], 1);
    let (_, _, welcome, _) = meeting.come("ann", shows(Some("null"), &kept));
    assert_eq!(welcome["data"]["ann"], Value::Null);
}
