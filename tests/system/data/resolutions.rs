//! What `spec/xirsys.md` settles: a test per row of §2, and per statement of §1 and §3 that can be
//! seen over HTTP. Failed logins come from addresses of their own.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::curl::Request;
use tests::http::{self, Connection};
use tests::neuron::Neuron;
use tests::socket::Client;
use tests::ver::Ver;
use tests::wait::until;

use super::{Account, Caller, connect, join, shared, v, word};

fn account() -> Result<Account> {
    Account::new(&*shared()?)
}

/// A time as a group of `yyyy:M:d:H:m`.
fn minute_of(unix_s: u64) -> Result<String> {
    let output = Command::new("date")
        .args(["-u", "-d", &format!("@{unix_s}"), "+%Y:%-m:%-d:%-H:%-M"])
        .output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The first parts of a time group.
fn cut(group: &str, depth: usize) -> String {
    group.split(':').take(depth).collect::<Vec<_>>().join(":")
}

fn names(value: &Value) -> Vec<&str> {
    value.as_array().map_or_else(Vec::new, |all| all.iter().filter_map(Value::as_str).collect())
}

fn token(caller: &Caller, path_and_query: &str) -> Result<String> {
    let token = v(caller.put(&format!("/_token{path_and_query}"), json!({})))?;
    Ok(token.as_str().context("a token is a string")?.to_owned())
}

/// An account with one PUT of data, counted in the minute in which it was stamped, and that stamp.
fn counted() -> Result<(Account, u64)> {
    loop {
        let top = account()?;
        v(top.put("/_data/clock", json!({ "k": "now", "v": 1 })))?;
        let series = v(top.get("/_data/clock?k=now&time_series=1"))?;
        let now = series[0][0].as_u64().context("a row starts with its time")?;
        let minute = minute_of(now)?;
        until(|| v(top.get("/_stats/data/PUT?l=api:3")), |seen| seen["count"] == 1)?;
        if v(top.get(&format!("/_stats/data/PUT?l=api:3&gs={minute}")))? != json!([]) {
            return Ok((top, now));
        }
        // A minute ended between the two: another try has a whole one.
    }
}

// §2, row by row.

#[test]
fn row_1_a_new_namespace_answers_its_version() -> Result<()> {
    let made = v(account()?.put("/_ns/my/path", json!({})))?;
    let members = made.as_object().context("an object")?;
    assert_eq!(members.keys().collect::<Vec<_>>(), ["_ver_"]);
    assert!(members.values().all(Value::is_string), "a typed parser reads strings only: {made}");
    Ok(())
}

#[test]
fn row_2_a_change_of_an_account_answers_its_public_view() -> Result<()> {
    let top = account()?;
    top.sub("lily")?;
    let body = json!({ "k": "lily", "v": { "company": "Async", "plan": "paid" } });
    let merged = v(top.post("/_acc/accounts", body))?;
    assert_eq!(merged["company"], "Async");
    assert_eq!(merged["email"], "lily@example.org");
    assert_eq!(merged, v(top.get("/_acc/accounts?k=lily"))?);
    for hidden in ["secret", "password", "plan", "term", "customer_id", "_ver_"] {
        assert!(merged.get(hidden).is_none(), "{hidden} is in {merged}");
    }
    Ok(())
}

#[test]
fn row_3_put_and_post_both_create_and_only_put_refuses_an_account_that_is_there() -> Result<()> {
    let top = account()?;
    let details =
        |name: &str| json!({ "k": name, "v": { "email": format!("{name}@example.org") } });
    assert!(v(top.put("/_acc/accounts", details("put")))?["secret"].is_string());
    assert!(v(top.post("/_acc/accounts", details("post")))?["secret"].is_string());
    assert_eq!(word(top.put("/_acc/accounts", details("put")))?, "username_exists");
    assert!(v(top.post("/_acc/accounts", details("put"))).is_ok());
    let admin = |password: &str| json!({ "k": "ann", "v": { "password": password } });
    for call in [Caller::put, Caller::post, Caller::put] {
        assert_eq!(v(call(&top, "/_acc/users/admins", admin("password")))?["role"], "admin");
    }
    Ok(())
}

#[test]
fn row_4_a_put_on_a_key_that_is_there_is_its_next_version() -> Result<()> {
    let top = account()?;
    let first = v(top.put("/_data/p", json!({ "k": "a", "v": { "n": 1 } })))?;
    let second = v(top.post("/_data/p", json!({ "k": "a", "v": { "n": 2 } })))?;
    let third = v(top.put("/_data/p", json!({ "k": "a", "v": { "n": 3 } })))?;
    let count =
        |value: &Value| value["_ver_"].as_str().and_then(|ver| ver.split('-').next()?.parse().ok());
    assert_eq!([count(&first), count(&second), count(&third)], [Some(1), Some(2), Some(3)]);
    assert_eq!(v(top.get("/_data/p?k=a"))?, third);
    Ok(())
}

#[test]
fn row_5_layers_start_with_a_star_and_a_hash_is_no_second_spelling() -> Result<()> {
    let top = account()?;
    v(top.put("/_data/p", json!({ "k": "a", "v": 1 })))?;
    let layers = v(top.get("/_ds"))?;
    assert!(names(&layers).contains(&"*data"), "{layers}");
    assert!(
        names(&layers).iter().all(|name| name.starts_with('*') || *name == "default"),
        "{layers}"
    );
    let answer = top.get("/_ds?a=paths&l=%23data")?;
    assert!(answer["v"] == "bad_layer_prefix" || answer["v"] == json!([]), "{answer}");
    Ok(())
}

#[test]
fn row_6_discovery_lists_the_layers_that_there_are() -> Result<()> {
    let top = account()?;
    v(top.put("/_data/p", json!({ "k": "a", "v": 1 })))?;
    v(top.put("/_ns/p", json!({})))?;
    let layers = until(|| v(top.get("/_ds/")), |layers| names(layers).contains(&"*stats:api:3"))?;
    assert_eq!(layers, json!(["*data", "*ns", "*stats:api:3"]));
    Ok(())
}

#[test]
fn row_7_figures_are_broken_down_by_break_or_where_neither_path_nor_key_is_named() -> Result<()> {
    let (top, now) = counted()?;
    let today = cut(&minute_of(now)?, 3);
    let is_one = |figures: &Value| figures.get("count").is_some();
    let figures = v(top.get("/_stats/data/PUT?l=api:3"))?;
    assert_eq!(figures, json!({ "sum": 1, "min": 1, "max": 1, "count": 1 }));
    for query in ["&break=1", "&break=true"] {
        let groups = v(top.get(&format!("/_stats/data/PUT?l=api:3&gs={today}{query}")))?;
        assert!(groups[&today]["count"].is_number(), "{query}: {groups}");
    }
    let total = v(top.get(&format!("/_stats/data/PUT?l=api:3&gs={today}&break=0")))?;
    assert!(is_one(&total), "{total}");
    let groups = v(top.get(&format!("/_stats/?l=api:3&gs={today}&break=0")))?;
    assert!(groups[&today]["count"].is_number(), "{groups}");
    Ok(())
}

#[test]
fn row_8_groups_are_as_deep_as_gs() -> Result<()> {
    let (top, now) = counted()?;
    let minute = minute_of(now)?;
    for (gs, ge) in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (2, 4), (4, 2)] {
        let (gs, ge) = (cut(&minute, gs), cut(&minute, ge));
        let query = format!("/_stats/data/PUT?l=api:3&gs={gs}&ge={ge}&break=1");
        let groups = v(top.get(&query))?;
        let groups: Vec<_> = groups.as_object().context("groups")?.keys().cloned().collect();
        assert_eq!(groups, [gs], "{query}");
    }
    Ok(())
}

