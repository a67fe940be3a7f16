//! What came of one request.

/// The outcome of one claim as the client sees it. The order is that of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Won,
    AlreadyWon,
    Waitlisted,
    SoldOut,
    NotOpen,
    Paused,
    Closed,
    /// 404: no such campaign.
    UnknownCampaign,
    /// 429: nothing was written, ask again.
    Throttled,
    /// 5xx: perhaps written, ask again.
    Unavailable,
    /// No answer: the connection broke or the answer took too long. Perhaps written, ask again.
    Lost,
    /// An answer that the contract does not have.
    Unexpected,
}

impl Outcome {
    pub(crate) const COUNT: usize = 12;
    pub(crate) const ALL: [Outcome; Outcome::COUNT] = [
        Outcome::Won,
        Outcome::AlreadyWon,
        Outcome::Waitlisted,
        Outcome::SoldOut,
        Outcome::NotOpen,
        Outcome::Paused,
        Outcome::Closed,
        Outcome::UnknownCampaign,
        Outcome::Throttled,
        Outcome::Unavailable,
        Outcome::Lost,
        Outcome::Unexpected,
    ];

    /// The verdict's stable name where it is a verdict.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Outcome::Won => "won",
            Outcome::AlreadyWon => "already_won",
            Outcome::Waitlisted => "waitlisted",
            Outcome::SoldOut => "sold_out",
            Outcome::NotOpen => "not_open",
            Outcome::Paused => "paused",
            Outcome::Closed => "closed",
            Outcome::UnknownCampaign => "unknown_campaign",
            Outcome::Throttled => "throttled",
            Outcome::Unavailable => "unavailable",
            Outcome::Lost => "lost",
            Outcome::Unexpected => "unexpected",
        }
    }

    /// The same in words, for the table.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Outcome::Won => "won",
            Outcome::AlreadyWon => "already won",
            Outcome::Waitlisted => "waitlisted",
            Outcome::SoldOut => "sold out",
            Outcome::NotOpen => "not open yet",
            Outcome::Paused => "paused",
            Outcome::Closed => "closed",
            Outcome::UnknownCampaign => "unknown campaign",
            Outcome::Throttled => "throttled (429)",
            Outcome::Unavailable => "unavailable (5xx)",
            Outcome::Lost => "no answer",
            Outcome::Unexpected => "unexpected",
        }
    }

    /// A decision about the claim, and not a fault on the way.
    pub(crate) fn is_verdict(self) -> bool {
        !matches!(self, Outcome::Throttled | Outcome::Unavailable | Outcome::Lost | Outcome::Unexpected)
    }

    /// A decision against the user.
    pub(crate) fn is_refusal(self) -> bool {
        self.is_verdict() && !matches!(self, Outcome::Won | Outcome::AlreadyWon | Outcome::Waitlisted)
    }

    /// The same claim may be answered differently a little later.
    pub(crate) fn asks_again(self) -> bool {
        matches!(
            self,
            Outcome::NotOpen | Outcome::Paused | Outcome::Throttled | Outcome::Unavailable | Outcome::Lost
        )
    }
}
