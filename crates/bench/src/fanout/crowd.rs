//! The load generator: one thread, epoll, as many raw sockets as there are members. It looks for a
//! mark in what comes and reads the few digits behind it, so that it costs less than what it
//! measures; it parses no frames.
//!
//! Here are the sockets: how they join, are read, and are cut. What is sent is in `spread` and
//! `pings`.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem::{Finder, find};
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::servers::{Language, MARK, RECORD_BYTES, Record, Script, SignOfLife, hello};

/// Silence of all sockets after which a run is given up.
pub(super) const STALL: Duration = Duration::from_secs(30);
/// Sockets that are joining at the same time; servers' listen backlogs hold more.
const JOINING_MAX: usize = 1_000;
/// Attempts to join, of all sockets of a crowd, that a server may end.
const AGAIN_MAX: u64 = 100_000;
/// Bytes that may come before a socket is in.
const JOIN_BYTES_MAX: usize = 1 << 20;
const READ_BYTES: usize = 64 << 10;
const EVENTS: usize = 1_024;
/// The timer's token; sockets have lower ones.
const TIMER: Token = Token(usize::MAX - 1);

/// All sockets to one server.
pub(super) struct Crowd {
    pub(super) language: Language,
    pub(super) sockets: Vec<Socket>,
    poll: Poll,
    address: SocketAddr,
    timer: OwnedFd,
    buffer: Vec<u8>,
    mark: Finder<'static>,
    sign_of_life: Option<(Finder<'static>, SignOfLife)>,
    /// When its clock, that records carry, was zero.
    begun: Instant,
}

/// One socket.
#[derive(Debug)]
pub(super) struct Socket {
    script: Script,
    stream: Option<TcpStream>,
    /// The step it waits in; behind the last, it is in.
    step: usize,
    /// What came and is not understood yet.
    tail: Vec<u8>,
    /// Bytes that came since it was opened.
    pub(super) read_bytes: u64,
    /// The session and cursor that it comes again with, and whether it missed nothing then.
    was: Option<(String, String)>,
    has_resumed: bool,
}

/// How a crowd came in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Joined {
    pub(super) lasted: Duration,
    /// Attempts that the server ended.
    pub(super) again: u64,
}

/// What happened, as far as who waits has to know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Happened {
    Timer,
    /// Something came from a socket, or it can be written again.
    Socket(usize),
}

