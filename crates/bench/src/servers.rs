//! The servers that are measured, and how each is asked the same thing.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

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
/// For how long `$sys`, who makes the account, counts as its company from the account's first call on
/// (`turns` of `ganglion`, with a second or two to spare): in company an account gets a share of the
/// cores, which is not what is measured.
const COMPANY: Duration = Duration::from_secs(5);
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
        let mut first = Vec::new();
        ganglion.push(&mut first, "GET", "/_data", "");
        load::ask(ganglion.address, &first)?;
        std::thread::sleep(COMPANY);
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
        if !workload.is_right(0, body.as_bytes()) {
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

/// The etcd program: built once from the modules that `rivals/go.mod` names, and kept in
/// `$XDG_CACHE_HOME/ganglion-bench`. Nothing is installed on the machine.
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
    bail!("{why}")
}

/// What `etcd --version` says first.
pub(crate) fn etcd_version(program: &Path) -> String {
    let said = Command::new(program).arg("--version").output();
    let said = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned());
    said.unwrap_or_default().lines().next().unwrap_or("etcd of unknown version").to_owned()
}

/// Reads of keys of nodes; an answer is right when it has the value of the key that was asked for.
pub(crate) struct OursGet<'a> {
    pub(crate) server: &'a Ganglion,
    pub(crate) keys: Keys,
}

impl Workload for OursGet<'_> {
    fn request(&mut self, connection: usize, _nth: u64, out: &mut Vec<u8>) {
        let nth = self.keys.ask(connection);
        let target = format!("/_data/bench/n{}?k={}", nth / NODE_KEYS, key(nth));
        self.server.push(out, "GET", &target, "");
    }

    fn is_right(&self, connection: usize, body: &[u8]) -> bool {
        is_ours_value(body, self.keys.asked[connection])
    }
}

pub(crate) struct EtcdGet {
    pub(crate) address: SocketAddr,
    pub(crate) keys: Keys,
}

impl Workload for EtcdGet {
    fn request(&mut self, connection: usize, _nth: u64, out: &mut Vec<u8>) {
        let nth = self.keys.ask(connection);
        let key = STANDARD.encode(format!("/bench/n{}/{}", nth / NODE_KEYS, key(nth)));
        push_etcd(out, self.address, "/v3/kv/range", &format!("{{\"key\":\"{key}\"}}"));
    }

    fn is_right(&self, connection: usize, body: &[u8]) -> bool {
        is_etcd_value(body, self.keys.asked[connection])
    }
}

/// Keys of a node, where keys are spread over nodes.
pub(crate) const NODE_KEYS: u64 = 1_000;

/// Which keys are asked for, and which each connection asked for last.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    order: Order,
    asked: Vec<u64>,
}

#[derive(Clone, Debug)]
enum Order {
    /// The first key of each node.
    Nodes { next: u64 },
    /// Any below `count`, by a small generator that is the same in every run.
    Any { count: u64, state: u64 },
}

impl Keys {
    /// Any of so many keys, each as likely.
    pub(crate) fn any(count: u64) -> Keys {
        let order = Order::Any { count, state: 0x9e37_79b9_7f4a_7c15 };
        Keys { order, asked: Vec::new() }
    }

    /// One key of each node in turn.
    pub(crate) fn of_nodes() -> Keys {
        Keys { order: Order::Nodes { next: 0 }, asked: Vec::new() }
    }

    /// The next key of a connection.
    fn ask(&mut self, connection: usize) -> u64 {
        let nth = match &mut self.order {
            Order::Nodes { next } => {
                *next += 1;
                (*next - 1) * NODE_KEYS
            }
            Order::Any { count, state } => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                *state % *count
            }
        };
        note(&mut self.asked, connection, nth);
        nth
    }
}

/// Remembers what a connection asked.
fn note(asked: &mut Vec<u64>, connection: usize, nth: u64) {
    if asked.len() <= connection {
        asked.resize(connection + 1, 0);
    }
    asked[connection] = nth;
}

/// Whether an answer of ours is exactly the [`value`] of a number.
fn is_ours_value(body: &[u8], nth: u64) -> bool {
    let rest = body.strip_prefix(b"{\"v\":\"");
    rest.and_then(|rest| rest.strip_suffix(b"\",\"s\":\"ok\"}")) == Some(value(nth).as_bytes())
}

/// Whether etcd's answer has one value, the [`value`] of a number.
fn is_etcd_value(body: &[u8], nth: u64) -> bool {
    const NAME: &[u8] = b"\"value\":\"";
    let Some(at) = find(body, NAME) else { return false };
    let encoded = STANDARD.encode(value(nth));
    body[at + NAME.len()..].starts_with(encoded.as_bytes())
        && find(body, b"\"count\":\"1\"").is_some()
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

    fn is_right(&self, _connection: usize, body: &[u8]) -> bool {
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

    fn is_right(&self, _connection: usize, body: &[u8]) -> bool {
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

    fn is_right(&self, _connection: usize, body: &[u8]) -> bool {
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

    fn is_right(&self, _connection: usize, body: &[u8]) -> bool {
        is_etcd_put(body)
    }
}

/// One request, again and again, while nobody writes.
pub(crate) struct Same {
    pub(crate) request: Vec<u8>,
    /// What every answer has to be, to the byte; who made this has looked at it.
    pub(crate) expected: Vec<u8>,
}

impl Workload for Same {
    fn request(&mut self, _connection: usize, _nth: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn is_right(&self, _connection: usize, body: &[u8]) -> bool {
        body == self.expected
    }
}

/// A workload's requests to the limit, which gives one answer to all of them.
pub(crate) struct ToIdle<'a, W> {
    pub(crate) requests: &'a mut W,
    pub(crate) answer: &'a str,
}

impl<W: Workload> Workload for ToIdle<'_, W> {
    fn request(&mut self, connection: usize, nth: u64, out: &mut Vec<u8>) {
        self.requests.request(connection, nth, out);
    }

    fn is_right(&self, _connection: usize, body: &[u8]) -> bool {
        body == self.answer.as_bytes()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_another_key_is_not_the_answer() {
        let ours = |nth| format!("{{\"v\":\"{}\",\"s\":\"ok\"}}", value(nth)).into_bytes();
        assert!(is_ours_value(&ours(7), 7));
        assert!(!is_ours_value(&ours(8), 7));
        assert!(!is_ours_value(b"{\"v\":\"not_found\",\"s\":\"error\"}", 7));
        let etcd = |nth, count| {
            let value = STANDARD.encode(value(nth));
            let kvs = format!("\"kvs\":[{{\"key\":\"a2V5\",\"value\":\"{value}\"}}]");
            format!("{{\"header\":{{\"revision\":\"9\"}},{kvs},\"count\":\"{count}\"}}")
                .into_bytes()
        };
        assert!(is_etcd_value(&etcd(7, 1), 7));
        assert!(!is_etcd_value(&etcd(8, 1), 7));
        assert!(!is_etcd_value(&etcd(7, 2), 7));
        assert!(!is_etcd_value(b"{\"header\":{\"revision\":\"9\"}}", 7));
    }

    #[test]
    fn an_answer_is_compared_with_what_its_connection_asked() {
        let mut keys = Keys::of_nodes();
        assert_eq!([keys.ask(1), keys.ask(0), keys.ask(1)], [0, NODE_KEYS, 2 * NODE_KEYS]);
        assert_eq!(keys.asked, [NODE_KEYS, 2 * NODE_KEYS]);
    }
}
