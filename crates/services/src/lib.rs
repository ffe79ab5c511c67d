//! The services of the HTTP API, one file each, over KV4.
//!
//! A request that has been read and whose caller is known becomes a [`Call`]; a service turns it
//! into an [`Answer`] or a [`Fault`]. Runtime-free: plain `async fn` over narrow traits ([`Clock`],
//! [`Rng`], [`Passwords`], [`Rooms`]); nothing here spawns, opens a socket or reads the time by
//! itself. Not here: HTTP and routing (`neuron`, `ganglion`), signalling (`signal`).

pub mod access;
mod accounts;
mod authorization;
pub mod bounds;
mod configuration;
mod data;
pub mod describe;
mod discovery;
mod ending;
pub mod entries;
mod host;
pub mod idempotency;
mod joining;
pub mod legacy;
pub mod limits;
pub mod logs;
pub mod namespace;
pub mod path_rules;
pub mod precondition;
pub mod principal;
pub mod secrets;
pub mod sessions;
pub mod settings;
pub mod statistics;
mod subscriptions;
pub mod token;
mod turn;
mod turnstile;
mod video;
pub mod watch;
pub mod writing;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use kv4::derived::{Changes, Derived};
use kv4::store::{BoxFuture, StoreError};
use kv4::write::WriteError;
use kv4::{Bucket, Kv4, Stamp, Ver};
use wire::envelope::Fault;
use wire::errors::Code;
use wire::frames::UserFrame;
use wire::json::Json;
use wire::names::{Layer, Path, percent_decode};
use wire::params::Params;
use wire::token::Grants;

use crate::access::Rules;
use crate::path_rules::PathRules;
use crate::precondition::Precondition;
use crate::principal::Caller;
use crate::secrets::Sealer;
use crate::settings::Settings;

