//! HTTP/2: the API over it, and floods of frames that ask for nothing.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::curl;
use tests::http::is_cut;
use tests::neuron::{Neuron, SYS_SECRET};

use super::tls::{Certificate, tls_neuron};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
// RFC 9113 §6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const UNKNOWN: u8 = 0xbe;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What the last ping of a connection says.
const LAST: [u8; 8] = *b"the last";
/// Frames that a neuron without a bound takes in a fraction of a second.
const FLOOD: usize = 20_000;

#[test]
fn http_2_carries_the_api_in_the_clear() -> Result<()> {
    let neuron = Neuron::start()?;
    let url = format!("{}/_ds", neuron.url());
    let credentials = format!("$sys:{SYS_SECRET}");
    let answer = curl::run(&[
        "--http2-prior-knowledge",
        "-u",
        &credentials,
        "-w",
        "\n%{http_version}",
        &url,
    ])?;
    let (body, version) = answer.rsplit_once('\n').context("two lines")?;
    assert_eq!(version, "2");
    assert_eq!(serde_json::from_str::<Value>(body)?["s"], "ok");
    Ok(())
}

/// An HTTP/2 client by hand, which sends what no library would.
struct Raw(TcpStream);

/// A frame that came.
struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

impl Raw {
    fn connect(neuron: &Neuron) -> Result<Raw> {
        let stream = TcpStream::connect(neuron.address("http")?)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut raw = Raw(stream);
        raw.0.write_all(PREFACE)?;
        raw.send(&frame(SETTINGS, 0, 0, &[]))?;
        Ok(raw)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.write_all(bytes)?)
    }

    fn ask(&mut self, stream: u32, path: &str, flags: u8) -> Result<()> {
        let length = u8::try_from(path.len())?;
        // GET, http, and literals without indexing for `:path` and `:authority` (RFC 7541).
        let fields = [&[0x82, 0x86, 0x04, length], path.as_bytes(), &[0x01, 1, b'a']].concat();
        self.send(&frame(HEADERS, flags | END_HEADERS, stream, &fields))
    }

    fn next(&mut self) -> Result<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload)?;
        Ok(Frame { kind: head[3], flags: head[4], payload })
    }

    fn until(&mut self, so: impl Fn(&Frame) -> bool) -> Result<()> {
        while !so(&self.next()?) {}
        Ok(())
    }

    /// Sends frames for as long as they are taken; whether the neuron answers a ping after them all.
    fn outlives(mut self, frames: &[u8]) -> Result<bool> {
        let mut reader = Raw(self.0.try_clone()?);
        std::thread::scope(|scope| {
            let reading = scope
                .spawn(move || reader.until(|frame| frame.kind == PING && frame.payload == LAST));
            // Whoever is cut cannot send the rest.
            let sent = self.0.write_all(&[frames, &frame(PING, 0, 0, &LAST)].concat());
            let answered = reading.join().expect("reading does not panic");
            Ok(sent.is_ok() && answered.is_ok())
        })
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    let stream = stream.to_be_bytes();
    [&length[1..], &[kind, flags], &stream, payload].concat()
}

