//! Running other programs: shown, checked, timed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Runs a command in the repository and fails when it does.
pub(crate) fn run(root: &Path, program: &str, arguments: &[&str]) -> Result<Duration> {
    run_with(root, program, arguments, &[])
}

/// The same with variables set.
pub(crate) fn run_with(
    root: &Path,
    program: &str,
    arguments: &[&str],
    variables: &[(&str, String)],
) -> Result<Duration> {
    say(&format!("$ {program} {}", arguments.join(" ")));
    let begun = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .status()
        .with_context(|| format!("running {program}"))?;
    if !status.success() {
        bail!("`{program} {}` ended with {status}", arguments.join(" "));
    }
    Ok(begun.elapsed())
}

/// Runs a command, shows what it prints on its standard output and answers it.
pub(crate) fn run_and_keep(
    root: &Path,
    program: &str,
    arguments: &[&str],
    variables: &[(&str, String)],
) -> Result<String> {
    say(&format!("$ {program} {}", arguments.join(" ")));
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {program}"))?;
    let mut kept = String::new();
    if let Some(printed) = child.stdout.take() {
        for line in BufReader::new(printed).lines() {
            let line = line?;
            say(&line);
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{program} {}` ended with {status}", arguments.join(" "));
    }
    Ok(kept)
}

/// Where cargo, run in the repository, puts the release build of a program.
pub(crate) fn released(root: &Path, program: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root.join(target).join("release").join(program)
}

/// What a command prints, or `None` when it fails or is not there.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[allow(clippy::print_stderr)]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}
