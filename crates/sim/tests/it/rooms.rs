//! Seeds of rooms whose clients come, go, are cut off and come back.

use super::{held, number, seeds};

/// When nobody says how many.
const SEEDS: u64 = 120;

#[test]
fn rooms_keep_their_promises() {
    let mut sum = sim::rooms::Report::default();
    for seed in seeds(SEEDS) {
        let run = |seed| Ok(sim::rooms::run(seed));
        let report = held("rooms::rooms_keep_their_promises", seed, run);
        sum.said += report.said;
        sum.resumed += report.resumed;
        sum.owed += report.owed;
        sum.unresumed += report.unresumed;
        sum.replaced += report.replaced;
        sum.slow += report.slow;
        sum.refused += report.refused;
        sum.kicked += report.kicked;
        sum.restarts += report.restarts;
        sum.beliefs += report.beliefs;
        sum.digest ^= report.digest;
    }
    eprintln!("{sum:?}");
    if number("GANGLION_SEED").is_none() && number("GANGLION_SEEDS").is_none() {
        let happened = [
            sum.said,
            sum.resumed,
            sum.owed,
            sum.unresumed,
            sum.replaced,
            sum.slow,
            sum.refused,
            sum.kicked,
            sum.restarts,
            sum.beliefs,
        ];
        assert!(happened.iter().all(|count| *count >= 50), "too tame: {sum:?}");
    }
}

#[test]
fn a_seed_decides_what_is_heard() {
    for seed in 1..8 {
        assert_eq!(sim::rooms::run(seed), sim::rooms::run(seed), "seed {seed}");
    }
}
