//! AlterConfigs, IncrementalAlterConfigs: of topics, of the broker, of groups.

use kafka_protocol::{
    ResponseError,
    messages::{
        AlterConfigsRequest, AlterConfigsResponse, IncrementalAlterConfigsRequest,
        IncrementalAlterConfigsResponse, alter_configs_response,
        incremental_alter_configs_request::AlterableConfig, incremental_alter_configs_response,
    },
};

use super::{
    Context, Refusal, blocking,
    configs::{BROKER, GROUP, TOPIC, broker_named, group_named, may},
    invalid, refusal, text,
};
use crate::{
    config::{GROUP_SETTINGS, TopicConfig, Type, kind_of, setting, topic_setting},
    security::acl::Operation,
    settings::{ChangeError, Whose},
    topics::{Topic, check_config, effective},
};

pub(crate) async fn incrementally(
    cx: Context,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let (kind, name) = (resource.resource_type, resource.resource_name);
        let changes = &resource.configs;
        let done = alter(&cx, kind, &name, request.validate_only, |target| apply(&cx, target, changes)).await;
        let response = incremental_alter_configs_response::AlterConfigsResourceResponse::default()
            .with_resource_type(kind)
            .with_resource_name(name);
        responses.push(match done {
            Ok(()) => response,
            Err((error, why)) => response.with_error_code(error.code()).with_error_message(Some(text(why))),
        });
    }
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

pub(crate) async fn wholly(cx: Context, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let (kind, name) = (resource.resource_type, resource.resource_name);
        let values = resource.configs.iter().filter_map(|c| Some((c.name.to_string(), c.value.clone()?)));
        let values: TopicConfig = values.map(|(name, value)| (name, value.to_string())).collect();
        let done = alter(&cx, kind, &name, request.validate_only, |_| Ok(values)).await;
        let response = alter_configs_response::AlterConfigsResourceResponse::default()
            .with_resource_type(kind)
            .with_resource_name(name);
        responses.push(match done {
            Ok(()) => response,
            Err((error, why)) => response.with_error_code(error.code()).with_error_message(Some(text(why))),
        });
    }
    AlterConfigsResponse::default().with_responses(responses)
}

/// Whose settings are changed.
enum Target {
    Topic(Topic),
    Settings(Whose),
}

async fn alter(
    cx: &Context,
    kind: i8,
    name: &str,
    validate_only: bool,
    change: impl FnOnce(&Target) -> Result<TopicConfig, Refusal>,
) -> Result<(), Refusal> {
    may(cx, Operation::AlterConfigs, kind, name)?;
    let target = Target::find(cx, kind, name)?;
    // One after the other: each changes what the one before has left.
    let _altering = cx.shared.altering.lock().await;
    let own = change(&target)?;
    target.put(cx, own, validate_only).await
}

impl Target {
    fn find(cx: &Context, kind: i8, name: &str) -> Result<Target, Refusal> {
        match kind {
            TOPIC => {
                let unknown = || format!("The topic '{name}' does not exist.");
                let topic = cx.shared.topics.get(name).map(Target::Topic);
                topic.ok_or_else(|| (ResponseError::UnknownTopicOrPartition, unknown()))
            }
            BROKER => broker_named(&cx.shared.config(), name).map(Target::Settings),
            GROUP => group_named(name).map(Target::Settings),
            other => Err(invalid(format!("Settings of resources of type {other} cannot be changed"))),
        }
    }

    /// What is said of it now.
    fn own(&self, cx: &Context) -> TopicConfig {
        match self {
            Target::Topic(topic) => {
                cx.shared.topics.get(topic.name()).map(|t| t.config()).unwrap_or_default()
            }
            Target::Settings(whose) => cx.shared.settings.of(whose),
        }
    }

    fn kind_of(&self, name: &str) -> Option<Type> {
        match self {
            Target::Topic(_) => topic_setting(name).map(|s| s.kind),
            Target::Settings(Whose::Group(_)) => {
                GROUP_SETTINGS.iter().find(|s| s.name == name).map(|s| s.kind)
            }
            Target::Settings(_) => kind_of(name),
        }
    }

    /// What a setting comes to if this is said.
    fn effective(&self, cx: &Context, own: &TopicConfig, name: &str) -> String {
        let config = cx.shared.config();
        match self {
            Target::Topic(_) => effective(&config, own, name),
            Target::Settings(_) => {
                let default = || setting(name).map(|s| s.default);
                let said = own.get(name).map(String::as_str).or_else(|| config.get(name));
                said.or_else(default).unwrap_or_default().to_owned()
            }
        }
    }

