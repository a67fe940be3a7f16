//! What may go wrong, by what the person at the keyboard can do about it.

use std::fmt;

use kafka_protocol::ResponseError;

/// An error of a broker's answer, with the broker's own words if it sent any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaError {
    /// Kafka's error.
    pub code: ResponseError,
    /// The broker's words.
    pub message: Option<String>,
}

impl KafkaError {
    /// The error of a code in an answer; `Ok` for 0.
    pub fn check(code: i16, message: Option<&str>) -> Result<(), KafkaError> {
        match ResponseError::try_from_code(code) {
            None => Ok(()),
            Some(code) => Err(KafkaError { code, message: message.map(str::to_owned) }),
        }
    }

    /// Kafka's own name of the error, such as `UNKNOWN_TOPIC_OR_PARTITION`.
    pub fn name(&self) -> String {
        if let ResponseError::Unknown(code) = self.code {
            return format!("error {code}");
        }
        let mut name = String::new();
        for letter in format!("{:?}", self.code).chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_uppercase());
        }
        name
    }
}

impl fmt::Display for KafkaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) if !message.is_empty() => {
                write!(f, "{} ({})", message.trim_end_matches('.'), self.name())
            }
            _ => match words(self.code) {
                Some(words) => write!(f, "{words} ({})", self.name()),
                None => f.write_str(&self.name()),
            },
        }
    }
}

impl std::error::Error for KafkaError {}

/// What the more frequent errors mean, where a broker sends no words of its own.
fn words(code: ResponseError) -> Option<&'static str> {
    use ResponseError as E;
    Some(match code {
        E::UnknownTopicOrPartition => "there is no such topic or partition",
        E::TopicAlreadyExists => "it exists already",
        E::InvalidTopicException => "not a valid name for a topic",
        E::InvalidPartitions => "not a valid number of partitions",
        E::InvalidReplicationFactor => "not a valid replication factor for this cluster",
        E::MessageTooLarge => "larger than the topic allows (max.message.bytes)",
        E::RecordListTooLarge => "more records than the topic allows at once",
        E::NotEnoughReplicas => "fewer replicas are in sync than min.insync.replicas asks for",
        E::InvalidRequiredAcks => "acks must be 0, 1 or all",
        E::TopicAuthorizationFailed => "not allowed to use this topic",
        E::GroupAuthorizationFailed => "not allowed to use this group",
        E::ClusterAuthorizationFailed => "not allowed to do this to the cluster",
        E::NonEmptyGroup => "the group has members; stop them first",
        E::GroupIdNotFound => "there is no such group",
        E::UnknownMemberId => "the group has members; stop them first",
        E::InconsistentGroupProtocol => "the group's members use other protocols or assignors",
        E::InvalidGroupId => "not a valid name for a group",
        E::GroupMaxSizeReached => "the group has as many members as it may have",
        E::UnsupportedCompressionType => "this compression is not supported",
        E::UnsupportedSaslMechanism => "this SASL mechanism is not enabled",
        E::CorruptMessage => "the records arrived damaged, or lack a key where the topic is compacted",
        E::InvalidRecord => "a record that the topic does not take (a compacted topic needs keys)",
        E::RequestTimedOut => "the broker did not finish in time",
        E::CoordinatorNotAvailable => "the group's coordinator is not there",
        E::LeaderNotAvailable => "the partition has no leader at the moment",
        _ => return None,
    })
}

