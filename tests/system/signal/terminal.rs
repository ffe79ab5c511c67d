//! `ganglion chat` and `ganglion watch`: terminals beside everybody else, through pipes.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::json;
use tests::neuron::program;
use tests::proxy::Proxy;
use tests::socket::Client;
use tests::terminal::Terminal;

use super::{Stage, presence};

fn chat(stage: &Stage, url: &str, path: &str, name: &str) -> Result<Terminal> {
    ganglion(stage, url, &["chat", path, "--name", name])
}

fn ganglion(stage: &Stage, url: &str, arguments: &[&str]) -> Result<Terminal> {
    let mut command = Command::new(program()?);
    command.args(arguments).args(["--url", url, "--user", &stage.credentials]);
    Terminal::start(&mut command)
}

/// What somebody says next, whatever else comes before it.
fn said(client: &mut Client) -> Result<String> {
    loop {
        if let Some(text) = client.frame()?["p"]["msg"].as_str() {
            return Ok(text.to_owned());
        }
    }
}

/// A command that is killed when it does not end by itself.
fn in_time() -> Result<Command> {
    let mut command = Command::new("timeout");
    command.arg("30").arg(program()?);
    Ok(command)
}

#[test]
fn a_terminal_talks_with_a_page() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let mut terminal = chat(&stage, &stage.neuron.url(), "/my/path", "term")?;
    terminal.shows("* term in /my/path: ann, term")?;
    assert_eq!(ann.frame()?, presence("peer_connected", "term"));
    terminal.types("hello zoë")?;
    assert_eq!(ann.frame()?["p"], json!({ "msg": "hello zoë" }));
    ann.say("message", None, &json!({ "msg": "hi \u{1b}[2J there" }))?;
    terminal.shows("ann: hi \u{FFFD}[2J there")?;
    ann.say("message", Some("term"), &json!({ "msg": "psst" }))?;
    terminal.shows("ann (to you): psst")?;
    terminal.types("@ann only you")?;
    let frame = ann.frame()?;
    assert_eq!((&frame["m"]["t"], &frame["p"]["msg"]), (&json!("ann"), &json!("only you")));
    // What is nested deeper than it reads values is passed over.
    let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
    ann.send_text(&format!(r#"{{"t":"u","m":{{"o":"message"}},"p":{deep}}}"#))?;
    terminal.shows("* something that a terminal cannot show")?;
    terminal.types("@nobody there?")?;
    terminal.shows("* not said, nobody of that name is here: there?")?;
    // What is no text ends nothing.
    terminal.types_bytes(b"caf\xE9\r\n")?;
    assert_eq!(said(&mut ann)?, "caf\u{FFFD}");
    terminal.types("last words")?;
    let (is_well, complaint) = terminal.ends()?;
    assert!(is_well, "{complaint}");
    assert_eq!(ann.frame()?["p"]["msg"], "last words");
    assert_eq!(ann.frame()?, presence("peer_removed", "term"));
    Ok(())
}

#[test]
fn a_terminal_whose_network_fails_comes_back_and_misses_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let proxy = Proxy::before(&stage.neuron.address("http")?)?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let url = format!("http://{}", proxy.address);
    let mut terminal = chat(&stage, &url, "/my/path", "term")?;
    terminal.shows("* term in /my/path: ann, term")?;
    assert_eq!(ann.frame()?["m"]["o"], "peer_connected");
    proxy.set_away(true);
    ann.say("message", None, &json!({ "msg": "while you were away" }))?;
    terminal.types("typed meanwhile")?;
    proxy.cut();
    proxy.set_away(false);
    terminal.shows("* the connection was lost; coming back")?;
    terminal.shows("* back")?;
    terminal.shows("ann: while you were away")?;
    assert_eq!(said(&mut ann)?, "typed meanwhile");
    ann.hears_nothing()?;
    stage.ok("DELETE", "/_subs/my/path?k=term", None)?;
    let (is_well, complaint) = terminal.ends_by_itself()?;
    assert!(!is_well && complaint.contains("kicked"), "{complaint}");
    Ok(())
}

#[test]
fn a_path_that_is_not_there_is_told_with_what_to_do() -> Result<()> {
    let stage = Stage::new()?;
    let terminal = chat(&stage, &stage.neuron.url(), "/nowhere", "term")?;
    let (is_well, complaint) = terminal.ends_by_itself()?;
    assert!(!is_well && complaint.contains("ganglion put /_ns/nowhere"), "{complaint}");
    Ok(())
}