#[test]
fn row_9_ge_is_inclusive_at_its_depth() -> Result<()> {
    let (top, now) = counted()?;
    let this = minute_of(now)?;
    let (before, after) = (minute_of(now - 60)?, minute_of(now + 60)?);
    for (gs, ge, is_inside) in [
        (before.as_str(), this.as_str(), true),
        (&this, &this, true),
        (&this, &after, true),
        (&before, &before, false),
        (&after, &after, false),
    ] {
        let stats = v(top.get(&format!("/_stats/data/PUT?l=api:3&gs={gs}&ge={ge}")))?;
        assert_eq!(stats.get("count").is_some(), is_inside, "stats from {gs} to {ge}: {stats}");
        let query = format!("/_data/clock?k=now&time_series=1&gs={gs}&ge={ge}");
        let series = v(top.get(&query))?;
        assert_eq!(series != json!([]), is_inside, "series from {gs} to {ge}: {series}");
    }
    for depth in 1..=5 {
        let only = cut(&this, depth);
        let series = v(top.get(&format!("/_data/clock?k=now&time_series=1&gs={only}")))?;
        assert_ne!(series, json!([]), "without ge to the end of {only}");
    }
    Ok(())
}

#[test]
fn row_10_a_series_without_a_key_is_that_of_all_keys() -> Result<()> {
    let top = account()?;
    for (key, value) in [("a", 1), ("b", 2), ("a", 3)] {
        v(top.put("/_data/p", json!({ "k": key, "v": value })))?;
    }
    let rows = v(top.get("/_data/p?time_series=1"))?;
    let of_key = |key: &str| -> Vec<&Value> {
        rows.as_array()
            .into_iter()
            .flatten()
            .filter(|row| row[3] == key)
            .map(|row| &row[2])
            .collect()
    };
    assert_eq!((of_key("a"), of_key("b")), (vec![&json!(3), &json!(1)], vec![&json!(2)]), "{rows}");
    let rows = v(top.get("/_data/p?k=a&time_series=1"))?;
    let lengths: Vec<_> =
        rows.as_array().context("rows")?.iter().map(|row| row.as_array().map(Vec::len)).collect();
    assert_eq!(lengths, [Some(3), Some(3)], "with a key a row has three");
    Ok(())
}

#[test]
fn row_11_a_change_bears_the_admins_key_or_else_the_ident() -> Result<()> {
    let top = account()?;
    v(top.put("/_acc/users/admins", json!({ "k": "ann", "v": { "password": "pass#word" } })))?;
    let admin = top.with(format!("{}:ann#pass#word", top.name));
    v(top.put("/_data/p", json!({ "k": "a", "v": 1 })))?;
    v(admin.put("/_data/p", json!({ "k": "a", "v": 2 })))?;
    let lily = top.sub("lily")?;
    v(lily.put("/_data/p", json!({ "k": "a", "v": 1 })))?;
    v(lily
        .with(format!("{}#lily:!{}", top.name, top.secret))
        .put("/_data/p", json!({ "k": "a", "v": 2 })))?;
    v(lily
        .with(format!("{}#lily:!ann#pass#word", top.name))
        .put("/_data/p", json!({ "k": "a", "v": 3 })))?;
    let who = |caller: &Caller| -> Result<Vec<String>> {
        let rows = v(caller.get("/_data/p?k=a&time_series=1"))?;
        Ok(rows
            .as_array()
            .context("rows")?
            .iter()
            .map(|row| row[1].as_str().unwrap_or_default().to_owned())
            .collect())
    };
    assert_eq!(who(&top)?, ["ann", top.name.as_str()]);
    assert_eq!(who(&lily)?, ["ann", "lily", "lily"]);
    until(|| v(top.get("/_stats/data/PUT?l=api:3&k=ann")), |seen| seen["count"] == 1)?;
    Ok(())
}

#[test]
fn row_12_an_accounts_creation_time_never_changes() -> Result<()> {
    let top = account()?;
    top.sub("lily")?;
    let created = v(top.get("/_acc/accounts?k=lily"))?["created"].clone();
    assert!(created.is_u64(), "{created}");
    let body = json!({ "k": "lily", "v": { "created": 1, "company": "Async" } });
    assert_eq!(v(top.post("/_acc/accounts", body))?["created"], created);
    assert_eq!(v(top.get("/_acc/accounts?k=lily"))?["created"], created);
    Ok(())
}

#[test]
fn row_13_a_password_is_shown_by_the_reply_that_sets_it_and_nowhere_else() -> Result<()> {
    let top = account()?;
    let details = json!({ "email": "lily@example.org", "password": "told-once" });
    let made = v(top.put("/_acc/accounts", json!({ "k": "lily", "v": details })))?;
    assert_eq!(made["password"], "told-once");
    let secret = made["secret"].as_str().context("a secret")?;
    v(top.put("/_acc/users/admins", json!({ "k": "ann", "v": { "password": "told-once" } })))?;
    v(top.post("/_acc/accounts", json!({ "k": "lily", "v": { "company": "Async" } })))?;
    for path in [
        "/_acc/accounts?k=lily",
        "/_acc/accounts?as=values",
        "/_acc/accounts?as=datum",
        "/_acc/accounts?k=lily&as=datum",
        "/_acc/accounts?k=lily&time_series=1",
        "/_acc/accounts?k2=lily@example.org",
        "/_acc/users/admins?k=ann",
        "/_acc/users/admins?as=values",
        "/_acc/users/admins?k=ann&time_series=1",
        "/_ds/accounts?a=values&l=*acc",
        "/_ds/accounts?l=*acc&k=lily",
        "/_ds/users/admins?a=values&l=*acc",
        "/_ds?a=changes",
    ] {
        let shown = v(top.get(path))?.to_string();
        for hidden in ["told-once", secret, "\"secret\"", "\"password\"", "argon2", "sha256:"] {
            assert!(!shown.contains(hidden), "{path} shows {hidden}: {shown}");
        }
    }
    Ok(())
}

#[test]
fn row_14_deleting_an_account_removes_its_data_and_keeps_its_row_in_the_series() -> Result<()> {
    let top = account()?;
    let lily = top.sub("lily")?;
    v(lily.put("/_data/p", json!({ "k": "a", "v": 1 })))?;
    assert_eq!(v(top.delete("/_acc/accounts?k=lily"))?, 1);
    assert_eq!(word(top.get("/_acc/accounts?k=lily"))?, "not_found");
    assert_eq!(v(top.get("/_acc/accounts"))?, json!([]));
    let series = v(top.get("/_acc/accounts?k=lily&time_series=1"))?;
    // What it was, and that it could no longer log in while its data went.
    assert_eq!(series.as_array().map(Vec::len), Some(2), "{series}");
    assert_eq!((&series[0][2]["active"], &series[1][2]["active"]), (&json!(false), &json!(true)));
    let with_end = v(top.get("/_acc/accounts?k=lily&time_series=1&deletions=1"))?;
    assert_eq!(with_end[0][2], Value::Null, "the tombstone is newest: {with_end}");
    let again = top.sub("lily")?;
    assert_eq!(v(again.get("/_data/p"))?, json!([]), "the new account starts empty");
    assert_eq!(v(again.get("/_data/p?k=a&time_series=1"))?, json!([]));
    Ok(())
}

#[test]
fn row_15_subscriptions_are_found_with_and_without_their_topic() -> Result<()> {
    let neuron = shared()?;
    let top = Account::new(&neuron)?;
    v(top.put("/_ns/site/app/room", json!({})))?;
    let _on_default = join(&neuron, &token(&top, "/site/app/room?k=ann")?)?;
    let _on_topic = join(&neuron, &token(&top, "/site/app/room/games?k=bob")?)?;
    for (path, expected) in [
        ("/site/app/room", json!(["ann"])),
        ("/site/app/room/topic", json!(["ann"])),
        ("/site/app/room/games", json!(["bob"])),
        ("/site/app/room/other", json!([])),
        ("/site/app", json!([])),
    ] {
        assert_eq!(v(top.get(&format!("/_subs{path}")))?, expected, "{path}");
    }
    Ok(())
}

