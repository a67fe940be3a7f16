//! InitProducerId: a number for an idempotent producer, or who a transactional one is from now on.

use kafka_protocol::{
    ResponseError,
    messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId},
};

use super::{Context, blocking, txn::fenced};
use crate::{
    security::acl::{Kind, Operation},
    txn::Producer,
};

/// The first version that knows `PRODUCER_FENCED`.
const FENCED: i16 = 4;

pub(crate) async fn answer(cx: Context, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let response = InitProducerIdResponse::default();
    match init(&cx, request).await {
        Ok(producer) => {
            response.with_producer_id(ProducerId(producer.id)).with_producer_epoch(producer.epoch)
        }
        Err(e) => response
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1)
            .with_error_code(fenced(e, cx.version >= FENCED).code()),
    }
}

async fn init(cx: &Context, request: InitProducerIdRequest) -> Result<Producer, ResponseError> {
    let transactions = cx.shared.transactions.clone();
    let expected = match (request.producer_id.0, request.producer_epoch) {
        (-1, -1) => None,
        (-1, _) | (_, -1) => return Err(ResponseError::InvalidRequest),
        (id, epoch) => Some(Producer { id, epoch }),
    };
    let Some(id) = request.transactional_id else {
        cx.cluster(Operation::IdempotentWrite)
            .or_else(|e| cx.may_some(Operation::Write, Kind::Topic).then_some(()).ok_or(e))?;
        let id = blocking(move || transactions.fresh()()).await?;
        return Ok(Producer { id, epoch: 0 });
    };
    cx.transaction(Operation::Write, &id)?;
    let (mut fresh, timeout) = (transactions.fresh(), request.transaction_timeout_ms);
    let init =
        transactions.with(&id, |shard, now, fx| shard.init(now, &id, timeout, expected, &mut fresh, fx));
    init.await?
}
