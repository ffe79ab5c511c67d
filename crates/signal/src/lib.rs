//! Signalling: rooms of sockets, who is present, and who hears what (`spec/xirsys.md` §1.7).
//!
//! [`Signal`] is a state machine over every room of one neuron. The shell tells it of sockets that
//! open, texts that arrive, sockets that close and times that come, and after each of those drains
//! [`Signal::poll_output`]. It opens no socket, reads no clock and never waits. A v4 socket that was
//! lost may come back with the cursor of what it has read, and hears what it missed. Not here: reading
//! and writing bytes and how long a message may be (`wire::ws`), tokens and address rules (the shell
//! asks before it joins a socket), queues to slow receivers, and idle connections: those are the
//! shell's, which sees every byte that arrives.
//!
//! ```
//! use kv4::Bucket;
//! use signal::{Address, Coming, Join, Limits, Output, Sealer, Signal, SocketId, Topic};
//! use wire::frames::{Generation, Name};
//! use wire::names::{Ident, Path};
//! use wire::token::Grants;
//!
//! let now = <std::time::Instant>::now();
//! let join = |name: &str| Join {
//!     address: Address {
//!         bucket: Bucket::from_stored("kv4_$elena_data"),
//!         path: Path::parse("/my/path").expect("a path"),
//!         topic: Topic::default(),
//!     },
//!     name: Name::encode(name).expect("a name"),
//!     ident: Ident::parse("elena").expect("an ident"),
//!     service: "xs_signal",
//!     generation: Generation::V2,
//!     grants: Grants::CHATTER,
//!     token: None,
//!     client_ip: [127, 0, 0, 1].into(),
//!     since_unix_s: 1_700_000_000,
//!     coming: Coming::default(),
//! };
//! let sealer = Sealer::new(|_, _, session| session[1] ^ 0x5EA1);
//! let mut signal = Signal::new(now, Limits::default(), 1, sealer);
//! signal.join(now, SocketId(1), join("ann"))?;
//! signal.join(now, SocketId(2), join("bob"))?;
//! signal.handle_text(now, SocketId(1), r#"{"t":"u","m":{"o":"message"},"p":{"msg":"hi"}}"#);
//! while let Some(output) = signal.poll_output() {
//!     match output {
//!         Output::Begin { .. } | Output::Send { .. } | Output::Fanout(_) => { /* queue the frame */ }
//!         Output::Close { .. } => { /* send the close, then end the connection */ }
//!         Output::Stat(_) => { /* add to the minute's statistics */ }
//!     }
//! }
//! # Ok::<(), signal::Refusal>(())
//! ```

mod grants;
mod history;
mod holdings;
mod ids;
mod limits;
mod listing;
mod output;
mod relay;
mod room;
mod signal;

pub use ids::SocketId;
pub use limits::{Counters, Limits, Stats};
pub use listing::{Row, SocketView};
pub use output::{Fanout, Measure, Output, Stat};
pub use relay::{Relayed, Unheard};
pub use room::{Address, Topic};
pub use signal::{
    Coming, Departure, ENVELOPE_BYTES_MAX, Join, Kicked, Refusal, Sealer, Signal, Token,
};
