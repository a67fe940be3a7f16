//! Times as Kafka's tools take them.

use jiff::{Span, SpanRelativeTo, Timestamp, Unit, civil::DateTime};

/// Milliseconds since 1970 of `2026-07-01T12:00:00.000`, which is UTC, or of a time with a zone (`Z`, `+09:00`).
pub(super) fn datetime(text: &str) -> Result<i64, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time.as_millisecond());
    }
    let time: DateTime = text.parse().map_err(|_| {
        format!("{text} is not a time such as 2026-07-01T12:00:00.000 (UTC) or 2026-07-01T12:00:00+09:00")
    })?;
    let utc = time.to_zoned(jiff::tz::TimeZone::UTC).map_err(|e| e.to_string())?;
    Ok(utc.timestamp().as_millisecond())
}

/// Milliseconds of an ISO 8601 duration such as `P7D` or `PT1H30M`.
pub(super) fn duration(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text} is not a duration such as PT1H30M or P7D");
    let span: Span = text.parse().map_err(|_| wrong())?;
    let ms = span.total((Unit::Millisecond, SpanRelativeTo::days_are_24_hours())).map_err(|_| wrong())?;
    if ms < 0.0 { Err(wrong()) } else { Ok(ms as i64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_durations_are_read() {
        assert_eq!(datetime("1970-01-01T00:00:01.500"), Ok(1_500));
        assert_eq!(datetime("1970-01-01T09:00:00+09:00"), Ok(0));
        assert_eq!(datetime("1970-01-01T00:00:02Z"), Ok(2_000));
        assert!(datetime("yesterday").is_err());
        assert_eq!(duration("PT1H30M"), Ok(5_400_000));
        assert_eq!(duration("P1DT1S"), Ok(86_401_000));
        assert!(duration("-PT1H").is_err());
        assert!(duration("soon").is_err());
    }
}
