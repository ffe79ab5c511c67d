//! Users of an account, who call the HTTP API with a token.

use std::net::{IpAddr, Ipv4Addr};

use kv4::Bucket;
use neuron::requests::{Payer, Request, Response};
use neuron::sockets::{Joiner, Place};
use serde_json::{Value, json};
use services::access::{self, NotSeated};
use services::precondition::Precondition;
use services::sessions::Session;
use services::token::Verified;
use services::{Call, Method, RoomRef, Service};
use signal::{Coming, Departure, SocketId};
use wire::frames::{ClientFrame, Generation};
use wire::names::Path;
use wire::params::Params;

use super::callers::Noting;
use super::{BEGINNING_S, Everybody, SYS, Stage};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const GRANTS: [&str; 8] =
    ["publish", "subscribe", "send", "watch", "moderate", "relay", "read", "write"];

/// How a v2 socket joins.
fn joiner() -> Joiner {
    Joiner { generation: Generation::V2, client_ip: LOCALHOST, coming: Coming::default() }
}

/// Where the sockets of a token's account sit.
fn at(verified: &Verified) -> Place {
    Place::of(&verified.bucket)
}

/// How a user calls: over which connection, and with what `Authorization`.
struct By<'a> {
    session: &'a Session,
    authorization: Option<&'a str>,
    idempotency_key: Option<&'a str>,
    address: IpAddr,
}

impl<'a> By<'a> {
    fn over(session: &'a Session, authorization: Option<&'a str>) -> By<'a> {
        By { session, authorization, idempotency_key: None, address: LOCALHOST }
    }
}

impl Stage {
    async fn respond(&self, by: By<'_>, method: &str, target: &str, body: &Value) -> Response {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request {
            opener: None,
            method,
            path,
            query,
            authorization: by.authorization,
            accept: None,
            origin: None,
            if_match: None,
            if_none_match: None,
            idempotency_key: by.idempotency_key,
            authority: "localhost",
            is_tls: false,
            address: by.address,
            session: by.session,
            body: body.as_bytes(),
        };
        self.neuron.request(&request, &Everybody).await.expect("a path of the API")
    }

    /// A call with a token, over a connection of its own; `ok` or the error's word.
    async fn by(&self, token: &str, method: &str, target: &str, body: Value) -> String {
        let header = format!("Bearer {token}");
        let session = Session::default();
        let by = By::over(&session, Some(&header));
        word(&self.respond(by, method, target, &body).await)
    }

    /// A token as `asked` has it.
    async fn token(&self, credentials: &str, path: &str, asked: Value) -> String {
        let token = self.ok(credentials, "PUT", &format!("/_token{path}"), asked).await;
        token.as_str().unwrap().to_owned()
    }

    /// An account with namespaces, and a key `k` at paths of `_data`.
    async fn elena(&self) -> String {
        let (elena, _) = self.account("elena").await;
        for path in ["/room", "/room/deep", "/roomy"] {
            self.ok(&elena, "PUT", &format!("/_ns{path}"), Value::Null).await;
        }
        for path in ["", "/room", "/room/deep", "/room/red", "/roomy", "/else"] {
            let body = json!({ "k": "k", "v": { "at": path } });
            self.ok(&elena, "PUT", &format!("/_data{path}"), body).await;
        }
        elena
    }

    async fn rule(&self, credentials: &str, path: &str, name: &str, users: Value) {
        let body = json!({ "k": name, "v": users });
        self.ok(credentials, "PUT", &format!("/_conf{path}"), body).await;
    }

    async fn verified(&self, token: &str) -> Verified {
        services::token::verify(&self.neuron.services, token).await.unwrap()
    }

    /// Whether a live watch of `_data` is let begin: a word as in answers.
    async fn watch(&self, token: &str, path: &str) -> String {
        self.watch_of(Service::Data, token, path).await
    }

    async fn watch_of(&self, service: Service, token: &str, path: &str) -> String {
        let services = &self.neuron.services;
        let session = Session::default();
        let login = services::principal::from_token(services, &session, token, LOCALHOST).await;
        let login = login.unwrap();
        let call = Call {
            caller: login.caller(),
            method: Method::Get,
            path: Path::parse(path).unwrap(),
            params: &Params::default(),
            precondition: Precondition::Unsaid,
            address: LOCALHOST,
            authority: "",
            is_tls: false,
        };
        let decided = access::decide_watch(services, service, &call).await;
        decided.map_or_else(|fault| fault.code.as_str(), |()| "ok").to_owned()
    }
}

