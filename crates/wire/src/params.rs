//! Parameters: what a request says in its query and its body, read in one way.
//!
//! Deployed clients mix the two, label bodies wrongly and send numbers as strings
//! (`spec/xirsys.md` §1.1), so the content type is not looked at: a body is JSON if it parses as
//! JSON, else a form.

use thiserror::Error;

use crate::json::{Json, JsonError, Members};
use crate::names::percent_decode;

/// Most parameters in a query or form.
pub const PARAMS_MAX: usize = 256;

/// Why a query or body cannot be read.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ParamsError {
    #[error("the query has a bad percent escape or more than {PARAMS_MAX} parameters")]
    BadQuery,
    #[error("the body is not UTF-8")]
    NotUtf8,
    #[error("the body is neither a form nor JSON: {0}")]
    BadBody(JsonError),
}

/// Query and body of one request.
#[derive(Clone, Debug, Default)]
pub struct Params {
    query: Vec<(String, String)>,
    body: Members,
}

impl Params {
    /// # Errors
    /// A query or a body that cannot be read.
    pub fn read(query: &str, body: &[u8]) -> Result<Params, ParamsError> {
        let query = read_form(query).ok_or(ParamsError::BadQuery)?;
        Ok(Params { query, body: read_body(body)? })
    }

    /// A parameter as text, from the query or else the body; numbers and booleans of a JSON body
    /// in their own spelling.
    pub fn text(&self, name: &str) -> Option<String> {
        if let Some((_, value)) = self.query.iter().find(|(known, _)| known == name) {
            return Some(value.clone());
        }
        let value = self.body.get(name)?;
        match value.as_str().as_bytes().first() {
            Some(b'"') => value.to_text(),
            Some(b'{' | b'[') | None => None,
            Some(_) if value.is_null() => None,
            Some(_) => Some(value.as_str().to_owned()),
        }
    }

    /// Whether a flag is set: `1`, `true`, `True`, `yes`, or present without a value.
    pub fn flag(&self, name: &str) -> bool {
        self.text(name).is_some_and(|text| {
            matches!(text.as_str(), "" | "1" | "true" | "True" | "TRUE" | "yes")
        })
    }

    /// A member of the body as JSON, or a parameter of the query as a JSON string.
    pub fn json(&self, name: &str) -> Option<Json> {
        if let Some(value) = self.body.get(name) {
            return Some(value.clone());
        }
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| Json::string(value))
    }

    /// Gives a parameter another name, unless that one is there already.
    pub fn rename(&mut self, from: &str, to: &str) {
        if let Some(text) = self.text(from)
            && self.text(to).is_none()
        {
            self.query.push((to.to_owned(), text));
        }
    }

    /// The members of the body.
    pub fn body(&self) -> &Members {
        &self.body
    }

    /// The parameters of the query in their order.
    pub fn query(&self) -> &[(String, String)] {
        &self.query
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
        Ok(json) => Ok(json.members().unwrap_or_default()),
        Err(error) if text.starts_with(['{', '[', '"']) || !text.contains('=') => {
            Err(ParamsError::BadBody(error))
        }
        Err(error) => {
            let form = read_form(text).ok_or(ParamsError::BadBody(error))?;
            Ok(form.into_iter().map(|(name, value)| (name, Json::string(&value))).collect())
        }
    }
}

/// Reads `a=1&b=2`; `None` for a bad escape or too many parameters.
fn read_form(text: &str) -> Option<Vec<(String, String)>> {
    let mut params = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        params.push((percent_decode(name, true).ok()?, percent_decode(value, true).ok()?));
    }
    (params.len() <= PARAMS_MAX).then_some(params)
}
