//! The pipeline, one file per step in the order of the data:
//!
//! (a topic of user ids → feed →) [`gate`] → [`intake`] → log → [`decider`] → verdict, and log → [`issuer`] → ledger. Beside it [`codes`] and
//! [`receipt`] (what a winner holds), dead letters (what nothing can come of), [`audit`] (does the ledger say what the log says?), and [`Flow`], which
//! starts all of it over a [`Store`] and a ledger.
//!
//! It deliberately knows nothing of HTTP, of the command line or of the Kafka protocol.

pub mod audit;
mod clock;
pub mod codes;
mod counters;
mod dead_letter;
pub mod decider;
mod feed;
mod flow;
pub mod gate;
pub mod intake;
pub mod issuer;
mod partition;
pub mod receipt;
mod records;
pub mod secret;

pub use clock::{Clock, now};
pub use codes::Codes;
pub use dead_letter::DEAD_LETTER_SUFFIX;
pub use decider::Decider;
pub use feed::feed;
pub use flow::{CLAIMS_TOPIC, CODES_TOPIC, Flow, FlowConfig, FlowError, load_codes, partition_of, places};
pub use intake::{Answer, Unanswered};
pub use issuer::{Issuance, IssueError, Issuer, Throttle};
pub use partition::{Claimed, Partition};
pub use receipt::Signatory;
pub use records::Place;
pub use secret::Secret;
