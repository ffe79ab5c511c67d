//! The servers that are measured, and how each is asked the same thing.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::idle::Answer;
use crate::load::{self, Workload, find};
use crate::process::Process;

/// The account that asks ours; etcd is asked without credentials, which it has no need to check.
pub(crate) const WHO: &str = "bench";
const SYS_SECRET: &str = "bench-sys-secret";
/// Attempts to fetch and build a rival.
const ATTEMPTS: usize = 3;

pub(crate) fn key(nth: u64) -> String {
    format!("key-{nth:08}")
}

/// 100 bytes that need no escape.
pub(crate) fn value(nth: u64) -> String {
    format!("{nth:020}{}", "x".repeat(80))
}

/// A neuron with its own folder, started as tests start it.
#[derive(Debug)]
pub(crate) struct Ganglion {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    admin: SocketAddr,
    authorization: String,
}

impl Ganglion {
    pub(crate) fn at(&self) -> (&Process, SocketAddr) {
        (&self.process, self.address)
    }

    pub(crate) fn start(
        program: &Path,
        folder: &Path,
        settings: &[(&str, &str)],
    ) -> Result<Ganglion> {
        std::fs::create_dir_all(folder)?;
        let ready_file = folder.join("ready.json");
        let mut command = Command::new(program);
        command
            .args(["serve", "--dev", "--listen", "127.0.0.1:0", "--sys-secret", SYS_SECRET])
            .arg("--data-dir")
            .arg(folder.join("data"))
            .arg("--ready-file")
            .arg(&ready_file)
            .env("GANGLION_LISTEN__ADMIN", "[\"127.0.0.1:0\"]")
            .envs(settings.iter().copied());
        let mut process = Process::start(&mut command, &folder.join("ganglion.log"))?;
        let ready = process.wait_for(|| std::fs::read(&ready_file).ok())?;
        let addresses: Value = serde_json::from_slice(&ready)?;
        let address = |kind: &str| -> Result<SocketAddr> {
            Ok(addresses[kind][0].as_str().context("no address")?.parse()?)
        };
        let mut ganglion = Ganglion {
            process,
            address: address("http")?,
            admin: address("admin")?,
            authorization: basic(&format!("$sys:{SYS_SECRET}")),
        };
        let body = format!(
            "{{\"k\":\"{WHO}\",\"v\":{{\"email\":\"bench@example.org\",\"password\":\"woot\"}}}}"
        );
        let mut request = Vec::new();
        ganglion.push(&mut request, "PUT", "/_acc/accounts", &body);
        let (_, answer) = load::ask(ganglion.address, &request)?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let secret = answer["v"]["secret"].as_str();
        let secret = secret.with_context(|| format!("no account: {answer}"))?;
        ganglion.authorization = basic(&format!("{WHO}:{secret}"));
        Ok(ganglion)
    }

    pub(crate) fn push(&self, out: &mut Vec<u8>, method: &str, target: &str, body: &str) {
        let (address, authorization) = (self.address, &self.authorization);
        push(
            out,
            &[
                method,
                " ",
                target,
                " HTTP/1.1\r\nhost: ",
                &address.to_string(),
                "\r\nauthorization: ",
                authorization,
                "\r\n",
            ],
        );
        push_body(out, body);
    }

    /// Durable transactions and the requests in them, since the start.
    pub(crate) fn commits(&self) -> Result<(f64, f64)> {
        let request = format!("GET /metrics HTTP/1.1\r\nhost: {}\r\n\r\n", self.admin);
        let (_, text) = load::ask(self.admin, request.as_bytes())?;
        let text = String::from_utf8(text)?;
        let metric = |name: &str| -> Result<f64> {
            let value = text.lines().find_map(|line| line.strip_prefix(name));
            Ok(value.with_context(|| format!("no metric {name}"))?.trim().parse()?)
        };
        Ok((metric("ganglion_store_commits_total")?, metric("ganglion_store_requests_total")?))
    }

