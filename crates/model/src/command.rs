//! The commands of the log and their JSON.
//!
//! A command is the value of a record of `dibs.claims`; the record's key is the campaign id. The JSON is small,
//! flat and readable with any Kafka consumer: `{"type":"claim","user":"u-1"}`. Unknown members are ignored, so
//! that a newer writer can add some; an unknown `type` is malformed.

use alloc::{borrow::Cow, boxed::Box, string::String, vec::Vec};

use serde::Deserialize;

use crate::{
    CampaignSpec, CodeSource, IntakeFormat, IntakeTopic, Pattern, Rank, RequestKey, Timestamp, UserId, limits,
};

/// The version of the rules by which `decide` judges a campaign, written into its `create`. An old log is
/// replayed by the rules it was written under; a version that this program does not know is malformed.
pub const RULES: u32 = 1;

/// One command to one campaign. Borrows from the record wherever the JSON has no escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Announces the campaign.
    Create(Box<CampaignSpec>),
    /// One user's request for a coupon.
    Claim {
        /// A valid user id.
        user: Cow<'a, str>,
        /// A valid request key; empty by default.
        key: Cow<'a, str>,
    },
    /// Keeps a held win.
    Confirm {
        /// Whose win.
        user: Cow<'a, str>,
        /// Which; the user's latest if absent.
        rank: Option<Rank>,
    },
    /// Gives up a win, or a place on the waitlist.
    Cancel {
        /// Whose win.
        user: Cow<'a, str>,
        /// Which; the user's latest if absent, or else the place on the waitlist.
        rank: Option<Rank>,
    },
    /// Releases a held win whose time has run out.
    Expire {
        /// Which win.
        rank: Rank,
    },
    /// Uses a coupon.
    Redeem {
        /// Which win's coupon.
        rank: Rank,
        /// Who used it: a till, a shop, a person. 1 to 128 bytes.
        by: Cow<'a, str>,
        /// The same key again is a retry.
        key: Cow<'a, str>,
    },
    /// Takes a use back.
    Unredeem {
        /// Which win's coupon.
        rank: Rank,
    },
    /// Adds to the stock.
    Restock {
        /// How many coupons more, at least 1.
        units: u64,
        /// The same key again is a retry; without one every restock counts.
        key: Cow<'a, str>,
    },
    /// Says how long the campaign's list of imported codes has become. Wins that came before their codes have
    /// them from here on. The codes themselves are records of `dibs.codes`, written before this one.
    Codes {
        /// Codes in the list, repetitions left out; at most [`limits::STOCK`].
        imported: u64,
    },
    /// Suspends claims.
    Pause,
    /// Ends a pause.
    Resume,
    /// Ends the campaign for good.
    Close,
}

/// Why a record is no command. It becomes a dead letter with this reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, or not of the command's form.
    #[error("not a command: {0}")]
    Json(Box<str>),
    /// A field is missing or outside its range.
    #[error("{0}")]
    Field(Box<str>),
    /// Larger than [`limits::COMMAND_BYTES`].
    #[error("a command is at most {max} bytes, this has {0}", max = limits::COMMAND_BYTES)]
    TooLarge(usize),
}

/// Every member that any command has. One flat struct decodes twice as fast as an internally tagged enum,
/// which would first copy the object to look for its tag.
#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    user: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    by: Option<Cow<'a, str>>,
    rank: Option<Rank>,
    units: Option<u64>,
    rules: Option<u32>,
    #[serde(borrow)]
    title: Option<Cow<'a, str>>,
    stock: Option<u64>,
    opens_at: Option<i64>,
    closes_at: Option<i64>,
    per_user_limit: Option<u32>,
    #[serde(borrow)]
    code_pattern: Option<Cow<'a, str>>,
    imported_codes: Option<bool>,
    imported: Option<u64>,
    hold_seconds: Option<u32>,
    waitlist: Option<u64>,
    #[serde(borrow)]
    intake_topic: Option<Cow<'a, str>>,
    #[serde(borrow)]
    intake_format: Option<Cow<'a, str>>,
}

