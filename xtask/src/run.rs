//! Running other programs: shown, checked, timed.

use std::path::Path;
use std::process::Command;
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

/// What a command prints, or `None` when it fails or is not there.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[allow(clippy::print_stderr)]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}
