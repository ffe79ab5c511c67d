//! Rules of paths: which users may join, send, read, watch and write there.
//!
//! A rule is a setting of `_conf` that is called as what it is about; it holds at its path and below,
//! until one of the same name is set further down. It binds those who hold a token, beside what the
//! token grants, and no account. Not here: tokens, scopes and addresses, which [`crate::access`]
//! decides together with these.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kv4::Head;
use wire::envelope::Fault;
use wire::errors::Code;
use wire::json::Json;
use wire::names::Path;
use wire::token::Grants;

use crate::token;

/// Users that one rule may name.
pub const RULE_USERS_MAX: usize = 1_000;
/// Users that all rules of an account together may name; one that two rules name counts twice.
pub const USERS_MAX: usize = 100_000;
/// Stands for every user.
const EVERYBODY: &str = "*";

/// What a rule is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Act {
    /// To be in a room.
    Join,
    /// To send to a room, or to one of its members.
    Send,
    Read,
    /// To be told of changes.
    Watch,
    Write,
}

impl Act {
    pub const ALL: [Act; 5] = [Act::Join, Act::Send, Act::Read, Act::Watch, Act::Write];

    /// What the setting is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Act::Join => "join",
            Act::Send => "send",
            Act::Read => "read",
            Act::Watch => "watch",
            Act::Write => "write",
        }
    }

    /// What the setting of a name is about; `None` for one that is no rule.
    pub fn of_setting(name: &str) -> Option<Act> {
        Act::ALL.into_iter().find(|act| act.as_str() == name)
    }

    /// Whether rules about it bind whoever has a socket open.
    pub(crate) fn is_of_sockets(self) -> bool {
        matches!(self, Act::Join | Act::Send)
    }
}

/// The rules of one bucket.
#[derive(Debug, Default)]
pub struct PathRules {
    by_path: HashMap<Path, Here>,
    /// How many users they name.
    users: usize,
}

/// The rules that are set at one path, each in the place of its act.
type Here = [Option<Allowed>; Act::ALL.len()];

/// Whom a rule allows.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Allowed {
    Everybody,
    /// Sorted.
    Only(Box<[Box<str>]>),
}

impl Allowed {
    fn read(value: &Json) -> Option<Allowed> {
        if value.to_text().as_deref() == Some(EVERYBODY) {
            return Some(Allowed::Everybody);
        }
        let mut users: Vec<Box<str>> = value.read().ok()?;
        if users.len() > RULE_USERS_MAX {
            return None;
        }
        if users.iter().any(|user| **user == *EVERYBODY) {
            return (users.len() == 1).then_some(Allowed::Everybody);
        }
        users.sort_unstable();
        users.dedup();
        let are_users = users.iter().all(|user| token::is_identity(user));
        are_users.then(|| Allowed::Only(users.into()))
    }

    fn contains(&self, identity: &str) -> bool {
        match self {
            Allowed::Everybody => true,
            Allowed::Only(users) => users.binary_search_by(|user| (**user).cmp(identity)).is_ok(),
        }
    }

    /// How many users it names.
    fn users(&self) -> usize {
        match self {
            Allowed::Everybody => 0,
            Allowed::Only(users) => users.len(),
        }
    }
}

/// Whether a value is that of a rule.
pub fn is_legal(value: &Json) -> bool {
    Allowed::read(value).is_some()
}

impl PathRules {
    pub(crate) fn compile(rows: &[(Path, Arc<Head>)]) -> PathRules {
        let mut rules = PathRules::default();
        for (path, head) in rows {
            let Some(act) = Act::of_setting(head.key.as_str()) else { continue };
            // What cannot be read was not put here by this program, and lets nobody in.
            let allowed = Allowed::read(&head.value);
            let allowed = allowed.unwrap_or_else(|| Allowed::Only(Box::default()));
            rules.users += allowed.users();
            rules.by_path.entry(path.clone()).or_default()[act as usize] = Some(allowed);
        }
        rules
    }

    /// Whether the rules let a user do something at a path.
    pub fn permit(&self, act: Act, path: &Path, identity: &str) -> bool {
        self.by_path.is_empty()
            || path
                .ancestors()
                .find_map(|path| self.by_path.get(&path)?[act as usize].as_ref())
                .is_none_or(|allowed| allowed.contains(identity))
    }

