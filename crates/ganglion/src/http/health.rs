//! Health, readiness, draining and metrics, of which private listeners tell more.

use http::{HeaderValue, Method, StatusCode, header};

use super::connection::Connection;
use super::replies::{HttpResponse, plain};
use crate::metrics;

impl Connection {
    /// `/livez`, `/readyz`, `/drainz`, `/metrics`; reasons and metrics on private listeners only.
    pub(super) async fn health(&self, method: &Method, path: &str) -> Option<HttpResponse> {
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
                let left = || self.shared.left();
                if method == Method::POST {
                    lifecycle.drain();
                    // It was done as asked; a GET tells when nothing is left.
                    return Some(verdict(true, left()));
                } else if method == Method::DELETE {
                    lifecycle.resume();
                    return Some(verdict(!lifecycle.is_draining(), lifecycle.unready()));
                }
                let left = left();
                Some(verdict(lifecycle.is_draining() && left.is_empty(), left))
            }
            "/metrics" if self.is_admin => {
                let mut response = plain(StatusCode::OK, metrics::render(&self.shared));
                let content_type = HeaderValue::from_static(metrics::CONTENT_TYPE);
                response.headers_mut().insert(header::CONTENT_TYPE, content_type);
                Some(response)
            }
            _ => None,
        }
    }
}
