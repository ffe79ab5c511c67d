//! Answers: a response's body, handed to the transport piece by piece and counted for as long as any
//! of it is in memory.
//!
//! An HTTP/2 client decides by its windows when an answer goes, so a finished answer may wait for
//! ever. Not here: how many bytes may wait (`turns`).

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::turns::{AnswerBytes, Turns};

/// Bytes that a transport takes at a time: an HTTP/2 frame's default bound. With less room in its
/// window a stream holds no more than this of its answer in the transport.
const PIECE_BYTES: usize = 16 << 10;
/// An answer up to this size is not counted: its headers weigh as much.
const SMALL_BYTES: usize = 1 << 10;

/// What the client of one connection has not taken yet.
#[derive(Debug)]
pub(crate) struct Untaken {
    bytes: AtomicUsize,
    /// When it took something, last.
    moved: Mutex<Instant>,
}

impl Default for Untaken {
    fn default() -> Untaken {
        Untaken { bytes: AtomicUsize::new(0), moved: Mutex::new(Instant::now()) }
    }
}

impl Untaken {
    /// Notes that the client has taken something.
    pub(crate) fn moved(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// When the client has taken nothing for this long; `None` while it need take nothing.
    fn late_at(&self, write_time: Duration) -> Option<Instant> {
        let moved = *self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        (self.bytes.load(Ordering::Relaxed) > 0).then_some(moved + write_time)
    }
}

/// Ends when a connection's client takes nothing of its answers for too long.
#[derive(Debug)]
pub(crate) struct Patience {
    untaken: Arc<Untaken>,
    write_time: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub(crate) fn new(untaken: Arc<Untaken>, write_time: Duration) -> Patience {
        Patience { untaken, write_time, timer: None }
    }

    /// To be asked after each poll of the connection.
    pub(crate) fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(late_at) = self.untaken.late_at(self.write_time) else {
                self.timer = None;
                return Poll::Pending;
            };
            let timer =
                self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(late_at)));
            // A timer that is too early looks again when it is over.
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if late_at <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(late_at);
        }
    }
}

/// A response's body.
#[derive(Debug)]
pub(crate) struct Answer {
    rest: Bytes,
    /// Told of each piece, when it goes in pieces.
    connection: Option<Arc<Untaken>>,
}

/// Bytes that are counted until the last piece of them is dropped.
struct Counted {
    bytes: Bytes,
    connection: Arc<Untaken>,
    _counted: AnswerBytes,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.connection.bytes.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        self.connection.moved();
    }
}

impl Answer {
    /// One that is not counted.
    pub(crate) fn uncounted(bytes: Bytes) -> Answer {
        Answer { rest: bytes, connection: None }
    }

    /// One that is counted as its client's; `None` when there is no room for it. What `must_go` is
    /// counted only. HTTP/1 is given it at once, and writes it at once.
    pub(crate) fn counted(
        bytes: Bytes,
        turns: &Arc<Turns>,
        connection: &Arc<Untaken>,
        address: IpAddr,
        is_http2: bool,
        must_go: bool,
    ) -> Option<Answer> {
        if bytes.len() <= SMALL_BYTES {
            return Some(Answer::uncounted(bytes));
        }
        if connection.bytes.load(Ordering::Relaxed) == 0 {
            // Before it is counted: the last time may be long ago.
            connection.moved();
        }
        let held = connection.bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        let Some(counted) = turns.answer(address, held, bytes.len(), must_go) else {
            connection.bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
            return None;
        };
        let owner = Counted { bytes, connection: connection.clone(), _counted: counted };
        let rest = Bytes::from_owner(owner);
        Some(Answer { rest, connection: is_http2.then(|| connection.clone()) })
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let Some(connection) = &self.connection else {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest)))));
        };
        connection.moved();
        let at = PIECE_BYTES.min(self.rest.len());
        // The last piece takes the owner with it.
        let piece = match at == self.rest.len() {
            true => std::mem::take(&mut self.rest),
            false => self.rest.split_to(at),
        };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
