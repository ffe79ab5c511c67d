//! What each service offers: its methods, parameters and answers.
//!
//! A call whose method is not described is refused, so this cannot fall behind the code; the OpenAPI
//! document is made from it.

use serde_json::{Map, Value, json};
use wire::errors::Code;

use crate::{Method, Service, settings};

/// One method of a service on a path.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub method: Method,
    /// What it does, in a line.
    pub about: &'static str,
    /// Parameters, in the query or the body alike.
    pub params: &'static [&'static Param],
    /// What `v` holds.
    pub answer: &'static str,
}

/// One parameter.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    pub name: &'static str,
    pub about: &'static str,
    /// Its JSON type in a body; `any` for any value.
    pub kind: &'static str,
}

const fn param(name: &'static str, kind: &'static str, about: &'static str) -> Param {
    Param { name, about, kind }
}

const K: Param = param("k", "string", "The key.");
const K2: Param = param("k2", "string", "A secondary key, unique in its path; null clears it.");
const K3: Param = param("k3", "string", "A secondary key, unique in its path; null clears it.");
const K4: Param = param("k4", "string", "A secondary key, unique in its path; null clears it.");
const V: Param = param("v", "any", "The value.");
const PATH_V: Param = param("v", "object", "What is kept at the path; {} when left out.");
const VER: Param = param("_ver_", "string", "The version that is being replaced; or If-Match.");
const AS: Param = param("as", "string", "The answer's form: keys, values or datum.");
const AT: Param = param("at", "string", "Wait until this `_ver_` or a newer one is seen.");
const AFTER: Param = param("after", "string", "Begin after this key.");
const LIMIT: Param = param("limit", "integer", "Most rows in the answer.");
const SERIES: Param = param("time_series", "boolean", "1: every version, newest first.");
const DELETIONS: Param = param("deletions", "boolean", "1: a series shows deletions as null.");
const GS: Param = param("gs", "string", "First group of time, yyyy:M:d:H:m, UTC.");
const GE: Param = param("ge", "string", "Last group of time, inclusive.");
const ERASE: Param = param("erase", "boolean", "1: the whole series goes; by the owner only.");
const L: Param = param("l", "string", "The layer, or the measure.");

const TOKEN_AS: Param = param(
    "as",
    "string",
    "values: an object with the token, its id, user, path, grants and end; else the token alone.",
);
const ACTION: Param = param("a", "string", "layers, paths, keys, values or changes.");
const SINCE: Param = param("since", "integer", "The change after which to begin.");
const TYPE: Param = param("type", "string", "signal or turn.");
const DEPTH: Param = param("depth", "integer", "Most segments below.");
const BREAK: Param = param("break", "boolean", "1: an object by group of time.");
const ID: Param = param("id", "string", "The token, or its id.");
const USER: Param = param("k", "string", "The user's name; a random one when left out.");
const EXPIRE: Param =
    param("expire", "integer", "Lifetime in seconds; 60 when left out, 0 for ever.");
const GRANTS: Param = param(
    "grants",
    "string",
    "subscribe, send, publish, watch, moderate, relay, read, write; by default what a chatter needs.",
);

const SENDER: Param =
    param("k", "string", "Whose name it comes from; the server's own when left out.");
const OP: Param = param("o", "string", "The operation; `message` when left out.");
const RECEIVER: Param = param("t", "string", "The only one who hears it; everybody when left out.");
const PAYLOAD: Param = param("v", "any", "What is said.");
const WATCH: Param = param(
    "watch",
    "string",
    "sse, or `Accept: text/event-stream`: the value by `k`, or all of the path, and every change of it \
     from there on, as server-sent events.",
);
const WAIT: Param = param(
    "wait",
    "integer",
    "With If-None-Match: seconds, at most 55, to wait for another ETag. Listings have one too then, and \
     a key that is not there has \"0\".",
);

const READ: &[&Param] =
    &[&K, &K2, &K3, &K4, &AS, &AT, &SERIES, &DELETIONS, &GS, &GE, &AFTER, &LIMIT];
const READ_LIVE: &[&Param] =
    &[&K, &K2, &K3, &K4, &AS, &AT, &SERIES, &DELETIONS, &GS, &GE, &AFTER, &LIMIT, &WATCH, &WAIT];
const WRITE: &[&Param] = &[&K, &K2, &K3, &K4, &V, &VER];
const REMOVE: &[&Param] = &[&K, &K2, &K3, &K4, &VER, &ERASE];

const fn get(
    about: &'static str,
    params: &'static [&'static Param],
    answer: &'static str,
) -> Operation {
    Operation { method: Method::Get, about, params, answer }
}

const fn put(
    about: &'static str,
    params: &'static [&'static Param],
    answer: &'static str,
) -> Operation {
    Operation { method: Method::Put, about, params, answer }
}

