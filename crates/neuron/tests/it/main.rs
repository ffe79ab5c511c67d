//! A neuron's control side over the embedded engine, on a disk in memory that can fail and under a
//! clock that is set: what cannot be brought about, or would take hours, over HTTP.

// A test that cannot go on fails here and now.
#![allow(clippy::unwrap_used)]

mod callers;
mod conditions;
mod flush;
mod listing;
mod logins;
mod reading;
mod retention;
mod sessions;
mod statistics;
mod users;
mod writing;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use kv4::store::BoxFuture;
use kv4::view::Limits;
use kv4::{Bucket, Kv4};
use neuron::Neuron;
use neuron::requests::{Admission, Payer, Refused, Request};
use neuron::sockets::{Crowd, Outbox, Switchboard};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use serde_json::{Value, json};
use services::secrets::{self, Sealer};
use services::sessions::Session;
use services::statistics::Statistics;
use services::{Clock, Identity, Parts, Passwords, Rng};
use store::embedded::{EmbeddedStore, Options};
use tokio::sync::Semaphore;
use wire::names::{Ident, Key};

const SYS: &str = "$sys:sys-secret";
/// A Friday in 2026, in seconds since 1970.
const BEGINNING_S: u64 = 1_767_225_600;
/// A node with more bytes than this is read from the store.
const NODE_BYTES_MAX: usize = 64 << 10;

/// A neuron and its world.
struct Stage {
    neuron: Neuron,
    clock: Arc<SetClock>,
    disk: Disk,
    /// Passwords that may be hashed.
    hashes: Arc<Semaphore>,
    /// Passwords that were verified.
    looks: Arc<AtomicU64>,
}

impl Stage {
    async fn new() -> Stage {
        let disk = Disk::default();
        let log = disk.beside();
        let store = EmbeddedStore::open_on(disk.clone(), log, Options::default()).unwrap();
        let clock = Arc::new(SetClock::default());
        let stats = Arc::new(Statistics::default());
        let hashes = Arc::new(Semaphore::new(1));
        let looks = Arc::new(AtomicU64::new(0));
        let rooms = Arc::new(Switchboard::new(
            Key::parse("host:neuron").unwrap(),
            signal::Limits::default(),
            1,
            signal::Sealer::new(|_, _, session| !session[1]),
            Arc::new(Nowhere),
            stats.clone(),
            clock.clone(),
        ));
        let identity = Identity {
            cluster: "test".to_owned(),
            host: "host".to_owned(),
            neuron: "neuron".to_owned(),
            number: store.incarnation(),
            signal_urls: Vec::new(),
            https_port: None,
        };
        let views = Limits { bytes_max: 64 << 20, node_bytes_max: NODE_BYTES_MAX, idle_s: 600 };
        let parts = Parts {
            kv: Kv4::new(Arc::new(store), views),
            clock: clock.clone(),
            rng: Arc::new(SystemRng),
            passwords: Arc::new(Hashing { may_hash: hashes.clone(), looks: looks.clone() }),
            rooms: rooms.clone(),
            identity,
            sealer: Sealer::new(&[7; 32]),
            stats,
            sys_secret: "sys-secret".to_owned(),
        };
        let neuron = Neuron::new(parts, rooms);
        neuron.services.load_keys().await.unwrap();
        Stage { neuron, clock, disk, hashes, looks }
    }

    /// A call with credentials; its envelope.
    async fn call(&self, credentials: &str, method: &str, target: &str, body: Value) -> Value {
        self.call_once(credentials, method, target, body, None).await
    }

    /// The same with an idempotency key.
    async fn call_once(
        &self,
        credentials: &str,
        method: &str,
        target: &str,
        body: Value,
        idempotency_key: Option<&str>,
    ) -> Value {
        let session = &Session::default();
        let way = Way { idempotency_key, ..Way::new(&Everybody, session) };
        self.send(credentials, method, target, body, way).await
    }

    /// The same in another way than all the others.
    async fn send(
        &self,
        credentials: &str,
        method: &str,
        target: &str,
        body: Value,
        way: Way<'_, impl Admission>,
    ) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send_bytes(credentials, method, target, body.as_bytes(), way).await
    }

    /// A call whose body is no JSON of this test's own.
    async fn raw(&self, credentials: &str, method: &str, target: &str, body: &[u8]) -> Value {
        let session = &Session::default();
        self.send_bytes(credentials, method, target, body, Way::new(&Everybody, session)).await
    }

    async fn send_bytes(
        &self,
        credentials: &str,
        method: &str,
        target: &str,
        body: &[u8],
        way: Way<'_, impl Admission>,
    ) -> Value {
        let Way { admission, idempotency_key, if_match, if_none_match, session } = way;
        let basic = base64::engine::general_purpose::STANDARD.encode(credentials);
        let authorization = format!("Basic {basic}");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let request = Request {
            opener: None,
            method,
            path,
            query,
            authorization: Some(&authorization),
            accept: None,
            origin: None,
            if_match,
            if_none_match,
            idempotency_key,
            authority: "localhost",
            is_tls: false,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            session,
            body,
        };
        let response = self.neuron.request(&request, admission).await.expect("a path of the API");
        serde_json::from_str(&response.body).unwrap()
    }

    /// A call that must succeed; its `v`.
    async fn ok(&self, credentials: &str, method: &str, target: &str, body: Value) -> Value {
        let mut answer = self.call(credentials, method, target, body).await;
        assert_eq!(answer["s"], "ok", "{method} {target}: {answer}");
        answer["v"].take()
    }

    /// Makes a top account; its credentials and bucket.
    async fn account(&self, name: &str) -> (String, Bucket) {
        let body = json!({ "k": name, "v": { "email": format!("{name}@example.org") } });
        let made = self.ok(SYS, "PUT", "/_acc/accounts", body).await;
        let bucket = Bucket::account(&Ident::parse(name).unwrap(), None).unwrap();
        (format!("{name}:{}", made["secret"].as_str().unwrap()), bucket)
    }
}

