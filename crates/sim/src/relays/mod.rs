//! A relay under one seed: the production servers of a neuron, with clients and peers behind links that
//! lose, repeat and reorder what they carry, sockets that do not open, admissions that take their time and
//! hours that pass; beside them a model ([`model`]) that is told of everything as it arrives.
//!
//! After every message: what is answered, and where data go, is what the model says. Now and then: whoever
//! relays is who the model knows, with the traffic that it counted, and ports, sockets and quotas are
//! theirs and nobody else's. At the end, when all is over, nothing is left.

mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use relay::framing::ChannelData;
use relay::nonce::{Features, Nonces};
use relay::peers::Peers;
use relay::server::{
    Asked, Client, Forward, Output, Passwords, Payer, Quotas, RelayId, Relayed, RelayedIp, Server,
    Settings, Unadmitted,
};
use relay::stun::{
    Class, Family, Hash, Key, Kind, Message, Method, PasswordAlgorithm, TransactionId, Writer,
};

use self::model::{Answer, Ask, Has, Model, Way};
use crate::random::Random;

const SERVERS: u8 = 2;
const REALM: &str = "sim";
const USERS: [&str; 3] = ["ann", "bob", "cid"];
const UNIX_S: u64 = 1_700_000_000;
/// The last port that a relay has; how many clients may have one follows from the seed.
const PORT_LAST: u16 = 60_000;
/// Steps between looks at everything.
const LOOK_EVERY: u64 = 512;
/// Clients that are more active than others.
const MADE_MAX: usize = 512;

/// What happened, so that a test sees that enough did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    pub allocated: u64,
    pub refused: u64,
    pub expired: u64,
    pub to_peers: u64,
    pub to_clients: u64,
    /// Data that stayed in the process, of those.
    pub within: u64,
    pub dropped: u64,
    /// Answers that were looked at.
    pub answers: u64,
    /// Sockets that could not be opened.
    pub unopened: u64,
    /// Of everything: equal for equal seeds.
    pub digest: u64,
}

/// Everybody's password is his name.
struct Names;

impl Passwords for Names {
    fn of(&self, _: u64, username: &str) -> Vec<String> {
        USERS.contains(&username).then(|| username.to_owned()).into_iter().collect()
    }
}

/// What a link carries.
#[derive(Clone, Debug)]
enum Carried {
    Request {
        transaction: TransactionId,
        user: &'static str,
        ask: Ask,
        bytes: Vec<u8>,
    },
    /// Proven by nobody, and what it is answered.
    Unproven {
        bytes: Vec<u8>,
        code: u16,
    },
    Data {
        number: Option<u16>,
        peer: SocketAddr,
        bytes: Vec<u8>,
        length: usize,
    },
    OfPeer {
        relayed: SocketAddr,
        peer: SocketAddr,
        data: Vec<u8>,
    },
}

/// Something that is done later.
#[derive(Debug)]
enum Later {
    Arrives(usize, Carried),
    Admits(u8, Asked, Result<Payer, Unadmitted>),
    Opens(u8, RelayId, u16),
}

struct Run {
    random: Random,
    now: Instant,
    servers: Vec<Server>,
    relayed: Arc<Relayed>,
    own: IpAddr,
    clients: Vec<Client>,
    nonces: BTreeMap<usize, Vec<u8>>,
    /// Some of those who were given allocations, the last of them surely.
    made: Vec<usize>,
    /// By when, and in which order they were put there.
    later: BTreeMap<(Instant, u64), Later>,
    put: u64,
    model: Model,
    /// Sockets of relayed addresses that are open, and those that are being opened.
    open: BTreeMap<RelayId, u16>,
    opening: BTreeSet<RelayId>,
    report: Report,
}

/// Runs one seed with so many clients, for so many steps.
///
/// # Panics
/// When a promise is broken: that is what it is for.
pub fn run(seed: u64, clients: usize, steps: u64) -> Report {
    let mut run = Run::new(seed, clients);
    run.gather();
    for step in 0..steps {
        run.step();
        if step % LOOK_EVERY == 0 {
            run.look();
        }
    }
    run.finish()
}