const fn post(
    about: &'static str,
    params: &'static [&'static Param],
    answer: &'static str,
) -> Operation {
    Operation { method: Method::Post, about, params, answer }
}

const fn delete(
    about: &'static str,
    params: &'static [&'static Param],
    answer: &'static str,
) -> Operation {
    Operation { method: Method::Delete, about, params, answer }
}

const VALUE: &str = "The value with `_ver_` when it is an object; a list of keys without a key.";
const COUNT: &str = "How many entries went.";
const TOKEN_PARAMS: &[&Param] = &[&USER, &EXPIRE, &GRANTS, &TOKEN_AS];
const ADD: &str = "Add a path to the tree.";
const CREDENTIALS: &str = "Make relay credentials.";

impl Service {
    /// What the service is, in a line.
    pub fn about(self) -> &'static str {
        match self {
            Service::Accounts => "Accounts, sub-accounts and administrators.",
            Service::Authorization => "Addresses that may not use a path or what lies below it.",
            Service::Configuration => "Settings of an account and its paths.",
            Service::Data => "The account's own values on any path.",
            Service::Discovery => "Layers, their paths, their keys, and the change feed.",
            Service::Host => "Which machine to connect to.",
            Service::Namespace => "The account's public tree of paths.",
            Service::Sessions => "Logins and sockets of the account, live.",
            Service::Statistics => "Sum, least, greatest and count of measures over time.",
            Service::Subscriptions => "Who is on a path right now.",
            Service::Token => "What users connect with.",
            Service::Turn => "Relay credentials.",
            Service::Video => "Video processing.",
        }
    }

    /// Its operations, on any path of the service.
    pub fn operations(self) -> &'static [Operation] {
        match self {
            Service::Accounts => {
                const {
                    &[
                        get("Read accounts at /accounts or admins at /users/admins.", READ, VALUE),
                        put(
                            "Create an account or an admin.",
                            WRITE,
                            "All its fields; secrets this once.",
                        ),
                        post("Create it, or merge fields into it.", WRITE, "Its public fields."),
                        delete("Delete it; an account goes with all its data.", REMOVE, COUNT),
                    ]
                }
            }
            Service::Authorization => {
                const {
                    &[
                        get("List what is denied at a path.", READ_LIVE, VALUE),
                        put("Deny an address or CIDR prefix `k`.", WRITE, "The note."),
                        post("Deny an address or CIDR prefix `k`.", WRITE, "The note."),
                        delete("Allow it again.", REMOVE, COUNT),
                    ]
                }
            }
            Service::Configuration => {
                const {
                    &[
                        get("Read settings at a path.", READ_LIVE, VALUE),
                        put("Set `k` here and below.", WRITE, "The value."),
                        post("Set `k` here and below.", WRITE, "The value."),
                        delete("Go back to what holds above.", REMOVE, COUNT),
                    ]
                }
            }
            Service::Data => {
                const {
                    &[
                        get("Read a value, a listing or a series.", READ_LIVE, VALUE),
                        put("Write a new version.", WRITE, "The value with `_ver_`."),
                        post("Write a new version.", WRITE, "The value with `_ver_`."),
                        delete("Delete a key, or every key of the path.", REMOVE, COUNT),
                    ]
                }
            }
            Service::Discovery => {
                const {
                    &[get(
                        "List what is there.",
                        &[
                            &ACTION, &L, &K, &K2, &K3, &K4, &AS, &AT, &SERIES, &DELETIONS, &GS,
                            &GE, &AFTER, &LIMIT, &SINCE,
                        ],
                        "A list; for changes an object with `changes` and `last_seq`.",
                    )]
                }
            }
            Service::Host => {
                const {
                    &[get(
                        "The best host of a kind; also as /_host/best/<type>.",
                        &[&TYPE, &K],
                        "A URL.",
                    )]
                }
            }
            Service::Namespace => {
                const {
                    &[
                        get(
                            "The paths below, relative to the one asked.",
                            &[&DEPTH, &WATCH],
                            "A sorted list of paths.",
                        ),
                        put(ADD, &[&PATH_V], "Its `_ver_`."),
                        post(ADD, &[&PATH_V], "Its `_ver_`."),
                        delete(
                            "Remove a path and all below it.",
                            &[&ERASE],
                            "How many paths went.",
                        ),
                    ]
                }
            }
            Service::Sessions => {
                const {
                    &[
                        get(
                            "List logins and sockets.",
                            &[&K, &AS],
                            "Ids, or rows with `as=values`.",
                        ),
                        delete("End one.", &[&K], "1."),
                    ]
                }
            }
            Service::Statistics => {
                const {
                    &[get(
                        "Figures of a measure.",
                        &[&L, &K, &GS, &GE, &BREAK],
                        "sum, min, max and count; [] when there is nothing.",
                    )]
                }
            }
            Service::Subscriptions => {
                const {
                    &[
                        get("Who is in a room.", &[&K, &AS], "Names, or rows with `as=values`."),
                        post(
                            "Say something to a room, as somebody or as the server.",
                            &[&SENDER, &OP, &RECEIVER, &PAYLOAD],
                            "How many sockets it was handed to, and its cursor.",
                        ),
                        delete("Kick one, or the room.", &[&K], "How many went."),
                    ]
                }
            }
            Service::Token => {
                const {
                    &[
                        put(
                            "Make a token for a path, or a universal one.",
                            TOKEN_PARAMS,
                            "The token.",
                        ),
                        post(
                            "Make a token for a path, or a universal one.",
                            TOKEN_PARAMS,
                            "The token.",
                        ),
                        delete("Revoke a token, or all of a user made so far.", &[&ID, &K], "1."),
                    ]
                }
            }
            Service::Turn => {
                const {
                    &[
                        get(
                            "Relay sessions on a path.",
                            &[&K, &AS],
                            "no_service until a neuron relays.",
                        ),
                        put(CREDENTIALS, &[&K], "no_service until a neuron relays."),
                        post(CREDENTIALS, &[&K], "no_service until a neuron relays."),
                        delete("End a relay session.", &[&K], "no_service until a neuron relays."),
                    ]
                }
            }
            Service::Video => {
                const {
                    &[
                        get("Video sessions.", &[&K], "no_service until a neuron offers it."),
                        put("Begin one.", &[&K], "no_service until a neuron offers it."),
                        post("Begin one.", &[&K], "no_service until a neuron offers it."),
                        delete("End one.", &[&K], "no_service until a neuron offers it."),
                    ]
                }
            }
        }
    }

    /// Whether some call of a method is also for those who hold a token.
    fn is_for_users(self, method: Method) -> bool {
        match self {
            Service::Data => true,
            Service::Subscriptions => method != Method::Put,
            _ => false,
        }
    }

    /// Whether the service has a method.
    pub fn offers(self, method: Method) -> bool {
        self.operations().iter().any(|operation| operation.method == method)
    }
}

