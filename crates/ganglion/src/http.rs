//! HTTP: hyper's requests to the neuron's and back, pages, health, and the upgrade to WebSocket.
//!
//! Input: connections that a listener has accepted. Not here: what a request means (`neuron`).

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{self, Body as _};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use neuron::requests::{Admission as _, AllowOrigin, Payer};
use neuron::{Neuron, requests};
use services::access::Network;
use services::principal;
use services::sessions::Session;
use tokio::io::{AsyncRead, AsyncWrite};
use wire::envelope::{self, Fault};
use wire::errors::Code;

use crate::answers::{Answer, Patience};
use crate::config::Config;
use crate::lifecycle::{Busy, Lifecycle};
use crate::listen::{Entered, Gate};
use crate::metrics;
use crate::pace::{Pace, Paced};
use crate::pages::Pages;
use crate::sockets::{self, SocketTable};
use crate::turns::{BodyBytes, Spender, Turns};

type HttpResponse = hyper::Response<Bytes>;

/// How long a client may take no byte of an answer.
const WRITE_TIME: std::time::Duration = std::time::Duration::from_secs(30);
/// Seconds for which a browser may keep the answer to a preflight.
const PREFLIGHT_MAX_AGE: &str = "86400";
/// draft-ietf-httpapi-idempotency-key-header.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Most streams of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 128;

/// What every connection of a neuron shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) neuron: Neuron,
    pub(crate) config: Config,
    pub(crate) sockets: Arc<SocketTable>,
    pub(crate) store: Arc<store::embedded::EmbeddedStore>,
    pub(crate) pages: Pages,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) trusted_proxies: Vec<Network>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) admin_gate: Arc<Gate>,
    /// Each account's share of the requests that are carried out at a time.
    pub(crate) turns: Arc<Turns>,
    pub(crate) counters: Counters,
}

/// What HTTP has done, for metrics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) refused_body: AtomicU64,
}

/// One connection, as its requests see it.
struct Connection {
    shared: Arc<Shared>,
    peer: IpAddr,
    is_tls: bool,
    /// Whether this is a private listener, with metrics and reasons.
    is_admin: bool,
    session: Session,
    spender: Spender,
    /// Its place among the open connections; a WebSocket takes it over.
    entered: Arc<Entered>,
    /// Whether a request has come; a connection without one is cut.
    has_begun: AtomicBool,
    pace: Arc<Pace>,
}

/// Refused as overloaded, in words.
const BUSY: &str = "too many requests are under way\n";

