//! What every engine has to do: random operations, each answer compared with a plain model.
//!
//! An engine's tests call [`run`] with what makes an empty store. `GANGLION_CASES` sets how many
//! sequences of operations are tried.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestCaseError, TestCaseResult, TestRunner};
use wire::json::Json;
use wire::names::{Ident, Key, Layer, Path};
use wire::timegroup::TimeGroup;

use kv4::address::{Bucket, Entry, Node};
use kv4::store::{
    Change, Event, Listener, Retention, Seq, SeriesQuery, Stat, StatCell, StatQuery, Store,
    StoreError,
};
use kv4::write::{Condition, KeyChange, Op, Write, WriteError, Written, decide};
use kv4::{Head, Stamp, Ver, Version};

/// Sequences tried when `GANGLION_CASES` does not say.
const CASES: u32 = 500;

/// Tries random operations on stores that `make` gives, each empty.
///
/// # Panics
/// An answer or an event differs from the model's; the message has the shortest sequence found.
pub fn run(make: impl Fn() -> Arc<dyn Store>) {
    for steps in known() {
        if let Err(error) = try_steps(make(), steps) {
            panic!("{error}");
        }
    }
    let config = Config {
        cases: cases(CASES),
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&steps(), |steps| try_steps(make(), steps));
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn try_steps(store: Arc<dyn Store>, steps: Vec<Step>) -> TestCaseResult {
    let heard = Arc::new(Heard::default());
    store.listen(heard.clone());
    let mut model = Model::default();
    for step in steps {
        take(&*store, &mut model, &heard, step)?;
    }
    Ok(())
}

/// Sequences that chance alone seldom makes.
fn known() -> Vec<Vec<Step>> {
    let place = Node::new(
        Bucket::sys(),
        Layer::parse("*data").expect("a layer"),
        Path::parse("/a").expect("a path"),
    );
    let entry = place.entry(Key::parse("a").expect("a key"));
    let keep = [KeyChange::Keep, KeyChange::Keep, KeyChange::Keep];
    let put = |value: u64| {
        Step::Write(vec![WriteStep {
            entry: entry.clone(),
            op: Op::Put { value: Json::from(value), keys: keep.clone() },
            condition: ConditionStep::Any,
            stamp: Stamp { micros: 1, neuron: 1 },
        }])
    };
    let changes = Step::Changes(Bucket::sys(), 0, 9);
    vec![
        // The feed row of an erased version does not tell of what was written there since.
        vec![put(1), Step::Erase(entry.clone()), put(2), changes.clone()],
        // A bucket begins again at seq 1, with nothing of what it was.
        vec![put(1), Step::DropBucket(Bucket::sys()), put(2), changes, Step::Look(place)],
    ]
}

/// `GANGLION_CASES`, or `default`.
pub fn cases(default: u32) -> u32 {
    std::env::var("GANGLION_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default)
}

/// Runs a future on this thread, under no runtime.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// One operation. Places and keys are numbers into small sets, so that they meet often.
#[derive(Clone, Debug)]
pub enum Step {
    Write(Vec<WriteStep>),
    Erase(Entry),
    Prune(Node, Retention),
    DropBucket(Bucket),
    PutStats(Vec<(StatCell, Stat)>),
    /// Compare everything that can be asked of one node.
    Look(Node),
    Series(SeriesQuery),
    SeriesPaths(Node, Option<Path>, usize),
    Stats(StatQuery),
    /// Paths of a measure at or below one, and keys of that, at most so many.
    StatNames(Bucket, Layer, Path, usize),
    Changes(Bucket, u64, usize),
}

/// A write whose condition may name the version that the entry has when it is carried out.
#[derive(Clone, Debug)]
pub struct WriteStep {
    pub entry: Entry,
    pub op: Op,
    pub condition: ConditionStep,
    pub stamp: Stamp,
}

#[derive(Clone, Copy, Debug)]
pub enum ConditionStep {
    Any,
    Absent,
    Present,
    AtNewest,
    AtOther,
    AbsentOrVerMissing,
}

/// Sequences of operations.
pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..40)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => prop::collection::vec(write_step(), 1..6).prop_map(Step::Write),
        1 => entry().prop_map(Step::Erase),
        2 => (entry(), prop::option::of(0..60u64), prop::option::of(0..4u64)).prop_map(
            |(entry, before_micros, count_max)| {
                Step::Prune(entry.node, Retention { before_micros, count_max })
            }
        ),
        1 => bucket().prop_map(Step::DropBucket),
        2 => prop::collection::vec((cell(), stat()), 1..6).prop_map(Step::PutStats),
        3 => entry().prop_map(|entry| Step::Look(entry.node)),
        2 => (entry(), any::<[bool; 2]>(), 0..60u64, 0..90u64, 0..9usize).prop_map(
            |(entry, [of_key, with_deletions], from_micros, to_micros, limit)| {
                let key = of_key.then_some(entry.key);
                let node = entry.node;
                let of = SeriesQuery { node, key, from_micros, to_micros, limit, with_deletions };
                Step::Series(of)
            }
        ),
        1 => (entry(), prop::option::of(entry()), 0..4usize).prop_map(|(under, after, limit)| {
            Step::SeriesPaths(under.node, after.map(|entry| entry.node.path), limit)
        }),
        3 => (cell(), any::<bool>(), any::<bool>(), minute(), minute(), 1..6usize, 0..5usize).prop_map(
            |(cell, of_path, of_key, from_minute, to_minute, depth, groups_max)| {
                Step::Stats(StatQuery {
                    bucket: cell.bucket,
                    measure: cell.measure,
                    path: of_path.then_some(cell.path),
                    key: of_key.then_some(cell.key),
                    from_minute,
                    to_minute,
                    depth,
                    groups_max,
                })
            }
        ),
        2 => (cell(), 0..5usize).prop_map(|(cell, limit)| {
            Step::StatNames(cell.bucket, cell.measure, cell.path, limit)
        }),
        2 => (bucket(), 0..20u64, 0..30usize)
            .prop_map(|(bucket, since, limit)| Step::Changes(bucket, since, limit)),
    ]
}

