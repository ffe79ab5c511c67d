//! The state machine: sockets in, frames out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use kv4::Bucket;
use thiserror::Error;
use wire::envelope::Fault;
use wire::errors::Code;
use wire::frames::{ClientFrame, FrameError, NAME_BYTES_MAX, Name, ServerFrame, UserFrame};
use wire::names::{Ident, PATH_BYTES_MAX, Path};
use wire::token::Grants;
use wire::ws::CloseCode;

use crate::ids::{IdMap, RoomId, SocketId};
use crate::limits::{Counters, Limits, Stats};
use crate::listing::SocketView;
use crate::output::{Fanout, Measure, Output, Stat};
use crate::room::{Address, Presence, Room, Topic};

/// How much longer than a client's text the frame may be in which it is relayed: `m.f` with a path
/// of which every byte is escaped, members of the frame that the text left out, and the WebSocket
/// header.
pub const ENVELOPE_BYTES_MAX: usize = 2 * PATH_BYTES_MAX + NAME_BYTES_MAX + 64;

/// Bytes of what is told of a text that is not a frame: the reader's complaint quotes the text.
const WHY_BYTES_MAX: usize = 200;

/// Every room of one neuron.
///
/// A room is (bucket, path, topic); a member of it is a name, with one socket or several: devices
/// of one person, who hear one another. A socket sits in one room for as long as it lives. Nothing
/// is kept of a room or a name once its last socket has left.
///
/// Each call queues a bounded number of outputs: a few for a text, a join or a leave, and one or
/// two for each closed socket.
#[derive(Debug)]
pub struct Signal {
    limits: Limits,
    /// Where each socket sits: what every text is looked up by.
    pub(crate) seats: IdMap<SocketId, Seat>,
    /// The rooms, by a number that spares each text the comparison of addresses.
    pub(crate) rooms: IdMap<RoomId, Room>,
    /// The same rooms by address, in an order that listings can show.
    pub(crate) buckets: BTreeMap<Bucket, Tenant>,
    room_id_next: u64,
    /// Names in all rooms.
    names: usize,
    outputs: VecDeque<Output>,
    counters: Counters,
}

/// One bucket's share of the neuron. It exists only while it has a room.
#[derive(Debug, Default)]
pub(crate) struct Tenant {
    pub(crate) rooms: BTreeMap<(Path, Topic), RoomId>,
    /// Sockets in all of `rooms`.
    sockets: usize,
}

/// A socket in its room.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) room: RoomId,
    pub(crate) name: Name,
    pub(crate) ident: Ident,
    pub(crate) service: &'static str,
    pub(crate) grants: Grants,
    /// What `grants` were when it joined: rules take away, and give back.
    pub(crate) granted: Grants,
    pub(crate) token: Option<Token>,
    pub(crate) client_ip: IpAddr,
    pub(crate) since_unix_s: u64,
}

/// A socket that wants in. That it may be here (token, address rules, path) has been decided.
#[derive(Clone, Debug)]
pub struct Join {
    pub address: Address,
    pub name: Name,
    /// The account, as `_subs` rows show it.
    pub ident: Ident,
    /// What the socket speaks, as `_subs` rows show it: `xs_signal`.
    pub service: &'static str,
    /// [`Grants::SUBSCRIBE`] is needed to join, [`Grants::PUBLISH`] to speak to the room and
    /// [`Grants::SEND`] to one member.
    pub grants: Grants,
    /// What a kick revokes.
    pub token: Option<Token>,
    /// What address rules look at.
    pub client_ip: IpAddr,
    /// When it came, as `_sess` shows it.
    pub since_unix_s: u64,
}

/// The token that a socket came with.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Token {
    pub id: u64,
    /// How long its revocation must be kept; 0 for ever.
    pub expires_unix_s: u64,
}

