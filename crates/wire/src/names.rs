//! The names that address data: path, layer, key, identity.
//!
//! Each type can only hold a value that is legal everywhere it may travel (URL, frame, store,
//! log), so nothing behind the edge checks a name again. Not here: what a path means to a service.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// Longest canonical path, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;
/// Longest segment of a path, in bytes.
pub const SEGMENT_BYTES_MAX: usize = 255;
/// Most segments in a path.
pub const SEGMENTS_MAX: usize = 32;
/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// Longest layer name, in bytes.
pub const LAYER_BYTES_MAX: usize = 128;
/// Longest account name, in bytes.
pub const IDENT_BYTES_MAX: usize = 64;

/// Why a text is not a name; the wire code is [`NameError::code`].
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum NameError {
    #[error("the path is longer than {PATH_BYTES_MAX} bytes or {SEGMENTS_MAX} segments")]
    PathTooLong,
    #[error(
        "a path segment is longer than {SEGMENT_BYTES_MAX} bytes, is `.` or `..`, or holds a control character"
    )]
    BadSegment,
    #[error("a percent escape is cut short, is not hexadecimal, or does not give UTF-8")]
    BadEscape,
    #[error("the key is empty, longer than {KEY_BYTES_MAX} bytes, or holds a control character")]
    BadKey,
    #[error(
        "the layer is empty, longer than {LAYER_BYTES_MAX} bytes, or holds a control character"
    )]
    BadLayer,
    #[error(
        "the name is empty or `sys`, longer than {IDENT_BYTES_MAX} bytes, starts with `!` or `$`, or holds one of `/ # : )` or a control character"
    )]
    BadIdent,
}

impl NameError {
    /// The word of the error vocabulary that this answers on the wire.
    pub fn code(self) -> crate::errors::Code {
        match self {
            NameError::PathTooLong | NameError::BadSegment | NameError::BadEscape => {
                crate::errors::Code::BadSegment
            }
            NameError::BadKey => crate::errors::Code::BadName,
            NameError::BadLayer => crate::errors::Code::BadLayerPrefix,
            NameError::BadIdent => crate::errors::Code::BadUsername,
        }
    }
}

macro_rules! text_name {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

/// A canonical path: `/` or `/a/b`, UTF-8, no empty segment, no trailing slash.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Path(Arc<str>);

text_name!(Path);

impl Path {
    /// `/`.
    pub fn root() -> Path {
        Path(Arc::from("/"))
    }

    /// Reads a path that is already decoded: slashes collapse, both ends are trimmed.
    ///
    /// # Errors
    /// A path or segment over its limit, a `.` or `..` segment, a control character.
    pub fn parse(text: &str) -> Result<Path, NameError> {
        let mut canonical = String::with_capacity(text.len() + 1);
        let mut segments = 0;
        for segment in text.split('/').filter(|segment| !segment.is_empty()) {
            if segment.len() > SEGMENT_BYTES_MAX
                || segment == "."
                || segment == ".."
                || segment.chars().any(char::is_control)
            {
                return Err(NameError::BadSegment);
            }
            segments += 1;
            canonical.push('/');
            canonical.push_str(segment);
        }
        if segments > SEGMENTS_MAX || canonical.len() > PATH_BYTES_MAX {
            return Err(NameError::PathTooLong);
        }
        if canonical.is_empty() {
            canonical.push('/');
        }
        Ok(Path(Arc::from(canonical)))
    }

    /// Reads the path of a URL: percent-decodes, then splits, so `my%2Fchan` and `my/chan` are one
    /// path (`spec/xirsys.md` §1.1).
    ///
    /// # Errors
    /// As [`Path::parse`], and for a bad escape.
    pub fn from_url(text: &str) -> Result<Path, NameError> {
        Path::parse(&percent_decode(text, false)?)
    }

    pub fn is_root(&self) -> bool {
        &*self.0 == "/"
    }

    /// Segments from the root down; none for `/`.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|segment| !segment.is_empty())
    }

    /// Number of segments.
    pub fn depth(&self) -> usize {
        if self.is_root() { 0 } else { self.0.bytes().filter(|byte| *byte == b'/').count() }
    }

    /// The path one segment up, and that segment; `None` for `/`.
    pub fn split_last(&self) -> Option<(Path, &str)> {
        let (parent, last) = self.0.rsplit_once('/')?;
        if last.is_empty() {
            return None;
        }
        let parent = if parent.is_empty() { Path::root() } else { Path(Arc::from(parent)) };
        Some((parent, last))
    }

    /// The path and every path above it, deepest first, `/` last.
    pub fn ancestors(&self) -> impl Iterator<Item = Path> {
        let mut next = Some(self.clone());
        std::iter::from_fn(move || {
            let current = next.take()?;
            next = current.split_last().map(|(parent, _)| parent);
            Some(current)
        })
    }

    /// This path with the segments of `below` added.
    ///
    /// # Errors
    /// As [`Path::parse`].
    pub fn join(&self, below: &str) -> Result<Path, NameError> {
        Path::parse(&format!("{}/{below}", self.0))
    }

    /// Whether this path is `base` or lies below it.
    pub fn is_within(&self, base: &Path) -> bool {
        self.relative_to(base).is_some()
    }

    /// What follows `base`, without a leading slash; empty for `base` itself, `None` outside it.
    pub fn relative_to(&self, base: &Path) -> Option<&str> {
        if base.is_root() {
            return Some(&self.0[1..]);
        }
        let rest = self.0.strip_prefix(&*base.0)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
    }
}

