//! Answers: a response's body, handed to the transport piece by piece and counted for as long as any
//! of it is in memory.
//!
//! An HTTP/2 client decides by its windows when an answer goes, so a finished answer may wait for
//! ever. Not here: how many bytes may wait (`turns`).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::connection::WRITE_TIME;
use super::feeds::Feed;
use crate::turns::{AnswerBytes, Spender};

/// Bytes that a transport takes at a time: an HTTP/2 frame's default bound. With less room in its
/// window a stream holds no more than this of its answer in the transport.
const PIECE_BYTES: usize = 16 << 10;
/// An answer up to this size is not counted: its headers weigh as much.
const SMALL_BYTES: usize = 1 << 10;

/// Bytes of answers in a second that a client must take, over some time: as many as a slow telephone
/// does.
const TAKEN_BYTES_PER_S: u64 = 8 << 10;

/// What the client of one connection has not taken yet.
#[derive(Debug)]
pub(super) struct Untaken {
    bytes: AtomicUsize,
    /// When it will have taken too little.
    late_at: Mutex<Instant>,
}

impl Default for Untaken {
    fn default() -> Untaken {
        Untaken { bytes: AtomicUsize::new(0), late_at: Mutex::new(Instant::now() + WRITE_TIME) }
    }
}

impl Untaken {
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Notes an answer.
    fn owe(&self, bytes: usize) {
        // Together, or who looks in between takes it for late.
        let mut late_at = self.late_at();
        if self.bytes() == 0 {
            *late_at = Instant::now() + WRITE_TIME;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that the transport has taken something. That puts off when it is too late by as long as a
    /// slow client would need for it.
    pub(super) fn took(&self, bytes: usize) {
        if self.bytes() == 0 {
            return;
        }
        let time = Duration::from_micros(bytes as u64 * 1_000_000 / TAKEN_BYTES_PER_S);
        let mut late_at = self.late_at();
        *late_at = (*late_at + time).min(Instant::now() + WRITE_TIME);
    }

    fn late_at(&self) -> MutexGuard<'_, Instant> {
        self.late_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends when a connection's client takes too little of its answers for too long.
#[derive(Debug)]
pub(super) struct Patience {
    untaken: Arc<Untaken>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub(super) fn new(untaken: Arc<Untaken>) -> Patience {
        Patience { untaken, timer: None }
    }

    /// To be asked after each poll of the connection.
    pub(super) fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let late_at = {
                let late_at = self.untaken.late_at();
                if self.untaken.bytes() == 0 {
                    self.timer = None;
                    return Poll::Pending;
                }
                *late_at
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
pub(super) enum Answer {
    Whole(Whole),
    Feed(Box<Feed>),
}

/// A body that is there from the beginning.
#[derive(Debug)]
pub(super) struct Whole {
    rest: Bytes,
    /// How much of it goes at a time.
    piece: usize,
}

/// Bytes that are counted until the last piece of them is dropped.
struct Counted {
    bytes: Bytes,
    connection: Arc<Untaken>,
    /// None of what is in memory for others anyway.
    _counted: Option<AnswerBytes>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.connection.bytes.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// Bytes of a feed, shared with other feeds or not, counted as those of whoever called last until the
/// last piece of them is dropped; `None` when there is no room for them.
pub(super) fn counted_piece(
    bytes: Bytes,
    spender: &Spender,
    connection: &Arc<Untaken>,
) -> Option<Bytes> {
    let length = bytes.len();
    let counted = spender.answer(connection.bytes(), length, false)?;
    connection.owe(length);
    let connection = connection.clone();
    Some(Bytes::from_owner(Counted { bytes, connection, _counted: Some(counted) }))
}

/// Bytes that go over a transport of their own, counted as those of whoever called last until they are
/// dropped; `None` when there is no room for them.
pub(crate) fn counted_alone(bytes: &Bytes, spender: &Spender) -> Option<Bytes> {
    /// Counts for as long as it lives.
    struct Alone(Bytes, #[expect(dead_code, reason = "counts until it is dropped")] AnswerBytes);
    impl AsRef<[u8]> for Alone {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    if bytes.len() <= SMALL_BYTES {
        return Some(bytes.clone());
    }
    let counted = spender.answer(0, bytes.len(), false)?;
    Some(Bytes::from_owner(Alone(bytes.clone(), counted)))
}

impl Whole {
    /// The next piece of it.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        if self.rest.is_empty() {
            return None;
        }
        let at = self.piece.min(self.rest.len());
        // The last piece takes the owner with it.
        Some(match at == self.rest.len() {
            true => std::mem::take(&mut self.rest),
            false => self.rest.split_to(at),
        })
    }

    /// What goes in pieces over HTTP/2, and at once over HTTP/1.
    pub(super) fn new(bytes: Bytes, is_http2: bool) -> Whole {
        let piece = if is_http2 { PIECE_BYTES } else { bytes.len() };
        Whole { rest: bytes, piece }
    }
}

impl Answer {
    /// One that is not counted.
    pub(super) fn uncounted(bytes: Bytes) -> Answer {
        Answer::Whole(Whole::new(bytes, false))
    }

    /// One that is counted as that of whoever called last; `None` when there is no room for it. What
    /// `must_go` is counted only, and a page, of which there are no two copies, as untaken only. HTTP/1
    /// is given it at once, and writes it at once.
    pub(super) fn counted(
        bytes: Bytes,
        spender: &Spender,
        connection: &Arc<Untaken>,
        is_http2: bool,
        must_go: bool,
    ) -> Option<Answer> {
        let length = bytes.len();
        if length <= SMALL_BYTES {
            return Some(Answer::uncounted(bytes));
        }
        let counted = match bytes.is_unique() {
            true => Some(spender.answer(connection.bytes(), length, must_go)?),
            false => None,
        };
        connection.owe(length);
        let owner = Counted { bytes, connection: connection.clone(), _counted: counted };
        Some(Answer::Whole(Whole::new(Bytes::from_owner(owner), is_http2)))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match &mut *self {
            Answer::Whole(whole) => Poll::Ready(whole.next()),
            Answer::Feed(feed) => feed.poll_next(context),
        };
        piece.map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::Whole(whole) => whole.rest.is_empty(),
            Answer::Feed(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Whole(whole) => SizeHint::with_exact(whole.rest.len() as u64),
            Answer::Feed(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::time::timeout;

    use super::super::stage::{SYS_SECRET, Stage, authorization, basic};
    use super::*;

    /// A page of some size that needs no store.
    const PAGE: &str = "/openapi.json";
    const VALUE_BYTES: usize = 30_000;

    // RFC 9113 §6.
    const DATA: u8 = 0;

    const HEADERS: u8 = 1;

    const SETTINGS: u8 = 4;

    const PING: u8 = 6;

    const WINDOW_UPDATE: u8 = 8;

    const ACK: u8 = 1;

    const END_STREAM: u8 = 1;

    const END_HEADERS: u8 = 4;

    // Fields of RFC 7541, appendix A.
    const METHOD_GET: &[u8] = &[0x82];

    const METHOD_PUT: &[u8] = b"\x02\x03PUT";

    const SCHEME_HTTP: u8 = 0x86;

    const STATUS_200: u8 = 0x88;

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
            let [_, high, middle, low] = u32::try_from(payload.len()).expect("short").to_be_bytes();
            let head = [high, middle, low, kind, flags, 0, 0, 0, stream];
            // It may have hung up.
            let _ = self.0.write_all(&[&head[..], payload].concat()).await;
        }

        /// Asks for the page.
        async fn ask(&mut self, stream: u8) {
            self.request(stream, METHOD_GET, PAGE, "", b"").await;
        }

        /// Makes a request, with credentials if there are any.
        async fn request(
            &mut self,
            stream: u8,
            method: &[u8],
            path: &str,
            as_whom: &str,
            body: &[u8],
        ) {
            let text = |text: &str| {
                let length = u8::try_from(text.len()).expect("shorter than 127 bytes");
                [&[length], text.as_bytes()].concat()
            };
            // Literals without indexing for `:path`, `:authority` and `authorization`.
            let mut fields = [method, &[SCHEME_HTTP, 0x04], &text(path), &[0x01, 1, b'a']].concat();
            if !as_whom.is_empty() {
                fields.extend([0x0f, 0x08]);
                fields.extend(text(as_whom));
            }
            let flags = if body.is_empty() { END_HEADERS | END_STREAM } else { END_HEADERS };
            self.send(HEADERS, flags, stream, &fields).await;
            if !body.is_empty() {
                for piece in body.chunks(PIECE_BYTES) {
                    self.send(DATA, 0, stream, piece).await;
                }
                self.send(DATA, END_STREAM, stream, b"").await;
            }
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
                    (kind @ (HEADERS | DATA), _) => return Some((kind, payload)),
                    _ => {}
                }
            }
        }

        /// Whether the next answer is one with status 200.
        async fn is_answered(&mut self) -> bool {
            loop {
                let (kind, payload) = self.next().await.expect("an answer");
                if kind == HEADERS {
                    return payload[0] == STATUS_200;
                }
            }
        }

        /// Opens a stream's window and the connection's, and takes what then comes; `None` at the end.
        async fn take(&mut self, stream: u8, bytes: u32) -> Option<()> {
            for stream in [0, stream] {
                self.send(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()).await;
            }
            let mut left = bytes as usize;
            while left > 0 {
                left -= self.next().await?.1.len();
            }
            Some(())
        }
    }

    const SYS: &str = "$sys";
    const VALUE_AT: &str = "/_data/p?k=a";

    /// A stage whose budget for answers is some 21 values, with one that `$sys` and `bea` may read.
    async fn with_values() -> Stage {
        let stage = Stage::new(|config| config.limits.answers.0 = 21 * VALUE_BYTES);
        let bea = r#"{"k":"bea","v":{"email":"bea@example.org","secret":"bea's"}}"#;
        put(&stage, "/_acc/accounts", SYS, SYS_SECRET, bea).await;
        for (ident, secret) in [(SYS, SYS_SECRET), ("bea", "bea's")] {
            put(&stage, "/_data/p", ident, secret, &value("a")).await;
        }
        stage
    }

    fn value(key: &str) -> String {
        format!(r#"{{"k":"{key}","v":"{}"}}"#, "x".repeat(VALUE_BYTES))
    }

    async fn put(stage: &Stage, path: &str, ident: &str, secret: &str, body: &str) {
        let (credentials, length) = (basic(ident, secret), body.len());
        let head = format!(
            "PUT {path} HTTP/1.1\r\nhost: a\r\nauthorization: {credentials}\r\ncontent-length: {length}\r\n"
        );
        let answer = stage.send(9, head.as_bytes(), body.as_bytes()).await;
        assert!(answer.contains(r#""s":"ok""#), "{answer}");
    }

    async fn until_all_is_given_back(stage: &Stage) {
        while stage.shared.turns.answer_bytes() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_http2_client_that_takes_too_little_of_its_answers_is_cut() {
        // Of a window of so many bytes, opened so often.
        for (bytes, every) in [(0, 1), (1, 1), (8_000, 29), (1_000, 1)] {
            let stage = Stage::new(|_| {});
            let mut client = Client::connect(&stage, 1).await;
            client.ask(1).await;
            assert!(client.is_answered().await);
            let (begun, every) = (Instant::now(), Duration::from_secs(every));
            let taking = async {
                loop {
                    tokio::time::sleep(every).await;
                    match bytes {
                        0 => client.next().await.map(drop)?,
                        _ => client.take(1, bytes).await?,
                    }
                }
            };
            let end: Option<()> = timeout(WRITE_TIME * 3, taking).await.expect("it is cut");
            let late = begun.elapsed();
            assert!(
                end.is_none() && late >= WRITE_TIME && late < WRITE_TIME * 2,
                "{bytes}: {late:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_http1_client_that_takes_too_little_of_its_answers_is_cut() {
        let stage = Stage::new(|_| {});
        for (bytes, is_cut) in [(1_000, true), (9_000, false)] {
            let mut client = stage.connect(1);
            // More than the transport holds.
            let asked = format!("GET {PAGE} HTTP/1.1\r\nhost: a\r\n\r\n").repeat(8);
            client.write_all(asked.as_bytes()).await.expect("it is taken");
            let begun = Instant::now();
            let mut taken = vec![0; bytes];
            while begun.elapsed() < WRITE_TIME * 2 - Duration::from_secs(5) {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if client.write_all(b"\r\n").await.is_err() {
                    break;
                }
                client.read_exact(&mut taken).await.expect("there is more");
            }
            let is_open = client.write_all(b"\r\n").await.is_ok();
            assert_eq!(is_open, !is_cut, "{bytes} a second");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_http2_client_that_takes_its_answers_slowly_is_not_cut() {
        let stage = Stage::new(|_| {});
        let mut client = Client::connect(&stage, 1).await;
        let begun = Instant::now();
        for stream in (1..=255).step_by(2) {
            client.ask(stream).await;
            assert!(client.is_answered().await);
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                client.take(stream, 9_000).await.expect("it is not cut");
            }
        }
        assert!(begun.elapsed() > WRITE_TIME * 10);
    }

    #[tokio::test]
    async fn answers_that_are_not_taken_are_bounded_and_others_have_theirs() {
        let stage = with_values().await;
        let (mut clients, mut answered) = (Vec::new(), Vec::new());
        let as_sys = basic(SYS, SYS_SECRET);
        for from in 1..=3 {
            let mut client = Client::connect(&stage, from).await;
            for stream in [1, 3, 5] {
                client.request(stream, METHOD_GET, VALUE_AT, &as_sys, b"").await;
                answered.push(client.is_answered().await);
            }
            client.ask(7).await;
            assert!(client.is_answered().await, "a page is nobody's");
            clients.push(client);
        }
        let (yes, no) = (true, false);
        // An eighth of a connection is two and a half, a quarter of an account five.
        assert_eq!(answered, [yes, yes, no, yes, yes, no, yes, no, no]);
        let held = stage.shared.turns.answer_bytes();
        assert!((5 * VALUE_BYTES..6 * VALUE_BYTES).contains(&held), "{held}");
        let mut other = Client::connect(&stage, 1).await;
        other.request(1, METHOD_GET, VALUE_AT, &basic("bea", "bea's"), b"").await;
        assert!(other.is_answered().await, "another account");
        drop((clients, other));
        until_all_is_given_back(&stage).await;
    }

    /// What was written must be told, so where it could not be nothing is written.
    #[tokio::test]
    async fn writes_whose_answers_are_not_taken_are_refused_before_they_are_done() {
        let stage = with_values().await;
        let (mut clients, mut answered) = (Vec::new(), Vec::new());
        let as_sys = basic(SYS, SYS_SECRET);
        for connection in 1..=3 {
            let mut client = Client::connect(&stage, 1).await;
            for stream in [1, 3, 5] {
                let body = value(&format!("{connection}-{stream}"));
                client.request(stream, METHOD_PUT, "/_data/p", &as_sys, body.as_bytes()).await;
                answered.push(client.is_answered().await);
            }
            clients.push(client);
        }
        let (yes, no) = (true, false);
        assert_eq!(answered, [yes, yes, no, yes, yes, no, yes, no, no]);
        let held = stage.shared.turns.answer_bytes();
        assert!((5 * VALUE_BYTES..6 * VALUE_BYTES).contains(&held), "{held}");
        put(&stage, "/_data/p", "bea", "bea's", &value("b")).await;
        drop(clients);
        until_all_is_given_back(&stage).await;
        let head = format!("GET /_data/p HTTP/1.1\r\nhost: a\r\n{}", authorization());
        let keys = stage.ask(9, head.as_bytes()).await;
        for (key, is_there) in [("1-3", true), ("3-1", true), ("1-5", false), ("3-3", false)] {
            assert_eq!(keys.contains(&format!("\"{key}\"")), is_there, "{key}: {keys}");
        }
    }
}
