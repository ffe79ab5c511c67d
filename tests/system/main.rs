//! System tests, one binary: a module a suite.

mod demo;
