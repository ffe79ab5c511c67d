//! The limit of fan-out: one thread that writes the frames it is given to every socket, each with a
//! blocking write. It looks at nothing, has no queue, and knows nobody's name, so what it costs is
//! the kernel.
//!
//! A connection first says what it is, and hears one byte when it is in. The publisher sends
//! WebSocket frames as members are to get them, and before them how many go into one write.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// What a connection says that wants the frames.
pub(super) const MEMBER: u8 = b'm';
/// What the connection says that sends them; the number of members follows in four bytes.
pub(super) const PUBLISHER: u8 = b'p';
/// What both hear.
pub(super) const JOINED: u8 = b'k';
/// The first byte of a frame: a whole text.
pub(super) const TEXT: u8 = 0x81;
/// The first of two bytes of which the other says how many frames go into one write.
pub(super) const BATCH: u8 = 0;

const READ_BYTES: usize = 64 << 10;

pub(crate) fn serve(ready: &Path) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let partial = ready.with_extension("partial");
    std::fs::write(&partial, listener.local_addr()?.to_string())?;
    std::fs::rename(&partial, ready)?;
    let (mut members, mut publisher) = (Vec::new(), None);
    loop {
        let (mut stream, _) = listener.accept().context("accepting")?;
        stream.set_nodelay(true)?;
        let mut role = [0];
        stream.read_exact(&mut role)?;
        match role[0] {
            MEMBER => {
                stream.write_all(&[JOINED])?;
                members.push(stream);
            }
            PUBLISHER => {
                let mut count = [0; 4];
                stream.read_exact(&mut count)?;
                publisher = Some((stream, u32::from_be_bytes(count) as usize));
            }
            role => bail!("{role} is no role"),
        }
        // The one thread writes from here on, and nobody comes later.
        if let Some((mut stream, _)) = publisher.take_if(|(_, count)| *count == members.len()) {
            stream.write_all(&[JOINED])?;
            relay(stream, &mut members)?;
        }
    }
}

/// Writes what the publisher sends to all members until it ends.
fn relay(mut publisher: TcpStream, members: &mut [TcpStream]) -> Result<()> {
    let mut input = Vec::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut batch = 1;
    loop {
        let count = publisher.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        input.extend_from_slice(&buffer[..count]);
        let mut written = 0;
        while let Some(part) = Part::of(&input[written..], batch)? {
            match part {
                Part::Batch(frames) => {
                    batch = frames;
                    written += 2;
                }
                Part::Frames(bytes) => {
                    for member in &mut *members {
                        member.write_all(&input[written..written + bytes])?;
                    }
                    written += bytes;
                }
            }
        }
        input.drain(..written);
    }
}

/// What comes next from the publisher.
#[derive(Debug, Eq, PartialEq)]
enum Part {
    /// From here on so many frames go into one write.
    Batch(usize),
    /// Whole frames of so many bytes.
    Frames(usize),
}

impl Part {
    /// `None` when it is not whole.
    fn of(input: &[u8], batch: usize) -> Result<Option<Part>> {
        if let [BATCH, frames, ..] = input {
            ensure!(*frames > 0, "a batch of no frames");
            return Ok(Some(Part::Batch(usize::from(*frames))));
        }
        let mut bytes = 0;
        for _ in 0..batch {
            let [TEXT, 126, high, low, rest @ ..] = &input[bytes..] else {
                ensure!(input.len() - bytes < 4, "not a frame");
                return Ok(None);
            };
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if rest.len() < length {
                return Ok(None);
            }
            bytes += 4 + length;
        }
        Ok(Some(Part::Frames(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_written_when_all_its_frames_are_whole() -> Result<()> {
        let frame = [&[TEXT, 126, 0, 3][..], b"abc"].concat();
        let two = frame.repeat(2);
        assert_eq!(Part::of(&two, 1)?, Some(Part::Frames(7)));
        assert_eq!(Part::of(&two, 2)?, Some(Part::Frames(14)));
        for end in 0..two.len() {
            assert_eq!(Part::of(&two[..end], 2)?, None, "{end}");
        }
        assert_eq!(Part::of(&[BATCH], 1)?, None);
        assert_eq!(Part::of(&[BATCH, 10, TEXT], 1)?, Some(Part::Batch(10)));
        assert!(Part::of(b"GET /", 1).is_err());
        Ok(())
    }
}
