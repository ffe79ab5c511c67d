//! A wall clock that jumps under a neuron: a day ahead, back, and a day behind.
//!
//! libfaketime (Debian's `faketime`) stands between the neuron and `clock_gettime`, and reads what it
//! is to say from a file. Monotonic time goes on as it is, as it does when a real clock is set.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::curl;
use tests::http::Client;
use tests::neuron::Neuron;
use tests::socket;
use tests::ver::Ver;
use tests::wait::until;

use super::feed::Feed;
use super::seeded;
use super::writers::{Account, Writers};

const WRITERS: u64 = 16;
const ACCOUNTS: u64 = 2;
/// Acknowledged writes between two jumps.
const WRITES: u64 = 200;
/// Where the clock goes; hours of margin tell a jump from a slow machine.
const JUMPS: [&str; 4] = ["+1d", "+0", "-1d", "+0"];
const NEARLY_A_DAY_MICROS: u64 = 20 * 3600 * 1_000_000;

#[test]
fn nothing_is_lost_or_reordered_when_the_clock_jumps() -> Result<()> {
    seeded("crash::clock", jump_under_writers)
}

fn jump_under_writers(seed: u64) -> Result<()> {
    let clock = Clock::new()?;
    let mut neuron = Neuron::start_with(&clock.settings(), &[])?;
    let accounts: Vec<Account> = (0..ACCOUNTS)
        .map(|nth| Account::make(&neuron, &format!("account{nth}")))
        .collect::<Result<_>>()?;
    let begun = now_micros()?;
    let writers = Writers::start(&neuron, &accounts, WRITERS, seed, 0)?;
    for jump in JUMPS {
        writers.wait_for(writers.count() + WRITES)?;
        clock.set(jump)?;
    }
    writers.wait_for(writers.count() + WRITES)?;
    let told = writers.stop()?;

    let mut feeds = Vec::new();
    for (account, told) in accounts.iter().zip(&told) {
        let mut client = Client::connect(&neuron.address("http")?, &account.credentials)?;
        let mut feed = Feed::default();
        feed.follow_all(&mut client)?;
        feed.check_series()?;
        feed.check_told(0, told)?;
        ensure!(told.unanswered.is_empty(), "nobody was killed: {:?}", told.unanswered);
        feed.check_reads(&mut client, &["kept", "round0"])?;
        feeds.push(feed);
    }
    // The same store again, by a clock that is behind its newest stamps.
    ensure!(neuron.stop()? == Some(0), "it did not stop in order");
    clock.set("-1d")?;
    neuron = neuron.restart()?;
    for (account, feed) in accounts.iter().zip(&mut feeds) {
        let mut client = Client::connect(&neuron.address("http")?, &account.credentials)?;
        let known = feed.rows.len();
        feed.follow_all(&mut client)?;
        ensure!(feed.rows.len() == known, "the feed grew over a restart");
        let more = Writers::start(&neuron, std::slice::from_ref(account), 4, seed, 1)?;
        more.wait_for(WRITES)?;
        let told = more.stop()?.remove(0);
        feed.follow_all(&mut client)?;
        feed.check_series()?;
        feed.check_told(known, &told)?;
        feed.check_reads(&mut client, &["kept", "round0", "round1"])?;
    }
    let log = neuron.log()?;
    ensure!(!log.contains("panicked"), "{log}");
    let (mut oldest, mut newest, mut rows) = (u64::MAX, 0, 0);
    for row in feeds.iter().flat_map(|feed| &feed.rows) {
        let Ver { micros, .. } = Ver::parse(&row.ver)?;
        (oldest, newest, rows) = (micros.min(oldest), micros.max(newest), rows + 1);
    }
    let (behind, ahead) = (begun.saturating_sub(oldest), newest.saturating_sub(begun));
    let is_moved = behind.min(ahead) > NEARLY_A_DAY_MICROS;
    ensure!(is_moved, "the clock did not jump: stamps are {behind} µs behind and {ahead} ahead");
    println!("{rows} changes by a clock that jumped {} times", JUMPS.len() + 1);
    Ok(())
}

