//! Who may join, send, read and write where: as a user of an account, and as somebody hostile, with
//! curl and a client written from the spec.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tests::curl::{self, Request};
use tests::http::Response;
use tests::neuron::{Neuron, SYS_SECRET};
use tests::socket::Client;
use tests::wait::until;

/// A neuron with an account `elena` that has namespaces.
struct Stage {
    neuron: Neuron,
    elena: String,
}

impl Stage {
    fn new() -> Result<Stage> {
        let neuron = Neuron::start()?;
        let elena = format!("elena:{}", neuron.account("elena")?);
        let stage = Stage { neuron, elena };
        for path in ["/my/path", "/my/other"] {
            stage.ok("PUT", &format!("/_ns{path}"), None)?;
        }
        Ok(stage)
    }

    /// A call of the account that must succeed; answers `v`.
    fn ok(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut answer = curl::json(method, &self.neuron.url(), path, &self.elena, body)?;
        if answer["s"] != "ok" {
            bail!("{method} {path}: {answer}");
        }
        Ok(answer["v"].take())
    }

    fn rule(&self, path: &str, name: &str, users: Value) -> Result<()> {
        self.ok("PUT", &format!("/_conf{path}"), Some(&json!({ "k": name, "v": users }))).map(drop)
    }

    fn no_rule(&self, path: &str, name: &str) -> Result<()> {
        self.ok("DELETE", &format!("/_conf{path}?k={name}"), None).map(drop)
    }

    fn token(&self, path_and_query: &str) -> Result<String> {
        let token = self.ok("PUT", &format!("/_token{path_and_query}"), None)?;
        Ok(token.as_str().context("a token is a string")?.to_owned())
    }

    fn connect(&self, token: &str) -> Result<Client> {
        Client::connect(&format!("ws://{}/ws/v2/{token}", self.neuron.address("http")?))
    }

    /// A socket that is in its room.
    fn join(&self, token: &str) -> Result<Client> {
        let mut client = self.connect(token)?;
        let first = client.frame()?;
        ensure!(first["m"]["o"] == "peers", "the first frame was {first}");
        Ok(client)
    }

    /// The code with which a socket that may not be where its token leads is closed.
    fn refused(&self, token: &str) -> Result<u16> {
        self.connect(token)?.close_code()
    }

    fn request(&self, method: &str, path: &str) -> Request {
        Request::new(method, format!("{}{path}", self.neuron.url()))
    }

    /// A call with a token; `ok` or the error's word.
    fn by(&self, token: &str, method: &str, path: &str) -> Result<String> {
        let header = format!("authorization: Bearer {token}");
        word(&self.request(method, path).header(&header).send()?)
    }
}

fn word(response: &Response) -> Result<String> {
    let answer = response.json()?;
    let word = if answer["s"] == "ok" { &answer["s"] } else { &answer["v"] };
    Ok(word.as_str().context("a word")?.to_owned())
}

/// Whether what a socket says is refused, to everybody and to one; what it heard of others is passed
/// over.
fn is_silenced(client: &mut Client) -> Result<bool> {
    for to in [None, Some("nobody")] {
        client.say("message", to, &json!(1))?;
    }
    match refusals(client)? {
        0 => Ok(false),
        2 => Ok(true),
        other => bail!("{other} refusals"),
    }
}