/// The time, and waiting for it.
pub trait Clock: Send + Sync {
    /// µs since 1970, UTC.
    fn now_micros(&self) -> u64;
    /// A time that never goes back, for what lasts.
    fn instant(&self) -> Instant;
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// Randomness fit for secrets.
pub trait Rng: Send + Sync {
    fn fill(&self, bytes: &mut [u8]);
}

/// Slow hashing of secrets that people choose, done where it holds nobody up.
///
/// Both answers are `None` when too many wait already, of the same account or address or of all.
pub trait Passwords: Send + Sync {
    /// Hashes a password that account `of` sets.
    fn hash(&self, of: &Bucket, password: String) -> BoxFuture<'_, Option<String>>;
    /// Compares a password that somebody at `from` logs in to account `of` with. `wrong` is told when
    /// it was looked at and is not the one, even if nobody waits for the answer any more.
    fn verify(
        &self,
        of: &Bucket,
        from: IpAddr,
        password: String,
        hash: String,
        wrong: Box<dyn FnOnce() + Send>,
    ) -> BoxFuture<'_, Option<bool>>;
}

/// Who is on which path right now; signalling behind a narrow door.
pub trait Rooms: Send + Sync {
    /// Members of a room, sorted by name.
    fn members(&self, room: &RoomRef) -> Vec<Member>;
    /// Rooms of a bucket that somebody is in, sorted.
    fn rooms(&self, bucket: &Bucket) -> Vec<RoomRef>;
    /// The buckets that have a socket.
    fn buckets(&self) -> Vec<Bucket>;
    /// Shows the open sockets of a bucket, each once.
    fn sockets(&self, bucket: &Bucket, show: &mut dyn FnMut(&Socket<'_>));
    /// Sends a member away, or all of them.
    fn kick(&self, room: &RoomRef, name: Option<&str>) -> Kicked;
    /// Closes the sockets of a bucket that `matches`; answers how many those were. Nobody joins or
    /// speaks while it is asked: it looks and returns.
    fn close(&self, bucket: &Bucket, why: Closing, matches: &dyn Fn(&Socket<'_>) -> bool) -> usize;
    /// Sets what the sockets of a bucket may do from now on, never more than their tokens grant; one
    /// for which `grants` is `None` is left as it is. Nobody joins or speaks while it is asked.
    fn regrant(&self, bucket: &Bucket, grants: &dyn Fn(&Socket<'_>) -> Option<Grants>);
    /// The same of one socket of the bucket.
    fn grant(&self, bucket: &Bucket, socket: u64, grants: Grants);
    /// Says something to a room: from a user, who need not be there, or from the server itself. Where
    /// nobody is, nobody hears it.
    ///
    /// # Errors
    /// `bad_name` for a sender that no room takes, `not_found` for a receiver that is nobody's name.
    fn publish(
        &self,
        room: &RoomRef,
        from: Option<&str>,
        frame: &UserFrame<'_>,
    ) -> Result<Published, Fault>;
}

/// What came of something that was said to a room.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Published {
    /// Sockets that it was handed to.
    pub receivers: usize,
    /// Where it stands in the room, if anybody can come back to it.
    pub cursor: Option<String>,
}

/// Who was sent away.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Kicked {
    pub members: usize,
    /// Their tokens' ids and expiries (unix seconds, 0 for never), to be revoked.
    pub tokens: Vec<(u64, u64)>,
}

/// Why sockets are closed, as their owners are told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closing {
    /// An address rule denies them, or their account may no longer log in.
    Denied,
    /// Somebody ended the session.
    Ended,
    /// Their token was revoked.
    Revoked,
}

/// A room: a topic of a path in a bucket.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RoomRef {
    pub bucket: Bucket,
    pub path: Path,
    pub topic: String,
}

impl RoomRef {
    /// Its path with its topic as the last segment, which rules and revocations may name too.
    pub fn place(&self) -> Path {
        self.path.join(&self.topic).unwrap_or_else(|_| self.path.clone())
    }
}

/// One member of a room, as `_subs` shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    pub name: String,
    /// The account that issued the token.
    pub ident: String,
    /// What keeps the subscription: `xs_signal`, later `turn`.
    pub service: String,
    /// What its client shows beside the name, as JSON text.
    pub data: Option<Arc<str>>,
}

/// One open signalling socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Socket<'a> {
    pub id: u64,
    /// As frames spell it: percent-encoded where needed.
    pub name: &'a str,
    pub path: &'a Path,
    pub topic: &'a str,
    pub address: IpAddr,
    pub since_s: u64,
    /// The id of the token that it came with.
    pub token: Option<u64>,
    /// What that grants, whatever rules take away.
    pub granted: Grants,
}

impl Socket<'_> {
    /// Whether the socket's room, its topic being a segment of its path, is at a path or below it.
    pub fn is_within(&self, path: &Path) -> bool {
        self.place().is_within(path)
    }

    /// Its room's path with its topic as the last segment.
    pub fn place(&self) -> Path {
        self.path.join(self.topic).unwrap_or_else(|_| self.path.clone())
    }

    /// Its user, as tokens and rules name him.
    pub fn identity(&self) -> Cow<'_, str> {
        match self.name.contains('%') {
            true => percent_decode(self.name, false).map_or(self.name.into(), Cow::Owned),
            false => self.name.into(),
        }
    }
}

/// What this neuron is called and where it is reached.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The region: the first half of `origin` in `_subs`.
    pub cluster: String,
    /// The machine's name, without its domain.
    pub host: String,
    /// The neuron's name on its machine.
    pub neuron: String,
    /// The number of this incarnation, for stamps and statistics.
    pub number: u32,
    /// Base WebSocket URLs to hand out, without a trailing slash; empty to derive one from the
    /// request's own host.
    pub signal_urls: Vec<String>,
    /// Port of the API over TLS; `None` where this neuron does not speak it.
    pub https_port: Option<u16>,
}

