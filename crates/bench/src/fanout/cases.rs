//! The cases of `bench fanout`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use super::callers::Caller;
use super::crowd::Joined;
use super::latency::Latencies;
use super::servers::{Language, Seats, Server};
use super::spread::{Plan, Spread, spread};
use super::{Bench, Crowd, crowd, pings};
use crate::ganglion::{Ganglion, part_company};
use crate::load;
use crate::process::{TICKS, cpu_seconds};
use crate::report::{Better, Figure, median, number};

pub(super) type Case = fn(&Bench<'_>, &str) -> Result<()>;

pub(super) const CASES: [(&str, Case); 7] = [
    ("1 to 1", |bench, case| one_to(bench, case, Load { members: 1, paced: 8, floods: 80 })),
    ("1 to 10", |bench, case| one_to(bench, case, Load { members: 10, paced: 4, floods: 40 })),
    ("1 to 100", |bench, case| one_to(bench, case, Load { members: 100, paced: 2, floods: 8 })),
    ("1 to 1000", |bench, case| one_to(bench, case, Load { members: 1_000, paced: 1, floods: 1 })),
    ("idle memory", idle_memory),
    ("ping flood", ping_flood),
    ("reconnect storm", reconnect_storm),
];

/// Messages of a paced publisher, and the time between two of them at least.
const PACED_MESSAGES: u64 = 500;
const PACED_EVERY: Duration = Duration::from_millis(2);
/// Messages of a flooding publisher.
const FLOOD_MESSAGES: u64 = 5_000;
/// Rounds of one server that may fail, as they do when a machine is so busy that the generator is too
/// slow for a server's patience; they are counted.
const LOST_MAX: usize = 3;
/// Members of a room where there are many rooms.
const IN_ROOM: usize = 10;
/// Silence after which everybody has heard who is there.
const QUIET: Duration = Duration::from_millis(300);
/// What memory is given to settle.
const SETTLES: Duration = Duration::from_secs(5);
/// Sockets of `ping flood`, and pings of each in a second: a page that draws 240 times a second.
const PINGING: usize = 100;
const PINGS_A_SECOND: u64 = 240;
/// For how long latencies are looked at without what is measured.
const BEFORE: Duration = Duration::from_secs(2);

/// Aims of the issue.
const FLOOD_US_MAX: f64 = 0.6;
const IDLE_BYTES_MAX: f64 = 10_240.0;
const PING_CPU_MAX: f64 = 15.0;

/// How often the workload is repeated, so that a tick of process accounting is little beside what a
/// round takes.
#[derive(Clone, Copy, Debug)]
struct Load {
    members: usize,
    paced: usize,
    floods: usize,
}

/// One server's rounds of one workload.
#[derive(Debug, Default)]
struct Rounds {
    cpu_us: Vec<f64>,
    cpu_ticks: Vec<f64>,
    generator_us: Vec<f64>,
    deliveries_per_second: Vec<f64>,
    messages_per_second: Vec<f64>,
    bytes: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

/// One server's rounds of a case.
#[derive(Debug, Default)]
struct Side {
    paced: Rounds,
    flood: Rounds,
    resident: Vec<f64>,
    /// Rounds that were made again, since a socket was cut or a message did not come.
    lost: usize,
}

/// What each server came to.
type Values = BTreeMap<Language, Vec<f64>>;

fn one_to(bench: &Bench<'_>, case: &str, load: Load) -> Result<()> {
    let all = [Language::Ours, Language::Centrifuge, Language::Nats, Language::Bare];
    let languages = bench.present(&all);
    let mut sides: BTreeMap<Language, Side> = BTreeMap::new();
    for _ in 0..bench.options.rounds {
        for &language in &languages {
            let side = sides.entry(language).or_default();
            while let Err(error) = one_round(bench, language, load, side) {
                side.lost += 1;
                let who = language.name();
                ensure!(side.lost <= LOST_MAX, "{who} of {}: {error:#}", load.members);
            }
        }
    }
    let (paced, flood) =
        (Plan { messages: PACED_MESSAGES, every: Some(PACED_EVERY) }, FLOOD_MESSAGES);
    let paced = format!("{} × {} messages", load.paced, paced.messages);
    let flood = format!("{} × {flood} messages", load.floods);
    for (name, sent, which) in [
        ("paced", paced, (|side| &side.paced) as fn(&Side) -> &Rounds),
        ("flood", flood, |side| &side.flood),
    ] {
        let of = |value: fn(&Rounds) -> &Vec<f64>| -> Values {
            sides.iter().map(|(&who, side)| (who, value(which(side)).clone())).collect()
        };
        let cpu = of(|rounds| &rounds.cpu_us);
        let aim = aim(name, load.members, &cpu);
        let mut extra = Map::new();
        extra.insert("sent".to_owned(), sent.into());
        let lost = sides.iter().filter(|(_, side)| side.lost > 0);
        let lost: Map<String, Value> =
            lost.map(|(who, side)| (who.name().to_owned(), side.lost.into())).collect();
        if !lost.is_empty() {
            extra.insert("lost_rounds".to_owned(), Value::Object(lost));
        }
        for (name, values) in [
            ("p50_us", of(|rounds| &rounds.p50)),
            ("p99_us", of(|rounds| &rounds.p99)),
            ("messages_per_s", of(|rounds| &rounds.messages_per_second)),
            ("cpu_ticks", of(|rounds| &rounds.cpu_ticks)),
            ("bytes_per_delivery", of(|rounds| &rounds.bytes)),
            ("generator_us", of(|rounds| &rounds.generator_us)),
        ] {
            extra.insert(name.to_owned(), medians(&values));
        }
        let metric = format!("{name}: CPU µs per delivery");
        print(bench, case, &metric, Better::Less, cpu, aim, extra);
        let metric = format!("{name}: deliveries per second");
        let per_second = of(|rounds| &rounds.deliveries_per_second);
        print(bench, case, &metric, Better::More, per_second, None, Map::new());
    }
    let resident = sides.into_iter().map(|(who, side)| (who, side.resident)).collect();
    print(bench, case, "resident bytes per socket", Better::Less, resident, None, Map::new());
    Ok(())
}

/// What the issue asks of the largest room.
fn aim(name: &str, members: usize, cpu: &Values) -> Option<f64> {
    match (name, members) {
        ("flood", 1_000) => Some(FLOOD_US_MAX),
        ("paced", 1_000) => cpu.get(&Language::Centrifuge).map(|values| median(values)),
        _ => None,
    }
}

/// Paced and flood of one fresh server.
fn one_round(bench: &Bench<'_>, language: Language, load: Load, side: &mut Side) -> Result<()> {
    let server = bench.start(language)?;
    let members = load.members;
    let mut crowd =
        crowd(&server, Seats { members, in_room: members, has_publisher: true, resumes: false })?;
    // Tokens and rooms are made: they are not what a socket takes.
    let before = server.process().memory()?.resident;
    crowd.join()?;
    crowd.settle(QUIET)?;
    let after = server.process().memory()?.resident;
    let paced = Plan { messages: PACED_MESSAGES, every: Some(PACED_EVERY) };
    let flood = Plan { messages: FLOOD_MESSAGES, every: None };
    let mut found = Vec::new();
    for (plan, times) in [(paced, load.paced), (flood, load.floods)] {
        let mut done = Spread::default();
        let (cpu, own) = (server.process().cpu_seconds()?, own_cpu_seconds()?);
        for _ in 0..times {
            spread(&mut crowd, members, plan, &mut done)?;
        }
        let cpu = server.process().cpu_seconds()? - cpu;
        found.push((done, cpu, own_cpu_seconds()? - own));
        crowd.settle(QUIET)?;
    }
    // A round counts when all of it went well.
    side.resident.push((after as f64 - before as f64) / members as f64);
    for (rounds, (done, cpu, own)) in [&mut side.paced, &mut side.flood].into_iter().zip(&found) {
        rounds.add(done, *cpu, *own);
    }
    Ok(())
}

impl Rounds {
    fn add(&mut self, done: &Spread, cpu_seconds: f64, own_cpu_seconds: f64) {
        let deliveries = done.deliveries as f64;
        self.cpu_us.push(cpu_seconds * 1e6 / deliveries);
        self.cpu_ticks.push(cpu_seconds * TICKS);
        self.generator_us.push(own_cpu_seconds * 1e6 / deliveries);
        self.deliveries_per_second.push(done.deliveries_per_second());
        self.messages_per_second.push(done.messages_per_second());
        self.bytes.push(done.bytes as f64 / deliveries);
        self.p50.push(done.latencies.percentile_us(0.5));
        self.p99.push(done.latencies.percentile_us(0.99));
    }
}

fn idle_memory(bench: &Bench<'_>, case: &str) -> Result<()> {
    let languages = bench.present(&[Language::Ours, Language::Centrifuge, Language::Nats]);
    let sockets = bench.options.sockets;
    let mut values: [Values; 3] = Default::default();
    for _ in 0..bench.options.rounds {
        for &language in &languages {
            let server = bench.start(language)?;
            let mut crowd = crowd(&server, rooms(sockets)?)?;
            // Tokens and rooms are made: they are not what a socket takes.
            let before = server.process().memory()?;
            crowd.join()?;
            crowd.stay(SETTLES)?;
            let after = server.process().memory()?;
            for (values, (before, after)) in values.iter_mut().zip([
                (before.resident, after.resident),
                (before.proportional, after.proportional),
                (before.private, after.private),
            ]) {
                let bytes = (after as f64 - before as f64) / sockets as f64;
                values.entry(language).or_default().push(bytes);
            }
        }
    }
    let [resident, proportional, private] = values;
    for (name, values) in
        [("resident", resident), ("proportional", proportional), ("private", private)]
    {
        let metric = format!("{name} bytes per socket");
        let mut extra = Map::new();
        extra.insert("sockets".to_owned(), sockets.into());
        print(bench, case, &metric, Better::Less, values, Some(IDLE_BYTES_MAX), extra);
    }
    Ok(())
}

fn ping_flood(bench: &Bench<'_>, case: &str) -> Result<()> {
    let mut share = Vec::new();
    let mut latencies: [(&str, Vec<f64>); 4] =
        ["quiet_p50", "quiet_p99", "p50", "p99"].map(|name| (name, Vec::new()));
    let mut pings_per_second = Vec::new();
    for _ in 0..bench.options.rounds {
        let server = bench.start(Language::Ours)?;
        // One more asks.
        let seats =
            Seats { members: PINGING + 1, in_room: IN_ROOM, has_publisher: false, resumes: false };
        let mut crowd = crowd(&server, seats)?;
        crowd.join()?;
        crowd.settle(QUIET)?;
        let quiet = pings::pings(&mut crowd, pings::Plan { per_socket: 0, lasts: BEFORE })?;
        let lasts = Duration::from_secs_f64(bench.options.seconds);
        let plan = pings::Plan { per_socket: PINGS_A_SECOND, lasts };
        let cpu = server.process().cpu_seconds()?;
        let done = pings::pings(&mut crowd, plan)?;
        // What has not been read yet belongs to it.
        crowd.settle(QUIET)?;
        let cpu = server.process().cpu_seconds()? - cpu;
        share.push(100.0 * cpu / done.lasted.as_secs_f64());
        pings_per_second.push(done.pings as f64 / done.lasted.as_secs_f64());
        let (quiet, busy) = (&quiet.latencies, &done.latencies);
        let found = [quiet, busy].map(|it| [it.percentile_us(0.5), it.percentile_us(0.99)]);
        for ((_, values), value) in latencies.iter_mut().zip(found.into_iter().flatten()) {
            values.push(value);
        }
    }
    let mut extra = Map::new();
    extra.insert("pings_per_s".to_owned(), number(median(&pings_per_second)));
    let latencies =
        latencies.iter().map(|(name, values)| ((*name).to_owned(), number(median(values))));
    extra.insert("pong_us".to_owned(), Value::Object(latencies.collect()));
    let values = Values::from([(Language::Ours, share)]);
    print(bench, case, "CPU % of one core", Better::Less, values, Some(PING_CPU_MAX), extra);
    Ok(())
}

/// The storms of a case: each server's while nobody else calls, and ours while another account does.
#[derive(Debug, Default)]
struct Storms {
    first_seconds: Values,
    seconds: Values,
    cpu_seconds: Values,
    again: Values,
    in_company: Vec<f64>,
    /// What the other account waited, without a storm and in it.
    quiet: Vec<Latencies>,
    stormy: Vec<Latencies>,
}

fn reconnect_storm(bench: &Bench<'_>, case: &str) -> Result<()> {
    let languages = bench.present(&[Language::Ours, Language::Centrifuge, Language::Nats]);
    let mut storms = Storms::default();
    for _ in 0..bench.options.rounds {
        for &language in &languages {
            let seats = Seats { resumes: true, ..rooms(bench.options.sockets)? };
            storms.round(&bench.start(language)?, seats)?;
        }
    }
    let mut extra = Map::new();
    extra.insert("sockets".to_owned(), bench.options.sockets.into());
    // A server may have a socket's old connection beside its new one for a while.
    extra.insert("files_at_most".to_owned(), bench.files.into());
    extra.insert("again".to_owned(), medians(&storms.again));
    extra.insert("first_join_s".to_owned(), medians(&storms.first_seconds));
    let metric = "seconds until all are in again";
    print(bench, case, metric, Better::Less, storms.seconds, None, extra);
    print(bench, case, "CPU-seconds", Better::Less, storms.cpu_seconds, None, Map::new());
    let ours = |values| Values::from([(Language::Ours, values)]);
    let metric = "seconds while another account calls";
    print(bench, case, metric, Better::Less, ours(storms.in_company), None, Map::new());
    for (name, of) in [
        ("p50", (|latencies| latencies.percentile_us(0.5)) as fn(&Latencies) -> f64),
        ("p99", |latencies| latencies.percentile_us(0.99)),
        ("max", Latencies::max_us),
    ] {
        let all = |latencies: &[Latencies]| latencies.iter().map(of).collect::<Vec<f64>>();
        let requests: Vec<f64> = storms.stormy.iter().map(|it| it.count() as f64).collect();
        let mut extra = Map::new();
        extra.insert("quiet".to_owned(), number(median(&all(&storms.quiet))));
        extra.insert("requests".to_owned(), number(median(&requests)));
        let metric = format!("the other account's GETs, {name} µs");
        print(bench, case, &metric, Better::Less, ours(all(&storms.stormy)), None, extra);
    }
    Ok(())
}

impl Storms {
    fn round(&mut self, server: &Server, seats: Seats) -> Result<()> {
        let mut crowd = crowd(server, seats)?;
        let other = match server {
            Server::Ours(ganglion) => Some((ganglion.address, another_account(ganglion)?)),
            Server::Other(..) => None,
        };
        let who = server.language();
        let first = crowd.join()?;
        crowd.settle(QUIET)?;
        let cpu = server.process().cpu_seconds()?;
        let storm = storm(&mut crowd)?;
        crowd.settle(QUIET)?;
        for (values, value) in [
            (&mut self.first_seconds, first.lasted.as_secs_f64()),
            (&mut self.seconds, storm.lasted.as_secs_f64()),
            (&mut self.cpu_seconds, server.process().cpu_seconds()? - cpu),
            (&mut self.again, storm.again as f64),
        ] {
            values.entry(who).or_default().push(value);
        }
        if let Some((address, request)) = other {
            self.in_company(&mut crowd, address, &request)?;
        }
        Ok(())
    }

    /// A storm beside an account that calls at a steady pace.
    fn in_company(&mut self, crowd: &mut Crowd, address: SocketAddr, request: &[u8]) -> Result<()> {
        let caller = Caller::start(address, request.to_owned())?;
        crowd.stay(BEFORE)?;
        self.quiet.push(caller.stop()?);
        let caller = Caller::start(address, request.to_owned())?;
        self.in_company.push(storm(crowd)?.lasted.as_secs_f64());
        self.stormy.push(caller.stop()?);
        Ok(())
    }
}

/// Cuts all at once and has all in again; the time is of both.
fn storm(crowd: &mut Crowd) -> Result<Joined> {
    let begun = Instant::now();
    crowd.cut();
    let joined = crowd.join()?;
    crowd.has_resumed()?;
    Ok(Joined { lasted: begun.elapsed(), ..joined })
}

/// A key of an account that has nothing to do with the sockets, and the request that reads it. It is
/// in nobody's company when this ends.
fn another_account(ganglion: &Ganglion) -> Result<Vec<u8>> {
    let authorization = ganglion.account("other")?;
    let (mut put, mut get) = (Vec::new(), Vec::new());
    let body = "{\"k\":\"key\",\"v\":\"value\"}";
    ganglion.push_as(&authorization, &mut put, "PUT", "/_data/seen", body);
    load::ask(ganglion.address, &put)?;
    ganglion.push_as(&authorization, &mut get, "GET", "/_data/seen?k=key", "");
    load::ask(ganglion.address, &get)?;
    part_company();
    Ok(get)
}

/// So many sockets in rooms of [`IN_ROOM`].
fn rooms(sockets: usize) -> Result<Seats> {
    ensure!(sockets.is_multiple_of(IN_ROOM), "--sockets has to be a multiple of {IN_ROOM}");
    Ok(Seats { members: sockets, in_room: IN_ROOM, has_publisher: false, resumes: false })
}

fn own_cpu_seconds() -> Result<f64> {
    cpu_seconds("/proc/self/stat")
}

fn medians(values: &Values) -> Value {
    let of =
        |(who, values): (&Language, &Vec<f64>)| (who.name().to_owned(), number(median(values)));
    Value::Object(values.iter().map(of).collect())
}

/// Prints a figure with ours ÷ each other, the others' versions, and whether the aim was met.
fn print(
    bench: &Bench<'_>,
    case: &str,
    metric: &str,
    better: Better,
    mut values: Values,
    aim: Option<f64>,
    mut extra: Map<String, Value>,
) {
    let ours = values.remove(&Language::Ours).unwrap_or_default();
    let of_ours = median(&ours);
    let over = |values: &Vec<f64>| number(of_ours / median(values));
    let over: Map<String, Value> =
        values.iter().map(|(who, values)| (format!("ours/{}", who.name()), over(values))).collect();
    if !over.is_empty() {
        extra.insert("over".to_owned(), Value::Object(over));
    }
    if let Some(aim) = aim {
        let is_met = of_ours <= aim;
        extra.insert("aim".to_owned(), json!({ "at_most": number(aim), "met": is_met }));
    }
    let versions: Map<String, Value> = values
        .keys()
        .filter_map(|who| Some((who.name().to_owned(), bench.version(*who)?.into())))
        .collect();
    if !versions.is_empty() {
        extra.insert("versions".to_owned(), Value::Object(versions));
    }
    let limit = values.remove(&Language::Bare);
    let rivals = values.into_iter().map(|(who, values)| (who.name(), values)).collect();
    bench.report.figure(Figure { case, metric, better, ours, rivals, limit, extra });
}
