//! `ganglion chat`: a terminal in a room, beside pages and everybody else.
//!
//! What is typed goes to everybody, or after `@name ` to one; what is said is printed. It comes back
//! after a lost connection, as pages do, and says then whether something may have been missed.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::BufRead as _;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use wire::names::percent_decode;
use wire::ws::CloseCode;

use super::contexts::Context;
use super::exchange::exchange;
use super::link::{Backoff, Event, Link, OPEN_TIME, PASSING, PING_EVERY, UNREADABLE, is_final};
use super::print::print;

/// The operation and the member of what is typed, as the demo's page has them.
const OP: &str = "message";
const MEMBER: &str = "msg";
/// Lines that wait to be read from the terminal.
const LINES_MAX: usize = 16;
/// Lines that nobody has heard yet; while there are more, none is read.
const UNHEARD_MAX: usize = 256;
/// How long the last lines may take to be heard once there are no more.
const LAST_TIME: Duration = Duration::from_secs(10);
/// What is complained of when they were not.
const TOO_LATE: &str = "the last lines were not heard";
/// Lifetime of a token, in seconds: of connecting, not of being connected.
const TOKEN_S: u64 = 60;

/// How the next connection begins: who this end is, and where it was before.
#[derive(Clone, Debug)]
struct Hello {
    path: String,
    /// As it was asked for; once it is welcomed, as it is.
    name: String,
    session: Option<Value>,
    cursor: Option<Value>,
}

/// This end, across the connections that follow one another.
struct Chat {
    hello: Hello,
    next_id: u64,
    /// What was typed and is not known to be heard: ids and frames.
    unheard: VecDeque<(u64, Value)>,
    /// When the last lines have to be heard, once no more can be typed.
    deadline: Option<Instant>,
}

/// Why one connection ended.
enum Ended {
    Lost,
    /// Everything that was typed was heard, and no more will be.
    Left,
}

/// Talks until standard input ends.
pub(super) async fn chat(context: &Context, path: &str, name: &str) -> Result<()> {
    let mut chat = Chat::new(path, name);
    let (mut lines, mut backoff) = (read_lines(), Backoff::default());
    loop {
        let opening = chat.hello.clone().open(context);
        let Some(opened) = chat.while_away(&mut lines, opening).await? else { return Ok(()) };
        match opened {
            Ok(link) => match chat.talk(link, &mut lines, &mut backoff).await? {
                Ended::Left => return Ok(()),
                Ended::Lost => say("* the connection was lost; coming back"),
            },
            // The first time it may be a mistake; later on the neuron is away, unless it says no.
            Err(NotOpened { error, is_passing }) if chat.hello.session.is_none() || !is_passing => {
                return Err(error);
            }
            Err(_) => {}
        }
        if chat.while_away(&mut lines, backoff.wait()).await?.is_none() {
            return Ok(());
        }
    }
}

/// Why there is no connection, and whether there may be one later.
struct NotOpened {
    error: anyhow::Error,
    is_passing: bool,
}

impl NotOpened {
    fn passing(error: anyhow::Error) -> NotOpened {
        NotOpened { error, is_passing: true }
    }
}

impl Hello {
    /// Connects with a new token, and says where this end was before.
    async fn open(self, context: &Context) -> Result<Link, NotOpened> {
        let token = self.token(context).await?;
        let hello = json!({ "token": token, "session": self.session, "cursor": self.cursor });
        Link::open(context, &hello).await.map_err(NotOpened::passing)
    }

    async fn token(&self, context: &Context) -> Result<String, NotOpened> {
        let body = json!({ "k": self.name, "expire": TOKEN_S }).to_string();
        let path = format!("/_token{}", self.path);
        let asking = exchange(context, "PUT", &path, Some(&body));
        let asked = tokio::time::timeout(OPEN_TIME, asking).await;
        let asked = asked.with_context(|| format!("{}: no answer", context.url));
        let (status, text) = asked.flatten().map_err(NotOpened::passing)?;
        // What is no answer of a neuron is one of something before it, and passes.
        let answer: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} answered {status}: {text}", context.url))
            .map_err(NotOpened::passing)?;
        let why = match (answer["s"].as_str(), answer["v"].as_str()) {
            (Some("ok"), Some(token)) => return Ok(token.to_owned()),
            (Some("error"), Some(why)) => why,
            _ => {
                let error = anyhow!("{} answered {status}: {text}", context.url);
                return Err(NotOpened::passing(error));
            }
        };
        let error = match why {
            "no_namespace" => anyhow!(
                "{0} is not in the account's namespace; `ganglion put /_ns{0}` makes it",
                self.path
            ),
            _ => anyhow!("no token for {}: {why}", self.path),
        };
        Err(NotOpened { error, is_passing: PASSING.contains(&why) })
    }
}

