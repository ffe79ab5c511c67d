//! System tests, one binary: a module a suite.

mod data;
mod demo;
mod signal;
