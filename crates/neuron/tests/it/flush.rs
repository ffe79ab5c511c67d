//! What a flush writes: lines of accounts' logs, kept while the store refuses them, within a bound,
//! and gone with their bucket; and always something.

use std::time::Duration;

use kv4::Bucket;
use kv4::store::StatQuery;
use serde_json::{Value, json};
use services::layer_of;
use services::logs::{LINES_MAX, Level};
use services::sessions::Session;
use services::statistics::Measured;
use tokio::sync::Notify;
use tokio::time::timeout;
use wire::names::{Key, Path};

use super::{Held, SYS, Stage, Way};

/// Flushes until the store, which tries a disk again after a pause, takes it.
async fn flush(stage: &Stage) {
    let flushed = async {
        while stage.neuron.flush().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), flushed).await.unwrap();
}

/// The lines of a level, the oldest first.
async fn series(stage: &Stage, who: &str, level: Level) -> Vec<String> {
    let target =
        format!("/_ds/runtime/hosts/active?l={}&k=host:neuron&time_series=1", level.layer());
    let rows = stage.ok(who, "GET", &target, Value::Null).await;
    let mut lines: Vec<String> =
        rows.as_array().unwrap().iter().map(|row| row[2].as_str().unwrap().to_owned()).collect();
    lines.reverse();
    lines
}

#[tokio::test]
async fn lines_that_the_store_refuses_are_written_when_it_takes_them() {
    let stage = Stage::new().await;
    let note = |text: &str| {
        stage.neuron.services.logs.note(&Bucket::sys(), Level::Warn, || text.to_owned());
    };
    stage.disk.set_full(true);
    note("one");
    note("two");
    let refused_at_s = stage.neuron.services.now_s();
    assert!(stage.neuron.flush().await.is_err());
    assert!(stage.neuron.services.flush_logs().await.is_err());
    stage.clock.advance_s(3600);
    note("three");
    assert!(stage.neuron.services.flush_logs().await.is_err());
    assert_eq!(stage.neuron.services.logs.held(), (3, 0));
    stage.disk.set_full(false);
    flush(&stage).await;
    assert_eq!(series(&stage, SYS, Level::Warn).await, ["one", "two", "three"]);
    assert_eq!(stage.neuron.services.logs.held(), (0, 0));
    flush(&stage).await;
    assert_eq!(series(&stage, SYS, Level::Warn).await.len(), 3, "written once");

    // They stand where they belong in time, not where the store came back.
    let target = "/_ds/runtime/hosts/active?l=*logs:warn&k=host:neuron&time_series=1";
    let rows = stage.ok(SYS, "GET", target, Value::Null).await;
    assert_eq!(rows[2][0], refused_at_s, "{rows}");
}

#[tokio::test]
async fn of_more_lines_than_may_wait_the_newest_are_kept_and_the_rest_counted() {
    let stage = Stage::new().await;
    let logs = &stage.neuron.services.logs;
    let note = |at: usize| logs.note(&Bucket::sys(), Level::Warn, || format!("line {at}"));
    stage.disk.set_full(true);
    (0..LINES_MAX).for_each(note);
    assert!(stage.neuron.services.flush_logs().await.is_err());
    assert_eq!(logs.held(), (LINES_MAX, 0));
    (LINES_MAX..LINES_MAX + 2).for_each(note);
    assert_eq!(logs.held(), (LINES_MAX, 2));
    stage.disk.set_full(false);
    flush(&stage).await;
    let lines = series(&stage, SYS, Level::Warn).await;
    assert_eq!((lines.len(), lines[0].as_str()), (LINES_MAX, "line 2"));
    assert_eq!(lines[LINES_MAX - 1], format!("line {}", LINES_MAX + 1));
}

