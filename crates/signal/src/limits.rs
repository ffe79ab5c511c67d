//! What a neuron lets its rooms grow to, and what it has counted.

use std::time::Duration;

/// Bounds of one neuron's signalling; each refusal is counted in [`Counters`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// Rooms that one bucket may have open at once.
    pub rooms_per_bucket: usize,
    /// Sockets in all rooms of one bucket, so that one account cannot starve the others.
    pub sockets_per_bucket: usize,
    /// Sockets in one room. Presence is told to everyone in it, so filling a room with `n` names
    /// costs `n²/2` deliveries.
    pub sockets_per_room: usize,
    /// Sockets of one name in one room: devices and tabs of one person.
    pub sockets_per_name: usize,
    /// Bytes of what stands beside a name, as JSON text.
    pub data_bytes: usize,
    /// Bytes of a message that is said from outside a room, without its envelope. How long those of
    /// sockets are is for their transports to say.
    pub message_bytes: usize,
    /// For how long a lost socket may come back and hear what it missed.
    pub history_lasts: Duration,
    /// Messages kept of one room for that.
    pub history_messages: usize,
    /// Bytes of them, all rooms of one account and its sub-accounts together. When there would be more,
    /// the room that holds most lets go of its oldest messages.
    pub history_bytes_per_account: usize,
    /// Bytes of them, all accounts together. When there would be more, it is the account that holds most.
    pub history_bytes: usize,
}

impl Default for Limits {
    /// What the program's configuration starts from.
    fn default() -> Limits {
        Limits {
            rooms_per_bucket: 10_000,
            sockets_per_bucket: 20_000,
            sockets_per_room: 10_000,
            sockets_per_name: 16,
            data_bytes: 1 << 10,
            message_bytes: 64 << 10,
            history_lasts: Duration::from_secs(120),
            history_messages: 1_000,
            history_bytes_per_account: 4 << 20,
            history_bytes: 128 << 20,
        }
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// Totals since the neuron started.
        #[derive(Clone, Debug, Default, Eq, PartialEq)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)*
        }

        impl Counters {
            fn add(&mut self, other: &Counters) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counters! {
    /// Sockets that were let into a room.
    joins,
    /// Sockets that went by themselves.
    leaves,
    /// Sockets closed by a kick, a ban or a revocation.
    closes,
    /// Sockets closed since their session came back by another one.
    replaced,
    /// Sessions that came back and missed nothing.
    resumed,
    /// Sessions that came back and were told that they may have missed something.
    unresumed,
    /// JSON pings, v1 heartbeats, and bare `ping` texts that the shell passed on.
    heartbeats,
    /// Frames for the media mixer of the vendor's TURN servers, ignored.
    mixer_frames,
    /// Frames relayed, each once whatever the number of receivers.
    packets,
    /// Frames handed out, once for each receiver.
    deliveries,
    /// Frames whose id their session had used before, answered as they were then.
    duplicates,
    /// Direct frames to a name that is not in the room, dropped.
    unknown_peers,
    /// Texts that are not a frame.
    bad_frames,
    /// Clients that posed as the server.
    system_ops,
    /// Joins and frames beyond the grants of a token.
    ungranted,
    /// Joins, and changes, over [`Limits::data_bytes`].
    refused_data,
    /// Messages from outside a room over [`Limits::message_bytes`].
    refused_messages,
    /// Messages let go of before their time, for one of the bounds of histories.
    history_cut,
    /// Names and sessions that were lost and forgotten before their time, so many were.
    lost_cut,
    /// Joins over [`Limits::rooms_per_bucket`].
    refused_rooms_per_bucket,
    /// Joins over [`Limits::sockets_per_bucket`].
    refused_sockets_per_bucket,
    /// Joins over [`Limits::sockets_per_name`].
    refused_sockets_per_name,
    /// Joins over [`Limits::sockets_per_room`].
    refused_sockets_per_room,
}

/// How large everything is, and what happened.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// Buckets that have a socket.
    pub buckets: usize,
    /// Rooms that somebody is in.
    pub rooms: usize,
    /// Names present, once for each room they are in.
    pub names: usize,
    /// Sockets in rooms.
    pub sockets: usize,
    /// Rooms that lost sockets may come back to, whether or not anybody is in them.
    pub histories: usize,
    /// Messages that are kept for them.
    pub history_messages: usize,
    /// Bytes of these.
    pub history_bytes: usize,
    pub counters: Counters,
}

impl Stats {
    /// Adds the figures of other rooms.
    pub fn add(&mut self, other: &Stats) {
        let Stats {
            buckets,
            rooms,
            names,
            sockets,
            histories,
            history_messages,
            history_bytes,
            counters,
        } = other;
        self.buckets += buckets;
        self.rooms += rooms;
        self.names += names;
        self.sockets += sockets;
        self.histories += histories;
        self.history_messages += history_messages;
        self.history_bytes += history_bytes;
        self.counters.add(counters);
    }
}
