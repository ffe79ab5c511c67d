//! Listeners of signalling without HTTP, for clients beside the neuron: TCP and Unix sockets.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use neuron::requests::{Admission as _, Payer};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::EXHAUSTED_PAUSE;
use crate::http::Shared;
use crate::sockets::Socket;
use crate::turns::Spender;

/// What a place of a Unix socket begins with.
const UNIX: &str = "unix:";
/// Who may use a Unix socket: its owner and group. What they may do there their tokens say.
const MODE: u32 = 0o660;

/// Where to listen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    /// An absolute path.
    Unix(PathBuf),
}

impl Place {
    /// Reads `127.0.0.1:4008` or `unix:/run/ganglion/signal.sock`.
    pub(crate) fn parse(text: &str) -> Option<Place> {
        match text.strip_prefix(UNIX) {
            Some(path) if path.starts_with('/') => Some(Place::Unix(PathBuf::from(path))),
            Some(_) => None,
            None => text.parse().ok().map(Place::Tcp),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Tcp(address) => address.fmt(f),
            Place::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// A listener that is bound; a Unix socket goes with it.
#[derive(Debug)]
pub(crate) enum Plain {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Drop for Plain {
    fn drop(&mut self) {
        if let Plain::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A connection that was accepted.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Plain {
    /// Binds a place that nobody else has. With `elsewhere`, a taken port becomes a free one.
    pub(crate) fn bind(place: &Place, elsewhere: bool) -> Result<Plain> {
        match place {
            Place::Tcp(address) => super::bind(*address, elsewhere).map(Plain::Tcp),
            Place::Unix(path) => {
                let bound = bind_unix(path).with_context(|| format!("listening on {place}"))?;
                Ok(Plain::Unix(bound, path.clone()))
            }
        }
    }

    pub(crate) fn place(&self) -> Option<Place> {
        match self {
            Plain::Tcp(listener) => listener.local_addr().ok().map(Place::Tcp),
            Plain::Unix(_, path) => Some(Place::Unix(path.clone())),
        }
    }

    /// Accepts until the neuron stops.
    pub(crate) async fn accept(self, shared: Arc<Shared>) {
        loop {
            let accepted = tokio::select! {
                accepted = self.next() => accepted,
                () = shared.lifecycle.stopping() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    continue;
                }
            };
            let Some(entered) = shared.gate.enter(address) else { continue };
            let shared = shared.clone();
            tokio::spawn(async move {
                let _entered = entered;
                serve(shared, stream, address).await;
            });
        }
    }

    async fn next(&self) -> std::io::Result<(Stream, IpAddr)> {
        match self {
            Plain::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                super::set_up(&stream)?;
                Ok((Stream::Tcp(stream), peer.ip().to_canonical()))
            }
            Plain::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), Ipv4Addr::LOCALHOST.into()))
            }
        }
    }
}

async fn serve(shared: Arc<Shared>, stream: Stream, address: IpAddr) {
    let is_in_time = shared.turns.arrive(address);
    let spender = Spender::new(shared.turns.clone(), address);
    let turn = spender.ticket().turn(Payer::Address(address), true).await;
    if !is_in_time || turn.is_err() {
        return;
    }
    drop(turn);
    match stream {
        Stream::Tcp(stream) => Socket::run_plain(shared, stream, address).await,
        Stream::Unix(stream) => Socket::run_plain(shared, stream, address).await,
    }
}

/// Binds a path; a socket that a neuron left which was killed is taken away.
fn bind_unix(path: &Path) -> Result<UnixListener> {
    if let Ok(found) = path.symlink_metadata() {
        if !found.file_type().is_socket() {
            bail!("there is something else");
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            bail!("another program listens there");
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_address_or_an_absolute_path() {
        for text in ["127.0.0.1:4008", "[::1]:0", "unix:/run/a b.sock"] {
            assert_eq!(Place::parse(text).map(|place| place.to_string()).as_deref(), Some(text));
        }
        for text in ["", "4008", "localhost:4008", "unix:", "unix:a.sock", "/a.sock"] {
            assert_eq!(Place::parse(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_was_left_is_taken_away_and_no_other_file() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let place = Place::Unix(folder.path().join("s.sock"));
        let Place::Unix(path) = &place else { unreachable!() };
        let first = Plain::bind(&place, false).expect("binds");
        let mode = path.metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let error = Plain::bind(&place, false).expect_err("taken");
        assert!(format!("{error:#}").contains("another program listens"), "{error:#}");
        drop(first);
        assert!(!path.exists(), "it goes with its listener");
        // As a neuron leaves it that is killed.
        drop(std::os::unix::net::UnixListener::bind(path).expect("binds"));
        drop(Plain::bind(&place, false).expect("what was left is taken away"));
        std::fs::write(path, "precious").expect("writes");
        Plain::bind(&place, false).expect_err("no socket");
        assert_eq!(std::fs::read(path).expect("there"), b"precious");
    }
}
