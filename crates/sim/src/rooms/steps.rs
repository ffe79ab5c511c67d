//! What happens: clients come, speak and go, links fail, rules change, the neuron starts anew. Beside each
//! stands what the model makes of it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ::neuron::sockets::{Joiner, NotJoined};
use serde_json::Value;
use services::{Closing, Rooms as _};
use signal::{Coming, Departure, SocketId};
use wire::frames::Generation;
use wire::token::Grants;

use super::table::{Queue, Tabled};
use super::{
    At, CLIENTS, Client, Conn, Down, IDLE, LASTS, Room, Run, SECOND, Word, at, bucket, generation,
    limits, name, room_ref, switchboard, verified,
};

impl Run {
    pub(super) fn step(&mut self) {
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

    pub(super) fn advance(&mut self) {
        let seconds = 1 + self.random.below(25);
        self.pass(seconds * SECOND);
    }

    pub(super) fn pass(&mut self, micros: u64) {
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

    pub(super) fn come(&mut self, client: usize) {
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
        } else if sitting.is_empty() {
            model.lost.values_mut().for_each(|(_, is_sure)| *is_sure = false);
        }
        model.lost.remove(name(client));
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

    pub(super) fn say(&mut self, client: usize) {
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

    pub(super) fn show(&mut self, client: usize) {
        let it = &self.clients[client];
        let (Some(socket), true) = (it.socket, it.is_welcome) else { return };
        if generation(client) == Generation::V4 {
            let number = self.random.below(4);
            let data = if number == 0 { Value::Null } else { Value::from(number) };
            self.send(socket, Word::Data(data));
        }
    }

    pub(super) fn send(&mut self, socket: SocketId, word: Word) {
        let delay = self.random.below(SECOND / 2);
        let now = self.now();
        let Some(conn) = self.conns.get_mut(&socket) else { return };
        let after = conn.up.back().map_or(0, |(at, _)| *at);
        conn.up.push_back(((now + delay).max(after), word));
    }

    /// Both ends find the link cut. Some of what was on its way up had come.
    pub(super) fn cut(&mut self, client: usize) {
        let Some(socket) = self.clients[client].socket else { return };
        self.vanish(client);
        while self.hear_one(socket) {}
        self.end(socket, Departure::Lost);
    }

    /// Only the client finds it cut.
    pub(super) fn vanish(&mut self, client: usize) {
        let Some(socket) = self.clients[client].socket else { return };
        let conn = self.conns.get_mut(&socket).expect("held by its client");
        conn.is_held = false;
        conn.down.clear();
        let come = self.random.place(conn.up.len() + 1);
        conn.up.truncate(come);
        self.let_loose(client);
    }

    /// Only the neuron does; the client hears of it after what was on its way.
    pub(super) fn cut_unknown(&mut self, client: usize) {
        let Some(socket) = self.clients[client].socket else { return };
        let now = self.now();
        self.end(socket, Departure::Lost);
        if let Some(conn) = self.conns.get_mut(&socket) {
            conn.down.push_back((now, Down::Cut));
        }
    }

    /// The client's end is gone; it keeps what it needs to come back.
    pub(super) fn let_loose(&mut self, client: usize) {
        let it = &mut self.clients[client];
        (it.socket, it.is_welcome) = (None, false);
        it.names.clear();
        it.data.clear();
        if generation(client) != Generation::V4 {
            *it = Client::default();
        }
    }

    /// The client says goodbye for good, once what it said has come.
    pub(super) fn leave(&mut self, client: usize) {
        let Some(socket) = self.clients[client].socket else { return };
        while self.hear_one(socket) {}
        self.end(socket, Departure::Closed);
        if let Some(conn) = self.conns.get_mut(&socket) {
            conn.is_held = false;
        }
        self.clients[client] = Client::default();
    }

    /// The neuron's end of a socket is gone.
    pub(super) fn end(&mut self, socket: SocketId, departure: Departure) {
        let Some(conn) = self.conns.get_mut(&socket) else { return };
        conn.is_open = false;
        conn.up.clear();
        let (client, place) = (conn.client, conn.place.take());
        if let Some(place) = place {
            self.board.leave(place, socket, departure);
            self.left(client, departure);
            if departure == Departure::Lost && generation(client) == Generation::V4 {
                let now = self.now();
                let room = self.rooms.entry(at(client)).or_default();
                room.lost_tokens.insert(socket.0, (name(client), now));
            }
        }
        self.table.tabled().queues.remove(&socket);
        self.table.tabled().pushed.clear();
    }

    /// Notes that a socket of a client sits in its room no more.
    pub(super) fn left(&mut self, client: usize, departure: Departure) {
        let (now, is_last) = (self.now(), !self.present(at(client)).contains(name(client)));
        let room = self.rooms.entry(at(client)).or_default();
        if is_last {
            room.data.remove(name(client));
            if departure == Departure::Lost && generation(client) == Generation::V4 {
                room.lost.insert(name(client), (now, true));
            }
        }
    }

    pub(super) fn kick(&mut self, client: usize) {
        let (room, whole) = (at(client), self.random.one_in(4));
        let who = (!whole).then(|| name(client));
        let (now, sitting) = (self.now(), self.seated(room));
        // One that nobody is in may have made way for another.
        let is_there = !sitting.is_empty();
        let kicked: Vec<_> =
            sitting.into_iter().filter(|(_, it)| who.is_none_or(|who| name(*it) == who)).collect();
        let names: BTreeSet<_> = kicked.iter().map(|(_, it)| name(*it)).collect();
        let lost = self.rooms.get(&room).into_iter().flat_map(|model| &model.lost);
        let lost = lost.filter(|(name, _)| who.is_none_or(|who| who == **name));
        let (mut sure, mut unsure) = (0, 0);
        for (_, (since, is_sure)) in lost {
            match is_there && *is_sure && since + LASTS > now {
                true => sure += 1,
                false => unsure += 1,
            }
        }
        // One may come back by a session alone: another socket of the name closed after it was lost.
        let model = self.rooms.entry(room).or_default();
        let by_session = model.lost_tokens.values().filter(|(name, since)| {
            let is_known = names.contains(name) || model.lost.contains_key(name);
            who.is_none_or(|who| who == *name) && !is_known && since + LASTS > now
        });
        unsure += by_session.map(|(name, _)| *name).collect::<BTreeSet<_>>().len();
        let done = self.board.kick(&room_ref(room), who);
        let of_lost = done.members - names.len();
        assert!((sure..=sure + unsure).contains(&of_lost), "{of_lost} of {sure} and {unsure}");
        let revoked: BTreeSet<u64> = done.tokens.iter().map(|(id, _)| *id).collect();
        let of_kicked: BTreeSet<u64> = kicked.iter().map(|(socket, _)| socket.0).collect();
        assert!(of_kicked.is_subset(&revoked), "{of_kicked:?} of {revoked:?}");
        // And those with which a session was lost that may come back: of nobody else.
        let model = self.rooms.entry(room).or_default();
        let mut names = BTreeSet::new();
        for token in revoked.difference(&of_kicked) {
            let (name, since) = model.lost_tokens.remove(token).expect("it was lost");
            assert!(who.is_none_or(|who| who == name) && since + LASTS > now, "{name} {since}");
            names.insert(name);
        }
        assert!(names.len() >= sure, "{names:?} of {sure}");
        self.sent_away(room, |it| who.is_none_or(|who| who == it));
        self.closed(&kicked);
    }

    /// A rule that keeps a name, or everybody, out of a path.
    pub(super) fn ban(&mut self, client: usize) {
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
    pub(super) fn sent_away(&mut self, room: At, is_one: impl Fn(&str) -> bool) {
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

    pub(super) fn closed(&mut self, sockets: &[(SocketId, usize)]) {
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
    pub(super) fn rule(&mut self, client: usize) {
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
    pub(super) fn restart(&mut self) {
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
            *room = Room { said: std::mem::take(&mut room.said), ..Room::default() };
        }
    }
}
