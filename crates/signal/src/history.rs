//! What was said in a room a moment ago, for sockets that were lost and come back.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use wire::frames::{Cursor, Incarnation, Name, Session};

/// Bytes that a message costs beside its frame.
const ENTRY_BYTES: usize = 192;

/// Names of one room that are known to be lost, and sessions.
const LOST_MAX: usize = 1_000;

/// The last messages of one room, each by its offset: the first is 1. A room has one from when its
/// first v4 socket comes until some time after its last one has left.
#[derive(Debug)]
pub(crate) struct History {
    pub(crate) incarnation: Incarnation,
    /// Offset of the newest message.
    last: u64,
    /// Messages in order of their offsets, which end with `last`.
    messages: VecDeque<Message>,
    bytes: usize,
    /// Offsets of the messages that came with an id, by who sent them.
    published: BTreeMap<Mark, u64>,
    /// Names that were lost, and when: what is said to them is kept for when they come back.
    lost: BTreeMap<Name, Instant>,
    /// Sessions that were lost, so that they need not say again what was heard.
    sessions: BTreeMap<(Name, Session), LostSession>,
    /// Sessions that were sent away, and when: they do not hear what was said after that.
    ended: BTreeMap<(Name, Session), Instant>,
    /// When the last v4 socket left; none while there is one.
    pub(crate) idle_since: Option<Instant>,
    /// When [`History::expire`] is to be called next, if that has been arranged.
    pub(crate) due: Option<Instant>,
}

/// One message.
#[derive(Debug)]
pub(crate) struct Message {
    /// As v4 reads it.
    pub(crate) frame: Bytes,
    pub(crate) at: Instant,
    /// The sending session, which does not hear itself.
    pub(crate) from: Option<(Name, Session)>,
    /// The frame's id, as JSON text.
    pub(crate) id: Option<Box<str>>,
    /// The only one who may hear it.
    pub(crate) to: Option<Name>,
}

/// A session that may come back.
#[derive(Debug)]
struct LostSession {
    at: Instant,
    /// The id of the last frame that had one, as JSON text.
    last_id: Box<str>,
}

/// What a message that is to be counted once is known by.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Mark {
    from: Name,
    session: Session,
    id: Box<str>,
}

/// What a session that came back has yet to hear.
pub(crate) struct Missed {
    pub(crate) frames: Vec<Bytes>,
    /// What comes before them.
    pub(crate) cursor: Cursor,
    /// Whether that is everything since what it had read.
    pub(crate) is_whole: bool,
}

impl Message {
    fn bytes(&self) -> usize {
        ENTRY_BYTES + self.frame.len()
    }

    fn mark(&self) -> Option<Mark> {
        let ((from, session), id) = (self.from.clone()?, self.id.clone()?);
        Some(Mark { from, session, id })
    }

    fn is_for(&self, name: &Name, session: Session) -> bool {
        let is_own = self.from.as_ref().is_some_and(|(from, own)| from == name && *own == session);
        self.to.as_ref().map_or(!is_own, |to| to == name)
    }
}

impl History {
    pub(crate) fn new(incarnation: Incarnation) -> History {
        History {
            incarnation,
            last: 0,
            messages: VecDeque::new(),
            bytes: 0,
            published: BTreeMap::new(),
            lost: BTreeMap::new(),
            sessions: BTreeMap::new(),
            ended: BTreeMap::new(),
            idle_since: None,
            due: None,
        }
    }