fn word(response: &Response) -> String {
    let answer: Value = serde_json::from_str(&response.body).unwrap();
    let word = if answer["s"] == "ok" { &answer["s"] } else { &answer["v"] };
    word.as_str().unwrap().to_owned()
}

fn value(response: &Response) -> Value {
    let mut answer: Value = serde_json::from_str(&response.body).unwrap();
    assert_eq!(answer["s"], "ok", "{answer}");
    answer["v"].take()
}

/// Every service and method, with the grant that permits it on the token's own path, if one does.
const CALLS: [(&str, &str, Option<&str>); 34] = [
    ("GET", "/_data/room?k=k", Some("read")),
    ("HEAD", "/_data/room?k=k", Some("read")),
    ("GET", "/_data/room", Some("read")),
    ("GET", "/_data/room/red?as=values", Some("read")),
    ("GET", "/_data/room?k=k&time_series=1", Some("read")),
    ("PUT", "/_data/room?k=new&v=1", Some("write")),
    ("POST", "/_data/room/red?k=new&v=1", Some("write")),
    ("DELETE", "/_data/room?k=new", Some("write")),
    ("DELETE", "/_data/room", None),
    ("DELETE", "/_data/room?k=k&erase=1", None),
    ("GET", "/_subs/room", Some("subscribe")),
    ("GET", "/_subs/room/topic", Some("subscribe")),
    ("DELETE", "/_subs/room", Some("moderate")),
    ("PUT", "/_subs/room", None),
    ("GET", "/_acc/accounts", None),
    ("PUT", "/_acc/accounts?k=x", None),
    ("DELETE", "/_acc/accounts?k=elena", None),
    ("GET", "/_auth/room", None),
    ("PUT", "/_auth/room?k=192.0.2.1", None),
    ("DELETE", "/_auth/room", None),
    ("GET", "/_conf/room", None),
    ("PUT", "/_conf/room?k=strict&v=true", None),
    ("DELETE", "/_conf/room", None),
    ("GET", "/_ds?a=layers", None),
    ("GET", "/_ds/room?l=*data&k=k", None),
    ("GET", "/_host/room?type=signal", None),
    ("GET", "/_ns", None),
    ("DELETE", "/_ns/room", None),
    ("GET", "/_sess", None),
    ("GET", "/_stats/room?l=api:3", None),
    ("PUT", "/_token/room?k=ann", None),
    ("DELETE", "/_token?k=bob", None),
    ("PUT", "/_turn/room", None),
    ("GET", "/_video", None),
];

#[tokio::test]
async fn a_grant_permits_what_it_says_and_nothing_else() {
    let stage = Stage::new().await;
    let elena = stage.elena().await;
    let mut held: Vec<Vec<&str>> = GRANTS.iter().map(|grant| vec![*grant]).collect();
    held.push(GRANTS.to_vec());
    held.push(Vec::new());
    for grants in held {
        for path in ["/room", ""] {
            let asked = json!({ "k": "ann", "grants": grants.join(","), "expire": 600 });
            let token = stage.token(&elena, path, asked).await;
            for (method, target, needed) in CALLS {
                stage.ok(&elena, "PUT", "/_data/room", json!({ "k": "new", "v": 1 })).await;
                let is_permitted = needed.is_some_and(|grant| grants.contains(&grant));
                let expected = if is_permitted { "ok" } else { "not_allowed" };
                let got = stage.by(&token, method, target, Value::Null).await;
                assert_eq!(got, expected, "{method} {target} with {grants:?} on {path:?}");
            }
            let expected = if grants.contains(&"watch") { "ok" } else { "not_allowed" };
            assert_eq!(stage.watch(&token, "/room/red").await, expected, "{grants:?}");
            for service in Service::ALL.into_iter().filter(|service| *service != Service::Data) {
                let got = stage.watch_of(service, &token, "/room").await;
                assert_eq!(got, "not_allowed", "{service:?}");
            }
        }
    }
    // The old routes say the same in their own way.
    let asked = json!({ "k": "ann", "grants": GRANTS.join(","), "expire": 600 });
    let header = format!("Bearer {}", stage.token(&elena, "", asked).await);
    let room = "domain=room&application=a&room=b";
    for route in ["getToken", "getIceServers", "room", "addRoom"] {
        let target = &format!("/{route}?{room}&username=ann");
        let session = Session::default();
        let by = By::over(&session, Some(&header));
        let answer = stage.respond(by, "GET", target, &Value::Null).await;
        assert!(answer.body.contains("not_allowed"), "{target}: {}", answer.body);
    }
}

