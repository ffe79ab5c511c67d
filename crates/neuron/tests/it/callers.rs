//! Who pays, what an address may see, and what a key that says nothing does.

use std::sync::Mutex;

use neuron::requests::{Admission, Payer, Refused};
use serde_json::{Value, json};
use services::sessions::Session;

use super::{Held, SYS, Stage, Way};

/// Lets everybody in, and notes who pays.
pub(super) struct Noting<'a>(pub(super) &'a Mutex<Vec<Payer>>);

impl Admission for Noting<'_> {
    type Turn = ();

    async fn turn(&self, payer: Payer, _: bool) -> Result<(), Refused> {
        self.0.lock().unwrap().push(payer);
        Ok(())
    }
}

/// Shares and rates would bind nobody who could make himself another payer.
#[tokio::test]
async fn the_top_account_pays_for_its_sub_accounts() {
    let stage = Stage::new().await;
    let (elena, bucket) = stage.account("elena").await;
    let body = json!({ "k": "lily", "v": { "email": "lily@example.org" } });
    let lily = stage.ok(&elena, "PUT", "/_acc/accounts", body).await;
    let lily = format!("elena#lily:{}", lily["secret"].as_str().unwrap());
    let paid = Mutex::new(Vec::new());
    for credentials in [&elena, &lily] {
        let session = &Session::default();
        let noting = Noting(&paid);
        let way = Way::new(&noting, session);
        let answer = stage.send(credentials, "GET", "/_data", Value::Null, way).await;
        assert_eq!(answer["s"], "ok");
    }
    assert_eq!(*paid.lock().unwrap(), vec![Payer::Account(bucket); 2]);
}

#[tokio::test]
async fn what_a_rule_denies_is_in_no_listing_and_no_feed() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    for path in ["/_data/open", "/_data/shut/deep"] {
        stage.ok(&elena, "PUT", path, json!({ "k": "a", "v": { "said": path } })).await;
    }
    let see = async |target: &str| stage.ok(&elena, "GET", target, Value::Null).await.to_string();
    let (paths, feed) = ("/_ds?a=paths&l=*data", "/_ds?a=changes");
    assert!(see(paths).await.contains("/shut/deep"));
    assert!(see(feed).await.contains("/_data/shut/deep"));
    // Requests of the stage come from this address.
    stage.ok(&elena, "PUT", "/_auth/shut", json!({ "k": "127.0.0.0/8" })).await;
    assert_eq!(see(paths).await, r#"["/open"]"#);
    let shown = see(feed).await;
    assert!(shown.contains("/_data/open") && !shown.contains("deep"), "{shown}");
    let seqs = shown.matches("\"seq\"").count();
    assert_eq!(seqs, 3, "the feed has no gap: {shown}");
}

#[tokio::test]
async fn a_key_that_is_named_and_is_none_deletes_nothing() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    for key in ["a", "b"] {
        stage.ok(&elena, "PUT", "/_data/p", json!({ "k": key, "v": 1 })).await;
    }
    for (target, body) in [
        ("/_data/p?k=", Value::Null),
        ("/_data/p?k2=", Value::Null),
        ("/_data/p", json!({ "k": ["a"] })),
        ("/_data/p", json!({ "k": null })),
    ] {
        let answer = stage.call(&elena, "DELETE", target, body).await;
        assert_eq!(answer["v"], "bad_name", "{target}: {answer}");
    }
    assert_eq!(stage.ok(&elena, "DELETE", "/_data/p", Value::Null).await, 2);
}

/// Revocations go with an account, so nothing else would stop a token of its predecessor.
#[tokio::test]
async fn a_token_of_a_deleted_account_is_none_of_the_next_one_of_its_name() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let token = stage.ok(&elena, "PUT", "/_token", json!({ "k": "bob" })).await;
    let token = token.as_str().unwrap();
    let services = &stage.neuron.services;
    assert!(services::token::verify(services, token).await.is_ok());
    stage.ok(SYS, "DELETE", "/_acc/accounts?k=elena", Value::Null).await;
    stage.clock.advance_ms(2);
    stage.account("elena").await;
    let fault = services::token::verify(services, token).await.expect_err("of another account");
    assert_eq!(fault.code.as_str(), "unauthorized");
}

