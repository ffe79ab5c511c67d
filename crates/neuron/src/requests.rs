//! One request of the HTTP API: read, authenticate, decide, carry out, wrap (`spec/xirsys.md` §1.1).
//!
//! Input is what the shell took off the wire; output is status, headers and body. Pages, health and
//! WebSocket upgrades are not here.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use kv4::Bucket;
use services::access;
use services::idempotency::{self, Begun};
use services::legacy::{self, Route};
use services::logs::Level;
use services::precondition::{self, Precondition};
use services::principal::{self, Caller};
use services::sessions::{self, Login, Session};
use services::statistics::Measured;
use services::watch::{self, ABSENT_TAG, Poll, Woken};
use services::{Answer, Call, Method, Service, Services, layer_of};
use wire::envelope::{self, Fault};
use wire::errors::Code;
use wire::frames::Generation;
use wire::names::{Key, Layer, Path, percent_decode};
use wire::params::{Params, ParamsError};

use crate::Neuron;

/// What the shell took off the wire.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a str,
    /// As it was sent: not decoded, not normalised.
    pub path: &'a str,
    pub query: &'a str,
    pub authorization: Option<&'a str>,
    pub accept: Option<&'a str>,
    pub origin: Option<&'a str>,
    pub if_match: Option<&'a str>,
    pub if_none_match: Option<&'a str>,
    pub idempotency_key: Option<&'a str>,
    /// `host:port` as the client wrote it.
    pub authority: &'a str,
    pub is_tls: bool,
    /// The client's, found once for limits, rules and logs.
    pub address: IpAddr,
    /// What the connection remembers of its callers.
    pub session: &'a Session,
    /// Who has proven who he is as he opened the socket over which he asks; nothing else says it then.
    pub opener: Option<&'a Arc<Login>>,
    pub body: &'a [u8],
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What goes back.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub content_type: Option<&'static str>,
    pub body: String,
    pub etag: Option<String>,
    pub no_store: bool,
    pub retry_after_s: Option<u64>,
    pub allow_origin: AllowOrigin,
    /// Whether this answers a preflight.
    pub is_preflight: bool,
    /// Whether its caller was proven and let in; then it has been counted.
    pub is_admitted: bool,
}

/// `Access-Control-Allow-Origin`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AllowOrigin {
    Everybody,
    /// Left out.
    Nobody,
    Only(String),
}

const JSON: &str = "application/json";
/// The parameter that may hold a token.
const TOKEN: &str = "token";
const PROBLEM: &str = "application/problem+json";
/// Characters of a URL's path in a line of the log.
const LOGGED_PATH_CHARS_MAX: usize = 256;

impl Response {
    pub(crate) fn new(status: u16, content_type: Option<&'static str>, body: String) -> Response {
        Response {
            status,
            content_type,
            body,
            etag: None,
            no_store: false,
            retry_after_s: None,
            allow_origin: AllowOrigin::Everybody,
            is_preflight: false,
            is_admitted: false,
        }
    }
}

/// Whose turn a request takes.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Payer {
    /// The top account of the one that the caller has proven to be.
    Account(Bucket),
    /// Somebody who has not proven anything.
    Address(IpAddr),
}

/// Why a request has no turn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// Too many requests of its payer wait already.
    Overloaded,
    /// Its payer makes more than this many requests a second.
    OverRate(u32),
}

/// Each payer's share of the requests that are carried out at a time.
pub trait Admission: Send + Sync {
    /// Lasts as long as the request is carried out.
    type Turn: Send;

    /// Waits for the payer's turn. A read is work for a core, and not for the disk.
    fn turn(
        &self,
        payer: Payer,
        is_read: bool,
    ) -> impl Future<Output = Result<Self::Turn, Refused>> + Send;
}

