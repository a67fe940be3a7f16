//! DescribeConfigs, AlterConfigs, IncrementalAlterConfigs, ListConfigResources.

use kafka_protocol::{
    ResponseError,
    messages::{
        AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
        IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse, ListConfigResourcesRequest,
        ListConfigResourcesResponse, alter_configs_response, create_topics_response::CreatableTopicConfigs,
        describe_configs_request::DescribeConfigsResource, describe_configs_response::*,
        incremental_alter_configs_request::AlterableConfig, incremental_alter_configs_response,
        list_config_resources_response::ConfigResource,
    },
    protocol::StrBytes,
};

use super::{Context, blocking, text};
use crate::{
    config::{BROKER_SETTINGS, BrokerConfig, TOPIC_SETTINGS, TopicConfig, TopicSetting, Type, topic_setting},
    security::acl::Operation,
    topics::{check_config, effective},
};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const BROKER_LOGGER: i8 = 8;
const CLIENT_METRICS: i8 = 16;
const GROUP: i8 = 32;

const FROM_TOPIC: i8 = 1;
const FROM_STATIC: i8 = 4;
const FROM_DEFAULT: i8 = 5;

/// Settings of topics whose setting of the broker is not set in Kafka by default: their defaults come from settings of
/// other units, which are no synonyms.
const UNSET: [&str; 4] = ["flush.ms", "retention.ms", "segment.jitter.ms", "segment.ms"];

/// An error with the sentence that explains it.
type Refusal = (ResponseError, String);

pub(crate) async fn describe(cx: Context, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
    let docs = request.include_documentation && cx.version >= 3;
    let mut results = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        results.push(match described(&cx, &resource, docs) {
            Ok(mut configs) => {
                if !request.include_synonyms {
                    configs.iter_mut().for_each(|c| c.synonyms.clear());
                }
                result.with_configs(configs)
            }
            Err((error, why)) => result.with_error_code(error.code()).with_error_message(Some(text(why))),
        });
    }
    DescribeConfigsResponse::default().with_results(results)
}

fn described(
    cx: &Context,
    resource: &DescribeConfigsResource,
    docs: bool,
) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
    let name = &*resource.resource_name;
    let wanted = |n: &str| {
        let keys = resource.configuration_keys.as_ref();
        keys.is_none_or(|keys| keys.is_empty() || keys.iter().any(|k| &**k == n))
    };
    let config = &cx.shared.config;
    may(cx, Operation::DescribeConfigs, resource.resource_type, name)?;
    match resource.resource_type {
        TOPIC => {
            let Some(topic) = cx.shared.topics.get(name) else {
                let why = format!("Topic {name} does not exist.");
                return Err((ResponseError::UnknownTopicOrPartition, why));
            };
            let own = topic.config();
            let settings = TOPIC_SETTINGS.iter().filter(|s| wanted(s.name));
            Ok(settings.map(|s| topic_entry(config, &own, s, docs)).collect())
        }
        BROKER => {
            if name.is_empty() {
                return Ok(Vec::new());
            }
            if name.parse() != Ok(config.node_id) {
                let why = format!(
                    "Unexpected broker id, expected {} or empty string, but received {name}",
                    config.node_id
                );
                return Err((ResponseError::InvalidRequest, why));
            }
            let own = BROKER_SETTINGS.iter().filter(|s| wanted(s.name));
            let own = own.map(|s| broker_entry(config, s.name, s.kind, s.default, s.doc, docs));
            let topics = TOPIC_SETTINGS.iter().filter_map(|s| s.broker.map(|b| (b, s)));
            let topics = topics.filter(|(b, _)| wanted(b));
            let topics = topics.map(|(b, s)| broker_entry(config, b, s.kind, s.default, s.doc, docs));
            Ok(own.chain(topics).collect())
        }
        BROKER_LOGGER | CLIENT_METRICS | GROUP => Ok(Vec::new()),
        other => Err((ResponseError::InvalidRequest, format!("Unsupported resource type: {other}"))),
    }
}

/// Whether the settings of a resource are the client's to read, or to change.
fn may(cx: &Context, operation: Operation, kind: i8, name: &str) -> Result<(), Refusal> {
    let may = match kind {
        TOPIC => cx.topic(operation, name),
        GROUP => cx.group(operation, name),
        _ => cx.cluster(operation),
    };
    may.map_err(|e| (e, e.to_string()))
}

