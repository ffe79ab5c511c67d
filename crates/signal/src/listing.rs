//! Who is where: what `_subs` and `_sess` show, and what rules look at.

use std::net::IpAddr;
use std::sync::Arc;

use kv4::Bucket;
use wire::frames::Name;
use wire::names::{Ident, Path};
use wire::token::Grants;

use crate::ids::SocketId;
use crate::room::{Address, Member, Topic};
use crate::signal::{Signal, Token};

/// One member of a room as `_subs` shows it. A name with several sockets is one row, that of the
/// socket that has been there longest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row {
    /// The member's name.
    pub key: Name,
    /// The account that issued the token.
    pub ident: Ident,
    /// What keeps the subscription: `xs_signal`.
    pub service: &'static str,
    /// What stands beside the name, as JSON text.
    pub data: Option<Arc<str>>,
}

/// One open socket, for `_sess` and for rules that close sockets. Its parts are lent, so that
/// looking at every socket of a bucket copies nothing.
#[derive(Clone, Copy, Debug)]
pub struct SocketView<'a> {
    pub socket: SocketId,
    pub address: &'a Arc<Address>,
    pub name: &'a Name,
    /// What it came with.
    pub token: Option<Token>,
    /// What it may do at most, whatever rules take away.
    pub granted: Grants,
    pub client_ip: IpAddr,
    pub since_unix_s: u64,
}

impl Signal {
    /// A row for each name in a room, sorted by name.
    pub fn rows(&self, address: &Address) -> Vec<Row> {
        let Some(room) = self.room_id(address).and_then(|id| self.rooms.get(&id)) else {
            return Vec::new();
        };
        let row = |(name, member): (&Name, &Member)| {
            let seat = self.seats.get(&member.sockets().next()?)?;
            Some(Row {
                key: name.clone(),
                ident: seat.ident.clone(),
                service: seat.service,
                data: member.data.clone(),
            })
        };
        room.members().filter_map(row).collect()
    }

    /// The buckets that have a socket, sorted.
    pub fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.buckets.iter().filter(|(_, tenant)| tenant.sockets > 0).map(|(bucket, _)| bucket)
    }

    /// The rooms of a bucket that somebody is in, sorted by path and topic.
    pub fn rooms(&self, bucket: &Bucket) -> impl Iterator<Item = (&Path, &Topic)> {
        let rooms = self.buckets.get(bucket).into_iter().flat_map(|tenant| &tenant.rooms);
        rooms
            .filter(|(_, id)| self.rooms.get(id).is_some_and(|room| !room.is_empty()))
            .map(|((path, topic), _)| (path, topic))
    }

    /// The open sockets of a bucket, sorted by room, then name, the longest there first.
    pub fn sockets(&self, bucket: &Bucket) -> impl Iterator<Item = SocketView<'_>> {
        let rooms = self.buckets.get(bucket).into_iter().flat_map(|tenant| tenant.rooms.values());
        rooms
            .filter_map(|id| self.rooms.get(id))
            .flat_map(|room| room.members().map(move |(_, member)| (room, member)))
            .flat_map(|(room, member)| member.sockets().map(move |socket| (room, socket)))
            .filter_map(|(room, socket)| {
                let seat = self.seats.get(&socket)?;
                Some(SocketView {
                    socket,
                    address: &room.address,
                    name: &seat.name,
                    token: seat.token,
                    granted: seat.granted,
                    client_ip: seat.client_ip,
                    since_unix_s: seat.since_unix_s,
                })
            })
    }
}
