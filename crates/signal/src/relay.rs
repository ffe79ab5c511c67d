//! What a frame of a client does.

use std::sync::Arc;
use std::time::Instant;

use kv4::Bucket;
use wire::envelope::{self, Fault};
use wire::errors::Code;
use wire::frames::{
    BadFrame, ClientFrame, Cursor, FrameError, Generation, Id, Name, ServerFrame, UserFrame,
};
use wire::token::Grants;

use crate::history::{History, Message};
use crate::holdings::Heaviest;
use crate::ids::{RoomId, SocketId};
use crate::output::{Fanout, Measure, Output, Stat};
use crate::room::Address;
use crate::signal::{Signal, shown};

/// Who says something to a room.
struct Sender<'a> {
    room: RoomId,
    /// The server itself when there is none.
    name: Option<Name>,
    /// The socket that does not hear it.
    socket: Option<SocketId>,
    session: Option<wire::frames::Session>,
    id: Option<Id<'a>>,
}

/// What came of a message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Relayed {
    /// Sockets that it was handed to.
    pub receivers: usize,
    /// Where it stands in the room, if anybody can come back to it.
    pub cursor: Option<Cursor>,
}

/// Why a message went nowhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unheard {
    /// Nobody of that name is here, or was lost a moment ago.
    NoPeer,
    /// There is no such room: nobody is in it.
    NoRoom,
    /// The message has more than [`crate::Limits::message_bytes`].
    TooLong,
}

impl Signal {
    /// Takes one text message. Text of a socket that sits nowhere, such as one that was kicked and
    /// is not closed yet, is dropped. What is wrong with a frame is told to its sender.
    pub fn handle_text(&mut self, now: Instant, socket: SocketId, text: &str) {
        if let Some(seat) = self.seats.get(&socket) {
            let frame = ClientFrame::parse(seat.generation, text);
            self.handle_frame(now, socket, frame);
        }
    }

