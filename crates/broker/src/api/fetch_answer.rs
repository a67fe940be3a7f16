//! FetchResponse. It is written by hand, for its records do not pass through memory: they are pieces of the log's
//! files. A test holds it to the codec.

use bytes::BufMut;
use dibs_log::FileRange;
use kafka_protocol::{ResponseError, messages::TopicName};
use uuid::Uuid;

use crate::wire::{Reply, Response, put_varint};

/// The first version with tags and short lengths.
const FLEXIBLE: i16 = 12;
/// Anybody may be read from: there is one broker.
const NO_REPLICA: i32 = -1;

#[derive(Default)]
pub(crate) struct FetchAnswer {
    pub(super) throttle_ms: i32,
    pub(super) error: Option<ResponseError>,
    pub(super) session_id: i32,
    pub(super) topics: Vec<TopicAnswer>,
}

/// A topic as it was asked for: by its id, or by its name before version 13.
#[derive(Clone)]
pub(super) struct TopicAnswer {
    pub(super) name: TopicName,
    pub(super) id: Uuid,
    pub(super) partitions: Vec<PartitionAnswer>,
}

#[derive(Clone)]
pub(super) struct PartitionAnswer {
    pub(super) index: i32,
    pub(super) error: Option<ResponseError>,
    /// −1 with an error, as are the next two.
    pub(super) high_watermark: i64,
    pub(super) last_stable: i64,
    pub(super) log_start: i64,
    /// Aborted transactions: the producer's id, and the first offset. `None` for who reads what is not committed too.
    pub(super) aborted: Option<Vec<(i64, i64)>>,
    pub(super) records: Option<FileRange>,
}

impl PartitionAnswer {
    pub(super) fn failed(index: i32, error: ResponseError) -> PartitionAnswer {
        PartitionAnswer {
            index,
            error: Some(error),
            high_watermark: -1,
            last_stable: -1,
            log_start: -1,
            aborted: Some(Vec::new()),
            records: None,
        }
    }
}

impl Response for FetchAnswer {
    fn has_tags(version: i16) -> bool {
        version >= FLEXIBLE
    }

    fn write(&self, out: &mut Reply, version: i16) -> Result<(), String> {
        out.bytes.put_i32(self.throttle_ms);
        if version >= 7 {
            out.bytes.put_i16(code(self.error));
            out.bytes.put_i32(self.session_id);
        }
        put_length(out, version, Some(self.topics.len()))?;
        for topic in &self.topics {
            if version >= 13 {
                out.bytes.put_slice(topic.id.as_bytes());
            } else {
                put_text(out, version, &topic.name.0)?;
            }
            put_length(out, version, Some(topic.partitions.len()))?;
            topic.partitions.iter().try_for_each(|partition| partition.write(out, version))?;
            put_no_tags(out, version);
        }
        put_no_tags(out, version);
        Ok(())
    }
}

impl PartitionAnswer {
    fn write(&self, out: &mut Reply, version: i16) -> Result<(), String> {
        out.bytes.put_i32(self.index);
        out.bytes.put_i16(code(self.error));
        out.bytes.put_i64(self.high_watermark);
        out.bytes.put_i64(self.last_stable);
        if version >= 5 {
            out.bytes.put_i64(self.log_start);
        }
        put_length(out, version, self.aborted.as_ref().map(Vec::len))?;
        for &(producer_id, first_offset) in self.aborted.iter().flatten() {
            out.bytes.put_i64(producer_id);
            out.bytes.put_i64(first_offset);
            put_no_tags(out, version);
        }
        if version >= 11 {
            out.bytes.put_i32(NO_REPLICA);
        }
        put_length(out, version, Some(self.records.as_ref().map_or(0, |r| r.length as usize)))?;
        if let Some(records) = &self.records {
            out.put_file(records).map_err(|e| format!("records could not be read: {e}"))?;
        }
        put_no_tags(out, version);
        Ok(())
    }
}

fn code(error: Option<ResponseError>) -> i16 {
    error.map_or(0, |e| e.code())
}

fn put_text(out: &mut Reply, version: i16, text: &str) -> Result<(), String> {
    if version >= FLEXIBLE {
        put_length(out, version, Some(text.len()))?;
    } else {
        out.bytes.put_i16(i16::try_from(text.len()).map_err(|e| e.to_string())?);
    }
    out.bytes.put_slice(text.as_bytes());
    Ok(())
}

