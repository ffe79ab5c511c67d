//! What open sockets may do, set anew when rules change.

use kv4::Bucket;
use wire::token::Grants;

use crate::ids::SocketId;
use crate::listing::SocketView;
use crate::signal::Signal;

impl Signal {
    /// Sets what each socket of a bucket may do from now on, never more than it joined with; one for
    /// which `grants` is `None` is left as it is. Whether it hears the room is not changed by this:
    /// whoever may not is closed.
    pub fn regrant(
        &mut self,
        bucket: &Bucket,
        mut grants: impl FnMut(&SocketView<'_>) -> Option<Grants>,
    ) {
        let changed: Vec<_> =
            self.sockets(bucket).filter_map(|view| Some((view.socket, grants(&view)?))).collect();
        for (socket, grants) in changed {
            self.grant(socket, grants);
        }
    }

    /// The same of one socket; nothing when it sits nowhere.
    pub fn grant(&mut self, socket: SocketId, grants: Grants) {
        if let Some(seat) = self.seats.get_mut(&socket) {
            seat.grants = grants.and(seat.granted);
        }
    }
}
