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
    /// Longest text from a client.
    pub message_bytes: usize,
    /// Longest name, percent-encoded; at most `wire::frames::NAME_BYTES_MAX` has an effect.
    pub name_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            rooms_per_bucket: 10_000,
            sockets_per_bucket: 50_000,
            sockets_per_room: 10_000,
            sockets_per_name: 16,
            message_bytes: 64 * 1024,
            name_bytes: wire::frames::NAME_BYTES_MAX,
        }
    }
}

/// Totals since the neuron started.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Counters {
    pub joins: u64,
    pub leaves: u64,
    /// Sockets closed by a kick or a ban.
    pub closes: u64,
    /// Bare `ping` texts.
    pub text_pings: u64,
    /// JSON pings and v1 heartbeats.
    pub heartbeats: u64,
    /// Frames for the media mixer of the vendor's TURN servers, ignored.
    pub mixer_frames: u64,
    /// Frames relayed or published, each once whatever the number of receivers.
    pub packets: u64,
    /// Frames handed out, once for each receiver.
    pub deliveries: u64,
    /// Direct frames to a name that is not in the room, dropped.
    pub unknown_peers: u64,
    /// Texts that are not a frame.
    pub bad_frames: u64,
    /// Clients that posed as the server.
    pub system_ops: u64,
    /// Frames beyond the grants of their sender's token.
    pub ungranted: u64,
    /// Texts over [`Limits::message_bytes`].
    pub refused_message_bytes: u64,
    pub refused_name_bytes: u64,
    pub refused_rooms_per_bucket: u64,
    pub refused_sockets_per_bucket: u64,
    pub refused_sockets_per_name: u64,
    pub refused_sockets_per_room: u64,
}

/// How large everything is, and what happened.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    pub buckets: usize,
    pub rooms: usize,
    /// Names present, once for each room they are in.
    pub names: usize,
    pub sockets: usize,
    /// Outputs that the shell has not yet taken.
    pub outputs: usize,
    pub counters: Counters,
}
