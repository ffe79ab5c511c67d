//! The v1 and v2 routes, which deployed clients still call (`spec/xirsys.md` §1.8).
//!
//! They are the v3 services under other names: three segments `/domain/application/room` for a path,
//! `ident` and `secret` among the parameters. Their envelope is another too (`wire::envelope`).

use std::collections::BTreeSet;

use wire::envelope::Fault;
use wire::errors::Code;
use wire::json::Json;
use wire::names::{NameError, Path};
use wire::params::Params;

use crate::principal::Caller;
use crate::{Call, Method, Service, Services, host, namespace};

/// A legacy route that asks for credentials.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Route {
    Token,
    Ice,
    Domain,
    Application,
    Room,
}

impl Route {
    /// The route of a URL path, and whether it is a name that adds by itself (`/addDomain`).
    pub fn of(path: &str) -> Option<(Route, bool)> {
        Some(match path.trim_end_matches('/') {
            "/getToken" | "/signal/token" => (Route::Token, false),
            "/getIceServers" | "/ice" => (Route::Ice, false),
            "/domain" => (Route::Domain, false),
            "/application" => (Route::Application, false),
            "/room" => (Route::Room, false),
            "/addDomain" => (Route::Domain, true),
            "/addApplication" => (Route::Application, true),
            "/addRoom" => (Route::Room, true),
            _ => return None,
        })
    }
}

/// Whether a URL path asks for the [`signal_list`].
pub fn is_signal_list(path: &str) -> bool {
    matches!(path.trim_end_matches('/'), "/wsList" | "/signal/list")
}

/// The base URL of signalling, which needs no credentials. `secure` asks for one that speaks TLS: that
/// of the operator or this neuron's port for it, where there is one. Otherwise the URL is as safe as the
/// request was.
pub fn signal_list(services: &Services, authority: &str, is_tls: bool, params: &Params) -> String {
    let is_secure = params.flag("secure");
    let named = services.identity.signal_urls.iter().find(|url| url.starts_with("wss:"));
    let url = match named.filter(|_| is_secure) {
        Some(url) => url.clone(),
        None => {
            let port = services.identity.https_port.filter(|_| is_secure && !is_tls);
            let other = port.map(|port| format!("{}:{port}", host_of(authority)));
            let is_tls = is_tls || other.is_some();
            host::signal_url(services, other.as_deref().unwrap_or(authority), is_tls)
        }
    };
    format!("{{\"value\":{}}}", Json::string(&url).as_str())
}

/// An authority without its port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    }
}

/// Where a legacy call asks to be, cut to the depth of its route.
///
/// # Errors
/// `bad_domain_format`, `bad_app_format`, `bad_room_format` for the part that is missing or illegal.
pub fn path(route: Route, is_listing: bool, call: &Params) -> Result<Path, Fault> {
    let parts: &[(&str, Code)] = &[
        ("domain", Code::BadDomainFormat),
        ("application", Code::BadAppFormat),
        ("room", Code::BadRoomFormat),
    ];
    let depth = match (route, is_listing) {
        (Route::Domain, true) => 0,
        (Route::Domain, false) | (Route::Application, true) => 1,
        (Route::Application, false) | (Route::Room, true) => 2,
        _ => 3,
    };
    let mut path = Path::root();
    for (name, code) in &parts[..depth] {
        let text = call.text(name).filter(|text| !text.is_empty() && !text.contains('/'));
        let text =
            text.ok_or_else(|| Fault::with(*code, format!("`{name}` is missing or illegal")))?;
        path =
            path.join(&text).map_err(|error: NameError| Fault::with(*code, error.to_string()))?;
    }
    Ok(path)
}

/// The parameters as v3 names them: the user of a token is `username` here, its lifetime `timeout`.
pub fn params(route: Route, mut params: Params) -> Params {
    if route == Route::Token {
        params.rename("username", "k");
        params.rename("timeout", "expire");
    }
    params
}

/// Carries out a legacy call of a known caller; answers the JSON text of `d`.
///
/// # Errors
/// The refusal, in the words of v2.
pub async fn call(
    services: &Services,
    route: Route,
    call: &Call<'_>,
    adds: bool,
) -> Result<String, Fault> {
    match route {
        Route::Token => {
            require_room(services, call.caller, &call.path).await?;
            let answer = crate::call(services, Service::Token, &as_put(call)).await?;
            Ok(format!("{{\"token\":{}}}", answer.v))
        }
        Route::Ice => {
            require_room(services, call.caller, &call.path).await?;
            Ok(crate::call(services, Service::Turn, &as_put(call)).await?.v)
        }
        Route::Domain | Route::Application | Route::Room => tree(services, route, call, adds).await,
    }
}

/// The same call as a PUT: v2 asks for tokens by GET and POST.
fn as_put<'a>(call: &Call<'a>) -> Call<'a> {
    Call {
        method: Method::Put,
        path: call.path.clone(),
        precondition: call.precondition.clone(),
        ..*call
    }
}

/// Lists, adds or removes domains, applications and rooms.
async fn tree(
    services: &Services,
    route: Route,
    call: &Call<'_>,
    adds: bool,
) -> Result<String, Fault> {
    let bucket = &call.caller.bucket;
    let named = call.path.to_string();
    match call.method {
        Method::Post | Method::Put => {}
        Method::Get if adds => {}
        Method::Get => {
            let names: BTreeSet<String> =
                namespace::below(services, bucket, &call.path, None, Some(call.address))
                    .await?
                    .iter()
                    .filter_map(|relative| relative.split('/').next().map(str::to_owned))
                    .collect();
            return Ok(serde_json::Value::from_iter(names).to_string());
        }
        Method::Delete => {
            let removed = namespace::remove(services, call, &call.path).await;
            return removed.map(|count| count.to_string()).map_err(|fault| match fault.code {
                Code::NotFound => missing(route).into(),
                _ => fault,
            });
        }
    }
    let parent = call.path.split_last().map(|(parent, _)| parent).filter(|path| !path.is_root());
    if let Some(parent) = parent {
        require(services, call.caller, &parent).await?;
    }
    match namespace::create(services, call, &call.path).await {
        Ok(_) => Ok(Json::string(named.rsplit('/').next().unwrap_or_default()).as_str().to_owned()),
        Err(fault) if fault.code == Code::PathExists => Err(match route {
            Route::Domain => Code::DomainExists,
            Route::Application => Code::ApplicationExists,
            _ => Code::RoomExists,
        }
        .into()),
        Err(fault) => Err(fault),
    }
}

async fn require_room(services: &Services, caller: &Caller, path: &Path) -> Result<(), Fault> {
    if namespace::contains(services, &caller.bucket, path).await? {
        return Ok(());
    }
    require(services, caller, path).await
}

/// Requires that a path, or something below it, is in the tree; says which part is not.
async fn require(services: &Services, caller: &Caller, path: &Path) -> Result<(), Fault> {
    let mut above: Vec<Path> = path.ancestors().filter(|path| !path.is_root()).collect();
    above.reverse();
    for path in above {
        let bucket = &caller.bucket;
        let is_there = namespace::contains(services, bucket, &path).await?
            || !namespace::below(services, bucket, &path, None, None).await?.is_empty();
        if !is_there {
            return Err(match path.depth() {
                1 => Code::NoDomain,
                2 => Code::NoApplication,
                _ => Code::NoRoom,
            }
            .into());
        }
    }
    Ok(())
}

fn missing(route: Route) -> Code {
    match route {
        Route::Domain => Code::NoDomain,
        Route::Application => Code::NoApplication,
        _ => Code::NoRoom,
    }
}
