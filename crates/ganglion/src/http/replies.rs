//! Answers as HTTP's: the neuron's own, texts, and refusals.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use neuron::requests::{self, AllowOrigin};
use wire::envelope::{self, Fault};

pub(super) type HttpResponse = hyper::Response<Bytes>;

/// Seconds for which a browser may keep the answer to a preflight.
const PREFLIGHT_MAX_AGE: &str = "86400";

/// The neuron's answer as one of HTTP.
pub(super) fn reply(response: requests::Response, method: &Method) -> HttpResponse {
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

/// A text answer.
pub(crate) fn plain(status: StatusCode, text: impl Into<String>) -> HttpResponse {
    let mut response = hyper::Response::new(Bytes::from(text.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

pub(super) fn wants_problem(headers: &http::HeaderMap) -> bool {
    requests::wants_problem(headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()))
}

/// Ends the connection after an answer.
pub(super) fn closing(mut response: HttpResponse) -> HttpResponse {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

pub(super) fn faulted(fault: &Fault, status: StatusCode, wants_problem: bool) -> HttpResponse {
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
