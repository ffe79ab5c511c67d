//! `ganglion chat` and `ganglion watch`: terminals beside everybody else, through pipes.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;
use tests::neuron::program;
use tests::proxy::Proxy;
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
    terminal.shows("* not said: not_found")?;
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
    let mut heard = Vec::new();
    while heard.is_empty() {
        let frame = ann.frame()?;
        heard.extend(frame["p"]["msg"].as_str().map(str::to_owned));
    }
    assert_eq!(heard, ["typed meanwhile"]);
    ann.hears_nothing()?;
    stage.ok("DELETE", "/_subs/my/path?k=term", None)?;
    let (is_well, complaint) = terminal.ends()?;
    assert!(!is_well && complaint.contains("kicked"), "{complaint}");
    Ok(())
}

#[test]
fn a_path_that_is_not_there_is_told_with_what_to_do() -> Result<()> {
    let stage = Stage::new()?;
    let terminal = chat(&stage, &stage.neuron.url(), "/nowhere", "term")?;
    let (is_well, complaint) = terminal.ends()?;
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
