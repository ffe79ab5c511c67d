//! Where a reader of a room is: what he gives back to go on after a lost socket.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The format of a cursor's text; an unknown one is refused.
const VERSION: char = 'a';
/// Most entries that a cursor is read with: neurons that have had members of one room.
const ENTRIES_MAX: usize = 64;

/// Digits of each number of a session.
const NUMBER_DIGITS: usize = 16;

/// One room's stream of messages on one neuron, from its first to when it was forgotten. Never given
/// twice.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Incarnation(pub u64);

/// One reader and writer of a room across the sockets that follow one another.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Session {
    /// The stream that it reads.
    pub incarnation: Incarnation,
    /// Which of the stream's sessions it is.
    pub number: u64,
    /// How many messages had been said when it began, which are not for it.
    pub born: u64,
    /// What only a neuron of this system could have given with all that, to this name in this room.
    pub seal: u64,
}

/// What has been read of each stream: how many of its messages. Its text is opaque to clients.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cursor {
    /// Sorted by incarnation, each once.
    read: Vec<(Incarnation, u64)>,
}

/// A text that no neuron gave as a cursor.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("not a cursor of this system")]
pub struct CursorError;

impl Cursor {
    /// A reader of one stream.
    pub fn of(incarnation: Incarnation, offset: u64) -> Cursor {
        Cursor { read: vec![(incarnation, offset)] }
    }

    /// How many messages of a stream were read; `None` when it is not known.
    pub fn offset(&self, incarnation: Incarnation) -> Option<u64> {
        let at = self.read.binary_search_by_key(&incarnation, |(known, _)| *known).ok()?;
        Some(self.read[at].1)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}")?;
        for (at, (incarnation, offset)) in self.read.iter().enumerate() {
            let comma = if at == 0 { "" } else { "." };
            write!(f, "{comma}{:x}-{offset:x}", incarnation.0)?;
        }
        Ok(())
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Cursor, CursorError> {
        let entries = text.strip_prefix(VERSION).ok_or(CursorError)?;
        let mut read = Vec::new();
        for entry in entries.split('.').filter(|_| !entries.is_empty()) {
            let (incarnation, offset) = entry.split_once('-').ok_or(CursorError)?;
            read.push((Incarnation(number(incarnation)?), number(offset)?));
        }
        let is_sorted = read.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if read.len() > ENTRIES_MAX || !is_sorted {
            return Err(CursorError);
        }
        Ok(Cursor { read })
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Session { incarnation, number, born, seal } = self;
        write!(f, "{:016x}{number:016x}{born:016x}{seal:016x}", incarnation.0)
    }
}

impl FromStr for Session {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Session, CursorError> {
        if text.len() != 4 * NUMBER_DIGITS || !text.is_ascii() {
            return Err(CursorError);
        }
        let part = |at: usize| number(&text[at * NUMBER_DIGITS..(at + 1) * NUMBER_DIGITS]);
        let [incarnation, number, born, seal] = [part(0)?, part(1)?, part(2)?, part(3)?];
        Ok(Session { incarnation: Incarnation(incarnation), number, born, seal })
    }
}

/// Hexadecimal digits, 1 to 16 of them, without a sign.
fn number(text: &str) -> Result<u64, CursorError> {
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(CursorError);
    }
    u64::from_str_radix(text, 16).map_err(|_| CursorError)
}
