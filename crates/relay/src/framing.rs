//! What comes over a transport: STUN messages and ChannelData, told apart by their first two bits
//! (RFC 8656 §12, RFC 7983), and found in a stream (RFC 8656 §12.5, RFC 8489 §6.2.2).

use std::ops::RangeInclusive;

use thiserror::Error;

use crate::stun::{HEADER_BYTES, MAGIC_COOKIE};

/// Bytes before the data of a ChannelData message.
pub const CHANNEL_HEADER_BYTES: usize = 4;
/// Channel numbers that may be bound (RFC 8656 §12).
pub const CHANNEL_NUMBERS: RangeInclusive<u16> = 0x4000..=0x4FFF;
/// Longest frame of a stream: a Send indication of the longest datagram.
pub const FRAME_BYTES_MAX: usize = 65_535 + 128;

/// Bytes that begin neither a STUN message nor ChannelData: a stream cannot be read on from there.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("neither a STUN message nor ChannelData")]
pub struct NotTurn;

/// Data on a channel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChannelData<'a> {
    pub number: u16,
    pub data: &'a [u8],
}

impl<'a> ChannelData<'a> {
    /// Reads what a datagram or a frame holds; what is behind the data is padding. `None` for anything
    /// else, and when it says that it is longer.
    pub fn read(bytes: &'a [u8]) -> Option<ChannelData<'a>> {
        let (head, rest) = bytes.split_first_chunk::<CHANNEL_HEADER_BYTES>()?;
        let number = u16::from_be_bytes([head[0], head[1]]);
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let data = rest.get(..length)?;
        CHANNEL_NUMBERS.contains(&number).then_some(ChannelData { number, data })
    }

    /// What comes before data of so many bytes; `None` when no message can hold them.
    pub fn header(number: u16, data_bytes: usize) -> Option<[u8; CHANNEL_HEADER_BYTES]> {
        let [a, b] = number.to_be_bytes();
        let [c, d] = u16::try_from(data_bytes).ok()?.to_be_bytes();
        Some([a, b, c, d])
    }
}

/// Whether a datagram may be ChannelData; else it may be STUN, or nothing.
pub fn is_channel_data(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| first >> 6 == 1)
}

/// How long the first frame of a stream is, padding included; `None` while too little of it is there.
///
/// # Errors
/// The stream holds something else.
pub fn frame_bytes(stream: &[u8]) -> Result<Option<usize>, NotTurn> {
    let Some(head) = stream.first_chunk::<4>() else {
        // One byte tells enough to give up on it.
        return match stream.first() {
            Some(first) if first >> 6 > 1 => Err(NotTurn),
            _ => Ok(None),
        };
    };
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let bytes = match head[0] >> 6 {
        0 => {
            let cookie = &stream[4..stream.len().min(8)];
            if !length.is_multiple_of(4) || !MAGIC_COOKIE.starts_with(cookie) {
                return Err(NotTurn);
            }
            HEADER_BYTES + length
        }
        1 => CHANNEL_HEADER_BYTES + length.next_multiple_of(4),
        _ => return Err(NotTurn),
    };
    Ok(Some(bytes).filter(|bytes| *bytes <= stream.len()))
}

/// Finds frames in a stream that comes piece by piece. What it holds is bounded by
/// [`FRAME_BYTES_MAX`]: a length is looked at before what it speaks of is kept.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: Vec<u8>,
    /// Where the next frame begins.
    start: usize,
}

impl Frames {
    /// Adds bytes of the stream. To be called when [`Frames::next_frame`] has none.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame: a STUN message, or ChannelData with its padding; `None` when more is to come.
    ///
    /// # Errors
    /// The stream holds something else: it is to be closed.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, NotTurn> {
        let begun = self.start;
        let Some(bytes) = frame_bytes(&self.buffer[begun..])? else {
            if begun == self.buffer.len() {
                // A stream that rests holds no room.
                (self.buffer, self.start) = (Vec::new(), 0);
            }
            return Ok(None);
        };
        self.start += bytes;
        Ok(Some(&self.buffer[begun..self.start]))
    }

    /// Bytes that are held of frames that are not whole.
    pub fn held_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }
}