impl<'a> Command<'a> {
    /// Reads a record's value.
    pub fn decode(value: &'a [u8]) -> Result<Command<'a>, Malformed> {
        if let Some(claim) = canonical_claim(value) {
            return Ok(claim);
        }
        if value.len() > limits::COMMAND_BYTES {
            return Err(Malformed::TooLarge(value.len()));
        }
        let raw: Raw<'a> = serde_json::from_slice(value).map_err(|e| Malformed::Json(text(e)))?;
        raw.into_command()
    }

    /// Appends the canonical JSON: members in the order of their declaration, no white space.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Command::Create(spec) => encode_create(spec, out),
            Command::Claim { user, key } => {
                let o = Object::of("claim", out).text("user", user);
                if key.is_empty() { o.end() } else { o.text("key", key).end() }
            }
            Command::Confirm { user, rank } => {
                Object::of("confirm", out).text("user", user).maybe("rank", *rank).end();
            }
            Command::Cancel { user, rank } => {
                Object::of("cancel", out).text("user", user).maybe("rank", *rank).end();
            }
            Command::Expire { rank } => Object::of("expire", out).number("rank", i64::from(*rank)).end(),
            Command::Redeem { rank, by, key } => {
                let o = Object::of("redeem", out).number("rank", i64::from(*rank)).text("by", by);
                if key.is_empty() { o.end() } else { o.text("key", key).end() }
            }
            Command::Unredeem { rank } => Object::of("unredeem", out).number("rank", i64::from(*rank)).end(),
            Command::Restock { units, key } => {
                let o = Object::of("restock", out).number("units", *units as i64);
                if key.is_empty() { o.end() } else { o.text("key", key).end() }
            }
            Command::Codes { imported } => {
                Object::of("codes", out).number("imported", *imported as i64).end();
            }
            Command::Pause => Object::of("pause", out).end(),
            Command::Resume => Object::of("resume", out).end(),
            Command::Close => Object::of("close", out).end(),
        }
    }

    /// [`Command::encode`] into a buffer of its own.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        self.encode(&mut out);
        out
    }
}

/// Recognises the bytes that [`Command::encode`] writes for nearly every claim (no escapes, printable ASCII),
/// which are nearly all records of a rush. Anything else takes the general way and means the same.
fn canonical_claim(value: &[u8]) -> Option<Command<'_>> {
    let rest = value.strip_prefix(br#"{"type":"claim","user":""#)?;
    let (user, rest) = plain(rest)?;
    let (key, rest) = match rest.strip_prefix(br#","key":""#) {
        Some(rest) => plain(rest)?,
        None => ("", rest),
    };
    let fits = (1..=limits::USER_ID_BYTES).contains(&user.len()) && key.len() <= limits::REQUEST_KEY_BYTES;
    (rest == b"}" && fits).then_some(Command::Claim { user: Cow::Borrowed(user), key: Cow::Borrowed(key) })
}

