//! Signalling on a path, driven by clients written from the spec and by curl.

mod crowd;
mod data;
mod generations;
mod hostile;
mod plain;
mod publish;
mod resume;
mod terminal;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tests::curl;
use tests::neuron::Neuron;
use tests::socket::Client;

/// A neuron with an account `elena` that has the namespace `/my/path`.
struct Stage {
    neuron: Neuron,
    credentials: String,
}

impl Stage {
    fn new() -> Result<Stage> {
        Stage::with(&[])
    }

    fn with(settings: &[(&str, &str)]) -> Result<Stage> {
        let neuron = Neuron::start_with(settings, &[])?;
        let credentials = format!("elena:{}", neuron.account("elena")?);
        let stage = Stage { neuron, credentials };
        stage.ok("PUT", "/_ns/my/path", None)?;
        Ok(stage)
    }

    /// A call that must succeed; answers `v`.
    fn ok(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = curl::json(method, &self.neuron.url(), path, &self.credentials, body)?;
        if answer["s"] != "ok" {
            bail!("{method} {path}: {answer}");
        }
        Ok(answer["v"].clone())
    }

    fn token(&self, path_and_query: &str) -> Result<String> {
        let token = self.ok("PUT", &format!("/_token{path_and_query}"), None)?;
        Ok(token.as_str().context("a token is a string")?.to_owned())
    }

    fn url(&self, token: &str) -> Result<String> {
        Ok(format!("{}/v2/{token}", self.base()?))
    }

    /// The base of signalling URLs.
    fn base(&self) -> Result<String> {
        let base = self.ok("GET", "/_host/my/path?type=signal", None)?;
        Ok(base.as_str().context("a URL is a string")?.to_owned())
    }

    /// A v4 client with a token of its own, which has heard its welcome.
    fn greet(&self, name: &str) -> Result<(Client, Value)> {
        let token = self.token(&format!("/my/path?k={name}&expire=600"))?;
        let mut client = Client::greet(&self.base()?, &json!({ "token": token }))?;
        let welcome = client.frame()?;
        Ok((client, welcome))
    }

    fn join(&self, name: &str) -> Result<Client> {
        let token = self.token(&format!("/my/path?k={name}"))?;
        Client::connect(&self.url(&token)?)
    }
}

