//! Every JSON value comes back as it was put, and every body that deployed clients send is read.
//!
//! Values are compared as text where the neuron keeps the text, so that no digit can get lost in a
//! number of this test's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tests::random::Random;

use super::{Account, Caller, shared, v, word};

/// Random values in one run.
const RANDOM_VALUES: usize = 60;
/// Most levels of a random value.
const RANDOM_DEPTH: usize = 5;

/// `v` of an envelope, as the text that it is.
fn raw_v(body: &str) -> Result<String> {
    let members: BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(body).with_context(|| format!("not an envelope: {body}"))?;
    Ok(members.get("v").with_context(|| format!("no v: {body}"))?.get().to_owned())
}

/// Puts the text of a value, and answers the texts of the reply and of a read.
fn put_and_get(top: &Caller, value: &str) -> Result<[String; 2]> {
    let body = format!("{{\"k\":\"a\",\"v\":{value}}}");
    let put =
        top.request("PUT", "/_data/shapes").header("content-type: application/json").body(body);
    let reply = put.send()?.body;
    let read = top.request("GET", "/_data/shapes?k=a").send()?.body;
    Ok([raw_v(&reply)?, raw_v(&read)?])
}

/// What a value looks like when it is shown: objects end with their version.
fn assert_shown(shown: &str, value: &str) {
    match value.strip_suffix('}') {
        None => assert_eq!(shown, value),
        Some(open) => {
            let comma = if open == "{" { "" } else { "," };
            let start = format!("{open}{comma}\"_ver_\":\"");
            assert!(shown.starts_with(&start) && shown.ends_with("\"}"), "{shown} for {value}");
        }
    }
}

fn nested(depth: usize) -> [String; 3] {
    let arrays = format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let objects = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let both = format!("{}1{}", "[{\"a\":".repeat(depth / 2), "}]".repeat(depth / 2));
    [arrays, objects, both]
}

#[test]
fn every_shape_comes_back_as_it_was_put() -> Result<()> {
    let top = Account::new(&*shared()?)?;
    let long = format!("\"{}\"", "long ".repeat(40_000));
    let wide = format!("[{}]", vec!["1"; 20_000].join(","));
    let deep = nested(90);
    let shapes = [
        "null",
        "true",
        "false",
        "0",
        "-0",
        "-0.0",
        "1.0",
        "1e400",
        "-1E-400",
        "12345678901234567890123",
        "0.1000000000000000055511151231257827021181583404541015625",
        "9007199254740993",
        r#""""#,
        "[]",
        "{}",
        "[[],{},[{}]]",
        r#"" \" \\ \/ \b \f \n \r \t ""#,
        r#""\u0000\u001f\u007f\u2028""#,
        r#""\ud83d\ude00 and 😀""#,
        r#""\ud83d alone, \ude00 too""#,
        r#""żółć 漢字 العربية e\u0301""#,
        r#"{"a \"quoted\" key":1,"":2,"\u006b":3,"k":{"v":{"s":"ok"}}}"#,
        r#"{"nested":{"_ver_":"kept below the top"}}"#,
        r#"[1,"two",null,true,{"three":[3]}]"#,
        &long,
        &wide,
        &deep[0],
        &deep[1],
        &deep[2],
    ];
    for value in shapes {
        for shown in put_and_get(&top, value)? {
            assert_shown(&shown, value);
        }
    }
    let [reply, _] = put_and_get(&top, " [ 1 , { \"a\" : 2 } ] ")?;
    assert_eq!(serde_json::from_str::<Value>(&reply)?, json!([1, { "a": 2 }]));
    Ok(())
}

#[test]
fn the_last_of_equal_members_wins() -> Result<()> {
    let top = Account::new(&*shared()?)?;
    for shown in put_and_get(&top, r#"{"a":1,"b":2,"a":3}"#)? {
        let value: Value = serde_json::from_str(&shown)?;
        assert_eq!((&value["a"], &value["b"]), (&json!(3), &json!(2)), "{shown}");
    }
    let body = r#"{"k":"first","v":1,"k":"last","v":2}"#;
    assert_eq!(v(top.request("PUT", "/_data/p").body(body).send()?.json())?, 2);
    assert_eq!(v(top.get("/_data/p"))?, json!(["last"]));
    Ok(())
}

#[test]
fn a_value_is_the_same_in_a_list_a_record_and_a_series() -> Result<()> {
    let top = Account::new(&*shared()?)?;
    for value in ["1e400", "12345678901234567890123", r#"{"n":-0.0}"#] {
        put_and_get(&top, value)?;
        let shown = |query: &str| -> Result<String> {
            Ok(top.request("GET", &format!("/_data/shapes{query}")).send()?.body)
        };
        let digits = value.trim_start_matches("{\"n\":").trim_end_matches('}');
        for query in ["?as=values", "?as=datum", "?k=a&as=datum", "?k=a&time_series=1&limit=1"] {
            let shown = shown(query)?;
            assert!(shown.contains(digits), "{query}: {shown}");
        }
    }
    Ok(())
}