/// The settings of `_conf`, as Markdown.
pub fn settings() -> String {
    let mut out = String::from(
        "# Settings\n\nWhat an account may set for itself and its paths; made by `ganglion config \
         settings`.\n\n`PUT /_conf/my/path {\"k\":\"<name>\",\"v\":<value>}` sets one. It holds at that \
         path and below, until one of the same name is set further down; `DELETE \
         /_conf/my/path?k=<name>` goes back to what holds above.\n\n| name | what it does |\n|---|---|\n",
    );
    for known in settings::KNOWN {
        out.push_str(&format!("| `{}` | {} |\n", known.name, known.doc));
    }
    out
}

/// The OpenAPI 3.1 document of every service.
pub fn openapi(version: &str) -> Value {
    let mut paths = Map::new();
    for service in Service::ALL {
        let mut item = Map::new();
        for operation in service.operations() {
            let method = operation.method.as_str().to_lowercase();
            let object = operation_object(service, operation);
            if operation.method == Method::Get {
                item.insert("head".to_owned(), head_object(service, &object));
            }
            item.insert(method, object);
        }
        paths.insert(format!("/_{}", service.name()), Value::Object(item.clone()));
        let path = json!([{
            "name": "path", "in": "path", "required": true, "schema": { "type": "string" },
            "description": "Any number of segments, percent-encoded.",
        }]);
        item.insert("parameters".to_owned(), path);
        // An id is unique in the document; that of the deeper path says so.
        for operation in item.values_mut().filter_map(|operation| operation.get_mut("operationId"))
        {
            *operation = Value::String(format!("{}At", operation.as_str().unwrap_or_default()));
        }
        paths.insert(format!("/_{}/{{path}}", service.name()), Value::Object(item));
    }
    let codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Ganglion",
            "version": version,
            "description": "Errors answer 200 with s = \"error\" unless the request accepts \
                application/problem+json.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "security": [{ "account": [] }],
        "tags": Service::ALL.map(|s| json!({ "name": s.name(), "description": s.about() })),
        "paths": paths,
        "components": {
            "securitySchemes": {
                "account": { "type": "http", "scheme": "basic" },
                "token": {
                    "type": "http", "scheme": "bearer",
                    "description": "A token of `_token`: what its grants and the path's rules permit.",
                },
                "tokenOfQuery": {
                    "type": "apiKey", "in": "query", "name": "token",
                    "description": "The same in the query of a GET, for what can set no header.",
                },
            },
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["v", "s"],
                    "properties": {
                        "v": { "enum": codes },
                        "s": { "const": "error" },
                        "detail": { "type": "string" },
                    },
                },
                "Problem": {
                    "description": "RFC 9457, with `v` and `s` as in every error.",
                    "type": "object",
                    "required": ["type", "title", "status", "detail", "v", "s"],
                    "properties": {
                        "type": { "const": "about:blank" },
                        "title": { "enum": codes },
                        "status": { "type": "integer" },
                        "detail": { "type": "string" },
                        "v": { "enum": codes },
                        "s": { "const": "error" },
                    },
                },
            },
            "parameters": {
                "IfMatch": header(
                    "If-Match",
                    "The ETag of the version that is being replaced, or * for any; refused where no \
                     one entry is written.",
                ),
                "IfNoneMatch": header(
                    "If-None-Match",
                    "Of a read, an ETag: 304 when that is still the version. Of a write, *: only \
                     when there is nothing yet.",
                ),
                "IdempotencyKey": header(
                    "Idempotency-Key",
                    "A request that is sent again with it is answered as the first one was, and not \
                     carried out again.",
                ),
            },
            "responses": {
                "NotModified": { "description": "The version of If-None-Match is the newest." },
                "Problem": error("Any error, for whoever accepts problems.", false, true),
                "TooLarge": error("The body or the head is too large.", false, false),
                "TooMany": error("Too many requests or failed logins.", true, false),
                "Unavailable": error("Too much is under way, or the store is away.", true, false),
            },
        },
    })
}

