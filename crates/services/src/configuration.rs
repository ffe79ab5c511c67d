//! `_conf`: settings of an account and its paths, the source of every per-account setting.
//!
//! The key is the setting's name; it holds at its path and below. Only settings that exist, with
//! values that they can have, are taken ([`crate::settings`]). A rule that changes holds for open sockets
//! before its change is answered.

use wire::envelope::Fault;
use wire::errors::Code;
use wire::names::Key;

use crate::entries::{self, Put};
use crate::path_rules::Act;
use crate::{Answer, Call, Method, Services, access, layer, settings, store_fault};

pub(crate) const LAYER: &str = "*conf";

pub(crate) async fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let node = entries::node(call, layer(LAYER));
    match call.method {
        Method::Get => entries::get(services, call, &node).await,
        Method::Delete => {
            let key = entries::key(call)?;
            let answer = entries::delete(services, call, &node).await;
            // Without a key all settings of the path go, rules among them, or some before one that fails.
            if key.is_none_or(|key| is_of_sockets(&key)) {
                access::enforce_path_rules(services, &call.caller.bucket).await?;
            }
            answer
        }
        Method::Put | Method::Post => {
            let key = entries::key(call)?
                .ok_or_else(|| Fault::with(Code::BadName, "`k` is the setting's name"))?;
            let Some(known) = settings::known(key.as_str()) else {
                let names: Vec<_> = settings::KNOWN.iter().map(|known| known.name).collect();
                return Err(Fault::with(
                    Code::BadName,
                    format!("there is no setting `{key}`; there are: {}", names.join(", ")),
                ));
            };
            let value = call.params.json("v").ok_or(Code::ValueMissing)?;
            if !settings::is_legal(known, &value) {
                let why = format!("that is no value of `{key}`, which is: {}", known.doc);
                return Err(Fault::with(Code::BadRequest, why));
            }
            if known.of_root && !call.path.is_root() {
                return Err(Fault::with(Code::BadRequest, format!("`{key}` is set at `/` only")));
            }
            let settings = services.settings.of(&services.kv, &call.caller.bucket).await;
            entries::has_room(services, &node, &key, settings.map_err(store_fault)?.len()).await?;
            if let Some(act) = Act::of_setting(key.as_str()) {
                let rules = services.path_rules.of(&services.kv, &call.caller.bucket).await;
                let refused = &services.rules_refused;
                rules.map_err(store_fault)?.have_room(act, &call.path, &value, refused)?;
            }
            let changes_sockets = is_of_sockets(&key);
            let answer = entries::put_value(services, call, &node, Put { key, value }).await?;
            if changes_sockets {
                access::enforce_path_rules(services, &call.caller.bucket).await?;
            }
            Ok(answer)
        }
    }
}

/// Whether a setting is a rule about what open sockets may do.
fn is_of_sockets(key: &Key) -> bool {
    Act::of_setting(key.as_str()).is_some_and(Act::is_of_sockets)
}
