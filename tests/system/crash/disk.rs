//! A disk that fills up under a neuron, and is freed again.
//!
//! The data folder lies on a tmpfs of its own, mounted where only this test and what it starts see
//! it: the test runs itself again in a mount namespace of its own (`unshare`), so nothing is left
//! behind. Where none of [`WAYS`] is permitted the test fails, unless `GANGLION_NO_MOUNTS=1` says that
//! this machine is to do without it.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::curl;
use tests::http::{Answer, Client, Response};
use tests::neuron::Neuron;
use tests::wait::until;

use super::feed::Feed;
use super::seeded;
use super::writers::{Account, Acknowledged, Told, Writers, check, checked};

/// Set in the run that is apart from other mounts.
const APART: &str = "GANGLION_TEST_APART";
/// Lets the test pass untried where it may not mount.
const MAY_SKIP: &str = "GANGLION_NO_MOUNTS";
/// How to run a program among mounts of its own: as root; as root of a user namespace; as who may
/// become root without being asked, as on hosted runners that forbid such namespaces.
const WAYS: [&[&str]; 3] = [
    &["unshare", "--mount"],
    &["unshare", "--user", "--map-root-user", "--mount"],
    &["sudo", "--non-interactive", "--preserve-env", "unshare", "--mount"],
];
/// Size of the disk.
const DISK_MIB: usize = 48;
/// What is left of it when writers begin.
const LEFT_BYTES: u64 = 1 << 20;

#[test]
fn a_full_disk_refuses_writes_and_loses_nothing() -> Result<()> {
    if std::env::var_os(APART).is_some() {
        return seeded("crash::disk", fill_and_free);
    }
    let Some(way) = WAYS.into_iter().find(|way| may_mount(way)) else {
        let allowed = std::env::var_os(MAY_SKIP).is_some_and(|value| value == "1");
        ensure!(allowed, "this process may not mount a tmpfs; {MAY_SKIP}=1 does without this test");
        println!("not tried: {MAY_SKIP}=1");
        return Ok(());
    };
    let status = Command::new(way[0])
        .args(&way[1..])
        .args(["env", &format!("{APART}=1")])
        .arg(std::env::current_exe()?)
        .args(["crash::disk::a_full_disk_refuses_writes_and_loses_nothing", "--exact"])
        .arg("--nocapture")
        .status()?;
    ensure!(status.success(), "the test failed in its own mount namespace; see above");
    Ok(())
}

/// Whether a program that is run in this way can mount a tmpfs.
fn may_mount(way: &[&str]) -> bool {
    let mount = ["mount", "-t", "tmpfs", "tmpfs", "/mnt"];
    let output = Command::new(way[0]).args(&way[1..]).args(mount).output();
    output.is_ok_and(|output| output.status.success())
}

fn fill_and_free(seed: u64) -> Result<()> {
    let free_min = LEFT_BYTES.to_string();
    // Nothing but a failure makes this neuron look at its store.
    let settings = [("GANGLION_STORE__FREE_MIN", &*free_min), ("GANGLION_STATS__FLUSH", "1h")];
    let mut neuron = Neuron::start_with(&settings, &[])?;
    let account = Account::make(&neuron, "elena")?;
    neuron.stop()?;
    let _disk = SmallDisk::under(&neuron.data_dir())?;
    neuron = neuron.restart()?;
    let address = neuron.address("http")?;
    let connect = || Client::connect(&address, &account.credentials);
    let mut client = connect()?;
    for path in ["warm", "cold"] {
        put(&mut client, path, "key", 100)?.ok().context("there is room yet")?;
    }
    // A restart makes one of them cold.
    drop(client);
    neuron.stop()?;
    neuron = neuron.restart()?;
    let address = neuron.address("http")?;
    let connect = || Client::connect(&address, &account.credentials);
    let mut client = connect()?;
    ensure!(client.get("/_data/warm?k=key")?.ok().is_some());

    let mut feed = Feed::default();
    feed.follow_all(&mut client)?;
    let from = feed.rows.len();
    let filler = Filler::leave(&neuron.data_dir(), LEFT_BYTES)?;
    let mut told = Told::default();
    let refused = write_until_refused(&mut client, &mut told)?;
    check_refusal(&refused)?;

    // The refusal in the two other bodies that the API has.
    let body = json!({ "k": "key", "v": checked("compat", 200_000) }).to_string();
    let url = format!("http://{address}/_data/more");
    let problem = curl::Request::new("PUT", &url)
        .user(&account.credentials)
        .header("accept: application/problem+json")
        .body(body.as_str())
        .send()?;
    ensure!(problem.status == 503, "{problem:?}");
    ensure!(problem.json()?["title"] == "store_unavailable", "{problem:?}");

    // Readiness has the reasons, on the private listener: how little room there is, and the store's
    // refusals once statistics have met the full disk too: they are small and fit for as long as
    // nobody else tries.
    let admin = neuron.address("admin")?;
    let unready = |answer: &Response| {
        answer.status == 503 && answer.body.contains("disk:") && answer.body.contains("store:")
    };
    let look = || {
        for _ in 0..5 {
            write(&mut client, &mut told, 30_000)?;
        }
        curl::Request::new("GET", format!("http://{admin}/readyz")).send()
    };
    until(look, unready).context("unready")?;
    let public = curl::Request::new("GET", format!("http://{address}/readyz")).send()?;
    ensure!(!public.body.contains("store:"), "reasons are private: {public:?}");

    // Reads go on: what is in a view, what has to be read from the file, series and feed.
    for path in ["warm", "cold"] {
        let answer = client.get(&format!("/_data/{path}?k=key"))?;
        check(answer.ok().with_context(|| format!("{path}: {answer:?}"))?)?;
        let series = client.get(&format!("/_data/{path}?time_series=1"))?;
        ensure!(series.ok().is_some_and(|v| v[0].is_array()), "{series:?}");
    }
    feed.follow_all(&mut client)?;
    feed.check_told(from, &told)?;
    let livez = curl::Request::new("GET", format!("http://{address}/livez")).send()?;
    ensure!(livez.status == 200, "{livez:?}");

    // Room again, and the same process goes on.
    let pid = neuron.pid();
    drop(filler);
    until(|| write(&mut client, &mut told, 30_000), |(acknowledged, _)| *acknowledged)?;
    let readyz = || curl::Request::new("GET", format!("http://{admin}/readyz")).send();
    until(readyz, |answer| answer.status == 200)?;
    ensure!(neuron.pid() == pid);
    feed.follow_all(&mut client)?;
    feed.check_told(from, &told)?;
    let from = feed.rows.len();

    // Once more, with writers who do not wait for each other, and a kill while it is full.
    let filler = Filler::leave(&neuron.data_dir(), LEFT_BYTES)?;
    let accounts = [account.clone()];
    let writers = Writers::start(&neuron, &accounts, 16, seed, 0)?;
    let mut more = writers.join()?.remove(0);
    more.faults.retain(|fault| !fault.contains("store_unavailable"));
    ensure!(more.unanswered.is_empty(), "a full disk cuts nobody off: {:?}", more.unanswered);
    neuron.kill()?;
    drop(filler);
    neuron = neuron.restart()?;
    let mut client = Client::connect(&neuron.address("http")?, &account.credentials)?;
    feed.follow_all(&mut client)?;
    feed.check_series()?;
    feed.check_told(from, &more)?;
    feed.check_reads(&mut client, &["warm", "cold", "more", "kept", "round0"])?;
    println!(
        "{} changes kept, {} written beside a full disk",
        feed.rows.len(),
        more.acknowledged.len()
    );
    Ok(())
}