impl Chat {
    fn new(path: &str, name: &str) -> Chat {
        let hello = Hello {
            path: format!("/{}", path.trim_start_matches('/')),
            name: name.to_owned(),
            session: None,
            cursor: None,
        };
        Chat { hello, next_id: 1, unheard: VecDeque::new(), deadline: None }
    }

    /// Whether a line may be read: not before the first welcome, since the path may be a mistake.
    fn reads(&self) -> bool {
        let has_input = self.deadline.is_none();
        self.hello.session.is_some() && has_input && self.unheard.len() < UNHEARD_MAX
    }

    /// Whether everything that was typed was heard, and no more will be.
    fn is_over(&self) -> bool {
        self.deadline.is_some() && self.unheard.is_empty()
    }

    /// Takes what is typed until something else is done; answers what that comes to, and nothing when
    /// there is nothing left to come back for.
    async fn while_away<T>(
        &mut self,
        lines: &mut mpsc::Receiver<String>,
        work: impl Future<Output = T>,
    ) -> Result<Option<T>> {
        let mut work = std::pin::pin!(work);
        while !self.is_over() {
            tokio::select! {
                done = &mut work => return Ok(Some(done)),
                line = lines.recv(), if self.reads() => {
                    self.take(line);
                }
                () = until(self.deadline) => bail!(TOO_LATE),
            }
        }
        Ok(None)
    }

    /// Talks over one connection until that ends.
    async fn talk(
        &mut self,
        mut link: Link,
        lines: &mut mpsc::Receiver<String>,
        backoff: &mut Backoff,
    ) -> Result<Ended> {
        let mut ping = tokio::time::interval(PING_EVERY);
        let mut is_in = false;
        loop {
            if self.is_over() {
                link.leave().await;
                return Ok(Ended::Left);
            }
            tokio::select! {
                event = link.next() => match event {
                    Ok(Event::Frame(frame)) => {
                        if frame["t"] == "welcome" {
                            is_in = true;
                            backoff.is_well();
                            for line in self.welcome(&frame) {
                                say(&line);
                            }
                            for (_, frame) in &self.unheard {
                                link.send(frame)?;
                            }
                        }
                        if let Some(line) = self.hear(&frame) {
                            say(&line);
                        }
                    }
                    Ok(Event::Closed(CloseCode::TOO_LONG, _)) if self.drop_longest() => {
                        say("* not said, it is too long");
                        return Ok(Ended::Lost);
                    }
                    Ok(Event::Closed(code, reason)) if is_final(code) => {
                        bail!("{}: {reason} ({})", self.hello.path, code.0);
                    }
                    Ok(Event::Closed(..)) | Err(_) => return Ok(Ended::Lost),
                },
                line = lines.recv(), if self.reads() => {
                    if let Some(frame) = self.take(line).filter(|_| is_in) {
                        link.send(&frame)?;
                    }
                }
                _ = ping.tick() => {
                    if link.ping().is_err() {
                        return Ok(Ended::Lost);
                    }
                }
                () = until(self.deadline) => bail!(TOO_LATE),
            }
        }
    }

    /// Begins, or goes on where it was; answers what to show.
    fn welcome(&mut self, frame: &Value) -> Vec<String> {
        let p = &frame["p"];
        if let Some(name) = p["name"].as_str() {
            // Of a name that was made up, the next token has to be too.
            self.hello.name = shown(name).into_owned();
        }
        let mut lines = vec![match (&self.hello.session, p["resumed"].as_bool()) {
            (None, _) => {
                let users = p["users"].as_array().into_iter().flatten();
                let users: Vec<_> = users.filter_map(Value::as_str).map(shown).collect();
                format!("* {} in {}: {}", self.hello.name, self.hello.path, users.join(", "))
            }
            (Some(_), Some(true)) => "* back".to_owned(),
            (Some(_), _) => "* back; something may have been missed".to_owned(),
        }];
        // They come before the last one that was heard, and were not heard.
        for refused in p["refused"].as_array().into_iter().flatten() {
            lines.extend(self.refused(&refused[0], why(&json!({ "v": refused[1] }))));
        }
        if let Some(last) = p["last"].as_u64() {
            self.unheard.retain(|(id, _)| *id > last);
        }
        self.hello.session = Some(p["session"].clone());
        lines
    }

    /// What was typed, or that no more will be; answers what says it.
    fn take(&mut self, line: Option<String>) -> Option<Value> {
        if line.is_none() {
            self.deadline = Some(Instant::now() + LAST_TIME);
        }
        self.typed(&line?)
    }

