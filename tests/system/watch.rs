//! The watch suite: live watches over HTTP, as server-sent events and as reads that wait, taken by curl,
//! by Chromium's own `EventSource`, and by hand where a client is many or does not listen.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::browser::{Browser, STEP_WAIT};
use tests::curl;
use tests::feed::Feed;
use tests::http::{self, Connection};
use tests::http2;
use tests::neuron::{Neuron, SYS_SECRET};
use tests::wait::until;

use crate::data::{Account, v};

const SLOW: &str = "watches_slow_total";

/// A stream of an account's.
fn feed(account: &Account, path: &str, arguments: &[&str]) -> Result<Feed> {
    let credentials = ["-u", account.credentials(), "-H", "accept: text/event-stream"];
    Feed::open(&account.url(path), &[&credentials, arguments].concat())
}

/// What a write answers as its version, by the listing that shows it.
fn ver(account: &Account, path: &str, key: &str) -> Result<String> {
    let response = account.ask("GET", &format!("{path}?k={key}")).send()?;
    let tag = response.header("etag").context("a version")?;
    Ok(tag.trim_matches('"').to_owned())
}

#[test]
fn a_stream_begins_with_what_is_there_and_goes_on_with_what_changes() -> Result<()> {
    let neuron = Neuron::start()?;
    let ann = Account::new(&neuron)?;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let path = &format!("/_data/stream/{}", &version[6..7]);
        v(ann.put(path, json!({"k": "a", "v": {"x": 1}})))?;
        let first = ver(&ann, path, "a")?;
        let mut whole = feed(&ann, path, &[version])?;
        let mut one = feed(&ann, &format!("{path}?k=b&watch=sse"), &[version])?;
        for expected in [
            "content-type: text/event-stream",
            "cache-control: no-store",
            "access-control-allow-origin: *",
        ] {
            assert!(whole.head.iter().any(|line| line == expected), "{:?}", whole.head);
        }
        let start = json!({"entries": [{"k": "a", "v": {"x": 1}, "_ver_": first}]});
        assert_eq!(whole.expect("start")?, start);
        assert_eq!(one.expect("start")?, json!({"entries": []}));

        v(ann.put(path, json!({"k": "b", "v": [1, 2]})))?;
        let put = json!({"k": "b", "v": [1, 2], "_ver_": ver(&ann, path, "b")?});
        assert_eq!(whole.expect("change")?, put);
        assert_eq!(one.expect("change")?, put, "of a key that was not there");
        v(ann.delete(&format!("{path}?k=a")))?;
        let deleted = whole.expect("change")?;
        assert_eq!((&deleted["k"], &deleted["deleted"]), (&json!("a"), &json!(true)));
        assert!(deleted["_ver_"].as_str().is_some_and(|ver| ver.starts_with("2-")), "{deleted}");
        v(ann.delete(&format!("{path}?k=b&erase=1")))?;
        for feed in [&mut whole, &mut one] {
            assert_eq!(feed.expect("change")?, json!({"k": "b", "deleted": true}));
        }
        // What is on another path, or below this one, is told to neither.
        v(ann.put(&format!("{path}/below"), json!({"k": "b", "v": 1})))?;
        v(ann.put(path, json!({"k": "b", "v": "last"})))?;
        for feed in [&mut whole, &mut one] {
            assert_eq!(feed.expect("change")?["v"], "last");
        }
        drop((whole, one));
        until(|| neuron.metric("watches"), |open| *open == 0)?;
    }
    Ok(())
}

#[test]
fn other_services_that_show_what_they_hold_can_be_watched_and_no_more() -> Result<()> {
    let neuron = Neuron::start()?;
    let ann = Account::new(&neuron)?;
    for (service, key, value) in [
        ("_conf", "strict", json!(true)),
        ("_auth", "192.0.2.7", json!("a note")),
        ("_ns", "ns", json!({"title": "x"})),
    ] {
        let path = format!("/{service}/watched");
        let mut feed = feed(&ann, &path, &[])?;
        assert_eq!(feed.expect("start")?, json!({"entries": []}), "{service}");
        v(ann.put(&path, json!({"k": key, "v": value})))?;
        let change = feed.expect("change")?;
        assert_eq!((&change["k"], &change["v"]), (&json!(key), &value), "{service}");
    }
    let answer = ann.ask("GET", "/_acc/accounts?watch=sse").send()?;
    assert_eq!(answer.header("content-type"), Some("application/json"), "no stream: {answer:?}");
    let refused = feed(&ann, "/_data/p?k2=x", &[])?.rest()?.concat();
    assert!(refused.contains("bad_request"), "{refused}");
    Ok(())
}

