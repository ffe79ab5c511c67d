//! A network between a client and a neuron that can fail: its connections are cut, or go nowhere.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

/// How often a connection looks whether the network is away.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A listener on loopback that passes all bytes on to one address.
#[derive(Debug)]
pub struct Proxy {
    pub address: String,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether bytes go nowhere; new connections are not answered either.
    is_away: AtomicBool,
    is_over: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Before an address such as `127.0.0.1:4006`.
    pub fn before(target: &str) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let state = Arc::new(State::default());
        let (shared, target) = (state.clone(), target.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(server) = TcpStream::connect(&target) else { continue };
                shared.carry(client, server);
            }
        });
        Ok(Proxy { address, state })
    }

    /// From here on nothing comes through, and nobody is told; or it does again.
    pub fn set_away(&self, is_away: bool) {
        self.state.is_away.store(is_away, Ordering::SeqCst);
    }

    /// Cuts every connection, as both sides see at once.
    pub fn cut(&self) {
        for stream in self.state.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        self.cut();
        // The listener's thread waits for one more.
        let _ = TcpStream::connect(&self.address);
    }
}

impl State {
    fn carry(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let pairs = [(&client, &server), (&server, &client)];
        for (from, to) in pairs {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { return };
            let _ = to.set_nodelay(true);
            let state = self.clone();
            std::thread::spawn(move || state.copy(from, to));
        }
        self.open.lock().unwrap_or_else(PoisonError::into_inner).extend([client, server]);
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut bytes = [0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            while self.is_away.load(Ordering::SeqCst) && !self.is_over.load(Ordering::SeqCst) {
                std::thread::sleep(LOOK_EVERY);
            }
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}
