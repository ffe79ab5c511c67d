//! The state machine: sockets in, frames out. What a frame does is in `relay`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kv4::Bucket;
use thiserror::Error;
use wire::frames::{
    Cursor, Generation, Incarnation, NAME_BYTES_MAX, Name, Present, ServerFrame, Session, Welcome,
};
use wire::names::{Ident, PATH_BYTES_MAX, Path};
use wire::token::Grants;
use wire::ws::CloseCode;

use crate::history::{History, Missed, Said};
use crate::holdings::{Held, Holdings};
use crate::ids::{IdMap, RoomId, SocketId};
use crate::limits::{Counters, Limits, Stats};
use crate::listing::SocketView;
use crate::output::{Fanout, Measure, Output, Stat};
use crate::room::{Address, Presence, Room, Topic};

/// How much longer than a client's text the frame may be in which it is relayed: `m.f` with a path
/// of which every byte is escaped, members of the frame that the text left out, the cursor, and the
/// WebSocket header.
pub const ENVELOPE_BYTES_MAX: usize = 2 * PATH_BYTES_MAX + NAME_BYTES_MAX + 128;

/// Every room of one neuron.
///
/// A room is (bucket, path, topic); a member of it is a name, with one socket or several: devices
/// of one person, who hear one another. A socket sits in one room for as long as it lives. Nothing
/// is kept of a room or a name once its last socket has left, but for what v4 sockets may come back
/// to: the last messages of a room that had one, for [`Limits::history_lasts`].
///
/// Each call queues a bounded number of outputs: a few for a text, a join or a leave, and a few for
/// each closed socket.
#[derive(Debug)]
pub struct Signal {
    pub(crate) limits: Limits,
    /// Where each socket sits: what every text is looked up by.
    pub(crate) seats: IdMap<SocketId, Seat>,
    /// The rooms, by a number that spares each text the comparison of addresses.
    pub(crate) rooms: IdMap<RoomId, Room>,
    /// The same rooms by address, in an order that listings can show.
    pub(crate) buckets: BTreeMap<Bucket, Tenant>,
    room_id_next: u64,
    /// What incarnations are made of, so that no two of them are the same, of other neurons neither.
    nonce: u64,
    /// Incarnations that were made.
    made: u64,
    sealer: Sealer,
    /// Names in all rooms.
    names: usize,
    /// Rooms whose histories are to be looked at, and when.
    due: BTreeSet<(Instant, RoomId)>,
    /// When the neuron did.
    began: Instant,
    histories: usize,
    /// Bytes of all histories: of their messages, and of the sessions that may come back.
    pub(crate) holdings: Holdings,
    pub(crate) history_messages: usize,
    pub(crate) outputs: VecDeque<Output>,
    pub(crate) counters: Counters,
}

/// Gives the seal of a session: the same for the same room, name and id, and not to be told by who
/// lacks the key. Neurons of one system give the same, so that sessions outlive them.
#[derive(Clone)]
pub struct Sealer(Arc<Seal>);

type Seal = dyn Fn(&Address, &Name, [u64; 3]) -> u64 + Send + Sync;

impl Sealer {
    pub fn new(seal: impl Fn(&Address, &Name, [u64; 3]) -> u64 + Send + Sync + 'static) -> Sealer {
        Sealer(Arc::new(seal))
    }

    fn session(
        &self,
        address: &Address,
        name: &Name,
        incarnation: Incarnation,
        (number, born): (u64, u64),
    ) -> Session {
        let seal = (self.0)(address, name, [incarnation.0, number, born]);
        Session { incarnation, number, born, seal }
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(…)")
    }
}

/// One bucket's share of the neuron. It exists only while it has a room.
#[derive(Debug, Default)]
pub(crate) struct Tenant {
    pub(crate) rooms: BTreeMap<(Path, Topic), RoomId>,
    /// Sockets in all of `rooms`.
    pub(crate) sockets: usize,
    /// Those of `rooms` that nobody is in, and since when.
    deserted: BTreeSet<(Instant, RoomId)>,
}

