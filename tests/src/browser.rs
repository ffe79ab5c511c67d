//! Real browsers: starts Debian's Chromium and drives its pages over the DevTools protocol.
//!
//! Blocking, one command at a time for each [`Browser`]; events that arrive meanwhile are kept.
//! Pages of one browser share a process but nothing else: each has a browser context of its own.
//! Not a general client: only what tests of pages and calls need. [`demo_call`] is the whole
//! two-page scenario of `/demo`.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

const CHROMIUM: &str = "/usr/bin/chromium";
/// On a loaded machine of two cores a first start takes some seconds.
const LAUNCH_WAIT: Duration = Duration::from_secs(60);
/// A command that is not answered by then means a hung browser.
const REPLY_WAIT: Duration = Duration::from_secs(60);
/// How long a browser may take to close by itself.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// Screenshots are the largest replies.
const REPLY_BYTES_MAX: usize = 64 << 20;

const FLAGS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    // Pages that are not in front keep their timers and their video.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    // A camera and a microphone that need neither hardware nor a click.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    // Without it there are no candidates on a machine that has nothing but loopback.
    "--allow-loopback-in-peer-connection",
    // A page without a camera would offer `.local` names, which resolve nowhere here.
    "--disable-features=WebRtcHideLocalIpsWithMdns",
];

/// One Chromium with a profile of its own; dropping it ends the process and removes the profile.
#[derive(Debug)]
pub struct Browser {
    link: Arc<Mutex<Link>>,
    child: Child,
    _profile: TempDir,
}

impl Browser {
    /// # Errors
    /// Chromium is missing, or does not open its port within a minute; its last words are given.
    pub fn launch() -> Result<Browser> {
        let profile = tempfile::Builder::new().prefix("chromium-").tempdir()?;
        let log = profile.path().join("log");
        let log_file = fs::File::create(&log)?;
        let mut child = Command::new(CHROMIUM)
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            // Its temporary files go when the profile goes.
            .env("TMPDIR", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .spawn()
            .with_context(|| format!("starting {CHROMIUM}; install Debian's `chromium`"))?;
        match connect(&mut child, profile.path()) {
            Ok(link) => Ok(Browser { link: Arc::new(Mutex::new(link)), child, _profile: profile }),
            Err(error) => {
                end(&mut child);
                let said = fs::read_to_string(&log).unwrap_or_default();
                Err(error.context(format!("launching Chromium, which said:\n{said}")))
            }
        }
    }

    /// A page of its own context at 1280×800, navigating to `url`; [`Page::wait_for`] what it
    /// should show.
    pub fn page(&self, url: &str) -> Result<Page> {
        let page = self.blank_page()?;
        page.goto(url)?;
        Ok(page)
    }

    /// The same, for scripts that ask `navigator.webdriver` a page of a person and not of a program.
    pub fn page_of_a_person(&self, url: &str) -> Result<Page> {
        let page = self.blank_page()?;
        let source =
            "Object.defineProperty(Navigator.prototype, 'webdriver', { get: () => false })";
        page.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": source }))?;
        page.goto(url)?;
        Ok(page)
    }

    fn blank_page(&self) -> Result<Page> {
        let mut link = lock(&self.link);
        let context = link.call(None, "Target.createBrowserContext", json!({}))?;
        let context = text(&context, "browserContextId")?;
        let target = link.call(
            None,
            "Target.createTarget",
            json!({ "url": "about:blank", "browserContextId": context, "newWindow": true }),
        )?;
        let attached = link.call(
            None,
            "Target.attachToTarget",
            json!({ "targetId": text(&target, "targetId")?, "flatten": true }),
        )?;
        drop(link);
        let page =
            Page { link: Arc::clone(&self.link), context, session: text(&attached, "sessionId")? };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.call(&format!("{domain}.enable"), json!({}))?;
        }
        page.call("Emulation.setFocusEmulationEnabled", json!({ "enabled": true }))?;
        page.resize(1280, 800)?;
        Ok(page)
    }