impl Neuron {
    /// Carries out a request; `None` when its path is not one of the API.
    pub async fn request(
        &self,
        request: &Request<'_>,
        admission: &impl Admission,
    ) -> Option<Response> {
        let target = Target::of(request.path)?;
        if request.method == "OPTIONS" {
            if let Err(fault) = turn(admission, Payer::Address(request.address), true).await {
                return Some(refuse(&fault, true));
            }
            let mut response = Response::new(204, None, String::new());
            response.is_preflight = true;
            return Some(response);
        }
        Some(match target {
            Target::SignalList => signal_list(&self.services, request, admission).await,
            Target::Legacy(route, adds) => {
                legacy_request(&self.services, request, admission, route, adds).await
            }
            Target::Service(service, rest) => {
                service_request(&self.services, request, admission, service, rest).await
            }
        })
    }
}

pub(crate) enum Target<'a> {
    Legacy(Route, bool),
    SignalList,
    /// The service, and what of the URL's path follows it.
    Service(Service, &'a str),
}

impl<'a> Target<'a> {
    pub(crate) fn of(path: &'a str) -> Option<Target<'a>> {
        let path = path.trim_start_matches('/');
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        let first = unescaped(first)?;
        if first.starts_with('_') {
            return Service::of_prefix(&first).map(|service| Target::Service(service, rest));
        }
        let path = format!("/{}", unescaped(path)?);
        if legacy::is_signal_list(&path) {
            return Some(Target::SignalList);
        }
        let route = Route::of(&path);
        route.map(|(route, adds)| Target::Legacy(route, adds))
    }
}

/// A part of a URL without escapes, which make no other URL of it (RFC 3986 §6.2.2.2); `None` for one
/// that is no part of a URL.
fn unescaped(part: &str) -> Option<Cow<'_, str>> {
    match part.contains('%') {
        true => percent_decode(part, false).ok().map(Cow::Owned),
        false => Some(Cow::Borrowed(part)),
    }
}

/// What is known of a request that goes on to a service.
pub(crate) struct Admitted<Turn> {
    pub(crate) login: Arc<Login>,
    method: Method,
    pub(crate) params: Params,
    pub(crate) allow_origin: AllowOrigin,
    pub(crate) real_status: bool,
    /// Whether its account asks for a line of each call.
    is_logged: bool,
    /// None for a read that waits for a version or a change: its turn comes after that.
    turn: Option<Turn>,
}

impl<Turn> Admitted<Turn> {
    /// Notes the call in the account's log, where it asks for that.
    fn log<T>(
        &self,
        services: &Services,
        service: Service,
        request: &Request<'_>,
        done: &Result<T, Fault>,
    ) {
        if !self.is_logged {
            return;
        }
        let caller = self.login.caller();
        services.logs.note(&caller.bucket, Level::Debug, || {
            let outcome = done.as_ref().map_or_else(|fault| fault.code.as_str(), |_| "ok");
            let path: String = request.path.chars().take(LOGGED_PATH_CHARS_MAX).collect();
            let (method, name) = (request.method, service.name());
            let (who, address) = (&caller.who, request.address);
            format!("{method} {path} (_{name}) by {who} from {address}: {outcome}")
        });
    }
}

