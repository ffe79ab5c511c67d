//! A whole neuron's control side under one seed: requests by several accounts, trouble with the
//! disk, a wall clock that jumps by hours, crashes and restarts.
//!
//! Runs of one seed are the same step by step. What is checked is in [`crate::client`] with every
//! answer, and here after every restart: feeds, series, reads and listings as a whole.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::neuron::Neuron;
use ::neuron::asking::Asker;
use ::neuron::sockets::{Crowd, Outbox, Switchboard};
use kv4::store::Store as _;
use kv4::view::Limits;
use kv4::{Bucket, Kv4};
use serde_json::{Value, json};
use services::secrets::Sealer;
use services::sessions::Session;
use services::statistics::Statistics;
use services::token::Verified;
use services::{Identity, Parts, principal};
use wire::frames::Verb;
use wire::names::{Ident, Key, Path};
use wire::token::{Claims, Grants};

use crate::client::{Answer, Client, Everybody, OWN_PATH, SHARED_PATH, Who};
use crate::executor::{Executor, Machine};
use crate::model::{Left, Model, split_ver};
use crate::random::Random;
use crate::store::{Platter, SimStore};

const SYS_SECRET: &str = "sys-secret";
/// Views so small that nodes are loaded, dropped and read past all the time.
const VIEWS: Limits = Limits { bytes_max: 12_000, node_bytes_max: 4_000, idle_s: 5 };
/// Lives of the neuron in one run, and the longest of them.
const LIVES: u64 = 4;
const LIFE_MAX: Duration = Duration::from_secs(7);
const LIFE_MIN: Duration = Duration::from_secs(1);
const HOUR_MICROS: u64 = 3_600_000_000;

/// What a run did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    pub crashes: u64,
    pub changes: usize,
    /// Checks made, by kind.
    pub checks: BTreeMap<&'static str, u64>,
    /// A digest of everything that the run's feeds hold: equal for equal seeds.
    pub digest: u64,
}

/// Runs one seed.
///
/// # Errors
/// What was wrong first.
pub fn run(seed: u64) -> Result<Report, String> {
    let mut random = Random::new(seed);
    let mut run = Run {
        executor: Executor::new(&mut random),
        platter: Platter::default(),
        model: Arc::default(),
        ghost: Arc::default(),
        random,
        clients: Vec::new(),
        report: Report::default(),
    };
    run.live_and_die()?;
    Ok(run.report)
}

struct Run {
    executor: Executor,
    platter: Platter,
    model: Arc<Mutex<Model>>,
    ghost: Arc<Mutex<Ghost>>,
    random: Random,
    clients: Vec<Who>,
    report: Report,
}

/// What is known of the account that is made and deleted again and again.
#[derive(Debug, Default)]
struct Ghost {
    /// A crash or trouble may have left it half made or half deleted.
    is_doubtful: bool,
}

/// Signalling has no sockets here.
struct Nowhere;

impl Outbox for Nowhere {
    fn deliver(&self, _: signal::Output) -> Crowd {
        Crowd::Roomy
    }
}

