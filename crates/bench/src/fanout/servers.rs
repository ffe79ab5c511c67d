//! The servers that are measured, and how each is spoken to: what a socket says until it is in its
//! room, what a message looks like, and what has to be answered to stay.
//!
//! Each is started with its defaults. [`Language`] makes bytes; `crowd` moves them.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::bare;
use crate::ganglion::{Ganglion, WHO};
use crate::load::{Bounds, Client, Workload};
use crate::process::{Process, free_port};
use crate::rivals::Installed;

/// Bytes of a message's payload, a JSON object.
pub(super) const PAYLOAD_BYTES: usize = 120;
/// What a payload has, and nothing else that a server sends; a [`Record`] follows.
pub(super) const MARK: &[u8] = b"@@@";
/// Digits of a record's number and of its time in microseconds.
const NUMBER_DIGITS: usize = 8;
const TIME_DIGITS: usize = 12;
/// Bytes of a mark with its record.
pub(super) const RECORD_BYTES: usize = MARK.len() + NUMBER_DIGITS + TIME_DIGITS;
/// Connections that ask for tokens.
const ASKERS: usize = 32;
/// The key that client frames are masked with. A client takes another for each, which costs the
/// server the same.
const MASK: [u8; 4] = [0x9e, 0x37, 0x79, 0xb9];
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// Which server it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Language {
    Ours,
    Centrifuge,
    Nats,
    Bare,
}

/// A server that runs.
#[derive(Debug)]
pub(super) enum Server {
    Ours(Ganglion),
    Other(Language, Process, SocketAddr),
}

/// Who is where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seats {
    pub(super) members: usize,
    pub(super) in_room: usize,
    /// Whether one more, the last, sends to the first room and gets nothing.
    pub(super) has_publisher: bool,
    /// Whether sockets that come again say where they were, as v4 clients of ours do.
    pub(super) resumes: bool,
}

/// What a socket says to be in its room: each text when what the one before waits for has come.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) steps: Vec<Step>,
    /// With which token it says where it was, in the last step, when it comes again.
    pub(super) resumes_by: Option<String>,
}

/// What a v4 client begins with, and where it was before.
pub(super) fn hello(token: &str, was: Option<&(String, String)>) -> Vec<u8> {
    let was =
        was.map(|(session, cursor)| format!(",\"session\":\"{session}\",\"cursor\":\"{cursor}\""));
    let was = was.unwrap_or_default();
    let text = format!("{{\"t\":\"hello\",\"p\":{{\"token\":\"{token}\"{was}}}}}");
    let mut say = Vec::new();
    push_masked(bare::TEXT, text.as_bytes(), &mut say);
    say
}

#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) say: Vec<u8>,
    pub(super) until: &'static [u8],
}

/// What a server asks of a silent socket, and what it wants to hear.
#[derive(Clone, Debug)]
pub(super) struct SignOfLife {
    pub(super) asked: &'static [u8],
    pub(super) answer: Vec<u8>,
}

/// What a payload tells of itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Record {
    pub(super) number: u64,
    /// When it was sent, on the generator's clock.
    pub(super) sent_us: u64,
}