#[test]
fn a_stream_ends_when_its_caller_is_none_any_more() -> Result<()> {
    let neuron = Neuron::start()?;
    let sys = format!("$sys:{SYS_SECRET}");
    let ann = Account::new(&neuron)?;
    let admin = json!({"k": "max", "v": {"password": "woot", "role": "admin"}});
    v(ann.put("/_acc/users/admins", admin))?;
    let as_admin = format!("{}:max#woot", ann.name);
    let stream = ["-H", "accept: text/event-stream"];
    let url = ann.url("/_data/p");
    let mut of_owner = feed(&ann, "/_data/p", &[])?;
    let mut of_admin = Feed::open(&url, &[&stream[..], &["-u", &as_admin]].concat())?;
    let from = ["--interface", "127.0.0.9"];
    let mut of_other = feed(&ann, "/_data/p", &from)?;
    for feed in [&mut of_owner, &mut of_admin, &mut of_other] {
        feed.expect("start")?;
    }
    // An admin goes, and an address is denied; the others stay.
    v(ann.delete("/_acc/users/admins?k=max"))?;
    assert_eq!(of_admin.expect("end")?["v"], "unauthorized");
    assert_eq!(of_admin.event()?, None);
    v(ann.put("/_auth/p", json!({"k": "127.0.0.9", "v": "away"})))?;
    assert_eq!(of_other.expect("end")?["v"], "unauthorized");
    assert_eq!(of_other.event()?, None);
    v(ann.put("/_data/p", json!({"k": "a", "v": 1})))?;
    assert_eq!(of_owner.expect("change")?["k"], "a");
    // Somebody ends the session of a stream.
    let login = v(ann.get("/_sess?as=values"))?;
    let rows = login.as_array().context("rows")?;
    let own = rows.iter().find(|row| row["kind"] == "login").context("a login")?;
    v(ann.delete(&format!("/_sess?k={}", own["id"].as_str().context("an id")?)))?;
    assert_eq!(of_owner.expect("end")?["v"], "unauthorized");

    let mut last = feed(&ann, "/_data/p", &[])?;
    last.expect("start")?;
    let begun = Instant::now();
    let target = format!("/_acc/accounts?k={}", ann.name);
    v(curl::json("DELETE", &neuron.url(), &target, &sys, None))?;
    assert_eq!(last.expect("end")?["v"], "unauthorized");
    println!("a stream of a deleted account ended after {:?}", begun.elapsed());
    assert_eq!(last.event()?, None);
    until(|| neuron.metric("watches"), |open| *open == 0)?;
    Ok(())
}

/// It sends a request and takes nothing of what it is answered.
#[test]
fn who_does_not_take_what_changes_is_cut_and_the_others_are_not() -> Result<()> {
    let settings = [("GANGLION_SIGNAL__QUEUE", "128KiB")];
    let neuron = Neuron::start_with(&settings, &[])?;
    let (ann, bea) = (Account::new(&neuron)?, Account::new(&neuron)?);
    let mut other = feed(&ann, "/_data/p?k=last", &[])?;
    let mut of_bea = feed(&bea, "/_data/p", &[])?;
    other.expect("start")?;
    of_bea.expect("start")?;
    let (address, target) = (neuron.address("http")?, "/_data/p?watch=sse");
    let mut deaf = Connection::open(&address)?;
    let mut deaf_2 = None;
    let value = "x".repeat(60_000);
    let mut writer = http::Client::connect(&address, ann.credentials())?;
    for slow in [1, 2] {
        match slow {
            1 => deaf.send(&http::request("GET", target, ann.credentials(), ""))?,
            // Its windows stay as they are.
            _ => deaf_2.insert(http2::Connection::open(&address)?).send(&http2::get(
                1,
                http2::END_STREAM,
                target,
                ann.credentials(),
            )?)?,
        }
        until(|| neuron.metric("http_feeds"), |open| *open == 3)?;
        for turn in 0.. {
            let body = json!({"k": "a", "v": value}).to_string();
            ensure!(writer.call("PUT", "/_data/p", &body)?.ok().is_some());
            if neuron.metric(SLOW)? == slow {
                println!("cut after {turn} values of {} bytes", value.len());
                break;
            }
            ensure!(turn < 2_000, "it is never cut");
        }
        v(ann.put("/_data/p", json!({"k": "last", "v": 1})))?;
        assert_eq!(other.expect("change")?["k"], "last");
        v(bea.put("/_data/p", json!({"k": "a", "v": 1})))?;
        assert_eq!(of_bea.expect("change")?["k"], "a");
        assert_eq!(neuron.metric(SLOW)?, slow);
        // What the deaf one holds is given back once it has been given up.
        until(|| neuron.metric("http_feeds"), |open| *open == 2)?;
        until(|| neuron.metric("http_answer_bytes"), |bytes| *bytes == 0)?;
    }
    drop((deaf, deaf_2));
    Ok(())
}

