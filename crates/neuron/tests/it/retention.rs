//! What is let go of, when, and what that costs.

use kv4::store::Seq;
use kv4::write::{Condition, Op, Write};
use kv4::{Bucket, Node};
use serde_json::{Value, json};
use services::{layer_of, token};
use wire::json::Json;
use wire::names::{Key, Path};

use super::{SYS, Stage};

const HOUR_S: u64 = 3600;
const DAY_S: u64 = 24 * HOUR_S;
/// How long after its token's last day a revocation is kept.
const MARGIN_S: u64 = 7 * DAY_S;
/// Rows of a layer that go in one run.
const ROWS_MAX: u64 = 10_000;

async fn has_layer(stage: &Stage, bucket: &Bucket, layer: &str) -> bool {
    stage.neuron.services.kv.layers(bucket).await.unwrap().contains(&layer_of(layer))
}

async fn prune(stage: &Stage) -> u64 {
    stage.neuron.services.prune().await.unwrap()
}

/// Looks at rows in memory so far.
fn looks(stage: &Stage) -> u64 {
    let stats = stage.neuron.services.kv.view_stats();
    stats.hits + stats.misses
}

#[tokio::test]
async fn a_kept_answer_is_given_for_a_day_whenever_that_began() {
    let stage = Stage::new().await;
    let (elena, bucket) = stage.account("elena").await;
    for (round, begins_s) in [0, 1, 13 * HOUR_S, DAY_S - 1].into_iter().enumerate() {
        // Midnight, and so much later.
        let since_midnight_s = stage.neuron.services.now_s() % DAY_S;
        stage.clock.advance_s(DAY_S - since_midnight_s + begins_s);
        let put = |n: u32| {
            let (stage, elena) = (&stage, &elena);
            async move {
                let target = format!("/_data/round{round}");
                let body = json!({ "k": "a", "v": n });
                stage.call_once(elena, "PUT", &target, body, Some("once")).await
            }
        };
        let first = put(1).await;
        assert_eq!(first["s"], "ok", "{first}");
        for _ in 0..23 {
            stage.clock.advance_s(HOUR_S);
            prune(&stage).await;
            assert_eq!(put(1).await, first, "round {round}");
        }
        assert_eq!(put(2).await["v"], "idempotency_conflict");
        stage.clock.advance_s(HOUR_S);
        assert_eq!(put(2).await["v"], 2, "round {round}: a day is over");
    }
    stage.clock.advance_s(2 * DAY_S);
    prune(&stage).await;
    assert!(!has_layer(&stage, &bucket, "*idem").await);
}

#[tokio::test]
async fn letting_go_costs_what_ends_and_not_what_there_is() {
    let stage = Stage::new().await;
    let (elena, bucket) = stage.account("elena").await;
    for at in 0..100 {
        let body = json!({ "k": "a", "v": at });
        stage.call_once(&elena, "PUT", "/_data/p", body, Some(&format!("key{at}"))).await;
        let id = format!("{at:016x}");
        let by = "elena".into();
        let end_s = stage.neuron.services.now_s() + DAY_S;
        token::revoke_id(&stage.neuron.services, &bucket, at, end_s, &by).await.unwrap();
        stage.ok(&elena, "DELETE", &format!("/_token?id={id}"), Value::Null).await;
    }
    prune(&stage).await;
    let before = looks(&stage);
    assert_eq!(prune(&stage).await, 0);
    let looked = looks(&stage) - before;
    assert!(looked < 10, "{looked} looks at rows of which none has ended");
    stage.clock.advance_s(3 * DAY_S);
    assert_eq!(prune(&stage).await, 100, "kept answers, and no revocation yet");
    stage.clock.advance_s(MARGIN_S);
    assert_eq!(prune(&stage).await, 100, "what has an end has gone");
    assert!(!has_layer(&stage, &bucket, "*idem").await);
    assert!(has_layer(&stage, &bucket, "*token").await, "what has none stays");
}