    /// Who may sit in a room; its place is its path with its topic.
    pub fn seats(&self, place: &Path) -> Seats<'_> {
        let mut seats = Seats::default();
        if self.by_path.is_empty() {
            return seats;
        }
        for here in place.ancestors().filter_map(|path| self.by_path.get(&path)) {
            seats.join = seats.join.or(here[Act::Join as usize].as_ref());
            seats.send = seats.send.or(here[Act::Send as usize].as_ref());
        }
        seats
    }

    /// Refuses a rule with which an account's rules would name too many users.
    ///
    /// # Errors
    /// `not_allowed`.
    pub(crate) fn have_room(
        &self,
        act: Act,
        path: &Path,
        value: &Json,
        refused: &AtomicU64,
    ) -> Result<(), Fault> {
        let replaced = self.by_path.get(path).and_then(|here| here[act as usize].as_ref());
        let more = Allowed::read(value).map_or(0, |allowed| allowed.users());
        if self.users - replaced.map_or(0, Allowed::users) + more <= USERS_MAX {
            return Ok(());
        }
        refused.fetch_add(1, Ordering::Relaxed);
        let why = format!("an account's rules name at most {USERS_MAX} users");
        Err(Fault::with(Code::NotAllowed, why))
    }
}

/// The rules that hold for the sockets of one room.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seats<'a> {
    join: Option<&'a Allowed>,
    send: Option<&'a Allowed>,
}

impl Seats<'_> {
    /// What a user may do there of what his token grants; `None` when he may not be there.
    pub fn grants(&self, identity: &str, granted: Grants) -> Option<Grants> {
        let lets = |rule: Option<&Allowed>| rule.is_none_or(|allowed| allowed.contains(identity));
        let taken = if lets(self.send) { Grants(0) } else { Grants::SPEAK };
        lets(self.join).then(|| granted.without(taken))
    }
}

#[cfg(test)]
mod tests {
    use kv4::{Stamp, Ver};
    use proptest::prelude::*;
    use wire::names::Key;
    use wire::token::IDENTITY_BYTES_MAX;

    use super::*;

    const PATHS: [&str; 6] = ["/", "/a", "/a/b", "/a/b/topic", "/a/bc", "/d"];
    const USERS: [&str; 4] = ["ann", "bob", "a/b", "zoë"];

    /// A rule as a test thinks of it: `None` for everybody.
    type Rule = (usize, usize, Option<Vec<usize>>);

    fn rule() -> impl Strategy<Value = Rule> {
        let users = prop::option::of(prop::collection::vec(0..USERS.len(), 0..3));
        (0..PATHS.len(), 0..Act::ALL.len(), users)
    }

    fn value(users: Option<&[usize]>) -> Json {
        Json::from(match users {
            None => serde_json::json!("*"),
            Some(users) => users.iter().map(|user| USERS[*user]).collect(),
        })
    }

    fn row(at: &str, setting: &str, value: Json) -> (Path, Arc<Head>) {
        let head = Head {
            key: Key::parse(setting).expect("a key"),
            ver: Ver { generation: 1, stamp: Stamp { micros: 7, neuron: 1 } },
            who: "elena".into(),
            value,
            keys: Default::default(),
        };
        (Path::parse(at).expect("a path"), Arc::new(head))
    }

    /// Whether the longest of the paths with a rule that a path begins with, segment by segment, names
    /// the user.
    fn may(rules: &[Rule], act: usize, at: &str, user: usize) -> bool {
        let covers = |rule: &&Rule| {
            let base = PATHS[rule.0].trim_end_matches('/');
            rule.1 == act && format!("{at}/").starts_with(&format!("{base}/"))
        };
        let nearest = rules.iter().filter(covers).max_by_key(|rule| PATHS[rule.0].len());
        let users = nearest.and_then(|rule| rule.2.as_ref());
        users.is_none_or(|users| users.contains(&user))
    }

