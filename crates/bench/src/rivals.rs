//! The rivals' programs, built from the Go modules of `rivals`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Attempts to fetch and build a rival.
const ATTEMPTS: usize = 3;

/// A program of `rivals/go.mod`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rival {
    pub(crate) name: &'static str,
    /// What is built, as `go build` takes it.
    package: &'static str,
    /// The module whose version is the rival's.
    module: &'static str,
}

pub(crate) const ETCD: Rival =
    Rival { name: "etcd", package: "./etcd", module: "go.etcd.io/etcd/server/v3" };
pub(crate) const CENTRIFUGE: Rival = Rival {
    name: "centrifuge",
    package: "./centrifuge",
    module: "github.com/centrifugal/centrifuge",
};
pub(crate) const NATS: Rival = Rival {
    name: "nats",
    package: "github.com/nats-io/nats-server/v2",
    module: "github.com/nats-io/nats-server/v2",
};

/// A rival that is there to be started.
#[derive(Clone, Debug)]
pub(crate) struct Installed {
    pub(crate) program: PathBuf,
    pub(crate) version: String,
}

impl Rival {
    /// The program: built once from the modules that `rivals/go.mod` names, and kept in
    /// `$XDG_CACHE_HOME/ganglion-bench`. Nothing is installed on the machine.
    ///
    /// # Errors
    /// Says why there is none.
    pub(crate) fn install(self) -> Result<Installed> {
        let cache = match std::env::var_os("XDG_CACHE_HOME").filter(|cache| !cache.is_empty()) {
            Some(cache) => PathBuf::from(cache),
            None => {
                PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache")
            }
        };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("rivals");
        let wanted = std::fs::read_to_string(folder.join("go.mod"))?;
        let mut lines = wanted.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let line = lines.find(|words| words.len() > 1 && words[0] == self.module);
        let line = line.with_context(|| format!("go.mod names no {}", self.name))?;
        let version = line[1].to_owned();
        let program = cache.join(format!("ganglion-bench/{}-{version}", self.name));
        if !self.is_current(&folder, &program) {
            self.build(&folder, &program)?;
        }
        Ok(Installed { program, version })
    }

    /// Whether the program is there, and not older than what we wrote of it.
    fn is_current(self, folder: &Path, program: &Path) -> bool {
        let changed = |file: &Path| file.metadata().and_then(|file| file.modified()).ok();
        let source = changed(&folder.join(self.package).join("main.go"));
        changed(program).is_some_and(|built| source.is_none_or(|source| source <= built))
    }

    fn build(self, folder: &Path, program: &Path) -> Result<()> {
        let mut why = String::new();
        for attempt in 1..=ATTEMPTS {
            let mut build = Command::new("go");
            build.args(["build", "-trimpath", "-o"]).arg(program).arg(self.package);
            match build.current_dir(folder).output() {
                Ok(done) if done.status.success() => return Ok(()),
                Ok(done) => {
                    let text = String::from_utf8_lossy(&done.stderr);
                    why = format!("go build, attempt {attempt}: {:.500}", text.trim());
                }
                Err(error) => {
                    why = format!("go: {error}");
                    break;
                }
            }
        }
        bail!("{why}")
    }
}
