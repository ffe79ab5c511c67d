//! `ganglion chat`: a terminal in a room, beside pages and everybody else.
//!
//! What is typed goes to everybody, or after `@name ` to one; what is said is printed. It comes back
//! after a lost connection, as pages do, and says then whether something may have been missed.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::contexts::Context;
use super::exchange::exchange;
use super::link::{Backoff, Event, Link, PING_EVERY, UNREADABLE, is_final};

/// The operation and the member of what is typed, as the demo's page has them.
const OP: &str = "message";
const MEMBER: &str = "msg";
/// Lines that wait to be read from the terminal.
const LINES_MAX: usize = 16;
/// Lines that nobody has heard yet; while there are more, none is read.
const UNHEARD_MAX: usize = 256;
/// How long the last lines may take to be heard once there are no more.
const LAST_TIME: Duration = Duration::from_secs(10);
/// Lifetime of a token, in seconds: of connecting, not of being connected.
const TOKEN_S: u64 = 60;

/// This end, across the connections that follow one another.
struct Chat<'a> {
    context: &'a Context,
    path: String,
    name: String,
    session: Option<Value>,
    cursor: Option<Value>,
    next_id: u64,
    /// What was typed and is not known to be heard: ids and frames.
    unheard: VecDeque<(u64, Value)>,
    /// Whether more may be typed.
    has_input: bool,
}

/// Why one connection ended.
enum Ended {
    Lost,
    /// Everything that was typed was heard, and no more will be.
    Left,
}

/// Talks until standard input ends.
pub(super) async fn chat(context: &Context, path: &str, name: &str) -> Result<()> {
    let mut chat = Chat {
        context,
        path: format!("/{}", path.trim_start_matches('/')),
        name: name.to_owned(),
        session: None,
        cursor: None,
        next_id: 1,
        unheard: VecDeque::new(),
        has_input: true,
    };
    let mut lines = read_lines();
    let mut backoff = Backoff::default();
    loop {
        let hello = match chat.hello().await {
            Ok(hello) => hello,
            // The first time it may be a mistake; later on the neuron is away.
            Err(error) if chat.session.is_none() => return Err(error),
            Err(_) => {
                backoff.wait().await;
                continue;
            }
        };
        match Link::open(context, &hello).await {
            Ok(link) => match chat.talk(link, &mut lines, &mut backoff).await? {
                Ended::Left => return Ok(()),
                Ended::Lost => say("* the connection was lost; coming back"),
            },
            Err(error) if chat.session.is_none() => return Err(error),
            Err(_) => {}
        }
        backoff.wait().await;
    }
}

impl Chat<'_> {
    /// What to begin with: a new token, and where this end was before.
    async fn hello(&self) -> Result<Value> {
        let body = json!({ "k": self.name, "expire": TOKEN_S }).to_string();
        let path = format!("/_token{}", self.path);
        let (status, text) = exchange(self.context, "PUT", &path, Some(&body)).await?;
        let answer: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} answered {status}: {text}", self.context.url))?;
        match (answer["s"].as_str(), answer["v"].as_str()) {
            (Some("ok"), Some(token)) => {
                Ok(json!({ "token": token, "session": self.session, "cursor": self.cursor }))
            }
            (_, Some("no_namespace")) => bail!(
                "{0} is not in the account's namespace; `ganglion put /_ns{0}` makes it",
                self.path
            ),
            (_, why) => bail!("no token for {}: {}", self.path, why.unwrap_or("?")),
        }
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
        let deadline = tokio::time::sleep(LAST_TIME);
        let mut deadline = std::pin::pin!(deadline);
        loop {
            let is_over = is_in && !self.has_input;
            if is_over && self.unheard.is_empty() {
                link.leave().await;
                return Ok(Ended::Left);
            }
            let reads = is_in && self.has_input && self.unheard.len() < UNHEARD_MAX;
            tokio::select! {
                event = link.next() => match event {
                    Ok(Event::Frame(frame)) => {
                        if frame["t"] == "welcome" {
                            is_in = true;
                            backoff.is_well();
                            self.welcome(&frame);
                            for (_, frame) in &self.unheard {
                                if link.send(frame).await.is_err() {
                                    return Ok(Ended::Lost);
                                }
                            }
                        }
                        self.hear(&frame);
                    }
                    Ok(Event::Closed(code, reason)) if is_final(code) => {
                        bail!("{}: {reason} ({})", self.path, code.0);
                    }
                    Ok(Event::Closed(..)) | Err(_) => return Ok(Ended::Lost),
                },
                line = lines.recv(), if reads => match line {
                    Some(line) => {
                        let Some(frame) = self.typed(&line) else { continue };
                        if link.send(&frame).await.is_err() {
                            return Ok(Ended::Lost);
                        }
                    }
                    None => {
                        self.has_input = false;
                        deadline.as_mut().reset(tokio::time::Instant::now() + LAST_TIME);
                    }
                },
                _ = ping.tick() => {
                    if link.ping().await.is_err() {
                        return Ok(Ended::Lost);
                    }
                }
                () = &mut deadline, if is_over => bail!("the last lines were not heard"),
            }
        }
    }

    fn welcome(&mut self, frame: &Value) {
        let p = &frame["p"];
        if let Some(last) = p["last"].as_u64() {
            self.unheard.retain(|(id, _)| *id > last);
        }
        match (&self.session, p["resumed"].as_bool()) {
            (None, _) => {
                let users = p["users"].as_array().into_iter().flatten();
                let users: Vec<_> = users.filter_map(Value::as_str).collect();
                say(&format!("* {} in {}: {}", self.name, self.path, users.join(", ")));
            }
            (Some(_), Some(true)) => say("* back"),
            (Some(_), _) => say("* back; something may have been missed"),
        }
        self.session = Some(p["session"].clone());
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

    fn hear(&mut self, frame: &Value) {
        let (m, p) = (&frame["m"], &frame["p"]);
        let from = m["f"].as_str().and_then(|f| f.rsplit('/').next()).unwrap_or("?");
        match frame["t"].as_str() {
            Some("joined") => say(&format!("* {from} came")),
            Some("left") => say(&format!("* {from} left")),
            Some("u") if m["o"] == OP => {
                let text = p[MEMBER].as_str().map_or_else(|| p.to_string(), str::to_owned);
                let only = if m["t"].is_string() { " (to you)" } else { "" };
                say(&format!("{from}{only}: {text}"));
            }
            Some("r") => {
                self.unheard.retain(|(id, _)| m["id"] != *id);
                if p["s"] != "ok" {
                    say(&format!("* not said: {}", p["v"].as_str().unwrap_or("?")));
                }
            }
            Some(UNREADABLE) => say("* something that a terminal cannot show"),
            Some("e") => say(&format!("* {}", p["v"].as_str().unwrap_or("?"))),
            _ => {}
        }
        if m["c"].is_string() {
            self.cursor = Some(m["c"].clone());
        }
    }
}

/// Prints what a terminal can show: of what others wrote no control characters.
#[allow(clippy::print_stdout)]
fn say(text: &str) {
    let shown: String = text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect();
    println!("{shown}");
}

/// Lines of standard input, from a thread of its own: a terminal is not read otherwise.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