#[tokio::test]
async fn an_account_that_asks_for_it_has_a_line_of_every_call() {
    let stage = Stage::new().await;
    let (elena, bucket) = stage.account("elena").await;
    let layer = services::layer_of("*logs:debug");
    stage.ok(&elena, "GET", "/_data/p", Value::Null).await;
    flush(&stage).await;
    let layers = stage.neuron.services.kv.layers(&bucket).await.unwrap();
    assert!(!layers.contains(&layer), "off unless it is asked for: {layers:?}");

    let on = json!({ "k": "debug_log", "v": true });
    stage.ok(&elena, "PUT", "/_conf", on).await;
    stage.ok(&elena, "PUT", "/_data/a%20b", json!({ "k": "a", "v": "a secret" })).await;
    assert_eq!(stage.call(&elena, "GET", "/_data/p?k=none", Value::Null).await["v"], "not_found");
    let (name, secret) = elena.split_once(':').unwrap();
    let old = format!("/domain?ident={name}&secret={secret}");
    assert_eq!(stage.call(&elena, "GET", &old, Value::Null).await["s"], 200);
    stage.ok(&elena, "GET", &format!("/_data/{}", "x".repeat(250)), Value::Null).await;
    stage.ok(&elena, "PUT", "/_conf", json!({ "k": "debug_log", "v": false })).await;
    stage.ok(&elena, "GET", "/_data/p", Value::Null).await;
    flush(&stage).await;
    let lines = series(&stage, &elena, Level::Debug).await;
    let long = "x".repeat(256 - "/_data/".len());
    assert_eq!(
        lines,
        [
            "PUT /_data/a%20b (_data) by elena from 127.0.0.1: ok",
            "GET /_data/p (_data) by elena from 127.0.0.1: not_found",
            "GET /domain (_ns) by elena from 127.0.0.1: ok",
            &format!("GET /_data/{long} (_data) by elena from 127.0.0.1: ok"),
            "PUT /_conf (_conf) by elena from 127.0.0.1: ok",
        ]
    );
}

#[tokio::test]
async fn a_flood_of_calls_takes_no_room_from_what_is_told_of_failed_logins() {
    let stage = Stage::new().await;
    let logs = &stage.neuron.services.logs;
    logs.note(&Bucket::sys(), Level::Warn, || "failed login".to_owned());
    for at in 0..=LINES_MAX {
        logs.note(&Bucket::sys(), Level::Debug, || at.to_string());
    }
    assert_eq!(logs.held(), (LINES_MAX + 1, 1));
    flush(&stage).await;
    assert_eq!(series(&stage, SYS, Level::Warn).await, ["failed login"]);
    let lines = series(&stage, SYS, Level::Debug).await;
    assert_eq!((lines.len(), lines[0].as_str()), (LINES_MAX, "1"));
}

/// Lines of a deleted account would be found by the next owner of its name.
#[tokio::test]
async fn lines_that_wait_go_with_their_account() {
    let stage = Stage::new().await;
    let (elena, bucket) = stage.account("elena").await;
    let body = json!({ "k": "lily", "v": { "email": "lily@example.org" } });
    stage.ok(&elena, "PUT", "/_acc/accounts", body).await;
    let logs = &stage.neuron.services.logs;
    let others = logs.held().0 - 1;
    stage.ok(SYS, "DELETE", "/_acc/accounts?k=elena", Value::Null).await;
    assert_eq!(logs.held().0, others + 1, "hers is gone, and her end is told to `$sys`");
    flush(&stage).await;
    assert!(!stage.neuron.services.kv.buckets().await.unwrap().contains(&bucket));
}

/// Readiness follows the flush: one that writes nothing would find a full disk in order.
#[tokio::test]
async fn a_flush_asks_the_store_even_when_nothing_was_measured() {
    let stage = Stage::new().await;
    for _ in 0..3 {
        flush(&stage).await;
    }
    stage.disk.set_full(true);
    assert!(stage.neuron.flush().await.is_err());
    assert!(stage.neuron.flush().await.is_err(), "what was not written is tried again");
    stage.disk.set_full(false);
    flush(&stage).await;
}

fn measured(bucket: &Bucket, name: &str) -> Measured {
    let (path, key) = (Path::parse("/p").unwrap(), Key::parse(name).unwrap());
    Measured { bucket: bucket.clone(), measure: layer_of("store:test"), path, key }
}

/// The minutes of a measure with what was counted in them, in order.
async fn minutes(stage: &Stage, bucket: &Bucket, measure: &str) -> Vec<(u64, u64)> {
    let measure = layer_of(measure);
    let bucket = bucket.clone();
    let (from_minute, to_minute) = (0, u32::MAX);
    let query = StatQuery {
        bucket,
        measure,
        path: None,
        key: None,
        from_minute,
        to_minute,
        depth: 5,
        groups_max: usize::MAX,
    };
    let minutes = stage.neuron.services.kv.stats(&query).await.unwrap();
    minutes.iter().map(|(minute, stat)| (minute.first_s() / 60, stat.count)).collect()
}

