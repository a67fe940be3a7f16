//! The first step: may this claim go into the log?
//!
//! The gate refuses only what the log has already decided, and by the clock what is surely too early or too late
//! (ARCHITECTURE: invariant 1). It limits the claims in flight to what can still win plus a slack, so that a rush
//! of a million claims for a thousand coupons appends little more than a thousand records.

use dibs_decide::{Campaign, Phase, Win};
use dibs_model::{Timestamp, Verdict, limits::SKEW_MS};

/// Claims of one campaign that may be in flight beyond its free units. Large enough that a commit group is
/// never short of records, small against any stock that a rush is about.
pub const SLACK: u64 = 1_024;

/// What the gate says to one claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Append it.
    Admit,
    /// It was decided before: this is the verdict.
    Refuse(Verdict),
    /// As many claims are in flight as could win: wait for the decider to move, then ask again.
    Hold,
}

/// Judges a claim by what has been decided so far. `now` is this node's clock, `decided` the log's own time,
/// `in_flight` the claims of this campaign that are appended and not decided.
pub fn judge(
    campaign: &Campaign,
    user: &str,
    key: &str,
    now: Timestamp,
    decided: Timestamp,
    in_flight: u64,
) -> Gate {
    if let Some(Win { rank, .. }) = campaign.held_by(user, key) {
        return Gate::Refuse(Verdict::AlreadyWon { rank });
    }
    let spec = campaign.spec();
    if now.0.saturating_add(SKEW_MS) < spec.opens_at.0 && decided < spec.opens_at {
        return Gate::Refuse(Verdict::NotOpen);
    }
    // The log's time never goes back: what it has passed is decided. Before the opening, or near the closing by
    // this node's clock, only the log may say.
    match campaign.phase_at(decided.max(spec.opens_at)) {
        Phase::Paused => return Gate::Refuse(Verdict::Paused),
        Phase::Closed => return Gate::Refuse(Verdict::Closed),
        _ if now.0.saturating_sub(SKEW_MS) >= spec.closes_at.0 => return Gate::Refuse(Verdict::Closed),
        Phase::SoldOut => {
            if let Some(position) = campaign.position_of(user) {
                return Gate::Refuse(Verdict::Waitlisted { position });
            }
            if !campaign.can_wait() {
                return Gate::Refuse(Verdict::SoldOut);
            }
        }
        Phase::Open | Phase::Scheduled => {}
    }
    let room = campaign.free().saturating_add(spec.waitlist - campaign.waiting().min(spec.waitlist));
    if in_flight < room.saturating_add(SLACK) { Gate::Admit } else { Gate::Hold }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dibs_decide::State;

    const T: i64 = 1_000_000;

    fn state(extra: &[&str]) -> State {
        let mut state = State::new(1);
        let create =
            format!(r#"{{"type":"create","title":"t","stock":1,"opens_at":{T},"closes_at":{}}}"#, T + 10_000);
        let mut events = Vec::new();
        for (i, line) in std::iter::once(create.as_str()).chain(extra.iter().copied()).enumerate() {
            let time = if i == 0 { 0 } else { T };
            state.apply_record(i as u64, Timestamp(time), Some(b"c"), Some(line.as_bytes()), &mut events);
        }
        state
    }

    fn ask(state: &State, user: &str, now: i64, in_flight: u64) -> Gate {
        let campaign = state.campaign("c").unwrap();
        judge(campaign, user, "", Timestamp(now), state.now(), in_flight)
    }

    #[test]
    fn near_the_edges_the_log_decides() {
        let fresh = state(&[]);
        assert_eq!(ask(&fresh, "u", T - SKEW_MS - 1, 0), Gate::Refuse(Verdict::NotOpen));
        assert_eq!(ask(&fresh, "u", T - SKEW_MS, 0), Gate::Admit);
        assert_eq!(ask(&fresh, "u", T + 10_000 + SKEW_MS - 1, 0), Gate::Admit);
        assert_eq!(ask(&fresh, "u", T + 10_000 + SKEW_MS, 0), Gate::Refuse(Verdict::Closed));
    }

    #[test]
    fn refuses_only_what_is_decided() {
        let won = state(&[r#"{"type":"claim","user":"u"}"#]);
        assert_eq!(ask(&won, "u", T, 0), Gate::Refuse(Verdict::AlreadyWon { rank: 1 }));
        assert_eq!(ask(&won, "v", T, 0), Gate::Refuse(Verdict::SoldOut));
        // A clock far behind does not turn a decided opening back into "not open".
        assert_eq!(ask(&won, "v", 0, 0), Gate::Refuse(Verdict::SoldOut));
        let paused = state(&[r#"{"type":"pause"}"#]);
        assert_eq!(ask(&paused, "v", T, 0), Gate::Refuse(Verdict::Paused));
    }

    #[test]
    fn holds_what_could_not_win() {
        let fresh = state(&[]);
        assert_eq!(ask(&fresh, "u", T, SLACK), Gate::Admit);
        assert_eq!(ask(&fresh, "u", T, SLACK + 1), Gate::Hold);
    }
}
