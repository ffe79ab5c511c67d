//! `_host`: which machine to connect to (seed 002 "Host Service", `spec/xirsys.md` §1.2).
//!
//! `/_host/best/signal`, `/_hosts/best/turn`, or any path with `type=`. One neuron is its own best.

use std::borrow::Cow;

use wire::envelope::Fault;
use wire::errors::Code;

use crate::{Answer, Call, Services};

pub(crate) fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let mut segments = call.path.segments();
    let of_path = match (segments.next(), segments.next(), segments.next()) {
        (Some("best"), Some(kind), None) => Some(Cow::Borrowed(kind)),
        _ => None,
    };
    match call.params.text("type").or(of_path).as_deref() {
        Some("signal") if call.authority.is_empty() && services.identity.signal_urls.is_empty() => {
            let why = "a socket has no address to name: set `signal.urls`, or ask by HTTP";
            Err(Fault::with(Code::NoService, why))
        }
        Some("signal") => Ok(Answer::text(&signal_url(services, call.authority, call.is_tls))),
        Some("turn") => Err(Fault::with(Code::NoService, "no neuron relays yet")),
        Some(_) => Err(Code::UnrecognizedTypeParam.into()),
        None => Err(Code::RequireTypeParam.into()),
    }
}

/// The base URL to which clients append `/v2/<token>`: the one that the operator named, else the
/// address at which this request came.
pub(crate) fn signal_url(services: &Services, authority: &str, is_tls: bool) -> String {
    match services.identity.signal_urls.first() {
        Some(url) => url.clone(),
        None => format!("{}://{authority}/ws", if is_tls { "wss" } else { "ws" }),
    }
}