/// Whatever the default grants are, they read no data.
#[tokio::test]
async fn a_plain_token_hears_and_talks_and_sees_who_is_there() {
    let stage = Stage::new().await;
    let elena = stage.elena().await;
    let token = stage.token(&elena, "/room", json!({ "k": "ann" })).await;
    for (method, target, needed) in CALLS {
        let expected = if needed == Some("subscribe") { "ok" } else { "not_allowed" };
        assert_eq!(stage.by(&token, method, target, Value::Null).await, expected, "{target}");
    }
}

/// Grants, rules and scope together, against what each says by itself.
#[tokio::test]
async fn grants_say_what_and_rules_say_who_and_both_must_agree() {
    let stage = Stage::new().await;
    let elena = stage.elena().await;
    // (path, act, users); nearest wins, whichever way it decides.
    let rules = [
        ("", "read", json!(["bob"])),
        ("/room", "read", json!("*")),
        ("/room/red", "read", json!([])),
        ("/room", "write", json!(["ann", "a/b"])),
        ("/room/deep", "write", json!(["bob"])),
        ("/roomy", "watch", json!(["bob"])),
        ("/room", "watch", json!(["ann"])),
    ];
    for (path, act, users) in &rules {
        stage.rule(&elena, path, act, users.clone()).await;
    }
    let paths = ["", "/room", "/room/deep", "/room/red", "/roomy", "/else"];
    let within = |path: &str, base: &str| format!("{path}/").starts_with(&format!("{base}/"));
    for scope in ["", "/room", "/roomy"] {
        for user in ["ann", "bob", "a/b"] {
            let asked = json!({ "k": user, "grants": "read,write,watch", "expire": 600 });
            let token = stage.token(&elena, scope, asked).await;
            for path in paths {
                for act in ["read", "write", "watch"] {
                    let is_named = |act| {
                        let nearest = rules
                            .iter()
                            .filter(|rule| rule.1 == act && within(path, rule.0))
                            .max_by_key(|rule| rule.0.len());
                        nearest.is_none_or(|(_, _, users)| {
                            users == "*" || users.as_array().unwrap().contains(&json!(user))
                        })
                    };
                    // Whom a rule of `read` leaves out does not read by watching.
                    let is_closed = act == "watch" && !is_named("read");
                    let may = within(path, scope) && is_named(act) && !is_closed;
                    let target = format!("/_data{path}?k=k");
                    let body = json!({ "k": "k", "v": 1 });
                    let got = match act {
                        "read" => stage.by(&token, "GET", &target, Value::Null).await,
                        "write" => stage.by(&token, "PUT", &target, body).await,
                        _ => stage.watch(&token, &format!("/{path}")).await,
                    };
                    let expected = if may { "ok" } else { "not_allowed" };
                    assert_eq!(got, expected, "{act} {path:?} by {user} of {scope:?}");
                }
            }
        }
    }
    // Nothing of this binds the account.
    stage.rule(&elena, "", "write", json!([])).await;
    for path in paths {
        stage.ok(&elena, "PUT", &format!("/_data{path}"), json!({ "k": "k", "v": 2 })).await;
    }
}

