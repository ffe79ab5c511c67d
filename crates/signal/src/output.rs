//! What the shell is asked to do: send, close, record.

use std::sync::Arc;

use bytes::Bytes;
use wire::frames::Name;
use wire::ws::CloseCode;

use crate::ids::SocketId;
use crate::room::Address;

/// One thing for the shell to do. A socket may be gone by the time its output is taken: ids are
/// never used twice, so the shell drops what it cannot place.
#[derive(Clone, Debug)]
pub enum Output {
    /// Queue what a socket is sent before anything else: who is in its room, which is as long as the
    /// room is full, and what its session missed.
    Begin { socket: SocketId, frames: Vec<Bytes> },
    /// Send the frame, then end the connection. The socket has left its room already.
    Close { socket: SocketId, code: CloseCode, reason: &'static str },
    /// Queue one frame for many sockets.
    Fanout(Fanout),
    /// Queue one frame for one socket.
    Send { socket: SocketId, frame: Bytes },
    /// Add to the statistics.
    Stat(Stat),
}

/// One WebSocket frame and everyone who gets it. The list of sockets is the room's own, shared by
/// every broadcast until somebody joins or leaves, so that a message to a thousand sockets costs
/// two reference counts here.
#[derive(Clone, Debug)]
pub struct Fanout {
    /// Header and payload; every receiver is sent the same bytes.
    pub frame: Bytes,
    pub(crate) sockets: Arc<[SocketId]>,
    pub(crate) except: Option<SocketId>,
}

impl Fanout {
    /// Each receiver once.
    pub fn receivers(&self) -> impl Iterator<Item = SocketId> + '_ {
        self.sockets.iter().copied().filter(|socket| Some(*socket) != self.except)
    }
}

/// One value of a measure: `count` grows by one and `sum` by `value`.
#[derive(Clone, Debug)]
pub struct Stat {
    pub measure: Measure,
    /// Its bucket and path are the entity; the topic is not part of it.
    pub address: Arc<Address>,
    /// Who accumulated it; none for the server itself.
    pub key: Option<Name>,
    pub value: u64,
}

/// What signalling measures of a path.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Measure {
    /// A frame went through the router; the value is its bytes as each receiver gets
    /// it, WebSocket header included.
    Packet,
    /// A socket subscribed; the value is 1.
    Subscription,
}

impl Measure {
    /// The measure's name after `*stats:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Measure::Packet => "router:pkt",
            Measure::Subscription => "router:sub",
        }
    }
}