/// Asks again until it is so, within less than a neuron waits for a reader.
fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        if begun.elapsed() > Duration::from_secs(10) {
            bail!("{what}: not in time");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn peers(names: &[&str]) -> Value {
    json!({ "t": "u", "m": { "f": "/my/path/__sys__", "o": "peers" }, "p": { "users": names } })
}

fn presence(op: &str, name: &str) -> Value {
    json!({ "t": "u", "m": { "f": format!("/my/path/{name}"), "o": op }, "p": {} })
}

#[test]
fn members_see_each_other_come_talk_and_go() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = stage.join("ann")?;
    assert_eq!(ann.frame()?, peers(&["ann"]));
    let mut bob = stage.join("bob")?;
    assert_eq!(bob.frame()?, peers(&["ann", "bob"]));
    assert_eq!(ann.frame()?, presence("peer_connected", "bob"));
    let mut cleo = stage.join("cleo")?;
    assert_eq!(cleo.frame()?, peers(&["ann", "bob", "cleo"]));
    for other in [&mut ann, &mut bob] {
        assert_eq!(other.frame()?, presence("peer_connected", "cleo"));
    }

    // A broadcast goes to everyone but its sender, with the true sender and the payload untouched.
    ann.send_text(r#"{"t":"u","m":{"f":"/my/path/bob","o":"message"},"p":{"n":1.50,"z":[null]}}"#)?;
    for other in [&mut bob, &mut cleo] {
        let text = other.next_text()?;
        assert!(text.contains(r#""p":{"n":1.50,"z":[null]}"#), "{text}");
        let frame: Value = serde_json::from_str(&text)?;
        assert_eq!(frame["m"], json!({ "f": "/my/path/ann", "o": "message" }));
    }
    ann.hears_nothing()?;

    // A direct frame goes to one, by bare name or full path, and keeps `m.t`.
    for to in ["cleo", "/my/path/cleo"] {
        ann.say("session", Some(to), &json!("sdp"))?;
        let frame = cleo.frame()?;
        assert_eq!(frame["m"]["t"], to);
        assert_eq!(frame["m"]["f"], "/my/path/ann");
    }
    bob.hears_nothing()?;

    // System operations are the server's alone; a stranger is nobody.
    ann.say("peer_removed", None, &json!({}))?;
    let refusal = ann.frame()?;
    assert_eq!((&refusal["t"], &refusal["m"]), (&json!("e"), &json!({})), "{refusal}");
    ann.say("message", Some("nobody"), &json!(1))?;
    ann.hears_nothing()?;
    bob.hears_nothing()?;

    cleo.leave()?;
    for other in [&mut ann, &mut bob] {
        assert_eq!(other.frame()?, presence("peer_removed", "cleo"));
    }
    Ok(())
}

#[test]
fn heartbeats_of_every_generation_are_taken() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    for _ in 0..500 {
        ann.send_text("ping")?;
    }
    ann.send_text("{}")?;
    ann.hears_nothing()?;
    ann.send_text(r#"{"t":"ping","ts":12345}"#)?;
    assert_eq!(ann.frame()?, json!({ "t": "pong", "ts": 12345 }));
    ann.send_text(r#"{"t":"tm","m":{"o":"pub"},"p":{}}"#)?;
    ann.hears_nothing()
}

#[test]
fn several_sockets_of_one_name_are_one_member() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let mut first = stage.join("bob")?;
    first.frame()?;
    assert_eq!(ann.frame()?, presence("peer_connected", "bob"));
    let mut second = stage.join("bob")?;
    assert_eq!(second.frame()?, peers(&["ann", "bob"]));
    ann.hears_nothing()?;
    ann.say("message", Some("bob"), &json!("to both"))?;
    assert_eq!(first.frame()?["p"], "to both");
    assert_eq!(second.frame()?["p"], "to both");
    second.leave()?;
    ann.hears_nothing()?;
    first.leave()?;
    assert_eq!(ann.frame()?, presence("peer_removed", "bob"));
    Ok(())
}

#[test]
fn subscriptions_are_live_and_a_kick_ends_them() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let token = stage.token("/my/path?k=bob&expire=600")?;
    let mut bob = Client::connect(&stage.url(&token)?)?;
    bob.frame()?;
    ann.frame()?;

    assert_eq!(stage.ok("GET", "/_subs/my/path/topic", None)?, json!(["ann", "bob"]));
    assert_eq!(stage.ok("GET", "/_subs/my/path", None)?, json!(["ann", "bob"]));
    let row = stage.ok("GET", "/_subs/my/path/topic?k=bob", None)?;
    let expected = json!({
        "topic": "topic", "service": "xs_signal", "path": "/my/path", "origin": row["origin"],
        "meta": null, "key": "bob", "ident": "elena",
    });
    assert_eq!(row, expected);
    let rows = stage.ok("GET", "/_subs/my/path/topic?as=values", None)?;
    assert_eq!(rows.as_array().map(Vec::len), Some(2));
    let origin = row["origin"].as_str().context("origin")?.to_owned();
    let layers = stage.ok("GET", "/_ds", None)?;
    assert!(layers.as_array().context("layers")?.contains(&json!(format!("*subs:{origin}"))));
    let sessions = stage.ok("GET", "/_sess?as=values", None)?;
    assert!(sessions.to_string().contains("\"kind\":\"socket\""), "{sessions}");

    assert_eq!(stage.ok("DELETE", "/_subs/my/path/topic?k=bob", None)?, json!(1));
    assert_eq!(bob.close_code()?, 4403);
    assert_eq!(ann.frame()?, presence("peer_removed", "bob"));
    // The token that was kicked is gone; the user is not.
    let mut again = Client::connect(&stage.url(&token)?)?;
    assert_eq!(again.close_code()?, 4401);
    let mut anew = stage.join("bob")?;
    assert_eq!(anew.frame()?, peers(&["ann", "bob"]));
    assert_eq!(ann.frame()?, presence("peer_connected", "bob"));

    assert_eq!(stage.ok("DELETE", "/_subs/my/path/topic", None)?, json!(2));
    assert_eq!(ann.close_code()?, 4403);
    assert_eq!(anew.close_code()?, 4403);
    assert_eq!(stage.ok("GET", "/_subs/my/path/topic", None)?, json!([]));
    Ok(())
}

#[test]
fn a_session_can_be_ended() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let keys = stage.ok("GET", "/_sess", None)?;
    let keys: Vec<&str> = keys.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let socket = keys.iter().find(|key| key.starts_with("socket-")).context("a socket")?;
    assert_eq!(stage.ok("DELETE", &format!("/_sess?k={socket}"), None)?, json!(1));
    assert_eq!(ann.close_code()?, 4403);
    Ok(())
}

#[test]
fn tokens_open_what_they_say_for_as_long_as_they_say() -> Result<()> {
    let stage = Stage::new()?;
    let refused =
        |token: &str| -> Result<u16> { Client::connect(&stage.url(token)?)?.close_code() };
    assert_eq!(refused("forged")?, 4401);
    let token = stage.token("/my/path?k=ann")?;
    // The first character of the signature; the last one holds bits that do not count.
    let mut forged = token.clone().into_bytes();
    let at = forged.len() - 20;
    forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
    assert_eq!(refused(&String::from_utf8(forged)?)?, 4401);

    let short = stage.token("/my/path?k=ann&expire=1")?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2100) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(refused(&short)?, 4401);

    let revoked = stage.token("/my/path?k=ann&expire=600")?;
    assert_eq!(stage.ok("DELETE", &format!("/_token?id={revoked}"), None)?, json!(1));
    assert_eq!(refused(&revoked)?, 4401);

    // Revoking a user closes what is open, and leaves what is made afterwards.
    let mut ann = Client::connect(&stage.url(&stage.token("/my/path?k=ann&expire=0")?)?)?;
    ann.frame()?;
    assert_eq!(stage.ok("DELETE", "/_token/my/path?k=ann", None)?, json!(1));
    assert_eq!(ann.close_code()?, 4401);
    let mut ann = stage.join("ann")?;
    assert_eq!(ann.frame()?, peers(&["ann"]));

    // A universal token joins the root, or the path that it asks for.
    let universal = stage.token("?k=zoe")?;
    let mut root = Client::connect(&stage.url(&universal)?)?;
    let expected = json!({
        "t": "u", "m": { "f": "/__sys__", "o": "peers" }, "p": { "users": ["zoe"] }
    });
    assert_eq!(root.frame()?, expected);
    let mut asked = Client::connect(&format!("{}?path=/my/path", stage.url(&universal)?))?;
    assert_eq!(asked.frame()?, peers(&["ann", "zoe"]));
    let other = stage.token("/my/path?k=x")?;
    let mut elsewhere = Client::connect(&format!("{}?path=/my", stage.url(&other)?))?;
    assert_eq!(elsewhere.close_code()?, 4401);
    Ok(())
}

