//! Envelopes: how an answer is wrapped, v3, v1/v2 and problem+json (`spec/xirsys.md` §1.1, §1.8).

use crate::errors::Code;
use crate::json::push_string;
use crate::names::NameError;

/// A refusal: its word, and what of this request was wrong where the word alone does not say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    pub code: Code,
    pub detail: Option<String>,
    /// Seconds after which it is worth to try again, where that is known.
    pub retry_after_s: Option<u64>,
}

impl Fault {
    pub fn new(code: Code) -> Fault {
        let passes = matches!(
            code,
            Code::TooManyRequests | Code::Overloaded | Code::StoreUnavailable | Code::StoreDegraded
        );
        Fault { code, detail: None, retry_after_s: passes.then_some(1) }
    }

    /// The same, with what was wrong.
    pub fn with(code: Code, detail: impl Into<String>) -> Fault {
        Fault { detail: Some(detail.into()), ..Fault::new(code) }
    }

    /// The same, with when to try again.
    pub fn retry_after(self, seconds: u64) -> Fault {
        Fault { retry_after_s: Some(seconds), ..self }
    }
}

impl From<Code> for Fault {
    fn from(code: Code) -> Fault {
        Fault::new(code)
    }
}

impl From<NameError> for Fault {
    fn from(error: NameError) -> Fault {
        Fault::with(error.code(), error.to_string())
    }
}

const OK_END: &str = ",\"s\":\"ok\"}";

/// `{"v":…,"s":"ok"}` around a value that is JSON already.
pub fn ok(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 16);
    out.push_str("{\"v\":");
    out.push_str(value);
    out.push_str(OK_END);
    out
}

/// Whether an envelope is one that [`ok`] has written.
pub fn is_ok(envelope: &str) -> bool {
    envelope.ends_with(OK_END)
}

/// `{"v":"<code>","s":"error"}`, with `detail` beside them when there is one.
pub fn error(fault: &Fault) -> String {
    let mut out = String::from("{\"v\":");
    push_string(&mut out, fault.code.as_str());
    out.push_str(",\"s\":\"error\"");
    if let Some(detail) = &fault.detail {
        out.push_str(",\"detail\":");
        push_string(&mut out, detail);
    }
    out.push('}');
    out
}

/// RFC 9457 problem details, with the v3 members beside the standard ones.
pub fn problem(fault: &Fault) -> String {
    let mut out = String::from("{\"type\":\"about:blank\",\"title\":");
    push_string(&mut out, fault.code.as_str());
    out.push_str(&format!(",\"status\":{},\"detail\":", fault.code.status()));
    push_string(&mut out, fault.detail.as_deref().unwrap_or(fault.code.text()));
    out.push_str(",\"v\":");
    push_string(&mut out, fault.code.as_str());
    out.push_str(",\"s\":\"error\"}");
    out
}

/// `{"s":200,"d":…,"e":null}`: the envelope of v1 and v2.
pub fn legacy_ok(data: &str) -> String {
    format!("{{\"s\":200,\"d\":{data},\"e\":null}}")
}

/// `{"s":<status>,"d":null,"e":"<code>"}`.
pub fn legacy_error(fault: &Fault) -> String {
    let mut out = format!("{{\"s\":{},\"d\":null,\"e\":", fault.code.status());
    push_string(&mut out, fault.code.as_str());
    out.push('}');
    out
}
