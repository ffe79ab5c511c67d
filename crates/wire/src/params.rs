//! Parameters: what a request says in its query and its body, read in one way.
//!
//! Deployed clients mix the two, label bodies wrongly and send numbers as strings
//! (`spec/xirsys.md` §1.1), so the content type is not looked at: a body is JSON if it parses as
//! JSON, else a form.

use std::borrow::Cow;

use thiserror::Error;

use crate::json::{Json, JsonError, Members};
use crate::names::percent_decode_into;

/// Most parameters in a query, a form or a body.
pub const PARAMS_MAX: usize = 256;

/// Why a query or body cannot be read.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ParamsError {
    #[error("the query has a bad percent escape or more than {PARAMS_MAX} parameters")]
    BadQuery,
    #[error("the body is not UTF-8")]
    NotUtf8,
    #[error("the body has more than {PARAMS_MAX} members, or one whose name is no Unicode text")]
    BadMembers,
    #[error("the body is neither a form nor JSON: {0}")]
    BadBody(JsonError),
}

/// Query and body of one request.
#[derive(Clone, Debug, Default)]
pub struct Params {
    query: Form,
    body: Members,
}

impl Params {
    /// # Errors
    /// A query or a body that cannot be read.
    pub fn read(query: &str, body: &[u8]) -> Result<Params, ParamsError> {
        let query = Form::read(query).ok_or(ParamsError::BadQuery)?;
        Ok(Params { query, body: read_body(body)? })
    }

    /// A parameter as text, from the query or else the body; numbers and booleans of a JSON body
    /// in their own spelling.
    pub fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        if let Some(value) = self.query.get(name) {
            return Some(Cow::Borrowed(value));
        }
        let value = self.body.get(name)?;
        match value.as_str().as_bytes().first() {
            Some(b'"') => value.to_text().map(Cow::Owned),
            Some(b'{' | b'[') | None => None,
            Some(_) if value.is_null() => None,
            Some(_) => Some(Cow::Borrowed(value.as_str())),
        }
    }

    /// A parameter of the query alone.
    pub fn in_query(&self, name: &str) -> Option<&str> {
        self.query.get(name)
    }

    /// Whether a parameter is there, whatever its value is.
    pub fn has(&self, name: &str) -> bool {
        self.query.get(name).is_some() || self.body.get(name).is_some()
    }

    /// Whether a flag is set: `1`, `true`, `True`, `yes`, or present without a value.
    pub fn flag(&self, name: &str) -> bool {
        self.text(name)
            .is_some_and(|text| matches!(&*text, "" | "1" | "true" | "True" | "TRUE" | "yes"))
    }

    /// A member of the body as JSON, or a parameter of the query as a JSON string.
    pub fn json(&self, name: &str) -> Option<Json> {
        if let Some(value) = self.body.get(name) {
            return Some(value.clone());
        }
        self.query.get(name).map(Json::string)
    }

    /// Every value of a parameter, of the query and of the body.
    pub fn all(&self, name: &str) -> impl Iterator<Item = Json> {
        let of_query = self.query.iter().filter(move |(known, _)| *known == name);
        of_query.map(|(_, value)| Json::string(value)).chain(self.body.get(name).cloned())
    }

    /// Gives a parameter another value.
    pub fn set(&mut self, name: &str, value: &str) {
        let others = self.query.iter().filter(|(known, _)| *known != name);
        let mut query = Form::default();
        others.for_each(|(name, value)| query.push(name, value));
        self.query = query;
        self.body.set(name, Json::string(value));
    }

    /// Gives a parameter another name, unless that one is there already.
    pub fn rename(&mut self, from: &str, to: &str) {
        if let Some(text) = self.text(from).map(Cow::into_owned)
            && self.text(to).is_none()
        {
            self.query.push(to, &text);
        }
    }

    /// The members of the body.
    pub fn body(&self) -> &Members {
        &self.body
    }

    /// The parameters of the query in their order.
    pub fn query(&self) -> impl Iterator<Item = (&str, &str)> {
        self.query.iter()
    }
}

fn read_body(body: &[u8]) -> Result<Members, ParamsError> {
    let text = std::str::from_utf8(body).map_err(|_| ParamsError::NotUtf8)?;
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.is_empty() {
        return Ok(Members::default());
    }
    match Json::parse(text) {
        // A body that is not an object (`null` is sent by real clients) carries no parameters.
        Ok(json) if !json.is_object() => Ok(Members::default()),
        Ok(json) => json.few_members(PARAMS_MAX).ok_or(ParamsError::BadMembers),
        Err(error) if text.starts_with(['{', '[', '"']) || !text.contains('=') => {
            Err(ParamsError::BadBody(error))
        }
        Err(error) => {
            let form = Form::read(text).ok_or(ParamsError::BadBody(error))?;
            Ok(form.iter().map(|(name, value)| (name.to_owned(), Json::string(value))).collect())
        }
    }
}

/// Names and values of a query or form, decoded, in their order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Form {
    /// All of them, one after the other.
    text: String,
    /// Where in `text` a name ends, and where the value that follows it does.
    ends: Vec<(usize, usize)>,
}

impl Form {
    /// Reads `a=1&b=2`; `None` for a bad escape or too many parameters.
    fn read(text: &str) -> Option<Form> {
        let mut decoded = Vec::with_capacity(text.len());
        let mut ends = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            percent_decode_into(&mut decoded, name, true).ok()?;
            let name_end = decoded.len();
            percent_decode_into(&mut decoded, value, true).ok()?;
            ends.push((name_end, decoded.len()));
        }
        let text = String::from_utf8(decoded).ok()?;
        // A character must not be spread over a name and its value.
        let is_whole =
            |at: &(usize, usize)| text.is_char_boundary(at.0) && text.is_char_boundary(at.1);
        let is_legal = ends.len() <= PARAMS_MAX && ends.iter().all(is_whole);
        is_legal.then_some(Form { text, ends })
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut begin = 0;
        self.ends.iter().map(move |&(name_end, end)| {
            let begin = std::mem::replace(&mut begin, end);
            (&self.text[begin..name_end], &self.text[name_end..end])
        })
    }

    /// The first value of a name.
    fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    fn push(&mut self, name: &str, value: &str) {
        self.text.push_str(name);
        let name_end = self.text.len();
        self.text.push_str(value);
        self.ends.push((name_end, self.text.len()));
    }
}