/// A revocation on a path holds for whatever token would join there.
#[test]
fn a_user_that_was_revoked_on_a_path_does_not_come_back_by_another_token() -> Result<()> {
    let stage = Stage::new()?;
    let universal = stage.token("?k=ann&expire=600")?;
    let of_topic = stage.token("/my/path/side?k=ann&expire=600")?;
    let urls = [format!("{}?path=/my/path", stage.url(&universal)?), stage.url(&of_topic)?];
    for url in &urls {
        Client::connect(url)?.frame()?;
    }
    stage.ok("DELETE", "/_token/my/path?k=ann", None)?;
    for url in &urls {
        assert_eq!(Client::connect(url)?.close_code()?, 4401, "{url}");
    }
    Client::connect(&stage.url(&universal)?)?.frame()?;
    Ok(())
}

/// An account that may no longer log in takes its sub-accounts' sockets with it.
#[test]
fn a_deactivated_accounts_sub_accounts_are_disconnected() -> Result<()> {
    let stage = Stage::new()?;
    let body = json!({ "k": "lily", "v": { "email": "lily@example.org", "password": "woot" } });
    stage.ok("PUT", "/_acc/accounts", Some(&body))?;
    let secret = stage.credentials.split_once(':').context("credentials")?.1;
    let lily = format!("elena#lily:!{secret}");
    let url = stage.neuron.url();
    curl::json("PUT", &url, "/_ns/p", &lily, None)?;
    let token = curl::json("PUT", &url, "/_token/p?k=ann", &lily, None)?;
    let token = token["v"].as_str().context("a token")?;
    let mut ann = Client::connect(&stage.url(token)?)?;
    ann.frame()?;
    let body = json!({ "k": "elena", "v": { "active": false } });
    let sys = format!("$sys:{}", tests::neuron::SYS_SECRET);
    curl::json("POST", &url, "/_acc/accounts", &sys, Some(&body))?;
    assert_eq!(ann.close_code()?, 4403);
    Ok(())
}

