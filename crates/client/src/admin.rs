//! Topics: create, alter, delete, and their settings.

use kafka_protocol::{
    messages::BrokerId,
    messages::{
        CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, DescribeConfigsRequest,
        IncrementalAlterConfigsRequest,
        create_partitions_request::{CreatePartitionsAssignment, CreatePartitionsTopic},
        create_topics_request::{CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig},
        describe_configs_request::DescribeConfigsResource,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
    },
};

use crate::{
    ClientError, Cluster,
    cluster::{text, topic_name},
};

/// Kafka's number for a topic among the things that have settings.
const TOPIC: i8 = 2;
/// Where a setting was set: on the topic itself.
const DYNAMIC_TOPIC_CONFIG: i8 = 1;

/// A topic to be made.
#[derive(Clone, Debug, Default)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// How many partitions; the broker's `num.partitions` for `None`.
    pub partitions: Option<i32>,
    /// How many copies; the broker's `default.replication.factor` for `None`.
    pub replication_factor: Option<i16>,
    /// The brokers of each partition's copies, instead of numbers; empty for none.
    pub assignment: Vec<Vec<i32>>,
    /// Its settings.
    pub configs: Vec<(String, String)>,
}

/// A setting of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigEntry {
    /// Its name.
    pub name: String,
    /// Its value; none if it is a secret.
    pub value: Option<String>,
    /// Whether it was set on the topic itself.
    pub own: bool,
}

/// A change of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigChange {
    /// Set it.
    Set(String, String),
    /// Back to the default.
    Delete(String),
}

impl Cluster {
    /// Creates a topic.
    ///
    /// # Errors
    /// [`ClientError::Kafka`] says why the cluster does not.
    pub async fn create_topic(&self, topic: &NewTopic) -> Result<(), ClientError> {
        let assignments = topic.assignment.iter().zip(0..).map(|(brokers, index)| {
            CreatableReplicaAssignment::default()
                .with_partition_index(index)
                .with_broker_ids(brokers.iter().copied().map(BrokerId).collect())
        });
        let configs = topic.configs.iter().map(|(name, value)| {
            CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)))
        });
        let assigned = !topic.assignment.is_empty();
        let new = CreatableTopic::default()
            .with_name(topic_name(&topic.name))
            .with_num_partitions(if assigned { -1 } else { topic.partitions.unwrap_or(-1) })
            .with_replication_factor(if assigned { -1 } else { topic.replication_factor.unwrap_or(-1) })
            .with_assignments(assignments.collect())
            .with_configs(configs.collect());
        let request =
            CreateTopicsRequest::default().with_topics(vec![new]).with_timeout_ms(self.patience_ms());
        self.call_controller(&request, |answer| {
            let result = answer.topics.first().ok_or_else(empty)?;
            ClientError::check(about(&topic.name), result.error_code, result.error_message.as_deref())
        })
        .await
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// [`ClientError::Kafka`] says why the cluster does not.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        let request = DeleteTopicsRequest::default()
            .with_topic_names(vec![topic_name(name)])
            .with_timeout_ms(self.patience_ms());
        self.call_controller(&request, |answer| {
            let result = answer.responses.first().ok_or_else(empty)?;
            ClientError::check(about(name), result.error_code, result.error_message.as_deref())
        })
        .await
    }

    /// Adds partitions until there are so many in all. `assignment` may name the brokers of the new ones.
    ///
    /// # Errors
    /// [`ClientError::Kafka`] says why the cluster does not.
    pub async fn create_partitions(
        &self,
        name: &str,
        count: i32,
        assignment: &[Vec<i32>],
    ) -> Result<(), ClientError> {
        let of = |brokers: &Vec<i32>| {
            CreatePartitionsAssignment::default()
                .with_broker_ids(brokers.iter().copied().map(BrokerId).collect())
        };
        let assignments = (!assignment.is_empty()).then(|| assignment.iter().map(of).collect());
        let topic = CreatePartitionsTopic::default()
            .with_name(topic_name(name))
            .with_count(count)
            .with_assignments(assignments);
        let request =
            CreatePartitionsRequest::default().with_topics(vec![topic]).with_timeout_ms(self.patience_ms());
        self.call_controller(&request, |answer| {
            let result = answer.results.first().ok_or_else(empty)?;
            ClientError::check(about(name), result.error_code, result.error_message.as_deref())
        })
        .await
    }

    /// The settings of a topic, all of them.
    ///
    /// # Errors
    /// [`ClientError::Kafka`] if the topic is not there or not ours to see.
    pub async fn topic_configs(&self, name: &str) -> Result<Vec<ConfigEntry>, ClientError> {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(TOPIC)
            .with_resource_name(text(name))
            .with_configuration_keys(None);
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
        let answer = self.call_any(&request).await?;
        let result = answer.results.first().ok_or_else(empty)?;
        ClientError::check(about(name), result.error_code, result.error_message.as_deref())?;
        let entry =
            |c: &kafka_protocol::messages::describe_configs_response::DescribeConfigsResourceResult| {
                ConfigEntry {
                    name: c.name.to_string(),
                    value: c.value.as_ref().map(|v| v.to_string()),
                    own: c.config_source == DYNAMIC_TOPIC_CONFIG,
                }
            };
        let mut entries: Vec<_> = result.configs.iter().map(entry).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Changes settings of a topic, all or none of them.
    ///
    /// # Errors
    /// [`ClientError::Kafka`] says why the cluster does not.
    pub async fn alter_topic_configs(&self, name: &str, changes: &[ConfigChange]) -> Result<(), ClientError> {
        let alter = |change: &ConfigChange| match change {
            ConfigChange::Set(name, value) => {
                AlterableConfig::default().with_name(text(name)).with_value(Some(text(value)))
            }
            ConfigChange::Delete(name) => {
                AlterableConfig::default().with_name(text(name)).with_config_operation(1).with_value(None)
            }
        };
        let resource = AlterConfigsResource::default()
            .with_resource_type(TOPIC)
            .with_resource_name(text(name))
            .with_configs(changes.iter().map(alter).collect());
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        self.call_controller(&request, |answer| {
            let result = answer.responses.first().ok_or_else(empty)?;
            ClientError::check(about(name), result.error_code, result.error_message.as_deref())
        })
        .await
    }

    /// How long a broker may take over a request, in ms: as long as its answer may take.
    fn patience_ms(&self) -> i32 {
        i32::try_from(self.config().request_timeout.as_millis()).unwrap_or(i32::MAX)
    }
}

fn about(topic: &str) -> String {
    format!("topic {topic}")
}

fn empty() -> ClientError {
    ClientError::Malformed("an answer without a result".into())
}