/// A stream that owes nothing outlives a connection that is merely kept.
#[test]
fn a_silent_stream_is_not_idle() -> Result<()> {
    let settings = ["KEEP_ALIVE", "HEADER_TIME", "BODY_TIME"];
    let settings = settings.map(|name| format!("GANGLION_LIMITS__{name}"));
    let settings: Vec<(&str, &str)> = settings.iter().map(|name| (name.as_str(), "1s")).collect();
    let neuron = Neuron::start_with(&settings, &[])?;
    let ann = Account::new(&neuron)?;
    let mut feeds =
        ["--http1.1", "--http2-prior-knowledge"].map(|it| feed(&ann, "/_data/p", &[it]));
    for feed in &mut feeds {
        feed.as_mut().map_err(|error| anyhow::anyhow!("{error}"))?.expect("start")?;
    }
    for _ in 0..2 {
        let mut kept = Connection::open(&neuron.address("http")?)?;
        kept.ask(&http::request("GET", "/_data/p", ann.credentials(), ""))?;
        assert!(kept.line().is_err(), "it is closed when it was idle for too long");
    }
    v(ann.put("/_data/p", json!({"k": "a", "v": 1})))?;
    for feed in feeds {
        assert_eq!(feed?.expect("change")?["k"], "a");
    }
    Ok(())
}

#[test]
fn an_account_has_so_many_watches() -> Result<()> {
    let settings = [("GANGLION_LIMITS__WATCHES_PER_ACCOUNT", "2")];
    let neuron = Neuron::start_with(&settings, &[])?;
    let (ann, bea) = (Account::new(&neuron)?, Account::new(&neuron)?);
    let mut open = [feed(&ann, "/_data/p", &[])?, feed(&ann, "/_data/q", &[])?];
    for feed in &mut open {
        feed.expect("start")?;
    }
    let refused = feed(&ann, "/_data/p", &[])?.rest()?.concat();
    assert!(refused.contains("overloaded"), "{refused}");
    feed(&bea, "/_data/p", &[])?.expect("start")?;
    assert_eq!(neuron.metric("watches_refused_total")?, 1);
    drop(open);
    until(|| neuron.metric("watches"), |open| *open == 0)?;
    feed(&ann, "/_data/p", &[])?.expect("start")?;
    Ok(())
}

#[test]
fn a_path_that_is_too_large_is_watched_by_key() -> Result<()> {
    let settings = [("GANGLION_VIEWS__NODE", "64KiB")];
    let neuron = Neuron::start_with(&settings, &[])?;
    let ann = Account::new(&neuron)?;
    for key in ["a", "b", "c"] {
        v(ann.put("/_data/p", json!({"k": key, "v": "x".repeat(30_000)})))?;
    }
    let refused = feed(&ann, "/_data/p", &[])?.rest()?.concat();
    assert!(refused.contains("too_large"), "{refused}");
    let mut one = feed(&ann, "/_data/p?k=b", &[])?;
    assert_eq!(one.expect("start")?["entries"][0]["k"], "b");
    v(ann.put("/_data/p", json!({"k": "b", "v": 2})))?;
    assert_eq!(one.expect("change")?["v"], 2);
    v(ann.delete("/_data/p?k=b"))?;
    assert_eq!(one.expect("change")?["deleted"], true);
    Ok(())
}

