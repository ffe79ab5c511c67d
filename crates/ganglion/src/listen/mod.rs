//! Listeners: bound once and alone, accepted within limits, with TLS where asked. Those without HTTP are
//! in [`plain`].

pub(crate) mod plain;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};

use crate::http::{self, Incoming, Shared};
use crate::tls::Tls;
use crate::turns::{Spender, customer};

/// Connections that the kernel holds for a listener.
const BACKLOG: i32 = 4096;
/// Bytes that the kernel takes for a client before it can send them. Else it keeps megabytes for each who
/// reads nothing, which no bound of ours would count, and whoever is slow is found out late.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 64 << 10;
/// Pause after the process has run out of file descriptors.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);
/// How long a TLS handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// What a listener serves.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Http,
    Https(Arc<Tls>),
    Admin,
}

/// Counts open connections, all and by address.
#[derive(Debug)]
pub(crate) struct Gate {
    all_max: usize,
    address_max: usize,
    all: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
}

impl Gate {
    pub(crate) fn new(all_max: usize, address_max: usize) -> Arc<Gate> {
        Arc::new(Gate {
            all_max,
            address_max,
            all: AtomicUsize::new(0),
            by_address: Mutex::default(),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    pub(crate) fn open(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Entered> {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let customer = customer(address);
        let of_address = by_address.entry(customer).or_default();
        if self.all.load(Ordering::Relaxed) >= self.all_max || *of_address >= self.address_max {
            if *of_address == 0 {
                by_address.remove(&customer);
            }
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *of_address += 1;
        self.all.fetch_add(1, Ordering::Relaxed);
        self.accepted.fetch_add(1, Ordering::Relaxed);
        Some(Entered { gate: self.clone(), address })
    }
}

/// An open connection's place, given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Entered {
    gate: Arc<Gate>,
    address: IpAddr,
}

impl Entered {
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut by_address = self.gate.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let customer = customer(self.address);
        if let Some(count) = by_address.get_mut(&customer) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&customer);
            }
        }
        self.gate.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Binds an address that nobody else has. With `elsewhere`, a taken port becomes a free one.
pub(crate) fn bind(address: SocketAddr, elsewhere: bool) -> Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    // Linux refuses a port on which somebody listens even so; this is for connections that linger.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    match socket.bind(&address.into()).and_then(|()| socket.listen(BACKLOG)) {
        Ok(()) => TcpListener::from_std(socket.into()).context("registering a listener"),
        Err(error) if elsewhere && error.kind() == std::io::ErrorKind::AddrInUse => {
            bind(SocketAddr::new(address.ip(), 0), false)
        }
        Err(error) => Err(error).with_context(|| format!("listening on {address}")),
    }
}

/// Accepts until the neuron stops.
pub(crate) async fn accept(listener: TcpListener, kind: Kind, shared: Arc<Shared>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.lifecycle.stopping() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
                continue;
            }
        };
        let peer = peer.ip().to_canonical();
        let is_admin = matches!(kind, Kind::Admin);
        let gate = if is_admin { &shared.admin_gate } else { &shared.gate };
        let Some(entered) = gate.enter(peer) else { continue };
        let (kind, shared) = (kind.clone(), shared.clone());
        tokio::spawn(serve(stream, entered, kind, shared));
    }
}

/// Sets what holds for every connection.
fn set_up(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES)?;
    Ok(())
}

async fn serve(stream: TcpStream, entered: Entered, kind: Kind, shared: Arc<Shared>) {
    let peer = entered.address();
    if let Err(error) = set_up(&stream) {
        tracing::debug!(%peer, %error, "connection gone");
        return;
    }
    let spender = Spender::new(shared.turns.clone(), peer);
    let connection = Incoming { entered, spender, is_tls: false, is_admin: false };
    match kind {
        Kind::Http => http::serve_connection(shared, stream, connection).await,
        Kind::Admin => {
            let connection = Incoming { is_admin: true, ..connection };
            http::serve_connection(shared, stream, connection).await;
        }
        Kind::Https(tls) => {
            let spender = &connection.spender;
            let handshake = async {
                // A handshake is dear, and nobody in particular asks for it.
                spender.handshake().await;
                tls.acceptor().accept(stream).await
            };
            match tokio::time::timeout(HANDSHAKE_TIME, spender.metered(handshake)).await {
                Ok(Ok(stream)) => {
                    let connection = Incoming { is_tls: true, ..connection };
                    http::serve_connection(shared, stream, connection).await;
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_of_ipv6_is_one_client_however_many_addresses_he_has() {
        let gate = Gate::new(100, 2);
        let enter = |address: &str| gate.enter(address.parse().expect("an address"));
        let first = enter("2001:db8:0:1::1").expect("room");
        let second = enter("2001:db8:0:1:ffff::2").expect("room");
        assert!(enter("2001:db8:0:1::3").is_none(), "a third of one /64");
        let neighbour = enter("2001:db8:0:2::1").expect("another /64");
        assert_eq!(second.address(), "2001:db8:0:1:ffff::2".parse::<IpAddr>().expect("an address"));
        drop(first);
        let third = enter("2001:db8:0:1::3").expect("the first one's room");
        let of_ipv4 = ["192.0.2.1", "192.0.2.1", "192.0.2.2"].map(|at| enter(at).expect("room"));
        assert!(enter("192.0.2.1").is_none() && gate.open() == 6);
        drop((second, third, neighbour, of_ipv4));
        assert_eq!(gate.open(), 0);
        assert!(gate.by_address.lock().expect("unpoisoned").is_empty(), "nothing is remembered");
    }
}
