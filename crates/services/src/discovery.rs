//! `_ds`: what is there: layers, their paths, the keys of those, one value, and the feed (seed 002
//! "Discovery").
//!
//! `a=layers` (or nothing), `a=paths&l=`, `a=keys&l=` on a path; beyond the seed, `a=values&l=`,
//! one value by `l` and `k`, and `a=changes&since=&limit=`, the bucket's change feed.

use kv4::store::Seq;
use wire::envelope::Fault;
use wire::errors::Code;
use wire::json::push_string;
use wire::names::{Layer, Path};

use crate::{Answer, Call, Services, accounts, entries, idempotency, layer, store_fault, token};

/// Most changes in one answer.
const CHANGES_MAX: usize = 1_000;
/// Most paths or keys of a measure in one answer.
const NAMES_MAX: usize = 100_000;
/// How a layer of statistics starts.
pub(crate) const STATS_PREFIX: &str = "*stats:";
/// Layers of live data, which no store holds.
const SUBS_PREFIX: &str = "*subs:";

pub(crate) async fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let action = call.params.text("a");
    let has_key = entries::key(call)?.is_some();
    match action.as_deref() {
        Some("layers") => layers(services, call).await,
        None if call.params.text("l").is_none() => layers(services, call).await,
        Some("paths") => paths(services, call, &asked_layer(call)?).await,
        Some("keys") => keys(services, call, &asked_layer(call)?, None).await,
        Some("values") => keys(services, call, &asked_layer(call)?, Some("values")).await,
        Some("changes") => changes(services, call).await,
        None if has_key => {
            let layer = asked_layer(call)?;
            entries::get(services, call, &entries::node(call, layer)).await
        }
        None => keys(services, call, &asked_layer(call)?, None).await,
        Some(other) => Err(Fault::with(
            Code::BadRequest,
            format!("`a` is layers, paths, keys, values or changes, not `{other}`"),
        )),
    }
}

/// The layer that a call reads one entry of; `None` for a call that does not.
pub(crate) fn entry_layer(call: &Call<'_>) -> Result<Option<Layer>, Fault> {
    let names_entry = call.params.text("a").is_none() && call.params.text("l").is_some();
    let is_entry = names_entry && entries::key(call)?.is_some();
    is_entry.then(|| asked_layer(call)).transpose()
}

/// The layer that a call names. Layers that hold keys and tokens are nobody's to read.
fn asked_layer(call: &Call<'_>) -> Result<Layer, Fault> {
    let text = call.params.text("l").ok_or_else(|| {
        Fault::with(Code::BadLayerPrefix, "the parameter `l` names the layer to look in")
    })?;
    // `#` is kept, so that the seed's other spelling of layers never means something else.
    if is_hidden(&text) || text.starts_with('#') {
        return Err(Fault::with(Code::BadLayerPrefix, format!("`{text}` is not shown")));
    }
    Ok(Layer::parse(&text)?)
}

fn is_hidden(name: &str) -> bool {
    [token::KEYS_LAYER, token::LAYER, idempotency::LAYER].contains(&name)
}

fn subs_layer(services: &Services) -> String {
    format!("{SUBS_PREFIX}{}", services.origin())
}

async fn layers(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let bucket = &call.caller.bucket;
    let stored = services.kv.layers(bucket).await.map_err(store_fault)?;
    let measures = services.kv.stat_measures(bucket).await.map_err(store_fault)?;
    let mut names: Vec<String> =
        stored.iter().map(|layer| layer.as_str().to_owned()).filter(|n| !is_hidden(n)).collect();
    names.extend(measures.iter().map(|measure| format!("{STATS_PREFIX}{measure}")));
    if !services.rooms.rooms(bucket).is_empty() {
        names.push(subs_layer(services));
    }
    names.sort();
    Ok(list(names.iter().map(String::as_str)))
}