fn write_step() -> impl Strategy<Value = WriteStep> {
    let op = prop_oneof![
        4 => (0..1_000u64, secondary(), secondary(), secondary()).prop_map(|(value, k2, k3, k4)| {
            Op::Put { value: Json::from(value), keys: [k2, k3, k4] }
        }),
        1 => Just(Op::Delete),
    ];
    let condition = prop_oneof![
        6 => Just(ConditionStep::Any),
        1 => Just(ConditionStep::Absent),
        1 => Just(ConditionStep::Present),
        1 => Just(ConditionStep::AtNewest),
        1 => Just(ConditionStep::AtOther),
        1 => Just(ConditionStep::AbsentOrVerMissing),
    ];
    (entry(), op, condition, 0..60u64, 1..3u32).prop_map(
        |(entry, op, condition, micros, neuron)| WriteStep {
            entry,
            op,
            condition,
            stamp: Stamp { micros, neuron },
        },
    )
}

fn secondary() -> impl Strategy<Value = KeyChange> {
    prop_oneof![
        5 => Just(KeyChange::Keep),
        2 => key().prop_map(KeyChange::Set),
        1 => Just(KeyChange::Clear),
    ]
}

fn bucket() -> impl Strategy<Value = Bucket> {
    select(vec![
        Bucket::sys(),
        Bucket::account(&Ident::parse("elena").expect("a name"), None).expect("short"),
    ])
}

fn layer() -> impl Strategy<Value = Layer> {
    // One is a prefix of another, and one sorts between them by its first byte behind the prefix.
    select(vec!["*d", "*data", "*d!", "ü"]).prop_map(|layer| Layer::parse(layer).expect("a layer"))
}

fn path() -> impl Strategy<Value = Path> {
    select(vec!["/", "/a", "/a/b", "/a-b", "/a b/c", "/ab", "/é/𝄞"])
        .prop_map(|path| Path::parse(path).expect("a path"))
}