/// A socket in its room.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) room: RoomId,
    pub(crate) name: Name,
    pub(crate) ident: Ident,
    pub(crate) service: &'static str,
    pub(crate) generation: Generation,
    /// Of v4 only.
    pub(crate) session: Option<Session>,
    /// What it said with an id.
    pub(crate) said: Option<Box<Said>>,
    pub(crate) grants: Grants,
    /// What `grants` were when it joined: rules take away, and give back.
    pub(crate) granted: Grants,
    pub(crate) token: Option<Token>,
    pub(crate) client_ip: IpAddr,
    pub(crate) since_unix_s: u64,
}

/// A socket that wants in. That it may be here (token, rules, path) has been decided.
#[derive(Clone, Debug)]
pub struct Join {
    pub address: Address,
    pub name: Name,
    /// The account, as `_subs` rows show it.
    pub ident: Ident,
    /// What keeps the subscription, as `_subs` rows show it: `xs_signal`.
    pub service: &'static str,
    /// What the socket speaks.
    pub generation: Generation,
    /// [`Grants::SUBSCRIBE`] is needed to join, [`Grants::PUBLISH`] to speak to the room and
    /// [`Grants::SEND`] to one member.
    pub grants: Grants,
    /// What a kick revokes.
    pub token: Option<Token>,
    /// What address rules look at.
    pub client_ip: IpAddr,
    /// When it came, as `_sess` shows it.
    pub since_unix_s: u64,
    /// What v4 clients come with; of others nothing.
    pub coming: Coming,
}

/// What a v4 client says as it comes.
#[derive(Clone, Debug, Default)]
pub struct Coming {
    /// What the others see beside the name from here on, as JSON text: `null` takes away what stands
    /// there, and none leaves it.
    pub data: Option<Arc<str>>,
    /// The session that goes on; a socket that is still open with it is closed.
    pub session: Option<Session>,
    /// What was read before.
    pub cursor: Option<Cursor>,
}

/// The token that a socket came with.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Token {
    pub id: u64,
    /// How long its revocation must be kept; 0 for ever.
    pub expires_unix_s: u64,
}

/// How a socket goes by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Departure {
    /// Its client said goodbye.
    Closed,
    /// It was cut, and may come back.
    Lost,
}

/// Why a socket was not let into a room.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum Refusal {
    #[error("what is to stand beside the name is too long")]
    DataBytes,
    #[error("the token does not permit to subscribe")]
    NotGranted,
    #[error("the account has as many rooms open as it may")]
    RoomsPerBucket,
    #[error("the account has as many sockets open as it may")]
    SocketsPerBucket,
    #[error("the name has as many sockets in the room as it may")]
    SocketsPerName,
    #[error("the room is full")]
    SocketsPerRoom,
    /// A fault of the caller: a socket sits in one room.
    #[error("the socket is in a room already")]
    Seated,
}

impl Refusal {
    /// What to close the socket with: limits pass, so clients may come back; the rest does not.
    pub fn close_code(self) -> CloseCode {
        match self {
            Refusal::DataBytes => CloseCode::POLICY,
            Refusal::NotGranted => CloseCode::UNAUTHORIZED,
            Refusal::RoomsPerBucket
            | Refusal::SocketsPerBucket
            | Refusal::SocketsPerName
            | Refusal::SocketsPerRoom => CloseCode::TRY_AGAIN_LATER,
            Refusal::Seated => CloseCode::INTERNAL,
        }
    }
}

/// What a kick or a ban removed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Kicked {
    /// Names that are gone from their rooms.
    pub names: usize,
    pub sockets: usize,
    /// Tokens to revoke, sorted, each once, so that nobody comes back with the same one.
    pub tokens: Vec<Token>,
}

