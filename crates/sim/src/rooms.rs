//! Rooms under one seed: the production switchboard with several accounts, rooms and generations of
//! clients, behind queues that are bounded as the shell's are and links that lose, delay and end on one
//! side or on both.
//!
//! The model is the list of what each room took, in order, and who sits where. What is checked, all the
//! time: a message goes into the queues of exactly those who are to hear it; whoever reads hears each
//! message at most once and in order; whoever was told that nothing is missing misses nothing; who is
//! present, and what stands beside a name, is what a client believes once its link is drained; figures
//! and bounds agree. At the end all come back and hear the rest, and once they have gone nothing is
//! left. Not here: sockets, frames cut in two, tokens (`ganglion`, the system tests).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::neuron::sockets::{Crowd, Joiner, NotJoined, Outbox, Place, Switchboard};
use kv4::Bucket;
use kv4::store::BoxFuture;
use serde_json::Value;
use services::statistics::Statistics;
use services::token::Verified;
use services::{Clock, Closing, RoomRef, Rooms as _};
use signal::{Coming, Departure, Limits, Output, Refusal, SocketId};
use wire::frames::{ClientFrame, Generation};
use wire::names::{Ident, Key, Path};
use wire::token::{Claims, Grants};
use wire::ws::{Decoder, Message, payload};

use crate::random::Random;

const BEGINNING_MICROS: u64 = 1_767_225_600_000_000;
const SECOND: u64 = 1_000_000;
/// Steps of one run.
const STEPS: u64 = 260;
/// Bytes that wait for one socket, as `signal.queue` bounds them.
const QUEUE_BYTES: usize = 2_000;
/// Frames on their way to a client that does not read.
const WINDOW: usize = 6;
/// Silence after which the neuron ends a socket.
const IDLE: u64 = 40 * SECOND;
const LASTS: u64 = 60 * SECOND;
/// Of which an account has a thirty-second.
const HISTORY_BYTES: usize = 16 * 2 * 8_000;
/// What a message costs beside its filling, at most.
const MESSAGE_BYTES: usize = 400;

fn limits() -> Limits {
    Limits {
        rooms_per_bucket: 3,
        sockets_per_bucket: 10,
        sockets_per_room: 6,
        sockets_per_name: 2,
        history_lasts: Duration::from_micros(LASTS),
        history_messages: 12,
        history_bytes: HISTORY_BYTES,
        ..Limits::default()
    }
}

/// Who takes part: account, path, name and generation. Names and paths are the same in accounts.
const CLIENTS: [(&str, &str, &str, Generation); 16] = [
    ("elena", "/p", "ann", Generation::V4),
    ("elena", "/p", "ann", Generation::V4),
    ("elena", "/p", "bob", Generation::V4),
    ("elena", "/p", "cid", Generation::V2),
    ("elena", "/p", "dan", Generation::V1),
    ("elena", "/p", "bob", Generation::V2),
    ("elena", "/p", "eve", Generation::V4),
    ("elena", "/q", "ann", Generation::V4),
    ("elena", "/q", "bob", Generation::V2),
    ("elena", "/r", "ann", Generation::V4),
    ("elena", "/s", "bob", Generation::V4),
    ("oscar", "/p", "ann", Generation::V4),
    ("oscar", "/p", "bob", Generation::V4),
    ("oscar", "/p", "cid", Generation::V1),
    ("oscar", "/q", "ann", Generation::V2),
    ("oscar", "/q", "cid", Generation::V2),
];

/// What a run did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    pub said: u64,
    pub resumed: u64,
    /// Those that had to be told that nothing is missing.
    pub owed: u64,
    pub unresumed: u64,
    pub replaced: u64,
    /// Sockets that did not keep up.
    pub slow: u64,
    /// Joins that a limit refused.
    pub refused: u64,
    pub kicked: u64,
    pub restarts: u64,
    /// Looks at what a client believes.
    pub beliefs: u64,
    /// Of everything that was heard: equal for equal seeds.
    pub digest: u64,
}

/// Runs one seed.
///
/// # Panics
/// What was wrong first.
pub fn run(seed: u64) -> Report {
    let mut random = Random::new(seed);
    let time = Arc::new(Time::default());
    let table = Arc::new(Table::default());
    let board = switchboard(random.next(), &table, &time);
    let clients = CLIENTS.iter().map(|_| Client::default()).collect();
    let mut run = Run {
        random,
        time,
        table,
        board,
        clients,
        conns: BTreeMap::new(),
        rooms: BTreeMap::new(),
        next_socket: 0,
        next_number: 0,
        next_tick: 0,
        cuts: BTreeMap::new(),
        report: Report::default(),
    };
    for _ in 0..STEPS {
        run.step();
        run.settle();
        run.check();
    }
    run.finish();
    run.report
}

fn switchboard(nonce: u64, table: &Arc<Table>, time: &Arc<Time>) -> Switchboard {
    Switchboard::new(
        Key::parse("host:neuron").expect("a legal key"),
        limits(),
        nonce,
        crate::sealer(),
        table.clone(),
        Arc::new(Statistics::default()),
        time.clone(),
    )
}

/// Virtual µs since the beginning.
#[derive(Debug, Default)]
struct Time(AtomicU64);

impl Clock for Time {
    fn now_micros(&self) -> u64 {
        BEGINNING_MICROS + self.0.load(Relaxed)
    }