async fn service_request(
    services: &Arc<Services>,
    request: &Request<'_>,
    admission: &impl Admission,
    service: Service,
    rest: &str,
) -> Response {
    let admitted =
        match admit(services, request, admission, wants_problem(request.accept), true).await {
            Ok(admitted) => admitted,
            Err(denied) => return denied.response(),
        };
    let login = &admitted.login;
    let method = admitted.method;
    let mut entered = None;
    let done = async {
        let path = Path::from_url(rest)?;
        let Request { if_match, if_none_match, .. } = *request;
        let call = Call {
            caller: login.caller(),
            method,
            path,
            params: &admitted.params,
            precondition: Precondition::of_headers(method, if_match, if_none_match)?,
            address: request.address,
            authority: request.authority,
            is_tls: request.is_tls,
        };
        if admitted.turn.is_none() {
            return waiting_read(services, request, admission, service, &call, login).await;
        }
        // Whoever ends the account waits for what has entered.
        let writes = method != Method::Get;
        let enters = writes.then(|| services.writing.enter(&call.caller.bucket));
        look_again(services, request, login).await?;
        entered = enters;
        access::decide(services, service, &call).await?;
        if writes {
            return carry_out(services, service, &call, request).await;
        }
        watch::wait(service, &call)?;
        read(services, request, service, &call, login).await
    }
    .await;
    tell(services, request, &admitted, service, method, entered.is_some(), &done).await;
    drop(entered);
    let tag = match method {
        Method::Get => tag(request, &admitted.params, service, &done),
        _ => done.as_ref().ok().and_then(|answer| answer.ver).map(|ver| ver.to_string()),
    };
    let known = request.if_none_match.filter(|_| method == Method::Get);
    let mut response = match done {
        _ if is_known(tag.as_deref(), known) => Response::new(304, None, String::new()),
        Ok(ref answer) => Response::new(200, Some(JSON), envelope::ok(&answer.v)),
        Err(ref fault) => refuse(fault, admitted.real_status),
    };
    response.no_store |= done.is_ok_and(|answer| answer.no_store);
    response.etag = tag.map(|tag| format!("\"{tag}\""));
    // What is said to a URL that holds a token is no cache's to give to the next one who has the URL.
    response.no_store |= request.authorization.is_none() && login.caller().user().is_some();
    response.allow_origin = admitted.allow_origin;
    response.is_admitted = true;
    response
}

/// Reads, in the caller's turn.
async fn read(
    services: &Arc<Services>,
    request: &Request<'_>,
    service: Service,
    call: &Call<'_>,
    login: &Login,
) -> Result<Answer, Fault> {
    let answer = services::call(services, service, call).await?;
    // It has not entered, and may have waited for the store.
    look_again(services, request, login).await?;
    if let said @ Precondition::OneOf(_) = &call.precondition
        && !said.holds(answer.ver)
    {
        return Err(Code::VersionConflict.into());
    }
    Ok(answer)
}

/// Reads after a wait for a version, and as long as nothing is new to the caller after each change. He
/// has a turn for each reading, and none while he waits.
async fn waiting_read(
    services: &Arc<Services>,
    request: &Request<'_>,
    admission: &impl Admission,
    service: Service,
    call: &Call<'_>,
    login: &Login,
) -> Result<Answer, Fault> {
    let begin = async || -> Result<Option<Poll<'_>>, Fault> {
        access::decide(services, service, call).await?;
        services::wait(services, service, call).await?;
        match watch::wait(service, call)?.filter(|_| request.if_none_match.is_some()) {
            Some(wait) => watch::poll(services, service, call, wait).await.map(Some),
            None => Ok(None),
        }
    };
    let mut begun = begin().await;
    loop {
        // A refusal takes its turn as well: it is not to be had for nothing.
        let turn = turn(admission, Payer::Account(call.caller.payer.clone()), true).await?;
        let poll = begun.as_mut().map_err(|fault| fault.clone())?;
        look_again(services, request, login).await?;
        access::decide(services, service, call).await?;
        let done = read(services, request, service, call, login).await;
        drop(turn);
        let tag = tag(request, call.params, service, &done);
        match poll {
            Some(poll) if is_known(tag.as_deref(), request.if_none_match) => {
                match poll.changed().await {
                    Woken::Changed => {}
                    Woken::Over => begun = Ok(None),
                    Woken::Late => return done,
                }
            }
            _ => return done,
        }
    }
}

