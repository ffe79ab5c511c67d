//! What clients say, read without a copy of it.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

use super::{Generation, is_system_op};
use crate::errors::Code;

/// Longest `m.id` of a frame, as JSON text.
pub const ID_BYTES_MAX: usize = 64;

/// Bytes of what a reader of JSON complains of: it quotes the text.
const WHY_BYTES_MAX: usize = 200;

/// One text that a client sent.
#[derive(Debug)]
pub enum ClientFrame<'a> {
    /// A request of the API or of a watch (v4).
    Ask {
        id: Id<'a>,
        verb: Verb,
        /// `p` as JSON text; `null` when it was left out.
        params: &'a str,
    },
    /// `{}`, a v1 page's sign of life.
    Heartbeat,
    /// Who it is and where it wants to be (v4): the first frame, and no other.
    Hello(Hello<'a>),
    /// `{"t":"tm",…}`: asks for a media mixer of the vendor's own TURN servers. Ignored.
    Mixer,
    /// `{"t":"ping","ts":…}`; to be answered by a `pong`.
    Ping {
        ts: Option<&'a str>,
    },
    /// What the others see beside the sender's name from here on (v4).
    Presence {
        id: Option<Id<'a>>,
        /// JSON text; `null` takes it away.
        data: &'a str,
    },
    /// The bare word `ping`, which a v3 page sends 240 times a second and wants no answer to.
    TextPing,
    User(UserFrame<'a>),
}

/// What a user says to a room or to one member of it.
#[derive(Debug)]
pub struct UserFrame<'a> {
    /// `m.id` of v4: the frame is to be acknowledged, and counts once however often it is sent.
    pub id: Option<Id<'a>>,
    /// `m.t`; `None` (left out, `null` or empty) is everyone.
    pub to: Option<Cow<'a, str>>,
    /// `m.o`, free text.
    pub op: Option<Cow<'a, str>>,
    /// Members of `m` other than those above and `f`, relayed as they came: applications put their
    /// own there. `m.f` is not kept, since what clients write in it is garbage.
    pub others: Vec<(Cow<'a, str>, &'a str)>,
    /// `p` as JSON text; `null` when it was left out.
    pub payload: &'a str,
}

/// What a v4 client begins with.
#[derive(Debug, Default)]
pub struct Hello<'a> {
    pub token: Option<Cow<'a, str>>,
    /// Credentials of an account, in place of a token.
    pub ident: Option<Cow<'a, str>>,
    pub secret: Option<Cow<'a, str>>,
    /// Where to be, for a token that leaves it open.
    pub path: Option<Cow<'a, str>>,
    /// Whether to be in the room; `None` is what the credentials are for: a token's holder is.
    pub join: Option<bool>,
    /// What the others see beside the name, as JSON text.
    pub data: Option<&'a str>,
    /// The session that is to go on, and what was read in it.
    pub session: Option<Cow<'a, str>>,
    pub cursor: Option<Cow<'a, str>>,
}

/// A client's own mark of a frame: a JSON number or string, given back as it came.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Id<'a>(&'a str);

impl<'a> Id<'a> {
    /// # Errors
    /// Anything but a number or a string of at most [`ID_BYTES_MAX`] bytes as JSON text, quotes
    /// included.
    pub fn of_json(text: &'a str) -> Result<Id<'a>, FrameError> {
        let is_scalar = text.starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit());
        if is_scalar && text.len() <= ID_BYTES_MAX { Ok(Id(text)) } else { Err(FrameError::BadId) }
    }

    /// JSON text.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

/// What a v4 client asks for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Verb {
    Delete,
    Get,
    List,
    Put,
    Series,
    Unwatch,
    Watch,
}

impl Verb {
    fn of(kind: &str) -> Option<Verb> {
        Some(match kind {
            "delete" => Verb::Delete,
            "get" => Verb::Get,
            "list" => Verb::List,
            "put" => Verb::Put,
            "series" => Verb::Series,
            "unwatch" => Verb::Unwatch,
            "watch" => Verb::Watch,
            _ => return None,
        })
    }
}

/// Why a text is not a frame that is relayed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum FrameError {
    #[error("`m.id` is a number or a string, of at most {ID_BYTES_MAX} bytes")]
    BadId,
    #[error("this frame needs `m.id`, by which its answer is known")]
    IdMissing,
    #[error("a frame of kind `u` needs an object `m`")]
    MetaMissing,
    #[error("not a frame: {0}")]
    Syntax(String),
    #[error("only the server says who is present")]
    SystemOp,
    #[error("{0}")]
    UnknownKind(&'static str),
}

/// A text that is no frame to relay, and by what id its sender knows it, where that can be read.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{error}")]
pub struct BadFrame<'a> {
    /// Of v4 only.
    pub id: Option<Id<'a>>,
    pub error: FrameError,
}

