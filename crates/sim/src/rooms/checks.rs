//! What has to be true, at any time and at the end.

use std::collections::BTreeSet;

use services::Rooms as _;
use signal::{Departure, Refusal};
use wire::frames::Generation;

use super::{
    At, CLIENTS, Conn, HISTORY_BYTES, LASTS, Own, Run, SECOND, Said, at, generation, limits, name,
    room_ref,
};

impl Run {
    /// The limit that a joiner is over, if any.
    pub(super) fn refusal(&self, client: usize, replaces: bool) -> Option<Refusal> {
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
    pub(super) fn must_resume(&self, client: usize) -> bool {
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
    pub(super) fn let_go(&self, account: &str) -> u64 {
        self.cuts.get(account).copied().unwrap_or(0) + (self.report.restarts << 32)
    }

    /// What is true at any time.
    pub(super) fn check(&mut self) {
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
    pub(super) fn believe(&mut self) {
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
    pub(super) fn finish(&mut self) {
        for client in 0..CLIENTS.len() {
            self.clients[client].stalls_until = 0;
            self.cut(client);
        }
        let vanished = self.conns.keys().copied().collect::<Vec<_>>();
        for socket in vanished {
            self.end(socket, Departure::Lost);
        }
        self.settle();
        for client in 0..CLIENTS.len() {
            let mut has_rested = false;
            for _ in 0..60 {
                self.come(client);
                self.pass(SECOND / 2);
                self.settle();
                self.check();
                let it = &self.clients[client];
                let conn = it.socket.map(|socket| &self.conns[&socket]);
                let rests = |conn: &Conn| conn.down.is_empty() && conn.up.is_empty();
                has_rested = it.is_welcome && conn.is_some_and(rests);
                if has_rested {
                    break;
                }
            }
            assert!(has_rested, "client {client} never came back");
            self.cut(client);
            self.settle();
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
pub(super) fn is_for(own: &Own, said: &Said) -> bool {
    let is_own = match own.session {
        Some(_) => (own.name, &own.session) == (said.by.name, &said.by.session),
        None => own.socket == said.by.socket,
    };
    said.to.map_or(!is_own, |to| to == own.name)
}