/// The ETag of what was read. Only who asks by one, or waits, is given that of a listing, or of a key that is not
/// there.
fn tag(
    request: &Request<'_>,
    params: &Params,
    service: Service,
    done: &Result<Answer, Fault>,
) -> Option<String> {
    let waits = params.has("wait");
    match done {
        Ok(answer) => match answer.ver {
            Some(ver) => Some(ver.to_string()),
            None => {
                let asks = waits || request.if_none_match.is_some();
                (asks && watch::is_watchable(service)).then(|| watch::tag(answer))
            }
        },
        Err(fault) => (waits && fault.code == Code::NotFound).then(|| ABSENT_TAG.to_owned()),
    }
}

/// Whether a reader has already what an ETag names.
fn is_known(tag: Option<&str>, known: Option<&str>) -> bool {
    match (tag, known.map(str::trim)) {
        (Some(tag), Some("*")) => tag != ABSENT_TAG,
        (Some(tag), Some(known)) => precondition::entity_tags(known).any(|known| known == tag),
        _ => false,
    }
}

/// Calls the service, once for each idempotency key.
async fn carry_out(
    services: &Services,
    service: Service,
    call: &Call<'_>,
    request: &Request<'_>,
) -> Result<Answer, Fault> {
    let Some(key) = request.idempotency_key.filter(|_| call.method != Method::Get) else {
        return services::call(services, service, call).await;
    };
    let parts = [request.method, request.path, request.query].map(str::as_bytes).into_iter();
    let conditions = [request.if_match, request.if_none_match];
    let conditions = conditions.into_iter().map(|said| said.unwrap_or_default().as_bytes());
    let parts: Vec<&[u8]> = parts.chain(conditions).chain([request.body]).collect();
    match idempotency::begin(services, call.caller, key, &parts).await? {
        Begun::Done(answer) => Ok(answer),
        Begun::New(guard) => {
            let answer = services::call(services, service, call).await?;
            guard.finish(&answer).await;
            Ok(answer)
        }
    }
}

/// Looks whether a caller is still who he was when he was proven: he may have waited since, for his
/// turn, for a version, or for the store.
pub(crate) async fn look_again(
    services: &Arc<Services>,
    request: &Request<'_>,
    login: &Login,
) -> Result<(), Fault> {
    if login.is_ended() {
        return Err(sessions::ended());
    }
    if request.opener.is_none() && login.still_holds(services).await? {
        return Ok(());
    }
    let (again, _) = prove(services, request).await?;
    match again.caller().bucket == login.caller().bucket {
        true => Ok(()),
        false => Err(Code::Unauthorized.into()),
    }
}

/// A request that is refused before a service sees it.
pub(crate) struct Denied {
    fault: Fault,
    allow_origin: AllowOrigin,
    real_status: bool,
}

impl Denied {
    pub(crate) fn response(self) -> Response {
        let mut response = refuse(&self.fault, self.real_status);
        response.allow_origin = self.allow_origin;
        response
    }
}

