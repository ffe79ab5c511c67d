//! What was said in a room a moment ago, for sockets that were lost and come back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use wire::errors::Code;
use wire::frames::{Cursor, Incarnation, Name, Session};

use crate::holdings::Held;
use crate::signal::Token;

/// Bytes that a message costs beside its frame.
const ENTRY_BYTES: usize = 192;
/// Bytes that a session that may come back costs, and each id of a frame of it that was refused, beside
/// the id.
const SESSION_BYTES: usize = 160;
const REFUSED_BYTES: usize = 64;

/// Names of one room that are known to be lost, sessions, names that were sent away, and names that a
/// message was let go of for.
const LOST_MAX: usize = 1_000;

/// Frames of one session that are known to have been refused.
const REFUSED_MAX: usize = 32;

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
    /// Of the messages, and of the sessions that may come back.
    bytes: usize,
    session_bytes: usize,
    /// Those of the messages that came with an id.
    published: BTreeSet<Mark>,
    /// Names that were lost: what is said to them is kept for when they come back.
    lost: BTreeMap<Name, Lost>,
    /// Sessions that were lost, so that they need not say again what was heard.
    sessions: BTreeMap<(Name, Session), LostSession>,
    /// Sessions that were begun.
    made: u64,
    /// Names that were sent away.
    sent_away: BTreeMap<Name, SentAway>,
    /// The last session that was begun before everybody was sent away,
    all_sent_away: u64,
    /// but for these.
    staying: BTreeSet<u64>,
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

/// A name that may come back.
#[derive(Debug)]
struct Lost {
    at: Instant,
    /// What its last socket came with: its session may be forgotten first.
    token: Option<Token>,
}

/// A session that may come back.
#[derive(Debug)]
struct LostSession {
    at: Instant,
    /// What its socket came with.
    token: Option<Token>,
    said: Option<Box<Said>>,
}

/// Of a name that was sent away, or all, what was not here.
#[derive(Debug, Default)]
pub(crate) struct SentAwayLost {
    /// Names that might have come back, by a session at least.
    pub(crate) names: BTreeSet<Name>,
    /// What their sessions came with.
    pub(crate) tokens: Vec<Token>,
}

/// What came of the frames of a session that had ids, which are JSON text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    /// The last that was heard.
    last_id: Option<Box<str>>,
    /// Those that were refused a moment ago.
    refused: VecDeque<(Instant, Box<str>, Code)>,
    /// Whether more were than are known: then of none it is told whether it was heard.
    is_unsure: bool,
    /// Whether what was said before has been forgotten, and nothing has been said since: who says
    /// something has read that.
    is_forgotten: bool,
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

impl Said {
    pub(crate) fn forgotten() -> Said {
        Said { is_forgotten: true, ..Said::default() }
    }

    /// Notes that a frame was heard.
    pub(crate) fn hear(&mut self, id: &str) {
        self.is_forgotten = false;
        if !self.is_unsure {
            self.last_id = Some(id.into());
        }
    }

    /// Notes that a frame was refused. Who has waited for an answer for `lasts` has given up.
    pub(crate) fn refuse(&mut self, now: Instant, lasts: Duration, id: &str, code: Code) {
        while self.refused.front().is_some_and(|(at, ..)| *at + lasts <= now) {
            self.refused.pop_front();
        }
        if self.refused.len() < REFUSED_MAX {
            self.refused.push_back((now, id.into(), code));
        } else {
            *self = Said { is_unsure: true, is_forgotten: self.is_forgotten, ..Said::default() };
        }
    }

    fn bytes(&self) -> usize {
        let refused = self.refused.iter().map(|(_, id, _)| REFUSED_BYTES + id.len());
        refused.sum::<usize>() + self.last_id.as_ref().map_or(0, |id| id.len())
    }

    pub(crate) fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    pub(crate) fn refused(&self) -> Vec<(&str, Code)> {
        self.refused.iter().map(|(_, id, code)| (&**id, *code)).collect()
    }