impl Signal {
    /// No rooms yet. `nonce` is random: incarnations are made of it. `sealer` seals sessions; those of
    /// an earlier neuron are known for [`Limits::history_lasts`] from `now`.
    pub fn new(now: Instant, limits: Limits, nonce: u64, sealer: Sealer) -> Signal {
        Signal {
            limits,
            seats: IdMap::default(),
            rooms: IdMap::default(),
            buckets: BTreeMap::new(),
            room_id_next: 0,
            nonce,
            made: 0,
            sealer,
            names: 0,
            due: BTreeSet::new(),
            began: now,
            histories: 0,
            holdings: Holdings::default(),
            history_messages: 0,
            outputs: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Lets a socket into its room: the room's names go to it before anything else does, then what its
    /// session missed, and its name to everyone else there when it was not present before.
    ///
    /// # Errors
    /// A limit or a missing grant; close the socket with [`Refusal::close_code`]. Nothing changed.
    pub fn join(&mut self, now: Instant, socket: SocketId, join: Join) -> Result<(), Refusal> {
        let known = self.known_session(now, &join);
        let replaced = match known {
            Some(Known::Here(session)) => self.socket_of_session(&join, session),
            _ => None,
        };
        if let Err(refusal) = self.admit(socket, &join, replaced.is_some()) {
            self.count_refusal(refusal);
            return Err(refusal);
        }
        let Join { address, name, generation, coming, .. } = join;
        let was = Was {
            // What was said before somebody came is not for him: a cursor alone opens nothing.
            cursor: coming.cursor.as_ref().filter(|_| known.is_some()),
            is_back: coming.cursor.is_some() || coming.session.is_some(),
            is_known: false,
        };
        let id = self.enrol(&address);
        let is_first = generation == Generation::V4
            && self.rooms.get(&id).is_none_or(|room| room.history.is_none());
        let history = is_first.then(|| Box::new(History::new(self.make_incarnation())));
        let room = self.rooms.entry(id).or_insert_with(|| Room::new(address));
        if history.is_some() {
            self.histories += 1;
            room.history = history;
        }
        let history = room.history.as_mut().filter(|_| generation == Generation::V4);
        let session = history.map(|history| match known {
            Some(Known::Here(session)) => session,
            _ => {
                let begun = history.begin_session(known.is_some());
                self.sealer.session(&room.address, &name, history.incarnation, begun)
            }
        });
        let presence = room.join(&name, socket, generation);
        let has_news = coming.data.is_some_and(|data| room.set_data(&name, shown(data)));
        if let Some(history) = &mut room.history
            && generation == Generation::V4
        {
            history.idle_since = None;
        }
        self.counters.joins += 1;
        self.names += usize::from(presence == Presence::Changed);
        self.outputs.push_back(Output::Stat(Stat {
            measure: Measure::Subscription,
            address: Arc::clone(&room.address),
            key: Some(name.clone()),
            value: 1,
        }));
        self.seats.insert(
            socket,
            Seat {
                room: id,
                name: name.clone(),
                ident: join.ident,
                service: join.service,
                generation,
                session,
                said: None,
                grants: join.grants,
                granted: join.grants,
                token: join.token,
                client_ip: join.client_ip,
                since_unix_s: join.since_unix_s,
            },
        );
        if let Some(replaced) = replaced {
            self.replace(now, replaced);
        }
        let goes_on = matches!(known, Some(Known::Here(_)));
        let was = Was { is_known: self.recall(socket, goes_on), ..was };
        self.welcome(socket, &was);
        self.announce(id, &name, socket, presence, has_news);
        self.arrange(id);
        Ok(())
    }

    /// The socket is gone. One that sits nowhere is no surprise: it may have been kicked.
    pub fn leave(&mut self, now: Instant, socket: SocketId, departure: Departure) {
        if let Some(left) = self.unseat(now, socket, departure) {
            if let Some(owner) = self.rooms.get(&left.seat.room).map(|room| room.owner.clone()) {
                self.let_go(&owner);
            }
            self.counters.leaves += 1;
            self.tell_left(&left);
        }
    }

    /// Removes one member from a room, in any spelling of its name, or everyone, those too who were lost
    /// and may come back. The sockets are closed with [`CloseCode::KICKED`], and whoever stays is told.
    pub fn kick(&mut self, now: Instant, address: &Address, name: Option<&str>) -> Kicked {
        let Some((id, room)) =
            self.room_id(address).and_then(|id| Some((id, self.rooms.get(&id)?)))
        else {
            return Kicked::default();
        };
        let named = match name {
            None => None,
            Some(name) => match room.named(name) {
                Some(name) => Some(name),
                None => return Kicked::default(),
            },
        };
        let sockets: Vec<_> = match &named {
            None => room.members().flat_map(|(_, member)| member.sockets()).collect(),
            Some(name) => {
                room.sockets_of(name.as_str()).iter().map(|(socket, _)| *socket).collect()
            }
        };
        let lost = self.change_history(id, |history| match &named {
            None => history.send_all_away(),
            Some(name) => history.send_away(name, Vec::new()),
        });
        let mut lost = lost.unwrap_or_default();
        if let Some(room) = self.rooms.get(&id) {
            lost.names.retain(|name| room.member(name.as_str()).is_none());
        }
        let mut kicked = self.close(now, &sockets, CloseCode::KICKED, "kicked");
        self.settle(id);
        kicked.names += lost.names.len();
        kicked.tokens.extend(lost.tokens);
        kicked.tokens.sort_unstable();
        kicked.tokens.dedup();
        kicked
    }

    /// Closes every socket of a bucket that `matches`, for rules that change under open sockets.
    pub fn close_where(
        &mut self,
        now: Instant,
        bucket: &Bucket,
        code: CloseCode,
        reason: &'static str,
        mut matches: impl FnMut(&SocketView<'_>) -> bool,
    ) -> Kicked {
        let matching = self.sockets(bucket).filter(|view| matches(view));
        let sockets: Vec<_> = matching.map(|view| view.socket).collect();
        let seats = sockets.iter().filter_map(|socket| self.seats.get(socket));
        let names: BTreeSet<_> = seats.map(|seat| (seat.room, seat.name.clone())).collect();
        let closed = self.close(now, &sockets, code, reason);
        for (room, name) in &names {
            self.send_away(*room, name);
        }
        for room in names.into_iter().map(|(room, _)| room).collect::<BTreeSet<_>>() {
            self.settle(room);
        }
        closed
    }

    /// Lets go of what is too old to come back to. To be called when [`Signal::poll_timeout`] says.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, id)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, id));
            let lasts = self.limits.history_lasts;
            let Some(room) = self.rooms.get_mut(&id) else { continue };
            let Some(history) = &mut room.history else { continue };
            history.due = None;
            let is_over = history.is_over(now, lasts);
            self.change_history(id, |history| {
                history.expire(now, lasts);
                history.expire_lost(now, lasts);
            });
            if is_over {
                self.forget_history(id);
            } else {
                self.arrange(id);
            }
        }
    }

    /// When [`Signal::handle_timeout`] is to be called; `None` while there is nothing to wait for.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The next thing to do. Drain it after every call that takes `&mut self`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// How large everything is, and what has happened since the start.
    pub fn stats(&self) -> Stats {
        let deserted: usize = self.buckets.values().map(|tenant| tenant.deserted.len()).sum();
        Stats {
            buckets: self.buckets.values().filter(|tenant| tenant.sockets > 0).count(),
            rooms: self.rooms.len() - deserted,
            names: self.names,
            sockets: self.seats.len(),
            histories: self.histories,
            history_messages: self.history_messages,
            history_bytes: self.holdings.bytes(),
            counters: self.counters.clone(),
        }
    }

    pub(crate) fn room_id(&self, address: &Address) -> Option<RoomId> {
        let tenant = self.buckets.get(&address.bucket)?;
        // The key is two reference counts, and a lookup by its parts would need a type of its own.
        tenant.rooms.get(&(address.path.clone(), address.topic.clone())).copied()
    }

    /// One that was not made before, but by a chance of one in 2⁶⁴.
    fn make_incarnation(&mut self) -> Incarnation {
        self.made += 1;
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.nonce);
        hasher.write_u64(self.made);
        Incarnation(hasher.finish())
    }

