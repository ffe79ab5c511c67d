//! `_subs`: who is on a path right now, sending them away (seed 002 "The Subscription Services",
//! `spec/xirsys.md` §1.6), and saying something to them without a socket.
//!
//! The data is signalling's, live; nothing is stored. The last segment of a path is its topic when
//! the path before it is a namespace or a room; otherwise the topic is the default one.

use std::borrow::Cow;

use wire::envelope::Fault;
use wire::errors::Code;
use wire::frames::{self, Name, UserFrame};
use wire::json::Json;

use crate::logs::Level;
use crate::{
    Answer, Call, Closing, Member, Method, Published, RoomRef, Services, entries, namespace, token,
};

/// The operation of what is said without one.
const OP: &str = "message";

impl Services {
    /// `<cluster>_<neuron>`, under which this neuron's subscriptions stand.
    pub fn origin(&self) -> String {
        format!("{}_{}", self.identity.cluster, self.identity.neuron)
    }
}

pub(crate) async fn call(services: &Services, call: &Call<'_>) -> Result<Answer, Fault> {
    let room = room(services, call).await?;
    match call.method {
        Method::Get => {
            let members = services.rooms.members(&room);
            if let Some(name) = call.params.text("k") {
                let name = Name::meant(&name).map_err(|_| Code::NotFound)?;
                let member = members.iter().find(|member| member.name == name.as_str());
                let member = member.ok_or(Code::NotFound)?;
                return Ok(Answer::json(row(services, &room, member).to_string()));
            }
            let list: Vec<serde_json::Value> = match call.params.text("as").as_deref() {
                Some("values") => members.iter().map(|m| row(services, &room, m)).collect(),
                _ => members.iter().map(|m| m.name.clone().into()).collect(),
            };
            Ok(Answer::json(serde_json::Value::from(list).to_string()))
        }
        Method::Delete => {
            let name = call.params.text("k").filter(|name| !name.is_empty());
            if name.is_none() && call.params.has("k") {
                return Err(entries::no_key());
            }
            let kicked = services.rooms.kick(&room, name.as_deref());
            if name.is_some() && kicked.members == 0 {
                return Err(Code::NotFound.into());
            }
            if kicked.members == 0 {
                return Ok(Answer::number(0));
            }
            services.logs.note(&room.bucket, Level::Info, || {
                let whom = name.as_deref().unwrap_or("everybody");
                format!("{} kicked {whom} from {}", call.caller.who, call.path)
            });
            // All of them, whatever became of one: who was kicked is not found a second time.
            let mut revoked = Ok(());
            for (id, until_s) in &kicked.tokens {
                let (bucket, who) = (&room.bucket, &call.caller.who);
                revoked = revoked.and(token::revoke_id(services, bucket, *id, *until_s, who).await);
            }
            // Whoever came back before the revocation held goes again.
            services.rooms.close(&room.bucket, Closing::Revoked, &|socket| {
                kicked.tokens.iter().any(|(id, _)| socket.token == Some(*id))
            });
            revoked?;
            Ok(Answer::number(kicked.members as u64))
        }
        Method::Post => publish(services, call, &room).await,
        Method::Put => Err(Fault::with(
            Code::MethodNotFound,
            "a subscription is made by connecting with a token",
        )),
    }
}

/// Says `v` to a room, or to `t` alone. An account says it as anybody, by `k`, since it makes tokens for
/// anybody, or as the server; who has a token says it as himself.
async fn publish(services: &Services, call: &Call<'_>, room: &RoomRef) -> Result<Answer, Fault> {
    let text = |name| call.params.text(name).filter(|text| !text.is_empty());
    let from = match (call.caller.user(), text("k")) {
        (Some(user), Some(name)) if name != user.identity => {
            return Err(Fault::with(Code::NotAllowed, "a token speaks for its own user"));
        }
        (Some(user), _) => Some(user.identity.clone()),
        (None, name) => name.map(Cow::into_owned),
    };
    let op = text("o").unwrap_or(OP.into());
    if frames::is_system_op(&op) {
        return Err(Fault::with(Code::NotAllowed, "only the server says who is present"));
    }
    let payload = call.params.json("v").ok_or(Code::ValueMissing)?;
    let frame = UserFrame {
        id: None,
        to: text("t"),
        op: Some(op),
        others: Vec::new(),
        payload: payload.as_str(),
    };
    let published = services.rooms.publish(room, from.as_deref(), &frame)?;
    if published == Published::default()
        && !call.path.is_root()
        && namespace::resolve(services, &room.bucket, &call.path).await?.is_none()
    {
        return Err(Code::NoNamespace.into());
    }
    let cursor = published.cursor.map_or_else(Json::null, |cursor| Json::string(&cursor));
    Ok(Answer::json(format!(
        "{{\"receivers\":{},\"cursor\":{}}}",
        published.receivers,
        cursor.as_str()
    )))
}

/// The room that a path addresses. A path that is in the tree, or on which somebody is by the
/// default topic, is the room itself.
pub(crate) async fn room(services: &Services, call: &Call<'_>) -> Result<RoomRef, Fault> {
    let bucket = call.caller.bucket.clone();
    let whole = RoomRef {
        bucket: bucket.clone(),
        path: call.path.clone(),
        topic: namespace::TOPIC.to_owned(),
    };
    if namespace::contains(services, &bucket, &call.path).await?
        || !services.rooms.members(&whole).is_empty()
    {
        return Ok(whole);
    }
    Ok(match call.path.split_last() {
        Some((path, topic)) => RoomRef { bucket, path, topic: topic.to_owned() },
        None => whole,
    })
}

fn row(services: &Services, room: &RoomRef, member: &Member) -> serde_json::Value {
    let data = member.data.as_deref().and_then(|data| serde_json::from_str(data).ok());
    serde_json::json!({
        "topic": room.topic,
        "service": member.service,
        "path": room.path.as_str(),
        "origin": services.origin(),
        "meta": data.unwrap_or(serde_json::Value::Null),
        "key": member.name,
        "ident": member.ident,
    })
}