/// An account, or a user's revocation, may be of a time that the clock has still to come to.
#[tokio::test]
async fn a_token_holds_that_was_made_while_the_clock_was_behind() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let services = &stage.neuron.services;
    let token = async |name: &str| {
        let body = json!({ "k": name, "expire": 600 });
        let made = stage.ok(&elena, "PUT", "/_token", body).await;
        made.as_str().unwrap().to_owned()
    };
    let ahead = token("ann").await;
    stage.clock.set_back_s(3600);
    assert!(services::token::verify(services, &token("bob").await).await.is_ok());
    stage.ok(&elena, "DELETE", "/_token?k=ann", Value::Null).await;
    assert!(services::token::verify(services, &token("ann").await).await.is_ok());
    stage.clock.advance_s(3600);
    assert!(services::token::verify(services, &ahead).await.is_err(), "revoked is revoked");
}

#[tokio::test]
async fn an_admin_erases_nothing_by_an_old_route_either() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let admin = json!({ "k": "ann", "v": { "password": "secret one" } });
    stage.ok(&elena, "PUT", "/_acc/users/admins", admin).await;
    stage.ok(&elena, "PUT", "/_ns/example.org", Value::Null).await;
    let by_admin = "elena:ann#secret one";
    let answer = stage.call(by_admin, "DELETE", "/_ns/example.org?erase=1", Value::Null).await;
    assert_eq!(answer["v"], "not_allowed");
    let target = "/domain?domain=example.org&erase=1";
    let answer = stage.call(by_admin, "DELETE", target, Value::Null).await;
    assert!(answer["e"].as_str().unwrap().contains("not_allowed"), "{answer}");
    assert_eq!(stage.ok(&elena, "GET", "/_ns", Value::Null).await, json!(["example.org"]));
}

#[tokio::test]
async fn a_kick_of_nobody_in_particular_kicks_nobody() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    stage.ok(&elena, "PUT", "/_ns/room", Value::Null).await;
    for (target, body) in [
        ("/_subs/room?k=", Value::Null),
        ("/_subs/room", json!({ "k": null })),
        ("/_subs/room", json!({ "k": ["ann"] })),
    ] {
        let answer = stage.call(&elena, "DELETE", target, body).await;
        assert_eq!(answer["v"], "bad_name", "{target}: {answer}");
    }
    assert_eq!(stage.ok(&elena, "DELETE", "/_subs/room", Value::Null).await, 0);
}

/// A name that is given anew while a read of its predecessor waits for its turn.
#[tokio::test]
async fn a_read_that_waited_for_its_turn_is_still_of_whom_it_was() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let turn = tokio::sync::Notify::new();
    let held = Held(&turn);
    let session = &Session::default();
    let way = Way::new(&held, session);
    let mut late = Box::pin(stage.send(&elena, "GET", "/_data/p?k=a", Value::Null, way));
    let pending = std::future::poll_fn(|context| {
        std::task::Poll::Ready(late.as_mut().poll(context).is_pending())
    });
    assert!(pending.await);
    stage.ok(SYS, "DELETE", "/_acc/accounts?k=elena", Value::Null).await;
    let (next, _) = stage.account("elena").await;
    stage.ok(&next, "PUT", "/_data/p", json!({ "k": "a", "v": "of the next one" })).await;
    turn.notify_one();
    // Whoever is refused waits for the turn of a stranger.
    turn.notify_one();
    assert_eq!(late.await["v"], "unauthorized");
}

#[tokio::test]
async fn a_token_made_before_the_clock_was_set_back_is_not_of_the_next_one_of_its_name() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let body = json!({ "k": "bob", "expire": 86_400 });
    stage.clock.advance_s(3600);
    let token = stage.ok(&elena, "PUT", "/_token", body).await;
    stage.clock.set_back_s(3600);
    stage.ok(SYS, "DELETE", "/_acc/accounts?k=elena", Value::Null).await;
    stage.account("elena").await;
    stage.clock.advance_s(3600);
    let services = &stage.neuron.services;
    assert!(services::token::verify(services, token.as_str().unwrap()).await.is_err());
}