/// Reads a request, proves its caller, and waits for his turn, unless it `may_wait` for a version or a
/// change and asks for that.
pub(crate) async fn admit<A: Admission>(
    services: &Arc<Services>,
    request: &Request<'_>,
    admission: &A,
    real_status: bool,
    may_wait: bool,
) -> Result<Admitted<A::Turn>, Denied> {
    let denied = |fault| Denied { fault, allow_origin: AllowOrigin::Everybody, real_status };
    let method = match method(request.method) {
        Ok(method) => method,
        Err(fault) => {
            turn(admission, Payer::Address(request.address), true).await.map_err(denied)?;
            return Err(denied(fault));
        }
    };
    let (login, params) = match prove(services, request).await {
        Ok(proven) => proven,
        Err(fault) => {
            turn(admission, Payer::Address(request.address), true).await.map_err(denied)?;
            return Err(denied(fault));
        }
    };
    let bucket = &login.caller().bucket;
    let is_read = method == Method::Get;
    // To wait is no work, and must not hold the others up.
    let asks = |params: &Params| {
        params.has("at") || (request.if_none_match.is_some() && params.has("wait"))
    };
    let waits = may_wait && is_read && params.as_ref().is_ok_and(asks);
    let turn = match waits {
        true => None,
        false => {
            let payer = Payer::Account(login.caller().payer.clone());
            Some(turn(admission, payer, is_read).await.map_err(denied)?)
        }
    };
    let settings = services.settings.of(&services.kv, bucket).await;
    let settings = settings.map_err(|error| denied(services::store_fault(error)))?;
    let real_status = real_status || settings.at(&Path::root(), "real_status").unwrap_or(false);
    let is_logged = settings.at(&Path::root(), "debug_log").unwrap_or(false);
    let origins = settings.at::<Vec<String>>(&Path::root(), "cors_origins");
    let allow_origin = match (origins, request.origin) {
        (None, _) => AllowOrigin::Everybody,
        (Some(_), None) => AllowOrigin::Nobody,
        (Some(origins), Some(origin)) if origins.iter().any(|known| known == origin) => {
            AllowOrigin::Only(origin.to_owned())
        }
        (Some(_), Some(_)) => {
            let fault = Fault::with(Code::NotAllowed, "this account does not allow that origin");
            return Err(Denied { fault, allow_origin: AllowOrigin::Nobody, real_status });
        }
    };
    let params = params.map_err(|error| Denied {
        fault: Fault::with(Code::BadRequest, error.to_string()),
        allow_origin: allow_origin.clone(),
        real_status,
    })?;
    Ok(Admitted { login, method, params, allow_origin, real_status, is_logged, turn })
}

fn method(method: &str) -> Result<Method, Fault> {
    match method {
        "GET" | "HEAD" => Ok(Method::Get),
        "PUT" => Ok(Method::Put),
        "POST" => Ok(Method::Post),
        "DELETE" => Ok(Method::Delete),
        other => Err(Fault::with(Code::MethodNotFound, format!("there is no {other} here"))),
    }
}

/// Finds the caller, by his `Authorization` or, as v2 clients send them, by `ident` and `secret`
/// among the parameters, or by the `token` of a GET's query: what reads events in a page can set no
/// header. Credentials come first: an unknown caller learns nothing of how bodies are
/// read.
async fn prove(
    services: &Arc<Services>,
    request: &Request<'_>,
) -> Result<(Arc<Login>, Result<Params, ParamsError>), Fault> {
    let Request { session, address, .. } = *request;
    if let Some(opener) = request.opener {
        return match () {
            () if opener.is_ended() => Err(sessions::ended()),
            () if !opener.holds_while_open(services).await? => Err(Code::Unauthorized.into()),
            () => Ok((opener.clone(), Params::read(request.query, request.body))),
        };
    }
    let login = match request.authorization {
        Some(header) => Some(principal::from_header(services, session, header, address).await?),
        None => None,
    };
    let params = Params::read(request.query, request.body);
    let login = match (login, &params) {
        (Some(login), _) => login,
        (None, Err(_)) => return Err(Code::Unauthorized.into()),
        (None, Ok(params)) => match (params.text("ident"), params.text("secret")) {
            (Some(ident), Some(secret)) => {
                principal::from_parts(services, session, &ident, &secret, address).await?
            }
            _ => match token_of_query(request, params) {
                Some(token) => principal::from_token(services, session, token, address).await?,
                None => {
                    return Err(Fault::with(
                        Code::Unauthorized,
                        "send credentials as Basic authentication, or as `ident` and `secret`, or a \
                         token as Bearer",
                    ));
                }
            },
        },
    };
    if login.is_ended() {
        return Err(sessions::ended());
    }
    Ok((login, params))
}

/// A URL is what others keep and log: no more than reading is done by a token in one.
fn token_of_query<'a>(request: &Request<'_>, params: &'a Params) -> Option<&'a str> {
    params.in_query(TOKEN).filter(|_| matches!(request.method, "GET" | "HEAD"))
}

