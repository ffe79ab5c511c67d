//! One socket's task: it joins its room, reads and writes until one side ends, and says goodbye.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use neuron::asking::Asker;
use neuron::sockets::{Joiner, Place};
use services::sessions::Session;
use services::token::{self, Counted, Verified};
use services::{access, principal};
use signal::{Coming, Departure, SocketId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use wire::envelope::{self, Fault};
use wire::errors::Code;
use wire::frames::{self, BadFrame, ClientFrame, Generation, Id, ServerFrame};
use wire::names::Path;
use wire::token::Grants;
use wire::ws::{self, CloseCode, ProtocolError};

use super::asks::Asks;
use super::batch::Batch;
use super::framing::{Framing, Heard};
use super::hello::{Credentials, Greeting};
use super::pace::Pace;
use super::table::{Closing, Counters, Queue};
use super::upgrade::{
    Admitted, Arrival, admit, not_seated, permit_origin, refusal, refuse_while_draining, verify,
};
use crate::http::{Paced, Shared, answers};
use crate::listen::Entered;
use crate::turns::Spender;

/// Bytes read at a time, on the stack.
const READ_BYTES: usize = 8 << 10;
/// Bare pings read at once that are paced as one message: no page comes near that, and what sends
/// nothing else is not to have a core to itself.
const PINGS_PER_MESSAGE: u32 = 32;
/// How long a v4 client may take to say who it is.
const HELLO_TIME: Duration = Duration::from_secs(10);
/// What a v1 client is told of a token that opens nothing (`spec/xirsys.md` §1.8).
const TOKEN_INVALID: &str = "\"Token invalid\"";
/// What a v4 client is told of a binary message.
const ONLY_TEXTS: &str = "frames are texts";
/// How long the last frames and the closing handshake may take.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// What frames go over: the listener's own stream, without what paces requests below hyper.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin {
    fn socket(&self) -> socket2::SockRef<'_>;

    fn is_tls(&self) -> bool {
        false
    }
}

impl Transport for TcpStream {
    fn socket(&self) -> socket2::SockRef<'_> {
        socket2::SockRef::from(self)
    }
}

impl Transport for UnixStream {
    fn socket(&self) -> socket2::SockRef<'_> {
        socket2::SockRef::from(self)
    }
}

impl Transport for TlsStream<TcpStream> {
    fn socket(&self) -> socket2::SockRef<'_> {
        self.get_ref().0.socket()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// One open socket: its transport, decoder and queue.
pub(crate) struct Socket<IO> {
    shared: Arc<Shared>,
    io: IO,
    id: SocketId,
    generation: Generation,
    /// None while it is in no room.
    seat: Option<Seat>,
    queue: Arc<Queue>,
    framing: Framing,
    batch: Batch,
    heard: Instant,
    pace: Pace,
    /// Who pays for what it does; its account, once that is known.
    spender: Arc<Spender>,
    /// What it asks for, once it does; of v4 only.
    asks: Option<Arc<Asks>>,
    /// With what it came, and the path of its room, until it asks.
    opener: Option<Box<(Verified, Path)>>,
    address: IpAddr,
}

/// Where a socket is in its room, and that it is counted among those of its token.
struct Seat {
    place: Place,
    counted: Option<Counted>,
}

/// How the socket of one who may not be here is closed.
type Refused = (CloseCode, String);

/// How a v4 socket goes on after its hello.
enum Arrived {
    InRoom(Admitted, Coming),
    /// It only asks.
    Outside(Asker),
}

/// Why a socket's task ends.
#[derive(Debug, Eq, PartialEq)]
enum End {
    /// The peer broke the protocol.
    Broken(ProtocolError),
    /// Send this close after what waits.
    Close(CloseCode, String),
    /// The peer said goodbye; it is answered after what waits.
    Closed(CloseCode),
    /// The transport is gone.
    Gone,
    /// Nothing came from the peer for too long.
    Idle,
    /// The peer does not keep up: what waits is dropped.
    Slow,
}

impl End {
    /// Whether the peer may come back.
    fn departure(&self) -> Departure {
        match self {
            End::Closed(CloseCode::NORMAL | CloseCode::GOING_AWAY) => Departure::Closed,
            End::Broken(_) | End::Close(..) | End::Closed(_) => Departure::Lost,
            End::Gone | End::Idle | End::Slow => Departure::Lost,
        }
    }
}

impl Socket<()> {
    /// Talks to a client whose connection was upgraded, in a task of its own: that of the upgrade is
    /// several times as large, and a socket lives long.
    pub(super) fn begin(
        shared: Arc<Shared>,
        upgraded: hyper::upgrade::Upgraded,
        arrival: Arrival,
        entered: Arc<Entered>,
        address: IpAddr,
    ) {
        // What was read is copied out of a buffer that would be held for as long as it is.
        let upgraded = match downcast::<TokioIo<Paced<TcpStream>>>(upgraded) {
            Ok(parts) => {
                let (io, read) = (parts.io.into_inner().into_inner(), parts.read_buf.to_vec());
                return Socket::spawn(shared, io, read, arrival, entered, address);
            }
            Err(upgraded) => upgraded,
        };
        match downcast::<TokioIo<Paced<TlsStream<TcpStream>>>>(upgraded) {
            Ok(parts) => {
                let (io, read) = (parts.io.into_inner().into_inner(), parts.read_buf.to_vec());
                Socket::spawn(shared, io, read, arrival, entered, address);
            }
            Err(_) => tracing::error!("a listener has a transport of another kind"),
        }
    }

