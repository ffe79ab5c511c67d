//! Nonces: whose they are, and for how long.

use std::net::SocketAddr;

use relay::nonce::{Features, Look, NONCE_S, Nonces};

fn client(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

#[test]
fn a_nonce_holds_for_its_client_for_ten_minutes() {
    let nonces = Nonces::new(b"the cluster's", Features::default());
    let (ann, now_s) = (client("192.0.2.1:5000"), 1_700_000_000);
    let nonce = nonces.make(now_s, ann);
    let look = |now_s| nonces.look(now_s, ann, nonce.as_bytes());
    assert_eq!(look(now_s), Look::Fresh);
    assert_eq!(look(now_s + NONCE_S), Look::Fresh);
    assert_eq!(look(now_s + NONCE_S + 1), Look::Stale);
    // Another neuron's clock may be behind.
    assert_eq!(look(now_s - 5), Look::Fresh);
    assert_eq!(look(now_s - NONCE_S - 1), Look::Stale);
    assert_eq!(look(0), Look::Stale);
    for other in ["192.0.2.1:5001", "192.0.2.2:5000", "[2001:db8::1]:5000"] {
        assert_eq!(nonces.look(now_s, client(other), nonce.as_bytes()), Look::Forged, "{other}");
    }
    // Every neuron of the cluster knows it, and nobody else.
    let same = Nonces::new(b"the cluster's", Features::default());
    assert_eq!(same.look(now_s, ann, nonce.as_bytes()), Look::Fresh);
    let other = Nonces::new(b"another's", Features::default());
    assert_eq!(other.look(now_s, ann, nonce.as_bytes()), Look::Forged);
}

#[test]
fn a_nonce_that_was_changed_anywhere_is_forged() {
    let all = Features { password_algorithms: true, username_anonymity: true };
    let nonces = Nonces::new(b"key", all);
    let (ann, now_s) = (client("[2001:db8::1]:9"), 0x6543_2100);
    let nonce = nonces.make(now_s, ann).into_bytes();
    assert!(nonce.is_ascii() && nonce.len() <= 128, "RFC 8489 §14.10");
    for at in 0..nonce.len() {
        for byte in [nonce[at] ^ 1, nonce[at].to_ascii_uppercase(), b'"', 0xFF] {
            let mut forged = nonce.clone();
            forged[at] = byte;
            let expected = if forged == nonce { Look::Fresh } else { Look::Forged };
            assert_eq!(nonces.look(now_s, ann, &forged), expected, "{at}: {byte}");
        }
        assert_eq!(nonces.look(now_s, ann, &nonce[..at]), Look::Forged);
    }
    let longer = [&nonce[..], b"0"].concat();
    assert_eq!(nonces.look(now_s, ann, &longer), Look::Forged);
    for text in ["", "obMatJos2", "obMatJos2AAAA", "é", "obMatJos2AAAA+1234567"] {
        assert_eq!(nonces.look(now_s, ann, text.as_bytes()), Look::Forged, "{text}");
    }
}

/// RFC 8489 §9.2 and §18.1: bit 0 is password algorithms, bit 1 username anonymity, of 24 bits in base64;
/// one that was told of fewer by somebody in between is none of ours.
#[test]
fn the_features_stand_in_the_nonce() {
    let features = |password_algorithms, username_anonymity| Features {
        password_algorithms,
        username_anonymity,
    };
    let (ann, now_s) = (client("192.0.2.1:5000"), 1_700_000_000);
    for (features, expected) in [
        (features(false, false), "obMatJos2AAAA"),
        (features(true, false), "obMatJos2gAAA"),
        (features(false, true), "obMatJos2QAAA"),
        (features(true, true), "obMatJos2wAAA"),
    ] {
        let nonces = Nonces::new(b"key", features);
        let nonce = nonces.make(now_s, ann);
        assert!(nonce.starts_with(expected), "{nonce}");
        assert_eq!(nonces.features(), features);
        let stripped = nonce.replace(expected, "obMatJos2AAAA");
        let expected = if stripped == nonce { Look::Fresh } else { Look::Forged };
        assert_eq!(nonces.look(now_s, ann, stripped.as_bytes()), expected);
    }
}