fn key() -> impl Strategy<Value = Key> {
    select(vec!["a", "aa", "a/b", "b", " ", "é", "𝄞"])
        .prop_map(|key| Key::parse(key).expect("a key"))
}

fn node() -> impl Strategy<Value = Node> {
    (bucket(), layer(), path()).prop_map(|(bucket, layer, path)| Node::new(bucket, layer, path))
}

fn entry() -> impl Strategy<Value = Entry> {
    // Most writes meet in few entries; the rest spread over all names.
    let near = select(vec!["a", "aa", "b"]).prop_map(|key| {
        let layer = Layer::parse("*data").expect("a layer");
        let node = Node::new(Bucket::sys(), layer, Path::parse("/a").expect("a path"));
        node.entry(Key::parse(key).expect("a key"))
    });
    let far = (node(), key()).prop_map(|(node, key)| node.entry(key));
    prop_oneof![2 => near, 1 => far]
}

fn cell() -> impl Strategy<Value = StatCell> {
    (bucket(), layer(), path(), key(), minute(), 1..3u32).prop_map(
        |(bucket, measure, path, key, minute, neuron)| StatCell {
            bucket,
            measure,
            path,
            key,
            minute,
            neuron,
        },
    )
}

/// Minutes in a few hours, days and years.
fn minute() -> impl Strategy<Value = u32> {
    select(vec![0, 1, 59, 60, 1_439, 1_440, 525_600, 525_601, u32::MAX])
}

fn stat() -> impl Strategy<Value = Stat> {
    (0..100u64, 0..100u64).prop_map(|(a, b)| Stat::of(a).merge(Stat::of(b)))
}

/// Takes one step on both sides and compares what they answer and tell.
fn take(store: &dyn Store, model: &mut Model, heard: &Heard, step: Step) -> TestCaseResult {
    let mut told = Vec::new();
    match step {
        Step::Write(steps) => {
            // Conditions are made before the batch, so `AtNewest` may miss what it itself writes.
            let writes: Vec<Write> =
                steps.into_iter().map(|step| step.to_write(|entry| model.newest(entry))).collect();
            let expected: Vec<_> =
                writes.iter().map(|write| model.write(write, &mut told)).collect();
            let answers = block_on(store.write(writes));
            prop_assert_eq!(answers.len(), expected.len());
            for (answer, expected) in answers.into_iter().zip(expected) {
                match (answer, expected) {
                    (Err(WriteError::KeyTaken(nth)), Err(Refused::KeysTaken(taken))) => {
                        prop_assert!(taken.contains(&nth), "k{nth} is not taken");
                    }
                    (answer, Err(Refused::For(error))) => prop_assert_eq!(answer, Err(error)),
                    (answer, Ok(written)) => prop_assert_eq!(answer, Ok(written)),
                    (answer, Err(Refused::KeysTaken(_))) => {
                        return Err(TestCaseError::fail(format!("a taken key: {answer:?}")));
                    }
                }
            }
        }
        Step::Erase(entry) => {
            let was_there = model.series.remove(&entry).is_some();
            prop_assert_eq!(block_on(store.erase(&entry)), Ok(was_there));
            if was_there {
                told.push(Event::Erased(entry));
            }
        }
        Step::Prune(node, retention) => {
            let gone = model.prune(&node, retention);
            prop_assert_eq!(block_on(store.prune(&node, retention)), Ok(gone));
        }
        Step::DropBucket(bucket) => {
            model.series.retain(|entry, _| entry.node.bucket != bucket);
            model.stats.retain(|cell, _| cell.bucket != bucket);
            model.feeds.remove(&bucket);
            prop_assert_eq!(block_on(store.drop_bucket(&bucket)), Ok(()));
            told.push(Event::Dropped(bucket));
        }
        Step::PutStats(cells) => {
            model.stats.extend(cells.iter().cloned());
            prop_assert_eq!(block_on(store.put_stats(cells)), Ok(()));
        }
        Step::Look(node) => look(store, model, &node)?,
        Step::Series(query) => {
            prop_assert_eq!(block_on(store.series(&query)), Ok(model.series(&query)));
        }
        Step::SeriesPaths(under, after, limit) => {
            let nodes = model.series.keys().map(|entry| &entry.node);
            let paths: BTreeSet<Path> = nodes
                .filter(|node| node.bucket == under.bucket && node.layer == under.layer)
                .map(|node| node.path.clone())
                .filter(|path| path.is_within(&under.path) && Some(path) > after.as_ref())
                .collect();
            let Node { bucket, layer, path } = &under;
            let found = block_on(store.series_paths(bucket, layer, path, after.as_ref(), limit));
            prop_assert_eq!(found, Ok(paths.into_iter().take(limit).collect::<Vec<_>>()));
        }
        Step::Stats(query) => {
            prop_assert_eq!(block_on(store.stats(&query)), model.stats(&query));
        }
        Step::StatNames(bucket, measure, path, limit) => {
            let of_measure = model.stats.keys();
            let of_measure: Vec<&StatCell> = of_measure
                .filter(|cell| cell.bucket == bucket && cell.measure == measure)
                .collect();
            let below = of_measure.iter().filter(|cell| cell.path.is_within(&path));
            let paths: BTreeSet<Path> = below.map(|cell| cell.path.clone()).collect();
            let found = block_on(store.stat_paths(&bucket, &measure, &path, limit));
            prop_assert_eq!(found, at_most(limit, paths));
            let at = of_measure.iter().filter(|cell| cell.path == path);
            let keys: BTreeSet<Key> = at.map(|cell| cell.key.clone()).collect();
            let found = block_on(store.stat_keys(&bucket, &measure, &path, limit));
            prop_assert_eq!(found, at_most(limit, keys));
        }
        Step::Changes(bucket, since, limit) => {
            let changes = block_on(store.changes(&bucket, Seq(since), limit));
            prop_assert_eq!(changes, Ok(model.changes(&bucket, since, limit)));
        }
    }
    prop_assert_eq!(heard.take(), told);
    Ok(())
}

