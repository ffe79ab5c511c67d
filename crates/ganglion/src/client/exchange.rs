//! One request to a neuron and its answer, over http, or over https with a certificate that the
//! system trusts, or a file that is named.

use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Uri, header, uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::contexts::Context;

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// A neuron's address.
pub(super) struct Address {
    is_tls: bool,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// What the `Host` header says.
    authority: uri::Authority,
}

/// Asks; answers the status and the text.
pub(super) async fn exchange(
    context: &Context,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Result<(u16, String)> {
    let url = &context.url;
    let address = Address::parse(url)?;
    let credentials = base64::engine::general_purpose::STANDARD.encode(&context.user);
    let request = Request::builder()
        .method(method)
        .uri(target(path))
        .header(header::HOST, address.authority.as_str())
        .header(header::AUTHORIZATION, format!("Basic {credentials}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.unwrap_or("").to_owned())))
        .with_context(|| format!("asking for {path}"))?;
    let (stream, _) = connect(context).await?;
    send(stream, request).await
}

/// A connection, with TLS or without.
pub(super) type Stream = Box<dyn Transport>;

/// What a connection is read and written by.
pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Connects to a context's neuron; answers what the `Host` header says, too.
pub(super) async fn connect(context: &Context) -> Result<(Stream, uri::Authority)> {
    let url = &context.url;
    let Address { is_tls, host, port, authority } = Address::parse(url)?;
    // What can be refused without a connection is.
    let tls = is_tls.then(|| client_config(context.ca.as_deref())).transpose()?;
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .with_context(|| format!("connecting to {url}"))?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok((Box::new(stream), authority)) };
    let name = ServerName::try_from(host).with_context(|| format!("{url}: its host"))?;
    let connected = TlsConnector::from(tls).connect(name, stream).await;
    Ok((Box::new(connected.map_err(|error| refused(url, error))?), authority))
}

async fn send<IO>(io: IO, request: Request<Full<Bytes>>) -> Result<(u16, String)>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await.context("sending the request")?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(anyhow::Error::from_boxed).context("reading the answer")?;
    let text = String::from_utf8(body.to_bytes().into()).context("the answer is not UTF-8")?;
    Ok((status, text))
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Address> {
        let wrong = || {
            format!(
                "{url}: not an address such as http://127.0.0.1:4006 or https://rtc.example.org"
            )
        };
        let parts = url.parse::<Uri>().with_context(wrong)?.into_parts();
        let is_tls = match parts.scheme.as_ref().map(uri::Scheme::as_str) {
            Some("http") => false,
            Some("https") => true,
            _ => bail!(wrong()),
        };
        if parts.path_and_query.is_some_and(|path| path != "/") {
            bail!("{}, and nothing after that", wrong());
        }
        let authority = parts.authority.with_context(wrong)?;
        if authority.as_str().contains('@') {
            bail!("{}: credentials are named by --user", wrong());
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Address { is_tls, host, port, authority })
    }
}

/// Path and query as a request carries them, with what people leave as it is: spaces, `#`, umlauts.
fn target(path: &str) -> String {
    let mut target = String::from(if path.starts_with('/') { "" } else { "/" });
    for byte in path.bytes() {
        match byte {
            b'"' | b'#' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => {
                target += &format!("%{byte:02X}");
            }
            byte if byte.is_ascii_graphic() => target.push(char::from(byte)),
            byte => target += &format!("%{byte:02X}"),
        }
    }
    target
}

/// Trusts the certificates of a file, or without one those of the system.
fn client_config(ca: Option<&Path>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = ca {
        let about = || format!("reading certificates from {}", file.display());
        for certificate in CertificateDer::pem_file_iter(file).with_context(about)? {
            roots.add(certificate.with_context(about)?).with_context(about)?;
        }
        if roots.is_empty() {
            bail!("there is no certificate in {}", file.display());
        }
    } else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
            bail!("the system trusts no certificates {errors:?}: name a file of them with --ca");
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Says what can be done about a handshake that failed.
fn refused(url: &str, error: io::Error) -> anyhow::Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    let advice = match cause {
        Some(rustls::Error::InvalidCertificate(reason)) => advice(reason),
        _ => "the TLS handshake failed",
    };
    anyhow::Error::new(error).context(format!("{url}: {advice}"))
}

fn advice(reason: &CertificateError) -> &'static str {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext,
    };
    match reason {
        NotValidForName | NotValidForNameContext { .. } => "its certificate is for another name",
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => {
            "its certificate is not valid at this time"
        }
        // The verifier's own error, which has no type here.
        reason if format!("{reason:?}").contains("CaUsedAsEndEntity") => {
            "its certificate is one that signs others, which servers must not show: make one with \
             `basicConstraints=critical,CA:FALSE`"
        }
        _ => {
            "its certificate is signed by nobody who is trusted here; name the PEM file of who signed \
             it, or of a self-made one itself, with --ca"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_scheme_a_host_and_perhaps_a_port() {
        for (url, expected) in [
            ("http://127.0.0.1:4006", (false, "127.0.0.1", 4006)),
            ("http://rtc.example.org", (false, "rtc.example.org", 80)),
            ("https://rtc.example.org/", (true, "rtc.example.org", 443)),
            ("https://[::1]:4008", (true, "::1", 4008)),
            ("http://[::1]", (false, "::1", 80)),
        ] {
            let parsed = Address::parse(url).expect(url);
            assert_eq!((parsed.is_tls, parsed.host.as_str(), parsed.port), expected, "{url}");
        }
        for url in [
            "",
            "rtc.example.org",
            "ftp://a",
            "https://a/b",
            "https://a/?b",
            "https://u:p@a",
            "http://",
        ] {
            let error = Address::parse(url).err().expect(url).to_string();
            assert!(error.contains("http://127.0.0.1:4006"), "{url}: {error}");
        }
    }

    #[test]
    fn a_path_is_taken_as_people_write_it() {
        for (path, expected) in [
            ("_data/p?k=a b", "/_data/p?k=a%20b"),
            ("/_data/p%20q?k=#1&k2=ü", "/_data/p%20q?k=%231&k2=%C3%BC"),
            ("/_data?a[]={\"b\"}", "/_data?a[]=%7B%22b%22%7D"),
        ] {
            assert_eq!(target(path), expected);
            assert!(expected.parse::<Uri>().is_ok(), "{expected}");
        }
    }
}
