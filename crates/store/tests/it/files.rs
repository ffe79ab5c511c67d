//! Files: who may open them, what versions there are, copies of them.

use std::fs::{self, OpenOptions};
use std::future::Future as _;
use std::io::{self, Seek, SeekFrom, Write as _};
use std::ops::Bound;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use kv4::address::Bucket;
use kv4::store::{Retention, Seq, Stat, StatCell, Store, StoreError};
use kv4::write::{KeyChange, Op, WriteError};
use redb::backends::FileBackend;
use redb::{BackendError, Database, StorageBackend, TableDefinition};
use store::EmbeddedStore;
use store::contract::block_on;
use store::embedded::{BackupError, FORMAT, LOG_BYTES_MIN, OpenError, Options, fsck, restore};
use wire::names::{Ident, Key, Layer, Path as DataPath};

use super::{dump, entry, put};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

#[test]
fn a_second_opener_is_told_that_the_store_is_locked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let store = open(&path);
    assert!(matches!(EmbeddedStore::open(&path, Options::default()), Err(OpenError::Locked)));
    assert!(matches!(fsck(&path), Err(OpenError::Locked)));
    block_on(store.close());
    // Closed, though not dropped.
    drop(open(&path));
    drop(store);
}

#[test]
fn each_opening_has_a_higher_incarnation_and_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    for incarnation in 1..4 {
        let store = open(&path);
        assert_eq!(store.incarnation(), incarnation);
        let answers = block_on(store.write(vec![put(&entry("/", "a"), "x")]));
        let written = answers[0].as_ref().unwrap();
        assert_eq!(written.version.ver.generation, u64::from(incarnation));
        assert_eq!(written.created, incarnation == 1);
    }
}

#[test]
fn an_empty_store_opens_fast() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let start = Instant::now();
    drop(open(&path));
    let created = start.elapsed();
    let start = Instant::now();
    let store = open(&path);
    let opened = start.elapsed();
    drop(store);
    eprintln!("an empty store is created in {created:?} and opened in {opened:?}");
    // Far above what it takes, so that a busy machine does not fail it.
    assert!(opened < Duration::from_secs(2));
}

#[test]
fn other_formats_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    drop(open(&path));
    set_format(&path, FORMAT + 1);
    let error = EmbeddedStore::open(&path, Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found } if found == FORMAT + 1));
    assert!(error.to_string().contains("written by a newer ganglion, format 3; this one reads up"));
    set_format(&path, 0);
    let error = EmbeddedStore::open(&path, Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::Older { found: 0 }), "{error}");
    set_format(&path, FORMAT);
    drop(open(&path));
}

#[test]
fn what_is_not_a_store_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let damaged = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = EmbeddedStore::open(&path, Options::default()).unwrap_err();
        assert!(matches!(error, OpenError::Damaged(_)), "{name}: {error}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{name}");
    };
    damaged("empty", b"");
    damaged("text", "not a store\n".repeat(1_000).as_bytes());

    let foreign = folder.path().join("foreign");
    drop(Database::create(&foreign).unwrap());
    let error = EmbeddedStore::open(&foreign, Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged(_)), "{error}");

    let cut = folder.path().join("cut");
    let store = open(&cut);
    for nth in 0..200 {
        block_on(store.write(vec![put(&entry("/", &format!("{nth}")), &"x".repeat(2_000))]));
    }
    drop(store);
    let file = OpenOptions::new().write(true).open(&cut).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    let error = EmbeddedStore::open(&cut, Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged(_)), "{error}");
}

#[test]
fn a_closed_store_answers_that_it_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("s"));
    let written = thread::scope(|scope| {
        let writers: Vec<_> = (0..16)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || {
                    let entry = entry("/", &format!("{writer}"));
                    (0..50)
                        .filter(|_| block_on(store.write(vec![put(&entry, "x")]))[0].is_ok())
                        .count()
                })
            })
            .collect();
        block_on(store.close());
        writers.into_iter().map(|writer| writer.join().unwrap()).sum::<usize>()
    });
    let away = |error: &StoreError| matches!(error, StoreError::Unavailable(_));
    let answers = block_on(store.write(vec![put(&entry("/", "x"), "x")]));
    assert!(matches!(&answers[0], Err(WriteError::Store(error)) if away(error)));
    assert!(away(&block_on(store.buckets()).unwrap_err()));
    assert!(away(&block_on(store.erase(&entry("/", "x"))).unwrap_err()));
    block_on(store.close());
    drop(store);
    // What was accepted before the close is there, and nothing else.
    let store = open(&folder.path().join("s"));
    let (_, last) = block_on(store.changes(&Bucket::sys(), Seq(0), 0)).unwrap();
    assert_eq!(last, Seq(written as u64));
}

