//! HTTP/1.1 on a connection that is kept: for tests that call too often to start curl each time.

use std::io::{BufRead as _, BufReader, Error, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

/// How long an answer may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// What came back.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    /// # Errors
    /// A body that is not JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {self:?}"))
    }

    /// The first header of a name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A status line's number.
pub(crate) fn status(line: &str) -> Result<u16> {
    let status = line.strip_prefix("HTTP/").and_then(|rest| rest.split(' ').nth(1));
    status.and_then(|text| text.parse().ok()).with_context(|| format!("not HTTP: {line:?}"))
}

/// A header's line.
pub(crate) fn header(line: &str) -> Option<(String, String)> {
    line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
}

/// Whether a call failed because the other side went away. Silence, and an answer that is not HTTP,
/// are no such thing.
pub fn is_cut(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<Error>().map(Error::kind);
    kind.is_some_and(|kind| {
        matches!(
            kind,
            ErrorKind::BrokenPipe
                | ErrorKind::ConnectionAborted
                | ErrorKind::ConnectionRefused
                | ErrorKind::ConnectionReset
                | ErrorKind::UnexpectedEof
        )
    })
}

/// Connects to an address from one of this machine.
pub(crate) fn connect(address: &str, from: &str) -> Result<TcpStream> {
    let address: SocketAddr = address.parse()?;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from.parse()?, 0).into())?;
    socket.connect(&address.into())?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// One connection, on which one request follows the other; an error ends it.
#[derive(Debug)]
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// `address` is `127.0.0.1:port`.
    pub fn open(address: &str) -> Result<Connection> {
        Connection::open_from(address, "127.0.0.1")
    }

    /// The same from another address of this machine, so that what it does is counted there.
    pub fn open_from(address: &str, from: &str) -> Result<Connection> {
        Ok(Connection(BufReader::new(connect(address, from)?)))
    }

    /// Sends a request as it stands, and reads the answer to it.
    pub fn ask(&mut self, request: &str) -> Result<Response> {
        self.send(request)?;
        self.answer()
    }

    /// Sends a request as it stands; [`Connection::answer`] is to follow.
    pub fn send(&mut self, request: &str) -> Result<()> {
        Ok(self.0.get_mut().write_all(request.as_bytes())?)
    }

    /// Whether some of the answer has come, or the end; does not wait.
    pub fn has_answer(&self) -> Result<bool> {
        let stream = self.0.get_ref();
        stream.set_nonblocking(true)?;
        let seen = stream.peek(&mut [0]);
        stream.set_nonblocking(false)?;
        match seen {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            seen => seen.map(|_| true).map_err(Into::into),
        }
    }

    /// Waits for the answer to what was sent.
    pub fn answer(&mut self) -> Result<Response> {
        let status = status(&self.line()?)?;
        let (mut headers, mut length) = (Vec::new(), 0);
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = header(&line).with_context(|| format!("no header: {line:?}"))?;
            if name == "content-length" {
                length = value.parse()?;
            }
            headers.push((name, value));
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(Response { status, headers, body: String::from_utf8(body)? })
    }

    /// The next line of an answer that is read as it comes.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(line) => Ok(line.trim_end().to_owned()),
            None => bail!(Error::from(ErrorKind::UnexpectedEof)),
        }
    }
}

/// A request of the API; `credentials` is `ident:secret`, and empty for none.
pub fn request(method: &str, target: &str, credentials: &str, body: &str) -> String {
    let mut request = format!("{method} {target} HTTP/1.1\r\nhost: a\r\n");
    if !credentials.is_empty() {
        let basic = base64::engine::general_purpose::STANDARD.encode(credentials);
        request += &format!("authorization: Basic {basic}\r\n");
    }
    request + &format!("content-length: {}\r\n\r\n{body}", body.len())
}

/// A connection of one account.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    credentials: String,
}

/// An answer of the API, with its envelope.
#[derive(Clone, Debug)]
pub struct Answer {
    pub response: Response,
    pub body: Value,
}

impl Answer {
    /// `v`, when the call was carried out.
    pub fn ok(&self) -> Option<&Value> {
        (self.body["s"] == "ok").then(|| &self.body["v"])
    }

    /// The word of a refusal; empty when it was none.
    pub fn word(&self) -> &str {
        if self.body["s"] == "error" { self.body["v"].as_str().unwrap_or("") } else { "" }
    }
}

impl Client {
    /// `credentials` is `ident:secret`.
    pub fn connect(address: &str, credentials: &str) -> Result<Client> {
        let connection = Connection::open(address)?;
        Ok(Client { connection, credentials: credentials.to_owned() })
    }

    pub fn get(&mut self, target: &str) -> Result<Answer> {
        self.call("GET", target, "")
    }

    /// A call with a JSON body, or none where it is empty.
    pub fn call(&mut self, method: &str, target: &str, body: &str) -> Result<Answer> {
        let response = self.connection.ask(&request(method, target, &self.credentials, body))?;
        Ok(Answer { body: response.json()?, response })
    }
}
