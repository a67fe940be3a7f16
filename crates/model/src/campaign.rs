//! A campaign as it is announced: what `create` writes into the log.

use alloc::{boxed::Box, string::ToString};

use crate::{Pattern, PatternError, Timestamp, limits};

/// Where the codes of a campaign's coupons come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CodeSource {
    /// A keyed permutation of the rank, written in this pattern.
    Pattern(Pattern),
    /// The imported list of partner codes, one by rank (topic `dibs.codes`).
    Imported,
}

/// A plain topic whose records are claims: each value names a user, and nothing else. An application that sends
/// user ids to a topic of its own need not change to claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntakeTopic {
    /// Its name, by Kafka's rules; 1 to [`limits::INTAKE_TOPIC_BYTES`], none of Dibs' own topics.
    pub topic: Box<str>,
    /// How a value names a user.
    pub format: IntakeFormat,
}

/// How the value of a record names a user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IntakeFormat {
    /// As text.
    #[default]
    String,
    /// As Java's `LongSerializer` writes a number: 8 bytes, big-endian. The user's id is the number in decimals.
    Long,
    /// As a JSON text or integer, or as an object with a member `user`, `userId` or `user_id` that is one.
    Json,
}

impl IntakeFormat {
    /// All of them.
    pub const ALL: [IntakeFormat; 3] = [IntakeFormat::String, IntakeFormat::Long, IntakeFormat::Json];

    /// Its stable name.
    pub fn name(self) -> &'static str {
        match self {
            IntakeFormat::String => "string",
            IntakeFormat::Long => "long",
            IntakeFormat::Json => "json",
        }
    }

    /// The format of a name.
    pub fn parse(name: &str) -> Option<IntakeFormat> {
        IntakeFormat::ALL.into_iter().find(|f| f.name() == name)
    }
}

impl IntakeTopic {
    fn check(&self) -> Result<(), SpecError> {
        let topic = &*self.topic;
        let wrong = if topic.is_empty() || topic.len() > limits::INTAKE_TOPIC_BYTES {
            "must have 1 to 245 characters"
        } else if !topic.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            "may have ASCII letters, digits, '.', '_' and '-'"
        } else if matches!(topic, "." | "..") {
            "is no topic's name"
        } else if topic.starts_with("dibs.") || topic.starts_with("__") {
            "must be a topic of your own; claims to dibs.claims need no intake topic"
        } else {
            return Ok(());
        };
        Err(SpecError::Intake(wrong))
    }
}

/// What a campaign promises. Fixed at creation; `restock`, `pause`, `resume` and `close` are commands of
/// their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CampaignSpec {
    /// For people; 1 to 256 bytes.
    pub title: Box<str>,
    /// Coupons to give, 1 to [`limits::STOCK`].
    pub stock: u64,
    /// The first instant at which a claim can win.
    pub opens_at: Timestamp,
    /// The first instant at which a claim can no longer win; [`Timestamp::NEVER`] for none.
    pub closes_at: Timestamp,
    /// Coupons that one user may hold at once, 1 to [`limits::PER_USER`].
    pub per_user_limit: u32,
    /// Where codes come from.
    pub codes: CodeSource,
    /// A win must be confirmed within this many seconds, 0 for no confirmation.
    pub hold_seconds: u32,
    /// Claims that may wait for a released or restocked unit, 0 for no waitlist.
    pub waitlist: u64,
    /// A topic of user ids that claims are taken from too.
    pub intake: Option<IntakeTopic>,
}

/// Why a campaign cannot be created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A number is outside its range.
    #[error("{field} is {value}, it must be {min} to {max}")]
    Range {
        /// Which field.
        field: &'static str,
        /// What it was.
        value: u64,
        /// The smallest value.
        min: u64,
        /// The largest value.
        max: u64,
    },
    /// The title is empty, too long or has control characters.
    #[error("{0}")]
    Title(Box<str>),
    /// It would close before it opens.
    #[error("closes_at must be later than opens_at")]
    Order,
    /// The intake topic's name is no good.
    #[error("intake_topic {0}")]
    Intake(&'static str),
    /// The code pattern is no good.
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

impl CampaignSpec {
    /// Checks every field against its limits and against the others.
    pub fn check(&self) -> Result<(), SpecError> {
        crate::ids::plain_text("title", &self.title, limits::TITLE_BYTES)
            .map_err(|e| SpecError::Title(e.to_string().into()))?;
        range("stock", self.stock, 1, limits::STOCK)?;
        range("per_user_limit", self.per_user_limit.into(), 1, limits::PER_USER.into())?;
        range("hold_seconds", self.hold_seconds.into(), 0, limits::HOLD_SECONDS.into())?;
        range("waitlist", self.waitlist, 0, limits::WAITLIST)?;
        if self.closes_at <= self.opens_at {
            return Err(SpecError::Order);
        }
        self.intake.as_ref().map_or(Ok(()), IntakeTopic::check)?;
        if let CodeSource::Pattern(pattern) = &self.codes {
            pattern.check_stock(self.stock)?;
        }
        Ok(())
    }
}

fn range(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), SpecError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(SpecError::Range { field, value, min, max }) }
}
