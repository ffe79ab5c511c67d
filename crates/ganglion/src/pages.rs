//! The pages that the neuron serves itself: a front page, the API's description, the demo, embedded in the program.

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::Full;

const INDEX: &str = include_str!("../../../web/demo/index.html");
const DEMO_CSS: &str = include_str!("../../../web/demo/demo.css");
const DEMO_JS: &str = include_str!("../../../web/demo/demo.js");
const CLIENT_JS: &str = include_str!("../../../sdk/js/ganglion.js");
/// Where the page is told how to reach the API.
const ACCESS_MARK: &str = "{{ACCESS}}";
const FRONT: &str = "Ganglion: the API is at /_data and its like, health at /readyz.\n";

/// Pages by path.
#[derive(Debug, Default)]
pub(crate) struct Pages(Vec<(&'static str, Page)>);

/// One page.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    content_type: &'static str,
    body: Bytes,
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
    /// The front page, the API's description, and the demo when there is an account for it.
    pub(crate) fn new(demo: Option<&DemoAccess>) -> Pages {
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
                ("/demo", page("text/html; charset=utf-8", &index)),
                ("/demo/demo.css", page("text/css; charset=utf-8", DEMO_CSS)),
                ("/demo/demo.js", page("text/javascript; charset=utf-8", DEMO_JS)),
                ("/demo/ganglion.js", page("text/javascript; charset=utf-8", CLIENT_JS)),
            ]);
        }
        Pages(pages)
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Page> {
        let path = if path == "/" { path } else { path.trim_end_matches('/') };
        self.0.iter().find(|(known, _)| *known == path).map(|(_, page)| page)
    }
}

fn page(content_type: &'static str, text: &str) -> Page {
    Page { content_type, body: Bytes::from(text.to_owned()) }
}

impl Page {
    pub(crate) fn response(&self, method: &Method) -> hyper::Response<Full<Bytes>> {
        let body = match *method {
            Method::GET => self.body.clone(),
            Method::HEAD => Bytes::new(),
            _ => return crate::http::plain(StatusCode::METHOD_NOT_ALLOWED, "GET this\n"),
        };
        let mut response = hyper::Response::new(Full::new(body));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        let nosniff = HeaderValue::from_static("nosniff");
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        response
    }
}