fn header(name: &str, about: &str) -> Value {
    json!({ "name": name, "in": "header", "description": about, "schema": { "type": "string" } })
}

fn error(about: &str, has_retry_after: bool, is_problem_only: bool) -> Value {
    let mut content = json!({ "application/problem+json": {
        "schema": { "$ref": "#/components/schemas/Problem" },
    } });
    if !is_problem_only {
        content["application/json"] = json!({ "schema": { "$ref": "#/components/schemas/Error" } });
    }
    let mut response = json!({ "description": about, "content": content });
    if has_retry_after {
        response["headers"] = json!({ "Retry-After": {
            "description": "Seconds to wait.", "schema": { "type": "integer" },
        } });
    }
    response
}

/// A read without its body.
fn head_object(service: Service, read: &Value) -> Value {
    let mut object = json!({
        "tags": read["tags"],
        "operationId": format!("head_{}", service.name()),
        "summary": "The headers of what GET answers.",
        "parameters": read["parameters"],
        "responses": {
            "200": { "description": "As GET, without a body." },
            "304": read["responses"]["304"],
        },
    });
    if let Some(security) = read.get("security") {
        object["security"] = security.clone();
    }
    object
}

fn reference(kind: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{name}") })
}

fn operation_object(service: Service, operation: &Operation) -> Value {
    let is_read = operation.method == Method::Get;
    let parameters = operation.params.iter().filter(|param| param.kind != "any").map(|param| {
        json!({
            "name": param.name, "in": "query", "description": param.about,
            "schema": { "type": param.kind },
        })
    });
    let headers: &[&str] =
        if is_read { &["IfNoneMatch"] } else { &["IfMatch", "IfNoneMatch", "IdempotencyKey"] };
    let headers = headers.iter().map(|name| reference("parameters", name));
    let parameters: Vec<Value> = parameters.chain(headers).collect();
    let method = operation.method.as_str().to_lowercase();
    let mut object = json!({
        "tags": [service.name()],
        "operationId": format!("{method}_{}", service.name()),
        "summary": operation.about,
        "parameters": parameters,
        "responses": {
            "200": {
                "description": operation.answer,
                "content": { "application/json": { "schema": { "oneOf": [
                    {
                        "type": "object",
                        "required": ["v", "s"],
                        "properties": { "v": {}, "s": { "const": "ok" } },
                    },
                    { "$ref": "#/components/schemas/Error" },
                ] } } },
            },
            "413": reference("responses", "TooLarge"),
            "429": reference("responses", "TooMany"),
            "503": reference("responses", "Unavailable"),
            "default": reference("responses", "Problem"),
        },
    });
    if is_read {
        object["responses"]["304"] = reference("responses", "NotModified");
    }
    if service.is_for_users(operation.method) {
        let mut schemes = vec!["account", "token"];
        schemes.extend(is_read.then_some("tokenOfQuery"));
        object["security"] = schemes.into_iter().map(|scheme| json!({ scheme: [] })).collect();
    }
    if matches!(operation.method, Method::Put | Method::Post) {
        let properties: Map<String, Value> = operation
            .params
            .iter()
            .map(|param| {
                let mut schema = json!({ "description": param.about });
                if param.kind != "any" {
                    schema["type"] = param.kind.into();
                }
                (param.name.to_owned(), schema)
            })
            .collect();
        object["requestBody"] = json!({
            "content": { "application/json": {
                "schema": { "type": "object", "properties": properties },
            } },
        });
    }
    object
}
