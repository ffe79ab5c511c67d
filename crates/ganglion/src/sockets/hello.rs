//! The first frame of a v4 client, and what it asks for.

use signal::Coming;
use wire::envelope::Fault;
use wire::errors::Code;
use wire::frames::{BadFrame, ClientFrame, Generation, Hello};

/// Who comes, and what with.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) by: Credentials,
    /// Where it wants to be, if its token leaves that open.
    pub(super) path: Option<String>,
    /// None when it wants to be in no room.
    pub(super) coming: Option<Coming>,
}

/// What proves who comes.
#[derive(Debug)]
pub(super) enum Credentials {
    Account { ident: String, secret: String },
    Token(String),
}

impl Greeting {
    /// # Errors
    /// `bad_request`, with what was wrong.
    pub(super) fn read(text: &str) -> Result<Greeting, Fault> {
        let bad = |why: &str| Fault::with(Code::BadRequest, why);
        let hello = match ClientFrame::parse(Generation::V4, text) {
            Ok(ClientFrame::Hello(hello)) => hello,
            Ok(_) => return Err(bad("the first frame is `hello`")),
            Err(BadFrame { error, .. }) => {
                return Err(Fault::with(error.code(), error.to_string()));
            }
        };
        let Hello { token, ident, secret, path, join, data, session, cursor } = hello;
        let owned = std::borrow::Cow::into_owned;
        let by = match (token, ident, secret) {
            (Some(token), None, None) => Credentials::Token(owned(token)),
            (None, Some(ident), Some(secret)) => {
                Credentials::Account { ident: owned(ident), secret: owned(secret) }
            }
            _ => return Err(bad("`hello` needs a `token`, or `ident` and `secret`")),
        };
        let is_token = matches!(by, Credentials::Token(_));
        if join == Some(true) && !is_token {
            return Err(bad("an account is in no room: make a token for a name"));
        }
        let session = session.map(|text| text.parse()).transpose();
        let cursor = cursor.map(|text| text.parse()).transpose();
        let coming = Coming {
            data: data.map(Into::into),
            session: session.map_err(|_| bad("`session` is not one of this system"))?,
            cursor: cursor.map_err(|_| bad("`cursor` is not one of this system"))?,
        };
        let coming = join.unwrap_or(is_token).then_some(coming);
        Ok(Greeting { by, path: path.map(owned), coming })
    }
}
