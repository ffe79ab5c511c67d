//! Private listeners, and the pages that a browser beside them shows: a page of anybody may send a
//! request to whatever its browser reaches, though it may not read the answer.
//!
//! So what changes something on a private listener is refused when it comes from a page of another
//! origin, which browsers tell by `Origin`, and when its `Host` is a name that somebody else may have
//! made to lead here (DNS rebinding), by which a page would be of the same origin. Addresses,
//! `localhost` and `neuron.host` are nobody's to give away; programs name the neuron by one of these.

use std::net::IpAddr;

use http::uri::Authority;
use http::{Method, StatusCode, header};

use super::replies::{HttpResponse, plain};

/// The refusal of a request that a page of a stranger may have made; `host` is the neuron's own name.
pub(super) fn refusal<B>(request: &hyper::Request<B>, host: &str) -> Option<HttpResponse> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return None;
    }
    let text = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    let named = request.uri().authority().map(Authority::as_str).or_else(|| text(header::HOST));
    let refused = |why: &str| Some(plain(StatusCode::FORBIDDEN, why));
    if named.is_some_and(|named| !is_own(named, host)) {
        return refused("this is for an address, `localhost` or `neuron.host` as `Host` only\n");
    }
    let of_page = text(header::ORIGIN).map(|origin| origin.strip_prefix("http://"));
    let is_same = |page: &str| named.is_some_and(|named| page.eq_ignore_ascii_case(named));
    if of_page.is_some_and(|page| !page.is_some_and(is_same)) {
        return refused("this is not for pages of other origins\n");
    }
    None
}

/// Whether a `Host` is no name that a stranger could have given to this machine.
fn is_own(named: &str, host: &str) -> bool {
    let Ok(named) = named.parse::<Authority>() else { return false };
    let bare = named.host();
    let inner = bare.strip_prefix('[').and_then(|bare| bare.strip_suffix(']')).unwrap_or(bare);
    inner.parse::<IpAddr>().is_ok()
        || bare.eq_ignore_ascii_case("localhost")
        || bare.eq_ignore_ascii_case(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_a_stranger_changes_nothing() {
        let is_refused = |method: &str, named: &str, origin: Option<&str>| {
            let mut request = hyper::Request::builder().method(method).uri("/drainz");
            request = request.header("host", named);
            if let Some(origin) = origin {
                request = request.header("origin", origin);
            }
            refusal(&request.body(()).expect("a request"), "neuron-1").is_some()
        };
        for named in ["127.0.0.1:4007", "[::1]:4007", "10.0.0.7", "localhost:4007", "NEURON-1:4007"]
        {
            let own = format!("http://{named}");
            for method in ["POST", "DELETE"] {
                assert!(!is_refused(method, named, None), "{named}");
                assert!(!is_refused(method, named, Some(&own)), "{named}");
                for origin in ["https://evil.example", "http://127.0.0.1:8000", "null", ""] {
                    assert!(is_refused(method, named, Some(origin)), "{named} {origin}");
                }
            }
            assert!(!is_refused("GET", named, Some("https://evil.example")), "{named}");
        }
        for named in ["evil.example:4007", "localhost.evil.example", "neuron-1.evil.example", ""] {
            let own = format!("http://{named}");
            assert!(is_refused("POST", named, Some(&own)), "{named}");
            assert!(is_refused("POST", named, None), "{named}");
            assert!(!is_refused("GET", named, None), "{named}");
        }
    }
}