#[test]
fn keys_are_any_text_without_control_characters() -> Result<()> {
    let top = Account::new(&*shared()?)?;
    let long = "k".repeat(512);
    let keys = ["a\"b", "a'b", "a b", "ż漢😀", "a/b", "..", "%41", "a+b", "a&b=c", "\\", &long];
    for key in keys {
        v(top.put("/_data/keys", json!({ "k": key, "v": key })))?;
        let escaped = key.bytes().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "%{byte:02X}");
            text
        });
        assert_eq!(v(top.get(&format!("/_data/keys?k={escaped}")))?, key);
    }
    let listed = v(top.get("/_data/keys"))?;
    let mut expected = keys;
    expected.sort_unstable();
    assert_eq!(listed, json!(expected));
    for key in ["", "a\nb", "\u{0}", "\u{7f}", "\u{85}", &"k".repeat(513)] {
        assert_eq!(
            word(top.put("/_data/keys", json!({ "k": key, "v": 1 })))?,
            "bad_name",
            "{key:?}"
        );
    }
    Ok(())
}

#[test]
fn every_body_that_clients_send_is_read() -> Result<()> {
    let top = Account::new(&*shared()?)?;
    let json_body = r#"{"k":"a","v":{"n":1}}"#;
    let object = json!({ "n": 1 });
    for (what, content_type, body, expected) in [
        ("JSON", "application/json", json_body, &object),
        ("JSON labelled text", "text/plain", json_body, &object),
        ("JSON labelled a form", "application/x-www-form-urlencoded", json_body, &object),
        ("JSON with a charset", "application/json;charset=UTF-8", json_body, &object),
        ("JSON without a label", "", json_body, &object),
        (
            "JSON after a byte order mark",
            "application/json",
            "\u{feff}{\"k\":\"a\",\"v\":{\"n\":1}}",
            &object,
        ),
        (
            "JSON between white space",
            "application/json",
            "\r\n {\"k\":\"a\",\"v\":{\"n\":1}} \n",
            &object,
        ),
        ("a form", "application/x-www-form-urlencoded", "k=a&v=b+c%21", &json!("b c!")),
        ("a form labelled JSON", "application/json", "k=a&v=b%3Dc", &json!("b=c")),
        ("a form with an empty value", "", "k=a&v=", &json!("")),
    ] {
        let request =
            top.request("PUT", "/_data/p").header(&format!("content-type: {content_type}"));
        let mut shown = v(request.body(body).send()?.json()).with_context(|| what.to_owned())?;
        if let Some(shown) = shown.as_object_mut() {
            shown.remove("_ver_");
        }
        assert_eq!(shown, *expected, "{what}");
    }
    // Bodies that say nothing: the query alone counts.
    for body in ["", "null", "{}", "[]", "true", "\u{feff}", " "] {
        let request = top.request("PUT", "/_data/p?k=q&v=from%20query");
        let shown = request.header("content-type: application/json").body(body).send()?.json();
        assert_eq!(v(shown)?, "from query", "{body:?}");
        let request = top.request("PUT", "/_token?k=bob").header("content-type: application/json");
        assert!(v(request.body(body).send()?.json())?.is_string(), "{body:?}");
    }
    for method in ["GET", "DELETE"] {
        v(top.put("/_data/p", json!({ "k": "a", "v": 1 })))?;
        let request = top.request(method, "/_data/p").body(r#"{"k":"a"}"#);
        assert_eq!(v(request.send()?.json())?, 1, "{method} with a body");
    }
    Ok(())
}

#[test]
fn a_body_that_cannot_be_read_is_refused_with_where_it_is_wrong() -> Result<()> {
    let top = Account::new(&*shared()?)?;
    let [arrays, objects, _] = nested(97);
    let bomb = "[".repeat(500_000);
    for (body, hint) in [
        (r#"{"k":"a","v":}"#, "line 1 column 14"),
        ("{\"k\":\"a\",\n\"v\":tru}", "line 2 column 8"),
        (r#"{"k":"a","v":1"#, "line 1 column 14"),
        (r#"{"k":"a","v":01}"#, "line 1 column 15"),
        (r#"{"k":"a","v":"\x"}"#, "line 1 column 16"),
        ("{\"k\":\"a\",\"v\":\"\u{1}\"}", "line 1 column 14"),
        (r#"{"k":"a","v":1} {}"#, "line 1 column 17"),
        (r#"{"k":"a","v":NaN}"#, "line 1 column 14"),
        (r#""unclosed"#, "line 1 column 9"),
        ("no json, no form", "line 1 column 2"),
        (&arrays, "deeper than 96 levels at byte 96"),
        (&objects, "deeper than 96 levels at byte 480"),
        (&bomb, "deeper than 96"),
        ("k=a&v=%zz", "body"),
    ] {
        let answer = top.request("PUT", "/_data/p").body(body).send()?.json()?;
        let start: String = body.chars().take(40).collect();
        assert_eq!(answer["v"], "bad_request", "{start}: {answer}");
        let detail = answer["detail"].as_str().context("a detail")?;
        assert!(detail.contains(hint), "{start}: {detail:?} does not say {hint:?}");
    }
    let answer = top.request("PUT", "/_data/p").body(b"{\"k\":\"a\",\"v\":\"\xff\"}".as_slice());
    let answer = answer.send()?.json()?;
    assert_eq!(
        (&answer["v"], &answer["detail"]),
        (&json!("bad_request"), &json!("the body is not UTF-8"))
    );
    assert_eq!(v(top.get("/_data/p"))?, json!([]), "nothing was stored");
    Ok(())
}

#[test]
fn random_values_come_back_as_they_were_put() -> Result<()> {
    let seed = match std::env::var("GANGLION_SEED") {
        Ok(text) => text.parse()?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64,
    };
    println!("GANGLION_SEED={seed}");
    let top = Account::new(&*shared()?)?;
    let mut random = Values(Random::new(seed, 0));
    for _ in 0..RANDOM_VALUES {
        let mut value = String::new();
        random.push_value(&mut value, RANDOM_DEPTH);
        for shown in put_and_get(&top, &value)? {
            assert_shown(&shown, &value);
        }
    }
    Ok(())
}

/// Values that a seed determines.
struct Values(Random);

impl Values {
    fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound as u64) as usize
    }

    fn push_value(&mut self, out: &mut String, depth: usize) {
        match self.below(if depth == 0 { 4 } else { 8 }) {
            0 => out.push_str(["null", "true", "false"][self.below(3)]),
            1 => self.push_number(out),
            2 | 3 => self.push_text(out),
            4 | 5 => {
                self.push_list(out, ['[', ']'], |random, out| random.push_value(out, depth - 1))
            }
            _ => {
                let mut count = 0;
                self.push_list(out, ['{', '}'], |random, out| {
                    // Names of one object differ, or the last of them would win.
                    count += 1;
                    let _ = write!(out, "\"{count}");
                    let mut name = String::new();
                    random.push_text(&mut name);
                    out.push_str(&name[1..]);
                    out.push(':');
                    random.push_value(out, depth - 1);
                });
            }
        }
    }

    fn push_list(
        &mut self,
        out: &mut String,
        [open, close]: [char; 2],
        mut push_one: impl FnMut(&mut Values, &mut String),
    ) {
        out.push(open);
        for at in 0..self.below(6) {
            if at > 0 {
                out.push(',');
            }
            push_one(self, out);
        }
        out.push(close);
    }

    fn push_number(&mut self, out: &mut String) {
        if self.below(2) == 0 {
            out.push('-');
        }
        match self.below(3) {
            0 => out.push('0'),
            _ => {
                out.push(char::from(b'1' + self.0.below(9) as u8));
                self.push_digits(out, 30);
            }
        }
        if self.below(2) == 0 {
            out.push_str(".0");
            self.push_digits(out, 30);
        }
        if self.below(3) == 0 {
            out.push_str(["e", "E", "e+", "E-"][self.below(4)]);
            out.push('3');
            self.push_digits(out, 3);
        }
    }

    fn push_digits(&mut self, out: &mut String, most: usize) {
        for _ in 0..self.below(most) {
            out.push(char::from(b'0' + self.0.below(10) as u8));
        }
    }

    fn push_text(&mut self, out: &mut String) {
        out.push('"');
        for _ in 0..self.below(12) {
            match self.below(5) {
                0 => out.push_str(
                    ["\\\"", "\\\\", "\\/", "\\n", "\\u0000", "\\ud83d\\ude00"][self.below(6)],
                ),
                1 => out.push(char::from_u32(0xa1 + self.0.below(0x500) as u32).unwrap_or('ż')),
                2 => {
                    out.push(char::from_u32(0x1_f300 + self.0.below(0x200) as u32).unwrap_or('😀'))
                }
                _ => out.push(char::from(b'a' + self.0.below(26) as u8)),
            }
        }
        out.push('"');
    }
}
