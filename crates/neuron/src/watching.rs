//! A watch over HTTP: a request that is answered by a start and by changes for as long as its client
//! takes them and may have them.
//!
//! Input is a request as in [`crate::requests`], and a sink; output is the start and the head of the
//! answer. The stream's bytes are the shell's, as is asking now and then whether its caller still may.

use std::sync::Arc;

use services::precondition::Precondition;
use services::principal::Caller;
use services::sessions::Login;
use services::watch::{self, Guard, Sink, Start};
use services::{Call, Method, Service, access};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::names::Path;
use wire::params::Params;

use crate::Neuron;
use crate::requests::{
    Admission, AllowOrigin, Request, Response, Target, admit, look_again, refuse, tell,
    wants_problem,
};

/// The media type of server-sent events.
pub const EVENTS: &str = "text/event-stream";

/// What a request for a watch is answered.
#[derive(Debug)]
pub struct Opening {
    pub start: Start,
    /// The answer's head; it has no body.
    pub head: Response,
    pub opened: Opened,
}

/// A watch that a request has opened; it lasts until this is dropped.
#[derive(Debug)]
pub struct Opened {
    service: Service,
    path: Path,
    params: Params,
    /// Who has opened it, however he was proven.
    login: Arc<Login>,
    _guard: Guard,
}

/// Whether a request asks for a stream of events: in so many words, or by what it accepts of what can be
/// watched.
pub fn wants_events(request: &Request<'_>) -> bool {
    let accepts = request.accept.is_some_and(|accept| accept.contains(EVENTS));
    let asks = || request.query.split('&').any(|param| param.starts_with("watch="));
    let is_watchable = || match Target::of(request.path) {
        Some(Target::Service(service, _)) => watch::is_watchable(service),
        _ => false,
    };
    let is_service = || matches!(Target::of(request.path), Some(Target::Service(..)));
    request.method == "GET" && (accepts && is_watchable() || asks() && is_service())
}

impl Neuron {
    /// Opens the watch that a request asks for, in its caller's turn, which it does not keep.
    ///
    /// # Errors
    /// The answer that refuses it.
    pub async fn watch(
        &self,
        request: &Request<'_>,
        admission: &impl Admission,
        sink: Arc<dyn Sink>,
    ) -> Result<Opening, Box<Response>> {
        let services = &self.services;
        let Some(Target::Service(service, rest)) = Target::of(request.path) else {
            let fault = Fault::new(Code::NotFound);
            return Err(Box::new(refuse(&fault, true)));
        };
        let real_status = wants_problem(request.accept);
        let admitted = admit(services, request, admission, real_status, false).await;
        let mut admitted = admitted.map_err(|denied| Box::new(denied.response()))?;
        let done = async {
            let Request { if_match, if_none_match, .. } = *request;
            let precondition = Precondition::of_headers(Method::Get, if_match, if_none_match)?;
            precondition.refuse("a watch")?;
            let path = Path::from_url(rest)?;
            let caller = admitted.login.caller();
            look_again(services, request, &admitted.login).await?;
            let call = call(request, caller, &path, &admitted.params);
            if call.params.text("watch").is_some_and(|kind| kind != "sse") {
                return Err(Fault::with(Code::BadRequest, "`watch` is `sse`, or left out"));
            }
            let (start, guard) = watch::open(services, service, &call, sink).await?;
            // What ended the account in between has ended what was open by then.
            look_again(services, request, &admitted.login).await?;
            Ok((start, guard, path))
        }
        .await;
        tell(services, request, &admitted, service, Method::Get, false, &done).await;
        let allow_origin = std::mem::replace(&mut admitted.allow_origin, AllowOrigin::Nobody);
        match done {
            Ok((start, _guard, path)) => {
                let mut head = Response::new(200, Some(EVENTS), String::new());
                (head.allow_origin, head.no_store, head.is_admitted) = (allow_origin, true, true);
                let (login, params) = (admitted.login.clone(), admitted.params.clone());
                let opened = Opened { service, path, params, login, _guard };
                Ok(Opening { start, head, opened })
            }
            Err(fault) => {
                let mut response = refuse(&fault, admitted.real_status);
                (response.allow_origin, response.is_admitted) = (allow_origin, true);
                Err(Box::new(response))
            }
        }
    }

    /// Looks whether whoever has opened a watch by a request may still have it: to be asked when
    /// [`watch::proofs`] has changed, and every so often where a proof ends by itself.
    ///
    /// # Errors
    /// The refusal.
    pub async fn may_watch(&self, request: &Request<'_>, opened: &Opened) -> Result<(), Fault> {
        let Opened { service, path, params, login, .. } = opened;
        if login.is_ended() || !login.holds_while_open(&self.services).await? {
            look_again(&self.services, request, login).await?;
        }
        let call = call(request, login.caller(), path, params);
        access::decide_watch(&self.services, *service, &call).await
    }
}

fn call<'a>(
    request: &Request<'a>,
    caller: &'a Caller,
    path: &Path,
    params: &'a Params,
) -> Call<'a> {
    Call {
        caller,
        method: Method::Get,
        path: path.clone(),
        params,
        precondition: Precondition::Unsaid,
        address: request.address,
        authority: request.authority,
        is_tls: request.is_tls,
    }
}