#[tokio::test]
async fn no_spelling_leads_out_of_a_tokens_path() {
    let stage = Stage::new().await;
    let elena = stage.elena().await;
    let asked = json!({ "k": "ann", "grants": "read,write,subscribe,moderate", "expire": 600 });
    let token = stage.token(&elena, "/room", asked).await;
    for (target, expected) in [
        ("/_data/room", "ok"),
        ("/_data//room//", "ok"),
        ("/_data/room%2Fdeep", "ok"),
        ("/%5Fdata/room", "ok"),
        ("/_data", "not_allowed"),
        ("/_data/", "not_allowed"),
        ("/_data/roomy", "not_allowed"),
        ("/_data/Room", "not_allowed"),
        ("/_data/room%20", "not_allowed"),
        ("/_data/%2Froomy", "not_allowed"),
        ("/_data/else", "not_allowed"),
        ("/_data/room/../else", "bad_segment"),
        ("/_data/room/%2e%2e/else", "bad_segment"),
        ("/_data/room%2F..%2Felse", "bad_segment"),
        ("/_data/./room", "bad_segment"),
        ("/_data/room%00", "bad_segment"),
        ("/_subs/room", "ok"),
        ("/_subs/room%2Ftopic", "ok"),
        ("/_subs/room/red", "not_allowed"),
        ("/_subs/room/deep", "not_allowed"),
        ("/_subs/roomy", "not_allowed"),
        ("/_subs", "not_allowed"),
        ("/_subs/room/../roomy", "bad_segment"),
    ] {
        assert_eq!(stage.by(&token, "GET", target, Value::Null).await, expected, "{target}");
    }
    // A topic is a segment: its token opens that room, and the data at the path so called.
    let asked = json!({ "k": "ann", "grants": "read,subscribe", "expire": 600 });
    let red = stage.token(&elena, "/room/red", asked).await;
    for (target, expected) in [
        ("/_data/room/red", "ok"),
        ("/_data/room", "not_allowed"),
        ("/_data/room/deep", "not_allowed"),
        ("/_subs/room/red", "ok"),
        ("/_subs/room", "not_allowed"),
        ("/_subs/room/topic", "not_allowed"),
    ] {
        assert_eq!(stage.by(&red, "GET", target, Value::Null).await, expected, "{target}");
    }
    // Nor does a body that names another path.
    let body = json!({ "k": "k", "v": 1, "path": "/else", "p": "/else" });
    assert_eq!(stage.by(&token, "PUT", "/_data/room", body).await, "ok");
    let at = stage.ok(&elena, "GET", "/_data/else?k=k", Value::Null).await;
    assert_eq!(at["at"], "/else");
}

#[tokio::test]
async fn a_write_is_its_users_and_a_call_its_accounts() {
    let stage = Stage::new().await;
    let elena = stage.elena().await;
    let asked = json!({ "k": "zoë/1", "grants": "read,write", "expire": 600 });
    let token = stage.token(&elena, "/room", asked).await;
    assert_eq!(stage.by(&token, "PUT", "/_data/room", json!({ "k": "x", "v": 1 })).await, "ok");
    assert_eq!(stage.by(&token, "DELETE", "/_data/room?k=x", Value::Null).await, "ok");
    let target = "/_data/room?k=x&time_series=1&deletions=1";
    let rows = stage.ok(&elena, "GET", target, Value::Null).await;
    let who: Vec<_> = rows.as_array().unwrap().iter().map(|row| row[1].clone()).collect();
    assert_eq!(who, ["zoë/1", "zoë/1"]);
    stage.neuron.flush().await.unwrap();
    let put = stage.ok(&elena, "GET", "/_stats/data/PUT?l=api:3&k=elena", Value::Null).await;
    assert_eq!(put["sum"], 7, "six of the account, one of its user: {put}");
    let keys = stage.ok(&elena, "GET", "/_ds/data/PUT?a=keys&l=*stats:api:3", Value::Null).await;
    assert_eq!(keys, json!(["elena"]));
}

