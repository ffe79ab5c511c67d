//! What is done every so often: statistics and logs are written, views age, retention lets go.
//!
//! The shell calls these on its timers; each can be called late or twice without harm.

use std::sync::PoisonError;

use kv4::store::{Stat, StoreError};
use services::layer_of;
use services::logs::RUNTIME_PATH;
use services::statistics::Measured;
use wire::names::{Key, Path};

use crate::Neuron;

/// Counters of the views as they stood at the last flush.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flushed(kv4::view::Stats);

impl Neuron {
    /// Writes statistics and log lines. Figures of the neuron itself stand in the bucket of `$sys`
    /// (seed 002 "Discovery"). How long the last time took is always among them, so that this asks
    /// the store for a durable write even when nothing else was measured.
    ///
    /// # Errors
    /// The store's; statistics are kept for the next flush.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let (before, stats) = {
            let mut flushed = self.flushed.lock().unwrap_or_else(PoisonError::into_inner);
            // Read under the lock: of two flushes the later one never goes back.
            let stats = self.services.kv.view_stats();
            (std::mem::replace(&mut flushed.0, stats), stats)
        };
        for (measure, count) in [
            ("cache:hit", stats.hits - before.hits),
            ("cache:miss", stats.misses - before.misses),
            ("cache:write", stats.writes - before.writes),
        ] {
            self.record_own(measure, Stat { sum: count, min: 1, max: 1, count });
        }
        let begun = self.services.clock.now_micros();
        self.services.flush_stats().await?;
        let took_micros = self.services.clock.now_micros().saturating_sub(begun);
        self.record_own("store:flush", Stat::of(took_micros));
        self.services.flush_logs().await
    }

    /// Lets views and rooms age.
    pub fn tick(&self) {
        self.sockets.tick();
        self.services.kv.tick(u32::try_from(self.services.now_s()).unwrap_or(u32::MAX));
    }

    fn record_own(&self, measure: &str, stat: Stat) {
        let (Ok(path), Ok(key)) =
            (Path::parse(RUNTIME_PATH), Key::parse(&self.services.neuron_key()))
        else {
            return;
        };
        if stat.count > 0 {
            let measured =
                Measured { bucket: kv4::Bucket::sys(), measure: layer_of(measure), path, key };
            self.services.stats.merge(measured, stat, self.services.now_s());
        }
    }
}
