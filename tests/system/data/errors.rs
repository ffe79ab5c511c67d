//! Every word of the error vocabulary: provoked, with both envelopes, or on the list of those that
//! cannot be provoked, with the reason.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::curl::Request;
use tests::http::Response;
use tests::neuron::Neuron;
use tests::wait::until;

use super::{Account, Caller, shared, v};

const CATALOGUE: &str = include_str!("../../../crates/wire/errors.toml");
const PROBLEM: &str = "application/problem+json";
/// A version that nobody has written yet.
const FUTURE: &str = "1000000-7fffffffffffff00000001";
/// Bytes that a body may have.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Words that no request provokes, and why.
const NOT_PROVOKED: [(&str, &str); 8] = [
    ("internal", "needs a damaged store under a running neuron; the store's own tests damage it"),
    (
        "invalid_account",
        "kept for old clients: a missing account answers not_found or unauthorized",
    ),
    ("require_email", "kept for old clients: an account without an address answers bad_email"),
    ("user_not_admin", "kept for old clients: all admins have the same rights"),
    ("bad_me_context", "kept for old clients: no call is about the caller's own row"),
    ("unauthorized_domain", "kept for old clients: domains have no rights of their own"),
    ("store_degraded", "needs a cluster without a quorum"),
    ("channel_override_not_allowed", "is told to sockets, in `the_words_of_sockets…`"),
];

/// What provokes a word of the v3 envelope.
struct Provoked {
    word: &'static str,
    method: &'static str,
    path: &'static str,
    body: Value,
}

const fn by(word: &'static str, method: &'static str, path: &'static str, body: Value) -> Provoked {
    Provoked { word, method, path, body }
}

/// What an account of [`stage`] provokes.
fn provoked() -> Vec<Provoked> {
    let account = |name: &str, details: Value| json!({ "k": name, "v": details });
    let good = json!({ "email": "new@example.org" });
    vec![
        by("not_found", "GET", "/_data/p?k=none", Value::Null),
        by("not_allowed", "PUT", "/_stats/p?l=mine", json!({ "v": 1 })),
        by("method_not_found", "PATCH", "/_data/p", Value::Null),
        by("method_not_found", "GET", "/_token", Value::Null),
        by("bad_name", "PUT", "/_data/p", json!({ "v": 1 })),
        by("bad_request", "GET", "/_data/p?time_series=1&k=a&gs=2016:13", Value::Null),
        by("bad_segment", "GET", "/_data/a/../b", Value::Null),
        by("bad_layer_prefix", "GET", "/_stats/p", Value::Null),
        by(
            "email_exists",
            "PUT",
            "/_acc/accounts",
            account("new", json!({ "email": "lily@example.org" })),
        ),
        by("username_exists", "PUT", "/_acc/accounts", account("lily", good.clone())),
        by("bad_username", "PUT", "/_acc/accounts", account("$new", good)),
        by(
            "username_is_immutable",
            "POST",
            "/_acc/accounts",
            account("lily", json!({ "username": "rose" })),
        ),
        by(
            "email_is_immutable",
            "POST",
            "/_acc/accounts",
            account("lily", json!({ "email": "rose@example.org" })),
        ),
        by("require_account_details", "PUT", "/_acc/accounts", account("new", json!("text"))),
        by("bad_email", "PUT", "/_acc/accounts", account("new", json!({}))),
        by("require_password", "PUT", "/_acc/users/admins", account("ann", json!({}))),
        by(
            "bad_password_format",
            "PUT",
            "/_acc/users/admins",
            account("ann", json!({ "password": "abc" })),
        ),
        by("path_exists", "PUT", "/_ns/p", json!({})),
        by("key_exists", "PUT", "/_data/p", json!({ "k": "b", "k2": "taken", "v": 1 })),
        by("no_namespace", "PUT", "/_token/no/such", json!({})),
        by("no_service", "PUT", "/_turn/p", json!({})),
        by("value_missing", "PUT", "/_data/p", json!({ "k": "b" })),
        by("_ver_missing", "PUT", "/_data/strict", json!({ "k": "a", "v": { "n": 2 } })),
        by("version_conflict", "PUT", "/_data/p", json!({ "k": "a", "v": { "_ver_": FUTURE } })),
        by("require_type_param", "GET", "/_host", Value::Null),
        by("unrecognized_type_param", "GET", "/_host?type=fax", Value::Null),
    ]
}

