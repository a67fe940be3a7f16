//! DescribeCluster and DescribeQuorum: a cluster of one.

use kafka_protocol::{
    ResponseError,
    messages::{
        BrokerId, DescribeClusterRequest, DescribeClusterResponse, DescribeQuorumRequest,
        DescribeQuorumResponse, describe_cluster_response::DescribeClusterBroker,
        describe_quorum_response::*,
    },
};

use super::{Context, text, topic_name};
use crate::security::acl::{CLUSTER, Kind, Operation};

/// The topic that Kafka's controllers keep their state in.
const METADATA: &str = "__cluster_metadata";

pub(crate) async fn answer(cx: Context, request: DescribeClusterRequest) -> DescribeClusterResponse {
    let response = DescribeClusterResponse::default();
    if cx.version >= 1 && request.endpoint_type != 1 {
        return response
            .with_error_code(ResponseError::MismatchedEndpointType.code())
            .with_error_message(Some(text("The request was sent to an endpoint of the wrong type.")))
            .with_endpoint_type(1);
    }
    let asked = request.include_cluster_authorized_operations;
    let operations = cx.operations(asked, Kind::Cluster, CLUSTER);
    let (host, port) = cx.shared.advertised(&cx.client);
    let broker = DescribeClusterBroker::default()
        .with_broker_id(BrokerId(cx.shared.config().node_id))
        .with_host(text(host))
        .with_port(port);
    response
        .with_cluster_id(text(&cx.shared.cluster_id))
        .with_controller_id(BrokerId(cx.shared.config().node_id))
        .with_endpoint_type(1)
        .with_brokers(vec![broker])
        .with_cluster_authorized_operations(operations)
}

pub(crate) async fn quorum(cx: Context, request: DescribeQuorumRequest) -> DescribeQuorumResponse {
    if let Err(e) = cx.cluster(Operation::Describe) {
        return DescribeQuorumResponse::default().with_error_code(e.code());
    }
    let asked = request.topics.first().filter(|t| &*t.topic_name == METADATA && t.partitions.len() == 1);
    if request.topics.len() != 1 || asked.is_none_or(|t| t.partitions[0].partition_index != 0) {
        let topics = request.topics.into_iter().map(|t| {
            let unknown = |p: kafka_protocol::messages::describe_quorum_request::PartitionData| {
                PartitionData::default()
                    .with_partition_index(p.partition_index)
                    .with_error_code(ResponseError::UnknownTopicOrPartition.code())
            };
            let partitions = t.partitions.into_iter().map(unknown).collect();
            TopicData::default().with_topic_name(t.topic_name).with_partitions(partitions)
        });
        return DescribeQuorumResponse::default().with_topics(topics.collect());
    }
    let node = BrokerId(cx.shared.config().node_id);
    let now = crate::clock::wall_ms();
    let mut voter = ReplicaState::default().with_replica_id(node).with_log_end_offset(0);
    if cx.version >= 1 {
        voter = voter.with_last_fetch_timestamp(now).with_last_caught_up_timestamp(now);
    }
    let partition = PartitionData::default()
        .with_leader_id(node)
        .with_leader_epoch(1)
        .with_high_watermark(0)
        .with_current_voters(vec![voter]);
    let topic = TopicData::default().with_topic_name(topic_name(METADATA)).with_partitions(vec![partition]);
    let response = DescribeQuorumResponse::default().with_topics(vec![topic]);
    if cx.version < 2 {
        return response;
    }
    let (host, port) = cx.shared.advertised(&cx.client);
    let name = text(&cx.shared.config().listeners[cx.client.listener].name);
    let listener = Listener::default().with_name(name).with_host(text(host)).with_port(port as u16);
    response.with_nodes(vec![Node::default().with_node_id(node).with_listeners(vec![listener])])
}
