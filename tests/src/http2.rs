//! HTTP/2 by hand, frame by frame: for tests that send what no library would, or more than one could.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Result, ensure};
use base64::Engine as _;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
// RFC 9113 §6.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
/// A kind that nobody has defined.
pub const UNKNOWN: u8 = 0xbe;
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What the last ping of a connection says.
const LAST: [u8; 8] = *b"the last";

/// A connection as its client sees it.
#[derive(Debug)]
pub struct Connection(TcpStream);

/// A frame that came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub payload: Vec<u8>,
}

impl Connection {
    /// `address` is `127.0.0.1:port`.
    pub fn open(address: &str) -> Result<Connection> {
        Connection::open_from(address, "127.0.0.1")
    }

    /// The same from another address of this machine, so that what it does is counted there.
    pub fn open_from(address: &str, from: &str) -> Result<Connection> {
        let mut connection = Connection(crate::http::connect(address, from)?);
        // The connection's window, opened once for all.
        let window = frame(WINDOW_UPDATE, 0, 0, &0x4000_0000_u32.to_be_bytes());
        connection.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &window].concat())?;
        Ok(connection)
    }

    /// Sends frames as they stand.
    pub fn send(&mut self, frames: &[u8]) -> Result<()> {
        Ok(self.0.write_all(frames)?)
    }

    /// The next frame, of whatever stream.
    pub fn receive(&mut self) -> Result<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload)?;
        Ok(Frame { kind: head[3], flags: head[4], payload })
    }

    /// Throws frames away up to one that is looked for.
    pub fn until(&mut self, so: impl Fn(&Frame) -> bool) -> Result<()> {
        while !so(&self.receive()?) {}
        Ok(())
    }

    /// Sends frames for as long as they are taken; whether the neuron answers a ping after them all.
    pub fn outlives(mut self, frames: &[u8]) -> Result<bool> {
        let mut reader = Connection(self.0.try_clone()?);
        let is_last = |frame: &Frame| frame.kind == PING && frame.payload == LAST;
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || reader.until(is_last));
            // Whoever is cut cannot send the rest.
            let sent = self.0.write_all(&[frames, &frame(PING, 0, 0, &LAST)].concat());
            let answered = reading.join().expect("reading does not panic");
            Ok(sent.is_ok() && answered.is_ok())
        })
    }
}

/// A frame as it is sent.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a GET; `credentials` is `ident:secret`, and empty for none.
pub fn get(stream: u32, flags: u8, path: &str, credentials: &str) -> Result<Vec<u8>> {
    // GET, http, and literals without indexing for the rest (RFC 7541, appendix A and §6.2.2).
    let mut fields = vec![0x82, 0x86];
    let mut literal = |name: &[u8], value: &str| {
        ensure!(value.len() < 127, "longer values have longer lengths");
        fields.extend(name);
        fields.push(u8::try_from(value.len())?);
        fields.extend(value.as_bytes());
        Ok(())
    };
    literal(&[0x04], path)?;
    literal(&[0x01], "a")?;
    if !credentials.is_empty() {
        let basic = base64::engine::general_purpose::STANDARD.encode(credentials);
        literal(&[0x0f, 23 - 0x0f], &format!("Basic {basic}"))?;
    }
    Ok(frame(HEADERS, flags | END_HEADERS, stream, &fields))
}
