//! The broker's settings, under Kafka's own names.

mod broker;
mod security;
mod topic;
mod value;

pub(crate) use broker::BROKER_SETTINGS;
pub use broker::{BrokerConfig, ConfigError, Listener};
pub(crate) use topic::{TOPIC_SETTINGS, TopicConfig, TopicSetting, topic_setting};
pub(crate) use value::{Type, check};