impl Crowd {
    pub(super) fn new(
        language: Language,
        address: SocketAddr,
        scripts: Vec<Script>,
    ) -> Result<Crowd> {
        ensure!(address.ip().is_loopback(), "load goes to loopback only");
        let poll = Poll::new()?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let fd = timer.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), TIMER, Interest::READABLE)?;
        let sockets = scripts.into_iter().map(Socket::new).collect();
        let sign_of_life = language.sign_of_life().map(|sign| (Finder::new(sign.asked), sign));
        Ok(Crowd {
            language,
            sockets,
            poll,
            address,
            timer,
            buffer: vec![0; READ_BYTES],
            mark: Finder::new(MARK),
            sign_of_life,
            begun: Instant::now(),
        })
    }

    pub(super) fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Opens all sockets, and waits until each is in.
    pub(super) fn join(&mut self) -> Result<Joined> {
        let begun = Instant::now();
        let mut events = Events::with_capacity(EVENTS);
        let (mut opened, mut joined, mut again) = (0, 0, 0);
        while joined < self.sockets.len() {
            while opened < self.sockets.len() && opened - joined < JOINING_MAX {
                self.open(opened)?;
                opened += 1;
            }
            self.poll.poll(&mut events, Some(STALL))?;
            ensure!(!events.is_empty(), "{joined} of {} joined, then silence", self.sockets.len());
            for event in &events {
                let at = event.token().0;
                let Some(socket) = self.sockets.get_mut(at) else { continue };
                if socket.is_in() {
                    self.hear(at, |_, _| Ok(()))?;
                    continue;
                }
                match socket.advance(&mut self.buffer) {
                    Ok(is_in) => joined += usize::from(is_in),
                    Err(error) => {
                        again += 1;
                        ensure!(again <= AGAIN_MAX, "joining fails again and again: {error:#}");
                        self.open(at)?;
                    }
                }
            }
        }
        Ok(Joined { lasted: begun.elapsed(), again })
    }

    fn open(&mut self, at: usize) -> Result<()> {
        let socket = &mut self.sockets[at];
        let mut stream = TcpStream::connect(self.address).context("opening a socket")?;
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(at), both)?;
        socket.stream = Some(stream);
        if let (Some(token), Some(last)) =
            (&socket.script.resumes_by, socket.script.steps.last_mut())
        {
            last.say = hello(token, socket.was.as_ref());
        }
        socket.step = 0;
        socket.read_bytes = 0;
        socket.tail.clear();
        Ok(())
    }

    /// Closes all sockets, as a network that goes away does for the server to see.
    pub(super) fn cut(&mut self) {
        for socket in &mut self.sockets {
            socket.stream = None;
        }
    }

    /// Sees to it that all who said where they were have missed nothing.
    pub(super) fn has_resumed(&self) -> Result<()> {
        let resumes = |socket: &&Socket| socket.script.resumes_by.is_some();
        let missed = self.sockets.iter().filter(resumes).filter(|socket| !socket.has_resumed);
        match missed.count() {
            0 => Ok(()),
            count => bail!("{count} sockets may have missed something"),
        }
    }

    /// Reads until nothing has come for so long.
    pub(super) fn settle(&mut self, quiet: Duration) -> Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let begun = Instant::now();
        let mut heard = begun;
        while heard.elapsed() < quiet {
            ensure!(begun.elapsed() < STALL, "it does not become quiet");
            self.poll.poll(&mut events, Some(quiet.saturating_sub(heard.elapsed())))?;
            for event in &events {
                if self.hear(event.token().0, |_, _| Ok(()))? {
                    heard = Instant::now();
                }
            }
        }
        Ok(())
    }

    /// Stays for so long, and answers signs of life.
    pub(super) fn stay(&mut self, lasts: Duration) -> Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let begun = Instant::now();
        while begun.elapsed() < lasts {
            self.poll.poll(&mut events, Some(lasts.saturating_sub(begun.elapsed())))?;
            for event in &events {
                self.hear(event.token().0, |_, _| Ok(()))?;
            }
        }
        Ok(())
    }

    /// Has [`Happened::Timer`] happen after so long; a timer that was set before is no more.
    pub(super) fn set_timer(&self, after: Duration) -> Result<()> {
        // Zero would unset it.
        let after = after.max(Duration::from_nanos(1));
        let timer = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec::try_from(after).context("a timer's time")?,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer)?;
        Ok(())
    }

    /// Waits for what happens next.
    pub(super) fn wait(
        &mut self,
        events: &mut Events,
        timeout: Duration,
        happened: &mut Vec<Happened>,
    ) -> Result<()> {
        happened.clear();
        self.poll.poll(events, Some(timeout))?;
        happened.extend(events.iter().map(|event| match event.token() {
            TIMER => Happened::Timer,
            Token(at) => Happened::Socket(at),
        }));
        Ok(())
    }

    /// Reads what has come to a socket, and gives `each` the records in it with the time of the
    /// read. Answers whether anything had come.
    pub(super) fn hear(
        &mut self,
        at: usize,
        mut each: impl FnMut(Record, u64) -> Result<()>,
    ) -> Result<bool> {
        let begun = self.begun;
        let Some(socket) = self.sockets.get_mut(at) else { return Ok(false) };
        let Some(stream) = &mut socket.stream else { return Ok(false) };
        let mut any = false;
        loop {
            let kept = socket.tail.len();
            self.buffer[..kept].copy_from_slice(&socket.tail);
            let count = match stream.read(&mut self.buffer[kept..]) {
                Ok(0) => bail!("the server closed socket {at}"),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) => return Err(error).with_context(|| format!("reading socket {at}")),
            };
            any = true;
            socket.read_bytes += count as u64;
            let now_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            let bytes = &self.buffer[..kept + count];
            // What may be the start of a mark is looked at again with what follows it.
            let mut rest = bytes.len().saturating_sub(MARK.len() - 1);
            let mut end = 0;
            for found in self.mark.find_iter(bytes) {
                let Some(record) = Record::read(&bytes[found..]) else {
                    ensure!(bytes.len() - found < RECORD_BYTES, "a mark without a record");
                    rest = found;
                    break;
                };
                each(record, now_us)?;
                end = found + RECORD_BYTES;
            }
            rest = rest.max(end);
            if let Some((asked, sign)) = &self.sign_of_life
                && asked.find(bytes).is_some()
            {
                stream.write_all(&sign.answer).context("giving a sign of life")?;
            }
            socket.tail.clear();
            socket.tail.extend_from_slice(&bytes[rest..]);
            // Fewer bytes than there was room for: there are no more yet.
            if kept + count < self.buffer.len() {
                return Ok(true);
            }
        }
    }

    /// Writes to a socket as much as goes; answers how much that was.
    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) -> Result<usize> {
        let stream = self.sockets[at].stream.as_mut().context("a socket that is cut")?;
        let mut written = 0;
        while written < bytes.len() {
            match stream.write(&bytes[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).with_context(|| format!("writing to socket {at}")),
            }
        }
        Ok(written)
    }

    /// Reads what has come to a socket as it is, which `hear` would only look at for marks.
    pub(super) fn read(&mut self, at: usize, into: &mut Vec<u8>) -> Result<()> {
        let stream = self.sockets[at].stream.as_mut().context("a socket that is cut")?;
        loop {
            match stream.read(&mut self.buffer) {
                Ok(0) => bail!("the server closed socket {at}"),
                Ok(count) => into.extend_from_slice(&self.buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).with_context(|| format!("reading socket {at}")),
            }
        }
    }
}

