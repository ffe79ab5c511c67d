//! Clients of every generation in one room, each written from what deployed ones send and read
//! (`spec/xirsys.md` §1.7, §1.8; v1 is xRTC 1.4).

use anyhow::Result;
use serde_json::{Value, json};
use tests::curl;
use tests::socket::Client;

use super::{Stage, peers, presence};

/// What xRTC's `wsList` tells it, and what it makes of that.
fn v1(stage: &Stage, token: &str) -> Result<Client> {
    let list = curl::run(&["-X", "POST", &format!("{}/wsList", stage.neuron.url())])?;
    let list: Value = serde_json::from_str(&list)?;
    let base = list["d"]["value"].as_str().unwrap_or_default().to_owned();
    Client::connect(&format!("{base}/ws/{token}"))
}

#[test]
fn each_hears_the_others_in_its_own_words() -> Result<()> {
    let stage = Stage::new()?;
    let mut old = v1(&stage, &stage.token("/my/path?k=old")?)?;
    assert_eq!(old.frame()?, json!({ "type": "peers", "message": { "users": ["old"] } }));
    let mut ann = stage.join("ann")?;
    assert_eq!(ann.frame()?, peers(&["ann", "old"]));
    assert_eq!(old.frame()?, json!({ "type": "peer_connected", "message": "ann" }));
    let (mut new, welcome) = stage.greet("new")?;
    assert_eq!(welcome["t"], "welcome");
    assert_eq!(welcome["m"]["f"], "/my/path/__sys__");
    assert_eq!(welcome["p"]["users"], json!(["ann", "new", "old"]));
    assert_eq!(old.frame()?, json!({ "type": "peer_connected", "message": "new" }));
    assert_eq!(ann.frame()?, presence("peer_connected", "new"));

    // xRTC's call: an offer to one, an answer back.
    old.send_text(
        r#"{"eventName":"receiveoffer","data":{"connectionId":"c","offer":{"offer":"sdp"}},"targetUserId":"ann"}"#,
    )?;
    let offer = ann.frame()?;
    assert_eq!(offer["m"], json!({ "f": "/my/path/old", "o": "receiveoffer", "t": "ann" }));
    assert_eq!(offer["p"]["offer"]["offer"], "sdp");
    ann.say("receiveanswer", Some("old"), &json!({ "connectionId": "c", "answer": {} }))?;
    assert_eq!(
        old.frame()?,
        json!({
            "type": "receiveanswer", "userid": "ann",
            "message": { "targetUserId": "old", "data": { "connectionId": "c", "answer": {} } },
        })
    );
    new.hears_nothing()?;

    // A broadcast of each.
    ann.say("message", None, &json!({ "msg": "hi" }))?;
    let heard = new.frame()?;
    assert!(heard["m"]["c"].is_string(), "{heard}");
    assert_eq!((&heard["m"]["f"], &heard["p"]["msg"]), (&json!("/my/path/ann"), &json!("hi")));
    let to_old = json!({
        "type": "message", "userid": "ann",
        "message": { "targetUserId": null, "data": { "msg": "hi" } },
    });
    assert_eq!(old.frame()?, to_old);
    let reply = {
        new.send_text(r#"{"t":"u","m":{"id":1,"o":"message"},"p":"from new"}"#)?;
        new.frame()?
    };
    assert_eq!((&reply["t"], &reply["p"]), (&json!("r"), &json!({ "v": null, "s": "ok" })));
    assert!(reply["m"]["c"].is_string(), "{reply}");
    let heard = ann.frame()?;
    assert_eq!(
        heard["m"],
        json!({ "f": "/my/path/new", "o": "message" }),
        "old clients see no more"
    );
    assert_eq!(old.frame()?["message"]["data"], "from new");

    // Signs of life of each: `{}` of v1, `ping` of v2 and v3, neither answered.
    for _ in 0..3 {
        old.send_text("{}")?;
        new.send_text("ping")?;
    }
    new.hears_nothing()?;
    ann.leave()?;
    assert_eq!(old.frame()?, json!({ "type": "peer_removed", "message": "ann" }));
    assert_eq!(new.frame()?, json!({ "t": "left", "m": { "f": "/my/path/ann" }, "p": null }));
    Ok(())
}

#[test]
fn a_v1_client_is_told_that_its_token_is_no_good() -> Result<()> {
    let stage = Stage::new()?;
    for token in ["forged", "t.forged"] {
        let mut old = v1(&stage, token)?;
        assert_eq!(old.next_text()?, "\"Token invalid\"", "{token}");
        assert_eq!(old.close_code()?, 4401);
    }
    Ok(())
}

#[test]
fn who_says_no_hello_is_told_so() -> Result<()> {
    let stage = Stage::new()?;
    for (text, about) in [
        (r#"{"t":"u","m":{"o":"x"},"p":1}"#, "the first frame is `hello`"),
        (r#"{"t":"hello","p":{}}"#, "needs a `token`"),
        (r#"{"t":"hello","p":{"token":"x","cursor":"?"}}"#, "`cursor`"),
        (r#"{"t":"hello","p":{"token":"x","session":"?"}}"#, "`session`"),
        ("banana", "not a frame"),
    ] {
        let mut client = Client::connect(&format!("{}/v4", stage.base()?))?;
        client.send_text(text)?;
        let error = client.frame()?;
        assert_eq!((&error["t"], &error["p"]["v"]), (&json!("e"), &json!("bad_request")));
        let detail = error["p"]["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(about), "{text}: {error}");
        assert_eq!(client.close_code()?, 1008);
    }
    let mut forged = Client::greet(&stage.base()?, &json!({ "token": "forged" }))?;
    assert_eq!(forged.close_code()?, 4401);
    let token = stage.token("/my/path?k=ann")?;
    let long = "x".repeat(1023);
    let hello = json!({ "token": token, "data": long });
    let mut long = Client::greet(&stage.base()?, &hello)?;
    assert_eq!(long.close_code()?, 1008);
    // Once is enough.
    let (mut ann, _) = stage.greet("ann")?;
    ann.send_text(&json!({ "t": "hello", "p": { "token": token } }).to_string())?;
    assert_eq!(ann.frame()?["p"]["v"], "bad_request");
    Ok(())
}

/// Who has not said who it is holds nobody up.
#[test]
fn a_neuron_that_stops_waits_for_no_hello() -> Result<()> {
    let mut stage = Stage::new()?;
    let mut silent = Client::connect(&format!("{}/v4", stage.base()?))?;
    let begun = std::time::Instant::now();
    assert_eq!(stage.neuron.stop()?, Some(0));
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(silent.close_code()?, 1001);
    Ok(())
}

#[test]
fn what_a_client_shows_beside_its_name_is_seen_by_those_who_know_of_it() -> Result<()> {
    let stage = Stage::new()?;
    let mut old = stage.join("old")?;
    old.frame()?;
    let token = stage.token("/my/path?k=ann")?;
    let hello = json!({ "token": token, "data": { "hand": false } });
    let mut ann = Client::greet(&stage.base()?, &hello)?;
    assert_eq!(ann.frame()?["p"]["data"], json!({ "ann": { "hand": false } }));
    assert_eq!(old.frame()?, presence("peer_connected", "ann"));
    let (mut bob, welcome) = stage.greet("bob")?;
    assert_eq!(welcome["p"]["data"], json!({ "ann": { "hand": false } }));
    old.frame()?;
    assert_eq!(ann.frame()?["t"], "joined");
    let reply = ann.ask("presence", &json!("p"), &json!({ "hand": true }))?;
    assert_eq!(reply["p"]["s"], "ok");
    assert_eq!(
        bob.frame()?,
        json!({ "t": "presence", "m": { "f": "/my/path/ann" }, "p": { "hand": true } })
    );
    old.hears_nothing()?;
    let row = stage.ok("GET", "/_subs/my/path?k=ann", None)?;
    assert_eq!(row["meta"], json!({ "hand": true }));
    Ok(())
}