    fn spawn<IO: Transport + Send + Sync + 'static>(
        shared: Arc<Shared>,
        io: IO,
        read: Vec<u8>,
        arrival: Arrival,
        entered: Arc<Entered>,
        address: IpAddr,
    ) {
        let framing = Framing::web_socket(shared.config.signal.message.0);
        let run = Socket::run(shared, io, framing, read, arrival, address);
        tokio::spawn(async move {
            let _entered = entered;
            run.await;
        });
    }

    /// Talks to a client that came to a listener of its own, without HTTP.
    pub(crate) fn run_plain(
        shared: Arc<Shared>,
        io: impl Transport,
        address: IpAddr,
    ) -> impl Future<Output = ()> {
        let framing = Framing::lengths(shared.config.signal.message.0);
        let arrival = Arrival::Hello { origin: None };
        Socket::run(shared, io, framing, Vec::new(), arrival, address)
    }

    /// Whatever is moved into the future is in it for as long as that lives, so it is made of little.
    fn run<IO: Transport>(
        shared: Arc<Shared>,
        io: IO,
        framing: Framing,
        read: Vec<u8>,
        arrival: Arrival,
        address: IpAddr,
    ) -> impl Future<Output = ()> {
        let (id, queue) = shared.sockets.open();
        let generation = match &arrival {
            Arrival::Token(generation, _) => *generation,
            Arrival::Hello { .. } => Generation::V4,
        };
        let mut socket = Socket {
            io,
            id,
            generation,
            seat: None,
            queue,
            batch: Batch::new(framing.pieces()),
            framing,
            heard: Instant::now(),
            pace: Pace::new(shared.config.signal.messages_per_second),
            spender: Spender::new(shared.turns.clone(), address),
            asks: None,
            opener: None,
            address,
            shared,
        };
        let arrival = Box::new((arrival, read));
        async move {
            // What is over before the conversation begins, and what begins when that is over, is boxed:
            // a socket is in between for most of its life.
            let (arrival, read) = *arrival;
            let end = match Box::pin(socket.enter(arrival, read)).await {
                Ok(read) => {
                    let spender = socket.spender.clone();
                    let end = spender.metered(std::pin::pin!(socket.converse(read))).await;
                    socket.depart(&end);
                    end
                }
                Err(end) => end,
            };
            Box::pin(socket.finish(end)).await;
        }
    }
}

