//! For tests: a neuron that listens nowhere, and connections to it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use base64::Engine as _;
use store::embedded::{EmbeddedStore, Options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::{Incoming, Pages, Shared, serve_connection};
use crate::config::Config;
use crate::turns::Spender;

pub(super) const SYS_SECRET: &str = "sys-secret";

/// A neuron that listens nowhere.
pub(super) struct Stage {
    pub(super) shared: Arc<Shared>,
    _folder: tempfile::TempDir,
}

impl Stage {
    pub(super) fn new(change: impl FnOnce(&mut Config)) -> Stage {
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