impl Run {
    fn new(seed: u64, clients: usize) -> Run {
        let mut random = Random::new(seed);
        let now = <Instant>::now();
        let own: IpAddr = [192, 0, 2, 1].into();
        // Now and then there are fewer ports than clients.
        let ports = (clients as u64 + random.below(clients as u64 + 2)).clamp(2, 16_000) / 2 + 1;
        let ports = PORT_LAST - ports as u16..=PORT_LAST;
        let mut quota = || match random.one_in(3) {
            true => 1 + random.place(clients),
            false => clients,
        };
        let quotas = Quotas { per_user: quota(), per_account: quota(), per_neuron: quota() };
        let ip = RelayedIp { advertised: own, bound: None, ports };
        let relayed = Arc::new(Relayed::new([ip], quotas));
        let mut peers = Peers::default();
        peers.own(own);
        let servers = (0..SERVERS).map(|number| {
            let mut secret = [0; 32];
            random.fill(&mut secret);
            let settings = Settings {
                realm: REALM.to_owned(),
                permissions_max: model::PERMISSIONS_MAX,
                channels_max: model::CHANNELS_MAX,
                packets_per_second: 0,
                bytes_per_second: 0,
                refusals_per_source: 0,
                ..Settings::default()
            };
            let (relayed, nonces) = (relayed.clone(), Nonces::new(b"sim", Features::default()));
            let (peers, names) = (peers.clone(), Box::new(Names));
            Server::new(number, settings, relayed, peers, names, nonces, secret, now, UNIX_S)
        });
        let servers = servers.collect();
        let clients = (0..clients).map(|number| {
            let ip = [198, 51, (number / 250) as u8, (number % 250) as u8];
            let is_stream = number % 5 == 4;
            Client { listener: u16::from(is_stream), is_stream, address: (ip, 4_000).into() }
        });
        Run {
            now,
            servers,
            relayed,
            own,
            clients: clients.collect(),
            nonces: BTreeMap::new(),
            made: Vec::new(),
            later: BTreeMap::new(),
            put: 0,
            model: Model::default(),
            open: BTreeMap::new(),
            opening: BTreeSet::new(),
            report: Report::default(),
            random,
        }
    }

    /// The server that a client's packets come to, always the same.
    fn server(&self, client: usize) -> usize {
        client % usize::from(SERVERS)
    }

    fn put(&mut self, after: Duration, later: Later) {
        self.put += 1;
        self.later.insert((self.now + after, self.put), later);
    }

    /// Sends over a link, which may lose it, repeat it, or take its time.
    fn carry(&mut self, client: usize, carried: &Carried) {
        let copies = match self.random.below(10) {
            0 => 0,
            1 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let after = Duration::from_micros(self.random.below(200_000));
            self.put(after, Later::Arrives(client, carried.clone()));
        }
    }

    /// Everybody comes, and asks for an allocation.
    fn gather(&mut self) {
        for _ in 0..2 {
            for client in 0..self.clients.len() {
                self.ask_for(client, USERS[client % USERS.len()], Ask::Allocate);
            }
            self.pass(Duration::from_secs(1));
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..45 => self.ask(),
            45..70 => self.send(),
            70..85 => self.send_back(),
            // Each client does something as often, however many there are.
            85..99 => {
                let most_us = 6_000_000 / self.clients.len().max(20) as u64;
                let time = Duration::from_micros(self.random.below(most_us));
                self.pass(time);
            }
            _ if !self.random.one_in(1 + self.clients.len() as u64 / 100) => {}
            _ => {
                let seconds = [1, 30, 299, 300, 301, 600, 3_600][self.random.place(7)];
                self.pass(Duration::from_secs(seconds));
            }
        }
    }

    /// A client asks for something, sometimes in a wrong way.
    fn ask(&mut self) {
        let client = self.somebody();
        let user = match self.random.one_in(20) {
            true => USERS[self.random.place(USERS.len())],
            false => USERS[client % USERS.len()],
        };
        let is_live = matches!(self.model.clients.get(&self.clients[client]), Some(Has::Live(_)));
        let ask = match self.random.below(20) {
            0 => Ask::Allocate,
            1..15 if !is_live => Ask::Allocate,
            1..3 => Ask::Refresh([0, 1, 600, 3_600, 9_999][self.random.place(5)]),
            3..9 => {
                let count = self.random.place(3);
                Ask::Permit((0..count).map(|_| self.peer()).collect())
            }
            _ => Ask::Bind(0x3FFF + self.random.place(6) as u16, self.peer()),
        };
        self.ask_for(client, user, ask);
    }

