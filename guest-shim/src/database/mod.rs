//! The database of the service. Each product has a folder of its own.

pub mod postgresql;
