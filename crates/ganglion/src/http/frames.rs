//! HTTP/2 frames as they come in, counted below hyper: who sends ever so many that neither ask for
//! anything nor bring anything is cut.
//!
//! Settings, pings, windows, priorities, resets, unknown frames and empty data cost work and take no
//! turn. So every frame costs a credit unless it brings data, and credit is earned by what makes
//! honest clients send such frames: answers, bytes that they are sent, whose windows they open again,
//! and time, for pings. Not here: what frames mean (hyper).

use std::time::Duration;

use tokio::time::Instant;

/// What a connection's first bytes are when it is HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// RFC 9113 §4.1.
const HEAD_BYTES: usize = 9;
/// RFC 9113 §6.1.
const DATA: u8 = 0;
const PADDED: u8 = 8;
/// RFC 9113 §6.2, §6.10.
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// Padding is no more than this, with the byte that tells its length.
const PADDING_BYTES_MAX: usize = 256;

/// Credit of a new connection, and what time fills it up to.
const CREDIT: u32 = 1_000;
/// One more for each of these that pass.
const CREDIT_TIME: Duration = Duration::from_millis(20);
/// One more for each of these that the client was sent: windows of a stream and of its connection,
/// opened again for every KiB.
const CREDIT_BYTES: usize = 512;
/// More for each request that was answered: its head, a priority, its windows, a reset, a ping. Who
/// takes requests back before that pays for them.
const CREDIT_OF_REQUEST: u32 = 16;
/// What bytes and answers fill the credit up to: a client that is slow to read opens the windows of
/// 512 MiB later.
const CREDIT_MAX: u32 = 1 << 20;
/// A frame costs one more for each of these that it is long.
const COST_BYTES: usize = 256;

/// What has come of one connection.
#[derive(Debug)]
pub(super) struct Frames {
    at: At,
    credit: u32,
    /// Until when time was turned into credit.
    filled: Instant,
    /// Bytes that were sent and not yet turned into credit.
    sent: usize,
    /// Bytes of a request's head that is not whole.
    of_head: usize,
}

/// Where in the stream of bytes the next one is.
#[derive(Debug)]
enum At {
    /// So many bytes were as an HTTP/2 client begins.
    Preface(usize),
    /// In a frame's head, with so many bytes of it.
    Head([u8; HEAD_BYTES], usize),
    /// So many bytes before the end of a frame, and what it is to a request's head.
    Payload(usize, Part),
    /// The connection is not HTTP/2.
    Elsewhere,
}

/// What a frame is to the head of a request.
#[derive(Clone, Copy, Debug)]
enum Part {
    None,
    Some,
    Last,
}

impl Frames {
    pub(super) fn new() -> Frames {
        let (at, filled) = (At::Preface(0), Instant::now());
        Frames { at, credit: CREDIT, filled, sent: 0, of_head: 0 }
    }

    /// Bytes of a request's head that is not whole; `None` unless this is HTTP/2.
    pub(super) fn of_head(&self) -> Option<usize> {
        match self.at {
            At::Head(..) | At::Payload(..) => Some(self.of_head),
            At::Preface(_) | At::Elsewhere => None,
        }
    }

    /// Notes what the client was sent.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(bytes);
    }

    /// Follows what was read; `false` when there were too many frames. `answers` takes the count of
    /// requests that were answered since it was asked last.
    pub(super) fn read(&mut self, mut bytes: &[u8], answers: impl Fn() -> u32) -> bool {
        let mut is_paid = true;
        while let Some(&byte) = bytes.first() {
            let taken = match &mut self.at {
                At::Elsewhere => return true,
                At::Preface(before) if byte != PREFACE[*before] => {
                    self.at = At::Elsewhere;
                    return true;
                }
                At::Preface(before) => {
                    *before += 1;
                    if *before == PREFACE.len() {
                        self.at = At::Head([0; HEAD_BYTES], 0);
                    }
                    1
                }
                At::Head(head, before) => {
                    let taken = bytes.len().min(HEAD_BYTES - *before);
                    head[*before..*before + taken].copy_from_slice(&bytes[..taken]);
                    *before += taken;
                    if *before == HEAD_BYTES {
                        let head = *head;
                        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                        let part = match (head[3], head[4] & END_HEADERS) {
                            (HEADERS | CONTINUATION, 0) => Part::Some,
                            (HEADERS | CONTINUATION, _) => Part::Last,
                            _ => Part::None,
                        };
                        self.at = At::Payload(length, part);
                        is_paid &= self.pay(cost(&head, length), &answers);
                    }
                    taken
                }
                At::Payload(left, part) => {
                    let taken = bytes.len().min(*left);
                    *left -= taken;
                    let is_over = *left == 0;
                    match part {
                        Part::None => {}
                        Part::Last if is_over => self.of_head = 0,
                        Part::Some | Part::Last => self.of_head += taken,
                    }
                    if is_over {
                        self.at = At::Head([0; HEAD_BYTES], 0);
                    }
                    taken
                }
            };
            bytes = &bytes[taken..];
        }
        is_paid
    }

    fn pay(&mut self, cost: u32, answers: &impl Fn() -> u32) -> bool {
        if self.credit < cost {
            self.earn(answers());
        }
        let left = self.credit.checked_sub(cost);
        self.credit = left.unwrap_or(self.credit);
        left.is_some()
    }

    /// Turns what has happened into credit. Asked only when there is not enough.
    fn earn(&mut self, answers: u32) {
        let ticks = self.filled.elapsed().as_nanos() / CREDIT_TIME.as_nanos();
        let ticks = u32::try_from(ticks).unwrap_or(u32::MAX).min(CREDIT);
        if ticks > 0 {
            self.filled = Instant::now();
        }
        let by_time = self.credit.saturating_add(ticks).min(CREDIT);
        let by_bytes = u32::try_from(self.sent / CREDIT_BYTES).unwrap_or(u32::MAX);
        self.sent %= CREDIT_BYTES;
        let by_answers = answers.saturating_mul(CREDIT_OF_REQUEST);
        let credit = by_time.saturating_add(by_bytes).saturating_add(by_answers);
        self.credit = credit.min(CREDIT_MAX);
    }
}

