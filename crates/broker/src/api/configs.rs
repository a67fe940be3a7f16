//! DescribeConfigs, ListConfigResources.

use std::collections::BTreeSet;

use kafka_protocol::{
    ResponseError,
    messages::{
        DescribeConfigsRequest, DescribeConfigsResponse, ListConfigResourcesRequest,
        ListConfigResourcesResponse, create_topics_response::CreatableTopicConfigs,
        describe_configs_request::DescribeConfigsResource, describe_configs_response::*,
        list_config_resources_response::ConfigResource,
    },
};

use super::{Context, Refusal, invalid, refusal, text};
use crate::{
    config::{
        BROKER_SETTINGS, BrokerConfig, Dynamic, GROUP_SETTINGS, GroupSetting, Said, TOPIC_SETTINGS,
        TopicConfig, TopicSetting, Type, kind_of, setting,
    },
    security::acl::Operation,
    settings::Whose,
    topics::effective,
};

pub(super) const TOPIC: i8 = 2;
pub(super) const BROKER: i8 = 4;
const BROKER_LOGGER: i8 = 8;
const CLIENT_METRICS: i8 = 16;
pub(super) const GROUP: i8 = 32;

const FROM_TOPIC: i8 = 1;
const FROM_DEFAULT: i8 = 5;
const FROM_GROUP: i8 = 8;

/// The number of who says something.
fn source(said: Said) -> i8 {
    match said {
        Said::OfBroker => 2,
        Said::OfCluster => 3,
        Said::AtStart => 4,
    }
}

/// Settings of topics whose setting of the broker is not set in Kafka by default: their defaults come from settings of
/// other units, which are no synonyms.
const UNSET: [&str; 4] = ["flush.ms", "retention.ms", "segment.jitter.ms", "segment.ms"];

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
    let config = cx.shared.config();
    may(cx, Operation::DescribeConfigs, resource.resource_type, name)?;
    match resource.resource_type {
        TOPIC => {
            let Some(topic) = cx.shared.topics.get(name) else {
                let why = format!("Topic {name} does not exist.");
                return Err((ResponseError::UnknownTopicOrPartition, why));
            };
            let own = topic.config();
            let settings = TOPIC_SETTINGS.iter().filter(|s| wanted(s.name));
            Ok(settings.map(|s| topic_entry(&config, &own, s, docs)).collect())
        }
        BROKER => {
            let names = match broker_named(&config, name)? {
                Whose::Cluster => config.names(Said::OfCluster).collect(),
                _ => broker_names(&config),
            };
            let names = names.into_iter().filter(|n| wanted(n));
            Ok(names.map(|n| broker_entry(&config, n, name.is_empty(), docs)).collect())
        }
        GROUP => {
            let own = cx.shared.settings.of(&group_named(name)?);
            let settings = GROUP_SETTINGS.iter().filter(|s| wanted(s.name));
            Ok(settings.map(|s| group_entry(&config, &own, s, docs)).collect())
        }
        BROKER_LOGGER | CLIENT_METRICS => Ok(Vec::new()),
        other => Err(invalid(format!("Unsupported resource type: {other}"))),
    }
}

/// Which broker is meant: this one, or all.
pub(super) fn broker_named(config: &BrokerConfig, name: &str) -> Result<Whose, Refusal> {
    match name.parse::<i32>() {
        _ if name.is_empty() => Ok(Whose::Cluster),
        Ok(id) if id == config.node_id => Ok(Whose::Broker),
        Ok(_) => Err(invalid(format!(
            "Unexpected broker id, expected {} or empty string, but received {name}",
            config.node_id
        ))),
        Err(_) => Err(invalid(format!("Broker id must be an integer, but it is: {name}"))),
    }
}

pub(super) fn group_named(name: &str) -> Result<Whose, Refusal> {
    match name {
        "" => Err(invalid("Default group resources are not allowed.")),
        name => Ok(Whose::Group(name.to_owned())),
    }
}

