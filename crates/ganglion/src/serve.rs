//! `ganglion serve`: puts a neuron together, runs it, and stops it in order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aws_lc_rs::hmac;
use kv4::Kv4;
use neuron::Neuron;
use neuron::sockets::Switchboard;
use services::secrets::Sealer;
use services::statistics::Statistics;
use services::token::KeysError;
use services::{Clock, Identity, Parts, Rng};
use store::embedded::{EmbeddedStore, OpenError, Options};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use wire::names::Key;
use wire::network::Network;

use crate::check;
use crate::config::Config;
use crate::control;
use crate::dev;
use crate::http::{Counters, Feeds, Pages, Shared, hand_on};
use crate::lifecycle::Lifecycle;
use crate::listen::plain::{Place, Plain};
use crate::listen::{self, Gate, Kind};
use crate::os;
use crate::sockets::SocketTable;
use crate::system::{PasswordPool, SystemClock, SystemRng, ThreadTime};
use crate::tls::Tls;
use crate::turns::{AlarmClock, Bounds, Turns};

/// Name of the store's file in the data folder.
pub(crate) const STORE_FILE: &str = "ganglion.redb";
/// Name of the log that the store keeps beside it.
pub(crate) const LOG_FILE: &str = "ganglion.redb.log";
pub(crate) const CLUSTER_KEY_FILE: &str = "cluster.key";
/// What the cluster key seals here.
const SESSION_PURPOSE: &str = "signalling session";
/// Name of a cluster key whose store is not there yet.
const CLUSTER_KEY_NEW_FILE: &str = "cluster.key.new";
/// Open connections of private listeners, which a flood of the public ones must not use up.
const ADMIN_CONNECTIONS: usize = 256;
/// How often the store's failures and its disk are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the last statistics and the closing of the store may take.
const FINISH_TIME: Duration = Duration::from_secs(10);
/// How often views age.
const TICK: Duration = Duration::from_secs(1);
/// Writes over which their cost to the store's thread is taken.
const WRITES_MIN: u64 = 200;
/// How often retention is applied.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// What the command line adds to the configuration.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) config: Config,
    /// The file that it was read from.
    pub(crate) file: Option<PathBuf>,
    pub(crate) is_dev: bool,
    pub(crate) ready_file: Option<PathBuf>,
}

/// Runs a neuron until it is told to stop.
pub(crate) async fn serve(start: Start) -> Result<()> {
    let Start { mut config, file, is_dev, ready_file } = start;
    os::raise_file_limit();
    let hangups = signal(SignalKind::hangup())?;
    let data_dir = config.store.data_dir.clone();
    make_private_folder(&data_dir)?;
    prepare_data_folder(&config)?;
    let dev_keys = is_dev.then(|| dev::Keys::load(&data_dir)).transpose()?;
    let sys_secret = sys_secret(&config, dev_keys.as_ref())?;
    let tls = tls(&config)?;
    for warning in check::warnings(&config, file.as_deref(), tls.as_deref()) {
        tracing::warn!("{warning}");
    }

    let options = Options { cache_bytes: config.store.cache.0, ..Options::default() };
    let path = data_dir.join(STORE_FILE);
    let (was_cut, begun) = (control::was_left(&data_dir), Instant::now());
    let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&path, options)).await?;
    let store = opened.map_err(|error| not_opened(&data_dir, error))?;
    if was_cut {
        let took = begun.elapsed();
        tracing::info!(
            ?took,
            "the neuron before was not stopped in order; its store was recovered"
        );
    }
    let store = Arc::new(store);
    let bound = Bound::all(&config, tls.as_ref(), is_dev)?;
    let addresses = bound.addresses();
    let moved = addresses.moved_from(&config);
    config.listen.https.clone_from(&addresses.https);
    let shared = assemble(&mut config, store.clone(), &sys_secret)?;
    let services = &shared.neuron.services;
    services.load_keys().await.map_err(|error| not_unsealed(&config, error))?;
    let demo = match dev_keys {
        Some(keys) => Some(keys.demo_account(services, &data_dir).await?),
        None => None,
    };
    let listening = config.listen.http.iter().chain(&config.listen.https);
    let pages = Pages::new(demo.as_ref(), listening);
    let shared = Arc::new(Shared { pages, tls: tls.clone(), ..shared });

    let control = control::bind(&data_dir)?;
    let mut jobs = tokio::task::JoinSet::new();
    bound.spawn(&mut jobs, &shared);
    jobs.spawn(control::serve(control, store.clone()));
    jobs.spawn(read_again(hangups, tls.clone()));
    if let Some(tls) = tls {
        jobs.spawn(tls.follow());
    }
    let flushing = tokio::spawn(flush(shared.clone()));
    jobs.spawn(age(shared.clone()));
    jobs.spawn(hand_on(shared.neuron.services.kv.watches().clone()));
    jobs.spawn(prune(shared.clone()));
    look_at_disk(&shared).await;
    shared.lifecycle.set_ready();
    if let Some(file) = &ready_file {
        write_ready_file(file, &addresses)?;
    }
    if let Some(access) = &demo {
        dev::print_welcome(&addresses, &moved, access, &sys_secret, &data_dir);
    }
    let Addresses { http, https, admin, tcp } = &addresses;
    let (file, data_dir) =
        (file.as_deref().map_or("none".into(), Path::to_string_lossy), data_dir.display());
    tracing::info!(?http, ?https, ?admin, ?tcp, config = %file, %data_dir, "ready");

    stop_signal().await?;
    tracing::info!("stopping");
    stop(&shared, config.stop.deadline.0).await;
    jobs.shutdown().await;
    let finish = async {
        // A flush that is under way ends by itself, and the last one follows it.
        let _ = flushing.await;
        if let Err(error) = shared.neuron.flush().await {
            tracing::warn!(%error, "the last statistics were not written");
        }
        // A neuron that is started on a closed store makes its own.
        control::remove(&config.store.data_dir);
        store.close().await;
    };
    if tokio::time::timeout(FINISH_TIME, finish).await.is_err() {
        tracing::warn!("the store did not close in time; nothing acknowledged is lost by that");
    }
    Ok(())
}

