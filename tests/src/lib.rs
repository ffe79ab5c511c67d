//! System tests: real processes, real peers, real browsers.

pub mod browser;
