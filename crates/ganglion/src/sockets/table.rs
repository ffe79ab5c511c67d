//! Every open socket's queue: bounded, filled by `signal`, emptied by the socket's own task.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use neuron::sockets::{Crowd, Outbox};
use signal::{Output, SocketId};
use tokio::sync::Notify;
use wire::ws::CloseCode;

use super::asks::Asks;

/// What sockets are told when the neuron goes away.
const STOPS: &str = "the neuron stops";

/// Every open socket's queue, by id.
#[derive(Debug)]
pub(crate) struct SocketTable {
    queues: papaya::HashMap<u64, Arc<Queue>, foldhash::fast::RandomState>,
    /// Of the sockets that ask for something. Behind a lock, since what is removed from a lock-free map
    /// lives on for a while, and with it what shows whose sockets are open.
    asks: Mutex<BTreeMap<u64, Arc<Asks>>>,
    next: AtomicU64,
    queue_bytes_max: usize,
    /// Set once, as the neuron goes away.
    is_closing: AtomicBool,
    pub(crate) counters: Counters,
}

/// What sockets have done, for metrics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) opened: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Cut because their queue was full, or because they took too long for what was written.
    pub(crate) slow: AtomicU64,
    /// Closed because nothing came from them.
    pub(crate) idle: AtomicU64,
    /// Closed because of a message over `signal.message`, or in more frames than a decoder takes.
    pub(crate) too_long: AtomicU64,
    /// Closed because of another breach of the protocol.
    pub(crate) broken: AtomicU64,
    /// Times that a socket was not read from, since it had sent too much.
    pub(crate) paced: AtomicU64,
    pub(crate) text_pings: AtomicU64,
    pub(crate) frames_out: AtomicU64,
    pub(crate) writes: AtomicU64,
}

/// What waits to be written to one socket.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    pub(super) wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Bytes>,
    /// Bytes of `frames`, but for those that the socket began with: who is in the room, which is as
    /// long as the room is full, and what was missed, without which nobody can join. The first are
    /// counted as an answer to the account.
    bytes: usize,
    /// Where the first of those stands.
    begun_at: usize,
    /// Set once: nothing is queued after it.
    close: Option<Closing>,
}

/// Why a queue takes nothing more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Closing {
    /// It was full; what waited is dropped.
    Slow,
    /// The socket is to be told this after what waits.
    Told(CloseCode, &'static str),
}