/// How much of what a socket has said was refused.
fn refusals(client: &mut Client) -> Result<usize> {
    client.send_text(r#"{"t":"ping","ts":0}"#)?;
    let mut refused = 0;
    loop {
        let frame = client.frame()?;
        if frame["t"] == "pong" {
            return Ok(refused);
        }
        refused += usize::from(frame["t"] == "e" && frame["p"]["v"] == "not_allowed");
    }
}

#[test]
fn a_third_does_not_come_in_and_a_member_is_put_out() -> Result<()> {
    let stage = Stage::new()?;
    let token = |name: &str| stage.token(&format!("/my/path?k={name}&expire=600"));
    let (ann, bob, cleo) = (token("ann")?, token("bob")?, token("cleo")?);
    stage.rule("/my/path", "join", json!(["ann", "bob"]))?;
    let mut ann = stage.join(&ann)?;
    let mut on_bob = stage.join(&bob)?;
    ann.frame()?;
    assert_eq!(stage.refused(&cleo)?, 4403);
    ann.hears_nothing()?;

    // A member who is no longer named goes before the rule is answered, and comes again when he is.
    stage.rule("/my/path", "join", json!(["ann"]))?;
    assert_eq!(stage.ok("GET", "/_subs/my/path", None)?, json!(["ann"]));
    assert_eq!(on_bob.close_code()?, 4403);
    let gone = ann.frame()?;
    assert_eq!(
        (&gone["m"]["o"], &gone["m"]["f"]),
        (&json!("peer_removed"), &json!("/my/path/bob"))
    );
    assert_eq!(stage.refused(&bob)?, 4403, "with the token that he has");
    stage.no_rule("/my/path", "join")?;
    stage.join(&bob)?;
    ann.frame()?;
    stage.join(&cleo)?;

    // Nobody, and everybody. Accounts are not bound.
    stage.rule("/my/path", "join", json!([]))?;
    assert_eq!(ann.close_code()?, 4403);
    assert_eq!(stage.ok("GET", "/_subs/my/path", None)?, json!([]));
    stage.rule("/my/path", "join", json!("*"))?;
    stage.join(&cleo)?;
    Ok(())
}

#[test]
fn sending_is_taken_away_and_given_back_on_open_sockets() -> Result<()> {
    let stage = Stage::new()?;
    let join = |name: &str, more: &str| {
        stage.join(&stage.token(&format!("/my/path?k={name}&expire=600{more}"))?)
    };
    let mut ann = join("ann", "")?;
    let mut bob = join("a%2Fb%20%25", "")?;
    let mut quiet = join("quiet", "&grants=subscribe")?;
    let mut other = stage.join(&stage.token("/my/other?k=bob")?)?;
    ann.frame()?;
    ann.frame()?;
    bob.frame()?;
    assert!(!is_silenced(&mut bob)? && is_silenced(&mut quiet)?);
    for _ in 0..2 {
        // As `k` of the token names him, which frames do not.
        stage.rule("/my/path", "send", json!(["ann", "quiet"]))?;
        assert!(is_silenced(&mut bob)? && is_silenced(&mut quiet)?);
        assert!(!is_silenced(&mut ann)? && !is_silenced(&mut other)?);
        stage.rule("/my/path", "send", json!(["a/b %", "quiet"]))?;
        assert!(!is_silenced(&mut bob)? && is_silenced(&mut ann)?);
        assert!(is_silenced(&mut quiet)?, "rules give nothing that the token does not grant");
        stage.no_rule("/my/path", "send")?;
        assert!(!is_silenced(&mut bob)? && !is_silenced(&mut ann)? && is_silenced(&mut quiet)?);
    }
    // Who comes while the rule is there finds it; all of a path's settings may go at once.
    stage.rule("/my/path", "send", json!([]))?;
    let mut late = join("late", "")?;
    assert!(is_silenced(&mut late)?);
    stage.ok("DELETE", "/_conf/my/path", None)?;
    assert!(!is_silenced(&mut late)?);
    Ok(())
}

/// Whether or not a rule comes while they join, in the end it holds for all.
#[test]
fn no_socket_slips_by_while_rules_change() -> Result<()> {
    const SOCKETS: usize = 40;
    let stage = Stage::new()?;
    let tokens: Vec<_> = (0..SOCKETS)
        .map(|n| stage.token(&format!("/my/path?k=user{n}&expire=600")))
        .collect::<Result<_>>()?;
    let is_done = AtomicBool::new(false);
    let mut clients = std::thread::scope(|scope| {
        let flaps = scope.spawn(|| -> Result<()> {
            while !is_done.load(Ordering::SeqCst) {
                for users in [json!([]), json!("*")] {
                    stage.rule("/my/path", "send", users)?;
                }
            }
            Ok(())
        });
        let halves: Vec<_> = tokens
            .chunks(SOCKETS / 4)
            .map(|some| {
                let stage = &stage;
                scope.spawn(move || some.iter().map(|token| stage.join(token)).collect())
            })
            .collect();
        let joined: Vec<Result<Vec<Client>>> = halves
            .into_iter()
            .map(|half| half.join().unwrap_or_else(|_| bail!("a thread panicked")))
            .collect();
        is_done.store(true, Ordering::SeqCst);
        flaps.join().unwrap_or_else(|_| bail!("a thread panicked"))?;
        let joined: Result<Vec<Vec<Client>>> = joined.into_iter().collect();
        joined.map(|joined| joined.into_iter().flatten().collect::<Vec<_>>())
    })?;
    for (users, expected) in [(json!([]), true), (json!("*"), false)] {
        stage.rule("/my/path", "send", users)?;
        for client in &mut clients {
            assert_eq!(is_silenced(client)?, expected);
        }
    }
    stage.rule("/my/path", "join", json!(["user0"]))?;
    assert_eq!(stage.ok("GET", "/_subs/my/path", None)?, json!(["user0"]));
    Ok(())
}

#[test]
fn the_nearest_rule_holds_for_universal_tokens_too() -> Result<()> {
    let stage = Stage::new()?;
    let ann = stage.token("?k=ann&expire=600")?;
    let red = stage.token("/my/path/red?k=ann&expire=600")?;
    let may = |token: &str, query: &str| -> Result<bool> {
        let mut client = stage.connect(&format!("{token}{query}"))?;
        match client.frame() {
            Ok(first) => Ok(first["m"]["o"] == "peers"),
            Err(_) => Ok(false),
        }
    };
    let places = || -> Result<[bool; 4]> {
        let of = [may(&ann, "")?, may(&ann, "?path=/my/path")?, may(&ann, "?path=/my/other")?];
        Ok([of[0], of[1], of[2], may(&red, "")?])
    };
    assert_eq!(places()?, [true; 4]);
    stage.rule("", "join", json!(["bob"]))?;
    assert_eq!(places()?, [false; 4]);
    stage.rule("/my", "join", json!(["ann"]))?;
    assert_eq!(places()?, [false, true, true, true]);
    stage.rule("/my/path", "join", json!([]))?;
    assert_eq!(places()?, [false, false, true, false]);
    // A topic is a segment of its room's place.
    stage.rule("/my/path/red", "join", json!("*"))?;
    assert_eq!(places()?, [false, false, true, true]);
    stage.no_rule("/my/path", "join")?;
    stage.rule("/my/path/topic", "join", json!([]))?;
    assert_eq!(places()?, [false, false, true, true]);
    for (path, name) in [("", "join"), ("/my", "join"), ("/my/path/topic", "join")] {
        stage.no_rule(path, name)?;
    }
    assert_eq!(places()?, [true; 4]);
    // A sub-account has rules of its own.
    let lily = json!({ "k": "lily", "v": { "email": "lily@example.org" } });
    let lily = stage.ok("PUT", "/_acc/accounts", Some(&lily))?;
    let lily = format!("elena#lily:{}", lily["secret"].as_str().context("a secret")?);
    stage.rule("", "join", json!([]))?;
    let token = curl::json("PUT", &stage.neuron.url(), "/_token?k=ann", &lily, None)?;
    stage.join(token["v"].as_str().context("a token")?)?;
    Ok(())
}

#[test]
fn a_user_reads_and_writes_below_his_path() -> Result<()> {
    let stage = Stage::new()?;
    let ann = stage.token("/my/path?k=ann&grants=read,write&expire=600")?;
    let reader = stage.token("?k=bob&grants=read&expire=600")?;
    let bearer = |token: &str| format!("authorization: Bearer {token}");
    let put = stage.request("PUT", "/_data/my/path/deep").header(&bearer(&ann));
    let put = put.body(json!({ "k": "note", "v": { "text": "hi" } }).to_string()).send()?;
    assert_eq!(word(&put)?, "ok");
    let read = stage.request("GET", "/_data/my/path/deep?k=note");
    assert_eq!(read.header(&bearer(&reader)).send()?.json()?["v"]["text"], "hi");
    // In a URL, for a reader of events: no cache keeps it.
    let url = format!("/_data/my/path/deep?k=note&token={ann}");
    let read = stage.request("GET", &url).send()?;
    assert_eq!((word(&read)?.as_str(), read.header("cache-control")), ("ok", Some("no-store")));
    assert_eq!(word(&stage.request("DELETE", &url).send()?)?, "unauthorized");
    let series = stage.ok("GET", "/_data/my/path/deep?k=note&time_series=1", None)?;
    assert_eq!(series[0][1], "ann");

    stage.rule("/my", "write", json!(["bob"]))?;
    stage.rule("/my/path/deep", "read", json!(["ann"]))?;
    for (token, method, path, expected) in [
        (&ann, "PUT", "/_data/my/path?k=a&v=1", "not_allowed"),
        (&ann, "GET", "/_data/my/path/deep?k=note", "ok"),
        (&reader, "PUT", "/_data/my/path?k=a&v=1", "not_allowed"),
        (&reader, "GET", "/_data/my/path/deep?k=note", "not_allowed"),
        (&reader, "GET", "/_data/my/path", "ok"),
    ] {
        assert_eq!(stage.by(token, method, path)?, expected, "{method} {path}");
    }
    stage.no_rule("/my", "write")?;
    assert_eq!(stage.by(&ann, "DELETE", "/_data/my/path/deep?k=note")?, "ok");
    assert_eq!(stage.by(&ann, "DELETE", "/_data/my/path/deep")?, "not_allowed");
    // By opt-in with real statuses, as everybody else.
    let problem = stage.request("GET", "/_data/my/other").header(&bearer(&ann));
    assert_eq!(problem.header("accept: application/problem+json").send()?.status, 403);
    let list = stage.token("/my/path?k=ann&expire=600")?;
    assert_eq!(stage.by(&list, "GET", "/_subs/my/path")?, "ok");
    assert_eq!(stage.by(&list, "GET", "/_data/my/path")?, "not_allowed");
    Ok(())
}

#[test]
fn a_token_that_is_not_right_opens_nothing_over_http() -> Result<()> {
    let stage = Stage::new()?;
    let other = format!("other:{}", stage.neuron.account("other")?);
    stage.ok("PUT", "/_data/my/path", Some(&json!({ "k": "k", "v": "of elena" })))?;
    let ask = |token: &str, from: &str, http: &str| -> Result<String> {
        let header = format!("authorization: {http} {token}");
        let request = stage.request("GET", "/_data/my/path?k=k").header(&header);
        word(&request.from_address(from).send()?)
    };
    let right = stage.token("/my/path?k=ann&grants=read&expire=600")?;
    for scheme in ["Bearer", "bearer", "BEARER"] {
        assert_eq!(ask(&right, "127.0.0.2", scheme)?, "ok");
    }
    for scheme in ["Basic", "Token", "Bearer:", ""] {
        assert_eq!(ask(&right, "127.0.0.3", scheme)?, "unauthorized", "{scheme}");
    }
    // Any byte changed, but those of the signature's end that hold no bits.
    for (n, at) in (0..right.len() - 1).step_by(right.len() / 7).enumerate() {
        let mut forged = right.clone().into_bytes();
        forged[at] = if forged[at] == b'B' { b'C' } else { b'B' };
        let from = format!("127.0.1.{n}");
        assert_eq!(ask(&String::from_utf8(forged)?, &from, "Bearer")?, "unauthorized", "{at}");
    }
    // Another account's, who has nothing there.
    let foreign = "/_token?k=ann&grants=read,write&expire=600";
    let foreign = curl::json("PUT", &stage.neuron.url(), foreign, &other, None)?;
    let foreign = foreign["v"].as_str().context("a token")?;
    assert_eq!(ask(foreign, "127.0.0.2", "Bearer")?, "not_found");
    // Expired, though a socket is open with it, which then may come again.
    let short = stage.token("/my/path?k=ann&grants=read,subscribe&expire=2")?;
    assert_eq!(ask(&short, "127.0.0.2", "Bearer")?, "ok");
    let _open = stage.join(&short)?;
    until(|| ask(&short, "127.0.0.2", "Bearer"), |word| word == "unauthorized")?;
    stage.join(&short)?;
    // Revoked, and sent once more over a connection that knew it.
    for expire in [600, 0] {
        let token = stage.token(&format!("/my/path?k=ann&grants=read&expire={expire}"))?;
        let address = stage.neuron.address("http")?;
        let mut connection = tests::http::Connection::open(&address)?;
        let get = format!(
            "GET /_data/my/path?k=k HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\r\n"
        );
        assert_eq!(word(&connection.ask(&get)?)?, "ok");
        stage.ok("DELETE", &format!("/_token?id={token}"), None)?;
        assert_eq!(word(&connection.ask(&get)?)?, "unauthorized");
        assert_eq!(ask(&token, "127.0.0.2", "Bearer")?, "unauthorized");
    }
    // Who guesses waits, wherever the right one is.
    let at = right.len() - 10;
    let other = if &right[at..=at] == "B" { "C" } else { "B" };
    let guess = format!("{}{other}{}", &right[..at], &right[at + 1..]);
    let words: Vec<_> =
        (0..11).map(|_| ask(&guess, "127.0.0.4", "Bearer")).collect::<Result<_>>()?;
    assert_eq!((words[9].as_str(), words[10].as_str()), ("unauthorized", "too_many_requests"));
    assert_eq!(ask(&right, "127.0.0.4", "Bearer")?, "too_many_requests");
    assert_eq!(ask(&right, "127.0.0.2", "Bearer")?, "ok");
    Ok(())
}

#[test]
fn a_token_with_every_grant_is_no_account() -> Result<()> {
    let stage = Stage::new()?;
    let grants = "publish,subscribe,send,watch,moderate,relay,read,write";
    let sys = format!("$sys:{SYS_SECRET}");
    let of_sys = format!("/_token?k=$sys&grants={grants}&expire=600");
    let of_sys = curl::json("PUT", &stage.neuron.url(), &of_sys, &sys, None)?;
    let tokens = [
        stage.token(&format!("/my/path?k=elena&grants={grants}&expire=600"))?,
        stage.token(&format!("?k=elena&grants={grants}&expire=600"))?,
        of_sys["v"].as_str().context("a token")?.to_owned(),
    ];
    for token in &tokens {
        for (method, path) in [
            ("GET", "/_acc/accounts"),
            ("PUT", "/_acc/accounts?k=evil"),
            ("POST", "/_acc/users/admins?k=evil"),
            ("DELETE", "/_acc/accounts?k=elena"),
            ("GET", "/_conf/my/path"),
            ("PUT", "/_conf/my/path?k=join&v=*"),
            ("DELETE", "/_conf/my/path?k=join"),
            ("GET", "/_auth/my/path"),
            ("PUT", "/_auth/my/path?k=127.0.0.1"),
            ("DELETE", "/_auth/my/path?k=127.0.0.1"),
            ("PUT", "/_token/my/path?k=bob&expire=0"),
            ("DELETE", "/_token/my/path?k=bob"),
            ("GET", "/_ns"),
            ("PUT", "/_ns/evil"),
            ("DELETE", "/_ns/my"),
            ("GET", "/_stats?l=api:3"),
            ("PUT", "/_stats?l=api:3"),
            ("GET", "/_ds"),
            ("GET", "/_ds/my/path?a=changes"),
            ("GET", "/_ds/my/path?l=*data&k=k"),
            ("GET", "/_sess"),
            ("DELETE", "/_sess?k=login-0"),
            ("PUT", "/_turn/my/path"),
            ("GET", "/_turn/my/path"),
            ("GET", "/_host/my/path?type=signal"),
            ("PUT", "/_video/my/path"),
            ("DELETE", "/_data/my/path"),
            ("DELETE", "/_data/my/path?k=k&erase=1"),
        ] {
            assert_eq!(stage.by(token, method, path)?, "not_allowed", "{method} {path}");
        }
        for path in ["/addRoom", "/getToken", "/getIceServers", "/delRoom"] {
            let path = format!("{path}?domain=my&application=path&room=evil&username=bob");
            let header = format!("authorization: Bearer {token}");
            let answer = stage.request("GET", &path).header(&header).send()?;
            ensure!(!answer.body.contains("\"s\":200"), "{path}: {}", answer.body);
        }
    }
    for (path, expected) in [
        ("/_data/my/path", "ok"),
        ("/_data//my//path/", "ok"),
        ("/_data/my%2Fpath", "ok"),
        ("/_data/my/path/topic", "ok"),
        ("/_data/my", "not_allowed"),
        ("/_data/my/pathology", "not_allowed"),
        ("/_data/my/other", "not_allowed"),
        ("/_data/my/path/../other", "bad_segment"),
        ("/_data/my/path/%2e%2e/other", "bad_segment"),
        ("/_data/my%2Fpath%2F..%2Fother", "bad_segment"),
        ("/_data/my/path%2f%2e%2e%2fother", "bad_segment"),
        ("/_data/..//my/path", "bad_segment"),
        ("/_subs/my/path", "ok"),
        ("/_subs/my/path/topic", "ok"),
        ("/_subs/my/path/red", "not_allowed"),
        ("/_subs/my/other", "not_allowed"),
        ("/_subs", "not_allowed"),
    ] {
        assert_eq!(stage.by(&tokens[0], "GET", path)?, expected, "{path}");
    }
    assert_eq!(stage.ok("GET", "/_ns", None)?, json!(["my/other", "my/path"]));
    assert_eq!(stage.ok("GET", "/_conf/my/path", None)?, json!([]));
    // No secret is in what the neuron writes of all this.
    let log = stage.neuron.log()?;
    ensure!(tokens.iter().all(|token| !log.contains(token)), "a token in the log");
    Ok(())
}

#[test]
fn what_a_member_shows_beside_his_name_is_sent() -> Result<()> {
    let stage = Stage::new()?;
    let base = format!("ws://{}/ws", stage.neuron.address("http")?);
    let greet = |name: &str| -> Result<(Client, Value)> {
        let token = stage.token(&format!("/my/path?k={name}&expire=600"))?;
        let hello = json!({ "token": token, "data": { "of": name } });
        let mut client = Client::greet(&base, &hello)?;
        let welcome = client.frame()?;
        Ok((client, welcome))
    };
    stage.rule("/my/path", "send", json!(["ann"]))?;
    let (mut ann, _) = greet("ann")?;
    let (mut bob, welcome) = greet("bob")?;
    assert_eq!(welcome["p"]["data"], json!({ "ann": { "of": "ann" } }));
    assert_eq!(bob.ask("presence", &json!(1), &json!("psst"))?["p"]["v"], "not_allowed");
    assert_eq!(ann.ask("presence", &json!(1), &json!("hello"))?["p"]["s"], "ok");
    stage.no_rule("/my/path", "send")?;
    assert_eq!(bob.ask("presence", &json!(2), &json!("psst"))?["p"]["s"], "ok");
    Ok(())
}

#[test]
fn who_moderates_sends_members_away() -> Result<()> {
    let stage = Stage::new()?;
    let ann = stage.token("/my/path?k=ann&grants=moderate,subscribe&expire=600")?;
    let plain = stage.token("/my/path?k=cleo&expire=600")?;
    let token = stage.token("/my/path?k=bob&expire=600")?;
    let mut bob = stage.join(&token)?;
    let mut dora = stage.join(&stage.token("/my/other?k=dora&expire=600")?)?;
    assert_eq!(stage.by(&plain, "DELETE", "/_subs/my/path?k=bob")?, "not_allowed");
    assert_eq!(stage.by(&ann, "DELETE", "/_subs/my/other?k=dora")?, "not_allowed");
    assert_eq!(stage.by(&ann, "DELETE", "/_subs/my/path?k=bob")?, "ok");
    assert_eq!(bob.close_code()?, 4403);
    assert_eq!(stage.refused(&token)?, 4401, "a kick revokes the token");
    dora.hears_nothing()
}
