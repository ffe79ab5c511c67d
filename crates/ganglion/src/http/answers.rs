//! Answers: a response's body, handed to the transport piece by piece and counted for as long as any
//! of it is in memory.
//!
//! An HTTP/2 client decides by its windows when an answer goes, so a finished answer may wait for
//! ever. Not here: how many bytes may wait (`turns`).

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::turns::{AnswerBytes, Turns};

/// Bytes that a transport takes at a time: an HTTP/2 frame's default bound. With less room in its
/// window a stream holds no more than this of its answer in the transport.
const PIECE_BYTES: usize = 16 << 10;
/// An answer up to this size is not counted: its headers weigh as much.
const SMALL_BYTES: usize = 1 << 10;

/// What the client of one connection has not taken yet.
#[derive(Debug)]
pub(super) struct Untaken {
    bytes: AtomicUsize,
    /// When it took something, last.
    moved: Mutex<Instant>,
}

impl Default for Untaken {
    fn default() -> Untaken {
        Untaken { bytes: AtomicUsize::new(0), moved: Mutex::new(Instant::now()) }
    }
}

impl Untaken {
    /// Notes that the client has taken something.
    pub(super) fn moved(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// When the client has taken nothing for this long; `None` while it need take nothing.
    fn late_at(&self, write_time: Duration) -> Option<Instant> {
        let moved = *self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        (self.bytes.load(Ordering::Relaxed) > 0).then_some(moved + write_time)
    }
}

/// Ends when a connection's client takes nothing of its answers for too long.
#[derive(Debug)]
pub(super) struct Patience {
    untaken: Arc<Untaken>,
    write_time: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub(super) fn new(untaken: Arc<Untaken>, write_time: Duration) -> Patience {
        Patience { untaken, write_time, timer: None }
    }

    /// To be asked after each poll of the connection.
    pub(super) fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(late_at) = self.untaken.late_at(self.write_time) else {
                self.timer = None;
                return Poll::Pending;
            };
            let timer =
                self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(late_at)));
            // A timer that is too early looks again when it is over.
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if late_at <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(late_at);
        }
    }
}

/// A response's body.
#[derive(Debug)]
pub(super) struct Answer {
    rest: Bytes,
    /// Told of each piece, when it goes in pieces.
    connection: Option<Arc<Untaken>>,
}

/// Bytes that are counted until the last piece of them is dropped.
struct Counted {
    bytes: Bytes,
    connection: Arc<Untaken>,
    _counted: AnswerBytes,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.connection.bytes.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        self.connection.moved();
    }
}

impl Answer {
    /// One that is not counted.
    pub(super) fn uncounted(bytes: Bytes) -> Answer {
        Answer { rest: bytes, connection: None }
    }

