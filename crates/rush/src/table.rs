//! The closing table.

use std::io::{self, IsTerminal, Write};

use crate::outcome::Outcome;
use crate::report::Report;

/// How a row is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A figure.
    Plain,
    /// As it must be: green.
    Good,
    /// Wrong: red.
    Bad,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it is.
    pub label: String,
    /// The figure, aligned to the right.
    pub value: String,
    /// How to look at it.
    pub mark: Mark,
}

impl Row {
    /// A figure.
    pub fn new(label: impl Into<String>, value: impl Into<String>) -> Row {
        Row { label: label.into(), value: value.into(), mark: Mark::Plain }
    }

    /// A figure that is right or wrong.
    pub fn judged(label: impl Into<String>, value: impl Into<String>, good: bool) -> Row {
        Row { mark: if good { Mark::Good } else { Mark::Bad }, ..Row::new(label, value) }
    }
}

/// The report as a table, the caller's own rows below its figures, problems and the last word at the end.
/// `colour` uses ANSI colours.
pub fn table(report: &Report, extra: &[Row], colour: bool) -> String {
    let mut rows = rows(report);
    rows.extend_from_slice(extra);
    let label = rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0);
    let value = rows.iter().map(|row| row.value.chars().count()).max().unwrap_or(0);

    let mut out = heading(report);
    for row in &rows {
        // Padded before it is coloured: escape sequences have no width.
        let figure = format!("{:>value$}", row.value);
        out.push_str(&format!("  {:<label$}  {}\n", row.label, paint(&figure, row.mark, colour)));
    }
    out.push('\n');
    for problem in &report.problems {
        out.push_str(&paint(&format!("  {problem}\n"), Mark::Bad, colour));
    }
    let untold = report.problem_count.saturating_sub(report.problems.len() as u64);
    if !report.problems.is_empty() && untold > 0 {
        out.push_str(&format!("  {} problems altogether\n", count(report.problem_count)));
    }
    for note in &report.notes {
        out.push_str(&format!("  note: {note}\n"));
    }
    let (word, mark) = match (report.checked, report.exact) {
        (false, _) => ("not checked", Mark::Plain),
        (true, true) => ("exact", Mark::Good),
        (true, false) => ("NOT EXACT", Mark::Bad),
    };
    out.push_str(&format!("  {}\n", paint(word, mark, colour)));
    out
}

/// Writes the table to standard output, in colour if that is a terminal and `NO_COLOR` is not set.
pub fn print(report: &Report, extra: &[Row]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colour = stdout.is_terminal() && !no_colour;
    stdout.write_all(table(report, extra, colour).as_bytes())
}

fn heading(report: &Report) -> String {
    format!(
        "\n  {}: {} coupons, {} users, {} presses over {} connections (seed {})\n\n",
        report.campaign,
        count(report.stock),
        count(report.users),
        count(report.presses),
        count(report.connections),
        report.seed,
    )
}

fn rows(report: &Report) -> Vec<Row> {
    let none = |label, n: u64| {
        if report.checked { Row::judged(label, count(n), n == 0) } else { Row::new(label, "not checked") }
    };
    let mut rows = vec![
        Row::new("issued", count(report.issued)),
        none("oversold", report.oversold),
        none("issued twice", report.issued_twice),
        none("acknowledged but missing", report.acknowledged_but_missing),
    ];
    if report.remaining > 0 {
        rows.push(Row::new("left", count(report.remaining)));
    }
    for outcome in Outcome::ALL {
        let n = report.outcome(outcome);
        if n > 0 {
            let label = if outcome.is_refusal() {
                format!("refused: {}", outcome.words())
            } else {
                format!("answered: {}", outcome.words())
            };
            rows.push(Row::new(label, count(n)));
        }
    }
    for (label, n) in [("dropped connections", report.drops), ("retries", report.retries)] {
        if n > 0 {
            rows.push(Row::new(label, count(n)));
        }
    }
    if report.given_up > 0 {
        rows.push(Row::judged("given up without a verdict", count(report.given_up), false));
    }
    let latency = &report.latency;
    let quantiles = [
        ("latency p50", latency.p50_us),
        ("latency p99", latency.p99_us),
        ("latency p99.9", latency.p999_us),
        ("latency max", latency.max_us),
    ];
    rows.extend(quantiles.map(|(label, micros)| Row::new(label, millis(micros))));
    rows.push(Row::new("claims/s", count(report.claims_per_s as u64)));
    let times = [
        ("sold out after", report.sold_out_after_ms),
        ("last coupon in the ledger after", report.ledger_after_ms),
    ];
    for (label, ms) in times {
        if let Some(ms) = ms {
            rows.push(Row::new(label, format!("{} ms", count(ms))));
        }
    }
    if let Some(memory) = report.server_memory {
        let value = format!("{} (peak {})", bytes(memory.resident), bytes(memory.peak));
        rows.push(Row::new("server memory", value));
    }
    rows
}

fn paint(text: &str, mark: Mark, colour: bool) -> String {
    match mark {
        Mark::Good if colour => format!("\x1b[32m{text}\x1b[0m"),
        Mark::Bad if colour => format!("\x1b[31m{text}\x1b[0m"),
        _ => text.to_owned(),
    }
}

/// A number with its thousands apart: `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Microseconds as milliseconds: `1.23 ms`.
pub fn millis(micros: u64) -> String {
    format!("{:.2} ms", micros as f64 / 1_000.0)
}

/// Bytes as mebibytes: `12.3 MiB`.
pub fn bytes(n: u64) -> String {
    format!("{:.1} MiB", n as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(
            [0, 12, 999, 1_000, 1_234_567].map(count),
            ["0", "12", "999", "1,000", "1,234,567"].map(String::from)
        );
        assert_eq!(millis(1_234), "1.23 ms");
        assert_eq!(bytes(3 << 19), "1.5 MiB");
    }
}
