//! SIGKILL while 64 writers write.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use tests::http::{self, Client};
use tests::neuron::{self, Neuron};
use tests::random::Random;

use super::feed::Feed;
use super::writers::{Account, KEPT_PATH, Writers};
use super::{number, seeded};

const KILLS: u64 = 5;
const WRITERS: u64 = 64;
const ACCOUNTS: u64 = 4;
/// Acknowledged writes after which a neuron may be killed, and by how many more it may be later.
const WRITES_MIN: u64 = 300;
const WRITES_MORE: u64 = 900;

#[test]
fn nothing_acknowledged_is_lost_when_a_neuron_is_killed() -> Result<()> {
    seeded("crash::kill", kill_again_and_again)
}

fn kill_again_and_again(seed: u64) -> Result<()> {
    // Views so small that nodes are loaded, dropped and read past all the time.
    let settings = [("GANGLION_VIEWS__BYTES", "256KiB"), ("GANGLION_VIEWS__NODE", "128KiB")];
    let mut neuron = Neuron::start_with(&settings, &[])?;
    let accounts: Vec<Account> = (0..ACCOUNTS)
        .map(|nth| Account::make(&neuron, &format!("account{nth}")))
        .collect::<Result<_>>()?;
    let mut known = vec![Feed::default(); accounts.len()];
    let mut random = Random::new(seed, u64::MAX);
    let kills = number("GANGLION_KILLS", KILLS);
    let (mut writes, mut lost_answers) = (0, 0);
    for round in 0..kills {
        let followers = Followers::start(&neuron, &accounts, &known)?;
        let writers = Writers::start(&neuron, &accounts, WRITERS, seed, round)?;
        writers.wait_for(WRITES_MIN + random.below(WRITES_MORE))?;
        neuron.kill()?;
        let told = writers.join()?;
        let followed = followers.join()?;
        check_file(&neuron).with_context(|| format!("kill {round}"))?;
        neuron = neuron.restart()?;
        let is_last = round + 1 == kills;
        for (at, account) in accounts.iter().enumerate() {
            let context = || format!("kill {round}, account{at}");
            let mut client = Client::connect(&neuron.address("http")?, &account.credentials)?;
            // What a follower heard before the kill still stands, and goes on where it stopped.
            let from = known[at].rows.len();
            known[at] = followed[at].clone();
            known[at].follow_all(&mut client).with_context(context)?;
            if is_last || round == 0 {
                let mut whole = Feed::default();
                whole.follow_all(&mut client).with_context(context)?;
                ensure!(whole == known[at], "{}: the feed from 1 is another", context());
            }
            known[at].check_series().with_context(context)?;
            known[at].check_told(from, &told[at]).with_context(context)?;
            let of_round = format!("round{round}");
            let mut paths = vec![of_round.as_str(), KEPT_PATH];
            let first = format!("round{}", random.below(round + 1));
            paths.push(&first);
            known[at].check_reads(&mut client, &paths).with_context(context)?;
        }
        writes += told.iter().map(|told| told.acknowledged.len()).sum::<usize>();
        lost_answers += told.iter().map(|told| told.unanswered.len()).sum::<usize>();
    }
    let rows: usize = known.iter().map(|feed| feed.rows.len()).sum();
    println!("{kills} kills, {writes} acknowledged, {lost_answers} unanswered, {rows} changes");
    Ok(())
}

/// Checks a copy of a killed neuron's store, so that the neuron finds its own as it was left.
fn check_file(neuron: &Neuron) -> Result<()> {
    let copy = tempfile::tempdir()?;
    for name in ["ganglion.redb", "ganglion.redb.log"] {
        std::fs::copy(neuron.data_dir().join(name), copy.path().join(name))?;
    }
    let output =
        Command::new(neuron::program()?).args(["fsck", "--data-dir"]).arg(copy.path()).output()?;
    if !output.status.success() {
        bail!("fsck: {output:?}");
    }
    Ok(())
}

/// Clients who follow each account's feed while it is written.
struct Followers {
    threads: Vec<thread::JoinHandle<Result<Feed>>>,
    stop: Arc<AtomicBool>,
}

impl Followers {
    fn start(neuron: &Neuron, accounts: &[Account], known: &[Feed]) -> Result<Followers> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (account, feed) in accounts.iter().zip(known) {
            let mut client = Client::connect(&neuron.address("http")?, &account.credentials)?;
            let (mut feed, stop) = (feed.clone(), stop.clone());
            threads.push(thread::spawn(move || {
                while !stop.load(SeqCst) {
                    match feed.follow(&mut client) {
                        Ok(true) => {}
                        Ok(false) => thread::yield_now(),
                        Err(error) if http::is_cut(&error) => return Ok(feed),
                        Err(error) => return Err(error),
                    }
                }
                Ok(feed)
            }));
        }
        Ok(Followers { threads, stop })
    }

    fn join(self) -> Result<Vec<Feed>> {
        self.stop.store(true, SeqCst);
        self.threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a follower panicked")))
            .collect()
    }
}