/// A flush has taken what was measured and written some of it when the account is deleted.
#[tokio::test]
async fn the_end_of_an_account_waits_for_a_flush_that_has_begun() {
    let stage = Stage::new().await;
    let (_, bucket) = stage.account("elena").await;
    let services = &stage.neuron.services;
    for at in 0..20_000 {
        services.stats.record(measured(&bucket, &at.to_string()), 1, services.now_s());
    }
    let mut flushing = Box::pin(services.flush_stats());
    timeout(Duration::ZERO, &mut flushing).await.expect_err("it waits for the store");
    let end = || stage.call(SYS, "DELETE", "/_acc/accounts?k=elena", Value::Null);
    assert_eq!(end().await["v"], "locked", "it waits for the flush, and not for ever");
    flushing.await.unwrap();
    assert_eq!(end().await["s"], "ok");
    flush(&stage).await;
    assert!(!services.kv.buckets().await.unwrap().contains(&bucket));
}

#[tokio::test]
async fn what_is_told_of_an_account_after_its_end_is_nobodys() {
    let stage = Stage::new().await;
    let services = &stage.neuron.services;
    for is_made_anew in [false, true] {
        let (elena, bucket) = stage.account("elena").await;
        let turn = Notify::new();
        let session = &Session::default();
        let held = Held(&turn);
        let way = Way::new(&held, session);
        let mut late = Box::pin(stage.send(&elena, "GET", "/_data", Value::Null, way));
        timeout(Duration::from_millis(100), &mut late).await.expect_err("its turn is not now");
        stage.ok(SYS, "DELETE", "/_acc/accounts?k=elena", Value::Null).await;
        if is_made_anew {
            stage.account("elena").await;
        }
        turn.notify_one();
        late.await;
        if !is_made_anew {
            services.logs.note(&bucket, Level::Info, || "late".to_owned());
            services.stats.record(measured(&bucket, "late"), 1, services.now_s());
        }
        flush(&stage).await;
        let buckets = services.kv.buckets().await.unwrap();
        assert!(!buckets.contains(&bucket), "anew: {is_made_anew}");
    }
}

/// What is measured until an account is inactive is not lost, and can still be told.
#[tokio::test]
async fn figures_and_lines_of_an_inactive_account_are_written() {
    let stage = Stage::new().await;
    let (elena, bucket) = stage.account("Elena-2").await;
    stage.ok(&elena, "GET", "/_data", Value::Null).await;
    stage.neuron.services.logs.note(&bucket, Level::Info, || "told".to_owned());
    let body = json!({ "k": "Elena-2", "v": { "active": false } });
    stage.ok(SYS, "POST", "/_acc/accounts", body).await;
    flush(&stage).await;
    assert_eq!(minutes(&stage, &bucket, "api:3").await.len(), 1);
    let layers = stage.neuron.services.kv.layers(&bucket).await.unwrap();
    assert_eq!(layers, [layer_of(Level::Info.layer())]);
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_and_is_set_right_spoils_no_statistics() {
    const YEAR_S: u64 = 365 * 86_400;
    let stage = Stage::new().await;
    let (_, bucket) = stage.account("elena").await;
    let services = &stage.neuron.services;
    let count = |times: u64| {
        for _ in 0..times {
            services.stats.record(measured(&bucket, "k"), 1, services.now_s());
        }
    };
    let begun = services.now_s() / 60;
    let mut expected = Vec::new();
    // Right, a year ahead for three minutes, right again.
    for (at, jump) in [(0, 0), (5, 0), (6, YEAR_S), (7, YEAR_S), (8, YEAR_S), (9, 0), (15, 0)] {
        let now = begun + at + jump / 60;
        stage.clock.advance_s(YEAR_S + (begun + at) * 60 + jump - services.now_s() / 60 * 60);
        stage.clock.set_back_s(YEAR_S);
        for times in 1..=2 {
            count(times);
            flush(&stage).await;
        }
        expected.push((now, 3));
    }
    expected.sort_unstable();
    assert_eq!(minutes(&stage, &bucket, "store:test").await, expected);
    // Back over what is written and final: nothing is written over.
    stage.clock.set_back_s(15 * 60);
    count(4);
    flush(&stage).await;
    let counted: u64 =
        minutes(&stage, &bucket, "store:test").await.iter().map(|(_, count)| count).sum();
    assert_eq!(counted, 7 * 3 + 4);
}