impl SocketTable {
    pub(crate) fn new(queue_bytes_max: usize) -> Arc<SocketTable> {
        Arc::new(SocketTable {
            queues: papaya::HashMap::default(),
            asks: Mutex::default(),
            next: AtomicU64::new(1),
            queue_bytes_max,
            is_closing: AtomicBool::new(false),
            counters: Counters::default(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.queues.len()
    }

    /// Closes every socket, those that open from here on too, as the neuron goes away.
    pub(crate) fn close_all(&self) {
        self.is_closing.swap(true, Ordering::AcqRel);
        for (_, queue) in &self.queues.pin() {
            queue.close(CloseCode::GOING_AWAY, STOPS);
        }
    }

    pub(super) fn open(&self) -> (SocketId, Arc<Queue>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let queue = Arc::new(Queue { waiting: Mutex::default(), wake: Notify::new() });
        self.queues.pin().insert(id, queue.clone());
        // Both sides change the flag in one order: either this sees it set, or the queue was there
        // for `close_all` to find.
        if self.is_closing.fetch_or(false, Ordering::AcqRel) {
            queue.close(CloseCode::GOING_AWAY, STOPS);
        }
        (SocketId(id), queue)
    }

    /// Notes that a socket asks for something.
    pub(super) fn ask(&self, socket: SocketId, asks: Arc<Asks>) {
        self.asks().insert(socket.0, asks);
    }

    /// To be called every second or so: has watches looked at whose owners may be none any more.
    pub(crate) fn look(&self) {
        let open: Vec<_> = self.asks().values().cloned().collect();
        for asks in open {
            asks.look();
        }
    }

    fn asks(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Asks>>> {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forget(&self, socket: SocketId) {
        let asks = self.asks().remove(&socket.0);
        drop(asks);
        self.queues.pin().remove(&socket.0);
    }

    fn push(&self, socket: SocketId, frame: Bytes) -> Crowd {
        let queues = self.queues.pin();
        let queue = queues.get(&socket.0);
        queue.map_or(Crowd::Roomy, |queue| queue.push(frame, self.queue_bytes_max))
    }
}

impl Outbox for SocketTable {
    fn deliver(&self, output: Output) -> Crowd {
        let mut crowd = Crowd::Roomy;
        match output {
            Output::Begin { socket, frames } => {
                if let Some(queue) = self.queues.pin().get(&socket.0) {
                    queue.begin(frames);
                }
            }
            Output::Send { socket, frame } => crowd = self.push(socket, frame),
            Output::Fanout(fanout) => {
                for socket in fanout.receivers() {
                    crowd = crowd.max(self.push(socket, fanout.frame.clone()));
                }
            }
            Output::Close { socket, code, reason } => {
                if let Some(queue) = self.queues.pin().get(&socket.0) {
                    queue.close(code, reason);
                }
            }
            Output::Stat(_) => {}
        }
        crowd
    }
}

impl Queue {
    /// Queues what the socket begins with, however much that is.
    fn begin(&self, frames: Vec<Bytes>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.close.is_none() {
            // Answers to what its client said before it came stand before that.
            waiting.begun_at = waiting.frames.len();
            waiting.frames.extend(frames);
        }
        drop(waiting);
        self.wake.notify_one();
    }

    /// Replaces the frame that the socket began with, of which nothing was taken yet; `false` when there is
    /// no room for it.
    pub(super) fn count_begun(&self, count: impl FnOnce(&Bytes) -> Option<Bytes>) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let begun_at = waiting.begun_at;
        let Some(first) = waiting.frames.get_mut(begun_at) else { return true };
        match count(first) {
            Some(counted) => *first = counted,
            None => return false,
        }
        true
    }

    /// A frame that finds the queue full cuts the socket. Answers how full it is otherwise.
    pub(super) fn push(&self, frame: Bytes, bytes_max: usize) -> Crowd {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.close.is_some() {
            return Crowd::Roomy;
        }
        let bytes = waiting.bytes + frame.len();
        let crowd = if bytes <= bytes_max {
            waiting.bytes = bytes;
            waiting.frames.push_back(frame);
            match bytes {
                _ if bytes <= bytes_max / 2 => Crowd::Roomy,
                _ if bytes <= bytes_max / 4 * 3 => Crowd::Full,
                _ => Crowd::Packed,
            }
        } else {
            waiting.frames = VecDeque::new();
            waiting.close = Some(Closing::Slow);
            Crowd::Roomy
        };
        drop(waiting);
        self.wake.notify_one();
        crowd
    }

    pub(super) fn close(&self, code: CloseCode, reason: &'static str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.close.get_or_insert(Closing::Told(code, reason));
        drop(waiting);
        self.wake.notify_one();
    }

    /// Whether fewer than so many bytes wait.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).bytes < bytes
    }

    pub(super) fn closing(&self) -> Option<Closing> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).close
    }

    pub(super) fn take(&self) -> VecDeque<Bytes> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.bytes = 0;
        std::mem::take(&mut waiting.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: usize) -> Bytes {
        Bytes::from(vec![b'x'; bytes])
    }

    fn queue() -> Queue {
        Queue { waiting: Mutex::default(), wake: Notify::new() }
    }

    /// The list of a full room's names is longer than any queue, and everybody joins with it.
    #[test]
    fn what_a_socket_begins_with_passes_and_what_comes_after_it_is_bounded() {
        let queue = queue();
        queue.begin(vec![frame(1000), frame(1000)]);
        queue.push(frame(4), 10);
        queue.push(frame(6), 10);
        assert_eq!(queue.closing(), None, "at the limit");
        queue.push(frame(1), 10);
        assert_eq!(queue.closing(), Some(Closing::Slow), "past it");
        assert!(queue.take().is_empty(), "what waited is dropped");
        queue.push(frame(1), 10);
        queue.begin(vec![frame(1)]);
        queue.close(CloseCode::KICKED, "kicked");
        assert!(queue.take().is_empty());
        assert_eq!(queue.closing(), Some(Closing::Slow));
    }

    /// A pong that is owed to who has not said hello stands before the welcome.
    #[test]
    fn what_a_socket_begins_with_is_counted_wherever_it_stands() {
        let queue = queue();
        queue.push(frame(3), 10);
        queue.begin(vec![frame(1000), frame(5)]);
        let counted = queue.count_begun(|begun| {
            assert_eq!(begun.len(), 1000);
            Some(frame(1001))
        });
        assert!(counted);
        assert!(!queue.count_begun(|_| None), "there is no room for it");
        let lengths: Vec<_> = queue.take().iter().map(Bytes::len).collect();
        assert_eq!(lengths, [3, 1001, 5]);
    }

    #[test]
    fn who_pushes_is_told_how_full_it_is() {
        let queue = queue();
        queue.begin(vec![frame(1000)]);
        for (bytes, crowd) in [
            (50, Crowd::Roomy),
            (1, Crowd::Full),
            (24, Crowd::Full),
            (1, Crowd::Packed),
            (24, Crowd::Packed),
            (1, Crowd::Roomy),
            (1, Crowd::Roomy),
        ] {
            assert_eq!(queue.push(frame(bytes), 100), crowd, "{bytes} more");
        }
        assert_eq!(queue.closing(), Some(Closing::Slow), "whom nobody waits for");
    }

    #[test]
    fn what_was_taken_waits_no_longer() {
        let queue = queue();
        for _ in 0..3 {
            queue.push(frame(4), 10);
            queue.push(frame(6), 10);
            assert_eq!(queue.take().len(), 2);
        }
        queue.close(CloseCode::KICKED, "kicked");
        assert_eq!(queue.closing(), Some(Closing::Told(CloseCode::KICKED, "kicked")));
    }

    /// It was admitted before the stop.
    #[test]
    fn a_socket_that_opens_after_all_were_closed_is_closed() {
        let table = SocketTable::new(10);
        let (_, before) = table.open();
        assert_eq!(before.closing(), None);
        table.close_all();
        let (_, after) = table.open();
        for queue in [before, after] {
            assert_eq!(queue.closing(), Some(Closing::Told(CloseCode::GOING_AWAY, STOPS)));
        }
    }
}
