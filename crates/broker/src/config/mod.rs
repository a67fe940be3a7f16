//! The broker's settings, under Kafka's own names.

mod broker;
mod group;
mod names;
mod security;
mod topic;
mod value;

pub(crate) use broker::Said;
pub use broker::{BrokerConfig, ConfigError, Listener};
pub(crate) use group::{GROUP_SETTINGS, GroupSetting, HEARTBEAT, SESSION, check_group};
pub(crate) use names::{BROKER_SETTINGS, Dynamic, kind_of, setting};
pub(crate) use topic::{TOPIC_SETTINGS, TopicConfig, TopicSetting, topic_setting};
pub(crate) use value::{Type, check};
