//! Messages of one publisher to all members of its room: each has to reach each member once, in
//! order, and tells how long that took.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mio::Events;

use super::crowd::{Crowd, Happened, STALL};
use super::latency::Latencies;
use super::servers::Record;

/// Messages that a flooding publisher writes at once.
const CHUNK: u64 = 16;
/// Frames of one write of a server that is told how many: as the method of `research/data.md` has it.
const FLOOD_BATCH: u8 = 10;
const EVENTS: usize = 1_024;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) messages: u64,
    /// Time between two messages at least; `None` is back to back.
    pub(super) every: Option<Duration>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Spread {
    pub(super) deliveries: u64,
    pub(super) messages: u64,
    pub(super) lasted: Duration,
    pub(super) latencies: Latencies,
    pub(super) bytes: u64,
}

impl Spread {
    pub(super) fn messages_per_second(&self) -> f64 {
        self.messages as f64 / self.lasted.as_secs_f64()
    }

    pub(super) fn deliveries_per_second(&self) -> f64 {
        self.deliveries as f64 / self.lasted.as_secs_f64()
    }
}

/// Sends from the socket behind the first `members`, and adds to `spread` what they heard.
///
/// # Errors
/// A message that did not come, came twice, or came in another order.
pub(super) fn spread(
    crowd: &mut Crowd,
    members: usize,
    plan: Plan,
    spread: &mut Spread,
) -> Result<()> {
    let publisher = members;
    let wanted = plan.messages * members as u64;
    let mut events = Events::with_capacity(EVENTS);
    let mut happened = Vec::new();
    let mut heard = vec![0; members];
    let read_before: u64 = read_bytes(crowd, members);
    let (mut delivered, mut published) = (0, 0);
    let batch = crowd.language.batch(if plan.every.is_some() { 1 } else { FLOOD_BATCH });
    ensure!(crowd.write(publisher, &batch)? == batch.len(), "the publisher's socket is full");
    let mut out = Outgoing { bytes: Vec::new(), written: 0, is_full: false };
    let begun = Instant::now();
    let mut is_due = true;
    while delivered < wanted {
        if out.is_written() && published < plan.messages && is_due {
            out.clear();
            let now_us = crowd.now_us();
            let count = if plan.every.is_some() { 1 } else { CHUNK };
            let last = plan.messages.min(published + count);
            for number in published..last {
                let record = Record { number, sent_us: now_us };
                crowd.language.push_message(record, &mut out.bytes);
            }
            published = last;
            if let Some(every) = plan.every {
                crowd.set_timer(every)?;
                is_due = false;
            }
        }
        if !out.is_full && !out.is_written() {
            out.written += crowd.write(publisher, &out.bytes[out.written..])?;
            out.is_full = !out.is_written();
        }
        let goes_on = plan.every.is_none() && !out.is_full && published < plan.messages;
        let timeout = if goes_on { Duration::ZERO } else { STALL };
        crowd.wait(&mut events, timeout, &mut happened)?;
        ensure!(
            goes_on || !happened.is_empty(),
            "{delivered} of {wanted} deliveries came, then nothing for {STALL:?}"
        );
        for &what in &happened {
            let Happened::Socket(at) = what else {
                is_due = true;
                continue;
            };
            if at == publisher {
                out.is_full = false;
            }
            crowd.hear(at, |record, now_us| {
                ensure!(at < members, "the publisher heard its own message");
                ensure!(
                    record.number == heard[at],
                    "member {at} heard message {} in place of {}",
                    record.number,
                    heard[at]
                );
                heard[at] += 1;
                delivered += 1;
                spread.latencies.add(now_us.saturating_sub(record.sent_us));
                Ok(())
            })?;
        }
    }
    spread.lasted += begun.elapsed();
    spread.deliveries += delivered;
    spread.messages += plan.messages;
    spread.bytes += read_bytes(crowd, members) - read_before;
    Ok(())
}

fn read_bytes(crowd: &Crowd, members: usize) -> u64 {
    crowd.sockets[..members].iter().map(|socket| socket.read_bytes).sum()
}

/// What the publisher has to write.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
    /// Whether the socket took no more when it was last tried.
    is_full: bool,
}

impl Outgoing {
    fn is_written(&self) -> bool {
        self.written == self.bytes.len()
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.written = 0;
    }
}
