//! The stores of a host as a start of the manager finds them.

mod prior_use;
mod repair;
mod replace;
