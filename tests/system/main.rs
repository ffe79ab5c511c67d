//! System tests, one binary: a module a suite.

mod crash;
mod data;
mod demo;
mod edge;
mod signal;