/// Why a socket was not let into a room.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum Refusal {
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
    /// No rooms yet.
    pub fn new(limits: Limits) -> Signal {
        Signal {
            limits,
            seats: IdMap::default(),
            rooms: IdMap::default(),
            buckets: BTreeMap::new(),
            room_id_next: 0,
            names: 0,
            outputs: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Lets a socket into its room: the room's names go to it before anything else does, and its
    /// name to everyone else there when it was not present before.
    ///
    /// # Errors
    /// A limit or a missing grant; close the socket with [`Refusal::close_code`]. Nothing changed.
    pub fn join(&mut self, socket: SocketId, join: Join) -> Result<(), Refusal> {
        if let Err(refusal) = self.admit(socket, &join) {
            self.count_refusal(refusal);
            return Err(refusal);
        }
        let id = self.enrol(&join.address);
        let seat = Seat {
            room: id,
            name: join.name,
            ident: join.ident,
            service: join.service,
            grants: join.grants,
            granted: join.grants,
            token: join.token,
            client_ip: join.client_ip,
            since_unix_s: join.since_unix_s,
        };
        let room = self.rooms.entry(id).or_insert_with(|| Room::new(join.address));
        let presence = room.join(&seat.name, socket);
        let path = &room.address.path;
        let names: Vec<_> = room.names().collect();
        let peers = ServerFrame::Peers { path, names: &names }.to_ws();
        self.counters.joins += 1;
        self.counters.deliveries += 1;
        self.outputs.push_back(Output::Send { socket, frame: peers });
        self.outputs.push_back(Output::Stat(Stat {
            measure: Measure::Subscription,
            address: Arc::clone(&room.address),
            key: seat.name.clone(),
            value: 1,
        }));
        if presence == Presence::Changed {
            self.names += 1;
            let connected = ServerFrame::PeerConnected { path, name: &seat.name }.to_ws();
            broadcast(room, connected, Some(socket), &mut self.outputs, &mut self.counters);
        }
        self.seats.insert(socket, seat);
        Ok(())
    }

    /// Takes one text message. Text of a socket that sits nowhere, such as one that was kicked and
    /// is not closed yet, is dropped. What is wrong with a frame is told to its sender.
    pub fn handle_text(&mut self, socket: SocketId, text: &str) {
        let Some(seat) = self.seats.get(&socket) else {
            return;
        };
        match ClientFrame::parse(text) {
            Ok(ClientFrame::User(frame)) => {
                let needed = if frame.to.is_some() { Grants::SEND } else { Grants::PUBLISH };
                if !seat.grants.contains(needed) {
                    self.counters.ungranted += 1;
                    return self.send_error(socket, &Fault::new(Code::NotAllowed));
                }
                let (id, from) = (seat.room, seat.name.clone());
                self.relay(id, &from, socket, &frame);
            }
            Ok(ClientFrame::Ping { ts }) => {
                self.counters.heartbeats += 1;
                self.send(socket, ServerFrame::Pong { ts }.to_ws());
            }
            Ok(ClientFrame::TextPing | ClientFrame::Heartbeat) => self.counters.heartbeats += 1,
            Ok(ClientFrame::Mixer) => self.counters.mixer_frames += 1,
            Err(FrameError::SystemOp) => {
                self.counters.system_ops += 1;
                self.send_error(socket, &Fault::new(FrameError::SystemOp.code()));
            }
            Err(error) => {
                self.counters.bad_frames += 1;
                let mut why = error.to_string();
                why.truncate(why.floor_char_boundary(WHY_BYTES_MAX));
                self.send_error(socket, &Fault::with(error.code(), why));
            }
        }
    }

    /// The socket is gone. One that sits nowhere is no surprise: it may have been kicked.
    pub fn leave(&mut self, socket: SocketId) {
        if let Some(left) = self.unseat(socket) {
            self.counters.leaves += 1;
            self.tell_left(&left);
        }
    }

    /// Removes one member from a room, in any spelling of its name, or everyone. The sockets are
    /// closed with [`CloseCode::KICKED`], and whoever stays is told.
    pub fn kick(&mut self, address: &Address, name: Option<&str>) -> Kicked {
        let Some(room) = self.room_id(address).and_then(|id| self.rooms.get_mut(&id)) else {
            return Kicked::default();
        };
        let sockets = match name {
            None => room.everyone().to_vec(),
            Some(name) => room
                .resolve(name)
                .map_or(Vec::new(), |name| room.sockets_of(name.as_str()).to_vec()),
        };
        self.close(&sockets, CloseCode::KICKED, "kicked")
    }

    /// Closes every socket of a bucket that `matches`, for rules that change under open sockets.
    pub fn close_where(
        &mut self,
        bucket: &Bucket,
        code: CloseCode,
        reason: &'static str,
        mut matches: impl FnMut(&SocketView<'_>) -> bool,
    ) -> Kicked {
        let matching = self.sockets(bucket).filter(|view| matches(view));
        let sockets: Vec<_> = matching.map(|view| view.socket).collect();
        self.close(&sockets, code, reason)
    }

    /// The next thing to do. Drain it after every call that takes `&mut self`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// How large everything is, and what has happened since the start.
    pub fn stats(&self) -> Stats {
        Stats {
            buckets: self.buckets.len(),
            rooms: self.rooms.len(),
            names: self.names,
            sockets: self.seats.len(),
            counters: self.counters.clone(),
        }
    }

    pub(crate) fn room_id(&self, address: &Address) -> Option<RoomId> {
        let tenant = self.buckets.get(&address.bucket)?;
        // The key is two reference counts, and a lookup by its parts would need a type of its own.
        tenant.rooms.get(&(address.path.clone(), address.topic.clone())).copied()
    }

    fn admit(&self, socket: SocketId, join: &Join) -> Result<(), Refusal> {
        let limits = &self.limits;
        let refuse = |refused: bool, refusal| if refused { Err(refusal) } else { Ok(()) };
        refuse(self.seats.contains_key(&socket), Refusal::Seated)?;
        refuse(!join.grants.contains(Grants::SUBSCRIBE), Refusal::NotGranted)?;
        let tenant = self.buckets.get(&join.address.bucket);
        let room = self.room_id(&join.address).and_then(|id| self.rooms.get(&id));
        let rooms = tenant.map_or(0, |tenant| tenant.rooms.len());
        refuse(room.is_none() && rooms >= limits.rooms_per_bucket, Refusal::RoomsPerBucket)?;
        let in_bucket = tenant.map_or(0, |tenant| tenant.sockets);
        refuse(in_bucket >= limits.sockets_per_bucket, Refusal::SocketsPerBucket)?;
        let in_room = room.map_or(0, Room::len);
        refuse(in_room >= limits.sockets_per_room, Refusal::SocketsPerRoom)?;
        let of_name = room.map_or(0, |room| room.sockets_of(join.name.as_str()).len());
        refuse(of_name >= limits.sockets_per_name, Refusal::SocketsPerName)
    }

    fn count_refusal(&mut self, refusal: Refusal) {
        let counters = &mut self.counters;
        match refusal {
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
        *tenant.rooms.entry(key).or_insert_with(|| {
            self.room_id_next += 1;
            RoomId(self.room_id_next)
        })
    }

    /// Takes a socket out of everything, and frees the room when it was the last in it.
    fn unseat(&mut self, socket: SocketId) -> Option<Left> {
        let seat = self.seats.remove(&socket)?;
        let room = self.rooms.get_mut(&seat.room)?;
        let presence = room.leave(&seat.name, socket);
        self.names -= usize::from(presence == Presence::Changed);
        let Address { bucket, path, topic } = &*room.address;
        let tenant = self.buckets.get_mut(bucket)?;
        tenant.sockets -= 1;
        if room.is_empty() {
            tenant.rooms.remove(&(path.clone(), topic.clone()));
            if tenant.rooms.is_empty() {
                self.buckets.remove(bucket);
            }
            self.rooms.remove(&seat.room);
        }
        Some(Left { seat, presence })
    }

    /// Tells a room, if anybody is in it still, that a name is not.
    fn tell_left(&mut self, left: &Left) {
        if left.presence == Presence::Same {
            return;
        }
        if let Some(room) = self.rooms.get_mut(&left.seat.room) {
            let (path, name) = (&room.address.path, &left.seat.name);
            let removed = ServerFrame::PeerRemoved { path, name }.to_ws();
            broadcast(room, removed, None, &mut self.outputs, &mut self.counters);
        }
    }

    /// Closes all of the sockets before any room is told, so that only those who stay are.
    fn close(&mut self, sockets: &[SocketId], code: CloseCode, reason: &'static str) -> Kicked {
        let left: Vec<_> = sockets.iter().filter_map(|socket| self.unseat(*socket)).collect();
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

    /// Hands a frame to the room or to one member. The sending socket does not hear its own
    /// broadcast, other sockets of its name do; a direct frame goes to every socket of the name, the
    /// sender's own included when it writes to itself.
    fn relay(&mut self, id: RoomId, from: &Name, sender: SocketId, frame: &UserFrame<'_>) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let to = match frame.to.as_deref().map(|to| room.resolve(to)) {
            Some(None) => {
                self.counters.unknown_peers += 1;
                return;
            }
            Some(Some(name)) => Some(name),
            None => None,
        };
        let path = &room.address.path;
        let bytes = ServerFrame::User { path, from: Some(from), frame }.to_ws();
        self.counters.packets += 1;
        self.outputs.push_back(Output::Stat(Stat {
            measure: Measure::Packet,
            address: Arc::clone(&room.address),
            key: from.clone(),
            value: bytes.len() as u64,
        }));
        match to.map(|name| room.sockets_of(name.as_str())) {
            None => broadcast(room, bytes, Some(sender), &mut self.outputs, &mut self.counters),
            Some([socket]) => {
                let socket = *socket;
                self.send(socket, bytes);
            }
            Some(sockets) => {
                self.counters.deliveries += sockets.len() as u64;
                let fanout = Fanout { frame: bytes, sockets: Arc::from(sockets), except: None };
                self.outputs.push_back(Output::Fanout(fanout));
            }
        }
    }

    fn send(&mut self, socket: SocketId, frame: Bytes) {
        self.counters.deliveries += 1;
        self.outputs.push_back(Output::Send { socket, frame });
    }

    fn send_error(&mut self, socket: SocketId, fault: &Fault) {
        self.send(socket, ServerFrame::Error { fault }.to_ws());
    }
}

/// A socket that has just been taken out of its room.
struct Left {
    seat: Seat,
    presence: Presence,
}

/// Hands a frame to everyone in the room but one.
fn broadcast(
    room: &mut Room,
    frame: Bytes,
    except: Option<SocketId>,
    outputs: &mut VecDeque<Output>,
    counters: &mut Counters,
) {
    let receivers = room.len() - usize::from(except.is_some());
    if receivers > 0 {
        counters.deliveries += receivers as u64;
        outputs.push_back(Output::Fanout(Fanout { frame, sockets: room.everyone(), except }));
    }
}