    /// The session that a joiner comes back with, if that is his, and he was not sent away.
    ///
    /// For as long after the start as one that was lost may come back, that may be one of an earlier
    /// neuron: nobody knows any more who was sent away there.
    fn known_session(&self, now: Instant, join: &Join) -> Option<Known> {
        let is_new = now < self.began + self.limits.history_lasts;
        let session = join.coming.session.filter(|_| join.generation == Generation::V4)?;
        let Session { incarnation, number, born, .. } = session;
        let sealed = self.sealer.session(&join.address, &join.name, incarnation, (number, born));
        if sealed != session {
            return None;
        }
        let room = self.room_id(&join.address).and_then(|id| self.rooms.get(&id));
        let history = room.and_then(|room| room.history.as_ref());
        match history {
            Some(history) if history.incarnation == incarnation => {
                history.may_go_on(&join.name, session).then_some(Known::Here(session))
            }
            Some(history) if history.has_sent_away(&join.name) => None,
            _ => is_new.then_some(Known::Before),
        }
    }

    /// The socket that has a session, of the same name in the same room.
    fn socket_of_session(&self, join: &Join, session: Session) -> Option<SocketId> {
        let room = self.rooms.get(&self.room_id(&join.address)?)?;
        let mut sockets = room.sockets_of(join.name.as_str()).iter().map(|(socket, _)| *socket);
        let has_it = |socket: &SocketId| {
            self.seats.get(socket).is_some_and(|seat| seat.session == Some(session))
        };
        sockets.find(has_it)
    }