#[tokio::test]
async fn one_run_lets_so_many_rows_go_and_the_next_one_the_rest() {
    let stage = Stage::new().await;
    let (_, bucket) = stage.account("elena").await;
    let services = &stage.neuron.services;
    let node = Node::new(bucket.clone(), layer_of("*idem"), Path::parse("/1").unwrap());
    let write = |at: u64| Write {
        entry: node.entry(Key::parse(&at.to_string()).unwrap()),
        op: Op::Put { value: Json::from(at), keys: Default::default() },
        condition: Condition::Any,
        who: "elena".into(),
        stamp: services.stamp(),
    };
    let written = services.kv.write_all((0..=ROWS_MAX).map(write).collect()).await;
    assert!(written.iter().all(Result::is_ok));
    assert_eq!(prune(&stage).await, ROWS_MAX);
    assert_eq!(prune(&stage).await, 1);
    assert_eq!(prune(&stage).await, 0);
}

#[tokio::test]
async fn a_revocation_holds_as_long_as_its_token_would_and_then_goes() {
    let stage = Stage::new().await;
    let (elena, bucket) = stage.account("elena").await;
    let services = &stage.neuron.services;
    // One that is signed, and one whose texts do not fit, which is a row.
    let long = "x".repeat(128);
    for (name, is_row) in [("bob", false), (long.as_str(), true)] {
        let target = format!("/_token?k={name}&expire={}", 30 * DAY_S);
        let (kept, revoked) = (
            stage.ok(&elena, "PUT", &target, Value::Null).await,
            stage.ok(&elena, "PUT", &target, Value::Null).await,
        );
        let (kept, revoked) = (kept.as_str().unwrap(), revoked.as_str().unwrap());
        assert_eq!(kept.starts_with('t'), is_row, "{kept}");
        let target = format!("/_token?id={revoked}");
        assert_eq!(stage.ok(&elena, "DELETE", &target, Value::Null).await, 1);
        for _ in 0..29 {
            token::verify(services, kept).await.unwrap();
            assert!(token::verify(services, revoked).await.is_err());
            stage.clock.advance_s(DAY_S);
            prune(&stage).await;
        }
        token::verify(services, kept).await.unwrap();
        assert!(has_layer(&stage, &bucket, "*token").await, "the revocation");
        // A clock that jumps ahead, and is set right again.
        stage.clock.advance_s(MARGIN_S);
        assert!(token::verify(services, kept).await.is_err(), "it has expired");
        assert_eq!(prune(&stage).await, 0);
        stage.clock.set_back_s(MARGIN_S);
        token::verify(services, kept).await.unwrap();
        assert!(token::verify(services, revoked).await.is_err());
        stage.clock.advance_s(MARGIN_S + 3 * DAY_S);
        assert!(token::verify(services, kept).await.is_err(), "it has expired");
        assert_eq!(prune(&stage).await, 1 + u64::from(is_row), "{name}");
        assert!(!has_layer(&stage, &bucket, "*token").await);
    }
    // Neither versions nor deletions are left behind.
    for bucket in [bucket, Bucket::sys()] {
        let changes = services.kv.changes(&bucket, Seq(0), 1000).await.unwrap().0;
        let of_tokens = changes.iter().filter(|change| {
            change.entry.node.layer.as_str() == "*token" && change.version.is_some()
        });
        assert_eq!(of_tokens.count(), 0, "{bucket}");
    }

    // A text that names another day, or no day, is no token.
    let target = format!("/_token?k={long}&expire=600");
    let row = stage.ok(&elena, "PUT", &target, Value::Null).await;
    let (_, random) = row.as_str().unwrap().split_once('.').unwrap();
    for forged in [format!("t1.{random}"), format!("t.{random}"), format!("t{random}")] {
        assert!(token::verify(services, &forged).await.is_err(), "{forged}");
    }
    token::verify(services, row.as_str().unwrap()).await.unwrap();
}