#[test]
fn a_thousand_streams_of_one_key_all_hear_a_put() -> Result<()> {
    const STREAMS: usize = 1_000;
    tests::os::raise_file_limit()?;
    let neuron = Neuron::start()?;
    let ann = Account::new(&neuron)?;
    let request = http::request("GET", "/_data/p?k=a&watch=sse", ann.credentials(), "");
    let before = neuron.rss_kib()?;
    let mut all = Vec::new();
    for _ in 0..STREAMS {
        let mut connection = Connection::open(&neuron.address("http")?)?;
        connection.send(&request)?;
        all.push(connection);
    }
    let until_line = |connection: &mut Connection, expected: &str| -> Result<()> {
        while connection.line()? != expected {}
        Ok(())
    };
    for connection in &mut all {
        until_line(connection, "event: start")?;
    }
    assert_eq!(neuron.metric("watches")?, STREAMS as u64);
    assert_eq!(neuron.metric("watch_targets")?, 1);
    let begun = Instant::now();
    v(ann.put("/_data/p", json!({"k": "a", "v": 1})))?;
    for connection in &mut all {
        until_line(connection, "event: change")?;
    }
    println!("{STREAMS} streams heard a put within {:?}", begun.elapsed());
    let grown = neuron.rss_kib()?.saturating_sub(before) as usize;
    println!("a stream takes some {} KiB", grown / STREAMS);
    assert_eq!(neuron.metric("watches_told_total")?, STREAMS as u64);
    drop(all);
    until(|| neuron.metric("watches"), |open| *open == 0)?;
    Ok(())
}

#[test]
fn after_a_kill_a_stream_is_cut_and_the_next_one_begins_anew() -> Result<()> {
    let mut neuron = Neuron::start()?;
    let ann = Account::new(&neuron)?;
    v(ann.put("/_data/p", json!({"k": "a", "v": 1})))?;
    let mut before = feed(&ann, "/_data/p", &[])?;
    before.expect("start")?;
    v(ann.put("/_data/p", json!({"k": "a", "v": 2})))?;
    let told = before.expect("change")?;
    neuron.kill()?;
    assert_eq!(before.event()?, None);
    let neuron = neuron.restart()?;
    let ann = ann.at(&neuron);
    let mut after = feed(&ann, "/_data/p", &[])?;
    assert_eq!(after.expect("start")?, json!({ "entries": [told] }));
    v(ann.put("/_data/p", json!({"k": "a", "v": 3})))?;
    assert_eq!(after.expect("change")?["v"], 3);
    Ok(())
}

#[test]
fn a_stop_ends_streams_and_waits_and_a_drain_ends_streams() -> Result<()> {
    let mut neuron = Neuron::start()?;
    let ann = Account::new(&neuron)?;
    let mut first = feed(&ann, "/_data/p", &[])?;
    first.expect("start")?;
    let drain = format!("http://{}/drainz", neuron.address("admin")?);
    curl::run(&["-X", "POST", &drain])?;
    assert_eq!(first.event()?, None, "it just ends");
    let mut sent_on = feed(&ann, "/_data/p", &[])?;
    assert!(sent_on.head.iter().any(|line| line == "connection: close"), "{:?}", sent_on.head);
    assert_eq!(sent_on.rest()?, ["retry: 1000", ""], "a page tries again elsewhere");
    curl::run(&["-X", "DELETE", &drain])?;
    let mut second = feed(&ann, "/_data/p", &[])?;
    second.expect("start")?;
    let mut polling = Connection::open(&neuron.address("http")?)?;
    let request = http::request("GET", "/_data/p?k=a&wait=55", ann.credentials(), "");
    polling.send(&request.replacen("\r\n", "\r\nif-none-match: \"0\"\r\n", 1))?;
    until(|| neuron.metric("watches"), |open| *open == 2)?;
    let begun = Instant::now();
    assert_eq!(neuron.stop()?, Some(0));
    println!("stopped within {:?}", begun.elapsed());
    assert!(begun.elapsed().as_secs() < 9, "it waited for its deadline");
    assert_eq!(second.event()?, None);
    assert_eq!(polling.answer()?.status, 304);
    Ok(())
}

/// `GET` with `wait`, and a tag if there is one; the status, the tag, and the body.
fn poll(account: &Account, target: &str, tag: &str) -> Result<(u16, String, Value)> {
    let mut request = account.ask("GET", target);
    if !tag.is_empty() {
        request = request.header(&format!("if-none-match: {tag}"));
    }
    let response = request.send()?;
    let tag = response.header("etag").unwrap_or("").to_owned();
    let body = if response.body.is_empty() { Value::Null } else { response.json()? };
    Ok((response.status, tag, body))
}