#[tokio::test]
async fn users_of_a_sub_account_have_its_data_and_the_top_account_pays() {
    let stage = Stage::new().await;
    let (elena, bucket) = stage.account("elena").await;
    let body = json!({ "k": "lily", "v": { "email": "lily@example.org" } });
    let lily = stage.ok(&elena, "PUT", "/_acc/accounts", body).await;
    let lily = format!("elena#lily:{}", lily["secret"].as_str().unwrap());
    stage.ok(&elena, "PUT", "/_data/p", json!({ "k": "k", "v": "of elena" })).await;
    stage.ok(&lily, "PUT", "/_data/p", json!({ "k": "k", "v": "of lily" })).await;
    let asked = json!({ "k": "ann", "grants": "read", "expire": 600 });
    for (owner, expected) in [(&elena, "of elena"), (&lily, "of lily")] {
        let header = format!("bearer {}", stage.token(owner, "", asked.clone()).await);
        let session = Session::default();
        let by = By::over(&session, Some(&header));
        let answer = stage.respond(by, "GET", "/_data/p?k=k", &Value::Null).await;
        assert_eq!(value(&answer), expected);
        let paid = std::sync::Mutex::new(Vec::new());
        let request = Request {
            method: "GET",
            path: "/_data/p",
            query: "k=k",
            authorization: Some(&header),
            accept: None,
            origin: None,
            if_match: None,
            if_none_match: None,
            idempotency_key: None,
            opener: None,
            authority: "localhost",
            is_tls: false,
            address: LOCALHOST,
            session: &session,
            body: b"",
        };
        stage.neuron.request(&request, &Noting(&paid)).await.unwrap();
        assert_eq!(*paid.lock().unwrap(), [Payer::Account(bucket.clone())]);
    }
}

/// Over one connection, which remembers the token's proof.
#[tokio::test]
async fn a_token_is_looked_at_again_with_each_request() {
    let stage = Stage::new().await;
    let elena = stage.elena().await;
    let session = Session::default();
    let read = async |token: &str| {
        let header = format!("Bearer {token}");
        let by = By::over(&session, Some(&header));
        word(&stage.respond(by, "GET", "/_data/room?k=k", &Value::Null).await)
    };
    let token = async |k: &str, expire: u64| {
        let asked = json!({ "k": k, "grants": "read,subscribe", "expire": expire });
        stage.token(&elena, "/room", asked).await
    };

    // Its last second, though a socket is open with it: there is no grace here.
    let short = token("ann", 10).await;
    assert_eq!(read(&short).await, "ok");
    let verified = stage.verified(&short).await;
    stage.neuron.services.graces.connected(verified.claims.id, &verified.bucket.top(), BEGINNING_S);
    stage.clock.advance_s(8);
    assert_eq!(read(&short).await, "ok");
    stage.clock.advance_s(2);
    assert_eq!(read(&short).await, "unauthorized");
    stage.verified(&short).await;

    // Revoked by itself, signed or kept as a row; and with all of its user.
    for expire in [600, 0] {
        let token = token("ann", expire).await;
        assert_eq!(read(&token).await, "ok");
        stage.ok(&elena, "DELETE", &format!("/_token?id={token}"), Value::Null).await;
        assert_eq!(read(&token).await, "unauthorized", "{expire}");
    }
    for (at, expire) in [("", 600), ("/room", 600), ("", 0)] {
        let (own, other) = (token("bob", expire).await, token("ann", expire).await);
        assert_eq!([read(&own).await, read(&other).await], ["ok", "ok"]);
        stage.ok(&elena, "DELETE", &format!("/_token{at}?k=bob"), Value::Null).await;
        assert_eq!([read(&own).await, read(&other).await], ["unauthorized", "ok"], "{at:?}");
        assert_eq!(read(&token("bob", expire).await).await, "ok", "it is made afterwards");
    }

    // Rules, those of addresses too.
    let ann = token("ann", 600).await;
    stage.rule(&elena, "/room", "read", json!(["bob"])).await;
    assert_eq!(read(&ann).await, "not_allowed");
    stage.ok(&elena, "DELETE", "/_conf/room?k=read", Value::Null).await;
    assert_eq!(read(&ann).await, "ok");
    stage.ok(&elena, "PUT", "/_auth/room", json!({ "k": "127.0.0.0/8" })).await;
    assert_eq!(read(&ann).await, "unauthorized");
    stage.ok(&elena, "DELETE", "/_auth/room?k=127.0.0.0/8", Value::Null).await;
    assert_eq!(read(&ann).await, "ok");

    // Its account, by whatever name.
    let active = |is: bool| json!({ "k": "elena", "v": { "active": is } });
    stage.ok(SYS, "POST", "/_acc/accounts", active(false)).await;
    assert_eq!(read(&ann).await, "unauthorized");
    stage.ok(SYS, "POST", "/_acc/accounts", active(true)).await;
    assert_eq!(read(&ann).await, "unauthorized", "her session ended with her account's");
    let read_anew = async || stage.by(&ann, "GET", "/_data/room?k=k", Value::Null).await;
    assert_eq!(read_anew().await, "ok");
    stage.ok(SYS, "DELETE", "/_acc/accounts?k=elena", Value::Null).await;
    assert_eq!(read_anew().await, "unauthorized");
    stage.clock.advance_ms(2);
    stage.elena().await;
    assert_eq!(read_anew().await, "unauthorized", "of another account of that name");
}