#[test]
fn the_lock_is_kept_while_a_failed_store_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    drop(open(&path));
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let faulty = Faulty { file: FileBackend::new(file).unwrap(), fails: fails.clone() };
    let log = OpenOptions::new().read(true).write(true).open(log_of(&path)).unwrap();
    let log = FileBackend::new(log).unwrap();
    let store = EmbeddedStore::open_on(faulty, log, Options::default()).unwrap();
    let entry = entry("/", "a");
    assert!(block_on(store.write(vec![put(&entry, "1")]))[0].is_ok());
    fails.store(true, SeqCst);
    // What goes into the log stands; an erasure is a checkpoint.
    assert!(block_on(store.write(vec![put(&entry, "2")]))[0].is_ok());
    assert!(block_on(store.erase(&entry)).is_err());
    assert!(matches!(EmbeddedStore::open(&path, Options::default()), Err(OpenError::Locked)));
    fails.store(false, SeqCst);
    while block_on(store.write(vec![put(&entry, "3")]))[0].is_err() {
        thread::yield_now();
    }
    assert!(store.commits().recoveries > 0);
    assert!(matches!(EmbeddedStore::open(&path, Options::default()), Err(OpenError::Locked)));
    drop(store);
    let store = open(&path);
    let (changes, _) = block_on(store.changes(&Bucket::sys(), Seq(0), 9)).unwrap();
    let values: Vec<_> = changes
        .into_iter()
        .map(|change| change.version.unwrap().value.unwrap().to_text().unwrap())
        .collect();
    assert_eq!(values, ["1", "2", "3"]);
}

#[test]
fn a_backup_is_a_whole_store_made_while_writes_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("s"), folder.path().join("copy"));
    let store = open(&path);
    fill(&store);
    let secret = "a value that its owner erased";
    let erased = entry("/erased", "a");
    block_on(store.write(vec![put(&erased, secret)]));
    assert!(block_on(store.erase(&erased)).unwrap());
    let before = dump(&store);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (store, done) = (&store, &done);
        let writer = scope.spawn(move || {
            let mut nth = 0;
            while !done.load(SeqCst) {
                let writes = vec![put(&entry("/other", &format!("{nth}")), "x")];
                assert!(block_on(store.write(writes))[0].is_ok());
                nth += 1;
            }
        });
        store.backup(&copy).unwrap();
        done.store(true, SeqCst);
        writer.join().unwrap();
    });
    assert!(matches!(store.backup(&copy), Err(BackupError::Exists)));
    assert!(matches!(restore(&copy, &path), Err(BackupError::Exists)));

    let restored = folder.path().join("restored");
    restore(&copy, &restored).unwrap();
    let report = fsck(&restored).unwrap();
    assert!(report.is_clean(), "{report}");
    let bytes = fs::read(&restored).unwrap();
    assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    let after = dump(&open(&restored));
    assert_eq!(after.stats, before.stats);
    for (bucket, changes) in before.changes {
        let (_, copied) = after.changes.iter().find(|(other, _)| *other == bucket).unwrap();
        // The copy has all that was there before it began, and perhaps more.
        assert_eq!(copied[..changes.len()], changes);
    }
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().path()).collect();
    // The store with its log, the copy, and what was restored, opened once, with its log.
    assert_eq!(names.len(), 5, "nothing else is left: {names:?}");
}

#[test]
fn a_backup_gives_up_when_the_store_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("s"), folder.path().join("copy"));
    drop(open(&path));
    let [file, log] = [path.clone(), log_of(&path)].map(|path| {
        FileBackend::new(OpenOptions::new().read(true).write(true).open(path).unwrap()).unwrap()
    });
    let gate = Arc::new(Gate::default());
    let file = Gated { file, gate: gate.clone() };
    let options = Options { cache_bytes: 64 << 10, ..Options::default() };
    let store = EmbeddedStore::open_on(file, log, options).unwrap();
    for nth in 0..100 {
        let writes = vec![put(&entry("/", &format!("{nth}")), &"x".repeat(8_000))];
        assert!(block_on(store.write(writes))[0].is_ok());
    }
    thread::scope(|scope| {
        let backup = thread::Builder::new().name(Gate::THREAD.to_owned());
        let backup = backup.spawn_scoped(scope, || store.backup(&copy)).unwrap();
        gate.wait_for_reads();
        let partial = fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap());
        let partial: Vec<_> = partial
            .filter(|it| it.file_name().to_str().unwrap().contains(".partial-"))
            .map(|it| it.metadata().unwrap().permissions().mode() & 0o777)
            .collect();
        let mut closing = pin!(store.close());
        let waiting = closing.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(waiting.is_pending());
        gate.open();
        let error = backup.join().unwrap().unwrap_err();
        assert!(matches!(error, BackupError::GivenUp), "{error}");
        block_on(closing);
        assert_eq!(partial, [0o600], "what is copied is its owner's while it is made");
    });
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().path()).collect();
    assert_eq!(names.len(), 2, "nothing of it is left: {names:?}");
}

