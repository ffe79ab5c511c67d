//! Durable puts a second, by 1 and by 64 writers, beside redb alone with the same batches.
//!
//! `cargo run --release -p store --example puts [folder]`. "Alone" puts the same entry and value into
//! one table of redb, one sync a batch; "same rows" writes every row that the store writes.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kv4::Stamp;
use kv4::address::{Bucket, Entry, Node};
use kv4::store::Store;
use kv4::write::{Condition, KeyChange, Op, Write};
use redb::{Database, TableDefinition};
use store::EmbeddedStore;
use store::contract::block_on;
use store::embedded::Options;
use wire::json::Json;
use wire::names::{Key, Layer, Path as DataPath};

const LASTS: Duration = Duration::from_millis(1_500);
/// Keys that each writer writes in turn; the first round creates them, later ones supersede.
const KEYS: u64 = 10_000;
/// Each round measures all three in turn; medians are told, since other work comes and goes.
const ROUNDS: usize = 9;

#[expect(clippy::print_stdout, reason = "to print is what it is for")]
fn main() {
    let folder = match std::env::args().nth(1) {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let folder = folder.expect("a folder for the files");
    let start = Instant::now();
    let store = EmbeddedStore::open(&folder.path().join("empty"), Options::default());
    println!("create and open an empty store: {:?}", start.elapsed());
    drop(store);
    let start = Instant::now();
    let store = EmbeddedStore::open(&folder.path().join("empty"), Options::default());
    println!("open an empty store: {:?}; resident {}", start.elapsed(), resident());
    drop(store);

    opened_after_a_kill(folder.path());
    for writers in [1, 64] {
        let (mut rounds, mut batches, mut figures) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let file = |name: &str| folder.path().join(format!("{name}-{writers}-{round}"));
            let ours = puts(&file("store"), writers);
            let (a_second, batch) = (ours.a_second, ours.batch);
            batches.push(batch as f64);
            figures.push(ours);
            rounds.push((
                a_second,
                raw(&file("raw"), batch, false),
                raw(&file("rows"), batch, true),
            ));
        }
        println!(
            "{writers:2} writers: p50 {:.0} us, p99 {:.0} us, longest {:.0} us; CPU {:.1} us a put",
            median(figures.iter().map(|ours| ours.p50_us)),
            median(figures.iter().map(|ours| ours.p99_us)),
            median(figures.iter().map(|ours| ours.longest_us)),
            median(figures.iter().map(|ours| ours.cpu_us)),
        );
        println!(
            "{writers:2} writers, {:2.0} a commit: {:6.0} puts/s; redb alone {:6.0} (ratio {:.2}, {:.2} to {:.2}); \
             redb with the same rows {:6.0} (ratio {:.2})",
            median(batches.into_iter()),
            median(rounds.iter().map(|round| round.0)),
            median(rounds.iter().map(|round| round.1)),
            median(rounds.iter().map(|round| round.0 / round.1)),
            rounds.iter().map(|round| round.0 / round.1).fold(f64::MAX, f64::min),
            rounds.iter().map(|round| round.0 / round.1).fold(0.0, f64::max),
            median(rounds.iter().map(|round| round.2)),
            median(rounds.iter().map(|round| round.0 / round.2)),
        );
    }
}

/// Opens what a kill leaves of a store whose log is nearly full.
#[expect(clippy::print_stdout, reason = "to print is what it is for")]
fn opened_after_a_kill(folder: &Path) {
    let [path, left] = ["killed", "left"].map(|name| folder.join(name));
    let store = EmbeddedStore::open(&path, Options::default()).expect("a new store");
    let mut puts = 0;
    while store.commits().checkpoints == 0 && puts < 24_000 {
        let writes = (puts..puts + 32).map(|key| put(key % 64, key)).collect();
        assert!(block_on(store.write(writes)).iter().all(Result::is_ok));
        puts += 32;
    }
    let log = |store: &Path| store.with_extension("log");
    std::fs::copy(&path, &left).expect("a copy");
    std::fs::copy(log(&path), log(&left)).expect("a copy");
    let start = Instant::now();
    let store = EmbeddedStore::open(&left, Options::default()).expect("a store that was killed");
    println!(
        "open a store with {puts} puts in its log: {:?}; resident {}",
        start.elapsed(),
        resident()
    );
    drop(store);
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The process's resident memory, where the system tells it.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.map_or("?".to_owned(), |line| line.split_whitespace().skip(1).collect())
}

