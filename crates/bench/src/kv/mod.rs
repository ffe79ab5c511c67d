//! `bench kv`: what KV4 costs, beside its rival (etcd) and beside what the parts under it can do.
//! Each case has its servers side by side and rounds in turn; `docs/measured/kv.md` says how to read
//! the figures.

pub(crate) mod engine;
pub(crate) mod idle;
mod servers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use self::engine::Outcome;
use self::servers::{
    Etcd, EtcdGet, EtcdLoad, EtcdPut, Idle, Keys, NODE_KEYS, OursGet, OursLoad, OursPut, Same,
    ToIdle, etcd_range, etcd_version, sample,
};
use crate::ganglion::{self, Ganglion};
use crate::load::{Bounds, Client, Done, Workload};
use crate::process::Process;
use crate::report::{Better, Figure, Report, Shown, median, number};
use crate::rivals::ETCD;

/// Connections that load data before a case measures.
const LOADERS: usize = 128;
/// Puts whose syncs are looked at one by one.
const TRACED_PUTS: u64 = 200;
/// Versions of the series of `range series`, and rows that one read of it takes.
const SERIES_VERSIONS: u64 = 10_000;
const SERIES_ROWS: usize = 100;

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    shown: Shown,
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

struct Bench<'a> {
    options: &'a Options,
    report: Report,
    ganglion: PathBuf,
    /// `Err` says why there is none.
    etcd: Result<PathBuf, String>,
    folder: TempDir,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let report = options.shown.report();
    let ganglion = match &options.ganglion {
        Some(program) => program.clone(),
        None => ganglion::build()?,
    };
    let etcd = match options.no_rivals {
        true => Err("left out by --no-rivals".to_owned()),
        false => ETCD.install().map(|etcd| etcd.program).map_err(|error| format!("{error:#}")),
    };
    let folder = match &options.folder {
        Some(folder) => TempDir::new_in(folder)?,
        None => TempDir::new()?,
    };
    let bench = Bench { options, report, ganglion, etcd, folder };
    type Case = fn(&Bench<'_>, &str) -> Result<()>;
    let cases: [(&str, Case); 5] = [
        ("get warm", get_warm),
        ("put durable 1", |bench, case| put_durable(bench, case, 1, 4_000)),
        ("put durable 64", |bench, case| put_durable(bench, case, 64, 200)),
        ("range series", range_series),
        ("memory per million keys", memory),
    ];
    for (name, case) in options.shown.chosen(&cases)? {
        if let Err(why) = &bench.etcd {
            report.missing(name, &format!("etcd: {why}"));
        }
        case(&bench, name).with_context(|| format!("case `{name}`"))?;
    }
    Ok(())
}

/// One server's rounds.
#[derive(Default)]
struct Rounds {
    per_cpu_second: Vec<f64>,
    per_second: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    refused: u64,
}

impl Rounds {
    fn add(&mut self, done: &Done, cpu_seconds: f64) {
        self.per_cpu_second.push(done.requests as f64 / cpu_seconds);
        self.per_second.push(done.per_second());
        self.p50.push(done.percentile(0.5));
        self.p99.push(done.percentile(0.99));
        self.refused += done.refused;
    }

    fn latency(&self) -> Value {
        let mut latency =
            json!({ "p50": number(median(&self.p50)), "p99": number(median(&self.p99)) });
        if self.refused > 0 {
            latency["refused"] = json!(self.refused);
        }
        latency
    }
}

/// The rounds of all servers of a case.
#[derive(Default)]
struct Sides {
    ours: Rounds,
    limit: Option<Rounds>,
    etcd: Option<Rounds>,
}

impl Sides {
    /// Prints requests per CPU-second and per second, with latencies beside.
    fn print(&self, bench: &Bench<'_>, case: &str, what: &str, extra: &Map<String, Value>) {
        let sides = [("limit", &self.limit), ("etcd", &self.etcd)];
        let mut latency = Map::new();
        latency.insert("ours".to_owned(), self.ours.latency());
        for (name, rounds) in sides {
            // The engine alone answers nobody.
            if let Some(rounds) = rounds.as_ref().filter(|rounds| !rounds.p50.is_empty()) {
                latency.insert(name.to_owned(), rounds.latency());
            }
        }
        let mut extra = extra.clone();
        extra.insert("latency_us".to_owned(), latency.into());
        let of = |rounds: &Option<Rounds>, which: fn(&Rounds) -> &Vec<f64>| {
            rounds.as_ref().map(|rounds| which(rounds).clone())
        };
        for (unit, which) in [
            ("CPU-second", (|rounds| &rounds.per_cpu_second) as fn(&Rounds) -> &Vec<f64>),
            ("second", |rounds| &rounds.per_second),
        ] {
            bench.report.figure(Figure {
                case,
                metric: &format!("{what} per {unit}"),
                better: Better::More,
                ours: which(&self.ours).clone(),
                rivals: of(&self.etcd, which).map(|values| ("etcd", values)).into_iter().collect(),
                limit: of(&self.limit, which),
                extra: extra.clone(),
            });
        }
    }
}

