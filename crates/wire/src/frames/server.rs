//! What servers say, as each generation reads it.

use std::fmt::Write as _;

use bytes::Bytes;

use super::{Cursor, Generation, Id, Name, PEER_CONNECTED, PEER_REMOVED, PEERS, SYSTEM_NAME};
use super::{Session, UserFrame};
use crate::envelope::{self, Fault};
use crate::errors::Code;
use crate::json::push_string;
use crate::names::{Ident, Path};
use crate::ws;

/// One text that a server sends.
#[derive(Clone, Copy, Debug)]
pub enum ServerFrame<'a> {
    /// Why the receiver's last frame went nowhere. What it carries is the HTTP API's envelope; `m` is
    /// there for clients that look into it unasked.
    Error {
        fault: &'a Fault,
    },
    PeerConnected {
        path: &'a Path,
        name: &'a Name,
        data: Option<&'a str>,
    },
    PeerRemoved {
        path: &'a Path,
        name: &'a Name,
    },
    /// The first frame to a joiner of v1 and v2. The names are written in the order given.
    Peers {
        path: &'a Path,
        names: &'a [&'a Name],
    },
    /// `ts` is JSON text.
    Pong {
        ts: Option<&'a str>,
    },
    /// What stands beside a name has changed (v4).
    Presence {
        path: &'a Path,
        name: &'a Name,
        data: Option<&'a str>,
    },
    /// The answer to a frame that had an id (v4): the HTTP API's envelope.
    Reply {
        id: Id<'a>,
        /// Where the sender's message stands in the room.
        cursor: Option<&'a Cursor>,
        /// The version of the entry that was read or written.
        ver: Option<&'a str>,
        envelope: &'a str,
    },
    /// A user's frame with its true sender, or the server's own when there is none.
    User {
        path: &'a Path,
        from: Option<&'a Name>,
        frame: &'a UserFrame<'a>,
        /// Where it stands in the room (v4).
        cursor: Option<&'a Cursor>,
    },
    /// The first frame to a v4 client.
    Welcome(&'a Welcome<'a>),
}

/// What a v4 client is told first: what it may take from here on.
#[derive(Clone, Copy, Debug)]
pub struct Welcome<'a> {
    pub path: &'a Path,
    pub topic: &'a str,
    pub name: &'a Name,
    pub session: Session,
    /// From where what follows goes on: what was read before counts no more.
    pub cursor: &'a Cursor,
    /// Who is present, in the order given.
    pub present: &'a [Present<'a>],
    /// Whether everything since the cursor that the client came with follows; `None` when it came with
    /// none.
    pub is_resumed: Option<bool>,
    /// The id of the last frame of a user that was heard of the session, as JSON text: those before it
    /// were too, but for those that were refused, and those after it were not.
    pub last_id: Option<&'a str>,
    /// Ids of the last frames of the session that were refused, as JSON text, and why.
    pub refused: &'a [(&'a str, Code)],
}

/// One who is present.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    pub name: &'a Name,
    /// JSON text.
    pub data: Option<&'a str>,
}