    /// An answer to a request of a workload, for the limit to give.
    pub(crate) fn sample(&self, workload: &mut impl Workload) -> Result<Answer> {
        let mut request = Vec::new();
        workload.request(0, 0, &mut request);
        let (head, body) = load::ask(self.address, &request)?;
        let body = String::from_utf8(body)?;
        if !workload.is_right(body.as_bytes()) {
            bail!("ours answered {body}");
        }
        // Hyper adds the others itself.
        let own = |name: &str| !matches!(name, "content-length" | "date" | "connection");
        let headers = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let headers = headers.filter(|(name, _)| own(name));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Answer { headers, body })
    }
}

/// Hyper that does nothing.
#[derive(Debug)]
pub(crate) struct Idle {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

impl Idle {
    pub(crate) fn at(&self) -> (&Process, SocketAddr) {
        (&self.process, self.address)
    }

    pub(crate) fn start(folder: &Path, answer: &Answer) -> Result<Idle> {
        std::fs::create_dir_all(folder)?;
        let (file, ready) = (folder.join("answer.json"), folder.join("ready"));
        std::fs::write(&file, serde_json::to_vec(answer)?)?;
        let _ = std::fs::remove_file(&ready);
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("idle").arg(&file).arg(&ready);
        let mut process = Process::start(&mut command, &folder.join("idle.log"))?;
        let address = process.wait_for(|| std::fs::read_to_string(&ready).ok())?;
        Ok(Idle { process, address: address.parse()? })
    }
}

/// etcd with its default settings, asked through its JSON gateway.
#[derive(Debug)]
pub(crate) struct Etcd {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

impl Etcd {
    pub(crate) fn at(&self) -> (&Process, SocketAddr) {
        (&self.process, self.address)
    }

    pub(crate) fn start(program: &Path, folder: &Path) -> Result<Etcd> {
        std::fs::create_dir_all(folder)?;
        let free = || -> Result<u16> {
            Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
        };
        let (client, peer) = (free()?, free()?);
        let client_url = format!("http://127.0.0.1:{client}");
        let peer_url = format!("http://127.0.0.1:{peer}");
        let mut command = Command::new(program);
        command
            .args(["--name", "bench", "--listen-client-urls", &client_url])
            .args(["--advertise-client-urls", &client_url, "--listen-peer-urls", &peer_url])
            .args(["--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("bench={peer_url}"), "--log-level", "warn"])
            .arg("--data-dir")
            .arg(folder.join("data"));
        let mut process = Process::start(&mut command, &folder.join("etcd.log"))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, client));
        process.wait_for(|| {
            TcpStream::connect(address).ok()?;
            let mut request = Vec::new();
            push_etcd(&mut request, address, "/v3/kv/range", "{\"key\":\"eA==\"}");
            load::ask(address, &request).ok()
        })?;
        Ok(Etcd { process, address })
    }
}

/// The etcd program: built from the Go module proxy's newest, else Debian's.
///
/// # Errors
/// Says why there is none.
pub(crate) fn install_etcd() -> Result<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("rivals");
    let wanted = std::fs::read_to_string(module.join("go.mod"))?;
    let version = wanted
        .lines()
        .find_map(|line| line.trim().strip_prefix("go.etcd.io/etcd/server/v3 "))
        .context("go.mod names no etcd")?;
    let version = version.split_whitespace().next().unwrap_or_default();
    let program = cache.join(format!("ganglion-bench/etcd-{version}"));
    if program.exists() {
        return Ok(program);
    }
    let mut why = String::new();
    for attempt in 1..=ATTEMPTS {
        let mut build = Command::new("go");
        build.args(["build", "-trimpath", "-o"]).arg(&program).arg("./etcd").current_dir(&module);
        match build.output() {
            Ok(done) if done.status.success() => return Ok(program),
            Ok(done) => {
                let text = String::from_utf8_lossy(&done.stderr);
                why = format!("go build, attempt {attempt}: {:.500}", text.trim());
            }
            Err(error) => {
                why = format!("go: {error}");
                break;
            }
        }
    }
    let installed = Command::new("apt-get").args(["install", "-y", "etcd-server"]).output();
    match installed {
        Ok(done) if done.status.success() => Ok(PathBuf::from("etcd")),
        Ok(done) => {
            let text = String::from_utf8_lossy(&done.stderr);
            bail!("{why}; apt-get: {:.300}", text.trim())
        }
        Err(error) => bail!("{why}; apt-get: {error}"),
    }
}

/// What `etcd --version` says first.
pub(crate) fn etcd_version(program: &Path) -> String {
    let said = Command::new(program).arg("--version").output();
    let said = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned());
    said.unwrap_or_default().lines().next().unwrap_or("etcd of unknown version").to_owned()
}