#[test]
fn row_16_all_three_forms_of_host_answer() -> Result<()> {
    let top = account()?;
    let base = v(top.get("/_host/best/signal"))?;
    for path in [
        "/_hosts/best/signal",
        "/_host?type=signal",
        "/_host/any/path?type=signal&k=bob",
        "/_hosts?type=signal",
    ] {
        assert_eq!(v(top.get(path))?, base, "{path}");
    }
    for path in ["/_host/best/turn", "/_hosts/best/turn", "/_host?type=turn"] {
        assert_eq!(word(top.get(path))?, "no_service", "{path}");
    }
    assert_eq!(word(top.get("/_host"))?, "require_type_param");
    assert_eq!(word(top.get("/_host?type=video"))?, "unrecognized_type_param");
    let base = base.as_str().context("a string")?;
    assert!(base.starts_with("ws://") && !base.ends_with('/'), "{base}");
    Ok(())
}

#[test]
fn row_17_a_token_holds_sixty_seconds_or_as_long_as_it_says_and_zero_is_for_ever() -> Result<()> {
    let (top, now) = counted()?;
    for (query, expected) in [("", Some(60)), ("&expire=600", Some(600)), ("&expire=0", None)] {
        let made = v(top.put(&format!("/_token?k=bob&as=values{query}"), json!({})))?;
        let expires = made["expires_at"].as_u64().context("expires_at")?;
        match expected {
            None => assert_eq!(expires, 0, "{made}"),
            Some(lifetime) => assert!(expires.abs_diff(now + lifetime) < 30, "{query}: {made}"),
        }
    }
    Ok(())
}

#[test]
fn row_18_a_universal_token_joins_the_root() -> Result<()> {
    let neuron = shared()?;
    let top = Account::new(&neuron)?;
    let mut chatter = connect(&neuron, &token(&top, "?k=bob")?)?;
    let first = chatter.frame()?;
    assert_eq!(first["m"]["f"], "/__sys__", "{first}");
    assert_eq!(first["p"]["users"], json!(["bob"]));
    v(top.put("/_ns/room", json!({})))?;
    let mut chatter = connect(&neuron, &format!("{}?path=/room", token(&top, "?k=ann")?))?;
    let first = chatter.frame()?;
    assert_eq!(first["m"]["f"], "/room/__sys__", "{first}");
    Ok(())
}

#[test]
fn row_19_a_denied_range_is_shut_out_at_the_path_and_below_by_http_and_by_socket() -> Result<()> {
    let neuron = shared()?;
    let top = Account::new(&neuron)?;
    v(top.put("/_ns/my/path", json!({})))?;
    v(top.put("/_auth/my/path", json!({ "k": "127.0.0.16/29", "v": "a note" })))?;
    let ask = |address: &str, path: &str| -> Result<Value> {
        top.request("GET", path).from_address(address).send()?.json()
    };
    for (address, path, is_denied) in [
        ("127.0.0.17", "/_data/my/path", true),
        ("127.0.0.23", "/_data/my/path/below", true),
        ("127.0.0.17", "/_subs/my/path", true),
        ("127.0.0.17", "/_data/my", false),
        ("127.0.0.17", "/_data/my/pathology", false),
        ("127.0.0.24", "/_data/my/path", false),
        ("127.0.0.17", "/_auth/my/path", false),
    ] {
        let answer = ask(address, path)?;
        assert_eq!(answer["v"] == "unauthorized", is_denied, "{address} {path}: {answer}");
    }
    assert_eq!(v(top.get("/_auth/my/path"))?, json!(["127.0.0.16/29"]));
    assert_eq!(v(top.get("/_auth/my/path?k=127.0.0.16/29"))?, "a note");

    let mut inside = join(&neuron, &token(&top, "/my/path?k=bob")?)?;
    v(top.put("/_auth/my", json!({ "k": "127.0.0.1" })))?;
    assert_eq!(inside.close_code()?, 4403, "a new rule closes what is open");
    let unlock = Request::new("DELETE", format!("{}/_auth/my?k=127.0.0.1", top.url));
    v(unlock.user(&top.credentials).send()?.json())?;
    let held = token(&top, "/my/path?k=bob")?;
    v(top.put("/_auth/my/path", json!({ "k": "127.0.0.1" })))?;
    assert_eq!(connect(&neuron, &held)?.close_code()?, 4401, "no joining from there");
    Ok(())
}

#[test]
fn row_20_depth_in_the_path_is_a_path() -> Result<()> {
    let top = account()?;
    v(top.put("/_ns/my/path", json!({})))?;
    assert_eq!(v(top.get("/_ns/depth=10"))?, json!([]));
    assert_eq!(v(top.get("/_ns/?depth=depth=10"))?, json!(["my/path"]), "an SDK's slip");
    Ok(())
}

#[test]
fn row_21_names_and_secrets_leave_the_punctuation_of_credentials_alone() -> Result<()> {
    let top = account()?;
    assert_eq!(top.secret.len(), 36, "a UUID");
    for name in ["a#b", "a:b", "!a", "$a", "a/b", "a)b", "a\u{7}b", "", &"a".repeat(65)] {
        let body = json!({ "k": name, "v": { "email": "a@example.org" } });
        assert_eq!(
            word(top.put("/_acc/accounts", body))?,
            if name == "a\u{7}b" { "bad_name" } else { "bad_username" },
            "{name:?}"
        );
    }
    for name in ["a#b", "a:b", "!a"] {
        let body = json!({ "k": name, "v": { "password": "password" } });
        assert_eq!(word(top.put("/_acc/users/admins", body))?, "bad_name", "{name:?}");
    }
    for secret in ["with#hash", "!mark"] {
        let body = json!({ "k": "a", "v": { "email": "a@example.org", "secret": secret } });
        assert_eq!(word(top.put("/_acc/accounts", body))?, "bad_password_format", "{secret}");
    }
    let body = json!({ "k": "a", "v": { "email": "a@example.org", "secret": "with:colons:" } });
    v(top.put("/_acc/accounts", body))?;
    v(top.with(format!("{}#a:with:colons:", top.name)).get("/_data"))?;
    Ok(())
}

#[test]
fn row_22_buckets_are_named_so_that_no_two_accounts_share_one() -> Result<()> {
    let neuron = shared()?;
    let sys = Caller::sys(&neuron);
    let bucket = |caller: &Caller| -> Result<String> {
        v(caller.put("/_data/p", json!({ "k": "a", "v": 1 })))?;
        let datum = v(caller.get("/_data/p?k=a&as=datum"))?;
        Ok(datum["w"].as_str().context("w")?.to_owned())
    };
    let top = Account::new(&neuron)?;
    assert_eq!(bucket(&top)?, format!("kv4_${}_data", top.name));
    assert_eq!(bucket(&top.sub("lily")?.caller)?, format!("kv4_${})lily_data", top.name));
    assert_eq!(bucket(&top.sub("Lily")?.caller)?, format!("kv4_${})+4cily_data", top.name));
    let long = json!({ "k": "A".repeat(64), "v": { "email": "long@example.org" } });
    assert_eq!(word(sys.put("/_acc/accounts", long))?, "bad_username");
    // An account of that name would have the bucket of `$sys`.
    let namesake = json!({ "k": "sys", "v": { "email": "sys@example.org" } });
    assert_eq!(word(sys.put("/_acc/accounts", namesake))?, "bad_username");
    Ok(())
}