    /// One that is counted as its client's; `None` when there is no room for it. What `must_go` is
    /// counted only. HTTP/1 is given it at once, and writes it at once.
    pub(super) fn counted(
        bytes: Bytes,
        turns: &Arc<Turns>,
        connection: &Arc<Untaken>,
        address: IpAddr,
        is_http2: bool,
        must_go: bool,
    ) -> Option<Answer> {
        if bytes.len() <= SMALL_BYTES {
            return Some(Answer::uncounted(bytes));
        }
        if connection.bytes.load(Ordering::Relaxed) == 0 {
            // Before it is counted: the last time may be long ago.
            connection.moved();
        }
        let held = connection.bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        let Some(counted) = turns.answer(address, held, bytes.len(), must_go) else {
            connection.bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
            return None;
        };
        let owner = Counted { bytes, connection: connection.clone(), _counted: counted };
        let rest = Bytes::from_owner(owner);
        Some(Answer { rest, connection: is_http2.then(|| connection.clone()) })
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let Some(connection) = &self.connection else {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest)))));
        };
        connection.moved();
        let at = PIECE_BYTES.min(self.rest.len());
        // The last piece takes the owner with it.
        let piece = match at == self.rest.len() {
            true => std::mem::take(&mut self.rest),
            false => self.rest.split_to(at),
        };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::time::timeout;

    use super::super::connection::WRITE_TIME;
    use super::super::stage::Stage;
    use super::*;

    /// A page of some size that needs no store.
    const PAGE: &str = "/openapi.json";

    // RFC 9113 §6.
    const HEADERS: u8 = 1;

    const SETTINGS: u8 = 4;

    const PING: u8 = 6;

    const WINDOW_UPDATE: u8 = 8;

    const ACK: u8 = 1;

    const END_STREAM_AND_HEADERS: u8 = 5;

    /// `:status: 200` (RFC 7541, appendix A).
    const OK: u8 = 0x88;

    /// An HTTP/2 client by hand, whose streams' windows are shut until it opens one.
    struct Client(DuplexStream);

    impl Client {
        async fn connect(stage: &Stage, from: u8) -> Client {
            let mut client = Client(stage.connect(from));
            client.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("it is taken");
            // INITIAL_WINDOW_SIZE is 0.
            client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await;
            client
        }

        async fn send(&mut self, kind: u8, flags: u8, stream: u8, payload: &[u8]) {
            let length = u8::try_from(payload.len()).expect("short frames");
            let head = [0, 0, length, kind, flags, 0, 0, 0, stream];
            // It may have hung up.
            let _ = self.0.write_all(&[&head[..], payload].concat()).await;
        }

        /// Asks for the page.
        async fn ask(&mut self, stream: u8) {
            let length = u8::try_from(PAGE.len()).expect("a short path");
            // GET, http, and literals without indexing for `:path` and `:authority`.
            let fields = [&[0x82, 0x86, 0x04, length], PAGE.as_bytes(), &[0x01, 1, b'a']].concat();
            self.send(HEADERS, END_STREAM_AND_HEADERS, stream, &fields).await;
        }

        /// The next frame that is not about the connection; `None` at the end.
        async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
            loop {
                let mut head = [0; 9];
                self.0.read_exact(&mut head).await.ok()?;
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let mut payload = vec![0; length];
                self.0.read_exact(&mut payload).await.ok()?;
                match (head[3], head[4] & ACK) {
                    (PING, 0) => self.send(PING, ACK, 0, &payload).await,
                    (SETTINGS, 0) => self.send(SETTINGS, ACK, 0, &[]).await,
                    (kind, _) if head[5..] != [0; 4] => return Some((kind, payload)),
                    _ => {}
                }
            }
        }

        /// Whether the next answer is the page.
        async fn is_answered(&mut self) -> bool {
            loop {
                let (kind, payload) = self.next().await.expect("an answer");
                if kind == HEADERS {
                    return payload[0] == OK;
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_http2_client_that_takes_nothing_of_its_answers_is_cut() {
        let stage = Stage::new(|_| {});
        let mut client = Client::connect(&stage, 1).await;
        client.ask(1).await;
        assert!(client.is_answered().await);
        // It takes some, and again, each time late.
        let step = WRITE_TIME - Duration::from_secs(1);
        for _ in 0..3 {
            assert!(timeout(step, client.next()).await.is_err(), "there is no window");
            client.send(WINDOW_UPDATE, 0, 1, &2_000_u32.to_be_bytes()).await;
            assert_eq!(client.next().await.expect("it is not cut").1.len(), 2_000);
        }
        let begun = Instant::now();
        let end = timeout(WRITE_TIME * 3, client.next()).await.expect("it is cut");
        assert!(end.is_none());
        assert_eq!(begun.elapsed().as_secs(), WRITE_TIME.as_secs());
        while stage.shared.turns.answer_bytes() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn answers_that_are_not_taken_are_bounded_and_others_have_theirs() {
        let whole = Stage::new(|_| {}).ask(1, b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n").await;
        let (_, page) = whole.split_once("\r\n\r\n").expect("a body");
        let stage = Stage::new(|config| config.limits.answers.0 = 20 * page.len());
        let mut clients = Vec::new();
        let mut answered = Vec::new();
        for _ in 0..3 {
            let mut client = Client::connect(&stage, 1).await;
            for stream in [1, 3, 5] {
                client.ask(stream).await;
                answered.push(client.is_answered().await);
            }
            clients.push(client);
        }
        let (yes, no) = (true, false);
        // An eighth of a connection is two and a half, a quarter of an address five.
        assert_eq!(answered, [yes, yes, no, yes, yes, no, yes, no, no]);
        assert_eq!(stage.shared.turns.answer_bytes(), 5 * page.len());
        let mut other = Client::connect(&stage, 2).await;
        other.ask(1).await;
        assert!(other.is_answered().await, "another address");
        drop((clients, other));
        while stage.shared.turns.answer_bytes() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
