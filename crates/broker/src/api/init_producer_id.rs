//! InitProducerId: a number for an idempotent producer.

use kafka_protocol::{
    ResponseError,
    messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId},
};

use super::{Context, blocking};

pub(crate) async fn answer(cx: Context, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let none = InitProducerIdResponse::default().with_producer_id(ProducerId(-1)).with_producer_epoch(-1);
    if request.transactional_id.is_some() {
        return none.with_error_code(ResponseError::CoordinatorNotAvailable.code());
    }
    let shared = cx.shared.clone();
    match blocking(move || shared.next_producer_id().map_err(|_| ResponseError::KafkaStorageError)).await {
        Ok(id) => InitProducerIdResponse::default().with_producer_id(ProducerId(id)).with_producer_epoch(0),
        Err(e) => none.with_error_code(e.code()),
    }
}
