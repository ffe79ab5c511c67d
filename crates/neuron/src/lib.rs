//! One neuron's cores put together, used by the program and by simulation alike.
//!
//! [`asking`] makes requests of what sockets ask, [`requests`] carries a request of the HTTP API to its service and back; [`watching`]
//! opens the watches of it; [`sockets`] carries signalling sockets to their rooms; [`tidy_up`] is what is done every so often. Values in, values
//! out: sockets, tasks and clocks are the shell's.

pub mod asking;
pub mod requests;
pub mod sockets;
pub mod tidy_up;
pub mod watching;

use std::sync::{Arc, Mutex};

use services::{Parts, Services};

use crate::sockets::Switchboard;

/// The control side of a neuron.
#[derive(Clone, Debug)]
pub struct Neuron {
    pub services: Arc<Services>,
    pub sockets: Arc<Switchboard>,
    flushed: Arc<Mutex<tidy_up::Flushed>>,
}

impl Neuron {
    /// Puts services before a switchboard that was made first, since services list who is on it.
    pub fn new(parts: Parts, sockets: Arc<Switchboard>) -> Neuron {
        Neuron { services: Arc::new(Services::new(parts)), sockets, flushed: Arc::default() }
    }
}