/// What v2 clients provoke: the word, the route, and its parameters.
const LEGACY: [(&str, &str, &str); 9] = [
    ("bad_domain_format", "/domain", "domain=.."),
    ("bad_app_format", "/application", "domain=site.org"),
    ("bad_room_format", "/room", "domain=site.org&application=app&room=a/b"),
    ("domain_exists", "/domain", "domain=site.org"),
    ("application_exists", "/application", "domain=site.org&application=app"),
    ("room_exists", "/room", "domain=site.org&application=app&room=one"),
    ("no_domain", "/getToken", "domain=none&application=app&room=one"),
    ("no_application", "/getToken", "domain=site.org&application=none&room=one"),
    ("no_room", "/getToken", "domain=site.org&application=app&room=none"),
];

/// Words that have a test of their own below.
const APART: [&str; 8] = [
    "unauthorized",
    "malformed_partner",
    "too_large",
    "too_many_requests",
    "idempotency_conflict",
    "locked",
    "store_unavailable",
    "overloaded",
];

/// The catalogue: word to status, and whether that status is always sent.
fn catalogue() -> Result<BTreeMap<String, (u16, bool)>> {
    let mut words = BTreeMap::new();
    for entry in CATALOGUE.split("[[error]]").skip(1) {
        let field = |name: &str| {
            let line = entry.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
            line.map(|value| value.trim_matches('"').to_owned())
        };
        let status = field("status").context("a status")?.parse()?;
        words.insert(field("code").context("a code")?, (status, field("always").is_some()));
    }
    Ok(words)
}

/// An account with what the calls of this file trip over.
fn stage() -> Result<Account> {
    let top = Account::new(&*shared()?)?;
    top.sub("lily")?;
    for path in ["p", "site.org", "site.org/app", "site.org/app/one"] {
        v(top.put(&format!("/_ns/{path}"), json!({})))?;
    }
    v(top.put("/_data/p", json!({ "k": "a", "k2": "taken", "v": { "n": 1 } })))?;
    v(top.put("/_conf/strict", json!({ "k": "strict", "v": true })))?;
    v(top.put("/_data/strict", json!({ "k": "a", "v": { "n": 1 } })))?;
    Ok(top)
}

/// Checks one refusal: the compatible envelope, or the real status when `real`.
fn assert_refused(word: &str, answer: &Response, real: bool) -> Result<()> {
    let (status, always) = *catalogue()?.get(word).with_context(|| format!("no word {word}"))?;
    let body = answer.json()?;
    ensure!(body["v"] == word && body["s"] == "error", "{word}: {answer:?}");
    ensure!(answer.header("access-control-allow-origin") == Some("*"), "{word}: {answer:?}");
    let expected = if real || always { status } else { 200 };
    ensure!(answer.status == expected, "{word} is {expected}: {answer:?}");
    let content_type = if real { PROBLEM } else { "application/json" };
    ensure!(answer.header("content-type") == Some(content_type), "{word}: {answer:?}");
    if real {
        ensure!(body["status"] == status && body["title"] == word, "{word}: {body}");
        ensure!(body["detail"].as_str().is_some_and(|text| text.len() > 10), "{word}: {body}");
    }
    let has_retry = answer.header("retry-after").is_some_and(|text| text.parse::<u32>().is_ok());
    ensure!(has_retry == (status == 429 || always && status == 503), "{word}: {answer:?}");
    Ok(())
}

/// Sends a request in both ways and checks both refusals.
fn assert_provokes(word: &str, request: impl Fn() -> Request) -> Result<()> {
    assert_refused(word, &request().send()?, false)?;
    assert_refused(word, &request().header(&format!("accept: {PROBLEM}")).send()?, true)
}

