//! Frames on their way to one peer: written together, by one deadline, given up only between two.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::table::Counters;

/// Frames in one write.
const WRITE_FRAMES: usize = 64;
/// How long a socket may take for one batch of frames, and how many bytes of it add a second.
const WRITE_TIME: Duration = Duration::from_secs(20);
const WRITE_BYTES_PER_S: u64 = 32 << 10;

/// Frames that are being written.
pub(super) struct Batch {
    /// Frames, each in so many `pieces`.
    pub(super) frames: VecDeque<Bytes>,
    pieces: usize,
    /// Pieces of the first frame that were written, and whether the next was in part: nothing but the
    /// frame's rest may follow.
    written: usize,
    is_split: bool,
    /// Whether the transport may still hold what it took.
    is_unflushed: bool,
    /// When the last byte must have been taken.
    pub(super) deadline: Instant,
}

impl Batch {
    pub(super) fn new(pieces: usize) -> Batch {
        Batch {
            frames: VecDeque::new(),
            pieces,
            written: 0,
            is_split: false,
            is_unflushed: false,
            deadline: Instant::now(),
        }
    }

    pub(super) fn begin(&mut self, frames: VecDeque<Bytes>) {
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        let for_size = Duration::from_secs(bytes as u64 / WRITE_BYTES_PER_S);
        self.deadline = Instant::now() + WRITE_TIME + for_size;
        self.frames = frames;
    }

    pub(super) fn is_done(&self) -> bool {
        self.frames.is_empty() && !self.is_unflushed
    }

    pub(super) fn is_late(&self) -> bool {
        !self.is_done() && Instant::now() >= self.deadline
    }

    /// Drops every frame of which nothing was written.
    pub(super) fn give_up(&mut self) {
        let has_begun = self.is_split || self.written > 0;
        self.frames.truncate(if has_begun { self.pieces - self.written } else { 0 });
    }

    /// Writes once, or flushes when everything is written.
    pub(super) fn poll_write<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        counters: &Counters,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.frames.is_empty() {
            std::task::ready!(Pin::new(io).poll_flush(context))?;
            self.is_unflushed = false;
            return Poll::Ready(Ok(()));
        }
        let mut slices = [IoSlice::new(&[]); WRITE_FRAMES];
        for (slice, frame) in slices.iter_mut().zip(&self.frames) {
            *slice = IoSlice::new(frame);
        }
        let count = self.frames.len().min(WRITE_FRAMES);
        let writing = Pin::new(io).poll_write_vectored(context, &slices[..count]);
        let mut written = std::task::ready!(writing)?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        counters.writes.fetch_add(1, Ordering::Relaxed);
        self.is_unflushed = true;
        while let Some(frame) = self.frames.front_mut() {
            if written < frame.len() {
                self.is_split |= written > 0;
                frame.advance(written);
                break;
            }
            written -= frame.len();
            self.is_split = false;
            self.frames.pop_front();
            self.written += 1;
            if self.written == self.pieces {
                self.written = 0;
                counters.frames_out.fetch_add(1, Ordering::Relaxed);
            }
        }
        if self.frames.is_empty() {
            // An idle socket holds no room for frames.
            self.frames = VecDeque::new();
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer of which nothing but its own pace is known.
    struct Drip {
        taken: Vec<u8>,
        at_a_time: usize,
    }

    impl AsyncWrite for Drip {
        fn poll_write(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(context, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let before = self.taken.len();
            let bytes = slices.iter().flat_map(|slice| slice.iter().copied());
            let bytes: Vec<u8> = bytes.take(self.at_a_time).collect();
            self.taken.extend(bytes);
            Poll::Ready(Ok(self.taken.len() - before))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A close that began inside a frame would be read as a part of it.
    #[test]
    fn a_batch_that_is_given_up_ends_between_frames() {
        let whole = [&b"abc"[..], b"def", b"ghi"].map(Bytes::from_static);
        let pieces = [&b"a"[..], b"bc", b"def", b"", b"gh", b"i"].map(Bytes::from_static);
        let takings = ["", "abc", "abcdef", "abcdef", "abcdefghi"];
        let frames = [(1, whole.to_vec()), (2, pieces.to_vec())];
        for ((steps, taken), (pieces, frames)) in takings
            .into_iter()
            .enumerate()
            .flat_map(|taking| frames.clone().map(|frames| (taking, frames)))
        {
            let mut io = Drip { taken: Vec::new(), at_a_time: 2 };
            let mut batch = Batch::new(pieces);
            batch.begin(frames.into());
            let mut context = Context::from_waker(std::task::Waker::noop());
            let counters = Counters::default();
            let mut write = |batch: &mut Batch| {
                let done = batch.poll_write(&mut io, &counters, &mut context);
                assert!(matches!(done, Poll::Ready(Ok(()))));
            };
            for _ in 0..steps {
                write(&mut batch);
            }
            batch.give_up();
            while !batch.is_done() {
                write(&mut batch);
            }
            assert_eq!(io.taken, taken.as_bytes(), "{pieces} pieces, after {steps} writes");
        }
    }
}