/// The length of an array, or of bytes; `None` for none at all.
fn put_length(out: &mut Reply, version: i16, length: Option<usize>) -> Result<(), String> {
    let length = length.map(i32::try_from).transpose().map_err(|e| e.to_string())?;
    if version >= FLEXIBLE {
        put_varint(&mut out.bytes, length.map_or(0, |length| length as usize + 1));
    } else {
        out.bytes.put_i32(length.unwrap_or(-1));
    }
    Ok(())
}

fn put_no_tags(out: &mut Reply, version: i16) {
    if version >= FLEXIBLE {
        out.bytes.put_u8(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use dibs_log::{MemoryStorage, Storage};
    use kafka_protocol::{
        messages::{FetchResponse, fetch_response::*},
        protocol::{Decodable, StrBytes},
    };

    use super::*;

    static CONTENT: [u8; 100_000] = [7; 100_000];

    /// The records of an answer, short enough to be copied or not.
    fn records(length: u64) -> FileRange {
        let file = MemoryStorage::new(0).open("file", true).unwrap();
        file.write_at(&CONTENT, 0).unwrap();
        FileRange { file: Arc::from(file), position: 3, length, until: 9 }
    }

    fn answer() -> FetchAnswer {
        let partition = |index, records, aborted| PartitionAnswer {
            index,
            error: None,
            high_watermark: 30,
            last_stable: 20,
            log_start: 10,
            aborted,
            records,
        };
        let partitions = vec![
            partition(1, Some(records(90_000)), Some(vec![(77, 11)])),
            PartitionAnswer::failed(2, ResponseError::OffsetOutOfRange),
            partition(3, Some(records(200)), None),
            partition(4, None, Some(vec![])),
        ];
        let topic = TopicAnswer {
            name: TopicName(StrBytes::from_static_str("t")),
            id: Uuid::from_u128(5),
            partitions,
        };
        FetchAnswer { throttle_ms: 8, error: None, session_id: 9, topics: vec![topic.clone(), topic] }
    }

    /// The same answer as the codec has it.
    fn expected(version: i16) -> FetchResponse {
        let partition = |p: PartitionAnswer| {
            let aborted = |(id, first): (i64, i64)| {
                AbortedTransaction::default().with_producer_id(id.into()).with_first_offset(first)
            };
            let length = p.records.map_or(0, |r| r.length as usize);
            PartitionData::default()
                .with_partition_index(p.index)
                .with_error_code(code(p.error))
                .with_high_watermark(p.high_watermark)
                .with_last_stable_offset(p.last_stable)
                .with_log_start_offset(if version >= 5 { p.log_start } else { -1 })
                .with_aborted_transactions(p.aborted.map(|all| all.into_iter().map(aborted).collect()))
                .with_records(Some(Bytes::copy_from_slice(&CONTENT[..length])))
        };
        let topic = |t: TopicAnswer| {
            let topic = FetchableTopicResponse::default()
                .with_partitions(t.partitions.into_iter().map(partition).collect());
            if version >= 13 { topic.with_topic_id(t.id) } else { topic.with_topic(t.name) }
        };
        let FetchAnswer { throttle_ms, session_id, topics, .. } = answer();
        FetchResponse::default()
            .with_throttle_time_ms(throttle_ms)
            .with_session_id(if version >= 7 { session_id } else { 0 })
            .with_responses(topics.into_iter().map(topic).collect())
    }

    #[test]
    fn it_is_what_the_codec_reads() {
        for version in 4..=18 {
            let frame = Reply::frame(1, version, &answer()).unwrap();
            assert!(frame.bytes.len() < 10_000, "{frame:?}");
            let mut bytes = frame.flat();
            let length = bytes.split_to(4);
            assert_eq!(*length, (bytes.len() as i32).to_be_bytes());
            let _ = bytes.split_to(if version >= FLEXIBLE { 5 } else { 4 });
            assert_eq!(FetchResponse::decode(&mut bytes, version).unwrap(), expected(version));
            assert!(bytes.is_empty(), "version {version}: {} bytes too many", bytes.len());
        }
    }

    #[test]
    fn a_file_that_ends_too_soon_is_no_answer() {
        let mut short = answer();
        short.topics[0].partitions[2].records = Some(FileRange { position: 99_999, ..records(200) });
        let error = Reply::frame(1, 12, &short).unwrap_err();
        assert!(error.contains("records could not be read"), "{error}");
    }
}