#[tokio::test]
async fn a_login_by_token_is_a_session_that_can_be_ended() {
    let stage = Stage::new().await;
    let elena = stage.elena().await;
    let asked = json!({ "k": "ann", "grants": "read", "expire": 600 });
    let header = format!("Bearer {}", stage.token(&elena, "/room", asked).await);
    let session = Session::default();
    let read = async || {
        let by = By::over(&session, Some(&header));
        word(&stage.respond(by, "GET", "/_data/room?k=k", &Value::Null).await)
    };
    for _ in 0..3 {
        assert_eq!(read().await, "ok");
    }
    let rows = stage.ok(&elena, "GET", "/_sess?as=values", Value::Null).await;
    let rows: Vec<_> = rows.as_array().unwrap().iter().filter(|row| row["who"] == "ann").collect();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["kind"], "user");
    let target = format!("/_sess?k={}", rows[0]["id"].as_str().unwrap());
    assert_eq!(stage.ok(&elena, "DELETE", &target, Value::Null).await, 1);
    assert_eq!(read().await, "unauthorized");
}

#[tokio::test]
async fn a_token_in_the_query_reads_and_does_no_more() {
    let stage = Stage::new().await;
    let elena = stage.elena().await;
    let asked = json!({ "k": "ann", "grants": "read,write", "expire": 600 });
    let token = stage.token(&elena, "/room", asked).await;
    let session = Session::default();
    let ask = async |authorization: Option<&str>, method: &str, target: &str, body: Value| {
        stage.respond(By::over(&session, authorization), method, target, &body).await
    };
    let target = format!("/_data/room?k=k&token={token}");
    for method in ["GET", "HEAD"] {
        let answer = ask(None, method, &target, Value::Null).await;
        assert_eq!(word(&answer), "ok");
        assert!(answer.no_store, "its URL is all that a cache would ask for");
    }
    let put = format!("/_data/room?k=k&v=1&token={token}");
    for method in ["PUT", "POST", "DELETE"] {
        assert_eq!(word(&ask(None, method, &put, Value::Null).await), "unauthorized", "{method}");
    }
    let in_body = json!({ "token": token });
    for method in ["GET", "PUT"] {
        let answer = ask(None, method, "/_data/room?k=k", in_body.clone()).await;
        assert_eq!(word(&answer), "unauthorized", "{method}");
    }
    // Who sends a header is who that says.
    let header = format!("Bearer {token}");
    let other = "/_data/room?k=k&token=other";
    let answer = ask(Some(&header), "GET", other, Value::Null).await;
    assert_eq!((word(&answer), answer.no_store), ("ok".to_owned(), false));
    let answer = ask(Some("Bearer other"), "GET", &target, Value::Null).await;
    assert_eq!(word(&answer), "unauthorized");
    let line = json!({ "k": "debug_log", "v": true });
    stage.ok(&elena, "PUT", "/_conf", line).await;
    ask(None, "GET", &target, Value::Null).await;
    stage.neuron.flush().await.unwrap();
    let logs = stage.ok(&elena, "GET", "/_ds?a=changes&limit=1000", Value::Null).await.to_string();
    assert!(logs.contains("by ann from") && !logs.contains(&token), "{logs}");
}

