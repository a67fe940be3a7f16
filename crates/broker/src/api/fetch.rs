//! Fetch: whole batches, as they stand in the log; waits for more without polling.

use std::{
    future::Future,
    pin::Pin,
    sync::{MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use dibs_log::{Aborted, ReadError, batch::BatchHeader};
use kafka_protocol::{
    ResponseError,
    messages::{FetchRequest, FetchResponse, fetch_request::*, fetch_response::*},
};
use tokio::time::Instant;

use super::{Context, fetch_sessions::Sessions};
use crate::{
    clock,
    quota::Quota,
    security::acl::Operation,
    topics::{Partition, Topic, random_uuid},
};

/// Everything that one look at the log gave.
struct Look {
    responses: Vec<FetchableTopicResponse>,
    bytes: usize,
    /// An error, which is answered at once.
    failed: bool,
    /// Partitions that had no more, and the offset behind which more will come.
    at_end: Vec<(Partition, u64)>,
}

pub(crate) async fn answer(cx: Context, mut request: FetchRequest) -> FetchResponse {
    let by_id = cx.version >= 13;
    let begun = match sessions(&cx).begin(&mut request, by_id, clock::mono_ms()) {
        Ok(begun) => begun,
        Err(e) => return FetchResponse::default().with_error_code(e.code()),
    };
    let wait = Duration::from_millis(request.max_wait_ms.clamp(0, i32::MAX) as u64);
    let deadline = Instant::now() + wait;
    let (mut responses, bytes) = loop {
        let look = look(&cx, &request);
        let enough = look.bytes >= request.min_bytes.max(0) as usize || look.failed;
        if enough || !more(look.at_end, deadline).await {
            break (look.responses, look.bytes);
        }
    };
    let fresh = || (random_uuid().as_u128() >> 97) as i32;
    let id = sessions(&cx).finish(&begun, request, by_id, clock::mono_ms(), fresh, &mut responses);
    let throttle = cx.takes(Quota::Fetch, bytes as f64);
    FetchResponse::default().with_throttle_time_ms(throttle).with_session_id(id).with_responses(responses)
}

fn sessions(cx: &Context) -> MutexGuard<'_, Sessions> {
    cx.shared.fetch_sessions.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until one of the partitions has more; false if the time is over first.
async fn more(at_end: Vec<(Partition, u64)>, deadline: Instant) -> bool {
    let mut grown: Vec<Pin<Box<dyn Future<Output = ()> + Send>>> = Vec::with_capacity(at_end.len());
    for (partition, end) in at_end {
        grown.push(Box::pin(partition.grown(end)));
    }
    let any = std::future::poll_fn(|cx| {
        let ready = grown.iter_mut().any(|g| g.as_mut().poll(cx).is_ready());
        if ready { Poll::Ready(()) } else { Poll::Pending }
    });
    tokio::time::timeout_at(deadline, any).await.is_ok()
}

fn look(cx: &Context, request: &FetchRequest) -> Look {
    let max = (request.max_bytes.max(0) as usize).min(cx.shared.config.fetch_max_bytes);
    let mut look = Look { responses: Vec::new(), bytes: 0, failed: false, at_end: Vec::new() };
    for wanted in &request.topics {
        let topics = &cx.shared.topics;
        let by_id = cx.version >= 13;
        let topic = if by_id { topics.by_id(wanted.topic_id) } else { topics.get(&wanted.topic) };
        let missing =
            if by_id { ResponseError::UnknownTopicId } else { ResponseError::UnknownTopicOrPartition };
        let name = topic.as_ref().map_or(&**wanted.topic, |t| t.name());
        // Ids tell nothing.
        let may = if by_id && topic.is_none() { Ok(()) } else { cx.topic(Operation::Read, name) };
        let mut partitions = Vec::with_capacity(wanted.partitions.len());
        for partition in &wanted.partitions {
            let room = max.saturating_sub(look.bytes);
            let data = match &topic {
                _ if may.is_err() => Err(ResponseError::TopicAuthorizationFailed),
                Some(topic) => read(cx, request, topic, partition, room, &mut look),
                None => Err(missing),
            };
            partitions.push(data.unwrap_or_else(|e| {
                look.failed = true;
                PartitionData::default()
                    .with_error_code(e.code())
                    .with_high_watermark(-1)
                    .with_records(Some(Bytes::new()))
            }));
            if let Some(last) = partitions.last_mut() {
                last.partition_index = partition.partition;
            }
        }
        let response = FetchableTopicResponse::default().with_partitions(partitions);
        look.responses.push(if by_id {
            response.with_topic_id(wanted.topic_id)
        } else {
            response.with_topic(wanted.topic.clone())
        });
    }
    look
}

fn read(
    cx: &Context,
    request: &FetchRequest,
    topic: &Topic,
    wanted: &FetchPartition,
    room: usize,
    look: &mut Look,
) -> Result<PartitionData, ResponseError> {
    let partition = topic.partition(wanted.partition).ok_or(ResponseError::UnknownTopicOrPartition)?;
    check_epoch(wanted.current_leader_epoch)?;
    let from = u64::try_from(wanted.fetch_offset).map_err(|_| ResponseError::OffsetOutOfRange)?;
    let committed = request.isolation_level == 1;
    // Looked at first: whatever ends a transaction or is appended after this look moves it.
    let high_watermark = partition.high_watermark();
    let last_stable = partition.last_stable().min(high_watermark);
    let end = if committed { last_stable } else { high_watermark };
    let mut bytes = Vec::new();
    if from < partition.start() || from > partition.high_watermark() {
        return Err(ResponseError::OffsetOutOfRange);
    }
    if from >= end {
        look.at_end.push((partition.clone(), high_watermark.max(from)));
    } else if room > 0 {
        let max = room.min(wanted.partition_max_bytes.max(0) as usize);
        partition.read(from, end, max, &mut bytes).map_err(|e| error_of(&e))?;
        // The first batch is given whatever its size, but only the first of the whole answer.
        if bytes.len() > room && look.bytes > 0 {
            bytes.clear();
        }
        if cx.version < 10 && has_zstd(&bytes) {
            return Err(ResponseError::UnsupportedCompressionType);
        }
        look.bytes += bytes.len();
        if bytes.len() < max {
            look.at_end.push((partition.clone(), high_watermark.max(from)));
        }
    }
    let aborted = if committed { Some(aborted(&partition, from, &bytes)?) } else { None };
    Ok(PartitionData::default()
        .with_high_watermark(high_watermark as i64)
        .with_last_stable_offset(last_stable as i64)
        .with_log_start_offset(partition.start() as i64)
        .with_aborted_transactions(aborted)
        .with_records(Some(Bytes::from(bytes))))
}

/// The aborted transactions that a reader of these batches has to know of.
fn aborted(
    partition: &Partition,
    from: u64,
    mut bytes: &[u8],
) -> Result<Vec<AbortedTransaction>, ResponseError> {
    let mut until = from;
    while let Ok(header) = BatchHeader::parse(bytes) {
        until = header.next_offset();
        bytes = bytes.get(header.size()..).unwrap_or_default();
    }
    let aborted = partition.aborted(from, until).map_err(|e| error_of(&e))?;
    let response = |a: &Aborted| {
        AbortedTransaction::default()
            .with_producer_id(a.producer_id.into())
            .with_first_offset(a.first_offset as i64)
    };
    Ok(aborted.iter().map(response).collect())
}

/// There is one leader, and its epoch is 0.
pub(super) fn check_epoch(current: i32) -> Result<(), ResponseError> {
    if current > 0 { Err(ResponseError::UnknownLeaderEpoch) } else { Ok(()) }
}

pub(super) fn error_of(error: &ReadError) -> ResponseError {
    match error {
        ReadError::OutOfRange { .. } => ResponseError::OffsetOutOfRange,
        _ => {
            tracing::error!("{error}");
            ResponseError::KafkaStorageError
        }
    }
}

fn has_zstd(mut bytes: &[u8]) -> bool {
    while let Ok(header) = BatchHeader::parse(bytes) {
        if header.compression() == 4 {
            return true;
        }
        bytes = bytes.get(header.size()..).unwrap_or_default();
    }
    false
}