/// Everything services work with, shared by all calls of a neuron.
pub struct Services {
    pub kv: Arc<Kv4>,
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    pub passwords: Arc<dyn Passwords>,
    pub rooms: Arc<dyn Rooms>,
    pub identity: Identity,
    pub sealer: Sealer,
    pub rules: Arc<Derived<Rules>>,
    pub settings: Arc<Derived<Settings>>,
    pub path_rules: Arc<Derived<PathRules>>,
    /// Rules that were refused, since an account's rules name too many users.
    pub(crate) rules_refused: AtomicU64,
    /// Of accounts and admins.
    pub(crate) account_changes: Arc<Changes>,
    /// Of revocations, and of tokens that are kept as rows.
    pub(crate) token_changes: Arc<Changes>,
    /// Of settings, and so of rules of paths.
    pub(crate) setting_changes: Arc<Changes>,
    pub stats: Arc<statistics::Statistics>,
    pub logs: Arc<logs::Logs>,
    pub sessions: sessions::Sessions,
    pub proven: principal::Proven,
    pub failures: Arc<limits::Failures>,
    pub(crate) joining: joining::Joining,
    /// One flush at a time: of two, one could end while what it found clean is still being written.
    pub(crate) flushing: turnstile::Turnstile,
    /// Rules of paths are brought to open sockets one after the other.
    pub(crate) seating: turnstile::Turnstile,
    pub keys: token::Keys,
    pub graces: token::Graces,
    pub(crate) moments: token::Moments,
    pub idempotent: Arc<idempotency::Idempotent>,
    pub writing: writing::Writing,
    pub(crate) awaiting: entries::Awaiting,
    pub(crate) polling: entries::Awaiting,
    pub(crate) changes: accounts::Changes,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// What a neuron's services are made of; see the fields of [`Services`].
pub struct Parts {
    pub kv: Arc<Kv4>,
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    pub passwords: Arc<dyn Passwords>,
    pub rooms: Arc<dyn Rooms>,
    pub identity: Identity,
    pub sealer: Sealer,
    pub stats: Arc<statistics::Statistics>,
    /// The `$sys` account's secret.
    pub sys_secret: String,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

impl Services {
    pub fn new(parts: Parts) -> Services {
        let Parts { kv, clock, rng, passwords, rooms, identity, sealer, stats, sys_secret } = parts;
        let rules = Derived::new(&kv, layer(authorization::LAYER), Rules::compile);
        let settings = Derived::new(&kv, layer(configuration::LAYER), Settings::compile);
        let path_rules = Derived::new(&kv, layer(configuration::LAYER), PathRules::compile);
        let token_changes = Changes::new(&kv, layer(token::LAYER));
        let setting_changes = Changes::new(&kv, layer(configuration::LAYER));
        let account_changes = Changes::new(&kv, layer(accounts::LAYER));
        kv.on_commit(stats.clone());
        let logs = Arc::new(logs::Logs::default());
        kv.on_commit(logs.clone());
        let idempotent = Arc::new(idempotency::Idempotent::default());
        kv.on_commit(idempotent.clone());
        let proven = principal::Proven::new(&sys_secret, &*rng);
        Services {
            kv,
            clock,
            rng,
            passwords,
            rooms,
            identity,
            sealer,
            rules,
            settings,
            path_rules,
            rules_refused: AtomicU64::new(0),
            account_changes,
            token_changes,
            setting_changes,
            stats,
            logs,
            sessions: sessions::Sessions::default(),
            proven,
            failures: Arc::default(),
            joining: joining::Joining::default(),
            flushing: turnstile::Turnstile::default(),
            seating: turnstile::Turnstile::default(),
            keys: token::Keys::default(),
            graces: token::Graces::default(),
            moments: token::Moments::default(),
            idempotent,
            writing: writing::Writing::default(),
            awaiting: entries::Awaiting::default(),
            polling: entries::Awaiting::new(watch::POLLS_MAX),
            changes: accounts::Changes::default(),
        }
    }

    /// The stamp of a write made now.
    pub fn stamp(&self) -> Stamp {
        Stamp { micros: self.clock.now_micros(), neuron: self.identity.number }
    }

    pub fn now_s(&self) -> u64 {
        self.clock.now_micros() / 1_000_000
    }

    pub(crate) fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.rng.fill(&mut bytes);
        bytes
    }

    /// `<host>:<neuron>`, the key under which this neuron's own measures stand.
    pub fn neuron_key(&self) -> String {
        format!("{}:{}", self.identity.host, self.identity.neuron)
    }
}

/// Methods of the API.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Method {
    Delete,
    Get,
    Post,
    Put,
}

