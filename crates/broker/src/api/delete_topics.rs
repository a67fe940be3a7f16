//! DeleteTopics, by name or by id.

use kafka_protocol::{
    ResponseError,
    messages::{
        DeleteTopicsRequest, DeleteTopicsResponse, TopicName, delete_topics_request::DeleteTopicState,
        delete_topics_response::DeletableTopicResult,
    },
};
use uuid::Uuid;

use super::{Context, blocking, code, text};
use crate::security::acl::Operation;

pub(crate) async fn answer(cx: Context, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let by_name = |name: TopicName| DeleteTopicState::default().with_name(Some(name));
    let named = request.topic_names.into_iter().map(by_name);
    let mut responses = Vec::new();
    for wanted in request.topics.into_iter().chain(named) {
        let done = delete(&cx, &wanted).await;
        let known = done.as_ref().ok().cloned();
        let result = DeletableTopicResult::default()
            .with_error_code(code(&done))
            .with_name(wanted.name.or(known.as_ref().map(|k| super::topic_name(&k.0))))
            .with_topic_id(known.map_or(wanted.topic_id, |k| k.1));
        let why = done.err().filter(|_| cx.version >= 5).map(|e| text(e.to_string()));
        responses.push(result.with_error_message(why));
    }
    DeleteTopicsResponse::default().with_throttle_time_ms(cx.throttle()).with_responses(responses)
}

async fn delete(cx: &Context, wanted: &DeleteTopicState) -> Result<(String, Uuid), ResponseError> {
    if !cx.shared.config().delete_topic {
        return Err(ResponseError::TopicDeletionDisabled);
    }
    let topic = match &wanted.name {
        Some(_) if wanted.topic_id != Uuid::nil() => return Err(ResponseError::InvalidRequest),
        Some(name) => cx.find_topic(Operation::Delete, name, None)?,
        None => cx.find_topic(Operation::Delete, "", Some(wanted.topic_id))?,
    };
    if topic.is_internal() {
        return Err(ResponseError::InvalidTopicException);
    }
    cx.mutates(topic.partition_count(), cx.version >= 5)?;
    let (topics, name) = (cx.shared.topics.clone(), topic.name().to_owned());
    blocking(move || topics.delete(&name)).await?;
    cx.shared.groups.forget_topic(topic.name());
    Ok((topic.name().to_owned(), topic.id()))
}
