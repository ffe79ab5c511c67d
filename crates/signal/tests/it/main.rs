//! Rooms against a reference model, and an example of each rule.

mod model;
mod resume;
mod rules;
mod sessions;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Instant;

use kv4::Bucket;
use signal::{Address, Coming, Join, Output, Sealer, Signal, SocketId, Token, Topic};
use wire::frames::{Generation, Name};
use wire::names::{Ident, Path};
use wire::token::Grants;
use wire::ws::{Decoder, Message, text_frame};

/// What one call made a socket see, in order, and what it put into the statistics.
#[derive(Debug, Default, Eq, PartialEq)]
struct Seen {
    sockets: BTreeMap<SocketId, Vec<String>>,
    /// Measure, path, key and value.
    stats: Vec<(&'static str, String, String, u64)>,
}

impl Seen {
    fn push(&mut self, socket: SocketId, text: String) {
        self.sockets.entry(socket).or_default().push(text);
    }

    /// Notes a packet of this text.
    fn packet(&mut self, path: &str, key: &str, text: &str) {
        let value = text_frame(text).len() as u64;
        self.stats.push(("router:pkt", path.to_owned(), key.to_owned(), value));
    }

    /// What one socket saw.
    fn of(&self, socket: u64) -> Vec<&str> {
        let texts = self.sockets.get(&SocketId(socket));
        texts.into_iter().flatten().map(String::as_str).collect()
    }
}

/// Drains the outputs. A close reads as its code and reason.
/// What is told to whoever poses as the server.
const ONLY_THE_SERVER: &str = r#"{"t":"e","m":{},"p":{"v":"not_allowed","s":"error","detail":"only the server says who is present"}}"#;

fn drain(signal: &mut Signal) -> Seen {
    let mut seen = Seen::default();
    while let Some(output) = signal.poll_output() {
        match output {
            Output::Begin { socket, frames } => {
                for frame in frames {
                    seen.push(socket, text_of(&frame));
                }
            }
            Output::Close { socket, code, reason } => {
                seen.push(socket, format!("close {} {reason}", code.0));
            }
            Output::Fanout(fanout) => {
                for socket in fanout.receivers() {
                    seen.push(socket, text_of(&fanout.frame));
                }
            }
            Output::Send { socket, frame } => seen.push(socket, text_of(&frame)),
            Output::Stat(stat) => {
                let (measure, path) = (stat.measure.as_str(), stat.address.path.to_string());
                let key = stat.key.map_or(String::new(), |key| key.to_string());
                seen.stats.push((measure, path, key, stat.value));
            }
        }
    }
    seen
}

fn text_of(frame: &[u8]) -> String {
    let mut decoder = Decoder::client(1 << 20);
    assert_eq!(decoder.push(frame), frame.len());
    match decoder.next_message() {
        Ok(Some(Message::Text(text))) => text.to_owned(),
        other => panic!("{other:?}"),
    }
}

/// Seals that nobody has a key of.
fn sealer() -> Sealer {
    Sealer::new(|address, name, session| {
        let text = format!("{}/{name}/{session:?}", address.path);
        text.bytes().fold(7, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
    })
}

/// When all of a test takes place whose time does not matter.
fn now() -> Instant {
    static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);
    *NOW
}

fn bucket() -> Bucket {
    Bucket::account(&Ident::parse("elena").expect("an ident"), None).expect("short")
}

fn address(path: &str) -> Address {
    Address { bucket: bucket(), path: Path::parse(path).expect("a path"), topic: Topic::default() }
}

/// A chatter whose token and address tell of its socket.
fn join(path: &str, name: &str, socket: u64) -> Join {
    Join {
        address: address(path),
        name: Name::encode(name).expect("a name"),
        ident: Ident::parse("elena").expect("an ident"),
        service: "xs_signal",
        generation: Generation::V2,
        grants: Grants::CHATTER,
        token: Some(Token { id: socket, expires_unix_s: 1_700_000_060 }),
        client_ip: ip(socket),
        since_unix_s: 1_700_000_000,
        coming: Coming::default(),
    }
}

/// One of four addresses.
fn ip(socket: u64) -> IpAddr {
    [10, 0, 0, (socket % 4) as u8].into()
}
