//! What the API shows: campaigns, wins, times.

use dibs_decide::{Campaign, Status, Win};
use dibs_flow::{Flow, Partition, now};
use dibs_model::{CodeSource, Offset, Timestamp, Verdict, command::json_string};
use serde_json::{Value, json};

/// RFC 3339 in UTC with milliseconds.
pub(crate) fn time(t: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(t.0).map_or_else(|_| "never".into(), |t| format!("{t:.3}"))
}

/// Reads RFC 3339.
pub(crate) fn parse_time(text: &str) -> Result<Timestamp, String> {
    text.parse::<jiff::Timestamp>()
        .map(|t| Timestamp(t.as_millisecond()))
        .map_err(|_| format!("{text:?} is not a time; write it as 2026-07-01T12:00:00Z"))
}

/// A campaign, as every call answers it.
pub(crate) fn campaign(c: &Campaign, partition: &Partition, decided: Timestamp) -> Value {
    let spec = c.spec();
    let mut shown = json!({
        "id": c.id().as_str(),
        "title": &*spec.title,
        "state": c.phase_at(now().max(decided)).name(),
        "stock": c.stock(),
        "won": c.live(),
        "held": c.held(),
        "remaining": c.free(),
        "issued": partition.issuance.issued(c.id()),
        "waitlisted": c.waiting(),
        "opens_at": time(spec.opens_at),
        "per_user_limit": spec.per_user_limit,
        "hold_seconds": spec.hold_seconds,
        "waitlist": spec.waitlist,
        "partition": partition.number,
        "created_offset": c.created(),
    });
    if spec.closes_at != Timestamp::NEVER {
        shown["closes_at"] = time(spec.closes_at).into();
    }
    match &spec.codes {
        CodeSource::Pattern(pattern) => shown["code_pattern"] = pattern.as_str().into(),
        CodeSource::Imported => shown["imported_codes"] = true.into(),
    }
    if let Some(intake) = &spec.intake {
        shown["intake_topic"] = (&*intake.topic).into();
        shown["intake_format"] = intake.format.name().into();
    }
    shown
}

/// A win as it is written out. Built by hand: this is the answer of the hot path.
pub(crate) struct WinView<'a> {
    pub(crate) verdict: &'a str,
    pub(crate) campaign: &'a Campaign,
    pub(crate) win: Win<'a>,
    pub(crate) receipt: &'a str,
}

impl WinView<'_> {
    pub(crate) fn write(&self, flow: &Flow, partition: &Partition, out: &mut Vec<u8>) {
        use std::io::Write;
        let (c, win) = (self.campaign, &self.win);
        out.extend_from_slice(br#"{"verdict":""#);
        out.extend_from_slice(self.verdict.as_bytes());
        out.extend_from_slice(br#"","campaign":"#);
        json_string(c.id().as_str(), out);
        out.extend_from_slice(br#","user":"#);
        json_string(win.user, out);
        write!(out, r#","rank":{},"state":"{}""#, win.rank, win.status.name()).expect("writing into memory");
        if let Some(deadline) = c.confirm_by(win.rank) {
            write!(out, r#","confirm_by":"{}""#, time(deadline)).expect("writing into memory");
        }
        if let (true, Some(code)) = (win.issued, flow.codes().code(c, win.rank)) {
            out.extend_from_slice(br#","code":"#);
            json_string(&code, out);
        }
        write!(
            out,
            r#","claim":{{"partition":{},"offset":{},"timestamp":"{}"}}"#,
            partition.number,
            win.offset,
            time(win.timestamp)
        )
        .expect("writing into memory");
        if win.issued {
            write_issuance(flow, partition, c, win.rank, win.decided, out);
        }
        if let Some(used) = c.redemption(win.rank) {
            out.extend_from_slice(br#","redeemed_by":"#);
            json_string(&used.by, out);
            write!(out, r#","redeemed_at":"{}""#, time(used.at)).expect("writing into memory");
        }
        out.extend_from_slice(br#","receipt":""#);
        out.extend_from_slice(self.receipt.as_bytes());
        out.extend_from_slice(br#""}"#);
    }
}

/// Where a coupon stands on its way into the ledger.
fn write_issuance(
    flow: &Flow,
    partition: &Partition,
    campaign: &Campaign,
    rank: u32,
    decided: Offset,
    out: &mut Vec<u8>,
) {
    use std::io::Write;
    if decided < partition.issuance.next_offset() {
        out.extend_from_slice(br#","issuance":{"state":"issued"}"#);
        return;
    }
    let position = u64::from(rank).saturating_sub(partition.issuance.issued(campaign.id())).max(1);
    write!(out, r#","issuance":{{"state":"pending","position":{position}"#).expect("writing into memory");
    if let Some(rate) = flow.issue_rate().or_else(|| partition.issuance.rate()) {
        write!(out, r#","eta_ms":{}"#, position * 1_000 / rate).expect("writing into memory");
    }
    out.push(b'}');
}

/// A win found later: with a receipt signed for it alone.
pub(crate) fn win(
    flow: &Flow,
    partition: &Partition,
    campaign: &Campaign,
    win: Win<'_>,
    verdict: Option<Verdict>,
) -> Vec<u8> {
    let receipt = flow.signatory().sign(&dibs_flow::receipt::Claimed {
        campaign: campaign.id().as_str().into(),
        user: win.user.into(),
        partition: partition.number,
        offset: win.offset,
        timestamp: win.timestamp.0,
        rank: win.rank,
    });
    let verdict = verdict.map_or(if win.status == Status::Held { "held" } else { "won" }, Verdict::name);
    let mut out = Vec::with_capacity(768);
    WinView { verdict, campaign, win, receipt: &receipt }.write(flow, partition, &mut out);
    out
}
