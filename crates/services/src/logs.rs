//! Logs as layers: `*logs:debug|info|warn` at `/runtime/hosts/active`, a series per neuron.
//!
//! Lines are gathered in memory and written with the statistics; each account sees what concerns it,
//! `$sys` sees its own. Retention keeps the layers short ([`KEPT_LINES`], [`KEPT_S`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kv4::store::{Event, Listener, Retention, StoreError};
use kv4::write::{Condition, Op, Write, WriteError};
use kv4::{Bucket, Node, Stamp};
use wire::json::Json;
use wire::names::{Key, Layer, Path};

use crate::settings::RetentionSetting;
use crate::writing::{Flushing, Writing};
use crate::{Services, configuration, idempotency, layer, path, token};

/// Where neurons keep their own measures and logs.
pub const RUNTIME_PATH: &str = "/runtime/hosts/active";
/// How many lines of a neuron's series are kept.
pub const KEPT_LINES: u64 = 10_000;
/// For how long, in seconds.
pub const KEPT_S: u64 = 7 * 86_400;
/// Lines that wait to be written; of more the oldest are lost, and counted. Lines of
/// [`Level::Debug`], which an account makes as many of as it makes calls, wait apart from the others.
pub const LINES_MAX: usize = 10_000;

/// Paths whose series are pruned before the next ones are asked for.
const PATHS_PAGE: usize = 1_000;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    Debug,
    Info,
    Warn,
}

impl Level {
    /// Every level.
    pub const ALL: [Level; 3] = [Level::Debug, Level::Info, Level::Warn];

    /// The layer of the level's lines.
    pub fn layer(self) -> &'static str {
        match self {
            Level::Debug => "*logs:debug",
            Level::Info => "*logs:info",
            Level::Warn => "*logs:warn",
        }
    }
}

/// Lines that wait to be written.
#[derive(Debug, Default)]
pub struct Logs {
    waiting: Mutex<Waiting>,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Lines,
    debug: Lines,
    next: u64,
}

/// Lines by top account, each account's in their order. Where there are too many the oldest one goes
/// of the account that has most, so that nobody's lines go for another's.
#[derive(Debug, Default)]
struct Lines {
    by_top: HashMap<Bucket, VecDeque<Line>>,
    count: usize,
}

impl Lines {
    /// Lets go of what is too much; answers how many lines that was.
    fn cut(&mut self) -> u64 {
        let mut lost = 0;
        while self.count > LINES_MAX {
            let Some(most) = self.by_top.values_mut().max_by_key(|lines| lines.len()) else {
                break;
            };
            most.pop_front();
            self.count -= 1;
            lost += 1;
        }
        lost
    }

    fn push_back(&mut self, line: Line) -> u64 {
        self.by_top.entry(line.bucket.top()).or_default().push_back(line);
        self.count += 1;
        self.cut()
    }

    /// Puts lines before all others.
    fn put_back(&mut self, lines: Vec<Line>) -> u64 {
        self.count += lines.len();
        for line in lines.into_iter().rev() {
            self.by_top.entry(line.bucket.top()).or_default().push_front(line);
        }
        self.cut()
    }

    /// Takes the lines that are chosen, in their order.
    fn take(&mut self, chosen: impl Fn(&Line) -> bool) -> Vec<Line> {
        let mut taken = Vec::new();
        for lines in self.by_top.values_mut() {
            let (of_these, left): (VecDeque<_>, _) = lines.drain(..).partition(&chosen);
            *lines = left;
            taken.extend(of_these);
        }
        self.by_top.retain(|_, lines| !lines.is_empty());
        self.count -= taken.len();
        taken.sort_by_key(|line| line.number);
        taken
    }
}

impl Waiting {
    fn of(&mut self, level: Level) -> &mut Lines {
        match level {
            Level::Debug => &mut self.debug,
            Level::Info | Level::Warn => &mut self.lines,
        }
    }

    fn queues(&mut self) -> [&mut Lines; 2] {
        [&mut self.lines, &mut self.debug]
    }
}

#[derive(Debug)]
struct Line {
    /// Greater than that of every line before it.
    number: u64,
    bucket: Bucket,
    level: Level,
    text: String,
    /// Of the first attempt to write it, so that a line that had to wait stands where it belongs.
    stamp: Option<Stamp>,
}

impl Logs {
    /// Adds a line to a bucket's log. It must hold no secret.
    pub fn note(&self, bucket: &Bucket, level: Level, line: impl FnOnce() -> String) {
        let text = line();
        let mut waiting = self.waiting();
        waiting.next += 1;
        let line = Line { number: waiting.next, bucket: bucket.clone(), level, text, stamp: None };
        let lost = waiting.of(level).push_back(line);
        self.lost.fetch_add(lost, Ordering::Relaxed);
    }

    /// Lines that wait, and those that were lost because too many did.
    pub fn held(&self) -> (usize, u64) {
        let lines: usize = self.waiting().queues().map(|queue| queue.count).into_iter().sum();
        (lines, self.lost.load(Ordering::Relaxed))
    }

    /// The buckets for which lines wait.
    fn buckets(&self) -> BTreeSet<Bucket> {
        let mut waiting = self.waiting();
        let lines = waiting.queues().into_iter().flat_map(|queue| queue.by_top.values().flatten());
        lines.map(|line| line.bucket.clone()).collect()
    }