    fn instant(&self) -> Instant {
        static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);
        *BEGINNING + Duration::from_micros(self.0.load(Relaxed))
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// The sockets' queues.
#[derive(Debug, Default)]
struct Table(Mutex<Tabled>);

#[derive(Debug, Default)]
struct Tabled {
    queues: BTreeMap<SocketId, Queue>,
    /// Frames handed out since the last look, in order, but for those that sockets begin with.
    pushed: Vec<(SocketId, Value)>,
    /// Frames for sockets that had left their rooms before, or had been sent away.
    strays: u64,
}

/// As `ganglion::sockets::table` has it.
#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Value>,
    /// Each frame's bytes, 0 for what the socket begins with.
    sizes: VecDeque<usize>,
    bytes: usize,
    close: Option<u16>,
    is_slow: bool,
}

impl Table {
    fn tabled(&self) -> MutexGuard<'_, Tabled> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tabled {
    fn push(&mut self, socket: SocketId, frame: &bytes::Bytes) {
        let sits = self.queues.get_mut(&socket).filter(|queue| queue.close.is_none());
        let Some(queue) = sits else {
            self.strays += 1;
            return;
        };
        let value = read(frame);
        self.pushed.push((socket, value.clone()));
        if queue.is_slow {
            return;
        }
        if queue.bytes + frame.len() > QUEUE_BYTES {
            queue.frames.clear();
            queue.sizes.clear();
            queue.is_slow = true;
            return;
        }
        queue.bytes += frame.len();
        queue.frames.push_back(value);
        queue.sizes.push_back(frame.len());
    }
}

impl Outbox for Table {
    fn deliver(&self, output: Output) -> Crowd {
        let mut tabled = self.tabled();
        match output {
            Output::Begin { socket, frames } => {
                if let Some(queue) = tabled.queues.get_mut(&socket) {
                    queue.sizes.extend(frames.iter().map(|_| 0));
                    queue.frames.extend(frames.iter().map(read));
                }
            }
            Output::Send { socket, frame } => tabled.push(socket, &frame),
            Output::Fanout(fanout) => {
                for socket in fanout.receivers() {
                    tabled.push(socket, &fanout.frame);
                }
            }
            Output::Close { socket, code, .. } => {
                if let Some(queue) = tabled.queues.get_mut(&socket) {
                    queue.close.get_or_insert(code.0);
                }
            }
            Output::Stat(_) => {}
        }
        Crowd::Roomy
    }
}

/// The JSON of a server's frame, which is one whole frame of text.
fn read(frame: &bytes::Bytes) -> Value {
    let mut decoder = Decoder::client(1 << 20);
    assert_eq!(decoder.push(frame), frame.len());
    assert!(matches!(decoder.next_message(), Ok(Some(Message::Text(_)))));
    serde_json::from_slice(&payload(frame)).expect("JSON")
}

type At = (&'static str, &'static str);

/// Who does not hear himself: a session, and of older generations a socket.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Own {
    name: &'static str,
    session: Option<String>,
    socket: Option<SocketId>,
}

/// One message that a room took.
#[derive(Clone, Debug)]
struct Said {
    number: u64,
    by: Own,
    to: Option<&'static str>,
    at: u64,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Room {
    said: Vec<Said>,
    /// Beside each name that has something.
    data: BTreeMap<&'static str, Value>,
    /// Names that were lost, and when; `false` when the room may have been forgotten since.
    lost: BTreeMap<&'static str, (u64, bool)>,
    /// The stream that cursors are of, while it is known to be there.
    incarnation: Option<String>,
    /// Messages of that stream.
    offset: u64,
}

/// What a client says.
#[derive(Clone, Debug)]
enum Word {
    Data(Value),
    User { number: u64, to: Option<&'static str>, bytes: usize },
}

/// What comes down a link.
#[derive(Clone, Debug)]
enum Down {
    Frame(Value),
    Close(u16),
    /// The client finds it cut.
    Cut,
}

/// One socket, from end to end.
#[derive(Debug)]
struct Conn {
    client: usize,
    /// While it sits in its room.
    place: Option<Place>,
    grants: Grants,
    session: Option<String>,
    /// Whether the neuron's end is open.
    is_open: bool,
    /// Whether the client's is.
    is_held: bool,
    /// When anything came from it.
    heard_at: u64,
    up: VecDeque<(u64, Word)>,
    down: VecDeque<(u64, Down)>,
}

#[derive(Debug, Default)]
struct Client {
    socket: Option<SocketId>,
    is_welcome: bool,
    stalls_until: u64,
    session: Option<String>,
    cursor: Option<String>,
    /// The first of the room's messages that it may not have heard; none after a gap that it was told
    /// of, until it hears something.
    next: Option<usize>,
    /// One above the newest that it heard.
    above: usize,
    unacknowledged: Vec<(u64, Option<&'static str>, usize)>,
    names: BTreeSet<String>,
    data: BTreeMap<String, Value>,
    /// When it last had a socket with everything read that its room had taken, and what had been let go
    /// of by then.
    whole_at: Option<(u64, u64)>,
    /// Whether the session that it keeps was sent away, and the room remembers.
    is_sent_away: bool,
}

impl Client {
    fn own(&self, client: usize) -> Own {
        Own { name: name(client), session: self.session.clone(), socket: self.socket }
    }
}

struct Run {
    random: Random,
    time: Arc<Time>,
    table: Arc<Table>,
    board: Switchboard,
    clients: Vec<Client>,
    conns: BTreeMap<SocketId, Conn>,
    rooms: BTreeMap<At, Room>,
    next_socket: u64,
    next_number: u64,
    next_tick: u64,
    /// Times that something may have been let go of for a bound on rooms.
    cuts: BTreeMap<&'static str, u64>,
    report: Report,
}

fn at(client: usize) -> At {
    (CLIENTS[client].0, CLIENTS[client].1)
}

fn name(client: usize) -> &'static str {
    CLIENTS[client].2
}

fn generation(client: usize) -> Generation {
    CLIENTS[client].3
}

fn bucket(account: &str) -> Bucket {
    Bucket::account(&Ident::parse(account).expect("an ident"), None).expect("short")
}

fn room_ref((account, path): At) -> RoomRef {
    let path = Path::parse(path).expect("a path");
    RoomRef { bucket: bucket(account), path, topic: "topic".to_owned() }
}

impl Run {
    fn now(&self) -> u64 {
        self.time.0.load(Relaxed)
    }

