//! WebSocket framing (RFC 6455): bytes to messages and messages to frames, for either end.
//!
//! [`Decoder`] takes bytes as they come off a connection and lends out whole messages; the frame
//! functions make what goes back. Not here: the HTTP upgrade, sockets, when to ping, and
//! extensions (none is negotiated, so every reserved bit is an error).

use std::ops::Range;

use bytes::{BufMut, Bytes};
use thiserror::Error;

/// Most frames that one message may come in. Bytes are bounded by the decoder's own limit; this
/// bounds the work that frames of no length can cause.
pub const FRAGMENTS_MAX: usize = 1024;
/// Longest payload of a ping, pong or close (RFC 6455 §5.5).
pub const CONTROL_BYTES_MAX: usize = 125;
/// Longest reason that fits a close frame beside its code.
pub const REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

/// Longest header: two bytes, a 64-bit length, a masking key.
const HEADER_BYTES_MAX: usize = 14;
/// Longest header of a frame that is not masked.
const UNMASKED_HEADER_BYTES_MAX: usize = 10;

/// Reads one direction of one connection.
///
/// What it holds is bounded: at most one frame of the longest legal message that is still coming
/// in, and the fragments of one message, whose payloads together are no longer than that message.
/// A length is checked when its header is read, before the payload is kept. Between messages it
/// holds no buffer at all.
///
/// ```
/// use wire::ws::{Decoder, Message, Opcode, masked_frame};
///
/// let mut decoder = Decoder::new(64 * 1024);
/// let received = masked_frame(true, Opcode::Text, b"ping", [7, 1, 8, 2]);
/// let mut rest = &received[..];
/// while !rest.is_empty() {
///     rest = &rest[decoder.push(rest)..];
///     while let Some(message) = decoder.next_message()? {
///         assert_eq!(message, Message::Text("ping"));
///     }
/// }
/// assert_eq!(decoder.held_bytes(), 0);
/// # Ok::<(), wire::ws::ProtocolError>(())
/// ```
#[derive(Debug)]
pub struct Decoder {
    /// Whether the peer is a client, whose frames must be masked; a server's must not.
    masked: bool,
    message_bytes_max: usize,
    /// Received bytes; those before `start` belong to frames that were handed out.
    buffer: Vec<u8>,
    start: usize,
    /// The data message that began without its final frame, boxed because it is rare.
    assembly: Option<Box<Assembly>>,
    end: Option<End>,
}

/// A fragmented message.
#[derive(Debug)]
struct Assembly {
    kind: Data,
    bytes: Vec<u8>,
    fragments: usize,
    /// Set when the final frame came: the bytes are lent to the caller until its next call.
    whole: bool,
}

/// Why nothing follows.
#[derive(Clone, Copy, Debug)]
enum End {
    Closed,
    Failed(ProtocolError),
}

impl Decoder {
    /// The server's side: frames must be masked. A message longer than `message_bytes_max` is
    /// refused with [`ProtocolError::MessageTooLong`].
    pub fn new(message_bytes_max: usize) -> Decoder {
        Decoder {
            masked: true,
            message_bytes_max,
            buffer: Vec::new(),
            start: 0,
            assembly: None,
            end: None,
        }
    }

    /// The client's side: frames must not be masked.
    pub fn client(message_bytes_max: usize) -> Decoder {
        Decoder { masked: false, ..Decoder::new(message_bytes_max) }
    }

    /// Takes bytes from the front of `bytes` and says how many: all of them, unless that would
    /// hold more than one frame of the longest legal message. After [`Decoder::next_message`] has
    /// answered `None` at least one is taken. After a close or an error all are taken and dropped.
    #[must_use = "bytes that were not taken must be pushed again"]
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        if self.end.is_some() {
            return bytes.len();
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let bound = self.message_bytes_max.max(CONTROL_BYTES_MAX).saturating_add(HEADER_BYTES_MAX);
        let taken = bytes.len().min(bound - self.buffer.len());
        append(&mut self.buffer, &bytes[..taken], bound);
        taken
    }

