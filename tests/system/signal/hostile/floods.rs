//! More than anybody has to say: by one member to a room, and by one account beside another.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::http::{Connection, request};
use tests::raw::{BINARY, FIN, PING, Raw, TEXT, frame};
use tests::socket::Client;

use super::super::{Stage, wait_until};
use super::{MALLORY, Room, Way};

/// Members of a room that is flooded.
const READERS: usize = 50;
/// How long each flood lasts.
const FLOOD: Duration = Duration::from_secs(1);
/// What the p99 of another account's calls may be beside a flood: the generator floods from the same
/// cores, and the neuron may be a debug build.
const P99_MAX: Duration = Duration::from_secs(1);

/// What is sent over and over.
struct Flood {
    what: &'static str,
    way: Way,
    /// Grants of the token; empty for none, which is before a hello.
    grants: &'static str,
    /// Sent again and again.
    again: Vec<u8>,
}

fn floods() -> Vec<Flood> {
    const CHAT: &str = "subscribe,publish,send";
    const ALL: &str = "subscribe,publish,send,watch,read,write";
    let text = |text: &str| frame(FIN | TEXT, text.as_bytes());
    let flood = |what, way, grants, again: Vec<u8>| {
        let times = (32 << 10) / again.len() + 1;
        Flood { what, way, grants, again: again.repeat(times) }
    };
    let put = r#"{"t":"put","m":{"id":1},"p":{"k":"a","v":{"n":1}}}"#;
    let watch = r#"{"t":"watch","m":{"id":1},"p":{}}"#;
    let list = r#"{"t":"list","m":{"id":1},"p":{}}"#;
    let presence = r#"{"t":"presence","p":1}"#;
    let other = r#"{"t":"presence","p":2}"#;
    let all = [
        flood("bare pings", Way::V2, CHAT, text("ping")),
        flood("heartbeats", Way::V1, CHAT, text("{}")),
        flood("pings", Way::V4, CHAT, text(r#"{"t":"ping","ts":1}"#)),
        flood("protocol pings", Way::V2, CHAT, frame(FIN | PING, b"")),
        flood("empty binary frames", Way::V2, CHAT, frame(FIN | BINARY, b"")),
        flood("bytes", Way::V4, CHAT, frame(FIN | BINARY, &[0; 30_000])),
        flood("nonsense", Way::V4, CHAT, text("{\"t\":")),
        flood("presence", Way::V4, CHAT, [text(presence), text(other)].concat()),
        flood("messages", Way::V1, CHAT, text(r#"{"eventName":"x","data":1}"#)),
        flood("messages to nobody", Way::V2, CHAT, text(r#"{"t":"u","m":{"t":"x"},"p":1}"#)),
        flood("writes", Way::V4, ALL, text(put)),
        flood("watches", Way::V4, ALL, text(watch)),
        flood("lists", Way::V4, ALL, text(list)),
        flood("bare pings before a hello", Way::V4, "", text("ping")),
        flood("bytes before a hello", Way::V4, "", frame(FIN | BINARY, b"")),
    ];
    all.into()
}

#[test]
fn one_accounts_flood_is_not_another_accounts_delay() -> Result<()> {
    let mut room = Room::new(&[])?;
    let quiet = format!("oscar:{}", room.stage.neuron.account("oscar")?);
    let calling = request("GET", "/_ns", &quiet, "");
    let address = room.stage.neuron.address("http")?;
    for flood in floods() {
        let mut raw = match flood.grants {
            "" => Raw::connect(&room.url(Way::V4, ""))?,
            grants => {
                let asked = format!("/my/path?k={MALLORY}&expire=600&grants={grants}");
                room.enter_raw(flood.way, &room.stage.token(&asked)?)?
            }
        };
        let is_over = AtomicBool::new(false);
        let p99 = std::thread::scope(|scope| -> Result<Duration> {
            let (mut reading, ending) = (raw.reader()?, raw.reader()?);
            // He takes what comes, so that he is not cut for that.
            scope.spawn(move || reading.hung_up());
            let sending = scope.spawn(|| {
                let mut sent = 0;
                while !is_over.load(Ordering::Relaxed) && raw.send(&flood.again).is_ok() {
                    sent += flood.again.len();
                }
                sent
            });
            let measured = measure(&address, &calling);
            is_over.store(true, Ordering::Relaxed);
            // He may be waiting to be read from, for longer than the honest may leave off reading.
            ending.end();
            let sent = sending.join().expect("no panic");
            let p99 = measured?;
            let slow = room.metric("socket_slow_total")?;
            println!("{}: p99 {p99:?} beside {} KiB, {slow} cut", flood.what, sent >> 10);
            Ok(p99)
        })?;
        assert!(p99 < P99_MAX, "{}: p99 {p99:?}", flood.what);
        // All of the honest are there.
        room.heard()?;
    }
    room.cut = room.metric("socket_slow_total")?;
    assert!(room.cut <= 2, "who asks for more than he reads");
    room.is_as_before()
}

/// The p99 of calls one after another for as long as a flood lasts.
fn measure(address: &str, calling: &str) -> Result<Duration> {
    let mut connection = Connection::open(address)?;
    let mut latencies = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < FLOOD {
        let asked = Instant::now();
        let answer = connection.ask(calling)?;
        ensure!(answer.status == 200, "{answer:?}");
        latencies.push(asked.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
    latencies.sort_unstable();
    latencies.get(latencies.len() * 99 / 100).copied().context("calls")
}

/// Whoever reads is not cut for what another says, short or long.
#[test]
fn a_member_who_floods_his_room_is_paced_and_nobody_who_reads_is_cut() -> Result<()> {
    for bytes in [10, 2_000, 60_000] {
        flooded(bytes).with_context(|| format!("messages of {bytes} bytes"))?;
    }
    Ok(())
}

fn flooded(bytes: usize) -> Result<()> {
    // Short ones are paced by their number, long ones by what they do to the queues of others.
    let pace = if bytes == 10 { "200" } else { "1000" };
    let mut room = Room::new(&[("GANGLION_SIGNAL__MESSAGES_PER_SECOND", pace)])?;
    let mut readers = Vec::new();
    for number in 0..READERS {
        let token = room.token(&format!("{MALLORY}-{number}"))?;
        let ways = [Way::V2, Way::V4, Way::Tcp, Way::V1];
        readers.push(room.enter(ways[number % ways.len()], &token)?);
    }
    room.heard()?;
    let mut flooder = room.enter_raw(Way::V2, &room.token("mallory-flood")?)?;
    let payload = "x".repeat(bytes);
    let again = format!(r#"{{"t":"u","m":{{"o":"flood"}},"p":"{payload}"}}"#);
    let again = frame(FIN | TEXT, again.as_bytes());
    let times = (32 << 10) / again.len() + 1;
    let (again, mut said) = (again.repeat(times), 0_u64);
    // A little more than he may say at once: the rest at his pace.
    const SAID_MAX: u64 = 3_000;
    let begun = Instant::now();
    let last = |frame: &Value| frame["p"] == "over" || frame["message"]["data"] == "over";
    let heard = std::thread::scope(|scope| -> Result<Vec<u64>> {
        // The honest read too.
        let members = room.members.iter_mut().map(|(_, member)| member);
        let threads: Vec<_> = readers
            .iter_mut()
            .chain(members)
            .map(|member| {
                scope.spawn(move || -> Result<u64> {
                    let mut heard = 0;
                    loop {
                        let frame = member.frame()?;
                        if last(&frame) {
                            return Ok(heard);
                        }
                        let is_said = frame["m"]["o"] == "flood" || frame["type"] == "flood";
                        heard += u64::from(is_said);
                    }
                })
            })
            .collect();
        while begun.elapsed() < FLOOD && said < SAID_MAX {
            flooder.send(&again)?;
            said += times as u64;
        }
        flooder.send(&frame(FIN | TEXT, br#"{"t":"u","m":{"o":"flood"},"p":"over"}"#))?;
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })?;
    println!(
        "{said} messages of {bytes} bytes to {} in {:.1} s",
        heard.len(),
        begun.elapsed().as_secs_f64()
    );
    assert!(heard.iter().all(|heard| *heard == said), "{said} said, heard {heard:?}");
    if bytes == 10 {
        assert!(room.metric("socket_paced_total")? > 0, "he is not read from for a while");
    }
    drop((flooder, readers));
    room.is_as_before()
}

/// Names that come and go, and what stands beside them, by one who does it as fast as he can.
#[test]
fn a_flood_of_presence_leaves_what_is_true() -> Result<()> {
    let mut room = Room::new(&[])?;
    let (mut mallory, _) = room.stage.greet(MALLORY)?;
    let (mut watcher, _) = room.stage.greet("mallory-2")?;
    let longest = "x".repeat(1_022);
    let seen = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| -> Result<()> {
            for number in 0..1_500 {
                let p = if number % 2 == 0 { json!(longest) } else { json!(number) };
                mallory.send_text(&json!({ "t": "presence", "p": p }).to_string())?;
                if number % 100 == 0 {
                    // One byte too many is nobody's.
                    let p = json!(format!("{longest}x"));
                    mallory.send_text(&json!({ "t": "presence", "p": p }).to_string())?;
                }
            }
            mallory.ask("presence", &json!(1), &json!("last"))?;
            Ok(())
        });
        let mut seen = 0;
        loop {
            let frame = watcher.frame()?;
            seen += u64::from(frame["t"] == "presence");
            if frame["p"] == "last" {
                break;
            }
        }
        flooding.join().expect("no panic")?;
        anyhow::Ok(seen)
    })?;
    assert_eq!(seen, 1_501);
    assert_eq!(room.metric("signal_refused_presence_total")?, 15);
    let row = room.stage.ok("GET", "/_subs/my/path?k=mallory", None)?;
    assert_eq!(row["meta"], "last");
    drop((mallory, watcher));
    room.is_as_before()
}

/// What nobody has to say often is paced as messages are, though it is none.
#[test]
fn who_sends_what_is_no_message_is_paced_for_it() -> Result<()> {
    // Ten seconds' worth at once.
    let mut room = Room::new(&[("GANGLION_SIGNAL__MESSAGES_PER_SECOND", "10")])?;
    let token = room.token(MALLORY)?;
    let mut paced = 0;
    for (what, bytes) in [
        ("binary", frame(FIN | BINARY, b"x")),
        ("pings", frame(FIN | PING, b"")),
        ("pongs", frame(FIN | 0xA, b"")),
        ("bare pings", frame(FIN | TEXT, b"ping").repeat(32)),
    ] {
        let mut raw = room.enter_raw(Way::V2, &token)?;
        raw.send(&bytes.repeat(99))?;
        raw.send_text(r#"{"t":"ping","ts":1}"#)?;
        while raw.frame()?.0 != TEXT {}
        assert_eq!(room.metric("socket_paced_total")?, paced, "{what}: at the limit");
        raw.send(&bytes.repeat(100))?;
        let about = || Ok(room.metric("socket_paced_total")? > paced);
        wait_until(what, about)?;
        raw.end();
        paced = room.metric("socket_paced_total")?;
    }
    drop(room.heard());
    for figure in ["connections", "signal_sockets"] {
        wait_until(figure, || Ok(room.metric(figure)? == 4))?;
    }
    Ok(())
}

/// Whoever joins is told who is there, however many those are: who does not read it is not waited for by
/// others, and the neuron does not keep it for as many as come.
#[test]
fn lists_that_nobody_reads_are_bounded() -> Result<()> {
    let stage = Stage::with(&[
        ("GANGLION_LIMITS__ANSWERS", "16MiB"),
        ("GANGLION_SIGNAL__PRESENCE", "20KiB"),
    ])?;
    let (base, data) = (stage.base()?, "x".repeat(20_000));
    let hello = |name: &str| {
        let token = stage.token(&format!("/my/path?k={name}&expire=600"))?;
        anyhow::Ok(json!({ "token": token, "data": data }))
    };
    let mut members = Vec::new();
    for number in 0..40 {
        let mut member = Client::greet(&base, &hello(&format!("n{number}"))?)?;
        assert_eq!(member.frame()?["t"], "welcome");
        members.push(member);
    }
    let mut silent = Vec::new();
    for number in 0..12 {
        let mut raw = Raw::connect_narrow(&format!("{base}/v4"))?;
        let hello = hello(&format!("silent{number}"))?;
        raw.send_text(&json!({ "t": "hello", "p": hello }).to_string())?;
        silent.push(raw);
    }
    // A quarter of 16 MiB is an account's; each list has 0.8 MB.
    wait_until("those are refused for whom there is no room", || {
        Ok(stage.neuron.metric("socket_refused_total")? >= 6)
    })?;
    assert_eq!(silent.pop().context("the last")?.close_code()?, 1013);
    assert!(stage.neuron.metric("signal_sockets")? <= 46);
    drop(silent);
    wait_until("there is room again", || {
        let mut late = Client::greet(&base, &hello("late")?)?;
        Ok(late.frame().is_ok_and(|frame| frame["t"] == "welcome"))
    })
}

/// Data of one who asks for more watches than he may have, and goes while they are answered.
#[test]
fn watches_of_one_who_vanishes_are_gone() -> Result<()> {
    let mut room = Room::new(&[])?;
    let grants = "subscribe,publish,send,watch,read,write";
    let token = room.stage.token(&format!("/my/path?k={MALLORY}&expire=600&grants={grants}"))?;
    for round in 0..6 {
        let mut client = Client::greet(&room.base, &json!({ "token": token }))?;
        client.frame()?;
        let watches = 200;
        for id in 0..watches {
            let watch = json!({ "t": "watch", "m": { "id": id }, "p": { "k": "a" } });
            client.send_text(&watch.to_string())?;
        }
        if round % 2 == 0 {
            let mut refused = 0;
            for id in 0..watches {
                refused += usize::from(client.reply(&json!(id))?["p"]["v"] == "overloaded");
            }
            assert_eq!(refused, 200 - 128, "signal.watches_per_socket");
            // Those of the round before are forgotten when its socket is found to be gone.
            wait_until("those of one socket", || Ok(room.metric("watches")? == 128))?;
        }
        client.vanish();
    }
    room.is_as_before()
}
