//! Which versions of which requests are understood here. Negotiated for each connection with what its broker
//! says (KIP-35, KIP-511).

use kafka_protocol::{messages::*, protocol::Request};

use crate::ClientError;

/// A request that is sent here.
pub(crate) trait Api: Request + Send + 'static {
    /// Its name in Kafka's documentation.
    const NAME: &'static str;
    /// Versions that the code here can fill in and read.
    const OURS: (i16, i16);
}

macro_rules! apis {
    ($($request:ident $name:literal $min:literal..=$max:literal;)*) => {
        $(impl Api for $request {
            const NAME: &'static str = $name;
            const OURS: (i16, i16) = ($min, $max);
        })*
    };
}

// Versions that name topics by id alone (Produce 13, Fetch 13, OffsetCommit and OffsetFetch 10) are left out:
// the tools are about names. Those that ask for several keys at once (FindCoordinator 4, OffsetFetch 8) too.
apis! {
    ApiVersionsRequest "ApiVersions" 0..=3;
    MetadataRequest "Metadata" 4..=12;
    ProduceRequest "Produce" 3..=11;
    FetchRequest "Fetch" 4..=12;
    ListOffsetsRequest "ListOffsets" 1..=7;
    FindCoordinatorRequest "FindCoordinator" 1..=3;
    JoinGroupRequest "JoinGroup" 2..=8;
    SyncGroupRequest "SyncGroup" 1..=5;
    HeartbeatRequest "Heartbeat" 1..=4;
    LeaveGroupRequest "LeaveGroup" 1..=5;
    OffsetCommitRequest "OffsetCommit" 2..=8;
    OffsetFetchRequest "OffsetFetch" 2..=7;
    DescribeGroupsRequest "DescribeGroups" 1..=5;
    ConsumerGroupDescribeRequest "ConsumerGroupDescribe" 0..=1;
    ListGroupsRequest "ListGroups" 1..=5;
    DeleteGroupsRequest "DeleteGroups" 0..=2;
    OffsetDeleteRequest "OffsetDelete" 0..=0;
    CreateTopicsRequest "CreateTopics" 2..=7;
    DeleteTopicsRequest "DeleteTopics" 1..=5;
    CreatePartitionsRequest "CreatePartitions" 0..=3;
    DescribeConfigsRequest "DescribeConfigs" 1..=4;
    IncrementalAlterConfigsRequest "IncrementalAlterConfigs" 0..=1;
    InitProducerIdRequest "InitProducerId" 0..=4;
    SaslHandshakeRequest "SaslHandshake" 1..=1;
    SaslAuthenticateRequest "SaslAuthenticate" 0..=2;
}

/// What a broker serves: API keys with the first and last version.
#[derive(Clone, Debug, Default)]
pub(crate) struct Served(Vec<(i16, (i16, i16))>);

impl Served {
    pub(crate) fn new(answer: &ApiVersionsResponse) -> Served {
        Served(answer.api_keys.iter().map(|a| (a.api_key, (a.min_version, a.max_version))).collect())
    }

    /// The highest version that both sides know.
    pub(crate) fn version<R: Api>(&self, address: &str) -> Result<i16, ClientError> {
        let theirs = self.0.iter().find(|(key, _)| *key == R::KEY).map(|(_, versions)| *versions);
        let common = theirs.map(|(min, max)| (min.max(R::OURS.0), max.min(R::OURS.1)));
        match common {
            Some((min, max)) if min <= max => Ok(max),
            _ => Err(ClientError::Unsupported {
                address: address.to_owned(),
                api: R::NAME,
                ours: R::OURS,
                theirs,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::api_versions_response::ApiVersion;

    use super::*;

    #[test]
    fn the_highest_common_version_is_taken_and_none_is_an_error() {
        let served = |min, max| {
            let version = ApiVersion::default().with_api_key(1).with_min_version(min).with_max_version(max);
            Served::new(&ApiVersionsResponse::default().with_api_keys(vec![version]))
        };
        assert_eq!(served(0, 99).version::<FetchRequest>("").unwrap(), 12);
        assert_eq!(served(0, 4).version::<FetchRequest>("").unwrap(), 4);
        assert!(served(0, 3).version::<FetchRequest>("").is_err());
        assert!(served(13, 18).version::<FetchRequest>("").is_err());
        assert!(served(0, 99).version::<ProduceRequest>("").is_err());
    }
}