impl<IO: Transport> Socket<IO> {
    /// Goes where the peer may be, or tells why it may not. Answers what was read beyond that.
    async fn enter(&mut self, arrival: Arrival, mut rest: Vec<u8>) -> Result<Vec<u8>, End> {
        let arrived = match arrival {
            Arrival::Token(_, admitted) => Ok(Arrived::InRoom(admitted, Coming::default())),
            Arrival::Hello { origin } => {
                let arrived = self.arrive(&mut rest, origin).await;
                arrived.inspect_err(|end| count_end(end, &self.shared.sockets.counters))?
            }
        };
        let entered = match arrived {
            Ok(Arrived::InRoom(admitted, coming)) => self.join(admitted, coming).await,
            Ok(Arrived::Outside(asker)) => {
                self.stay_outside(asker);
                Ok(())
            }
            Err(refused) => Err(refused),
        };
        let counters = &self.shared.sockets.counters;
        match entered {
            Ok(()) => {
                counters.opened.fetch_add(1, Ordering::Relaxed);
                Ok(rest)
            }
            Err((code, reason)) => {
                counters.refused.fetch_add(1, Ordering::Relaxed);
                Err(End::Close(code, reason))
            }
        }
    }

    /// Joins the room that a token opens.
    async fn join(&mut self, admitted: Admitted, mut coming: Coming) -> Result<(), Refused> {
        let (address, shared) = (self.address, self.shared.clone());
        let services = &shared.neuron.services;
        let (verified, room) = admitted.inspect_err(|_| {
            if self.generation == Generation::V1 {
                self.push(ws::text_frame(TOKEN_INVALID));
            }
        })?;
        if coming.data.is_some() {
            let Verified { claims, bucket } = &verified;
            let seat = access::decide_seat(services, claims, bucket, &room.place(), address).await;
            if !seat.map_err(|why| not_seated(&why))?.contains(Grants::PUBLISH) {
                // Whoever may say nothing there says nothing beside his name either.
                coming.data = None;
            }
        }
        let joiner = Joiner { generation: self.generation, client_ip: address, coming };
        let sockets = &shared.neuron.sockets;
        let joined = sockets.join(self.id, &verified, &room, joiner);
        let place = joined.map_err(|refusal| (refusal.close_code(), refusal.to_string()))?;
        let account = verified.bucket.top();
        self.spender.charge_to(account.clone());
        if !self.queue.count_begun(|frame| answers::counted_alone(frame, &self.spender)) {
            sockets.leave(place, self.id, Departure::Lost);
            drop(self.queue.take());
            let why = "too many bytes of answers to this account, or to all, were not taken yet";
            return Err((CloseCode::TRY_AGAIN_LATER, why.to_owned()));
        }
        // A revocation or a rule that came since the token was looked at has found no socket to close.
        let still = token::recheck(services, &verified, &room, address, self.id.0).await;
        if let Err(why) = still {
            // A store that is away for a moment ends no session.
            let departure = if why.is_passing() { Departure::Lost } else { Departure::Closed };
            sockets.leave(place, self.id, departure);
            // Who is not to be here does not hear who is.
            drop(self.queue.take());
            return Err(not_seated(&why));
        }
        let counted = services.graces.connected(verified.claims.id, &account, services.now_s());
        self.seat = Some(Seat { place, counted });
        if self.generation == Generation::V4 {
            self.opener = Some(Box::new((verified, room.path)));
        }
        Ok(())
    }

    /// Leaves its room, if it is in one.
    fn depart(&mut self, end: &End) {
        count_end(end, &self.shared.sockets.counters);
        if let Some(Seat { place, counted }) = self.seat.take() {
            let services = &self.shared.neuron.services;
            self.shared.neuron.sockets.leave(place, self.id, end.departure());
            if let Some(counted) = counted {
                services.graces.disconnected(counted, services.now_s());
            }
        }
    }

    /// Answers what it asks for, in no room.
    fn stay_outside(&mut self, asker: Asker) {
        let caller = asker.opener.caller();
        self.spender.charge_to(caller.payer.clone());
        let user = caller.user().map(|claims| claims.identity.as_str());
        self.push(frames::admitted(caller.ident(), user));
        self.begin_asking(asker);
    }

