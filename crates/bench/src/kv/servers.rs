//! The servers that are measured, and how each is asked the same thing.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::idle::Answer;
use crate::ganglion::Ganglion;
use crate::load::{self, Workload, find, push, push_body};
use crate::process::{Process, free_port};

pub(crate) fn key(nth: u64) -> String {
    format!("key-{nth:08}")
}

/// 100 bytes that need no escape.
pub(crate) fn value(nth: u64) -> String {
    format!("{nth:020}{}", "x".repeat(80))
}

/// An answer to a request of a workload, for the limit to give.
pub(crate) fn sample(server: &Ganglion, workload: &mut impl Workload) -> Result<Answer> {
    let mut request = Vec::new();
    workload.request(0, 0, &mut request);
    let (head, body) = load::ask(server.address, &request)?;
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
        let (client, peer) = (free_port()?, free_port()?);
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