    /// The pid of the process that was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Asked first: a killed Chromium's children may still write into the profile while it is
        // being removed.
        let asked = lock(&self.link).call(None, "Browser.close", json!({}));
        let deadline = Instant::now() + CLOSE_WAIT;
        while asked.is_ok() && Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        end(&mut self.child);
    }
}

/// A page, closed when dropped. It lives no longer than its [`Browser`].
#[derive(Debug)]
pub struct Page {
    link: Arc<Mutex<Link>>,
    context: String,
    session: String,
}

impl Page {
    /// # Errors
    /// The address cannot be reached.
    pub fn goto(&self, url: &str) -> Result<()> {
        let reply = self.call("Page.navigate", json!({ "url": url }))?;
        match reply["errorText"].as_str() {
            Some(error) if !error.is_empty() => bail!("opening {url}: {error}"),
            _ => Ok(()),
        }
    }

    /// The value of an expression; a promise is awaited, `undefined` is null.
    ///
    /// # Errors
    /// An exception, with its text and stack.
    pub fn eval(&self, js: &str) -> Result<Value> {
        let reply = self.call(
            "Runtime.evaluate",
            json!({ "expression": js, "awaitPromise": true, "returnByValue": true, "userGesture": true }),
        )?;
        match reply.get("exceptionDetails") {
            Some(details) => Err(anyhow!("{}", exception_text(details))),
            None => Ok(reply["result"]["value"].clone()),
        }
    }

    /// Waits until an expression (it may use `await`) is truthy and gives its value. Exceptions
    /// and navigations on the way count as "not yet".
    ///
    /// # Errors
    /// `within` has passed; the last value or exception, and the page's own errors, are given.
    pub fn wait_for(&self, js_condition: &str, within: Duration) -> Result<Value> {
        // Short rounds in the page, so that a navigation costs one round and not the wait.
        const ROUND: Duration = Duration::from_secs(1);
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let round = format!(
                "(async () => {{
                    const end = performance.now() + {};
                    for (;;) {{
                        let value, error;
                        try {{ value = await ({js_condition}); }} catch (thrown) {{ error = String(thrown); }}
                        if (value) return {{ value }};
                        if (performance.now() >= end) return {{ last: error ?? value ?? null }};
                        await new Promise((done) => setTimeout(done, 30));
                    }}
                }})()",
                left.min(ROUND).as_millis()
            );
            let last = match self.eval(&round) {
                Ok(found) => match found.get("value") {
                    Some(value) => return Ok(value.clone()),
                    None => found["last"].to_string(),
                },
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                bail!(
                    "not within {within:?}: {js_condition}\n  last: {last}\n  page errors: {:?}",
                    self.errors()
                );
            }
        }
    }

    /// Clicks in the middle of an element, as a mouse does: what covers it gets the click.
    ///
    /// # Errors
    /// No element is there, or it has no size.
    pub fn click(&self, selector: &str) -> Result<()> {
        let at = self.eval(&format!(
            "(() => {{
                const box = document.querySelector({0})?.getBoundingClientRect();
                if (!box?.width) throw new Error('nothing to click at ' + {0});
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()",
            Value::from(selector)
        ))?;
        for kind in ["mousePressed", "mouseReleased"] {
            self.call(
                "Input.dispatchMouseEvent",
                json!({ "type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1 }),
            )?;
        }
        Ok(())
    }

    /// Types into what has the focus.
    pub fn type_text(&self, typed: &str) -> Result<()> {
        self.call("Input.insertText", json!({ "text": typed })).map(drop)
    }

    /// Presses a key that types nothing, such as `ArrowRight`, or `Enter`, which sends a form.
    pub fn press(&self, key: &str) -> Result<()> {
        let text = if key == "Enter" { "\r" } else { "" };
        let code = if key == "Enter" { 13 } else { 0 };
        for kind in ["keyDown", "keyUp"] {
            self.call(
                "Input.dispatchKeyEvent",
                json!({ "type": kind, "key": key, "text": text, "windowsVirtualKeyCode": code }),
            )?;
        }
        Ok(())
    }

    /// The size of the window's inside. Up to 480 wide it is a phone, with touch.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        let phone = width <= 480;
        self.call(
            "Emulation.setDeviceMetricsOverride",
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone }),
        )?;
        self.call("Emulation.setTouchEmulationEnabled", json!({ "enabled": phone })).map(drop)
    }

    /// What `prefers-color-scheme` says.
    pub fn dark(&self, dark: bool) -> Result<()> {
        let scheme = if dark { "dark" } else { "light" };
        self.call(
            "Emulation.setEmulatedMedia",
            json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] }),
        )
        .map(drop)
    }

    /// Takes the page's network away, or gives it back: requests fail, `navigator.onLine` tells
    /// so, and a WebSocket that is open stays so but falls silent. WebRTC is not touched.
    pub fn offline(&self, offline: bool) -> Result<()> {
        self.call(
            "Network.emulateNetworkConditions",
            json!({ "offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1 }),
        )
        .map(drop)
    }

    /// Writes what the page shows as PNG, once passing animations are over.
    pub fn screenshot(&self, path: &Path) -> Result<()> {
        self.eval(
            "Promise.allSettled(document.getAnimations()
                .filter((each) => each.effect.getComputedTiming().endTime < 2000)
                .map((each) => each.finished))
                .then(() => new Promise((done) => requestAnimationFrame(() => done())))",
        )?;
        let reply = self.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        let png = STANDARD.decode(text(&reply, "data")?)?;
        fs::write(path, png).with_context(|| format!("writing {}", path.display()))
    }

    /// Uncaught exceptions, `console.error`, and what the browser itself reports as an error
    /// (failed requests, policy violations, a crash), since the page was made.
    pub fn errors(&self) -> Vec<String> {
        // Replies and events come in order: after this one, all earlier events have been read.
        let asked = self.call("Runtime.evaluate", json!({ "expression": "0" }));
        let mut errors = lock(&self.link).errors.get(&self.session).cloned().unwrap_or_default();
        errors.extend(asked.err().map(|error| error.to_string()));
        errors
    }

    fn call(&self, method: &str, params: Value) -> Result<Value> {
        lock(&self.link).call(Some(&self.session), method, params)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let closed = lock(&self.link).call(
            None,
            "Target.disposeBrowserContext",
            json!({ "browserContextId": self.context }),
        );
        // The browser may be gone already; then the page is too.
        drop(closed);
    }
}

