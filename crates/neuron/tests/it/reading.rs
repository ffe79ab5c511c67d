//! Reads that wait for a version by `at`.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use neuron::requests::{Admission, Payer, Refused};
use serde_json::{Value, json};
use services::sessions::Session;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{Stage, Way};

/// Reads of one account that wait at a time.
const AT_WAITING_MAX: usize = 256;
/// Longer than a password takes to be proven, in a debug build.
const SECOND: Duration = Duration::from_secs(1);
/// Longer than a request takes that need not wait.
const LONG: Duration = Duration::from_secs(20);

/// One request is carried out at a time.
struct OneByOne(Arc<Semaphore>);

impl Admission for OneByOne {
    type Turn = OwnedSemaphorePermit;

    async fn turn(&self, _: Payer, _: bool) -> Result<OwnedSemaphorePermit, Refused> {
        Ok(self.0.clone().acquire_owned().await.unwrap())
    }
}

/// Begins a read, which does not end by itself.
async fn begin(read: impl Future<Output = Value>) {
    timeout(Duration::from_millis(1), read).await.expect_err("it waits");
}

#[tokio::test]
async fn a_read_that_waits_for_a_version_holds_no_turn_and_so_many_may_wait() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let put = |key: &'static str| stage.ok(&elena, "PUT", "/_data/p", json!({ "k": key, "v": {} }));
    put("a").await;
    put("b").await;
    // Of another key, so that it is one which `a` will have.
    let ver = put("b").await["_ver_"].as_str().unwrap().to_owned();
    stage.clock.is_still.store(true, SeqCst);

    let turns = OneByOne(Arc::new(Semaphore::new(1)));
    let get = |target: String| {
        let (stage, elena, admission) = (&stage, &elena, &turns);
        async move {
            let session = &Session::default();
            stage.send(elena, "GET", &target, Value::Null, Way::new(admission, session)).await
        }
    };
    let late = || get(format!("/_data/p?k=a&at={ver}"));
    let mut waiting = Vec::new();
    for _ in 0..AT_WAITING_MAX {
        waiting.push(Box::pin(late()));
        begin(waiting.last_mut().unwrap()).await;
        if waiting.len() == 1 {
            let other = timeout(LONG, get("/_data/p?k=b".to_owned())).await;
            assert_eq!(other.expect("the turn is free")["s"], "ok");
        }
    }
    let surplus = timeout(LONG, late()).await.unwrap();
    assert_eq!(surplus["v"], "overloaded");
    let body = json!({ "k": "rose", "v": { "email": "rose@example.org" } });
    let rose = stage.ok(&elena, "PUT", "/_acc/accounts", body).await;
    let rose = format!("elena#rose:{}", rose["secret"].as_str().unwrap());
    let hers = stage.call(&rose, "GET", &format!("/_data/p?k=a&at={ver}"), Value::Null).await;
    assert_eq!(hers["v"], "overloaded", "sub-accounts wait in their account's places");
    let (lily, _) = stage.account("lily").await;
    let seen = stage.call(&lily, "GET", &format!("/_conf?k=strict&at={ver}x"), Value::Null).await;
    assert_eq!(seen["v"], "bad_request", "others are not refused");
    // Who hangs up leaves his place.
    waiting.pop();
    waiting.push(Box::pin(late()));
    begin(waiting.last_mut().unwrap()).await;
    put("a").await;
    for read in waiting {
        assert_eq!(timeout(LONG, read).await.unwrap()["s"], "ok");
    }
}

/// He was let in while he was one.
#[tokio::test]
async fn an_admin_who_is_removed_while_his_read_waits_reads_nothing() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let body = json!({ "k": "ann", "v": { "password": "password" } });
    stage.ok(&elena, "PUT", "/_acc/users/admins", body).await;
    let put = |key: &'static str| stage.ok(&elena, "PUT", "/_data/p", json!({ "k": key, "v": {} }));
    put("a").await;
    put("b").await;
    let ver = put("b").await["_ver_"].as_str().unwrap().to_owned();
    stage.clock.is_still.store(true, SeqCst);
    let target = format!("/_data/p?k=a&at={ver}");
    let mut late = Box::pin(stage.call("elena:ann#password", "GET", &target, Value::Null));
    timeout(SECOND, &mut late).await.expect_err("it waits");
    stage.ok(&elena, "DELETE", "/_acc/users/admins?k=ann", Value::Null).await;
    put("a").await;
    assert_eq!(timeout(LONG, late).await.unwrap()["v"], "unauthorized");
}