    async fn put(self, cx: &Context, own: TopicConfig, validate_only: bool) -> Result<(), Refusal> {
        let shared = cx.shared.clone();
        match self {
            Target::Topic(topic) => {
                check_config(&own).map_err(|why| (ResponseError::InvalidConfig, why))?;
                if validate_only {
                    return Ok(());
                }
                blocking(move || shared.topics.configure(topic.name(), own)).await.map_err(refusal)
            }
            Target::Settings(whose) => {
                let put = move || Ok(shared.settings.put(&shared.topics, &whose, &own, validate_only));
                blocking(put).await.map_err(refusal)?.map_err(refused)
            }
        }
    }
}

fn refused(error: ChangeError) -> Refusal {
    let kind = match error {
        ChangeError::Broker(_) => ResponseError::InvalidRequest,
        ChangeError::Group(_) => ResponseError::InvalidConfig,
        ChangeError::Io(_) => {
            tracing::error!(%error, "the settings cannot be written");
            ResponseError::KafkaStorageError
        }
    };
    (kind, error.to_string())
}

const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

fn apply(cx: &Context, target: &Target, changes: &[AlterableConfig]) -> Result<TopicConfig, Refusal> {
    let mut own = target.own(cx);
    for change in changes {
        let name = change.name.to_string();
        if changes.iter().filter(|c| c.name == change.name).count() > 1 {
            return Err(invalid(format!("Error due to duplicate config keys: {name}")));
        }
        if change.config_operation == DELETE {
            own.remove(&name);
            continue;
        }
        let Some(value) = change.value.as_deref() else {
            return Err(invalid(format!("Null value not supported for: {name}")));
        };
        let parts = || value.split(',').map(str::trim).filter(|v| !v.is_empty());
        let now = target.effective(cx, &own, &name);
        let listed = || now.split(',').map(str::trim).filter(|v| !v.is_empty());
        let is_list = target.kind_of(&name).is_some_and(Type::is_list);
        let new: String = match change.config_operation {
            SET => value.to_owned(),
            APPEND | SUBTRACT if !is_list => {
                let why = format!("Config value append is not allowed for config key: {name}");
                return Err((ResponseError::InvalidConfig, why));
            }
            APPEND => {
                let added = parts().filter(|part| listed().all(|v| v != *part));
                listed().chain(added).collect::<Vec<_>>().join(",")
            }
            SUBTRACT => listed().filter(|v| parts().all(|part| part != *v)).collect::<Vec<_>>().join(","),
            other => return Err(invalid(format!("Unknown operation {other}"))),
        };
        own.insert(name, new);
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dibs_log::{MemoryStorage, Store, StoreConfig, batch::BatchBuilder};
    use kafka_protocol::messages::{
        DescribeConfigsRequest, describe_configs_request::DescribeConfigsResource,
        incremental_alter_configs_request::AlterConfigsResource,
    };

    use super::{super::tests::broker_on, *};
    use crate::{api::configs, connection::Client, server::Broker};

    struct Admin {
        store: Arc<Store>,
        broker: Broker,
        client: Arc<Client>,
    }

    impl Admin {
        async fn start(storage: &Arc<MemoryStorage>) -> Admin {
            let store = Arc::new(Store::open(storage.clone(), StoreConfig::default()).unwrap());
            let (broker, client) = broker_on(store.clone(), &[("log.retention.hours", "1")]).await;
            Admin { store, broker, client }
        }

        async fn stop(self) {
            self.broker.stop().await;
            self.store.close().unwrap();
        }

        fn cx(&self) -> Context {
            let (shared, client) = (self.broker.shared().clone(), self.client.clone());
            Context { shared, client, client_id: String::new(), version: 1 }
        }

        /// Changes one setting; the error's number and sentence if it is refused.
        async fn alter(
            &self,
            kind: i8,
            whose: &str,
            op: i8,
            name: &str,
            value: &str,
        ) -> Result<(), (i16, String)> {
            let config = AlterableConfig::default()
                .with_name(text(name))
                .with_config_operation(op)
                .with_value(Some(text(value)));
            let resource = AlterConfigsResource::default()
                .with_resource_type(kind)
                .with_resource_name(text(whose))
                .with_configs(vec![config]);
            let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
            let done = incrementally(self.cx(), request).await.responses.remove(0);
            let why = done.error_message.map(|m| m.to_string()).unwrap_or_default();
            if done.error_code == 0 { Ok(()) } else { Err((done.error_code, why)) }
        }

        /// A setting's value, and where it comes from.
        async fn see(&self, kind: i8, whose: &str, name: &str) -> (String, i8) {
            let resource = DescribeConfigsResource::default()
                .with_resource_type(kind)
                .with_resource_name(text(whose))
                .with_configuration_keys(Some(vec![text(name)]));
            let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
            let mut described = configs::describe(self.cx(), request).await.results.remove(0);
            assert_eq!((described.error_code, described.configs.len()), (0, 1), "{name}");
            let config = described.configs.remove(0);
            (config.value.map(|v| v.to_string()).unwrap_or_default(), config.config_source)
        }
    }

    fn seen(value: &str, source: i8) -> (String, i8) {
        (value.to_owned(), source)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_brokers_settings_change_while_it_runs_and_stay_changed() {
        let storage = Arc::new(MemoryStorage::new(0));
        let admin = Admin::start(&storage).await;
        let retention = "log.retention.ms";
        admin.broker.shared().topics.create("t", 1, TopicConfig::new()).unwrap();
        let of_topic = "retention.ms";
        assert_eq!(admin.see(TOPIC, "t", of_topic).await, seen("3600000", 4));
        admin.alter(BROKER, "", SET, retention, "5000").await.unwrap();
        assert_eq!(admin.see(TOPIC, "t", of_topic).await, seen("5000", 3));
        admin.alter(BROKER, "1", SET, retention, "6000").await.unwrap();
        assert_eq!(admin.see(BROKER, "1", retention).await, seen("6000", 2));
        assert_eq!(admin.see(TOPIC, "t", of_topic).await, seen("6000", 2));
        admin.alter(BROKER, "1", SET, "ssl.keystore.password", "secret").await.unwrap();
        assert_eq!(admin.see(BROKER, "1", "ssl.keystore.password").await, seen("", 2));
        admin.stop().await;

        let admin = Admin::start(&storage).await;
        assert_eq!(admin.see(TOPIC, "t", of_topic).await, seen("6000", 2));
        admin.alter(BROKER, "1", DELETE, retention, "").await.unwrap();
        assert_eq!(admin.see(TOPIC, "t", of_topic).await, seen("5000", 3));
        admin.alter(BROKER, "", DELETE, retention, "").await.unwrap();
        assert_eq!(admin.see(TOPIC, "t", of_topic).await, seen("3600000", 4));
        admin.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn topics_go_by_what_the_broker_says_now() {
        let admin = Admin::start(&Arc::new(MemoryStorage::new(0))).await;
        let shared = admin.broker.shared().clone();
        shared.topics.create("t", 1, TopicConfig::new()).unwrap();
        let partition = shared.topics.partition("t", 0).unwrap();
        let mut batch = BatchBuilder::new();
        batch.push(None, Some(&[7; 2000]));
        let batch = batch.finish(1);
        partition.append(&batch).unwrap();
        admin.alter(BROKER, "1", SET, "message.max.bytes", "1000").await.unwrap();
        assert!(partition.append(&batch).is_err());
        let own = TopicConfig::from([("max.message.bytes".into(), "3000".into())]);
        shared.topics.configure("t", own).unwrap();
        partition.append(&batch).unwrap();
        admin.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_changed_is_refused_and_changes_nothing() {
        let admin = Admin::start(&Arc::new(MemoryStorage::new(0))).await;
        for (whose, op, name, value, why) in [
            ("1", SET, "num.partitions", "3", "Cannot update these configs dynamically"),
            ("1", SET, "num.partition", "3", "did you mean num.partitions?"),
            ("", SET, "sasl.enabled.mechanisms", "PLAIN", "broker id must be specified"),
            ("1", SET, "message.max.bytes", "abc", "Not a number of type INT"),
            ("1", SET, "log.segment.bytes", "14", "at least 1048576"),
            ("1", APPEND, "max.connections", "1", "append is not allowed"),
            ("7", SET, "max.connections", "1", "expected 1"),
            ("x", SET, "max.connections", "1", "must be an integer"),
        ] {
            let (_, said) = admin.alter(BROKER, whose, op, name, value).await.unwrap_err();
            assert!(said.contains(why), "{name}: {said}");
        }
        admin.alter(BROKER, "1", DELETE, "nothing.was.said", "").await.unwrap();
        admin.alter(BROKER, "1", APPEND, "log.cleanup.policy", "compact").await.unwrap();
        assert_eq!(admin.see(BROKER, "1", "log.cleanup.policy").await, seen("delete,compact", 2));
        assert_eq!(admin.see(BROKER, "1", "max.connections").await, seen("2147483647", 5));
        admin.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn groups_have_times_of_their_own() {
        let admin = Admin::start(&Arc::new(MemoryStorage::new(0))).await;
        let session = crate::config::SESSION;
        assert_eq!(admin.see(GROUP, "g", session).await, seen("45000", 5));
        admin.alter(GROUP, "g", SET, session, "50000").await.unwrap();
        assert_eq!(admin.see(GROUP, "g", session).await, seen("50000", 8));
        let settings = &admin.broker.shared().settings;
        assert_eq!(settings.of_group("g", session, (45_000, 60_000)), Some(50_000));
        assert_eq!(settings.of_group("g", session, (1, 48_000)), Some(48_000));
        assert_eq!(settings.of_group("h", session, (45_000, 60_000)), None);
        let (code, why) = admin.alter(GROUP, "g", SET, session, "1").await.unwrap_err();
        assert_eq!(code, ResponseError::InvalidConfig.code(), "{why}");
        assert!(admin.alter(GROUP, "", SET, session, "50000").await.is_err());
        admin.stop().await;
    }
}