impl From<FrameError> for BadFrame<'_> {
    fn from(error: FrameError) -> Self {
        BadFrame { id: None, error }
    }
}

/// What each generation sends.
const KINDS_V1: &str = "a frame has an `eventName`";
const KINDS_V2: &str = "`t` is none of `u`, `ping`, `tm`";
const KINDS_V4: &str = "`t` is none of `hello`, `u`, `presence`, `get`, `put`, `delete`, `list`, \
                        `series`, `watch`, `unwatch`, `ping`";

impl FrameError {
    /// The word of the error vocabulary that answers this.
    pub fn code(&self) -> Code {
        match self {
            FrameError::SystemOp => Code::NotAllowed,
            FrameError::BadId
            | FrameError::IdMissing
            | FrameError::MetaMissing
            | FrameError::Syntax(_)
            | FrameError::UnknownKind(_) => Code::BadRequest,
        }
    }
}

impl<'a> ClientFrame<'a> {
    /// Reads one text; the common frame costs no allocation. Of equal members the last counts, as
    /// it does in a browser. The payload is checked to be JSON but not how deep it nests: nothing
    /// here descends into it.
    ///
    /// # Errors
    /// Text that is not one of the generation's frames, and operations that only the server may send.
    pub fn parse(generation: Generation, text: &'a str) -> Result<ClientFrame<'a>, BadFrame<'a>> {
        if text == "ping" {
            return Ok(ClientFrame::TextPing);
        }
        match generation {
            Generation::V1 => Ok(ClientFrame::of_v1(read(text)?)?),
            Generation::V2 => Ok(ClientFrame::of_v2(read(text)?)?),
            Generation::V4 => {
                let envelope = read(text).map_err(|error| BadFrame { id: id_of(text), error })?;
                ClientFrame::of_v4(envelope)
            }
        }
    }

    fn of_v1(event: Event<'a>) -> Result<ClientFrame<'a>, FrameError> {
        match event.name {
            Some(name) if is_system_op(&name) => Err(FrameError::SystemOp),
            Some(name) => Ok(ClientFrame::User(UserFrame {
                id: None,
                to: event.target.filter(|to| !to.is_empty()),
                op: Some(name),
                others: Vec::new(),
                payload: event.data.unwrap_or("null"),
            })),
            None if !event.has_members => Ok(ClientFrame::Heartbeat),
            None => Err(FrameError::UnknownKind(KINDS_V1)),
        }
    }

    fn of_v2(envelope: Envelope<'a>) -> Result<ClientFrame<'a>, FrameError> {
        match envelope.kind.as_deref() {
            Some("u") => UserFrame::new(envelope).map(ClientFrame::User),
            Some("ping") => Ok(ClientFrame::Ping { ts: envelope.ts }),
            Some("tm") => Ok(ClientFrame::Mixer),
            None if !envelope.has_members => Ok(ClientFrame::Heartbeat),
            _ => Err(FrameError::UnknownKind(KINDS_V2)),
        }
    }

    fn of_v4(mut envelope: Envelope<'a>) -> Result<ClientFrame<'a>, BadFrame<'a>> {
        // What the server writes into every frame of this generation is nobody else's to write.
        let id = match &mut envelope.meta {
            None => None,
            Some(meta) => {
                let id = meta.take("id");
                meta.take("c");
                id.map(Id::of_json).transpose()?
            }
        };
        let read = ClientFrame::of_kind(envelope, id);
        read.map_err(|error| BadFrame { id, error })
    }

    /// A frame of v4, whose id has been read.
    fn of_kind(envelope: Envelope<'a>, id: Option<Id<'a>>) -> Result<ClientFrame<'a>, FrameError> {
        let params = envelope.payload.unwrap_or("null");
        match envelope.kind.as_deref() {
            Some("u") => {
                let frame = UserFrame::new(envelope)?;
                Ok(ClientFrame::User(UserFrame { id, ..frame }))
            }
            Some("hello") => read(params).map(ClientFrame::Hello),
            Some("ping") => Ok(ClientFrame::Ping { ts: envelope.ts }),
            Some("presence") => Ok(ClientFrame::Presence { id, data: params }),
            Some(kind) => {
                let verb = Verb::of(kind).ok_or(FrameError::UnknownKind(KINDS_V4))?;
                let id = id.ok_or(FrameError::IdMissing)?;
                Ok(ClientFrame::Ask { id, verb, params })
            }
            None if !envelope.has_members => Ok(ClientFrame::Heartbeat),
            None => Err(FrameError::UnknownKind(KINDS_V4)),
        }
    }
}

/// The id of a text that is no frame, if it is JSON that has one.
fn id_of(text: &str) -> Option<Id<'_>> {
    #[derive(Deserialize)]
    struct Any<'a> {
        #[serde(borrow)]
        m: Marked<'a>,
    }
    #[derive(Deserialize)]
    struct Marked<'a> {
        #[serde(borrow)]
        id: &'a RawValue,
    }
    let any: Any<'_> = serde_json::from_str(text).ok()?;
    Id::of_json(any.m.id.get()).ok()
}

fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, FrameError> {
    serde_json::from_str(text).map_err(|error: serde_json::Error| {
        let mut why = error.to_string();
        why.truncate(why.floor_char_boundary(WHY_BYTES_MAX));
        FrameError::Syntax(why)
    })
}

impl<'a> UserFrame<'a> {
    fn new(envelope: Envelope<'a>) -> Result<UserFrame<'a>, FrameError> {
        let meta = envelope.meta.ok_or(FrameError::MetaMissing)?;
        if meta.op.as_deref().is_some_and(is_system_op) {
            return Err(FrameError::SystemOp);
        }
        Ok(UserFrame {
            id: None,
            to: meta.to.filter(|to| !to.is_empty()),
            op: meta.op,
            others: meta.others,
            payload: envelope.payload.unwrap_or("null"),
        })
    }
}

/// The outer object of a client's frame.
#[derive(Default)]
struct Envelope<'a> {
    kind: Option<Cow<'a, str>>,
    meta: Option<Meta<'a>>,
    payload: Option<&'a str>,
    ts: Option<&'a str>,
    has_members: bool,
}

/// The object `m`.
#[derive(Default)]
struct Meta<'a> {
    op: Option<Cow<'a, str>>,
    to: Option<Cow<'a, str>>,
    others: Vec<(Cow<'a, str>, &'a str)>,
}

impl<'a> Meta<'a> {
    /// Takes the members of a name out; the last counts.
    fn take(&mut self, name: &str) -> Option<&'a str> {
        let found = self.others.iter().rfind(|(known, _)| known == name).map(|(_, value)| *value);
        if found.is_some() {
            self.others.retain(|(known, _)| known != name);
        }
        found
    }
}

/// A v1 client's frame.
#[derive(Default)]
struct Event<'a> {
    name: Option<Cow<'a, str>>,
    target: Option<Cow<'a, str>>,
    data: Option<&'a str>,
    has_members: bool,
}

/// Reads an object member by member: `$take` is given each name, and the map to take its value from.
macro_rules! object {
    ($type:ident, $expecting:literal, |$object:ident, $name:ident, $map:ident| $take:block) => {
        impl<'de: 'a, 'a> Deserialize<'de> for $type<'a> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$type<'a>, D::Error> {
                struct Object;
                impl<'de> Visitor<'de> for Object {
                    type Value = $type<'de>;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_map<A: MapAccess<'de>>(
                        self,
                        mut $map: A,
                    ) -> Result<$type<'de>, A::Error> {
                        let mut $object = $type::default();
                        while let Some(Text($name)) = $map.next_key()? {
                            $take
                        }
                        Ok($object)
                    }
                }
                deserializer.deserialize_map(Object)
            }
        }
    };
}

object!(Envelope, "an object", |envelope, name, map| {
    envelope.has_members = true;
    match &*name {
        "t" => envelope.kind = text(&mut map)?,
        "m" => envelope.meta = map.next_value()?,
        "p" => envelope.payload = Some(raw(&mut map)?),
        "ts" => envelope.ts = Some(raw(&mut map)?),
        _ => skip(&mut map)?,
    }
});

object!(Meta, "an object `m`", |meta, name, map| {
    match &*name {
        "f" => skip(&mut map)?,
        "o" => meta.op = text(&mut map)?,
        "t" => meta.to = text(&mut map)?,
        _ => {
            let value = raw(&mut map)?;
            meta.others.push((name, value));
        }
    }
});

object!(Event, "an object", |event, name, map| {
    event.has_members = true;
    match &*name {
        "eventName" => event.name = text(&mut map)?,
        "targetUserId" => event.target = text(&mut map)?,
        "data" => event.data = Some(raw(&mut map)?),
        _ => skip(&mut map)?,
    }
});

object!(Hello, "an object `p`", |hello, name, map| {
    match &*name {
        "token" => hello.token = text(&mut map)?,
        "ident" => hello.ident = text(&mut map)?,
        "secret" => hello.secret = text(&mut map)?,
        "path" => hello.path = text(&mut map)?,
        "join" => hello.join = map.next_value()?,
        "data" => hello.data = Some(raw(&mut map)?),
        "session" => hello.session = text(&mut map)?,
        "cursor" => hello.cursor = text(&mut map)?,
        _ => skip(&mut map)?,
    }
});

fn text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Cow<'de, str>>, A::Error> {
    Ok(map.next_value::<Option<Text<'de>>>()?.map(|text| text.0))
}

fn raw<'de, A: MapAccess<'de>>(map: &mut A) -> Result<&'de str, A::Error> {
    Ok(map.next_value::<&RawValue>()?.get())
}

fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(drop)
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
