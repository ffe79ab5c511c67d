//! Signalling sockets: `signal` cores behind a lock each, and what services see of them.
//!
//! Every bucket has one core, so that accounts seldom wait for one another. Whatever a core wants done
//! is handed to the [`Outbox`] before its lock is let go, so frames reach each socket's queue in the
//! order in which the core made them. The outbox must not wait.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kv4::Bucket;
use services::logs::RUNTIME_PATH;
use services::statistics::{Measured, Statistics};
use services::token::Verified;
use services::{Clock, Closing, Kicked, Member, Published, RoomRef, Rooms, Socket};
use signal::{
    Address, Coming, Departure, Join, Limits, Output, Refusal, Relayed, Sealer, Signal, SocketId,
    SocketView, Stats, Topic, Unheard,
};
use thiserror::Error;
use wire::envelope::Fault;
use wire::errors::Code;
use wire::frames::{BadFrame, BadName, ClientFrame, Generation, Name, SYSTEM_NAME, UserFrame};
use wire::names::{Key, Layer, NameError, Path};
use wire::token::Grants;
use wire::ws::CloseCode;

/// Cores of a neuron: more than most machines have threads.
const CORES: usize = 16;

/// Takes what the core wants sent. Called under the core's lock: it queues and returns.
pub trait Outbox: Send + Sync {
    /// Answers how much waits for the slowest of those to whom it went.
    fn deliver(&self, output: Output) -> Crowd;
}

/// How full the fullest queue is: whoever fills those of others is to say less, before they are cut for
/// it.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Crowd {
    #[default]
    Roomy,
    /// More than half.
    Full,
    /// More than three quarters.
    Packed,
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

/// Where a socket sits that has joined: the core that knows of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place(usize);

impl Place {
    /// Where all sockets of a bucket sit (FNV-1a).
    pub fn of(bucket: &Bucket) -> Place {
        let hash = bucket.as_str().bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        Place((hash >> 32) as usize % CORES)
    }
}

/// What a socket has to say of itself, beside its token, as it joins.
#[derive(Clone, Debug)]
pub struct Joiner {
    pub generation: Generation,
    pub client_ip: IpAddr,
    pub coming: Coming,
}

