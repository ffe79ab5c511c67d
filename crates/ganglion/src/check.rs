//! What `ganglion config check` looks at besides the configuration itself: the files and folders that it
//! names. What `serve` would refuse is refused; what it would warn of is a warning.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::Access;

use crate::config::Config;
use crate::serve::{self, cluster_key_file, read_cluster_key, sys_secret};
use crate::tls::Tls;

/// Who is neither the owner nor of his group.
const OTHERS: u32 = 0o007;

/// Refuses what `serve` would refuse when it starts; answers what it would warn of.
pub(crate) fn check(config: &Config, file: Option<&Path>, is_dev: bool) -> Result<Vec<String>> {
    if !is_dev || !config.neuron.sys_secret_file.as_os_str().is_empty() {
        sys_secret(config, None)?;
    }
    if !config.store.cluster_key_file.as_os_str().is_empty() {
        read_cluster_key(&config.store.cluster_key_file)?;
    }
    check_folder(&config.store.data_dir)?;
    config.check_places()?;
    let tls = &config.tls;
    for (name, file) in [("tls.cert", &tls.cert), ("tls.key", &tls.key)] {
        if !file.as_os_str().is_empty() {
            let opened = std::fs::File::open(file);
            opened.with_context(|| format!("{name}: reading {}", file.display()))?;
        }
    }
    let tls = serve::tls(config)?;
    Ok(warnings(config, file, tls.as_deref()))
}

/// Refuses a data folder that is none, or in which nothing can be written, or that cannot be made.
fn check_folder(data_dir: &Path) -> Result<()> {
    let about = || format!("store.data_dir: {}", data_dir.display());
    let whole = std::path::absolute(data_dir).with_context(about)?;
    for folder in whole.ancestors() {
        match std::fs::metadata(folder) {
            Ok(found) if !found.is_dir() => {
                bail!("{}: {} is not a folder", about(), folder.display())
            }
            Ok(_) => {
                let allowed = rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK);
                return allowed
                    .with_context(|| format!("{}: writing in {}", about(), folder.display()));
            }
            // It is made, with those above it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            // What is above says why.
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {}
            Err(error) => return Err(error).with_context(about),
        }
    }
    Ok(())
}

/// What should not be as it is: a certificate that has expired, secrets that anybody may read.
pub(crate) fn warnings(config: &Config, file: Option<&Path>, tls: Option<&Tls>) -> Vec<String> {
    let mut warnings: Vec<String> = tls.and_then(Tls::expired).into_iter().collect();
    let cluster_key = cluster_key_file(config);
    let file = file.filter(|_| !config.neuron.sys_secret.is_empty());
    for (what, path) in [
        ("the configuration, with neuron.sys_secret,", file.unwrap_or(Path::new(""))),
        ("neuron.sys_secret_file", &config.neuron.sys_secret_file),
        ("the cluster key", &cluster_key),
        ("tls.key", &config.tls.key),
        ("store.data_dir", &config.store.data_dir),
    ] {
        // What is not there is refused, or made.
        let Ok(found) = std::fs::metadata(path) else { continue };
        let mode = found.permissions().mode() & 0o777;
        if mode & OTHERS != 0 {
            let path = path.display();
            let right = if found.is_dir() { "700" } else { "600" };
            warnings.push(format!(
                "{what} {path} is open to every user of this machine (mode {mode:o}): chmod {right} {path}"
            ));
        }
    }
    warnings
}
