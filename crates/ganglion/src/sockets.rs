//! Signalling WebSockets: the handshake, one task a socket, and each socket's bounded queue.
//!
//! A frame that is meant for many is one buffer that all queues share; a socket's task takes all
//! that its queue holds and writes it at once, and goes on reading meanwhile. A socket that does not
//! keep up leaves its room when its queue is full, whatever is being written to it. Not here: who hears what (`signal`), framing (`wire::ws`).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use bytes::{Buf, Bytes};
use http::{HeaderValue, Method, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use neuron::sockets::Outbox;
use services::RoomRef;
use services::token::{self, Verified};
use signal::{Output, SocketId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use wire::envelope::Fault;
use wire::names::Path;
use wire::ws::{self, CloseCode, Decoder, Message, ProtocolError};

use crate::http::{Shared, plain};
use crate::listen::Entered;
use crate::pace::Paced;

/// RFC 6455 §1.3.
const HANDSHAKE_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes read at a time, on the stack.
const READ_BYTES: usize = 8 << 10;
/// Frames in one write.
const WRITE_FRAMES: usize = 64;
/// How long the answer to a handshake may take to be sent.
const UPGRADE_TIME: Duration = Duration::from_secs(10);
/// How long a socket may take for one batch of frames, and how many bytes of it add a second.
const WRITE_TIME: Duration = Duration::from_secs(20);
const WRITE_BYTES_PER_S: u64 = 32 << 10;
/// What sockets are told when the neuron goes away.
const STOPS: &str = "the neuron stops";
/// How long the last frames and the closing handshake may take.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// Every open socket's queue, by id.
#[derive(Debug)]
pub(crate) struct SocketTable {
    queues: papaya::HashMap<u64, Arc<Queue>>,
    next: AtomicU64,
    queue_bytes_max: usize,
    /// Set once, as the neuron goes away.
    is_closing: AtomicBool,
    pub(crate) counters: Counters,
}

/// What sockets have done, for metrics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) opened: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Cut because their queue was full, or because they took too long for what was written.
    pub(crate) slow: AtomicU64,
    /// Closed because nothing came from them.
    pub(crate) idle: AtomicU64,
    /// Closed because of a message over `signal.message`, or in more frames than a decoder takes.
    pub(crate) too_long: AtomicU64,
    pub(crate) text_pings: AtomicU64,
    pub(crate) frames_out: AtomicU64,
    pub(crate) writes: AtomicU64,
}

/// What waits to be written to one socket.
#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Bytes>,
    /// Bytes of `frames`, but for the first frame that was ever queued: who is in the room, which is
    /// as long as the room is full, and without which nobody can join.
    bytes: usize,
    has_begun: bool,
    /// Set once: nothing is queued after it.
    close: Option<Closing>,
}

/// Why a queue takes nothing more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Closing {
    /// It was full; what waited is dropped.
    Slow,
    /// The socket is to be told this after what waits.
    Told(CloseCode, &'static str),
}

impl SocketTable {
    pub(crate) fn new(queue_bytes_max: usize) -> Arc<SocketTable> {
        Arc::new(SocketTable {
            queues: papaya::HashMap::new(),
            next: AtomicU64::new(1),
            queue_bytes_max,
            is_closing: AtomicBool::new(false),
            counters: Counters::default(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.queues.len()
    }

    /// Closes every socket, those that open from here on too, as the neuron goes away.
    pub(crate) fn close_all(&self) {
        self.is_closing.swap(true, Ordering::AcqRel);
        for (_, queue) in &self.queues.pin() {
            queue.close(CloseCode::GOING_AWAY, STOPS);
        }
    }

    fn open(&self) -> (SocketId, Arc<Queue>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let queue = Arc::new(Queue { waiting: Mutex::default(), wake: Notify::new() });
        self.queues.pin().insert(id, queue.clone());
        // Both sides change the flag in one order: either this sees it set, or the queue was there
        // for `close_all` to find.
        if self.is_closing.fetch_or(false, Ordering::AcqRel) {
            queue.close(CloseCode::GOING_AWAY, STOPS);
        }
        (SocketId(id), queue)
    }

    fn push(&self, socket: SocketId, frame: Bytes) {
        let queues = self.queues.pin();
        if let Some(queue) = queues.get(&socket.0) {
            queue.push(frame, self.queue_bytes_max);
        }
    }
}

impl Outbox for SocketTable {
    fn deliver(&self, output: Output) {
        match output {
            Output::Send { socket, frame } => self.push(socket, frame),
            Output::Fanout(fanout) => {
                for socket in fanout.receivers() {
                    self.push(socket, fanout.frame.clone());
                }
            }
            Output::Close { socket, code, reason } => {
                if let Some(queue) = self.queues.pin().get(&socket.0) {
                    queue.close(code, reason);
                }
            }
            Output::Stat(_) => {}
        }
    }
}

impl Queue {
    /// A frame that finds the queue full cuts the socket.
    fn push(&self, frame: Bytes, bytes_max: usize) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.close.is_some() {
            return;
        }
        let bytes = if waiting.has_begun { waiting.bytes + frame.len() } else { 0 };
        waiting.has_begun = true;
        if bytes <= bytes_max {
            waiting.bytes = bytes;
            waiting.frames.push_back(frame);
        } else {
            waiting.frames = VecDeque::new();
            waiting.close = Some(Closing::Slow);
        }
        drop(waiting);
        self.wake.notify_one();
    }

    fn close(&self, code: CloseCode, reason: &'static str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.close.get_or_insert(Closing::Told(code, reason));
        drop(waiting);
        self.wake.notify_one();
    }

    fn closing(&self) -> Option<Closing> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).close
    }

