//! Copies of a store: made while it is written, restored, opened; and a store of an older format.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use tests::http::Client;
use tests::neuron::{self, Neuron};

use super::feed::Feed;
use super::seeded;
use super::writers::{Account, Writers};

const WRITERS: u64 = 16;
const ACCOUNTS: u64 = 2;
/// Acknowledged writes before the copy is begun, and after it is done.
const WRITES: u64 = 200;
const STORE_FILE: &str = "ganglion.redb";

#[test]
fn a_copy_made_while_writers_run_is_a_whole_store() -> Result<()> {
    seeded("crash::backup", copy_and_restore)
}

fn copy_and_restore(seed: u64) -> Result<()> {
    let mut neuron = Neuron::start()?;
    let accounts: Vec<Account> = (0..ACCOUNTS)
        .map(|nth| Account::make(&neuron, &format!("account{nth}")))
        .collect::<Result<_>>()?;
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("copy.redb");
    let writers = Writers::start(&neuron, &accounts, WRITERS, seed, 0)?;
    writers.wait_for(WRITES)?;
    let before = writers.acknowledged();
    let made = ganglion("backup", &neuron.data_dir(), Some(&copy))?;
    ensure!(made.status.success(), "{made:?}");
    writers.wait_for(writers.count() + WRITES)?;
    let told = writers.stop()?;

    let again = ganglion("backup", &neuron.data_dir(), Some(&copy))?;
    ensure!(!again.status.success(), "a copy was written over: {again:?}");

    let mut original = Vec::new();
    for (account, told) in accounts.iter().zip(&told) {
        let mut client = Client::connect(&neuron.address("http")?, &account.credentials)?;
        let mut feed = Feed::default();
        feed.follow_all(&mut client)?;
        feed.check_told(0, told)?;
        ensure!(told.unanswered.is_empty(), "nobody was killed: {:?}", told.unanswered);
        original.push(feed);
    }

    neuron.stop()?;
    let restored = folder.path().join("restored");
    let done = ganglion("restore", &restored, Some(&copy))?;
    ensure!(done.status.success(), "{done:?}");
    let over = ganglion("restore", &neuron.data_dir(), Some(&copy))?;
    ensure!(!over.status.success(), "a store was written over: {over:?}");
    let checked = ganglion("fsck", &restored, None)?;
    ensure!(checked.status.success(), "{checked:?}");

    // The neuron again, over the restored store.
    std::fs::rename(restored.join(STORE_FILE), neuron.data_dir().join(STORE_FILE))?;
    neuron = neuron.restart()?;
    for (at, account) in accounts.iter().enumerate() {
        let mut client = Client::connect(&neuron.address("http")?, &account.credentials)?;
        let mut feed = Feed::default();
        feed.follow_all(&mut client)?;
        feed.check_series()?;
        let is_start = original[at].rows.starts_with(&feed.rows);
        ensure!(is_start, "account{at}: the copy is not what the store was at some moment");
        // It has all that was acknowledged before it was begun; what came later may be there.
        let acknowledged = before[at].clone();
        for write in &acknowledged {
            let is_there = write.ver.is_none()
                || feed
                    .rows
                    .iter()
                    .any(|row| row.key == write.key && Some(&row.ver) == write.ver.as_ref());
            ensure!(is_there, "account{at}: acknowledged before the copy: {write:?}");
        }
        feed.check_reads(&mut client, &["kept", "round0"])?;
        println!(
            "account{at}: {} of {} changes are in the copy",
            feed.rows.len(),
            original[at].rows.len()
        );
    }
    Ok(())
}

#[test]
fn a_store_of_format_1_is_opened() -> Result<()> {
    let mut neuron = Neuron::start()?;
    neuron.stop()?;
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/store/tests/fixtures/format-1.redb");
    std::fs::copy(&fixture, neuron.data_dir().join(STORE_FILE))
        .with_context(|| format!("copying {}", fixture.display()))?;
    let checked = ganglion("fsck", &neuron.data_dir(), None)?;
    ensure!(checked.status.success(), "{checked:?}");
    neuron = neuron.restart()?;
    let account = Account::make(&neuron, "newcomer")?;
    let mut client = Client::connect(&neuron.address("http")?, &account.credentials)?;
    let answer = client.call("PUT", "/_data/a", r#"{"k":"key","v":1}"#)?;
    ensure!(answer.ok().is_some(), "{answer:?}");
    Ok(())
}

#[test]
fn a_folder_without_a_store_is_not_copied() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("copy.redb");
    let output = ganglion("backup", folder.path(), Some(&copy))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("no store"), "{output:?}");
    ensure!(!copy.exists());
    let output = ganglion("fsck", folder.path(), None)?;
    ensure!(!output.status.success(), "{output:?}");
    ensure!(std::fs::read_dir(folder.path())?.next().is_none(), "something was made there");
    Ok(())
}

fn ganglion(verb: &str, data_dir: &Path, file: Option<&Path>) -> Result<Output> {
    let mut command = Command::new(neuron::program()?);
    command.args([verb, "--data-dir"]).arg(data_dir).args(file);
    command.output().context("running ganglion")
}
