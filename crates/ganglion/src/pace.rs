//! Pace: a client that has begun a request's head must finish it in time.
//!
//! hyper's own limit also runs while a connection is merely idle, so that one is the keep-alive time
//! and this one stands beside it. Only HTTP/1 is paced; the timer is set only when a head comes in
//! pieces.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What a connection's requests tell its transport.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Bytes of a head have come, and its request has not begun.
    in_head: AtomicBool,
    /// Requests under way.
    under_way: AtomicUsize,
    is_http2: AtomicBool,
}

impl Pace {
    /// A request has begun; it is over when the guard is dropped.
    pub(crate) fn begun(self: &Arc<Self>, version: http::Version) -> UnderWay {
        if version == http::Version::HTTP_2 {
            self.is_http2.store(true, Ordering::Relaxed);
        }
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.in_head.store(false, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    fn is_paced(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) == 0 && !self.is_http2.load(Ordering::Relaxed)
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Pace>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A transport that fails when a head takes longer than `head_time`, or when the peer takes no byte
/// of what is written for `write_time`.
#[derive(Debug)]
pub(crate) struct Paced<IO> {
    io: IO,
    pace: Arc<Pace>,
    head_time: Duration,
    write_time: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    write_deadline: Option<Pin<Box<Sleep>>>,
}

impl<IO> Paced<IO> {
    pub(crate) fn new(
        io: IO,
        pace: Arc<Pace>,
        head_time: Duration,
        write_time: Duration,
    ) -> Paced<IO> {
        Paced { io, pace, head_time, write_time, deadline: None, write_deadline: None }
    }

    /// Passes on what a write came to, unless it has been stuck for too long.
    fn written<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_deadline = None;
            return written;
        }
        let write_time = self.write_time;
        let deadline =
            self.write_deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_time)));
        match deadline.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client takes nothing of its answer",
            ))),
        }
    }

    pub(crate) fn into_inner(self) -> IO {
        self.io
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Paced<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.io).poll_read(context, buffer);
        if !this.pace.is_paced() {
            this.deadline = None;
            return read;
        }
        if read.is_ready() {
            if buffer.filled().len() > before {
                this.pace.in_head.store(true, Ordering::Relaxed);
            }
        } else if !this.pace.in_head.load(Ordering::Relaxed) {
            this.deadline = None;
            return read;
        }
        let is_late = match &mut this.deadline {
            Some(deadline) => deadline.as_mut().poll(context).is_ready(),
            // A head that is whole begins its request before the transport is read again.
            None if read.is_ready() => false,
            none => {
                let deadline = none.insert(Box::pin(tokio::time::sleep(this.head_time)));
                deadline.as_mut().poll(context).is_ready()
            }
        };
        if is_late {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the request's head took too long",
            )));
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Paced<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.written(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.written(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
