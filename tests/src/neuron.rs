//! A real `ganglion` process for a test: its own folder, free ports, ended by pid when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

/// The `$sys` secret of every test neuron.
pub const SYS_SECRET: &str = "test-sys-secret";
const ANY_PORT: &str = "127.0.0.1:0";
/// How long a neuron may take to start or stop; generous, since machines are busy.
const DEADLINE: Duration = Duration::from_secs(30);

/// The program under test: `$GANGLION_BIN`, or what cargo built beside the test.
pub fn program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("GANGLION_BIN") {
        return Ok(PathBuf::from(program));
    }
    let test = std::env::current_exe()?;
    let built = test.ancestors().nth(2).map(|folder| folder.join("ganglion"));
    match built {
        Some(built) if built.exists() => Ok(built),
        _ => bail!(
            "there is no ganglion to test: run `cargo build -p ganglion`, or use `cargo xtask test`"
        ),
    }
}

/// One running neuron.
#[derive(Debug)]
pub struct Neuron {
    child: Child,
    /// The folder of its data and files; kept across [`Neuron::restart`].
    folder: TempDir,
    /// Where it was told to listen.
    listen: String,
    settings: Vec<(String, String)>,
    arguments: Vec<String>,
    addresses: Value,
    /// From the start of the process to its ready file.
    pub ready_after: Duration,
}

impl Neuron {
    /// Starts a development neuron with statistics flushed every 200 ms.
    pub fn start() -> Result<Neuron> {
        Neuron::start_with(&[], &[])
    }

    /// The same with configuration variables (`GANGLION_…`) and arguments over it.
    pub fn start_with(settings: &[(&str, &str)], arguments: &[&str]) -> Result<Neuron> {
        let folder = TempDir::new()?;
        let mut all = vec![("GANGLION_STATS__FLUSH".to_owned(), "200ms".to_owned())];
        all.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Neuron::launch(folder, ANY_PORT.to_owned(), all, arguments)
    }

    fn launch(
        folder: TempDir,
        listen: String,
        settings: Vec<(String, String)>,
        arguments: Vec<String>,
    ) -> Result<Neuron> {
        let ready_file = folder.path().join("ready.json");
        let _ = std::fs::remove_file(&ready_file);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(folder.path().join("neuron.log"))?;
        let begun = Instant::now();
        let mut command = Command::new(program()?);
        command
            .args(["serve", "--dev", "--listen", &listen, "--sys-secret", SYS_SECRET])
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .arg("--ready-file")
            .arg(&ready_file)
            .args(&arguments)
            .env("GANGLION_LISTEN__ADMIN", "[\"127.0.0.1:0\"]")
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = command.spawn().context("starting ganglion")?;
        while !ready_file.exists() {
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(folder.path().join("neuron.log"))?;
                bail!("ganglion ended with {status} before it was ready:\n{log}");
            }
            if begun.elapsed() > DEADLINE {
                let _ = child.kill();
                bail!("ganglion was not ready within {DEADLINE:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let ready_after = begun.elapsed();
        let addresses = serde_json::from_slice(&std::fs::read(&ready_file)?)?;
        Ok(Neuron { child, folder, listen, settings, arguments, addresses, ready_after })
    }

    /// The first address of a kind of the ready file: `http`, `https`, `admin`.
    pub fn address(&self, kind: &str) -> Result<String> {
        let address = self.addresses[kind][0].as_str();
        Ok(address.with_context(|| format!("the neuron has no {kind} listener"))?.to_owned())
    }

    /// `http://127.0.0.1:port`
    /// Every address or place at which it serves one kind of clients.
    pub fn places(&self, kind: &str) -> Vec<String> {
        let places = self.addresses[kind].as_array().into_iter().flatten();
        places.filter_map(|place| Some(place.as_str()?.to_owned())).collect()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address("http").unwrap_or_default())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What the neuron has printed and logged.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder.path().join("neuron.log"))?)
    }

    /// One figure of `/metrics`, by its name without `ganglion_`.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let text = crate::curl::run(&[&format!("http://{}/metrics", self.address("admin")?)])?;
        let start = format!("ganglion_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&start));
        Ok(value.with_context(|| format!("no {name} in {text}"))?.parse()?)
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> Result<u64> {
        self.status_kib("VmRSS:")
    }

    /// The most that it ever was.
    pub fn peak_rss_kib(&self) -> Result<u64> {
        self.status_kib("VmHWM:")
    }

    fn status_kib(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.with_context(|| format!("no {name}"))?.parse()?)
    }

    /// Sends SIGKILL and waits until the process is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends SIGTERM and waits; answers the exit code.
    pub fn stop(&mut self) -> Result<Option<i32>> {
        crate::os::terminate(self.pid())?;
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            if begun.elapsed() > DEADLINE {
                bail!("ganglion did not stop within {DEADLINE:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts a neuron anew over the folder of one that has ended.
    pub fn restart(mut self) -> Result<Neuron> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let folder = std::mem::replace(&mut self.folder, TempDir::new()?);
        let (settings, arguments) =
            (std::mem::take(&mut self.settings), std::mem::take(&mut self.arguments));
        let listen = std::mem::take(&mut self.listen);
        Neuron::launch(folder, listen, settings, arguments)
    }

    /// The same at the address that it had.
    pub fn restart_in_place(mut self) -> Result<Neuron> {
        self.listen = self.address("http")?;
        self.restart()
    }

    /// Makes a top account; answers its secret.
    pub fn account(&self, name: &str) -> Result<String> {
        let body = serde_json::json!({
            "k": name, "v": { "email": format!("{name}@example.org"), "password": "woot" }
        });
        let credentials = format!("$sys:{SYS_SECRET}");
        let answer =
            crate::curl::json("PUT", &self.url(), "/_acc/accounts", &credentials, Some(&body))?;
        let secret = answer["v"]["secret"].as_str();
        Ok(secret.with_context(|| format!("no account {name}: {answer}"))?.to_owned())
    }
}

impl Drop for Neuron {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder for what a test leaves to be looked at: screenshots and reports.
pub fn artifacts(name: &str) -> Result<PathBuf> {
    let base = std::env::var_os("GANGLION_ARTIFACTS").map(PathBuf::from);
    let base =
        base.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tests"));
    let folder = base.join(name);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