impl Method {
    pub const ALL: [Method; 4] = [Method::Delete, Method::Get, Method::Post, Method::Put];

    pub fn as_str(self) -> &'static str {
        match self {
            Method::Delete => "DELETE",
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
        }
    }
}

/// The services by their prefix in the URL.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Service {
    Accounts,
    Authorization,
    Configuration,
    Data,
    Discovery,
    Host,
    Namespace,
    Sessions,
    Statistics,
    Subscriptions,
    Token,
    Turn,
    Video,
}

impl Service {
    pub const ALL: [Service; 13] = [
        Service::Accounts,
        Service::Authorization,
        Service::Configuration,
        Service::Data,
        Service::Discovery,
        Service::Host,
        Service::Namespace,
        Service::Sessions,
        Service::Statistics,
        Service::Subscriptions,
        Service::Token,
        Service::Turn,
        Service::Video,
    ];

    /// The service of a URL's first segment, `_data` and the like; `_hosts` is `_host`.
    pub fn of_prefix(prefix: &str) -> Option<Service> {
        if prefix == "_hosts" {
            return Some(Service::Host);
        }
        let name = prefix.strip_prefix('_')?;
        Service::ALL.into_iter().find(|service| service.name() == name)
    }

    /// Whether a write may name the version that it is about.
    fn takes_preconditions(self) -> bool {
        matches!(
            self,
            Service::Accounts
                | Service::Authorization
                | Service::Configuration
                | Service::Data
                | Service::Namespace
        )
    }

    /// The prefix without its underscore; also the first segment of `api:3` statistics.
    pub fn name(self) -> &'static str {
        match self {
            Service::Accounts => "acc",
            Service::Authorization => "auth",
            Service::Configuration => "conf",
            Service::Data => "data",
            Service::Discovery => "ds",
            Service::Host => "host",
            Service::Namespace => "ns",
            Service::Sessions => "sess",
            Service::Statistics => "stats",
            Service::Subscriptions => "subs",
            Service::Token => "token",
            Service::Turn => "turn",
            Service::Video => "video",
        }
    }
}

/// One request whose caller is known and allowed.
#[derive(Debug)]
pub struct Call<'a> {
    pub caller: &'a Caller,
    pub method: Method,
    pub path: Path,
    pub params: &'a Params,
    /// What the headers say of the version that it is about.
    pub precondition: Precondition,
    /// The client's, which rules are about.
    pub address: IpAddr,
    /// `host:port` as the client wrote it, and whether it came by TLS.
    pub authority: &'a str,
    pub is_tls: bool,
}

/// What a service answers: the JSON text of `v`, and what headers say beside it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    pub v: String,
    /// The version shown, for ETag.
    pub ver: Option<Ver>,
    /// Whether caches must not keep it.
    pub no_store: bool,
}

impl Answer {
    pub fn json(v: impl Into<String>) -> Answer {
        Answer { v: v.into(), ver: None, no_store: false }
    }

    /// A JSON array; `push` writes one member of it.
    pub fn list<T>(
        members: impl IntoIterator<Item = T>,
        mut push: impl FnMut(&mut String, T),
    ) -> Answer {
        let mut v = String::from("[");
        for (at, member) in members.into_iter().enumerate() {
            if at > 0 {
                v.push(',');
            }
            push(&mut v, member);
        }
        v.push(']');
        Answer::json(v)
    }

    pub fn text(text: &str) -> Answer {
        Answer::json(Json::string(text).as_str())
    }

    pub fn number(number: u64) -> Answer {
        Answer::json(number.to_string())
    }
}

