//! The handshake of a WebSocket, and what its token opens.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use hyper::body::Incoming;
use kv4::Bucket;
use services::RoomRef;
use services::access::NotSeated;
use services::token::{self, Verified};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::frames::Generation;
use wire::names::Path;
use wire::ws::CloseCode;

use super::socket::Socket;
use crate::http::{Shared, plain};
use crate::listen::Entered;

/// RFC 6455 §1.3.
const HANDSHAKE_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// How long the answer to a handshake may take to be sent.
const UPGRADE_TIME: Duration = Duration::from_secs(10);

/// What a token opens, or how the socket of one that opens nothing is closed.
pub(super) type Admitted = Result<(Verified, RoomRef), (CloseCode, String)>;

/// How a socket comes.
pub(super) enum Arrival {
    /// With a token in its URL.
    Token(Generation, Admitted),
    /// By saying who it is, from a page of this origin if from one.
    Hello { origin: Option<String> },
}

/// Answers an upgrade, and joins the socket to its room if its token is right. A token that is not
/// is told by a close code, since pages cannot see the status of a refused handshake
/// (`spec/xirsys.md` §1.7).
pub(crate) async fn upgrade(
    shared: &Arc<Shared>,
    entered: &Arc<Entered>,
    mut request: hyper::Request<Incoming>,
    (generation, token): (Generation, Option<String>),
    address: IpAddr,
) -> hyper::Response<Bytes> {
    let Some(accept) = accept_key(&request) else {
        return plain(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket (RFC 6455, version 13)\n");
    };
    let asked = request.uri().query().and_then(|query| {
        let params = wire::params::Params::read(query, b"").ok()?;
        Some(params.text("path")?.into_owned())
    });
    let origin = request.headers().get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let arrival = match token {
        None => Arrival::Hello { origin: origin.map(str::to_owned) },
        Some(token) => {
            let admitted = admit(shared, &token, asked.as_deref(), origin, address).await;
            Arrival::Token(generation, admitted)
        }
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let (shared, entered) = (shared.clone(), entered.clone());
    tokio::spawn(async move {
        match tokio::time::timeout(UPGRADE_TIME, upgraded).await {
            Ok(Ok(upgraded)) => Socket::begin(shared, upgraded, arrival, entered, address),
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

/// What a valid token opens for a page of an origin, or the close that tells why it does not.
pub(super) async fn admit(
    shared: &Shared,
    token: &str,
    asked: Option<&str>,
    origin: Option<&str>,
    address: IpAddr,
) -> Admitted {
    let verified = verify(shared, token, origin).await?;
    let asked = asked.map(Path::parse).transpose();
    let asked = asked.map_err(|error| refusal(&Fault::new(error.code())))?;
    let room = token::room(&shared.neuron.services, &verified, asked.as_ref(), address).await;
    Ok((verified, room.map_err(|why| not_seated(&why))?))
}

/// Sends whoever comes to another neuron while this one goes out of service.
pub(super) fn refuse_while_draining(shared: &Shared) -> Result<(), (CloseCode, String)> {
    match shared.lifecycle.is_draining() {
        true => Err((CloseCode::GOING_AWAY, "draining".to_owned())),
        false => Ok(()),
    }
}

/// A token that holds, of an account whose sockets pages of an origin may open.
pub(super) async fn verify(
    shared: &Shared,
    token: &str,
    origin: Option<&str>,
) -> Result<Verified, (CloseCode, String)> {
    refuse_while_draining(shared)?;
    let services = &shared.neuron.services;
    let verified = token::verify(services, token).await.map_err(|fault| refusal(&fault))?;
    permit_origin(shared, &verified.bucket, origin).await?;
    Ok(verified)
}

/// Refuses pages of an origin that the account does not allow. What is no page says no origin, as on the
/// HTTP API.
pub(super) async fn permit_origin(
    shared: &Shared,
    bucket: &Bucket,
    origin: Option<&str>,
) -> Result<(), (CloseCode, String)> {
    let Some(origin) = origin else { return Ok(()) };
    let services = &shared.neuron.services;
    let settings = services.settings.of(&services.kv, bucket).await;
    let settings = settings.map_err(|error| refusal(&services::store_fault(error)))?;
    let origins = settings.at::<Vec<String>>(&Path::root(), "cors_origins");
    if origins.is_some_and(|origins| origins.iter().all(|known| known != origin)) {
        return Err(refusal(&Fault::new(Code::NotAllowed)));
    }
    Ok(())
}

/// How a socket that may not be here is closed. Clients that are told [`CloseCode::UNAUTHORIZED`]
/// never come back with that token, so what passes by itself has another code.
pub(super) fn refusal(fault: &Fault) -> (CloseCode, String) {
    let code = match fault.code.status() {
        429 | 503 => CloseCode::TRY_AGAIN_LATER,
        500.. => CloseCode::INTERNAL,
        _ => CloseCode::UNAUTHORIZED,
    };
    (code, fault.code.as_str().to_owned())
}

/// How a socket that may not be in its room is closed: one that a rule keeps out is not told
/// [`CloseCode::UNAUTHORIZED`], since its token may let it in when the rule changes.
pub(super) fn not_seated(why: &NotSeated) -> (CloseCode, String) {
    match why {
        NotSeated::Ruled(fault) => (CloseCode::KICKED, fault.code.as_str().to_owned()),
        NotSeated::Token(fault) => refusal(fault),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The client library never tries again after 4401.
    #[test]
    fn only_a_token_that_is_refused_is_refused_for_good() {
        for (code, close) in [
            (Code::Unauthorized, CloseCode::UNAUTHORIZED),
            (Code::NoNamespace, CloseCode::UNAUTHORIZED),
            (Code::NotAllowed, CloseCode::UNAUTHORIZED),
            (Code::StoreUnavailable, CloseCode::TRY_AGAIN_LATER),
            (Code::StoreDegraded, CloseCode::TRY_AGAIN_LATER),
            (Code::Overloaded, CloseCode::TRY_AGAIN_LATER),
            (Code::Internal, CloseCode::INTERNAL),
        ] {
            assert_eq!(refusal(&Fault::new(code)), (close, code.as_str().to_owned()));
        }
        // Rules change.
        let ruled = NotSeated::Ruled(Fault::new(Code::NotAllowed));
        assert_eq!(not_seated(&ruled), (CloseCode::KICKED, "not_allowed".to_owned()));
    }
}
