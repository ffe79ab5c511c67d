//! Benchmarks: what Ganglion costs, beside its rivals and beside what the parts under it can do.
//!
//! One load generator for all servers of a benchmark, rounds in turn, medians; CPU from process
//! accounting. It prints one JSON object a line with `--json`, else a table. `docs/measured` says how
//! to read the figures. Not here: who compares them with older ones (`cargo xtask bench kv --baseline
//! FILE`).

mod fanout;
mod ganglion;
mod kv;
mod load;
mod process;
mod relay;
mod report;
mod rivals;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

/// Figures of Ganglion, of its rivals, and of the limit.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// KV4 over HTTP beside etcd.
    Kv(kv::Options),
    /// Messages to the members of a room beside Centrifuge and NATS.
    Fanout(fanout::Options),
    /// The relay's core beside another that is pure.
    Relay(relay::Options),
    /// The limit of reads: hyper that answers the same without looking. Started by `kv`.
    #[command(hide = true)]
    Idle {
        /// What to answer, as JSON.
        answer: PathBuf,
        /// Where to write the address.
        ready: PathBuf,
    },
    /// The limit of writes: redb alone with the same rows. Started by `kv`.
    #[command(hide = true)]
    Engine(kv::engine::Plan),
    /// The limit of fan-out: one thread that writes what it is given to every socket. Started by
    /// `fanout`.
    #[command(hide = true)]
    Bare {
        /// Where to write the address.
        ready: PathBuf,
    },
}

fn main() -> Result<()> {
    if cfg!(debug_assertions) {
        bail!("this is a debug build, whose figures mean nothing: use `cargo xtask bench`");
    }
    match Arguments::parse().verb {
        Verb::Kv(options) => kv::run(&options),
        Verb::Fanout(options) => fanout::run(&options),
        Verb::Relay(options) => relay::run(&options),
        Verb::Idle { answer, ready } => kv::idle::serve(&answer, &ready),
        Verb::Engine(plan) => kv::engine::run(&plan),
        Verb::Bare { ready } => fanout::bare::serve(&ready),
    }
}
