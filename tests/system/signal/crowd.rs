//! Many at once: everyone hears everyone, comers and goers by the thousand, sockets that never speak.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::raw::{Opening, Raw, TEXT};
use tests::socket::Client;

use super::{Stage, wait_until};

/// A length that a soak makes longer.
pub(super) fn count(name: &str, short: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(short)
}

/// 200 members of one path, each hearing all: in the order of each sender, each once.
#[test]
fn two_hundred_hear_each_other() -> Result<()> {
    const MEMBERS: usize = 200;
    let each_says = count("GANGLION_SAYS", 10);
    let stage = Stage::new()?;
    let mut members: Vec<(String, Client)> = Vec::new();
    for number in 0..MEMBERS {
        let name = format!("m{number:03}");
        // Every generation that there is.
        let client = match number % 2 {
            0 => stage.join(&name)?,
            _ => stage.greet(&name)?.0,
        };
        members.push((name, client));
    }
    for said in 0..each_says {
        for (_, client) in &mut members {
            client.send_text(&format!(r#"{{"t":"u","m":{{"o":"n"}},"p":{said}}}"#))?;
        }
    }
    let listen = |(name, client): &mut (String, Client)| -> Result<()> {
        let mut heard: BTreeMap<String, usize> = BTreeMap::new();
        let mut left = (MEMBERS - 1) * each_says;
        while left > 0 {
            let frame = client.frame().with_context(|| format!("{name}: {left} left"))?;
            if frame["m"]["o"] != "n" {
                continue;
            }
            let from = frame["m"]["f"].as_str().context("a sender")?.to_owned();
            let said = frame["p"].as_u64().context("a number")?;
            let next = heard.entry(from).or_default();
            ensure!(said == *next as u64, "{name}: {frame} out of turn, not {next}");
            *next += 1;
            left -= 1;
        }
        client.hears_nothing().with_context(|| format!("{name} at the end"))
    };
    let listen = &listen;
    let heard = std::thread::scope(|scope| {
        let threads: Vec<_> =
            members.iter_mut().map(|member| scope.spawn(move || listen(member))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    });
    heard?;
    let rows = stage.ok("GET", "/_subs/my/path", None)?;
    assert_eq!(rows.as_array().map(Vec::len), Some(MEMBERS));
    assert_eq!(stage.neuron.metric("socket_slow_total")?, 0);
    Ok(())
}

/// Who is in the room, as what its watcher is told adds up to, until he is told that this is all.
fn present_at_the_end(watcher: &mut Client) -> Result<BTreeSet<String>> {
    let mut present = BTreeSet::new();
    loop {
        let frame = watcher.frame()?;
        let name = || frame["m"]["f"].as_str().map(str::to_owned).context("a name");
        let is_news = match frame["t"].as_str() {
            Some("joined") => present.insert(name()?),
            Some("left") => present.remove(&name()?),
            _ if frame["p"] == "that is all" => return Ok(present),
            _ => true,
        };
        ensure!(is_news, "came or went twice: {frame}");
    }
}

/// Comers and goers, as many a second as the machine makes; who is present at the end is, and nothing
/// is left of the others.
#[test]
fn thousands_come_and_go() -> Result<()> {
    const THREADS: usize = 8;
    let rounds = count("GANGLION_JOINS", 2_000) / THREADS;
    let stage = Stage::new()?;
    let (mut watcher, _) = stage.greet("watcher")?;
    let mut tokens = Vec::new();
    for thread in 0..THREADS {
        tokens.push(stage.token(&format!("/my/path?k=guest{thread}&expire=3600"))?);
    }
    let base = stage.base()?;
    let begun = Instant::now();
    let come_and_go = |token: &str| -> Result<()> {
        for round in 0..rounds {
            let url = format!("{base}/v2/{token}");
            let mut client = Client::connect(&url).with_context(|| format!("round {round}"))?;
            client.frame()?;
            // In order, cut off, and cut off while more is on its way.
            match round % 3 {
                0 => client.leave()?,
                1 => client.vanish(),
                _ => {
                    client.send_text(r#"{"t":"u","m":{"o":"x"},"p":1}"#)?;
                    client.vanish();
                }
            }
        }
        Ok(())
    };
    let come_and_go = &come_and_go;
    let joins = THREADS * rounds;
    let present = std::thread::scope(|scope| {
        let watching = scope.spawn(|| present_at_the_end(&mut watcher));
        let threads: Vec<_> =
            tokens.iter().map(|token| scope.spawn(move || come_and_go(token))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))?;
        let took = begun.elapsed();
        println!(
            "{joins} joins and leaves in {:.1} s: {:.0} a second, clients and server on two cores",
            took.as_secs_f64(),
            joins as f64 / took.as_secs_f64()
        );
        wait_until("only the watcher is left", || {
            Ok(stage.ok("GET", "/_subs/my/path", None)? == json!(["watcher"]))
        })?;
        stage.ok("POST", "/_subs/my/path", Some(&json!({ "v": "that is all" })))?;
        watching.join().expect("no panic")
    })?;
    assert_eq!(present, BTreeSet::new());
    for (figure, expected) in [("signal_sockets", 1), ("signal_names", 1), ("signal_rooms", 1)] {
        assert_eq!(stage.neuron.metric(figure)?, expected, "{figure}");
    }
    assert_eq!(stage.neuron.metric("signal_joins_total")?, joins as u64 + 1);
    wait_until("every socket is forgotten", || Ok(stage.neuron.metric("connections")? == 1))
}

/// The same in many rooms by clients that cost less than their neuron: they ask to come by the
/// hundred before they look at an answer, and go all at once. Some of the last stay.
#[test]
fn whole_rooms_come_and_go_at_once() -> Result<()> {
    const THREADS: usize = 2;
    const ROOMS: usize = 16;
    const GUESTS: usize = 8;
    let rounds = count("GANGLION_ROOM_JOINS", 4_000).div_ceil(ROOMS * GUESTS);
    let stage = Stage::new()?;
    let base = stage.base()?;
    let (mut watchers, mut urls) = (Vec::new(), Vec::new());
    for room in 0..ROOMS {
        stage.ok("PUT", &format!("/_ns/my/room{room}"), None)?;
        let token = stage.token(&format!("/my/room{room}?k=watcher&expire=600"))?;
        let mut watcher = Client::greet(&base, &json!({ "token": token }))?;
        watcher.frame()?;
        watchers.push(watcher);
        for guest in 0..GUESTS {
            let token = stage.token(&format!("/my/room{room}?k=guest{guest}&expire=600"))?;
            urls.push(format!("{base}/v2/{token}"));
        }
    }
    let second_half = Mutex::new(None);
    let come_and_go = |urls: &[String]| -> Result<Vec<Raw>> {
        for round in 1..=rounds {
            if round == rounds / 2 + 1 {
                second_half.lock().expect("no panic").get_or_insert_with(Instant::now);
            }
            let opening: Result<Vec<Opening>> =
                urls.iter().map(|url| Opening::begin(url)).collect();
            let mut sockets = Vec::new();
            for opening in opening? {
                let mut socket = opening.opened()?;
                let (opcode, frame) = socket.frame()?;
                let text = String::from_utf8_lossy(&frame);
                ensure!(opcode == TEXT && text.contains("\"peers\""), "{text}");
                sockets.push(socket);
            }
            if round == rounds {
                return Ok(sockets.into_iter().step_by(2).collect());
            }
        }
        Ok(Vec::new())
    };
    let come_and_go = &come_and_go;
    let begun = Instant::now();
    let (_staying, present) = std::thread::scope(|scope| {
        let watching: Vec<_> = watchers
            .iter_mut()
            .map(|watcher| scope.spawn(move || present_at_the_end(watcher)))
            .collect();
        let coming: Vec<_> = urls
            .chunks(urls.len() / THREADS)
            .map(|urls| scope.spawn(move || come_and_go(urls)))
            .collect();
        let mut staying = Vec::new();
        for thread in coming {
            staying.extend(thread.join().expect("no panic")?);
        }
        wait_until("only those who stay are left", || {
            Ok(stage.neuron.metric("signal_sockets")? == (ROOMS + staying.len()) as u64)
        })?;
        let rate = |rounds: usize, since: Instant| {
            (rounds * urls.len()) as f64 / since.elapsed().as_secs_f64()
        };
        // At first the account is in the company of the one that made it (ADR 7).
        let alone = second_half.lock().expect("no panic").context("two rounds at least")?;
        println!(
            "{} joins and all but {} as many leaves: {:.0} of each a second, {:.0} in the second half, \
             clients and server on two cores",
            rounds * urls.len(),
            staying.len(),
            rate(rounds, begun),
            rate(rounds - rounds / 2, alone)
        );
        for room in 0..ROOMS {
            let path = format!("/_subs/my/room{room}");
            stage.ok("POST", &path, Some(&json!({ "v": "that is all" })))?;
        }
        let present: Result<Vec<_>> =
            watching.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        anyhow::Ok((staying, present?))
    })?;
    let staying = ["guest0", "guest2", "guest4", "guest6", "watcher"];
    for (room, present) in present.iter().enumerate() {
        assert_eq!(stage.ok("GET", &format!("/_subs/my/room{room}"), None)?, json!(staying));
        let told: Vec<String> =
            staying[..4].iter().map(|name| format!("/my/room{room}/{name}")).collect();
        assert!(present.iter().eq(&told), "room {room}: {present:?}");
    }
    assert_eq!(stage.neuron.metric("signal_joins_total")?, (rounds * urls.len() + ROOMS) as u64);
    Ok(())
}

/// As many files as a soak opens at once are all that a process may have.
pub(super) static SILENCE: Mutex<()> = Mutex::new(());

/// They hold their place until they are asked to say who they are, and no longer.
#[test]
fn sockets_that_never_speak_are_closed() -> Result<()> {
    let _alone = SILENCE.lock().unwrap_or_else(PoisonError::into_inner);
    let silent = count("GANGLION_SILENT", 500);
    let stage = Stage::with(&[("GANGLION_LIMITS__CONNECTIONS_PER_ADDRESS", "20000")])?;
    let (mut ann, _) = stage.greet("ann")?;
    let url = format!("{}/v4", stage.base()?);
    let begun = Instant::now();
    let sockets: Result<Vec<Client>> = (0..silent).map(|_| Client::connect(&url)).collect();
    let mut sockets = sockets?;
    // The others go on meanwhile.
    assert_eq!(ann.ask("presence", &json!(1), &Value::Null)?["p"]["s"], "ok");
    for socket in &mut sockets {
        assert_eq!(socket.close_code()?, 1008);
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    wait_until("all are gone", || Ok(stage.neuron.metric("connections")? == 1))
}
