//! What was said in a room a moment ago, for sockets that were lost and come back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use wire::frames::{Cursor, Incarnation, Name, Session};

/// Bytes that a message costs beside its frame.
const ENTRY_BYTES: usize = 192;

/// Names of one room that are known to be lost, sessions, names that were sent away, and names that a
/// message was let go of for.
const LOST_MAX: usize = 1_000;

/// Sessions of one name that are known to be lost: as many as a name has sockets by default.
const SESSIONS_PER_NAME_MAX: usize = 16;

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
    /// Those of the messages that came with an id.
    published: BTreeSet<Mark>,
    /// Names that were lost, and when: what is said to them is kept for when they come back.
    lost: BTreeMap<Name, Instant>,
    /// Sessions that were lost, so that they need not say again what was heard.
    sessions: BTreeMap<(Name, Session), LostSession>,
    /// Sessions that were begun.
    made: u64,
    /// Names that were sent away.
    sent_away: BTreeMap<Name, SentAway>,
    /// The last session that was begun before everybody was sent away.
    all_sent_away: u64,
    /// The newest broadcast that was let go of.
    broadcasts_gone: u64,
    /// What else was let go of, by whom it concerns.
    names_gone: BTreeMap<Name, Gone>,
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

/// Which sessions of a name that was sent away are over.
#[derive(Debug)]
struct SentAway {
    /// All up to this one,
    made: u64,
    /// but for those of sockets that stayed.
    staying: Vec<u64>,
}

/// What a message that is to be counted once is known by.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Mark {
    from: Name,
    session: Session,
    id: Box<str>,
}

/// Offsets of the newest messages that were let go of, of those that concern one name.
#[derive(Clone, Copy, Debug, Default)]
struct Gone {
    /// To it alone.
    to_it: u64,
    /// From it, with an id.
    from_it: u64,
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
            published: BTreeSet::new(),
            lost: BTreeMap::new(),
            sessions: BTreeMap::new(),
            sent_away: BTreeMap::new(),
            made: 0,
            all_sent_away: 0,
            broadcasts_gone: 0,
            names_gone: BTreeMap::new(),
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

    /// Whether the message of an id is known still.
    pub(crate) fn has_published(&self, from: &Name, session: Session, id: &str) -> bool {
        let mark = Mark { from: from.clone(), session, id: id.into() };
        self.published.contains(&mark)
    }

    /// Adds a message; answers how many bytes more are held.
    pub(crate) fn push(&mut self, message: Message) -> usize {
        self.last += 1;
        if let Some(mark) = message.mark() {
            self.published.insert(mark);
        }
        let bytes = message.bytes();
        self.bytes += bytes;
        self.messages.push_back(message);
        bytes
    }

    /// Lets go of the oldest message; answers how many bytes fewer are held, 0 when there was none.
    pub(crate) fn pop(&mut self) -> usize {
        let Some(message) = self.messages.pop_front() else { return 0 };
        let offset = self.last - self.messages.len() as u64;
        if self.names_gone.len() + 2 > LOST_MAX {
            // Too many names to tell them apart: any of them may have missed it.
            self.names_gone.clear();
            self.broadcasts_gone = offset;
        }
        match message.to.clone() {
            Some(to) => self.names_gone.entry(to).or_default().to_it = offset,
            None => self.broadcasts_gone = offset,
        }
        if let Some(mark) = message.mark() {
            self.published.remove(&mark);
            self.names_gone.entry(mark.from).or_default().from_it = offset;
        }
        let bytes = message.bytes();
        self.bytes -= bytes;
        bytes
    }

    /// What a session of this history has yet to hear. Unless it `knows_last`, what it said and has no answer to counts
    /// as missed when that is known no more: it would be said, and heard, again.
    pub(crate) fn since(
        &self,
        cursor: &Cursor,
        name: &Name,
        session: Session,
        knows_last: bool,
    ) -> Missed {
        let floor = self.last - self.messages.len() as u64;
        // A cursor is what its reader says it is; where a session began is sealed.
        let read = cursor.offset(self.incarnation).filter(|read| *read <= self.last);
        let read = read.map(|read| read.max(session.born));
        let from = read.unwrap_or(session.born).max(floor);
        let of_name = self.names_gone.get(name).copied().unwrap_or_default();
        let own = if knows_last { 0 } else { of_name.from_it };
        let gone = self.broadcasts_gone.max(of_name.to_it).max(own);
        let skip = usize::try_from(from - floor).unwrap_or(usize::MAX);
        let unread =
            self.messages.iter().skip(skip).filter(|message| message.is_for(name, session));
        Missed {
            frames: unread.map(|message| message.frame.clone()).collect(),
            cursor: Cursor::of(self.incarnation, from),
            is_whole: read.is_some_and(|read| read >= gone),
        }
    }

