//! What people on `/demo` have of a room beside calls: who may be there, values that all see change,
//! coming back after the network went away, and a terminal on the other side.
//!
//! The room's name has a space and a letter beyond ASCII, which must travel.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tests::browser::{Browser, Page, STEP_WAIT};
use tests::neuron::{self, Neuron};
use tests::proxy::Proxy;
use tests::terminal::Terminal;

const ROOM: &str = "quay%20n%C3%B6rd";
/// Longer than the library's wait for an answer, after which it takes the network for gone.
const AWAY_AT_LEAST: Duration = Duration::from_secs(6);

/// Seconds for which a page's network goes away; `cargo xtask soak demo` sets 20.
fn away() -> Duration {
    let said = std::env::var("GANGLION_AWAY_S").ok().and_then(|text| text.parse().ok());
    said.map_or(AWAY_AT_LEAST, Duration::from_secs).max(AWAY_AT_LEAST)
}

/// A neuron, a browser, and a folder for screenshots.
struct Stage {
    // Closed before the neuron ends, so that its pages have nothing to report.
    browser: Browser,
    neuron: Neuron,
    shots: PathBuf,
}

impl Stage {
    fn new() -> Result<Stage> {
        Stage::with(&[])
    }

    fn with(settings: &[(&str, &str)]) -> Result<Stage> {
        let neuron = Neuron::start_with(settings, &[])?;
        Ok(Stage { browser: Browser::launch()?, neuron, shots: neuron::artifacts("demo")? })
    }

    /// A page that asks for the room under a name.
    fn come(&self, name: &str) -> Result<Page> {
        self.come_by(&self.neuron.url(), name)
    }

    fn come_by(&self, url: &str, name: &str) -> Result<Page> {
        self.browser.page(&format!("{url}/demo?room={ROOM}&name={name}&autojoin=1"))
    }

    /// The same, and is in.
    fn join(&self, name: &str) -> Result<Page> {
        let page = self.come(name)?;
        page.wait_for("demo.state().joined", STEP_WAIT)?;
        Ok(page)
    }

    fn shot(&self, page: &Page, name: &str) -> Result<()> {
        page.screenshot(&self.shots.join(name))
    }

    /// On a wide screen in the dark, and on a phone in the light; then as it was.
    fn shot_elsewhere(&self, page: &Page, name: &str) -> Result<()> {
        page.dark(true)?;
        self.shot(page, &format!("{name}-dark.png"))?;
        page.dark(false)?;
        page.resize(390, 844)?;
        self.shot(page, &format!("{name}-mobile.png"))?;
        page.resize(1280, 800)
    }

    /// What a person pastes into a terminal: a line that the page shows, with `ganglion` at hand.
    fn shell(&self, line: &str) -> Result<Command> {
        let program = neuron::program()?;
        let folder = program.parent().and_then(Path::to_str).context("the program's folder")?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {line}")]).env("PATH", format!("{folder}:{path}"));
        Ok(shell)
    }

