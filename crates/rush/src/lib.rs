//! The rush: sends the claims of many users over real HTTP connections, remembers every win that was
//! acknowledged, and afterwards checks from the outside that the server was exact.
//!
//! Data flows one way: [`RushArgs`] (as typed) → [`RushPlan`] (validated) → the load (`order`, `pace`, `wire`,
//! `load`, `tally`) → the evidence (`gather`) → the judgement (`judge`) → [`Report`] → [`table`]. This crate knows only
//! the public HTTP interface (`docs/api.md`); it shares no code with the server but the limits of the model,
//! so that a mistake there cannot hide here.

mod api;
mod args;
mod demo;
mod gather;
mod judge;
mod load;
mod order;
mod outcome;
mod pace;
mod plan;
mod progress;
mod report;
mod run;
mod table;
mod tally;
mod wire;

pub use api::ApiError;
pub use args::{DemoArgs, Mode, RushArgs};
pub use demo::{ServerHandle, demo, memory_of};
pub use plan::{PlanError, RushPlan};
pub use progress::{Bar, Lines, Phase, Progress, Silent, Snapshot, progress_for};
pub use report::{Latency, Memory, Report};
pub use run::{RushError, run};
pub use table::{Mark, Row, bytes, count, millis, print, table};