fn look(store: &dyn Store, model: &Model, node: &Node) -> TestCaseResult {
    let heads = model.heads(node);
    let bytes: usize =
        heads.iter().map(|head| head.key.as_str().len() + head.value.as_str().len()).sum();
    prop_assert_eq!(block_on(store.node(node, bytes)), Ok(heads.clone()));
    if bytes > 0 {
        prop_assert_eq!(block_on(store.node(node, bytes - 1)), Err(StoreError::TooLarge));
    }
    let keys: Vec<Key> = heads.iter().map(|head| head.key.clone()).collect();
    prop_assert_eq!(block_on(store.keys(node, None, usize::MAX)), Ok(keys.clone()));
    for (at, key) in keys.iter().enumerate() {
        let after: Vec<Key> = keys[at + 1..].iter().take(2).cloned().collect();
        prop_assert_eq!(block_on(store.keys(node, Some(key), 2)), Ok(after));
    }
    for head in &heads {
        for (nth, key) in (2..).zip(&head.keys) {
            if let Some(key) = key {
                let found = block_on(store.by_secondary(node, nth, key));
                prop_assert_eq!(found, Ok(Some(head.clone())));
            }
        }
    }
    let unused = Key::parse("never a secondary key").expect("a key");
    prop_assert_eq!(block_on(store.by_secondary(node, 2, &unused)), Ok(None));
    for entry in model.series.keys().filter(|entry| entry.node == *node) {
        prop_assert_eq!(block_on(store.newest(entry)), Ok(model.newest(entry)));
    }
    prop_assert_eq!(block_on(store.newest(&node.entry(unused))), Ok(None));
    prop_assert_eq!(block_on(store.layers(&node.bucket)), Ok(model.layers(&node.bucket)));
    let paths = block_on(store.paths(&node.bucket, &node.layer, &node.path));
    prop_assert_eq!(paths, Ok(model.paths(node)));
    prop_assert_eq!(block_on(store.buckets()), Ok(model.buckets()));
    let measures: BTreeSet<Layer> = model
        .stats
        .keys()
        .filter(|cell| cell.bucket == node.bucket)
        .map(|cell| cell.measure.clone())
        .collect();
    let found = block_on(store.stat_measures(&node.bucket));
    prop_assert_eq!(found, Ok(measures.into_iter().collect()));
    Ok(())
}

