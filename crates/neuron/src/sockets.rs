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
use thiserror::Error;
use wire::frames::{BadName, Name};
use wire::names::{Key, Layer, NameError, Path};
use wire::token::Grants;
use wire::ws::CloseCode;

/// Takes what the core wants sent. Called under the core's lock: it queues and returns.
pub trait Outbox: Send + Sync {
    fn deliver(&self, output: Output);
}

/// Why a socket was not let into a room.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum NotJoined {
    #[error("the token's user cannot be a member: {0}")]
    BadIdentity(#[from] BadName),
    #[error("the room's topic is not one path segment: {0}")]
    BadTopic(#[from] NameError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl NotJoined {
    /// What to close the socket with.
    pub fn close_code(self) -> CloseCode {
        match self {
            NotJoined::BadIdentity(_) | NotJoined::BadTopic(_) => CloseCode::POLICY,
            NotJoined::Refused(refusal) => refusal.close_code(),
        }
    }
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
        neuron: Key,
        limits: Limits,
        outbox: Arc<dyn Outbox>,
        stats: Arc<Statistics>,
        clock: Arc<dyn Clock>,
    ) -> Switchboard {
        Switchboard {
            signal: Mutex::new(Signal::new(limits)),
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
    /// A name that no room takes, a limit, or a missing grant.
    pub fn join(
        &self,
        socket: SocketId,
        verified: &Verified,
        room: &RoomRef,
        client_ip: IpAddr,
    ) -> Result<(), NotJoined> {
        let claims = &verified.claims;
        let join = Join {
            address: address(room)?,
            name: Name::encode(&claims.identity)?,
            ident: claims.sub.clone().unwrap_or_else(|| claims.account.clone()),
            service: "xs_signal",
            grants: claims.grants,
            token: Some(signal::Token { id: claims.id, expires_unix_s: claims.expires_s }),
            client_ip,
            since_unix_s: self.clock.now_micros() / 1_000_000,
        };
        Ok(self.with(|signal| signal.join(socket, join))?)
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
        let Ok(key) = Key::parse(stat.key.as_str()) else { return };
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
        let Ok(address) = address(room) else { return Vec::new() };
        let rows = self.lock().rows(&address);
        rows.iter()
            .map(|row| Member {
                name: row.key.to_string(),
                ident: row.ident.to_string(),
                service: row.service.to_owned(),
            })
            .collect()
    }

    fn rooms(&self, bucket: &Bucket) -> Vec<RoomRef> {
        let rooms: Vec<(Path, Topic)> =
            self.lock().rooms(bucket).map(|(path, topic)| (path.clone(), topic.clone())).collect();
        let bucket = || bucket.clone();
        rooms
            .into_iter()
            .map(|(path, topic)| RoomRef { bucket: bucket(), path, topic: topic.to_string() })
            .collect()
    }

    fn buckets(&self) -> Vec<Bucket> {
        self.lock().buckets().cloned().collect()
    }

    fn sockets(&self, bucket: &Bucket, show: &mut dyn FnMut(&Socket<'_>)) {
        // Reference counts under the lock, which every account shares; the rest without it.
        let held: Vec<_> = self
            .lock()
            .sockets(bucket)
            .map(|view| {
                let SocketView { socket, address, name, token, granted, client_ip, since_unix_s } =
                    view;
                (socket, address.clone(), name.clone(), token, granted, client_ip, since_unix_s)
            })
            .collect();
        for (socket, address, name, token, granted, client_ip, since_unix_s) in held {
            let (address, name) = (&address, &name);
            let view =
                SocketView { socket, address, name, token, granted, client_ip, since_unix_s };
            show(&shown(&view));
        }
    }

    fn kick(&self, room: &RoomRef, name: Option<&str>) -> Kicked {
        let Ok(address) = address(room) else { return Kicked::default() };
        let kicked = self.with(|signal| signal.kick(&address, name));
        Kicked {
            members: kicked.names,
            tokens: kicked.tokens.iter().map(|token| (token.id, token.expires_unix_s)).collect(),
        }
    }

    fn close(&self, bucket: &Bucket, why: Closing, matches: &dyn Fn(&Socket<'_>) -> bool) -> usize {
        let (code, reason) = match why {
            Closing::Denied => (CloseCode::KICKED, "denied"),
            Closing::Ended => (CloseCode::KICKED, "session ended"),
            Closing::Revoked => (CloseCode::UNAUTHORIZED, "token revoked"),
        };
        let closed = self
            .with(|signal| signal.close_where(bucket, code, reason, |view| matches(&shown(view))));
        closed.sockets
    }

    fn regrant(&self, bucket: &Bucket, grants: &dyn Fn(&Socket<'_>) -> Option<Grants>) {
        self.with(|signal| signal.regrant(bucket, |view| grants(&shown(view))));
    }

    fn grant(&self, _: &Bucket, socket: u64, grants: Grants) {
        self.with(|signal| signal.grant(SocketId(socket), grants));
    }
}

fn address(room: &RoomRef) -> Result<Address, NameError> {
    let topic = Topic::parse(&room.topic)?;
    Ok(Address { bucket: room.bucket.clone(), path: room.path.clone(), topic })
}

fn shown<'a>(view: &SocketView<'a>) -> Socket<'a> {
    Socket {
        id: view.socket.0,
        name: view.name.as_str(),
        path: &view.address.path,
        topic: view.address.topic.as_str(),
        address: view.client_ip,
        since_s: view.since_unix_s,
        token: view.token.map(|token| token.id),
        granted: view.granted,
    }
}

#[cfg(test)]
mod tests {
    use wire::names::Ident;
    use wire::token::Claims;

    use super::*;

    /// Takes everything and does nothing with it.
    struct Nowhere;

    impl Outbox for Nowhere {
        fn deliver(&self, _: Output) {}
    }

    struct Noon;

    impl Clock for Noon {
        fn now_micros(&self) -> u64 {
            1_700_000_000_000_000
        }

        fn sleep(&self, _: std::time::Duration) -> kv4::store::BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }
    }

    fn switchboard() -> Switchboard {
        Switchboard::new(
            Key::parse("host:neuron").expect("a key"),
            Limits::default(),
            Arc::new(Nowhere),
            Arc::new(Statistics::default()),
            Arc::new(Noon),
        )
    }

    fn verified(identity: &str, token: u64) -> Verified {
        let account = Ident::parse("elena").expect("an ident");
        let bucket = Bucket::account(&account, None).expect("short");
        let claims = Claims {
            id: token,
            account,
            sub: None,
            path: None,
            identity: identity.to_owned(),
            grants: Grants::CHATTER,
            not_before_ms: 0,
            expires_s: 0,
            key_id: 0,
        };
        Verified { claims, bucket }
    }

    fn join(board: &Switchboard, number: u64, name: &str, topic: &str) -> Result<(), NotJoined> {
        let verified = verified(name, number);
        let path = Path::parse("/my/path").expect("a path");
        let room = RoomRef { bucket: verified.bucket.clone(), path, topic: topic.to_owned() };
        board.join(SocketId(number), &verified, &room, [127, 0, 0, 1].into())
    }

    #[test]
    fn a_name_that_no_room_takes_is_refused_as_what_it_is() {
        let board = switchboard();
        let refused = join(&board, 1, "ann", "a/b").expect_err("two segments");
        assert_eq!(refused, NotJoined::BadTopic(NameError::BadSegment));
        assert_eq!(refused.close_code(), CloseCode::POLICY);
        let refused = join(&board, 1, "__sys__", "topic").expect_err("the server's name");
        assert_eq!(refused, NotJoined::BadIdentity(BadName));
        join(&board, 1, "ann", "topic").expect("joins");
        let refused = join(&board, 1, "ann", "topic").expect_err("sits already");
        assert_eq!(refused, NotJoined::Refused(Refusal::Seated));
    }

    #[test]
    fn sockets_are_shown_without_the_lock_and_matched_by_what_they_are() {
        let board = switchboard();
        for (number, name) in [(1, "zoë"), (2, "ann"), (3, "ann")] {
            join(&board, number, name, "topic").expect("joins");
        }
        let bucket = verified("ann", 1).bucket;
        let mut seen = Vec::new();
        board.sockets(&bucket, &mut |socket| {
            assert!(board.signal.try_lock().is_ok(), "others may join meanwhile");
            seen.push((socket.id, socket.name.to_owned(), socket.path.to_string(), socket.token));
        });
        let row = |id: u64, name: &str| (id, name.to_owned(), "/my/path".to_owned(), Some(id));
        assert_eq!(seen, [row(2, "ann"), row(3, "ann"), row(1, "zo%C3%AB")]);

        let closed = board.close(&bucket, Closing::Revoked, &|socket| socket.token == Some(3));
        assert_eq!((closed, board.stats().sockets), (1, 2));
        let path = Path::parse("/my/path/topic").expect("a path");
        let is_ann = |socket: &Socket<'_>| socket.name == "ann" && socket.is_within(&path);
        assert_eq!(board.close(&bucket, Closing::Ended, &is_ann), 1);
        assert_eq!(board.stats().names, 1);
    }
}