/// Puts cores and shell together; nothing runs and nothing listens yet.
pub(crate) fn assemble(
    config: &mut Config,
    store: Arc<EmbeddedStore>,
    sys_secret: &str,
) -> Result<Shared> {
    if config.neuron.host.is_empty() {
        config.neuron.host = host_name();
    }
    let identity = Identity {
        cluster: config.neuron.cluster.clone(),
        host: config.neuron.host.clone(),
        neuron: config.neuron.name.clone(),
        number: store.incarnation(),
        signal_urls: config.signal.urls.clone(),
        https_port: config.listen.https.first().map(SocketAddr::port),
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let stats = Arc::new(Statistics::default());
    let sockets = SocketTable::new(config.signal.queue.0);
    let mut nonce = [0; 8];
    SystemRng.fill(&mut nonce);
    let nonce = u64::from_be_bytes(nonce);
    let switchboard = Switchboard::new(
        Key::parse(&format!("{}:{}", identity.host, identity.neuron))
            .context("neuron.host and neuron.name")?,
        signal::Limits {
            rooms_per_bucket: config.signal.rooms_per_account,
            sockets_per_bucket: config.signal.sockets_per_account,
            sockets_per_room: config.signal.sockets_per_room,
            sockets_per_name: config.signal.sockets_per_name,
            data_bytes: config.signal.presence.0,
            message_bytes: config.signal.message.0,
            history_lasts: config.signal.resume.0,
            history_messages: config.signal.resume_messages,
            history_bytes: config.signal.resume_bytes.0,
            ..signal::Limits::default()
        },
        nonce,
        session_sealer(&cluster_key(config)?),
        sockets.clone(),
        stats.clone(),
        clock.clone(),
    );
    let switchboard = Arc::new(switchboard);
    let views = kv4::view::Limits {
        bytes_max: config.views.bytes.0,
        node_bytes_max: config.views.node.0,
        idle_s: u32::try_from(config.views.idle.0.as_secs()).unwrap_or(u32::MAX),
    };
    let limits = &config.limits;
    let watches = kv4::watch::Limits {
        per_account: limits.watches_per_account,
        queued_bytes: limits.watch_queue.0,
    };
    let parts = Parts {
        kv: Kv4::with_watches(store.clone(), views, watches),
        clock,
        rng: Arc::new(SystemRng),
        passwords: PasswordPool::new(limits.password_hashes, limits.password_waiting),
        rooms: switchboard.clone(),
        identity,
        sealer: Sealer::new(&cluster_key(config)?),
        stats,
        sys_secret: sys_secret.to_owned(),
    };
    let trusted = config.listen.trusted_proxies.iter();
    let bounds = Bounds {
        at_once: limits.requests_at_once,
        waiting: limits.requests_waiting,
        workers: workers(),
        share: limits.share,
        bodies: limits.bodies.0,
        answers: limits.answers.0,
        account_rate: limits.requests_per_account,
        address_rate: limits.requests_per_address,
    };
    Ok(Shared {
        neuron: Neuron::new(parts, switchboard),
        sockets,
        store,
        pages: Pages::default(),
        lifecycle: Lifecycle::new(),
        trusted_proxies: trusted.filter_map(|proxy| Network::parse(proxy)).collect(),
        gate: Gate::new(limits.connections, limits.connections_per_address),
        admin_gate: Gate::new(ADMIN_CONNECTIONS, ADMIN_CONNECTIONS),
        turns: Turns::new(bounds, AlarmClock::start()?),
        counters: Counters::default(),
        feeds: Feeds::default(),
        tls: None,
        config: config.clone(),
    })
}

/// The `$sys` secret, from wherever it is set; one that credentials could not carry is refused.
pub(crate) fn sys_secret(config: &Config, dev_keys: Option<&dev::Keys>) -> Result<String> {
    let secret = find_sys_secret(config, dev_keys)?;
    if secret.is_empty() || secret.contains('#') || secret.starts_with('!') {
        bail!("the `$sys` secret cannot be empty, hold `#` or start with `!`");
    }
    Ok(secret)
}

fn find_sys_secret(config: &Config, dev_keys: Option<&dev::Keys>) -> Result<String> {
    let file = &config.neuron.sys_secret_file;
    if !config.neuron.sys_secret.is_empty() {
        return Ok(config.neuron.sys_secret.clone());
    }
    if !file.as_os_str().is_empty() {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("reading neuron.sys_secret_file {}", file.display()))?;
        return Ok(text.trim().to_owned());
    }
    match dev_keys {
        Some(keys) => Ok(keys.sys_secret.clone()),
        None => {
            bail!("set neuron.sys_secret_file (or neuron.sys_secret): the `$sys` account's secret")
        }
    }
}

