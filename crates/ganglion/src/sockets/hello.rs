//! The first frame of a v4 client, and what it asks for.

use signal::Coming;
use wire::envelope::Fault;
use wire::errors::Code;
use wire::frames::{ClientFrame, Generation, Hello};

/// Who comes, and what with.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) token: String,
    /// Where it wants to be, if its token leaves that open.
    pub(super) path: Option<String>,
    pub(super) coming: Coming,
}

impl Greeting {
    /// # Errors
    /// `bad_request`, with what was wrong.
    pub(super) fn read(text: &str) -> Result<Greeting, Fault> {
        let bad = |why: &str| Fault::with(Code::BadRequest, why);
        let hello = match ClientFrame::parse(Generation::V4, text) {
            Ok(ClientFrame::Hello(hello)) => hello,
            Ok(_) => return Err(bad("the first frame is `hello`")),
            Err(error) => return Err(Fault::with(error.code(), error.to_string())),
        };
        let Hello { token, path, data, session, cursor, .. } = hello;
        let token = token.ok_or_else(|| bad("`hello` needs a `token`"))?;
        let session = session.map(|text| text.parse()).transpose();
        let cursor = cursor.map(|text| text.parse()).transpose();
        Ok(Greeting {
            token: token.into_owned(),
            path: path.map(std::borrow::Cow::into_owned),
            coming: Coming {
                data: data.filter(|data| *data != "null").map(Into::into),
                session: session.map_err(|_| bad("`session` is not one of this system"))?,
                cursor: cursor.map_err(|_| bad("`cursor` is not one of this system"))?,
            },
        })
    }
}
