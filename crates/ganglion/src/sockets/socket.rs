//! One socket's task: it joins its room, reads and writes until one side ends, and says goodbye.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use services::token;
use signal::SocketId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use wire::ws::{self, CloseCode, Decoder, Message, ProtocolError};

use super::batch::Batch;
use super::table::{Closing, Counters, Queue};
use super::upgrade::{Admitted, not_seated};
use crate::http::{Paced, Shared};

/// Bytes read at a time, on the stack.
const READ_BYTES: usize = 8 << 10;
/// How long the last frames and the closing handshake may take.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// What frames go over: the listener's own stream, without what paces requests below hyper.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin {
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
pub(super) struct Socket<IO> {
    shared: Arc<Shared>,
    io: IO,
    id: SocketId,
    queue: Arc<Queue>,
    decoder: Decoder,
    batch: Batch,
    heard: Instant,
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

impl Socket<()> {
    pub(super) async fn run_upgraded(
        shared: Arc<Shared>,
        upgraded: hyper::upgrade::Upgraded,
        admitted: Admitted,
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
        admitted: Admitted,
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
        let still = token::recheck(services, &verified, &room, address, id.0).await;
        if let Err(why) = still {
            counters.refused.fetch_add(1, Ordering::Relaxed);
            shared.neuron.sockets.leave(id);
            // Who is not to be here does not hear who is.
            drop(socket.queue.take());
            let (code, reason) = not_seated(&why);
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
        self.shared.sockets.forget(self.id);
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
    use std::sync::atomic::AtomicU64;

    use anyhow::{Context as _, Result};
    use services::principal::{Caller, Role};
    use services::token::Verified;
    use services::{Call, RoomRef, Service};
    use store::embedded::{EmbeddedStore, Options};
    use tokio::net::TcpListener;
    use wire::names::{Ident, Path};
    use wire::params::Params;

    use super::super::upgrade::admit;
    use super::*;
    use crate::config::Config;

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
        asked: &str,
    ) -> Result<String> {
        let (query, body) = if asked.starts_with('{') { ("", asked) } else { (asked, "") };
        let call = Call {
            caller,
            method,
            path: Path::root(),
            params: &Params::read(query, body.as_bytes())?,
            precondition: services::precondition::Precondition::Unsaid,
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
        let rule = r#"{"k":"join","v":["ann"]}"#;
        for (service, method, query, close) in [
            (Service::Token, services::Method::Delete, "id=TOKEN", 4401_u16),
            (Service::Token, services::Method::Delete, "k=bob", 4401),
            (Service::Configuration, services::Method::Put, rule, 4403),
            (Service::Authorization, services::Method::Put, "k=127.0.0.0/8", 4401),
        ] {
            let admit = async |name: &str| -> Result<(String, (Verified, RoomRef))> {
                let asked = format!("k={name}&expire=600");
                let token = ask(&shared, &sys, Service::Token, services::Method::Put, &asked);
                let token: String = serde_json::from_str(&token.await?)?;
                let admitted = admit(&shared, &token, None, None, ADDRESS).await;
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
                [0x88, refused[1], close.to_be_bytes()[0], close.to_be_bytes()[1]],
                "{query}"
            );
            assert_eq!(shared.neuron.sockets.stats().sockets, 0, "{query}");
            if service == Service::Configuration {
                ask(&shared, &sys, service, services::Method::Delete, "k=join").await?;
            }
        }
        shared.store.close().await;
        Ok(())
    }

    #[tokio::test]
    async fn a_page_of_an_origin_that_its_account_does_not_allow_opens_nothing() -> Result<()> {
        let folder = tempfile::TempDir::new()?;
        let (shared, sys) = neuron(folder.path())?;
        shared.neuron.services.load_keys().await?;
        let token =
            ask(&shared, &sys, Service::Token, services::Method::Put, "k=ann&expire=600").await?;
        let token: String = serde_json::from_str(&token)?;
        let (known, other) = (Some("https://known.example"), Some("https://other.example"));
        let allowed = async || {
            let mut allowed = Vec::new();
            for origin in [None, known, other] {
                let admitted = admit(&shared, &token, None, origin, ADDRESS).await;
                allowed.push(admitted.map(drop));
            }
            allowed
        };
        assert_eq!(allowed().await, [Ok(()), Ok(()), Ok(())], "without a setting");
        let set = r#"{"k":"cors_origins","v":["https://known.example"]}"#;
        ask(&shared, &sys, Service::Configuration, services::Method::Put, set).await?;
        let refused = Err((CloseCode::UNAUTHORIZED, "not_allowed".to_owned()));
        assert_eq!(allowed().await, [Ok(()), Ok(()), refused]);
        shared.store.close().await;
        Ok(())
    }
}
