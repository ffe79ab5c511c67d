//! What a reader would object to: formatting, lints, generated files, and house rules that are
//! executed rather than written.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::codegen;
use crate::run::{output, run, say};

/// Crates that take time, randomness and input as arguments, and may not reach for them.
const PURE: [&str; 6] = ["wire", "kv4", "services", "signal", "relay", "neuron"];
/// What no pure crate says, and why.
const IMPURE: [(&str, &str); 8] = [
    ("tokio::", "a core has no runtime"),
    ("std::net::TcpStream", "a core opens no socket"),
    ("std::net::UdpSocket", "a core opens no socket"),
    ("std::fs::", "a core opens no file"),
    ("Instant::now", "time is an argument"),
    ("SystemTime::now", "time is an argument"),
    ("thread::spawn", "a core starts no thread"),
    ("thread::sleep", "a core does not wait"),
];
/// The only files in which `unsafe` may stand.
const UNSAFE: [&str; 5] = [
    "crates/ganglion/src/os.rs",
    "crates/udp/src/sys.rs",
    "crates/udp/tests/it/allocations.rs",
    "tests/src/os.rs",
    "xtask/src/check.rs",
];
/// What no committed source says.
const BANNED: [&str; 3] = ["#[ignore]", "todo!(", "unimplemented!("];
/// Locked packages above which the change has to say why (`docs/adr`).
const PACKAGES_MAX: usize = 260;

/// Runs every check; fails on the first kind that finds something, after naming all of that kind.
pub(crate) fn check(root: &Path) -> Result<()> {
    run(root, "cargo", &["fmt", "--all", "--check"])?;
    run(
        root,
        "cargo",
        &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
    )?;
    let stale = codegen::stale(root)?;
    if !stale.is_empty() {
        bail!("generated files are stale, run `cargo xtask codegen`: {}", stale.join(", "));
    }
    let objections = tidy(root)?;
    for objection in &objections {
        say(objection);
    }
    if !objections.is_empty() {
        bail!("{} house rules are broken", objections.len());
    }
    let lock = std::fs::read_to_string(root.join("Cargo.lock"))?;
    let packages = lock.matches("[[package]]").count();
    say(&format!("{packages} locked packages"));
    if packages > PACKAGES_MAX {
        bail!("more than {PACKAGES_MAX} locked packages: say why in an ADR and raise the bound");
    }
    Ok(())
}

fn tidy(root: &Path) -> Result<Vec<String>> {
    let listed = output("git", &["-C", &root.display().to_string(), "ls-files", "*.rs"]);
    let listed = listed.filter(|listed| !listed.is_empty());
    let listed = listed.context("git lists no sources here: this runs in a checkout, with git")?;
    let mut objections = Vec::new();
    for file in listed.lines() {
        // A file that is deleted and not yet committed.
        let path = root.join(file);
        if !path.exists() {
            continue;
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {file}"))?;
        if !text.starts_with("//!") {
            objections.push(format!("{file}: begin with `//!`, what the file is"));
        }
        if file != "xtask/src/check.rs" {
            for banned in BANNED {
                if text.contains(banned) {
                    objections.push(format!("{file}: `{banned}` is not for committed code"));
                }
            }
        }
        if text.contains("unsafe {") && !UNSAFE.contains(&file) {
            objections.push(format!("{file}: no `unsafe` here"));
        }
        let is_pure = PURE.iter().any(|name| file.starts_with(&format!("crates/{name}/src/")));
        if is_pure {
            for (word, why) in IMPURE {
                if text.contains(word) {
                    objections.push(format!("{file}: `{word}`: {why}"));
                }
            }
        }
    }
    Ok(objections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_which_git_lists_nothing_is_not_well() -> Result<()> {
        let folder = tempfile::tempdir()?;
        assert!(tidy(folder.path()).is_err(), "no checkout");
        run(folder.path(), "git", &["init", "--quiet"])?;
        assert!(tidy(folder.path()).is_err(), "a checkout without sources");
        std::fs::write(folder.path().join("a.rs"), "fn a() {}\n")?;
        run(folder.path(), "git", &["add", "a.rs"])?;
        assert_eq!(tidy(folder.path())?, ["a.rs: begin with `//!`, what the file is"]);
        Ok(())
    }
}