    /// Hears who a v4 client is and where it wants to be; in `rest` is what was read, and what of that
    /// comes after it.
    async fn arrive(
        &mut self,
        rest: &mut Vec<u8>,
        origin: Option<String>,
    ) -> Result<Result<Arrived, Refused>, End> {
        let queue = self.queue.clone();
        let heard = tokio::select! {
            heard = tokio::time::timeout(HELLO_TIME, self.first_text(rest)) => heard,
            end = stopped(&queue) => return Err(end),
        };
        let Ok(text) = heard else {
            self.shared.sockets.counters.idle.fetch_add(1, Ordering::Relaxed);
            return Err(End::Close(CloseCode::POLICY, "no hello".to_owned()));
        };
        let greeting = match Greeting::read(&text?) {
            Ok(greeting) => greeting,
            Err(fault) => {
                self.push(ServerFrame::Error { fault: &fault }.to_ws(Generation::V4));
                return Ok(Err((CloseCode::POLICY, "bad hello".to_owned())));
            }
        };
        let (shared, origin) = (&self.shared, origin.as_deref());
        let Greeting { by, path, coming } = greeting;
        Ok(match (by, coming) {
            (Credentials::Token(token), Some(coming)) => {
                let path = path.as_deref();
                let admitted = admit(shared, &token, path, origin, self.address).await;
                Ok(Arrived::InRoom(admitted, coming))
            }
            (by, _) => self.asker(by, path.as_deref(), origin).await.map(Arrived::Outside),
        })
    }

    /// Who asks, without being in a room.
    async fn asker(
        &self,
        by: Credentials,
        path: Option<&str>,
        origin: Option<&str>,
    ) -> Result<Asker, Refused> {
        let (shared, address) = (&self.shared, self.address);
        let services = &shared.neuron.services;
        let session = Session::default();
        let path = path.map(Path::parse).transpose();
        let path = path.map_err(|error| refusal(&Fault::new(error.code())))?;
        let (opener, own) = match by {
            Credentials::Token(token) => {
                let verified = verify(shared, &token, origin).await?;
                let own = verified.claims.path.clone();
                (principal::of_socket(services, &session, verified, address), own)
            }
            Credentials::Account { ident, secret } => {
                refuse_while_draining(shared)?;
                let login =
                    principal::from_parts(services, &session, &ident, &secret, address).await;
                (login, None)
            }
        };
        let opener = opener.map_err(|fault| refusal(&fault))?;
        permit_origin(shared, &opener.caller().bucket, origin).await?;
        let path = path.or(own).unwrap_or_else(Path::root);
        Ok(Asker { opener, session, address, is_tls: self.io.is_tls(), path })
    }

    fn begin_asking(&mut self, asker: Asker) {
        let (shared, queue) = (self.shared.clone(), self.queue.clone());
        let asks = Asks::new(shared, asker, self.spender.clone(), queue);
        self.shared.sockets.ask(self.id, asks.clone());
        self.asks = Some(asks);
    }

    /// What it asks for; begun with what it came with when it does so first.
    fn asking(&mut self) -> Option<&Arc<Asks>> {
        if let Some(opener) = self.opener.take() {
            let (verified, path) = *opener;
            let session = Session::default();
            let (services, address) = (&self.shared.neuron.services, self.address);
            let opener = principal::of_socket(services, &session, verified, address).ok()?;
            let is_tls = self.io.is_tls();
            self.begin_asking(Asker { opener, session, address, is_tls, path });
        }
        self.asks.as_ref()
    }

    /// The first text, and in `rest` what was read beyond it.
    async fn first_text(&mut self, rest: &mut Vec<u8>) -> Result<String, End> {
        loop {
            let taken = self.framing.push(rest);
            rest.drain(..taken);
            loop {
                match self.framing.next() {
                    Ok(None) => break,
                    Ok(Some(Heard::Text(text))) if text != "ping" => return Ok(text.to_owned()),
                    Ok(Some(Heard::Sign | Heard::Text(_))) => {}
                    Ok(Some(Heard::Binary)) => {
                        let why = ONLY_TEXTS.to_owned();
                        return Err(End::Close(CloseCode::UNSUPPORTED_DATA, why));
                    }
                    Ok(Some(Heard::Owed(frame))) => {
                        self.queue.push(frame, self.shared.config.signal.queue.0);
                    }
                    Ok(Some(Heard::Goodbye(code))) => return Err(End::Closed(code)),
                    Err(error) => return Err(End::Broken(error)),
                }
            }
            if rest.is_empty() {
                let read = self.io.read_buf(rest).await.map_err(|error| gone(&error))?;
                if read == 0 {
                    return Err(End::Gone);
                }
            }
        }
    }

    fn push_some(&self, frame: Option<Bytes>) {
        if let Some(frame) = frame {
            self.push(frame);
        }
    }