/// A connection that a listener has let in.
pub(crate) struct Incoming {
    pub(crate) entered: Entered,
    pub(crate) spender: Spender,
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
    let mut builder = auto::Builder::new(hyper_util::rt::TokioExecutor::new());
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
        .keep_alive_interval(std::time::Duration::from_secs(20));
    let lifecycle = shared.lifecycle.clone();
    let connection = Arc::new(Connection {
        spender,
        entered: Arc::new(entered),
        shared,
        peer,
        is_tls,
        is_admin,
        session: Session::default(),
        has_begun: AtomicBool::new(false),
        pace: Arc::default(),
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
    let mut patience = Patience::new(connection.pace.untaken().clone(), WRITE_TIME);
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
        // HTTP/1 writes its answer or is stuck in doing so, which the transport sees.
        if connection.pace.is_http2() && patience.poll_over(context).is_ready() {
            return Poll::Ready(End::Stuck);
        }
        // Once is enough to be woken: a task's waker stays the same.
        if !std::mem::replace(&mut hears_stop, true) || lifecycle.is_stopping() {
            return stopping.as_mut().poll(context).map(|()| End::Stopping);
        }
        Poll::Pending
    });
    match connection.spender.metered(ended).await {
        End::Done(done) => log_end(peer, done),
        End::NeverBegun => tracing::debug!(%peer, "no request came"),
        End::Stuck => tracing::debug!(%peer, "the client takes nothing of its answers"),
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

impl Connection {
    /// Answers a request, if its client takes what it is answered.
    async fn handle(
        self: &Arc<Self>,
        request: hyper::Request<body::Incoming>,
    ) -> hyper::Response<Answer> {
        let address = self.address(&request);
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let wants_problem = wants_problem(request.headers());
        let response = self.respond(request, address).await;
        // What was written is told: it was done.
        let must_go = self.is_admin || !is_read;
        let (parts, bytes) = response.into_parts();
        let Shared { turns, .. } = &*self.shared;
        let (untaken, is_http2) = (self.pace.untaken(), self.pace.is_http2());
        match Answer::counted(bytes, turns, untaken, address, is_http2, must_go) {
            Some(answer) => hyper::Response::from_parts(parts, answer),
            None => {
                let why = "too many bytes of answers to this client, or to all, were not taken yet";
                let fault = Fault::with(Code::Overloaded, why);
                let refused = faulted(&fault, StatusCode::SERVICE_UNAVAILABLE, wants_problem);
                refused.map(Answer::uncounted)
            }
        }
    }

    async fn respond(
        self: &Arc<Self>,
        request: hyper::Request<body::Incoming>,
        address: IpAddr,
    ) -> HttpResponse {
        self.has_begun.store(true, Ordering::Relaxed);
        let _under_way = self.pace.begun(request.version());
        let busy = self.shared.lifecycle.busy();
        self.shared.counters.requests.fetch_add(1, Ordering::Relaxed);
        let path = request.uri().path();
        if let Some(why) = malformed(&request) {
            let fault = Fault::with(Code::BadRequest, why);
            let wants_problem = wants_problem(request.headers());
            return closing(faulted(&fault, StatusCode::BAD_REQUEST, wants_problem));
        }
        if self.is_admin {
            let response = self.health(request.method(), path).await;
            return response.unwrap_or_else(|| {
                plain(StatusCode::NOT_FOUND, "metrics, livez, readyz and drainz are here\n")
            });
        }
        if !self.shared.turns.arrive(address) {
            let fault = Fault::with(Code::TooManyRequests, "this address makes too many requests");
            let status = StatusCode::TOO_MANY_REQUESTS;
            return faulted(&fault, status, wants_problem(request.headers()));
        }
        if let Some((version, token)) = requests::socket_target(path) {
            // A socket's life is no request: it waits, and leaves its place.
            let waited = {
                let ticket = self.spender.ticket();
                ticket.turn(Payer::Address(address), true).await.map(drop)
            };
            if waited.is_err() {
                return plain(StatusCode::SERVICE_UNAVAILABLE, BUSY);
            }
            return sockets::upgrade(&self.shared, &self.entered, request, version, token, address)
                .await;
        }
        self.api(request, address, busy).await
    }

    /// Health and pages, which nobody in particular asks for.
    async fn other(&self, parts: &http::request::Parts, address: IpAddr) -> HttpResponse {
        let ticket = self.spender.ticket();
        let Ok(_turn) = ticket.turn(Payer::Address(address), true).await else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, BUSY);
        };
        if let Some(response) = self.health(&parts.method, parts.uri.path()).await {
            return response;
        }
        self.shared.pages.answer(parts).unwrap_or_else(|| {
            let advice = "there is nothing here; the API is at /_data and its like\n";
            plain(StatusCode::NOT_FOUND, advice)
        })
    }

    /// Carries out a request. One that may change something goes on when the client has gone: its
    /// steps belong together.
    async fn api(
        self: &Arc<Self>,
        request: hyper::Request<body::Incoming>,
        address: IpAddr,
        busy: Busy,
    ) -> HttpResponse {
        let (parts, body) = request.into_parts();
        let (body, counted) = match self.read_body(body, &parts.headers, address).await {
            Ok(read) => read,
            Err(fault) => {
                self.shared.counters.refused_body.fetch_add(1, Ordering::Relaxed);
                let status =
                    StatusCode::from_u16(fault.code.status()).unwrap_or(StatusCode::BAD_REQUEST);
                return closing(faulted(&fault, status, wants_problem(&parts.headers)));
            }
        };
        if !requests::may_write(parts.method.as_str(), parts.uri.path()) {
            return self.answer(&parts, &body, address).await;
        }
        let connection = self.clone();
        let work = async move {
            let (_busy, _counted) = (busy, counted);
            connection.spender.metered(connection.answer(&parts, &body, address)).await
        };
        tokio::spawn(work).await.unwrap_or_else(|error| {
            tracing::error!(%error, "a request was not carried out");
            let fault = Fault::new(Code::Internal);
            faulted(&fault, StatusCode::INTERNAL_SERVER_ERROR, false)
        })
    }