#[test]
fn row_23_tokens_and_relays_need_a_namespace_and_data_does_not() -> Result<()> {
    let top = account()?;
    for path in ["/_token/no/such", "/_turn/no/such"] {
        assert_eq!(word(top.put(path, json!({})))?, "no_namespace", "{path}");
    }
    v(top.put("/_data/no/such", json!({ "k": "a", "v": 1 })))?;
    assert_eq!(v(top.get("/_stats/no/such?l=router:pkt"))?, json!([]));
    assert_eq!(v(top.get("/_subs/no/such"))?, json!([]));
    assert_eq!(word(top.put("/_turn", json!({})))?, "no_service", "the root is a namespace");
    assert_eq!(word(top.post("/_turn", json!({})))?, "no_service", "some clients POST");
    Ok(())
}

#[test]
fn row_24_a_call_is_counted_and_seen_after_the_flush() -> Result<()> {
    let top = account()?;
    for expected in 1..=3 {
        v(top.put("/_data/p", json!({ "k": "a", "v": expected })))?;
        let query = format!("/_stats/data/PUT?k={}&l=api:3", top.name);
        let figures = until(|| v(top.get(&query)), |seen| seen["count"] == expected)?;
        assert_eq!(figures, json!({ "sum": expected, "min": 1, "max": 1, "count": expected }));
    }
    Ok(())
}

#[test]
fn rows_25_and_26_a_kick_is_told_to_the_room_closes_the_socket_and_ends_the_token_only()
-> Result<()> {
    let neuron = shared()?;
    let top = Account::new(&neuron)?;
    v(top.put("/_ns/room", json!({})))?;
    let mut ann = join(&neuron, &token(&top, "/room?k=ann")?)?;
    let kept = token(&top, "/room?k=bob")?;
    let mut bob = join(&neuron, &kept)?;
    assert_eq!(ann.frame()?["m"]["o"], "peer_connected");
    assert_eq!(v(top.delete("/_subs/room/topic?k=bob"))?, 1);
    let told = ann.frame()?;
    assert_eq!((&told["m"]["o"], &told["m"]["f"]), (&json!("peer_removed"), &json!("/room/bob")));
    assert_eq!(bob.close_code()?, 4403);
    assert_eq!(word(top.delete("/_subs/room?k=bob"))?, "not_found");
    assert_eq!(connect(&neuron, &kept)?.close_code()?, 4401, "the token is no more");
    join(&neuron, &token(&top, "/room?k=bob")?)?;
    Ok(())
}

// §1.1.

#[test]
fn slashes_collapse_and_an_escaped_one_is_a_slash() -> Result<()> {
    let top = account()?;
    v(top.put("/_data/my/voice%20demo", json!({ "k": "a", "v": 1 })))?;
    for path in [
        "/_data/my/voice%20demo",
        "/_data//my///voice%20demo",
        "//_data/my/voice%20demo/",
        "/_data/my%2Fvoice%20demo",
        "/_data/%6dy/voice%20demo",
    ] {
        assert_eq!(v(top.get(path))?, json!(["a"]), "{path}");
    }
    assert_eq!(v(top.get("/_ds?a=paths&l=*data"))?, json!(["/my/voice demo"]));
    // An escape makes no other URL of it, in the service's name neither.
    v(top.put("/%5Fdata/%73p", json!({ "k": "escaped", "v": 1 })))?;
    assert_eq!(v(top.get("/_%64ata/sp?k=escaped"))?, 1);
    let list = Request::new("GET", format!("{}/%77sList", top.url)).send()?;
    assert_eq!(list.json()?["s"], 200);
    for path in ["/%5F%5Fdata", "/%5Fda", "/%5", "/%zzdata"] {
        assert_eq!(top.request("GET", path).send()?.status, 404, "{path}");
    }
    Ok(())
}

#[test]
fn every_form_of_credentials_is_understood() -> Result<()> {
    let neuron = shared()?;
    let top = Account::new(&neuron)?;
    let lily = top.sub("lily")?;
    v(top.put("/_acc/users/admins", json!({ "k": "ann", "v": { "password": "top#pass" } })))?;
    v(lily.put("/_acc/users/admins", json!({ "k": "zoe", "v": { "password": "lilypass" } })))?;
    v(lily.put("/_data/p", json!({ "k": "lily's", "v": 1 })))?;
    v(top.put("/_data/p", json!({ "k": "mine", "v": 1 })))?;
    let (name, secret) = (&top.name, &top.secret);
    for (credentials, expected) in [
        (format!("{name}:{secret}"), "mine"),
        (format!("{name}:ann#top#pass"), "mine"),
        (format!("{name}#lily:{}", lily.secret), "lily's"),
        (format!("{name}#lily:!{secret}"), "lily's"),
        (format!("{name}#lily:!ann#top#pass"), "lily's"),
        (format!("{name}#lily:zoe#lilypass"), "lily's"),
        (format!("%{:02x}{}:{secret}", name.as_bytes()[0], &name[1..]), "mine"),
    ] {
        assert_eq!(v(top.with(&credentials).get("/_data/p"))?, json!([expected]), "{credentials}");
    }
    let sys = tests::neuron::SYS_SECRET;
    for credentials in [format!("$sys:{sys}"), format!("%24sys:{sys}")] {
        assert!(v(top.with(&credentials).get("/_acc/accounts"))?.is_array(), "{credentials}");
    }
    let parts = format!("{}/_data/p?ident={name}&secret={secret}", top.url);
    assert_eq!(v(Request::new("GET", parts).send()?.json())?, json!(["mine"]));
    Ok(())
}

#[test]
fn an_inactive_account_is_unauthorized_on_every_service() -> Result<()> {
    let top = account()?;
    let lily = top.sub("lily")?;
    v(lily.get("/_data"))?;
    v(top.post("/_acc/accounts", json!({ "k": "lily", "v": { "active": false } })))?;
    for path in [
        "/_data/p",
        "/_ns",
        "/_stats?l=api:3",
        "/_host/best/signal",
        "/_acc/accounts",
        "/_ds",
        "/_subs/p",
        "/_auth/p",
    ] {
        let answer = lily.request("GET", path).from_address("127.0.0.40").send()?.json();
        assert_eq!(word(answer)?, "unauthorized", "{path}");
    }
    let by_parent = top.with(format!("{}#lily:!{}", top.name, top.secret));
    let answer = by_parent.request("GET", "/_data").from_address("127.0.0.40").send()?.json();
    assert_eq!(word(answer)?, "unauthorized", "also with the parent's secret");
    v(top.post("/_acc/accounts", json!({ "k": "lily", "v": { "active": true } })))?;
    v(lily.get("/_data"))?;
    Ok(())
}

#[test]
fn parameters_are_read_from_the_query_or_the_body_and_numbers_may_be_texts() -> Result<()> {
    let top = account()?;
    v(top.put("/_ns/a/b/c", json!({})))?;
    v(top.put("/_ns/a", json!({})))?;
    let in_body = |body: Value| top.call("GET", "/_ns", Some(&body));
    assert_eq!(v(top.get("/_ns?depth=1"))?, json!(["a"]));
    assert_eq!(v(in_body(json!({ "depth": 1 })))?, json!(["a"]));
    assert_eq!(v(in_body(json!({ "depth": "1" })))?, json!(["a"]));
    v(top.put("/_data/p?k=in%20query", json!({ "v": 1 })))?;
    assert_eq!(v(top.call("DELETE", "/_data/p", Some(&json!({ "k": "in query" }))))?, 1);
    for body in [json!({ "expire": 600, "k": 7 }), json!({ "expire": "600", "k": "7" })] {
        let made = v(top.put("/_token?as=values", body))?;
        assert_eq!(made["k"], "7");
    }
    Ok(())
}

