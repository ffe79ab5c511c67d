//! Pace: a client that has begun a request's head must finish it in time.
//!
//! hyper's own limit also runs while a connection is merely idle, so that one is the keep-alive time
//! and this one stands beside it. Only HTTP/1 is paced; the timer is set only when a head comes in
//! pieces, and what has come of such a head counts as a body of its address does. The transport also sees whether answers are taken, and counts frames of HTTP/2 (`frames`).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::answers::Untaken;
use super::frames::Frames;
use crate::turns::BodyBytes;

/// A head up to this size is not counted: its connection has a buffer of that size anyway, and most
/// heads are smaller.
const SMALL_BYTES: usize = 8 << 10;

/// What a connection's requests tell its transport.
#[derive(Debug)]
pub(super) struct Pace {
    /// Counts what has come of a head that is not whole.
    head: Mutex<BodyBytes>,
    /// Bytes of a head have come, and its request has not begun.
    in_head: AtomicBool,
    /// Requests under way.
    under_way: AtomicUsize,
    is_http2: AtomicBool,
    /// Requests that were answered and have earned no credit for frames yet.
    answered: AtomicU32,
    /// Whether too many frames came that ask for nothing.
    is_flooded: AtomicBool,
    /// Told of what is written. What HTTP/2 says of itself is no answer, and too little to matter:
    /// [`frames`](super::frames) are what it answers to.
    untaken: Arc<Untaken>,
}

impl Pace {
    /// For a connection whose heads count as `head`, which is empty.
    pub(super) fn new(head: BodyBytes) -> Pace {
        Pace {
            head: Mutex::new(head),
            in_head: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            is_http2: AtomicBool::new(false),
            answered: AtomicU32::new(0),
            is_flooded: AtomicBool::new(false),
            untaken: Arc::default(),
        }
    }

    /// A request has begun; it is over when the guard is dropped.
    pub(super) fn begun(self: &Arc<Self>, version: http::Version) -> UnderWay {
        if version == http::Version::HTTP_2 {
            self.is_http2.store(true, Ordering::Relaxed);
        } else {
            self.head().clear();
        }
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.in_head.store(false, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    /// A request was carried out, or will be whatever its client does.
    pub(super) fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// What the client has not taken yet.
    pub(super) fn untaken(&self) -> &Arc<Untaken> {
        &self.untaken
    }

    pub(super) fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::Relaxed)
    }

    pub(super) fn is_flooded(&self) -> bool {
        self.is_flooded.load(Ordering::Relaxed)
    }

    fn head(&self) -> MutexGuard<'_, BodyBytes> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_paced(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) == 0 && !self.is_http2()
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Pace>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A transport that fails when a head takes longer than `head_time`, when the peer takes no byte of
/// what is written for `write_time`, when it sends too many [`frames`](super::frames), or when its
/// address has too many bytes of heads that are not whole.
#[derive(Debug)]
pub(crate) struct Paced<IO> {
    io: IO,
    pace: Arc<Pace>,
    frames: Frames,
    /// Bytes of an HTTP/1 head.
    head_bytes: usize,
    /// Whether bytes of a head may be counted.
    is_head_counted: bool,
    head_time: Duration,
    write_time: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    write_deadline: Option<Pin<Box<Sleep>>>,
}

impl<IO> Paced<IO> {
    pub(super) fn new(
        io: IO,
        pace: Arc<Pace>,
        head_time: Duration,
        write_time: Duration,
    ) -> Paced<IO> {
        Paced {
            io,
            pace,
            frames: Frames::new(),
            head_bytes: 0,
            is_head_counted: false,
            head_time,
            write_time,
            deadline: None,
            write_deadline: None,
        }
    }

    /// Counts what there is of a head that is not whole.
    fn count_head(&mut self, bytes: usize) -> io::Result<()> {
        let is_counted = bytes > SMALL_BYTES;
        if !is_counted && !std::mem::take(&mut self.is_head_counted) {
            return Ok(());
        }
        self.is_head_counted = is_counted;
        let counted = if is_counted { bytes } else { 0 };
        self.pace.head().resize(counted).map_err(|of_whom| {
            io::Error::other(format!("too many bytes {of_whom} are being received"))
        })
    }

    /// Notes a write.
    fn took(&mut self, written: &Poll<io::Result<usize>>) {
        let Poll::Ready(Ok(taken)) = *written else { return };
        self.frames.sent(taken);
        self.pace.untaken.took(taken);
    }

