//! Simulation's tests: some hundred seeds of a neuron, of the embedded engine, of rooms, and of each
//! fuzz target. `GANGLION_SEEDS` sets how many, `GANGLION_SEED` runs one.

// A test that cannot go on fails here and now.
#![allow(clippy::unwrap_used)]

mod clock;
mod fuzz;
mod relays;
mod rooms;

use std::panic::{self, AssertUnwindSafe};

/// Seeds of a neuron's life, and of the embedded engine's, when nobody says how many.
const NEURON_SEEDS: u64 = 150;
const EMBEDDED_SEEDS: u64 = 60;

#[test]
fn a_neuron_keeps_its_promises() {
    let mut reports = Vec::new();
    for seed in seeds(NEURON_SEEDS) {
        reports.push(held("a_neuron_keeps_its_promises", seed, sim::neuron::run));
    }
    let sum = |of: fn(&sim::neuron::Report) -> u64| reports.iter().map(of).sum::<u64>();
    eprintln!(
        "{} seeds, {} crashes, {} changes, {} checks, digest {:016x}",
        reports.len(),
        sum(|report| report.crashes),
        sum(|report| report.changes as u64),
        sum(|report| report.checks.values().sum()),
        reports.iter().fold(0, |all, report| all ^ report.digest),
    );
    if reports.len() > 20 {
        let checks = reports.iter().fold(Default::default(), count);
        assert!(checks.len() >= 20, "kinds of checks that were made: {checks:#?}");
    }
}

type Checks = std::collections::BTreeMap<&'static str, u64>;

fn count(mut sum: Checks, report: &sim::neuron::Report) -> Checks {
    for (kind, count) in &report.checks {
        *sum.entry(kind).or_default() += count;
    }
    sum
}

#[test]
fn a_seed_decides_everything() {
    for seed in 1..8 {
        let (first, second) = (sim::neuron::run(seed), sim::neuron::run(seed));
        assert!(first == second, "seed {seed}: {first:?} and {second:?}");
    }
}

#[test]
fn the_embedded_engine_keeps_its_promises() {
    let mut sum = sim::embedded::Report::default();
    for seed in seeds(EMBEDDED_SEEDS) {
        let report = held("the_embedded_engine_keeps_its_promises", seed, sim::embedded::run);
        sum.cuts += report.cuts;
        sum.owed += report.owed;
        sum.faults += report.faults;
        sum.acknowledged += report.acknowledged;
    }
    eprintln!("{sum:?}");
    if number("GANGLION_SEED").is_none() {
        assert!(
            sum.cuts > 0 && sum.owed > 0 && sum.faults > 0 && sum.acknowledged > 1_000,
            "too tame: {sum:?}"
        );
    }
}

/// The seeds of this run.
fn seeds(default: u64) -> std::ops::RangeInclusive<u64> {
    if let Some(seed) = number("GANGLION_SEED") {
        return seed..=seed;
    }
    1..=number("GANGLION_SEEDS").unwrap_or(default)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs one seed; a failure says how to run it again.
fn held<T>(test: &str, seed: u64, run: impl FnOnce(u64) -> Result<T, String>) -> T {
    let again = format!("seed {seed}: GANGLION_SEED={seed} cargo test -p sim {test}");
    match panic::catch_unwind(AssertUnwindSafe(|| run(seed))) {
        Ok(Ok(report)) => report,
        Ok(Err(fault)) => panic!("{again}\n{fault}"),
        Err(payload) => {
            eprintln!("{again}");
            panic::resume_unwind(payload)
        }
    }
}
