//! The load generator: one thread, epoll, a minimal HTTP/1.1 client with one request in flight on
//! each connection. The same for every server, and cheap, so that it measures them and not itself.
//!
//! Every answer is checked: its status, its end, and what the workload expects of its body.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// Silence of all connections after which a run is given up.
const STALL: Duration = Duration::from_secs(30);
/// Latencies kept of one run; further ones are not recorded.
const LATENCIES_MAX: usize = 4_000_000;
const READ_BYTES: usize = 64 << 10;
/// Requests of a run that a server may put off with 503; each is sent again.
const REFUSED_MAX: u64 = 1_000;

/// What is sent, and what has to come back.
pub(crate) trait Workload {
    /// Puts the next request of a connection into `out`; `nth` counts that connection's.
    fn request(&mut self, connection: usize, nth: u64, out: &mut Vec<u8>);
    /// Whether the body answers the last request of a connection.
    fn is_right(&self, connection: usize, body: &[u8]) -> bool;
}

/// When a run ends, whichever comes first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) lasts: Duration,
    pub(crate) requests: u64,
}

impl Bounds {
    pub(crate) fn time(lasts: Duration) -> Bounds {
        Bounds { lasts, requests: u64::MAX }
    }

    pub(crate) fn count(requests: u64) -> Bounds {
        Bounds { lasts: Duration::from_secs(900), requests }
    }
}

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    /// Answers of 503, after which the request was sent again; its latency includes that.
    pub(crate) refused: u64,
    /// Of every request in µs, sorted.
    latencies: Vec<u32>,
}

impl Done {
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = ((last as f64) * share).round() as usize;
        self.latencies.get(at).copied().map_or(0.0, f64::from)
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

/// Open connections to one server.
pub(crate) struct Client {
    poll: Poll,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    begun: Instant,
    nth: u64,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr, count: usize) -> Result<Client> {
        ensure!(address.ip().is_loopback(), "load goes to loopback only");
        let poll = Poll::new()?;
        let mut connections = Vec::new();
        for at in 0..count {
            let stream = std::net::TcpStream::connect(address)
                .with_context(|| format!("connecting to {address}"))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            let both = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(at), both)?;
            connections.push(Connection {
                stream,
                out: Vec::new(),
                sent: 0,
                input: Vec::new(),
                begun: Instant::now(),
                nth: 0,
            });
        }
        Ok(Client { poll, connections, buffer: vec![0; READ_BYTES] })
    }

    /// Keeps every connection busy until the bounds are reached, then waits for what is under way.
    pub(crate) fn run(&mut self, workload: &mut impl Workload, bounds: Bounds) -> Result<Done> {
        let begun = Instant::now();
        let mut events = Events::with_capacity(self.connections.len().max(16));
        let mut latencies = Vec::new();
        let (mut issued, mut done, mut refused) = (0, 0, 0);
        for (at, connection) in self.connections.iter_mut().enumerate() {
            if issued < bounds.requests {
                issued += 1;
                connection.issue(at, workload)?;
            }
        }
        while done < issued {
            self.poll.poll(&mut events, Some(STALL))?;
            ensure!(!events.is_empty(), "no answer within {STALL:?}");
            for event in &events {
                let at = event.token().0;
                let connection = &mut self.connections[at];
                if connection.sent < connection.out.len() {
                    connection.flush()?;
                }
                if connection.out.is_empty() || !connection.receive(&mut self.buffer)? {
                    continue;
                }
                let body = match answer(&connection.input)? {
                    Answer::Partial => continue,
                    Answer::Whole(body) => body,
                    Answer::Unavailable => {
                        refused += 1;
                        let text = String::from_utf8_lossy(&connection.input);
                        ensure!(refused <= REFUSED_MAX, "refused again and again: {text:.1000}");
                        connection.input.clear();
                        connection.sent = 0;
                        connection.flush()?;
                        continue;
                    }
                };
                if !workload.is_right(at, body) {
                    let text = String::from_utf8_lossy(&connection.input);
                    bail!("not the answer that was wanted: {:.2000}", text);
                }
                let now = Instant::now();
                done += 1;
                if latencies.len() < LATENCIES_MAX {
                    let micros = now.duration_since(connection.begun).as_micros();
                    latencies.push(u32::try_from(micros).unwrap_or(u32::MAX));
                }
                connection.input.clear();
                connection.out.clear();
                if issued < bounds.requests && now.duration_since(begun) < bounds.lasts {
                    issued += 1;
                    connection.issue(at, workload)?;
                }
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        latencies.sort_unstable();
        Ok(Done { requests: done, seconds, refused, latencies })
    }
}

impl Connection {
    fn issue(&mut self, at: usize, workload: &mut impl Workload) -> Result<()> {
        self.out.clear();
        workload.request(at, self.nth, &mut self.out);
        self.nth += 1;
        self.sent = 0;
        self.begun = Instant::now();
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("sending a request"),
            }
        }
        Ok(())
    }

    /// Takes in what has arrived; `false` when nothing had.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let mut any = false;
        loop {
            match self.stream.read(buffer) {
                Ok(0) => bail!(
                    "the server closed a connection after {:?}",
                    String::from_utf8_lossy(&self.input)
                ),
                Ok(count) => {
                    any = true;
                    self.input.extend_from_slice(&buffer[..count]);
                    // Fewer bytes than there was room for: there are no more yet.
                    if count < buffer.len() {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) => return Err(error).context("reading an answer"),
            }
        }
    }
}

