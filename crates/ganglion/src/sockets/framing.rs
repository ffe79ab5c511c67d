//! How texts stand on a transport: in WebSocket frames, or each after its length.

use std::collections::VecDeque;

use bytes::Bytes;
use wire::json::push_string;
use wire::lengths;
use wire::ws::{self, CloseCode, Message, ProtocolError};

/// What reads a peer's bytes, and writes as it reads.
#[derive(Debug)]
pub(super) enum Framing {
    Lengths(lengths::Decoder),
    WebSocket(ws::Decoder),
}

/// One thing that a peer said.
#[derive(Debug)]
pub(super) enum Heard<'a> {
    Goodbye(CloseCode),
    /// What is to be sent back at once.
    Owed(Bytes),
    /// That it is there.
    Sign,
    /// Nothing that is read.
    Binary,
    Text(&'a str),
}

impl Framing {
    pub(super) fn lengths(text_bytes_max: usize) -> Framing {
        Framing::Lengths(lengths::Decoder::new(text_bytes_max))
    }

    pub(super) fn web_socket(text_bytes_max: usize) -> Framing {
        Framing::WebSocket(ws::Decoder::new(text_bytes_max))
    }

    /// Takes bytes from the front of `bytes` and says how many; at least one after
    /// [`Framing::next`] has answered `None`.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        match self {
            Framing::Lengths(decoder) => decoder.push(bytes),
            Framing::WebSocket(decoder) => decoder.push(bytes),
        }
    }

    /// What the peer said next, or `None` when more bytes are needed.
    pub(super) fn next(&mut self) -> Result<Option<Heard<'_>>, ProtocolError> {
        let message = match self {
            Framing::Lengths(decoder) => {
                return Ok(decoder.next_text()?.map(|text| match text {
                    "" => Heard::Sign,
                    text => Heard::Text(text),
                }));
            }
            Framing::WebSocket(decoder) => decoder.next_message()?,
        };
        Ok(message.map(|message| match message {
            Message::Text(text) => Heard::Text(text),
            Message::Ping(payload) => Heard::Owed(ws::pong_frame(payload)),
            Message::Close { code: CloseCode::NO_STATUS, .. } => Heard::Goodbye(CloseCode::NORMAL),
            Message::Close { code, .. } => Heard::Goodbye(code),
            Message::Binary(_) => Heard::Binary,
            Message::Pong(_) => Heard::Sign,
        }))
    }

    /// The last frame, as a queue has it.
    pub(super) fn close(&self, code: CloseCode, reason: &str) -> Bytes {
        match self {
            Framing::Lengths(_) => {
                let mut text =
                    format!(r#"{{"t":"close","m":{{}},"p":{{"code":{},"reason":"#, code.0);
                push_string(&mut text, reason);
                text.push_str("}}");
                ws::text_frame(&text)
            }
            Framing::WebSocket(_) => ws::close_frame(code, reason),
        }
    }

    /// What waits in a queue, which is WebSocket frames, as this transport has it: each of them in
    /// [`Framing::pieces`], since what it holds may wait for many sockets. A ping, which holds nothing, is
    /// a sign of life.
    pub(super) fn outgoing(&self, frames: VecDeque<Bytes>) -> VecDeque<Bytes> {
        match self {
            Framing::WebSocket(_) => frames,
            Framing::Lengths(_) => {
                let payloads = frames.iter().map(ws::payload);
                let pieces = payloads.flat_map(|payload| {
                    [Bytes::copy_from_slice(&lengths::header(payload.len())), payload]
                });
                pieces.collect()
            }
        }
    }

    /// In how many pieces each frame goes out.
    pub(super) fn pieces(&self) -> usize {
        match self {
            Framing::WebSocket(_) => 1,
            Framing::Lengths(_) => 2,
        }
    }
}