    fn ask_for(&mut self, client: usize, user: &'static str, ask: Ask) {
        let transaction = {
            let mut id = [0; 12];
            self.random.fill(&mut id);
            TransactionId(id)
        };
        let nonce = self.nonces.get(&client).cloned();
        let (Some(nonce), false) = (nonce, self.random.one_in(30)) else {
            let mut bytes = Vec::new();
            Writer::new(&mut bytes, Class::Request, method(&ask), transaction);
            return self.carry(client, &Carried::Unproven { bytes, code: 401 });
        };
        let is_forged = self.random.one_in(30);
        let password = if is_forged { "wrong" } else { user };
        let bytes = written(transaction, user, password, &nonce, &ask);
        let carried = match is_forged {
            true => Carried::Unproven { bytes, code: 401 },
            false => Carried::Request { transaction, user, ask, bytes },
        };
        self.carry(client, &carried);
        // Whoever hears no answer asks again.
        if self.random.one_in(4) {
            self.carry(client, &carried);
        }
    }

    /// Mostly somebody who was given an allocation once.
    fn somebody(&mut self) -> usize {
        match self.made.is_empty() || self.random.one_in(4) {
            true => self.random.place(self.clients.len()),
            false => self.made[self.random.place(self.made.len())],
        }
    }

    /// Somebody outside, somebody who is relayed here, or nobody.
    fn peer(&mut self) -> SocketAddr {
        match self.random.below(10) {
            0 => ([127, 0, 0, 1], 5_000).into(),
            1..5 => {
                let few: Vec<u16> = self.open.values().copied().take(8).collect();
                let port = match few.is_empty() {
                    true => PORT_LAST,
                    false => few[self.random.place(few.len())],
                };
                SocketAddr::new(self.own, port)
            }
            _ => {
                ([8, 8, 8, self.random.below(6) as u8], 5_000 + self.random.below(2) as u16).into()
            }
        }
    }

    fn send(&mut self) {
        let client = self.somebody();
        let peer = self.peer();
        let length = self.random.place(1_300);
        let data = vec![client as u8; length];
        let number = (!self.random.one_in(3)).then(|| 0x4000 + self.random.place(4) as u16);
        let bytes = match number {
            Some(number) => {
                [&ChannelData::header(number, length).expect("it fits")[..], &data].concat()
            }
            None => {
                let mut bytes = Vec::new();
                let id = TransactionId([1; 12]);
                Writer::new(&mut bytes, Class::Indication, Method::Send, id)
                    .address(Kind::XOR_PEER_ADDRESS, peer)
                    .attribute(Kind::DATA, &data);
                bytes
            }
        };
        self.carry(client, &Carried::Data { number, peer, bytes, length });
    }

    fn send_back(&mut self) {
        let peer = self.peer();
        let ports: Vec<u16> = self.open.values().copied().collect();
        if ports.is_empty() || peer.ip() == self.own {
            return;
        }
        let port = ports[self.random.place(ports.len())];
        let relayed = SocketAddr::new(self.own, port);
        let data = vec![1; self.random.place(1_300)];
        self.carry(0, &Carried::OfPeer { relayed, peer, data });
    }