/// The connection to one browser.
#[derive(Debug)]
struct Link {
    socket: WebSocket<TcpStream>,
    commands: u64,
    /// By session: pages share the connection.
    errors: HashMap<String, Vec<String>>,
}

impl Link {
    fn call(&mut self, session: Option<&str>, method: &str, params: Value) -> Result<Value> {
        self.commands += 1;
        let id = self.commands;
        let mut command = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = session {
            command["sessionId"] = session.into();
        }
        self.socket.send(Message::text(command.to_string())).context(method.to_owned())?;
        let deadline = Instant::now() + REPLY_WAIT;
        loop {
            let message = match self.socket.read() {
                Ok(message) => message,
                Err(tungstenite::Error::Io(error))
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
                        && Instant::now() < deadline =>
                {
                    continue;
                }
                Err(error) => return Err(error).context(format!("no answer to {method}")),
            };
            let Message::Text(frame) = message else { continue };
            let frame: Value = serde_json::from_str(&frame)?;
            if frame["id"] == id {
                return match frame.get("error") {
                    Some(error) => Err(anyhow!("{method}: {}", error["message"])),
                    None => Ok(frame["result"].clone()),
                };
            }
            self.on_event(&frame);
        }
    }

    fn on_event(&mut self, frame: &Value) {
        let params = &frame["params"];
        let error = match frame["method"].as_str() {
            Some("Runtime.exceptionThrown") => exception_text(&params["exceptionDetails"]),
            Some("Runtime.consoleAPICalled") if params["type"] == "error" => {
                let said = params["args"].as_array().into_iter().flatten();
                let said: Vec<String> = said
                    .map(|arg| match arg["value"].as_str().or(arg["description"].as_str()) {
                        Some(said) => said.to_owned(),
                        None => arg["value"].to_string(),
                    })
                    .collect();
                format!("console.error: {}", said.join(" "))
            }
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                let entry = &params["entry"];
                format!(
                    "{}: {} {}",
                    entry["source"].as_str().unwrap_or_default(),
                    entry["text"].as_str().unwrap_or_default(),
                    entry["url"].as_str().unwrap_or_default(),
                )
            }
            Some("Inspector.targetCrashed") => "the page crashed".to_owned(),
            _ => return,
        };
        let session = frame["sessionId"].as_str().unwrap_or_default();
        self.errors.entry(session.to_owned()).or_default().push(error);
    }
}

