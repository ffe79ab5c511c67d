//! A signalling client over TCP or a Unix socket: each text after four bytes of its length
//! (`docs/reference/signalling.md`).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// How long a frame that must come may take.
const DEADLINE: Duration = Duration::from_secs(10);

trait Stream: Read + Write + Send + std::fmt::Debug {}

impl<T: Read + Write + Send + std::fmt::Debug> Stream for T {}

/// One open connection.
#[derive(Debug)]
pub struct Client(Box<dyn Stream>);

impl Client {
    /// Connects to a place such as `127.0.0.1:4008` or `unix:/run/ganglion/signal.sock`.
    pub fn connect(place: &str) -> Result<Client> {
        let about = || format!("connecting to {place}");
        Ok(Client(match place.strip_prefix("unix:") {
            Some(path) => {
                let stream = UnixStream::connect(path).with_context(about)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                Box::new(stream)
            }
            None => {
                let stream = TcpStream::connect(place).with_context(about)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                Box::new(stream)
            }
        }))
    }

    /// The same, and says `hello`.
    pub fn greet(place: &str, hello: &Value) -> Result<Client> {
        let mut client = Client::connect(place)?;
        client.send(&json!({ "t": "hello", "p": hello }))?;
        Ok(client)
    }

    pub fn send(&mut self, frame: &Value) -> Result<()> {
        self.send_text(frame.to_string().as_bytes())
    }

    pub fn send_text(&mut self, text: &[u8]) -> Result<()> {
        let length = u32::try_from(text.len())?.to_be_bytes();
        Ok(self.0.write_all(&[&length, text].concat())?)
    }

    /// Bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.write_all(bytes)?)
    }

    /// The next text; empty for a sign of life.
    pub fn text(&mut self) -> Result<String> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        let mut text = vec![0; usize::try_from(u32::from_be_bytes(length))?];
        self.0.read_exact(&mut text)?;
        Ok(String::from_utf8(text)?)
    }

    /// The next frame that is not a sign of life.
    pub fn frame(&mut self) -> Result<Value> {
        loop {
            let text = self.text()?;
            if !text.is_empty() {
                return serde_json::from_str(&text).with_context(|| format!("{text:?}"));
            }
        }
    }

    /// The code of the frame that says goodbye, which is the last.
    pub fn close_code(&mut self) -> Result<u64> {
        loop {
            let frame = self.frame()?;
            if frame["t"] == "close" {
                let mut rest = Vec::new();
                self.0.read_to_end(&mut rest)?;
                anyhow::ensure!(rest.is_empty(), "something follows the last frame: {rest:?}");
                return frame["p"]["code"].as_u64().with_context(|| format!("{frame}"));
            }
        }
    }
}