impl Bench<'_> {
    fn lasts(&self) -> Bounds {
        Bounds::time(Duration::from_secs_f64(self.options.seconds))
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ours(&self, name: &str, settings: &[(&str, &str)]) -> Result<Ganglion> {
        Ganglion::start(&self.ganglion, &self.folder(&format!("{name}/ours")), settings)
    }

    fn etcd(&self, name: &str) -> Result<Option<Etcd>> {
        let folder = self.folder(&format!("{name}/etcd"));
        self.etcd.as_ref().ok().map(|program| Etcd::start(program, &folder)).transpose()
    }

    fn note(&self) -> Map<String, Value> {
        let mut extra = Map::new();
        if let Ok(program) = &self.etcd {
            extra.insert("rival".to_owned(), etcd_version(program).into());
        }
        extra
    }
}

/// One server's round, its CPU time beside it. Its connections are new: servers close idle ones.
fn round(
    rounds: &mut Rounds,
    (process, address): (&Process, SocketAddr),
    connections: usize,
    workload: &mut impl Workload,
    bounds: Bounds,
) -> Result<()> {
    let mut client = Client::connect(address, connections)?;
    let before = process.cpu_seconds()?;
    let done = client.run(workload, bounds)?;
    rounds.add(&done, process.cpu_seconds()? - before);
    Ok(())
}

fn get_warm(bench: &Bench<'_>, case: &str) -> Result<()> {
    let keys = NODE_KEYS;
    let count = bench.options.connections;
    let ours = bench.ours("get", &[])?;
    let etcd = bench.etcd("get")?;
    Client::connect(ours.address, LOADERS)?
        .run(&mut OursLoad { server: &ours, next: 0 }, Bounds::count(keys))?;
    if let Some(etcd) = &etcd {
        Client::connect(etcd.address, LOADERS)?
            .run(&mut EtcdLoad { address: etcd.address, next: 0 }, Bounds::count(keys))?;
    }
    let mut get = OursGet { server: &ours, keys: Keys::any(keys) };
    let sample = sample(&ours, &mut get)?;
    let idle = Idle::start(&bench.folder("get/idle"), &sample)?;

    let mut sides = Sides::default();
    for nth in 0..=bench.options.rounds {
        // The first round warms caches, and counts for nothing.
        if nth == 1 {
            sides = Sides::default();
        }
        let bounds = bench.lasts();
        round(&mut sides.ours, ours.at(), count, &mut get, bounds)?;
        let mut to_idle = ToIdle { requests: &mut get, answer: &sample.body };
        round(sides.limit.get_or_insert_default(), idle.at(), count, &mut to_idle, bounds)?;
        if let Some(etcd) = &etcd {
            let mut get = EtcdGet { address: etcd.address, keys: Keys::any(keys) };
            let rounds = sides.etcd.get_or_insert_default();
            round(rounds, etcd.at(), count, &mut get, bounds)?;
        }
    }
    sides.print(bench, case, "requests", &bench.note());
    Ok(())
}