    /// The next whole message, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// The peer broke the protocol: close with [`ProtocolError::close_code`]. Every later call
    /// answers the same error.
    pub fn next_message(&mut self) -> Result<Option<Message<'_>>, ProtocolError> {
        if let Some(end) = self.end {
            self.release();
            return match end {
                End::Closed => Ok(None),
                End::Failed(error) => Err(error),
            };
        }
        let ready = match self.advance() {
            Ok(Some(ready)) => ready,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.release();
                self.end = Some(End::Failed(error));
                return Err(error);
            }
        };
        let Decoder { buffer, assembly, end, .. } = self;
        let payload = match (ready.payload, assembly) {
            (Some(range), _) => &buffer[range],
            (None, Some(assembly)) => &assembly.bytes[..],
            (None, None) => &[],
        };
        let message = ready.kind.message(payload);
        match message {
            Ok(Message::Close { .. }) => *end = Some(End::Closed),
            Ok(_) => {}
            Err(error) => *end = Some(End::Failed(error)),
        }
        message.map(Some)
    }

    /// Memory held for bytes that are not yet a message.
    pub fn held_bytes(&self) -> usize {
        self.buffer.capacity()
            + self.assembly.as_ref().map_or(0, |assembly| assembly.bytes.capacity())
    }

    /// Reads frames until one completes a message or the bytes run out.
    fn advance(&mut self) -> Result<Option<Ready>, ProtocolError> {
        self.assembly.take_if(|assembly| assembly.whole);
        loop {
            let Some(header) = Header::parse(&self.buffer[self.start..], self.masked)? else {
                self.release_consumed();
                return Ok(None);
            };
            let step = self.admit(&header)?;
            let from = self.start + header.header_bytes;
            let range = from..from + header.payload_bytes;
            if self.buffer.len() < range.end {
                return Ok(None);
            }
            let (head, payload) = self.buffer[..range.end].split_at_mut(from);
            if let (true, Some(key)) = (self.masked, head.last_chunk()) {
                mask(payload, *key);
            }
            self.start = range.end;
            match step {
                Step::Whole(kind) => return Ok(Some(Ready { kind, payload: Some(range) })),
                Step::Fragment(kind) => {
                    if let Some(kind) = self.assemble(kind, range, header.fin) {
                        return Ok(Some(Ready { kind: Kind::Data(kind), payload: None }));
                    }
                }
            }
        }
    }

    /// The rules that bind a frame to the message it is part of.
    fn admit(&self, header: &Header) -> Result<Step, ProtocolError> {
        let (kind, assembled, fragments) = match (header.opcode, &self.assembly) {
            (Opcode::Close, _) => return Ok(Step::Whole(Kind::Close)),
            (Opcode::Ping, _) => return Ok(Step::Whole(Kind::Ping)),
            (Opcode::Pong, _) => return Ok(Step::Whole(Kind::Pong)),
            (Opcode::Continuation, None) => return Err(ProtocolError::NothingToContinue),
            (Opcode::Continuation, Some(assembly)) => {
                (assembly.kind, assembly.bytes.len(), assembly.fragments)
            }
            (Opcode::Binary | Opcode::Text, Some(_)) => return Err(ProtocolError::Interrupted),
            (Opcode::Binary, None) => (Data::Binary, 0, 0),
            (Opcode::Text, None) => (Data::Text, 0, 0),
        };
        if header.payload_bytes > self.message_bytes_max - assembled {
            return Err(ProtocolError::MessageTooLong);
        }
        if fragments == FRAGMENTS_MAX {
            return Err(ProtocolError::TooManyFragments);
        }
        let unfragmented = header.fin && header.opcode != Opcode::Continuation;
        Ok(if unfragmented { Step::Whole(Kind::Data(kind)) } else { Step::Fragment(kind) })
    }

    /// Adds a fragment; the kind of the message when that was the last.
    fn assemble(&mut self, kind: Data, payload: Range<usize>, fin: bool) -> Option<Data> {
        let assembly = self.assembly.get_or_insert_with(|| {
            Box::new(Assembly { kind, bytes: Vec::new(), fragments: 0, whole: false })
        });
        append(&mut assembly.bytes, &self.buffer[payload], self.message_bytes_max);
        assembly.fragments += 1;
        assembly.whole = fin;
        fin.then_some(kind)
    }

    fn release_consumed(&mut self) {
        if self.start == self.buffer.len() {
            self.buffer = Vec::new();
            self.start = 0;
        }
    }

    fn release(&mut self) {
        self.buffer = Vec::new();
        self.start = 0;
        self.assembly = None;
    }
}

