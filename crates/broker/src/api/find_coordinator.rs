//! FindCoordinator: it is always here.

use kafka_protocol::{
    ResponseError,
    messages::{
        BrokerId, FindCoordinatorRequest, FindCoordinatorResponse, find_coordinator_response::Coordinator,
    },
};

use super::{Context, text};

const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;

pub(crate) async fn answer(cx: Context, request: FindCoordinatorRequest) -> FindCoordinatorResponse {
    let (host, port) = cx.shared.advertised(&cx.client);
    let node = BrokerId(cx.shared.config.node_id);
    let known = matches!(request.key_type, GROUP | TRANSACTION);
    let error = if known { 0 } else { ResponseError::InvalidRequest.code() };
    if cx.version < 4 {
        let response = FindCoordinatorResponse::default().with_error_code(error);
        return if known {
            response.with_node_id(node).with_host(text(host)).with_port(port)
        } else {
            response.with_node_id(BrokerId(-1)).with_port(-1)
        };
    }
    let find = |key| {
        let coordinator = Coordinator::default().with_key(key).with_error_code(error);
        if known {
            coordinator.with_node_id(node).with_host(text(host.clone())).with_port(port)
        } else {
            coordinator.with_node_id(BrokerId(-1)).with_port(-1)
        }
    };
    FindCoordinatorResponse::default()
        .with_coordinators(request.coordinator_keys.into_iter().map(find).collect())
}