impl WriteStep {
    /// The write, with its condition made for the entry's newest version.
    pub fn to_write(self, newest: impl FnOnce(&Entry) -> Option<Version>) -> Write {
        let ver = newest(&self.entry).map(|version| version.ver);
        let other = Ver { generation: 999, stamp: self.stamp };
        Write {
            condition: match self.condition {
                ConditionStep::Any => Condition::Any,
                ConditionStep::Absent => Condition::Absent,
                ConditionStep::Present => Condition::Present,
                ConditionStep::AtNewest => Condition::At(ver.unwrap_or(other)),
                ConditionStep::AtOther => Condition::At(other),
                ConditionStep::AbsentOrVerMissing => Condition::AbsentOrVerMissing,
            },
            entry: self.entry,
            op: self.op,
            who: Arc::from("elena"),
            stamp: self.stamp,
        }
    }
}

/// What a store should be, in the plainest form.
#[derive(Debug, Default)]
struct Model {
    /// Versions with their seqs, oldest first.
    series: BTreeMap<Entry, Vec<(Seq, Version)>>,
    feeds: BTreeMap<Bucket, Vec<Entry>>,
    stats: BTreeMap<StatCell, Stat>,
}

enum Refused {
    For(WriteError),
    /// Any of these may be named.
    KeysTaken(BTreeSet<u8>),
}

impl Model {
    fn newest(&self, entry: &Entry) -> Option<Version> {
        self.series.get(entry).map(|series| series[series.len() - 1].1.clone())
    }

    fn heads(&self, node: &Node) -> Vec<Head> {
        let entries = self.series.keys().filter(|entry| entry.node == *node);
        let head = |entry: &Entry| {
            let Version { ver, who, value, keys } = self.newest(entry)?;
            Some(Head { key: entry.key.clone(), ver, who, value: value?, keys })
        };
        entries.filter_map(head).collect()
    }

    fn write(&mut self, write: &Write, told: &mut Vec<Event>) -> Result<Written, Refused> {
        let entry = &write.entry;
        let newest = self.newest(entry);
        let version = decide(write, newest.as_ref()).map_err(Refused::For)?;
        let mut taken = BTreeSet::new();
        if version.value.is_some() {
            for head in self.heads(&entry.node) {
                for (nth, (ours, theirs)) in (2..).zip(version.keys.iter().zip(&head.keys)) {
                    if head.key != entry.key && ours.is_some() && ours == theirs {
                        taken.insert(nth);
                    }
                }
            }
        }
        if !taken.is_empty() {
            return Err(Refused::KeysTaken(taken));
        }
        let feed = self.feeds.entry(entry.node.bucket.clone()).or_default();
        feed.push(entry.clone());
        let seq = Seq(feed.len() as u64);
        self.series.entry(entry.clone()).or_default().push((seq, version.clone()));
        let change = Change { seq, entry: entry.clone(), version: Some(version.clone()) };
        told.push(Event::Changed(change));
        Ok(Written { version, created: newest.is_none_or(|newest| newest.value.is_none()) })
    }

    fn prune(&mut self, node: &Node, retention: Retention) -> u64 {
        let mut gone = 0;
        for series in self.series.iter_mut().filter(|(entry, _)| entry.node == *node) {
            let length = series.1.len();
            let mut place = length;
            series.1.retain(|(_, version)| {
                place -= 1;
                let is_old =
                    retention.before_micros.is_some_and(|at| version.ver.stamp.micros < at);
                let is_many = retention.count_max.is_some_and(|count| place as u64 >= count);
                let goes = match place {
                    0 => is_old && version.value.is_none(),
                    _ => is_old || is_many,
                };
                gone += u64::from(goes);
                !goes
            });
        }
        self.series.retain(|_, series| !series.is_empty());
        gone
    }

