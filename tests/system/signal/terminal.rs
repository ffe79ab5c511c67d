//! `ganglion chat`: a terminal beside everybody else, through pipes.

use std::process::Command;

use anyhow::Result;
use serde_json::json;
use tests::neuron::program;
use tests::proxy::Proxy;
use tests::terminal::Terminal;

use super::{Stage, presence};

fn chat(stage: &Stage, url: &str, path: &str, name: &str) -> Result<Terminal> {
    let mut command = Command::new(program()?);
    command.args(["chat", path, "--name", name, "--url", url, "--user", &stage.credentials]);
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
