//! The demo service: an online auction with the nine tables and the 27 page interactions of RUBiS,
//! written anew.
//!
//! Every page is a function of the database, of the request and of the agreed time and seed that the
//! request carries in its headers; nothing in it reads a clock or a source of randomness. That, and
//! a total order in every query, is what lets replicas of it vote on its pages.
//!
//! What a client must know of it is in [`spare_auction_interactions`].

#![cfg_attr(test, allow(clippy::unwrap_used))] // a test may panic

pub mod database;
pub mod html;
pub mod money;
pub mod pages;
pub mod password;
pub mod populate;
pub mod queries;
pub mod refusal;
pub mod request;
pub mod schema;
pub mod server;
pub mod time;