    /// Takes the lines that may be written, each level's in their order; those of accounts that are
    /// no more are lost.
    fn take(&self, flushing: &Flushing<'_>) -> Vec<Line> {
        let mut taken = Vec::new();
        for queue in self.waiting().queues() {
            queue.take(|line| flushing.is_gone(&line.bucket));
            taken.extend(queue.take(|line| flushing.may_write(&line.bucket)));
        }
        taken
    }

    /// Puts lines that could not be written before those that came meanwhile.
    fn put_back(&self, refused: Vec<Line>) {
        let (debug, lines) =
            refused.into_iter().partition(|line: &Line| line.level == Level::Debug);
        let mut waiting = self.waiting();
        let lost = waiting.debug.put_back(debug) + waiting.lines.put_back(lines);
        self.lost.fetch_add(lost, Ordering::Relaxed);
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for Logs {
    /// What waits for a bucket goes with it, or the next flush would bring it back.
    fn committed(&self, events: &[Event]) {
        for event in events {
            if let Event::Dropped(bucket) = event {
                for queue in self.waiting().queues() {
                    queue.take(|line| line.bucket.is_within(bucket));
                }
            }
        }
    }
}

impl Services {
    /// Writes the lines that wait.
    ///
    /// # Errors
    /// The store's; the lines that it did not take are kept for the next flush, [`LINES_MAX`] of
    /// them at most.
    pub async fn flush_logs(&self) -> Result<(), StoreError> {
        let Ok(key) = Key::parse(&self.neuron_key()) else { return Ok(()) };
        let _flushing = self.flushing.pass().await;
        let flushing = Writing::flush(self, self.logs.buckets()).await?;
        let mut lines = self.logs.take(&flushing);
        if lines.is_empty() {
            return Ok(());
        }
        let mut writes = Vec::with_capacity(lines.len());
        for line in &mut lines {
            let node =
                Node::new(line.bucket.clone(), layer(line.level.layer()), path(RUNTIME_PATH));
            writes.push(Write {
                entry: node.entry(key.clone()),
                op: Op::Put { value: Json::string(&line.text), keys: Default::default() },
                condition: Condition::Any,
                who: self.identity.neuron.as_str().into(),
                stamp: *line.stamp.get_or_insert_with(|| self.stamp()),
            });
        }
        let mut failed = None;
        let mut refused = Vec::new();
        for (line, answer) in lines.into_iter().zip(self.kv.write_all(writes).await) {
            if let Err(WriteError::Store(error)) = answer {
                failed = Some(error);
                refused.push(line);
            }
        }
        self.logs.put_back(refused);
        failed.map_or(Ok(()), Err)
    }

    /// Lets go of lines, versions, revocations and kept answers that are old enough; answers how
    /// many went. What fails in one bucket does not hold the others up.
    ///
    /// # Errors
    /// The store's, the last one.
    pub async fn prune(&self) -> Result<u64, StoreError> {
        let mut gone = 0;
        let mut failed = None;
        for bucket in self.kv.buckets().await? {
            match self.prune_bucket(&bucket).await {
                Ok(of_bucket) => gone += of_bucket,
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(gone), Err)
    }

    async fn prune_bucket(&self, bucket: &Bucket) -> Result<u64, StoreError> {
        let layers = self.kv.layers(bucket).await?;
        let has = |name: &str| layers.iter().any(|layer| layer.as_str() == name);
        let mut gone = 0;
        if has(token::LAYER) {
            gone += token::forget_expired(self, bucket).await?;
        }
        if has(idempotency::LAYER) {
            gone += idempotency::forget_old(self, bucket).await?;
        }
        let now_micros = self.clock.now_micros();
        let short = Retention {
            before_micros: Some(now_micros.saturating_sub(KEPT_S * 1_000_000)),
            count_max: Some(KEPT_LINES),
        };
        for level in Level::ALL.into_iter().filter(|level| has(level.layer())) {
            let node = Node::new(bucket.clone(), layer(level.layer()), path(RUNTIME_PATH));
            gone += self.kv.prune(&node, short).await?;
        }
        if has(configuration::LAYER) {
            gone += self.apply_retention(bucket, now_micros).await?;
        }
        Ok(gone)
    }

    /// Applies the setting `retention`: at each path the nearest one for its layer, above it or there.
    async fn apply_retention(&self, bucket: &Bucket, now_micros: u64) -> Result<u64, StoreError> {
        let settings = self.settings.of(&self.kv, bucket).await?;
        let mut by_layer: BTreeMap<String, BTreeMap<Path, RetentionSetting>> = BTreeMap::new();
        for (at, setting) in settings.places::<RetentionSetting>("retention") {
            by_layer.entry(setting.layer.clone()).or_default().insert(at, setting);
        }
        let mut gone = 0;
        for (kept, places) in by_layer {
            let Ok(kept) = Layer::parse(&kept) else { continue };
            // Each path is come upon once: below the highest place that it lies under.
            let is_highest =
                |at: &Path| !at.ancestors().skip(1).any(|above| places.contains_key(&above));
            for at in places.keys().filter(|at| is_highest(at)) {
                let mut last = None;
                loop {
                    let after = last.as_ref();
                    let paths = self.kv.series_paths(bucket, &kept, at, after, PATHS_PAGE).await?;
                    for path in &paths {
                        let nearest = path.ancestors().find_map(|above| places.get(&above));
                        let Some(setting) = nearest else { continue };
                        let node = Node::new(bucket.clone(), kept.clone(), path.clone());
                        gone += self.kv.prune(&node, setting.at(now_micros)).await?;
                    }
                    match paths.last() {
                        Some(path) => last = Some(path.clone()),
                        None => break,
                    }
                }
            }
        }
        Ok(gone)
    }
}
