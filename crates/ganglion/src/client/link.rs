//! A signalling socket of the client verbs: v4 over WebSocket (`docs/reference/signalling.md`).

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wire::ws::{self, CloseCode, Decoder, Message, Opcode};

use super::contexts::Context;
use super::exchange::{self, Stream};

/// Longest head of the answer to a handshake, and longest message, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// How long a connection may take to be one, and to be ended.
pub(super) const OPEN_TIME: Duration = Duration::from_secs(10);
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// How often a neuron is told that this end is there.
pub(super) const PING_EVERY: Duration = Duration::from_secs(20);
/// Silence after which a connection counts as cut: each ping is answered.
const SILENCE_MAX: Duration = Duration::from_secs(50);
/// What stands for a kind of frame that could not be read.
pub(super) const UNREADABLE: &str = "?";
/// Refusals that pass: whoever was in before comes back after them.
pub(super) const PASSING: [&str; 5] =
    ["internal", "overloaded", "store_degraded", "store_unavailable", "too_many_requests"];
/// Waits between attempts.
const BACKOFF_FIRST: Duration = Duration::from_millis(80);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// One open socket. What it says is owed first, and written while the next frame is waited for.
pub(super) struct Link {
    io: Stream,
    decoder: Decoder,
    /// Frames that are owed, and how many of their bytes are written: whoever drops a write half-way goes
    /// on with it later.
    owed: Vec<u8>,
    written: usize,
    /// Read, and not yet taken by the decoder.
    unread: Vec<u8>,
    /// When anything came.
    heard: Instant,
}

/// What came.
#[derive(Debug)]
pub(super) enum Event {
    Frame(Value),
    Closed(CloseCode, String),
}

impl Link {
    /// Connects, and says hello.
    pub(super) async fn open(context: &Context, hello: &Value) -> Result<Link> {
        let opening = tokio::time::timeout(OPEN_TIME, Link::upgrade(context)).await;
        let mut link = opening.with_context(|| format!("{}: no answer", context.url))??;
        link.send(&serde_json::json!({ "t": "hello", "p": hello }))?;
        Ok(link)
    }

    async fn upgrade(context: &Context) -> Result<Link> {
        let (mut io, authority) = exchange::connect(context).await?;
        let mut key = [0; 16];
        aws_lc_rs::rand::fill(&mut key)?;
        let key = base64::engine::general_purpose::STANDARD.encode(key);
        let request = format!(
            "GET /ws/v4 HTTP/1.1\r\nhost: {authority}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n"
        );
        io.write_all(request.as_bytes()).await?;
        io.flush().await?;
        let mut read = Vec::new();
        let end = loop {
            if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            ensure!(read.len() < HEAD_BYTES_MAX, "{}: an answer without an end", context.url);
            let count = io.read_buf(&mut read).await?;
            ensure!(count > 0, "{}: hung up at the handshake", context.url);
        };
        let unread = read.split_off(end);
        if !read.starts_with(b"HTTP/1.1 101 ") {
            let head = String::from_utf8_lossy(&read);
            bail!("{}: no signalling there: {}", context.url, head.lines().next().unwrap_or(""));
        }
        Ok(Link::over(io, unread))
    }

    /// A socket over a connection of which so much is read already.
    fn over(io: Stream, unread: Vec<u8>) -> Link {
        let decoder = Decoder::client(MESSAGE_BYTES_MAX);
        Link { io, decoder, owed: Vec::new(), written: 0, unread, heard: Instant::now() }
    }

    /// Says a frame; [`Link::next`] writes it.
    pub(super) fn send(&mut self, frame: &Value) -> Result<()> {
        self.owe(Opcode::Text, frame.to_string().as_bytes())
    }

    /// Says that this end is there, and asks whether the other is.
    ///
    /// # Errors
    /// Nothing has come for long.
    pub(super) fn ping(&mut self) -> Result<()> {
        ensure!(self.heard.elapsed() < SILENCE_MAX, "nothing comes any more");
        self.owe(Opcode::Ping, b"")
    }

    fn owe(&mut self, opcode: Opcode, payload: &[u8]) -> Result<()> {
        let mut key = [0; 4];
        aws_lc_rs::rand::fill(&mut key)?;
        self.owed.extend_from_slice(&ws::masked_frame(true, opcode, payload, key));
        Ok(())
    }

    /// Writes what is owed. Nothing is lost or written twice when this is dropped before it is done.
    async fn flush(&mut self) -> Result<()> {
        if self.owed.is_empty() {
            return Ok(());
        }
        while self.written < self.owed.len() {
            let count = self.io.write(&self.owed[self.written..]).await?;
            ensure!(count > 0, "the connection was cut");
            self.written += count;
        }
        self.io.flush().await?;
        self.forgive();
        Ok(())
    }

    fn forgive(&mut self) {
        self.owed = Vec::new();
        self.written = 0;
    }

