//! The system calls that no library wraps for us, and the only `unsafe` of this crate.

#![allow(unsafe_code)]

/// Lets the process have as many sockets as it may.
pub(crate) fn raise_file_limit() {
    if let Err(error) = rlimit_to_hard() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn rlimit_to_hard() -> std::io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given a valid rlimit that lives through them.
    let done = unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            -1
        } else {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
        }
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Lets this thread's waits end on time, not up to 50 µs later.
pub(crate) fn sharpen_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes one number, of ns, and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000 as libc::c_ulong) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "this thread's timers stay coarse");
    }
}