/// Reads of keys of nodes, each key as likely.
pub(crate) struct OursGet<'a> {
    pub(crate) server: &'a Ganglion,
    pub(crate) keys: Keys,
}

impl Workload for OursGet<'_> {
    fn request(&mut self, _connection: usize, _nth: u64, out: &mut Vec<u8>) {
        let nth = self.keys.next();
        let target = format!("/_data/bench/n{}?k={}", nth / NODE_KEYS, key(nth));
        self.server.push(out, "GET", &target, "");
    }

    fn is_right(&self, body: &[u8]) -> bool {
        body.starts_with(b"{\"v\":\"0") && body.ends_with(b"\"s\":\"ok\"}")
    }
}

pub(crate) struct EtcdGet {
    pub(crate) address: SocketAddr,
    pub(crate) keys: Keys,
}

impl Workload for EtcdGet {
    fn request(&mut self, _connection: usize, _nth: u64, out: &mut Vec<u8>) {
        let nth = self.keys.next();
        let key = STANDARD.encode(format!("/bench/n{}/{}", nth / NODE_KEYS, key(nth)));
        push_etcd(out, self.address, "/v3/kv/range", &format!("{{\"key\":\"{key}\"}}"));
    }

    fn is_right(&self, body: &[u8]) -> bool {
        find(body, b"\"kvs\":[{").is_some()
    }
}

/// Keys of a node, where keys are spread over nodes.
pub(crate) const NODE_KEYS: u64 = 1_000;

/// Which keys are asked for.
#[derive(Clone, Debug)]
pub(crate) enum Keys {
    /// 0, 1, 2, …
    InTurn(u64),
    /// Any below `count`, by a small generator that is the same in every run.
    Any { count: u64, state: u64 },
}

impl Keys {
    pub(crate) fn any(count: u64) -> Keys {
        Keys::Any { count, state: 0x9e37_79b9_7f4a_7c15 }
    }

    fn next(&mut self) -> u64 {
        match self {
            Keys::InTurn(next) => {
                *next += 1;
                *next - 1
            }
            Keys::Any { count, state } => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                *state % *count
            }
        }
    }
}

/// Puts of each connection into a node of its own: keys in turn, again from the first after `keys`.
pub(crate) struct OursPut<'a> {
    pub(crate) server: &'a Ganglion,
    pub(crate) node: String,
    pub(crate) keys: u64,
}

impl Workload for OursPut<'_> {
    fn request(&mut self, connection: usize, nth: u64, out: &mut Vec<u8>) {
        let target = format!("/_data/bench/{}{connection}", self.node);
        let body = put_body(nth % self.keys, nth);
        self.server.push(out, "PUT", &target, &body);
    }

    fn is_right(&self, body: &[u8]) -> bool {
        body.ends_with(b"\"s\":\"ok\"}")
    }
}

pub(crate) struct EtcdPut {
    pub(crate) address: SocketAddr,
    pub(crate) node: String,
    pub(crate) keys: u64,
}

impl Workload for EtcdPut {
    fn request(&mut self, connection: usize, nth: u64, out: &mut Vec<u8>) {
        let key = format!("/bench/{}{connection}/{}", self.node, key(nth % self.keys));
        push_etcd_put(out, self.address, &key, nth);
    }