#[test]
fn topics_are_rooms_of_their_own() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let token = stage.token("/my/path/side?k=bob")?;
    let mut bob = Client::connect(&stage.url(&token)?)?;
    assert_eq!(bob.frame()?, peers(&["bob"]));
    ann.hears_nothing()?;
    assert_eq!(stage.ok("GET", "/_subs/my/path/side", None)?, json!(["bob"]));
    assert_eq!(stage.ok("GET", "/_subs/my/path", None)?, json!(["ann"]));
    Ok(())
}

#[test]
fn a_ban_closes_what_is_open_and_keeps_it_out() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let token = stage.token("/my/path?k=bob")?;
    let url = stage.url(&token)?;
    stage.ok("PUT", "/_auth/my", Some(&json!({ "k": "127.0.0.0/8" })))?;
    assert_eq!(ann.close_code()?, 4403);
    assert_eq!(Client::connect(&url)?.close_code()?, 4401);
    assert_eq!(stage.ok("DELETE", "/_auth/my?k=127.0.0.0/8", None)?, json!(1));
    assert_eq!(Client::connect(&url)?.frame()?, peers(&["bob"]));
    Ok(())
}

/// `/my/path` and `/my/path/topic` are one room, and a rule may name either.
#[test]
fn a_ban_on_a_topic_holds_however_the_room_is_called() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let mut side = Client::connect(&stage.url(&stage.token("/my/path/side?k=bob")?)?)?;
    side.frame()?;
    let urls = ["/my/path?k=bob", "/my/path/topic?k=bob"]
        .map(|asked| stage.token(asked).and_then(|token| stage.url(&token)));
    stage.ok("PUT", "/_auth/my/path/topic", Some(&json!({ "k": "127.0.0.0/8" })))?;
    assert_eq!(ann.close_code()?, 4403);
    for url in urls {
        assert_eq!(Client::connect(&url?)?.close_code()?, 4401);
    }
    side.hears_nothing()
}

#[test]
fn the_second_generation_finds_its_way() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok("PUT", "/_ns/a.com/app/room", None)?;
    let url = stage.neuron.url();
    let (ident, secret) = stage.credentials.split_once(':').context("credentials")?;
    let form = format!(
        "ident={ident}&secret={secret}&domain=a.com&application=app&room=room&username=ann&secure=1"
    );
    let token: Value =
        serde_json::from_str(&curl::run(&["-d", &form, &format!("{url}/getToken")])?)?;
    assert_eq!((&token["s"], &token["e"]), (&json!(200), &Value::Null), "{token}");
    let list: Value = serde_json::from_str(&curl::run(&[&format!("{url}/wsList")])?)?;
    let base = list["d"]["value"].as_str().context("a URL")?;
    let token = token["d"]["token"].as_str().context("a token")?;
    let mut ann = Client::connect(&format!("{base}/v2/{token}"))?;
    assert_eq!(ann.frame()?["m"]["f"], "/a.com/app/room/__sys__");
    Ok(())
}

/// A reader without haste takes a byte now and then, so that no single write ever takes too long.
#[test]
fn a_reader_that_does_not_keep_up_leaves_its_room_at_once() -> Result<()> {
    let stage = Stage::with(&[("GANGLION_SIGNAL__QUEUE", "256KiB")])?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let mut bob = stage.join("bob")?;
    bob.frame()?;
    assert_eq!(ann.frame()?, presence("peer_connected", "bob"));
    let text = json!("x".repeat(60_000));
    // What the kernel takes for a reader that does not read is some megabytes.
    let mut sent = 0;
    while stage.neuron.metric("socket_slow_total")? == 0 {
        if sent > 2_000 {
            bail!("{sent} messages wait for bob, who is not cut");
        }
        for _ in 0..20 {
            ann.say("message", None, &text)?;
            sent += 1;
        }
    }
    assert_eq!(ann.frame()?, presence("peer_removed", "bob"));
    assert_eq!(stage.ok("GET", "/_subs/my/path", None)?, json!(["ann"]));
    assert_eq!(stage.neuron.metric("socket_slow_total")?, 1);
    // Nor is bob sent the rest of what the kernel has for him, however slowly he would take it.
    wait_until("bob's connection is closed", || Ok(stage.neuron.metric("connections")? == 1))?;
    let heard = std::iter::from_fn(|| bob.next_text().ok()).count() as u64;
    let of_ann_and_the_first = 4;
    let written = stage.neuron.metric("socket_frames_total")? - of_ann_and_the_first;
    assert!(heard < written, "{heard} of {written}");
    Ok(())
}