    /// Counts the frames of what was read.
    fn follow(&mut self, bytes: &[u8]) -> io::Result<()> {
        let answered = || self.pace.answered.swap(0, Ordering::Relaxed);
        if self.frames.read(bytes, answered) {
            return Ok(());
        }
        self.pace.is_flooded.store(true, Ordering::Relaxed);
        Err(io::Error::new(io::ErrorKind::InvalidData, "too many frames that ask for nothing"))
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
        let came = buffer.filled().len() - before;
        this.follow(&buffer.filled()[before..])?;
        if let Some(of_head) = this.frames.of_head() {
            this.count_head(of_head)?;
        }
        if !this.pace.is_paced() {
            this.deadline = None;
            return read;
        }
        let was_in_head = this.pace.in_head.load(Ordering::Relaxed);
        this.head_bytes = if was_in_head { this.head_bytes + came } else { came };
        // A head that comes as a whole is none that anybody waits for.
        if was_in_head && this.frames.of_head().is_none() {
            this.count_head(this.head_bytes)?;
        }
        if read.is_ready() {
            if came > 0 {
                this.pace.in_head.store(true, Ordering::Relaxed);
            }
        } else if !was_in_head {
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
        self.took(&written);
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
        self.took(&written);
        self.written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{IpAddr, Ipv4Addr};

    use neuron::requests::Payer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::time::{Instant, sleep, timeout};

    use super::*;
    use crate::turns::tests::{BOUNDS, turns};
    use crate::turns::{Bounds, Turns};

    const HEAD_TIME: Duration = Duration::from_secs(10);
    const WRITE_TIME: Duration = Duration::from_secs(30);
    /// Longer than anything here may take, by the paused clock.
    const FOR_EVER: Duration = Duration::from_secs(3600);

    /// A transport that holds 16 bytes on their way, and its peer.
    fn transport() -> (Paced<DuplexStream>, Arc<Pace>, DuplexStream) {
        transport_of(&turns(BOUNDS), 16)
    }

    fn transport_of(
        turns: &Arc<Turns>,
        bytes: usize,
    ) -> (Paced<DuplexStream>, Arc<Pace>, DuplexStream) {
        let (io, peer) = tokio::io::duplex(bytes);
        let head = turns.body(Payer::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let pace = Arc::new(Pace::new(head));
        (Paced::new(io, pace.clone(), HEAD_TIME, WRITE_TIME), pace, peer)
    }

    #[tokio::test(start_paused = true)]
    async fn heads_that_are_not_whole_are_bounded() {
        const PIECE: usize = 6 << 10;
        // Of an address, an eighth: four pieces.
        let turns = turns(Bounds { bodies: 32 * PIECE, ..BOUNDS });
        let (mut first, first_pace, mut first_peer) = transport_of(&turns, PIECE);
        let (mut second, second_pace, mut second_peer) = transport_of(&turns, PIECE);
        let mut buffer = [0; PIECE];
        let mut counted = Vec::new();
        for _ in 0..3 {
            first_peer.write_all(&[b'x'; PIECE]).await.expect("room");
            assert_eq!(first.read(&mut buffer).await.expect("a piece"), PIECE);
            let waited = timeout(Duration::from_secs(1), first.read(&mut buffer)).await;
            assert!(waited.is_err(), "nothing else has come");
            counted.push(turns.body_bytes());
        }
        assert_eq!(counted, [0, 2 * PIECE, 3 * PIECE]);
        second_peer.write_all(&[b'x'; PIECE]).await.expect("room");
        assert_eq!(second.read(&mut buffer).await.expect("a small one is let be"), PIECE);
        second_peer.write_all(&[b'x'; PIECE]).await.expect("room");
        let error = second.read(&mut buffer).await.expect_err("there is no room");
        assert_eq!(error.kind(), ErrorKind::Other);
        drop((second, second_pace));
        assert_eq!(turns.body_bytes(), 3 * PIECE);
        let _under_way = first_pace.begun(http::Version::HTTP_11);
        assert_eq!(turns.body_bytes(), 0, "it was whole");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_of_an_answer_is_cut_after_the_write_time() {
        for is_vectored in [false, true] {
            let (mut io, pace, _peer) = transport();
            let _under_way = pace.begun(http::Version::HTTP_11);
            let begun = Instant::now();
            let answer = [0; 64];
            let writing = async {
                if !is_vectored {
                    return io.write_all(&answer).await;
                }
                io.write_all(&answer[..16]).await?;
                io.write_vectored(&[IoSlice::new(&answer[16..])]).await.map(drop)
            };
            let written = timeout(FOR_EVER, writing).await.expect("it is cut");
            assert_eq!(written.expect_err("nobody took it").kind(), ErrorKind::TimedOut);
            let late = begun.elapsed() - WRITE_TIME;
            assert!(late < Duration::from_millis(10), "{late:?} after the write time");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_an_answer_slowly_is_not_cut() {
        let (mut io, pace, mut peer) = transport();
        let _under_way = pace.begun(http::Version::HTTP_11);
        let slow = async {
            let mut byte = [0];
            for _ in 0..64 {
                sleep(WRITE_TIME - Duration::from_secs(1)).await;
                peer.read_exact(&mut byte).await.expect("a byte");
            }
        };
        let (written, ()) = tokio::join!(io.write_all(&[0; 64]), slow);
        written.expect("each byte was taken in time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_dribbles_is_cut_and_what_follows_a_whole_one_is_not() {
        let (mut io, pace, mut peer) = transport();
        let dribble = async {
            while peer.write_all(b"x").await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        };
        let begun = Instant::now();
        let head = async {
            let mut buffer = [0; 16];
            loop {
                if let Err(error) = io.read(&mut buffer).await {
                    return error;
                }
            }
        };
        let error = tokio::select! {
            error = head => error,
            () = dribble => unreachable!("the reader is there"),
            () = sleep(FOR_EVER) => panic!("never cut"),
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), HEAD_TIME.as_secs());

        let (mut io, pace_of_whole, mut peer) = transport();
        drop(pace);
        let mut buffer = [0; 16];
        peer.write_all(b"GET / HTTP/1.1").await.expect("room");
        assert_eq!(io.read(&mut buffer).await.expect("a head"), 14);
        let under_way = pace_of_whole.begun(http::Version::HTTP_11);
        let waited = timeout(HEAD_TIME * 3, io.read(&mut buffer)).await;
        assert!(waited.is_err(), "a body has its own limit: {waited:?}");
        drop(under_way);
        let waited = timeout(HEAD_TIME * 3, io.read(&mut buffer)).await;
        assert!(waited.is_err(), "nothing of a next head has come: {waited:?}");
    }
}
