//! A disk that fills up under a neuron, and is freed again.
//!
//! The data folder lies on a tmpfs of its own, in a mount namespace that only this test's thread and
//! the processes that it starts are in, so nothing is left behind. Where mounts are not permitted
//! the test says so and ends.

use std::ffi::CString;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tests::curl;
use tests::neuron::Neuron;

use super::client::{Answer, Client};
use super::feed::Feed;
use super::seeded;
use super::writers::{Account, Acknowledged, Told, Writers, check, checked};

/// Size of the disk.
const DISK_MIB: usize = 48;
/// What is left of it when writers begin.
const LEFT_BYTES: u64 = 1 << 20;
/// How long the neuron may take to notice that there is room; its own pause is 5 s at most.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_full_disk_refuses_writes_and_loses_nothing() -> Result<()> {
    // A thread of its own: it never goes back to the other mounts.
    let thread = std::thread::spawn(|| seeded("crash::disk", fill_and_free));
    thread.join().unwrap_or_else(|_| bail!("the test panicked"))
}

fn fill_and_free(seed: u64) -> Result<()> {
    let mut neuron = Neuron::start()?;
    let account = Account::make(&neuron, "elena")?;
    neuron.stop()?;
    let Some(_disk) = SmallDisk::under(&neuron.data_dir())? else {
        println!("not tried: this process may not mount a tmpfs (needs CAP_SYS_ADMIN)");
        return Ok(());
    };
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

    // Readiness has the reason, on the private listener.
    let admin = neuron.address("admin")?;
    let readyz = until("unready", || {
        let url = format!("http://{admin}/readyz");
        let answer = curl::Request::new("GET", url).send()?;
        Ok((answer.status == 503).then_some(answer))
    })?;
    ensure!(readyz.body.contains("store:"), "{readyz:?}");
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
    until("writes succeed", || {
        let (acknowledged, _) = write(&mut client, &mut told, 30_000)?;
        Ok(acknowledged.then_some(()))
    })?;
    until("ready", || {
        let answer = curl::Request::new("GET", format!("http://{admin}/readyz")).send()?;
        Ok((answer.status == 200).then_some(()))
    })?;
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
    ensure!(refused.status == 503, "{refused:?}");
    ensure!(refused.word() == "store_unavailable", "{refused:?}");
    let retry = refused.headers.iter().any(|line| line.starts_with("retry-after:"));
    ensure!(retry, "no Retry-After: {refused:?}");
    Ok(())
}

/// Looks again until there is something to see.
fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        ensure!(begun.elapsed() < PATIENCE, "not {what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A small file system over a folder, with what was in the folder.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where this is not permitted.
    fn under(folder: &Path) -> Result<Option<SmallDisk>> {
        #[allow(unsafe_code)]
        // SAFETY: moves this thread to a copy of the mounts; no memory is involved.
        let apart = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0;
        if !apart || !run("mount", &["--make-rprivate", "/"])? {
            return Ok(None);
        }
        let aside = tempfile::tempdir()?;
        let (from, to) = (folder.to_string_lossy(), aside.path().to_string_lossy());
        ensure!(run("cp", &["-a", &format!("{from}/."), &to])?, "copying the data folder");
        let size = format!("size={DISK_MIB}m");
        if !run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &from])? {
            return Ok(None);
        }
        let disk = SmallDisk(folder.to_owned());
        ensure!(run("cp", &["-a", &format!("{to}/."), &from])?, "copying the data folder back");
        Ok(Some(disk))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the neuron may still have files open.
        let _ = run("umount", &["-l", &self.0.to_string_lossy()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<bool> {
    Ok(Command::new(program)
        .args(arguments)
        .status()
        .with_context(|| program.to_owned())?
        .success())
}

/// A file that takes all room but some; dropping it gives the room back.
struct Filler(PathBuf);

impl Filler {
    fn leave(folder: &Path, left_bytes: u64) -> Result<Filler> {
        let path = folder.join("filler");
        let mut file = std::fs::File::create(&path)?;
        let filler = Filler(path);
        let block = vec![1; 64 << 10];
        while free_bytes(folder)? > left_bytes {
            file.write_all(&block)?;
        }
        Ok(filler)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn free_bytes(folder: &Path) -> Result<u64> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    #[allow(unsafe_code)]
    // SAFETY: the path ends in 0 and the struct, all numbers, lives through the call.
    let (result, stat) = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &raw mut stat), stat)
    };
    ensure!(result == 0, "statvfs: {}", std::io::Error::last_os_error());
    Ok(stat.f_bavail * stat.f_bsize)
}