/// The TLS side of the listeners, if there is any.
pub(crate) fn tls(config: &Config) -> Result<Option<Arc<Tls>>> {
    let tls = (!config.listen.https.is_empty()).then(|| Tls::new(&config.tls));
    tls.transpose().context("tls.cert and tls.key")
}

/// Where the cluster key is to be found.
pub(crate) fn cluster_key_file(config: &Config) -> PathBuf {
    let named = &config.store.cluster_key_file;
    if named.as_os_str().is_empty() {
        config.store.data_dir.join(CLUSTER_KEY_FILE)
    } else {
        named.clone()
    }
}

/// Makes a cluster key where there is neither a store nor a key, and refuses a data folder in which
/// one of both is missing: an empty store in the place of a lost one would look like a loss of all data,
/// and another key opens nothing. The key has another name until the store is there, so that a start
/// that is cut off in between is not taken for a folder that has lost something.
pub(crate) fn prepare_data_folder(config: &Config) -> Result<()> {
    let data_dir = &config.store.data_dir;
    let (store, log) = (data_dir.join(STORE_FILE), data_dir.join(LOG_FILE));
    let (key, new_key) = (cluster_key_file(config), data_dir.join(CLUSTER_KEY_NEW_FILE));
    let is_named = !config.store.cluster_key_file.as_os_str().is_empty();
    let is_there =
        |path: &Path| path.try_exists().with_context(|| format!("looking for {}", path.display()));
    if is_there(&store)? {
        if is_there(&key)? || (!is_named && is_there(&new_key)?) {
            return Ok(());
        }
        bail!(
            "the cluster key {} is missing, and the store {} is sealed with it: put it back from where \
             you keep it, or from the machine where the store was made; none is made beside a store",
            key.display(),
            store.display()
        );
    }
    let mut left = vec![&log];
    if is_named {
        read_cluster_key(&key)?;
    } else {
        left.push(&key);
    }
    let mut found = Vec::new();
    for file in left {
        if is_there(file)? {
            found.push(file.display().to_string());
        }
    }
    if !found.is_empty() {
        let found = found.join(" and ");
        bail!(
            "the store {} is missing, and {found} was left: put the store back, or restore a backup; to \
             begin with an empty store, move {found} away",
            store.display()
        );
    }
    if !is_named {
        let mut key = [0; 32];
        SystemRng.fill(&mut key);
        let text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        write_secret(&new_key, &text)?;
    }
    Ok(())
}

