//! Signalling without HTTP: over TCP and over a Unix socket, each text after its length.

use anyhow::{Context as _, Result};
use serde_json::json;
use tests::plain::Client;

use super::{Stage, presence, wait_until};

/// A neuron that listens on both, and where.
fn stage(settings: &[(&str, &str)]) -> Result<(Stage, Vec<String>, tempfile::TempDir)> {
    let folder = tempfile::TempDir::new()?;
    let path = folder.path().join("signal.sock");
    let places = json!(["127.0.0.1:0", format!("unix:{}", path.display())]).to_string();
    let mut settings = settings.to_vec();
    settings.push(("GANGLION_LISTEN__TCP", &places));
    let stage = Stage::with(&settings)?;
    let places = stage.neuron.places("tcp");
    anyhow::ensure!(places.len() == 2, "{places:?}");
    Ok((stage, places, folder))
}

#[test]
fn clients_beside_the_neuron_talk_with_all_others() -> Result<()> {
    let (stage, places, _folder) = stage(&[])?;
    let mut ann = stage.join("ann")?;
    ann.frame()?;
    for (place, name) in places.iter().zip(["tcp", "unix"]) {
        let token = stage.token(&format!("/my/path?k={name}"))?;
        let mut client = Client::greet(place, &json!({ "token": token }))?;
        let welcome = client.frame()?;
        assert_eq!((&welcome["t"], &welcome["p"]["name"]), (&json!("welcome"), &json!(name)));
        assert_eq!(ann.frame()?, presence("peer_connected", name));
        client.send(&json!({ "t": "u", "m": { "id": 1, "o": "message" }, "p": "zoë" }))?;
        assert_eq!(client.frame()?["p"], json!({ "v": null, "s": "ok" }));
        assert_eq!(ann.frame()?["p"], "zoë");
        let long = "x".repeat(60_000);
        ann.say("message", Some(name), &json!(long))?;
        assert_eq!(client.frame()?["p"], long);
        client.send(&json!({ "t": "ping", "ts": 7 }))?;
        assert_eq!(client.frame()?, json!({ "t": "pong", "ts": 7 }));
        let kicked = stage.ok("DELETE", &format!("/_subs/my/path?k={name}"), None)?;
        assert_eq!(kicked, json!(1));
        assert_eq!(client.close_code()?, 4403);
        assert_eq!(ann.frame()?, presence("peer_removed", name));
    }
    Ok(())
}

#[test]
fn what_is_no_text_of_this_kind_ends_the_connection() -> Result<()> {
    let (stage, places, _folder) = stage(&[("GANGLION_SIGNAL__MESSAGE", "1KiB")])?;
    for place in &places {
        for (bytes, code) in [
            (&[0xFF, 0xFF, 0xFF, 0xFF][..], 1009),
            (&[0, 0, 4, 1], 1009),
            (&[0, 0, 0, 1, 0xFF], 1007),
            (b"GET / HTTP/1.1\r\n\r\n", 1009),
            (&[0, 0, 0, 2, b'{', b'}'], 1008),
        ] {
            let mut client = Client::connect(place)?;
            client.send_bytes(bytes)?;
            assert_eq!(client.close_code()?, code, "{place} {bytes:?}");
        }
        let token = stage.token("/my/path?k=ann")?;
        let mut ann = Client::greet(place, &json!({ "token": token }))?;
        ann.frame()?;
        ann.send_text(&[b' '; 1025])?;
        assert_eq!(ann.close_code()?, 1009);
    }
    wait_until("all are gone", || Ok(stage.neuron.metric("connections")? == 0))
}

/// Signs of life are texts of no length, either way.
#[test]
fn a_silent_client_is_asked_whether_it_is_there() -> Result<()> {
    let settings = [("GANGLION_SIGNAL__PING_AFTER", "200ms"), ("GANGLION_SIGNAL__IDLE", "1s")];
    let (stage, places, _folder) = stage(&settings)?;
    let greet = |name: &str| -> Result<Client> {
        let token = stage.token(&format!("/my/path?k={name}"))?;
        let mut client = Client::greet(&places[0], &json!({ "token": token }))?;
        client.frame()?;
        Ok(client)
    };
    let mut ann = greet("ann")?;
    for _ in 0..8 {
        assert_eq!(ann.text()?, "");
        ann.send_text(b"")?;
    }
    let mut bob = greet("bob")?;
    assert_eq!(bob.close_code().context("bob says nothing")?, 1001);
    Ok(())
}