    /// Whether it is known of each frame what came of it.
    pub(crate) fn is_whole(&self) -> bool {
        !self.is_unsure && !self.is_forgotten
    }
}

impl LostSession {
    fn bytes(&self) -> usize {
        SESSION_BYTES + self.said.as_ref().map_or(0, |said| said.bytes())
    }
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
            session_bytes: 0,
            published: BTreeSet::new(),
            lost: BTreeMap::new(),
            sessions: BTreeMap::new(),
            sent_away: BTreeMap::new(),
            made: 0,
            all_sent_away: 0,
            staying: BTreeSet::new(),
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

    pub(crate) fn push(&mut self, message: Message) {
        self.last += 1;
        if let Some(mark) = message.mark() {
            self.published.insert(mark);
        }
        self.bytes += message.bytes();
        self.messages.push_back(message);
    }

    /// Lets go of the oldest message; answers whether there was one.
    pub(crate) fn pop(&mut self) -> bool {
        let Some(message) = self.messages.pop_front() else { return false };
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
        self.bytes -= message.bytes();
        true
    }

    /// What a session of this history has yet to hear. Unless it `knows_last`, what it said and has no
    /// answer to counts as missed when that is known no more: it would be said, and heard, again.
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
    pub(crate) fn lose(&mut self, name: Name, token: Option<Token>, at: Instant) -> usize {
        self.lost.insert(name, Lost { at, token });
        if self.lost.len() <= LOST_MAX {
            return 0;
        }
        let oldest = self.lost.iter().min_by_key(|(_, lost)| lost.at).map(|(name, _)| name.clone());
        oldest.and_then(|name| self.lost.remove(&name)).map_or(0, |_| 1)
    }

    /// Notes that a name has come back, or is here anyway.
    pub(crate) fn find(&mut self, name: &Name) {
        self.lost.remove(name);
    }

    /// Notes that a session was lost, what it came with, and what it said. Answers how many others had
    /// to be forgotten for it: of a name that has too many the oldest, else the oldest of all.
    pub(crate) fn lose_session(
        &mut self,
        name: Name,
        session: Session,
        token: Option<Token>,
        said: Option<Box<Said>>,
        at: Instant,
    ) -> usize {
        let of_name = self.sessions.range(of(&name));
        let is_crowded = of_name.clone().count() >= SESSIONS_PER_NAME_MAX;
        let oldest = match is_crowded {
            true => of_name.min_by_key(|(_, lost)| lost.at).map(|(key, _)| key.clone()),
            false if self.sessions.len() >= LOST_MAX => self.oldest_session(),
            false => None,
        };
        let lost = LostSession { at, token, said };
        self.session_bytes += lost.bytes();
        self.sessions.insert((name, session), lost);
        oldest.and_then(|key| self.take_session(&key)).map_or(0, |_| 1)
    }

    /// Forgets the session that was lost first; answers whether there was one.
    pub(crate) fn forget_session(&mut self) -> bool {
        self.oldest_session().and_then(|key| self.take_session(&key)).is_some()
    }

    fn oldest_session(&self) -> Option<(Name, Session)> {
        self.sessions.iter().min_by_key(|(_, lost)| lost.at).map(|(key, _)| key.clone())
    }

    fn take_session(&mut self, key: &(Name, Session)) -> Option<LostSession> {
        let lost = self.sessions.remove(key)?;
        self.session_bytes -= lost.bytes();
        Some(lost)
    }

    /// Sees to it that no session that a name has had goes on, but for some that stay.
    pub(crate) fn send_away(&mut self, name: &Name, staying: Vec<u64>) -> SentAwayLost {
        let of_name = self.sessions.range(of(name)).map(|(key, _)| key);
        let ended = of_name.filter(|(_, session)| !staying.contains(&session.number));
        let ended: Vec<_> = ended.cloned().collect();
        self.sent_away.insert(name.clone(), SentAway { made: self.made, staying });
        let lost = self.lost.remove(name);
        let was_there = lost.is_some() || !ended.is_empty();
        let of_sessions = ended.iter().filter_map(|key| self.take_session(key)?.token);
        let tokens = of_sessions.chain(lost.and_then(|lost| lost.token)).collect();
        SentAwayLost { names: was_there.then(|| name.clone()).into_iter().collect(), tokens }
    }

