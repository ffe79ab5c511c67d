//! Signalling sockets: the `signal` core behind one lock, and what services see of it.
//!
//! Whatever the core wants done is handed to the [`Outbox`] before the lock is let go, so frames
//! reach each socket's queue in the order in which the core made them. The outbox must not wait.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kv4::Bucket;
use services::logs::RUNTIME_PATH;
use services::statistics::{Measured, Statistics};
use services::token::Verified;
use services::{Clock, Closing, Kicked, Member, RoomRef, Rooms, Socket};
use signal::{Address, Join, Limits, Output, Refusal, Signal, SocketId, SocketView, Stats, Topic};
use wire::frames::Name;
use wire::names::{Key, Layer, Path};
use wire::ws::CloseCode;

/// Takes what the core wants sent. Called under the core's lock: it queues and returns.
pub trait Outbox: Send + Sync {
    fn deliver(&self, output: Output);
}

/// Every signalling socket of a neuron.
pub struct Switchboard {
    signal: Mutex<Signal>,
    outbox: Arc<dyn Outbox>,
    stats: Arc<Statistics>,
    clock: Arc<dyn Clock>,
    /// `<host>:<neuron>`, the key of this neuron's own measures.
    neuron: Key,
    runtime: Path,
}

impl std::fmt::Debug for Switchboard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Switchboard").field("signal", &self.stats()).finish_non_exhaustive()
    }
}

impl Switchboard {
    /// `neuron` is `<host>:<neuron>`.
    pub fn new(
        origin: &str,
        neuron: Key,
        limits: Limits,
        outbox: Arc<dyn Outbox>,
        stats: Arc<Statistics>,
        clock: Arc<dyn Clock>,
    ) -> Switchboard {
        Switchboard {
            signal: Mutex::new(Signal::new(origin, limits)),
            outbox,
            stats,
            clock,
            neuron,
            runtime: Path::parse(RUNTIME_PATH).expect("a constant path is legal"),
        }
    }

    /// Lets a socket with a verified token into its room.
    ///
    /// # Errors
    /// A limit or a missing grant.
    pub fn join(
        &self,
        socket: SocketId,
        verified: &Verified,
        room: &RoomRef,
        client_ip: IpAddr,
    ) -> Result<(), Refusal> {
        let claims = &verified.claims;
        let join = Join {
            address: address(room).ok_or(Refusal::NameTooLong)?,
            name: Name::encode(&claims.identity).map_err(|_| Refusal::NameTooLong)?,
            ident: claims.sub.clone().unwrap_or_else(|| claims.account.clone()),
            service: "xs_signal",
            grants: claims.grants,
            token: Some(signal::Token { id: claims.id, expires_unix_s: claims.expires_s }),
            client_ip,
            since_unix_s: self.clock.now_micros() / 1_000_000,
            meta: None,
        };
        self.with(|signal| signal.join(socket, join))
    }

    /// Takes a text message of a socket.
    pub fn text(&self, socket: SocketId, text: &str) {
        self.with(|signal| signal.handle_text(socket, text));
    }

    /// A socket is gone.
    pub fn leave(&self, socket: SocketId) {
        self.with(|signal| signal.leave(socket));
    }

    /// Figures of the core.
    pub fn stats(&self) -> Stats {
        self.lock().stats()
    }

    fn lock(&self) -> MutexGuard<'_, Signal> {
        self.signal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the core and delivers what comes of it.
    fn with<T>(&self, work: impl FnOnce(&mut Signal) -> T) -> T {
        let mut signal = self.lock();
        let done = work(&mut signal);
        while let Some(output) = signal.poll_output() {
            match output {
                Output::Stat(stat) => self.record(&stat),
                output => self.outbox.deliver(output),
            }
        }
        done
    }

    /// A measure stands for its path in its account, and for this neuron in that of `$sys`.
    fn record(&self, stat: &signal::Stat) {
        let now_s = self.clock.now_micros() / 1_000_000;
        let Ok(measure) = Layer::parse(stat.measure.as_str()) else { return };
        let by = stat.key.as_ref().map_or("$server", |name| name.as_str());
        let Ok(key) = Key::parse(by) else { return };
        let own = Measured {
            bucket: Bucket::sys(),
            measure: measure.clone(),
            path: self.runtime.clone(),
            key: self.neuron.clone(),
        };
        let of_path = Measured {
            bucket: stat.address.bucket.clone(),
            measure,
            path: stat.address.path.clone(),
            key,
        };
        self.stats.record(own, stat.value, now_s);
        self.stats.record(of_path, stat.value, now_s);
    }
}

impl Rooms for Switchboard {
    fn members(&self, room: &RoomRef) -> Vec<Member> {
        let Some(address) = address(room) else { return Vec::new() };
        let signal = self.lock();
        let rows = signal.rows(&address);
        rows.iter()
            .map(|row| Member {
                name: row.key.to_string(),
                ident: row.ident.to_string(),
                service: row.service.to_owned(),
            })
            .collect()
    }

    fn rooms(&self, bucket: &Bucket) -> Vec<RoomRef> {
        let signal = self.lock();
        signal
            .rooms(bucket)
            .map(|(path, topic)| RoomRef {
                bucket: bucket.clone(),
                path: path.clone(),
                topic: topic.to_string(),
            })
            .collect()
    }

    fn buckets(&self) -> Vec<Bucket> {
        self.lock().buckets().cloned().collect()
    }

    fn sockets(&self, bucket: &Bucket) -> Vec<Socket> {
        self.lock().sockets(bucket).iter().map(socket).collect()
    }

    fn kick(&self, room: &RoomRef, name: Option<&str>) -> Kicked {
        let Some(address) = address(room) else { return Kicked::default() };
        let kicked = self.with(|signal| signal.kick(&address, name));
        Kicked {
            members: kicked.names,
            tokens: kicked.tokens.iter().map(|token| (token.id, token.expires_unix_s)).collect(),
        }
    }

    fn close(&self, bucket: &Bucket, why: Closing, matches: &dyn Fn(&Socket) -> bool) -> usize {
        let (code, reason) = match why {
            Closing::Denied => (CloseCode::KICKED, "denied"),
            Closing::Ended => (CloseCode::KICKED, "session ended"),
            Closing::Revoked => (CloseCode::UNAUTHORIZED, "token revoked"),
        };
        let closed = self
            .with(|signal| signal.close_where(bucket, code, reason, |view| matches(&socket(view))));
        closed.sockets
    }
}

fn address(room: &RoomRef) -> Option<Address> {
    let topic = Topic::parse(&room.topic).ok()?;
    Some(Address { bucket: room.bucket.clone(), path: room.path.clone(), topic })
}

fn socket(view: &SocketView<'_>) -> Socket {
    Socket {
        id: view.socket.0,
        name: view.name.to_string(),
        path: view.address.path.clone(),
        topic: view.address.topic.to_string(),
        address: view.client_ip,
        since_s: view.since_unix_s,
        token: view.token.map(|token| token.id),
    }
}
