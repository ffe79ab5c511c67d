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
const OPEN_TIME: Duration = Duration::from_secs(10);
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// How often a neuron is told that this end is there.
pub(super) const PING_EVERY: Duration = Duration::from_secs(20);
/// Silence after which a connection counts as cut: each ping is answered.
const SILENCE_MAX: Duration = Duration::from_secs(50);
/// What stands for a kind of frame that could not be read.
pub(super) const UNREADABLE: &str = "?";
/// Waits between attempts.
const BACKOFF_FIRST: Duration = Duration::from_millis(80);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// One open socket.
pub(super) struct Link {
    io: Stream,
    decoder: Decoder,
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
        link.send(&serde_json::json!({ "t": "hello", "p": hello })).await?;
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
        let decoder = Decoder::client(MESSAGE_BYTES_MAX);
        Ok(Link { io, decoder, unread, heard: Instant::now() })
    }

    pub(super) async fn send(&mut self, frame: &Value) -> Result<()> {
        self.write(Opcode::Text, frame.to_string().as_bytes()).await
    }

    /// Says that this end is there, and asks whether the other is.
    ///
    /// # Errors
    /// Nothing has come for long, or the connection is cut.
    pub(super) async fn ping(&mut self) -> Result<()> {
        ensure!(self.heard.elapsed() < SILENCE_MAX, "nothing comes any more");
        self.write(Opcode::Ping, b"").await
    }

    async fn write(&mut self, opcode: Opcode, payload: &[u8]) -> Result<()> {
        let mut key = [0; 4];
        aws_lc_rs::rand::fill(&mut key)?;
        self.io.write_all(&ws::masked_frame(true, opcode, payload, key)).await?;
        Ok(self.io.flush().await?)
    }

    /// The next frame, or the end. Nothing is lost when this is dropped before it is done.
    pub(super) async fn next(&mut self) -> Result<Event> {
        loop {
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
                self.write(Opcode::Pong, &payload).await?;
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
            self.write(Opcode::Close, &payload).await?;
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
