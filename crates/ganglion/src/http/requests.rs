//! One request: from its head to its answer, by way of its payer's turn.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::StatusCode;
use http::header::{self, HeaderName};
use hyper::body;
use neuron::requests::{self, Admission as _, Payer};
use wire::envelope::Fault;
use wire::errors::Code;

use super::answers::Answer;
use super::connection::Connection;
use super::replies::{HttpResponse, closing, faulted, plain, reply, wants_problem};
use super::{foreign, streams};
use crate::lifecycle::Busy;
use crate::sockets;
use crate::turns::Spender;

/// draft-ietf-httpapi-idempotency-key-header.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Refused as overloaded, in words.
const BUSY: &str = "too many requests are under way\n";

/// What a request is answered.
enum Reply {
    Whole(HttpResponse),
    Feed(hyper::Response<Answer>),
}

impl From<HttpResponse> for Reply {
    fn from(response: HttpResponse) -> Reply {
        Reply::Whole(response)
    }
}

/// Who makes a request.
pub(super) struct Asker {
    /// The client's, whatever proxies are between.
    pub(super) address: IpAddr,
    pub(super) spender: Arc<Spender>,
}

impl Connection {
    /// Answers a request, if its client takes what it is answered.
    pub(super) async fn handle(
        self: &Arc<Self>,
        request: hyper::Request<body::Incoming>,
    ) -> hyper::Response<Answer> {
        let head = malformed(&request).and_then(|()| self.address(&request));
        let address = *head.as_ref().unwrap_or(&self.peer);
        let spender = streams::spender(&self.spender);
        let wants_problem = wants_problem(request.headers());
        // What was written is told: it was done.
        let must_go =
            self.is_admin || requests::may_write(request.method().as_str(), request.uri().path());
        let asker = Asker { address, spender: spender.clone() };
        let response = match self.respond(request, asker, head.err()).await {
            Reply::Whole(response) => response,
            Reply::Feed(response) => return response,
        };
        let (parts, bytes) = response.into_parts();
        let (untaken, is_http2) = (self.pace.untaken(), self.pace.is_http2());
        match Answer::counted(bytes, &spender, untaken, is_http2, must_go) {
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
        asker: Asker,
        malformed: Option<String>,
    ) -> Reply {
        let address = asker.address;
        self.has_begun.store(true, Ordering::Relaxed);
        let _under_way = self.pace.begun(request.version());
        let busy = self.shared.lifecycle.busy();
        self.shared.counters.requests.fetch_add(1, Ordering::Relaxed);
        let path = request.uri().path();
        if let Some(why) = malformed {
            let fault = Fault::with(Code::BadRequest, why);
            let wants_problem = wants_problem(request.headers());
            return closing(faulted(&fault, StatusCode::BAD_REQUEST, wants_problem)).into();
        }
        if self.is_admin {
            if let Some(refusal) = foreign::refusal(&request, &self.shared.config.neuron.host) {
                return refusal.into();
            }
            let response = self.health(request.method(), path).await;
            return response
                .unwrap_or_else(|| {
                    plain(StatusCode::NOT_FOUND, "metrics, livez, readyz and drainz are here\n")
                })
                .into();
        }
        if !self.shared.turns.arrive(address) {
            let fault = Fault::with(Code::TooManyRequests, "this address makes too many requests");
            let status = StatusCode::TOO_MANY_REQUESTS;
            return faulted(&fault, status, wants_problem(request.headers())).into();
        }
        if let Some(target) = requests::socket_target(path) {
            // A socket's life is no request: it waits, and leaves its place.
            let waited = {
                let ticket = asker.spender.ticket();
                ticket.turn(Payer::Address(address), true).await.map(drop)
            };
            if waited.is_err() {
                return plain(StatusCode::SERVICE_UNAVAILABLE, BUSY).into();
            }
            let upgraded = sockets::upgrade(&self.shared, &self.entered, request, target, address);
            return upgraded.await.into();
        }
        let (parts, body) = request.into_parts();
        if self.wants_feed(&parts, &asker) {
            return match self.feed(parts, asker).await {
                Ok(response) => Reply::Feed(response),
                Err(refusal) => refusal.into(),
            };
        }
        self.api(parts, body, asker, busy).await.into()
    }

    /// Health and pages, which nobody in particular asks for.
    async fn other(&self, parts: &http::request::Parts, asker: &Asker) -> HttpResponse {
        let ticket = asker.spender.ticket();
        let Ok(_turn) = ticket.turn(Payer::Address(asker.address), true).await else {
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
        parts: http::request::Parts,
        body: body::Incoming,
        asker: Asker,
        busy: Busy,
    ) -> HttpResponse {
        let (body, counted) = match self.read_body(body, &parts.headers, asker.address).await {
            Ok(read) => read,
            Err(fault) => {
                self.shared.counters.refused_body.fetch_add(1, Ordering::Relaxed);
                let status =
                    StatusCode::from_u16(fault.code.status()).unwrap_or(StatusCode::BAD_REQUEST);
                return closing(faulted(&fault, status, wants_problem(&parts.headers)));
            }
        };
        if !requests::may_write(parts.method.as_str(), parts.uri.path()) {
            let response = self.answer(&parts, &body, &asker).await;
            self.pace.answered();
            return response;
        }
        self.pace.answered();
        let connection = self.clone();
        let work = async move {
            let (_busy, _counted) = (busy, counted);
            asker.spender.metered(connection.answer(&parts, &body, &asker)).await
        };
        tokio::spawn(work).await.unwrap_or_else(|error| {
            tracing::error!(%error, "a request was not carried out");
            let fault = Fault::new(Code::Internal);
            faulted(&fault, StatusCode::INTERNAL_SERVER_ERROR, false)
        })
    }

    /// A request as the neuron is asked.
    pub(super) fn request<'a>(
        &'a self,
        parts: &'a http::request::Parts,
        body: &'a [u8],
        asker: &Asker,
    ) -> requests::Request<'a> {
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
            opener: None,
            authority: parts.uri.authority().map_or("localhost", http::uri::Authority::as_str),
            is_tls: self.is_safe(&parts.headers),
            address: asker.address,
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
            // Of those that may come twice, the first stands.
            *wanted = wanted.or(value.to_str().ok());
        }
        request.authority = host.unwrap_or(request.authority);
        request
    }

    async fn answer(
        &self,
        parts: &http::request::Parts,
        body: &[u8],
        asker: &Asker,
    ) -> HttpResponse {
        let request = self.request(parts, body, asker);
        let ticket = asker.spender.ticket_for(self.pace.untaken().bytes(), body.len());
        let work = self.shared.neuron.request(&request, &ticket);
        let Some(response) = ticket.carry_out(work).await else {
            return self.other(parts, asker).await;
        };
        let reply = reply(response, &parts.method);
        // HTTP/2 knows no such header; there the caller is refused.
        let closes = parts.version < http::Version::HTTP_2 && self.session.has_ended();
        if closes { closing(reply) } else { reply }
    }
}

