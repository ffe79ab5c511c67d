//! Seeds of a relay whose clients, peers, links and sockets fail.

use super::{held, number, seeds};

/// When nobody says how many.
const SEEDS: u64 = 60;
/// Clients of one seed are one of these, and its steps.
const CLIENTS: [usize; 4] = [2, 7, 30, 200];
const STEPS: u64 = 4_000;

#[test]
fn a_relay_keeps_its_promises() {
    let mut sum = sim::relays::Report::default();
    for seed in seeds(SEEDS) {
        let clients = CLIENTS[seed as usize % CLIENTS.len()];
        let run = |seed| Ok(sim::relays::run(seed, clients, STEPS));
        let report = held("relays::a_relay_keeps_its_promises", seed, run);
        sum.allocated += report.allocated;
        sum.refused += report.refused;
        sum.expired += report.expired;
        sum.to_peers += report.to_peers;
        sum.to_clients += report.to_clients;
        sum.within += report.within;
        sum.dropped += report.dropped;
        sum.answers += report.answers;
        sum.unopened += report.unopened;
        sum.digest ^= report.digest;
    }
    eprintln!("{sum:?}");
    if number("GANGLION_SEED").is_none() && number("GANGLION_SEEDS").is_none() {
        let happened = [
            sum.allocated,
            sum.refused,
            sum.expired,
            sum.to_peers,
            sum.to_clients,
            sum.within,
            sum.dropped,
            sum.answers,
            sum.unopened,
        ];
        assert!(happened.iter().all(|count| *count >= 100), "too tame: {sum:?}");
    }
}

/// As many as a neuron may have to serve; some seeds let in few of them.
#[test]
fn ten_thousand_clients_are_no_other_matter() {
    let mut most = 0;
    for seed in 1..=4 {
        let report = sim::relays::run(seed, 10_000, 20_000);
        eprintln!("{report:?}");
        most = most.max(report.allocated);
    }
    assert!(most > 4_000, "{most}");
}

#[test]
fn a_seed_decides_where_everything_goes() {
    for seed in 1..4 {
        assert_eq!(sim::relays::run(seed, 20, 2_000), sim::relays::run(seed, 20, 2_000), "{seed}");
    }
}