/// What a frame costs; one that brings data is free.
fn cost(head: &[u8; HEAD_BYTES], length: usize) -> u32 {
    let (kind, flags) = (head[3], head[4]);
    let is_empty = length == 0 || (flags & PADDED != 0 && length <= PADDING_BYTES_MAX);
    if kind == DATA && !is_empty {
        return 0;
    }
    1 + u32::try_from(length / COST_BYTES).unwrap_or(u32::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIORITY: u8 = 2;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;
    const UNKNOWN: u8 = 0xbe;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [_, high, middle, low] = u32::try_from(length).expect("short").to_be_bytes();
        let mut frame = vec![high, middle, low, kind, flags, 0, 0, 0, 1];
        frame.resize(HEAD_BYTES + length, 0);
        frame
    }

    /// A connection that has begun as HTTP/2.
    fn frames() -> Frames {
        let mut frames = Frames::new();
        assert!(frames.read(PREFACE, || 0));
        frames
    }

    /// How many equal frames pass at once.
    fn passing(frames: &mut Frames, frame: &[u8]) -> usize {
        (0..10_000).take_while(|_| frames.read(frame, || 0)).count()
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_bring_nothing_are_bounded_and_data_is_not() {
        for (kind, flags, length, passes) in [
            (SETTINGS, 0, 0, 1_000),
            (SETTINGS, 1, 0, 1_000),
            (PING, 0, 8, 1_000),
            (WINDOW_UPDATE, 0, 4, 1_000),
            (PRIORITY, 0, 5, 1_000),
            (RST_STREAM, 0, 4, 1_000),
            (HEADERS, 4, 20, 1_000),
            (CONTINUATION, 0, 0, 1_000),
            (UNKNOWN, 0, 0, 1_000),
            (SETTINGS, 0, 16_380, 15),
            (DATA, 0, 0, 1_000),
            (DATA, PADDED, 256, 500),
            (DATA, PADDED, 257, 10_000),
            (DATA, 0, 1, 10_000),
            (DATA, 0, 16_384, 10_000),
        ] {
            let passed = passing(&mut frames(), &frame(kind, flags, length));
            assert_eq!(passed, passes, "{kind} {flags} {length}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_honest_clients_answer_to_earns_them_credit() {
        let ping = frame(PING, 0, 8);
        let mut frames = frames();
        assert_eq!(passing(&mut frames, &ping), 1_000);
        frames.sent(3 * CREDIT_BYTES + 1);
        assert_eq!(passing(&mut frames, &ping), 3);
        frames.sent(CREDIT_BYTES - 1);
        assert_eq!(passing(&mut frames, &ping), 1, "the rest was kept");
        let answers = std::cell::Cell::new(2);
        let passed = (0..100).take_while(|_| frames.read(&ping, || answers.take())).count();
        assert_eq!(passed, 32, "two answers");
        tokio::time::advance(CREDIT_TIME * 5).await;
        assert_eq!(passing(&mut frames, &ping), 5);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(passing(&mut frames, &ping), 1_000, "no more is saved up");
        frames.sent(usize::MAX);
        assert!(passing(&mut frames, &ping) == 10_000 && frames.credit <= CREDIT_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn frames_are_followed_however_they_are_cut_into_pieces() {
        let mut stream = PREFACE.to_vec();
        for length in [0, 1, 8, 300] {
            stream.extend(frame(DATA, 0, length));
            stream.extend(frame(PING, 0, length));
        }
        for piece in 1..stream.len() {
            let mut frames = Frames::new();
            for bytes in stream.chunks(piece) {
                assert!(frames.read(bytes, || 0));
            }
            // One for the empty data, four pings, of which one is long.
            assert_eq!(CREDIT - frames.credit, 6, "in pieces of {piece}");
            assert!(matches!(frames.at, At::Head(_, 0)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_counted_until_it_is_whole() {
        let mut frames = frames();
        let mut read = |bytes: &[u8]| {
            assert!(frames.read(bytes, || 0));
            frames.of_head()
        };
        let (begun, goes_on) = (frame(HEADERS, 0, 100), frame(CONTINUATION, 0, 200));
        assert_eq!(read(&frame(HEADERS, END_HEADERS, 100)), Some(0));
        assert_eq!(read(&begun[..HEAD_BYTES + 40]), Some(40));
        assert_eq!(read(&begun[HEAD_BYTES + 40..]), Some(100));
        assert_eq!(read(&goes_on), Some(300));
        let last = frame(CONTINUATION, END_HEADERS, 50);
        assert_eq!(read(&last[..HEAD_BYTES + 49]), Some(349));
        assert_eq!(read(&last[HEAD_BYTES + 49..]), Some(0));
        assert_eq!(read(&frame(DATA, 0, 100)[..50]), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn http_1_is_let_be() {
        let mut frames = Frames::new();
        for bytes in [&b"PRI"[..], b"NT / HTTP/1.1\r\n", &[0; 20_000]] {
            assert!(frames.read(bytes, || 0));
        }
        assert_eq!(frames.credit, CREDIT);
    }
}