async fn turn<A: Admission>(admission: &A, payer: Payer, is_read: bool) -> Result<A::Turn, Fault> {
    let of = match payer {
        Payer::Account(_) => "account",
        Payer::Address(_) => "address",
    };
    admission.turn(payer, is_read).await.map_err(|refused| match refused {
        Refused::Overloaded => {
            Fault::with(Code::Overloaded, format!("this {of} has too many requests under way"))
        }
        Refused::OverRate(rate) => Fault::with(
            Code::TooManyRequests,
            format!("this {of} makes more than {rate} requests a second"),
        ),
    })
}

async fn legacy_request(
    services: &Arc<Services>,
    request: &Request<'_>,
    admission: &impl Admission,
    route: Route,
    adds: bool,
) -> Response {
    let Request { authority, is_tls, address, .. } = *request;
    let admitted = match admit(services, request, admission, false, false).await {
        Ok(admitted) => admitted,
        Err(denied) => {
            let mut response = legacy_refuse(&denied.fault);
            response.allow_origin = denied.allow_origin;
            return response;
        }
    };
    let service = match route {
        Route::Token => Service::Token,
        Route::Ice => Service::Turn,
        _ => Service::Namespace,
    };
    let method = if adds { Method::Put } else { admitted.method };
    let mut entered = None;
    let done = async {
        // A GET of these may write too.
        let enters = services.writing.enter(&admitted.login.caller().bucket);
        look_again(services, request, &admitted.login).await?;
        entered = Some(enters);
        unconditional(request, admitted.method)?;
        let is_listing = admitted.method == Method::Get && !adds;
        let path = legacy::path(route, is_listing, &admitted.params)?;
        let params = legacy::params(route, admitted.params.clone());
        let call = Call {
            caller: admitted.login.caller(),
            method,
            path,
            params: &params,
            precondition: Precondition::Unsaid,
            address,
            authority,
            is_tls,
        };
        access::decide(services, service, &call).await?;
        legacy::call(services, route, &call, adds).await
    }
    .await;
    tell(services, request, &admitted, service, method, entered.is_some(), &done).await;
    drop(entered);
    let mut response = match done {
        Ok(data) => legacy_accept(&data),
        Err(fault) => legacy_refuse(&fault),
    };
    response.allow_origin = admitted.allow_origin;
    response.is_admitted = true;
    response
}

/// Where signalling is, which v2 tells everybody.
async fn signal_list(
    services: &Services,
    request: &Request<'_>,
    admission: &impl Admission,
) -> Response {
    match turn(admission, Payer::Address(request.address), true).await {
        Ok(_turn) => {
            let params = Params::read(request.query, request.body).unwrap_or_default();
            let Request { authority, is_tls, .. } = *request;
            legacy_accept(&legacy::signal_list(services, authority, is_tls, &params))
        }
        Err(fault) => legacy_refuse(&fault),
    }
}

/// Refuses what the routes of v1 and v2 never had.
fn unconditional(request: &Request<'_>, method: Method) -> Result<(), Fault> {
    let Request { if_match, if_none_match, .. } = *request;
    let what = "a route of v1 and v2";
    Precondition::of_headers(method, if_match, if_none_match)?.refuse(what)?;
    match request.idempotency_key {
        Some(_) => Err(Fault::with(Code::BadRequest, format!("{what} takes no `Idempotency-Key`"))),
        None => Ok(()),
    }
}

fn legacy_accept(data: &str) -> Response {
    let mut response = Response::new(200, Some(JSON), envelope::legacy_ok(data));
    response.no_store = true;
    response
}

fn legacy_refuse(fault: &Fault) -> Response {
    let status = if fault.code.is_always_real() { fault.code.status() } else { 200 };
    let mut response = Response::new(status, Some(JSON), envelope::legacy_error(fault));
    response.retry_after_s = fault.retry_after_s;
    response.no_store = true;
    response
}

