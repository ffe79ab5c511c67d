//! A server process under measurement: its CPU time and memory as the system accounts them, ended by
//! its own id when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Ticks of process accounting in a second; Linux shows 100 to user space on every architecture here.
const TICKS: f64 = 100.0;
const DEADLINE: Duration = Duration::from_secs(60);

/// A child process and the file that it logs to.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    /// Without pages of files.
    pub(crate) anonymous: u64,
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
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            Ok(number.with_context(|| format!("no {name}"))?.parse::<u64>()? * 1024)
        };
        Ok(Memory { resident: field("VmRSS:")?, anonymous: field("RssAnon:")? })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