    fn admit(&mut self, socket: SocketId, join: &Join, replaces: bool) -> Result<(), Refusal> {
        let limits = &self.limits;
        let refuse = |refused: bool, refusal| if refused { Err(refusal) } else { Ok(()) };
        refuse(self.seats.contains_key(&socket), Refusal::Seated)?;
        refuse(!join.grants.contains(Grants::SUBSCRIBE), Refusal::NotGranted)?;
        let data = join.coming.data.as_ref().map_or(0, |data| data.len());
        refuse(data > limits.data_bytes, Refusal::DataBytes)?;
        let replaced = usize::from(replaces);
        let tenant = self.buckets.get(&join.address.bucket);
        let room = self.room_id(&join.address).and_then(|id| self.rooms.get(&id));
        let in_bucket = tenant.map_or(0, |tenant| tenant.sockets) - replaced;
        refuse(in_bucket >= limits.sockets_per_bucket, Refusal::SocketsPerBucket)?;
        let in_room = room.map_or(0, Room::len) - replaced;
        refuse(in_room >= limits.sockets_per_room, Refusal::SocketsPerRoom)?;
        let of_name = room.map_or(0, |room| room.sockets_of(join.name.as_str()).len()) - replaced;
        refuse(of_name >= limits.sockets_per_name, Refusal::SocketsPerName)?;
        let rooms = tenant.map_or(0, |tenant| tenant.rooms.len());
        if room.is_some() || rooms < limits.rooms_per_bucket {
            return Ok(());
        }
        // A room that somebody is in goes before one to which somebody may come back.
        let deserted = tenant.and_then(|tenant| tenant.deserted.first());
        let (_, deserted) = deserted.copied().ok_or(Refusal::RoomsPerBucket)?;
        self.forget_history(deserted);
        Ok(())
    }

    fn count_refusal(&mut self, refusal: Refusal) {
        let counters = &mut self.counters;
        match refusal {
            Refusal::DataBytes => counters.refused_data += 1,
            Refusal::NotGranted => counters.ungranted += 1,
            Refusal::RoomsPerBucket => counters.refused_rooms_per_bucket += 1,
            Refusal::SocketsPerBucket => counters.refused_sockets_per_bucket += 1,
            Refusal::SocketsPerName => counters.refused_sockets_per_name += 1,
            Refusal::SocketsPerRoom => counters.refused_sockets_per_room += 1,
            Refusal::Seated => {}
        }
    }

    /// Counts a socket in its bucket; answers with its room, which may not exist yet.
    fn enrol(&mut self, address: &Address) -> RoomId {
        let tenant = self.buckets.entry(address.bucket.clone()).or_default();
        tenant.sockets += 1;
        let key = (address.path.clone(), address.topic.clone());
        let id = *tenant.rooms.entry(key).or_insert_with(|| {
            self.room_id_next += 1;
            RoomId(self.room_id_next)
        });
        let room = self.rooms.get(&id).filter(|room| room.is_empty());
        if let Some(since) = room.and_then(|room| room.history.as_ref()?.idle_since) {
            tenant.deserted.remove(&(since, id));
        }
        id
    }