#[tokio::test]
async fn a_bound_on_tokens_is_one_on_those_without_an_end_too() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let year = json!({ "k": "token_expire_max_s", "v": 400 * 86_400 });
    stage.ok(&elena, "PUT", "/_conf", year).await;
    let endless = json!({ "k": "bob", "expire": 0 });
    assert_eq!(stage.call(&elena, "PUT", "/_token", endless).await["v"], "bad_request");
}

#[tokio::test]
async fn a_rule_is_one_however_it_is_written() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let rule = |key: &str| json!({ "k": key });
    for (written, kept) in [
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("::ffff:192.0.2.9", "192.0.2.9"),
        ("2001:DB8:0::/32", "2001:db8::/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ] {
        let target = "/_auth/shut";
        stage.ok(&elena, "PUT", target, rule(written)).await;
        stage.ok(&elena, "PUT", target, rule(kept)).await;
        assert_eq!(stage.ok(&elena, "GET", target, Value::Null).await, json!([kept]));
        assert_eq!(stage.ok(&elena, "DELETE", target, rule(written)).await, 1, "{written}");
    }
}

/// What is removed or listed with a path above it is what may be seen by itself.
#[tokio::test]
async fn a_rule_holds_for_what_is_reached_from_above() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    for path in ["/_ns/a", "/_ns/a/b"] {
        stage.ok(&elena, "PUT", path, Value::Null).await;
    }
    stage.ok(&elena, "PUT", "/_auth/a/b", json!({ "k": "127.0.0.1" })).await;
    assert_eq!(stage.call(&elena, "DELETE", "/_ns/a", Value::Null).await["v"], "unauthorized");
    assert_eq!(stage.ok(&elena, "GET", "/_ns", Value::Null).await, json!(["a"]));
}

/// The second of two deletions, as a retry makes, must not find who was made after the first.
#[tokio::test]
async fn one_deletion_of_an_account_is_under_way_at_a_time() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let hashing = stage.hashes.acquire().await.unwrap();
    let admin = json!({ "k": "ann", "v": { "password": "secret one" } });
    let mut write = Box::pin(stage.call(&elena, "PUT", "/_acc/users/admins", admin));
    let end = || Box::pin(stage.call(SYS, "DELETE", "/_acc/accounts?k=elena", Value::Null));
    let (mut first, mut second) = (end(), end());
    for waiting in [&mut write, &mut first] {
        for _ in 0..100 {
            let pending = std::future::poll_fn(|context| {
                std::task::Poll::Ready(waiting.as_mut().poll(context).is_pending())
            });
            assert!(pending.await);
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(second.as_mut().await["v"], "locked");
    drop(hashing);
    let (_, ended) = tokio::join!(write, first);
    assert_eq!(ended["v"], 1);
}

/// What is refused since its account is another one's now is not counted as the other's.
#[tokio::test]
async fn a_write_that_came_too_late_is_in_nobodys_figures() {
    for (method, target) in [("PUT", "/_data/p"), ("POST", "/addDomain")] {
        let stage = Stage::new().await;
        let (elena, _) = stage.account("elena").await;
        let turn = tokio::sync::Notify::new();
        let held = Held(&turn);
        let session = &Session::default();
        let body = json!({ "k": "a", "v": 1, "domain": "example.org" });
        let mut late = Box::pin(stage.send(&elena, method, target, body, Way::new(&held, session)));
        let pending = std::future::poll_fn(|context| {
            std::task::Poll::Ready(late.as_mut().poll(context).is_pending())
        });
        assert!(pending.await);
        stage.ok(SYS, "DELETE", "/_acc/accounts?k=elena", Value::Null).await;
        let (next, _) = stage.account("elena").await;
        turn.notify_one();
        let refused = late.await.to_string();
        assert!(refused.contains("unauthorized"), "{refused}");
        stage.neuron.flush().await.unwrap();
        let figures = stage.ok(&next, "GET", "/_stats?l=api:3&k=elena", Value::Null).await;
        assert_eq!(figures, json!([]), "{method} {target}");
    }
}
