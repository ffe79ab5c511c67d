//! Signalling frames of v3 and v2 (`spec/xirsys.md` §1.7): `{"t":"u","m":{"f","o","t"},"p":any}`.
//!
//! [`ClientFrame::parse`] says what a client's text is, without a copy of it; [`ServerFrame`] is
//! everything a server says. A payload stays the JSON text that it came as. Who may say what to
//! whom is decided in `signal`; `ws` carries the text.

use std::borrow::Cow;
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::envelope::{self, Fault};
use crate::errors::Code;
use crate::json::push_string;
use crate::names::Path;
use crate::token::IDENTITY_BYTES_MAX;
use crate::ws;

/// Longest name of a member as it stands on the wire: the longest identity, each byte escaped.
pub const NAME_BYTES_MAX: usize = 3 * IDENTITY_BYTES_MAX;
/// Who the server's own frames are from, below the room's path.
pub const SYSTEM_NAME: &str = "__sys__";

/// Who is present, to a joiner.
const PEERS: &str = "peers";
/// A name came, to everyone else.
const PEER_CONNECTED: &str = "peer_connected";
/// A name left, to everyone else.
const PEER_REMOVED: &str = "peer_removed";

/// Whether only the server may send this operation.
pub fn is_system_op(op: &str) -> bool {
    matches!(op, PEERS | PEER_CONNECTED | PEER_REMOVED)
}

/// A member's name as it stands in frames and listings. Every client takes what follows the last
/// `/` of `m.f`, so bytes other than `[A-Za-z0-9._~-]` are percent-encoded; distinct identities
/// give distinct names. A name needs no escaping in JSON.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name(Arc<str>);

/// Why an identity is not a [`Name`].
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error(
    "the name is empty, `{SYSTEM_NAME}`, or longer than {NAME_BYTES_MAX} bytes percent-encoded"
)]
pub struct BadName;