    fn push(&self, frame: Bytes) {
        self.queue.push(frame, self.shared.config.signal.queue.0);
    }

    /// Reads and writes until one side ends.
    async fn converse(&mut self, read_already: Vec<u8>) -> End {
        let end = self.talk(read_already).await;
        if let Some(asks) = &self.asks {
            asks.end();
        }
        end
    }

    async fn talk(&mut self, read_already: Vec<u8>) -> End {
        if let Err(end) = self.hear(&read_already) {
            return end;
        }
        drop(read_already);
        let queue = self.queue.clone();
        let check_every = {
            let signal = &self.shared.config.signal;
            signal.ping_after.0.min(signal.idle.0) / 2
        };
        let mut check_at = Instant::now() + check_every;
        let mut has_pinged = false;
        // One timer for all that may be late: it is set anew only to be earlier, or when it has rung.
        let mut alarm = std::pin::pin!(tokio::time::sleep_until(check_at));
        loop {
            let is_writing = !self.batch.is_done();
            let writes_until = is_writing.then_some(self.batch.deadline);
            let next = [writes_until, self.pace.paused_until()].into_iter().flatten();
            let next = next.fold(check_at, Instant::min);
            if next < alarm.deadline() {
                alarm.as_mut().reset(next);
            }
            tokio::select! {
                biased;
                () = queue.wake.notified() => match queue.closing() {
                    Some(Closing::Slow) => return End::Slow,
                    Some(Closing::Told(code, reason)) => return End::Close(code, reason.to_owned()),
                    // What came meanwhile is taken when the batch is done.
                    None if is_writing => {}
                    None => self.batch.begin(self.framing.outgoing(queue.take())),
                },
                moved = poll_fn(|context| self.poll_move(context)) => {
                    match moved {
                        // A peer that sends without a pause keeps the timer below from its turn.
                        Ok(_) if self.batch.is_late() => return End::Slow,
                        Ok(true) => { self.heard = Instant::now(); has_pinged = false; }
                        Ok(false) => {}
                        Err(end) => return end,
                    }
                    if is_writing && self.batch.is_done() {
                        self.batch.begin(self.framing.outgoing(queue.take()));
                    }
                }
                () = alarm.as_mut() => {
                    if self.batch.is_late() {
                        return End::Slow;
                    }
                    let now = Instant::now();
                    self.pace.look(now);
                    if check_at <= now {
                        check_at = now + check_every;
                        let silence = now.duration_since(self.heard);
                        if silence >= self.shared.config.signal.idle.0 {
                            return End::Idle;
                        }
                        let asks = silence >= self.shared.config.signal.ping_after.0;
                        if asks && !std::mem::replace(&mut has_pinged, true) {
                            self.push(ws::ping_frame(b""));
                        }
                    }
                    alarm.as_mut().reset(check_at);
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
        if self.pace.paused_until().is_some() || self.has_asked_enough() {
            return if has_written { Poll::Ready(Ok(false)) } else { Poll::Pending };
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
            End::Closed(code) => Some((code, String::new())),
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
            waiting.push_back(self.framing.close(code, &reason));
            self.batch.frames.append(&mut self.framing.outgoing(waiting));
            let is_closed = tokio::time::timeout(CLOSE_TIME, self.close()).await.is_ok();
            if is_slow && !is_closed {
                // The kernel would keep what it has for the peer for as long as that takes a byte
                // now and then.
                if let Err(error) = self.io.socket().set_linger(Some(Duration::ZERO)) {
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

    /// Whether what it asked for is to be answered first.
    fn has_asked_enough(&self) -> bool {
        let max = self.shared.config.signal.requests_per_socket;
        self.asks.as_ref().is_some_and(|asks| asks.waiting() >= max)
    }

    /// Feeds bytes to the decoder and acts on what they say.
    fn hear(&mut self, mut bytes: &[u8]) -> Result<(), End> {
        let now = Instant::now();
        let (mut said, mut pings, mut crowded) = (0, 0, Duration::ZERO);
        loop {
            match self.framing.next() {
                Ok(None) if bytes.is_empty() => break,
                Ok(None) => {
                    let taken = self.framing.push(bytes);
                    bytes = &bytes[taken..];
                }
                // Old pages flood these: they cost neither the core's lock nor a parse.
                Ok(Some(Heard::Text("ping"))) => pings += 1,
                Ok(Some(Heard::Text(text))) => {
                    said += 1;
                    let text_bytes = text.len();
                    let place = self.seat.as_ref().map(|seat| seat.place);
                    match (ClientFrame::parse(self.generation, text), place) {
                        (Ok(ClientFrame::Ask { id, verb, params }), _) => {
                            let asked = (id.as_str().to_owned(), params.to_owned());
                            let (id, params) = (&asked.0, &asked.1);
                            if let (Ok(id), Some(asks)) = (Id::of_json(id), self.asking()) {
                                asks.take(id, verb, params);
                            }
                        }
                        (frame, Some(place)) => {
                            let crowd = self.shared.neuron.sockets.frame(place, self.id, frame);
                            crowded += self.pace.say(text_bytes, crowd, now);
                        }
                        (frame, None) => {
                            let frame = outside(frame);
                            self.push_some(frame);
                        }
                    }
                }
                // Nobody has to say these often, so that whoever does is paced for them too.
                Ok(Some(Heard::Owed(frame))) => {
                    said += 1;
                    self.queue.push(frame, self.shared.config.signal.queue.0);
                }
                // What it meant to say would be lost; old pages say nothing by it.
                Ok(Some(Heard::Binary)) if self.generation == Generation::V4 => {
                    return Err(End::Close(CloseCode::UNSUPPORTED_DATA, ONLY_TEXTS.to_owned()));
                }
                Ok(Some(Heard::Binary | Heard::Sign)) => said += 1,
                Ok(Some(Heard::Goodbye(code))) => return Err(End::Closed(code)),
                Err(error) => return Err(End::Broken(error)),
            }
        }
        let counters = &self.shared.sockets.counters;
        if pings > 0 {
            counters.text_pings.fetch_add(pings.into(), Ordering::Relaxed);
        }
        said += pings / PINGS_PER_MESSAGE;
        if said > 0 {
            if !crowded.is_zero() {
                self.pace.pause(now + crowded);
            }
            if self.pace.spend(said, now) || self.has_asked_enough() {
                counters.paced.fetch_add(1, Ordering::Relaxed);
            }
            // Who has had his share of the cores' time while others call waits before he says more.
            if let Some(wait) = self.spender.has_said() {
                self.pace.pause(now + wait);
            }
        }
        Ok(())
    }
}

/// Waits until a socket is to be closed, as all are when the neuron stops.
async fn stopped(queue: &Queue) -> End {
    loop {
        match queue.closing() {
            Some(Closing::Slow) => return End::Slow,
            Some(Closing::Told(code, reason)) => return End::Close(code, reason.to_owned()),
            None => queue.wake.notified().await,
        }
    }
}

/// What is answered to one who is in no room and says something to it.
fn outside(frame: Result<ClientFrame<'_>, BadFrame<'_>>) -> Option<Bytes> {
    let no_room = || Fault::with(Code::NotAllowed, "this socket is in no room");
    let (id, fault) = match frame {
        Ok(ClientFrame::Ping { ts }) => {
            return Some(ServerFrame::Pong { ts }.to_ws(Generation::V4));
        }
        Ok(ClientFrame::User(frame)) => (frame.id, no_room()),
        Ok(ClientFrame::Presence { id, .. }) => (id, no_room()),
        Ok(ClientFrame::Hello(_)) => {
            (None, Fault::with(Code::BadRequest, "`hello` comes first, and once"))
        }
        Ok(_) => return None,
        Err(BadFrame { id, error }) => (id, Fault::with(error.code(), error.to_string())),
    };
    let envelope = envelope::error(&fault);
    let frame = match id {
        Some(id) => ServerFrame::Reply { id, cursor: None, ver: None, envelope: &envelope },
        None => ServerFrame::Error { fault: &fault },
    };
    Some(frame.to_ws(Generation::V4))
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
        End::Broken(_) => &counters.broken,
        End::Close(..) | End::Closed(_) | End::Gone => return,
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
        let socket = Socket::run(
            shared.clone(),
            io,
            Framing::web_socket(1 << 10),
            Vec::new(),
            Arrival::Token(Generation::V2, Ok(admitted)),
            ADDRESS,
        );
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