    fn series(&self, query: &SeriesQuery) -> Vec<(Key, Version)> {
        let mut found = Vec::new();
        for (entry, series) in &self.series {
            let is_asked = query.key.as_ref().is_none_or(|key| *key == entry.key);
            for (_, version) in series.iter().rev().filter(|_| is_asked) {
                let at = version.ver.stamp.micros;
                let is_wanted = query.with_deletions || version.value.is_some();
                let is_within = at >= query.from_micros && at <= query.to_micros;
                if entry.node == query.node && is_within && is_wanted {
                    found.push((entry.key.clone(), version.clone()));
                }
            }
        }
        found.truncate(query.limit);
        found
    }

    fn layers(&self, bucket: &Bucket) -> Vec<Layer> {
        let layers: BTreeSet<Layer> = self
            .live()
            .filter(|entry| entry.node.bucket == *bucket)
            .map(|entry| entry.node.layer.clone())
            .collect();
        layers.into_iter().collect()
    }

    fn paths(&self, under: &Node) -> Vec<(Path, u64)> {
        let mut paths = BTreeMap::new();
        for Entry { node, .. } in self.live() {
            if node.bucket == under.bucket
                && node.layer == under.layer
                && node.path.is_within(&under.path)
            {
                *paths.entry(node.path.clone()).or_default() += 1;
            }
        }
        paths.into_iter().collect()
    }

    fn live(&self) -> impl Iterator<Item = &Entry> {
        let live = |series: &[(Seq, Version)]| {
            series.last().is_some_and(|(_, version)| version.value.is_some())
        };
        self.series.iter().filter(move |(_, series)| live(series)).map(|(entry, _)| entry)
    }

    fn changes(&self, bucket: &Bucket, since: u64, limit: usize) -> (Vec<Change>, Seq) {
        let feed = self.feeds.get(bucket).map_or(&[][..], Vec::as_slice);
        let change = |(seq, entry): (u64, &Entry)| Change {
            seq: Seq(seq),
            entry: entry.clone(),
            version: self.series.get(entry).and_then(|series| {
                series.iter().find(|(of, _)| of.0 == seq).map(|(_, version)| version.clone())
            }),
        };
        let changes = (1..).zip(feed).filter(|(seq, _)| *seq > since).take(limit).map(change);
        (changes.collect(), Seq(feed.len() as u64))
    }

    fn buckets(&self) -> Vec<Bucket> {
        let mut buckets: BTreeSet<Bucket> = self.feeds.keys().cloned().collect();
        buckets.extend(self.stats.keys().map(|cell| cell.bucket.clone()));
        buckets.into_iter().collect()
    }

    fn stats(&self, query: &StatQuery) -> Result<Vec<(TimeGroup, Stat)>, StoreError> {
        let cells = self.stats.iter().filter(|(cell, _)| {
            cell.bucket == query.bucket
                && cell.measure == query.measure
                && query.path.as_ref().is_none_or(|path| *path == cell.path)
                && query.key.as_ref().is_none_or(|key| *key == cell.key)
                && (query.from_minute..=query.to_minute).contains(&cell.minute)
        });
        let mut groups = BTreeMap::new();
        for (cell, stat) in cells {
            let group = TimeGroup::at(u64::from(cell.minute) * 60, query.depth);
            let group: &mut Stat = groups.entry(group).or_default();
            *group = group.merge(*stat);
        }
        at_most(query.groups_max, groups)
    }
}

fn at_most<T>(
    limit: usize,
    found: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
) -> Result<Vec<T>, StoreError> {
    let found = found.into_iter();
    if found.len() > limit { Err(StoreError::TooLarge) } else { Ok(found.collect()) }
}

/// Keeps what a store tells.
#[derive(Debug, Default)]
pub struct Heard(Mutex<Vec<Event>>);

impl Heard {
    /// What was told since the last call.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock().expect("no thread panics here"))
    }
}

impl Listener for Heard {
    fn committed(&self, events: &[Event]) {
        self.0.lock().expect("no thread panics here").extend_from_slice(events);
    }
}
