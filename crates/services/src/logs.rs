//! Logs as layers: `*logs:debug|info|warn` at `/runtime/hosts/active`, a series per neuron.
//!
//! Lines are gathered in memory and written with the statistics; each account sees what concerns it,
//! `$sys` sees its own. Retention keeps the layers short ([`KEPT`]).

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use kv4::store::{Retention, StoreError};
use kv4::write::{Condition, Op, Write, WriteError};
use kv4::{Bucket, Node};
use wire::json::Json;
use wire::names::{Key, Layer};

use crate::settings::RetentionSetting;
use crate::{Services, layer, path};

/// Where neurons keep their own measures and logs.
pub const RUNTIME_PATH: &str = "/runtime/hosts/active";
/// How many lines of a neuron's series are kept, and for how long.
pub const KEPT: (u64, u64) = (10_000, 7 * 86_400);
/// Lines that wait to be written; the oldest go first.
const LINES_MAX: usize = 10_000;

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
    lines: Mutex<VecDeque<(Bucket, Level, String)>>,
}

impl Logs {
    /// Adds a line to a bucket's log. It must hold no secret.
    pub fn note(&self, bucket: &Bucket, level: Level, line: impl FnOnce() -> String) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= LINES_MAX {
            lines.pop_front();
        }
        lines.push_back((bucket.clone(), level, line()));
    }
}

impl Services {
    /// Writes the lines that wait.
    ///
    /// # Errors
    /// The store's; the lines are lost then, since a log must not grow while nobody can take it.
    pub async fn flush_logs(&self) -> Result<(), StoreError> {
        let lines =
            std::mem::take(&mut *self.logs.lines.lock().unwrap_or_else(PoisonError::into_inner));
        if lines.is_empty() {
            return Ok(());
        }
        let Ok(key) = Key::parse(&self.neuron_key()) else { return Ok(()) };
        let writes = lines
            .into_iter()
            .map(|(bucket, level, line)| Write {
                entry: Node::new(bucket, layer(level.layer()), path(RUNTIME_PATH))
                    .entry(key.clone()),
                op: Op::Put { value: Json::string(&line), keys: Default::default() },
                condition: Condition::Any,
                who: self.identity.neuron.as_str().into(),
                stamp: self.stamp(),
            })
            .collect();
        for answer in self.kv.write_all(writes).await {
            if let Err(WriteError::Store(error)) = answer {
                return Err(error);
            }
        }
        Ok(())
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
        let now_micros = self.clock.now_micros();
        let mut gone = crate::token::forget_expired(self, bucket).await?;
        gone += crate::idempotency::forget_old(self, bucket).await?;
        let (count, age_s) = KEPT;
        let short = Retention {
            before_micros: Some(now_micros.saturating_sub(age_s * 1_000_000)),
            count_max: Some(count),
        };
        for level in Level::ALL {
            let node = Node::new(bucket.clone(), layer(level.layer()), path(RUNTIME_PATH));
            gone += self.kv.prune(&node, short).await?;
        }
        let settings = self.settings.of(&self.kv, bucket).await?;
        let places = settings.places::<RetentionSetting>("retention");
        for (at, setting) in &places {
            let Ok(kept) = Layer::parse(&setting.layer) else { continue };
            for (path, _) in self.kv.paths(bucket, &kept, at).await? {
                // A setting further down stands in place of this one.
                let nearest = places
                    .iter()
                    .filter(|(other, o)| o.layer == setting.layer && path.is_within(other))
                    .max_by_key(|(other, _)| other.depth());
                if nearest.is_some_and(|(other, _)| other == at) {
                    let node = Node::new(bucket.clone(), kept.clone(), path);
                    gone += self.kv.prune(&node, setting.at(now_micros)).await?;
                }
            }
        }
        Ok(gone)
    }
}
