//! Wall clocks that are set back, where one example says more than many seeds.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use services::limits::Failures;

const HOUR_MICROS: u64 = 3_600_000_000;
const SECOND_MICROS: u64 = 1_000_000;

/// An address that failed to log in waits seconds, not the hours by which the clock was ahead.
#[test]
fn nobody_is_shut_out_until_a_clock_that_was_set_back_catches_up() {
    let failures = Arc::new(Failures::default());
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let ahead = 30 * HOUR_MICROS;
    while let Ok(attempt) = failures.charge(address, "elena", ahead) {
        attempt.wrong();
    }
    let back = ahead - 5 * HOUR_MICROS;
    assert!(failures.charge(address, "elena", back + 60 * SECOND_MICROS).is_ok());
}