fn topic_entry(
    broker: &BrokerConfig,
    own: &TopicConfig,
    setting: &TopicSetting,
    docs: bool,
) -> DescribeConfigsResourceResult {
    let synonym = |name: &str, value: &str, source| {
        DescribeConfigsSynonym::default()
            .with_name(text(name))
            .with_value(Some(text(value)))
            .with_source(source)
    };
    let mut synonyms = Vec::new();
    if let Some(value) = own.get(setting.name) {
        synonyms.push(synonym(setting.name, value, FROM_TOPIC));
    }
    if let Some(name) = setting.broker {
        if let Some(value) = broker.get(name) {
            synonyms.push(synonym(name, value, FROM_STATIC));
        }
        if !UNSET.contains(&setting.name) {
            synonyms.push(synonym(name, setting.default, FROM_DEFAULT));
        }
    }
    let source = synonyms.first().map_or(FROM_DEFAULT, |s| s.source);
    DescribeConfigsResourceResult::default()
        .with_name(text(setting.name))
        .with_value(Some(text(effective(broker, own, setting.name))))
        .with_config_source(source)
        .with_config_type(setting.kind.number())
        .with_documentation(docs.then(|| text(setting.doc)))
        .with_synonyms(synonyms)
}

fn broker_entry(
    broker: &BrokerConfig,
    name: &str,
    kind: Type,
    default: &str,
    doc: &str,
    docs: bool,
) -> DescribeConfigsResourceResult {
    let set = broker.get(name);
    let secret = matches!(kind, Type::Password);
    let shown = |value: &str| (!secret).then(|| text(value));
    let synonym = |value: &str, source| {
        DescribeConfigsSynonym::default().with_name(text(name)).with_value(shown(value)).with_source(source)
    };
    let own = set.map(|value| synonym(value, FROM_STATIC));
    DescribeConfigsResourceResult::default()
        .with_name(text(name))
        .with_value(shown(set.unwrap_or(default)))
        .with_read_only(true)
        .with_is_sensitive(secret)
        .with_config_source(if set.is_some() { FROM_STATIC } else { FROM_DEFAULT })
        .with_config_type(kind.number())
        .with_documentation(docs.then(|| text(doc)))
        .with_synonyms(own.into_iter().chain([synonym(default, FROM_DEFAULT)]).collect())
}

/// All settings of a topic that is being made, for the answer to who makes it.
pub(super) fn of_new_topic(broker: &BrokerConfig, own: &TopicConfig) -> Vec<CreatableTopicConfigs> {
    let entry = |setting: &TopicSetting| {
        let described = topic_entry(broker, own, setting, false);
        CreatableTopicConfigs::default()
            .with_name(described.name)
            .with_value(described.value)
            .with_config_source(described.config_source)
    };
    TOPIC_SETTINGS.iter().map(entry).collect()
}

pub(crate) async fn alter_incrementally(
    cx: Context,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let name = resource.resource_name.clone();
        let change = |own: TopicConfig| apply_all(&cx.shared.config, own, &resource.configs);
        let done = change_topic(&cx, resource.resource_type, &name, request.validate_only, change).await;
        let response = incremental_alter_configs_response::AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(name);
        responses.push(match done {
            Ok(()) => response,
            Err((error, why)) => response.with_error_code(error.code()).with_error_message(Some(text(why))),
        });
    }
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

pub(crate) async fn alter(cx: Context, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let name = resource.resource_name.clone();
        let replace = |_| {
            let values = resource.configs.iter().filter_map(|c| Some((c.name.to_string(), c.value.clone()?)));
            Ok(values.map(|(name, value)| (name, value.to_string())).collect())
        };
        let done = change_topic(&cx, resource.resource_type, &name, request.validate_only, replace).await;
        let response = alter_configs_response::AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(name);
        responses.push(match done {
            Ok(()) => response,
            Err((error, why)) => response.with_error_code(error.code()).with_error_message(Some(text(why))),
        });
    }
    AlterConfigsResponse::default().with_responses(responses)
}

