//! Signalling WebSockets: the handshake, one task a socket, and each socket's bounded queue.
//!
//! A frame that is meant for many is one buffer that all queues share; a socket's task takes all
//! that its queue holds and writes it at once. A socket that does not keep up is cut when its queue
//! is full. Not here: who hears what (`signal`), framing (`wire::ws`).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use base64::Engine as _;
use bytes::{Buf, Bytes};
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use neuron::sockets::Outbox;
use services::RoomRef;
use services::token::{self, Verified};
use signal::{Output, SocketId};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use wire::envelope::Fault;
use wire::errors::Code;
use wire::names::Path;
use wire::ws::{self, CloseCode, Decoder, Message};

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
/// How long a socket may take no byte of what is written to it.
const WRITE_TIME: Duration = Duration::from_secs(20);
/// How long a closing handshake may take.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// Every open socket's queue, by id.
#[derive(Debug)]
pub(crate) struct SocketTable {
    queues: papaya::HashMap<u64, Arc<Queue>>,
    next: AtomicU64,
    queue_bytes_max: usize,
    pub(crate) counters: Counters,
}

/// What sockets have done, for metrics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) opened: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Cut because their queue was full.
    pub(crate) slow: AtomicU64,
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
    bytes: usize,
    /// Set once: nothing is queued after it.
    close: Option<(CloseCode, &'static str)>,
}