    /// What a line says, and to whom.
    fn typed(&mut self, line: &str) -> Option<Value> {
        let line = line.trim();
        let (to, text) = match line.strip_prefix('@').and_then(|rest| rest.split_once(' ')) {
            Some((to, text)) => (Some(to), text.trim_start()),
            None => (None, line),
        };
        if text.is_empty() {
            return None;
        }
        let id = self.next_id;
        self.next_id += 1;
        let mut meta = json!({ "id": id, "o": OP });
        if let Some(to) = to {
            meta["t"] = to.into();
        }
        let frame = json!({ "t": "u", "m": meta, "p": { MEMBER: text } });
        self.unheard.push_back((id, frame.clone()));
        Some(frame)
    }

    /// What a frame comes to; answers what to show.
    fn hear(&mut self, frame: &Value) -> Option<String> {
        let (m, p) = (&frame["m"], &frame["p"]);
        if m["c"].is_string() {
            self.hello.cursor = Some(m["c"].clone());
        }
        let from = m["f"].as_str().and_then(|f| f.rsplit('/').next()).map_or("?".into(), shown);
        match frame["t"].as_str()? {
            "joined" => Some(format!("* {from} came")),
            "left" => Some(format!("* {from} left")),
            "u" if m["o"] == OP => {
                let text = text(p);
                let only = if m["t"].is_string() { " (to you)" } else { "" };
                Some(format!("{from}{only}: {text}"))
            }
            "r" if p["s"] == "ok" => {
                self.unheard.retain(|(id, _)| m["id"] != *id);
                None
            }
            "r" => self.refused(&m["id"], why(p)),
            UNREADABLE => Some("* something that a terminal cannot show".to_owned()),
            "e" => Some(format!("* {}", why(p))),
            _ => None,
        }
    }

    /// Nobody will hear the line of this id; answers what to show of it.
    fn refused(&mut self, id: &Value, why: &str) -> Option<String> {
        let at = self.unheard.iter().position(|(unheard, _)| *id == *unheard)?;
        let (_, frame) = self.unheard.remove(at)?;
        Some(format!("* not said, {why}: {}", text(&frame["p"])))
    }

    /// Gives the longest line up; answers whether there was one.
    fn drop_longest(&mut self) -> bool {
        let lengths = self.unheard.iter().map(|(_, frame)| frame.to_string().len());
        let longest = lengths.enumerate().max_by_key(|(_, length)| *length);
        longest.is_some_and(|(at, _)| self.unheard.remove(at).is_some())
    }
}

/// Waits until then, and without a deadline for ever.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// What somebody says.
fn text(payload: &Value) -> String {
    payload[MEMBER].as_str().map_or_else(|| payload.to_string(), str::to_owned)
}

/// Why something was refused. A word alone is one of a line that was said.
fn why(refusal: &Value) -> &str {
    match (refusal["detail"].as_str(), refusal["v"].as_str()) {
        (Some(detail), _) => detail,
        (None, Some("not_allowed")) => "that is not allowed here",
        (None, Some("not_found")) => "nobody of that name is here",
        (None, code) => code.unwrap_or("?"),
    }
}

/// A name as people write it, of what stands for it in frames.
fn shown(name: &str) -> Cow<'_, str> {
    percent_decode(name, false).map_or(Cow::Borrowed(name), Cow::Owned)
}

/// Prints what a terminal can show: of what others wrote no control characters.
fn say(text: &str) {
    let shown: String = text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect();
    print(&shown);
}