/// Ten wrong ones of an account, as with passwords; what it gave itself is no guess.
#[tokio::test]
async fn forged_tokens_are_guesses_and_expired_ones_are_not() {
    let stage = Stage::new().await;
    let elena = stage.elena().await;
    let asked = json!({ "k": "ann", "grants": "read", "expire": 10 });
    let expired = stage.token(&elena, "/room", asked).await;
    stage.clock.advance_s(10);
    let asked = json!({ "k": "ann", "grants": "read", "expire": 600 });
    let token = stage.token(&elena, "/room", asked).await;
    let ask = async |token: &str, from: u8| {
        let header = format!("Bearer {token}");
        let session = Session::default();
        let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, from));
        let by = By { address, ..By::over(&session, Some(&header)) };
        word(&stage.respond(by, "GET", "/_data/room?k=k", &Value::Null).await)
    };
    for _ in 0..20 {
        assert_eq!(ask(&expired, 1).await, "unauthorized");
    }
    assert_eq!(ask(&token, 1).await, "ok");
    // Within the signature, so that it claims to be of the same account.
    let middle = token.len() - 10;
    let swapped = if token.as_bytes()[middle] == b'A' { "B" } else { "A" };
    let forged = format!("{}{swapped}{}", &token[..middle], &token[middle + 1..]);
    for _ in 0..10 {
        assert_eq!(ask(&forged, 1).await, "unauthorized");
    }
    assert_eq!(ask(&forged, 1).await, "too_many_requests");
    assert_eq!(ask(&token, 1).await, "too_many_requests", "not looked at");
    assert_eq!(ask(&token, 2).await, "ok", "from elsewhere");
    for garbage in ["t", "t99999.x", "tAAAA", "", "A", "é", &"A".repeat(10_000)] {
        assert_eq!(ask(garbage, 3).await, "unauthorized", "{garbage:?}");
    }
    stage.clock.advance_s(60);
    assert_eq!(ask(&token, 1).await, "ok");
}

#[tokio::test]
async fn users_share_no_idempotency_keys() {
    let stage = Stage::new().await;
    let elena = stage.elena().await;
    let token = async |k: &str| {
        let asked = json!({ "k": k, "grants": "read,write", "expire": 600 });
        stage.token(&elena, "/room", asked).await
    };
    let put = async |header: &str| {
        let session = Session::default();
        let by = By { idempotency_key: Some("key"), ..By::over(&session, Some(header)) };
        let body = json!({ "k": "once", "v": { "n": 1 } });
        value(&stage.respond(by, "PUT", "/_data/room", &body).await)["_ver_"].clone()
    };
    let ann = put(&format!("Bearer {}", token("ann").await)).await;
    let bob = put(&format!("Bearer {}", token("bob").await)).await;
    // One whose name is the account's is not the account.
    let named = put(&format!("Bearer {}", token("elena").await)).await;
    let body = json!({ "k": "once", "v": { "n": 1 } });
    let own = stage.call_once(&elena, "PUT", "/_data/room", body, Some("key")).await;
    let vers = [&ann, &bob, &named, &own["v"]["_ver_"]];
    for (at, ver) in vers.iter().enumerate() {
        assert!(vers[..at].iter().all(|other| other != ver), "{vers:?}");
    }
    assert_eq!(put(&format!("Bearer {}", token("ann").await)).await, ann, "her next token");
}

#[tokio::test]
async fn a_user_of_the_system_account_is_not_the_system() {
    let stage = Stage::new().await;
    stage.elena().await;
    let asked = json!({ "k": "$sys", "grants": GRANTS.join(","), "expire": 600 });
    let token = stage.token(SYS, "", asked).await;
    for (method, target) in [
        ("GET", "/_acc/accounts"),
        ("DELETE", "/_acc/accounts?k=elena"),
        ("GET", "/_ds?a=layers"),
        ("GET", "/_ds?l=*keys"),
    ] {
        assert_eq!(stage.by(&token, method, target, Value::Null).await, "not_allowed", "{target}");
    }
    // It sees its own account's data, which is not elena's.
    assert_eq!(stage.by(&token, "GET", "/_data/room?k=k", Value::Null).await, "not_found");
}

