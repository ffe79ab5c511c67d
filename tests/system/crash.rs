//! The crash suite: what a neuron keeps when its process is killed, its disk fills, its clock jumps,
//! or its store is copied while it is written to.
//!
//! Everything is judged by what was acknowledged: an acknowledged version is in its series, in its
//! place in the feed, and is what a read shows until a newer one. `GANGLION_KILLS` sets how often a
//! neuron is killed (100 in the soak), `GANGLION_SEED` what writers do; who comes first is up to the
//! machine.

// Figures and seeds are printed for whoever reads a run's output.
#![allow(clippy::print_stdout)]

mod backup;
mod clock;
mod disk;
mod feed;
mod kill;
mod writers;

/// A number from the environment, or `default`.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs a test under the seed of this run; a failure says how to run it again.
fn seeded(test: &str, run: impl FnOnce(u64) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let seed = number("GANGLION_SEED", 1);
    run(seed).map_err(|error| {
        error.context(format!(
            "seed {seed}: GANGLION_SEED={seed} cargo test -p tests --test system {test}"
        ))
    })
}