    /// The next frame, or the end, once what is owed is written. Nothing is lost when this is dropped
    /// before it is done.
    pub(super) async fn next(&mut self) -> Result<Event> {
        loop {
            if self.flush().await.is_err() {
                // What the other end said before it hung up is there still, and tells why.
                self.forgive();
            }
            let pong = match self.decoder.next_message()? {
                Some(Message::Text(text)) => {
                    let frame = serde_json::from_str(text).or_else(|_| unreadable(text));
                    return Ok(Event::Frame(
                        frame.with_context(|| format!("not a frame: {text}"))?,
                    ));
                }
                Some(Message::Close { code, reason }) => {
                    return Ok(Event::Closed(code, reason.to_owned()));
                }
                Some(Message::Ping(payload)) => Some(payload.to_vec()),
                Some(Message::Binary(_) | Message::Pong(_)) => continue,
                None => None,
            };
            if let Some(payload) = pong {
                self.owe(Opcode::Pong, &payload)?;
                continue;
            }
            if self.unread.is_empty() {
                let count = self.io.read_buf(&mut self.unread).await?;
                ensure!(count > 0, "the connection was cut");
                self.heard = Instant::now();
            }
            let taken = self.decoder.push(&self.unread);
            self.unread.drain(..taken);
        }
    }

    /// Leaves for good.
    pub(super) async fn leave(mut self) {
        let goodbye = async {
            let payload = ws::close_payload(CloseCode::NORMAL, "");
            self.owe(Opcode::Close, &payload)?;
            while !matches!(self.next().await?, Event::Closed(..)) {}
            anyhow::Ok(())
        };
        // Whoever is gone already needs no goodbye.
        let _ = tokio::time::timeout(CLOSE_TIME, goodbye).await;
    }
}

/// What can be told of a frame of which something is nested deeper than values are read here: that it
/// came, and where that is.
fn unreadable(text: &str) -> serde_json::Result<Value> {
    #[derive(Deserialize)]
    struct Frame {
        m: Meta,
    }
    #[derive(Deserialize)]
    struct Meta {
        c: Option<String>,
    }
    let Frame { m: Meta { c } } = serde_json::from_str(text)?;
    Ok(serde_json::json!({ "t": UNREADABLE, "m": { "c": c } }))
}

/// Waits between attempts that fail one after another.
#[derive(Debug, Default)]
pub(super) struct Backoff(u32);

impl Backoff {
    pub(super) fn is_well(&mut self) {
        self.0 = 0;
    }

    pub(super) async fn wait(&mut self) {
        let wait = BACKOFF_FIRST.saturating_mul(1 << self.0.min(16)).min(BACKOFF_MAX);
        self.0 += 1;
        tokio::time::sleep(wait).await;
    }
}

/// Whether to come back to a neuron that closed with this code.
pub(super) fn is_final(code: CloseCode) -> bool {
    matches!(
        code,
        CloseCode::UNAUTHORIZED
            | CloseCode::KICKED
            | CloseCode::REPLACED
            | CloseCode::POLICY
            | CloseCode::TOO_LONG
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that the connection of a test takes at once: fewer than any frame has.
    const WINDOW: usize = 4;

    /// `select!` drops what has not won, and the next frame is waited for anew.
    #[tokio::test(start_paused = true)]
    async fn what_is_owed_is_written_whole_however_often_a_wait_is_dropped() {
        let (near, mut far) = tokio::io::duplex(WINDOW);
        let payload = [7; ws::CONTROL_BYTES_MAX];
        let mut link = Link::over(Box::new(near), ws::ping_frame(&payload).to_vec());
        let mut decoder = Decoder::new(MESSAGE_BYTES_MAX);
        let (mut has_said, mut is_answered) = (false, false);
        loop {
            let wait = tokio::time::timeout(Duration::from_millis(1), link.next()).await;
            wait.expect_err("nothing is said to it after the ping");
            if !has_said {
                has_said = true;
                link.send(&Value::from("text")).expect("owed");
            }
            let mut some = [0; WINDOW];
            let count = far.read(&mut some).await.expect("some of it");
            assert_eq!(decoder.push(&some[..count]), count);
            match decoder.next_message().expect("frames, one behind the other") {
                None => {}
                Some(Message::Pong(pong)) => {
                    assert_eq!(pong, payload);
                    is_answered = true;
                }
                Some(message) => {
                    assert_eq!(message, Message::Text("\"text\""));
                    assert!(is_answered, "the pong is owed first");
                    return;
                }
            }
        }
    }

    /// Whoever is closed on while he writes is told why.
    #[tokio::test]
    async fn a_close_is_read_by_who_cannot_write_any_more() {
        let (near, mut far) = tokio::io::duplex(WINDOW << 4);
        let close = ws::close_frame(CloseCode::TOO_LONG, "");
        far.write_all(&close).await.expect("there is room");
        drop(far);
        let mut link = Link::over(Box::new(near), Vec::new());
        link.send(&Value::from("long")).expect("owed");
        let event = link.next().await.expect("what was said before");
        assert!(matches!(event, Event::Closed(CloseCode::TOO_LONG, _)), "{event:?}");
    }
}