#[tokio::test]
async fn of_the_retentions_above_a_path_the_nearest_holds() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let paths = ["p", "a", "a/x", "a/b", "a/b/c/d", "ab"];
    for _ in 0..6 {
        for path in paths {
            let target = format!("/_data/{path}");
            stage.ok(&elena, "PUT", &target, json!({ "k": "a", "v": 1 })).await;
        }
    }
    for (path, value) in [
        ("", json!({ "count": 5 })),
        ("a", json!({ "count": 3 })),
        ("a/b", json!({ "count": 2 })),
        // Of another layer, so not in between.
        ("a/b/c", json!({ "layer": "*auth", "count": 1 })),
    ] {
        let body = json!({ "k": "retention", "v": value });
        stage.ok(&elena, "PUT", &format!("/_conf/{path}"), body).await;
    }
    prune(&stage).await;
    let mut left = Vec::new();
    for path in paths {
        let target = format!("/_data/{path}?k=a&time_series=1");
        let rows = stage.ok(&elena, "GET", &target, Value::Null).await;
        left.push(rows.as_array().unwrap().len());
    }
    assert_eq!(left, [5, 3, 3, 2, 2, 5]);
    assert_eq!(stage.call(SYS, "GET", "/_conf?k=retention", Value::Null).await["v"], "not_found");
}

/// Data that is a path each, as of sessions, has no live entry when it is done with.
#[tokio::test]
async fn retention_is_of_paths_too_on_which_nothing_is_live() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let kept = json!({ "k": "retention", "v": { "age_s": 60 } });
    stage.ok(&elena, "PUT", "/_conf", kept).await;
    for at in 0..3 {
        let path = format!("/_data/session/{at}");
        stage.ok(&elena, "PUT", &path, json!({ "k": "a", "v": at })).await;
        stage.ok(&elena, "DELETE", &format!("{path}?k=a"), Value::Null).await;
    }
    let series = "/_data/session/1?k=a&time_series=1";
    let rows = |v: &Value| v.as_array().unwrap().len();
    assert_eq!(rows(&stage.ok(&elena, "GET", series, Value::Null).await), 1);
    let newest = format!("{series}&limit=1");
    assert_eq!(rows(&stage.ok(&elena, "GET", &newest, Value::Null).await), 1, "not its deletion");
    stage.clock.advance_s(61);
    assert_eq!(prune(&stage).await, 6);
    assert_eq!(rows(&stage.ok(&elena, "GET", series, Value::Null).await), 0);
}

#[tokio::test]
async fn tokens_without_an_end_go_with_their_account() {
    let stage = Stage::new().await;
    let kv = &stage.neuron.services.kv;
    let rows = Node::new(Bucket::sys(), layer_of("*token"), Path::parse("/tokens").unwrap());
    let (elena, _) = stage.account("elena").await;
    let endless = json!({ "k": "bob", "expire": 0 });
    let mut tokens = Vec::new();
    for _ in 0..3 {
        tokens.push(stage.ok(&elena, "PUT", "/_token", endless.clone()).await);
    }
    let one = json!({ "id": tokens[0] });
    stage.ok(&elena, "DELETE", "/_token", one).await;
    assert_eq!(kv.keys(&rows).await.unwrap().len(), 2);
    // Most know a token by its id only.
    let shown = stage.ok(&elena, "PUT", "/_token?as=values", endless).await;
    let by_id = json!({ "id": shown["id"] });
    stage.ok(&elena, "DELETE", "/_token", by_id).await;
    assert_eq!(kv.keys(&rows).await.unwrap().len(), 2);
    let other = json!({ "k": "zoe", "expire": 0 });
    stage.ok(&elena, "PUT", "/_token", other).await;
    stage.ok(&elena, "DELETE", "/_token?k=zoe", Value::Null).await;
    assert_eq!(kv.keys(&rows).await.unwrap().len(), 2, "bob's stay");
    stage.ok(SYS, "DELETE", "/_acc/accounts?k=elena", Value::Null).await;
    assert_eq!(kv.keys(&rows).await.unwrap().len(), 0);
}