    /// Lets time pass, and what is to happen in it.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some((at, what)) = self.next(until) {
            self.now = self.now.max(at);
            match what {
                None => {
                    for server in &mut self.servers {
                        server.handle_timeout(self.now);
                    }
                }
                Some(Later::Arrives(client, carried)) => self.arrive(client, carried),
                Some(Later::Admits(server, asked, verdict)) => {
                    self.servers[usize::from(server)].handle_admission(self.now, asked, verdict);
                }
                Some(Later::Opens(server, relay, port)) => {
                    self.opening.remove(&relay);
                    let is_open = !self.random.one_in(8);
                    match is_open {
                        true => drop(self.open.insert(relay, port)),
                        false => self.report.unopened += 1,
                    }
                    self.servers[usize::from(server)].handle_opened(self.now, relay, is_open);
                }
            }
            self.drain();
        }
        self.now = until;
    }

    /// What comes next until then; a timer as `None`.
    fn next(&mut self, until: Instant) -> Option<(Instant, Option<Later>)> {
        let timer = self.servers.iter().filter_map(Server::poll_timeout).min();
        let first = self.later.first_key_value().map(|((at, _), _)| *at);
        match (timer.filter(|at| *at <= until), first.filter(|at| *at <= until)) {
            (Some(timer), first) if first.is_none_or(|first| timer <= first) => Some((timer, None)),
            (_, Some(_)) => self.later.pop_first().map(|((at, _), later)| (at, Some(later))),
            _ => None,
        }
    }

    fn arrive(&mut self, client: usize, carried: Carried) {
        let (at, server, own) = (self.clients[client], self.server(client), self.own);
        match carried {
            Carried::Unproven { bytes, code } => {
                let forward = self.servers[server].handle_client(self.now, at, &bytes);
                assert_eq!(forward, Forward::Nowhere);
                let Some(reply) = self.reply(server, at) else { return };
                let message = Message::read(&reply).expect("a message");
                // One nonce is as stale as another.
                assert!([Some(code), Some(438)].contains(&message.error()), "{message:?}");
                let nonce = message.attributes().nonce.expect("a nonce").to_vec();
                self.nonces.insert(client, nonce);
            }
            Carried::Request { transaction, user, ask, bytes } => {
                let forward = self.servers[server].handle_client(self.now, at, &bytes);
                assert_eq!(forward, Forward::Nowhere);
                self.answered(client, user, transaction, &ask);
            }
            Carried::Data { number, peer, bytes, length } => {
                let way = self.model.send(self.now, at, number, peer, length, own);
                let forward = self.servers[server].handle_client(self.now, at, &bytes);
                let is_within = matches!(way, Way::Client(..));
                let got = self.follow(forward, length);
                assert_eq!(got, way, "of {at:?} by {number:?} to {peer}");
                self.note(&way, is_within);
            }
            Carried::OfPeer { relayed, peer, data } => {
                let socket = self.open.iter().find(|(_, port)| **port == relayed.port());
                let Some((&relay, _)) = socket else { return };
                let way = match self.model.owner(self.now, relayed) {
                    Some(owner) => self.model.receive(self.now, owner, peer, data.len()),
                    None => Way::Nowhere,
                };
                let server = usize::from(relay.server);
                let forward = self.servers[server].handle_peer(self.now, relay, peer, &data);
                let got = way_of(forward, data.len());
                assert_eq!(got, way, "of {peer} to {relayed}");
                self.note(&way, false);
            }
        }
    }

    /// Takes data on to where they go, in the process too.
    fn follow(&mut self, forward: Forward<'_>, length: usize) -> Way {
        let Forward::ToServer { relay, from, data } = forward else {
            return way_of(forward, length);
        };
        let server = &mut self.servers[usize::from(relay.server)];
        way_of(server.handle_peer(self.now, relay, from, data), length)
    }

    fn note(&mut self, way: &Way, is_within: bool) {
        let report = &mut self.report;
        match way {
            Way::Nowhere => report.dropped += 1,
            Way::Peer(_) => report.to_peers += 1,
            Way::Client(..) => report.to_clients += 1,
        }
        report.within += u64::from(is_within);
        let code = [report.dropped, report.to_peers, report.to_clients, report.answers];
        for number in code {
            report.digest = (report.digest ^ number).wrapping_mul(0x0100_0000_01B3);
        }
    }

    /// What a server answers a client at once, if anything; the rest is done.
    fn reply(&mut self, server: usize, to: Client) -> Option<Vec<u8>> {
        let mut reply = None;
        while let Some(output) = self.servers[server].poll_output() {
            match output {
                Output::Reply { client, bytes } if client == to => {
                    assert!(reply.replace(bytes).is_none(), "it is answered once");
                }
                other => self.carry_out(server, other),
            }
        }
        reply
    }

    /// Sees to it that a request is answered as the model does.
    fn answered(&mut self, client: usize, user: &'static str, by: TransactionId, ask: &Ask) {
        let (at, server) = (self.clients[client], self.server(client));
        let reply = self.reply(server, at);
        if let Some(reply) = &reply
            && Message::read(reply).expect("a message").error() == Some(438)
        {
            // It took too long.
            self.nonces.remove(&client);
            return;
        }
        let answer = self.model.ask(self.now, at, user, by, ask, self.own);
        self.report.answers += 1;
        match (answer, reply) {
            (Answer::Later, None) => {}
            (Answer::Code(code), Some(reply)) => {
                let message = Message::read(&reply).expect("a message");
                assert_eq!(message.transaction(), by);
                assert_eq!(message.error().unwrap_or(0), code, "{ask:?} of {at:?} by {user}");
                self.report.refused += u64::from(code != 0);
            }
            (answer, reply) => panic!("{ask:?} of {at:?} by {user}: {answer:?}, but {reply:?}"),
        }
    }

    fn drain(&mut self) {
        for server in 0..self.servers.len() {
            while let Some(output) = self.servers[server].poll_output() {
                self.carry_out(server, output);
            }
        }
    }

    fn carry_out(&mut self, server: usize, output: Output) {
        let number = server as u8;
        match output {
            // What came of an allocation.
            Output::Reply { client, bytes } => {
                let message = Message::read(&bytes).expect("a message");
                match message.error() {
                    None => {
                        let value = message.attributes().relayed.expect("an address");
                        let relayed = message.address(value).expect("an address");
                        self.model.made(self.now, client, relayed);
                        let number = self.clients.iter().position(|one| *one == client);
                        self.made.extend(number);
                        if self.made.len() > MADE_MAX {
                            self.made.swap_remove(0);
                        }
                        self.report.allocated += 1;
                    }
                    Some(code) => {
                        assert!([403, 486, 508].contains(&code), "{code}");
                        self.model.clients.remove(&client);
                        self.report.refused += 1;
                    }
                }
            }
            Output::Admit { asked, username, .. } => {
                let verdict = match self.random.one_in(20) {
                    true => Err(Unadmitted::Forbidden),
                    false => Ok(Payer { account: "elena".into(), user: username }),
                };
                // It may take longer than anybody waits.
                let ms = if self.random.one_in(50) { 20_000 } else { self.random.below(50) };
                self.put(Duration::from_millis(ms), Later::Admits(number, asked, verdict));
            }
            Output::Open { relay, port } => {
                assert!(!self.open.values().any(|open| *open == port), "{port} is open");
                self.opening.insert(relay);
                let after = Duration::from_micros(self.random.below(500));
                self.put(after, Later::Opens(number, relay, port));
            }
            Output::Close { relay } => {
                assert!(self.open.remove(&relay).is_some(), "{relay:?} is not open");
            }
            Output::Began(_) => {}
            Output::Ended { session, .. } => {
                self.report.expired += 1;
                let digest = session.sent.bytes ^ session.received.bytes << 32;
                self.report.digest = (self.report.digest ^ digest).wrapping_mul(0x0100_0000_01B3);
            }
        }
    }

    /// Looks at everything: who has what.
    fn look(&mut self) {
        self.model.expire(self.now);
        let before: BTreeSet<Client> = self.model.clients.keys().copied().collect();
        // To the next second, so that whoever is over has been looked at.
        self.pass(Duration::from_millis(1_001));
        self.model.expire(self.now);
        let mut sessions = BTreeMap::new();
        for server in &self.servers {
            sessions.extend(server.sessions().map(|session| (session.client, session)));
        }
        let mut live = 0;
        for (client, has) in &self.model.clients {
            let Has::Live(has) = has else { continue };
            live += 1;
            let session = sessions.remove(client).expect("it is there");
            assert_eq!(session.relayed, [Some(has.relayed), None]);
            assert_eq!(session.received, has.received, "{client:?}");
            // What went to one that is over, and was not looked at yet, was sent.
            let more = session.sent.packets - has.sent.packets;
            assert!(more <= self.report.dropped, "{client:?}");
            assert!(more > 0 || session.sent == has.sent, "{client:?}");
        }
        // Over for about a second at most.
        assert!(sessions.keys().all(|client| before.contains(client)), "{sessions:?}");
        let lingering = sessions.len();
        let held: usize = self.servers.iter().map(Server::len).sum();
        assert!(held >= live + lingering);
        let taken = self.relayed.taken(Family::V4);
        assert!(taken <= held, "{taken} ports of {held}");
        assert!(taken >= live + lingering, "{taken} ports of {live} and {lingering}");
        assert!(self.opening.iter().all(|relay| !self.open.contains_key(relay)));
        assert!(self.relayed.allocations() >= live + lingering);
        assert!(self.relayed.allocations() <= held);
    }

    /// All go, and nothing is left of them.
    fn finish(mut self) -> Report {
        self.look();
        self.later.retain(|_, later| !matches!(later, Later::Arrives(..)));
        self.pass(Duration::from_secs(4_000));
        self.model.expire(self.now);
        assert!(self.model.clients.is_empty());
        assert!(self.servers.iter().all(Server::is_empty));
        assert!(self.open.is_empty() && self.opening.is_empty(), "{:?}", self.open);
        assert_eq!(self.relayed.taken(Family::V4), 0);
        assert_eq!((self.relayed.allocations(), self.relayed.reserved()), (0, 0));
        assert!(self.servers.iter().all(|server| server.poll_timeout().is_none()));
        let sum = |of: fn(&relay::server::Counters) -> u64| -> u64 {
            self.servers.iter().map(|server| of(server.counters())).sum()
        };
        assert_eq!(sum(|counters| counters.allocated), self.report.allocated);
        assert_eq!(sum(|counters| counters.ended), self.report.allocated);
        assert_eq!(self.model.ended, self.report.allocated);
        assert_eq!(self.report.expired, self.report.allocated);
        let (sent, received) = (self.model.sent, self.model.received);
        assert_eq!(received.packets, self.report.to_clients);
        assert!(sent.packets >= self.report.to_peers + self.report.within);
        self.report
    }
}