    /// Where a reader of everything is.
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor::of(self.incarnation, self.last)
    }

    /// Where a reader of the next message will be.
    pub(crate) fn cursor_next(&self) -> Cursor {
        Cursor::of(self.incarnation, self.last + 1)
    }

    /// Where the message of an id stands, if it is known still.
    pub(crate) fn published(&self, from: &Name, session: Session, id: &str) -> Option<Cursor> {
        let mark = Mark { from: from.clone(), session, id: id.into() };
        self.published.get(&mark).map(|offset| Cursor::of(self.incarnation, *offset))
    }

    /// Adds a message; answers how many bytes more are held.
    pub(crate) fn push(&mut self, message: Message) -> usize {
        self.last += 1;
        if let Some(mark) = message.mark() {
            self.published.insert(mark, self.last);
        }
        let bytes = message.bytes();
        self.bytes += bytes;
        self.messages.push_back(message);
        bytes
    }

    /// Lets go of the oldest message; answers how many bytes fewer are held, 0 when there was none.
    pub(crate) fn pop(&mut self) -> usize {
        let Some(message) = self.messages.pop_front() else { return 0 };
        if let Some(mark) = message.mark() {
            self.published.remove(&mark);
        }
        let bytes = message.bytes();
        self.bytes -= bytes;
        bytes
    }

    /// What a session has yet to hear.
    pub(crate) fn since(&self, cursor: &Cursor, name: &Name, session: Session) -> Missed {
        let floor = self.last - self.messages.len() as u64;
        let read = cursor.offset(self.incarnation).filter(|read| *read <= self.last);
        let from = read.unwrap_or(0).max(floor);
        let skip = usize::try_from(from - floor).unwrap_or(usize::MAX);
        let unread =
            self.messages.iter().skip(skip).filter(|message| message.is_for(name, session));
        Missed {
            frames: unread.map(|message| message.frame.clone()).collect(),
            cursor: Cursor::of(self.incarnation, from),
            is_whole: read.is_some_and(|read| read >= floor),
        }
    }

    /// Notes that a name was lost, unless too many are.
    pub(crate) fn lose(&mut self, name: Name, now: Instant) {
        if self.lost.len() < LOST_MAX || self.lost.contains_key(&name) {
            self.lost.insert(name, now);
        }
    }

    /// Notes that a name has come back, or is here anyway.
    pub(crate) fn find(&mut self, name: &Name) {
        self.lost.remove(name);
    }

    /// Notes what was the last that a session said, unless too many are known.
    pub(crate) fn lose_session(
        &mut self,
        name: Name,
        session: Session,
        last_id: Box<str>,
        at: Instant,
    ) {
        if self.sessions.len() < LOST_MAX {
            self.sessions.insert((name, session), LostSession { at, last_id });
        }
    }

    /// Notes that a session was sent away; `false` when too many are known.
    pub(crate) fn end_session(&mut self, name: Name, session: Session, now: Instant) -> bool {
        let has_room = self.ended.len() < LOST_MAX;
        if has_room {
            self.ended.insert((name, session), now);
        }
        has_room
    }

    /// Whether a session was sent away.
    pub(crate) fn has_ended(&self, name: &Name, session: Session) -> bool {
        self.ended.contains_key(&(name.clone(), session))
    }

    /// What was the last that a session said that has come back.
    pub(crate) fn find_session(&mut self, name: &Name, session: Session) -> Option<Box<str>> {
        self.sessions.remove(&(name.clone(), session)).map(|lost| lost.last_id)
    }

    /// The name, if it was lost.
    pub(crate) fn lost(&self, name: &str) -> Option<&Name> {
        self.lost.get_key_value(name).map(|(name, _)| name)
    }

    /// Lets go of what is older than `lasts`; answers how many bytes fewer are held.
    pub(crate) fn expire(&mut self, now: Instant, lasts: Duration) -> usize {
        let mut freed = 0;
        while self.messages.front().is_some_and(|message| message.at + lasts <= now) {
            freed += self.pop();
        }
        self.lost.retain(|_, at| *at + lasts > now);
        self.sessions.retain(|_, lost| lost.at + lasts > now);
        self.ended.retain(|_, at| *at + lasts > now);
        freed
    }

    /// Whether nobody can come back to it any more.
    pub(crate) fn is_over(&self, now: Instant, lasts: Duration) -> bool {
        self.idle_since.is_some_and(|since| since + lasts <= now)
    }

    /// When something of it will be too old.
    pub(crate) fn expires(&self, lasts: Duration) -> Option<Instant> {
        let oldest = self.messages.front().map(|message| message.at);
        let lost = self.lost.values().min().copied();
        let session = self.sessions.values().map(|lost| lost.at).min();
        let ended = self.ended.values().min().copied();
        [oldest, lost, session, ended, self.idle_since]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at + lasts)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }
}