    /// Notes that a name was lost. Answers how many others had to be forgotten for it.
    pub(crate) fn lose(&mut self, name: Name, now: Instant) -> usize {
        self.lost.insert(name, now);
        if self.lost.len() <= LOST_MAX {
            return 0;
        }
        let oldest = self.lost.iter().min_by_key(|(_, at)| **at).map(|(name, _)| name.clone());
        oldest.and_then(|name| self.lost.remove(&name)).map_or(0, |_| 1)
    }

    /// Notes that a name has come back, or is here anyway.
    pub(crate) fn find(&mut self, name: &Name) {
        self.lost.remove(name);
    }

    /// Notes what was the last that a session said. Answers how many others had to be forgotten for
    /// it: of a name that has too many the oldest, else the oldest of all.
    pub(crate) fn lose_session(
        &mut self,
        name: Name,
        session: Session,
        last_id: Box<str>,
        at: Instant,
    ) -> usize {
        let of_name = self.sessions.range(of(&name));
        let is_crowded = of_name.clone().count() >= SESSIONS_PER_NAME_MAX;
        let oldest = match is_crowded {
            true => of_name.min_by_key(|(_, lost)| lost.at),
            false if self.sessions.len() >= LOST_MAX => {
                self.sessions.iter().min_by_key(|(_, lost)| lost.at)
            }
            false => None,
        };
        let oldest = oldest.map(|(key, _)| key.clone());
        self.sessions.insert((name, session), LostSession { at, last_id });
        oldest.and_then(|key| self.sessions.remove(&key)).map_or(0, |_| 1)
    }

    /// Sees to it that no session that a name has had goes on, but for some that stay.
    pub(crate) fn send_away(&mut self, name: &Name, staying: Vec<u64>) {
        self.lost.remove(name);
        self.sessions.retain(|(of, session), _| of != name || staying.contains(&session.number));
        self.sent_away.insert(name.clone(), SentAway { made: self.made, staying });
        if self.sent_away.len() > LOST_MAX {
            // Every session that is older than the older half of these ends with them.
            let mut made: Vec<_> = self.sent_away.values().map(|away| away.made).collect();
            let (_, middle, _) = made.select_nth_unstable(LOST_MAX / 2);
            self.all_sent_away = *middle;
            self.sent_away.retain(|_, away| away.made > *middle);
        }
    }

    /// The same for all names.
    pub(crate) fn send_all_away(&mut self) {
        self.lost.clear();
        self.sessions.clear();
        self.sent_away.clear();
        self.all_sent_away = self.made;
    }

    /// Begins a session: which it is of this history, and what is not for it.
    pub(crate) fn begin_session(&mut self, hears_all: bool) -> (u64, u64) {
        self.made += 1;
        (self.made, if hears_all { 0 } else { self.last })
    }

    /// Whether a session that was begun here may go on.
    pub(crate) fn may_go_on(&self, name: &Name, session: Session) -> bool {
        let goes_on =
            |away: &SentAway| session.number > away.made || away.staying.contains(&session.number);
        session.incarnation == self.incarnation
            && session.number > self.all_sent_away
            && self.sent_away.get(name).is_none_or(goes_on)
    }

    /// Whether a name, or everybody, was sent away.
    pub(crate) fn has_sent_away(&self, name: &Name) -> bool {
        self.all_sent_away > 0 || self.sent_away.contains_key(name)
    }

    /// What was the last that a session said that has come back.
    pub(crate) fn find_session(&mut self, name: &Name, session: Session) -> Option<Box<str>> {
        self.sessions.remove(&(name.clone(), session)).map(|lost| lost.last_id)
    }

    /// The name, if it was lost.
    pub(crate) fn lost(&self, name: &str) -> Option<&Name> {
        self.lost.get_key_value(name).map(|(name, _)| name)
    }

    /// Lets go of the messages that are older than `lasts`; answers how many bytes fewer are held.
    pub(crate) fn expire(&mut self, now: Instant, lasts: Duration) -> usize {
        let mut freed = 0;
        while self.messages.front().is_some_and(|message| message.at + lasts <= now) {
            freed += self.pop();
        }
        freed
    }

    /// Forgets who was lost longer ago than that.
    pub(crate) fn expire_lost(&mut self, now: Instant, lasts: Duration) {
        self.lost.retain(|_, at| *at + lasts > now);
        self.sessions.retain(|_, lost| lost.at + lasts > now);
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
        [oldest, lost, session, self.idle_since].into_iter().flatten().min().map(|at| at + lasts)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }
}

/// The sessions of one name.
fn of(name: &Name) -> std::ops::RangeInclusive<(Name, Session)> {
    let all =
        |number| Session { incarnation: Incarnation(number), number, born: number, seal: number };
    let (least, most) = (all(0), all(u64::MAX));
    (name.clone(), least)..=(name.clone(), most)
}