    proptest! {
        #[test]
        fn the_nearest_rule_decides(rules in prop::collection::vec(rule(), 0..10)) {
            // One rule of a name at a path: the last.
            let mut set: Vec<Rule> = Vec::new();
            for rule in rules {
                set.retain(|other| (other.0, other.1) != (rule.0, rule.1));
                set.push(rule);
            }
            let rows: Vec<_> = set
                .iter()
                .map(|(at, act, users)| {
                    row(PATHS[*at], Act::ALL[*act].as_str(), value(users.as_deref()))
                })
                .collect();
            let compiled = PathRules::compile(&rows);
            for at in PATHS.into_iter().chain(["/a/b/topic/deep", "/e"]) {
                let path = Path::parse(at).expect("a path");
                for (number, user) in USERS.into_iter().enumerate() {
                    let mut may_all = [false; Act::ALL.len()];
                    for (act, may_one) in Act::ALL.into_iter().zip(&mut may_all) {
                        *may_one = may(&set, act as usize, at, number);
                        let permitted = compiled.permit(act, &path, user);
                        prop_assert_eq!(permitted, *may_one, "{:?} at {} by {}", act, at, user);
                    }
                    let [may_join, may_send, ..] = may_all;
                    let heard = Grants::CHATTER.without(Grants::SEND).without(Grants::PUBLISH);
                    let left = if may_send { Grants::CHATTER } else { heard };
                    let seat = compiled.seats(&path).grants(user, Grants::CHATTER);
                    prop_assert_eq!(seat, may_join.then_some(left), "at {} by {}", at, user);
                }
            }
        }
    }

    #[test]
    fn a_rule_names_users_that_can_be() {
        let is_legal = |value: serde_json::Value| super::is_legal(&Json::from(value));
        let long = "x".repeat(IDENTITY_BYTES_MAX);
        for legal in [
            serde_json::json!("*"),
            serde_json::json!(["*"]),
            serde_json::json!([]),
            serde_json::json!(["ann", "ann", "a/b", "zoë", "a b"]),
            serde_json::json!([long]),
            serde_json::json!((0..RULE_USERS_MAX).map(|n| n.to_string()).collect::<Vec<_>>()),
        ] {
            assert!(is_legal(legal.clone()), "{legal}");
        }
        for illegal in [
            serde_json::json!("ann"),
            serde_json::json!(["*", "ann"]),
            serde_json::json!([""]),
            serde_json::json!(["a\nb"]),
            serde_json::json!([1]),
            serde_json::json!({ "ann": true }),
            serde_json::json!(null),
            serde_json::json!(["__sys__"]),
            serde_json::json!([format!("{long}x")]),
            serde_json::json!((0..=RULE_USERS_MAX).map(|n| n.to_string()).collect::<Vec<_>>()),
        ] {
            assert!(!is_legal(illegal.clone()), "{illegal}");
        }
    }

    #[test]
    fn what_is_no_rule_lets_nobody_in() {
        let rows = [row("/a", "join", Json::from(serde_json::json!({ "of": "later" })))];
        let rules = PathRules::compile(&rows);
        let path = Path::parse("/a/b").expect("a path");
        assert!(!rules.permit(Act::Join, &path, "ann"));
        assert!(rules.permit(Act::Send, &path, "ann"));
    }

    #[test]
    fn the_rules_of_an_account_name_so_many_users() {
        let full = Json::from(serde_json::json!(
            (0..RULE_USERS_MAX).map(|n| n.to_string()).collect::<Vec<_>>()
        ));
        let rows: Vec<_> = (0..USERS_MAX / RULE_USERS_MAX)
            .map(|at| row(&format!("/p{at}"), "join", full.clone()))
            .collect();
        let rules = PathRules::compile(&rows);
        let refused = AtomicU64::new(0);
        let one = Json::from(serde_json::json!(["ann"]));
        let put = |at: &str, value: &Json| {
            let path = Path::parse(at).expect("a path");
            rules.have_room(Act::Join, &path, value, &refused).map_err(|fault| fault.code)
        };
        assert_eq!(put("/p0", &full), Ok(()), "it takes the place of the one that is there");
        assert_eq!(put("/other", &Json::from(serde_json::json!("*"))), Ok(()));
        assert_eq!(refused.load(Ordering::Relaxed), 0);
        assert_eq!(put("/other", &one), Err(Code::NotAllowed));
        assert_eq!(refused.load(Ordering::Relaxed), 1);
        let fewer = PathRules::compile(&rows[1..]);
        let path = Path::parse("/other").expect("a path");
        assert!(fewer.have_room(Act::Join, &path, &full, &refused).is_ok(), "up to the limit");
    }
}
