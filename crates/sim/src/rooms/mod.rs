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

mod checks;
mod links;
mod steps;
mod table;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ::neuron::sockets::{Place, Switchboard};
use kv4::Bucket;
use serde_json::Value;
use services::RoomRef;
use services::statistics::Statistics;
use services::token::Verified;
use signal::{Limits, SocketId};
use wire::frames::Generation;
use wire::names::{Ident, Key, Path};
use wire::token::{Claims, Grants};

use crate::random::Random;
use table::{Table, Time};

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
    /// Tokens of v4 sockets that were lost, whose they are, and when.
    lost_tokens: BTreeMap<u64, (&'static str, u64)>,
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

    /// The sockets that sit in a room.
    fn seated(&self, room: At) -> Vec<(SocketId, usize)> {
        let sits = |conn: &Conn| conn.place.is_some() && at(conn.client) == room;
        let seated = self.conns.iter().filter(|(_, conn)| sits(conn));
        seated.map(|(socket, conn)| (*socket, conn.client)).collect()
    }

    fn present(&self, room: At) -> BTreeSet<&'static str> {
        self.seated(room).into_iter().map(|(_, client)| name(client)).collect()
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