/// Why a call to a cluster failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection to an address that the caller gave.
    #[error(
        "cannot reach {address}: {why}. Is a broker running there? --bootstrap-server takes HOST:PORT of one of its listeners"
    )]
    Unreachable {
        /// Host and port.
        address: String,
        /// What the system says.
        why: String,
    },
    /// No connection to an address that the cluster itself gave.
    #[error(
        "the cluster says that broker {node} is at {address}, and that address cannot be reached from here: {why}. If the broker runs, set its advertised.listeners to an address that its clients can reach, such as advertised.listeners=PLAINTEXT://HOST:PORT"
    )]
    Advertised {
        /// The broker's id.
        node: i32,
        /// Host and port as advertised.
        address: String,
        /// What the system says.
        why: String,
    },
    /// A connection was made, and what is at its other end does not speak Kafka as configured.
    #[error("{address} does not answer as a Kafka broker does: {why}")]
    NotKafka {
        /// Host and port.
        address: String,
        /// What was seen, and what may help.
        why: String,
    },
    /// A connection ended before the answer came.
    #[error("{address} closed the connection before it answered")]
    Disconnected {
        /// Host and port.
        address: String,
    },
    /// No answer in time.
    #[error("no answer within {seconds} s: {what}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
    },
    /// Broker and client have no version of an API in common.
    #[error("{address} does not serve {api} in a version known here ({ours:?}); it offers {theirs:?}")]
    Unsupported {
        /// Host and port.
        address: String,
        /// The request's name.
        api: &'static str,
        /// The versions known here.
        ours: (i16, i16),
        /// The broker's versions, if it serves the API at all.
        theirs: Option<(i16, i16)>,
    },
    /// The broker answered with an error.
    #[error("{what}: {error}")]
    Kafka {
        /// What was asked for, such as `topic orders`.
        what: String,
        /// The error.
        error: KafkaError,
    },
    /// The cluster lets nobody in with these credentials.
    #[error("{address} refuses the login: {why}")]
    Login {
        /// Host and port.
        address: String,
        /// The broker's words.
        why: String,
    },
    /// An answer that does not follow the protocol.
    #[error("an answer that cannot be read: {0}")]
    Malformed(String),
    /// A setting that is wrong or not supported.
    #[error("{0}")]
    Config(String),
}

impl ClientError {
    /// The error of a code in an answer about `what`; `Ok` for 0.
    pub(crate) fn check(
        what: impl Into<String>,
        code: i16,
        message: Option<&str>,
    ) -> Result<(), ClientError> {
        KafkaError::check(code, message).map_err(|error| ClientError::Kafka { what: what.into(), error })
    }

    /// Kafka's error, if a broker answered with one.
    pub fn kafka(&self) -> Option<ResponseError> {
        match self {
            ClientError::Kafka { error, .. } => Some(error.code),
            _ => None,
        }
    }

    /// Whether the same call may succeed a moment later, perhaps at another broker.
    pub fn is_transient(&self) -> bool {
        match self {
            ClientError::Disconnected { .. } | ClientError::Advertised { .. } => true,
            ClientError::Kafka { error, .. } => is_transient(error.code),
            _ => false,
        }
    }
}

/// Whether an error says "not now" or "not here" rather than "no". Topics and partitions that are not there
/// are left to the caller, for whom they may well mean "no".
pub(crate) fn is_transient(code: ResponseError) -> bool {
    use ResponseError as E;
    matches!(
        code,
        E::LeaderNotAvailable
            | E::NotLeaderOrFollower
            | E::NotController
            | E::RequestTimedOut
            | E::BrokerNotAvailable
            | E::ReplicaNotAvailable
            | E::NetworkException
            | E::CoordinatorLoadInProgress
            | E::CoordinatorNotAvailable
            | E::NotCoordinator
            | E::KafkaStorageError
            | E::FencedLeaderEpoch
            | E::UnknownLeaderEpoch
            | E::OffsetNotAvailable
            | E::ListenerNotFound
            | E::UnstableOffsetCommit
            | E::ThrottlingQuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kafkas() {
        let name = |code| KafkaError { code, message: None }.name();
        assert_eq!(name(ResponseError::UnknownTopicOrPartition), "UNKNOWN_TOPIC_OR_PARTITION");
        assert_eq!(name(ResponseError::NonEmptyGroup), "NON_EMPTY_GROUP");
        assert_eq!(name(ResponseError::Unknown(999)), "error 999");
    }

    #[test]
    fn the_brokers_words_come_first() {
        let error = KafkaError { code: ResponseError::InvalidConfig, message: Some("no such thing.".into()) };
        assert_eq!(error.to_string(), "no such thing (INVALID_CONFIG)");
    }
}
