//! A server process under measurement: its CPU time and memory as the system accounts them, ended by
//! its own id when dropped.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Ticks of process accounting in a second; Linux shows 100 to user space on every architecture here.
pub(crate) const TICKS: f64 = 100.0;
const DEADLINE: Duration = Duration::from_secs(60);

/// A child process and the file that it logs to.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    /// Resident, without pages of files.
    pub(crate) anonymous: u64,
    /// Resident, each page divided by the processes that have it.
    pub(crate) proportional: u64,
    /// Resident, pages that no other process has.
    pub(crate) private: u64,
}

impl Process {
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Process> {
        let file = std::fs::File::create(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Process { child, log: log.to_owned() })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` gives something.
    pub(crate) fn wait_for<T>(&mut self, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(found) = ready() {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("ended with {status}: {}", std::fs::read_to_string(&self.log)?);
            }
            if begun.elapsed() > DEADLINE {
                bail!("not ready within {DEADLINE:?}: {}", std::fs::read_to_string(&self.log)?);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// User and system time so far, all threads, those that ended included.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(&format!("/proc/{}/stat", self.id()))
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", self.id()));
        let (status, pages) = (read("status")?, read("smaps_rollup")?);
        Ok(Memory {
            resident: kilobytes(&status, "VmRSS:")?,
            anonymous: kilobytes(&status, "RssAnon:")?,
            proportional: kilobytes(&pages, "Pss:")?,
            private: kilobytes(&pages, "Private_Clean:")? + kilobytes(&pages, "Private_Dirty:")?,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets this process and those it starts have as many files open as they may; answers how many.
///
/// # Errors
/// They are fewer than are needed.
pub(crate) fn raise_file_limit(needed: usize) -> Result<u64> {
    let now = getrlimit(Resource::Nofile);
    // `None` is no limit.
    let Some(maximum) = now.maximum else { return Ok(u64::MAX) };
    ensure!(maximum >= needed as u64, "{needed} open files are needed, see `ulimit -Hn`");
    setrlimit(Resource::Nofile, Rlimit { current: Some(maximum), maximum: Some(maximum) })
        .context("raising the limit of open files")?;
    Ok(maximum)
}

/// A port of the loopback interface that nobody listens on, for a server that cannot say which it took.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Bytes that a line of a file of `/proc` tells in kilobytes.
fn kilobytes(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.with_context(|| format!("no {name}"))?.parse::<u64>()? * 1024)
}

/// User and system time of `/proc/…/stat`.
pub(crate) fn cpu_seconds(stat: &str) -> Result<f64> {
    let text = std::fs::read_to_string(stat)?;
    // The name may hold anything; what follows its last parenthesis is fields from the third on.
    let (_, fields) = text.rsplit_once(')').context("no name in stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |nth: usize| -> Result<f64> {
        Ok(fields.get(nth - 3).context("a short stat")?.parse::<f64>()?)
    };
    Ok((ticks(14)? + ticks(15)?) / TICKS)
}