    fn step(&mut self) {
        let client = self.random.place(CLIENTS.len());
        match self.random.below(100) {
            0..30 => self.come(client),
            30..60 => self.say(client),
            60..65 => {
                for _ in 0..12 {
                    self.say(client);
                }
            }
            65..70 => self.show(client),
            70..75 => self.advance(),
            75..79 => {
                self.clients[client].stalls_until = self.now() + self.random.below(20) * SECOND
            }
            79..85 => self.cut(client),
            85..89 => self.vanish(client),
            89..92 => self.cut_unknown(client),
            92..94 => self.leave(client),
            94 => self.kick(client),
            95..98 => self.rule(client),
            98 if self.random.one_in(2) => self.ban(client),
            99 if self.random.one_in(3) => self.restart(),
            _ => self.advance(),
        }
        let micros = self.random.below(SECOND);
        self.pass(micros);
    }

    fn advance(&mut self) {
        let seconds = 1 + self.random.below(25);
        self.pass(seconds * SECOND);
    }

    fn pass(&mut self, micros: u64) {
        let until = self.now() + micros;
        while self.next_tick <= until {
            self.time.0.store(self.next_tick.max(self.now()), Relaxed);
            self.board.tick();
            self.next_tick += SECOND;
        }
        self.time.0.store(until, Relaxed);
        let idle = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.is_open && !conn.is_held && conn.heard_at + IDLE <= until);
        for socket in idle.map(|(socket, _)| *socket).collect::<Vec<_>>() {
            self.end(socket, Departure::Lost);
        }
    }

    /// The sockets that sit in a room.
    fn seated(&self, room: At) -> Vec<(SocketId, usize)> {
        let sits = |conn: &Conn| conn.place.is_some() && at(conn.client) == room;
        let seated = self.conns.iter().filter(|(_, conn)| sits(conn));
        seated.map(|(socket, conn)| (*socket, conn.client)).collect()
    }

    fn present(&self, room: At) -> BTreeSet<&'static str> {
        self.seated(room).into_iter().map(|(_, client)| name(client)).collect()
    }

    fn come(&mut self, client: usize) {
        if self.clients[client].socket.is_some() {
            return;
        }
        self.next_socket += 1;
        let (socket, room, generation) =
            (SocketId(self.next_socket), at(client), generation(client));
        let it = &self.clients[client];
        let data = self.random.one_in(4).then(|| Value::from(self.next_socket));
        let shown = data.clone().filter(|_| generation == Generation::V4);
        let coming = match generation {
            Generation::V4 => Coming {
                data: shown.as_ref().map(|data| Arc::from(data.to_string())),
                session: it.session.as_ref().map(|text| text.parse().expect("a session")),
                cursor: it.cursor.as_ref().map(|text| text.parse().expect("a cursor")),
            },
            _ => Coming::default(),
        };
        let has_cursor = coming.cursor.is_some();
        let sitting = self.seated(room);
        let replaced = sitting.iter().map(|(socket, _)| *socket).find(|socket| {
            let conn = &self.conns[socket];
            name(conn.client) == name(client)
                && coming.session.is_some()
                && conn.session == self.clients[client].session
        });
        let expected = self.refusal(client, replaced.is_some());
        self.table.tabled().queues.insert(socket, Queue::default());
        let joiner = Joiner { generation, client_ip: [127, 0, 0, 1].into(), coming };
        // It may have to make way for this one that somebody could come back to.
        let known = self.rooms.iter().filter(|(at, known)| {
            let is_there = known.incarnation.is_some() || !self.seated(**at).is_empty();
            at.0 == room.0 && **at != room && is_there
        });
        if sitting.is_empty() && known.count() >= limits().rooms_per_bucket {
            *self.cuts.entry(room.0).or_default() += 1;
        }
        let joined = self.board.join(socket, &verified(client, socket), &room_ref(room), joiner);
        let place = match (joined, expected) {
            (Ok(place), None) => place,
            (Err(NotJoined::Refused(refusal)), Some(expected)) => {
                assert_eq!(refusal, expected, "client {client}");
                self.report.refused += 1;
                self.table.tabled().queues.remove(&socket);
                return;
            }
            (joined, expected) => panic!("client {client}: {joined:?}, not {expected:?}"),
        };
        if let Some(replaced) = replaced {
            let old = self.conns.get_mut(&replaced).expect("it sat there");
            assert!(!old.is_held, "its client has gone");
            old.place = None;
            self.report.replaced += 1;
        }
        let welcome = self.table.tabled().queues[&socket].frames[0].clone();
        let session = welcome["p"]["session"].as_str().map(str::to_owned);
        let model = self.rooms.entry(room).or_default();
        if generation == Generation::V4 {
            let cursor = welcome["m"]["c"].as_str().expect("a cursor");
            let incarnation = cursor.split('-').next().map(str::to_owned);
            if model.incarnation != incarnation {
                assert_ne!(welcome["p"]["resumed"], true, "another stream: {welcome}");
                model.lost.clear();
                (model.incarnation, model.offset) = (incarnation, 0);
            }
            model.lost.remove(name(client));
        } else if sitting.is_empty() {
            model.lost.values_mut().for_each(|(_, is_sure)| *is_sure = false);
        }
        if let Some(data) = shown {
            model.data.insert(name(client), data);
        }
        let it = &mut self.clients[client];
        let is_sent_away = std::mem::take(&mut it.is_sent_away);
        if is_sent_away {
            let resumed = &welcome["p"]["resumed"];
            assert!(*resumed != true, "client {client} was sent away: {welcome}");
        }
        if !has_cursor || is_sent_away {
            (it.next, it.above) = (Some(model.said.len()), model.said.len());
        }
        if has_cursor && self.must_resume(client) {
            assert_eq!(welcome["p"]["resumed"], true, "client {client} misses nothing: {welcome}");
            self.report.owed += 1;
        }
        let it = &mut self.clients[client];
        (it.socket, it.is_welcome) = (Some(socket), false);
        let (grants, heard_at) = (Grants::CHATTER, self.now());
        let conn = Conn {
            client,
            place: Some(place),
            grants,
            session,
            is_open: true,
            is_held: true,
            heard_at,
            up: VecDeque::new(),
            down: VecDeque::new(),
        };
        self.conns.insert(socket, conn);
        self.table.tabled().pushed.clear();
    }