#[test]
fn every_word_is_provoked_or_listed_with_the_reason_why_not() -> Result<()> {
    let mut covered: Vec<&str> = provoked().iter().map(|provoked| provoked.word).collect();
    covered.extend(LEGACY.map(|(word, ..)| word));
    covered.extend(APART);
    covered.extend(NOT_PROVOKED.map(|(word, _)| word));
    covered.sort_unstable();
    let twice: Vec<_> = covered.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert_eq!(twice.len(), 1, "method_not_found alone is provoked twice: {twice:?}");
    covered.dedup();
    let words: Vec<String> = catalogue()?.into_keys().collect();
    assert_eq!(covered, words, "a new word needs a request that provokes it, or a reason");
    Ok(())
}

#[test]
fn every_word_of_v3_has_both_envelopes() -> Result<()> {
    let top = stage()?;
    for Provoked { word, method, path, body } in provoked() {
        assert_provokes(word, || match &body {
            Value::Null => top.request(method, path),
            body => top.request(method, path).body(body.to_string()),
        })?;
    }
    Ok(())
}

#[test]
fn every_word_of_v2_has_the_old_envelope() -> Result<()> {
    let top = stage()?;
    let words = catalogue()?;
    for (word, route, form) in LEGACY {
        let form = format!("ident={}&secret={}&{form}", top.name, top.secret);
        let answer = Request::new("POST", format!("{}{route}", top.url)).body(form).send()?;
        assert_eq!(answer.status, 200, "{word}: {answer:?}");
        let expected = json!({ "s": words[word].0, "d": null, "e": word });
        assert_eq!(answer.json()?, expected, "{word}");
    }
    Ok(())
}

#[test]
fn wrong_credentials_are_unauthorized_and_three_levels_are_malformed() -> Result<()> {
    let top = Account::new(&*shared()?)?;
    let ask = |credentials: &str| {
        let request = top.with(credentials).request("GET", "/_data");
        request.from_address("127.0.0.50")
    };
    assert_provokes("unauthorized", || ask(&format!("{}:wrong", top.name)))?;
    assert_provokes("malformed_partner", || ask("one#two#three:secret"))
}