impl Language {
    pub(super) fn name(self) -> &'static str {
        match self {
            Language::Ours => "ours",
            Language::Centrifuge => "centrifuge",
            Language::Nats => "nats",
            Language::Bare => "bare",
        }
    }

    /// Appends a message to the first room as its publisher sends it.
    pub(super) fn push_message(self, record: Record, out: &mut Vec<u8>) {
        let payload = payload(record);
        match self {
            Language::Ours => {
                let text = format!("{{\"t\":\"u\",\"m\":{{\"o\":\"message\"}},\"p\":{payload}}}");
                push_masked(bare::TEXT, text.as_bytes(), out);
            }
            Language::Centrifuge => {
                // The connect command was number 1.
                let id = record.number + 2;
                let publish = format!("{{\"channel\":\"{}\",\"data\":{payload}}}", room(0));
                let text = format!("{{\"id\":{id},\"publish\":{publish}}}");
                push_masked(bare::TEXT, text.as_bytes(), out);
            }
            Language::Nats => {
                let text = format!("PUB {} {PAYLOAD_BYTES}\r\n{payload}\r\n", room(0));
                out.extend_from_slice(text.as_bytes());
            }
            Language::Bare => {
                // As ours delivers it.
                let from = format!("/{WHO}/{}/publisher", room(0));
                let meta = format!("{{\"f\":\"{from}\",\"o\":\"message\"}}");
                let text = format!("{{\"t\":\"u\",\"m\":{meta},\"p\":{payload}}}");
                let length = u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes();
                out.extend_from_slice(&[bare::TEXT, 126, length[0], length[1]]);
                out.extend_from_slice(text.as_bytes());
            }
        }
    }

    /// What the publisher says before messages of which so many may go into one write. Servers that
    /// decide that themselves are told nothing.
    pub(super) fn batch(self, frames: u8) -> Vec<u8> {
        match self {
            Language::Bare => vec![bare::BATCH, frames],
            _ => Vec::new(),
        }
    }

    pub(super) fn sign_of_life(self) -> Option<SignOfLife> {
        let mut answer = Vec::new();
        match self {
            Language::Ours => push_masked(PONG, b"", &mut answer),
            Language::Centrifuge => push_masked(bare::TEXT, b"{}", &mut answer),
            Language::Nats => answer.extend_from_slice(b"PONG\r\n"),
            Language::Bare => return None,
        }
        let asked: &[u8] = match self {
            Language::Ours | Language::Bare => &[PING, 0],
            Language::Centrifuge => &[bare::TEXT, 2, b'{', b'}'],
            Language::Nats => b"PING\r\n",
        };
        Some(SignOfLife { asked, answer })
    }
}

impl Server {
    pub(super) fn ours(program: &Path, folder: &Path) -> Result<Server> {
        // By default one socket is held to a thousand messages a second; the others hold nobody back.
        let settings = [("GANGLION_SIGNAL__MESSAGES_PER_SECOND", "0")];
        Ok(Server::Ours(Ganglion::start(program, folder, &settings)?))
    }

    pub(super) fn centrifuge(installed: &Installed, folder: &Path) -> Result<Server> {
        let mut command = Command::new(&installed.program);
        command.arg("-ready").arg(folder.join("ready"));
        Server::that_says_where(Language::Centrifuge, command, folder)
    }

