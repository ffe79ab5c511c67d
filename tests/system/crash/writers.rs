//! Concurrent writers who note everything that was acknowledged to them, and values that show when
//! they were torn.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tests::http::{self, Client};
use tests::neuron::Neuron;
use tests::random::Random;

/// Longest filling of a value, in characters; some values span several pages of the store.
const PAD_CHARS_MAX: u64 = 3_000;
/// Pause between two looks at how far writers are.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Keys that the writers of an account share, in each of their paths.
const SHARED_KEYS: u64 = 3;
/// The path that writers use in every round, beside the round's own.
pub(super) const KEPT_PATH: &str = "kept";

/// An account with its credentials, `ident:secret`.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) credentials: String,
}

impl Account {
    pub(super) fn make(neuron: &Neuron, name: &str) -> Result<Account> {
        Ok(Account { credentials: format!("{name}:{}", neuron.account(name)?) })
    }
}

/// One write that was acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Acknowledged {
    pub(super) path: String,
    pub(super) key: String,
    /// `None` for a deletion, whose answer has no version.
    pub(super) ver: Option<String>,
    /// What was put, which names the writer and its count; `None` for a deletion.
    pub(super) value: Option<Value>,
    /// The version that the write named as the newest.
    pub(super) based_on: Option<String>,
}

/// What writers and readers of one account were told.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) acknowledged: Vec<Acknowledged>,
    /// Writes without an answer: they may have been carried out or not.
    pub(super) unanswered: Vec<(String, String)>,
    /// What reads showed: path, key, version.
    pub(super) seen: Vec<(String, String, String)>,
    /// What is wrong whatever comes later.
    pub(super) faults: Vec<String>,
}

/// Writers at work on one neuron.
#[derive(Debug)]
pub(super) struct Writers {
    threads: Vec<JoinHandle<()>>,
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    told: Vec<Arc<Mutex<Told>>>,
}

impl Writers {
    /// Starts `many` writers over `accounts`; `round` keeps what they write apart from other rounds.
    pub(super) fn start(
        neuron: &Neuron,
        accounts: &[Account],
        many: u64,
        seed: u64,
        round: u64,
    ) -> Result<Writers> {
        let address = neuron.address("http")?;
        let count = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let told: Vec<_> = accounts.iter().map(|_| Arc::<Mutex<Told>>::default()).collect();
        let mut threads = Vec::new();
        for number in 0..many {
            let of = usize::try_from(number)? % accounts.len();
            let mut writer = Writer {
                number,
                round,
                random: Random::new(seed, round << 32 | number),
                client: Client::connect(&address, &accounts[of].credentials)?,
                told: told[of].clone(),
                written: 0,
            };
            let (count, stop) = (count.clone(), stop.clone());
            threads.push(thread::spawn(move || {
                while !stop.load(SeqCst) {
                    match writer.step() {
                        Ok(true) => drop(count.fetch_add(1, SeqCst)),
                        Ok(false) => {}
                        Err(error) if http::is_cut(&error) => return,
                        Err(error) => {
                            return writer.with(|told| told.faults.push(format!("{error:#}")));
                        }
                    }
                }
            }));
        }
        Ok(Writers { threads, count, stop, told })
    }

