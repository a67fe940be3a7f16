//! Identifiers and the two axes of the log: offset and time.

use alloc::{boxed::Box, string::String};
use core::fmt;

use crate::limits;

/// Position of a record in a partition: the arrival order. Kafka's 64-bit offset, never negative here.
pub type Offset = u64;
/// Number of a partition within its topic.
pub type Partition = u32;
/// The winner's number in order, from 1. A rank is given once and never reused, even when the win is
/// cancelled or expires, so that a coupon code can never pass from one user to another.
pub type Rank = u32;

/// Milliseconds since the Unix epoch, as Kafka writes them. Always the log's own time, never a client's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Later than every real time: the closing of a campaign that has none.
    pub const NEVER: Timestamp = Timestamp(i64::MAX);

    /// This time plus `seconds`, saturating at [`Timestamp::NEVER`].
    pub fn plus_seconds(self, seconds: u32) -> Timestamp {
        Timestamp(self.0.saturating_add(i64::from(seconds) * 1_000))
    }
}

/// Why a text is not an identifier. The message says what would be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("{what} is empty")]
    Empty {
        /// Which identifier.
        what: &'static str,
    },
    /// The text is longer than its limit.
    #[error("{what} is {len} bytes long, at most {max} are allowed")]
    TooLong {
        /// Which identifier.
        what: &'static str,
        /// Its length, in bytes.
        len: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// The text has a character that is not allowed.
    #[error("{what} has the character {found:?}; allowed are {allowed}")]
    Character {
        /// Which identifier.
        what: &'static str,
        /// The first offending character.
        found: char,
        /// What is allowed instead.
        allowed: &'static str,
    },
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// Takes the text if it is a valid identifier.
            pub fn new(text: &str) -> Result<Self, IdError> {
                Self::check(text)?;
                Ok(Self(text.into()))
            }

            /// Says whether the text is a valid identifier, without taking it.
            pub fn check(text: &str) -> Result<(), IdError> {
                let check: fn(&str) -> Result<(), IdError> = $check;
                check(text)
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl core::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::check(&text)?;
                Ok(Self(text.into_boxed_str()))
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl core::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// Names a campaign. 1 to 64 ASCII letters, digits, `.`, `_` and `-`, not starting with `.` or `-`: it is a
    /// record key, a path segment and a metric label.
    CampaignId,
    |text| {
        bounded("campaign id", text, limits::CAMPAIGN_ID_BYTES)?;
        let bad = |(i, c): &(usize, char)| {
            !(c.is_ascii_alphanumeric() || *c == '_' || (*i > 0 && (*c == '-' || *c == '.')))
        };
        match text.char_indices().find(bad) {
            None => Ok(()),
            Some((_, found)) => Err(IdError::Character {
                what: "campaign id",
                found,
                allowed: "ASCII letters, digits, '_', and after the first character also '-' and '.'",
            }),
        }
    }
);

text_id!(
    /// Names a user. 1 to 128 bytes of UTF-8 without control characters; Dibs does not interpret it.
    UserId,
    |text| {
        bounded("user id", text, limits::USER_ID_BYTES)?;
        no_control("user id", text)
    }
);

text_id!(
    /// Tells two presses of one user from one press and its retry (`Idempotency-Key`). At most 64 bytes of
    /// UTF-8 without control characters; the default is empty.
    RequestKey,
    |text| {
        if text.is_empty() {
            return Ok(());
        }
        bounded("request key", text, limits::REQUEST_KEY_BYTES)?;
        no_control("request key", text)
    }
);

/// Checks a text that is not empty, not longer than `max` bytes and has no control character.
pub(crate) fn plain_text(what: &'static str, text: &str, max: usize) -> Result<(), IdError> {
    bounded(what, text, max)?;
    no_control(what, text)
}

fn bounded(what: &'static str, text: &str, max: usize) -> Result<(), IdError> {
    match text.len() {
        0 => Err(IdError::Empty { what }),
        len if len > max => Err(IdError::TooLong { what, len, max }),
        _ => Ok(()),
    }
}

fn no_control(what: &'static str, text: &str) -> Result<(), IdError> {
    // Nearly every id is printable ASCII: one pass over the bytes settles it without decoding.
    if text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return Ok(());
    }
    match text.chars().find(|c| c.is_control()) {
        None => Ok(()),
        Some(found) => {
            Err(IdError::Character { what, found, allowed: "all of Unicode but control characters" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn campaign_ids_are_path_segments() {
        for good in ["a", "summer-2026", "A_1.b", "0"] {
            assert!(CampaignId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "a/b", "a b", "여름", "a\n", &"x".repeat(65)] {
            assert!(CampaignId::new(bad).is_err(), "{bad}");
        }
        assert_eq!(
            CampaignId::new("a/b").unwrap_err().to_string(),
            "campaign id has the character '/'; allowed are ASCII letters, digits, '_', and after the first \
             character also '-' and '.'"
        );
    }

    #[test]
    fn user_ids_are_any_text_without_controls() {
        for good in ["1", "김철수", "a/b", "a b", "u@example.com"] {
            assert!(UserId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a\0", "a\u{85}", &"x".repeat(129)] {
            assert!(UserId::new(bad).is_err(), "{bad:?}");
        }
        assert!(RequestKey::new("").is_ok());
    }
}
