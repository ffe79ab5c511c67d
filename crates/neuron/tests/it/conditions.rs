//! `If-Match`, `If-None-Match` and `_ver_`: carried out where they hold, and never passed over.

use serde_json::{Value, json};
use services::sessions::Session;

use super::{Everybody, SYS, Stage, Way};

/// A request under the conditions of two headers; the word of its refusal, or `ok`.
async fn under(
    stage: &Stage,
    credentials: &str,
    (method, target, body): (&str, &str, Value),
    if_match: Option<&str>,
    if_none_match: Option<&str>,
) -> String {
    let session = &Session::default();
    let way = Way { if_match, if_none_match, ..Way::new(&Everybody, session) };
    let answer = stage.send(credentials, method, target, body, way).await;
    let word = if answer["s"] == "ok" { &answer["s"] } else { &answer["v"] };
    word.as_str().unwrap().to_owned()
}

/// The `_ver_` of a key of `/p`.
async fn ver(stage: &Stage, credentials: &str, key: &str) -> String {
    let shown = stage.ok(credentials, "GET", &format!("/_data/p?k={key}"), Value::Null).await;
    shown["_ver_"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_condition_on_a_value_is_carried_out() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let put = |n: u64| ("PUT", "/_data/p", json!({ "k": "a", "v": { "n": n } }));
    let word = async |request, if_match: Option<&str>, if_none_match: Option<&str>| {
        under(&stage, &elena, request, if_match, if_none_match).await
    };
    assert_eq!(word(put(1), Some("*"), None).await, "version_conflict", "there is none yet");
    assert_eq!(word(put(1), None, Some("*")).await, "ok");
    assert_eq!(word(put(2), None, Some("*")).await, "version_conflict");
    let first = ver(&stage, &elena, "a").await;
    assert_eq!(word(put(2), Some("*"), None).await, "ok");
    let second = ver(&stage, &elena, "a").await;
    let get = || ("GET", "/_data/p?k=a", Value::Null);
    let delete = || ("DELETE", "/_data/p?k=a", Value::Null);
    for stale in [format!("\"{first}\""), "\"foreign\"".to_owned()] {
        for request in [put(3), get(), delete()] {
            assert_eq!(word(request, Some(&stale), None).await, "version_conflict");
        }
    }
    for nothing in ["", ",", "\"\""] {
        assert_eq!(word(put(3), Some(nothing), None).await, "bad_request", "{nothing:?}");
    }
    assert_eq!(word(put(3), None, Some("\"tag\"")).await, "bad_request");
    let list = format!("\"{first}\", \"{second}\"");
    assert_eq!(word(get(), Some(&list), None).await, "ok");
    assert_eq!(word(put(3), Some(&list), None).await, "ok");
    assert_eq!(word(put(4), Some(&list), None).await, "version_conflict");
    let third = ver(&stage, &elena, "a").await;
    assert_eq!(word(delete(), Some(&third), None).await, "ok");
}

#[tokio::test]
async fn a_version_that_is_no_string_is_told() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    for ver in [json!(1), json!({}), json!([])] {
        for body in
            [json!({ "k": "a", "v": { "_ver_": ver } }), json!({ "k": "a", "v": 1, "_ver_": ver })]
        {
            let answer = stage.call(&elena, "PUT", "/_data/p", body).await;
            assert_eq!(answer["v"], "bad_request", "{ver}: {answer}");
        }
    }
    assert_eq!(stage.ok(&elena, "GET", "/_data/p", Value::Null).await, json!([]));
}

#[tokio::test]
async fn where_no_condition_is_looked_at_none_is_taken() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    stage.ok(&elena, "PUT", "/_data/p", json!({ "k": "a", "v": { "n": 1 } })).await;
    stage.ok(&elena, "PUT", "/_ns/room", Value::Null).await;
    let tag = ver(&stage, &elena, "a").await;
    for (method, target, body) in [
        ("DELETE", "/_data/p", Value::Null),
        ("DELETE", "/_data/p?k=a&erase=1", Value::Null),
        ("PUT", "/_ns/other", Value::Null),
        ("DELETE", "/_ns/room", Value::Null),
        ("PUT", "/_token", json!({ "k": "bob" })),
    ] {
        let answer = under(&stage, &elena, (method, target, body), Some(&tag), None).await;
        assert_eq!(answer, "bad_request", "{method} {target}");
    }
    let session = &Session::default();
    let way = Way { if_match: Some(&tag), ..Way::new(&Everybody, session) };
    let body = json!({ "domain": "example.org" });
    let answer = stage.send(&elena, "POST", "/addDomain", body, way).await;
    assert!(answer["e"].as_str().unwrap().contains("bad_request"), "{answer}");
    assert_eq!(stage.ok(&elena, "GET", "/_data/p", Value::Null).await, json!(["a"]));
    assert_eq!(stage.ok(&elena, "GET", "/_ns", Value::Null).await, json!(["room"]));
    let new = ("PUT", "/_ns/other", Value::Null);
    assert_eq!(under(&stage, &elena, new.clone(), None, Some("*")).await, "ok");
    assert_eq!(under(&stage, &elena, new, None, Some("*")).await, "path_exists");
}