impl ServerFrame<'_> {
    /// Appends the frame as JSON. What a generation has no frame for is written as v4 reads it.
    pub fn write(&self, generation: Generation, out: &mut String) {
        match generation {
            Generation::V1 => self.write_v1(out),
            Generation::V2 => self.write_v2(out),
            Generation::V4 => self.write_v4(out),
        }
    }

    /// The frame as a WebSocket text frame, in one buffer.
    pub fn to_ws(&self, generation: Generation) -> Bytes {
        ws::text_frame_with(self.bytes_hint(), |out| self.write(generation, out))
    }

    fn write_v1(&self, out: &mut String) {
        match *self {
            ServerFrame::Error { fault } => {
                out.push_str(r#"{"type":"error","message":"#);
                out.push_str(&envelope::error(fault));
                out.push('}');
            }
            ServerFrame::PeerConnected { name, .. } => push_event(out, PEER_CONNECTED, name),
            ServerFrame::PeerRemoved { name, .. } => push_event(out, PEER_REMOVED, name),
            ServerFrame::Peers { names, .. } => {
                let _ = write!(out, r#"{{"type":"{PEERS}","message":{{"users":"#);
                push_names(out, names);
                out.push_str("}}");
            }
            ServerFrame::User { from, frame, .. } => {
                out.push_str(r#"{"type":"#);
                push_string(out, frame.op.as_deref().unwrap_or(""));
                let from = from.map_or(SYSTEM_NAME, Name::as_str);
                let _ = write!(out, r#","userid":"{from}","message":{{"targetUserId":"#);
                match &frame.to {
                    Some(to) => push_string(out, to),
                    None => out.push_str("null"),
                }
                out.push_str(r#","data":"#);
                out.push_str(frame.payload);
                out.push_str("}}");
            }
            ServerFrame::Pong { .. }
            | ServerFrame::Presence { .. }
            | ServerFrame::Reply { .. }
            | ServerFrame::Welcome(_) => self.write_v4(out),
        }
    }

    fn write_v2(&self, out: &mut String) {
        match *self {
            ServerFrame::PeerConnected { path, name, .. } => {
                push_presence(out, path, name, PEER_CONNECTED);
            }
            ServerFrame::PeerRemoved { path, name } => push_presence(out, path, name, PEER_REMOVED),
            ServerFrame::Peers { path, names } => {
                push_from(out, "u", path, SYSTEM_NAME);
                let _ = write!(out, r#","o":"{PEERS}"}},"p":{{"users":"#);
                push_names(out, names);
                out.push_str("}}");
            }
            ServerFrame::User { path, from, frame, .. } => push_user(out, path, from, frame, None),
            ServerFrame::Error { .. }
            | ServerFrame::Pong { .. }
            | ServerFrame::Presence { .. }
            | ServerFrame::Reply { .. }
            | ServerFrame::Welcome(_) => self.write_v4(out),
        }
    }

    fn write_v4(&self, out: &mut String) {
        match *self {
            ServerFrame::Error { fault } => {
                out.push_str(r#"{"t":"e","m":{},"p":"#);
                out.push_str(&envelope::error(fault));
                out.push('}');
            }
            ServerFrame::PeerConnected { path, name, data } => {
                push_told(out, "joined", path, name, data);
            }
            ServerFrame::PeerRemoved { path, name } => push_told(out, "left", path, name, None),
            ServerFrame::Peers { .. } => self.write_v2(out),
            ServerFrame::Pong { ts } => {
                out.push_str(r#"{"t":"pong","ts":"#);
                out.push_str(ts.unwrap_or("null"));
                out.push('}');
            }
            ServerFrame::Presence { path, name, data } => {
                push_told(out, "presence", path, name, data);
            }
            ServerFrame::Reply { id, cursor, ver, envelope } => {
                out.push_str(r#"{"t":"r","m":{"id":"#);
                out.push_str(id.as_str());
                push_cursor(out, cursor);
                if let Some(ver) = ver {
                    let _ = write!(out, r#","ver":"{ver}""#);
                }
                out.push_str(r#"},"p":"#);
                out.push_str(envelope);
                out.push('}');
            }
            ServerFrame::User { path, from, frame, cursor } => {
                push_user(out, path, from, frame, cursor);
            }
            ServerFrame::Welcome(welcome) => welcome.write(out),
        }
    }

    /// About how long the JSON will be, so that it is written without growing.
    fn bytes_hint(&self) -> usize {
        let at = |path: &Path, name: &Name| path.as_str().len() + name.as_str().len();
        let (from, rest) = match self {
            ServerFrame::Error { .. } => (0, 192),
            ServerFrame::PeerConnected { path, name, data }
            | ServerFrame::Presence { path, name, data } => {
                (at(path, name), 24 + data.map_or(0, str::len))
            }
            ServerFrame::PeerRemoved { path, name } => (at(path, name), 24),
            ServerFrame::Peers { path, names } => {
                (path.as_str().len(), names.iter().map(|name| name.as_str().len() + 3).sum())
            }
            ServerFrame::Pong { ts } => (0, ts.map_or(0, str::len)),
            ServerFrame::Reply { id, envelope, .. } => (id.as_str().len(), envelope.len() + 48),
            ServerFrame::User { path, from, frame, cursor } => (
                path.as_str().len() + from.map_or(SYSTEM_NAME.len(), |name| name.as_str().len()),
                frame.bytes_hint() + cursor.map_or(0, |_| 48),
            ),
            ServerFrame::Welcome(welcome) => {
                let present = welcome.present.iter();
                let users = present.map(|member| {
                    2 * member.name.as_str().len() + member.data.map_or(4, |data| data.len() + 5)
                });
                (
                    2 * at(welcome.path, welcome.name) + welcome.topic.len(),
                    160 + users.sum::<usize>(),
                )
            }
        };
        48 + from + rest
    }
}

impl Welcome<'_> {
    fn write(&self, out: &mut String) {
        push_from(out, "welcome", self.path, SYSTEM_NAME);
        push_cursor(out, Some(self.cursor));
        out.push_str(r#"},"p":{"path":"#);
        push_string(out, self.path.as_str());
        out.push_str(r#","topic":"#);
        push_string(out, self.topic);
        let _ = write!(out, r#","name":"{}","session":"{}""#, self.name, self.session);
        if let Some(is_resumed) = self.is_resumed {
            let _ = write!(out, r#","resumed":{is_resumed}"#);
        }
        if let Some(last_id) = self.last_id {
            let _ = write!(out, r#","last":{last_id}"#);
        }
        let mut before = r#","refused":["#;
        for (id, code) in self.refused {
            let _ = write!(out, r#"{before}[{id},"{}"]"#, code.as_str());
            before = ",";
        }
        if !self.refused.is_empty() {
            out.push(']');
        }
        out.push_str(r#","users":["#);
        for (at, member) in self.present.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let _ = write!(out, r#"{comma}"{}""#, member.name);
        }
        out.push_str(r#"],"data":{"#);
        let mut comma = "";
        for member in self.present {
            if let Some(data) = member.data {
                let _ = write!(out, r#"{comma}"{}":{data}"#, member.name);
                comma = ",";
            }
        }
        out.push_str("}}}");
    }
}

impl UserFrame<'_> {
    fn bytes_hint(&self) -> usize {
        let text = |text: &Option<std::borrow::Cow<'_, str>>| {
            text.as_ref().map_or(0, |text| text.len() + 8)
        };
        let others: usize =
            self.others.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        text(&self.to) + text(&self.op) + others + self.payload.len()
    }
}

/// What a watch is told (v4): `p` is JSON text, the same for every watcher of the path. The service is
/// named unless it is `data`.
pub fn watched(path: &Path, service: &str, payload: &str) -> Bytes {
    ws::text_frame_with(64 + path.as_str().len() + payload.len(), |out| {
        out.push_str(r#"{"t":"w","m":{"path":"#);
        push_string(out, path.as_str());
        if service != "data" {
            out.push_str(r#","service":"#);
            push_string(out, service);
        }
        out.push_str(r#"},"p":"#);
        out.push_str(payload);
        out.push('}');
    })
}

/// That a watch is over (v4): `id` is that with which it was asked for, and `envelope` says why.
pub fn watch_ended(id: Id<'_>, path: &Path, envelope: &str) -> Bytes {
    ws::text_frame_with(64 + path.as_str().len() + envelope.len(), |out| {
        let _ = write!(out, r#"{{"t":"end","m":{{"watch":{},"path":"#, id.as_str());
        push_string(out, path.as_str());
        let _ = write!(out, r#"}},"p":{envelope}}}"#);
    })
}

/// The first frame to a v4 client that is in no room: whose data it asks for.
pub fn admitted(ident: &Ident, user: Option<&str>) -> Bytes {
    ws::text_frame_with(96, |out| {
        out.push_str(r#"{"t":"welcome","m":{},"p":{"ident":"#);
        push_string(out, ident.as_str());
        if let Some(user) = user {
            out.push_str(r#","name":"#);
            push_string(out, user);
        }
        out.push_str("}}");
    })
}

/// A name that came or went, as v1 is told it.
fn push_event(out: &mut String, event: &str, name: &Name) {
    let _ = write!(out, r#"{{"type":"{event}","message":"{name}"}}"#);
}

/// `p` is an object because some clients read `p.users` of every frame from the server.
fn push_presence(out: &mut String, path: &Path, name: &Name, op: &str) {
    push_from(out, "u", path, name.as_str());
    let _ = write!(out, r#","o":"{op}"}},"p":{{}}}}"#);
}

/// The same as v4 is told it.
fn push_told(out: &mut String, kind: &str, path: &Path, name: &Name, data: Option<&str>) {
    push_from(out, kind, path, name.as_str());
    let _ = write!(out, r#"}},"p":{}}}"#, data.unwrap_or("null"));
}

/// Begins a frame up to the value of `m.f`: `/<path>/<name>`, below the root `/<name>`. `name` needs
/// no escaping.
fn push_from(out: &mut String, kind: &str, path: &Path, name: &str) {
    out.push_str(r#"{"t":""#);
    out.push_str(kind);
    out.push_str(r#"","m":{"f":"#);
    push_string(out, path.as_str());
    out.pop();
    if !path.is_root() {
        out.push('/');
    }
    out.push_str(name);
    out.push('"');
}

fn push_cursor(out: &mut String, cursor: Option<&Cursor>) {
    if let Some(cursor) = cursor {
        let _ = write!(out, r#","c":"{cursor}""#);
    }
}

fn push_names(out: &mut String, names: &[&Name]) {
    out.push('[');
    for (at, name) in names.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let _ = write!(out, r#"{comma}"{name}""#);
    }
    out.push(']');
}

fn push_user(
    out: &mut String,
    path: &Path,
    from: Option<&Name>,
    frame: &UserFrame<'_>,
    cursor: Option<&Cursor>,
) {
    push_from(out, "u", path, from.map_or(SYSTEM_NAME, Name::as_str));
    for (member, text) in [(r#","o":"#, &frame.op), (r#","t":"#, &frame.to)] {
        if let Some(text) = text {
            out.push_str(member);
            push_string(out, text);
        }
    }
    for (name, value) in &frame.others {
        // A client of another generation may have a member of its own by that name.
        if cursor.is_some() && name == "c" {
            continue;
        }
        out.push(',');
        push_string(out, name);
        out.push(':');
        out.push_str(value);
    }
    push_cursor(out, cursor);
    out.push_str(r#"},"p":"#);
    out.push_str(frame.payload);
    out.push('}');
}