/// Seals the sessions of sockets with the cluster key, so that they outlive this process.
fn session_sealer(cluster_key: &[u8; 32]) -> signal::Sealer {
    let key = hmac::Key::new(hmac::HMAC_SHA256, cluster_key);
    signal::Sealer::new(move |address, name, session| {
        let mut sealed = hmac::Context::with_key(&key);
        let (bucket, path) = (address.bucket.as_str(), address.path.as_str());
        // No part holds a zero byte.
        for part in [SESSION_PURPOSE, bucket, path, address.topic.as_str(), name.as_str()] {
            sealed.update(part.as_bytes());
            sealed.update(&[0]);
        }
        for number in session {
            sealed.update(&number.to_be_bytes());
        }
        let tag = sealed.sign();
        tag.as_ref()[..8].iter().fold(0, |seal, byte| seal << 8 | u64::from(*byte))
    })
}

/// The cluster key of a data folder that is prepared and whose store is open.
fn cluster_key(config: &Config) -> Result<[u8; 32]> {
    let file = cluster_key_file(config);
    if config.store.cluster_key_file.as_os_str().is_empty() && !file.exists() {
        let new = config.store.data_dir.join(CLUSTER_KEY_NEW_FILE);
        std::fs::rename(&new, &file)
            .and_then(|()| std::fs::File::open(&config.store.data_dir)?.sync_all())
            .with_context(|| format!("making the cluster key {}", file.display()))?;
    }
    read_cluster_key(&file)
}

pub(crate) fn read_cluster_key(file: &Path) -> Result<[u8; 32]> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("reading the cluster key {}", file.display()))?;
    let digits = text.trim();
    let bytes: Option<Vec<u8>> = (0..digits.len() / 2)
        .map(|at| u8::from_str_radix(digits.get(at * 2..at * 2 + 2)?, 16).ok())
        .collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .with_context(|| format!("{} does not hold 64 hexadecimal digits", file.display()))
}

/// Says which files an opening was about, and what can be done.
pub(crate) fn not_opened(data_dir: &Path, error: OpenError) -> anyhow::Error {
    let store = data_dir.join(STORE_FILE);
    let about = match &error {
        OpenError::Damaged(_) => {
            let data_dir = data_dir.display();
            format!("`ganglion fsck --data-dir {data_dir}` tells more of {}", store.display())
        }
        OpenError::LogMissing => {
            format!("opening {} with {}", store.display(), data_dir.join(LOG_FILE).display())
        }
        _ => format!("opening {}", store.display()),
    };
    anyhow::Error::new(error).context(about)
}

fn not_unsealed(config: &Config, error: KeysError) -> anyhow::Error {
    match error {
        KeysError::Sealed => anyhow::anyhow!(
            "{error}: put the key with which the store was made into {}, from where you keep it",
            cluster_key_file(config).display()
        ),
        error => error.into(),
    }
}

/// Makes a folder that only its owner may enter; one that is there stays as it is.
pub(crate) fn make_private_folder(folder: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("making the data folder {}", folder.display()))
}

/// Writes a file that only its owner may read. Whatever ends this half-way, there is the old file or
/// the new one.
pub(crate) fn write_secret(file: &Path, text: &str) -> Result<()> {
    replace(file, text).with_context(|| format!("writing {}", file.display()))
}

fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let partial = file.with_extension("partial");
    // What an earlier attempt left may be anybody's to read.
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    let mut opened = options.write(true).create_new(true).mode(0o600).open(&partial)?;
    opened.write_all(text.as_bytes())?;
    opened.sync_all()?;
    std::fs::rename(&partial, file)?;
    // The new name is on disk when its folder is.
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Listeners that are bound and not yet served.
struct Bound {
    http: Vec<(TcpListener, Kind)>,
    plain: Vec<Plain>,
}

