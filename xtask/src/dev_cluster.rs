//! Development neurons to play with, each with a folder of its own under `target/dev-cluster`.

use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result};

use crate::run::{released, run as run_program, say};

/// Starts neurons over folders that are kept between runs.
fn start(root: &Path, count: usize) -> Result<Vec<Child>> {
    run_program(root, "cargo", &["build", "--release", "-p", "ganglion"])?;
    (1..=count)
        .map(|number| {
            let data = root.join(format!("target/dev-cluster/{number}"));
            std::fs::create_dir_all(&data)?;
            Command::new(released(root, "ganglion"))
                .args(["serve", "--dev", "--listen", "127.0.0.1:0", "--data-dir"])
                .arg(data)
                .env("GANGLION_NEURON__NAME", format!("neuron{number}"))
                .spawn()
                .context("starting a neuron")
        })
        .collect()
}

/// Starts neurons and waits until all have ended; an interrupt reaches them too.
pub(crate) fn run(root: &Path, count: usize) -> Result<()> {
    let children = start(root, count)?;
    say(&format!("{count} neurons; interrupt to stop them"));
    for mut child in children {
        child.wait()?;
    }
    Ok(())
}