    /// The same for a text that has been read as the socket's generation writes.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        socket: SocketId,
        frame: Result<ClientFrame<'_>, BadFrame<'_>>,
    ) {
        if !self.seats.contains_key(&socket) {
            return;
        }
        match frame {
            Ok(ClientFrame::User(frame)) => self.say(now, socket, &frame),
            Ok(ClientFrame::Presence { id, data }) => self.set_presence(socket, id, data),
            Ok(ClientFrame::Ping { ts }) => {
                self.counters.heartbeats += 1;
                self.send(socket, &ServerFrame::Pong { ts });
            }
            Ok(ClientFrame::TextPing | ClientFrame::Heartbeat) => self.counters.heartbeats += 1,
            Ok(ClientFrame::Mixer) => self.counters.mixer_frames += 1,
            Ok(ClientFrame::Hello(_)) => {
                self.counters.bad_frames += 1;
                let fault = Fault::with(Code::BadRequest, "`hello` comes first, and once");
                self.refuse(socket, None, &fault);
            }
            Ok(ClientFrame::Ask { id, .. }) => {
                let fault = Fault::with(Code::NotAllowed, "there is no data here");
                self.refuse(socket, Some(id), &fault);
            }
            Err(BadFrame { id, error: FrameError::SystemOp }) => {
                self.counters.system_ops += 1;
                let error = FrameError::SystemOp;
                self.refuse_said(now, socket, id, &Fault::with(error.code(), error.to_string()));
            }
            Err(BadFrame { id, error }) => {
                self.counters.bad_frames += 1;
                self.refuse_said(now, socket, id, &Fault::with(error.code(), error.to_string()));
            }
        }
    }

    /// Says something to a room from outside it: as a name, which need not be present, or as the
    /// server.
    ///
    /// # Errors
    /// [`Unheard`] when nobody is there to hear it, or it is longer than a member's may be.
    pub fn publish(
        &mut self,
        now: Instant,
        address: &Address,
        from: Option<Name>,
        frame: &UserFrame<'_>,
    ) -> Result<Relayed, Unheard> {
        let texts = [frame.to.as_deref(), frame.op.as_deref(), Some(frame.payload)];
        let bytes: usize = texts.iter().flatten().map(|text| text.len()).sum();
        if bytes > self.limits.message_bytes {
            self.counters.refused_messages += 1;
            return Err(Unheard::TooLong);
        }
        let room = self.room_id(address).ok_or(Unheard::NoRoom)?;
        let sender = Sender { room, name: from, socket: None, session: None, id: None };
        self.relay(now, &sender, frame)
    }

    /// Whether what a socket said before under this id is known, and if so answers it again.
    fn is_repeated(&mut self, socket: SocketId, id: Option<Id<'_>>) -> bool {
        let Some((id, seat)) = id.zip(self.seats.get(&socket)) else { return false };
        let history = self.rooms.get(&seat.room).and_then(|room| room.history.as_ref());
        let Some((history, session)) = history.zip(seat.session) else { return false };
        if !history.has_published(&seat.name, session, id.as_str()) {
            return false;
        }
        // Not where it stood, which is behind what has been handed out since.
        let cursor = history.cursor();
        self.counters.duplicates += 1;
        self.reply(socket, id, Some(&cursor), &envelope::ok("null"));
        true
    }

    fn say(&mut self, now: Instant, socket: SocketId, frame: &UserFrame<'_>) {
        let Some(seat) = self.seats.get(&socket) else { return };
        let needed = if frame.to.is_some() { Grants::SEND } else { Grants::PUBLISH };
        if !seat.grants.contains(needed) {
            self.counters.ungranted += 1;
            let fault = unpermitted(needed);
            return self.refuse_said(now, socket, frame.id, &fault);
        }
        let sender = Sender {
            room: seat.room,
            name: Some(seat.name.clone()),
            socket: Some(socket),
            session: seat.session,
            id: frame.id,
        };
        let tells = seat.generation == Generation::V4;
        if self.is_repeated(socket, frame.id) {
            return;
        }
        match (self.relay(now, &sender, frame), frame.id) {
            (Ok(relayed), Some(id)) => {
                if let Some(seat) = self.seats.get_mut(&socket) {
                    seat.said.get_or_insert_default().hear(id.as_str());
                }
                let envelope = envelope::ok("null");
                self.reply(socket, id, relayed.cursor.as_ref(), &envelope);
            }
            (Ok(_), None) => {}
            (Err(_), id) => {
                self.counters.unknown_peers += 1;
                if tells {
                    let fault = Fault::with(Code::NotFound, "nobody of that name is here");
                    self.refuse_said(now, socket, id, &fault);
                }
            }
        }
    }

    /// Hands a frame to the room or to one member. The sending socket does not hear its own
    /// broadcast, other sockets of its name do; a direct frame goes to every socket of the name, the
    /// sender's own included when it writes to itself.
    fn relay(
        &mut self,
        now: Instant,
        sender: &Sender<'_>,
        frame: &UserFrame<'_>,
    ) -> Result<Relayed, Unheard> {
        let room = self.rooms.get(&sender.room).ok_or(Unheard::NoRoom)?;
        let to = match frame.to.as_deref() {
            Some(to) => Some(room.resolve(to).ok_or(Unheard::NoPeer)?.clone()),
            None => None,
        };
        let address = Arc::clone(&room.address);
        let cursor = room.history.as_ref().map(|history| history.cursor_next());
        let (path, from) = (&address.path, sender.name.as_ref());
        let written = |generation| {
            let cursor = cursor.as_ref().filter(|_| generation == Generation::V4);
            ServerFrame::User { path, from, frame, cursor }.to_ws(generation)
        };
        let sockets: Vec<_> = match &to {
            Some(to) => room.sockets_of(to.as_str()).to_vec(),
            None => Vec::new(),
        };
        let mut bytes = 0;
        let mut receivers = 0;
        for generation in Generation::ALL {
            let (except, count) = match &to {
                Some(_) => (None, sockets.iter().filter(|(_, of)| *of == generation).count()),
                None => (sender.socket, self.receivers(sender.room, generation, sender.socket)),
            };
            let is_kept = generation == Generation::V4 && cursor.is_some();
            if count == 0 && !is_kept {
                continue;
            }
            let frame = written(generation);
            (bytes, receivers) = (frame.len(), receivers + count);
            if is_kept {
                let from = sender.name.clone().zip(sender.session);
                let id = sender.id.map(|id| id.as_str().into());
                let (frame, to) = (frame.clone(), to.clone());
                self.keep(now, sender.room, Message { frame, at: now, from, id, to });
            }
            match &to {
                None => self.fan_out(sender.room, frame, except, generation),
                Some(_) => self.hand_out(frame, &sockets, generation),
            }
        }
        if bytes == 0 {
            bytes = written(Generation::V2).len();
        }
        self.counters.packets += 1;
        self.outputs.push_back(Output::Stat(Stat {
            measure: Measure::Packet,
            address: Arc::clone(&address),
            key: sender.name.clone(),
            value: bytes as u64,
        }));
        Ok(Relayed { receivers, cursor })
    }

    /// Hands a frame to those of some sockets that speak a generation.
    fn hand_out(
        &mut self,
        frame: bytes::Bytes,
        sockets: &[(SocketId, Generation)],
        generation: Generation,
    ) {
        let of_it = sockets.iter().filter(|(_, of)| *of == generation).map(|(socket, _)| *socket);
        let sockets: Vec<_> = of_it.collect();
        self.counters.deliveries += sockets.len() as u64;
        match sockets[..] {
            [] => {}
            [socket] => self.outputs.push_back(Output::Send { socket, frame }),
            _ => {
                let fanout = Fanout { frame, sockets: Arc::from(sockets), except: None };
                self.outputs.push_back(Output::Fanout(fanout));
            }
        }
    }

    /// Keeps a message for those who were lost.
    fn keep(&mut self, now: Instant, id: RoomId, message: Message) {
        let (lasts, messages_max) = (self.limits.history_lasts, self.limits.history_messages);
        let cut = self.change_history(id, |history| {
            history.expire(now, lasts);
            history.push(message);
            let mut cut = 0;
            while history.len() > messages_max {
                history.pop();
                cut += 1;
            }
            cut
        });
        self.counters.history_cut += cut.unwrap_or(0);
        let Some(owner) = self.rooms.get(&id).map(|room| room.owner.clone()) else { return };
        self.let_go(&owner);
        self.arrange(id);
    }

    /// Lets go of the oldest messages of whoever holds most, and of his sessions when he has no more
    /// messages, for the bounds of bytes.
    pub(crate) fn let_go(&mut self, owner: &Bucket) {
        loop {
            let heaviest = match &self.holdings {
                holdings if holdings.bytes_of(owner) > self.limits.history_bytes_per_account => {
                    holdings.heaviest_of(owner)
                }
                holdings if holdings.bytes() > self.limits.history_bytes => holdings.heaviest(),
                _ => return,
            };
            let (is_gone, counted) = match heaviest {
                None => return,
                Some(Heaviest::Messages(id)) => {
                    (self.change_history(id, History::pop), &mut self.counters.history_cut)
                }
                Some(Heaviest::Sessions(id)) => {
                    (self.change_history(id, History::forget_session), &mut self.counters.lost_cut)
                }
            };
            if is_gone != Some(true) {
                return;
            }
            *counted += 1;
        }
    }

    fn set_presence(&mut self, socket: SocketId, id: Option<Id<'_>>, data: &str) {
        let Some(seat) = self.seats.get(&socket) else { return };
        // What everybody sees of a member is said to everybody.
        if !seat.grants.contains(Grants::PUBLISH) {
            self.counters.ungranted += 1;
            return self.refuse(socket, id, &unpermitted(Grants::PUBLISH));
        }
        if data.len() > self.limits.data_bytes {
            self.counters.refused_data += 1;
            let why = format!("`p` may have {} bytes", self.limits.data_bytes);
            return self.refuse(socket, id, &Fault::with(Code::TooLarge, why));
        }
        let (room_id, name) = (seat.room, seat.name.clone());
        let data = shown(data.into());
        let Some(room) = self.rooms.get_mut(&room_id) else { return };
        if room.set_data(&name, data.clone()) {
            let address = Arc::clone(&room.address);
            let data = data.as_deref();
            let news = ServerFrame::Presence { path: &address.path, name: &name, data };
            self.broadcast(room_id, &news, Some(socket), &[Generation::V4]);
        }
        if let Some(id) = id {
            self.reply(socket, id, None, &envelope::ok("null"));
        }
    }

    fn send(&mut self, socket: SocketId, frame: &ServerFrame<'_>) {
        let Some(seat) = self.seats.get(&socket) else { return };
        self.counters.deliveries += 1;
        let frame = frame.to_ws(seat.generation);
        self.outputs.push_back(Output::Send { socket, frame });
    }

    fn reply(&mut self, socket: SocketId, id: Id<'_>, cursor: Option<&Cursor>, envelope: &str) {
        self.send(socket, &ServerFrame::Reply { id, cursor, ver: None, envelope });
    }

    /// The same of what it said to others, which is known when it comes back without the answer.
    fn refuse_said(&mut self, now: Instant, socket: SocketId, id: Option<Id<'_>>, fault: &Fault) {
        if let Some((id, seat)) = id.zip(self.seats.get_mut(&socket)) {
            let lasts = self.limits.history_lasts;
            seat.said.get_or_insert_default().refuse(now, lasts, id.as_str(), fault.code);
        }
        self.refuse(socket, id, fault);
    }

    /// Tells a socket what was wrong with its frame: in its own answer, if it has an id.
    fn refuse(&mut self, socket: SocketId, id: Option<Id<'_>>, fault: &Fault) {
        match id {
            Some(id) => self.reply(socket, id, None, &envelope::error(fault)),
            None => self.send(socket, &ServerFrame::Error { fault }),
        }
    }
}

/// What one is told who may not speak.
fn unpermitted(needed: Grants) -> Fault {
    let names: Vec<_> = needed.names().collect();
    let names = names.join("`, `");
    let why = format!("the token, or a `send` rule of the path, does not permit to `{names}`");
    Fault::with(Code::NotAllowed, why)
}