impl Name {
    /// The name of an identity, such as the `k` of a token.
    ///
    /// # Errors
    /// An empty identity, one that encodes to more than [`NAME_BYTES_MAX`] bytes, and the
    /// server's own name.
    pub fn encode(identity: &str) -> Result<Name, BadName> {
        let name = percent_encode(identity);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name == SYSTEM_NAME {
            return Err(BadName);
        }
        Ok(Name(Arc::from(name)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The spelling of `identity` in which a [`Name`] keeps it.
pub fn percent_encode(identity: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
    if identity.bytes().all(is_plain) {
        return Cow::Borrowed(identity);
    }
    let mut encoded = String::with_capacity(identity.len() * 3);
    for byte in identity.bytes() {
        if is_plain(byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    Cow::Owned(encoded)
}

/// One text that a client sent.
#[derive(Debug)]
pub enum ClientFrame<'a> {
    /// The bare word `ping`, which a v3 page sends 240 times a second and wants no answer to.
    TextPing,
    /// `{}`, a v1 page's sign of life.
    Heartbeat,
    /// `{"t":"ping","ts":…}`; answer with [`ServerFrame::Pong`].
    Ping {
        ts: Option<&'a str>,
    },
    /// `{"t":"tm",…}`: asks for a media mixer of the vendor's own TURN servers. Ignored.
    Mixer,
    User(UserFrame<'a>),
}

/// What a user says to a room or to one member of it.
#[derive(Debug)]
pub struct UserFrame<'a> {
    /// `m.t`; `None` (left out, `null` or empty) is everyone.
    pub to: Option<Cow<'a, str>>,
    /// `m.o`, free text.
    pub op: Option<Cow<'a, str>>,
    /// Members of `m` other than `f`, `o` and `t`, relayed as they came: applications put their
    /// own there. `m.f` is not kept, since what clients write in it is garbage.
    pub others: Vec<(Cow<'a, str>, &'a str)>,
    /// `p` as JSON text; `null` when it was left out.
    pub payload: &'a str,
}

/// Why a text is not a frame that is relayed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum FrameError {
    #[error("not a frame: {0}")]
    Syntax(String),
    #[error("`t` is none of `u`, `ping`, `tm`")]
    UnknownKind,
    #[error("a frame of kind `u` needs an object `m`")]
    MetaMissing,
    #[error("only the server says who is present")]
    SystemOp,
}

impl FrameError {
    /// The word of the error vocabulary that answers this.
    pub fn code(&self) -> Code {
        match self {
            FrameError::SystemOp => Code::NotAllowed,
            FrameError::Syntax(_) | FrameError::UnknownKind | FrameError::MetaMissing => {
                Code::BadRequest
            }
        }
    }
}

impl<'a> ClientFrame<'a> {
    /// Reads one text; the common frame costs no allocation. Of equal members the last counts, as
    /// it does in a browser. The payload is checked to be JSON but not how deep it nests: nothing
    /// here descends into it.
    ///
    /// # Errors
    /// Text that is not one of the frames, and operations that only the server may send.
    pub fn parse(text: &'a str) -> Result<ClientFrame<'a>, FrameError> {
        if text == "ping" {
            return Ok(ClientFrame::TextPing);
        }
        let envelope: Envelope<'a> =
            serde_json::from_str(text).map_err(|error| FrameError::Syntax(error.to_string()))?;
        match envelope.kind.as_deref() {
            Some("u") => UserFrame::new(envelope).map(ClientFrame::User),
            Some("ping") => Ok(ClientFrame::Ping { ts: envelope.ts }),
            Some("tm") => Ok(ClientFrame::Mixer),
            Some(_) => Err(FrameError::UnknownKind),
            None if envelope.is_empty => Ok(ClientFrame::Heartbeat),
            None => Err(FrameError::UnknownKind),
        }
    }
}

impl<'a> UserFrame<'a> {
    fn new(envelope: Envelope<'a>) -> Result<UserFrame<'a>, FrameError> {
        let meta = envelope.meta.ok_or(FrameError::MetaMissing)?;
        if meta.op.as_deref().is_some_and(is_system_op) {
            return Err(FrameError::SystemOp);
        }
        Ok(UserFrame {
            to: meta.to.filter(|to| !to.is_empty()),
            op: meta.op,
            others: meta.others,
            payload: envelope.payload.unwrap_or("null"),
        })
    }
}

/// One text that a server sends.
#[derive(Clone, Copy, Debug)]
pub enum ServerFrame<'a> {
    /// Why the receiver's last frame went nowhere. `p` is the HTTP API's envelope, and `m` is there
    /// for clients that look into it unasked.
    Error {
        fault: &'a Fault,
    },
    PeerConnected {
        path: &'a Path,
        name: &'a Name,
    },
    PeerRemoved {
        path: &'a Path,
        name: &'a Name,
    },
    /// The first frame to a joiner. The names are written in the order given.
    Peers {
        path: &'a Path,
        names: &'a [&'a Name],
    },
    /// `ts` is JSON text.
    Pong {
        ts: Option<&'a str>,
    },
    /// A user's frame with its true sender, or the server's own when there is none.
    User {
        path: &'a Path,
        from: Option<&'a Name>,
        frame: &'a UserFrame<'a>,
    },
}

impl ServerFrame<'_> {
    /// Appends the frame as JSON.
    pub fn write(&self, out: &mut String) {
        match *self {
            ServerFrame::Error { fault } => {
                out.push_str(r#"{"t":"e","m":{},"p":"#);
                out.push_str(&envelope::error(fault));
                out.push('}');
            }
            ServerFrame::PeerConnected { path, name } => {
                push_presence(out, path, name, PEER_CONNECTED);
            }
            ServerFrame::PeerRemoved { path, name } => push_presence(out, path, name, PEER_REMOVED),
            ServerFrame::Peers { path, names } => {
                push_from(out, path, SYSTEM_NAME);
                let _ = write!(out, r#","o":"{PEERS}"}},"p":{{"users":["#);
                for (at, name) in names.iter().enumerate() {
                    let comma = if at == 0 { "" } else { "," };
                    let _ = write!(out, r#"{comma}"{name}""#);
                }
                out.push_str("]}}");
            }
            ServerFrame::Pong { ts } => {
                out.push_str(r#"{"t":"pong","ts":"#);
                out.push_str(ts.unwrap_or("null"));
                out.push('}');
            }
            ServerFrame::User { path, from, frame } => {
                push_from(out, path, from.map_or(SYSTEM_NAME, Name::as_str));
                push_user(out, frame);
            }
        }
    }

    /// The frame as a WebSocket text frame, in one buffer.
    pub fn to_ws(&self) -> Bytes {
        ws::text_frame_with(self.bytes_hint(), |out| self.write(out))
    }

    /// About how long the JSON will be, so that it is written without growing.
    fn bytes_hint(&self) -> usize {
        let (from, rest) = match self {
            ServerFrame::Error { .. } => (0, 192),
            ServerFrame::PeerConnected { path, name } | ServerFrame::PeerRemoved { path, name } => {
                (path.as_str().len() + name.as_str().len(), 24)
            }
            ServerFrame::Peers { path, names } => {
                (path.as_str().len(), names.iter().map(|name| name.as_str().len() + 3).sum())
            }
            ServerFrame::Pong { ts } => (0, ts.map_or(0, str::len)),
            ServerFrame::User { path, from, frame } => (
                path.as_str().len() + from.map_or(SYSTEM_NAME.len(), |name| name.as_str().len()),
                frame.bytes_hint(),
            ),
        };
        48 + from + rest
    }
}

impl UserFrame<'_> {
    fn bytes_hint(&self) -> usize {
        let text = |text: &Option<Cow<'_, str>>| text.as_ref().map_or(0, |text| text.len() + 8);
        let others: usize =
            self.others.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        text(&self.to) + text(&self.op) + others + self.payload.len()
    }
}

/// `p` is an object because some clients read `p.users` of every frame from the server.
fn push_presence(out: &mut String, path: &Path, name: &Name, op: &str) {
    push_from(out, path, name.as_str());
    let _ = write!(out, r#","o":"{op}"}},"p":{{}}}}"#);
}

/// Begins a frame of kind `u` up to the value of `m.f`: `/<path>/<name>`, below the root `/<name>`.
/// `name` needs no escaping.
fn push_from(out: &mut String, path: &Path, name: &str) {
    out.push_str(r#"{"t":"u","m":{"f":"#);
    push_string(out, path.as_str());
    out.pop();
    if !path.is_root() {
        out.push('/');
    }
    out.push_str(name);
    out.push('"');
}

fn push_user(out: &mut String, frame: &UserFrame<'_>) {
    for (member, text) in [(r#","o":"#, &frame.op), (r#","t":"#, &frame.to)] {
        if let Some(text) = text {
            out.push_str(member);
            push_string(out, text);
        }
    }
    for (name, value) in &frame.others {
        out.push(',');
        push_string(out, name);
        out.push(':');
        out.push_str(value);
    }
    out.push_str(r#"},"p":"#);
    out.push_str(frame.payload);
    out.push('}');
}

/// The outer object of a client's frame.
#[derive(Default)]
struct Envelope<'a> {
    kind: Option<Cow<'a, str>>,
    meta: Option<Meta<'a>>,
    payload: Option<&'a str>,
    ts: Option<&'a str>,
    is_empty: bool,
}

/// The object `m`.
#[derive(Default)]
struct Meta<'a> {
    op: Option<Cow<'a, str>>,
    to: Option<Cow<'a, str>>,
    others: Vec<(Cow<'a, str>, &'a str)>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Envelope<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Envelope<'a>, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Envelope<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Envelope<'de>, A::Error> {
                let mut envelope = Envelope { is_empty: true, ..Envelope::default() };
                while let Some(Text(name)) = map.next_key()? {
                    envelope.is_empty = false;
                    match &*name {
                        "t" => envelope.kind = map.next_value::<Option<Text<'_>>>()?.map(|t| t.0),
                        "m" => envelope.meta = map.next_value()?,
                        "p" => envelope.payload = Some(map.next_value::<&RawValue>()?.get()),
                        "ts" => envelope.ts = Some(map.next_value::<&RawValue>()?.get()),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(envelope)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Meta<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Meta<'a>, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Meta<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object `m`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Meta<'de>, A::Error> {
                let mut meta = Meta::default();
                while let Some(Text(name)) = map.next_key()? {
                    match &*name {
                        "f" => {
                            map.next_value::<IgnoredAny>()?;
                        }
                        "o" => meta.op = map.next_value::<Option<Text<'_>>>()?.map(|op| op.0),
                        "t" => meta.to = map.next_value::<Option<Text<'_>>>()?.map(|to| to.0),
                        _ => meta.others.push((name, map.next_value::<&RawValue>()?.get())),
                    }
                }
                Ok(meta)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// A JSON string, borrowed where it holds no escapes; serde's own `Cow` always copies.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text<'a>, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Any)
    }
}