async fn paths(services: &Services, call: &Call<'_>, layer: &Layer) -> Result<Answer, Fault> {
    let bucket = &call.caller.bucket;
    let mut found: Vec<Path> = if layer.as_str().starts_with(SUBS_PREFIX) {
        let rooms = services.rooms.rooms(bucket);
        let mine = layer.as_str() == subs_layer(services);
        rooms.iter().filter(|_| mine).filter_map(|room| room.path.join(&room.topic).ok()).collect()
    } else if let Some(measure) = measure(layer) {
        let paths = services.kv.stat_paths(bucket, &measure, &call.path, NAMES_MAX);
        paths.await.map_err(store_fault)?
    } else {
        let paths = services.kv.paths(bucket, layer, &call.path).await.map_err(store_fault)?;
        paths.into_iter().map(|(path, _)| path).collect()
    };
    let rules = services.rules.of(&services.kv, bucket).await.map_err(store_fault)?;
    found.retain(|path| path.is_within(&call.path) && !rules.denied(path, call.address));
    found.sort();
    found.dedup();
    Ok(list(found.iter().map(Path::as_str)))
}

async fn keys(
    services: &Services,
    call: &Call<'_>,
    layer: &Layer,
    shape: Option<&str>,
) -> Result<Answer, Fault> {
    let bucket = &call.caller.bucket;
    if layer.as_str().starts_with(SUBS_PREFIX) {
        let rooms = services.rooms.rooms(bucket);
        let mine = layer.as_str() == subs_layer(services);
        let mut names: Vec<String> = rooms
            .iter()
            .filter(|room| mine && room.path.join(&room.topic).as_ref() == Ok(&call.path))
            .flat_map(|room| services.rooms.members(room))
            .map(|member| member.name)
            .collect();
        names.sort();
        return Ok(list(names.iter().map(String::as_str)));
    }
    if let Some(measure) = measure(layer) {
        let keys = services.kv.stat_keys(bucket, &measure, &call.path, NAMES_MAX);
        let keys = keys.await.map_err(store_fault)?;
        return Ok(list(keys.iter().map(|key| key.as_str())));
    }
    entries::list(services, call, &entries::node(call, layer.clone()), shape).await
}

async fn changes(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let number = |name: &str, default: u64| match call.params.text(name) {
        None => Ok(default),
        Some(text) => text
            .parse::<u64>()
            .map_err(|_| Fault::with(Code::BadRequest, format!("`{name}` is not a number"))),
    };
    let since = Seq(number("since", 0)?);
    let limit = usize::try_from(number("limit", 100)?).unwrap_or(CHANGES_MAX).min(CHANGES_MAX);
    let (changes, last) =
        services.kv.changes(&call.caller.bucket, since, limit).await.map_err(store_fault)?;
    let rules = services.rules.of(&services.kv, &call.caller.bucket).await.map_err(store_fault)?;
    let mut v = String::from("{\"changes\":[");
    for (at, change) in changes.iter().enumerate() {
        let node = &change.entry.node;
        if at > 0 {
            v.push(',');
        }
        v.push_str(&format!("{{\"seq\":{}", change.seq));
        let mut text = |name: &str, value: &str| {
            v.push_str(&format!(",\"{name}\":"));
            push_string(&mut v, value);
        };
        if !is_hidden(node.layer.as_str()) && !rules.denied(&node.path, call.address) {
            text("l", node.layer.as_str());
            text("p", node.path.as_str());
            text("k", change.entry.key.as_str());
            if let Some(version) = &change.version {
                text("_ver_", &version.ver.to_string());
                text("a", &version.who);
                match &version.value {
                    None => v.push_str(",\"deleted\":true"),
                    Some(value) => {
                        v.push_str(",\"v\":");
                        v.push_str(accounts::shown(&node.layer, value).as_str());
                    }
                }
            }
        }
        v.push('}');
    }
    v.push_str(&format!("],\"last_seq\":{last}}}"));
    Ok(Answer::json(v))
}

/// The measure of a layer of statistics.
fn measure(name: &Layer) -> Option<Layer> {
    name.as_str().strip_prefix(STATS_PREFIX).filter(|measure| !measure.is_empty()).map(layer)
}

fn list<'a>(texts: impl Iterator<Item = &'a str>) -> Answer {
    Answer::list(texts, push_string)
}