#[test]
fn a_flood_of_frames_that_ask_for_nothing_is_cut() -> Result<()> {
    let neuron = Neuron::start()?;
    let head_to_be_continued = frame(HEADERS, 0, 5, &[0x82]);
    // With what comes before; and whether the neuron counts, or its HTTP library has a bound before.
    let kinds = [
        ("settings", vec![], frame(SETTINGS, 0, 0, &[]), true),
        ("long settings", vec![], frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9].repeat(99)), true),
        ("pings", vec![], frame(PING, 0, 0, &[0; 8]), true),
        ("answers to no ping", vec![], frame(PING, ACK, 0, &[0; 8]), true),
        ("windows", vec![], frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), true),
        ("priorities", vec![], frame(PRIORITY, 0, 5, &[0, 0, 0, 0, 16]), true),
        ("unknown frames", vec![], frame(UNKNOWN, 0, 0, &[]), true),
        ("empty data", vec![], frame(DATA, 0, 1, &[]), false),
        ("empty continuations", head_to_be_continued, frame(CONTINUATION, 0, 5, &[]), false),
    ];
    for (name, before, frame, is_counted) in kinds {
        let floods = neuron.metric("http2_floods_total")?;
        if is_counted {
            // What an honest client may send at once.
            let mut few = Raw::connect(&neuron)?;
            few.ask(1, "/livez", END_STREAM)?;
            ensure!(few.outlives(&frame.repeat(100))?, "a few {name}");
            ensure!(neuron.metric("http2_floods_total")? == floods, "a few {name}");
        }
        let mut many = Raw::connect(&neuron)?;
        many.ask(1, "/livez", 0)?;
        ensure!(!many.outlives(&[before, frame.repeat(FLOOD)].concat())?, "many {name}");
        let counted = floods + u64::from(is_counted);
        ensure!(neuron.metric("http2_floods_total")? == counted, "many {name}");
    }
    Ok(())
}

/// Each costs as much as one that is answered, and waits for no turn.
#[test]
fn a_flood_of_requests_that_are_taken_back_is_cut() -> Result<()> {
    let neuron = Neuron::start()?;
    let mut client = Raw::connect(&neuron)?;
    let taken_back = (0..1_000).try_for_each(|round| {
        let stream = 1 + 2 * round;
        // Its body never comes.
        client.ask(stream, "/livez", 0)?;
        // The neuron has begun it by then.
        client.send(&frame(PING, 0, 0, &[0; 8]))?;
        client.until(|frame| frame.kind == PING)?;
        client.send(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]))
    });
    ensure!(taken_back.is_err_and(|error| is_cut(&error)));
    ensure!(neuron.metric("http2_floods_total")? == 1);
    Ok(())
}

/// Downloads are what makes honest clients send such frames: windows of the stream and of the
/// connection, and pings by which they measure.
#[test]
fn a_client_may_send_such_frames_for_what_it_is_sent() -> Result<()> {
    const SENT: u32 = 5_000;
    let neuron = Neuron::start()?;
    let mut client = Raw::connect(&neuron)?;
    let mut sent = 0;
    let mut stream = 1;
    while sent < SENT {
        client.ask(stream, "/openapi.json", END_STREAM)?;
        loop {
            let Frame { kind, flags, payload } = client.next()?;
            if kind != DATA {
                continue;
            }
            if !payload.is_empty() {
                let length = u32::try_from(payload.len())?.to_be_bytes();
                let windows = [0, stream].map(|of| frame(WINDOW_UPDATE, 0, of, &length));
                client.send(&[windows.concat(), frame(PING, 0, 0, &[0; 8])].concat())?;
                sent += 3;
            }
            if flags & END_STREAM != 0 {
                break;
            }
        }
        stream += 2;
    }
    ensure!(client.outlives(&[])?);
    ensure!(neuron.metric("http2_floods_total")? == 0);
    Ok(())
}

/// By TLS, since some curls do not use a connection again on which they knew of HTTP/2 beforehand.
#[test]
fn curl_downloads_much_over_one_connection() -> Result<()> {
    let certificate = Certificate::make("localhost")?;
    let neuron = tls_neuron(&certificate, &[])?;
    let chain = certificate.chain().display().to_string();
    let pages = format!("https://{}/openapi.json?n=[1-2000]", neuron.address("https")?);
    let printed = "%{http_version} %{http_code} %{num_connects}\n";
    let answers = curl::run(&["--cacert", &chain, "-o", "/dev/null", "-w", printed, &pages])?;
    let count = |line: &str| answers.lines().filter(|answer| *answer == line).count();
    assert_eq!([count("2 200 1"), count("2 200 0")], [1, 1_999], "{answers}");
    assert_eq!(neuron.metric("http2_floods_total")?, 0);
    Ok(())
}