#[test]
fn calls_are_counted_and_tokens_hold_by_the_clock_as_it_is() -> Result<()> {
    let clock = Clock::new()?;
    // The account is older than any moment that the clock shows later: no token is older than its
    // account.
    clock.set("-3d")?;
    let neuron = Neuron::start_with(&clock.settings(), &[])?;
    let account = Account::make(&neuron, "elena")?;
    clock.set("+0")?;
    let call = |method: &str, path: &str| {
        curl::json(method, &neuron.url(), path, &account.credentials, Some(&json!({})))
    };
    call("PUT", "/_ns/room")?;
    let token = |name: &str| -> Result<String> {
        let made = call("PUT", &format!("/_token/room?k={name}&expire=600"))?;
        Ok(made["v"].as_str().with_context(|| format!("no token: {made}"))?.to_owned())
    };
    let address = neuron.address("http")?;
    let connect = |token: &str| socket::Client::connect(&format!("ws://{address}/ws/v2/{token}"));
    let joins = |token: &str| -> Result<()> {
        let first = connect(token)?.frame()?;
        ensure!(first["m"]["o"] == "peers", "{first}");
        Ok(())
    };
    let (before, expired, revoked) = (token("ann")?, token("adam")?, token("bob")?);
    call("DELETE", &format!("/_token?id={revoked}"))?;
    let mut puts = 0;
    let mut put = || -> Result<()> {
        puts += 1;
        let body = json!({ "k": "key", "v": { "n": puts } });
        let answer =
            curl::json("PUT", &neuron.url(), "/_data/p", &account.credentials, Some(&body))?;
        ensure!(answer["v"]["n"] == puts, "{answer}");
        Ok(())
    };
    put()?;
    joins(&before)?;
    // Who sits stays, and while he sits his token lets him come again.
    let mut seated = connect(&before)?;
    seated.frame()?;

    clock.set("+1d")?;
    put()?;
    let after = token("carl")?;
    let mut carl = connect(&after)?;
    ensure!(carl.frame()?["m"]["o"] == "peers", "a token of the day ahead holds there");
    seated.say("message", None, &json!("still here"))?;
    let heard = carl.frame()?;
    ensure!(heard["p"] == "still here", "{heard}");
    ensure!(connect(&expired)?.close_code()? == 4401, "it is over");

    clock.set("+0")?;
    put()?;
    joins(&expired).context("by this clock it is not over")?;
    ensure!(connect(&after)?.close_code()? == 4401, "it does not hold yet");
    ensure!(connect(&revoked)?.close_code()? == 4401, "revoked is revoked, whatever the clock");
    joins(&token("emil")?)?;

    clock.set("-1d")?;
    put()?;
    ensure!(connect(&expired)?.close_code()? == 4401, "it does not hold yet");
    joins(&token("fred")?)?;

    clock.set("+0")?;
    put()?;
    // Every call is in a minute of some day, once.
    let counted = || call("GET", "/_stats/data/PUT?l=api:3");
    let figures = until(counted, |figures| figures["v"]["count"] == puts)?;
    ensure!(figures["v"]["sum"] == puts, "{figures}");
    for url in
        [format!("http://{address}/livez"), format!("http://{}/readyz", neuron.address("admin")?)]
    {
        let answer = curl::Request::new("GET", &url).send()?;
        ensure!(answer.status == 200, "{url}: {answer:?}");
    }
    let log = neuron.log()?;
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

fn now_micros() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?)
}

/// A clock that a neuron is started under, and that a test sets.
struct Clock {
    library: String,
    /// Where it reads by how much it is off.
    file: String,
    folder: tempfile::TempDir,
}

impl Clock {
    fn new() -> Result<Clock> {
        // It knows where its library lies on this machine.
        let arguments = ["-f", "+0", "printenv", "LD_PRELOAD"];
        let output = std::process::Command::new("faketime").args(arguments).output();
        let output = output.context("running faketime: install Debian's `faketime`")?;
        let library = String::from_utf8(output.stdout)?.trim().to_owned();
        ensure!(!library.is_empty(), "faketime preloads nothing");
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("offset").display().to_string();
        let clock = Clock { library, file, folder };
        clock.set("+0")?;
        Ok(clock)
    }

    /// By how much it is off: `+1d`, `-1d`, `+0`.
    fn set(&self, offset: &str) -> Result<()> {
        // As a whole: a neuron may read it at any moment.
        let partial = self.folder.path().join("partial");
        std::fs::write(&partial, offset)?;
        Ok(std::fs::rename(&partial, &self.file)?)
    }

    /// What a process has to have in its environment.
    fn settings(&self) -> [(&str, &str); 5] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME_TIMESTAMP_FILE", &self.file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("NO_FAKE_STAT", "1"),
        ]
    }
}