impl SocketTable {
    pub(crate) fn new(queue_bytes_max: usize) -> Arc<SocketTable> {
        Arc::new(SocketTable {
            queues: papaya::HashMap::new(),
            next: AtomicU64::new(1),
            queue_bytes_max,
            counters: Counters::default(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.queues.len()
    }

    /// Closes every socket, as the neuron goes away.
    pub(crate) fn close_all(&self) {
        for (_, queue) in &self.queues.pin() {
            queue.close(CloseCode::GOING_AWAY, "the neuron stops");
        }
    }

    fn open(&self) -> (SocketId, Arc<Queue>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let queue = Arc::new(Queue { waiting: Mutex::default(), wake: Notify::new() });
        self.queues.pin().insert(id, queue.clone());
        (SocketId(id), queue)
    }

    fn push(&self, socket: SocketId, frame: Bytes) {
        let queues = self.queues.pin();
        let Some(queue) = queues.get(&socket.0) else { return };
        if !queue.push(frame, self.queue_bytes_max) {
            self.counters.slow.fetch_add(1, Ordering::Relaxed);
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
    /// `false` when this frame found the queue full, which cuts the socket.
    fn push(&self, frame: Bytes, bytes_max: usize) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.close.is_some() {
            return true;
        }
        let fits = waiting.bytes + frame.len() <= bytes_max;
        if fits {
            waiting.bytes += frame.len();
            waiting.frames.push_back(frame);
        } else {
            *waiting = Waiting {
                close: Some((CloseCode::TRY_AGAIN_LATER, "too slow")),
                ..Waiting::default()
            };
        }
        drop(waiting);
        self.wake.notify_one();
        fits
    }

    fn close(&self, code: CloseCode, reason: &'static str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.close.get_or_insert((code, reason));
        drop(waiting);
        self.wake.notify_one();
    }

    fn take(&self) -> Waiting {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let close = waiting.close;
        let taken = std::mem::take(&mut *waiting);
        waiting.close = close;
        taken
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
) -> hyper::Response<Full<Bytes>> {
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
    let mut response = hyper::Response::new(Full::new(Bytes::new()));
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
    let refusal = |fault: Fault| {
        let code = match fault.code {
            Code::StoreUnavailable | Code::Overloaded => CloseCode::TRY_AGAIN_LATER,
            _ => CloseCode::UNAUTHORIZED,
        };
        (code, fault.code.as_str().to_owned())
    };
    if shared.lifecycle.is_draining() {
        return Err((CloseCode::GOING_AWAY, "draining".to_owned()));
    }
    let services = &shared.neuron.services;
    let verified = token::verify(services, token).await.map_err(refusal)?;
    let asked = asked.map(Path::parse).transpose();
    let asked = asked.map_err(|error| refusal(Fault::new(error.code())))?;
    let room = token::room(services, &verified, asked.as_ref(), address).await.map_err(refusal)?;
    Ok((verified, room))
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

/// One open socket: its transport, decoder and queue.
struct Socket<IO> {
    shared: Arc<Shared>,
    io: IO,
    id: SocketId,
    queue: Arc<Queue>,
    decoder: Decoder,
    heard: Instant,
}

/// Why a socket's task ends.
enum End {
    /// Send this close.
    Close(CloseCode, String),
    /// The peer closed, or the transport is gone.
    Gone,
}

impl Socket<()> {
    async fn run_upgraded(
        shared: Arc<Shared>,
        upgraded: hyper::upgrade::Upgraded,
        admitted: Result<(Verified, RoomRef), (CloseCode, String)>,
        address: IpAddr,
    ) {
        // The transport itself, without hyper's box, when the listener is a plain one.
        match hyper_util::server::conn::auto::upgrade::downcast::<TokioIo<Paced<TcpStream>>>(
            upgraded,
        ) {
            Ok(parts) => {
                Socket::run(
                    shared,
                    parts.io.into_inner().into_inner(),
                    &parts.read_buf,
                    admitted,
                    address,
                )
                .await;
            }
            Err(upgraded) => {
                Socket::run(shared, TokioIo::new(upgraded), b"", admitted, address).await;
            }
        }
    }

    async fn run<IO: AsyncRead + AsyncWrite + Unpin>(
        shared: Arc<Shared>,
        io: IO,
        read_already: &[u8],
        admitted: Result<(Verified, RoomRef), (CloseCode, String)>,
        address: IpAddr,
    ) {
        let (id, queue) = shared.sockets.open();
        let decoder = Decoder::new(shared.config.signal.message.0);
        let mut socket =
            Socket { shared: shared.clone(), io, id, queue, decoder, heard: Instant::now() };
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
            let reason = fault.code.as_str().to_owned();
            socket.finish(End::Close(CloseCode::UNAUTHORIZED, reason)).await;
            return;
        }
        counters.opened.fetch_add(1, Ordering::Relaxed);
        let token = verified.claims.id;
        services.graces.connected(token, services.now_s());
        let end = socket.converse(read_already).await;
        shared.neuron.sockets.leave(id);
        services.graces.disconnected(token, services.now_s());
        socket.finish(end).await;
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Socket<IO> {
    /// Reads and writes until one side ends.
    async fn converse(&mut self, read_already: &[u8]) -> End {
        if let Some(end) = self.hear(read_already) {
            return end;
        }
        let ping_after = self.shared.config.signal.ping_after.0;
        let idle = self.shared.config.signal.idle.0;
        let mut check = tokio::time::interval(ping_after.min(idle) / 2);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pinged = false;
        loop {
            let queue = self.queue.clone();
            tokio::select! {
                biased;
                () = queue.wake.notified() => {
                    let waiting = self.queue.take();
                    if let Err(error) = self.write(waiting.frames).await {
                        tracing::trace!(%error, "socket gone");
                        return End::Gone;
                    }
                    if let Some((code, reason)) = waiting.close {
                        return End::Close(code, reason.to_owned());
                    }
                }
                end = Self::read(&mut self.io, &mut self.decoder, &self.shared, self.id, &self.queue) => {
                    match end {
                        Ok(None) => { self.heard = Instant::now(); pinged = false; }
                        Ok(Some(end)) => return end,
                        Err(_) => return End::Gone,
                    }
                }
                _ = check.tick() => {
                    let silence = self.heard.elapsed();
                    if silence >= idle {
                        return End::Close(CloseCode::GOING_AWAY, "idle".to_owned());
                    }
                    if silence >= ping_after && !std::mem::replace(&mut pinged, true) {
                        let _ = self.queue.push(ws::ping_frame(b""), usize::MAX);
                    }
                }
            }
        }
    }

    /// Reads once, from a buffer on the stack, so that an idle socket holds none.
    async fn read(
        io: &mut IO,
        decoder: &mut Decoder,
        shared: &Shared,
        id: SocketId,
        queue: &Queue,
    ) -> io::Result<Option<End>> {
        poll_fn(|context| {
            let mut bytes = [std::mem::MaybeUninit::uninit(); READ_BYTES];
            let mut buffer = ReadBuf::uninit(&mut bytes);
            match Pin::new(&mut *io).poll_read(context, &mut buffer) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    Poll::Ready(Ok(Some(End::Gone)))
                }
                Poll::Ready(Ok(())) => {
                    Poll::Ready(Ok(decode(decoder, buffer.filled(), shared, id, queue)))
                }
            }
        })
        .await
    }

    fn hear(&mut self, bytes: &[u8]) -> Option<End> {
        decode(&mut self.decoder, bytes, &self.shared, self.id, &self.queue)
    }

    async fn write(&mut self, mut frames: VecDeque<Bytes>) -> io::Result<()> {
        let counters = &self.shared.sockets.counters;
        counters.frames_out.fetch_add(frames.len() as u64, Ordering::Relaxed);
        while !frames.is_empty() {
            let mut slices = [IoSlice::new(&[]); WRITE_FRAMES];
            for (slice, frame) in slices.iter_mut().zip(&frames) {
                *slice = IoSlice::new(frame);
            }
            let count = frames.len().min(WRITE_FRAMES);
            counters.writes.fetch_add(1, Ordering::Relaxed);
            let writing = self.io.write_vectored(&slices[..count]);
            let mut written = tokio::time::timeout(WRITE_TIME, writing).await??;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            while let Some(frame) = frames.front_mut() {
                if written < frame.len() {
                    frame.advance(written);
                    break;
                }
                written -= frame.len();
                frames.pop_front();
            }
        }
        self.io.flush().await
    }

    /// Sends the close, gives the peer a moment to take it, and forgets the socket.
    async fn finish(mut self, end: End) {
        if let End::Close(code, reason) = end {
            let closing = async {
                self.io.write_all(&ws::close_frame(code, &reason)).await?;
                self.io.shutdown().await?;
                let mut rest = [0; 512];
                while tokio::io::AsyncReadExt::read(&mut self.io, &mut rest).await? > 0 {}
                Ok::<_, io::Error>(())
            };
            let _ = tokio::time::timeout(CLOSE_TIME, closing).await;
        }
        self.shared.sockets.queues.pin().remove(&self.id.0);
    }
}

/// Feeds bytes to a socket's decoder and acts on what they say.
fn decode(
    decoder: &mut Decoder,
    mut bytes: &[u8],
    shared: &Shared,
    id: SocketId,
    queue: &Queue,
) -> Option<End> {
    while !bytes.is_empty() {
        let taken = decoder.push(bytes);
        bytes = &bytes[taken..];
        loop {
            match decoder.next_message() {
                Ok(None) => break,
                // Old pages flood these: they cost neither the core's lock nor a parse.
                Ok(Some(Message::Text("ping"))) => {
                    shared.sockets.counters.text_pings.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Some(Message::Text(text))) => shared.neuron.sockets.text(id, text),
                Ok(Some(Message::Ping(payload))) => {
                    let _ = queue.push(ws::pong_frame(payload), shared.config.signal.queue.0);
                }
                Ok(Some(Message::Pong(_) | Message::Binary(_))) => {}
                Ok(Some(Message::Close { code, .. })) => {
                    let code = if code == CloseCode::NO_STATUS { CloseCode::NORMAL } else { code };
                    return Some(End::Close(code, String::new()));
                }
                Err(error) => return Some(End::Close(error.close_code(), error.to_string())),
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use anyhow::{Context as _, Result};
    use services::principal::{Caller, Role};
    use services::{Call, Service};
    use store::embedded::{EmbeddedStore, Options};
    use tokio::io::AsyncReadExt as _;
    use wire::names::Ident;
    use wire::params::Params;

    use super::*;
    use crate::config::Config;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// A neuron that listens nowhere, and who asks of it.
    fn neuron(folder: &std::path::Path) -> Result<(Arc<Shared>, Caller)> {
        let store = EmbeddedStore::open(&folder.join("store"), Options::default())?;
        let mut config = Config::default();
        config.store.data_dir = folder.to_owned();
        let shared = crate::serve::assemble(&mut config, Arc::new(store), "secret")?;
        let bucket = kv4::Bucket::sys();
        let caller = Caller {
            account: Ident::sys(),
            sub: None,
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
            authority: "",
            is_tls: false,
        };
        let answer = services::call(&shared.neuron.services, service, &call).await;
        Ok(answer.map_err(|fault| anyhow::anyhow!("{}", fault.code.as_str()))?.v)
    }

    /// The first frame that a socket is sent, of which its token was looked at before it joins.
    async fn first_frame(shared: &Arc<Shared>, admitted: (Verified, RoomRef)) -> Result<Vec<u8>> {
        let (io, mut peer) = tokio::io::duplex(1 << 10);
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

    /// A revocation that came between the look at a token and the joining of its socket used to find
    /// nobody to close.
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
