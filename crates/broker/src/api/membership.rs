//! JoinGroup, SyncGroup, Heartbeat, LeaveGroup: the classic group protocol.

use kafka_protocol::{
    ResponseError,
    messages::{
        HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
        LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
        join_group_response::JoinGroupResponseMember, leave_group_request::MemberIdentity,
        leave_group_response::MemberResponse,
    },
    protocol::StrBytes,
};

use super::{Context, code, text};
use crate::{
    group::classic::{Join, Sync},
    security::acl::Operation,
    topics::random_uuid,
};

/// Text that need not be there, as the state keeps it.
fn own(text: Option<StrBytes>) -> Option<String> {
    text.map(|t| t.to_string())
}

pub(crate) async fn join(cx: Context, request: JoinGroupRequest) -> JoinGroupResponse {
    let instance = own(request.group_instance_id);
    let prefix = instance.as_deref().unwrap_or(&cx.client_id);
    let join = Join {
        group: request.group_id.to_string(),
        member: request.member_id.to_string(),
        fresh_id: format!("{prefix}-{}", random_uuid()),
        instance,
        client_id: cx.client_id.clone(),
        client_host: cx.client.host.clone(),
        session_ms: request.session_timeout_ms,
        rebalance_ms: if cx.version >= 1 { request.rebalance_timeout_ms } else { request.session_timeout_ms },
        protocol_type: request.protocol_type.to_string(),
        protocols: request.protocols.into_iter().map(|p| (p.name.to_string(), p.metadata)).collect(),
        id_first: cx.version >= 4,
        can_skip: cx.version >= 9,
    };
    // Null is not known to the versions before 7.
    let name = |name: Option<String>| match name {
        None if cx.version < 7 => Some(StrBytes::new()),
        name => name.map(text),
    };
    let joined = match cx.group(Operation::Read, &join.group) {
        Ok(()) => cx.shared.groups.join(join).await,
        Err(e) => Err((e, join.member)),
    };
    match joined {
        Ok(joined) => {
            let members = joined.members.into_iter().map(|(id, instance, metadata)| {
                JoinGroupResponseMember::default()
                    .with_member_id(text(id))
                    .with_group_instance_id(instance.filter(|_| cx.version >= 5).map(text))
                    .with_metadata(metadata)
            });
            let members = members.collect();
            JoinGroupResponse::default()
                .with_generation_id(joined.generation)
                .with_protocol_type(joined.protocol_type.filter(|_| cx.version >= 7).map(text))
                .with_protocol_name(name(joined.protocol))
                .with_leader(text(joined.leader))
                .with_skip_assignment(joined.skip)
                .with_member_id(text(joined.member))
                .with_members(members)
        }
        Err((error, member)) => JoinGroupResponse::default()
            .with_error_code(error.code())
            .with_generation_id(-1)
            .with_protocol_name(name(None))
            .with_member_id(text(member)),
    }
}

pub(crate) async fn sync(cx: Context, request: SyncGroupRequest) -> SyncGroupResponse {
    let sync = Sync {
        group: request.group_id.to_string(),
        member: request.member_id.to_string(),
        instance: own(request.group_instance_id),
        generation: request.generation_id,
        protocol_type: own(request.protocol_type),
        protocol: own(request.protocol_name),
        assignments: request
            .assignments
            .into_iter()
            .map(|a| (a.member_id.to_string(), a.assignment))
            .collect(),
    };
    if cx.version >= 5 && (sync.protocol_type.is_none() || sync.protocol.is_none()) {
        return SyncGroupResponse::default().with_error_code(ResponseError::InconsistentGroupProtocol.code());
    }
    if let Err(e) = cx.group(Operation::Read, &sync.group) {
        return SyncGroupResponse::default().with_error_code(e.code());
    }
    match cx.shared.groups.sync(sync).await {
        Ok(synced) => {
            let response = SyncGroupResponse::default().with_assignment(synced.assignment);
            if cx.version < 5 {
                return response;
            }
            response
                .with_protocol_type(synced.protocol_type.map(text))
                .with_protocol_name(synced.protocol.map(text))
        }
        Err(e) => SyncGroupResponse::default().with_error_code(e.code()),
    }
}

pub(crate) async fn heartbeat(cx: Context, request: HeartbeatRequest) -> HeartbeatResponse {
    let instance = request.group_instance_id.as_deref();
    let (group, topics) = (&*request.group_id, &*cx.shared.topics);
    if let Err(e) = cx.group(Operation::Read, group) {
        return HeartbeatResponse::default().with_error_code(e.code());
    }
    let beat = cx.shared.groups.with(group, |shard, now, fx| {
        shard.heartbeat(now, group, &request.member_id, instance, request.generation_id, topics, fx)
    });
    HeartbeatResponse::default().with_error_code(code(&beat.await.and_then(|r| r)))
}

pub(crate) async fn leave(cx: Context, request: LeaveGroupRequest) -> LeaveGroupResponse {
    let one = || vec![MemberIdentity::default().with_member_id(request.member_id.clone())];
    let members = if cx.version < 3 { one() } else { request.members };
    let group = &*request.group_id;
    if let Err(e) = cx.group(Operation::Read, group) {
        return LeaveGroupResponse::default().with_error_code(e.code());
    }
    let left = cx.shared.groups.with(group, |shard, now, fx| {
        let leave = |m: &MemberIdentity| {
            let done = shard.leave(now, group, &m.member_id, m.group_instance_id.as_deref(), fx);
            (m.clone(), code(&done))
        };
        members.iter().map(leave).collect::<Vec<_>>()
    });
    let response = LeaveGroupResponse::default();
    match left.await {
        Err(e) => response.with_error_code(e.code()),
        Ok(left) if cx.version < 3 => response.with_error_code(left.first().map_or(0, |l| l.1)),
        Ok(left) => {
            let member = |(m, error): (MemberIdentity, i16)| {
                MemberResponse::default()
                    .with_member_id(m.member_id)
                    .with_group_instance_id(m.group_instance_id)
                    .with_error_code(error)
            };
            response.with_members(left.into_iter().map(member).collect())
        }
    }
}
