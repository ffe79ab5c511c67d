//! `bench relay`: what the relay's core costs a packet, beside the only other server that is pure too.
//!
//! Both are driven in this process, by the same packets, without a socket: `server` alone, not what it takes
//! to read and write (`docs/measured/relay.md`). Rounds in turn, medians.

mod core;
mod theirs;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use relay::framing::ChannelData;
use relay::stun::{
    Class, Hash, Key, Kind, Message, Method, PasswordAlgorithm, TransactionId, Writer,
};
use serde_json::Map;

use self::core::Ours;
use self::theirs::Theirs;
use crate::report::{Better, Figure, Report, Shown};

const REALM: &str = "bench";
const USER: &str = "ann";
const CHANNEL: u16 = 0x4000;
/// Packets of one session that follow one another, as they come in a batch.
const BURST: usize = 8;
/// Sessions of theirs, which looks at all of them for each packet.
const THEIRS_MAX: usize = 1_000;
/// How long one round of a case takes.
const ROUND: Duration = Duration::from_millis(300);

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    shown: Shown,
    /// Rounds of each server, in turn; medians are told.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Not used: the core is measured in this program.
    #[arg(long, hide = true)]
    ganglion: Option<std::path::PathBuf>,
}

/// A server without sockets.
pub(crate) trait Core {
    /// Makes an allocation for each client, with a channel to a peer of its own.
    fn new(sessions: usize) -> Self;
    /// Takes a datagram of a client; whether its data went on.
    fn up(&mut self, session: usize, bytes: &[u8]) -> bool;
    /// Takes a datagram of its peer.
    fn down(&mut self, session: usize, bytes: &[u8]) -> bool;
}

#[derive(Clone, Copy)]
enum Case {
    Up,
    Down,
    Allocations,
}

const CASES: [(&str, Case); 3] =
    [("core up", Case::Up), ("core down", Case::Down), ("core allocations", Case::Allocations)];

pub(crate) fn run(options: &Options) -> Result<()> {
    let report = options.shown.report();
    for (name, case) in options.shown.chosen(&CASES)? {
        match case {
            Case::Up => packets(options, report, name, true),
            Case::Down => packets(options, report, name, false),
            Case::Allocations => allocations(options, report, name),
        }
    }
    Ok(())
}

fn packets(options: &Options, report: Report, case: &str, is_up: bool) {
    for sessions in [1, 16, 256, 1_000, 10_000] {
        let mut first = Ours::new(sessions);
        let mut second = (sessions <= THEIRS_MAX).then(|| Theirs::new(sessions));
        for bytes in [160, 1_100] {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..options.rounds {
                ours.push(nanoseconds(&mut first, sessions, bytes, is_up));
                let other = second.as_mut();
                theirs.extend(other.map(|core| nanoseconds(core, sessions, bytes, is_up)));
            }
            let rival = ("turn-server-proto", theirs);
            report.figure(Figure {
                case,
                metric: &format!("{sessions} sessions, {bytes} bytes: ns a packet"),
                better: Better::Less,
                ours,
                rivals: Some(rival).into_iter().filter(|(_, it)| !it.is_empty()).collect(),
                limit: None,
                extra: Map::new(),
            });
        }
    }
}

fn allocations(options: &Options, report: Report, case: &str) {
    let rounds = 0..options.rounds;
    let (rates, bytes): (Vec<_>, Vec<_>) = rounds.map(|_| core::allocations(10_000)).unzip();
    for (metric, better, ours) in [
        ("a second, each with a refusal first", Better::More, rates),
        ("heap bytes of one that rests", Better::Less, bytes),
    ] {
        let (rivals, extra) = (Vec::new(), Map::new());
        report.figure(Figure { case, metric, better, ours, rivals, limit: None, extra });
    }
}

/// How long one packet takes, of bursts that go from session to session.
fn nanoseconds(core: &mut impl Core, sessions: usize, bytes: usize, is_up: bool) -> f64 {
    let data = vec![7; bytes];
    let header = ChannelData::header(CHANNEL, bytes).expect("it fits");
    let framed = [&header[..], &data].concat();
    let (mut packets, mut went) = (0_u64, 0_u64);
    let begun = Instant::now();
    let mut session = 0;
    while begun.elapsed() < ROUND {
        for _ in 0..64.min(sessions.max(8)) {
            for _ in 0..BURST {
                let went_on = match is_up {
                    true => core.up(session, &framed),
                    false => core.down(session, &data),
                };
                went += u64::from(went_on);
            }
            packets += BURST as u64;
            // Not the next one: neighbours in memory would be measured.
            session = (session + 7_919) % sessions;
        }
    }
    assert_eq!(went, packets, "every packet goes on");
    begun.elapsed().as_secs_f64() * 1e9 / packets as f64
}

/// Where a session's client is.
fn client(session: usize) -> SocketAddr {
    ([127, 1, (session / 250) as u8, (session % 250) as u8], 4_000).into()
}

/// And its peer.
fn peer(session: usize) -> SocketAddr {
    ([8, 8, (session / 250) as u8, (session % 250) as u8], 5_000).into()
}

/// A request as it comes first, without a proof.
fn asked(method: Method) -> Vec<u8> {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, Class::Request, method, TransactionId([1; 12]))
        .attribute(Kind::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    bytes
}

/// The same with one, by the nonce of a refusal.
fn proven(
    refusal: &[u8],
    key: &Key,
    method: Method,
    fill: impl FnOnce(&mut Writer<'_>),
) -> Vec<u8> {
    let message = Message::read(refusal).expect("a message");
    let nonce = message.attributes().nonce.expect("a nonce");
    let mut bytes = Vec::new();
    let mut writer =
        Writer::new(&mut bytes, Class::Request, method, TransactionId([method as u8; 12]));
    fill(&mut writer);
    writer
        .attribute(Kind::USERNAME, USER.as_bytes())
        .attribute(Kind::REALM, REALM.as_bytes())
        .attribute(Kind::NONCE, nonce)
        .integrity(key, Hash::Sha1);
    bytes
}

fn key() -> Key {
    let user = USER.as_bytes();
    Key::long_term(PasswordAlgorithm::Md5, user, REALM.as_bytes(), user)
}

fn udp(writer: &mut Writer<'_>) {
    writer.attribute(Kind::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
}

fn bound(writer: &mut Writer<'_>, session: usize) {
    writer.number(Kind::CHANNEL_NUMBER, u32::from(CHANNEL) << 16);
    writer.address(Kind::XOR_PEER_ADDRESS, peer(session));
}