    /// The limit that a joiner is over, if any.
    fn refusal(&self, client: usize, replaces: bool) -> Option<Refusal> {
        let (limits, less) = (limits(), usize::from(replaces));
        let room = at(client);
        let of_bucket =
            self.conns.values().filter(|conn| conn.place.is_some() && at(conn.client).0 == room.0);
        let rooms: BTreeSet<At> = of_bucket.clone().map(|conn| at(conn.client)).collect();
        let sitting = self.seated(room);
        let of_name = sitting.iter().filter(|(_, other)| name(*other) == name(client)).count();
        if of_bucket.count() - less >= limits.sockets_per_bucket {
            Some(Refusal::SocketsPerBucket)
        } else if sitting.len() - less >= limits.sockets_per_room {
            Some(Refusal::SocketsPerRoom)
        } else if of_name - less >= limits.sockets_per_name {
            Some(Refusal::SocketsPerName)
        } else if !rooms.contains(&room) && rooms.len() >= limits.rooms_per_bucket {
            Some(Refusal::RoomsPerBucket)
        } else {
            None
        }
    }

    /// Whether everything that a client has not read is new and is there for sure.
    fn must_resume(&self, client: usize) -> bool {
        let (it, now, (account, _)) = (&self.clients[client], self.now(), at(client));
        let Some((at_then, cuts)) = it.whole_at else { return false };
        let unread = &self.rooms[&at(client)].said[it.above..];
        // Bytes of all that was kept of the account at any time since.
        let rooms = self.rooms.iter().filter(|((of, _), _)| *of == account);
        let said = rooms.flat_map(|(_, room)| &room.said);
        let kept = said.filter(|said| said.at + LASTS + 2 * SECOND > at_then);
        let bytes: usize = kept.map(|said| said.bytes).sum();
        cuts == self.let_go(account)
            && at_then + LASTS > now
            && unread.len() <= limits().history_messages
            && bytes <= HISTORY_BYTES / 16 / 2
            && unread.iter().all(|said| said.at + LASTS > now)
    }

    /// How often a room of an account may have been let go of.
    fn let_go(&self, account: &str) -> u64 {
        self.cuts.get(account).copied().unwrap_or(0) + (self.report.restarts << 32)
    }

    fn say(&mut self, client: usize) {
        let to = self.random.one_in(3).then(|| {
            let names = ["ann", "bob", "cid", "dan", "eve"];
            names[self.random.place(names.len())]
        });
        let bytes = self.random.place(200);
        let it = &mut self.clients[client];
        let (Some(socket), true) = (it.socket, it.is_welcome) else { return };
        self.next_number += 1;
        let number = self.next_number;
        if generation(client) == Generation::V4 {
            it.unacknowledged.push((number, to, bytes));
        }
        self.send(socket, Word::User { number, to, bytes });
    }

    fn show(&mut self, client: usize) {
        let it = &self.clients[client];
        let (Some(socket), true) = (it.socket, it.is_welcome) else { return };
        if generation(client) == Generation::V4 {
            let number = self.random.below(4);
            let data = if number == 0 { Value::Null } else { Value::from(number) };
            self.send(socket, Word::Data(data));
        }
    }

    fn send(&mut self, socket: SocketId, word: Word) {
        let delay = self.random.below(SECOND / 2);
        let now = self.now();
        let Some(conn) = self.conns.get_mut(&socket) else { return };
        let after = conn.up.back().map_or(0, |(at, _)| *at);
        conn.up.push_back(((now + delay).max(after), word));
    }

    /// Both ends find the link cut. Some of what was on its way up had come.
    fn cut(&mut self, client: usize) {
        let Some(socket) = self.clients[client].socket else { return };
        self.vanish(client);
        self.end(socket, Departure::Lost);
    }

    /// Only the client finds it cut.
    fn vanish(&mut self, client: usize) {
        let Some(socket) = self.clients[client].socket else { return };
        let conn = self.conns.get_mut(&socket).expect("held by its client");
        conn.is_held = false;
        conn.down.clear();
        let come = self.random.place(conn.up.len() + 1);
        conn.up.truncate(come);
        self.let_loose(client);
    }

    /// Only the neuron does; the client hears of it after what was on its way.
    fn cut_unknown(&mut self, client: usize) {
        let Some(socket) = self.clients[client].socket else { return };
        let now = self.now();
        self.end(socket, Departure::Lost);
        if let Some(conn) = self.conns.get_mut(&socket) {
            conn.down.push_back((now, Down::Cut));
        }
    }

