//! The first call: two Chromium pages on `/demo` meet, chat and see each other; and what the page and
//! its library do not let others do to them.

mod room;

use anyhow::Result;
use serde_json::json;
use tests::browser::{self, Browser, CALLED, CALLER, STEP_WAIT};
use tests::neuron::{self, Neuron};

/// Seconds for which both videos must go on; `cargo xtask soak demo` sets 30.
fn seconds() -> u64 {
    std::env::var("GANGLION_DEMO_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

#[test]
fn two_pages_meet_chat_and_see_each_other() -> Result<()> {
    let neuron = Neuron::start()?;
    let folder = neuron::artifacts("demo")?;
    let report = browser::demo_call(&neuron.url(), seconds(), &folder)?;
    println!("{report:#?}");
    let said = [CALLER, CALLED].map(|(name, text)| (name.to_owned(), text.to_owned()));
    for (side, name) in [(&report.caller, CALLER.0), (&report.called, CALLED.0)] {
        let grown = side.frames_at_end.saturating_sub(side.frames_at_start);
        assert!(grown >= seconds() * 3, "{name} decoded only {grown} frames");
        assert!(side.errors.is_empty(), "{name}: {:?}", side.errors);
        assert_eq!(side.name, name);
        assert_eq!(side.peers, [CALLER.0, CALLED.0]);
        assert_eq!(side.chat, said);
    }
    Ok(())
}

/// A link with the words that tests use in it would put a visitor's camera on the air.
#[test]
fn a_link_does_not_press_a_persons_buttons() -> Result<()> {
    let neuron = Neuron::start()?;
    let browser = Browser::launch()?;
    let link = format!("{}/demo?room=trap&autojoin&autoaccept&autocall", neuron.url());
    let person = browser.page_of_a_person(&format!("{link}&name=Ann"))?;
    person.wait_for("window.demo", STEP_WAIT)?;
    // The page's script has run to its end, which is where it would join.
    let button = "document.querySelector('#join-button').textContent";
    assert_eq!(person.eval(&format!("import('/demo/demo.js').then(() => {button})"))?, "Join room");
    assert_eq!(person.eval("demo.state().joined")?, false);

    person.eval("document.querySelector('#room-name').value = '..'")?;
    person.click("#join-button")?;
    let problem = person.eval("demo.state().problem")?;
    assert!(problem.as_str().is_some_and(|problem| problem.contains("dots")), "{problem}");
    assert_eq!(person.eval(button)?, "Join room");

    person.eval("document.querySelector('#room-name').value = 'trap'")?;
    person.click("#join-button")?;
    person.wait_for("demo.state().joined", STEP_WAIT)?;
    let caller = browser.page(&format!("{link}&name=Zed"))?;
    caller.wait_for("demo.state().call.state === 'calling'", STEP_WAIT)?;
    person.wait_for("demo.state().call.state === 'ringing'", STEP_WAIT)?;
    Ok(())
}

#[test]
fn the_library_sends_a_path_as_it_is_or_not_at_all() -> Result<()> {
    let neuron = Neuron::start()?;
    let browser = Browser::launch()?;
    let page = browser.page(&format!("{}/demo", neuron.url()))?;
    page.wait_for("window.demo", STEP_WAIT)?;
    let answers = page.eval(
        "(async () => {
            const { Api, ApiError } = await import('/demo/ganglion.js');
            const asked = [];
            window.fetch = async (url) => {
                asked.push(new URL(url).pathname);
                return new Response(JSON.stringify({ v: 1, s: 'ok' }));
            };
            const api = new Api({ base: location.origin, ident: 'a', secret: 'b' });
            const refusals = [];
            for (const path of [
                ['_token', 'demo', '..'], ['_token', '.'], ['_token', ''], '/_token/../_acc', '/_ns/%2E%2e',
            ]) {
                await api.get(path).catch((error) => refusals.push([error.code, error.transient]));
            }
            for (const path of [['_ns', 'a/b', '...', 'ä .'], '/_ns/demo/', '/_ns/.hidden/x..']) await api.get(path);
            return { asked, refusals };
        })()",
    )?;
    assert_eq!(answers["refusals"], json!(vec![json!(["bad_segment", false]); 5]));
    assert_eq!(
        answers["asked"],
        json!(["/_ns/a%2Fb/.../%C3%A4%20.", "/_ns/demo/", "/_ns/.hidden/x.."])
    );
    Ok(())
}

#[test]
fn the_library_takes_only_no_service_for_having_no_relay() -> Result<()> {
    let neuron = Neuron::start()?;
    let browser = Browser::launch()?;
    let page = browser.page(&format!("{}/demo", neuron.url()))?;
    page.wait_for("window.demo", STEP_WAIT)?;
    let answers = page.eval(
        "(async () => {
            const { Api } = await import('/demo/ganglion.js');
            const api = new Api({ base: location.origin, ident: 'a', secret: 'b' });
            const told = [];
            for (const word of ['no_service', 'unauthorized', 'overloaded']) {
                window.fetch = async () => new Response(JSON.stringify({ v: word, s: 'error' }));
                told.push(await api.iceServers('/demo/lobby').catch((error) => error.code));
            }
            window.fetch = async () => { throw new TypeError('no network'); };
            told.push(await api.iceServers('/demo/lobby').catch((error) => error.code));
            return told;
        })()",
    )?;
    assert_eq!(answers, json!([[], "unauthorized", "overloaded", "unreachable"]));
    Ok(())
}

/// The reason for which a call ends is the other end's word, and any word may come.
#[test]
fn a_call_ends_for_a_known_reason_whatever_the_other_end_says() -> Result<()> {
    let neuron = Neuron::start()?;
    let browser = Browser::launch()?;
    let page = browser.page(&format!("{}/demo", neuron.url()))?;
    page.wait_for("window.demo", STEP_WAIT)?;
    let ends = page.eval(
        "(async () => {
            const { Calls } = await import('/demo/ganglion.js');
            const ends = [];
            for (const bye of ['busy', 'constructor', '__proto__', null, { toString: 1 }]) {
                const listeners = {};
                const room = { name: 'me', on: (event, listener) => { listeners[event] = listener; }, has: () => true, send() {} };
                const calls = new Calls(room);
                calls.on('incoming', (call) => call.on('ended', (why) => ends.push(why)));
                const say = (payload) => listeners.message({ from: 'peer', op: 'session', payload: { call: 'c', ...payload } });
                say({ description: { type: 'offer', sdp: '' } });
                say({ bye });
            }
            return ends;
        })()",
    )?;
    assert_eq!(ends, json!(["busy", "hangup", "hangup", "hangup", "hangup"]));
    Ok(())
}