    /// Takes over what is known of a session, if one goes on; answers whether what it said is.
    fn recall(&mut self, socket: SocketId, goes_on: bool) -> bool {
        let Some(seat) = self.seats.get(&socket) else { return false };
        let (id, name, session) = (seat.room, seat.name.clone(), seat.session);
        let found = self.change_history(id, |history| {
            history.find(&name);
            let session = session.filter(|_| goes_on)?;
            Some(history.find_session(&name, session))
        });
        let Some(found) = found else { return false };
        let Some(found) = found else { return session.is_some() };
        let Some(seat) = self.seats.get_mut(&socket) else { return false };
        seat.said = found.unwrap_or_else(|| Some(Box::new(Said::forgotten())));
        seat.said.as_ref().is_none_or(|said| said.is_whole())
    }

    /// What a joiner is sent before anything else.
    fn welcome(&mut self, socket: SocketId, was: &Was<'_>) {
        let Some(seat) = self.seats.get(&socket) else { return };
        let Some(room) = self.rooms.get(&seat.room) else { return };
        let (path, name, session) = (&room.address.path, &seat.name, seat.session);
        let (Some(session), Some(history)) = (session, &room.history) else {
            let names: Vec<_> = room.names().collect();
            let peers = ServerFrame::Peers { path, names: &names }.to_ws(seat.generation);
            self.counters.deliveries += 1;
            self.outputs.push_back(Output::Begin { socket, frames: vec![peers] });
            return;
        };
        let missed = match was.cursor {
            Some(cursor) => history.since(cursor, name, session, was.is_known),
            None => Missed { frames: Vec::new(), cursor: history.cursor(), is_whole: false },
        };
        let is_resumed = was.is_back.then_some(missed.is_whole);
        self.counters.resumed += u64::from(is_resumed == Some(true));
        self.counters.unresumed += u64::from(is_resumed == Some(false));
        let present: Vec<Present<'_>> = room.present().collect();
        let refused = seat.said.as_ref().map_or_else(Vec::new, |said| said.refused());
        let welcome = Welcome {
            path,
            topic: room.address.topic.as_str(),
            name,
            session,
            cursor: &missed.cursor,
            present: &present,
            is_resumed,
            last_id: seat.said.as_ref().and_then(|said| said.last_id()),
            refused: &refused,
        };
        let mut frames = vec![ServerFrame::Welcome(&welcome).to_ws(Generation::V4)];
        frames.extend(missed.frames);
        self.counters.deliveries += frames.len() as u64;
        self.outputs.push_back(Output::Begin { socket, frames });
    }