/// One message, lent from the decoder until its next call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Message<'a> {
    Binary(&'a [u8]),
    /// The last message; answer it with [`close_frame`]. A frame without a code reads as
    /// [`CloseCode::NO_STATUS`].
    Close {
        code: CloseCode,
        reason: &'a str,
    },
    /// Answer it with [`pong_frame`] of the same bytes.
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    Text(&'a str),
}

/// How the peer broke the protocol.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ProtocolError {
    #[error("a close frame has a code that must not be sent")]
    BadCloseCode,
    #[error("a close frame has half a code")]
    BadClosePayload,
    #[error("a control frame is fragmented")]
    ControlFragmented,
    #[error("a control frame is longer than {CONTROL_BYTES_MAX} bytes")]
    ControlTooLong,
    #[error("a message began before the one before it ended")]
    Interrupted,
    #[error("a length has its highest bit set")]
    LengthOverflow,
    #[error("a server's frame is masked")]
    Masked,
    #[error("the message is longer than is accepted here")]
    MessageTooLong,
    #[error("a continuation of nothing")]
    NothingToContinue,
    #[error("a text or a reason is not UTF-8")]
    NotUtf8,
    #[error("a reserved bit is set, but no extension was agreed")]
    ReservedBits,
    #[error("the message comes in more than {FRAGMENTS_MAX} frames")]
    TooManyFragments,
    #[error("a reserved opcode")]
    UnknownOpcode,
    #[error("a client's frame is not masked")]
    Unmasked,
}

impl ProtocolError {
    /// What to close the connection with.
    pub fn close_code(self) -> CloseCode {
        match self {
            ProtocolError::MessageTooLong | ProtocolError::TooManyFragments => CloseCode::TOO_LONG,
            ProtocolError::NotUtf8 => CloseCode::INVALID_DATA,
            ProtocolError::BadCloseCode
            | ProtocolError::BadClosePayload
            | ProtocolError::ControlFragmented
            | ProtocolError::ControlTooLong
            | ProtocolError::Interrupted
            | ProtocolError::LengthOverflow
            | ProtocolError::Masked
            | ProtocolError::NothingToContinue
            | ProtocolError::ReservedBits
            | ProtocolError::UnknownOpcode
            | ProtocolError::Unmasked => CloseCode::PROTOCOL,
        }
    }
}

/// Why a connection ends (RFC 6455 §7.4 and the IANA registry).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CloseCode(pub u16);

impl CloseCode {
    pub const NORMAL: CloseCode = CloseCode(1000);
    /// The neuron drains, or the page was left.
    pub const GOING_AWAY: CloseCode = CloseCode(1001);
    pub const PROTOCOL: CloseCode = CloseCode(1002);
    pub const UNSUPPORTED_DATA: CloseCode = CloseCode(1003);
    /// Stands for a close without a code; never on the wire.
    pub const NO_STATUS: CloseCode = CloseCode(1005);
    pub const INVALID_DATA: CloseCode = CloseCode(1007);
    pub const POLICY: CloseCode = CloseCode(1008);
    pub const TOO_LONG: CloseCode = CloseCode(1009);
    pub const INTERNAL: CloseCode = CloseCode(1011);
    pub const TRY_AGAIN_LATER: CloseCode = CloseCode(1013);
    /// The token is bad or has expired (`spec/xirsys.md` §1.7).
    pub const UNAUTHORIZED: CloseCode = CloseCode(4401);
    /// Kicked or banned (`spec/xirsys.md` §2 row 25).
    pub const KICKED: CloseCode = CloseCode(4403);
    /// The session goes on by another socket.
    pub const REPLACED: CloseCode = CloseCode(4409);

    /// Whether a peer may send this code.
    fn is_sendable(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

/// What a frame is, for [`masked_frame`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Opcode {
    Binary,
    Close,
    Continuation,
    Ping,
    Pong,
    Text,
}

impl Opcode {
    fn from_bits(bits: u8) -> Result<Opcode, ProtocolError> {
        match bits {
            0x0 => Ok(Opcode::Continuation),
            0x1 => Ok(Opcode::Text),
            0x2 => Ok(Opcode::Binary),
            0x8 => Ok(Opcode::Close),
            0x9 => Ok(Opcode::Ping),
            0xA => Ok(Opcode::Pong),
            _ => Err(ProtocolError::UnknownOpcode),
        }
    }

    fn bits(self) -> u8 {
        match self {
            Opcode::Continuation => 0x0,
            Opcode::Text => 0x1,
            Opcode::Binary => 0x2,
            Opcode::Close => 0x8,
            Opcode::Ping => 0x9,
            Opcode::Pong => 0xA,
        }
    }

