//! One connection: how hyper is set up for it, and what ends it.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use neuron::requests::Payer;
use services::sessions::Session;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Shared;
use super::answers::Patience;
use super::pace::{Pace, Paced};
use super::streams::Streams;
use crate::listen::Entered;
use crate::turns::Spender;

/// How long a client may take no byte of an answer, or too few of them.
pub(super) const WRITE_TIME: Duration = Duration::from_secs(30);
/// Most streams of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 128;

/// One connection, as its requests see it.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: IpAddr,
    pub(super) is_tls: bool,
    /// Whether this is a private listener, with metrics and reasons.
    pub(super) is_admin: bool,
    pub(super) session: Session,
    pub(super) spender: Arc<Spender>,
    /// Its place among the open connections; a WebSocket takes it over.
    pub(super) entered: Arc<Entered>,
    /// Whether a request has come; a connection without one is cut.
    pub(super) has_begun: AtomicBool,
    pub(super) pace: Arc<Pace>,
}

/// A connection that a listener has let in.
pub(crate) struct Incoming {
    pub(crate) entered: Entered,
    pub(crate) spender: Arc<Spender>,
    pub(crate) is_tls: bool,
    /// Whether it came to a private listener, with metrics and reasons.
    pub(crate) is_admin: bool,
}

/// Serves one connection until it ends or the neuron stops.
pub(crate) async fn serve_connection<IO>(shared: Arc<Shared>, io: IO, incoming: Incoming)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Incoming { entered, spender, is_tls, is_admin } = incoming;
    let peer = entered.address();
    let limits = &shared.config.limits;
    let mut builder = auto::Builder::new(Streams(spender.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.keep_alive.0)
        .max_buf_size(limits.headers.0.max(8 << 10));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(limits.headers.0).unwrap_or(u32::MAX))
        .keep_alive_interval(Duration::from_secs(20));
    let lifecycle = shared.lifecycle.clone();
    let head = shared.turns.body(Payer::Address(peer));
    let connection = Arc::new(Connection {
        spender,
        entered: Arc::new(entered),
        shared,
        peer,
        is_tls,
        is_admin,
        session: Session::default(),
        has_begun: AtomicBool::new(false),
        pace: Arc::new(Pace::new(head)),
    });
    let header_time = connection.shared.config.limits.header_time.0;
    let served = connection.clone();
    let service = hyper::service::service_fn(move |request| {
        let connection = served.clone();
        async move { Ok::<_, Infallible>(connection.handle(request).await) }
    });
    let io = TokioIo::new(Paced::new(io, connection.pace.clone(), header_time, WRITE_TIME));
    let serving = builder.serve_connection_with_upgrades(io, service);
    let mut serving = std::pin::pin!(serving);
    // hyper's own limit begins with a connection's first byte, and this one may never come.
    let beginning = tokio::time::sleep(header_time);
    let mut beginning = std::pin::pin!(beginning);
    let mut stopping = std::pin::pin!(lifecycle.stopping());
    let mut hears_stop = false;
    let mut patience = Patience::new(connection.pace.untaken().clone());
    // Not `select!`: what seldom happens is not asked for at every request.
    let ended = std::future::poll_fn(|context| {
        if let Poll::Ready(done) = serving.as_mut().poll(context) {
            return Poll::Ready(End::Done(done));
        }
        if !connection.has_begun.load(Ordering::Relaxed)
            && beginning.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(End::NeverBegun);
        }
        if patience.poll_over(context).is_ready() {
            return Poll::Ready(End::Stuck);
        }
        // Once is enough to be woken: a task's waker stays the same.
        if !std::mem::replace(&mut hears_stop, true) || lifecycle.is_stopping() {
            return stopping.as_mut().poll(context).map(|()| End::Stopping);
        }
        Poll::Pending
    });
    match connection.spender.metered(ended).await {
        End::Done(done) => {
            if connection.pace.is_flooded() {
                connection.shared.counters.floods.fetch_add(1, Ordering::Relaxed);
            }
            log_end(peer, done);
        }
        End::NeverBegun => tracing::debug!(%peer, "no request came"),
        End::Stuck => tracing::debug!(%peer, "the client takes too little of its answers"),
        End::Stopping => {
            serving.as_mut().graceful_shutdown();
            log_end(peer, serving.await);
        }
    }
}

/// How the serving of a connection comes to an end.
enum End {
    Done(Result<(), Box<dyn std::error::Error + Send + Sync>>),
    NeverBegun,
    Stuck,
    Stopping,
}

fn log_end(peer: IpAddr, done: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = done {
        tracing::debug!(%peer, %error, "connection ended");
    }
}
