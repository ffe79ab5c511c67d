//! curl, the foreign client of the HTTP API: every call of a test is one that a user could paste.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

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
