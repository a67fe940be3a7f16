//! The arguments as they are typed: a dumb struct that cannot do anything yet. [`crate::RushPlan`] is the
//! validated one.

use std::time::Duration;

use clap::{Args, ValueEnum};

/// How the load is paced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Each connection sends its next claim as soon as the last one is answered: finds the top speed.
    Closed,
    /// Claims are due at a fixed rate whatever the server does: finds the latency at that rate.
    Open,
}

/// `dibs rush`: everybody presses the button.
#[derive(Clone, Debug, Args)]
pub struct RushArgs {
    /// Where the server is. Only plain http is spoken
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,

    /// The campaign whose coupons are claimed. Nobody else should claim from it meanwhile, or the check
    /// cannot tell their ranks from lost ones
    #[arg(long, value_name = "ID")]
    pub campaign: String,

    /// Create the campaign first, with this many coupons (one for each user)
    #[arg(long, value_name = "N")]
    pub create_stock: Option<u64>,

    /// With --create-stock: how long until the campaign opens
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub opens_in: Duration,

    /// How many different users claim
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub users: u64,

    /// How often each user presses. From the second on it is a duplicate: half of them come right behind
    /// the first press on another connection, half at any later moment
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub press: u64,

    /// How many connections are kept open
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub connections: u64,

    /// How the load is paced. In open mode latency counts from the moment a claim was due, so that a
    /// server that stalls cannot hide it
    #[arg(long, value_enum, default_value_t = Mode::Closed)]
    pub mode: Mode,

    /// Open mode: claims a second, over all connections
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,

    /// Open mode: seconds over which the rate climbs from 0
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pub ramp: f64,

    /// Share of the users, 0 to 1, who press once before the opening, too
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0)]
    pub early: f64,

    /// Share of the claims, 0 to 1, whose connection is dropped within two milliseconds after they were
    /// sent; they are sent again on a new one
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0)]
    pub drop: f64,

    /// What the names of the users start with. The same prefix means the same users
    #[arg(long, value_name = "TEXT", default_value = "rush-")]
    pub user_prefix: String,

    /// Where a user may hold several coupons: send another Idempotency-Key with each press, so that each
    /// press may win
    #[arg(long)]
    pub keys: bool,

    /// Send nothing new after this time from the opening, for instance 30s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,

    /// How long one claim is tried again after 429, 423, 503 or a lost connection, and how long the check
    /// waits for the ledger while it stands still
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub patience: Duration,

    /// The server's admin key, to create the campaign
    #[arg(long, value_name = "KEY")]
    pub admin_key: Option<String>,

    /// Print the report as JSON, and nothing else
    #[arg(long)]
    pub json: bool,

    /// Only send the load, do not check the result
    #[arg(long)]
    pub no_check: bool,

    /// Order of users, back-off and samples follow from this number; without it, from the clock
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// `dibs demo`: a whole rush against a server of its own.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// How many different users claim
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub users: u64,

    /// How many coupons there are
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub stock: u64,

    /// How often each user presses
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub press: u64,

    /// How many connections are kept open
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub connections: u64,

    /// Keep the data folder, to look at it afterwards
    #[arg(long)]
    pub keep: bool,
}