/// All that there is to say of a broker.
fn broker_names(config: &BrokerConfig) -> BTreeSet<&str> {
    let own = BROKER_SETTINGS.iter().map(|s| s.name);
    let topics = TOPIC_SETTINGS.iter().filter_map(|s| s.broker);
    let said = Said::ALL.into_iter().flat_map(|s| config.names(s));
    own.chain(topics).chain(said).collect()
}

/// Whether the settings of a resource are the client's to read, or to change.
pub(super) fn may(cx: &Context, operation: Operation, kind: i8, name: &str) -> Result<(), Refusal> {
    let may = match kind {
        TOPIC => cx.topic(operation, name),
        GROUP => cx.group(operation, name),
        _ => cx.cluster(operation),
    };
    may.map_err(refusal)
}

fn topic_entry(
    broker: &BrokerConfig,
    own: &TopicConfig,
    setting: &TopicSetting,
    docs: bool,
) -> DescribeConfigsResourceResult {
    let mut synonyms = Vec::new();
    if let Some(value) = own.get(setting.name) {
        synonyms.push(synonym(setting.name, Some(value), FROM_TOPIC));
    }
    if let Some(name) = setting.broker {
        synonyms.extend(broker.said(name).map(|(said, value)| synonym(name, Some(value), source(said))));
        if !UNSET.contains(&setting.name) {
            synonyms.push(synonym(name, Some(setting.default), FROM_DEFAULT));
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

/// `for_all` leaves out what is not said for all brokers.
fn broker_entry(
    broker: &BrokerConfig,
    name: &str,
    for_all: bool,
    docs: bool,
) -> DescribeConfigsResourceResult {
    let known = setting(name);
    let kind = kind_of(name).unwrap_or(Type::Text);
    let secret = matches!(kind, Type::Password);
    let shown = |value| (!secret).then_some(value);
    let said = || broker.said(name).filter(|(said, _)| !for_all || *said == Said::OfCluster);
    let mut synonyms: Vec<_> =
        said().map(|(said, value)| synonym(name, shown(value), source(said))).collect();
    if let Some(known) = known.filter(|_| !for_all) {
        synonyms.push(synonym(name, shown(known.default), FROM_DEFAULT));
    }
    let value = said().next().map(|s| s.1).or(known.map(|k| k.default)).unwrap_or_default();
    DescribeConfigsResourceResult::default()
        .with_name(text(name))
        .with_value(shown(value).map(text))
        .with_read_only(Dynamic::of(name).is_none())
        .with_is_sensitive(secret)
        .with_config_source(synonyms.first().map_or(FROM_DEFAULT, |s| s.source))
        .with_config_type(kind.number())
        .with_documentation(known.filter(|_| docs).map(|k| text(k.doc)))
        .with_synonyms(synonyms)
}

fn group_entry(
    broker: &BrokerConfig,
    own: &TopicConfig,
    setting: &GroupSetting,
    docs: bool,
) -> DescribeConfigsResourceResult {
    let (value, source) = match own.get(setting.name) {
        Some(value) => (value.clone(), FROM_GROUP),
        None => ((setting.default)(&broker.consumer), FROM_DEFAULT),
    };
    let synonym = synonym(setting.name, Some(&value), source);
    DescribeConfigsResourceResult::default()
        .with_name(text(setting.name))
        .with_value(Some(text(value)))
        .with_config_source(source)
        .with_config_type(setting.kind.number())
        .with_documentation(docs.then(|| text(setting.doc)))
        .with_synonyms(vec![synonym])
}

/// A place where a value may be said; `None` hides it.
fn synonym(name: &str, value: Option<&str>, source: i8) -> DescribeConfigsSynonym {
    DescribeConfigsSynonym::default().with_name(text(name)).with_value(value.map(text)).with_source(source)
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
    if wanted.contains(&GROUP) {
        resources.extend(cx.shared.settings.groups().into_iter().map(|group| resource(GROUP, group)));
    }
    for kind in [BROKER, BROKER_LOGGER] {
        if wanted.contains(&kind) {
            resources.push(resource(kind, cx.shared.config().node_id.to_string()));
        }
    }
    response.with_config_resources(resources)
}
