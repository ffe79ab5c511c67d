//! The system calls that tests make themselves, and the only `unsafe` of theirs.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Result, ensure};

/// Sends SIGTERM to a child that has not been waited for.
pub fn terminate(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid)?;
    // SAFETY: a signal; no memory is involved.
    let done = unsafe { libc::kill(pid, libc::SIGTERM) };
    ensure!(done == 0, "kill: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Lets this process have as many files as it may; answers how many.
pub fn raise_file_limit() -> Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given a valid rlimit that lives through them.
    let done = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    ensure!(done == 0, "setrlimit: {}", std::io::Error::last_os_error());
    Ok(limit.rlim_cur)
}

/// Bytes that are free on the disk of a folder.
pub fn free_bytes(folder: &Path) -> Result<u64> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: the path ends in 0 and the struct, all numbers, lives through the call.
    let (result, stat) = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &raw mut stat), stat)
    };
    ensure!(result == 0, "statvfs: {}", std::io::Error::last_os_error());
    Ok(stat.f_bavail * stat.f_bsize)
}

/// Calls `handler` when the process ends in order.
pub fn at_exit(handler: extern "C" fn()) {
    // SAFETY: the handler is a plain function, which lives as long as the process.
    unsafe {
        libc::atexit(handler);
    }
}