    /// The client's end is gone; it keeps what it needs to come back.
    fn let_loose(&mut self, client: usize) {
        let it = &mut self.clients[client];
        (it.socket, it.is_welcome) = (None, false);
        it.names.clear();
        it.data.clear();
        if generation(client) != Generation::V4 {
            *it = Client::default();
        }
    }

    /// The client says goodbye for good, once what it said has come.
    fn leave(&mut self, client: usize) {
        let Some(socket) = self.clients[client].socket else { return };
        while self.hear_one(socket) {}
        self.end(socket, Departure::Closed);
        if let Some(conn) = self.conns.get_mut(&socket) {
            conn.is_held = false;
        }
        self.clients[client] = Client::default();
    }

    /// The neuron's end of a socket is gone.
    fn end(&mut self, socket: SocketId, departure: Departure) {
        let Some(conn) = self.conns.get_mut(&socket) else { return };
        conn.is_open = false;
        conn.up.clear();
        let (client, place) = (conn.client, conn.place.take());
        if let Some(place) = place {
            self.board.leave(place, socket, departure);
            self.left(client, departure);
        }
        self.table.tabled().queues.remove(&socket);
        self.table.tabled().pushed.clear();
    }

    /// Notes that a socket of a client sits in its room no more.
    fn left(&mut self, client: usize, departure: Departure) {
        let (now, is_last) = (self.now(), !self.present(at(client)).contains(name(client)));
        let room = self.rooms.entry(at(client)).or_default();
        if is_last {
            room.data.remove(name(client));
            if departure == Departure::Lost && generation(client) == Generation::V4 {
                room.lost.insert(name(client), (now, true));
            }
        }
    }

    fn kick(&mut self, client: usize) {
        let (room, whole) = (at(client), self.random.one_in(4));
        let who = (!whole).then(|| name(client));
        let sitting = self.seated(room);
        let kicked: Vec<_> =
            sitting.into_iter().filter(|(_, it)| who.is_none_or(|who| name(*it) == who)).collect();
        let names: BTreeSet<_> = kicked.iter().map(|(_, it)| name(*it)).collect();
        let done = self.board.kick(&room_ref(room), who);
        assert_eq!((done.members, done.tokens.len()), (names.len(), kicked.len()));
        self.sent_away(room, |it| who.is_none_or(|who| who == it));
        self.closed(&kicked);
    }

    /// A rule that keeps a name, or everybody, out of a path.
    fn ban(&mut self, client: usize) {
        let room = at(client);
        let matching: Vec<_> = self.seated(room);
        let closed = self
            .board
            .close(&bucket(room.0), Closing::Denied, &|socket| socket.path.as_str() == room.1);
        assert_eq!(closed, matching.len());
        let names: BTreeSet<_> = matching.iter().map(|(_, it)| name(*it)).collect();
        self.sent_away(room, |it| names.contains(it));
        self.closed(&matching);
    }

    /// Notes that names of a room were sent away, before their sockets are closed.
    fn sent_away(&mut self, room: At, is_one: impl Fn(&str) -> bool) {
        // Without a socket of v4 there may be nothing that remembers.
        let sitting = self.seated(room);
        let remembers = sitting.iter().any(|(_, it)| generation(*it) == Generation::V4);
        for client in (0..CLIENTS.len()).filter(|it| at(*it) == room && is_one(name(*it))) {
            let it = &mut self.clients[client];
            it.whole_at = None;
            it.is_sent_away = remembers && it.session.is_some();
        }
        if let Some(model) = self.rooms.get_mut(&room) {
            model.lost.retain(|name, _| !is_one(name));
        }
    }

    fn closed(&mut self, sockets: &[(SocketId, usize)]) {
        self.report.kicked += sockets.len() as u64;
        for (socket, _) in sockets {
            self.conns.get_mut(socket).expect("it sat").place = None;
        }
        for (_, client) in sockets {
            self.left(*client, Departure::Closed);
        }
        self.table.tabled().pushed.clear();
    }

    /// A rule that changes what a name may do on a path: nothing but hear, or all that its token says.
    fn rule(&mut self, client: usize) {
        let may = [Grants::SUBSCRIBE, Grants::CHATTER][self.random.place(2)];
        let (room, who) = (at(client), name(client));
        self.board.regrant(&bucket(room.0), &|socket| {
            (socket.path.as_str() == room.1 && socket.name == who).then_some(may)
        });
        for (socket, client) in self.seated(room) {
            if name(client) == who {
                self.conns.get_mut(&socket).expect("it sits").grants = may;
            }
        }
    }

    /// The neuron ends and another begins, which knows nothing.
    fn restart(&mut self) {
        self.report.restarts += 1;
        let nonce = self.random.next();
        *self.table.tabled() = Tabled::default();
        self.board = switchboard(nonce, &self.table, &self.time);
        let now = self.now();
        for conn in self.conns.values_mut() {
            (conn.place, conn.is_open) = (None, false);
            conn.up.clear();
            conn.down.push_back((now, Down::Cut));
        }
        for client in &mut self.clients {
            client.is_sent_away = false;
        }
        for room in self.rooms.values_mut() {
            (room.data, room.lost, room.incarnation) = Default::default();
            room.offset = 0;
        }
    }

    /// Lets come what has come: words to the neuron, frames to their clients.
    fn settle(&mut self) {
        let now = self.now();
        for socket in self.conns.keys().copied().collect::<Vec<_>>() {
            while self.conns[&socket].up.front().is_some_and(|(at, _)| *at <= now) {
                self.hear_one(socket);
            }
            self.pump(socket);
        }
        for client in 0..CLIENTS.len() {
            if self.clients[client].stalls_until <= now {
                while self.read_one(client, now) {}
            }
        }
        self.conns.retain(|_, conn| conn.is_open || conn.is_held);
    }