/// Headers that decide something, each by one value in ASCII. One that is left out because it cannot
/// be read, or for another of its name, would leave the word to something else: to credentials
/// elsewhere in the request, or to nothing where a condition was meant.
static DECIDING: [HeaderName; 6] = [
    header::HOST,
    header::AUTHORIZATION,
    header::ORIGIN,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    IDEMPOTENCY_KEY,
];

/// Refuses a head that cannot be taken for what it seems to say, and tells why.
fn malformed<B>(request: &hyper::Request<B>) -> Result<(), String> {
    let mut seen = [false; 6];
    for (name, value) in request.headers() {
        let Some(at) = DECIDING.iter().position(|deciding| deciding == name) else { continue };
        let is_first = !std::mem::replace(&mut seen[at], true);
        if !is_first || value.to_str().is_err() {
            let why = if is_first { "is ASCII" } else { "comes once" };
            return Err(format!("`{}` {why}", shown(name)));
        }
    }
    // RFC 9112 §3.2. What is in front of us may have gone by another one.
    match !seen[0] && request.version() == http::Version::HTTP_11 {
        true => Err("a request names one `Host`".to_owned()),
        false => Ok(()),
    }
}

/// A header's name as people write it.
fn shown(name: &HeaderName) -> String {
    let mut text = String::new();
    for part in name.as_str().split_inclusive('-') {
        let (first, rest) = part.split_at(1);
        text.push_str(&first.to_ascii_uppercase());
        text.push_str(rest);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::stage::{SYS_SECRET, Stage, address, authorization};
    use super::*;

    /// What needs no proof is not free of its address's share.
    #[tokio::test]
    async fn whatever_nobody_in_particular_asks_for_takes_the_turn_of_its_address() {
        let stage = Stage::new(|config| {
            config.limits.requests_at_once = 1;
            config.limits.requests_waiting = 0;
        });
        let spender = Spender::new(stage.shared.turns.clone(), address(1));
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
            (format!("{of_query}{0}{0}", authorization()), true),
            (format!("{of_query}{}", authorization()), false),
            ("GET / HTTP/1.1\r\nhost: a\r\n".to_owned(), false),
            ("GET / HTTP/1.0\r\n".to_owned(), false),
            (of_query, false),
        ] {
            let answer = stage.ask(1, head.as_bytes()).await;
            let status = answer.split(' ').nth(1);
            assert_eq!(status, Some(if is_refused { "400" } else { "200" }), "{head}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_header_that_decides_something_comes_once_and_can_be_read() {
        let stage = Stage::new(|_| {});
        for name in ["If-Match", "If-None-Match", "Idempotency-Key", "Origin", "Authorization"] {
            let line = |value: &str| format!("{name}: {value}\r\n");
            for lines in [line("\u{e9}"), line("\"1\"").repeat(2), line("\"1\"") + &line("\u{e9}")]
            {
                let head = format!("DELETE /_data/p?k=a HTTP/1.1\r\nhost: a\r\n{lines}");
                let answer = stage.ask(1, head.as_bytes()).await;
                assert!(answer.starts_with("HTTP/1.1 400 "), "{lines}: {answer}");
                assert!(answer.contains(&format!("`{name}`")), "{lines}: {answer}");
            }
        }
    }
}
