//! Kafka's everyday tools from the outside: the real binary against a real broker.
//!
//! The broker is `dibs broker`, one for each test. With `DIBS_TEST_BOOTSTRAP=HOST:PORT` it is that one instead, for
//! example Apache Kafka's (`interop/apache-kafka start DIR`).

#![allow(missing_docs, reason = "tests are read where they stand")]

mod broker;
mod consume;
mod errors;
mod groups;
mod perf;
mod topics;