/// Where a neuron listens, by what it serves there.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Addresses {
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) https: Vec<SocketAddr>,
    pub(crate) admin: Vec<SocketAddr>,
    /// As they stand in the configuration.
    pub(crate) tcp: Vec<String>,
}

impl Addresses {
    /// Addresses that were asked for and are another program's.
    fn moved_from(&self, config: &Config) -> Vec<SocketAddr> {
        let Addresses { http, https, admin, .. } = self;
        let listen = &config.listen;
        let kinds = [(&listen.http, http), (&listen.https, https), (&listen.admin, admin)];
        let pairs = kinds.into_iter().flat_map(|(asked, bound)| asked.iter().zip(bound));
        let moved = pairs.filter(|(asked, bound)| asked.port() != 0 && asked != bound);
        moved.map(|(asked, _)| *asked).collect()
    }
}

impl Bound {
    fn all(config: &Config, tls: Option<&Arc<Tls>>, is_dev: bool) -> Result<Bound> {
        let mut bound = Vec::new();
        let bind = |name: &str, address: &SocketAddr| {
            listen::bind(*address, is_dev).with_context(|| format!("listen.{name}"))
        };
        for address in &config.listen.http {
            bound.push((bind("http", address)?, Kind::Http));
        }
        for (address, tls) in config.listen.https.iter().zip(tls.into_iter().cycle()) {
            bound.push((bind("https", address)?, Kind::Https(tls.clone())));
        }
        for address in &config.listen.admin {
            bound.push((bind("admin", address)?, Kind::Admin));
        }
        let mut plain = Vec::new();
        for place in config.listen.tcp.iter().filter_map(|place| Place::parse(place)) {
            plain.push(Plain::bind(&place, is_dev).context("listen.tcp")?);
        }
        Ok(Bound { http: bound, plain })
    }

    fn addresses(&self) -> Addresses {
        let tcp = self.plain.iter().filter_map(Plain::place).map(|place| place.to_string());
        let mut addresses = Addresses {
            http: Vec::new(),
            https: Vec::new(),
            admin: Vec::new(),
            tcp: tcp.collect(),
        };
        for (listener, kind) in &self.http {
            let of_kind = match kind {
                Kind::Http => &mut addresses.http,
                Kind::Https(_) => &mut addresses.https,
                Kind::Admin => &mut addresses.admin,
            };
            of_kind.extend(listener.local_addr());
        }
        addresses
    }

    fn spawn(self, jobs: &mut tokio::task::JoinSet<()>, shared: &Arc<Shared>) {
        for (listener, kind) in self.http {
            jobs.spawn(listen::accept(listener, kind, shared.clone()));
        }
        for listener in self.plain {
            jobs.spawn(listener.accept(shared.clone()));
        }
    }
}

/// Writes statistics, every so often and whenever the store may have changed its mind: it failed
/// somebody since the last look, or has failed and might be well again.
async fn flush(shared: Arc<Shared>) {
    let every = shared.config.stats.flush.0;
    let mut flushed = Instant::now();
    let mut failures = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY.min(every)) => {}
            () = shared.lifecycle.stopping() => return,
        }
        look_at_disk(&shared).await;
        let seen = shared.store.commits().failures;
        let is_doubtful = shared.lifecycle.has_store_failed() || seen != failures;
        failures = seen;
        if is_doubtful || flushed.elapsed() >= every {
            let done = shared.neuron.flush().await;
            flushed = Instant::now();
            let error = done.err().map(|error| error.to_string());
            let before = shared.lifecycle.store_failed(error.clone());
            if let (Some(error), None) = (error, before) {
                tracing::warn!(%error, "statistics were not written");
            }
        }
    }
}