    pub(super) fn bare(folder: &Path) -> Result<Server> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bare").arg(folder.join("ready"));
        Server::that_says_where(Language::Bare, command, folder)
    }

    /// One that writes its address to `ready` of its folder.
    fn that_says_where(language: Language, mut command: Command, folder: &Path) -> Result<Server> {
        std::fs::create_dir_all(folder)?;
        let ready = folder.join("ready");
        let mut process = Process::start(&mut command, &folder.join("server.log"))?;
        let address = process.wait_for(|| std::fs::read_to_string(&ready).ok())?;
        Ok(Server::Other(language, process, address.parse()?))
    }

    pub(super) fn nats(installed: &Installed, folder: &Path) -> Result<Server> {
        std::fs::create_dir_all(folder)?;
        let port = free_port()?;
        let mut command = Command::new(&installed.program);
        command.args(["--addr", "127.0.0.1", "--port", &port.to_string()]);
        let mut process = Process::start(&mut command, &folder.join("server.log"))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        process.wait_for(|| TcpStream::connect(address).ok())?;
        Ok(Server::Other(Language::Nats, process, address))
    }

    pub(super) fn language(&self) -> Language {
        match self {
            Server::Ours(_) => Language::Ours,
            Server::Other(language, ..) => *language,
        }
    }

    pub(super) fn process(&self) -> &Process {
        match self {
            Server::Ours(ganglion) => &ganglion.process,
            Server::Other(_, process, _) => process,
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Server::Ours(ganglion) => ganglion.address,
            Server::Other(_, _, address) => *address,
        }
    }

    /// A script for each seat; of ours with a token, and the rooms are there.
    pub(super) fn scripts(&self, seats: Seats) -> Result<Vec<Script>> {
        let tokens = match self {
            Server::Ours(ganglion) => tokens(ganglion, seats)?,
            Server::Other(..) => Vec::new(),
        };
        let count = seats.members + usize::from(seats.has_publisher);
        (0..count).map(|nth| self.script(seats, nth, tokens.get(nth))).collect()
    }

    fn script(&self, seats: Seats, nth: usize, token: Option<&String>) -> Result<Script> {
        let is_publisher = nth == seats.members;
        let room = room(seats.room_of(nth));
        let steps = match self.language() {
            Language::Ours if seats.resumes => {
                let token = token.context("a seat without a token")?;
                let upgrade = self.upgrade("/ws/v4");
                let steps = vec![
                    Step { say: upgrade, until: b"\r\n\r\n" },
                    Step { say: hello(token, None), until: b"\"data\":{}}}" },
                ];
                return Ok(Script { steps, resumes_by: Some(token.clone()) });
            }
            Language::Ours => {
                let target = format!("/ws/v2/{}", token.context("a seat without a token")?);
                // The list of who is there is the first frame, and nothing before it ends so.
                vec![Step { say: self.upgrade(&target), until: b"\"]}}" }]
            }
            Language::Centrifuge => {
                let connect = match is_publisher {
                    true => "{\"id\":1,\"connect\":{}}".to_owned(),
                    false => format!("{{\"id\":1,\"connect\":{{\"name\":\"{room}\"}}}}"),
                };
                let mut say = Vec::new();
                push_masked(bare::TEXT, connect.as_bytes(), &mut say);
                let upgrade = self.upgrade("/connection/websocket");
                vec![
                    Step { say: upgrade, until: b"\r\n\r\n" },
                    Step { say, until: b"\"connect\":{" },
                ]
            }
            Language::Nats => {
                let mut say = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n".to_owned();
                if !is_publisher {
                    say += &format!("SUB {room} 1\r\n");
                }
                say += "PING\r\n";
                vec![Step { say: say.into_bytes(), until: b"PONG\r\n" }]
            }
            Language::Bare => {
                let mut say = vec![if is_publisher { bare::PUBLISHER } else { bare::MEMBER }];
                if is_publisher {
                    say.extend_from_slice(&u32::try_from(seats.members)?.to_be_bytes());
                }
                vec![Step { say, until: &[bare::JOINED] }]
            }
        };
        Ok(Script { steps, resumes_by: None })
    }

    fn upgrade(&self, target: &str) -> Vec<u8> {
        // The key is the one of RFC 6455, section 1.3.
        format!(
            "GET {target} HTTP/1.1\r\nhost: {}\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.address()
        )
        .into_bytes()
    }
}

impl Seats {
    fn room_of(self, nth: usize) -> usize {
        if nth < self.members { nth / self.in_room } else { 0 }
    }

    fn name_of(self, nth: usize) -> String {
        if nth < self.members { format!("m{}", nth % self.in_room) } else { "publisher".to_owned() }
    }
}

fn room(nth: usize) -> String {
    format!("r{nth}")
}

/// Makes the rooms, and a token for each seat that outlives the run.
fn tokens(ganglion: &Ganglion, seats: Seats) -> Result<Vec<String>> {
    let rooms = seats.members.div_ceil(seats.in_room);
    let put = |targets: Vec<String>| -> Result<Vec<String>> {
        let bounds = Bounds::count(targets.len() as u64);
        let count = targets.len();
        let mut puts = Puts {
            ganglion,
            targets,
            next: 0,
            asked: vec![0; ASKERS],
            answers: RefCell::new(vec![String::new(); count]),
        };
        Client::connect(ganglion.address, ASKERS)?.run(&mut puts, bounds)?;
        Ok(puts.answers.into_inner())
    };
    put((0..rooms).map(|nth| format!("/_ns/{WHO}/{}", room(nth))).collect())?;
    let count = seats.members + usize::from(seats.has_publisher);
    let target = |nth| {
        let (room, name) = (room(seats.room_of(nth)), seats.name_of(nth));
        format!("/_token/{WHO}/{room}?k={name}&expire=3600")
    };
    let tokens = put((0..count).map(target).collect())?;
    ensure!(tokens.iter().all(|token| !token.is_empty()), "ours gave no token");
    Ok(tokens)
}