    fn is_right(&self, body: &[u8]) -> bool {
        is_etcd_put(body)
    }
}

/// Puts that create keys in turn, [`NODE_KEYS`] in a node, as [`OursGet`] reads them.
pub(crate) struct OursLoad<'a> {
    pub(crate) server: &'a Ganglion,
    pub(crate) next: u64,
}

impl Workload for OursLoad<'_> {
    fn request(&mut self, _connection: usize, _nth: u64, out: &mut Vec<u8>) {
        let nth = self.next;
        self.next += 1;
        let target = format!("/_data/bench/n{}", nth / NODE_KEYS);
        self.server.push(out, "PUT", &target, &put_body(nth, nth));
    }

    fn is_right(&self, body: &[u8]) -> bool {
        body.ends_with(b"\"s\":\"ok\"}")
    }
}

pub(crate) struct EtcdLoad {
    pub(crate) address: SocketAddr,
    pub(crate) next: u64,
}

impl Workload for EtcdLoad {
    fn request(&mut self, _connection: usize, _nth: u64, out: &mut Vec<u8>) {
        let nth = self.next;
        self.next += 1;
        let key = format!("/bench/n{}/{}", nth / NODE_KEYS, key(nth));
        push_etcd_put(out, self.address, &key, nth);
    }

    fn is_right(&self, body: &[u8]) -> bool {
        is_etcd_put(body)
    }
}

/// One request, again and again, whose answer has `rows` rows.
pub(crate) struct Same {
    pub(crate) request: Vec<u8>,
    /// What stands once in every row.
    pub(crate) mark: &'static [u8],
    pub(crate) rows: usize,
}

impl Workload for Same {
    fn request(&mut self, _connection: usize, _nth: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn is_right(&self, body: &[u8]) -> bool {
        // Counting all of them in every answer would cost more than the server spends.
        body.len() > self.rows * 100 && find(&body[..body.len().min(1_000)], self.mark).is_some()
    }
}

/// A range of `limit` keys of etcd.
pub(crate) fn etcd_range(address: SocketAddr, first: &str, end: &str, limit: usize) -> Vec<u8> {
    let (first, end) = (STANDARD.encode(first), STANDARD.encode(end));
    let body = format!("{{\"key\":\"{first}\",\"range_end\":\"{end}\",\"limit\":{limit}}}");
    let mut request = Vec::new();
    push_etcd(&mut request, address, "/v3/kv/range", &body);
    request
}

fn put_body(key_nth: u64, value_nth: u64) -> String {
    format!("{{\"k\":\"{}\",\"v\":\"{}\"}}", key(key_nth), value(value_nth))
}

fn push_etcd_put(out: &mut Vec<u8>, address: SocketAddr, key: &str, nth: u64) {
    let (key, value) = (STANDARD.encode(key), STANDARD.encode(value(nth)));
    let body = format!("{{\"key\":\"{key}\",\"value\":\"{value}\"}}");
    push_etcd(out, address, "/v3/kv/put", &body);
}

fn is_etcd_put(body: &[u8]) -> bool {
    find(body, b"\"revision\":").is_some()
}

fn push_etcd(out: &mut Vec<u8>, address: SocketAddr, target: &str, body: &str) {
    push(out, &["POST ", target, " HTTP/1.1\r\nhost: ", &address.to_string(), "\r\n"]);
    push_body(out, body);
}

fn push_body(out: &mut Vec<u8>, body: &str) {
    if body.is_empty() {
        push(out, &["\r\n"]);
        return;
    }
    let length = body.len().to_string();
    let head = ["content-type: application/json\r\ncontent-length: ", &length, "\r\n\r\n", body];
    push(out, &head);
}

fn push(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

fn basic(credentials: &str) -> String {
    format!("Basic {}", STANDARD.encode(credentials))
}