#[test]
fn a_body_over_the_limit_is_413_and_one_at_the_limit_is_taken() -> Result<()> {
    let top = Account::new(&*shared()?)?;
    let body = |bytes: usize| {
        let frame = r#"{"k":"a","v":""}"#.len();
        format!(r#"{{"k":"a","v":"{}"}}"#, "x".repeat(bytes - frame))
    };
    let put = |bytes| top.request("PUT", "/_data/p").body(body(bytes));
    v(put(BODY_BYTES_MAX).send()?.json())?;
    assert_refused("too_large", &put(BODY_BYTES_MAX + 1).send()?, false)?;
    let real = put(BODY_BYTES_MAX + 1).header(&format!("accept: {PROBLEM}")).send()?;
    assert_eq!((real.status, &real.json()?["v"]), (413, &json!("too_large")));
    Ok(())
}

#[test]
fn an_address_that_fails_too_often_is_429_and_told_when_to_come_back() -> Result<()> {
    let top = Account::new(&*shared()?)?;
    let ask = || top.with("nobody:wrong").request("GET", "/_data").from_address("127.0.0.51");
    let blocked = until(|| ask().send(), |answer| answer.status == 429)?;
    assert_refused("too_many_requests", &blocked, false)?;
    assert_provokes("too_many_requests", ask)
}

#[test]
fn an_idempotency_key_belongs_to_one_request() -> Result<()> {
    let top = Account::new(&*shared()?)?;
    let put = |value: u32| {
        let request = top.request("PUT", "/_data/p").header("idempotency-key: once");
        request.body(format!(r#"{{"k":"a","v":{{"n":{value}}}}}"#))
    };
    let first = put(1).send()?.json()?;
    assert_eq!(put(1).send()?.json()?, first, "sent again, answered again");
    assert_eq!(v(top.get("/_data/p?k=a&time_series=1"))?.as_array().map(Vec::len), Some(1));
    assert_provokes("idempotency_conflict", || put(2))
}

#[test]
fn a_request_that_is_under_way_is_not_begun_again() -> Result<()> {
    let top = Account::new(&*shared()?)?;
    // The password makes it last: it is hashed slowly.
    let put = |round: u32, real: bool| {
        let body = json!({ "k": format!("ann{round}"), "v": { "password": "password" } });
        let request = top.request("PUT", "/_acc/users/admins").body(body.to_string());
        let request = request.header(&format!("idempotency-key: round {round}"));
        let accept = if real { PROBLEM } else { "application/json" };
        request.header(&format!("accept: {accept}")).send()
    };
    let round = std::cell::Cell::new(0);
    for real in [false, true] {
        let both = || {
            let round = round.replace(round.get() + 1);
            std::thread::scope(|scope| {
                let other = scope.spawn(|| put(round, real));
                let mine = put(round, real);
                let other = other.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?;
                Ok([mine?, other?])
            })
        };
        let is_locked = |answer: &Response| answer.body.contains("\"locked\"");
        let answers = until(both, |both| both.iter().any(is_locked))?;
        for answer in answers.iter().filter(|answer| is_locked(answer)) {
            assert_refused("locked", answer, real)?;
        }
    }
    Ok(())
}

#[test]
fn a_version_that_never_comes_and_an_account_without_turns_are_503() -> Result<()> {
    let one_turn =
        [("GANGLION_LIMITS__REQUESTS_AT_ONCE", "1"), ("GANGLION_LIMITS__REQUESTS_WAITING", "0")];
    let neuron = Neuron::start_with(&one_turn, &[])?;
    let waits = |top: &Caller| top.request("GET", &format!("/_data/p?k=a&at={FUTURE}"));
    let (one, other) = (Account::new(&neuron)?, Account::new(&neuron)?);
    let busy = Account::new(&neuron)?;
    for top in [&one, &other] {
        v(top.put("/_data/p", json!({ "k": "a", "v": 1 })))?;
    }
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let plain = scope.spawn(|| waits(&one).send());
        let real = scope.spawn(|| waits(&other).header(&format!("accept: {PROBLEM}")).send());
        // Hashing a password takes a while, and the account's only turn.
        let hashing = scope.spawn(|| -> Result<()> {
            let admin = json!({ "k": "ann", "v": { "password": "password" } });
            while !is_over.load(Ordering::Relaxed) {
                busy.put("/_acc/users/admins", admin.clone())?;
            }
            Ok(())
        });
        let is_refused = |answer: &Response| answer.status == 503;
        let refused = until(|| busy.request("GET", "/_data/p").send(), is_refused);
        let problem = || busy.request("GET", "/_data/p").header(&format!("accept: {PROBLEM}"));
        let as_problem = until(|| problem().send(), is_refused);
        is_over.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow::anyhow!("the thread panicked");
        hashing.join().map_err(panicked)??;
        assert_refused("overloaded", &refused?, false)?;
        assert_refused("overloaded", &as_problem?, true)?;
        assert_refused("store_unavailable", &plain.join().map_err(panicked)??, false)?;
        assert_refused("store_unavailable", &real.join().map_err(panicked)??, true)
    })
}

#[test]
fn the_words_of_sockets_are_the_reasons_of_their_closing() -> Result<()> {
    let neuron = shared()?;
    let top = Account::new(&neuron)?;
    for path in ["mine", "other"] {
        v(top.put(&format!("/_ns/{path}"), json!({})))?;
    }
    let token = v(top.put("/_token/mine?k=bob", json!({})))?;
    let token = token.as_str().context("a token")?;
    for (target, word) in [
        (format!("{token}?path=/other"), "channel_override_not_allowed"),
        ("nonsense".to_owned(), "unauthorized"),
    ] {
        let output = Command::new("curl")
            .args(["--silent", "--http1.1", "--max-time", "10", "--include", "--output", "-"])
            .args(["-H", "connection: upgrade", "-H", "upgrade: websocket"])
            .args(["-H", "sec-websocket-version: 13"])
            .args(["-H", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="])
            .arg(format!("{}/ws/v2/{target}", neuron.url()))
            .output()?;
        let close =
            [&[0x88, u8::try_from(word.len() + 2)?][..], &4401u16.to_be_bytes(), word.as_bytes()];
        let printed = output.stdout;
        ensure!(
            printed.ends_with(&close.concat()),
            "{word}: {}",
            String::from_utf8_lossy(&printed)
        );
    }
    Ok(())
}
