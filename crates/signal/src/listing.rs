//! Who is where: what `_subs` and `_sess` show.

use std::net::IpAddr;

use kv4::Bucket;
use wire::frames::Name;
use wire::json::{Json, push_string};
use wire::names::{Ident, Path};

use crate::ids::SocketId;
use crate::room::{Address, Room, Topic};
use crate::signal::{Seat, Signal, Token};

/// One member of a room as `_subs?as=values` shows it. A name with several sockets is one row,
/// that of the socket that has been there longest.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    pub address: &'a Address,
    /// The neuron where the sockets are.
    pub origin: &'a str,
    pub key: &'a Name,
    pub ident: &'a Ident,
    pub service: &'static str,
    pub meta: Option<&'a Json>,
}

impl Row<'_> {
    /// `{"topic","service","path","origin","meta","key","ident"}`.
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(192);
        let members = [
            ("{\"topic\":", self.address.topic.as_str()),
            (",\"service\":", self.service),
            (",\"path\":", self.address.path.as_str()),
            (",\"origin\":", self.origin),
        ];
        for (member, text) in members {
            out.push_str(member);
            push_string(&mut out, text);
        }
        out.push_str(",\"meta\":");
        out.push_str(self.meta.map_or("null", Json::as_str));
        for (member, text) in
            [(",\"key\":", self.key.as_str()), (",\"ident\":", self.ident.as_str())]
        {
            out.push_str(member);
            push_string(&mut out, text);
        }
        out.push('}');
        out
    }
}

/// One open socket, for `_sess` and for rules that close sockets.
#[derive(Clone, Debug)]
pub struct SocketView<'a> {
    pub socket: SocketId,
    pub address: &'a Address,
    pub name: &'a Name,
    pub ident: &'a Ident,
    pub service: &'static str,
    pub token: Option<Token>,
    pub client_ip: IpAddr,
    pub since_unix_s: u64,
}

impl Signal {
    /// The names in a room, sorted; none for a room that nobody is in.
    pub fn keys(&self, address: &Address) -> Vec<&Name> {
        self.room(address).map_or(Vec::new(), |room| room.names().collect())
    }

    /// A row for each name in a room, sorted by name.
    pub fn rows(&self, address: &Address) -> Vec<Row<'_>> {
        let Some(room) = self.room(address) else {
            return Vec::new();
        };
        room.members().filter_map(|(name, sockets)| self.show(room, name, sockets)).collect()
    }

    /// The row of one member, in any spelling of its name.
    pub fn row(&self, address: &Address, name: &str) -> Option<Row<'_>> {
        let room = self.room(address)?;
        let name = room.resolve(name)?;
        self.show(room, name, room.sockets_of(name.as_str()))
    }

    /// The buckets that have a socket, sorted.
    pub fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.buckets.keys()
    }

    /// The rooms of a bucket that somebody is in, sorted by path and topic.
    pub fn rooms(&self, bucket: &Bucket) -> impl Iterator<Item = (&Path, &Topic)> {
        self.buckets
            .get(bucket)
            .into_iter()
            .flat_map(|tenant| tenant.rooms.keys().map(|(path, topic)| (path, topic)))
    }

    /// The open sockets of a bucket, sorted by room, then name, the longest there first.
    pub fn sockets(&self, bucket: &Bucket) -> Vec<SocketView<'_>> {
        let rooms = self.buckets.get(bucket).into_iter().flat_map(|tenant| tenant.rooms.values());
        rooms
            .filter_map(|id| self.rooms.get(id))
            .flat_map(|room| room.members().map(move |(_, sockets)| (room, sockets)))
            .flat_map(|(room, sockets)| sockets.iter().map(move |socket| (room, *socket)))
            .filter_map(|(room, socket)| Some(view(room, socket, self.seats.get(&socket)?)))
            .collect()
    }

    /// One open socket.
    pub fn socket(&self, socket: SocketId) -> Option<SocketView<'_>> {
        let seat = self.seats.get(&socket)?;
        Some(view(self.rooms.get(&seat.room)?, socket, seat))
    }

    fn room(&self, address: &Address) -> Option<&Room> {
        self.rooms.get(&self.room_id(address)?)
    }

    fn show<'a>(&'a self, room: &'a Room, key: &'a Name, sockets: &[SocketId]) -> Option<Row<'a>> {
        let seat = self.seats.get(sockets.first()?)?;
        Some(Row {
            address: &room.address,
            origin: &self.origin,
            key,
            ident: &seat.ident,
            service: seat.service,
            meta: seat.meta.as_ref(),
        })
    }
}

fn view<'a>(room: &'a Room, socket: SocketId, seat: &'a Seat) -> SocketView<'a> {
    SocketView {
        socket,
        address: &room.address,
        name: &seat.name,
        ident: &seat.ident,
        service: seat.service,
        token: seat.token,
        client_ip: seat.client_ip,
        since_unix_s: seat.since_unix_s,
    }
}
