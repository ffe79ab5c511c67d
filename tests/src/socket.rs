//! A signalling client written from `spec/xirsys.md` §1.7: a plain WebSocket that speaks frames.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tungstenite::error::Error;
use tungstenite::{Message, WebSocket};

/// How long a frame that must come may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long nothing must come for it to count as silence.
const SILENCE: Duration = Duration::from_millis(150);

/// One open socket.
#[derive(Debug)]
pub struct Client(WebSocket<TcpStream>);

impl Client {
    /// Connects to a URL such as `ws://127.0.0.1:4006/ws/v2/<token>`.
    pub fn connect(url: &str) -> Result<Client> {
        let authority = url.strip_prefix("ws://").and_then(|rest| rest.split('/').next());
        let stream = TcpStream::connect(authority.context("the URL is not ws://")?)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let (socket, _) = tungstenite::client(url, stream)
            .map_err(|error| anyhow::anyhow!("connecting to {url}: {error}"))?;
        Ok(Client(socket))
    }

    /// The next text frame, as JSON.
    pub fn frame(&mut self) -> Result<Value> {
        let text = self.next_text()?;
        serde_json::from_str(&text).with_context(|| format!("{text:?} is not JSON"))
    }

    /// The next text frame as it came.
    pub fn next_text(&mut self) -> Result<String> {
        self.0.get_ref().set_read_timeout(Some(DEADLINE))?;
        loop {
            match self.0.read()? {
                Message::Text(text) => return Ok(text.to_string()),
                Message::Close(close) => bail!("closed instead of a frame: {close:?}"),
                _ => {}
            }
        }
    }

    /// Asserts that nothing comes.
    pub fn hears_nothing(&mut self) -> Result<()> {
        self.0.get_ref().set_read_timeout(Some(SILENCE))?;
        match self.0.read() {
            Err(Error::Io(error))
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) =>
            {
                Ok(())
            }
            other => bail!("heard {other:?}"),
        }
    }

    /// The code with which the server closes; frames before it are passed over.
    pub fn close_code(&mut self) -> Result<u16> {
        self.0.get_ref().set_read_timeout(Some(DEADLINE))?;
        loop {
            match self.0.read()? {
                Message::Close(Some(close)) => return Ok(close.code.into()),
                Message::Close(None) => bail!("closed without a code"),
                _ => {}
            }
        }
    }

    pub fn send_text(&mut self, text: &str) -> Result<()> {
        Ok(self.0.send(Message::text(text))?)
    }

    /// Sends a user frame; `to` makes it direct.
    pub fn say(&mut self, op: &str, to: Option<&str>, payload: &Value) -> Result<()> {
        let mut meta = json!({ "f": "whatever the client likes", "o": op });
        if let Some(to) = to {
            meta["t"] = to.into();
        }
        self.send_text(&json!({ "t": "u", "m": meta, "p": payload }).to_string())
    }

    /// Closes in order.
    pub fn leave(mut self) -> Result<()> {
        self.0.close(None)?;
        loop {
            match self.0.read() {
                Ok(_) => {}
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