/// Waits for the file that names the DevTools port, and connects.
fn connect(child: &mut Child, profile: &Path) -> Result<Link> {
    let deadline = Instant::now() + LAUNCH_WAIT;
    let (port, path) = loop {
        let written = fs::read_to_string(profile.join("DevToolsActivePort")).unwrap_or_default();
        if let Some((port, path)) = written.split_once('\n')
            && !path.is_empty()
        {
            break (port.trim().parse::<u16>()?, path.trim().to_owned());
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended at once: {status}");
        }
        if Instant::now() >= deadline {
            bail!("it opened no DevTools port within {LAUNCH_WAIT:?}");
        }
        // A file of another program's: there is nothing to wait on but the file.
        std::thread::sleep(Duration::from_millis(20));
    };
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(REPLY_BYTES_MAX))
        .max_frame_size(Some(REPLY_BYTES_MAX));
    let url = format!("ws://127.0.0.1:{port}{path}");
    let (socket, _) = tungstenite::client::client_with_config(url, stream, Some(config))
        .map_err(|error| anyhow!("DevTools handshake: {error}"))?;
    Ok(Link { socket, commands: 0, errors: HashMap::new() })
}

/// Ends the process that was started; its children end with it.
fn end(child: &mut Child) {
    // Neither can fail but for a process that has ended already.
    drop(child.kill());
    drop(child.wait());
}

fn lock(link: &Mutex<Link>) -> MutexGuard<'_, Link> {
    // A panic elsewhere does not make the connection wrong: a reply is found by its id.
    link.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(reply: &Value, field: &str) -> Result<String> {
    reply[field].as_str().map(str::to_owned).with_context(|| format!("no {field} in {reply}"))
}

fn exception_text(details: &Value) -> String {
    let exception = &details["exception"];
    let said = exception["description"]
        .as_str()
        .or(exception["value"].as_str())
        .or(details["text"].as_str());
    match said {
        Some(said) => said.to_owned(),
        None => details.to_string(),
    }
}

// The demo page's scenario.

/// How long any one step of [`demo_call`] may take.
pub const STEP_WAIT: Duration = Duration::from_secs(30);

/// The names of [`demo_call`]'s sides, and what each writes: a space, and letters beyond ASCII, must
/// travel.
pub const CALLER: (&str, &str) = ("Ann Lee", "Good morning! Can you see the ferry?");
pub const CALLED: (&str, &str) = ("Zoë", "Not yet – shall we talk, dær?");

/// What one page of [`demo_call`] saw.
#[derive(Clone, Debug)]
pub struct Side {
    pub name: String,
    /// Who was in the room, this side included, while both were.
    pub peers: Vec<String>,
    /// `(from, text)`, this side's own lines included.
    pub chat: Vec<(String, String)>,
    /// Video frames of the other side that were decoded when both pictures had come.
    pub frames_at_start: u64,
    /// The same, `seconds` later.
    pub frames_at_end: u64,
    /// Size of the other side's picture.
    pub picture: (u64, u64),
    pub errors: Vec<String>,
}

/// What happened in [`demo_call`].
#[derive(Clone, Debug)]
pub struct Report {
    /// The side that called.
    pub caller: Side,
    /// The side that was called and pressed Accept.
    pub called: Side,
    /// From Accept to a decoded frame on both sides.
    pub setup: Duration,
    /// How long the pictures were watched.
    pub watched: Duration,
}

