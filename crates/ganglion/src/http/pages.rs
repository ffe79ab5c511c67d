//! The pages that the neuron serves itself: a front page, the API's description, and the demo, all
//! embedded in the program.
//!
//! The demo's page holds an account's secret, so it is shown only where a browser was sent to this
//! machine by a name that no stranger can give to it. Not here: which neurons have a demo (`serve`).

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};

const INDEX: &str = include_str!("../../../../web/demo/index.html");
const DEMO_CSS: &str = include_str!("../../../../web/demo/demo.css");
const DEMO_JS: &str = include_str!("../../../../web/demo/demo.js");
const CLIENT_JS: &str = include_str!("../../../../sdk/js/ganglion.js");
/// Where the page is told how to reach the API.
const ACCESS_MARK: &str = "{{ACCESS}}";
const FRONT: &str = "Ganglion: the API is at /_data and its like, health at /readyz.\n";

/// What the demo may do: run its own script, show its camera, and speak to this neuron's API and to
/// wherever `_host` sends it.
const DEMO_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self' ws: wss:; img-src data:; media-src 'self' blob:; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

/// Pages by path.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    pages: Vec<(&'static str, Page)>,
    /// Addresses at which the neuron listens.
    own: Vec<IpAddr>,
}

/// One page.
#[derive(Clone, Debug)]
struct Page {
    content_type: &'static str,
    body: Bytes,
    is_demo: bool,
}

/// With what the demo calls the API. Only a development neuron gives it away.
#[derive(Debug, serde::Serialize)]
pub(crate) struct DemoAccess {
    pub(crate) ident: String,
    pub(crate) secret: String,
    pub(crate) base: String,
    pub(crate) path: String,
}

impl Pages {
    /// The front page, the API's description, and the demo when there is an account for it;
    /// `listening` is where the neuron is reached.
    pub(crate) fn new<'a>(
        demo: Option<&DemoAccess>,
        listening: impl IntoIterator<Item = &'a SocketAddr>,
    ) -> Pages {
        let openapi = services::describe::openapi(env!("CARGO_PKG_VERSION")).to_string();
        let mut pages = vec![
            ("/", page("text/plain; charset=utf-8", FRONT)),
            ("/openapi.json", page("application/json", &openapi)),
        ];
        if let Some(access) = demo {
            // `<` is the only character that could end the script element early.
            let access = serde_json::to_string(access).unwrap_or_default().replace('<', "\\u003c");
            let index = INDEX.replace(ACCESS_MARK, &access);
            pages.extend([
                ("/demo", demo_page("text/html; charset=utf-8", &index)),
                ("/demo/demo.css", demo_page("text/css; charset=utf-8", DEMO_CSS)),
                ("/demo/demo.js", demo_page("text/javascript; charset=utf-8", DEMO_JS)),
                ("/demo/ganglion.js", demo_page("text/javascript; charset=utf-8", CLIENT_JS)),
            ]);
        }
        Pages { pages, own: listening.into_iter().map(SocketAddr::ip).collect() }
    }

    /// The answer to a request for a page; `None` when there is none at its path.
    pub(super) fn answer(&self, request: &http::request::Parts) -> Option<hyper::Response<Bytes>> {
        let path = request.uri.path();
        let path = if path == "/" { path } else { path.trim_end_matches('/') };
        let (_, page) = self.pages.iter().find(|(known, _)| *known == path)?;
        let by_header = request.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let authority = request.uri.authority().map(http::uri::Authority::as_str);
        let host = authority.or(by_header).unwrap_or_default();
        if page.is_demo && !self.is_own(host) {
            // RFC 9110 §15.5.20. A page of a stranger whose name leads here (DNS rebinding) would
            // read what is meant for whoever sits at this machine.
            let advice = "the demo is shown under this machine's address or localhost only\n";
            return Some(super::plain(StatusCode::MISDIRECTED_REQUEST, advice));
        }
        Some(page.response(&request.method))
    }

    /// Whether a host of a URL, with or without a port, is this machine and nothing that a stranger
    /// could have named so.
    fn is_own(&self, host: &str) -> bool {
        let bare = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        let Ok(address) = bare.parse::<IpAddr>() else {
            return bare.eq_ignore_ascii_case("localhost");
        };
        let address = address.to_canonical();
        // Who listens at every address is reached by all of them, and nobody else by an address.
        address.is_loopback()
            || self.own.iter().any(|own| own.to_canonical() == address || own.is_unspecified())
    }
}

fn page(content_type: &'static str, text: &str) -> Page {
    Page { content_type, body: Bytes::from(text.to_owned()), is_demo: false }
}

fn demo_page(content_type: &'static str, text: &str) -> Page {
    Page { is_demo: true, ..page(content_type, text) }
}

impl Page {
    fn response(&self, method: &Method) -> hyper::Response<Bytes> {
        let body = match *method {
            Method::GET => self.body.clone(),
            Method::HEAD => Bytes::new(),
            _ => return super::plain(StatusCode::METHOD_NOT_ALLOWED, "GET this\n"),
        };
        let mut response = hyper::Response::new(body);
        let mut set = |name, value| {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        };
        set(header::CONTENT_TYPE, self.content_type);
        set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        set(header::REFERRER_POLICY, "no-referrer");
        set(header::CACHE_CONTROL, if self.is_demo { "no-store" } else { "no-cache" });
        if self.is_demo {
            set(header::CONTENT_SECURITY_POLICY, DEMO_POLICY);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(listening: &[&str], host: &str) -> bool {
        let listening: Vec<SocketAddr> =
            listening.iter().filter_map(|address| address.parse().ok()).collect();
        Pages::new(None, &listening).is_own(host)
    }

    #[test]
    fn a_stranger_cannot_name_this_machine() {
        for host in
            ["localhost", "LOCALHOST:4006", "127.0.0.1", "127.9.9.9:1", "[::1]:4006", "[::1]"]
        {
            assert!(own(&["127.0.0.1:0"], host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:4006", "localhost.evil.example", "10.0.0.7"]
        {
            assert!(!own(&["127.0.0.1:0"], host), "{host}");
        }
        assert!(own(&["127.0.0.1:0", "10.0.0.7:4006"], "10.0.0.7:4006"));
        assert!(!own(&["10.0.0.7:4006"], "10.0.0.8:4006"));
        assert!(own(&["0.0.0.0:4006"], "10.0.0.8:4006"));
        assert!(!own(&["0.0.0.0:4006"], "evil.example"));
    }
}