    /// What the socket's task does: it writes what the link takes, and ends.
    fn pump(&mut self, socket: SocketId) {
        let (now, delay) = (self.now(), self.random.below(SECOND / 2));
        let mut tabled = self.table.tabled();
        let Some(queue) = tabled.queues.get_mut(&socket) else { return };
        let conn = self.conns.get_mut(&socket).expect("a queue has a socket");
        assert!(queue.bytes <= QUEUE_BYTES);
        let is_ending = queue.close.is_some();
        let after = conn.down.back().map_or(0, |(at, _)| *at);
        while (conn.down.len() < WINDOW || is_ending || !conn.is_held)
            && let Some((frame, bytes)) = queue.frames.pop_front().zip(queue.sizes.pop_front())
        {
            queue.bytes -= bytes;
            if conn.is_held {
                conn.down.push_back(((now + delay).max(after), Down::Frame(frame)));
            }
        }
        let code = queue.close.or(queue.is_slow.then_some(1013));
        let is_slow = queue.is_slow;
        drop(tabled);
        let Some(code) = code else { return };
        conn.down.push_back(((now + delay).max(after), Down::Close(code)));
        self.report.slow += u64::from(is_slow);
        self.end(socket, Departure::Lost);
    }

    /// The neuron hears the next word of a socket.
    fn hear_one(&mut self, socket: SocketId) -> bool {
        let now = self.now();
        let Some(conn) = self.conns.get_mut(&socket) else { return false };
        let Some((_, word)) = conn.up.pop_front() else { return false };
        conn.heard_at = now;
        let (client, place, grants) = (conn.client, conn.place, conn.grants);
        let text = written(client, &word);
        // A socket that was closed and does not know it has no room.
        let Some(place) = place else { return true };
        let expected = match &word {
            Word::Data(data) => {
                let data = (!data.is_null()).then(|| data.clone());
                if grants.contains(Grants::PUBLISH) {
                    let beside = &mut self.rooms.entry(at(client)).or_default().data;
                    match data {
                        Some(data) => drop(beside.insert(name(client), data)),
                        None => drop(beside.remove(name(client))),
                    }
                }
                Vec::new()
            }
            Word::User { number, .. } if self.is_said(client, *number) => Vec::new(),
            Word::User { to, .. } => self.expect(socket, *to),
        };
        self.table.tabled().pushed.clear();
        let must = match &word {
            // Who was sent away is not told what was heard of him, and says it again.
            Word::User { number, .. } if self.is_said(client, *number) => Some(false),
            Word::User { to, .. } => self.must_take(client, grants, *to),
            Word::Data(_) => None,
        };
        let packets = self.board.stats().counters.packets;
        let generation = generation(client);
        self.board.frame(place, socket, ClientFrame::parse(generation, &text));
        let is_taken = self.board.stats().counters.packets > packets;
        let pushed = std::mem::take(&mut self.table.tabled().pushed);
        let Word::User { number, to, bytes } = word else { return true };
        let mut heard: Vec<_> = pushed
            .iter()
            .filter_map(|(socket, frame)| Some((*socket, number_of(&self.conns, *socket, frame)?)))
            .collect();
        heard.sort_unstable();
        let mut wanted: Vec<_> = expected.iter().map(|socket| (*socket, number)).collect();
        wanted.sort_unstable();
        assert_eq!(heard, wanted, "{text} of client {client}");
        if is_taken {
            let session = self.conns[&socket].session.clone();
            let by = Own { name: name(client), session, socket: Some(socket) };
            let room = self.rooms.entry(at(client)).or_default();
            room.offset += u64::from(room.incarnation.is_some());
            room.said.push(Said { number, by, to, at: now, bytes: bytes + MESSAGE_BYTES });
            self.report.said += 1;
        }
        assert!(must.is_none_or(|must| must == is_taken), "{text} of client {client}: {must:?}");
        true
    }

    /// Whether a room has taken a message already.
    fn is_said(&self, client: usize, number: u64) -> bool {
        let room = self.rooms.get(&at(client));
        room.is_some_and(|room| room.said.iter().any(|said| said.number == number))
    }

    /// Who is to hear a message.
    fn expect(&self, from: SocketId, to: Option<&'static str>) -> Vec<SocketId> {
        let conn = &self.conns[&from];
        let needed = if to.is_some() { Grants::SEND } else { Grants::PUBLISH };
        if !conn.grants.contains(needed) {
            return Vec::new();
        }
        let sitting = self.seated(at(conn.client)).into_iter();
        let hears = |(socket, client): &(SocketId, usize)| match to {
            Some(to) => name(*client) == to,
            None => *socket != from,
        };
        sitting.filter(hears).map(|(socket, _)| socket).collect()
    }

    /// Whether a message is to be taken, if that is known.
    fn must_take(&self, client: usize, grants: Grants, to: Option<&'static str>) -> Option<bool> {
        let Some(to) = to else { return Some(grants.contains(Grants::PUBLISH)) };
        if !grants.contains(Grants::SEND) {
            return Some(false);
        }
        if self.present(at(client)).contains(to) {
            return Some(true);
        }
        match self.rooms[&at(client)].lost.get(to) {
            None => Some(false),
            Some((since, true)) if since + LASTS > self.now() => Some(true),
            // Let go of some time after that.
            Some(_) => None,
        }
    }