fn put(client: &mut Client, path: &str, key: &str, pad_chars: u64) -> Result<Answer> {
    let body = json!({ "k": key, "v": checked(key, pad_chars) });
    client.call("PUT", &format!("/_data/{path}"), &body.to_string())
}

/// One put; whether it was acknowledged.
fn write(client: &mut Client, told: &mut Told, pad_chars: u64) -> Result<(bool, Answer)> {
    let number = told.acknowledged.len();
    let (path, key) = ("more", format!("key{}", number % 7));
    let value = checked(&format!("write {number}"), pad_chars);
    let body = json!({ "k": key, "v": value }).to_string();
    let answer = client.call("PUT", &format!("/_data/{path}"), &body)?;
    let ver = answer.ok().and_then(|v| v["_ver_"].as_str()).map(str::to_owned);
    let is_acknowledged = ver.is_some();
    if is_acknowledged {
        let (path, value) = (path.to_owned(), Some(value));
        told.acknowledged.push(Acknowledged { path, key, ver, value, based_on: None });
    }
    Ok((is_acknowledged, answer))
}

fn write_until_refused(client: &mut Client, told: &mut Told) -> Result<Answer> {
    loop {
        let (acknowledged, answer) = write(client, told, 30_000)?;
        if !acknowledged {
            return Ok(answer);
        }
        ensure!(told.acknowledged.len() < DISK_MIB << 6, "the disk does not fill");
    }
}

fn check_refusal(refused: &Answer) -> Result<()> {
    ensure!(refused.response.status == 503, "{refused:?}");
    ensure!(refused.word() == "store_unavailable", "{refused:?}");
    ensure!(refused.response.header("retry-after").is_some(), "no Retry-After: {refused:?}");
    Ok(())
}

/// A small file system over a folder, with what was in the folder.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn under(folder: &Path) -> Result<SmallDisk> {
        let aside = tempfile::tempdir()?;
        let (from, to) = (folder.to_string_lossy(), aside.path().to_string_lossy());
        run("cp", &["-a", &format!("{from}/."), &to])?;
        let size = format!("size={DISK_MIB}m");
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &from])?;
        let disk = SmallDisk(folder.to_owned());
        run("cp", &["-a", &format!("{to}/."), &from])?;
        Ok(disk)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the neuron may still have files open.
        let _ = run("umount", &["-l", &self.0.to_string_lossy()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status().with_context(|| program.to_owned());
    ensure!(status?.success(), "{program} {arguments:?}");
    Ok(())
}

/// A file that takes all room but some; dropping it gives the room back.
struct Filler(PathBuf);

impl Filler {
    fn leave(folder: &Path, left_bytes: u64) -> Result<Filler> {
        let path = folder.join("filler");
        let mut file = File::create(&path)?;
        let filler = Filler(path);
        let block = vec![1; 64 << 10];
        loop {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
        file.set_len(file.metadata()?.len().saturating_sub(left_bytes))?;
        Ok(filler)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
