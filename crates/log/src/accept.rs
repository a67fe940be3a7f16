//! What is taken from a producer, before any lock.

use std::borrow::Cow;

use crate::{
    AppendError,
    batch::{Batch, BatchBuilder, BatchError, BatchHeader, Record, recompress, retime},
    config::{TimestampType, TopicConfig},
    producers::{Marker, ProducerError},
};

/// A batch's producer said nothing of its time.
const NO_TIMESTAMP: i64 = -1;

/// So many wrong records of a batch are named; its producer learns of others when it has mended these.
pub const NAMED_RECORDS: usize = 10_000;

/// Checks a producer's batch, and returns it as it goes into the log, but for its base offset.
pub(crate) fn accept<'a>(
    bytes: &'a [u8],
    config: &TopicConfig,
    now: Option<i64>,
) -> Result<(Cow<'a, [u8]>, BatchHeader), AppendError> {
    let max = config.max_message_bytes;
    if bytes.len() > max {
        return Err(AppendError::TooLarge { size: bytes.len(), max });
    }
    let batch = Batch::parse(bytes)?;
    let header = batch.header;
    if batch.bytes.len() != bytes.len() {
        return Err(BatchError::Truncated { need: batch.bytes.len(), have: bytes.len() }.into());
    }
    if header.is_control() {
        return Err(ProducerError::Control.into());
    }
    if header.records_count == 0 || !header.is_dense() {
        return Err(BatchError::Header("offsets without records").into());
    }
    if header.is_log_append_time() || header.delete_horizon().is_some() {
        return Err(AppendError::Timestamp { time: header.max_timestamp, records: Vec::new() });
    }
    let times = look(&batch, config)?;
    if let Some(now) = now
        && config.timestamp_type == TimestampType::CreateTime
    {
        let early = |time| time != NO_TIMESTAMP && now.saturating_sub(time) > config.timestamp_before_max_ms;
        let late = |time: i64| time.saturating_sub(now) > config.timestamp_after_max_ms;
        let wrong = |time| early(time) || late(time);
        if let Some(time) = [times.0, times.1].into_iter().find(|&time| wrong(time)) {
            let records = named(&batch, |record| wrong(record.timestamp))?;
            return Err(AppendError::Timestamp { time, records });
        }
    }
    let mut bytes = Cow::Borrowed(bytes);
    if times.1 != header.max_timestamp {
        retime(bytes.to_mut(), times.1);
    }
    if config.codec.is_some_and(|codec| codec != header.compression()) {
        let codec = config.codec.unwrap_or(0);
        let packed = recompress(&Batch::parse(&bytes)?, codec)?;
        if packed.len() > max {
            return Err(AppendError::TooLarge { size: packed.len(), max });
        }
        bytes = Cow::Owned(packed);
    }
    let header = BatchHeader::parse(&bytes)?;
    Ok((bytes, header))
}

/// Checks the records, as far as they can be seen or have to be, and returns their smallest and largest
/// timestamp. Of compressed ones the header is believed.
fn look(batch: &Batch<'_>, config: &TopicConfig) -> Result<(i64, i64), AppendError> {
    let header = &batch.header;
    if header.compression() != 0 && !config.compact {
        if header.compression() > 4 {
            return Err(BatchError::Codec(header.compression()).into());
        }
        return Ok((header.base_timestamp, header.max_timestamp));
    }
    let mut buffer = Vec::new();
    let (mut first, mut last) = (i64::MAX, i64::MIN);
    for record in batch.records_in(&mut buffer)? {
        let record = record?;
        if config.compact && record.key.is_none() {
            return Err(AppendError::NoKey { records: named(batch, |record| record.key.is_none())? });
        }
        first = first.min(record.timestamp);
        last = last.max(record.timestamp);
    }
    Ok((first, last))
}

/// Where in a batch the records are of which `is` holds.
fn named(batch: &Batch<'_>, is: impl Fn(&Record<'_>) -> bool) -> Result<Vec<u32>, BatchError> {
    let (mut buffer, mut named) = (Vec::new(), Vec::new());
    for (index, record) in (0..).zip(batch.records_in(&mut buffer)?) {
        if named.len() < NAMED_RECORDS && is(&record?) {
            named.push(index);
        }
    }
    Ok(named)
}

/// The control batch of a transaction's end, and its header.
pub(crate) fn marker_batch(marker: &Marker, now: i64) -> (Vec<u8>, BatchHeader) {
    let mut builder = BatchBuilder::new();
    // Key: version and type (0 abort, 1 commit). Value: version and coordinator epoch.
    let key = [0, 0, 0, u8::from(marker.commit)];
    let mut value = [0; 6];
    value[2..].copy_from_slice(&marker.coordinator_epoch.to_be_bytes());
    builder.producer(marker.producer_id, marker.producer_epoch, -1);
    builder.control();
    builder.push(Some(&key), Some(&value));
    let bytes = builder.finish(now);
    let header = BatchHeader::parse(&bytes).expect("a batch that was just built");
    (bytes, header)
}
