//! Fetch: whole batches, as they stand in the log; waits for more without polling.

use std::{
    future::Future,
    pin::Pin,
    sync::{MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use dibs_log::{FileRange, ReadError};
use kafka_protocol::{
    ResponseError,
    messages::{FetchRequest, fetch_request::*},
};
use tokio::time::Instant;

use super::{
    Context,
    fetch_answer::{FetchAnswer, PartitionAnswer, TopicAnswer},
    fetch_sessions::Sessions,
};
use crate::{
    clock,
    quota::Quota,
    security::acl::Operation,
    topics::{Partition, Topic, random_uuid},
};

/// Everything that one look at the log gave.
struct Look {
    topics: Vec<TopicAnswer>,
    bytes: u64,
    /// An error, which is answered at once.
    failed: bool,
    /// Partitions that had no more, and the offset behind which more will come.
    at_end: Vec<(Partition, u64)>,
}

pub(crate) async fn answer(cx: Context, mut request: FetchRequest) -> FetchAnswer {
    let by_id = cx.version >= 13;
    let begun = match sessions(&cx).begin(&mut request, by_id, clock::mono_ms()) {
        Ok(begun) => begun,
        Err(e) => return FetchAnswer { error: Some(e), ..FetchAnswer::default() },
    };
    let wait = Duration::from_millis(request.max_wait_ms.clamp(0, i32::MAX) as u64);
    let deadline = Instant::now() + wait;
    let (mut topics, bytes) = loop {
        let look = look(&cx, &request);
        let enough = look.bytes >= request.min_bytes.max(0) as u64 || look.failed;
        if enough || !more(look.at_end, deadline).await {
            break (look.topics, look.bytes);
        }
    };
    let fresh = || (random_uuid().as_u128() >> 97) as i32;
    let session_id = sessions(&cx).finish(&begun, request, by_id, clock::mono_ms(), fresh, &mut topics);
    let throttle_ms = cx.takes(Quota::Fetch, bytes as f64);
    FetchAnswer { throttle_ms, error: None, session_id, topics }
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
    let max = (request.max_bytes.max(0) as usize).min(cx.shared.config().fetch_max_bytes) as u64;
    let mut look = Look { topics: Vec::new(), bytes: 0, failed: false, at_end: Vec::new() };
    for wanted in &request.topics {
        let by_id = cx.version >= 13;
        let topic = cx.find_topic(Operation::Read, &wanted.topic, by_id.then_some(wanted.topic_id));
        let mut partitions = Vec::with_capacity(wanted.partitions.len());
        for partition in &wanted.partitions {
            let room = max.saturating_sub(look.bytes);
            let answer = match &topic {
                Ok(topic) => read(request, topic, partition, room, &mut look),
                Err(e) => Err(*e),
            };
            partitions.push(answer.unwrap_or_else(|e| {
                look.failed = true;
                PartitionAnswer::failed(partition.partition, e)
            }));
        }
        look.topics.push(TopicAnswer { name: wanted.topic.clone(), id: wanted.topic_id, partitions });
    }
    look
}

fn read(
    request: &FetchRequest,
    topic: &Topic,
    wanted: &FetchPartition,
    room: u64,
    look: &mut Look,
) -> Result<PartitionAnswer, ResponseError> {
    let partition = topic.partition(wanted.partition).ok_or(ResponseError::UnknownTopicOrPartition)?;
    check_epoch(wanted.current_leader_epoch)?;
    let from = u64::try_from(wanted.fetch_offset).map_err(|_| ResponseError::OffsetOutOfRange)?;
    let committed = request.isolation_level == 1;
    // Looked at first: whatever ends a transaction or is appended after this look moves it.
    let high_watermark = partition.high_watermark();
    let last_stable = partition.last_stable().min(high_watermark);
    let end = if committed { last_stable } else { high_watermark };
    let mut records = None;
    if from < partition.start() || from > partition.high_watermark() {
        return Err(ResponseError::OffsetOutOfRange);
    }
    if from >= end {
        look.at_end.push((partition.clone(), high_watermark.max(from)));
    } else if room > 0 {
        let max = room.min(wanted.partition_max_bytes.max(0) as u64);
        records = partition.range(from, end, max as usize).map_err(|e| error_of(&e))?;
        // The first batch is given whatever its size, but only the first of the whole answer.
        records.take_if(|records| records.length > room && look.bytes > 0);
        let bytes = records.as_ref().map_or(0, |records| records.length);
        look.bytes += bytes;
        if bytes < max {
            look.at_end.push((partition.clone(), high_watermark.max(from)));
        }
    }
    // What a reader of these records has to know of.
    let aborted = |records: &FileRange| match partition.aborted(from, records.until) {
        Ok(all) => Ok(all.iter().map(|a| (a.producer_id, a.first_offset as i64)).collect()),
        Err(e) => Err(error_of(&e)),
    };
    let aborted = committed.then(|| records.as_ref().map_or(Ok(Vec::new()), aborted)).transpose()?;
    Ok(PartitionAnswer {
        index: wanted.partition,
        error: None,
        high_watermark: high_watermark as i64,
        last_stable: last_stable as i64,
        log_start: partition.start() as i64,
        aborted,
        records,
    })
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