    async fn answer(
        &self,
        parts: &http::request::Parts,
        body: &[u8],
        address: IpAddr,
    ) -> HttpResponse {
        let mut request = requests::Request {
            method: parts.method.as_str(),
            path: parts.uri.path(),
            query: parts.uri.query().unwrap_or(""),
            authorization: None,
            accept: None,
            origin: None,
            if_match: None,
            if_none_match: None,
            idempotency_key: None,
            authority: parts.uri.authority().map_or("localhost", http::uri::Authority::as_str),
            is_tls: self.is_safe(&parts.headers),
            address,
            session: &self.session,
            body,
        };
        let mut host = None;
        // A few headers are passed once, which is less than to look seven of them up.
        for (name, value) in &parts.headers {
            let wanted = match *name {
                header::HOST => &mut host,
                header::AUTHORIZATION => &mut request.authorization,
                header::ACCEPT => &mut request.accept,
                header::ORIGIN => &mut request.origin,
                header::IF_MATCH => &mut request.if_match,
                header::IF_NONE_MATCH => &mut request.if_none_match,
                _ if *name == IDEMPOTENCY_KEY => &mut request.idempotency_key,
                _ => continue,
            };
            // The first of equal names stands.
            *wanted = wanted.or(value.to_str().ok());
        }
        request.authority = host.unwrap_or(request.authority);
        let ticket = self.spender.ticket();
        let work = self.shared.neuron.request(&request, &ticket);
        let Some(response) = ticket.carry_out(work).await else {
            return self.other(parts, address).await;
        };
        let reply = self.reply(response, &parts.method);
        // HTTP/2 knows no such header; there the caller is refused.
        let closes = parts.version < http::Version::HTTP_2 && self.session.has_ended();
        if closes { closing(reply) } else { reply }
    }

    fn reply(&self, response: requests::Response, method: &Method) -> HttpResponse {
        let body = if method == Method::HEAD { Bytes::new() } else { Bytes::from(response.body) };
        let mut reply = hyper::Response::new(body);
        *reply.status_mut() =
            StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = reply.headers_mut();
        if let Some(content_type) = response.content_type {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        match response.allow_origin {
            AllowOrigin::Nobody => {}
            AllowOrigin::Everybody => {
                let everybody = HeaderValue::from_static("*");
                headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, everybody);
            }
            AllowOrigin::Only(origin) => {
                headers.insert(header::VARY, HeaderValue::from_static("origin"));
                if let Ok(origin) = HeaderValue::try_from(origin) {
                    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
                }
            }
        }
        if response.is_preflight {
            for (name, value) in [
                (header::ACCESS_CONTROL_ALLOW_METHODS, "GET,PUT,POST,DELETE,OPTIONS"),
                (
                    header::ACCESS_CONTROL_ALLOW_HEADERS,
                    "authorization,content-type,x-requested-with,if-match,if-none-match,idempotency-key",
                ),
                (header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_MAX_AGE),
            ] {
                headers.insert(name, HeaderValue::from_static(value));
            }
        } else {
            let exposed = HeaderValue::from_static("etag,retry-after");
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
        if let Some(etag) = response.etag.and_then(|etag| HeaderValue::try_from(etag).ok()) {
            headers.insert(header::ETAG, etag);
        }
        if response.no_store {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        if let Some(seconds) = response.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        reply
    }

    /// Reads a body, with the count of its bytes, which is to live as long.
    async fn read_body(
        &self,
        mut body: body::Incoming,
        headers: &http::HeaderMap,
        address: IpAddr,
    ) -> Result<(Bytes, Option<BodyBytes>), Fault> {
        if body.is_end_stream() {
            return Ok((Bytes::new(), None));
        }
        let limits = &self.shared.config.limits;
        let too_large =
            || Fault::with(Code::TooLarge, format!("a body may have {} bytes here", limits.body.0));
        if body.size_hint().lower() > limits.body.0 as u64 {
            return Err(too_large());
        }
        let mut counted = self.shared.turns.body(self.sender(headers, address).await);
        let reading = async {
            let mut first = Bytes::new();
            let mut all = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| {
                    Fault::with(Code::BadRequest, format!("the body ended early: {error}"))
                })?;
                let Ok(data) = frame.into_data() else { continue };
                if first.len() + all.len() + data.len() > limits.body.0 {
                    return Err(too_large());
                }
                if let Err(of_whom) = counted.grow(data.len()) {
                    let why = format!("too many bytes {of_whom} are being received");
                    return Err(Fault::with(Code::Overloaded, why));
                }
                // Most bodies come in one piece, which is not copied.
                if first.is_empty() && all.is_empty() {
                    first = data;
                } else {
                    all.extend_from_slice(&std::mem::take(&mut first));
                    all.extend_from_slice(&data);
                }
            }
            Ok(if all.is_empty() { first } else { all.freeze() })
        };
        match tokio::time::timeout(limits.body_time.0, reading).await {
            Ok(read) => Ok((read?, Some(counted))),
            Err(_) => Err(Fault::with(Code::BadRequest, "the body took too long to arrive")),
        }
    }

