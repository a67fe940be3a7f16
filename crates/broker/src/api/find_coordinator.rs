//! FindCoordinator: it is always here.

use kafka_protocol::{
    ResponseError,
    messages::{
        BrokerId, FindCoordinatorRequest, FindCoordinatorResponse, find_coordinator_response::Coordinator,
    },
    protocol::StrBytes,
};

use super::{Context, code, text};
use crate::security::acl::Operation;

const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;

pub(crate) async fn answer(cx: Context, request: FindCoordinatorRequest) -> FindCoordinatorResponse {
    let (host, port) = cx.shared.advertised(&cx.client);
    let node = BrokerId(cx.shared.config().node_id);
    let check = |key: &str| match request.key_type {
        GROUP => cx.group(Operation::Describe, key),
        TRANSACTION => cx.transaction(Operation::Describe, key),
        _ => Err(ResponseError::InvalidRequest),
    };
    if cx.version < 4 {
        let checked = check(&request.key);
        let response = FindCoordinatorResponse::default().with_error_code(code(&checked));
        return if checked.is_ok() {
            response.with_node_id(node).with_host(text(host)).with_port(port)
        } else {
            response.with_node_id(BrokerId(-1)).with_port(-1)
        };
    }
    let find = |key: StrBytes| {
        let checked = check(&key);
        let coordinator = Coordinator::default().with_key(key).with_error_code(code(&checked));
        if checked.is_ok() {
            coordinator.with_node_id(node).with_host(text(host.clone())).with_port(port)
        } else {
            coordinator.with_node_id(BrokerId(-1)).with_port(-1)
        }
    };
    FindCoordinatorResponse::default()
        .with_coordinators(request.coordinator_keys.into_iter().map(find).collect())
}
