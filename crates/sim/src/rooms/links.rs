//! What is on its way: words to the neuron, frames to clients, and what both make of them.

use std::collections::BTreeMap;

use serde_json::Value;
use signal::{Departure, SocketId};
use wire::frames::{ClientFrame, Generation};
use wire::token::Grants;

use super::checks::is_for;
use super::{
    CLIENTS, Client, Conn, Down, LASTS, MESSAGE_BYTES, Own, QUEUE_BYTES, Run, SECOND, Said, WINDOW,
    Word, at, generation, name,
};

impl Run {
    /// Lets come what has come: words to the neuron, frames to their clients.
    pub(super) fn settle(&mut self) {
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
    pub(super) fn pump(&mut self, socket: SocketId) {
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
    pub(super) fn hear_one(&mut self, socket: SocketId) -> bool {
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
    pub(super) fn is_said(&self, client: usize, number: u64) -> bool {
        let room = self.rooms.get(&at(client));
        room.is_some_and(|room| room.said.iter().any(|said| said.number == number))
    }

    /// Who is to hear a message.
    pub(super) fn expect(&self, from: SocketId, to: Option<&'static str>) -> Vec<SocketId> {
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
    pub(super) fn must_take(
        &self,
        client: usize,
        grants: Grants,
        to: Option<&'static str>,
    ) -> Option<bool> {
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
    pub(super) fn read_one(&mut self, client: usize, now: u64) -> bool {
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

    pub(super) fn understand(&mut self, client: usize, frame: &Value) {
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

    pub(super) fn welcomed(&mut self, client: usize, frame: &Value) {
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
        let refused = payload["refused"].as_array().into_iter().flatten();
        for number in refused.filter_map(|refused| refused[0].as_u64()) {
            it.unacknowledged.retain(|(known, ..)| *known != number);
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
    pub(super) fn heard(&mut self, client: usize, number: u64) {
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
