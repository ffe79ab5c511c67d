//! Texts after their lengths, cut anywhere.

use proptest::prelude::*;
use wire::lengths::{Decoder, LENGTH_BYTES, header};
use wire::ws::ProtocolError;

fn frame(text: &[u8]) -> Vec<u8> {
    [&header(text.len())[..], text].concat()
}

/// What comes of bytes that arrive in pieces of these sizes, over and over.
fn read(
    decoder: &mut Decoder,
    mut bytes: &[u8],
    sizes: &[usize],
) -> Result<Vec<String>, ProtocolError> {
    let mut texts = Vec::new();
    let mut sizes = sizes.iter().cycle();
    while !bytes.is_empty() {
        let size = sizes.next().copied().unwrap_or(1).clamp(1, bytes.len());
        let taken = decoder.push(&bytes[..size]);
        assert!(taken > 0, "something is taken when nothing is left to read");
        bytes = &bytes[taken..];
        while let Some(text) = decoder.next_text()? {
            texts.push(text.to_owned());
        }
    }
    Ok(texts)
}

proptest! {
    #[test]
    fn what_was_sent_is_read_however_it_was_cut(
        texts in prop::collection::vec("[a-zé]{0,40}", 0..8),
        sizes in prop::collection::vec(1..50usize, 1..6),
    ) {
        let bytes: Vec<u8> = texts.iter().flat_map(|text| frame(text.as_bytes())).collect();
        prop_assert_eq!(read(&mut Decoder::new(80), &bytes, &sizes), Ok(texts));
    }

    #[test]
    fn garbage_is_an_answer(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        sizes in prop::collection::vec(1..50usize, 1..6),
    ) {
        let mut decoder = Decoder::new(1000);
        let first = read(&mut decoder, &bytes, &sizes).err();
        if let Some(error) = first {
            prop_assert_eq!(decoder.push(b"abc"), 3);
            prop_assert_eq!(decoder.next_text(), Err(error));
        }
    }
}

#[test]
fn a_text_at_its_limit_and_past_it() {
    let of = |bytes: usize| frame("x".repeat(bytes).as_bytes());
    let texts = read(&mut Decoder::new(10), &of(10), &[3]).expect("at the limit");
    assert_eq!(texts, ["x".repeat(10)]);
    let mut decoder = Decoder::new(10);
    assert_eq!(
        read(&mut decoder, &of(11)[..LENGTH_BYTES], &[9]),
        Err(ProtocolError::MessageTooLong)
    );
    let mut decoder = Decoder::new(10);
    assert_eq!(read(&mut decoder, &[0, 0, 0, 1, 0xFF], &[9]), Err(ProtocolError::NotUtf8));
    assert_eq!(read(&mut Decoder::new(10), &[0; 8], &[1]), Ok(vec![String::new(); 2]));
}