    /// Tells the others of a joiner, or of what stands beside its name when only that is new.
    fn announce(
        &mut self,
        id: RoomId,
        name: &Name,
        socket: SocketId,
        presence: Presence,
        has_news: bool,
    ) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let address = Arc::clone(&room.address);
        let path = &address.path;
        let data = room.member(name.as_str()).and_then(|member| member.data.clone());
        let data = data.as_deref();
        if presence == Presence::Changed {
            let joined = ServerFrame::PeerConnected { path, name, data };
            self.broadcast(id, &joined, Some(socket), &Generation::ALL);
        } else if has_news {
            let news = ServerFrame::Presence { path, name, data };
            self.broadcast(id, &news, Some(socket), &[Generation::V4]);
        }
    }

    /// Takes a socket out of everything, and frees the room when nobody can come back to it.
    fn unseat(&mut self, now: Instant, socket: SocketId, departure: Departure) -> Option<Left> {
        let seat = self.seats.remove(&socket)?;
        let room = self.rooms.get_mut(&seat.room)?;
        let presence = room.leave(&seat.name, socket);
        self.names -= usize::from(presence == Presence::Changed);
        let is_last = room.sockets_of_generation(Generation::V4) == 0;
        if seat.generation == Generation::V4 {
            let forgotten = self.change_history(seat.room, |history| {
                if is_last {
                    history.idle_since = Some(now);
                }
                let mut forgotten = 0;
                if departure == Departure::Lost {
                    let name = &seat.name;
                    if presence == Presence::Changed {
                        forgotten += history.lose(name.clone(), seat.token, now);
                    }
                    if let Some(session) = seat.session {
                        let (token, said) = (seat.token, seat.said.clone());
                        forgotten += history.lose_session(name.clone(), session, token, said, now);
                    }
                }
                forgotten
            });
            self.counters.lost_cut += forgotten.unwrap_or(0) as u64;
        }
        let room = self.rooms.get(&seat.room)?;
        let Address { bucket, path, topic } = &*room.address;
        let tenant = self.buckets.get_mut(bucket)?;
        tenant.sockets -= 1;
        if room.is_empty() {
            match room.history.as_ref().and_then(|history| history.idle_since) {
                Some(since) => {
                    tenant.deserted.insert((since, seat.room));
                }
                None => {
                    tenant.rooms.remove(&(path.clone(), topic.clone()));
                    if tenant.rooms.is_empty() {
                        self.buckets.remove(bucket);
                    }
                    self.rooms.remove(&seat.room);
                }
            }
        }
        self.arrange(seat.room);
        Some(Left { seat, presence })
    }

    /// Closes the socket that a session had before it came back.
    fn replace(&mut self, now: Instant, socket: SocketId) {
        if self.unseat(now, socket, Departure::Lost).is_some() {
            self.counters.replaced += 1;
            let (code, reason) = (CloseCode::REPLACED, "replaced");
            self.outputs.push_back(Output::Close { socket, code, reason });
        }
    }

    /// Tells a room, if anybody is in it still, that a name is not.
    fn tell_left(&mut self, left: &Left) {
        if left.presence == Presence::Same {
            return;
        }
        if let Some(room) = self.rooms.get(&left.seat.room) {
            let address = Arc::clone(&room.address);
            let removed = ServerFrame::PeerRemoved { path: &address.path, name: &left.seat.name };
            self.broadcast(left.seat.room, &removed, None, &Generation::ALL);
        }
    }

    /// Closes all of the sockets before any room is told, so that only those who stay are.
    fn close(
        &mut self,
        now: Instant,
        sockets: &[SocketId],
        code: CloseCode,
        reason: &'static str,
    ) -> Kicked {
        let left: Vec<_> = sockets
            .iter()
            .filter_map(|socket| self.unseat(now, *socket, Departure::Closed))
            .collect();
        let closes = sockets.iter().map(|socket| Output::Close { socket: *socket, code, reason });
        self.outputs.extend(closes);
        self.counters.closes += left.len() as u64;
        for left in &left {
            self.tell_left(left);
        }
        let tokens: BTreeSet<_> = left.iter().filter_map(|left| left.seat.token).collect();
        Kicked {
            names: left.iter().filter(|left| left.presence == Presence::Changed).count(),
            sockets: left.len(),
            tokens: tokens.into_iter().collect(),
        }
    }

    /// Sees to it that a name some of whose sockets were closed does not hear what is said from here on,
    /// should it come back, but by those that stayed.
    fn send_away(&mut self, id: RoomId, name: &Name) {
        let Some(room) = self.rooms.get(&id) else { return };
        let staying = room.sockets_of(name.as_str()).iter();
        let sessions = staying.filter_map(|(socket, _)| self.seats.get(socket)?.session);
        let staying = sessions.map(|session| session.number).collect();
        self.change_history(id, |history| history.send_away(name, staying));
    }

    /// Changes a room's history, if it has one, and what is counted of all.
    pub(crate) fn change_history<T>(
        &mut self,
        id: RoomId,
        change: impl FnOnce(&mut History) -> T,
    ) -> Option<T> {
        let room = self.rooms.get_mut(&id)?;
        let history = room.history.as_mut()?;
        let (messages, held) = (history.len(), history.held());
        let changed = change(history);
        self.history_messages = self.history_messages + history.len() - messages;
        self.holdings.change(&room.owner, id, held, history.held());
        Some(changed)
    }

    /// Sees to it that a room's history does not grow by all who were ever sent away.
    fn settle(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        if !room.history.as_ref().is_some_and(|history| history.is_unsettled()) {
            return;
        }
        let sockets = room.members().flat_map(|(_, member)| member.sockets());
        let sessions = sockets.filter_map(|socket| self.seats.get(&socket)?.session);
        let open = sessions.map(|session| session.number).collect();
        if let Some(history) = &mut room.history {
            history.settle(open);
        }
    }

    /// Hands a frame to everyone in a room but one, as each of some generations reads it.
    pub(crate) fn broadcast(
        &mut self,
        id: RoomId,
        frame: &ServerFrame<'_>,
        except: Option<SocketId>,
        generations: &[Generation],
    ) {
        for generation in generations.iter().copied() {
            if self.receivers(id, generation, except) > 0 {
                self.fan_out(id, frame.to_ws(generation), except, generation);
            }
        }
    }

    /// How many sockets of a generation are in a room, but for one.
    pub(crate) fn receivers(
        &self,
        id: RoomId,
        generation: Generation,
        except: Option<SocketId>,
    ) -> usize {
        let Some(room) = self.rooms.get(&id) else { return 0 };
        let speaks = |socket| self.seats.get(&socket).is_some_and(|s| s.generation == generation);
        room.sockets_of_generation(generation) - usize::from(except.is_some_and(speaks))
    }

    /// Hands out a frame that has been written for a generation.
    pub(crate) fn fan_out(
        &mut self,
        id: RoomId,
        frame: Bytes,
        except: Option<SocketId>,
        generation: Generation,
    ) {
        let receivers = self.receivers(id, generation, except);
        if receivers > 0
            && let Some(room) = self.rooms.get_mut(&id)
        {
            self.counters.deliveries += receivers as u64;
            let sockets = room.everyone(generation);
            self.outputs.push_back(Output::Fanout(Fanout { frame, sockets, except }));
        }
    }

    /// Sees to it that a room's history is looked at when something of it is too old.
    pub(crate) fn arrange(&mut self, id: RoomId) {
        let lasts = self.limits.history_lasts;
        let Some(history) = self.rooms.get_mut(&id).and_then(|room| room.history.as_mut()) else {
            return;
        };
        if history.due.is_none()
            && let Some(at) = history.expires(lasts)
        {
            history.due = Some(at);
            self.due.insert((at, id));
        }
    }

    /// Lets go of what might have been come back to, and of the room if nobody is in it.
    fn forget_history(&mut self, id: RoomId) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let Some(history) = room.history.take() else { return };
        let (is_empty, address) = (room.is_empty(), Arc::clone(&room.address));
        self.holdings.change(&room.owner, id, history.held(), Held::default());
        self.histories -= 1;
        self.history_messages -= history.len();
        if let Some(due) = history.due {
            self.due.remove(&(due, id));
        }
        if !is_empty {
            return;
        }
        self.rooms.remove(&id);
        let Address { bucket, path, topic } = &*address;
        if let Some(tenant) = self.buckets.get_mut(bucket) {
            tenant.rooms.remove(&(path.clone(), topic.clone()));
            if let Some(since) = history.idle_since {
                tenant.deserted.remove(&(since, id));
            }
            if tenant.rooms.is_empty() {
                self.buckets.remove(bucket);
            }
        }
    }
}

/// A session that a joiner comes back with.
#[derive(Clone, Copy)]
enum Known {
    /// It goes on.
    Here(Session),
    /// It was begun in an earlier life, and another follows it that hears all that is known.
    Before,
}

/// What is to stand beside a name, of what a client says, as JSON text.
pub(crate) fn shown(data: Arc<str>) -> Option<Arc<str>> {
    Some(data).filter(|data| **data != *"null")
}

/// Where a joiner says that he was.
struct Was<'a> {
    /// What he read, as far as it is his to say.
    cursor: Option<&'a Cursor>,
    is_back: bool,
    /// Whether it is known what he said that he may have had no answer to.
    is_known: bool,
}

/// A socket that has just been taken out of its room.
struct Left {
    seat: Seat,
    presence: Presence,
}