pub(crate) fn refuse(fault: &Fault, real_status: bool) -> Response {
    let mut response = if real_status {
        Response::new(fault.code.status(), Some(PROBLEM), envelope::problem(fault))
    } else {
        let status = if fault.code.is_always_real() { fault.code.status() } else { 200 };
        Response::new(status, Some(JSON), envelope::error(fault))
    };
    response.retry_after_s = fault.retry_after_s;
    response.no_store = true;
    response
}

/// Counts a call that was carried out or refused, and notes it in the account's log where that is
/// asked for. A read has not entered: its account may have ended meanwhile, and the next owner of the
/// name must not find it.
pub(crate) async fn tell<Turn, T>(
    services: &Arc<Services>,
    request: &Request<'_>,
    admitted: &Admitted<Turn>,
    service: Service,
    method: Method,
    has_entered: bool,
    done: &Result<T, Fault>,
) {
    let login = &admitted.login;
    let kind = service as usize * Method::ALL.len() + method as usize;
    let is_counted = login.count_again(services, kind);
    if is_counted && !admitted.is_logged {
        return;
    }
    let _entered = match has_entered {
        true => None,
        false => {
            let entered = services.writing.enter(&login.caller().bucket);
            // A store that is away for a moment says nothing of the caller; what is counted of one who is
            // gone is not written.
            if let Err(fault) = look_again(services, request, login).await
                && fault.code.status() < 500
            {
                return;
            }
            Some(entered)
        }
    };
    if !is_counted && let Some(measured) = measured(login.caller(), kind) {
        login.count(services, kind, measured);
    }
    admitted.log(services, service, request, done);
}

/// `api:3` at `/<service>/<METHOD>`, by who called.
fn measured(caller: &Caller, kind: usize) -> Option<Measured> {
    static MEASURES: OnceLock<(Layer, Vec<Path>)> = OnceLock::new();
    let (measure, paths) = MEASURES.get_or_init(|| {
        let of = |service: Service, method: Method| {
            Path::parse(&format!("/{}/{}", service.name(), method.as_str()))
                .expect("service and method names are legal segments")
        };
        let paths =
            Service::ALL.iter().flat_map(|service| Method::ALL.map(|method| of(*service, method)));
        (layer_of("api:3"), paths.collect())
    });
    Some(Measured {
        bucket: caller.bucket.clone(),
        measure: measure.clone(),
        path: paths[kind].clone(),
        key: Key::parse(caller.counted_as()).ok()?,
    })
}

/// Whether a request may change something, and so is to be finished when its client hangs up. Of the
/// old routes some do by GET.
pub fn may_write(method: &str, path: &str) -> bool {
    !matches!(method, "GET" | "HEAD")
        || matches!(
            Target::of(path),
            Some(Target::Legacy(_, true) | Target::Legacy(Route::Token | Route::Ice, _))
        )
}

/// Whether an `Accept` header asks for problem details and real statuses.
pub fn wants_problem(accept: Option<&str>) -> bool {
    accept.is_some_and(|accept| accept.contains(PROBLEM))
}

/// What a signalling URL asks for: the generation, and the token of those that carry it there
/// (`spec/xirsys.md` §1.2, §1.8): `/v2/<t>`, `/v1/<t>`, `/v4`, the same below `/ws`, and `/ws/<t>` of v1,
/// which puts that after what it was told. Doubled slashes are collapsed.
pub fn socket_target(path: &str) -> Option<(Generation, Option<String>)> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let (generation, token) = match segments[..] {
        ["v4"] | ["ws", "v4"] => return Some((Generation::V4, None)),
        ["v2", token] | ["ws", "v2", token] => (Generation::V2, token),
        ["v1", token] | ["ws", "v1", token] => (Generation::V1, token),
        ["ws", token] | ["ws", "ws", token] if !matches!(token, "ws" | "v1" | "v2") => {
            (Generation::V1, token)
        }
        _ => return None,
    };
    Some((generation, Some(percent_decode(token, false).ok()?)))
}