#[test]
fn the_envelope_is_json_and_nothing_asks_a_browser_for_a_login() -> Result<()> {
    let top = account()?;
    let answers = [
        top.request("GET", "/_data/p").send()?,
        top.request("GET", "/_data/p?k=none").send()?,
        Request::new("GET", format!("{}/_data", top.url)).from_address("127.0.0.41").send()?,
        Request::new("GET", format!("{}/_data", top.url))
            .header("accept: application/problem+json")
            .from_address("127.0.0.41")
            .send()?,
    ];
    for answer in &answers {
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{answer:?}");
        assert_eq!(answer.header("www-authenticate"), None, "{answer:?}");
    }
    for answer in &answers[..3] {
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
        let members: Vec<_> =
            answer.json()?.as_object().context("an object")?.keys().cloned().collect();
        assert!(
            members.contains(&"v".to_owned()) && members.contains(&"s".to_owned()),
            "{members:?}"
        );
    }
    assert_eq!(answers[3].status, 401);
    assert_eq!(answers[3].header("content-type"), Some("application/problem+json"));
    for (method, path) in [("PUT", "/_token"), ("PUT", "/_turn")] {
        let answer = top.request(method, path).send()?;
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}: {answer:?}");
    }
    Ok(())
}

#[test]
fn an_account_can_opt_in_to_real_statuses() -> Result<()> {
    let top = account()?;
    assert_eq!(top.request("GET", "/_data/p?k=none").send()?.status, 200);
    v(top.put("/_conf", json!({ "k": "real_status", "v": true })))?;
    assert_eq!(top.request("GET", "/_data/p?k=none").send()?.status, 404);
    Ok(())
}