#[test]
fn a_read_waits_for_another_tag() -> Result<()> {
    let neuron = Neuron::start()?;
    let ann = Account::new(&neuron)?;
    // Of a key that is to come.
    let (status, absent, body) = poll(&ann, "/_data/p?k=a&wait=20", "")?;
    assert_eq!((status, absent.as_str()), (200, "\"0\""));
    assert_eq!(body["v"], "not_found");
    let came = std::thread::scope(|scope| -> Result<_> {
        let waiting = scope.spawn(|| poll(&ann, "/_data/p?k=a&wait=50", &absent));
        until(|| neuron.metric("watches"), |open| *open == 1)?;
        v(ann.put("/_data/p", json!({"k": "other", "v": 0})))?;
        v(ann.put("/_data/p", json!({"k": "a", "v": 1})))?;
        waiting.join().expect("it does not panic")
    })?;
    assert_eq!((came.0, &came.2), (200, &json!({"v": 1, "s": "ok"})));
    assert_eq!(came.1, format!("\"{}\"", ver(&ann, "/_data/p", "a")?));
    // At once, when the tag is another one; not at all, when it is the same and nothing comes.
    let begun = Instant::now();
    let (status, ..) = poll(&ann, "/_data/p?k=a&wait=50", &absent)?;
    assert!(status == 200 && begun.elapsed().as_secs() < 20);
    let begun = Instant::now();
    let (status, tag, _) = poll(&ann, "/_data/p?k=a&wait=1", &came.1)?;
    assert_eq!((status, &tag), (304, &came.1));
    assert!(begun.elapsed().as_secs() >= 1);
    // Until it is deleted.
    let gone = std::thread::scope(|scope| -> Result<_> {
        let waiting = scope.spawn(|| poll(&ann, "/_data/p?k=a&wait=50", &came.1));
        until(|| neuron.metric("watches"), |open| *open == 1)?;
        v(ann.delete("/_data/p?k=a"))?;
        waiting.join().expect("it does not panic")
    })?;
    assert_eq!((gone.1.as_str(), &gone.2["v"]), ("\"0\"", &json!("not_found")));
    Ok(())
}

#[test]
fn who_waits_is_looked_at_again() -> Result<()> {
    let neuron = Neuron::start()?;
    let ann = Account::new(&neuron)?;
    let admin = json!({"k": "max", "v": {"password": "woot", "role": "admin"}});
    v(ann.put("/_acc/users/admins", admin))?;
    let as_admin = format!("{}:max#woot", ann.name);
    let wait = |arguments: &[&str]| -> Result<Value> {
        let url = ann.url("/_data/p?k=a&wait=50");
        let tag = ["--max-time", "60", "-H", "if-none-match: \"0\"", &url];
        Ok(serde_json::from_str(&curl::run(&[arguments, &tag].concat())?)?)
    };
    let begun = Instant::now();
    let denied = std::thread::scope(|scope| -> Result<_> {
        let from = ["-u", ann.credentials(), "--interface", "127.0.0.9"];
        let waiting = scope.spawn(move || wait(&from));
        until(|| neuron.metric("watches"), |open| *open == 1)?;
        v(ann.put("/_auth/p", json!({"k": "127.0.0.9", "v": "away"})))?;
        waiting.join().expect("it does not panic")
    })?;
    assert_eq!(denied["v"], "unauthorized");
    assert!(begun.elapsed().as_secs() < 40, "at once");
    let gone = std::thread::scope(|scope| -> Result<_> {
        let as_whom = ["-u", &as_admin];
        let waiting = scope.spawn(move || wait(&as_whom));
        until(|| neuron.metric("watches"), |open| *open == 1)?;
        v(ann.delete("/_acc/users/admins?k=max"))?;
        v(ann.put("/_data/p", json!({"k": "a", "v": "not for him"})))?;
        waiting.join().expect("it does not panic")
    })?;
    assert_eq!(gone["v"], "unauthorized");
    Ok(())
}