/// Looks whether the data folder's disk has room for what the store may be asked to write.
async fn look_at_disk(shared: &Shared) {
    let least = shared.config.store.free_min.0 as u64;
    let data_dir = shared.config.store.data_dir.clone();
    let looked = tokio::task::spawn_blocking(move || free_bytes(&data_dir)).await;
    if let Ok(Ok(free)) = &looked {
        shared.lifecycle.set_disk_free(*free);
    }
    let error = match looked {
        Ok(Ok(free)) if free >= least => None,
        Ok(Ok(free)) => {
            let free_kib = free >> 10;
            Some(format!("{free_kib} KiB are free, less than store.free_min ({least} bytes)"))
        }
        Ok(Err(error)) => Some(format!("its free space is not known: {error}")),
        Err(error) => Some(error.to_string()),
    };
    let before = shared.lifecycle.disk_failed(error.clone());
    if let (Some(error), None) = (error, before) {
        tracing::warn!(%error, "the data folder's disk");
    }
}

/// Bytes that this process may still write to the disk of a folder.
fn free_bytes(folder: &Path) -> std::io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

async fn age(shared: Arc<Shared>) {
    let committer = ThreadTime::of(store::embedded::COMMITTER_THREAD);
    let written = || Some((committer.as_ref()?.spent()?, shared.store.commits().requests));
    let mut before = written();
    loop {
        shared.neuron.tick();
        shared.turns.tick();
        let proofs = services::watch::proofs(&shared.neuron.services);
        shared.feeds.tick(proofs, shared.lifecycle.is_draining());
        shared.sockets.look();
        if let (Some((spent_before, count_before)), Some((spent, count))) = (before, written())
            && count >= count_before + WRITES_MIN
        {
            let writes = u32::try_from(count - count_before).unwrap_or(u32::MAX);
            shared.turns.set_write_cost(spent.saturating_sub(spent_before) / writes);
            before = Some((spent, count));
        }
        tokio::time::sleep(TICK).await;
    }
}

async fn prune(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(PRUNE_EVERY).await;
        match shared.neuron.services.prune().await {
            Ok(0) => {}
            Ok(gone) => tracing::debug!(gone, "retention let versions go"),
            Err(error) => tracing::warn!(%error, "retention was not applied"),
        }
    }
}

/// Ends what is under way: no new work, then a moment for the old, then the rest is cut.
async fn stop(shared: &Arc<Shared>, deadline: Duration) {
    let lifecycle = &shared.lifecycle;
    lifecycle.stop();
    shared.sockets.close_all();
    shared.neuron.services.kv.watches().close();
    let is_busy =
        || lifecycle.busy_count() > 0 || shared.sockets.len() > 0 || shared.feeds.len() > 0;
    let drained = async {
        while is_busy() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(deadline, drained).await.is_err() {
        let left = shared.left();
        tracing::warn!(?left, "cut off at the deadline");
    }
}

/// Has the certificate read again with every SIGHUP.
async fn read_again(mut hangups: Signal, tls: Option<Arc<Tls>>) {
    while hangups.recv().await.is_some() {
        match tls.as_ref().is_some_and(|tls| tls.read_again()) {
            true => tracing::info!("SIGHUP: the certificate is read again, and nothing else"),
            false => tracing::info!("SIGHUP: there is no certificate to read again"),
        }
    }
}

async fn stop_signal() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Written under another name first, so that a reader never sees half of it.
fn write_ready_file(file: &Path, addresses: &Addresses) -> Result<()> {
    let partial = file.with_extension("partial");
    std::fs::write(&partial, serde_json::to_vec(addresses)?)
        .and_then(|()| std::fs::rename(&partial, file))
        .with_context(|| format!("writing the ready file {}", file.display()))
}

/// Worker threads of the runtime: tokio's default.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim().split('.').next().unwrap_or_default().to_owned();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A machine that goes down half-way leaves the old key, and never a half of one.
    #[test]
    fn a_secret_is_replaced_as_a_whole() -> Result<()> {
        let folder = tempfile::TempDir::new()?;
        let file = folder.path().join("cluster.key");
        // What a crash between the two steps leaves.
        std::fs::write(file.with_extension("partial"), "half")?;
        write_secret(&file, "the first")?;
        let mut before = std::fs::File::open(&file)?;
        write_secret(&file, "another")?;
        let mut text = String::new();
        before.read_to_string(&mut text)?;
        assert_eq!(text, "the first", "it was not written over");
        assert_eq!(std::fs::read_to_string(&file)?, "another");
        assert_eq!(std::fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path())?.count(), 1, "nothing is left beside it");
        Ok(())
    }
}
