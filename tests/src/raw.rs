//! A WebSocket whose client writes bytes as they stand, for what no library would send
//! (RFC 6455 §5.2).

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use socket2::{Domain, Socket, Type};

/// How long what must come may take.
const DEADLINE: Duration = Duration::from_secs(20);
const KEY: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

pub const FIN: u8 = 0x80;
pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;

/// One open connection.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    /// What was read and not looked at.
    read: Vec<u8>,
}

/// A connection that has asked to be a WebSocket, and has not been answered.
#[derive(Debug)]
pub struct Opening(Raw);

impl Opening {
    /// Asks, and does not wait.
    pub fn begin(url: &str) -> Result<Opening> {
        Opening::over(url, |authority| Ok(TcpStream::connect(authority)?))
    }

    fn over(url: &str, connect: impl FnOnce(&str) -> Result<TcpStream>) -> Result<Opening> {
        let rest = url.strip_prefix("ws://").context("the URL is not ws://")?;
        let (authority, path) = rest.split_once('/').context("the URL has no path")?;
        let stream = connect(authority)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let mut raw = Raw { stream, read: Vec::new() };
        raw.send(
            format!(
                "GET /{path} HTTP/1.1\r\nhost: {authority}\r\nconnection: upgrade\r\n\
                 upgrade: websocket\r\nsec-websocket-version: 13\r\n\
                 sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            .as_bytes(),
        )?;
        Ok(Opening(raw))
    }

    /// Waits until it is one.
    pub fn opened(self) -> Result<Raw> {
        let Opening(mut raw) = self;
        let head = loop {
            if let Some(at) = raw.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break raw.read.drain(..at + 4).collect::<Vec<_>>();
            }
            ensure!(raw.more()?, "hung up in the handshake");
        };
        ensure!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        Ok(raw)
    }
}

impl Raw {
    /// Connects to a URL such as `ws://127.0.0.1:4006/ws/v2/<token>`.
    pub fn connect(url: &str) -> Result<Raw> {
        Raw::over(url, |authority| Ok(TcpStream::connect(authority)?))
    }

    /// The same by a socket for which the kernel keeps as little unread as it can.
    pub fn connect_narrow(url: &str) -> Result<Raw> {
        Raw::over(url, |authority| {
            let address: SocketAddr = authority.parse()?;
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            socket.set_recv_buffer_size(4 << 10)?;
            socket.connect(&address.into())?;
            Ok(socket.into())
        })
    }

    fn over(url: &str, connect: impl FnOnce(&str) -> Result<TcpStream>) -> Result<Raw> {
        Opening::over(url, connect)?.opened()
    }

    /// Writes bytes; an error when the other side has gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    pub fn send_text(&mut self, text: &str) -> Result<()> {
        self.send(&frame(FIN | TEXT, text.as_bytes()))
    }

    /// The opcode and the payload of the next frame.
    pub fn frame(&mut self) -> Result<(u8, Vec<u8>)> {
        loop {
            if let Some((first, range)) = whole(&self.read)? {
                let payload = self.read[range.clone()].to_vec();
                self.read.drain(..range.end);
                return Ok((first & 0x0F, payload));
            }
            ensure!(self.more()?, "hung up instead of a frame");
        }
    }

    /// The code with which the server closes; frames before it are passed over.
    pub fn close_code(&mut self) -> Result<u16> {
        loop {
            let (opcode, payload) = self.frame()?;
            if opcode == CLOSE {
                let code = payload.first_chunk().context("closed without a code")?;
                return Ok(u16::from_be_bytes(*code));
            }
        }
    }

    /// Waits until the other side has hung up; what it sends before is passed over.
    pub fn hung_up(&mut self) -> Result<()> {
        self.read.clear();
        while self.more()? {
            self.read.clear();
        }
        Ok(())
    }

    /// Another end of the same connection, to read while this one writes.
    pub fn reader(&self) -> Result<Raw> {
        Ok(Raw { stream: self.stream.try_clone()?, read: Vec::new() })
    }

    /// Hangs up, for every end of it.
    pub fn end(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn more(&mut self) -> Result<bool> {
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.read.extend_from_slice(&bytes[..count]);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Where the payload of the first frame is, if that is there as a whole.
fn whole(bytes: &[u8]) -> Result<Option<(u8, std::ops::Range<usize>)>> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let (from, length) = match second {
        126 => (4, rest.first_chunk().map(|length| u64::from(u16::from_be_bytes(*length)))),
        127 => (10, rest.first_chunk().map(|length| u64::from_be_bytes(*length))),
        short if *short < 126 => (2, Some(u64::from(*short))),
        _ => bail!("a server's frame is masked"),
    };
    let Some(length) = length else { return Ok(None) };
    let end = from + usize::try_from(length)?;
    Ok((bytes.len() >= end).then_some((*first, from..end)))
}

/// A client's frame: `first` is its flags and opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(first, payload.len() as u64);
    frame.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// A client's frame as far as the masking key, of so many bytes.
pub fn header(first: u8, bytes: u64) -> Vec<u8> {
    let mut header = vec![first];
    match (u8::try_from(bytes), u16::try_from(bytes)) {
        (Ok(short @ ..126), _) => header.push(0x80 | short),
        (_, Ok(middle)) => {
            header.push(0x80 | 126);
            header.extend_from_slice(&middle.to_be_bytes());
        }
        _ => {
            header.push(0x80 | 127);
            header.extend_from_slice(&bytes.to_be_bytes());
        }
    }
    header.extend_from_slice(&KEY);
    header
}
