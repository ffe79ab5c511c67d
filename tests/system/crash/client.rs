//! A keep-alive HTTP client of one account, as small as 64 writers need it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use serde_json::Value;

/// How long an answer may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// One connection; an error ends it.
#[derive(Debug)]
pub(super) struct Client {
    stream: BufReader<TcpStream>,
    /// Headers that every request has.
    headers: String,
}

/// What came back.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Lines as they came, in lower case.
    pub(super) headers: Vec<String>,
    pub(super) body: Value,
}

impl Answer {
    /// `v`, when the call was carried out.
    pub(super) fn ok(&self) -> Option<&Value> {
        (self.body["s"] == "ok").then(|| &self.body["v"])
    }

    /// The word of a refusal.
    pub(super) fn word(&self) -> &str {
        if self.body["s"] == "error" { self.body["v"].as_str().unwrap_or("") } else { "" }
    }
}

/// Whether a call failed because the other side went away.
pub(super) fn is_cut(error: &anyhow::Error) -> bool {
    error.is::<std::io::Error>()
}

impl Client {
    /// `credentials` is `ident:secret`.
    pub(super) fn connect(address: &str, credentials: &str) -> Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let basic = base64::engine::general_purpose::STANDARD.encode(credentials);
        let headers = format!("host: {address}\r\nauthorization: Basic {basic}\r\n");
        Ok(Client { stream: BufReader::new(stream), headers })
    }

    pub(super) fn get(&mut self, target: &str) -> Result<Answer> {
        self.call("GET", target, "")
    }

    /// A call with a JSON body, or none where it is empty.
    pub(super) fn call(&mut self, method: &str, target: &str, body: &str) -> Result<Answer> {
        let request = format!(
            "{method} {target} HTTP/1.1\r\n{}content-length: {}\r\n\r\n{body}",
            self.headers,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Answer> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|text| text.parse().ok());
        let status = status.context("not HTTP")?;
        let (mut headers, mut length) = (Vec::new(), 0);
        loop {
            let line = self.line()?.to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(text) = line.strip_prefix("content-length:") {
                length = text.trim().parse()?;
            }
            headers.push(line);
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        let body = serde_json::from_slice(&body)
            .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&body)))?;
        Ok(Answer { status, headers, body })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        }
        Ok(line.trim_end().to_owned())
    }
}