fn method(ask: &Ask) -> Method {
    match ask {
        Ask::Allocate => Method::Allocate,
        Ask::Refresh(_) => Method::Refresh,
        Ask::Permit(_) => Method::CreatePermission,
        Ask::Bind(..) => Method::ChannelBind,
    }
}

fn written(
    transaction: TransactionId,
    user: &str,
    password: &str,
    nonce: &[u8],
    ask: &Ask,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, Class::Request, method(ask), transaction);
    match ask {
        Ask::Allocate => {
            writer.attribute(Kind::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        }
        Ask::Refresh(seconds) => {
            writer.number(Kind::LIFETIME, *seconds);
        }
        Ask::Permit(peers) => {
            for peer in peers {
                writer.address(Kind::XOR_PEER_ADDRESS, *peer);
            }
        }
        Ask::Bind(number, peer) => {
            writer.number(Kind::CHANNEL_NUMBER, u32::from(*number) << 16);
            writer.address(Kind::XOR_PEER_ADDRESS, *peer);
        }
    }
    let key = Key::long_term(
        PasswordAlgorithm::Md5,
        user.as_bytes(),
        REALM.as_bytes(),
        password.as_bytes(),
    );
    writer
        .attribute(Kind::USERNAME, user.as_bytes())
        .attribute(Kind::REALM, REALM.as_bytes())
        .attribute(Kind::NONCE, nonce)
        .integrity(&key, Hash::Sha1);
    bytes
}

/// Reads what goes to a client as it would.
fn way_of(forward: Forward<'_>, length: usize) -> Way {
    match forward {
        Forward::Nowhere => Way::Nowhere,
        Forward::ToPeer { peer, data, .. } => {
            assert_eq!(data.len(), length);
            Way::Peer(peer)
        }
        Forward::ToClient { client, head, data, padding } => {
            assert_eq!(data.len(), length);
            let bytes = [head.as_slice(), data, &vec![0; padding]].concat();
            assert!(!client.is_stream || bytes.len().is_multiple_of(4));
            match ChannelData::read(&bytes) {
                Some(read) if relay::framing::is_channel_data(&bytes) => {
                    assert_eq!(read.data, data);
                    Way::Client(client, Some(read.number), SocketAddr::from(([0; 4], 0)))
                }
                _ => {
                    let message = Message::read(&bytes).expect("a message");
                    assert_eq!(message.attributes().data, Some(data));
                    let peer = message.attributes().peer.expect("a peer");
                    Way::Client(client, None, message.address(peer).expect("an address"))
                }
            }
        }
        Forward::ToServer { .. } => panic!("it is handed over twice"),
    }
}