fn put_durable(bench: &Bench<'_>, case: &str, writers: usize, keys: u64) -> Result<()> {
    let name = format!("put{writers}");
    let ours = bench.ours(&name, &[])?;
    let etcd = bench.etcd(&name)?;
    let mut sides = Sides::default();
    let mut batches = Vec::new();
    for nth in 0..bench.options.rounds {
        let node = format!("r{nth}w");
        // Each round begins with keys that are not there yet and goes on to overwrite them.
        let mut put = OursPut { server: &ours, node: node.clone(), keys };
        let before = ours.commits()?;
        round(&mut sides.ours, ours.at(), writers, &mut put, bench.lasts())?;
        let after = ours.commits()?;
        let batch = (after.1 - before.1) / (after.0 - before.0);
        batches.push(batch);

        let engine =
            engine(bench, &bench.folder(&format!("{name}/redb-{nth}")), writers, keys, batch)?;
        let limit = sides.limit.get_or_insert_default();
        limit.per_cpu_second.push(engine.puts as f64 / engine.cpu_seconds);
        limit.per_second.push(engine.puts as f64 / engine.seconds);

        if let Some(etcd) = &etcd {
            let mut put = EtcdPut { address: etcd.address, node, keys };
            let rounds = sides.etcd.get_or_insert_default();
            round(rounds, etcd.at(), writers, &mut put, bench.lasts())?;
        }
    }
    let mut extra = bench.note();
    extra.insert("puts_per_commit".to_owned(), number(median(&batches)));
    let mut put = OursPut { server: &ours, node: "traced".to_owned(), keys: TRACED_PUTS };
    let syncs = traced(bench, &ours.process, &mut Client::connect(ours.address, 1)?, &mut put)?;
    ensure!(
        matches!(syncs, Err(_) | Ok(0)),
        "ours gave {syncs:?} of {TRACED_PUTS} answers unsynced"
    );
    extra.insert("unsynced_answers_ours".to_owned(), syncs.map_or_else(Value::from, Value::from));
    if let Some(etcd) = &etcd {
        let mut put =
            EtcdPut { address: etcd.address, node: "traced".to_owned(), keys: TRACED_PUTS };
        let syncs = traced(bench, &etcd.process, &mut Client::connect(etcd.address, 1)?, &mut put)?;
        let syncs = syncs.map_or_else(Value::from, Value::from);
        extra.insert("unsynced_answers_etcd".to_owned(), syncs);
    }
    sides.print(bench, case, "durable puts", &extra);
    Ok(())
}

fn engine(
    bench: &Bench<'_>,
    file: &Path,
    writers: usize,
    keys: u64,
    batch: f64,
) -> Result<Outcome> {
    let done = Command::new(std::env::current_exe()?)
        .arg("engine")
        .arg(file)
        .args([writers.to_string(), keys.to_string(), batch.to_string()])
        .arg(bench.options.seconds.to_string())
        .output()?;
    let _ = std::fs::remove_file(file);
    if !done.status.success() {
        bail!("redb alone: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(serde_json::from_slice(&done.stdout)?)
}

/// Watches a server by strace while one writer puts: how many answers went out without a finished
/// sync since the answer before; or why it cannot be watched.
fn traced(
    bench: &Bench<'_>,
    process: &Process,
    client: &mut Client,
    workload: &mut impl Workload,
) -> Result<Result<u64, String>> {
    let file = bench.folder(&format!("trace-{}", process.id()));
    let mut command = Command::new("strace");
    command
        .args(["-f", "-q", "-s", "20", "-e", "trace=fsync,fdatasync,write,writev,sendto,sendmsg"])
        .arg("-o")
        .arg(&file)
        .args(["-p", &process.id().to_string()]);
    let log = bench.folder("strace.log");
    let Ok(strace) = Process::start(&mut command, &log) else {
        return Ok(Err("no strace".to_owned()));
    };
    // It is attached when it shows up in the process's status.
    let status = format!("/proc/{}/status", process.id());
    let attached = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        std::fs::read_to_string(&status).is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
    });
    if !attached {
        return Ok(Err(format!("strace: {}", std::fs::read_to_string(&log)?)));
    }
    std::thread::sleep(Duration::from_millis(200));
    client.run(workload, Bounds::count(TRACED_PUTS))?;
    // Asked to end, strace writes what it has seen and detaches.
    Command::new("kill").args(["-INT", &strace.id().to_string()]).status()?;
    std::thread::sleep(Duration::from_millis(200));
    drop(strace);
    let syncs = Syncs::of(&std::fs::read_to_string(&file)?);
    ensure!(syncs.answers >= TRACED_PUTS, "strace saw {} answers of {TRACED_PUTS}", syncs.answers);
    Ok(Ok(syncs.unsynced))
}

/// What a trace of a server with one writer shows.
#[derive(Debug, Default, Eq, PartialEq)]
struct Syncs {
    answers: u64,
    /// Answers that went out without a finished sync since the answer before.
    unsynced: u64,
}

impl Syncs {
    fn of(trace: &str) -> Syncs {
        let (mut syncs, mut is_synced) = (Syncs::default(), false);
        for line in trace.lines() {
            let is_sync = line.contains("fsync") || line.contains("fdatasync");
            if is_sync && line.ends_with("= 0") {
                is_synced = true;
            }
            if line.contains("\"HTTP/1.1 200") {
                syncs.answers += 1;
                syncs.unsynced += u64::from(!std::mem::take(&mut is_synced));
            }
        }
        syncs
    }
}

