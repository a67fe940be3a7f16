//! DeleteRecords: moves the start of partitions forward.

use kafka_protocol::{
    ResponseError,
    messages::{DeleteRecordsRequest, DeleteRecordsResponse, delete_records_response::*},
};

use super::{Context, blocking, code, fetch};
use crate::{security::acl::Operation, topics::Partition};

pub(crate) async fn answer(cx: Context, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let owned = |name: &str| cx.shared.topics.owned(name).is_some();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let may = cx.topic(Operation::Delete, &topic.name);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in topic.partitions {
            let done = match cx.shared.topics.get(&topic.name) {
                _ if let Err(e) = may => Err(e),
                Some(t) if t.is_internal() || t.only_compacts() || owned(&topic.name) => {
                    Err(ResponseError::PolicyViolation)
                }
                Some(t) => match t.partition(wanted.partition_index) {
                    Some(partition) => delete(partition, wanted.offset).await,
                    None => Err(ResponseError::UnknownTopicOrPartition),
                },
                None => Err(ResponseError::UnknownTopicOrPartition),
            };
            partitions.push(
                DeleteRecordsPartitionResult::default()
                    .with_partition_index(wanted.partition_index)
                    .with_error_code(code(&done))
                    .with_low_watermark(done.unwrap_or(-1)),
            );
        }
        topics.push(DeleteRecordsTopicResult::default().with_name(topic.name).with_partitions(partitions));
    }
    DeleteRecordsResponse::default().with_topics(topics)
}

/// Deletes what is before an offset, −1 meaning all, and returns the new start.
async fn delete(partition: Partition, before: i64) -> Result<i64, ResponseError> {
    let offset = match before {
        -1 => partition.high_watermark(),
        before => u64::try_from(before).map_err(|_| ResponseError::OffsetOutOfRange)?,
    };
    blocking(move || {
        partition.delete_before(offset).map_err(|e| fetch::error_of(&e))?;
        Ok(partition.start() as i64)
    })
    .await
}
