//! Passwords of coturn's REST form, as `openssl dgst -sha1 -hmac` makes them.

use relay::rest::RestPasswords;
use relay::server::Passwords;

const DAY_S: u64 = 86_400;
const NOW_S: u64 = 1_700_000_000;

#[test]
fn a_name_has_a_password_of_each_secret_until_it_ends() {
    let passwords = RestPasswords::new([&b"north"[..], b"south"], DAY_S);
    let of = |now_s, name| passwords.of(now_s, name);
    let both = of(NOW_S, "1700000060:ann");
    assert_eq!((both.len(), &*both[0]), (2, "FU+L3A2KrinuwW92i96aGoopJUw="));
    assert_eq!(of(NOW_S, "1700000060")[0], "aqoYHq0SZvNMrBZ16421DRySfm0=");
    assert_eq!(of(NOW_S + 59, "1700000060:ann"), both);
    assert!(of(NOW_S + 60, "1700000060:ann").is_empty(), "it is over");
    assert_eq!(of(NOW_S, "1700086400:ann").len(), 2);
    assert!(of(NOW_S, "1700086401:ann").is_empty(), "it would last too long");
    for name in
        ["", ":ann", "ann", "+1700000060:ann", "1700000060 :ann", "99999999999999999999999:ann"]
    {
        assert!(of(NOW_S, name).is_empty(), "{name}");
    }
    assert!(!format!("{passwords:?}").contains("north"));
}