#[test]
fn a_damaged_backup_is_not_restored() {
    let folder = tempfile::tempdir().unwrap();
    let (path, to) = (folder.path().join("s"), folder.path().join("to"));
    let store = open(&path);
    fill(&store);
    drop(store);
    let length = fs::metadata(&path).unwrap().len();
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    for offset in (4_096..length).step_by(2_048) {
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.write_all(b"damage").unwrap();
    }
    drop(file);
    let error = restore(&path, &to).unwrap_err();
    assert!(matches!(error, BackupError::Damaged(_) | BackupError::Open(_)), "{error}");
    assert!(!to.exists());
}

#[test]
fn a_large_node_is_pruned_and_a_dropped_bucket_swept_in_several_transactions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let store = open(&path);
    let writes: Vec<_> =
        (0..12_000).map(|nth| put(&entry("/", &format!("{}", nth % 3)), "x")).collect();
    assert!(block_on(store.write(writes)).iter().all(Result::is_ok));
    let node = entry("/", "0").node;
    let retention = Retention { before_micros: None, count_max: Some(2) };
    assert_eq!(block_on(store.prune(&node, retention)), Ok(12_000 - 6));
    assert!(store.commits().commits > 3);
    block_on(store.drop_bucket(&node.bucket)).unwrap();
    assert_eq!(block_on(store.buckets()), Ok(vec![]));
    // Written anew while what it was is still being removed.
    assert!(block_on(store.write(vec![put(&entry("/", "0"), "new")]))[0].is_ok());
    drop(store);
    // Closed before all was removed: the next opening goes on.
    let store = open(&path);
    let after = dump(&store);
    assert_eq!(after.changes[0].1.len(), 1);
    drop(store);
    let report = fsck(&path).unwrap();
    assert!(report.is_clean(), "{report}: {:?}", report.violations);
}

/// The file of format 1 in `tests/fixtures` is never written again: stores out there are like it.
#[test]
fn format_1_is_read_for_ever() {
    is_read_for_ever("format-1.redb", |_| {});
}

