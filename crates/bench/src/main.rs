//! `bench kv`: what KV4 costs, beside its rival (etcd) and beside what the parts under it can do.
//!
//! One load generator for all servers, rounds in turn, medians; CPU from process accounting. It
//! prints one JSON object a line with `--json`, else a table. `docs/measured/kv.md` says how to read
//! the figures. Not here: who compares them with older ones (`cargo xtask bench kv --baseline FILE`).

mod cases;
mod engine;
mod idle;
mod load;
mod process;
mod report;
mod servers;

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
    Kv(Options),
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
    Engine(engine::Plan),
}

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// One JSON object a line in place of a table.
    #[arg(long)]
    json: bool,
    /// Only cases whose name holds this.
    #[arg(long)]
    case: Option<String>,
    /// Rounds of each server, in turn; medians are told.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one server's round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Connections of `get warm` and `range series`.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Keys of `memory per million keys` at most.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// The program to measure; built for it when left out.
    #[arg(long)]
    ganglion: Option<PathBuf>,
    /// Where data is kept while measuring; must be on the disk that is meant.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Do not start rivals.
    #[arg(long)]
    no_rivals: bool,
}

fn main() -> Result<()> {
    if cfg!(debug_assertions) {
        bail!("this is a debug build, whose figures mean nothing: use `cargo xtask bench`");
    }
    match Arguments::parse().verb {
        Verb::Kv(options) => cases::run(&options),
        Verb::Idle { answer, ready } => idle::serve(&answer, &ready),
        Verb::Engine(plan) => engine::run(&plan),
    }
}
