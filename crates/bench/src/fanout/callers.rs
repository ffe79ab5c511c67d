//! Somebody who asks the API at a steady pace while others do what is measured: how long he waits.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::latency::Latencies;
use crate::load::find;

/// Time between two requests.
const EVERY: Duration = Duration::from_millis(50);
/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// A caller in a thread of his own.
#[derive(Debug)]
pub(super) struct Caller {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Latencies>>,
}

impl Caller {
    /// Asks again and again on one connection, each time when it is due or, when the answer before
    /// is late, at once; a request's latency counts from when it was due.
    pub(super) fn start(address: SocketAddr, request: Vec<u8>) -> Result<Caller> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut latencies = Latencies::default();
            let mut due = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                ask(&mut stream, &request)?;
                latencies.add(u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX));
                due += EVERY;
            }
            Ok(latencies)
        });
        Ok(Caller { stop, thread })
    }

    /// What he waited.
    pub(super) fn stop(self) -> Result<Latencies> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the caller panicked"))?.context("the caller")
    }
}

/// One request and its answer, which has to be good and is as short as one read.
fn ask(stream: &mut TcpStream, request: &[u8]) -> Result<()> {
    stream.write_all(request)?;
    let mut input = Vec::new();
    let mut buffer = [0; 4096];
    while !input.ends_with(b"}") || find(&input, b"\r\n\r\n").is_none() {
        let count = stream.read(&mut buffer)?;
        ensure!(count > 0, "the connection was closed");
        input.extend_from_slice(&buffer[..count]);
    }
    let text = String::from_utf8_lossy(&input);
    ensure!(input.starts_with(b"HTTP/1.1 200"), "refused: {text:.500}");
    Ok(())
}