/// How a request comes.
struct Way<'a, A> {
    admission: &'a A,
    idempotency_key: Option<&'a str>,
    if_match: Option<&'a str>,
    if_none_match: Option<&'a str>,
    session: &'a Session,
}

impl<'a, A> Way<'a, A> {
    fn new(admission: &'a A, session: &'a Session) -> Way<'a, A> {
        Way { admission, idempotency_key: None, if_match: None, if_none_match: None, session }
    }
}

/// A clock that stands still until it is set.
struct SetClock {
    micros: AtomicU64,
    /// Whether no sleep ends.
    is_still: AtomicBool,
}

impl Default for SetClock {
    fn default() -> SetClock {
        let micros = AtomicU64::new(BEGINNING_S * 1_000_000);
        SetClock { micros, is_still: AtomicBool::new(false) }
    }
}

impl SetClock {
    fn advance_s(&self, seconds: u64) {
        self.advance_ms(seconds * 1_000);
    }

    fn advance_ms(&self, ms: u64) {
        self.micros.fetch_add(ms * 1_000, SeqCst);
    }

    fn set_back_s(&self, seconds: u64) {
        self.micros.fetch_sub(seconds * 1_000_000, SeqCst);
    }
}

impl Clock for SetClock {
    /// Every look is a µs later than the one before.
    fn now_micros(&self) -> u64 {
        self.micros.fetch_add(1, SeqCst)
    }

    fn instant(&self) -> Instant {
        static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);
        *BEGINNING + Duration::from_micros(self.micros.load(SeqCst))
    }

    /// Short or without an end, however long it is by this clock.
    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        match self.is_still.load(SeqCst) {
            true => Box::pin(std::future::pending()),
            false => Box::pin(tokio::time::sleep(Duration::from_millis(1))),
        }
    }
}

struct SystemRng;

impl Rng for SystemRng {
    fn fill(&self, bytes: &mut [u8]) {
        aws_lc_rs::rand::fill(bytes).unwrap();
    }
}

/// Hashes where it is asked, when it may.
struct Hashing {
    may_hash: Arc<Semaphore>,
    /// How many passwords were verified.
    looks: Arc<AtomicU64>,
}

impl Passwords for Hashing {
    fn hash(&self, _: &kv4::Bucket, password: String) -> BoxFuture<'_, Option<String>> {
        Box::pin(async move {
            let _turn = self.may_hash.acquire().await.ok()?;
            Some(secrets::hash_chosen(&password, [3; 16]))
        })
    }

    fn verify(
        &self,
        _: &kv4::Bucket,
        _: std::net::IpAddr,
        password: String,
        hash: String,
        wrong: Box<dyn FnOnce() + Send>,
    ) -> BoxFuture<'_, Option<bool>> {
        Box::pin(async move {
            self.looks.fetch_add(1, SeqCst);
            // Others come meanwhile.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            let is_right = secrets::verify_chosen(&password, &hash);
            if !is_right {
                wrong();
            }
            Some(is_right)
        })
    }
}

/// Nobody has a socket here.
struct Nowhere;

impl Outbox for Nowhere {
    fn deliver(&self, _: signal::Output) -> Crowd {
        Crowd::Roomy
    }
}

/// A request's turn is when somebody says so.
struct Held<'a>(&'a tokio::sync::Notify);

impl Admission for Held<'_> {
    type Turn = ();

    async fn turn(&self, _: Payer, _: bool) -> Result<(), Refused> {
        self.0.notified().await;
        Ok(())
    }
}

/// Everybody's turn is now.
struct Everybody;

impl Admission for Everybody {
    type Turn = ();

    async fn turn(&self, _: Payer, _: bool) -> Result<(), Refused> {
        Ok(())
    }
}

/// A disk in memory that refuses writes while it is full; all clones are one disk.
#[derive(Clone, Debug, Default)]
struct Disk {
    file: Arc<InMemoryBackend>,
    is_full: Arc<AtomicBool>,
}

impl Disk {
    /// Another file on the same disk.
    fn beside(&self) -> Disk {
        Disk { file: Arc::default(), is_full: self.is_full.clone() }
    }

    fn set_full(&self, is_full: bool) {
        self.is_full.store(is_full, SeqCst);
    }

    fn room(&self) -> io::Result<&InMemoryBackend> {
        if self.is_full.load(SeqCst) {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(&self.file)
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.room()?.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?.write(offset, data)
    }
}