/// The text up to the closing quote if it is printable ASCII without a backslash, and what follows the quote.
fn plain(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|b| *b == b'"' || *b == b'\\' || !(0x20..0x7f).contains(b))?;
    if bytes[end] != b'"' {
        return None;
    }
    Some((core::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

impl<'a> Raw<'a> {
    fn into_command(self) -> Result<Command<'a>, Malformed> {
        Ok(match self.kind.as_ref() {
            "claim" => Command::Claim { user: self.user()?, key: self.key()? },
            "confirm" => Command::Confirm { user: self.user()?, rank: self.rank },
            "cancel" => Command::Cancel { user: self.user()?, rank: self.rank },
            "expire" => Command::Expire { rank: self.rank()? },
            "redeem" => Command::Redeem { rank: self.rank()?, by: self.by()?, key: self.key()? },
            "unredeem" => Command::Unredeem { rank: self.rank()? },
            "restock" => Command::Restock { units: self.units()?, key: self.key()? },
            "codes" => Command::Codes { imported: self.imported()? },
            "pause" => Command::Pause,
            "resume" => Command::Resume,
            "close" => Command::Close,
            "create" => Command::Create(Box::new(self.spec()?)),
            other => return Err(field(alloc::format!("there is no command {other:?}"))),
        })
    }

    fn user(&self) -> Result<Cow<'a, str>, Malformed> {
        let user = self.user.clone().ok_or_else(|| missing("user"))?;
        UserId::check(&user).map_err(|e| Malformed::Field(text(e)))?;
        Ok(user)
    }

    fn key(&self) -> Result<Cow<'a, str>, Malformed> {
        let key = self.key.clone().unwrap_or_default();
        RequestKey::check(&key).map_err(|e| Malformed::Field(text(e)))?;
        Ok(key)
    }

    fn by(&self) -> Result<Cow<'a, str>, Malformed> {
        let by = self.by.clone().ok_or_else(|| missing("by"))?;
        crate::ids::plain_text("by", &by, limits::REDEEMER_BYTES).map_err(|e| Malformed::Field(text(e)))?;
        Ok(by)
    }

    fn rank(&self) -> Result<Rank, Malformed> {
        self.rank.filter(|r| *r > 0).ok_or_else(|| missing("rank"))
    }

    fn units(&self) -> Result<u64, Malformed> {
        self.units.filter(|u| (1..=limits::STOCK).contains(u)).ok_or_else(|| missing("units"))
    }

    fn imported(&self) -> Result<u64, Malformed> {
        self.imported.filter(|n| *n <= limits::STOCK).ok_or_else(|| missing("imported"))
    }

    fn spec(self) -> Result<CampaignSpec, Malformed> {
        if self.rules.unwrap_or(RULES) != RULES {
            return Err(field(alloc::format!("rules {:?} are newer than this program", self.rules)));
        }
        let codes = match (&self.code_pattern, self.imported_codes) {
            (None, Some(true)) => CodeSource::Imported,
            (Some(_), Some(true)) => return Err(field("code_pattern and imported_codes exclude each other")),
            (Some(p), _) => CodeSource::Pattern(Pattern::new(p).map_err(|e| Malformed::Field(text(e)))?),
            (None, _) => CodeSource::Pattern(Pattern::default()),
        };
        let intake = match (self.intake_topic, self.intake_format) {
            (None, None) => None,
            (None, Some(_)) => return Err(field("intake_format needs an intake_topic")),
            (Some(topic), format) => {
                let format = IntakeFormat::parse(format.as_deref().unwrap_or("string"))
                    .ok_or_else(|| field("intake_format must be string, long or json"))?;
                Some(IntakeTopic { topic: topic.into_owned().into(), format })
            }
        };
        let spec = CampaignSpec {
            title: self.title.ok_or_else(|| missing("title"))?.into_owned().into(),
            stock: self.stock.ok_or_else(|| missing("stock"))?,
            opens_at: Timestamp(self.opens_at.unwrap_or(0)),
            closes_at: self.closes_at.map_or(Timestamp::NEVER, Timestamp),
            per_user_limit: self.per_user_limit.unwrap_or(1),
            codes,
            hold_seconds: self.hold_seconds.unwrap_or(0),
            waitlist: self.waitlist.unwrap_or(0),
            intake,
        };
        spec.check().map_err(|e| Malformed::Field(text(e)))?;
        Ok(spec)
    }
}

fn missing(name: &str) -> Malformed {
    field(alloc::format!("{name} is missing or out of range"))
}

fn field(message: impl Into<String>) -> Malformed {
    Malformed::Field(message.into().into())
}

fn text(e: impl alloc::string::ToString) -> Box<str> {
    e.to_string().into()
}

fn encode_create(spec: &CampaignSpec, out: &mut Vec<u8>) {
    let mut o = Object::of("create", out)
        .number("rules", i64::from(RULES))
        .text("title", &spec.title)
        .number("stock", spec.stock as i64)
        .number("opens_at", spec.opens_at.0);
    if spec.closes_at != Timestamp::NEVER {
        o = o.number("closes_at", spec.closes_at.0);
    }
    o = o.number("per_user_limit", i64::from(spec.per_user_limit));
    o = match &spec.codes {
        CodeSource::Pattern(pattern) => o.text("code_pattern", pattern.as_str()),
        CodeSource::Imported => o.raw("imported_codes", b"true"),
    };
    o = o.number("hold_seconds", i64::from(spec.hold_seconds)).number("waitlist", spec.waitlist as i64);
    if let Some(intake) = &spec.intake {
        o = o.text("intake_topic", &intake.topic).text("intake_format", intake.format.name());
    }
    o.end();
}

/// Writes one flat JSON object.
struct Object<'o>(&'o mut Vec<u8>);