    /// A client reads the next that has come down its link.
    fn read_one(&mut self, client: usize, now: u64) -> bool {
        let Some(socket) = self.clients[client].socket else { return false };
        let conn = self.conns.get_mut(&socket).expect("held by its client");
        let Some((_, down)) = conn.down.pop_front_if(|(at, _)| *at <= now) else { return false };
        match down {
            Down::Frame(frame) => self.understand(client, &frame),
            Down::Cut | Down::Close(1013) => {
                conn.is_held = false;
                self.let_loose(client);
            }
            Down::Close(code) => {
                conn.is_held = false;
                assert_eq!(code, 4403, "one that was replaced is held by nobody");
                // Some come back by another token all the same.
                match self.random.one_in(2) {
                    true => self.let_loose(client),
                    false => self.clients[client] = Client::default(),
                }
            }
        }
        true
    }

    fn understand(&mut self, client: usize, frame: &Value) {
        let generation = generation(client);
        let (kind, who, payload) = match generation {
            Generation::V1 => (&frame["type"], &frame["message"], &frame["message"]),
            Generation::V2 if frame["m"]["o"] == "o" => {
                (&frame["t"], &frame["m"]["f"], &frame["p"])
            }
            Generation::V2 => (&frame["m"]["o"], &frame["m"]["f"], &frame["p"]),
            Generation::V4 => (&frame["t"], &frame["m"]["f"], &frame["p"]),
        };
        let who = who.as_str().and_then(|who| who.rsplit('/').next()).unwrap_or("").to_owned();
        let it = &mut self.clients[client];
        match kind.as_str() {
            Some("welcome" | "peers") => {
                let users = payload["users"].as_array().expect("names");
                it.names = users.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                assert_eq!(it.names.len(), users.len(), "each once");
                let data = payload["data"].as_object().into_iter().flatten();
                it.data = data.map(|(name, data)| (name.clone(), data.clone())).collect();
                it.is_welcome = true;
                if kind == "welcome" {
                    self.welcomed(client, frame);
                }
            }
            Some("joined" | "peer_connected") => {
                assert!(it.names.insert(who.clone()), "{who} came twice to {client}");
                if !payload.is_null() && generation == Generation::V4 {
                    it.data.insert(who, payload.clone());
                }
            }
            Some("left" | "peer_removed") => {
                assert!(it.names.remove(&who), "{who} left {client} twice");
                it.data.remove(&who);
            }
            Some("presence") if payload.is_null() => drop(it.data.remove(&who)),
            Some("presence") => drop(it.data.insert(who, payload.clone())),
            Some("r") => {
                let id = frame["m"]["id"].as_u64().expect("a number");
                it.unacknowledged.retain(|(number, ..)| *number != id);
            }
            _ => {
                let payload = if generation == Generation::V1 { &payload["data"] } else { payload };
                if let Some(number) = payload["n"].as_u64() {
                    self.heard(client, number);
                }
            }
        }
        if let Some(cursor) = frame["m"]["c"].as_str() {
            self.clients[client].cursor = Some(cursor.to_owned());
        }
    }

    fn welcomed(&mut self, client: usize, frame: &Value) {
        let it = &mut self.clients[client];
        let payload = &frame["p"];
        it.session = payload["session"].as_str().map(str::to_owned);
        match payload["resumed"].as_bool() {
            Some(true) => self.report.resumed += 1,
            Some(false) => {
                self.report.unresumed += 1;
                it.next = None;
            }
            None => {}
        }
        match payload["last"].as_u64() {
            Some(last) => it.unacknowledged.retain(|(number, ..)| *number > last),
            None if payload["resumed"] == false => it.unacknowledged.clear(),
            None => {}
        }
        let again = it.unacknowledged.clone();
        if let Some(socket) = it.socket {
            for (number, to, bytes) in again {
                self.send(socket, Word::User { number, to, bytes });
            }
        }
    }

    /// A message was read: the next of those that are for this client.
    fn heard(&mut self, client: usize, number: u64) {
        let room = &self.rooms[&at(client)];
        let place = room.said.iter().position(|said| said.number == number);
        let place = place.unwrap_or_else(|| panic!("{client} hears {number}, of another room"));
        let it = &mut self.clients[client];
        assert!(place >= it.above, "{client} hears {number} twice or late");
        let own = it.own(client);
        let own = &own;
        assert!(is_for(own, &room.said[place]), "{number} is not for {client}");
        if let Some(next) = it.next {
            let missed = room.said[next..place].iter().find(|said| is_for(own, said));
            assert!(missed.is_none(), "{client} missed {missed:?} before {number}");
        }
        (it.next, it.above) = (Some(place + 1), place + 1);
        let digest = self.report.digest ^ number << 8 ^ client as u64;
        self.report.digest = digest.wrapping_mul(0x0100_0000_01b3);
    }

    /// What is true at any time.
    fn check(&mut self) {
        let (stats, limits) = (self.board.stats(), limits());
        assert_eq!(self.table.tabled().strays, 0, "to who is not there");
        let open: Vec<_> = self.conns.values().filter(|conn| conn.place.is_some()).collect();
        let rooms: BTreeSet<At> = open.iter().map(|conn| at(conn.client)).collect();
        let names: BTreeSet<_> =
            open.iter().map(|conn| (at(conn.client), name(conn.client))).collect();
        assert_eq!(
            (stats.sockets, stats.rooms, stats.names),
            (open.len(), rooms.len(), names.len()),
            "sockets, rooms, names"
        );
        assert!(stats.history_messages <= stats.histories * limits.history_messages);
        assert!(stats.history_bytes <= HISTORY_BYTES / 16 / 2 * 2, "of two accounts: {stats:?}");
        for room in rooms {
            let present: Vec<_> = self.present(room).into_iter().collect();
            let members = self.board.members(&room_ref(room));
            let listed: Vec<_> = members.iter().map(|member| &*member.name).collect();
            assert_eq!(listed, present, "{room:?}");
        }
        self.believe();
    }