impl Socket {
    fn new(script: Script) -> Socket {
        let (tail, was) = (Vec::new(), None);
        Socket { script, stream: None, step: 0, tail, read_bytes: 0, was, has_resumed: false }
    }

    fn is_in(&self) -> bool {
        self.step == 2 * self.script.steps.len()
    }

    /// Goes on with its script: even steps wait to speak, odd ones wait for the answer. Answers
    /// whether it has come in.
    fn advance(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let stream = self.stream.as_mut().context("a socket that is not open")?;
        loop {
            let Some(step) = self.script.steps.get(self.step / 2) else { return Ok(true) };
            if self.step.is_multiple_of(2) {
                // Not connected yet is told as an error that is not one.
                match stream.write(&step.say) {
                    Ok(count) => ensure!(count == step.say.len(), "a script did not fit"),
                    Err(error) if is_early(&error) => return Ok(false),
                    Err(error) => return Err(error).context("speaking"),
                }
                if self.step == 0 {
                    stream.set_nodelay(true)?;
                }
                self.step += 1;
            }
            match stream.read(buffer) {
                Ok(0) => bail!("closed after {:.500}", String::from_utf8_lossy(&self.tail)),
                Ok(count) => {
                    self.read_bytes += count as u64;
                    self.tail.extend_from_slice(&buffer[..count]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("listening"),
            }
            ensure!(self.tail.len() <= JOIN_BYTES_MAX, "too much comes before a socket is in");
            if find(&self.tail, step.until).is_some() {
                if self.script.resumes_by.is_some() && self.step > 2 {
                    let tail = String::from_utf8_lossy(&self.tail);
                    let text = |name: &str| {
                        let (_, rest) = tail.split_once(&format!("\"{name}\":\""))?;
                        Some(rest.split_once('"')?.0.to_owned())
                    };
                    self.was = text("session").zip(text("c"));
                    self.has_resumed = tail.contains("\"resumed\":true");
                }
                self.tail = Vec::new();
                self.step += 1;
            }
        }
    }
}

fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}
