//! System tests, one binary: a module a suite.

#![allow(clippy::print_stdout, reason = "figures are printed and reported")]

mod crash;
mod data;
mod demo;
mod edge;
mod flood;
mod rules;
mod signal;
mod watch;