#[tokio::test]
async fn accounts_and_admins_are_changed_at_the_version_that_was_read() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let admins = "/_acc/users/admins";
    let (put, post) = (
        json!({ "k": "ann", "v": { "password": "secret one" } }),
        json!({ "k": "ann", "v": { "name": "Ann" } }),
    );
    let admin = |method, body: &Value| (method, admins, body.clone());
    let word = async |request, if_match: Option<&str>, if_none_match: Option<&str>| {
        under(&stage, &elena, request, if_match, if_none_match).await
    };
    assert_eq!(word(admin("PUT", &put), Some("*"), None).await, "version_conflict");
    assert_eq!(word(admin("PUT", &put), None, Some("*")).await, "ok");
    assert_eq!(word(admin("PUT", &put), None, Some("*")).await, "version_conflict");
    let listed = stage.ok(&elena, "GET", &format!("{admins}?as=values"), Value::Null).await;
    let first = listed[0]["_ver_"].as_str().unwrap().to_owned();
    assert_eq!(word(admin("POST", &post), Some(&first), None).await, "ok");
    assert_eq!(word(admin("POST", &post), Some(&first), None).await, "version_conflict");
    assert_eq!(word(admin("PUT", &put), Some(&first), None).await, "version_conflict");
    let mut stale = post.clone();
    stale["v"]["_ver_"] = json!(first);
    assert_eq!(word(admin("POST", &stale), None, None).await, "version_conflict");

    let accounts = "/_acc/accounts";
    let company = json!({ "k": "elena", "v": { "company": "Example" } });
    let change = ("POST", accounts, company);
    let read = stage.ok(SYS, "GET", &format!("{accounts}?as=values"), Value::Null).await;
    let first = read[0]["_ver_"].as_str().unwrap().to_owned();
    let of_sys = async |request, if_match: Option<&str>, if_none_match: Option<&str>| {
        under(&stage, SYS, request, if_match, if_none_match).await
    };
    assert_eq!(of_sys(change.clone(), None, Some("*")).await, "username_exists");
    assert_eq!(of_sys(change.clone(), Some(&first), None).await, "ok");
    assert_eq!(of_sys(change, Some(&first), None).await, "version_conflict");
    let end = ("DELETE", "/_acc/accounts?k=elena", Value::Null);
    assert_eq!(of_sys(end.clone(), Some(&first), None).await, "version_conflict");
    stage.ok(&elena, "GET", "/_data", Value::Null).await;
    assert_eq!(of_sys(end, Some("*"), None).await, "ok");
}

/// A name with half of a surrogate pair can be no Rust text, and must not hide the members beside it.
#[tokio::test]
async fn a_name_that_is_no_text_is_told() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    stage.ok(&elena, "PUT", "/_data/p", json!({ "k": "a", "v": { "n": 1 } })).await;
    for body in [
        r#"{"k":"a","v":{"\ud800":1,"_ver_":"1-00000000000000000000ff"}}"#,
        r#"{"\ud800":1,"k":"a","v":2}"#,
    ] {
        let answer = stage.raw(&elena, "PUT", "/_data/p", body.as_bytes()).await;
        assert_eq!(answer["v"], "bad_request", "{body}: {answer}");
    }
}

#[tokio::test]
async fn a_kept_answer_is_given_to_the_same_request_of_the_same_caller() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let admin = json!({ "k": "elena", "v": { "password": "secret one" } });
    stage.ok(&elena, "PUT", "/_acc/users/admins", admin).await;
    let account = json!({ "k": "lily", "v": { "email": "lily@example.org" } });
    let once = async |credentials: &str, if_none_match: Option<&str>| {
        let session = &Session::default();
        let key = Some("made once");
        let way = Way { idempotency_key: key, if_none_match, ..Way::new(&Everybody, session) };
        stage.send(credentials, "PUT", "/_acc/accounts", account.clone(), way).await
    };
    let made = once(&elena, None).await;
    assert_eq!(once(&elena, None).await, made);
    assert_eq!(once(&elena, Some("*")).await["v"], "idempotency_conflict");
    assert_eq!(once("elena:elena#secret one", None).await["v"], "username_exists");
}
