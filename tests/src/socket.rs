//! A signalling client written from `spec/xirsys.md` §1.7: a plain WebSocket that speaks frames,
//! over TCP or over TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use tungstenite::error::Error;
use tungstenite::{Message, WebSocket};

/// How long a frame that must come may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// A transport; one that says nothing for [`DEADLINE`] fails.
trait Stream: Read + Write + Send + std::fmt::Debug {}

impl<T: Read + Write + Send + std::fmt::Debug> Stream for T {}

/// One open socket.
#[derive(Debug)]
pub struct Client {
    socket: WebSocket<Box<dyn Stream>>,
    /// Number of the last ping.
    pings: u64,
}

impl Client {
    /// Connects to a URL such as `ws://127.0.0.1:4006/ws/v2/<token>`.
    pub fn connect(url: &str) -> Result<Client> {
        Client::over(Box::new(tcp(url)?), url)
    }

    /// Connects to `wss://localhost:…`, trusting the certificate of a PEM file.
    pub fn connect_tls(url: &str, certificate: &Path) -> Result<Client> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificate)?)?;
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("localhost")?;
        let tls = ClientConnection::new(Arc::new(config), name)?;
        Client::over(Box::new(StreamOwned::new(tls, tcp(url)?)), url)
    }

    fn over(stream: Box<dyn Stream>, url: &str) -> Result<Client> {
        let (socket, _) = tungstenite::client(url, stream)
            .map_err(|error| anyhow::anyhow!("connecting to {url}: {error}"))?;
        Ok(Client { socket, pings: 0 })
    }

    /// Connects to a base URL such as `ws://127.0.0.1:4006/ws` as a v4 client that says `hello`.
    pub fn greet(base: &str, hello: &Value) -> Result<Client> {
        let mut client = Client::connect(&format!("{base}/v4"))?;
        client.send_text(&json!({ "t": "hello", "p": hello }).to_string())?;
        Ok(client)
    }

    /// Asks, as v4 clients do, and answers with the reply; frames before it are passed over.
    pub fn ask(&mut self, kind: &str, id: &Value, payload: &Value) -> Result<Value> {
        self.send_text(&json!({ "t": kind, "m": { "id": id }, "p": payload }).to_string())?;
        self.reply(id)
    }

    /// The reply to a frame that had an id; frames before it are passed over.
    pub fn reply(&mut self, id: &Value) -> Result<Value> {
        loop {
            let frame = self.frame()?;
            if frame["t"] == "r" && frame["m"]["id"] == *id {
                return Ok(frame);
            }
        }
    }

    /// The next text frame, as JSON.
    pub fn frame(&mut self) -> Result<Value> {
        let text = self.next_text()?;
        serde_json::from_str(&text).with_context(|| format!("{text:?} is not JSON"))
    }

    /// The next text frame as it came.
    pub fn next_text(&mut self) -> Result<String> {
        loop {
            match self.socket.read()? {
                Message::Text(text) => return Ok(text.to_string()),
                Message::Close(close) => bail!("closed instead of a frame: {close:?}"),
                _ => {}
            }
        }
    }

    /// Asserts that nothing has come and nothing is on its way: frames come in order, so whatever
    /// the neuron had for this socket would come before its answer to a ping. What this socket sent
    /// before has been acted on then; of another one's frames that must be known already.
    pub fn hears_nothing(&mut self) -> Result<()> {
        self.pings += 1;
        self.send_text(&json!({ "t": "ping", "ts": self.pings }).to_string())?;
        let frame = self.frame()?;
        ensure!(frame == json!({ "t": "pong", "ts": self.pings }), "heard {frame}");
        Ok(())
    }

    /// The code with which the server closes; frames before it are passed over.
    pub fn close_code(&mut self) -> Result<u16> {
        loop {
            match self.socket.read()? {
                Message::Close(Some(close)) => return Ok(close.code.into()),
                Message::Close(None) => bail!("closed without a code"),
                _ => {}
            }
        }
    }

    pub fn send_text(&mut self, text: &str) -> Result<()> {
        Ok(self.socket.send(Message::text(text))?)
    }

    /// Sends a protocol ping, whose answer is as long as it is.
    pub fn send_ping(&mut self, payload: &[u8]) -> Result<()> {
        Ok(self.socket.send(Message::Ping(payload.to_vec().into()))?)
    }

    /// Sends a user frame; `to` makes it direct.
    pub fn say(&mut self, op: &str, to: Option<&str>, payload: &Value) -> Result<()> {
        let mut meta = json!({ "f": "whatever the client likes", "o": op });
        if let Some(to) = to {
            meta["t"] = to.into();
        }
        self.send_text(&json!({ "t": "u", "m": meta, "p": payload }).to_string())
    }

    /// Is cut: nothing more is read or written, and the neuron's end is told nothing but that.
    pub fn vanish(self) {}

    /// Closes in order.
    pub fn leave(mut self) -> Result<()> {
        self.socket.close(None)?;
        loop {
            match self.socket.read() {
                Ok(_) => {}
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A client's text frame (RFC 6455 §5.2), for who writes it byte by byte.
pub fn masked_text(text: &str) -> Vec<u8> {
    let key = [0x12, 0x34, 0x56, 0x78];
    let mut frame = vec![0x81];
    match u8::try_from(text.len()) {
        Ok(bytes) if bytes < 126 => frame.push(0x80 | bytes),
        _ => {
            let bytes = u16::try_from(text.len()).expect("a short text");
            frame.push(0x80 | 126);
            frame.extend_from_slice(&bytes.to_be_bytes());
        }
    }
    frame.extend_from_slice(&key);
    frame.extend(text.bytes().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

fn tcp(url: &str) -> Result<TcpStream> {
    let rest = url.strip_prefix("ws://").or_else(|| url.strip_prefix("wss://"));
    let authority = rest.and_then(|rest| rest.split('/').next());
    let stream = TcpStream::connect(authority.context("the URL is not ws:// or wss://")?)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}
