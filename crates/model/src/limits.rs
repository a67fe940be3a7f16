//! Every limit of the product that more than one room must agree on, with its unit, and the proof that they
//! fit together.

/// Longest campaign id, in bytes.
pub const CAMPAIGN_ID_BYTES: usize = 64;
/// Longest user id, in bytes of UTF-8.
pub const USER_ID_BYTES: usize = 128;
/// Longest request key (`Idempotency-Key`), in bytes of UTF-8.
pub const REQUEST_KEY_BYTES: usize = 64;
/// Longest campaign title, in bytes of UTF-8.
pub const TITLE_BYTES: usize = 256;
/// Largest stock of a campaign, restocks included, in coupons.
pub const STOCK: u64 = 1_000_000_000;
/// Longest waitlist of a campaign, in claims.
pub const WAITLIST: u64 = 10_000_000;
/// Largest `per_user_limit`, in coupons held by one user at once.
pub const PER_USER: u32 = 1_000;
/// Longest name of a campaign's intake topic, in bytes: Kafka's 249, less the `-dlt` of its dead letters.
pub const INTAKE_TOPIC_BYTES: usize = 245;
/// Longest hold, in seconds (30 days).
pub const HOLD_SECONDS: u32 = 30 * 24 * 3600;
/// Restock keys remembered by a campaign; older ones are forgotten first.
pub const RESTOCK_KEYS: usize = 1_024;
/// Longest name of whoever redeems a coupon, in bytes of UTF-8.
pub const REDEEMER_BYTES: usize = 128;
/// Longest coupon code, in bytes.
pub const CODE_BYTES: usize = 64;
/// Largest log value that is read as a command, in bytes. A larger one is malformed.
pub const COMMAND_BYTES: usize = 4_096;
/// The clock of an API node may differ from the log's by this much, in milliseconds, before the gate is
/// allowed to refuse by time (ARCHITECTURE: invariant 1).
pub const SKEW_MS: i64 = 1_000;

// A winner's index is a u32 in the decider's table, and a rank never exceeds stock plus releases.
const _: () = assert!(STOCK < u32::MAX as u64 / 2);
// A length byte holds the length of a user id or a request key.
const _: () = assert!(USER_ID_BYTES <= u8::MAX as usize);
const _: () = assert!(REQUEST_KEY_BYTES <= u8::MAX as usize);
// The longest command (a create, all its text escaped as \u00XX) fits a log value.
const _: () = assert!(6 * (TITLE_BYTES + CODE_BYTES) + INTAKE_TOPIC_BYTES + 512 < COMMAND_BYTES);
// The same for a claim and for a redeem.
const _: () = assert!(6 * (USER_ID_BYTES + REQUEST_KEY_BYTES + REDEEMER_BYTES) + 256 < COMMAND_BYTES);
