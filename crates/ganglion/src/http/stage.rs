//! For tests: a neuron that listens nowhere, and connections to it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use services::watch::{self, Ended, Full, Sink, Told};
use store::embedded::{EmbeddedStore, Options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::{Incoming, Pages, Shared, serve_connection};
use crate::config::Config;
use crate::turns::Spender;

pub(super) const SYS_SECRET: &str = "sys-secret";

/// A neuron that listens nowhere.
pub(crate) struct Stage {
    pub(crate) shared: Arc<Shared>,
    _folder: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new(change: impl FnOnce(&mut Config)) -> Stage {
        let folder = tempfile::TempDir::new().expect("a folder");
        let mut config = Config::default();
        config.store.data_dir = folder.path().to_owned();
        change(&mut config);
        let store = EmbeddedStore::open(&folder.path().join("store"), Options::default());
        let store = Arc::new(store.expect("a store"));
        crate::serve::prepare_data_folder(&config).expect("a folder for it");
        let shared = crate::serve::assemble(&mut config, store, SYS_SECRET).expect("a neuron");
        let shared = Shared { pages: Pages::new(None, []), ..shared };
        Stage { shared: Arc::new(shared), _folder: folder }
    }

    pub(super) fn connect(&self, from: u8) -> DuplexStream {
        let (io, peer) = tokio::io::duplex(64 << 10);
        let entered = self.shared.gate.enter(address(from)).expect("room");
        let spender = Spender::new(self.shared.turns.clone(), address(from));
        let incoming = Incoming { entered, spender, is_tls: false, is_admin: false };
        tokio::spawn(serve_connection(self.shared.clone(), io, incoming));
        peer
    }

    /// Sends a request's head without its last line, and reads all that comes.
    pub(super) async fn ask(&self, from: u8, head: &[u8]) -> String {
        self.send(from, head, b"").await
    }

    /// The same with a body, of which the head says how long it is.
    pub(super) async fn send(&self, from: u8, head: &[u8], body: &[u8]) -> String {
        let mut connection = self.connect(from);
        for bytes in [head, b"connection: close\r\n\r\n", body] {
            connection.write_all(bytes).await.expect("it is taken");
        }
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await.expect("an answer");
        String::from_utf8(answer).expect("text")
    }

    /// Writes by the API as who runs the neuron.
    pub(crate) async fn put(&self, path: &str, body: &str) {
        let (authorization, length) = (authorization(), body.len());
        let head = format!(
            "PUT /{path} HTTP/1.1\r\nhost: a\r\n{authorization}content-length: {length}\r\n"
        );
        let answer = self.send(2, head.as_bytes(), body.as_bytes()).await;
        assert!(answer.contains(r#""s":"ok""#), "{answer}");
    }

    /// A change of `/p` as watches tell it; changes are handed on (`http::hand_on`).
    pub(crate) async fn told(&self) -> Arc<Told> {
        #[derive(Default)]
        struct Last(Mutex<Option<Arc<Told>>>);
        impl Sink for Last {
            fn told(&self, change: &Arc<Told>) -> Result<(), Full> {
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(change.clone());
                Ok(())
            }
            fn ended(&self, _: Ended) {}
        }
        let last = Arc::new(Last::default());
        let sink: Arc<dyn Sink> = last.clone();
        let (bucket, layer) = (kv4::Bucket::sys(), services::layer_of("*data"));
        let path = wire::names::Path::parse("/p").expect("a path");
        let node = kv4::Node::new(bucket.clone(), layer, path);
        let who = Arc::from("$sys");
        let watch = watch::Watch { node, key: None, payer: bucket, who, address: address(1) };
        let opened = self.shared.neuron.services.kv.watch(&watch, &sink).await;
        let _guard = opened.expect("a watch").1;
        self.put("_data/p", r#"{"k":"a","v":"x"}"#).await;
        loop {
            if let Some(told) = last.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return told;
            }
            tokio::task::yield_now().await;
        }
    }
}

pub(super) fn address(last: u8) -> IpAddr {
    IpAddr::from(Ipv4Addr::new(192, 0, 2, last))
}

pub(super) fn authorization() -> String {
    format!("authorization: {}\r\n", basic("$sys", SYS_SECRET))
}

pub(super) fn basic(ident: &str, secret: &str) -> String {
    let both = format!("{ident}:{secret}");
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(both))
}
