//! `_conf`: settings of an account and its paths, the source of every per-account setting.
//!
//! The key is the setting's name; it holds at its path and below. Only settings that exist, with
//! values that they can have, are taken ([`crate::settings`]).

use wire::envelope::Fault;
use wire::errors::Code;

use crate::entries::{self, Put};
use crate::{Answer, Call, Method, Services, layer, settings, store_fault};

pub(crate) const LAYER: &str = "*conf";

pub(crate) async fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let node = entries::node(call, layer(LAYER));
    match call.method {
        Method::Get => entries::get(services, call, &node).await,
        Method::Delete => entries::delete(services, call, &node).await,
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
            entries::put_value(services, call, &node, Put { key, value }).await
        }
    }
}