/// A store of format 2 as a kill leaves it, with a log that has to be made again.
#[test]
fn format_2_is_read_for_ever() {
    let (store, log) = (fixture("format-2.redb"), fixture("format-2.redb.log"));
    if std::env::var_os("GANGLION_WRITE_FIXTURE").is_some() {
        assert!(!store.exists() && !log.exists(), "a fixture is not replaced");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let options = Options { log_bytes: LOG_BYTES_MIN, ..Options::default() };
        let open = EmbeddedStore::open(&path, options).unwrap();
        fill(&open);
        fill_log(&open);
        // Each of the steps, and the removal of the dropped bucket's rows.
        while open.commits().commits < 7 {
            thread::yield_now();
        }
        fs::copy(&path, &store).unwrap();
        fs::copy(log_of(&path), &log).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("alone");
    fs::copy(&store, &alone).unwrap();
    assert!(matches!(fsck(&alone), Err(OpenError::LogMissing)));
    is_read_for_ever("format-2.redb", fill_log);
}

/// What is in the log of the fixture of format 2, beside what `fill` did last; never changed.
fn fill_log(store: &EmbeddedStore) {
    let mut logged = put(&entry("/logged", "one"), "in the log");
    if let Op::Put { keys, .. } = &mut logged.op {
        keys[1] = KeyChange::Set(Key::parse("third").unwrap());
    }
    let elsewhere = Bucket::account(&Ident::parse("logged").unwrap(), None).unwrap();
    let mut new_bucket = put(&entry("/", "a"), "a bucket's first");
    new_bucket.entry.node.bucket = elsewhere;
    let mut moved = put(&entry("/logged", "one"), "again");
    if let Op::Put { keys, .. } = &mut moved.op {
        keys[1] = KeyChange::Set(Key::parse("other third").unwrap());
    }
    let answers = block_on(store.write(vec![logged, new_bucket, moved]));
    assert!(answers.iter().all(Result::is_ok));
}

fn is_read_for_ever(name: &str, fill_log: fn(&EmbeddedStore)) {
    let folder = tempfile::tempdir().unwrap();
    let [checked, path] = ["checked", "s"].map(|it| folder.path().join(it));
    for place in [&checked, &path] {
        fs::copy(fixture(name), place).unwrap();
        let log = log_of(&fixture(name));
        if log.exists() {
            fs::copy(log, log_of(place)).unwrap();
        }
    }
    let report = fsck(&checked).unwrap();
    assert!(report.is_clean(), "{report}: {:?}", report.violations);
    let old = open(&path);
    let fresh = open(&folder.path().join("fresh"));
    fill(&fresh);
    fill_log(&fresh);
    assert!(dump(&old) == dump(&fresh));
    let node = entry("/a/b", "one").node;
    let key = Key::parse("second").unwrap();
    let head = block_on(old.by_secondary(&node, 2, &key)).unwrap().unwrap();
    assert_eq!(head.key.as_str(), "one");
    assert_eq!(head.value.as_str(), "\"three\"");
    assert_eq!(&*head.who, "elena");
    assert_eq!(head.ver.to_string(), "3-0000000000000300000001");
    assert!(block_on(old.write(vec![put(&entry("/a/b", "one"), "four")]))[0].is_ok());
    let there = dump(&old);
    drop(old);
    assert!(dump(&open(&checked)) == dump(&fresh) && dump(&open(&path)) == there);
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// One of everything that the format has; never changed, since the fixture is made of it.
pub(crate) fn fill(store: &EmbeddedStore) {
    let one = entry("/a/b", "one");
    let mut first = put(&one, "one");
    if let Op::Put { keys, .. } = &mut first.op {
        keys[0] = KeyChange::Set(Key::parse("second").unwrap());
        keys[2] = KeyChange::Set(Key::parse("𝄞 fourth").unwrap());
    }
    let gone = entry("/a/b", "gone");
    let erased = entry("/a/b", "erased");
    let pruned = entry("/a-b", "pruned");
    let mut delete = put(&gone, "");
    delete.op = Op::Delete;
    let mut far = put(&entry("/", "far"), "away");
    let lily = Bucket::account(&Ident::parse("elena").unwrap(), Ident::parse("lily").ok().as_ref());
    far.entry.node.bucket = lily.unwrap();
    let mut dropped = far.clone();
    dropped.entry.node.bucket = Bucket::account(&Ident::parse("dropped").unwrap(), None).unwrap();
    let writes = vec![
        first,
        put(&one, "two"),
        put(&one, "three"),
        put(&gone, "x"),
        delete,
        put(&erased, "x"),
        put(&pruned, "1"),
        put(&pruned, "2"),
        put(&pruned, "3"),
        far.clone(),
        dropped.clone(),
    ];
    assert!(block_on(store.write(writes)).iter().all(Result::is_ok));
    assert!(block_on(store.erase(&erased)).unwrap());
    let retention = Retention { before_micros: None, count_max: Some(2) };
    assert_eq!(block_on(store.prune(&pruned.node, retention)), Ok(1));
    block_on(store.drop_bucket(&dropped.entry.node.bucket)).unwrap();
    let cell = StatCell {
        bucket: far.entry.node.bucket,
        measure: Layer::parse("api:3").unwrap(),
        path: DataPath::parse("/a").unwrap(),
        key: Key::parse("k").unwrap(),
        minute: 29_000_000,
        neuron: 7,
    };
    block_on(store.put_stats(vec![(cell, Stat::of(5).merge(Stat::of(9)))])).unwrap();
}

fn open(path: &Path) -> EmbeddedStore {
    EmbeddedStore::open(path, Options::default()).unwrap()
}

fn log_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".log");
    name.into()
}

fn set_format(path: &Path, format: u32) {
    let database = Database::open(path).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(META).unwrap().insert("format", format.to_be_bytes().as_slice()).unwrap();
    txn.commit().unwrap();
}

/// Holds the reads of the thread that makes a backup.
#[derive(Debug, Default)]
struct Gate {
    /// How many reads there were, and whether they are held no more.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    const THREAD: &str = "backup";
    /// Reads before one is held: the copy is under way then.
    const FREE: usize = 5;

    fn pass(&self) {
        if thread::current().name() == Some(Gate::THREAD) {
            let mut state = self.state.lock().unwrap();
            state.0 += 1;
            self.changed.notify_all();
            let is_held = |state: &mut (usize, bool)| state.0 > Gate::FREE && !state.1;
            drop(self.changed.wait_while(state, is_held).unwrap());
        }
    }

    fn wait_for_reads(&self) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| state.0 <= Gate::FREE).unwrap());
    }

    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

/// A real file whose reads pass a gate.
#[derive(Debug)]
struct Gated {
    file: FileBackend,
    gate: Arc<Gate>,
}

impl StorageBackend for Gated {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.gate.pass();
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }
}

/// A real file whose syncs fail while it is told so.
#[derive(Debug)]
struct Faulty {
    file: FileBackend,
    fails: Arc<AtomicBool>,
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.fails.load(SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

#[test]
fn a_new_store_needs_a_folder_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none").join("s");
    let error = EmbeddedStore::open(&path, Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::Io(_)), "{error}");
}
