//! Signalling frames of every generation of clients (`spec/xirsys.md` §1.7, §1.8;
//! `docs/reference/signalling.md`).
//!
//! [`ClientFrame::parse`] says what a client's text is, without a copy of it; [`ServerFrame`] is
//! everything a server says, written as each generation reads it. A payload stays the JSON text that
//! it came as. Who may say what to whom is decided in `signal`; `ws` carries the text.

mod client;
mod cursor;
mod name;
mod server;

pub use client::{BadFrame, ClientFrame, FrameError, Hello, ID_BYTES_MAX, Id, UserFrame, Verb};
pub use cursor::{Cursor, CursorError, Incarnation, Session};
pub use name::{BadName, NAME_BYTES_MAX, Name, percent_encode};
pub use server::{Present, ServerFrame, Welcome, admitted, watch_ended, watched};

/// Who the server's own frames are from, below the room's path.
pub const SYSTEM_NAME: &str = "__sys__";

/// Who is present, to a joiner.
const PEERS: &str = "peers";
/// A name came, to everyone else.
const PEER_CONNECTED: &str = "peer_connected";
/// A name left, to everyone else.
const PEER_REMOVED: &str = "peer_removed";

/// What a socket speaks. Each generation hears of the others' members, and what they say, in its own
/// words.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Generation {
    /// xRTC: `{"eventName":…}` in, `{"type":…}` out.
    V1,
    /// The clients of v2 and v3: `{"t":"u","m":{…},"p":…}` both ways.
    V2,
    /// The same with what is beyond the seed: a first frame `hello`, cursors, acknowledgements,
    /// requests.
    V4,
}

impl Generation {
    pub const ALL: [Generation; 3] = [Generation::V1, Generation::V2, Generation::V4];
}

/// Whether only the server may send this operation.
pub fn is_system_op(op: &str) -> bool {
    matches!(op, PEERS | PEER_CONNECTED | PEER_REMOVED)
}