impl Run {
    fn live_and_die(&mut self) -> Result<(), String> {
        for life in 0..LIVES {
            let neuron = self.start();
            if life == 0 {
                self.make_accounts(&neuron);
            }
            self.verify(&neuron)?;
            self.work(&neuron);
            self.check()?;
            if life + 1 < LIVES && self.random.one_in(4) {
                self.stop(&neuron);
            } else {
                self.crash();
            }
        }
        let neuron = self.start();
        self.verify(&neuron)?;
        let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        self.report.checks.clone_from(&model.checks);
        for row in model.feeds.values().flatten() {
            self.report.changes += 1;
            let bytes = row.0.bytes().chain(row.1.iter().flat_map(|ver| ver.bytes()));
            self.report.digest = bytes.fold(self.report.digest, |digest, byte| {
                (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        }
        Ok(())
    }

    /// A neuron over what the platter holds, with its store's committer running.
    fn start(&mut self) -> Neuron {
        self.platter.set_troubled(false);
        let machine = self.executor.machine();
        let store = SimStore::open(&self.platter, machine.clone(), self.random.branch());
        self.executor.spawn(store.clone().commit());
        let neuron = assemble(&store, &machine);
        let services = neuron.services.clone();
        let loaded = self.executor.run(async move { services.load_keys().await.is_ok() });
        assert!(loaded, "there is no trouble at the start");
        neuron
    }

    fn client(&self, neuron: &Neuron, who: Who) -> Client {
        let (machine, model) = (self.executor.machine(), self.model.clone());
        Client { neuron: neuron.clone(), who, machine, model }
    }

    fn sys(&self, neuron: &Neuron) -> Client {
        let credentials = format!("$sys:{SYS_SECRET}");
        let who = Who { number: 90, credentials, ident: "$sys", who: "$sys", is_owner: true };
        self.client(neuron, who)
    }

    /// elena with an admin and a sub-account lily, and oscar.
    fn make_accounts(&mut self, neuron: &Neuron) {
        let sys = self.sys(neuron);
        let client = |credentials: String, ident, who| Who {
            number: 0,
            credentials,
            ident,
            who,
            is_owner: true,
        };
        let mut make = |client: Client, path: &str, name: &str| {
            let body = json!({ "k": name, "v": {
                "email": format!("{name}@example.org"), "password": "woot",
            }});
            let path = path.to_owned();
            let answer: Answer = self
                .executor
                .run(async move { client.call("PUT", &path, &body.to_string()).await });
            let secret = answer.ok().map(|v| v["secret"].as_str().unwrap_or_default().to_owned());
            secret.unwrap_or_else(|| panic!("no {name}: {answer:?}"))
        };
        let elena = make(sys.clone(), "/_acc/accounts", "elena");
        let oscar = make(sys.clone(), "/_acc/accounts", "oscar");
        let elenas = Client { who: client(format!("elena:{elena}"), "elena", "elena"), ..sys };
        let lily = make(elenas.clone(), "/_acc/accounts", "lily");
        make(elenas, "/_acc/users/admins", "boss");
        let clients = [
            client(format!("elena:{elena}"), "elena", "elena"),
            Who { is_owner: false, ..client("elena:boss#woot".to_owned(), "elena", "boss") },
            client(format!("elena#lily:{lily}"), "lily", "lily"),
            client(format!("elena#lily:!{elena}"), "lily", "lily"),
            client(format!("oscar:{oscar}"), "oscar", "oscar"),
        ];
        self.clients = (0..).zip(clients).map(|(number, who)| Who { number, ..who }).collect();
    }

    /// Lets everybody work for a while.
    fn work(&mut self, neuron: &Neuron) {
        for who in self.clients.clone() {
            let client = self.client(neuron, who);
            let random = self.random.branch();
            self.executor.spawn(client.work(random));
        }
        let sys = self.sys(neuron);
        self.executor.spawn(haunt(sys, self.ghost.clone(), self.random.branch()));
        let (machine, model) = (self.executor.machine(), self.model.clone());
        self.executor.spawn(tidy(neuron.clone(), machine.clone(), model));
        self.executor.spawn(unsettle(machine.clone(), self.platter.clone(), self.random.branch()));
        let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let more = self.random.below(micros(LIFE_MAX - LIFE_MIN));
        let end = machine.elapsed_micros() + micros(LIFE_MIN) + more;
        let model = self.model.clone();
        let is_over = |_: &Executor| {
            let fault = model.lock().unwrap_or_else(PoisonError::into_inner).fault.is_some();
            fault || machine.elapsed_micros() >= end
        };
        self.executor.run_until(is_over);
    }

    fn crash(&mut self) {
        self.report.crashes += 1;
        self.executor.end_all();
        self.model.lock().unwrap_or_else(PoisonError::into_inner).crashed();
    }

    /// An end in order: statistics are written. Clients are cut off all the same.
    fn stop(&mut self, neuron: &Neuron) {
        self.platter.set_troubled(false);
        let (flushing, model) = (neuron.clone(), self.model.clone());
        self.executor.run(async move { flush(&flushing, &model).await });
        self.executor.end_all();
        self.model.lock().unwrap_or_else(PoisonError::into_inner).crashed();
    }

    fn check(&self) -> Result<(), String> {
        match &self.model.lock().unwrap_or_else(PoisonError::into_inner).fault {
            Some(fault) => Err(fault.clone()),
            None => Ok(()),
        }
    }

    /// Compares everything with the model, while nobody else works.
    fn verify(&mut self, neuron: &Neuron) -> Result<(), String> {
        for ident in ["elena", "lily", "oscar"] {
            let clients: Vec<Who> =
                self.clients.iter().filter(|who| who.ident == ident).cloned().collect();
            let client = self.client(neuron, clients[0].clone());
            let numbers: Vec<u64> = clients.iter().map(|who| who.number).collect();
            self.executor.run(async move { verify_bucket(&client, &numbers).await });
        }
        self.check()
    }
}

fn assemble(store: &Arc<SimStore>, machine: &Machine) -> Neuron {
    let identity = Identity {
        cluster: "sim".to_owned(),
        host: "host".to_owned(),
        neuron: "neuron".to_owned(),
        number: store.incarnation(),
        signal_urls: Vec::new(),
        https_port: None,
    };
    let stats = Arc::new(Statistics::default());
    let switchboard = Arc::new(Switchboard::new(
        Key::parse("host:neuron").expect("a legal key"),
        signal::Limits::default(),
        1,
        crate::sealer(),
        Arc::new(Nowhere),
        stats.clone(),
        Arc::new(machine.clone()),
    ));
    let parts = Parts {
        kv: Kv4::new(store.clone(), VIEWS),
        clock: Arc::new(machine.clone()),
        rng: Arc::new(machine.clone()),
        passwords: Arc::new(machine.clone()),
        rooms: switchboard.clone(),
        identity,
        sealer: Sealer::new(&[7; 32]),
        stats,
        sys_secret: SYS_SECRET.to_owned(),
    };
    Neuron::new(parts, switchboard)
}

/// What a socket's request comes to in a neuron that has just begun: the envelope, and the version of
/// what was read or written. `None` for what is no request of the neuron's.
pub(crate) fn ask(verb: Verb, params: &str) -> Option<(String, Option<String>)> {
    if matches!(verb, Verb::Watch | Verb::Unwatch) {
        return None;
    }
    let mut random = Random::new(1);
    let mut executor = Executor::new(&mut random);
    let machine = executor.machine();
    let store = SimStore::open(&Platter::default(), machine.clone(), random.branch());
    executor.spawn(store.clone().commit());
    let (neuron, params) = (assemble(&store, &machine), params.to_owned());
    let account = Ident::parse("elena").expect("an ident");
    let bucket = Bucket::account(&account, None).expect("short");
    let path = Path::parse("/my/path").expect("a legal path");
    let claims = Claims {
        id: 1,
        account,
        sub: None,
        path: Some(path.clone()),
        identity: "ann".to_owned(),
        grants: Grants::parse("subscribe,publish,send,watch,read,write").expect("grants"),
        not_before_ms: 0,
        expires_s: 0,
        key_id: 0,
    };
    let verified = Verified { claims, bucket: bucket.clone() };
    executor.run(async move {
        let (session, address) = (Session::default(), [127, 0, 0, 1].into());
        let opener = principal::of_socket(&neuron.services, &session, verified, address).ok()?;
        let asker = Asker { opener, session, address, is_tls: false, path };
        let reply = neuron.ask(&asker, verb, &params, &Everybody).await;
        let _ = neuron.flush().await;
        // What a user asks for is done in his account's bucket or nowhere; statistics and logs are the
        // neuron's own.
        let oscar = Bucket::account(&Ident::parse("oscar").expect("an ident"), None);
        let layers = store.layers(&oscar.expect("short")).await;
        assert_eq!(layers, Ok(Vec::new()), "{params}");
        Some((reply.envelope, reply.ver))
    })
}

/// What the shell's timers do.
async fn tidy(neuron: Neuron, machine: Machine, model: Arc<Mutex<Model>>) {
    loop {
        machine.pause(Duration::from_millis(800)).await;
        neuron.tick();
        flush(&neuron, &model).await;
    }
}

async fn flush(neuron: &Neuron, model: &Mutex<Model>) {
    let answered: Vec<(String, u64)> = {
        let model = model.lock().unwrap_or_else(PoisonError::into_inner);
        model.puts.iter().map(|(who, puts)| (who.clone(), puts.answered)).collect()
    };
    if neuron.flush().await.is_ok() {
        let mut model = model.lock().unwrap_or_else(PoisonError::into_inner);
        for (who, answered) in answered {
            let puts = model.puts.entry(who).or_default();
            puts.flushed = puts.flushed.max(answered);
        }
    }
}

/// Spells of trouble with the disk; a wall clock that is set forward and back.
async fn unsettle(machine: Machine, platter: Platter, mut random: Random) {
    let mut ahead = 0;
    loop {
        machine.pause(Duration::from_millis(1_200)).await;
        match random.below(5) {
            0 => {
                platter.set_troubled(true);
                machine.pause(Duration::from_millis(600)).await;
                platter.set_troubled(false);
            }
            1 => {}
            // Back to the true time, and so to minutes that have been before.
            2 => machine.jump(-std::mem::take(&mut ahead)),
            _ => {
                let most = if random.one_in(2) { 5 * HOUR_MICROS } else { HOUR_MICROS / 20 };
                let by = i64::try_from(random.below(most)).unwrap_or(0);
                let by = if random.one_in(2) { by } else { -by };
                ahead += by;
                machine.jump(by);
            }
        }
    }
}

/// Makes an account, writes to it, deletes it: whoever has the name next finds nothing there.
async fn haunt(sys: Client, ghost: Arc<Mutex<Ghost>>, mut random: Random) {
    let doubt = |is_doubtful: bool| {
        ghost.lock().unwrap_or_else(PoisonError::into_inner).is_doubtful = is_doubtful;
    };
    let is_doubtful = || ghost.lock().unwrap_or_else(PoisonError::into_inner).is_doubtful;
    loop {
        sys.machine.pause(Duration::from_millis(300)).await;
        if is_doubtful() {
            let answer = sys.call("DELETE", "/_acc/accounts?k=ghost", "").await;
            if answer.ok().is_some() || answer.word() == "not_found" {
                doubt(false);
            }
            continue;
        }
        doubt(true);
        let body = json!({ "k": "ghost", "v": { "email": "ghost@example.org" } });
        let answer = sys.call("PUT", "/_acc/accounts", &body.to_string()).await;
        let Some(v) = answer.ok() else {
            let may = answer.is_unavailable();
            sys.must("a deleted account can be made again", may, || format!("{answer:?}"));
            continue;
        };
        let secret = v["secret"].as_str().unwrap_or_default();
        let who = Who { credentials: format!("ghost:{secret}"), ident: "ghost", ..sys.who.clone() };
        let client = Client { who, ..sys.clone() };
        let feed = client.get("/_ds/?a=changes").await;
        let Some(v) = feed.ok() else { continue };
        sys.must("a new account finds nothing", v["last_seq"] == 0, || format!("{feed:?}"));
        for nth in 0..random.below(3) {
            let body = json!({ "k": format!("key{nth}"), "v": nth }).to_string();
            client.neuron_put(&body).await;
        }
        let answer = sys.call("DELETE", "/_acc/accounts?k=ghost", "").await;
        if answer.ok().is_some() {
            doubt(false);
        }
    }
}

impl Client {
    async fn neuron_put(&self, body: &str) {
        // Not by `PUT`, which statistics of other clients are compared by.
        drop(self.call("POST", "/_data/ghost", body).await);
    }
}

/// One row of a feed.
struct Row {
    path: String,
    key: String,
    /// `None` once it was erased.
    ver: Option<String>,
    left: Left,
}

async fn verify_bucket(client: &Client, numbers: &[u64]) {
    let Some(rows) = read_feed(client).await else { return };
    let mut series: BTreeMap<(String, String), Vec<(String, Left)>> = BTreeMap::new();
    for row in rows {
        if let Some(ver) = row.ver {
            series.entry((row.path, row.key)).or_default().push((ver, row.left));
        }
    }
    for ((path, key), versions) in &series {
        let mut last = (0, 0);
        for (ver, _) in versions {
            let (generation, micros) = split_ver(ver).unwrap_or_default();
            client.must("series rise", generation == last.0 + 1 && micros > last.1, || {
                format!("{path} {key} {ver} after {last:?}")
            });
            last = (generation, micros);
        }
    }
    let empty = Vec::new();
    for number in numbers {
        for nth in 0..crate::client::OWN_KEYS {
            let key = format!("own{number}.{nth}");
            let found = series.get(&(OWN_PATH.to_owned(), key.clone())).unwrap_or(&empty);
            client.model().settle(&client.place(OWN_PATH, &key), found);
        }
    }
    for nth in 0..crate::client::SHARED_KEYS {
        let key = format!("shared{nth}");
        let found = series.get(&(SHARED_PATH.to_owned(), key.clone())).unwrap_or(&empty);
        verify_shared(client, &key, found);
    }
    for path in [OWN_PATH, SHARED_PATH] {
        verify_reads(client, path, &series).await;
    }
}

/// The whole feed, which is dense and begins with all that was read of it before.
async fn read_feed(client: &Client) -> Option<Vec<Row>> {
    let mut rows = Vec::new();
    let mut known: Vec<(String, Option<String>)> = Vec::new();
    loop {
        let since = known.len();
        let answer = client.get(&format!("/_ds/?a=changes&since={since}&limit=53")).await;
        let v = answer.ok().cloned().unwrap_or_default();
        let changes = v["changes"].as_array().cloned().unwrap_or_default();
        let last = usize::try_from(v["last_seq"].as_u64().unwrap_or(0)).unwrap_or(usize::MAX);
        for change in &changes {
            let text = |name: &str| change[name].as_str().map(str::to_owned);
            let is_next = change["seq"].as_u64() == Some(known.len() as u64 + 1);
            client.must("the feed is dense", is_next, || format!("{change} at {}", known.len()));
            let key = text("k").unwrap_or_default();
            known.push((key.clone(), text("_ver_")));
            if change["l"] == "*data" {
                let left = change.get("v").and_then(|v| v["name"].as_str()).map(str::to_owned);
                rows.push(Row {
                    path: text("p").unwrap_or_default(),
                    key,
                    ver: text("_ver_"),
                    left,
                });
            }
        }
        if known.len() >= last || changes.is_empty() {
            client.must("the feed ends at its last seq", known.len() == last, || {
                format!("{answer:?}")
            });
            break;
        }
    }
    let before = client.model().feeds.insert(client.who.ident.to_owned(), known.clone());
    for (at, (key, ver)) in before.unwrap_or_default().iter().enumerate() {
        let still = known.get(at);
        let is_same = still.is_some_and(|(k, v)| k == key && (v == ver || v.is_none()));
        client
            .must("a feed is not rewritten", is_same, || format!("{at}: {key} {ver:?} {still:?}"));
    }
    client.model().fault.is_none().then_some(rows)
}

fn verify_shared(client: &Client, key: &str, found: &[(String, Left)]) {
    let place = client.place(SHARED_PATH, key);
    let mut model = client.model();
    let entry = model.shared.entry(place.clone()).or_default();
    let mut faults = Vec::new();
    for (generation, (name, ver)) in &entry.acknowledged {
        let at = usize::try_from(*generation).unwrap_or(0).wrapping_sub(1);
        let is_there = found.get(at).is_some_and(|(v, n)| v == ver && n.as_ref() == Some(name));
        if !is_there {
            faults.push(format!("{ver} {name} is missing"));
        }
    }
    for (ver, name) in found {
        if !name.as_ref().is_some_and(|name| entry.begun.contains(name)) {
            faults.push(format!("nobody wrote {ver} {name:?}"));
        }
    }
    // What a crash left without an answer is settled: it is there, or it never comes.
    let names: Vec<_> = found.iter().filter_map(|(_, name)| name.clone()).collect();
    entry.begun.retain(|name| names.contains(name));
    model.must("what was acknowledged is there, and nothing else", faults.is_empty(), || {
        format!("{place:?}: {faults:?}")
    });
}

/// Reads, listing and series of a path say what the feed says.
async fn verify_reads(
    client: &Client,
    path: &str,
    series: &BTreeMap<(String, String), Vec<(String, Left)>>,
) {
    let of_path = series.iter().filter(|((p, _), _)| p == path);
    let mut live = Vec::new();
    let mut rows = Vec::new();
    for ((_, key), versions) in of_path {
        rows.extend(
            versions
                .iter()
                .rev()
                .map(|(ver, left)| (ver.split_once('-').unwrap_or_default().1, left.clone())),
        );
        let answer = client.get(&format!("/_data{path}?k={key}")).await;
        let (ver, left) = versions.last().cloned().unwrap_or_default();
        match (&left, answer.ok()) {
            (Some(name), Some(v)) => {
                live.push(key.clone());
                let is_it = v["name"] == **name && v["_ver_"] == *ver;
                client.must("a read shows the newest", is_it, || format!("{ver} {answer:?}"));
            }
            (left, _) => {
                let gone = left.is_none() && answer.word() == "not_found";
                client.must("a deleted entry is not found", gone, || format!("{ver} {answer:?}"));
            }
        }
    }
    let keys = client.get(&format!("/_data{path}")).await;
    client.must("a listing is what is live", keys.ok() == Some(&json!(live)), || {
        format!("{keys:?} for {live:?}")
    });
    // The newest of all keys first; as text, stamps sort as they are.
    rows.sort_by_key(|(stamp, _)| std::cmp::Reverse(*stamp));
    let names: Vec<Left> = rows.into_iter().map(|(_, left)| left).collect();
    let answer = client.get(&format!("/_data{path}?time_series=1&deletions=1")).await;
    let series = answer.ok().and_then(Value::as_array).cloned().unwrap_or_default();
    let shown: Vec<Left> =
        series.iter().map(|row| row[2]["name"].as_str().map(str::to_owned)).collect();
    client.must("a time series is the feed's", shown == names, || format!("{shown:?} {names:?}"));
}
