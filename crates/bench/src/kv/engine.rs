//! The limit of writes: redb in this process, with the rows that `store` writes for each put
//! (`crates/store/src/embedded/format.rs`), the batches that were observed, and a sync for each.
//!
//! It has no callers to wake, no rules to check and nothing to parse.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use redb::{Database, TableDefinition};
use serde::{Deserialize, Serialize};

use super::servers::{key, value};
use crate::ganglion::WHO;
use crate::process::cpu_seconds;

type Bytes = &'static [u8];
const HEADS: TableDefinition<Bytes, Bytes> = TableDefinition::new("heads");
const SERIES: TableDefinition<Bytes, Bytes> = TableDefinition::new("series");
const FEED: TableDefinition<Bytes, Bytes> = TableDefinition::new("feed");
const NODES: TableDefinition<Bytes, Bytes> = TableDefinition::new("nodes");
/// The store's default.
const CACHE_BYTES: usize = 16 << 20;
/// Flags, seq, generation, micros, neuron, length of `who`: a version without its texts.
const FIXED_BYTES: usize = 33;

/// What to write.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Plan {
    /// The file to make.
    pub(crate) file: PathBuf,
    /// Writers, each with a node of its own.
    pub(crate) writers: u64,
    /// Keys of a writer: the first round creates them, later ones overwrite.
    pub(crate) keys: u64,
    /// Puts of a transaction.
    pub(crate) batch: f64,
    pub(crate) seconds: f64,
}

/// What came of it.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Outcome {
    pub(crate) puts: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

#[expect(clippy::print_stdout, reason = "the parent process reads it")]
pub(crate) fn run(plan: &Plan) -> Result<()> {
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(&plan.file)?;
    let lasts = Duration::from_secs_f64(plan.seconds);
    let mut written: u64 = 0;
    let mut live = vec![0u64; usize::try_from(plan.writers)?];
    let mut owed = 0.0;
    let cpu = cpu_seconds("/proc/self/stat")?;
    let begun = Instant::now();
    let (mut head, mut entry, mut row) = (Vec::new(), Vec::new(), Vec::new());
    while begun.elapsed() < lasts {
        owed += plan.batch;
        let transaction = database.begin_write()?;
        {
            let mut heads = transaction.open_table(HEADS)?;
            let mut series = transaction.open_table(SERIES)?;
            let mut feed = transaction.open_table(FEED)?;
            let mut grown = HashSet::new();
            while owed >= 1.0 {
                owed -= 1.0;
                let (writer, nth) = (written % plan.writers, written / plan.writers);
                let micros = 1_700_000_000_000_000 + written;
                entry.clear();
                entry.extend_from_slice(&1u32.to_be_bytes());
                entry.extend_from_slice(format!("*data\0/bench/w{writer}").as_bytes());
                let node_len = entry.len();
                entry.push(0);
                entry.extend_from_slice(key(nth % plan.keys).as_bytes());
                head.clear();
                head.resize(FIXED_BYTES, 1);
                head.extend_from_slice(WHO.as_bytes());
                head.push(b'"');
                head.extend_from_slice(value(nth).as_bytes());
                head.push(b'"');
                let before = heads.insert(entry.as_slice(), head.as_slice())?;
                row.clear();
                row.extend_from_slice(&nth.to_be_bytes());
                row.extend_from_slice(&micros.to_be_bytes());
                row.extend_from_slice(&entry[4..]);
                let mut seq = [0; 12];
                seq[4..].copy_from_slice(&written.to_be_bytes());
                feed.insert(seq.as_slice(), row.as_slice())?;
                if let Some(before) = before {
                    entry.push(0);
                    entry.extend_from_slice(&micros.to_be_bytes());
                    series.insert(entry.as_slice(), before.value())?;
                } else {
                    live[usize::try_from(writer)?] += 1;
                    entry.truncate(node_len);
                    grown.insert((usize::try_from(writer)?, entry.clone()));
                }
                written += 1;
            }
            if !grown.is_empty() {
                let mut nodes = transaction.open_table(NODES)?;
                for (writer, node) in &grown {
                    nodes.insert(node.as_slice(), live[*writer].to_be_bytes().as_slice())?;
                }
            }
        }
        transaction.commit()?;
    }
    let outcome = Outcome {
        puts: written,
        seconds: begun.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds("/proc/self/stat")? - cpu,
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}