    /// Who pays for a body: the account of credentials that were proven before, or an address.
    async fn sender(&self, headers: &http::HeaderMap, address: IpAddr) -> Payer {
        let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(header) = header else { return Payer::Address(address) };
        let services = &self.shared.neuron.services;
        match principal::proven_before(services, &self.session, header, address).await {
            Some(caller) => Payer::Account(caller.payer.clone()),
            None => Payer::Address(address),
        }
    }

    /// `/livez`, `/readyz`, `/drainz`, `/metrics`; reasons and metrics on private listeners only.
    async fn health(&self, method: &Method, path: &str) -> Option<HttpResponse> {
        let lifecycle = &self.shared.lifecycle;
        let verdict = |is_well: bool, reasons: Vec<String>| {
            let status = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let mut text = String::from(if is_well { "ok\n" } else { "no\n" });
            if self.is_admin {
                text.extend(reasons.iter().map(|reason| format!("{reason}\n")));
            }
            plain(status, text)
        };
        match path {
            "/livez" => Some(verdict(true, Vec::new())),
            "/readyz" => {
                let reasons = lifecycle.unready();
                Some(verdict(reasons.is_empty(), reasons))
            }
            "/drainz" if self.is_admin => {
                if method == Method::POST {
                    lifecycle.drain();
                } else if method == Method::DELETE {
                    lifecycle.resume();
                    return Some(verdict(!lifecycle.is_draining(), lifecycle.unready()));
                }
                let left = lifecycle.left(self.shared.sockets.len());
                Some(verdict(lifecycle.is_draining() && left.is_empty(), left))
            }
            "/metrics" if self.is_admin => {
                Some(plain(StatusCode::OK, metrics::render(&self.shared)))
            }
            _ => None,
        }
    }

    /// Whether the client speaks TLS: to this neuron, or to a trusted proxy that says so. One that
    /// says it by itself can only mislead itself, since nothing but the URLs that it is given depend
    /// on it.
    fn is_safe(&self, headers: &http::HeaderMap) -> bool {
        if !self.shared.trusted_proxies.iter().any(|net| net.contains(self.peer)) {
            return self.is_tls;
        }
        let is_forwarded = self.shared.config.listen.forwarded_header == "forwarded";
        match forwarded_protocols(headers, is_forwarded).next() {
            Some(protocol) => protocol.eq_ignore_ascii_case("https"),
            None => self.is_tls,
        }
    }

    /// The client's address: the peer's, or what a trusted proxy says of it.
    fn address<B>(&self, request: &hyper::Request<B>) -> IpAddr {
        let trusted = &self.shared.trusted_proxies;
        let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(address));
        if trusted.is_empty() || !is_trusted(self.peer) {
            return self.peer;
        }
        let headers = request.headers();
        let is_forwarded = self.shared.config.listen.forwarded_header == "forwarded";
        let forwarded = headers.get_all(header::FORWARDED).iter().flat_map(|value| {
            let text = value.to_str().unwrap_or("");
            text.split(',').filter_map(|element| {
                element.split(';').find_map(|pair| {
                    let (name, value) = pair.trim().split_once('=')?;
                    name.eq_ignore_ascii_case("for").then(|| value.trim_matches('"').to_owned())
                })
            })
        });
        let hops: Vec<String> = if is_forwarded {
            forwarded.collect()
        } else {
            let values = headers.get_all("x-forwarded-for").iter();
            let texts = values.flat_map(|value| value.to_str().unwrap_or("").split(','));
            texts.map(|hop| hop.trim().to_owned()).collect()
        };
        // The nearest hop is last; the first one from there that no proxy of ours made is the client.
        let mut address = self.peer;
        for hop in hops.iter().rev() {
            match parse_hop(hop) {
                Some(next) => address = next.to_canonical(),
                None => break,
            }
            if !is_trusted(address) {
                break;
            }
        }
        address
    }
}