/// Lines of standard input, from a thread of its own: a terminal is not read otherwise.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        let mut line = Vec::new();
        while input.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            // What is no text is shown as such, and the lines after it are said too.
            let text = String::from_utf8_lossy(&line);
            let text = text.strip_suffix('\n').unwrap_or(&text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            if sender.blocking_send(text.to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody in a room who has typed lines that nobody has heard yet.
    fn talker(lines: &[&str]) -> Chat {
        let mut chat = Chat::new("my/path", "term");
        chat.welcome(&json!({ "t": "welcome", "m": {}, "p": { "name": "term", "session": "s" } }));
        for line in lines {
            chat.typed(line).expect("it says something");
        }
        chat
    }

    fn unheard(chat: &Chat) -> Vec<u64> {
        chat.unheard.iter().map(|(id, _)| *id).collect()
    }

    #[test]
    fn what_was_refused_while_away_is_told_and_not_taken_for_heard() {
        let mut chat = talker(&["one", "@bob two", "three", "four"]);
        let refused = json!([[2, "not_found"], ["2", "bad_request"], [3, "not_allowed"], [9, "x"]]);
        let p = json!({ "name": "term", "session": "s", "resumed": true, "last": 1,
            "refused": refused });
        assert_eq!(
            chat.welcome(&json!({ "t": "welcome", "p": p })),
            [
                "* back",
                "* not said, nobody of that name is here: two",
                "* not said, that is not allowed here: three",
            ]
        );
        assert_eq!(unheard(&chat), [4]);
        // All of them before the last one that was heard.
        let mut chat = talker(&["one", "two", "three"]);
        let p = json!({ "session": "s", "last": 3, "refused": [[2, "internal"]] });
        let lines = chat.welcome(&json!({ "t": "welcome", "p": p }));
        assert_eq!(lines[1..], ["* not said, internal: two"]);
        assert_eq!(unheard(&chat), [0_u64; 0]);
    }

    #[test]
    fn a_refusal_tells_what_was_not_said_and_why() {
        let mut chat = talker(&["@bob hello bob", "hi"]);
        let why = "nobody of that name is here";
        let p = json!({ "v": "not_found", "s": "error", "detail": why });
        let reply = json!({ "t": "r", "m": { "id": 1 }, "p": p });
        let expected = format!("* not said, {why}: hello bob");
        assert_eq!(chat.hear(&reply), Some(expected));
        assert_eq!(chat.hear(&reply), None, "once");
        let heard = json!({ "t": "r", "m": { "id": 2 }, "p": { "v": null, "s": "ok" } });
        assert_eq!(chat.hear(&heard), None);
        assert_eq!(unheard(&chat), [0_u64; 0]);
    }

    #[test]
    fn the_longest_line_is_given_up_and_no_other() {
        let mut chat = talker(&["one", "a much longer one", "two"]);
        assert!(chat.drop_longest());
        assert_eq!(unheard(&chat), [1, 3]);
        assert!(chat.drop_longest() && chat.drop_longest() && !chat.drop_longest());
    }

    #[test]
    fn names_are_shown_as_people_write_them() {
        let mut chat = Chat::new("/my/path", "");
        let users = ["a%20b", "zo%C3%AB", "x%FF", "made-up"];
        let p = json!({ "name": "made-up", "session": "s", "users": users });
        let welcome = chat.welcome(&json!({ "t": "welcome", "p": p }));
        assert_eq!(welcome, ["* made-up in /my/path: a b, zoë, x%FF, made-up"]);
        assert_eq!(chat.hello.name, "made-up", "with which it comes back");
        let joined = json!({ "t": "joined", "m": { "f": "/my/path/a%2Fb%20c" }, "p": null });
        assert_eq!(chat.hear(&joined).as_deref(), Some("* a/b c came"));
        let said = json!({ "t": "u", "m": { "f": "/my/path/a%20b", "o": OP, "t": "made-up" },
            "p": { "msg": "100%20" } });
        assert_eq!(chat.hear(&said).as_deref(), Some("a b (to you): 100%20"));
        let frame = chat.typed("@a%20b psst").expect("it says something");
        assert_eq!((&frame["m"]["t"], &frame["p"]["msg"]), (&json!("a%20b"), &json!("psst")));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_lines_are_not_waited_for_for_ever() {
        let (sender, mut lines) = mpsc::channel(LINES_MAX);
        let mut chat = talker(&[]);
        sender.send("typed while away".to_owned()).await.expect("there is room");
        drop(sender);
        let begun = Instant::now();
        // As it waits between one attempt and the next, again and again.
        let error = loop {
            let wait = tokio::time::sleep(Duration::from_secs(3));
            match chat.while_away(&mut lines, wait).await {
                Ok(ended) => assert!(ended.is_some(), "there is a line to be heard"),
                Err(error) => break error.to_string(),
            }
        };
        assert_eq!((error.as_str(), begun.elapsed()), (TOO_LATE, LAST_TIME));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_comes_back_for_nothing_or_reads_before_he_was_welcome() {
        let (sender, mut lines) = mpsc::channel::<String>(LINES_MAX);
        drop(sender);
        let wait = || tokio::time::sleep(Duration::from_secs(60));
        let mut chat = Chat::new("/my/path", "term");
        assert!(chat.while_away(&mut lines, wait()).await.expect("in time").is_some());
        let mut chat = talker(&[]);
        assert!(chat.while_away(&mut lines, wait()).await.expect("in time").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_neuron_that_answers_nothing_is_not_waited_for() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("bound");
        let context =
            Context { url: format!("http://{address}"), user: "elena:secret".to_owned(), ca: None };
        let opened = Chat::new("/my/path", "term").hello.open(&context).await;
        let error = opened.err().expect("nobody answers").error.to_string();
        assert!(error.contains("no answer"), "{error}");
    }
}