fn range_series(bench: &Bench<'_>, case: &str) -> Result<()> {
    let ours = bench.ours("series", &[])?;
    let etcd = bench.etcd("series")?;
    let mut put = OursPut { server: &ours, node: "series".to_owned(), keys: 1 };
    // One writer's node, so one key: every put after the first adds a version to its series.
    let year = || anyhow::Ok(year_of(std::time::UNIX_EPOCH.elapsed()?.as_secs()));
    let first = year()?;
    Client::connect(ours.address, 1)?.run(&mut put, Bounds::count(SERIES_VERSIONS))?;
    let last = year()?;
    let target = format!(
        "/_data/bench/series0?k={}&time_series=1&gs={first}&ge={last}&limit={SERIES_ROWS}",
        servers::key(0)
    );
    let mut request = Vec::new();
    ours.push(&mut request, "GET", &target, "");
    let expected = crate::load::ask(ours.address, &request)?.1;
    let rows: Value = serde_json::from_slice(&expected)?;
    let rows = rows["v"].as_array().map_or(0, Vec::len);
    ensure!(rows == SERIES_ROWS, "ours gave {rows} rows");
    let mut read = Same { request, expected };
    let sample = sample(&ours, &mut read)?;
    let idle = Idle::start(&bench.folder("series/idle"), &sample)?;
    let mut sides = Sides::default();
    let count = bench.options.connections;
    let mut etcd_read = None;
    if let Some(etcd) = &etcd {
        let mut load = EtcdLoad { address: etcd.address, next: 0 };
        Client::connect(etcd.address, LOADERS)?.run(&mut load, Bounds::count(SERIES_VERSIONS))?;
        let request = etcd_range(etcd.address, "/bench/n5/", "/bench/n50", SERIES_ROWS);
        let (_, expected) = crate::load::ask(etcd.address, &request)?;
        let rows = expected.windows(11).filter(|window| window == b"mod_revisio").count();
        ensure!(rows == SERIES_ROWS, "etcd gave {rows} rows");
        etcd_read = Some(Same { request, expected });
    }
    for nth in 0..=bench.options.rounds {
        if nth == 1 {
            sides = Sides::default();
        }
        round(&mut sides.ours, ours.at(), count, &mut read, bench.lasts())?;
        let limit = sides.limit.get_or_insert_default();
        round(limit, idle.at(), count, &mut read, bench.lasts())?;
        if let (Some(etcd), Some(read)) = (&etcd, &mut etcd_read) {
            let rounds = sides.etcd.get_or_insert_default();
            round(rounds, etcd.at(), count, read, bench.lasts())?;
        }
    }
    sides.print(bench, case, "ranges of 100 rows", &bench.note());
    Ok(())
}