/// Why a request's head cannot be taken for what it seems to say.
fn malformed<B>(request: &hyper::Request<B>) -> Option<&'static str> {
    let headers = request.headers();
    // RFC 9112 §3.2. What is in front of us may have gone by the other one.
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == http::Version::HTTP_11) {
        return Some("a request names one host");
    }
    // Left out, it would leave the word to credentials elsewhere in the request.
    let is_text = |value: &HeaderValue| value.to_str().is_ok();
    if !headers.get_all(header::AUTHORIZATION).iter().all(is_text) {
        return Some("`Authorization` is ASCII");
    }
    None
}

/// The protocols that a forwarding header names, the client's first.
fn forwarded_protocols(
    headers: &http::HeaderMap,
    is_forwarded: bool,
) -> impl Iterator<Item = &str> {
    let name = if is_forwarded { "forwarded" } else { "x-forwarded-proto" };
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(move |element| {
        if !is_forwarded {
            return Some(element.trim());
        }
        element.split(';').find_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            name.eq_ignore_ascii_case("proto").then(|| value.trim_matches('"'))
        })
    })
}

/// An address of a forwarding header: with or without port, IPv6 in brackets.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    if let Some(inner) = hop.strip_prefix('[') {
        return inner.split(']').next()?.parse().ok();
    }
    hop.parse().ok().or_else(|| hop.split(':').next()?.parse().ok())
}