#[test]
fn a_kick_does_not_wait_for_a_reader() -> Result<()> {
    let stage = Stage::with(&[("GANGLION_SIGNAL__QUEUE", "64MiB")])?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let mut bob = stage.join("bob")?;
    bob.frame()?;
    assert_eq!(ann.frame()?, presence("peer_connected", "bob"));
    // More than the kernel takes for bob, less than his queue does.
    let text = json!("x".repeat(60_000));
    for _ in 0..500 {
        ann.say("message", None, &text)?;
    }
    ann.hears_nothing()?;
    assert_eq!(stage.ok("DELETE", "/_subs/my/path?k=bob", None)?, json!(1));
    assert_eq!(ann.frame()?, presence("peer_removed", "bob"));
    wait_until("bob's connection is closed", || Ok(stage.neuron.metric("connections")? == 1))?;
    assert_eq!(stage.neuron.metric("socket_slow_total")?, 0);
    Ok(())
}

#[test]
fn a_flood_of_pings_by_one_who_does_not_read_is_cut_and_counted() -> Result<()> {
    let stage =
        Stage::with(&[("GANGLION_SIGNAL__MESSAGE", "1KiB"), ("GANGLION_SIGNAL__QUEUE", "4KiB")])?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let mut is_cut = false;
    for _ in 0..1_000 {
        // The neuron may have gone already.
        is_cut = (0..1_000).any(|_| ann.send_ping(&[b'x'; 125]).is_err())
            || stage.neuron.metric("socket_slow_total")? == 1;
        if is_cut {
            break;
        }
    }
    assert!(is_cut, "a million pings later");
    wait_until("the cut is counted", || Ok(stage.neuron.metric("socket_slow_total")? == 1))?;
    assert_eq!(stage.ok("GET", "/_subs/my/path", None)?, json!([]));
    Ok(())
}

/// The names of a full room may be longer than a queue: that does not make who hears them too slow.
#[test]
fn a_newcomer_hears_of_more_names_than_its_queue_holds() -> Result<()> {
    let stage =
        Stage::with(&[("GANGLION_SIGNAL__MESSAGE", "1KiB"), ("GANGLION_SIGNAL__QUEUE", "4KiB")])?;
    let mut members = Vec::new();
    for number in 0..40 {
        let mut member = stage.join(&format!("{number:03}{}", "n".repeat(125)))?;
        let names = member.frame()?["p"]["users"].as_array().map(Vec::len);
        assert_eq!(names, Some(number + 1));
        members.push(member);
    }
    assert_eq!(stage.neuron.metric("signal_sockets")?, 40);
    Ok(())
}

#[test]
fn a_message_past_its_limit_is_refused_and_counted() -> Result<()> {
    let stage = Stage::with(&[("GANGLION_SIGNAL__MESSAGE", "1KiB")])?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let frame = json!({ "t": "u", "m": {}, "p": "" }).to_string();
    let of_bytes =
        |bytes: usize| frame.replace("\"\"", &format!("\"{}\"", "x".repeat(bytes - frame.len())));
    ann.send_text(&of_bytes(1024))?;
    ann.hears_nothing()?;
    ann.send_text(&of_bytes(1025))?;
    assert_eq!(ann.close_code()?, 1009);
    wait_until("it is counted", || Ok(stage.neuron.metric("socket_too_long_total")? == 1))
}

#[test]
fn a_socket_that_answers_no_ping_is_closed_and_counted() -> Result<()> {
    let settings = [("GANGLION_SIGNAL__PING_AFTER", "200ms"), ("GANGLION_SIGNAL__IDLE", "600ms")];
    let stage = Stage::with(&settings)?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    wait_until("silence is enough", || Ok(stage.neuron.metric("socket_idle_total")? == 1))?;
    assert_eq!(ann.close_code()?, 1001);
    assert_eq!(stage.ok("GET", "/_subs/my/path", None)?, json!([]));
    Ok(())
}

#[test]
fn packets_and_subscriptions_are_counted() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    for _ in 0..5 {
        ann.say("message", None, &json!("x"))?;
    }
    let begun = Instant::now();
    loop {
        let packets = stage.ok("GET", "/_stats/my/path?l=router:pkt&k=ann", None)?;
        let subscriptions = stage.ok("GET", "/_stats/my/path?l=router:sub", None)?;
        if packets["count"] == 5 && subscriptions["count"] == 1 {
            return Ok(());
        }
        if begun.elapsed() > Duration::from_secs(10) {
            bail!("counted {packets} and {subscriptions}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