    /// Whoever has read everything knows who is there.
    fn believe(&mut self) {
        for client in 0..CLIENTS.len() {
            let Some(socket) = self.clients[client].socket else { continue };
            let conn = &self.conns[&socket];
            let tabled = self.table.tabled();
            let is_empty = tabled.queues.get(&socket).is_some_and(|queue| {
                queue.frames.is_empty() && !queue.is_slow && queue.close.is_none()
            });
            drop(tabled);
            let is_drained = conn.place.is_some() && conn.down.is_empty() && is_empty;
            if !is_drained || !self.clients[client].is_welcome {
                continue;
            }
            self.report.beliefs += 1;
            let whole = (self.now(), self.let_go(at(client).0));
            let room = &self.rooms[&at(client)];
            let present = self.present(at(client));
            let it = &mut self.clients[client];
            assert!(
                it.names.iter().eq(present.iter()),
                "{client}: {:?}, not {present:?}",
                it.names
            );
            if generation(client) == Generation::V4 {
                // Of its own it is told nothing.
                let others = |who: &str| who != name(client);
                let held = it.data.iter().map(|(name, data)| (&**name, data));
                let held: Vec<_> = held.filter(|(name, _)| others(name)).collect();
                let beside = room.data.iter().map(|(name, data)| (*name, data));
                let beside: Vec<_> = beside.filter(|(name, _)| others(name)).collect();
                assert_eq!(held, beside, "what {client} sees beside names");
                let offset = it.cursor.as_ref().and_then(|cursor| cursor.rsplit('-').next());
                let offset = offset.and_then(|hex| u64::from_str_radix(hex, 16).ok());
                it.whole_at = (offset == Some(room.offset)).then_some(whole);
            }
            let own = &it.own(client);
            if let Some(next) = it.next
                && generation(client) == Generation::V4
            {
                let missed = room.said[next..].iter().find(|said| is_for(own, said));
                assert!(missed.is_none(), "{client} has read all, but for {missed:?}");
            }
        }
    }

    /// Rooms empty, so that everybody finds a place; each comes back once and reads to the end.
    fn finish(&mut self) {
        for client in 0..CLIENTS.len() {
            self.clients[client].stalls_until = 0;
        }
        for client in 0..CLIENTS.len() {
            for _ in 0..60 {
                self.come(client);
                self.pass(SECOND / 2);
                self.settle();
                self.check();
                let it = &self.clients[client];
                let conn = it.socket.map(|socket| &self.conns[&socket]);
                let rests = |conn: &Conn| conn.down.is_empty() && conn.up.is_empty();
                if it.is_welcome && conn.is_some_and(rests) {
                    break;
                }
            }
            self.cut(client);
            self.settle();
        }
        for socket in self.conns.keys().copied().collect::<Vec<_>>() {
            self.end(socket, Departure::Lost);
        }
        self.pass(LASTS + SECOND);
        let stats = self.board.stats();
        let held = [stats.buckets, stats.rooms, stats.names, stats.sockets, stats.histories];
        assert_eq!(held, [0; 5], "is left");
        assert_eq!((stats.history_messages, stats.history_bytes), (0, 0), "is left");
        assert!(self.board.buckets().is_empty() && self.table.tabled().queues.is_empty());
    }
}

/// Whether a message is for a client.
fn is_for(own: &Own, said: &Said) -> bool {
    let is_own = match own.session {
        Some(_) => (own.name, &own.session) == (said.by.name, &said.by.session),
        None => own.socket == said.by.socket,
    };
    said.to.map_or(!is_own, |to| to == own.name)
}

/// The number of a user's frame, as its receiver reads it.
fn number_of(conns: &BTreeMap<SocketId, Conn>, socket: SocketId, frame: &Value) -> Option<u64> {
    let client = conns.get(&socket)?.client;
    match generation(client) {
        Generation::V1 => frame["message"]["data"]["n"].as_u64(),
        _ => frame["p"]["n"].as_u64(),
    }
}

fn written(client: usize, word: &Word) -> String {
    let (number, to, bytes) = match word {
        Word::Data(data) => return format!(r#"{{"t":"presence","p":{data}}}"#),
        Word::User { number, to, bytes } => (number, to, bytes),
    };
    let payload = format!(r#"{{"n":{number},"x":"{}"}}"#, "x".repeat(*bytes));
    let target = |member: &str| to.map_or(String::new(), |to| format!(r#","{member}":"{to}""#));
    match generation(client) {
        Generation::V1 => {
            format!(r#"{{"eventName":"o"{},"data":{payload}}}"#, target("targetUserId"))
        }
        Generation::V2 => format!(r#"{{"t":"u","m":{{"o":"o"{}}},"p":{payload}}}"#, target("t")),
        Generation::V4 => {
            let to = target("t");
            format!(r#"{{"t":"u","m":{{"id":{number},"o":"o"{to}}},"p":{payload}}}"#)
        }
    }
}

fn verified(client: usize, socket: SocketId) -> Verified {
    let claims = Claims {
        id: socket.0,
        account: Ident::parse(at(client).0).expect("an ident"),
        sub: None,
        path: None,
        identity: name(client).to_owned(),
        grants: Grants::CHATTER,
        not_before_ms: 0,
        expires_s: 0,
        key_id: 0,
    };
    Verified { claims, bucket: bucket(at(client).0) }
}
