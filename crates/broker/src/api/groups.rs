//! DescribeGroups, ListGroups, DeleteGroups.

use kafka_protocol::{
    ResponseError,
    messages::{
        DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse, GroupId,
        ListGroupsRequest, ListGroupsResponse, delete_groups_response::DeletableGroupResult,
        describe_groups_response::*, list_groups_response::ListedGroup,
    },
};

use super::{Context, code, text};
use crate::{
    group::{
        Members,
        classic::{Classic, State},
    },
    security::acl::{Kind, Operation},
};

pub(crate) async fn describe(cx: Context, request: DescribeGroupsRequest) -> DescribeGroupsResponse {
    let mut groups = Vec::with_capacity(request.groups.len());
    for id in request.groups {
        let version = cx.version;
        if let Err(e) = cx.group(Operation::Describe, &id) {
            groups.push(DescribedGroup::default().with_error_code(e.code()).with_group_id(id));
            continue;
        }
        let described = cx.shared.groups.with(&id, |shard, _, _| {
            let why = match shard.get(&id).map(|g| &g.members) {
                Some(Members::Classic(classic)) => return describe_one(classic, version),
                Some(Members::Consumer(_)) => format!("Group {} is not a classic group.", &**id),
                None => format!("Group {} not found.", &**id),
            };
            let dead = DescribedGroup::default().with_group_state(text("Dead"));
            if version < 6 {
                return dead;
            }
            dead.with_error_code(ResponseError::GroupIdNotFound.code()).with_error_message(Some(text(why)))
        });
        let group = described.await;
        let group = group.unwrap_or_else(|e| DescribedGroup::default().with_error_code(e.code()));
        let operations = cx.operations(request.include_authorized_operations, Kind::Group, &id);
        groups.push(group.with_group_id(id).with_authorized_operations(operations));
    }
    DescribeGroupsResponse::default().with_groups(groups)
}

fn describe_one(classic: &Classic, version: i16) -> DescribedGroup {
    let stable = classic.state() == State::Stable;
    let members = classic.members().map(|(id, member, metadata)| {
        let described = DescribedGroupMember::default()
            .with_member_id(text(id))
            .with_client_id(text(&member.client_id))
            .with_client_host(text(&member.client_host));
        let described = match &member.instance {
            Some(instance) if version >= 4 => described.with_group_instance_id(Some(text(instance))),
            _ => described,
        };
        if stable {
            described.with_member_metadata(metadata).with_member_assignment(member.assignment.clone())
        } else {
            described
        }
    });
    DescribedGroup::default()
        .with_group_state(text(classic.state().name()))
        .with_protocol_type(text(classic.protocol_type()))
        .with_protocol_data(text(if stable { classic.protocol() } else { "" }))
        .with_members(members.collect())
}

pub(crate) async fn list(cx: Context, request: ListGroupsRequest) -> ListGroupsResponse {
    let mut groups = Vec::new();
    let all = cx.cluster(Operation::Describe).is_ok();
    let wanted = |filter: &[kafka_protocol::protocol::StrBytes], value: &str| {
        filter.is_empty() || filter.iter().any(|f| f.eq_ignore_ascii_case(value))
    };
    let done = cx.shared.groups.each(|id, group| {
        let (state, kind) = (group.members.state(), group.members.kind());
        if !all && cx.group(Operation::Describe, id).is_err() {
            return;
        }
        if !wanted(&request.states_filter, state) || !wanted(&request.types_filter, kind) {
            return;
        }
        let listed = ListedGroup::default()
            .with_group_id(GroupId(text(id)))
            .with_protocol_type(text(group.members.protocol_type()));
        let listed = if cx.version >= 4 { listed.with_group_state(text(state)) } else { listed };
        groups.push(if cx.version >= 5 { listed.with_group_type(text(kind)) } else { listed });
    });
    match done.await {
        Ok(()) => ListGroupsResponse::default().with_groups(groups),
        Err(e) => ListGroupsResponse::default().with_error_code(e.code()),
    }
}

pub(crate) async fn delete(cx: Context, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let mut results = Vec::with_capacity(request.groups_names.len());
    for id in request.groups_names {
        let done = match cx.group(Operation::Delete, &id) {
            Ok(()) => cx.shared.groups.with(&id, |shard, _, fx| shard.delete(&id, fx)).await.and_then(|d| d),
            Err(e) => Err(e),
        };
        results.push(DeletableGroupResult::default().with_error_code(code(&done)).with_group_id(id));
    }
    DeleteGroupsResponse::default().with_results(results)
}