/// Memory, and the price of a read, as keys grow tenfold.
fn memory(bench: &Bench<'_>, case: &str) -> Result<()> {
    // Views are to hold all of it, as they would on a machine that is meant for it.
    let ours = bench.ours("memory", &[("GANGLION_VIEWS__BYTES", "4GiB")])?;
    let etcd = bench.etcd("memory")?;
    let count = bench.options.connections;
    let empty = (ours.process.memory()?, etcd.as_ref().map(|it| it.process.memory()).transpose()?);
    let mut ours_load = OursLoad { server: &ours, next: 0 };
    let mut etcd_load = etcd.as_ref().map(|etcd| EtcdLoad { address: etcd.address, next: 0 });
    let mut by_size: Vec<(u64, Sides)> = Vec::new();
    let mut keys = 1_000;
    while keys <= bench.options.keys {
        let more = Bounds::count(keys - ours_load.next);
        Client::connect(ours.address, LOADERS)?.run(&mut ours_load, more)?;
        if let (Some(etcd), Some(load)) = (&etcd, &mut etcd_load) {
            Client::connect(etcd.address, LOADERS)?.run(load, more)?;
        }
        // Every node is read once, which loads its view.
        let nodes = keys.div_ceil(NODE_KEYS);
        Client::connect(ours.address, count)?
            .run(&mut OursGet { server: &ours, keys: Keys::of_nodes() }, Bounds::count(nodes))?;
        let mut sides = Sides::default();
        let mut get = OursGet { server: &ours, keys: Keys::any(keys) };
        let mut etcd_get =
            etcd.as_ref().map(|etcd| EtcdGet { address: etcd.address, keys: Keys::any(keys) });
        for _ in 0..bench.options.rounds {
            round(&mut sides.ours, ours.at(), count, &mut get, bench.lasts())?;
            if let (Some(etcd), Some(get)) = (&etcd, &mut etcd_get) {
                let rounds = sides.etcd.get_or_insert_default();
                round(rounds, etcd.at(), count, get, bench.lasts())?;
            }
        }
        sides.print(bench, &format!("get at {keys} keys"), "requests", &bench.note());
        by_size.push((keys, sides));
        keys *= 10;
    }
    let millions = ours_load.next as f64 / 1e6;
    let per_million = |now: u64, before: u64| (now as f64 - before as f64) / millions / 1e6;
    let now = (ours.process.memory()?, etcd.as_ref().map(|it| it.process.memory()).transpose()?);
    type Part = fn(&crate::process::Memory) -> u64;
    for (metric, part) in [
        ("resident MB per million keys", (|memory| memory.resident) as Part),
        ("anonymous MB per million keys", |memory| memory.anonymous),
    ] {
        let rivals = match (&now.1, &empty.1) {
            (Some(now), Some(empty)) => vec![("etcd", vec![per_million(part(now), part(empty))])],
            _ => Vec::new(),
        };
        bench.report.figure(Figure {
            case,
            metric,
            better: Better::Less,
            ours: vec![per_million(part(&now.0), part(&empty.0))],
            rivals,
            limit: None,
            extra: bench.note(),
        });
    }
    if let (Some((few, first)), Some((many, last))) = (by_size.first(), by_size.last()) {
        let grown = |first: &Rounds, last: &Rounds| {
            vec![median(&first.per_cpu_second) / median(&last.per_cpu_second)]
        };
        let etcd = first.etcd.as_ref().zip(last.etcd.as_ref());
        bench.report.figure(Figure {
            case: "get as keys grow",
            metric: &format!("cost at {many} keys / cost at {few}"),
            better: Better::Less,
            ours: grown(&first.ours, &last.ours),
            rivals: etcd.map(|(first, last)| ("etcd", grown(first, last))).into_iter().collect(),
            limit: Some(vec![1.0]),
            extra: bench.note(),
        });
    }
    Ok(())
}

/// The year of a time, by the calendar of UTC.
fn year_of(unix_s: u64) -> u64 {
    let mut year = 1970;
    let mut days = unix_s / 86_400;
    loop {
        let is_leap = year % 4 == 0 && year % 100 != 0 || year % 400 == 0;
        let length = 365 + u64::from(is_leap);
        if days < length {
            return year;
        }
        days -= length;
        year += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_year_ends_when_the_calendar_says_so() {
        for (unix_s, year) in [
            (0, 1970),
            (946_684_799, 1999),
            (946_684_800, 2000),
            (978_307_199, 2000),
            (978_307_200, 2001),
            (1_735_689_599, 2024),
            (1_735_689_600, 2025),
            (1_767_225_599, 2025),
            (1_767_225_600, 2026),
        ] {
            assert_eq!(year_of(unix_s), year, "{unix_s}");
        }
    }

    #[test]
    fn an_answer_before_its_sync_is_seen_in_a_trace() -> Result<()> {
        let answer = r#"7 sendto(9, "HTTP/1.1 200 OK\r\nconten"..., 150, 0, NULL, 0) = 150"#;
        let trace = |lines: &[&str]| lines.join("\n");
        let synced = trace(&["7 fdatasync(5) = 0", answer]);
        assert_eq!(Syncs::of(&synced), Syncs { answers: 1, unsynced: 0 });
        let resumed =
            trace(&["8 fdatasync(5 <unfinished ...>", "8 <... fdatasync resumed>) = 0", answer]);
        assert_eq!(Syncs::of(&resumed), Syncs { answers: 1, unsynced: 0 });
        let early =
            trace(&["8 fdatasync(5 <unfinished ...>", answer, "8 <... fdatasync resumed>) = 0"]);
        assert_eq!(Syncs::of(&early), Syncs { answers: 1, unsynced: 1 });
        let failed = trace(&["7 fdatasync(5) = -1 EIO (Input/output error)", answer]);
        assert_eq!(Syncs::of(&failed), Syncs { answers: 1, unsynced: 1 });
        let twice = trace(&["7 fsync(5) = 0", answer, answer]);
        assert_eq!(Syncs::of(&twice), Syncs { answers: 2, unsynced: 1 });
        Ok(())
    }
}