impl<'o> Object<'o> {
    fn of(kind: &str, out: &'o mut Vec<u8>) -> Self {
        out.extend_from_slice(br#"{"type":""#);
        out.extend_from_slice(kind.as_bytes());
        out.push(b'"');
        Object(out)
    }

    fn raw(self, name: &str, value: &[u8]) -> Self {
        self.0.extend_from_slice(br#",""#);
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(br#"":"#);
        self.0.extend_from_slice(value);
        self
    }

    fn text(self, name: &str, value: &str) -> Self {
        let this = self.raw(name, b"");
        json_string(value, this.0);
        this
    }

    fn number(self, name: &str, value: i64) -> Self {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        let mut left = value.unsigned_abs();
        loop {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        if value < 0 {
            at -= 1;
            digits[at] = b'-';
        }
        self.raw(name, &digits[at..])
    }

    fn maybe(self, name: &str, value: Option<Rank>) -> Self {
        match value {
            Some(value) => self.number(name, i64::from(value)),
            None => self,
        }
    }

    fn end(self) {
        self.0.push(b'}');
    }
}

/// Appends `value` as a JSON string, quotes included.
pub fn json_string(value: &str, out: &mut Vec<u8>) {
    if value.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    } else {
        serde_json::to_writer(out, value).expect("a string always serialises into memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    #[test]
    fn the_json_is_small_and_stable() {
        let spec = CampaignSpec {
            title: "Summer".into(),
            stock: 1_000,
            opens_at: Timestamp(1_700_000_000_000),
            closes_at: Timestamp::NEVER,
            per_user_limit: 1,
            codes: CodeSource::Pattern(Pattern::default()),
            hold_seconds: 0,
            waitlist: 0,
            intake: None,
        };
        let intake = Some(IntakeTopic { topic: "coupon_create".into(), format: IntakeFormat::Long });
        let lines = [
            Command::Create(Box::new(spec.clone())),
            Command::Create(Box::new(CampaignSpec { intake, ..spec })),
            Command::Claim { user: "u".into(), key: "".into() },
            Command::Claim { user: "u\"".into(), key: "k".into() },
            Command::Confirm { user: "u".into(), rank: Some(3) },
            Command::Cancel { user: "u".into(), rank: None },
            Command::Expire { rank: 3 },
            Command::Redeem { rank: 3, by: "till 7".into(), key: "".into() },
            Command::Unredeem { rank: 3 },
            Command::Restock { units: 10, key: "r1".into() },
            Command::Codes { imported: 5 },
            Command::Pause,
            Command::Resume,
            Command::Close,
        ]
        .map(|c| String::from_utf8(c.to_json()).unwrap());
        assert_eq!(lines.join("\n"), include_str!("../testdata/commands.jsonl").trim_end());
        for line in &lines {
            assert_eq!(Command::decode(line.as_bytes()).unwrap().to_json(), line.as_bytes());
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let wrong = |json: &str| Command::decode(json.as_bytes()).unwrap_err().to_string();
        assert_eq!(wrong(r#"{"type":"claim"}"#), "user is missing or out of range");
        assert_eq!(wrong(r#"{"type":"claim","user":""}"#), "user id is empty");
        assert_eq!(wrong(r#"{"type":"clam","user":"u"}"#), r#"there is no command "clam""#);
        assert!(wrong("[]").starts_with("not a command"));
        assert!(wrong("").starts_with("not a command"));
        assert!(Command::decode(br#"{"type":"claim","user":"u","user":"v"}"#).is_err());
        assert!(Command::decode(&[0xff; 9]).is_err());
        let huge = alloc::format!(r#"{{"type":"claim","user":"u","x":"{}"}}"#, "y".repeat(5_000));
        assert!(wrong(&huge).contains("at most 4096 bytes"));
    }

    proptest! {
        /// The short way and the general way agree: white space forces the general one.
        #[test]
        fn both_ways_of_decoding_agree(user in "[ -~]{1,40}|\\PC{1,20}", key in "[ -~]{0,20}") {
            let json = Command::Claim { user: user.as_str().into(), key: key.as_str().into() }.to_json();
            let mut spaced = json.clone();
            spaced.insert(1, b' ');
            let direct = Command::decode(&json);
            prop_assert_eq!(&direct, &Command::decode(&spaced));
            prop_assert_eq!(direct.unwrap(), Command::Claim { user: user.as_str().into(), key: key.as_str().into() });
        }

        /// No bytes panic, and what decodes encodes to something that decodes to the same.
        #[test]
        fn decoding_is_total(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(command) = Command::decode(&value) {
                let json = command.to_json();
                prop_assert_eq!(&Command::decode(&json).unwrap(), &command);
            }
        }
    }
}