/// What has come back so far.
enum Answer<'a> {
    Partial,
    /// Status 200; a chunked body is given with its framing.
    Whole(&'a [u8]),
    /// Status 503.
    Unavailable,
}

fn answer(input: &[u8]) -> Result<Answer<'_>> {
    let Some(end) = find(input, b"\r\n\r\n") else { return Ok(Answer::Partial) };
    let (head, body) = (&input[..end], &input[end + 4..]);
    let is_unavailable = head.starts_with(b"HTTP/1.1 503");
    if !is_unavailable && !head.starts_with(b"HTTP/1.1 200") {
        bail!("refused: {:.2000}", String::from_utf8_lossy(input));
    }
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let line = line.trim_ascii();
        let body = if let Some(length) = value(line, b"content-length:") {
            let length: usize = std::str::from_utf8(length)?.parse()?;
            body.get(..length)
        } else if let Some(coding) = value(line, b"transfer-encoding:") {
            ensure!(coding == b"chunked", "a coding that is not chunked");
            // One request in flight: nothing follows the last chunk.
            body.ends_with(b"\r\n0\r\n\r\n").then_some(body)
        } else {
            continue;
        };
        return Ok(match body {
            None => Answer::Partial,
            Some(_) if is_unavailable => Answer::Unavailable,
            Some(body) => Answer::Whole(body),
        });
    }
    bail!("an answer without length: {:.500}", String::from_utf8_lossy(head))
}

fn value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then(|| rest.trim_ascii())
}

/// Where `what` starts in `bytes`.
pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// One exchange on a connection of its own; the answer's head as text, and its body.
pub(crate) fn ask(address: SocketAddr, request: &[u8]) -> Result<(String, Vec<u8>)> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.write_all(request)?;
    let mut input = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Answer::Whole(body) = answer(&input)? {
            let head = find(&input, b"\r\n\r\n").unwrap_or(0);
            return Ok((String::from_utf8(input[..head].to_vec())?, body.to_vec()));
        }
        let count = stream.read(&mut buffer)?;
        ensure!(count > 0, "the server closed the connection: {}", String::from_utf8_lossy(&input));
        input.extend_from_slice(&buffer[..count]);
    }
}

/// Appends what follows the last header: the body, if there is one, with what describes it.
pub(crate) fn push_body(out: &mut Vec<u8>, body: &str) {
    if body.is_empty() {
        push(out, &["\r\n"]);
        return;
    }
    let length = body.len().to_string();
    let head = ["content-type: application/json\r\ncontent-length: ", &length, "\r\n\r\n", body];
    push(out, &head);
}

pub(crate) fn push(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_length_or_its_last_chunk_is_there() -> Result<()> {
        let body = |input: &'static [u8]| -> Result<Option<&'static [u8]>> {
            Ok(match answer(input)? {
                Answer::Whole(body) => Some(body),
                _ => None,
            })
        };
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n")?, None);
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")?, None);
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?, Some(&b"ok"[..]));
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        assert_eq!(body(chunked)?, Some(&b"2\r\nok\r\n0\r\n\r\n"[..]));
        assert_eq!(body(&chunked[..chunked.len() - 1])?, None);
        Ok(())
    }

    #[test]
    fn a_refusal_is_not_an_answer() -> Result<()> {
        let refused = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        assert!(matches!(answer(refused)?, Answer::Unavailable));
        assert!(answer(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").is_err());
        assert!(answer(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        Ok(())
    }
}
