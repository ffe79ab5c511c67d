//! TLS by rustls: a certificate from files, read again when they change, or one made for development.
//!
//! Connections that are open keep the certificate that they began with; new ones get the new one.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::TlsConfig;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The TLS side of the listeners.
#[derive(Debug)]
pub(crate) struct Tls {
    config: TlsConfig,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    pub(crate) fn new(config: &TlsConfig) -> Result<Arc<Tls>> {
        let current = if config.self_signed { self_signed()? } else { from_files(config)? };
        Ok(Arc::new(Tls { config: config.clone(), current: RwLock::new(current) }))
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone().into()
    }

    /// Follows the files until the task is dropped. A pair that cannot be read leaves the old one.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut seen = self.modified();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = self.modified();
            if now == seen || self.config.self_signed {
                continue;
            }
            match from_files(&self.config) {
                Ok(config) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                    seen = now;
                    tracing::info!("the TLS certificate was read again");
                }
                // Half of a pair may be written: the files are looked at again.
                Err(error) => tracing::warn!(%error, "the TLS certificate cannot be read"),
            }
        }
    }

    fn modified(&self) -> [Option<SystemTime>; 2] {
        [&self.config.cert, &self.config.key]
            .map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
    }
}

fn from_files(config: &TlsConfig) -> Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(&config.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("reading certificates from {}", config.cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(&config.key)
        .with_context(|| format!("reading a private key from {}", config.key.display()))?;
    server_config(chain, key)
}

fn self_signed() -> Result<Arc<ServerConfig>> {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names)?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    server_config(vec![made.cert.der().clone()], key.into())
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()?
    .with_no_client_auth()
    .with_single_cert(chain, key)
    .context("the certificate and its key do not fit")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
