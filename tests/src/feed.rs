//! Streams of server-sent events as curl takes them.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::wait::PATIENCE;

/// A stream that curl holds open; dropping it ends curl.
#[derive(Debug)]
pub struct Feed {
    curl: Child,
    lines: Receiver<String>,
    /// Lines of the answer's head, in lower case.
    pub head: Vec<String>,
}

/// One event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    pub name: String,
    pub data: Value,
}

impl Feed {
    /// Asks for a URL with arguments of curl, and takes the head of the answer.
    pub fn open(url: &str, arguments: &[&str]) -> Result<Feed> {
        let mut curl = Command::new("curl")
            .args(["--silent", "--show-error", "--no-buffer", "--include", "--globoff", url])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("running curl")?;
        let printed = BufReader::new(curl.stdout.take().context("its output")?);
        let (to, lines) = channel();
        std::thread::spawn(move || {
            for line in printed.lines().map_while(Result::ok) {
                if to.send(line.trim_end().to_owned()).is_err() {
                    return;
                }
            }
        });
        let mut feed = Feed { curl, lines, head: Vec::new() };
        while let Some(line) = feed.line()?.filter(|line| !line.is_empty()) {
            feed.head.push(line.to_lowercase());
        }
        Ok(feed)
    }

    /// The next event; `None` at the end of the stream.
    ///
    /// # Errors
    /// Silence, and what is no event.
    pub fn event(&mut self) -> Result<Option<Event>> {
        let (mut name, mut data) = (String::new(), None);
        while let Some(line) = self.line()? {
            match line.split_once(':') {
                None if line.is_empty() => {
                    if let Some(data) = data.take() {
                        return Ok(Some(Event { name, data }));
                    }
                }
                Some(("", _) | ("retry", _)) => {}
                Some(("event", value)) => value.trim().clone_into(&mut name),
                Some(("data", value)) => data = Some(serde_json::from_str(value)?),
                _ => bail!("no line of an event: {line:?}"),
            }
        }
        Ok(None)
    }

    /// The next event, which is one of a name; its data.
    pub fn expect(&mut self, name: &str) -> Result<Value> {
        match self.event()? {
            Some(event) if event.name == name => Ok(event.data),
            other => bail!("{other:?} is no {name}"),
        }
    }

    /// All that comes until the end.
    pub fn rest(&mut self) -> Result<Vec<String>> {
        let mut rest = Vec::new();
        while let Some(line) = self.line()? {
            rest.push(line);
        }
        Ok(rest)
    }

    fn line(&self) -> Result<Option<String>> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("nothing came within {PATIENCE:?}"),
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }
}