    fn take(&self) -> VecDeque<Bytes> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.bytes = 0;
        std::mem::take(&mut waiting.frames)
    }
}

/// Answers an upgrade, and joins the socket to its room if its token is right. A token that is not
/// is told by a close code, since pages cannot see the status of a refused handshake
/// (`spec/xirsys.md` §1.7).
pub(crate) async fn upgrade(
    shared: &Arc<Shared>,
    entered: &Arc<Entered>,
    mut request: hyper::Request<Incoming>,
    _version: u8,
    token: String,
    address: IpAddr,
) -> hyper::Response<Bytes> {
    let Some(accept) = accept_key(&request) else {
        return plain(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket (RFC 6455, version 13)\n");
    };
    let asked = request.uri().query().and_then(|query| {
        let params = wire::params::Params::read(query, b"").ok()?;
        Some(params.text("path")?.into_owned())
    });
    let admitted = admit(shared, &token, asked.as_deref(), address).await;
    let upgraded = hyper::upgrade::on(&mut request);
    let (shared, entered) = (shared.clone(), entered.clone());
    tokio::spawn(async move {
        let _entered = entered;
        match tokio::time::timeout(UPGRADE_TIME, upgraded).await {
            Ok(Ok(upgraded)) => Socket::run_upgraded(shared, upgraded, admitted, address).await,
            Ok(Err(error)) => tracing::debug!(%address, %error, "upgrade failed"),
            Err(_) => tracing::debug!(%address, "upgrade took too long"),
        }
    });
    let mut response = hyper::Response::new(Bytes::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::try_from(accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

/// What a valid token opens, or the close that tells why it does not.
async fn admit(
    shared: &Shared,
    token: &str,
    asked: Option<&str>,
    address: IpAddr,
) -> Result<(Verified, RoomRef), (CloseCode, String)> {
    if shared.lifecycle.is_draining() {
        return Err((CloseCode::GOING_AWAY, "draining".to_owned()));
    }
    let services = &shared.neuron.services;
    let verified = token::verify(services, token).await.map_err(|fault| refusal(&fault))?;
    let asked = asked.map(Path::parse).transpose();
    let asked = asked.map_err(|error| refusal(&Fault::new(error.code())))?;
    let room = token::room(services, &verified, asked.as_ref(), address).await;
    Ok((verified, room.map_err(|fault| refusal(&fault))?))
}

/// How a socket that may not be here is closed. Clients that are told [`CloseCode::UNAUTHORIZED`]
/// never come back with that token, so what passes by itself has another code.
fn refusal(fault: &Fault) -> (CloseCode, String) {
    let code = match fault.code.status() {
        503 => CloseCode::TRY_AGAIN_LATER,
        500.. => CloseCode::INTERNAL,
        _ => CloseCode::UNAUTHORIZED,
    };
    (code, fault.code.as_str().to_owned())
}

/// The answer to a client's handshake; `None` when it is not one.
fn accept_key(request: &hyper::Request<Incoming>) -> Option<String> {
    let headers = request.headers();
    let has = |name: header::HeaderName, wanted: &str| {
        headers.get_all(name).iter().any(|value| {
            let text = value.to_str().unwrap_or("");
            text.split(',').any(|part| part.trim().eq_ignore_ascii_case(wanted))
        })
    };
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?.to_str().ok()?;
    let is_handshake = request.method() == Method::GET
        && has(header::CONNECTION, "upgrade")
        && has(header::UPGRADE, "websocket")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    is_handshake.then(|| {
        let text = format!("{key}{HANDSHAKE_GUID}");
        let sha1 = &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY;
        let digest = aws_lc_rs::digest::digest(sha1, text.as_bytes());
        base64::engine::general_purpose::STANDARD.encode(digest)
    })
}

/// What frames go over: the listener's own stream, without what paces requests below hyper.
trait Transport: AsyncRead + AsyncWrite + Unpin {
    fn tcp(&self) -> &TcpStream;
}

impl Transport for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Transport for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// One open socket: its transport, decoder and queue.
struct Socket<IO> {
    shared: Arc<Shared>,
    io: IO,
    id: SocketId,
    queue: Arc<Queue>,
    decoder: Decoder,
    batch: Batch,
    heard: Instant,
}

/// Frames that are being written.
struct Batch {
    frames: VecDeque<Bytes>,
    /// Whether the first frame was written in part: nothing but its rest may follow.
    is_split: bool,
    /// Whether the transport may still hold what it took.
    is_unflushed: bool,
    /// When the last byte must have been taken.
    deadline: Instant,
}

/// Why a socket's task ends.
#[derive(Debug, Eq, PartialEq)]
enum End {
    /// The peer broke the protocol.
    Broken(ProtocolError),
    /// Send this close after what waits.
    Close(CloseCode, String),
    /// The transport is gone.
    Gone,
    /// Nothing came from the peer for too long.
    Idle,
    /// The peer does not keep up: what waits is dropped.
    Slow,
}

impl Batch {
    fn new() -> Batch {
        let frames = VecDeque::new();
        Batch { frames, is_split: false, is_unflushed: false, deadline: Instant::now() }
    }

    fn begin(&mut self, frames: VecDeque<Bytes>) {
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        let for_size = Duration::from_secs(bytes as u64 / WRITE_BYTES_PER_S);
        self.deadline = Instant::now() + WRITE_TIME + for_size;
        self.frames = frames;
    }

    fn is_done(&self) -> bool {
        self.frames.is_empty() && !self.is_unflushed
    }

    fn is_late(&self) -> bool {
        !self.is_done() && Instant::now() >= self.deadline
    }

    /// Drops every frame of which nothing was written.
    fn give_up(&mut self) {
        self.frames.truncate(usize::from(self.is_split));
    }

    /// Writes once, or flushes when everything is written.
    fn poll_write<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        counters: &Counters,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.frames.is_empty() {
            std::task::ready!(Pin::new(io).poll_flush(context))?;
            self.is_unflushed = false;
            return Poll::Ready(Ok(()));
        }
        let mut slices = [IoSlice::new(&[]); WRITE_FRAMES];
        for (slice, frame) in slices.iter_mut().zip(&self.frames) {
            *slice = IoSlice::new(frame);
        }
        let count = self.frames.len().min(WRITE_FRAMES);
        let writing = Pin::new(io).poll_write_vectored(context, &slices[..count]);
        let mut written = std::task::ready!(writing)?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        counters.writes.fetch_add(1, Ordering::Relaxed);
        self.is_unflushed = true;
        while let Some(frame) = self.frames.front_mut() {
            if written < frame.len() {
                self.is_split |= written > 0;
                frame.advance(written);
                break;
            }
            written -= frame.len();
            self.is_split = false;
            self.frames.pop_front();
            counters.frames_out.fetch_add(1, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl Socket<()> {
    async fn run_upgraded(
        shared: Arc<Shared>,
        upgraded: hyper::upgrade::Upgraded,
        admitted: Result<(Verified, RoomRef), (CloseCode, String)>,
        address: IpAddr,
    ) {
        let upgraded = match downcast::<TokioIo<Paced<TcpStream>>>(upgraded) {
            Ok(parts) => {
                let io = parts.io.into_inner().into_inner();
                return Socket::run(shared, io, &parts.read_buf, admitted, address).await;
            }
            Err(upgraded) => upgraded,
        };
        match downcast::<TokioIo<Paced<TlsStream<TcpStream>>>>(upgraded) {
            // Boxed, so that a task without TLS has no room for it: that would triple its size.
            Ok(parts) => {
                let run = async move {
                    let io = parts.io.into_inner().into_inner();
                    Socket::run(shared, io, &parts.read_buf, admitted, address).await;
                };
                Box::pin(run).await;
            }
            Err(_) => tracing::error!(%address, "a listener has a transport of another kind"),
        }
    }

    async fn run<IO: Transport>(
        shared: Arc<Shared>,
        io: IO,
        read_already: &[u8],
        admitted: Result<(Verified, RoomRef), (CloseCode, String)>,
        address: IpAddr,
    ) {
        let (id, queue) = shared.sockets.open();
        let decoder = Decoder::new(shared.config.signal.message.0);
        let (batch, heard) = (Batch::new(), Instant::now());
        let mut socket = Socket { shared: shared.clone(), io, id, queue, decoder, batch, heard };
        let counters = &shared.sockets.counters;
        let (verified, room) = match admitted {
            Ok(admitted) => admitted,
            Err((code, reason)) => {
                counters.refused.fetch_add(1, Ordering::Relaxed);
                socket.finish(End::Close(code, reason)).await;
                return;
            }
        };
        let services = &shared.neuron.services;
        if let Err(refusal) = shared.neuron.sockets.join(id, &verified, &room, address) {
            counters.refused.fetch_add(1, Ordering::Relaxed);
            socket.finish(End::Close(refusal.close_code(), refusal.to_string())).await;
            return;
        }
        // A revocation or a rule that came since the token was looked at has found no socket to close.
        let still = token::recheck(services, &verified, &room, address).await;
        if let Err(fault) = still {
            counters.refused.fetch_add(1, Ordering::Relaxed);
            shared.neuron.sockets.leave(id);
            // Who is not to be here does not hear who is.
            drop(socket.queue.take());
            let (code, reason) = refusal(&fault);
            socket.finish(End::Close(code, reason)).await;
            return;
        }
        counters.opened.fetch_add(1, Ordering::Relaxed);
        let token = verified.claims.id;
        services.graces.connected(token, services.now_s());
        let end = socket.converse(read_already).await;
        count_end(&end, counters);
        shared.neuron.sockets.leave(id);
        services.graces.disconnected(token, services.now_s());
        socket.finish(end).await;
    }
}

impl<IO: Transport> Socket<IO> {
    /// Reads and writes until one side ends.
    async fn converse(&mut self, read_already: &[u8]) -> End {
        if let Err(end) = self.hear(read_already) {
            return end;
        }
        let queue = self.queue.clone();
        let ping_after = self.shared.config.signal.ping_after.0;
        let idle = self.shared.config.signal.idle.0;
        let mut check = tokio::time::interval(ping_after.min(idle) / 2);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pinged = false;
        loop {
            let (is_writing, deadline) = (!self.batch.is_done(), self.batch.deadline);
            tokio::select! {
                biased;
                () = queue.wake.notified() => match queue.closing() {
                    Some(Closing::Slow) => return End::Slow,
                    Some(Closing::Told(code, reason)) => return End::Close(code, reason.to_owned()),
                    // What came meanwhile is taken when the batch is done.
                    None if is_writing => {}
                    None => self.batch.begin(queue.take()),
                },
                moved = poll_fn(|context| self.poll_move(context)) => {
                    match moved {
                        // A peer that sends without a pause keeps the timer below from its turn.
                        Ok(_) if self.batch.is_late() => return End::Slow,
                        Ok(true) => { self.heard = Instant::now(); pinged = false; }
                        Ok(false) => {}
                        Err(end) => return end,
                    }
                    if is_writing && self.batch.is_done() {
                        self.batch.begin(queue.take());
                    }
                }
                () = async { tokio::time::sleep_until(deadline).await }, if is_writing => {
                    return End::Slow;
                }
                _ = check.tick() => {
                    let silence = self.heard.elapsed();
                    if silence >= idle {
                        return End::Idle;
                    }
                    if silence >= ping_after && !std::mem::replace(&mut pinged, true) {
                        queue.push(ws::ping_frame(b""), self.shared.config.signal.queue.0);
                    }
                }
            }
        }
    }

    /// Writes once, if there is something to write, and reads once, into a buffer on the stack, so
    /// that an idle socket holds none. Answers whether something came.
    fn poll_move(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, End>> {
        let mut has_written = false;
        if !self.batch.is_done() {
            let counters = &self.shared.sockets.counters;
            match self.batch.poll_write(&mut self.io, counters, context) {
                Poll::Ready(Ok(())) => has_written = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(gone(&error))),
                Poll::Pending => {}
            }
        }
        let mut bytes = [std::mem::MaybeUninit::uninit(); READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut bytes);
        match Pin::new(&mut self.io).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(Err(End::Gone)),
            Poll::Ready(Ok(())) => Poll::Ready(self.hear(buffer.filled()).map(|()| true)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(gone(&error))),
            Poll::Pending if has_written => Poll::Ready(Ok(false)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Sends what is left and the close, gives the peer a moment to take them, and forgets the
    /// socket.
    async fn finish(mut self, end: End) {
        let is_slow = end == End::Slow;
        let told = match end {
            End::Broken(error) => Some((error.close_code(), error.to_string())),
            End::Close(code, reason) => Some((code, reason)),
            End::Gone => None,
            End::Idle => Some((CloseCode::GOING_AWAY, "idle".to_owned())),
            End::Slow => Some((CloseCode::TRY_AGAIN_LATER, "too slow".to_owned())),
        };
        if let Some((code, reason)) = told {
            let mut waiting = self.queue.take();
            if is_slow {
                self.batch.give_up();
                waiting.clear();
            }
            self.batch.frames.append(&mut waiting);
            self.batch.frames.push_back(ws::close_frame(code, &reason));
            let is_closed = tokio::time::timeout(CLOSE_TIME, self.close()).await.is_ok();
            if is_slow && !is_closed {
                // The kernel would keep what it has for the peer for as long as that takes a byte
                // now and then.
                let socket = socket2::SockRef::from(self.io.tcp());
                if let Err(error) = socket.set_linger(Some(Duration::ZERO)) {
                    tracing::debug!(%error, "a slow peer's connection lingers");
                }
            }
        }
        self.shared.sockets.queues.pin().remove(&self.id.0);
    }

    /// Writes what the batch holds, and waits until the peer has closed too.
    async fn close(&mut self) -> io::Result<()> {
        let counters = &self.shared.sockets.counters;
        while !self.batch.is_done() {
            poll_fn(|context| self.batch.poll_write(&mut self.io, counters, context)).await?;
        }
        self.io.shutdown().await?;
        let mut rest = [0; 512];
        while self.io.read(&mut rest).await? > 0 {}
        Ok(())
    }

    /// Feeds bytes to the decoder and acts on what they say.
    fn hear(&mut self, mut bytes: &[u8]) -> Result<(), End> {
        let shared = &self.shared;
        while !bytes.is_empty() {
            let taken = self.decoder.push(bytes);
            bytes = &bytes[taken..];
            loop {
                match self.decoder.next_message() {
                    Ok(None) => break,
                    // Old pages flood these: they cost neither the core's lock nor a parse.
                    Ok(Some(Message::Text("ping"))) => {
                        shared.sockets.counters.text_pings.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(Some(Message::Text(text))) => shared.neuron.sockets.text(self.id, text),
                    Ok(Some(Message::Ping(payload))) => {
                        self.queue.push(ws::pong_frame(payload), shared.config.signal.queue.0);
                    }
                    Ok(Some(Message::Pong(_) | Message::Binary(_))) => {}
                    Ok(Some(Message::Close { code: CloseCode::NO_STATUS, .. })) => {
                        return Err(End::Close(CloseCode::NORMAL, String::new()));
                    }
                    Ok(Some(Message::Close { code, .. })) => {
                        return Err(End::Close(code, String::new()));
                    }
                    Err(error) => return Err(End::Broken(error)),
                }
            }
        }
        Ok(())
    }
}

fn gone(error: &io::Error) -> End {
    tracing::trace!(%error, "socket gone");
    End::Gone
}

/// Counts an end that a limit brought about.
fn count_end(end: &End, counters: &Counters) {
    let counter = match end {
        End::Slow => &counters.slow,
        End::Idle => &counters.idle,
        End::Broken(ProtocolError::MessageTooLong | ProtocolError::TooManyFragments) => {
            &counters.too_long
        }
        End::Broken(_) | End::Close(..) | End::Gone => return,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use anyhow::{Context as _, Result};
    use services::principal::{Caller, Role};
    use services::{Call, Service};
    use store::embedded::{EmbeddedStore, Options};
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;
    use wire::errors::Code;
    use wire::names::Ident;
    use wire::params::Params;

    use super::*;
    use crate::config::Config;

    fn frame(bytes: usize) -> Bytes {
        Bytes::from(vec![b'x'; bytes])
    }

    fn queue() -> Queue {
        Queue { waiting: Mutex::default(), wake: Notify::new() }
    }

    /// The list of a full room's names is longer than any queue, and everybody joins with it.
    #[test]
    fn the_first_frame_passes_and_those_after_it_are_bounded() {
        let queue = queue();
        queue.push(frame(1000), 10);
        queue.push(frame(4), 10);
        queue.push(frame(6), 10);
        assert_eq!(queue.closing(), None, "at the limit");
        queue.push(frame(1), 10);
        assert_eq!(queue.closing(), Some(Closing::Slow), "past it");
        assert!(queue.take().is_empty(), "what waited is dropped");
        queue.push(frame(1), 10);
        queue.close(CloseCode::KICKED, "kicked");
        assert!(queue.take().is_empty());
        assert_eq!(queue.closing(), Some(Closing::Slow));
    }

    #[test]
    fn what_was_taken_waits_no_longer() {
        let queue = queue();
        for _ in 0..3 {
            queue.push(frame(4), 10);
            queue.push(frame(6), 10);
            assert_eq!(queue.take().len(), 2);
        }
        queue.close(CloseCode::KICKED, "kicked");
        assert_eq!(queue.closing(), Some(Closing::Told(CloseCode::KICKED, "kicked")));
    }

    /// It was admitted before the stop.
    #[test]
    fn a_socket_that_opens_after_all_were_closed_is_closed() {
        let table = SocketTable::new(10);
        let (_, before) = table.open();
        assert_eq!(before.closing(), None);
        table.close_all();
        let (_, after) = table.open();
        for queue in [before, after] {
            assert_eq!(queue.closing(), Some(Closing::Told(CloseCode::GOING_AWAY, STOPS)));
        }
    }

    /// The client library never tries again after 4401.
    #[test]
    fn only_a_token_that_is_refused_is_refused_for_good() {
        for (code, close) in [
            (Code::Unauthorized, CloseCode::UNAUTHORIZED),
            (Code::NoNamespace, CloseCode::UNAUTHORIZED),
            (Code::StoreUnavailable, CloseCode::TRY_AGAIN_LATER),
            (Code::StoreDegraded, CloseCode::TRY_AGAIN_LATER),
            (Code::Overloaded, CloseCode::TRY_AGAIN_LATER),
            (Code::Internal, CloseCode::INTERNAL),
        ] {
            assert_eq!(refusal(&Fault::new(code)), (close, code.as_str().to_owned()));
        }
    }

    #[test]
    fn every_end_that_a_limit_brings_about_is_counted() {
        let counters = Counters::default();
        for end in [
            End::Slow,
            End::Idle,
            End::Broken(ProtocolError::MessageTooLong),
            End::Broken(ProtocolError::TooManyFragments),
            End::Broken(ProtocolError::Unmasked),
            End::Close(CloseCode::TOO_LONG, String::new()),
            End::Gone,
        ] {
            count_end(&end, &counters);
        }
        let Counters { slow, idle, too_long, .. } = counters;
        assert_eq!([slow, idle, too_long].map(AtomicU64::into_inner), [1, 1, 2]);
    }

    /// A peer of which nothing but its own pace is known.
    struct Drip {
        taken: Vec<u8>,
        at_a_time: usize,
    }

    impl AsyncWrite for Drip {
        fn poll_write(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(context, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let before = self.taken.len();
            let bytes = slices.iter().flat_map(|slice| slice.iter().copied());
            let bytes: Vec<u8> = bytes.take(self.at_a_time).collect();
            self.taken.extend(bytes);
            Poll::Ready(Ok(self.taken.len() - before))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A close that began inside a frame would be read as a part of it.
    #[test]
    fn a_batch_that_is_given_up_ends_between_frames() {
        let frames = || VecDeque::from([&b"abc"[..], b"def", b"ghi"].map(Bytes::from_static));
        for (steps, taken) in [(0, ""), (1, "abc"), (2, "abcdef"), (3, "abcdef"), (4, "abcdefghi")]
        {
            let mut io = Drip { taken: Vec::new(), at_a_time: 2 };
            let mut batch = Batch::new();
            batch.begin(frames());
            let mut context = Context::from_waker(std::task::Waker::noop());
            let counters = Counters::default();
            let mut write = |batch: &mut Batch| {
                let done = batch.poll_write(&mut io, &counters, &mut context);
                assert!(matches!(done, Poll::Ready(Ok(()))));
            };
            for _ in 0..steps {
                write(&mut batch);
            }
            batch.give_up();
            while !batch.is_done() {
                write(&mut batch);
            }
            assert_eq!(io.taken, taken.as_bytes(), "after {steps} writes");
        }
    }

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// A neuron that listens nowhere, and who asks of it.
    fn neuron(folder: &std::path::Path) -> Result<(Arc<Shared>, Caller)> {
        let store = EmbeddedStore::open(&folder.join("store"), Options::default())?;
        let mut config = Config::default();
        config.store.data_dir = folder.to_owned();
        crate::serve::prepare_data_folder(&config)?;
        let shared = crate::serve::assemble(&mut config, Arc::new(store), "secret")?;
        let bucket = kv4::Bucket::sys();
        let caller = Caller {
            account: Ident::sys(),
            sub: None,
            payer: bucket.clone(),
            bucket,
            who: "$sys".into(),
            role: Role::Owner,
        };
        Ok((Arc::new(shared), caller))
    }

    async fn ask(
        shared: &Shared,
        caller: &Caller,
        service: Service,
        method: services::Method,
        query: &str,
    ) -> Result<String> {
        let call = Call {
            caller,
            method,
            path: Path::root(),
            params: &Params::read(query, b"")?,
            if_match: None,
            must_be_new: false,
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            authority: "",
            is_tls: false,
        };
        let answer = services::call(&shared.neuron.services, service, &call).await;
        Ok(answer.map_err(|fault| anyhow::anyhow!("{}", fault.code.as_str()))?.v)
    }

    /// The first frame that a socket is sent, of which its token was looked at before it joins.
    async fn first_frame(shared: &Arc<Shared>, admitted: (Verified, RoomRef)) -> Result<Vec<u8>> {
        let listener = TcpListener::bind((ADDRESS, 0)).await?;
        let mut peer = TcpStream::connect(listener.local_addr()?).await?;
        let (io, _) = listener.accept().await?;
        let socket = Socket::run(shared.clone(), io, b"", Ok(admitted), ADDRESS);
        let socket = tokio::spawn(socket);
        let mut head = [0; 2];
        peer.read_exact(&mut head).await?;
        let mut frame = head.to_vec();
        frame.resize(2 + usize::from(head[1]), 0);
        peer.read_exact(&mut frame[2..]).await?;
        drop(peer);
        socket.await?;
        Ok(frame)
    }

    /// A revocation between the look at a token and the joining of its socket finds nobody to close.
    #[tokio::test]
    async fn what_was_taken_back_while_a_socket_joins_opens_nothing() -> Result<()> {
        let folder = tempfile::TempDir::new()?;
        let (shared, sys) = neuron(folder.path())?;
        let services = &shared.neuron.services;
        services.load_keys().await?;
        for (service, method, query) in [
            (Service::Token, services::Method::Delete, "id=TOKEN"),
            (Service::Token, services::Method::Delete, "k=bob"),
            (Service::Authorization, services::Method::Put, "k=127.0.0.0/8"),
        ] {
            let admit = async |name: &str| -> Result<(String, (Verified, RoomRef))> {
                let asked = format!("k={name}&expire=600");
                let token = ask(&shared, &sys, Service::Token, services::Method::Put, &asked);
                let token: String = serde_json::from_str(&token.await?)?;
                let admitted = admit(&shared, &token, None, ADDRESS).await;
                Ok((token, admitted.ok().context("the token is right")?))
            };
            let (_, admitted) = admit("ann").await?;
            let joined = first_frame(&shared, admitted).await?;
            assert!(joined.starts_with(&[0x81]), "a frame of text: {joined:?}");

            let (token, admitted) = admit("bob").await?;
            ask(&shared, &sys, service, method, &query.replace("TOKEN", &token)).await?;
            let refused = first_frame(&shared, admitted).await?;
            assert_eq!(
                refused[..4],
                [0x88, refused[1], 4401_u16.to_be_bytes()[0], 0x31],
                "{query}"
            );
            assert_eq!(shared.neuron.sockets.stats().sockets, 0, "{query}");
        }
        shared.store.close().await;
        Ok(())
    }
}