/// The name of a layer: `*data`, `*stats:api:3`, `default`.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Layer(Arc<str>);

text_name!(Layer);

impl Layer {
    /// # Errors
    /// Empty, over [`LAYER_BYTES_MAX`], or with a control character.
    pub fn parse(text: &str) -> Result<Layer, NameError> {
        if text.is_empty() || text.len() > LAYER_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(NameError::BadLayer);
        }
        Ok(Layer(Arc::from(text)))
    }
}

/// A primary or secondary key.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key(Arc<str>);

text_name!(Key);

impl Key {
    /// # Errors
    /// Empty, over [`KEY_BYTES_MAX`], or with a control character.
    pub fn parse(text: &str) -> Result<Key, NameError> {
        if text.is_empty() || text.len() > KEY_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(NameError::BadKey);
        }
        Ok(Key(Arc::from(text)))
    }
}

/// The name of an account or sub-account.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ident(Arc<str>);

text_name!(Ident);

impl Ident {
    /// The system account, which is configuration and not a row.
    pub fn sys() -> Ident {
        Ident(Arc::from("$sys"))
    }

    pub fn is_sys(&self) -> bool {
        &*self.0 == "$sys"
    }

    /// Reads the text of any account's name, the system's too.
    ///
    /// # Errors
    /// [`NameError::BadIdent`].
    pub fn from_stored(text: &str) -> Result<Ident, NameError> {
        let sys = Ident::sys();
        if text == &*sys.0 { Ok(sys) } else { Ident::parse(text) }
    }

    /// Reads a name that a caller may give to an account. `$` is kept for the system, as is `sys`,
    /// whose bucket would be that of `$sys`; `!`, `#`, `:`, `)` and `/` are punctuation of
    /// credentials, bucket names and paths.
    ///
    /// # Errors
    /// [`NameError::BadIdent`].
    pub fn parse(text: &str) -> Result<Ident, NameError> {
        let bad = text.is_empty()
            || text.len() > IDENT_BYTES_MAX
            || text == "sys"
            || text.starts_with(['!', '$'])
            || text.contains(|c: char| matches!(c, '/' | '#' | ':' | ')') || c.is_control());
        if bad { Err(NameError::BadIdent) } else { Ok(Ident(Arc::from(text))) }
    }
}

/// Decodes `%41` (and, in queries and forms, `+` as a space).
///
/// # Errors
/// [`NameError::BadEscape`] for a cut or non-hexadecimal escape, or bytes that are not UTF-8.
pub fn percent_decode(text: &str, plus_is_space: bool) -> Result<String, NameError> {
    let mut decoded = Vec::with_capacity(text.len());
    percent_decode_into(&mut decoded, text, plus_is_space)?;
    String::from_utf8(decoded).map_err(|_| NameError::BadEscape)
}

/// Appends what [`percent_decode`] makes, which need not be UTF-8 here.
pub(crate) fn percent_decode_into(
    decoded: &mut Vec<u8>,
    text: &str,
    plus_is_space: bool,
) -> Result<(), NameError> {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let high = bytes.next().and_then(hex_digit).ok_or(NameError::BadEscape)?;
                let low = bytes.next().and_then(hex_digit).ok_or(NameError::BadEscape)?;
                high << 4 | low
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    Ok(())
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}
