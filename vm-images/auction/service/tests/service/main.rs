//! The service as a whole: the real program, over a PostgreSQL that the tests start themselves.
//!
//! Needs PostgreSQL 15's programs, and a user `postgres` if the tests run as root. Without them each
//! test prints `SKIPPED` with the reason and passes.
#![allow(clippy::unwrap_used)] // a test may panic
#![allow(dead_code)] // the benchmark `figures` shares the modules and needs more of them

mod cluster;
mod determinism;
mod pages;
mod refusals;
mod service;