/// As `ganglion` joins: the token is verified, the room found, the socket seated and looked at again.
#[tokio::test]
async fn a_rule_that_comes_while_a_socket_joins_holds_for_it() {
    let stage = Stage::new().await;
    let elena = stage.elena().await;
    let (services, sockets) = (&stage.neuron.services, &stage.neuron.sockets);
    let asked = json!({ "k": "ann", "expire": 600 });
    let ann = stage.verified(&stage.token(&elena, "/room", asked).await).await;
    let room = async || services::token::room(services, &ann, None, LOCALHOST).await;
    let recheck = async |socket: u64, room: &RoomRef| {
        services::token::recheck(services, &ann, room, LOCALHOST, socket).await
    };
    let is_heard = |socket: u64| {
        let before = sockets.stats().counters.ungranted;
        let frame = ClientFrame::parse(Generation::V2, r#"{"t":"u","m":{},"p":1}"#);
        sockets.frame(at(&ann), SocketId(socket), frame);
        sockets.stats().counters.ungranted == before
    };
    let seat = |socket: u64, room: &RoomRef| {
        sockets.join(SocketId(socket), &ann, room, joiner()).unwrap();
    };

    let found = room().await.unwrap();
    stage.rule(&elena, "/room", "send", json!(["bob"])).await;
    seat(1, &found);
    recheck(1, &found).await.unwrap();
    assert!(!is_heard(1));
    stage.rule(&elena, "/room/topic", "send", json!(["ann"])).await;
    assert!(is_heard(1), "its topic has a rule of its own");
    stage.rule(&elena, "/room/topic/below", "send", json!([])).await;
    assert!(is_heard(1));
    stage.ok(&elena, "DELETE", "/_conf/room/topic", Value::Null).await;
    assert!(!is_heard(1), "all settings of a path go together");
    stage.ok(&elena, "DELETE", "/_conf/room?k=send&erase=1", Value::Null).await;
    assert!(is_heard(1));

    stage.rule(&elena, "", "join", json!(["bob"])).await;
    assert_eq!(sockets.stats().sockets, 0, "put out before the rule was answered");
    seat(2, &found);
    assert!(matches!(recheck(2, &found).await, Err(NotSeated::Ruled(_))));
    assert!(matches!(room().await, Err(NotSeated::Ruled(_))));
    sockets.leave(at(&ann), SocketId(2), Departure::Closed);
    stage.rule(&elena, "/room", "join", json!(["ann"])).await;
    assert_eq!(room().await.unwrap(), found);
}

/// A kick by one who may is a kick as any other; he reaches nobody elsewhere.
#[tokio::test]
async fn who_moderates_a_room_sends_its_members_away() {
    let stage = Stage::new().await;
    let elena = stage.elena().await;
    let bucket = stage.verified(&stage.token(&elena, "", json!({})).await).await.bucket;
    let seat = async |socket: u64, name: &str, path: &str| {
        let token = stage.token(&elena, path, json!({ "k": name, "expire": 600 })).await;
        let verified = stage.verified(&token).await;
        let path = Path::parse(path).unwrap();
        let room = RoomRef { bucket: bucket.clone(), path, topic: "topic".to_owned() };
        stage.neuron.sockets.join(SocketId(socket), &verified, &room, joiner()).unwrap();
        token
    };
    let bob = seat(1, "bob", "/room").await;
    seat(2, "cleo", "/roomy").await;
    let asked = json!({ "k": "ann", "grants": "moderate", "expire": 600 });
    let ann = stage.token(&elena, "/room", asked).await;
    stage.rule(&elena, "/roomy", "join", json!(["cleo"])).await;
    for (target, expected) in [
        ("/_subs/roomy?k=cleo", "not_allowed"),
        ("/_subs/room?k=cleo", "not_found"),
        ("/_subs/room?k=bob", "ok"),
        ("/_subs/room?k=bob", "not_found"),
    ] {
        assert_eq!(stage.by(&ann, "DELETE", target, Value::Null).await, expected, "{target}");
    }
    assert!(services::token::verify(&stage.neuron.services, &bob).await.is_err(), "revoked");
    assert_eq!(stage.neuron.sockets.stats().sockets, 1);
    // Whoever may not be in a room does not moderate it either.
    let asked = json!({ "k": "ann", "grants": "moderate,subscribe", "expire": 600 });
    let everywhere = stage.token(&elena, "", asked).await;
    for method in ["GET", "DELETE"] {
        let got = stage.by(&everywhere, method, "/_subs/roomy", Value::Null).await;
        assert_eq!(got, "not_allowed", "{method}");
    }
    assert_eq!(Bucket::top(&bucket), bucket);
}
