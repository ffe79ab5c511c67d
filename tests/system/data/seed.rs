//! Every example of seed 002, in its order, with the command that it means.
//!
//! The table keeps the seed's own text. A command differs from it by host, `http:`, the prompt and
//! `| jq .`, by secrets that a neuron makes up, and by the fixes that its row names; a shell runs it.

mod lines;

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tests::neuron::{Neuron, SYS_SECRET, program};
use tests::socket::Client;
use tests::wait::until;

use super::pattern::{Found, compare};
use super::{Caller, join, v};
use lines::STEPS;

/// One step of the document.
enum Step {
    /// What the text takes for granted before the next line.
    Given(fn(&mut Scene) -> Result<()>),
    Line {
        /// Its line in the seed.
        at: usize,
        seed: &'static str,
        /// What is wrong in its text, or meant by it, and what stands for that.
        fix: &'static [(&'static str, &'static str)],
        /// The whole answer, as a pattern.
        answer: &'static str,
        /// What of `spec/xirsys.md` settles an answer or request that differs from the seed's.
        settled: &'static str,
    },
}

/// The neuron on which the document is acted out.
struct Scene {
    neuron: Neuron,
    found: Found,
    chatters: Vec<Client>,
}

#[test]
fn every_example_answers_as_the_seed_says() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut wrong = Vec::new();
    let mut count = 0;
    for step in STEPS {
        match step {
            Step::Given(set) => set(&mut scene)?,
            Step::Line { at, seed, fix, answer, settled } => {
                count += 1;
                if let Err(error) = scene.act(seed, fix, answer) {
                    wrong.push(format!("seed 002 line {at} ({settled}): {error:#}"));
                }
            }
        }
    }
    println!("{count} examples of seed 002");
    ensure!(wrong.is_empty(), "{} of {count} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

impl Scene {
    fn new() -> Result<Scene> {
        let neuron = Neuron::start()?;
        let sys = Caller::sys(&neuron);
        // The seed's accounts have the secret that its examples name.
        for name in ["user", "async"] {
            let details = json!({ "email": format!("{name}@async.cl"), "secret": "secret" });
            v(sys.put("/_acc/accounts", json!({ "k": name, "v": details })))?;
        }
        let mut found = Found::new();
        for (name, days) in [("yesterday", "-1 day"), ("tomorrow", "+1 day")] {
            found.insert(name.to_owned(), shell(&format!("date -u -d '{days}' +%Y:%-m:%-d"))?);
        }
        Ok(Scene { neuron, found, chatters: Vec::new() })
    }

    fn caller(&self, credentials: &str) -> Caller {
        Caller::new(&self.neuron, credentials)
    }

    /// Runs a line, and as the program's own verb where the seed uses that.
    fn act(&mut self, seed: &str, fix: &[(&str, &str)], answer: &str) -> Result<()> {
        let commands = self.commands(seed, fix)?;
        let pattern: Value = serde_json::from_str(&self.fill(answer, "<host>")?)?;
        // Figures and layers of figures are there after the next flush.
        let is_flushed = seed.contains("/_stats") || seed.contains("/_ds");
        for command in &commands {
            let look = || {
                let printed = shell(command)?;
                let mut seen: Value = serde_json::from_str(&printed)
                    .with_context(|| format!("{command}: {printed}"))?;
                if seen["s"] == "error"
                    && let Some(seen) = seen.as_object_mut()
                {
                    seen.remove("detail");
                }
                let mut found = self.found.clone();
                let verdict = compare(&pattern, &seen, &mut found);
                Ok((verdict, found, seen))
            };
            let (verdict, found, seen) =
                if is_flushed { until(look, |(verdict, ..)| verdict.is_ok())? } else { look()? };
            if let Err(why) = verdict {
                bail!("{command}\n  answered {seen}\n  {why}");
            }
            self.found = found;
        }
        Ok(())
    }

    fn commands(&self, seed: &str, fix: &[(&str, &str)]) -> Result<Vec<String>> {
        let mut text = seed.split_once("$ ").map_or(seed, |(_, command)| command).to_owned();
        for (wrong, right) in fix {
            ensure!(text.contains(wrong), "there is no {wrong:?} to fix in {text:?}");
            text = text.replace(wrong, right);
        }
        let text = text.replace("| jq .", "").replace("|jq .", "").replace("https://", "http://");
        let text = text.replace("%24sys:secret@", &format!("%24sys:{SYS_SECRET}@"));
        let text = ["endpoint.xirsys.com", "euro-service.xirsys.com", "localhost:4006"]
            .iter()
            .fold(text, |text, host| text.replace(host, "<host>"));
        let text = [
            ("primary_username", "primaryaccount_secret"),
            ("subacount_username", "subaccount_secret"),
        ]
        .iter()
        .fold(text, |text, (account, secret)| text.replace(secret, &format!("<{account}>")));
        let text = text
            .replace("9a3b4066-ec19-11e5-930a-2aee0ed40b9c", "<elena>")
            .replace("068564e6-ec1e-11e5-b3d6-09c98c1c18d8", "<lily>");
        let text = self.fill(&text, "<host>")?;
        match text.strip_prefix("xirsys get ") {
            None => Ok(vec![text.replacen("curl ", "curl -sS --globoff --max-time 30 ", 1)]),
            Some(path) => {
                let (url, user) = (self.neuron.url(), format!("'$sys:{SYS_SECRET}'"));
                let program = program()?;
                let path = path.trim_matches('"');
                Ok(vec![
                    format!("curl -sS --globoff --max-time 30 -u {user} \"{url}{path}\""),
                    format!("{} get --url {url} --user {user} \"{path}\"", program.display()),
                ])
            }
        }
    }

    /// Puts in the host and what has been found out.
    fn fill(&self, text: &str, host: &str) -> Result<String> {
        let text = text.replace(host, &self.neuron.address("http")?);
        Ok(self
            .found
            .iter()
            .fold(text, |text, (name, value)| text.replace(&format!("<{name}>"), value)))
    }

    /// Lets somebody join a path of `async`, and stay.
    fn join(&mut self, path: &str, name: &str) -> Result<()> {
        let caller = self.caller("async:secret");
        let token = v(caller.put(&format!("/_token{path}?k={name}"), json!({})))?;
        let token = token.as_str().context("a token is a string")?;
        self.chatters.push(join(&self.neuron, token)?);
        Ok(())
    }

    /// Makes a path of `async` a namespace, if it is none yet.
    fn namespace(&self, path: &str) -> Result<()> {
        let answer = self.caller("async:secret").put(&format!("/_ns{path}"), json!({}))?;
        ensure!(answer["s"] == "ok" || answer["v"] == "path_exists", "{answer}");
        Ok(())
    }

    /// Puts a sub-account, or a top account by `$sys`, whose secret is remembered under its name.
    fn account(&mut self, owner: &str, name: &str) -> Result<()> {
        let details = json!({ "email": format!("{name}@async.cl"), "password": "password" });
        let made = v(self.caller(owner).put("/_acc/accounts", json!({ "k": name, "v": details })))?;
        let secret = made["secret"].as_str().context("a new account has a secret")?;
        self.found.insert(name.to_owned(), secret.to_owned());
        Ok(())
    }
}

fn shell(command: &str) -> Result<String> {
    let output = Command::new("sh").args(["-c", command]).output()?;
    if !output.status.success() {
        bail!("{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn a_value_at_key(scene: &mut Scene) -> Result<()> {
    for credentials in ["user:secret", "async:secret"] {
        let body = json!({ "k": "key", "v": "myvalue" });
        v(scene.caller(credentials).put("/_data/my/path", body))?;
    }
    Ok(())
}

fn the_systems_layers_are_in_use(scene: &mut Scene) -> Result<()> {
    let token = v(Caller::sys(&scene.neuron).put("/_token", json!({})))?;
    let mut chatter = join(&scene.neuron, token.as_str().context("a token")?)?;
    chatter.say("message", None, &json!("a packet on the system's bus"))?;
    scene.chatters.push(chatter);
    Ok(())
}

fn paths_below_my_path(scene: &mut Scene) -> Result<()> {
    ["/my/path", "/my/path/a", "/my/path/a/b", "/my/path/a/b/c"]
        .iter()
        .try_for_each(|path| scene.namespace(path))
}

fn a_chatter_on_my_path(scene: &mut Scene) -> Result<()> {
    scene.join("/my/path", "chatter")
}

fn rt_in_richies_room(scene: &mut Scene) -> Result<()> {
    scene.namespace("/richie.com/default/default")?;
    scene.join("/richie.com/default/default", "rt")
}

fn mykey_is_written_twice(scene: &mut Scene) -> Result<()> {
    for _ in 0..2 {
        let body = json!({ "k": "mykey", "v": "myvalue" });
        v(scene.caller("async:secret").post("/_data/my/path", body))?;
    }
    Ok(())
}

fn somebody_talks_on_my_path(scene: &mut Scene) -> Result<()> {
    scene.join("/my/path", "listener")?;
    scene.chatters.last_mut().context("who just joined")?.say("message", None, &json!("hello"))
}

fn an_admin_of_async(scene: &mut Scene) -> Result<()> {
    let body = json!({ "k": "key", "v": { "password": "password" } });
    v(scene.caller("async:secret").put("/_acc/users/admins", body)).map(drop)
}

fn an_admin_of_user(scene: &mut Scene) -> Result<()> {
    let user = scene.caller("user:secret");
    let body = json!({ "k": "admin_key", "v": { "password": "admin_password" } });
    v(user.put("/_acc/users/admins", body))?;
    v(user.delete("/_data/my/path"))?;
    v(user.put("/_data/my/path", json!({ "k": "of user", "v": 1 }))).map(drop)
}

fn sub_account_username(scene: &mut Scene) -> Result<()> {
    scene.account("async:secret", "username")
}

fn a_primary_account(scene: &mut Scene) -> Result<()> {
    scene.account(&format!("$sys:{SYS_SECRET}"), "primary_username")?;
    let owner = format!("primary_username:{}", scene.found["primary_username"]);
    scene.account(&owner, "subacount_username")
}

fn my_path_is_free(scene: &mut Scene) -> Result<()> {
    let sub = format!("primary_username#subacount_username:{}", scene.found["subacount_username"]);
    v(scene.caller(&sub).delete("/_ns/my/path")).map(drop)
}

fn my_path_is_a_namespace(scene: &mut Scene) -> Result<()> {
    scene.namespace("/my/path")
}