#[test]
fn a_listing_has_a_tag_for_who_asks_by_it() -> Result<()> {
    let neuron = Neuron::start()?;
    let ann = Account::new(&neuron)?;
    v(ann.put("/_data/p", json!({"k": "a", "v": {"x": 1}})))?;
    assert_eq!(poll(&ann, "/_data/p?as=values", "")?.1, "", "plain ones have none");
    for shape in ["", "&as=keys", "&as=values", "&as=datum", "&after=a", "&limit=50"] {
        let target = format!("/_data/p?wait=50{shape}");
        let (status, tag, before) = poll(&ann, &target, "")?;
        assert_eq!(status, 200);
        assert_eq!(tag.len(), 34, "{tag}");
        let (status, _, after) = std::thread::scope(|scope| -> Result<_> {
            let waiting = scope.spawn(|| poll(&ann, &target, &tag));
            until(|| neuron.metric("watches"), |open| *open == 1)?;
            v(ann.put("/_data/p", json!({"k": format!("b{shape}"), "v": {"y": 1}})))?;
            waiting.join().expect("it does not panic")
        })?;
        assert_eq!(status, 200);
        assert_ne!(before, after, "{shape}");
        // Without a wait it is a condition as of any other page.
        let (_, tag, _) = poll(&ann, &target, "\"another\"")?;
        let (status, same, _) = poll(&ann, &target.replace("wait=50", ""), &tag)?;
        assert_eq!((status, same), (304, tag));
    }
    for (target, word) in [
        ("/_data/p?wait=soon", "bad_request"),
        ("/_data/p?wait=1&time_series=1", "bad_request"),
        ("/_ds?wait=1", "bad_request"),
        ("/_ns?wait=1", "bad_request"),
    ] {
        for tag in ["", "\"1\""] {
            assert_eq!(poll(&ann, target, tag)?.2["v"], word, "{target}");
        }
    }
    Ok(())
}

/// Those who wait have no turn: four times as many wait as may be carried out.
#[test]
fn so_many_reads_of_an_account_wait_and_others_go_on() -> Result<()> {
    const POLLS: usize = 1_024;
    tests::os::raise_file_limit()?;
    let neuron = Neuron::start()?;
    let ann = Account::new(&neuron)?;
    let request = http::request("GET", "/_data/p?k=a&wait=55", ann.credentials(), "");
    let request = request.replacen("\r\n", "\r\nif-none-match: \"0\"\r\n", 1);
    let mut all = Vec::new();
    for _ in 0..POLLS {
        let mut connection = Connection::open(&neuron.address("http")?)?;
        connection.send(&request)?;
        all.push(connection);
    }
    until(|| neuron.metric("watches"), |open| *open == POLLS as u64)?;
    let mut one_more = Connection::open(&neuron.address("http")?)?;
    assert!(one_more.ask(&request)?.body.contains("overloaded"));
    assert_eq!(neuron.metric("polls_refused_total")?, 1);
    v(ann.put("/_data/p", json!({"k": "a", "v": 1})))?;
    for connection in &mut all {
        let answer = connection.answer()?;
        assert_eq!((answer.status, answer.body.as_str()), (200, "{\"v\":1,\"s\":\"ok\"}"));
    }
    assert_eq!(neuron.metric("watches")?, 0);
    Ok(())
}

#[test]
fn a_page_hears_by_its_own_event_source() -> Result<()> {
    let mut neuron = Neuron::start()?;
    let ann = Account::new(&neuron)?;
    let (name, secret) = ann.credentials().split_once(':').context("credentials")?;
    let browser = Browser::launch()?;
    let page = browser.page(&format!("{}/demo", neuron.url()))?;
    let source = format!("/_data/page?k=a&watch=sse&ident={name}&secret={secret}");
    page.eval(&format!(
        "window.heard = []; window.source = new EventSource('{source}'); \
         for (const name of ['start', 'change', 'end']) \
         source.addEventListener(name, event => heard.push([name, JSON.parse(event.data)])); true"
    ))?;
    page.wait_for("heard.length === 1", STEP_WAIT)?;
    v(ann.put("/_data/page", json!({"k": "a", "v": {"text": "a\n: \"b\""}})))?;
    page.wait_for("heard.length === 2", STEP_WAIT)?;
    let heard = page.eval("heard")?;
    assert_eq!(heard[0], json!(["start", {"entries": []}]));
    assert_eq!(heard[1][1]["v"]["text"], "a\n: \"b\"");
    // It comes again by itself, and begins anew.
    neuron.kill()?;
    page.wait_for("source.readyState === 0", STEP_WAIT)?;
    let neuron = neuron.restart_in_place()?;
    page.wait_for("heard.length === 3", STEP_WAIT)?;
    let again = page.eval("heard[2]")?;
    assert_eq!((&again[0], &again[1]["entries"][0]["k"]), (&json!("start"), &json!("a")));
    drop(neuron);
    Ok(())
}