    /// Runs such a line; answers the `v` that it printed.
    fn run(&self, line: &str) -> Result<Value> {
        let output = self.shell(line)?.output()?;
        if !output.status.success() {
            bail!("{line}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let printed: Value = serde_json::from_slice(&output.stdout)?;
        Ok(printed["v"].clone())
    }
}

/// Waits until a page is on the form again, and answers what it says there. Joining clears that.
fn is_told(page: &Page) -> Result<String> {
    let told = page.wait_for("!demo.state().joined && demo.state().problem", STEP_WAIT)?;
    assert_eq!(page.eval("document.querySelector('#join').hidden")?, false);
    assert_eq!(page.eval("demo.state().connection")?, "idle", "it would come back by itself");
    Ok(told.as_str().context("words")?.to_owned())
}

/// Who said what, as a page shows it.
fn lines(page: &Page) -> Result<Vec<(String, String)>> {
    let chat = page.eval("demo.state().chat")?;
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let lines = chat.as_array().context("a chat")?.iter();
    Ok(lines.map(|line| (word(&line["from"]), word(&line["text"]))).collect())
}

fn shown(page: &Page, id: &str) -> Result<String> {
    let text = page.eval(&format!("document.getElementById('{id}').textContent"))?;
    Ok(text.as_str().context("a text")?.to_owned())
}

fn fill(page: &Page, id: &str, typed: &str) -> Result<()> {
    page.eval(&format!("document.getElementById('{id}').select()"))?;
    page.type_text(typed)
}

#[track_caller]
fn no_errors(pages: &[&Page]) {
    for page in pages {
        let errors = page.errors();
        assert!(errors.is_empty(), "{errors:?}");
    }
}

#[test]
fn a_third_is_refused_by_a_rule_and_told_until_it_is_lifted() -> Result<()> {
    let stage = Stage::new()?;
    let (ann, bob) = (stage.join("Ann%20Lee")?, stage.join("Bob")?);
    ann.wait_for("demo.state().peers.length === 2", STEP_WAIT)?;
    ann.click("#door")?;
    for page in [&ann, &bob] {
        let members = page.wait_for("demo.state().members", STEP_WAIT)?;
        assert_eq!(members, json!(["Ann Lee", "Bob"]));
    }
    let cid = stage.come("Cid")?;
    let told = is_told(&cid)?;
    assert!(told.contains("closed to you"), "{told}");
    stage.shot(&ann, "closed.png")?;
    stage.shot_elsewhere(&ann, "closed")?;
    stage.shot(&cid, "refused.png")?;
    stage.shot_elsewhere(&cid, "refused")?;
    // Again, by the button: whoever is in sees nothing of it.
    cid.click("#join-button")?;
    assert_eq!(is_told(&cid)?, told);
    // Who is named comes and goes.
    bob.click("#leave")?;
    ann.wait_for("demo.state().peers.length === 1", STEP_WAIT)?;
    bob.click("#join-button")?;
    bob.wait_for("demo.state().joined && demo.state().members", STEP_WAIT)?;

    bob.click("#door")?;
    for page in [&ann, &bob] {
        page.wait_for("demo.state().members === null", STEP_WAIT)?;
    }
    cid.click("#join-button")?;
    cid.wait_for("demo.state().joined", STEP_WAIT)?;
    ann.wait_for("demo.state().peers.length === 3", STEP_WAIT)?;
    let events = ann.eval("demo.state().events")?;
    assert_eq!(events, json!(["Bob joined", "Bob left", "Bob joined", "Cid joined"]));
    no_errors(&[&ann, &bob, &cid]);
    Ok(())
}

#[test]
fn who_is_removed_is_told_and_does_not_come_back_by_itself() -> Result<()> {
    let stage = Stage::new()?;
    let (ann, bob) = (stage.join("Ann")?, stage.join("Bob")?);
    ann.wait_for("demo.state().peers.length === 2", STEP_WAIT)?;
    bob.click("#text")?;
    ann.click("#people [data-name=Bob] .quiet")?;
    let told = is_told(&bob)?;
    assert!(told.contains("removed from this room: someone"), "{told}");
    stage.shot(&bob, "removed.png")?;
    stage.shot_elsewhere(&bob, "removed")?;
    // What he was typing, and its Enter, do not lead back either.
    bob.press("Enter")?;
    // A newcomer takes far longer than a library that wants to come back.
    let cid = stage.join("Cid")?;
    ann.wait_for("demo.state().peers.length === 2", STEP_WAIT)?;
    let events = ann.eval("demo.state().events")?;
    assert_eq!(events, json!(["Bob joined", "Bob left", "Cid joined"]));
    assert_eq!(is_told(&bob)?, told);
    // He may come again, since nothing but a kick was against him.
    bob.click("#join-button")?;
    bob.wait_for("demo.state().joined", STEP_WAIT)?;
    ann.wait_for("demo.state().peers.length === 3", STEP_WAIT)?;

    // Out of a closed room nobody comes back.
    ann.click("#door")?;
    ann.wait_for("demo.state().members?.length === 3", STEP_WAIT)?;
    ann.click("#people [data-name=Bob] .quiet")?;
    is_told(&bob)?;
    let members =
        ann.wait_for("demo.state().members.length === 2 && demo.state().members", STEP_WAIT)?;
    assert_eq!(members, json!(["Ann", "Cid"]));
    bob.click("#join-button")?;
    assert!(is_told(&bob)?.contains("closed to you"));

    // A rule that is set elsewhere, and no longer names one who is there, is told as that.
    let line = shown(&ann, "who-command")?.replace("ganglion get /_subs", "ganglion put /_conf");
    let line = line.replacen(" \\", " '{\"k\":\"join\",\"v\":[\"Ann\"]}' \\", 1);
    stage.run(&line)?;
    let told = is_told(&cid)?;
    assert!(told.contains("by its rule"), "{told}");
    no_errors(&[&ann, &bob, &cid]);
    Ok(())
}

/// Its socket is closed where it does not hear of it, and it comes back with a session that was known.
#[test]
fn who_is_removed_while_the_network_is_away_is_told_when_it_is_back() -> Result<()> {
    let stage = Stage::new()?;
    let proxy = Proxy::before(&stage.neuron.address("http")?)?;
    let ann = stage.join("Ann")?;
    let bob = stage.come_by(&format!("http://{}", proxy.address), "Bob")?;
    bob.wait_for("demo.state().peers.length === 2", STEP_WAIT)?;
    proxy.set_away(true);
    bob.eval("demo.say('still here?')")?;
    bob.wait_for("demo.state().connection === 'reconnecting'", STEP_WAIT)?;
    ann.click("#people [data-name=Bob] .quiet")?;
    ann.wait_for("demo.state().peers.length === 1", STEP_WAIT)?;
    proxy.set_away(false);
    let told = is_told(&bob)?;
    assert!(told.contains("took your access back"), "{told}");
    bob.click("#join-button")?;
    bob.wait_for("demo.state().joined", STEP_WAIT)?;
    no_errors(&[&ann, &bob]);
    Ok(())
}

/// Nobody is told that the network is away: the page finds out, and so does nobody else.
#[test]
fn a_page_that_was_cut_off_comes_back_and_has_missed_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let proxy = Proxy::before(&stage.neuron.address("http")?)?;
    let ann = stage.join("Ann")?;
    let bob = stage.come_by(&format!("http://{}", proxy.address), "Bob")?;
    bob.wait_for("demo.state().peers.length === 2", STEP_WAIT)?;
    ann.eval("demo.say('before')")?;
    bob.wait_for("demo.state().chat.length === 1", STEP_WAIT)?;

    proxy.set_away(true);
    let begun = Instant::now();
    let say = |from: usize, to: usize| {
        ann.eval(&format!("for (let n = {from}; n <= {to}; n++) demo.say(`line ${{n}}`)"))
    };
    say(1, 25)?;
    for typed in ["typed while away", "and once more"] {
        bob.click("#text")?;
        bob.type_text(typed)?;
        bob.press("Enter")?;
    }
    bob.wait_for("demo.state().connection === 'reconnecting'", STEP_WAIT)?;
    assert_eq!(bob.eval("document.querySelector('#status').textContent")?, "Reconnecting…");
    stage.shot(&bob, "away.png")?;
    stage.shot_elsewhere(&bob, "away")?;
    say(26, 50)?;
    ann.wait_for("demo.state().chat.every((line) => !line.pending)", STEP_WAIT)?;
    assert_eq!(lines(&ann)?.len(), 51, "nothing has come from who is away");
    // This long it is away, however fast the steps before were.
    std::thread::sleep(away().saturating_sub(begun.elapsed()));
    proxy.set_away(false);
    println!("away for {:?}", begun.elapsed());

    for page in [&ann, &bob] {
        let all =
            "demo.state().chat.length >= 53 && demo.state().chat.every((line) => !line.pending)";
        page.wait_for(all, STEP_WAIT)?;
    }
    assert_eq!(bob.eval("document.querySelector('#status').textContent")?, "Connected");
    // Once more each way: what came twice or late would stand before these.
    bob.eval("demo.say('here again')")?;
    ann.wait_for("demo.state().chat.at(-1).text === 'here again'", STEP_WAIT)?;
    ann.eval("demo.say('welcome back')")?;
    bob.wait_for("demo.state().chat.at(-1).text === 'welcome back'", STEP_WAIT)?;
    let mut expected = vec![("Ann".to_owned(), "before".to_owned())];
    expected.extend((1..=50).map(|n| ("Ann".to_owned(), format!("line {n}"))));
    expected.extend(
        [("Bob", "typed while away"), ("Bob", "and once more"), ("Bob", "here again")]
            .map(|(from, text)| (from.to_owned(), text.to_owned())),
    );
    expected.push(("Ann".to_owned(), "welcome back".to_owned()));
    assert_eq!(lines(&ann)?, expected);
    assert_eq!(lines(&bob)?, expected);
    // In the order in which it is read, too.
    let rows = bob.eval("[...document.querySelectorAll('#chat li:not(.event)')].map((row) => row.lastChild.textContent)")?;
    let texts: Vec<_> = expected.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(rows, json!(texts));
    let events = bob.eval("demo.state().events")?;
    assert_eq!(events, json!(["You were cut off and are back. Nothing was missed."]));
    assert_eq!(stage.neuron.metric("signal_resumed_total")?, 1);
    bob.eval("document.querySelector('#chat .event').scrollIntoView({ block: 'center' })")?;
    stage.shot(&bob, "back.png")?;
    no_errors(&[&ann, &bob]);
    Ok(())
}

/// The library alone: what it was refused to show it does not come back with, which would end the room.
#[test]
fn what_was_not_taken_is_not_shown_after_an_outage() -> Result<()> {
    let stage = Stage::new()?;
    let secret = stage.neuron.account("elena")?;
    let (url, user) = (stage.neuron.url(), format!("elena:{secret}"));
    tests::curl::json("PUT", &url, "/_ns/my/path", &user, None)?;
    let token = tests::curl::json("PUT", &url, "/_token/my/path?k=eve&expire=600", &user, None)?;
    let proxy = Proxy::before(&stage.neuron.address("http")?)?;
    let page = stage.come_by(&format!("http://{}", proxy.address), "Ann")?;
    page.wait_for("demo.state().joined", STEP_WAIT)?;
    let options = json!({
        "url": format!("ws://{}/ws", proxy.address),
        "token": token["v"],
        "data": "taken",
    });
    page.eval(&format!(
        "import('/demo/ganglion.js').then(({{ connect }}) => void (window.eve = connect({options})))"
    ))?;
    page.wait_for("eve.state === 'open'", STEP_WAIT)?;
    // Each is refused while another is what was asked for last.
    let refused = page.eval(
        "Promise.allSettled(['x', 'y'].map((letter) => eve.show(letter.repeat(5_000))))
            .then((shown) => shown.map(({ reason }) => reason?.code))",
    )?;
    assert_eq!(refused, json!(["too_large", "too_large"]));
    proxy.set_away(true);
    proxy.cut();
    page.wait_for("eve.state === 'reconnecting'", STEP_WAIT)?;
    proxy.set_away(false);
    page.wait_for("eve.state === 'open'", STEP_WAIT)?;
    assert_eq!(page.eval("eve.dataOf('eve')")?, "taken");
    page.eval("eve.show('anew')")?;
    let row = tests::curl::json("GET", &url, "/_subs/my/path?k=eve", &user, None)?;
    assert_eq!(row["v"]["meta"], "anew");
    no_errors(&[&page]);
    Ok(())
}

#[test]
fn a_page_says_when_something_may_be_missing() -> Result<()> {
    let stage = Stage::with(&[("GANGLION_SIGNAL__RESUME_MESSAGES", "10")])?;
    let proxy = Proxy::before(&stage.neuron.address("http")?)?;
    let ann = stage.join("Ann")?;
    let bob = stage.come_by(&format!("http://{}", proxy.address), "Bob")?;
    bob.wait_for("demo.state().peers.length === 2", STEP_WAIT)?;
    proxy.set_away(true);
    proxy.cut();
    bob.wait_for("demo.state().connection === 'reconnecting'", STEP_WAIT)?;
    ann.eval("for (let n = 1; n <= 50; n++) demo.say(`line ${n}`)")?;
    ann.wait_for("demo.state().chat.every((line) => !line.pending)", STEP_WAIT)?;
    proxy.set_away(false);
    bob.wait_for("demo.state().chat.at(-1)?.text === 'line 50'", STEP_WAIT)?;
    let events = bob.eval("demo.state().events")?;
    let told = "You were cut off and are back. Something that was said may be missing here.";
    assert!(events.as_array().is_some_and(|events| events.contains(&json!(told))), "{events}");
    let texts: Vec<_> = lines(&bob)?.into_iter().map(|(_, text)| text).collect();
    let last: Vec<_> = (51 - texts.len()..=50).map(|n| format!("line {n}")).collect();
    assert_eq!(texts, last, "what is known still came, in order");
    bob.eval("document.querySelector('#chat .event').scrollIntoView({ block: 'center' })")?;
    stage.shot(&bob, "gap.png")
}

#[test]
fn a_value_put_in_a_terminal_moves_on_the_page() -> Result<()> {
    let stage = Stage::new()?;
    let (ann, bob) = (stage.join("Ann")?, stage.join("Bob")?);
    ann.click("#tab-data")?;
    stage.shot(&ann, "data-empty.png")?;
    // The line that the page shows, as a person would paste it.
    let put = |key: &str, typed: &str| {
        fill(&ann, "data-key", key)?;
        fill(&ann, "data-value", typed)?;
        stage.run(&shown(&ann, "put-command")?)
    };
    let is = |key: &str, shown: &str| {
        let row = format!("demo.state().data.find((row) => row.key === '{key}')");
        format!("{row}?.shown === '{shown}' && {row}.changed && {row}")
    };
    let first = put("speed", "12")?;
    assert!(first.is_object() || first.is_number(), "{first}");
    ann.wait_for(&is("speed", "12"), STEP_WAIT)?;
    put("crew", "Ann's \"old\" mates")?;
    put("berth 10", "[1, {\"free\": true}]")?;
    put("berth 9", "full")?;
    ann.wait_for("demo.state().data.length === 4", STEP_WAIT)?;
    ann.wait_for("demo.state().data.every((row) => !row.changed)", STEP_WAIT)?;

    // Each change moves: the new value comes in where the old one goes out.
    put("speed", "13.5")?;
    let moving = "document.querySelector('#data .changed .now')?.getAnimations().length
        && document.querySelector('#data .changed .was')?.textContent === '12'
        && [...document.querySelectorAll('#data .changed')].map((row) => row.dataset.key)";
    assert_eq!(ann.wait_for(moving, STEP_WAIT)?, json!(["speed"]));
    assert_eq!(ann.eval("document.querySelector('#data-told').textContent")?, "speed is 13.5");
    stage.shot(&ann, "data.png")?;
    put("speed", "14")?;
    ann.wait_for(&is("speed", "14"), STEP_WAIT)?;
    stage.shot_elsewhere(&ann, "data")?;
    ann.resize(844, 390)?;
    stage.shot(&ann, "data-sideways.png")?;
    ann.resize(1280, 800)?;
    ann.wait_for("!document.querySelector('#data .changed, #data .was')", STEP_WAIT)?;
    let keys = ann.eval("demo.state().data.map((row) => row.key)")?;
    assert_eq!(keys, json!(["berth 9", "berth 10", "crew", "speed"]), "in order");
    // Who looks elsewhere sees that there is something new.
    bob.wait_for("!document.querySelector('#tab-data .news').hidden", STEP_WAIT)?;

    // The page's own, by click and keyboard, seen by `ganglion get` and by the other page.
    ann.click("#data [data-key=speed] .entry")?;
    assert_eq!(ann.eval("document.activeElement.id")?, "data-value");
    ann.type_text("{\"knots\": 15}")?;
    ann.press("Enter")?;
    ann.wait_for(&is("speed", "{\"knots\":15}"), STEP_WAIT)?;
    let get = shown(&ann, "get-command")?;
    let speed = stage.run(&get)?;
    assert_eq!(speed["knots"], 15, "{speed}");
    let crew = get.replace("k=speed", "k=crew");
    assert_eq!(stage.run(&crew)?, "Ann's \"old\" mates");
    bob.eval("document.querySelector('#tab-chat').focus()")?;
    bob.press("ArrowRight")?;
    assert_eq!(bob.eval("document.activeElement.id")?, "tab-data");
    bob.wait_for("demo.state().data.at(-1).shown === '{\"knots\":15}'", STEP_WAIT)?;
    assert_eq!(bob.eval("document.querySelector('#tab-data .news').hidden")?, true);

    bob.click("#data [data-key=crew] .quiet")?;
    for page in [&ann, &bob] {
        page.wait_for("demo.state().data.length === 3", STEP_WAIT)?;
    }
    assert!(stage.run(&crew).is_err(), "it is gone");
    no_errors(&[&ann, &bob]);
    Ok(())
}

#[test]
fn a_terminal_and_a_page_talk_with_each_other() -> Result<()> {
    let stage = Stage::new()?;
    let ann = stage.join("Ann")?;
    ann.click("#tab-terminal")?;
    stage.shot(&ann, "terminal.png")?;
    stage.shot_elsewhere(&ann, "terminal")?;
    let mut terminal = Terminal::start(&mut stage.shell(&shown(&ann, "chat-command")?)?)?;
    terminal.shows("* terminal in /demo/quay%20n%C3%B6rd: Ann, terminal")?;
    ann.wait_for("demo.state().peers.includes('terminal')", STEP_WAIT)?;
    let who = stage.run(&shown(&ann, "who-command")?)?;
    assert_eq!(who, json!(["Ann", "terminal"]));
    terminal.types("hello, pägé")?;
    ann.wait_for("demo.state().chat.at(-1)?.text === 'hello, pägé'", STEP_WAIT)?;
    assert_eq!(ann.eval("document.querySelector('#tab-chat .news').hidden")?, false);
    ann.click("#tab-chat")?;
    ann.click("#text")?;
    ann.type_text("hello, terminal")?;
    ann.press("Enter")?;
    terminal.shows("Ann: hello, terminal")?;
    stage.shot(&ann, "terminal-chat.png")?;
    // It is removed as anybody is.
    ann.click("#people [data-name=terminal] .quiet")?;
    ann.wait_for("demo.state().peers.length === 1", STEP_WAIT)?;
    let (is_well, complaint) = terminal.ends_by_itself()?;
    assert!(!is_well && complaint.contains("kicked"), "{complaint}");
    no_errors(&[&ann]);
    Ok(())
}

/// What no neuron takes is not tried for ever, and what was typed around it is said once.
#[test]
fn a_line_that_is_too_long_is_told_and_costs_no_other() -> Result<()> {
    let stage = Stage::with(&[("GANGLION_SIGNAL__MESSAGE", "8KiB")])?;
    let (ann, bob) = (stage.join("Ann")?, stage.join("Bob")?);
    ann.eval("demo.say('before'); demo.say('x'.repeat(9000)); demo.say('after')")?;
    ann.wait_for(
        "demo.state().chat.length === 3 && demo.state().chat.every((line) => !line.pending)",
        STEP_WAIT,
    )?;
    ann.wait_for("demo.state().connection === 'open'", STEP_WAIT)?;
    bob.wait_for("demo.state().chat.at(-1)?.text === 'after'", STEP_WAIT)?;
    let heard: Vec<_> = lines(&bob)?.into_iter().map(|(_, text)| text).collect();
    assert_eq!(heard, ["before", "after"]);
    let failed = ann.eval("document.querySelectorAll('#chat .failed').length")?;
    assert_eq!(failed, 1);
    stage.shot(&ann, "too-long.png")
}
