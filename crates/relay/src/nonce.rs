//! Nonces that nobody has to remember (RFC 8489 §9.2.1, §9.2.4): each says when it was made, and is signed
//! for the client's address.
//!
//! `obMatJos2`, four characters of the security features in base64, the time in eight hexadecimal digits and
//! twelve bytes of an HMAC in 24. Neurons of one cluster share the key, so that a client may go from one to
//! another.

use std::fmt::Write as _;
use std::net::SocketAddr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;

/// How long a nonce holds, in seconds.
pub const NONCE_S: u32 = 600;
/// The nonce cookie of RFC 8489 §9.2, by which a client knows that features follow.
const COOKIE: &str = "obMatJos2";
/// Bytes of the mac that a nonce carries.
const MAC_BYTES: usize = 12;

/// What a server tells that it can do beside the long-term mechanism of RFC 5389 (RFC 8489 §18.1), under
/// the protection of the nonce.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Features {
    /// Clients may choose a password algorithm.
    pub password_algorithms: bool,
    /// Clients may send USERHASH in place of USERNAME.
    pub username_anonymity: bool,
}

/// What a nonce that came back is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Look {
    Fresh,
    /// It was one of ours for this client.
    Stale,
    /// It never was.
    Forged,
}

/// Makes nonces and knows them again.
#[derive(Clone, Debug)]
pub struct Nonces {
    key: hmac::Key,
    features: Features,
}

impl Nonces {
    /// `key` is secret, and the same for all neurons of a cluster.
    pub fn new(key: &[u8], features: Features) -> Nonces {
        Nonces { key: hmac::Key::new(hmac::HMAC_SHA256, key), features }
    }

    /// A nonce for a client; `now_s` is in seconds since 1970.
    pub fn make(&self, now_s: u32, client: SocketAddr) -> String {
        let mut nonce = self.cookie();
        let _ = write!(nonce, "{now_s:08x}");
        for byte in self.mac(now_s, client) {
            let _ = write!(nonce, "{byte:02x}");
        }
        nonce
    }

    /// What a nonce is that a client sent. One from ahead of the clock, by no more than it holds, is fresh:
    /// clocks of neurons differ.
    pub fn look(&self, now_s: u32, client: SocketAddr, nonce: &[u8]) -> Look {
        let parts = nonce.strip_prefix(self.cookie().as_bytes());
        let parts = parts.and_then(|rest| rest.split_at_checked(8));
        let Some((made, mac)) = parts else { return Look::Forged };
        let Some(made_s) = std::str::from_utf8(made).ok().and_then(hex_u32) else {
            return Look::Forged;
        };
        let mut expected = String::with_capacity(2 * MAC_BYTES);
        for byte in self.mac(made_s, client) {
            let _ = write!(expected, "{byte:02x}");
        }
        if verify_slices_are_equal(expected.as_bytes(), mac).is_err() {
            return Look::Forged;
        }
        match now_s.abs_diff(made_s) {
            ..=NONCE_S => Look::Fresh,
            _ => Look::Stale,
        }
    }

    pub fn features(&self) -> Features {
        self.features
    }

    fn cookie(&self) -> String {
        // Bits 0 and 1, from the most significant, of 24; each base64 character has six.
        let first = usize::from(self.features.password_algorithms) << 5
            | usize::from(self.features.username_anonymity) << 4;
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        format!("{COOKIE}{}AAA", char::from(alphabet[first]))
    }

    fn mac(&self, made_s: u32, client: SocketAddr) -> [u8; MAC_BYTES] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(b"nonce");
        context.update(self.cookie().as_bytes());
        context.update(&made_s.to_be_bytes());
        context.update(&client.port().to_be_bytes());
        match client.ip() {
            std::net::IpAddr::V4(ip) => context.update(&ip.octets()),
            std::net::IpAddr::V6(ip) => context.update(&ip.octets()),
        }
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&context.sign().as_ref()[..MAC_BYTES]);
        mac
    }
}

/// Eight hexadecimal digits, lower case, and nothing else.
fn hex_u32(text: &str) -> Option<u32> {
    let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hex.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}
