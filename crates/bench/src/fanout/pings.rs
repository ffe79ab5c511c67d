//! The text `ping` that a page of v3 sends with every frame it draws, from many pages at once, and
//! beside it one that asks by JSON and waits for the answer.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mio::Events;

use super::bare;
use super::crowd::{Crowd, Happened, STALL};
use super::latency::Latencies;
use super::servers::push_masked;

/// How often it is looked which pings are due.
const TICK: Duration = Duration::from_millis(1);
/// Time between two questions.
const ASKED_EVERY: Duration = Duration::from_millis(10);
const EVENTS: usize = 256;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Pings a second of each socket but the last, which asks.
    pub(super) per_socket: u64,
    pub(super) lasts: Duration,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Pinged {
    pub(super) pings: u64,
    pub(super) lasted: Duration,
    /// From question to answer.
    pub(super) latencies: Latencies,
}

/// Sends each ping by a write of its own, the sockets in turn and evenly spread over time.
pub(super) fn pings(crowd: &mut Crowd, plan: Plan) -> Result<Pinged> {
    let asker = crowd.sockets.len() - 1;
    let per_second = plan.per_socket * asker as u64;
    let mut ping = Vec::new();
    push_masked(bare::TEXT, b"ping", &mut ping);
    let mut pinged = Pinged::default();
    let mut events = Events::with_capacity(EVENTS);
    let (mut happened, mut answer) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    let mut asked = None;
    let mut ask_at = Duration::ZERO;
    loop {
        let elapsed = begun.elapsed();
        if elapsed >= plan.lasts && asked.is_none() {
            break;
        }
        let due = (elapsed.min(plan.lasts).as_secs_f64() * per_second as f64) as u64;
        while pinged.pings < due {
            let at = (pinged.pings % asker as u64) as usize;
            let written = crowd.write(at, &ping)?;
            ensure!(written == ping.len(), "socket {at} takes no ping");
            pinged.pings += 1;
        }
        if asked.is_none() && elapsed >= ask_at {
            let now_us = crowd.now_us();
            let mut question = Vec::new();
            let text = format!("{{\"t\":\"ping\",\"ts\":{now_us}}}");
            push_masked(bare::TEXT, text.as_bytes(), &mut question);
            let written = crowd.write(asker, &question)?;
            ensure!(written == question.len(), "the asker's socket takes no question");
            asked = Some(now_us);
            ask_at = elapsed + ASKED_EVERY;
        }
        crowd.set_timer(TICK)?;
        crowd.wait(&mut events, STALL, &mut happened)?;
        ensure!(elapsed < plan.lasts + STALL, "no answer to a question");
        for &what in &happened {
            let Happened::Socket(at) = what else { continue };
            if at != asker {
                crowd.hear(at, |_, _| Ok(()))?;
                continue;
            }
            crowd.read(at, &mut answer)?;
            let Some(sent_us) = asked else { continue };
            let wanted = format!("{{\"t\":\"pong\",\"ts\":{sent_us}}}");
            if memchr::memmem::find(&answer, wanted.as_bytes()).is_some() {
                pinged.latencies.add(crowd.now_us() - sent_us);
                asked = None;
                answer.clear();
            }
        }
    }
    pinged.lasted = begun.elapsed();
    Ok(pinged)
}
