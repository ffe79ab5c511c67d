//! HTTP/2: the API over it, and floods of frames that ask for nothing.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::curl;
use tests::http::is_cut;
use tests::http2::{
    ACK, CONTINUATION, Connection, DATA, END_STREAM, Frame, HEADERS, PING, PRIORITY, RST_STREAM,
    SETTINGS, UNKNOWN, WINDOW_UPDATE, frame, get,
};
use tests::neuron::{Neuron, SYS_SECRET};

use super::tls::{Certificate, tls_neuron};

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
            let mut few = Connection::open(&neuron.address("http")?)?;
            few.send(&get(1, END_STREAM, "/livez", "")?)?;
            ensure!(few.outlives(&frame.repeat(100))?, "a few {name}");
            ensure!(neuron.metric("http2_floods_total")? == floods, "a few {name}");
        }
        let mut many = Connection::open(&neuron.address("http")?)?;
        many.send(&get(1, 0, "/livez", "")?)?;
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
    let mut client = Connection::open(&neuron.address("http")?)?;
    let taken_back = (0..1_000).try_for_each(|round| {
        let stream = 1 + 2 * round;
        // Its body never comes.
        client.send(&get(stream, 0, "/livez", "")?)?;
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
    let mut client = Connection::open(&neuron.address("http")?)?;
    let mut sent = 0;
    let mut stream = 1;
    while sent < SENT {
        client.send(&get(stream, END_STREAM, "/openapi.json", "")?)?;
        loop {
            let Frame { kind, flags, payload } = client.receive()?;
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
