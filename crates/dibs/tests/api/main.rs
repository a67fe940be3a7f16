//! The product from the outside: the real binary, real HTTP, real files.
//!
//! Every answer is held against `openapi.json` of `dibs-http` ([`contract`]); [`scenario`] also proves that everything
//! which stands there was seen.

#![allow(missing_docs, reason = "tests are read where they stand")]

mod cli;
mod contract;
mod hostile;
mod http;
mod scenario;
mod server;
mod shortage;
mod users;