/// What a round of puts through the store came to.
struct Figures {
    a_second: f64,
    /// Puts a commit.
    batch: u64,
    p50_us: f64,
    p99_us: f64,
    longest_us: f64,
    /// Of the process, the writers' threads included.
    cpu_us: f64,
}

fn puts(path: &Path, writers: u64) -> Figures {
    let store = EmbeddedStore::open(path, Options::default()).expect("a new store");
    let (start, cpu) = (Instant::now(), cpu_us());
    let mut took: Vec<f64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..writers)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || {
                    let mut took = Vec::new();
                    while start.elapsed() < LASTS {
                        let asked = Instant::now();
                        let key = took.len() as u64 % KEYS;
                        let answers = block_on(store.write(vec![put(writer, key)]));
                        assert!(answers[0].is_ok(), "{answers:?}");
                        took.push(asked.elapsed().as_secs_f64() * 1e6);
                    }
                    took
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a writer")).collect()
    });
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_us() - cpu);
    took.sort_by(f64::total_cmp);
    let commits = store.commits();
    Figures {
        a_second: took.len() as f64 / seconds,
        batch: commits.requests.div_ceil(commits.commits),
        p50_us: took[took.len() / 2],
        p99_us: took[took.len() * 99 / 100],
        longest_us: took[took.len() - 1],
        cpu_us: cpu / took.len() as f64,
    }
}

/// User and system time of this process so far; 0 where the system does not tell it so.
fn cpu_us() -> f64 {
    const TICK_US: f64 = 10_000.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * TICK_US
}

/// Puts a second into redb itself.
fn raw(path: &Path, batch: u64, same_rows: bool) -> f64 {
    const ONE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("one");
    const TWO: TableDefinition<&[u8], &[u8]> = TableDefinition::new("two");
    const SEQ: TableDefinition<u64, &[u8]> = TableDefinition::new("seq");
    let database =
        Database::builder().set_cache_size(16 << 20).create(path).expect("a new database");
    let start = Instant::now();
    let mut written = 0;
    while start.elapsed() < LASTS {
        let txn = database.begin_write().expect("the only writer");
        {
            let mut one = txn.open_table(ONE).expect("a table");
            let mut two = same_rows.then(|| txn.open_table(TWO).expect("a table"));
            let mut seq = same_rows.then(|| txn.open_table(SEQ).expect("a table"));
            for nth in 0..batch {
                let round = written / batch;
                let key = format!("0000*data\0/bench/{nth}\0key-{:08}", round % KEYS);
                let value = value(written);
                let before =
                    one.insert(key.as_bytes(), value.as_bytes()).expect("a write").is_some();
                if let (Some(two), Some(seq)) = (&mut two, &mut seq) {
                    if before {
                        let key = format!("{key}\0{written:08}");
                        two.insert(key.as_bytes(), value.as_bytes()).expect("a write");
                    }
                    seq.insert(written, key.as_bytes()).expect("a write");
                }
                written += 1;
            }
        }
        txn.commit().expect("a commit");
    }
    written as f64 / start.elapsed().as_secs_f64()
}

fn put(writer: u64, key: u64) -> Write {
    Write {
        entry: entry(writer, key),
        op: Op::Put {
            value: Json::parse(&value(key)).expect("JSON"),
            keys: [KeyChange::Keep, KeyChange::Keep, KeyChange::Keep],
        },
        condition: Condition::Any,
        who: Arc::from("elena"),
        stamp: Stamp { micros: 1_700_000_000_000_000 + key, neuron: 1 },
    }
}

fn entry(writer: u64, key: u64) -> Entry {
    let layer = Layer::parse("*data").expect("a layer");
    let path = DataPath::parse(&format!("/bench/{writer}")).expect("a path");
    Node::new(Bucket::sys(), layer, path).entry(Key::parse(&format!("key-{key:08}")).expect("key"))
}

/// About 120 bytes of JSON.
fn value(number: u64) -> String {
    format!("{{\"n\":{number:012},\"t\":\"{}\"}}", "x".repeat(96)).replace(":0", ":1")
}
