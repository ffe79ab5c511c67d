//! The first call: two Chromium pages on `/demo` meet, chat and see each other.

use std::time::Duration;

use anyhow::Result;
use tests::browser;
use tests::neuron::{self, Neuron};

/// Seconds for which both videos must go on; `cargo xtask soak demo` sets 30.
fn seconds() -> u64 {
    std::env::var("GANGLION_DEMO_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

#[test]
fn two_pages_meet_chat_and_see_each_other() -> Result<()> {
    let neuron = Neuron::start()?;
    let folder = neuron::artifacts("demo")?;
    let report = browser::demo_call(&neuron.url(), seconds(), &folder)?;
    println!("{report:#?}");
    for side in [&report.caller, &report.called] {
        let grown = side.frames_at_end.saturating_sub(side.frames_at_start);
        assert!(grown >= seconds() * 3, "{} decoded only {grown} frames", side.name);
        assert!(side.errors.is_empty(), "{}: {:?}", side.name, side.errors);
        assert_eq!(side.peers.len(), 2, "{:?}", side.peers);
        assert!(side.chat.len() >= 2, "{:?}", side.chat);
    }
    assert!(report.setup < Duration::from_secs(20), "{:?}", report.setup);
    Ok(())
}
