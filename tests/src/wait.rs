//! Waiting for what has to come true by itself: the one place where tests look again.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a condition may take to come true on a busy machine; longer than any pause of a neuron.
pub const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Looks again until something is so, and answers it.
///
/// # Errors
/// That of a look; or what was seen last, when it never is within [`PATIENCE`].
pub fn until<T: Debug>(mut look: impl FnMut() -> Result<T>, so: impl Fn(&T) -> bool) -> Result<T> {
    let begun = Instant::now();
    loop {
        let seen = look()?;
        if so(&seen) {
            return Ok(seen);
        }
        if begun.elapsed() > PATIENCE {
            bail!("not so within {PATIENCE:?}; seen last: {seen:?}");
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