    /// Waits until so many writes were acknowledged.
    ///
    /// # Errors
    /// The writers ended before.
    pub(super) fn wait_for(&self, acknowledged: u64) -> Result<()> {
        while self.count.load(SeqCst) < acknowledged {
            if self.threads.iter().all(JoinHandle::is_finished) {
                let faults: Vec<String> = self
                    .told
                    .iter()
                    .flat_map(|told| told.lock().unwrap_or_else(|e| e.into_inner()).faults.clone())
                    .collect();
                bail!("all writers ended after {} writes: {faults:?}", self.count.load(SeqCst));
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Acknowledged so far, over all accounts.
    pub(super) fn count(&self) -> u64 {
        self.count.load(SeqCst)
    }

    /// What is acknowledged at this moment, by account.
    pub(super) fn acknowledged(&self) -> Vec<Vec<Acknowledged>> {
        self.told
            .iter()
            .map(|told| told.lock().unwrap_or_else(|e| e.into_inner()).acknowledged.clone())
            .collect()
    }

    /// Lets each writer finish what it does; answers what was told, by account.
    pub(super) fn stop(self) -> Result<Vec<Told>> {
        self.stop.store(true, SeqCst);
        self.join()
    }

    /// The same for writers that end by themselves, since their neuron is gone.
    pub(super) fn join(self) -> Result<Vec<Told>> {
        for thread in self.threads {
            if thread.join().is_err() {
                bail!("a writer panicked");
            }
        }
        let told = self.told.into_iter();
        Ok(told
            .map(|told| std::mem::take(&mut *told.lock().unwrap_or_else(|e| e.into_inner())))
            .collect())
    }
}

struct Writer {
    number: u64,
    round: u64,
    random: Random,
    client: Client,
    told: Arc<Mutex<Told>>,
    written: u64,
}

impl Writer {
    /// One request or two; whether a write was acknowledged. An error that is no cut is a fault.
    fn step(&mut self) -> Result<bool> {
        let path = match self.random.below(4) {
            0 => KEPT_PATH.to_owned(),
            _ => format!("round{}", self.round),
        };
        let own = format!("own{}", self.number);
        let shared = format!("shared{}", self.random.below(SHARED_KEYS));
        match self.random.below(20) {
            0..=8 => self.put(path, own, None),
            9..=12 => self.put(path, shared, None),
            13..=15 => match self.look(&path, &shared)? {
                Some(ver) => self.put(path, shared, Some(ver)),
                None => Ok(false),
            },
            16..=17 => self.look(&path, &shared).map(|_| false),
            _ => self.delete(path, own),
        }
    }

    fn put(&mut self, path: String, key: String, based_on: Option<String>) -> Result<bool> {
        self.written += 1;
        let name = format!("{}.{}.{}", self.round, self.number, self.written);
        let value = checked(&name, self.random.below(PAD_CHARS_MAX));
        let mut body = json!({ "k": key, "v": value });
        if let Some(ver) = &based_on {
            body["_ver_"] = json!(ver);
        }
        let target = format!("/_data/{path}");
        let answer = match self.client.call("PUT", &target, &body.to_string()) {
            Ok(answer) => answer,
            Err(error) => return self.unanswered(path, key, error),
        };
        let Some(v) = answer.ok() else {
            let conflict = based_on.is_some() && answer.word() == "version_conflict";
            ensure!(conflict, "a put: {answer:?}");
            return Ok(false);
        };
        let ver = v["_ver_"].as_str().context("a put answers a version")?.to_owned();
        let acknowledged = Acknowledged { path, key, ver: Some(ver), value: Some(value), based_on };
        self.with(|told| told.acknowledged.push(acknowledged));
        Ok(true)
    }

    fn delete(&mut self, path: String, key: String) -> Result<bool> {
        let answer = match self.client.call("DELETE", &format!("/_data/{path}?k={key}"), "") {
            Ok(answer) => answer,
            Err(error) => return self.unanswered(path, key, error),
        };
        if answer.ok().is_none() {
            ensure!(answer.word() == "not_found", "a deletion: {answer:?}");
            return Ok(false);
        }
        let acknowledged = Acknowledged { path, key, ver: None, value: None, based_on: None };
        self.with(|told| told.acknowledged.push(acknowledged));
        Ok(true)
    }

    /// Reads a key; answers its version, or `None` where there is no value.
    fn look(&mut self, path: &str, key: &str) -> Result<Option<String>> {
        let answer = self.client.get(&format!("/_data/{path}?k={key}"))?;
        let Some(v) = answer.ok() else {
            ensure!(answer.word() == "not_found", "a read of {path} {key}: {answer:?}");
            return Ok(None);
        };
        check(v).with_context(|| format!("{path} {key}"))?;
        let ver = v["_ver_"].as_str().context("an object shows its version")?.to_owned();
        self.with(|told| told.seen.push((path.to_owned(), key.to_owned(), ver.clone())));
        Ok(Some(ver))
    }

    /// A write whose answer got lost when the neuron went away.
    fn unanswered<T>(&self, path: String, key: String, error: anyhow::Error) -> Result<T> {
        if http::is_cut(&error) {
            self.with(|told| told.unanswered.push((path, key)));
        }
        Err(error)
    }

    fn with(&self, note: impl FnOnce(&mut Told)) {
        note(&mut self.told.lock().unwrap_or_else(|e| e.into_inner()));
    }
}

/// A value that names its write and has a checksum over all of it.
pub(super) fn checked(name: &str, pad_chars: u64) -> Value {
    let letter = char::from(b'a' + u8::try_from(pad_chars % 26).unwrap_or(0));
    let pad: String = (0..pad_chars).map(|_| letter).collect();
    json!({ "sum": sum(name, &pad), "name": name, "pad": pad })
}

/// Whether a value is one that was written, whole.
pub(super) fn check(value: &Value) -> Result<()> {
    let (Some(name), Some(pad)) = (value["name"].as_str(), value["pad"].as_str()) else {
        bail!("torn: {value}");
    };
    if value["sum"] != sum(name, pad) {
        bail!("the checksum of {name} is wrong: {value}");
    }
    Ok(())
}

/// FNV-1a, 64 bits, in hexadecimal digits.
fn sum(name: &str, pad: &str) -> String {
    let bytes = name.bytes().chain([0]).chain(pad.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}
