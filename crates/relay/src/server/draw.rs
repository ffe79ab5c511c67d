//! Numbers that nobody can tell beforehand, and that one secret gives again: ports (RFC 6056), reservation
//! tokens, and what transactions of the server's own are called.

use aws_lc_rs::hmac;

/// Draws numbers.
pub(crate) struct Draw {
    key: hmac::Key,
    drawn: u64,
}

impl Draw {
    pub(crate) fn new(seed: [u8; 32]) -> Draw {
        Draw { key: hmac::Key::new(hmac::HMAC_SHA256, &seed), drawn: 0 }
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        const { assert!(N <= 32, "one mac is enough") };
        self.drawn += 1;
        let mac = hmac::sign(&self.key, &self.drawn.to_be_bytes());
        let mut bytes = [0; N];
        bytes.copy_from_slice(&mac.as_ref()[..N]);
        bytes
    }

    pub(crate) fn number(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes())
    }
}

impl std::fmt::Debug for Draw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draw").field("drawn", &self.drawn).finish_non_exhaustive()
    }
}