/// Two people meet on `<base_url>/demo`: join, see each other, write, call, accept, watch for
/// `seconds`, hang up, leave. Screenshots of the stations go to the folder `screenshots`.
///
/// # Errors
/// A step that did not happen in time; errors that pages report are in the [`Report`] instead.
pub fn demo_call(base_url: &str, seconds: u64, screenshots: &Path) -> Result<Report> {
    fs::create_dir_all(screenshots)?;
    let shot = |page: &Page, name: &str| page.screenshot(&screenshots.join(name));
    let browser = Browser::launch()?;
    let base = base_url.trim_end_matches('/');

    // Ann comes by the form, Zoë by a link.
    let ann = browser.page(&format!("{base}/demo?room=harbour"))?;
    ann.wait_for("document.querySelector('#preview-video').videoWidth", STEP_WAIT)?;
    ann.eval(&format!("document.querySelector('#name').value = {}", Value::from(CALLER.0)))?;
    shot(&ann, "join.png")?;
    ann.click("#join-button")?;
    ann.wait_for("demo.state().joined", STEP_WAIT)?;
    shot(&ann, "alone.png")?;
    let zoe = browser.page(&format!("{base}/demo?room=harbour&name=Zo%C3%AB&autojoin=1"))?;
    for page in [&ann, &zoe] {
        page.wait_for("demo.state().peers.length === 2", STEP_WAIT)?;
    }

    ann.click("#text")?;
    ann.type_text(CALLER.1)?;
    ann.click("#say button")?;
    zoe.wait_for("demo.state().chat.length === 1", STEP_WAIT)?;
    zoe.eval(&format!("demo.say({})", Value::from(CALLED.1)))?;
    ann.wait_for("demo.state().chat.length === 2", STEP_WAIT)?;

    ann.click("#people button")?;
    zoe.wait_for("demo.state().call.state === 'ringing'", STEP_WAIT)?;
    shot(&zoe, "ringing.png")?;
    let accepted = Instant::now();
    zoe.click("#accept")?;
    for page in [&ann, &zoe] {
        page.wait_for(
            "demo.state().call.state === 'connected' && demo.state().video.framesDecoded > 0",
            STEP_WAIT,
        )?;
    }
    let setup = accepted.elapsed();

    let starts = [frames(&ann)?, frames(&zoe)?];
    let watching = Instant::now();
    ann.eval(&format!("new Promise((done) => setTimeout(done, {}))", seconds * 1000))?;
    let watched = watching.elapsed();
    let mut sides = Vec::new();
    for (page, frames_at_start) in [&ann, &zoe].into_iter().zip(starts) {
        sides.push(side(page, frames_at_start)?);
    }

    shot(&ann, "call.png")?;
    ann.dark(true)?;
    shot(&ann, "call-dark.png")?;
    zoe.resize(390, 844)?;
    shot(&zoe, "call-mobile.png")?;

    ann.click("#hangup")?;
    for page in [&ann, &zoe] {
        page.wait_for("demo.state().call.state === 'idle'", STEP_WAIT)?;
    }
    zoe.click("#leave")?;
    zoe.wait_for("!demo.state().joined", STEP_WAIT)?;
    shot(&zoe, "join-mobile.png")?;
    ann.wait_for("demo.state().peers.length === 1", STEP_WAIT)?;

    for (side, page) in sides.iter_mut().zip([&ann, &zoe]) {
        side.errors = page.errors();
    }
    let called = sides.pop().context("the called side")?;
    let caller = sides.pop().context("the calling side")?;
    Ok(Report { caller, called, setup, watched })
}

fn frames(page: &Page) -> Result<u64> {
    page.eval("demo.state().video.framesDecoded")?.as_u64().context("framesDecoded is no number")
}

fn side(page: &Page, frames_at_start: u64) -> Result<Side> {
    let state = page.eval("demo.state()")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    Ok(Side {
        name: word(&state["name"]),
        peers: list(&state["peers"]).iter().map(word).collect(),
        chat: list(&state["chat"])
            .iter()
            .map(|line| (word(&line["from"]), word(&line["text"])))
            .collect(),
        frames_at_start,
        frames_at_end: number(&state["video"]["framesDecoded"]),
        picture: (number(&state["video"]["width"]), number(&state["video"]["height"])),
        errors: Vec::new(),
    })
}
