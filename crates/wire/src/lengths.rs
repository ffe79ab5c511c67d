//! Texts on a stream, each after its length: signalling over TCP and Unix sockets
//! (`docs/reference/signalling.md`).
//!
//! A text is four bytes of length, big-endian, and so many bytes of UTF-8. A length of zero is a sign
//! of life: a server that has heard nothing for long sends one, and a client answers it with one.

use crate::ws::ProtocolError;

/// Bytes of a length.
pub const LENGTH_BYTES: usize = 4;

/// Finds texts in a stream.
///
/// Push bytes as they come and ask for texts until there is none. What is held is bounded by the
/// longest text.
#[derive(Debug)]
pub struct Decoder {
    text_bytes_max: usize,
    buffer: Vec<u8>,
    /// Where in the buffer the next length begins.
    start: usize,
    failed: Option<ProtocolError>,
}

impl Decoder {
    /// A text longer than `text_bytes_max` is refused with [`ProtocolError::MessageTooLong`].
    pub fn new(text_bytes_max: usize) -> Decoder {
        Decoder { text_bytes_max, buffer: Vec::new(), start: 0, failed: None }
    }

    /// Takes bytes from the front of `bytes` and says how many. After [`Decoder::next_text`] has
    /// answered `None` at least one is taken; after an error all are taken and dropped.
    #[must_use = "bytes that were not taken must be pushed again"]
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        if self.failed.is_some() {
            return bytes.len();
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let bound = LENGTH_BYTES + self.text_bytes_max;
        let taken = bytes.len().min(bound - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// The next text, empty for a sign of life, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// A text that is too long or not UTF-8; every later call answers the same.
    pub fn next_text(&mut self) -> Result<Option<&str>, ProtocolError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let rest = &self.buffer[self.start..];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH_BYTES>() else {
            self.release();
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > self.text_bytes_max {
            return Err(self.fail(ProtocolError::MessageTooLong));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let from = self.start + LENGTH_BYTES;
        self.start = from + length;
        if std::str::from_utf8(&self.buffer[from..self.start]).is_err() {
            return Err(self.fail(ProtocolError::NotUtf8));
        }
        // Looked at just now; borrowed anew, since the error above needs the whole of it.
        Ok(std::str::from_utf8(&self.buffer[from..self.start]).ok())
    }

    fn fail(&mut self, error: ProtocolError) -> ProtocolError {
        (self.buffer, self.start) = (Vec::new(), 0);
        self.failed = Some(error);
        error
    }

    /// An idle connection holds no buffer.
    fn release(&mut self) {
        if self.start == self.buffer.len() {
            (self.buffer, self.start) = (Vec::new(), 0);
        }
    }
}

/// What comes before a text of so many bytes.
///
/// # Panics
/// If the text is 4 GiB long or longer.
pub fn header(text_bytes: usize) -> [u8; LENGTH_BYTES] {
    u32::try_from(text_bytes).expect("a text is far shorter than 4 GiB").to_be_bytes()
}
