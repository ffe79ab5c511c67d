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
use serde_json::Value;
use signal::{Coming, Departure, Join, Limits, Output, Signal, SocketId};
use wire::frames::{Generation, Session};

use crate::{address, join, sealer, text_of};

pub(crate) const PATH: &str = "/my/path";
/// Frames that wait in a link before its socket is cut, as the shell does.
const LINK_MAX: usize = 24;
pub(crate) const LASTS: Duration = Duration::from_secs(60);

pub(crate) fn limits() -> Limits {
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

pub(crate) fn v4(name: &str, socket: u64, coming: Coming) -> Join {
    Join { generation: Generation::V4, coming, ..join(PATH, name, socket) }
}

/// Frames of one socket since the last look.
pub(crate) fn frames(signal: &mut Signal, socket: u64) -> Vec<Value> {
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
