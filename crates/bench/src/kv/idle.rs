//! The limit of reads: hyper as `crates/ganglion/src/http.rs` sets it up, giving one answer that was
//! made beforehand. It looks at nothing, so what it costs is hyper, tokio and the kernel.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};

/// What is answered to everything.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Answer {
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

pub(crate) fn serve(answer: &Path, ready: &Path) -> Result<()> {
    let answer: Answer = serde_json::from_slice(&std::fs::read(answer)?)?;
    let mut headers = HeaderMap::new();
    for (name, value) in &answer.headers {
        headers.insert(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
    }
    let body = Bytes::from(answer.body);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let partial = ready.with_extension("partial");
        std::fs::write(&partial, listener.local_addr()?.to_string())?;
        std::fs::rename(&partial, ready)?;
        loop {
            let (stream, _) = listener.accept().await.context("accepting")?;
            stream.set_nodelay(true)?;
            tokio::spawn(serve_connection(stream, headers.clone(), body.clone()));
        }
    })
}

/// Defaults of `crates/ganglion/src/config/keys.rs`.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
const HEADERS_BYTES: u32 = 32 << 10;
/// Of `crates/ganglion/src/http/connection.rs`.
const STREAMS_MAX: u32 = 128;

async fn serve_connection(stream: TcpStream, headers: HeaderMap, body: Bytes) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .max_buf_size(HEADERS_BYTES as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_BYTES)
        .keep_alive_interval(Duration::from_secs(20));
    let service = hyper::service::service_fn(move |_request| {
        let mut response = hyper::Response::new(Full::new(body.clone()));
        response.headers_mut().clone_from(&headers);
        async move { Ok::<_, Infallible>(response) }
    });
    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP: &str = include_str!("../../../ganglion/src/http/connection.rs");
    const CONFIG: &str = include_str!("../../../ganglion/src/config/keys.rs");

    /// How a connection is set up, from the first setting to the last, without white space.
    fn settings(source: &str) -> Result<String> {
        let (_, rest) = source.split_once("builder\n        .http1()").context("no builder")?;
        let last = rest.find(".keep_alive_interval(").context("no last setting")?;
        let end = last + rest[last..].find(';').context("no end")?;
        Ok(rest[..end].split_whitespace().collect())
    }

    #[test]
    fn the_limit_is_set_up_as_the_neuron_is() -> Result<()> {
        let of_neuron = settings(HTTP)?
            .replace("limits.keep_alive.0", "KEEP_ALIVE")
            .replace("limits.headers.0.max(8<<10)", "HEADERS_BYTESasusize")
            .replace("u32::try_from(limits.headers.0).unwrap_or(u32::MAX)", "HEADERS_BYTES");
        assert_eq!(settings(include_str!("idle.rs"))?, of_neuron);
        let defaults = [
            (HTTP, format!("const STREAMS_MAX: u32 = {STREAMS_MAX};")),
            (
                CONFIG,
                format!("keep_alive: Span = Span(Duration::from_secs({}))", KEEP_ALIVE.as_secs()),
            ),
            (CONFIG, format!(" headers: Size = Size({} << 10)", HEADERS_BYTES >> 10)),
        ];
        for (source, default) in defaults {
            assert!(source.contains(&default), "`{default}` is not there");
        }
        Ok(())
    }
}