/// A text answer.
pub(crate) fn plain(status: StatusCode, text: impl Into<String>) -> HttpResponse {
    let mut response = hyper::Response::new(Bytes::from(text.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

fn wants_problem(headers: &http::HeaderMap) -> bool {
    requests::wants_problem(headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()))
}

/// Ends the connection after an answer.
fn closing(mut response: HttpResponse) -> HttpResponse {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn faulted(fault: &Fault, status: StatusCode, wants_problem: bool) -> HttpResponse {
    let (content_type, body) = match wants_problem {
        true => ("application/problem+json", envelope::problem(fault)),
        false => ("application/json", envelope::error(fault)),
    };
    let mut response = hyper::Response::new(Bytes::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    if let Some(seconds) = fault.retry_after_s {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use base64::Engine as _;
    use store::embedded::{EmbeddedStore, Options};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::time::{Instant, timeout};

    use super::*;

    const SYS_SECRET: &str = "sys-secret";
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

    /// A neuron that listens nowhere.
    struct Stage {
        shared: Arc<Shared>,
        _folder: tempfile::TempDir,
    }

    impl Stage {
        fn new(change: impl FnOnce(&mut Config)) -> Stage {
            let folder = tempfile::TempDir::new().expect("a folder");
            let mut config = Config::default();
            config.store.data_dir = folder.path().to_owned();
            change(&mut config);
            let store = EmbeddedStore::open(&folder.path().join("store"), Options::default());
            let store = Arc::new(store.expect("a store"));
            crate::serve::prepare_data_folder(&config).expect("a folder for it");
            let shared = crate::serve::assemble(&mut config, store, SYS_SECRET).expect("a neuron");
            let shared = Shared { pages: Pages::new(None, []), ..shared };
            Stage { shared: Arc::new(shared), _folder: folder }
        }

        fn connect(&self, from: u8) -> DuplexStream {
            let (io, peer) = tokio::io::duplex(64 << 10);
            let entered = self.shared.gate.enter(address(from)).expect("room");
            let spender = Spender::new(self.shared.turns.clone());
            let incoming = Incoming { entered, spender, is_tls: false, is_admin: false };
            tokio::spawn(serve_connection(self.shared.clone(), io, incoming));
            peer
        }

        /// Sends a request's head without its last line, and reads all that comes.
        async fn ask(&self, from: u8, head: &[u8]) -> String {
            let mut connection = self.connect(from);
            connection.write_all(head).await.expect("it is taken");
            let end = b"connection: close\r\n\r\n";
            connection.write_all(end).await.expect("it is taken");
            let mut answer = Vec::new();
            connection.read_to_end(&mut answer).await.expect("an answer");
            String::from_utf8(answer).expect("text")
        }
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from(Ipv4Addr::new(192, 0, 2, last))
    }

    fn authorization() -> String {
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("$sys:{SYS_SECRET}"));
        format!("authorization: Basic {basic}\r\n")
    }

    /// What needs no proof is not free of its address's share.
    #[tokio::test]
    async fn whatever_nobody_in_particular_asks_for_takes_the_turn_of_its_address() {
        let stage = Stage::new(|config| {
            config.limits.requests_at_once = 1;
            config.limits.requests_waiting = 0;
        });
        let spender = Spender::new(stage.shared.turns.clone());
        let ticket = spender.ticket();
        let mut held = Some(ticket.turn(Payer::Address(address(1)), true).await.expect("a turn"));
        for is_held in [true, false] {
            for line in [
                "OPTIONS /_data/p",
                "PATCH /_data/p",
                "GET /v2/token",
                "GET /signal/list",
                "GET /_data",
                "GET /",
            ] {
                let head = format!("{line} HTTP/1.1\r\nhost: a\r\n");
                let answer = stage.ask(1, head.as_bytes()).await;
                let is_refused = answer.contains("overloaded") || answer.contains(BUSY);
                assert_eq!(is_refused, is_held, "{line}: {answer}");
            }
            held.take();
        }
    }

    #[tokio::test]
    async fn a_head_that_can_be_read_in_two_ways_is_refused() {
        let stage = Stage::new(|_| {});
        let of_query = format!("GET /_conf?ident=$sys&secret={SYS_SECRET} HTTP/1.1\r\nhost: a\r\n");
        for (head, is_refused) in [
            ("GET / HTTP/1.1\r\n".to_owned(), true),
            ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n".to_owned(), true),
            ("GET / HTTP/1.0\r\nhost: a\r\nhost: a\r\n".to_owned(), true),
            (format!("{of_query}authorization: Basic \u{e9}\r\n"), true),
            ("GET / HTTP/1.1\r\nhost: a\r\n".to_owned(), false),
            ("GET / HTTP/1.0\r\n".to_owned(), false),
            (of_query, false),
        ] {
            let answer = stage.ask(1, head.as_bytes()).await;
            let status = answer.split(' ').nth(1);
            assert_eq!(status, Some(if is_refused { "400" } else { "200" }), "{head}: {answer}");
        }
    }

    /// A few addresses that finish no body stop nobody else's.
    #[tokio::test]
    async fn who_has_logged_in_before_can_send_bodies_whatever_strangers_hold() {
        let stage = Stage::new(|_| {});
        let bodies = stage.shared.config.limits.bodies.0;
        let held = [1, 2, 3, 4].map(|from| {
            let mut body = stage.shared.turns.body(Payer::Address(address(from)));
            assert_eq!(body.grow(bodies / 8), Ok(()));
            body
        });
        let body = "{\"k\":\"a\",\"v\":1}";
        let head = |line: &str, length: usize| {
            let credentials = authorization();
            format!("{line} HTTP/1.1\r\nhost: a\r\n{credentials}content-length: {length}\r\n")
        };
        let put = async || {
            let mut connection = stage.connect(9);
            let head = head("PUT /_data/p", body.len());
            let request = format!("{head}connection: close\r\n\r\n{body}");
            connection.write_all(request.as_bytes()).await.expect("it is taken");
            let mut answer = String::new();
            connection.read_to_string(&mut answer).await.expect("an answer");
            answer
        };
        let refused = put().await;
        assert!(refused.contains("of all who have not logged in before"), "{refused}");
        assert!(stage.ask(9, head("GET /_data", 0).as_bytes()).await.contains("\"s\":\"ok\""));
        let written = put().await;
        assert!(written.contains("\"s\":\"ok\""), "{written}");
        drop(held);
    }

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
