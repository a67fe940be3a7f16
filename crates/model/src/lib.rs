//! The nouns of Dibs. Everything the other rooms say to each other is spelled here once: identifiers, the
//! campaign, the commands of the log and their JSON, the verdicts and their numbers, and the limits with
//! their units. This crate does no I/O and knows no clock.

#![no_std]
extern crate alloc;

pub mod campaign;
pub mod command;
pub mod ids;
pub mod limits;
pub mod pattern;
pub mod verdict;

pub use campaign::{CampaignSpec, CodeSource, IntakeFormat, IntakeTopic, SpecError};
pub use command::{Command, Malformed};
pub use ids::{CampaignId, IdError, Offset, Partition, Rank, RequestKey, Timestamp, UserId};
pub use pattern::{Pattern, PatternError};
pub use verdict::Verdict;
