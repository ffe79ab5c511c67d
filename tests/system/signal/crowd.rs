//! Many at once: everyone hears everyone, comers and goers by the thousand, sockets that never speak.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
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
            anyhow::ensure!(said == *next as u64, "{name}: {frame} out of turn, not {next}");
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
    // What the watcher is told has to add up to who is there at the end.
    let watch = || -> Result<BTreeMap<String, i64>> {
        let mut present: BTreeMap<String, i64> = BTreeMap::new();
        loop {
            let frame = watcher.frame()?;
            let change = match frame["t"].as_str() {
                Some("joined") => 1,
                Some("left") => -1,
                _ if frame["p"] == "that is all" => return Ok(present),
                _ => 0,
            };
            let name = frame["m"]["f"].as_str().context("a name")?.to_owned();
            let here = present.entry(name.clone()).or_default();
            *here += change;
            assert!((0..=1).contains(here), "{name} came or went twice: {frame}");
        }
    };
    let come_and_go = &come_and_go;
    let joins = THREADS * rounds;
    let present = std::thread::scope(|scope| {
        let watching = scope.spawn(watch);
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
    assert!(present.values().all(|here| *here == 0), "{present:?}");
    for (figure, expected) in [("signal_sockets", 1), ("signal_names", 1), ("signal_rooms", 1)] {
        assert_eq!(stage.neuron.metric(figure)?, expected, "{figure}");
    }
    assert_eq!(stage.neuron.metric("signal_joins_total")?, joins as u64 + 1);
    wait_until("every socket is forgotten", || Ok(stage.neuron.metric("connections")? == 1))
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
