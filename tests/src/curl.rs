//! curl, the foreign client of the HTTP API: every call of a test is one that a user could paste.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::http::{self, Response};

/// Runs curl with arguments; answers what it printed.
pub fn run(arguments: &[&str]) -> Result<String> {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "30"])
        .args(arguments)
        .output()
        .context("running curl")?;
    if !output.status.success() {
        bail!("curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// One call of the API; answers its envelope.
pub fn json(
    method: &str,
    url: &str,
    path: &str,
    credentials: &str,
    body: Option<&Value>,
) -> Result<Value> {
    let url = format!("{url}{path}");
    let text = body.map(Value::to_string);
    let mut arguments = vec!["-X", method, "-u", credentials, "--globoff", &url];
    if let Some(text) = &text {
        arguments.extend(["-H", "content-type: application/json", "-d", text]);
    }
    let answer = run(&arguments)?;
    serde_json::from_str(&answer).with_context(|| format!("{method} {path} answered {answer:?}"))
}

/// One request, put together piece by piece and sent as it stands: paths and globs are left alone.
#[derive(Debug)]
pub struct Request {
    arguments: Vec<String>,
    body: Option<Vec<u8>>,
}

impl Request {
    pub fn new(method: &str, url: impl Into<String>) -> Request {
        let fixed = ["-X", method, "--path-as-is", "--globoff", "--include"];
        let mut arguments: Vec<String> = fixed.iter().map(|text| (*text).to_owned()).collect();
        arguments.push(url.into());
        Request { arguments, body: None }
    }

    /// Arguments of curl as they are.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Request {
        self.arguments.extend(arguments.iter().map(|text| (*text).to_owned()));
        self
    }

    /// `ident:secret`, in any form that the API takes.
    #[must_use]
    pub fn user(self, credentials: &str) -> Request {
        self.with(&["-u", credentials])
    }

    #[must_use]
    pub fn header(self, header: &str) -> Request {
        self.with(&["-H", header])
    }

    /// Sends from another address of this machine, so that what it does wrong is counted there.
    #[must_use]
    pub fn from_address(self, address: &str) -> Request {
        self.with(&["--interface", address])
    }

    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Request {
        self.body = Some(body.into());
        self.with(&["--data-binary", "@-"])
    }

    /// # Errors
    /// curl's, when there is no answer.
    pub fn send(self) -> Result<Response> {
        let mut child = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "30"])
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("running curl")?;
        if let (Some(mut stdin), Some(body)) = (child.stdin.take(), &self.body) {
            // A neuron that refuses a body stops reading it, and curl then stops reading this.
            drop(stdin.write_all(body));
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("curl {:?}: {}", self.arguments, String::from_utf8_lossy(&output.stderr));
        }
        parse(&String::from_utf8(output.stdout)?)
    }
}

/// What curl printed with `--include`.
fn parse(printed: &str) -> Result<Response> {
    let (head, body) = printed.split_once("\r\n\r\n").context("curl printed no headers")?;
    let mut lines = head.lines();
    let status = http::status(lines.next().unwrap_or_default())?;
    // Interim answers such as 100 come before the one that counts.
    if status < 200 {
        return parse(body);
    }
    Ok(Response {
        status,
        headers: lines.filter_map(http::header).collect(),
        body: body.to_owned(),
    })
}
