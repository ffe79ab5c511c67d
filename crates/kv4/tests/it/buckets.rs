//! Whose a bucket is.

use kv4::address::Bucket;
use wire::names::Ident;

#[test]
fn the_top_account_of_a_bucket_is_the_one_it_is_within() {
    let ident = |name: &str| Ident::parse(name).unwrap();
    let of = |name: &str, sub: Option<&str>| {
        Bucket::account(&ident(name), sub.map(ident).as_ref()).unwrap()
    };
    for name in ["elena", "elena-2", "Elena", "a_data"] {
        let top = of(name, None);
        assert_eq!(top.top(), top);
        for sub in ["lily", "elena", "b_data"] {
            assert_eq!(of(name, Some(sub)).top(), top);
            assert!(of(name, Some(sub)).is_within(&top));
        }
    }
    assert_eq!(Bucket::sys().top(), Bucket::sys());
}