/// Every signalling socket of a neuron.
pub struct Switchboard {
    cores: Box<[Mutex<Signal>]>,
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
    /// `neuron` is `<host>:<neuron>`; `nonce` is random, and `sealer` the system's. Of the bytes of
    /// histories each core has its part, and of that an account half.
    pub fn new(
        neuron: Key,
        limits: Limits,
        nonce: u64,
        sealer: Sealer,
        outbox: Arc<dyn Outbox>,
        stats: Arc<Statistics>,
        clock: Arc<dyn Clock>,
    ) -> Switchboard {
        let history_bytes = limits.history_bytes / CORES;
        let limits =
            Limits { history_bytes, history_bytes_per_account: history_bytes / 2, ..limits };
        let core = |at| {
            let nonce = nonce.wrapping_add(at << (u64::BITS - CORES.ilog2()));
            Mutex::new(Signal::new(clock.instant(), limits.clone(), nonce, sealer.clone()))
        };
        Switchboard {
            cores: (0..CORES as u64).map(core).collect(),
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
        joiner: Joiner,
    ) -> Result<Place, NotJoined> {
        let claims = &verified.claims;
        let Joiner { generation, client_ip, coming } = joiner;
        let join = Join {
            address: address(room)?,
            name: Name::encode(&claims.identity)?,
            ident: claims.sub.clone().unwrap_or_else(|| claims.account.clone()),
            service: "xs_signal",
            generation,
            grants: claims.grants,
            token: Some(signal::Token { id: claims.id, expires_unix_s: claims.expires_s }),
            client_ip,
            since_unix_s: self.clock.now_micros() / 1_000_000,
            coming,
        };
        let place = Place::of(&room.bucket);
        self.with(place, |signal, now| signal.join(now, socket, join))?;
        Ok(place)
    }

    /// Takes what a socket said, as its generation reads. Answers how crowded it is where that went.
    pub fn frame(
        &self,
        place: Place,
        socket: SocketId,
        frame: Result<ClientFrame<'_>, BadFrame<'_>>,
    ) -> Crowd {
        self.work(place, |signal, now| signal.handle_frame(now, socket, frame)).1
    }

    /// A socket is gone.
    pub fn leave(&self, place: Place, socket: SocketId, departure: Departure) {
        self.with(place, |signal, now| signal.leave(now, socket, departure));
    }

    /// Lets go of what nobody can come back to any more. To be called about every second.
    pub fn tick(&self) {
        for at in 0..CORES {
            self.with(Place(at), |signal, now| signal.handle_timeout(now));
        }
    }

    /// Figures of all cores.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for at in 0..CORES {
            stats.add(&self.lock(Place(at)).stats());
        }
        stats
    }

    fn lock(&self, Place(at): Place) -> MutexGuard<'_, Signal> {
        self.cores[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with a core and delivers what comes of it.
    fn with<T>(&self, place: Place, work: impl FnOnce(&mut Signal, Instant) -> T) -> T {
        self.work(place, work).0
    }

    /// The same; answers how crowded it is where that went, too.
    fn work<T>(&self, place: Place, work: impl FnOnce(&mut Signal, Instant) -> T) -> (T, Crowd) {
        let mut signal = self.lock(place);
        let done = work(&mut signal, self.clock.instant());
        let mut crowd = Crowd::Roomy;
        while let Some(output) = signal.poll_output() {
            match output {
                Output::Stat(stat) => self.record(&stat),
                output => crowd = crowd.max(self.outbox.deliver(output)),
            }
        }
        (done, crowd)
    }

    /// A measure stands for its path in its account, and for this neuron in that of `$sys`.
    fn record(&self, stat: &signal::Stat) {
        let now_s = self.clock.now_micros() / 1_000_000;
        let Ok(measure) = Layer::parse(stat.measure.as_str()) else { return };
        let key = stat.key.as_ref().map_or(SYSTEM_NAME, Name::as_str);
        let Ok(key) = Key::parse(key) else { return };
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
        let rows = self.lock(Place::of(&room.bucket)).rows(&address);
        rows.iter()
            .map(|row| Member {
                name: row.key.to_string(),
                ident: row.ident.to_string(),
                service: row.service.to_owned(),
                data: row.data.clone(),
            })
            .collect()
    }

    fn rooms(&self, bucket: &Bucket) -> Vec<RoomRef> {
        let core = self.lock(Place::of(bucket));
        let rooms: Vec<(Path, Topic)> =
            core.rooms(bucket).map(|(path, topic)| (path.clone(), topic.clone())).collect();
        drop(core);
        let bucket = || bucket.clone();
        rooms
            .into_iter()
            .map(|(path, topic)| RoomRef { bucket: bucket(), path, topic: topic.to_string() })
            .collect()
    }

    fn buckets(&self) -> Vec<Bucket> {
        let of = |at| self.lock(Place(at)).buckets().cloned().collect::<Vec<_>>();
        let mut buckets: Vec<_> = (0..CORES).flat_map(of).collect();
        buckets.sort();
        buckets
    }

    fn sockets(&self, bucket: &Bucket, show: &mut dyn FnMut(&Socket<'_>)) {
        // Reference counts under the lock, which every account shares; the rest without it.
        let held: Vec<_> = self
            .lock(Place::of(bucket))
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
        let kicked =
            self.with(Place::of(&room.bucket), |signal, now| signal.kick(now, &address, name));
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
        let closed = self.with(Place::of(bucket), |signal, now| {
            signal.close_where(now, bucket, code, reason, |view| matches(&shown(view)))
        });
        closed.sockets
    }

    fn regrant(&self, bucket: &Bucket, grants: &dyn Fn(&Socket<'_>) -> Option<Grants>) {
        self.with(Place::of(bucket), |signal, _| {
            signal.regrant(bucket, |view| grants(&shown(view)))
        });
    }

    fn publish(
        &self,
        room: &RoomRef,
        from: Option<&str>,
        frame: &UserFrame<'_>,
    ) -> Result<Published, Fault> {
        let address = address(room)?;
        let bad_name = |error: BadName| Fault::with(Code::BadName, error.to_string());
        let from = from.map(Name::encode).transpose().map_err(bad_name)?;
        let said = self.with(Place::of(&room.bucket), |signal, now| {
            signal.publish(now, &address, from, frame)
        });
        match said {
            Ok(Relayed { receivers, cursor }) => {
                Ok(Published { receivers, cursor: cursor.map(|cursor| cursor.to_string()) })
            }
            Err(Unheard::NoRoom) if frame.to.is_none() => Ok(Published::default()),
            Err(Unheard::NoRoom | Unheard::NoPeer) => {
                Err(Fault::with(Code::NotFound, "nobody of that name is there"))
            }
            Err(Unheard::TooLong) => {
                let why = "`v` is longer than a message of a socket may be (`signal.message`)";
                Err(Fault::with(Code::TooLarge, why))
            }
        }
    }

    fn grant(&self, bucket: &Bucket, socket: u64, grants: Grants) {
        self.with(Place::of(bucket), |signal, _| signal.grant(SocketId(socket), grants));
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
        fn deliver(&self, _: Output) -> Crowd {
            Crowd::Roomy
        }
    }

    struct Noon;

    impl Clock for Noon {
        fn now_micros(&self) -> u64 {
            1_700_000_000_000_000
        }

        fn instant(&self) -> Instant {
            static NOON: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(<Instant>::now);
            *NOON
        }

        fn sleep(&self, _: std::time::Duration) -> kv4::store::BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }
    }

    fn switchboard() -> Switchboard {
        Switchboard::new(
            Key::parse("host:neuron").expect("a key"),
            Limits::default(),
            1,
            Sealer::new(|_, _, session| !session[1]),
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
        let joiner = Joiner {
            generation: Generation::V2,
            client_ip: [127, 0, 0, 1].into(),
            coming: Coming::default(),
        };
        board.join(SocketId(number), &verified, &room, joiner).map(drop)
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
            let Place(at) = Place::of(&bucket);
            assert!(board.cores[at].try_lock().is_ok(), "others may join meanwhile");
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
