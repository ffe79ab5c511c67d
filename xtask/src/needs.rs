//! What tests need that Rust does not bring: installed when missing, retried, named when it fails.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::run::{output, say};

/// A program that tests start, and Debian's package of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    pub(crate) program: &'static str,
    package: &'static str,
}

pub(crate) const CHROMIUM: Need = Need { program: "/usr/bin/chromium", package: "chromium" };
pub(crate) const CURL: Need = Need { program: "curl", package: "curl" };
pub(crate) const FAKETIME: Need = Need { program: "faketime", package: "faketime" };
pub(crate) const OPENSSL: Need = Need { program: "openssl", package: "openssl" };

/// How often an installation is tried, and the pause after the first failure; it doubles.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_secs(5);

/// Installs what is missing.
pub(crate) fn install(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !is_there(need.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    let mut pause = PAUSE;
    for attempt in 1..=ATTEMPTS {
        say(&format!("installing {} (attempt {attempt} of {ATTEMPTS})", packages.join(" ")));
        let mut install = vec!["install", "-y", "--no-install-recommends"];
        install.extend(&packages);
        let quiet = [("DEBIAN_FRONTEND", "noninteractive".to_owned())];
        let root = Path::new("/");
        let done = crate::run::run_with(root, "apt-get", &["update", "-q"], &quiet)
            .and_then(|_| crate::run::run_with(root, "apt-get", &install, &quiet));
        match done {
            Ok(_) if missing.iter().all(|need| is_there(need.program)) => return Ok(()),
            Ok(_) => bail!("{} installed, but a program is still missing", packages.join(" ")),
            Err(error) => say(&format!("{error}")),
        }
        std::thread::sleep(pause);
        pause *= 2;
    }
    bail!("cannot install {}: install them and try again", packages.join(", "))
}

fn is_there(program: &str) -> bool {
    Path::new(program).is_absolute() && Path::new(program).exists()
        || output("which", &[program]).is_some()
}
