//! `_ver_` taken apart, as only tests may: to clients it is opaque.

use anyhow::{Context, Result, ensure};

/// `<generation>-<14 hexadecimal digits of µs><8 of the neuron>` (`kv4::version::Ver`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ver {
    /// Its place in the series of its entry, from 1.
    pub generation: u64,
    /// µs since 1970, as the neuron stamped it.
    pub micros: u64,
}

impl Ver {
    /// # Errors
    /// Says that the text is not of that form.
    pub fn parse(ver: &str) -> Result<Ver> {
        let (generation, stamp) = ver.split_once('-').context("a version has a generation")?;
        let is_stamp = stamp.len() == 22 && stamp.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure!(is_stamp, "a version has a stamp: {ver}");
        Ok(Ver { generation: generation.parse()?, micros: u64::from_str_radix(&stamp[..14], 16)? })
    }
}
