//! How often a bound of the services was met that no configuration names, for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Services;

/// What one bound has cost so far.
#[derive(Clone, Copy, Debug)]
pub struct Met {
    /// As a metric is called, without what stands for the program and for a counter.
    pub name: &'static str,
    pub help: &'static str,
    pub count: u64,
}

impl Services {
    /// Every such bound.
    pub fn bounds(&self) -> [Met; 14] {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let met = |name, help, count| Met { name, help, count };
        let watches = self.kv.watches().stats();
        [
            met("logins_failed", "Logins that were wrong.", load(&self.failures.failed)),
            met(
                "logins_refused",
                "Logins that were not looked at, after too many wrong ones.",
                load(&self.failures.refused),
            ),
            met(
                "proofs_halved",
                "Times that half of the logins remembered were forgotten, since they were too many.",
                load(&self.proven.halvings),
            ),
            met(
                "derived_cleared",
                "Times that all compiled rules and settings were forgotten, since they were too many.",
                self.rules.cleared() + self.settings.cleared() + self.path_rules.cleared(),
            ),
            met(
                "rules_refused",
                "Rules of paths that were refused, since an account's rules name too many users.",
                load(&self.rules_refused),
            ),
            met(
                "awaiting_refused",
                "Reads by `at` that were refused, since too many of their account wait.",
                load(&self.awaiting.refused),
            ),
            met(
                "polls_refused",
                "Reads with `wait` that were refused, since too many of their account wait.",
                load(&self.polling.refused),
            ),
            met(
                "watches_refused",
                "Watches that were refused over limits.watches_per_account.",
                watches.refused,
            ),
            met(
                "watches_slow",
                "Watches that were ended since their stream or socket did not keep up.",
                watches.slow,
            ),
            met(
                "watches_overflowed",
                "Watches that were ended since limits.watch_queue was full.",
                watches.overflowed,
            ),
            met("watches_told", "Changes told, once for each watch.", watches.told),
            met(
                "idempotent_refused",
                "Requests with an Idempotency-Key that were refused, since too many are under way.",
                load(&self.idempotent.refused),
            ),
            met(
                "idempotent_lost",
                "Answers to an Idempotency-Key that could not be kept.",
                load(&self.idempotent.lost),
            ),
            met(
                "graces_lost",
                "Connected tokens that were not remembered, and so have no grace once expired.",
                load(&self.graces.lost),
            ),
        ]
    }
}