#[test]
fn a_preflight_needs_no_credentials() -> Result<()> {
    let neuron = shared()?;
    for path in ["/_data/my/path", "/_turn//my/path", "/getToken", "/_token"] {
        let answer = Request::new("OPTIONS", format!("{}{path}", neuron.url()))
            .header("origin: https://example.org")
            .header("access-control-request-method: PUT")
            .header("access-control-request-headers: authorization")
            .send()?;
        assert_eq!(answer.status, 204, "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        let methods = answer.header("access-control-allow-methods").unwrap_or_default();
        for method in ["GET", "PUT", "POST", "DELETE", "OPTIONS"] {
            assert!(methods.split(',').any(|known| known == method), "{methods}");
        }
        let headers = answer.header("access-control-allow-headers").unwrap_or_default();
        for header in ["authorization", "content-type", "x-requested-with"] {
            assert!(headers.split(',').any(|known| known == header), "{headers}");
        }
        assert!(answer.header("access-control-max-age").is_some());
    }
    Ok(())
}

#[test]
fn an_account_can_list_the_origins_that_may_call() -> Result<()> {
    let top = account()?;
    v(top.put("/_conf", json!({ "k": "cors_origins", "v": ["https://mine.example"] })))?;
    let mine = top.request("GET", "/_data").header("origin: https://mine.example").send()?;
    assert_eq!(mine.header("access-control-allow-origin"), Some("https://mine.example"));
    v(mine.json())?;
    let other = top.request("GET", "/_data").header("origin: https://other.example").send()?;
    assert_eq!(word(other.json())?, "not_allowed");
    assert_eq!(other.header("access-control-allow-origin"), None, "its page may not read that");
    v(top.get("/_data"))?;
    let unread = top.request("PUT", "/_data").header("origin: https://mine.example").body("{");
    let unread = unread.send()?;
    assert_eq!(unread.header("access-control-allow-origin"), Some("https://mine.example"));
    assert_eq!(word(unread.json())?, "bad_request");

    // The old routes are the same account's.
    let domains = |origin: &str| {
        let who = format!("ident={}&secret={}", top.name, top.secret);
        Request::new("GET", format!("{}/domain?{who}", top.url)).header(origin).send()
    };
    let mine = domains("origin: https://mine.example")?;
    assert_eq!(mine.header("access-control-allow-origin"), Some("https://mine.example"));
    assert_eq!(mine.json()?["s"], 200);
    let other = domains("origin: https://other.example")?;
    assert_eq!(other.header("access-control-allow-origin"), None);
    assert_eq!(other.json()?["e"], "not_allowed");
    Ok(())
}

// §1.2.

#[test]
fn a_token_is_safe_in_a_url_and_names_somebody() -> Result<()> {
    let top = account()?;
    v(top.put("/_ns/room", json!({})))?;
    for query in ["", "?expire=0", "?k=Zo%C3%AB%20L.&expire=20", "/room?k=bob"] {
        let text = token(&top, query)?;
        let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        assert!(text.len() <= 200 && text.bytes().all(is_safe), "{query}: {text}");
    }
    let [one, other] = [(); 2].map(|()| v(top.put("/_token?as=values", json!({}))));
    assert_ne!(one?["k"], other?["k"], "without `k` everybody is somebody else");
    Ok(())
}

#[test]
fn every_spelling_of_the_sockets_url_is_served() -> Result<()> {
    let neuron = shared()?;
    let top = Account::new(&neuron)?;
    let address = neuron.address("http")?;
    for prefix in ["/ws/v2/", "/v2/", "/ws//v2/", "//v2/", "/ws/v1/", "/v1/"] {
        let url = format!("ws://{address}{prefix}{}", token(&top, "?k=bob")?);
        let first = Client::connect(&url)?.next_text()?;
        assert!(first.contains("\"users\":[\"bob\"]"), "{prefix}: {first}");
    }
    Ok(())
}

// §1.4.

#[test]
fn the_tree_lists_what_was_put_relative_to_the_base_and_sorted() -> Result<()> {
    let top = account()?;
    for path in ["z", "a/b/c/d", "a/b", "a-b"] {
        v(top.put(&format!("/_ns/{path}"), json!({})))?;
    }
    for (query, expected) in [
        ("/_ns", json!(["a-b", "a/b", "a/b/c/d", "z"])),
        ("/_ns?depth=1", json!(["a-b", "z"])),
        ("/_ns/?depth=2", json!(["a-b", "a/b", "z"])),
        ("/_ns/a", json!(["b", "b/c/d"])),
        ("/_ns/a?depth=1", json!(["b"])),
        ("/_ns/a/b", json!(["c/d"])),
        ("/_ns/none", json!([])),
    ] {
        assert_eq!(v(top.get(query))?, expected, "{query}");
    }
    assert_eq!(word(top.put("/_ns/a/b", json!({})))?, "path_exists");
    assert_eq!(v(top.delete("/_ns/a"))?, 2, "all paths under it");
    assert_eq!(word(top.delete("/_ns/a"))?, "not_found");
    assert_eq!(v(top.delete("/_ns/z"))?, 1);
    assert_eq!(v(top.get("/_ns"))?, json!(["a-b"]));
    Ok(())
}

// §1.5.

#[test]
fn a_value_is_read_as_itself_as_a_list_and_as_a_record() -> Result<()> {
    let top = account()?;
    let stored = v(top.put("/_data/my/path", json!({ "k": "b", "v": { "n": 1 } })))?;
    assert_eq!(v(top.put("/_data/my/path", json!({ "k": "a", "v": "text" })))?, "text");
    assert_eq!(stored["n"], 1);
    assert_eq!(v(top.get("/_data/my/path?k=b"))?, stored);
    assert_eq!(v(top.get("/_data/my/path"))?, json!(["a", "b"]));
    assert_eq!(v(top.get("/_data/my/path?as=values"))?, json!(["text", stored]));
    let datum = v(top.get("/_data/my/path?k=b&as=datum"))?;
    let time = datum["t"].as_u64().context("t")?;
    let ver = &stored["_ver_"];
    assert_eq!(
        datum,
        json!({
            "w": format!("kv4_${}_data", top.name), "k": "b", "l": "*data", "p": "/my/path",
            "t": time, "m": {}, "v": { "n": 1 }, "s": "c", "a": top.name, "_id": ver, "_rev": ver,
        })
    );
    let all = v(top.get("/_data/my/path?as=datum"))?;
    assert_eq!(all[1], datum);
    Ok(())
}

#[test]
fn a_version_that_is_given_is_checked_and_one_that_is_not_wins() -> Result<()> {
    let top = account()?;
    let put = |value: Value| top.put("/_data/p", json!({ "k": "a", "v": value }));
    let first = v(put(json!({ "n": 1 })))?["_ver_"].clone();
    let second = v(put(json!({ "n": 2, "_ver_": first })))?["_ver_"].clone();
    assert_eq!(word(put(json!({ "n": 3, "_ver_": first })))?, "version_conflict");
    assert_eq!(word(put(json!({ "n": 3, "_ver_": "no version" })))?, "version_conflict");
    v(put(json!({ "n": 4 })))?;
    v(put(json!({ "n": 5, "_ver_": "_splat_" })))?;
    let stale = top.request("PUT", "/_data/p").header(&format!("if-match: {second}"));
    assert_eq!(word(stale.body(r#"{"k":"a","v":6}"#).send()?.json())?, "version_conflict");
    assert_eq!(
        word(top.delete(&format!("/_data/p?k=a&_ver_={}", second.as_str().unwrap_or_default())))?,
        "version_conflict"
    );
    assert_eq!(v(top.get("/_data/p?k=a"))?["n"], 5);

    v(top.put("/_conf/strict", json!({ "k": "strict", "v": true })))?;
    let put = |value: Value| top.put("/_data/strict/below", json!({ "k": "a", "v": value }));
    let first = v(put(json!({ "n": 1 })))?["_ver_"].clone();
    assert_eq!(word(put(json!({ "n": 2 })))?, "_ver_missing");
    v(put(json!({ "n": 2, "_ver_": first })))?;
    v(put(json!({ "n": 3, "_ver_": "_splat_" })))?;
    Ok(())
}

#[test]
fn a_deletion_counts_is_not_recursive_and_leaves_the_series() -> Result<()> {
    let top = account()?;
    for (path, key) in [("/p", "a"), ("/p", "b"), ("/p/below", "c")] {
        v(top.put(&format!("/_data{path}"), json!({ "k": key, "v": { "n": 1 } })))?;
    }
    assert_eq!(v(top.delete("/_data/p?k=a"))?, 1);
    assert_eq!(word(top.delete("/_data/p?k=a"))?, "not_found");
    assert_eq!(v(top.delete("/_data/p"))?, 1);
    assert_eq!(v(top.delete("/_data/p"))?, 0);
    assert_eq!(v(top.get("/_ds?a=paths&l=*data"))?, json!(["/p/below"]));
    let series = v(top.get("/_data/p?k=a&time_series=1"))?;
    assert_eq!(series[0][2]["n"], 1, "clients read it after the deletion: {series}");
    Ok(())
}

// §1.6.

#[test]
fn accounts_are_checked_and_merged() -> Result<()> {
    let top = account()?;
    let put = |body: Value| top.put("/_acc/accounts", body);
    let post = |details: Value| top.post("/_acc/accounts", json!({ "k": "lily", "v": details }));
    for (body, expected) in [
        (json!({ "k": "lily" }), "require_account_details"),
        (json!({ "k": "lily", "v": "text" }), "require_account_details"),
        (json!({ "k": "lily", "v": {} }), "bad_email"),
        (json!({ "k": "lily", "v": { "email": "nobody" } }), "bad_email"),
        (
            json!({ "k": "lily", "v": { "email": "a@b.c", "password": "abc" } }),
            "bad_password_format",
        ),
        (json!({ "v": { "email": "a@b.c" } }), "bad_username"),
    ] {
        assert_eq!(word(put(body.clone()))?, expected, "{body}");
    }
    top.sub("lily")?;
    assert_eq!(word(post(json!({ "username": "rose" })))?, "username_is_immutable");
    assert_eq!(word(post(json!({ "email": "rose@example.org" })))?, "email_is_immutable");
    let taken = json!({ "k": "rose", "v": { "email": "lily@example.org" } });
    assert_eq!(word(put(taken))?, "email_exists");
    v(post(json!({ "company": "Async", "colour": "red" })))?;
    v(post(json!({ "company": null })))?;
    let row = v(top.get("/_acc/accounts?k=lily"))?;
    assert_eq!(
        (&row["company"], &row["colour"]),
        (&Value::Null, &json!("red")),
        "null stores null"
    );
    assert!(row.as_object().is_some_and(|row| row.contains_key("company")));
    assert_eq!(v(top.get("/_acc/accounts?k2=lily@example.org"))?, row);
    Ok(())
}

/// An account could be made with a row so large that no change of it was taken, its end included.
#[test]
fn a_row_has_a_bounded_number_of_fields_and_bytes() -> Result<()> {
    const FIELDS_MAX: usize = 64;
    const ROW_BYTES_MAX: usize = 64 << 10;
    // What the row of an account and of an admin holds beside the fields that are given here.
    for (path, own, given) in [
        ("/_acc/accounts", 13, json!({ "email": "lily@example.org" })),
        ("/_acc/users/admins", 2, json!({ "password": "password", "role": "admin" })),
    ] {
        let top = account()?;
        let with = |count: usize, bytes: usize| {
            let mut details = given.clone();
            for at in 0..count {
                details[format!("field{at}")] = json!("x".repeat(bytes));
            }
            json!({ "k": "lily", "v": details })
        };
        let room = FIELDS_MAX - own;
        let refused = "require_account_details";
        assert_eq!(word(top.put(path, with(room + 1, 1)))?, refused, "{path}: a field too many");
        assert_eq!(word(top.put(path, with(1, ROW_BYTES_MAX)))?, refused, "{path}: too many bytes");
        v(top.put(path, with(room, 1)))?;
        v(top.post(path, json!({ "k": "lily", "v": { "field0": "other" } })))?;
        let more = json!({ "k": "lily", "v": { "more": 1 } });
        assert_eq!(word(top.post(path, more))?, refused, "{path}: merged");
        let longer = json!({ "k": "lily", "v": { "field0": "x".repeat(ROW_BYTES_MAX) } });
        assert_eq!(word(top.post(path, longer))?, refused, "{path}: merged");
        assert_eq!(v(top.delete(&format!("{path}?k=lily")))?, 1, "{path}");
    }
    Ok(())
}

#[test]
fn admins_are_made_listed_changed_and_removed() -> Result<()> {
    let top = account()?;
    let put = |password: &str| {
        top.put("/_acc/users/admins", json!({ "k": "ann", "v": { "password": password } }))
    };
    assert_eq!(word(put("abc"))?, "bad_password_format");
    assert_eq!(v(put("four"))?, json!({ "password": "four", "role": "admin" }));
    assert_eq!(v(top.get("/_acc/users/admins"))?, json!(["ann"]));
    assert_eq!(v(top.get("/_acc/users/admins?k=ann"))?, json!({ "role": "admin" }));
    v(top.post("/_acc/users/admins", json!({ "k": "ann", "v": { "phone": "1" } })))?;
    let admin = top.with(format!("{}:ann#four", top.name));
    v(admin.get("/_data"))?;
    assert_eq!(v(top.delete("/_acc/users/admins?k=ann"))?, 1);
    let gone = admin.request("GET", "/_data").from_address("127.0.0.42").send()?.json();
    assert_eq!(word(gone)?, "unauthorized");
    Ok(())
}

#[test]
fn discovery_descends_from_layers_to_paths_to_keys_to_a_value() -> Result<()> {
    let top = account()?;
    v(top.put("/_data/a/b", json!({ "k": "k1", "v": { "n": 1 } })))?;
    v(top.put("/_data/c", json!({ "k": "k2", "v": 2 })))?;
    // The calls themselves are counted in a layer that is there after a flush.
    for path in ["/_ds", "/_ds?a=layers"] {
        until(|| v(top.get(path)), |layers| *layers == json!(["*data", "*stats:api:3"]))?;
    }
    assert_eq!(v(top.get("/_ds?a=paths&l=*data"))?, json!(["/a/b", "/c"]));
    assert_eq!(v(top.get("/_ds/a?a=paths&l=*data"))?, json!(["/a/b"]));
    assert_eq!(v(top.get("/_ds/a/b?a=keys&l=*data"))?, json!(["k1"]));
    assert_eq!(v(top.get("/_ds/a/b?l=*data&k=k1"))?["n"], 1);
    assert_eq!(word(top.get("/_ds?a=keys"))?, "bad_layer_prefix");
    Ok(())
}

#[test]
fn figures_of_nothing_are_an_empty_list() -> Result<()> {
    let top = account()?;
    assert_eq!(v(top.get("/_stats/my/path?l=turn:sess"))?, json!([]));
    assert_eq!(v(top.get("/_stats/my/path?l=turn:sess&gs=2016:2&ge=2016:3&break=1"))?, json!([]));
    Ok(())
}

// §1.8.

#[test]
fn an_old_client_that_asks_for_a_safe_url_is_given_one_where_there_is_one() -> Result<()> {
    let in_the_clear = shared()?;
    let authority = in_the_clear.address("http")?;
    let list = Request::new("GET", format!("{}/wsList?secure=1", in_the_clear.url()));
    assert_eq!(list.send()?.json()?["d"]["value"], format!("ws://{authority}/ws"), "no TLS here");

    let settings =
        [("GANGLION_LISTEN__HTTPS", "[\"127.0.0.1:0\"]"), ("GANGLION_TLS__SELF_SIGNED", "true")];
    let neuron = Neuron::start_with(&settings, &[])?;
    let authority = neuron.address("http")?;
    let safe = format!("wss://{}/ws", neuron.address("https")?);
    let as_it_came = format!("ws://{authority}/ws");
    for (query, form, expected) in [
        ("", "", &as_it_came),
        ("?secure=1", "", &safe),
        ("?secure=True", "", &safe),
        ("?secure=0", "", &as_it_came),
        ("", "secure=1", &safe),
        ("", r#"{"secure":1}"#, &safe),
        ("", r#"{"secure":"True"}"#, &safe),
    ] {
        for route in ["/signal/list", "/wsList"] {
            let url = format!("{}{route}{query}", neuron.url());
            let request = Request::new(if form.is_empty() { "GET" } else { "POST" }, url);
            let request = if form.is_empty() { request } else { request.body(form) };
            let answer = request.send()?.json()?;
            assert_eq!(answer["d"]["value"], *expected, "{route}{query} {form}: {answer}");
        }
    }
    let urls = r#"["ws://plain.example/ws","wss://safe.example/ws"]"#;
    let neuron = Neuron::start_with(&[("GANGLION_SIGNAL__URLS", urls)], &[])?;
    for (query, expected) in [("", "ws://plain.example/ws"), ("?secure=1", "wss://safe.example/ws")]
    {
        let url = format!("{}/signal/list{query}", neuron.url());
        assert_eq!(Request::new("GET", url).send()?.json()?["d"]["value"], expected, "{query}");
    }
    Ok(())
}

#[test]
fn the_legacy_routes_serve_a_whole_visit() -> Result<()> {
    let neuron = shared()?;
    let top = Account::new(&neuron)?;
    let who = format!("ident={}&secret={}", top.name, top.secret);
    let ask = |method: &str, path: &str, form: &str| -> Result<Value> {
        let url = format!("{}{path}", top.url);
        let request = match method {
            "GET" | "DELETE" => Request::new(method, format!("{url}?{who}&{form}")),
            _ => Request::new(method, url).body(format!("{who}&{form}")),
        };
        let answer = request.send()?;
        ensure!(answer.status == 200, "{answer:?}");
        let envelope = answer.json()?;
        let members: Vec<_> = envelope.as_object().context("an object")?.keys().cloned().collect();
        ensure!(members == ["d", "e", "s"], "python indexes all three: {envelope}");
        Ok(envelope)
    };
    let ok = |data: Value| json!({ "s": 200, "d": data, "e": null });
    assert_eq!(ask("POST", "/domain", "domain=site.org")?, ok(json!("site.org")));
    assert_eq!(
        ask("POST", "/addApplication", "domain=site.org&application=app")?,
        ok(json!("app"))
    );
    assert_eq!(
        ask("GET", "/addRoom", "domain=site.org&application=app&room=one")?,
        ok(json!("one"))
    );
    assert_eq!(ask("GET", "/domain", "")?, ok(json!(["site.org"])));
    assert_eq!(ask("GET", "/application", "domain=site.org")?, ok(json!(["app"])));
    assert_eq!(ask("GET", "/room", "domain=site.org&application=app")?, ok(json!(["one"])));
    let room = "domain=site.org&application=app&room=one&username=bob&secure=1";
    for (method, path) in [
        ("POST", "/getToken"),
        ("GET", "/getToken"),
        ("POST", "/signal/token"),
        ("GET", "/signal/token"),
    ] {
        let made = ask(method, path, room)?;
        let token = made["d"]["token"].as_str().context("a token")?;
        let mut bob = connect(&neuron, token)?;
        assert_eq!(bob.frame()?["m"]["f"], "/site.org/app/one/__sys__", "{path}");
    }
    for path in ["/wsList", "/signal/list", "/signal/list?secure=0"] {
        let listed = Request::new("GET", format!("{}{path}", top.url)).send()?.json()?;
        let value = listed["d"]["value"].as_str().context("needs no credentials")?;
        assert!(value.starts_with("ws://"), "{path}: {listed}");
    }
    for path in ["/getIceServers", "/ice"] {
        let refused = ask("POST", path, room)?;
        assert_eq!((&refused["e"], &refused["d"]), (&json!("no_service"), &Value::Null), "{path}");
    }
    assert_eq!(ask("DELETE", "/room", "domain=site.org&application=app&room=one")?, ok(json!(1)));
    let as_json = json!({ "ident": top.name, "secret": top.secret, "domain": "site.org" });
    let again = Request::new("POST", format!("{}/domain", top.url)).body(as_json.to_string());
    assert_eq!(again.send()?.json()?["e"], "domain_exists");
    Ok(())
}

// §3.

#[test]
fn secondary_keys_are_unique_kept_and_cleared() -> Result<()> {
    let top = account()?;
    let put = |body: Value| top.put("/_data/p", body);
    v(put(json!({ "k": "a", "k2": "mail", "k3": 3, "k4": "d", "v": { "n": 1 } })))?;
    for query in ["k2=mail", "k3=3", "k4=d"] {
        assert_eq!(v(top.get(&format!("/_data/p?{query}")))?["n"], 1, "{query}");
    }
    assert_eq!(word(put(json!({ "k": "b", "k2": "mail", "v": 1 })))?, "key_exists");
    v(top.put("/_data/elsewhere", json!({ "k": "b", "k2": "mail", "v": 1 })))?;
    v(put(json!({ "k": "a", "v": { "n": 2 } })))?;
    assert_eq!(v(top.get("/_data/p?k2=mail"))?["n"], 2, "one left out is kept");
    v(put(json!({ "k": "a", "k2": null, "v": { "n": 3 } })))?;
    assert_eq!(word(top.get("/_data/p?k2=mail"))?, "not_found", "null clears it");
    v(put(json!({ "k": "b", "k2": "mail", "v": 4 })))?;
    assert_eq!(v(top.delete("/_data/p?k3=3"))?, 1);
    assert_eq!(v(top.get("/_data/p"))?, json!(["b"]));
    Ok(())
}

#[test]
fn a_missing_key_is_not_found_and_an_empty_path_is_an_empty_list() -> Result<()> {
    let top = account()?;
    for service in ["_data", "_auth", "_conf", "_subs"] {
        assert_eq!(v(top.get(&format!("/{service}/p")))?, json!([]), "{service}");
        assert_eq!(word(top.get(&format!("/{service}/p?k=a")))?, "not_found", "{service}");
    }
    Ok(())
}

#[test]
fn a_read_can_wait_for_a_version() -> Result<()> {
    let top = account()?;
    let stored = v(top.put("/_data/p", json!({ "k": "a", "v": { "n": 1 } })))?;
    let ver = stored["_ver_"].as_str().context("a version")?;
    let at_once = v(top.get(&format!("/_data/p?k=a&at={ver}")))?;
    assert_eq!(at_once, stored, "what is there is not waited for");

    let address = shared()?.address("http")?;
    let next = Ver::parse(ver)?.generation + 1;
    let target = format!("/_data/p?k=a&at={next}-{}", &ver[ver.len() - 22..]);
    let mut waiter = Connection::open(&address)?;
    waiter.send(&http::request("GET", &target, &top.credentials, ""))?;
    // Asked later and answered: whoever did not wait would have been answered too.
    assert_eq!(v(top.get("/_data/p?k=a"))?["n"], 1);
    assert!(!waiter.has_answer()?, "a read waits for a version that is not there yet");
    let written = v(top.put("/_data/p", json!({ "k": "a", "v": { "n": 2 } })))?;
    assert_eq!(v(waiter.answer()?.json())?, written, "it sees what it waited for");
    assert_eq!(word(top.get("/_data/p?k=a&at=nonsense"))?, "bad_request");
    Ok(())
}

#[test]
fn sub_accounts_are_one_level_deep_and_figures_are_nobodys_to_write() -> Result<()> {
    let top = account()?;
    let lily = top.sub("lily")?;
    let body = json!({ "k": "rose", "v": { "email": "rose@example.org" } });
    assert_eq!(word(lily.put("/_acc/accounts", body))?, "not_allowed");
    for call in ["PUT", "POST", "DELETE"] {
        assert_eq!(
            word(top.call(call, "/_stats/p?l=mine", Some(&json!({ "v": 1 }))))?,
            "not_allowed",
            "{call}"
        );
    }
    Ok(())
}

#[test]
fn a_token_has_its_grants_its_path_and_an_end() -> Result<()> {
    let neuron = shared()?;
    let top = Account::new(&neuron)?;
    v(top.put("/_ns/room", json!({})))?;
    let made = v(top.put("/_token/room?k=bob&as=values&grants=watch", json!({})))?;
    assert_eq!(made["grants"], json!(["watch"]));
    assert_eq!(made["path"], "/room");
    let watcher = made["token"].as_str().context("a token")?;
    assert_eq!(connect(&neuron, watcher)?.close_code()?, 4401, "it may not subscribe");
    let usual = v(top.put("/_token/room?k=bob&as=values", json!({})))?;
    assert_eq!(usual["grants"], json!(["subscribe", "send", "publish", "relay"]));
    assert_eq!(word(top.put("/_token/room?grants=fly", json!({})))?, "bad_request");

    let by_id = usual["token"].as_str().context("a token")?.to_owned();
    let mut bob = join(&neuron, &by_id)?;
    assert_eq!(v(top.delete(&format!("/_token?id={by_id}")))?, 1);
    assert_eq!(bob.close_code()?, 4401, "revoked while connected");
    assert_eq!(connect(&neuron, &by_id)?.close_code()?, 4401);
    let by_name = token(&top, "/room?k=bob")?;
    assert_eq!(v(top.delete("/_token/room?k=bob"))?, 1);
    assert_eq!(connect(&neuron, &by_name)?.close_code()?, 4401);
    Ok(())
}

#[test]
fn rooms_are_per_topic() -> Result<()> {
    let neuron = shared()?;
    let top = Account::new(&neuron)?;
    v(top.put("/_ns/room", json!({})))?;
    assert_eq!(
        word(top.put("/_token/room/a/b?k=bob", json!({})))?,
        "no_namespace",
        "one topic, no more"
    );
    let mut ann = connect(&neuron, &token(&top, "/room/red?k=ann")?)?;
    assert_eq!(ann.frame()?["p"]["users"], json!(["ann"]));
    let mut bob = connect(&neuron, &token(&top, "/room?k=bob")?)?;
    assert_eq!(bob.frame()?["p"]["users"], json!(["bob"]));
    assert_eq!(v(top.delete("/_subs/room"))?, 1, "the default topic alone");
    assert_eq!(v(top.get("/_subs/room/red"))?, json!(["ann"]));
    Ok(())
}

#[test]
fn sessions_and_settings_are_services_like_the_others() -> Result<()> {
    let neuron = shared()?;
    let top = Account::new(&neuron)?;
    let _bob = join(&neuron, &token(&top, "?k=bob")?)?;
    let rows = v(top.get("/_sess?as=values"))?;
    let socket = rows.as_array().context("rows")?.iter().find(|row| row["kind"] == "socket");
    let id = socket.and_then(|row| row["id"].as_str()).context("bob's socket")?;
    assert_eq!(v(top.get(&format!("/_sess?k={id}")))?["who"], "bob");
    assert_eq!(v(top.delete(&format!("/_sess?k={id}")))?, 1);
    until(|| v(top.get("/_subs")), |members| *members == json!([]))?;
    assert_eq!(word(top.put("/_conf", json!({ "k": "strickt", "v": true })))?, "bad_name");
    assert_eq!(word(top.put("/_conf", json!({ "k": "strict", "v": "maybe" })))?, "bad_request");
    v(top.put("/_conf/a", json!({ "k": "strict", "v": true })))?;
    assert_eq!(v(top.get("/_conf/a"))?, json!(["strict"]));
    assert_eq!(v(top.get("/_conf/a?k=strict"))?, true);
    assert_eq!(v(top.delete("/_conf/a?k=strict"))?, 1);
    Ok(())
}

#[test]
fn a_write_can_ask_to_be_the_first() -> Result<()> {
    let top = account()?;
    let first = |value: i32| {
        let request = top.request("PUT", "/_data/p").header("if-none-match: *");
        request.body(json!({ "k": "new", "v": value }).to_string()).send()
    };
    assert_eq!(first(1)?.json()?["v"], 1);
    assert_eq!(first(2)?.json()?["v"], "version_conflict");
    assert_eq!(v(top.get("/_data/p?k=new"))?, 1);
    Ok(())
}

#[test]
fn an_answer_has_a_bounded_number_of_bytes() -> Result<()> {
    /// Bytes of values in one answer of a series, and of one value here.
    const ANSWER_BYTES_MAX: usize = 16 << 20;
    const VALUE_BYTES: usize = 1_000_000;
    const FIT: usize = ANSWER_BYTES_MAX / VALUE_BYTES;
    let top = account()?;
    let body = json!({ "k": "a", "v": "x".repeat(VALUE_BYTES - 2) }).to_string();
    let put = || top.request("PUT", "/_data/p").body(body.clone()).send()?.json();
    for _ in 0..FIT {
        v(put())?;
    }
    let rows = v(top.get("/_data/p?k=a&time_series=1"))?;
    assert_eq!(rows.as_array().map(Vec::len), Some(FIT));
    v(put())?;
    assert_eq!(word(top.get("/_data/p?k=a&time_series=1"))?, "too_large");
    let rows = v(top.get("/_data/p?k=a&time_series=1&limit=2"))?;
    assert_eq!(rows.as_array().map(Vec::len), Some(2), "a page of it is had");

    // The feed goes on where an answer of it ends.
    v(put())?;
    let first = v(top.get("/_ds?a=changes&limit=1000"))?;
    assert_eq!(first["changes"].as_array().map(Vec::len), Some(FIT + 1));
    assert_eq!(first["last_seq"], FIT + 2);
    let rest = v(top.get(&format!("/_ds?a=changes&limit=1000&since={}", FIT + 1)))?;
    assert_eq!(rest["changes"].as_array().map(Vec::len), Some(1));
    Ok(())
}
