//! The wire formats against their models, their bytes, and everything that a peer may send.

mod frames;
mod lengths;
mod ws;
