//! `_auth`: addresses and ranges that may not use a path or what lies below it (seed 002
//! "Authorization Service", `spec/xirsys.md` §2 row 19).
//!
//! The key is the address or CIDR prefix, in its shortest spelling, the value a note. A new rule also closes what is open.
//! Not here: applying rules to calls ([`crate::access`]).

use wire::envelope::Fault;
use wire::errors::Code;
use wire::json::Json;
use wire::network::Network;

use crate::access;
use crate::entries::{self, Put};
use crate::{Answer, Call, Method, Services, layer, store_fault};

pub(crate) const LAYER: &str = "*auth";

pub(crate) async fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let mut params = call.params.clone();
    let network = entries::key(call)?.and_then(|key| Network::parse(key.as_str()));
    // However a range is written, it is one rule.
    if let Some(network) = network {
        params.set("k", &network.to_key());
    }
    let (path, precondition) = (call.path.clone(), call.precondition.clone());
    let call = &Call { params: &params, path, precondition, ..*call };
    let node = entries::node(call, layer(LAYER));
    match call.method {
        Method::Get => entries::get(services, call, &node).await,
        Method::Delete => entries::delete(services, call, &node).await,
        Method::Put | Method::Post => {
            let key = entries::key(call)?
                .ok_or_else(|| Fault::with(Code::BadName, "`k` is the address to deny"))?;
            if network.is_none() {
                return Err(Fault::with(
                    Code::BadName,
                    format!("`{key}` is neither an IP address nor a CIDR prefix"),
                ));
            }
            let rules = services.rules.of(&services.kv, &call.caller.bucket).await;
            entries::has_room(services, &node, &key, rules.map_err(store_fault)?.len()).await?;
            let value = call.params.json("v").unwrap_or_else(Json::null);
            let answer = entries::put_value(services, call, &node, Put { key, value }).await?;
            access::enforce_addresses(services, &call.caller.bucket).await?;
            Ok(answer)
        }
    }
}
