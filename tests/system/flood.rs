//! What one caller's flood does to another's waiting time.
//!
//! Idle and flooded phases take turns, so that what else the machine does falls on both. Generator
//! and neuron share its cores. `GANGLION_FLOOD_ROUNDS` sets how many phases of each kind there are.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::http::{Connection, request};
use tests::http2;
use tests::neuron::Neuron;

use super::data::{Account, v};

const CONNECTIONS: usize = 16;
/// Streams of each at a time.
const STREAMS: usize = 8;
const PHASE: Duration = Duration::from_millis(500);
/// Time for a flood to begin or to end.
const BETWEEN: Duration = Duration::from_millis(50);
/// Pause between two requests of the account that does not flood.
const PAUSE: Duration = Duration::from_millis(2);
/// What that account's p99 may be, on a machine that does other things too.
const P99_MAX: Duration = Duration::from_millis(100);
/// Where strangers call from, so that no other test is counted with them.
const STRANGER: &str = "127.0.0.77";

#[test]
fn of_reads() -> Result<()> {
    flood("reads", |loud| Ok(Asking::Http1(request("GET", "/_data/p?k=a", &loud.credentials, ""))))
}

#[test]
fn of_reads_over_http2() -> Result<()> {
    flood("reads over HTTP/2", |loud| {
        Ok(Asking::Http2 { path: "/_data/p?k=a", credentials: loud.credentials.clone() })
    })
}

#[test]
fn of_writes() -> Result<()> {
    flood("writes", |loud| {
        let body = json!({ "k": "b", "v": { "n": 1 } }).to_string();
        Ok(Asking::Http1(request("PUT", "/_data/p", &loud.credentials, &body)))
    })
}

#[test]
fn of_guesses_by_a_stranger() -> Result<()> {
    flood("guesses", |loud| {
        let guess = format!("{}:guess", loud.name);
        Ok(Asking::Http1(request("GET", "/_data/p?k=a", &guess, "")))
    })
}

#[test]
fn of_pages() -> Result<()> {
    flood("pages", |_| Ok(Asking::Http1("GET /livez HTTP/1.1\r\nhost: a\r\n\r\n".to_owned())))
}

fn rounds() -> Result<u32> {
    match std::env::var("GANGLION_FLOOD_ROUNDS") {
        Ok(rounds) => rounds.parse().context("GANGLION_FLOOD_ROUNDS"),
        Err(_) => Ok(4),
    }
}

/// Floods with one request on all connections, and measures what another account waits for its own.
fn flood(what: &str, asks: impl FnOnce(&Account) -> Result<Asking>) -> Result<()> {
    let neuron = Neuron::start()?;
    let (loud, quiet) = (Account::new(&neuron)?, Account::new(&neuron)?);
    for account in [&loud, &quiet] {
        v(account.put("/_data/p", json!({ "k": "a", "v": { "n": 1 } })))?;
    }
    let flooding = asks(&loud)?;
    let calling = request("GET", "/_data/p?k=a", &quiet.credentials, "");
    let address = neuron.address("http")?;
    let rounds = rounds()?;
    let (switch, count) = (Switch::default(), AtomicU64::new(0));
    let (idle, flooded) = std::thread::scope(|scope| {
        let flooders: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    let mut ask = flooding.connect(&address)?;
                    while switch.wait_while_off() {
                        count.fetch_add(ask()?, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let measured = (|| -> Result<_> {
            let mut connection = Connection::open(&address)?;
            let (mut idle, mut flooded) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                for (phase, latencies) in [(Phase::Off, &mut idle), (Phase::On, &mut flooded)] {
                    switch.set(phase);
                    std::thread::sleep(BETWEEN);
                    let begun = Instant::now();
                    while begun.elapsed() < PHASE {
                        let asked = Instant::now();
                        let answer = connection.ask(&calling)?.body;
                        latencies.push(asked.elapsed());
                        ensure!(answer.starts_with("{\"v\":{\"n\":1"), "{answer}");
                        std::thread::sleep(PAUSE);
                    }
                }
            }
            Ok((idle, flooded))
        })();
        switch.set(Phase::Over);
        for flooder in flooders {
            flooder.join().expect("a flooding thread panicked")?;
        }
        measured
    })?;
    let (idle, flooded) = (Percentiles::of(idle), Percentiles::of(flooded));
    let a_second = count.load(Ordering::Relaxed) as f64 / (PHASE * rounds).as_secs_f64();
    println!(
        "flood of {what}, {a_second:.0} a second on {CONNECTIONS} connections; another account waits \
         {:?} idle and {:?} beside it (p50), {:?} and {:?} (p99): {:.1} times",
        idle.p50,
        flooded.p50,
        idle.p99,
        flooded.p99,
        flooded.p99.as_secs_f64() / idle.p99.as_secs_f64(),
    );
    ensure!(a_second > 100.0, "that was no flood");
    ensure!(flooded.p99 < P99_MAX, "p99 {:?}", flooded.p99);
    Ok(())
}

/// What a flood asks for.
enum Asking {
    /// One request after the other.
    Http1(String),
    /// [`STREAMS`] at a time.
    Http2 { path: &'static str, credentials: String },
}

impl Asking {
    /// Opens a connection; what is answered asks once and says how many answers came.
    fn connect(&self, address: &str) -> Result<Box<dyn FnMut() -> Result<u64> + '_>> {
        match self {
            Asking::Http1(request) => {
                let mut connection = Connection::open_from(address, STRANGER)?;
                Ok(Box::new(move || connection.ask(request).map(|_| 1)))
            }
            Asking::Http2 { path, credentials } => {
                let mut connection = http2::Connection::open_from(address, STRANGER)?;
                let mut streams = (1..).step_by(2);
                Ok(Box::new(move || {
                    let asked = streams.by_ref().take(STREAMS);
                    let heads = asked
                        .map(|stream| http2::get(stream, http2::END_STREAM, path, credentials))
                        .collect::<Result<Vec<_>>>()?;
                    connection.send(&heads.concat())?;
                    for _ in 0..STREAMS {
                        connection.until(|frame| {
                            frame.kind == http2::DATA && frame.flags & http2::END_STREAM != 0
                        })?;
                    }
                    Ok(STREAMS as u64)
                }))
            }
        }
    }
}

/// What flooding threads do; those that do not flood sleep, and cost the idle phases nothing.
#[derive(Default)]
struct Switch {
    phase: AtomicU8,
    sleeping: Mutex<()>,
    changed: Condvar,
}

#[derive(Clone, Copy)]
#[repr(u8)]
enum Phase {
    Off,
    On,
    Over,
}

impl Switch {
    fn set(&self, phase: Phase) {
        let _sleeping = self.sleeping.lock().unwrap_or_else(PoisonError::into_inner);
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.changed.notify_all();
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }

    /// `false` when it is over.
    fn wait_while_off(&self) -> bool {
        if self.is(Phase::Off) {
            let sleeping = self.sleeping.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = self.changed.wait_while(sleeping, |()| self.is(Phase::Off));
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
        !self.is(Phase::Over)
    }
}

struct Percentiles {
    p50: Duration,
    p99: Duration,
}

impl Percentiles {
    fn of(mut all: Vec<Duration>) -> Percentiles {
        all.sort_unstable();
        let at = |percent: usize| all[(all.len() * percent / 100).min(all.len() - 1)];
        Percentiles { p50: at(50), p99: at(99) }
    }
}