/// One PUT of each target, and what each answered when that is a text.
struct Puts<'a> {
    ganglion: &'a Ganglion,
    targets: Vec<String>,
    next: usize,
    /// Which target each connection asked for last.
    asked: Vec<usize>,
    answers: RefCell<Vec<String>>,
}

impl Workload for Puts<'_> {
    fn request(&mut self, connection: usize, _nth: u64, out: &mut Vec<u8>) {
        self.asked[connection] = self.next;
        self.ganglion.push(out, "PUT", &self.targets[self.next], "");
        self.next += 1;
    }

    fn is_right(&self, connection: usize, body: &[u8]) -> bool {
        let answer: Value = serde_json::from_slice(body).unwrap_or_default();
        if let Some(text) = answer["v"].as_str() {
            text.clone_into(&mut self.answers.borrow_mut()[self.asked[connection]]);
        }
        answer["s"] == "ok"
    }
}

/// A JSON object of [`PAYLOAD_BYTES`] with a record in it.
fn payload(record: Record) -> String {
    let mark = String::from_utf8_lossy(MARK);
    let mut text = format!(
        "{{\"msg\":\"{mark}{:0NUMBER_DIGITS$}{:0TIME_DIGITS$}",
        record.number, record.sent_us
    );
    while text.len() < PAYLOAD_BYTES - 2 {
        text.push('x');
    }
    text + "\"}"
}

impl Record {
    /// What stands behind a mark.
    pub(super) fn read(bytes: &[u8]) -> Option<Record> {
        let number = bytes.get(MARK.len()..MARK.len() + NUMBER_DIGITS)?;
        let time = bytes.get(MARK.len() + NUMBER_DIGITS..RECORD_BYTES)?;
        Some(Record { number: digits(number)?, sent_us: digits(time)? })
    }
}

fn digits(text: &[u8]) -> Option<u64> {
    text.iter()
        .try_fold(0, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0')))
}

/// Appends one frame as a client sends it.
pub(super) fn push_masked(first: u8, text: &[u8], out: &mut Vec<u8>) {
    out.push(first);
    match u8::try_from(text.len()) {
        Ok(length) if length < 126 => out.push(0x80 | length),
        _ => {
            let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
            out.push(0x80 | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    out.extend(text.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_tells_its_record_and_has_one_mark() {
        let record = Record { number: 4_999, sent_us: 123_456_789 };
        let payload = payload(record);
        assert_eq!(payload.len(), PAYLOAD_BYTES);
        assert!(serde_json::from_str::<Value>(&payload).is_ok());
        let marks: Vec<usize> = memchr::memmem::find_iter(payload.as_bytes(), MARK).collect();
        assert_eq!(marks.len(), 1);
        assert_eq!(Record::read(&payload.as_bytes()[marks[0]..]), Some(record));
        assert_eq!(Record::read(b"@@@1234"), None);
    }

    #[test]
    fn a_masked_frame_is_that_of_rfc_6455() {
        let mut out = Vec::new();
        push_masked(bare::TEXT, b"ping", &mut out);
        assert_eq!(out[..6], [0x81, 0x84, 0x9e, 0x37, 0x79, 0xb9]);
        let text: Vec<u8> = out[6..].iter().zip(MASK).map(|(byte, key)| byte ^ key).collect();
        assert_eq!(text, b"ping");
        out.clear();
        push_masked(bare::TEXT, &[0; 126], &mut out);
        assert_eq!(out[..4], [0x81, 0xfe, 0, 126]);
        assert_eq!(out.len(), 8 + 126);
    }
}