async fn change_topic(
    cx: &Context,
    resource_type: i8,
    name: &StrBytes,
    validate_only: bool,
    change: impl FnOnce(TopicConfig) -> Result<TopicConfig, Refusal>,
) -> Result<(), Refusal> {
    may(cx, Operation::AlterConfigs, resource_type, name)?;
    if resource_type != TOPIC {
        let why = "Only topics' settings can be changed while the broker runs; the broker's own are set when it starts.";
        return Err((ResponseError::InvalidRequest, why.to_owned()));
    }
    let topic = cx.shared.topics.get(name);
    let topic = topic.ok_or_else(|| {
        (ResponseError::UnknownTopicOrPartition, format!("The topic '{}' does not exist.", &**name))
    })?;
    let own = change(topic.config())?;
    check_config(&own).map_err(|why| (ResponseError::InvalidConfig, why))?;
    if validate_only {
        return Ok(());
    }
    let (topics, name) = (cx.shared.topics.clone(), topic.name().to_owned());
    blocking(move || topics.configure(&name, own)).await.map_err(|e| (e, e.to_string()))
}

const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

fn apply_all(
    broker: &BrokerConfig,
    mut own: TopicConfig,
    changes: &[AlterableConfig],
) -> Result<TopicConfig, Refusal> {
    for change in changes {
        let name = change.name.to_string();
        if changes.iter().filter(|c| c.name == change.name).count() > 1 {
            let why = format!("Error due to duplicate config keys: {name}");
            return Err((ResponseError::InvalidRequest, why));
        }
        let Some(setting) = topic_setting(&name) else {
            return Err((ResponseError::InvalidConfig, format!("Unknown topic config name: {name}")));
        };
        let value = change.value.as_deref();
        let Some(value) = value
            .filter(|_| change.config_operation != DELETE)
            .or((change.config_operation == DELETE).then_some(""))
        else {
            let why = format!("Null value not supported for: {name}");
            return Err((ResponseError::InvalidRequest, why));
        };
        let listed = || {
            let now = effective(broker, &own, &name);
            now.split(',').map(str::trim).filter(|v| !v.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let parts = || value.split(',').map(|v| v.trim().to_owned());
        let new = match change.config_operation {
            SET => Some(value.to_owned()),
            DELETE => None,
            APPEND if setting.kind.is_list() => {
                let mut now = listed();
                now.extend(parts().filter(|v| !v.is_empty() && !listed().contains(v)));
                Some(now.join(","))
            }
            SUBTRACT if setting.kind.is_list() => {
                Some(listed().into_iter().filter(|v| !parts().any(|p| p == *v)).collect::<Vec<_>>().join(","))
            }
            APPEND | SUBTRACT => {
                let why = format!("Config value append is not allowed for config key: {name}");
                return Err((ResponseError::InvalidConfig, why));
            }
            other => {
                return Err((ResponseError::InvalidRequest, format!("Unknown operation {other}")));
            }
        };
        match new {
            Some(value) => own.insert(name, value),
            None => own.remove(&name),
        };
    }
    Ok(own)
}

pub(crate) async fn list(cx: Context, request: ListConfigResourcesRequest) -> ListConfigResourcesResponse {
    let response = ListConfigResourcesResponse::default();
    if let Err(e) = cx.cluster(Operation::DescribeConfigs) {
        return response.with_error_code(e.code());
    }
    let wanted = match (cx.version, request.resource_types.is_empty()) {
        (0, _) => vec![CLIENT_METRICS],
        (_, true) => vec![TOPIC, BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP],
        _ => request.resource_types,
    };
    if wanted.iter().any(|t| ![TOPIC, BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP].contains(t)) {
        return response.with_error_code(ResponseError::UnsupportedVersion.code());
    }
    let resource = |kind, name: String| {
        let resource = ConfigResource::default().with_resource_name(text(name));
        if cx.version >= 1 { resource.with_resource_type(kind) } else { resource }
    };
    let mut resources = Vec::new();
    if wanted.contains(&TOPIC) {
        resources.extend(cx.shared.topics.all().iter().map(|t| resource(TOPIC, t.name().to_owned())));
    }
    for kind in [BROKER, BROKER_LOGGER] {
        if wanted.contains(&kind) {
            resources.push(resource(kind, cx.shared.config.node_id.to_string()));
        }
    }
    response.with_config_resources(resources)
}
