//! The embedded log of Dibs, spoken to in the Kafka protocol: a broker of one node.
//!
//! A [`Broker`] serves a [`dibs_log::Store`] on the listeners of its [`BrokerConfig`]. In the order in which a
//! request goes through: `server` (accepting), `connections` (how many there may be), `connection` (frames, order of answers), `wire` (headers, and
//! whether a request is all there), `api` (one file for each request or family of them), `group` (consumer
//! groups as a pure state) in `coordinator` (its log and clock), `txn` (transactional ids as a pure state) in
//! `transactions` (the same for them), `settings` (what is changed while it runs), `topics` (the seam to `dibs-log`).

mod api;
mod clock;
mod config;
mod connection;
mod connections;
mod coordinator;
mod group;
#[cfg(test)]
mod histories;
mod producer_ids;
mod quota;
mod security;
mod server;
mod settings;
mod socket;
mod topics;
mod transactions;
mod txn;
mod wire;
#[cfg(test)]
mod worlds;

pub use api::read_requests;
pub use config::{BrokerConfig, ConfigError, Listener};
pub use security::Protocol;
pub use server::{Broker, StartError};
pub use topics::Owned;
