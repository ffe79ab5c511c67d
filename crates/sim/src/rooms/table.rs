//! The clock, and what stands for the shell: a bounded queue for each socket, which notes what is put
//! into it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::neuron::sockets::{Crowd, Outbox};
use kv4::store::BoxFuture;
use serde_json::Value;
use services::Clock;
use signal::{Output, SocketId};
use wire::ws::{Decoder, Message, payload};

use super::{BEGINNING_MICROS, QUEUE_BYTES};

/// Virtual µs since the beginning.
#[derive(Debug, Default)]
pub(super) struct Time(pub(super) AtomicU64);

impl Clock for Time {
    fn now_micros(&self) -> u64 {
        BEGINNING_MICROS + self.0.load(Relaxed)
    }

    fn instant(&self) -> Instant {
        static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);
        *BEGINNING + Duration::from_micros(self.0.load(Relaxed))
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// The sockets' queues.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<Tabled>);

#[derive(Debug, Default)]
pub(super) struct Tabled {
    pub(super) queues: BTreeMap<SocketId, Queue>,
    /// Frames handed out since the last look, in order, but for those that sockets begin with.
    pub(super) pushed: Vec<(SocketId, Value)>,
    /// Frames for sockets that had left their rooms before, or had been sent away.
    pub(super) strays: u64,
}

/// As `ganglion::sockets::table` has it.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) frames: VecDeque<Value>,
    /// Each frame's bytes, 0 for what the socket begins with.
    pub(super) sizes: VecDeque<usize>,
    pub(super) bytes: usize,
    pub(super) close: Option<u16>,
    pub(super) is_slow: bool,
}

impl Table {
    pub(super) fn tabled(&self) -> MutexGuard<'_, Tabled> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tabled {
    fn push(&mut self, socket: SocketId, frame: &bytes::Bytes) {
        let sits = self.queues.get_mut(&socket).filter(|queue| queue.close.is_none());
        let Some(queue) = sits else {
            self.strays += 1;
            return;
        };
        let value = read(frame);
        self.pushed.push((socket, value.clone()));
        if queue.is_slow {
            return;
        }
        if queue.bytes + frame.len() > QUEUE_BYTES {
            queue.frames.clear();
            queue.sizes.clear();
            queue.is_slow = true;
            return;
        }
        queue.bytes += frame.len();
        queue.frames.push_back(value);
        queue.sizes.push_back(frame.len());
    }
}

impl Outbox for Table {
    fn deliver(&self, output: Output) -> Crowd {
        let mut tabled = self.tabled();
        match output {
            Output::Begin { socket, frames } => {
                if let Some(queue) = tabled.queues.get_mut(&socket) {
                    queue.sizes.extend(frames.iter().map(|_| 0));
                    queue.frames.extend(frames.iter().map(read));
                }
            }
            Output::Send { socket, frame } => tabled.push(socket, &frame),
            Output::Fanout(fanout) => {
                for socket in fanout.receivers() {
                    tabled.push(socket, &fanout.frame);
                }
            }
            Output::Close { socket, code, .. } => {
                if let Some(queue) = tabled.queues.get_mut(&socket) {
                    queue.close.get_or_insert(code.0);
                }
            }
            Output::Stat(_) => {}
        }
        Crowd::Roomy
    }
}

/// The JSON of a server's frame, which is one whole frame of text.
fn read(frame: &bytes::Bytes) -> Value {
    let mut decoder = Decoder::client(1 << 20);
    assert_eq!(decoder.push(frame), frame.len());
    assert!(matches!(decoder.next_message(), Ok(Some(Message::Text(_)))));
    serde_json::from_slice(&payload(frame)).expect("JSON")
}