    /// The same for all names.
    pub(crate) fn send_all_away(&mut self) -> SentAwayLost {
        self.sent_away.clear();
        self.staying.clear();
        self.all_sent_away = self.made;
        self.session_bytes = 0;
        let (lost, ended) = (std::mem::take(&mut self.lost), std::mem::take(&mut self.sessions));
        let of_sessions = ended.values().filter_map(|lost| lost.token);
        let tokens = lost.values().filter_map(|lost| lost.token).chain(of_sessions).collect();
        let names = ended.into_keys().map(|(name, _)| name).chain(lost.into_keys()).collect();
        SentAwayLost { names, tokens }
    }

    /// Whether too many names were sent away to tell them apart for ever: then it is to be told of
    /// those who are here ([`History::settle`]).
    pub(crate) fn is_unsettled(&self) -> bool {
        self.sent_away.len() > LOST_MAX
    }

    /// Notes, in place of who was sent away, who was not: the sessions that are open, and those that were
    /// lost and may come back.
    pub(crate) fn settle(&mut self, mut open: BTreeSet<u64>) {
        let lost = self.sessions.keys().filter(|(name, session)| self.may_go_on(name, *session));
        open.extend(lost.map(|(_, session)| session.number));
        self.staying = open;
        self.all_sent_away = self.made;
        self.sent_away.clear();
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
            && (session.number > self.all_sent_away || self.staying.contains(&session.number))
            && self.sent_away.get(name).is_none_or(goes_on)
    }

    /// Whether a name, or everybody, was sent away.
    pub(crate) fn has_sent_away(&self, name: &Name) -> bool {
        self.all_sent_away > 0 || self.sent_away.contains_key(name)
    }

    /// What a session said that has come back; `None` when it is not known.
    pub(crate) fn find_session(
        &mut self,
        name: &Name,
        session: Session,
    ) -> Option<Option<Box<Said>>> {
        self.take_session(&(name.clone(), session)).map(|lost| lost.said)
    }

    /// The name, if it was lost.
    pub(crate) fn lost(&self, name: &Name) -> Option<&Name> {
        self.lost.get_key_value(name).map(|(name, _)| name)
    }

    /// Lets go of the messages that are older than `lasts`.
    pub(crate) fn expire(&mut self, now: Instant, lasts: Duration) {
        while self.messages.front().is_some_and(|message| message.at + lasts <= now) {
            self.pop();
        }
    }

    /// Forgets who was lost longer ago than that.
    pub(crate) fn expire_lost(&mut self, now: Instant, lasts: Duration) {
        self.lost.retain(|_, lost| lost.at + lasts > now);
        let bytes = &mut self.session_bytes;
        self.sessions.retain(|_, lost| {
            let stays = lost.at + lasts > now;
            *bytes -= if stays { 0 } else { lost.bytes() };
            stays
        });
    }

    /// Whether nobody can come back to it any more.
    pub(crate) fn is_over(&self, now: Instant, lasts: Duration) -> bool {
        self.idle_since.is_some_and(|since| since + lasts <= now)
    }

    /// When something of it will be too old.
    pub(crate) fn expires(&self, lasts: Duration) -> Option<Instant> {
        let oldest = self.messages.front().map(|message| message.at);
        let lost = self.lost.values().map(|lost| lost.at).min();
        let session = self.sessions.values().map(|lost| lost.at).min();
        [oldest, lost, session, self.idle_since].into_iter().flatten().min().map(|at| at + lasts)
    }

    pub(crate) fn held(&self) -> Held {
        Held { messages: self.bytes, sessions: self.session_bytes }
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
