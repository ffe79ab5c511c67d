//! What a neuron lets its rooms grow to, and what it has counted.

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
}

impl Default for Limits {
    /// What the program's configuration starts from.
    fn default() -> Limits {
        Limits {
            rooms_per_bucket: 10_000,
            sockets_per_bucket: 20_000,
            sockets_per_room: 10_000,
            sockets_per_name: 16,
        }
    }
}

/// Totals since the neuron started.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Sockets that were let into a room.
    pub joins: u64,
    /// Sockets that went by themselves.
    pub leaves: u64,
    /// Sockets closed by a kick, a ban or a revocation.
    pub closes: u64,
    /// JSON pings, v1 heartbeats, and bare `ping` texts that the shell passed on.
    pub heartbeats: u64,
    /// Frames for the media mixer of the vendor's TURN servers, ignored.
    pub mixer_frames: u64,
    /// Frames relayed, each once whatever the number of receivers.
    pub packets: u64,
    /// Frames handed out, once for each receiver.
    pub deliveries: u64,
    /// Direct frames to a name that is not in the room, dropped.
    pub unknown_peers: u64,
    /// Texts that are not a frame.
    pub bad_frames: u64,
    /// Clients that posed as the server.
    pub system_ops: u64,
    /// Joins and frames beyond the grants of a token.
    pub ungranted: u64,
    /// Joins over [`Limits::rooms_per_bucket`].
    pub refused_rooms_per_bucket: u64,
    /// Joins over [`Limits::sockets_per_bucket`].
    pub refused_sockets_per_bucket: u64,
    /// Joins over [`Limits::sockets_per_name`].
    pub refused_sockets_per_name: u64,
    /// Joins over [`Limits::sockets_per_room`].
    pub refused_sockets_per_room: u64,
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
    pub counters: Counters,
}