#[test]
fn a_terminal_follows_data_across_a_failing_network() -> Result<()> {
    let stage = Stage::new()?;
    let put =
        |key: &str, v: u64| stage.ok("PUT", "/_data/my/path", Some(&json!({ "k": key, "v": v })));
    put("a", 1)?;
    put("b", 1)?;
    let proxy = Proxy::before(&stage.neuron.address("http")?)?;
    let url = format!("http://{}", proxy.address);
    let terminal = ganglion(&stage, &url, &["watch", "/my/path"])?;
    let shows = |key: &str, v: serde_json::Value| -> Result<()> {
        let mut entry: serde_json::Value = serde_json::from_str(&terminal.line()?)?;
        entry.as_object_mut().context("an object")?.remove("_ver_");
        let expected = match v.is_null() {
            true => json!({ "k": key, "deleted": true }),
            false => json!({ "k": key, "v": v }),
        };
        anyhow::ensure!(entry == expected, "{entry} in place of {expected}");
        Ok(())
    };
    shows("a", json!(1))?;
    shows("b", json!(1))?;
    put("a", 2)?;
    shows("a", json!(2))?;
    proxy.set_away(true);
    proxy.cut();
    put("b", 2)?;
    put("c", 1)?;
    stage.ok("DELETE", "/_data/my/path?k=a", None)?;
    proxy.set_away(false);
    shows("b", json!(2))?;
    shows("c", json!(1))?;
    shows("a", json!(null))?;
    let of_one = ganglion(&stage, &url, &["watch", "/my/path", "--k", "c"])?;
    assert!(of_one.line()?.contains(r#""v":1"#));
    put("b", 3)?;
    put("c", 2)?;
    assert!(of_one.line()?.contains(r#""v":2"#));
    Ok(())
}

#[test]
fn a_terminal_that_says_too_long_a_line_goes_on_without_it() -> Result<()> {
    let stage = Stage::with(&[("GANGLION_SIGNAL__MESSAGE", "1KiB")])?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    let mut terminal = chat(&stage, &stage.neuron.url(), "/my/path", "term")?;
    terminal.shows("* term in /my/path: ann, term")?;
    // The second is more than a connection holds that nobody reads any more.
    for bytes in [1 << 10, 8 << 20] {
        terminal.types(&"x".repeat(bytes))?;
        terminal.shows("* not said, it is too long")?;
        terminal.shows("* the connection was lost; coming back")?;
        terminal.shows("* back")?;
        terminal.types("short")?;
        assert_eq!(said(&mut ann)?, "short");
    }
    let (is_well, complaint) = terminal.ends()?;
    assert!(is_well, "{complaint}");
    Ok(())
}

#[test]
fn a_terminal_shows_names_as_people_write_them() -> Result<()> {
    let stage = Stage::new()?;
    let mut ann = stage.join("ann%20b")?;
    ann.frame()?;
    let mut terminal = chat(&stage, &stage.neuron.url(), "/my/path", "zoë z")?;
    terminal.shows("* zoë z in /my/path: ann b, zoë z")?;
    terminal.types("@ann%20b psst")?;
    assert_eq!(said(&mut ann)?, "psst");
    ann.say("message", Some("zo%C3%AB%20z"), &json!({ "msg": "100%20" }))?;
    terminal.shows("ann b (to you): 100%20")?;
    let nameless = chat(&stage, &stage.neuron.url(), "/my/path", "")?;
    let welcome = nameless.line()?;
    let name = welcome.strip_prefix("* ").and_then(|rest| rest.split_once(" in "));
    let (name, rest) = name.context("a welcome")?;
    assert!(!name.is_empty() && rest.contains(name), "{welcome}");
    terminal.shows(&format!("* {name} came"))?;
    Ok(())
}

/// It waits for its neuron no longer than for its last lines.
#[test]
fn a_terminal_whose_neuron_stays_away_ends() -> Result<()> {
    let stage = Stage::new()?;
    let proxy = Proxy::before(&stage.neuron.address("http")?)?;
    let url = format!("http://{}", proxy.address);
    let mut terminal = chat(&stage, &url, "/my/path", "term")?;
    terminal.shows("* term in /my/path: term")?;
    proxy.set_away(true);
    proxy.cut();
    terminal.shows("* the connection was lost; coming back")?;
    terminal.types("to nobody")?;
    let (is_well, complaint) = terminal.ends()?;
    assert!(!is_well && complaint.contains("the last lines were not heard"), "{complaint}");
    Ok(())
}

#[test]
fn a_watch_says_when_it_is_away_and_when_it_is_back() -> Result<()> {
    let stage = Stage::new()?;
    let put = |key: &str| stage.ok("PUT", "/_data/my/path", Some(&json!({ "k": key, "v": 1 })));
    put("a")?;
    let proxy = Proxy::before(&stage.neuron.address("http")?)?;
    let url = format!("http://{}", proxy.address);
    // What it says beside its lines comes among them.
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec "$0" "$@" 2>&1"#]).arg(program()?).args(["watch", "_data/my/path"]);
    command.args(["--url", &url, "--user", &stage.credentials]);
    let terminal = Terminal::start(&mut command)?;
    assert!(terminal.line()?.contains(r#""k":"a""#));
    proxy.set_away(true);
    proxy.cut();
    terminal.shows("ganglion: the connection was lost; coming back")?;
    put("b")?;
    proxy.set_away(false);
    terminal.shows("ganglion: back")?;
    assert!(terminal.line()?.contains(r#""k":"b""#));
    Ok(())
}

#[test]
fn a_watch_is_of_the_path_that_other_verbs_mean() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok("PUT", "/_data/my/path", Some(&json!({ "k": "a", "v": 1 })))?;
    stage.ok("PUT", "/_conf/my/path", Some(&json!({ "k": "strict", "v": true })))?;
    for (path, shows) in [
        ("my/path", r#""v":1"#),
        ("/my%2Fpath", r#""v":1"#),
        ("_data/my/path", r#""v":1"#),
        ("/_data/my/path", r#""v":1"#),
        ("_conf/my/path", r#""k":"strict""#),
    ] {
        let line = ganglion(&stage, &stage.neuron.url(), &["watch", path])?.line()?;
        assert!(line.contains(shows), "{path}: {line}");
    }
    let terminal = ganglion(&stage, &stage.neuron.url(), &["watch", "_nothing/my/path"])?;
    let (is_well, complaint) = terminal.ends_by_itself()?;
    assert!(!is_well && complaint.contains("there is no such service"), "{complaint}");
    Ok(())
}

/// As behind `| head -1`.
#[test]
fn a_program_whose_reader_goes_away_ends_well_and_says_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let put = |v: u64| stage.ok("PUT", "/_data/my/path", Some(&json!({ "k": "a", "v": v })));
    put(1)?;
    let url = stage.neuron.url();
    let account = ["--url", &url, "--user", &stage.credentials];
    let (reader, writer) = std::io::pipe()?;
    let mut command = in_time()?;
    command.args(["watch", "/my/path"]).args(account).stdout(writer).stderr(Stdio::piped());
    let watch = command.spawn()?;
    // It holds the pipe's end too.
    drop(command);
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line)?;
    assert!(line.contains(r#""v":1"#), "{line}");
    put(2)?;
    let ended = watch.wait_with_output()?;
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    for arguments in [
        &["get", "/_data/my/path?k=a", account[0], account[1], account[2], account[3]][..],
        &["config", "reference"],
    ] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let ended = in_time()?.args(arguments).stdout(writer).output()?;
        assert!(ended.status.success() && ended.stderr.is_empty(), "{arguments:?}: {ended:?}");
    }
    Ok(())
}

#[test]
fn a_token_of_the_terminal_has_the_grants_that_it_was_given() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok("PUT", "/_data/my/path", Some(&json!({ "k": "x", "v": 1 })))?;
    let url = stage.neuron.url();
    let token = |grants: &str| -> Result<_> {
        let mut command = in_time()?;
        command.args(["token", "/my/path", "--k", "ann", "--expire", "60", "--grants", grants]);
        Ok(command.args(["--url", &url, "--user", &stage.credentials]).output()?)
    };
    let made = token("subscribe,read")?;
    assert!(made.status.success(), "{made:?}");
    let answer: serde_json::Value = serde_json::from_slice(&made.stdout)?;
    let mut ann = Client::greet(&stage.base()?, &json!({ "token": answer["v"] }))?;
    assert_eq!(ann.frame()?["p"]["name"], "ann");
    assert_eq!(ann.ask("get", &json!(1), &json!({ "k": "x" }))?["p"]["v"], 1);
    let put = ann.ask("put", &json!(2), &json!({ "k": "x", "v": 2 }))?;
    assert_eq!(put["p"]["v"], "not_allowed");
    let refused = token("everything")?;
    let complaint = String::from_utf8(refused.stderr)?;
    assert!(!refused.status.success() && complaint.contains("`grants` are"), "{complaint}");
    Ok(())
}
