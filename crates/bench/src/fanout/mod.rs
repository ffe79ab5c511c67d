//! `bench fanout`: what messages on paths and the sockets they go over cost, beside Centrifuge and
//! NATS and beside one thread that only writes.
//!
//! One generator for all servers (`crowd`), a fresh server for each round, rounds in turn, medians.
//! `docs/measured/fanout.md` says how to read the figures.

pub(crate) mod bare;
mod callers;
mod cases;
mod crowd;
mod latency;
mod pings;
mod servers;
mod spread;

use std::path::PathBuf;

use anyhow::{Context, Result};
use tempfile::TempDir;

use self::crowd::Crowd;
use self::servers::{Language, Seats, Server};
use crate::ganglion;
use crate::process::raise_file_limit;
use crate::report::{Report, Shown};
use crate::rivals::{CENTRIFUGE, Installed, NATS, Rival};

/// Files that a server or the generator may have open beside the sockets.
const OTHER_FILES: usize = 1_000;

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    shown: Shown,
    /// Rounds of each server, in turn; medians are told.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of one round of `ping flood`.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Sockets of `idle memory` and `reconnect storm`, a multiple of ten.
    #[arg(long, default_value_t = 10_000)]
    sockets: usize,
    /// The program to measure; built for it when left out.
    #[arg(long)]
    ganglion: Option<PathBuf>,
    /// Where data is kept while measuring.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Do not start rivals.
    #[arg(long)]
    no_rivals: bool,
}

struct Bench<'a> {
    options: &'a Options,
    report: Report,
    ganglion: PathBuf,
    /// `Err` says why there is none.
    centrifuge: Result<Installed, String>,
    nats: Result<Installed, String>,
    folder: TempDir,
    /// Files that each server may have open.
    files: u64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let report = options.shown.report();
    let files = raise_file_limit(options.sockets + OTHER_FILES)?;
    let ganglion = match &options.ganglion {
        Some(program) => program.clone(),
        None => ganglion::build()?,
    };
    let install = |rival: Rival| match options.no_rivals {
        true => Err("left out by --no-rivals".to_owned()),
        false => rival.install().map_err(|error| format!("{error:#}")),
    };
    let folder = match &options.folder {
        Some(folder) => TempDir::new_in(folder)?,
        None => TempDir::new()?,
    };
    let (centrifuge, nats) = (install(CENTRIFUGE), install(NATS));
    let bench = Bench { options, report, ganglion, centrifuge, nats, folder, files };
    for (name, case) in options.shown.chosen(&cases::CASES)? {
        for (rival, installed) in [(CENTRIFUGE, &bench.centrifuge), (NATS, &bench.nats)] {
            if let Err(why) = installed {
                report.missing(name, &format!("{}: {why}", rival.name));
            }
        }
        case(&bench, name).with_context(|| format!("case `{name}`"))?;
    }
    Ok(())
}

impl Bench<'_> {
    /// Those of these servers that there are.
    fn present(&self, languages: &[Language]) -> Vec<Language> {
        let is_there = |language: &Language| match language {
            Language::Ours | Language::Bare => true,
            Language::Centrifuge => self.centrifuge.is_ok(),
            Language::Nats => self.nats.is_ok(),
        };
        languages.iter().copied().filter(is_there).collect()
    }

    /// A server that has served nobody.
    fn start(&self, language: Language) -> Result<Server> {
        let folder = TempDir::new_in(self.folder.path())?.keep();
        let there = |installed: &Result<Installed, String>| {
            installed.clone().map_err(|why| anyhow::anyhow!("{why}"))
        };
        match language {
            Language::Ours => Server::ours(&self.ganglion, &folder),
            Language::Centrifuge => Server::centrifuge(&there(&self.centrifuge)?, &folder),
            Language::Nats => Server::nats(&there(&self.nats)?, &folder),
            Language::Bare => Server::bare(&folder),
        }
        .with_context(|| format!("starting {}", language.name()))
    }

    /// The version of a server, where it is another's.
    fn version(&self, language: Language) -> Option<&str> {
        let installed = match language {
            Language::Ours | Language::Bare => return None,
            Language::Centrifuge => &self.centrifuge,
            Language::Nats => &self.nats,
        };
        installed.as_ref().ok().map(|installed| installed.version.as_str())
    }
}

/// Sockets for all seats of a server; none is open yet.
fn crowd(server: &Server, seats: Seats) -> Result<Crowd> {
    Crowd::new(server.language(), server.address(), server.scripts(seats)?)
}