/// Carries out a call.
///
/// # Errors
/// The refusal, as it goes on the wire.
pub async fn call(services: &Services, service: Service, call: &Call<'_>) -> Result<Answer, Fault> {
    if !service.offers(call.method) {
        return Err(entries::no_method(call));
    }
    if call.method != Method::Get && !service.takes_preconditions() {
        entries::precondition(call)?.refuse(&format!("_{}", service.name()))?;
    }
    match service {
        Service::Accounts => accounts::call(services, call).await,
        Service::Authorization => authorization::call(services, call).await,
        Service::Configuration => configuration::call(services, call).await,
        Service::Data => data::call(services, call).await,
        Service::Discovery => discovery::call(services, call).await,
        Service::Host => host::call(services, call),
        Service::Namespace => namespace::call(services, call).await,
        Service::Sessions => sessions::call(services, call),
        Service::Statistics => statistics::call(services, call).await,
        Service::Subscriptions => subscriptions::call(services, call).await,
        Service::Token => token::call(services, call).await,
        Service::Turn => turn::call(services, call).await,
        Service::Video => video::call(services, call).await,
    }
}

/// Waits until this neuron has seen the version that a read asks for by `at`; other calls go on at
/// once. It is no work: the reader needs no turn meanwhile.
///
/// # Errors
/// `bad_request` for what is no version, `bad_name` without a key, `overloaded` when too many reads of
/// the account wait already, `store_unavailable` when the version does not come.
pub async fn wait(services: &Services, service: Service, call: &Call<'_>) -> Result<(), Fault> {
    let layer = match service {
        Service::Accounts => layer(accounts::LAYER),
        Service::Authorization => layer(authorization::LAYER),
        Service::Configuration => layer(configuration::LAYER),
        Service::Data => layer(data::LAYER),
        Service::Discovery => match discovery::entry_layer(call)? {
            Some(layer) => layer,
            None => return Ok(()),
        },
        _ => return Ok(()),
    };
    entries::wait_for_version(services, call, &entries::node(call, layer)).await
}

/// A layer whose name is a constant of the program; panics on a text that is no layer.
pub fn layer_of(name: &str) -> Layer {
    Layer::parse(name).expect("constant layer names are legal")
}

pub(crate) use layer_of as layer;

/// A path that is a constant of this crate.
pub(crate) fn path(text: &str) -> Path {
    Path::parse(text).expect("constant paths are legal")
}

/// What a failure of the store is told as.
pub fn store_fault(error: StoreError) -> Fault {
    match error {
        StoreError::TooLarge => Fault::with(
            Code::TooLarge,
            "the listing is larger than one answer may be: ask by `k`, or page with `after` and `limit`",
        ),
        StoreError::Damaged(what) => Fault::with(Code::Internal, format!("damaged: {what}")),
        error => Fault::with(Code::StoreUnavailable, error.to_string()),
    }
}

pub(crate) fn write_fault(error: WriteError) -> Fault {
    match error {
        WriteError::KeyTaken(_) => Fault::new(Code::KeyExists),
        WriteError::Missing => Fault::new(Code::NotFound),
        WriteError::Exists | WriteError::Conflict => Fault::new(Code::VersionConflict),
        WriteError::VerMissing => Fault::new(Code::VerMissing),
        WriteError::Store(error) => store_fault(error),
        error => Fault::with(Code::Internal, error.to_string()),
    }
}

/// The outputs of futures that are carried out at the same time, in their order.
pub(crate) async fn all<F: Future + Unpin>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<F> = futures.collect();
    let mut done: Vec<Option<F::Output>> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut is_waiting = false;
        for (future, done) in waiting.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            match std::pin::Pin::new(future).poll(context) {
                std::task::Poll::Ready(output) => *done = Some(output),
                std::task::Poll::Pending => is_waiting = true,
            }
        }
        if is_waiting { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// The first of two futures to finish: `Some` of the one that was wanted, `None` for the deadline.
pub(crate) async fn first_of<T>(
    wanted: impl Future<Output = T>,
    deadline: impl Future<Output = ()>,
) -> Option<T> {
    let mut wanted = std::pin::pin!(wanted);
    let mut deadline = std::pin::pin!(deadline);
    std::future::poll_fn(|context| {
        if let std::task::Poll::Ready(done) = wanted.as_mut().poll(context) {
            return std::task::Poll::Ready(Some(done));
        }
        deadline.as_mut().poll(context).map(|()| None)
    })
    .await
}
