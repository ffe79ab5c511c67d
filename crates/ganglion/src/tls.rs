//! TLS by rustls: a certificate from files, read again when they change, or one made for development.
//!
//! Connections that are open keep the certificate that they began with; new ones get the new one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use wire::timegroup::TimeGroup;

use crate::config::TlsConfig;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The TLS side of the listeners.
#[derive(Debug)]
pub(crate) struct Tls {
    config: TlsConfig,
    current: RwLock<Current>,
    /// Asks for a look at the files that does not wait for a change.
    again: Notify,
    /// How often the files were found to hold no pair, each time that what is wrong changed.
    pub(crate) failures: AtomicU64,
}

/// What new connections are given.
#[derive(Clone, Debug)]
struct Current {
    config: Arc<ServerConfig>,
    end_s: Option<u64>,
}

impl Tls {
    pub(crate) fn new(config: &TlsConfig) -> Result<Arc<Tls>> {
        let current = if config.self_signed { self_signed()? } else { from_files(config)? };
        Ok(Arc::new(Tls {
            config: config.clone(),
            current: RwLock::new(current),
            again: Notify::new(),
            failures: AtomicU64::new(0),
        }))
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.current().config.into()
    }

    /// The second of Unix time after which the certificate is not valid, where it can be read.
    pub(crate) fn end_s(&self) -> Option<u64> {
        self.current().end_s
    }

    /// What there is to say when the certificate has expired.
    pub(crate) fn expired(&self) -> Option<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let end_s = self.end_s().filter(|end_s| *end_s < now)?;
        Some(format!("tls.cert: the certificate has expired on {}", date(end_s)))
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the files read, changed or not; whether there are files.
    pub(crate) fn read_again(&self) -> bool {
        self.again.notify_one();
        !self.config.self_signed
    }

    /// Follows the files until the task is dropped. A pair that cannot be read leaves the old one;
    /// what is wrong with it is told once, until it is right or something else is wrong.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut seen = self.modified();
        let mut wrong: Option<String> = None;
        loop {
            let is_asked = tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => false,
                () = self.again.notified() => true,
            };
            let now = self.modified();
            if self.config.self_signed || (now == seen && wrong.is_none() && !is_asked) {
                continue;
            }
            match from_files(&self.config) {
                Ok(current) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
                    (seen, wrong) = (now, None);
                    tracing::info!("the TLS certificate was read again");
                    if let Some(warning) = self.expired() {
                        tracing::warn!("{warning}");
                    }
                }
                // Half of a pair may be written: the files are looked at again.
                Err(error) => {
                    let error = format!("{error:#}");
                    if wrong.as_ref() != Some(&error) || is_asked {
                        self.failures.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(%error, "the TLS certificate cannot be read; the one before stays");
                    }
                    wrong = Some(error);
                }
            }
        }
    }

    fn modified(&self) -> [Option<SystemTime>; 2] {
        [&self.config.cert, &self.config.key]
            .map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
    }
}

fn from_files(config: &TlsConfig) -> Result<Current> {
    let (cert, key) = (&config.cert, &config.key);
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("reading certificates from {}", cert.display()))?;
    if chain.is_empty() {
        bail!("there is no PEM certificate in {}", cert.display());
    }
    let read = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("reading a private key from {}", key.display()))?;
    server_config(chain, read).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => anyhow::anyhow!(
            "the certificate in {} and the key in {} do not fit",
            cert.display(),
            key.display()
        ),
        error => {
            let (cert, key) = (cert.display(), key.display());
            let about = format!("the certificate in {cert} with the key in {key}");
            anyhow::Error::new(error).context(about)
        }
    })
}

fn self_signed() -> Result<Current> {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names)?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    Ok(server_config(vec![made.cert.der().clone()], key.into())?)
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Current, rustls::Error> {
    let end_s = chain.first().and_then(|certificate| end_of(certificate));
    let mut config = ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()?
    .with_no_client_auth()
    .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Current { config: Arc::new(config), end_s })
}

// Tags of DER (X.690) that a certificate has before its validity (RFC 5280 §4.1).
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The last second of a certificate's validity; `None` for what is not written as RFC 5280 asks.
fn end_of(certificate: &[u8]) -> Option<u64> {
    let (certificate, _) = contents(certificate, SEQUENCE)?;
    let (mut rest, _) = contents(certificate, SEQUENCE)?;
    if let Some((_, after)) = contents(rest, VERSION) {
        rest = after;
    }
    // The serial number, the algorithm of the signature, who signed.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        rest = contents(rest, tag)?.1;
    }
    let (validity, _) = contents(rest, SEQUENCE)?;
    let (_, end) = time(validity)?;
    let (text, _) = time(end)?;
    // Two digits of a year are of 1950 to 2049.
    let text = match text.len() {
        13 => format!("{}{text}", if text < "50" { "20" } else { "19" }),
        _ => text.to_owned(),
    };
    let digits = text.strip_suffix('Z').filter(|digits| digits.len() == 14)?;
    let parts = [0..4, 4..6, 6..8, 8..10, 10..12, 12..14].map(|range| digits.get(range));
    let parts: Option<Vec<&str>> = parts.into_iter().collect();
    Some(TimeGroup::parse(&parts?.join(":")).ok()?.first_s())
}

/// A time as it is written, and what follows it.
fn time(der: &[u8]) -> Option<(&str, &[u8])> {
    let (text, rest) = contents(der, UTC_TIME).or_else(|| contents(der, GENERALIZED_TIME))?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// What an element of DER holds, if it has this tag, and what follows it.
fn contents(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    let (first, rest) = rest.split_first().filter(|_| *found == tag)?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        // As many bytes of length; three are more than any certificate has.
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// A second of Unix time as people write it, in UTC.
fn date(unix_s: u64) -> String {
    let group = TimeGroup::at(unix_s, 6).to_string();
    let parts: Vec<String> = group.split(':').map(|part| format!("{part:0>2}")).collect();
    match parts.as_slice() {
        [year, month, day, clock @ ..] => format!("{year}-{month}-{day} {} UTC", clock.join(":")),
        _ => group,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_read_as_openssl_reads_it() -> Result<()> {
        let folder = tempfile::TempDir::new()?;
        let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        // Years from 2050 on are written another way.
        for days in ["1", "3650", "36500"] {
            let made = Command::new("openssl")
                .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
                .args(["-nodes", "-subj", "/CN=a", "-days", days, "-out"])
                .arg(&cert)
                .arg("-keyout")
                .arg(&key)
                .output()?;
            assert!(made.status.success(), "{made:?}");
            let shown = Command::new("openssl")
                .args(["x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in"])
                .arg(&cert)
                .output()?;
            let shown = String::from_utf8(shown.stdout)?;
            let config = TlsConfig { cert: cert.clone(), key: key.clone(), ..TlsConfig::default() };
            let end_s = from_files(&config)?.end_s.context("an end")?;
            assert_eq!(format!("notAfter={}", date(end_s).replace(" UTC", "Z")), shown.trim());
        }
        Ok(())
    }

    #[test]
    fn what_is_no_certificate_has_no_end() {
        let whole = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).expect("a pair");
        let whole = whole.cert.der();
        assert!(end_of(whole).is_some());
        for length in 0..100 {
            assert_eq!(end_of(&whole[..length]), None, "{length}");
        }
        assert_eq!(end_of(&[0x30, 0x84, 0, 0, 0, 0, 1]), None);
    }
}