    fn is_control(self) -> bool {
        matches!(self, Opcode::Close | Opcode::Ping | Opcode::Pong)
    }
}

/// A server's text frame, header and payload in one buffer. It carries no masking key, so every
/// subscriber can be sent the same one.
pub fn text_frame(text: &str) -> Bytes {
    unmasked_frame(Opcode::Text, text.as_bytes())
}

/// A text frame whose payload `write` appends, without a copy of it. `bytes_hint` is the payload's
/// expected length. `write` must only append.
pub fn text_frame_with(bytes_hint: usize, write: impl FnOnce(&mut String)) -> Bytes {
    const GAP: &str = "\0\0\0\0\0\0\0\0\0\0";
    const { assert!(GAP.len() == UNMASKED_HEADER_BYTES_MAX) }
    let mut text = String::with_capacity(GAP.len() + bytes_hint);
    text.push_str(GAP);
    write(&mut text);
    let mut frame = text.into_bytes();
    let header = HeaderBytes::new(true, Opcode::Text, frame.len() - GAP.len(), None);
    let start = GAP.len() - header.len;
    frame[start..GAP.len()].copy_from_slice(header.as_slice());
    Bytes::from(frame).slice(start..)
}

/// What a server's frame carries, without its header.
///
/// # Panics
/// If it is no whole frame of a server.
pub fn payload(frame: &Bytes) -> Bytes {
    let header = Header::parse(frame, false).ok().flatten().expect("a whole frame of a server");
    frame.slice(header.header_bytes..)
}

pub fn binary_frame(payload: &[u8]) -> Bytes {
    unmasked_frame(Opcode::Binary, payload)
}

/// # Panics
/// If the payload is longer than [`CONTROL_BYTES_MAX`].
pub fn ping_frame(payload: &[u8]) -> Bytes {
    unmasked_frame(Opcode::Ping, payload)
}

/// The payload of a decoded [`Message::Ping`] always fits.
///
/// # Panics
/// If the payload is longer than [`CONTROL_BYTES_MAX`].
pub fn pong_frame(payload: &[u8]) -> Bytes {
    unmasked_frame(Opcode::Pong, payload)
}

/// A close frame; [`CloseCode::NO_STATUS`] makes one without a code or a reason. Of a reason longer
/// than [`REASON_BYTES_MAX`] the whole characters that fit are sent.
pub fn close_frame(code: CloseCode, reason: &str) -> Bytes {
    unmasked_frame(Opcode::Close, &close_payload(code, reason))
}

/// What [`close_frame`] carries, for a client's [`masked_frame`].
pub fn close_payload(code: CloseCode, reason: &str) -> Vec<u8> {
    if code == CloseCode::NO_STATUS {
        return Vec::new();
    }
    let reason = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)];
    let mut payload = Vec::with_capacity(2 + reason.len());
    payload.put_u16(code.0);
    payload.put_slice(reason.as_bytes());
    payload
}

/// A client's frame; `key` must be unpredictable to the page that sends through it.
///
/// # Panics
/// If a control frame's payload is longer than [`CONTROL_BYTES_MAX`].
pub fn masked_frame(fin: bool, opcode: Opcode, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let header = HeaderBytes::new(fin, opcode, payload.len(), Some(key));
    let mut frame = [header.as_slice(), payload].concat();
    mask(&mut frame[header.len..], key);
    frame
}

fn unmasked_frame(opcode: Opcode, payload: &[u8]) -> Bytes {
    let header = HeaderBytes::new(true, opcode, payload.len(), None);
    Bytes::from([header.as_slice(), payload].concat())
}

/// A frame's header as far as the length; the masking key is its last four bytes.
struct Header {
    fin: bool,
    opcode: Opcode,
    header_bytes: usize,
    payload_bytes: usize,
}

impl Header {
    /// Reads a header up to its length; `None` when it is cut before that and not yet wrong. A
    /// length in more bytes than it needs is accepted: RFC 6455 §5.2 binds the sender, and small
    /// devices send it.
    fn parse(bytes: &[u8], masked: bool) -> Result<Option<Header>, ProtocolError> {
        let [first, second, rest @ ..] = bytes else {
            return Ok(None);
        };
        if first & 0x70 != 0 {
            return Err(ProtocolError::ReservedBits);
        }
        let fin = first & 0x80 != 0;
        let opcode = Opcode::from_bits(first & 0x0F)?;
        match (second & 0x80 != 0, masked) {
            (false, true) => return Err(ProtocolError::Unmasked),
            (true, false) => return Err(ProtocolError::Masked),
            (true, true) | (false, false) => {}
        }
        let short = second & 0x7F;
        if opcode.is_control() {
            if !fin {
                return Err(ProtocolError::ControlFragmented);
            }
            if usize::from(short) > CONTROL_BYTES_MAX {
                return Err(ProtocolError::ControlTooLong);
            }
        }
        let (length_bytes, payload_bytes) = match short {
            126 => (2, rest.first_chunk().map(|length| u64::from(u16::from_be_bytes(*length)))),
            127 => (8, rest.first_chunk().map(|length| u64::from_be_bytes(*length))),
            short => (0, Some(u64::from(short))),
        };
        let Some(payload_bytes) = payload_bytes else {
            return Ok(None);
        };
        if payload_bytes >> 63 != 0 {
            return Err(ProtocolError::LengthOverflow);
        }
        let payload_bytes =
            usize::try_from(payload_bytes).map_err(|_| ProtocolError::MessageTooLong)?;
        let header_bytes = 2 + length_bytes + if masked { 4 } else { 0 };
        Ok(Some(Header { fin, opcode, header_bytes, payload_bytes }))
    }
}

/// An encoded header, kept off the heap so that a frame is one allocation.
struct HeaderBytes {
    bytes: [u8; HEADER_BYTES_MAX],
    len: usize,
}

impl HeaderBytes {
    /// # Panics
    /// If a control frame's payload is longer than [`CONTROL_BYTES_MAX`].
    fn new(fin: bool, opcode: Opcode, payload_bytes: usize, key: Option<[u8; 4]>) -> HeaderBytes {
        assert!(
            !opcode.is_control() || payload_bytes <= CONTROL_BYTES_MAX,
            "a control frame carries at most {CONTROL_BYTES_MAX} bytes"
        );
        let mut bytes = [0; HEADER_BYTES_MAX];
        let mut unwritten = &mut bytes[..];
        let mask_bit = if key.is_some() { 0x80 } else { 0 };
        unwritten.put_u8(if fin { 0x80 } else { 0 } | opcode.bits());
        match payload_bytes {
            0..=125 => unwritten.put_u8(mask_bit | payload_bytes as u8),
            126..=0xFFFF => {
                unwritten.put_u8(mask_bit | 126);
                unwritten.put_u16(payload_bytes as u16);
            }
            _ => {
                unwritten.put_u8(mask_bit | 127);
                unwritten.put_u64(payload_bytes as u64);
            }
        }
        if let Some(key) = key {
            unwritten.put_slice(&key);
        }
        let len = HEADER_BYTES_MAX - unwritten.len();
        HeaderBytes { bytes, len }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What an admitted frame is to its message.
enum Step {
    /// The message itself.
    Whole(Kind),
    /// One of several frames of a message.
    Fragment(Data),
}

/// A complete message: where its payload is.
struct Ready {
    kind: Kind,
    /// A part of the buffer, or, when `None`, the assembly.
    payload: Option<Range<usize>>,
}

#[derive(Clone, Copy, Debug)]
enum Data {
    Binary,
    Text,
}

#[derive(Clone, Copy)]
enum Kind {
    Close,
    Data(Data),
    Ping,
    Pong,
}

impl Kind {
    fn message(self, payload: &[u8]) -> Result<Message<'_>, ProtocolError> {
        match self {
            Kind::Close => close_message(payload),
            Kind::Data(Data::Binary) => Ok(Message::Binary(payload)),
            Kind::Data(Data::Text) => utf8(payload).map(Message::Text),
            Kind::Ping => Ok(Message::Ping(payload)),
            Kind::Pong => Ok(Message::Pong(payload)),
        }
    }
}

fn close_message(payload: &[u8]) -> Result<Message<'_>, ProtocolError> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(Message::Close { code: CloseCode::NO_STATUS, reason: "" }),
            _ => Err(ProtocolError::BadClosePayload),
        };
    };
    let code = CloseCode(u16::from_be_bytes(*code));
    if !code.is_sendable() {
        return Err(ProtocolError::BadCloseCode);
    }
    Ok(Message::Close { code, reason: utf8(reason)? })
}

fn utf8(bytes: &[u8]) -> Result<&str, ProtocolError> {
    std::str::from_utf8(bytes).map_err(|_| ProtocolError::NotUtf8)
}

/// Masks or unmasks in place, a word at a time (RFC 6455 §5.3).
fn mask(payload: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let key_word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ key_word).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key.into_iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends, doubling as a `Vec` does, but never to more capacity than `bound`.
fn append(buffer: &mut Vec<u8>, bytes: &[u8], bound: usize) {
    let needed = buffer.len() + bytes.len();
    if needed > buffer.capacity() {
        let capacity = needed.max(buffer.capacity().saturating_mul(2).min(bound));
        buffer.reserve_exact(capacity - buffer.len());
    }
    buffer.extend_from_slice(bytes);
}
