//! DescribeAcls, CreateAcls, DeleteAcls (KIP-140, KIP-290).

use std::sync::Arc;

use kafka_protocol::{
    ResponseError,
    messages::{
        CreateAclsRequest, CreateAclsResponse, DeleteAclsRequest, DeleteAclsResponse, DescribeAclsRequest,
        DescribeAclsResponse, create_acls_request::AclCreation, create_acls_response::AclCreationResult,
        delete_acls_request::DeleteAclsFilter, delete_acls_response::*, describe_acls_response::*,
    },
    protocol::StrBytes,
};

use super::{Context, Refusal, blocking, invalid, refusal, text};
use crate::{
    security::acl::{Acl, Acls, CLUSTER, Filter, Kind, Operation, Pattern, PatternFilter, Permission},
    server::Shared,
};

/// The number of "any" in filters.
const ANY: i8 = 1;
/// The number of a filter's pattern that takes all that is about a resource.
const MATCH: i8 = 2;

/// The lists, if there are any and whoever asks may do this to them.
fn lists(cx: &Context, operation: Operation) -> Result<&Acls, Refusal> {
    let none = || (ResponseError::SecurityDisabled, "No Authorizer is configured.".to_owned());
    let acls = cx.shared.acls.as_ref().ok_or_else(none)?;
    cx.cluster(operation).map_err(refusal)?;
    Ok(acls)
}

pub(crate) async fn describe(cx: Context, request: DescribeAclsRequest) -> DescribeAclsResponse {
    let filter = lists(&cx, Operation::Describe).and_then(|acls| {
        let filter = filter(
            (request.resource_type_filter, request.pattern_type_filter, request.resource_name_filter),
            (request.principal_filter, request.host_filter),
            (request.operation, request.permission_type),
        )?;
        Ok(acls.find(&filter))
    });
    let found = match filter {
        Ok(found) => found,
        Err((error, why)) => {
            let response = DescribeAclsResponse::default().with_error_code(error.code());
            return response.with_error_message(Some(text(why)));
        }
    };
    let same = |a: &Acl, b: &Acl| (a.kind, a.pattern, &a.name) == (b.kind, b.pattern, &b.name);
    let resources = found.chunk_by(same).map(|acls| {
        let described = acls.iter().map(|acl| {
            AclDescription::default()
                .with_principal(text(&acl.principal))
                .with_host(text(&acl.host))
                .with_operation(acl.operation as i8)
                .with_permission_type(acl.permission as i8)
        });
        DescribeAclsResource::default()
            .with_resource_type(acls[0].kind as i8)
            .with_resource_name(text(&acls[0].name))
            .with_pattern_type(acls[0].pattern as i8)
            .with_acls(described.collect())
    });
    DescribeAclsResponse::default().with_resources(resources.collect())
}

pub(crate) async fn create(cx: Context, request: CreateAclsRequest) -> CreateAclsResponse {
    let allowed = lists(&cx, Operation::Alter).map(drop);
    let wanted: Vec<Result<Acl, Refusal>> =
        request.creations.iter().map(|c| allowed.clone().and_then(|()| acl(c))).collect();
    let new: Vec<Acl> = wanted.iter().filter_map(|w| w.clone().ok()).collect();
    let written = change(&cx, move |lists| lists.extend(new)).await;
    let results = wanted.into_iter().map(|wanted| match wanted.map(drop).and_then(|()| written.clone()) {
        Ok(()) => AclCreationResult::default(),
        Err((error, why)) => {
            AclCreationResult::default().with_error_code(error.code()).with_error_message(Some(text(why)))
        }
    });
    CreateAclsResponse::default().with_results(results.collect())
}

pub(crate) async fn delete(cx: Context, request: DeleteAclsRequest) -> DeleteAclsResponse {
    let allowed = lists(&cx, Operation::Alter).map(drop);
    let of = |f: DeleteAclsFilter| {
        filter(
            (f.resource_type_filter, f.pattern_type_filter, f.resource_name_filter),
            (f.principal_filter, f.host_filter),
            (f.operation, f.permission_type),
        )
    };
    let filters: Vec<Result<Filter, Refusal>> =
        request.filters.into_iter().map(|f| allowed.clone().and_then(|()| of(f))).collect();
    let wanted = filters.clone();
    let found = change(&cx, move |lists| {
        let found: Vec<Vec<Acl>> = wanted
            .iter()
            .map(|w| w.iter().flat_map(|w| lists.iter().filter(|a| w.takes(a))).cloned().collect())
            .collect();
        lists.retain(|acl| !wanted.iter().flatten().any(|w| w.takes(acl)));
        found
    });
    let found = found.await;
    let results = filters.into_iter().enumerate().map(|(i, filter)| {
        let result = DeleteAclsFilterResult::default();
        match filter.map(drop).and_then(|()| found.clone()) {
            Ok(found) => result.with_matching_acls(found[i].iter().map(deleted).collect()),
            Err((error, why)) => result.with_error_code(error.code()).with_error_message(Some(text(why))),
        }
    });
    DeleteAclsResponse::default().with_filter_results(results.collect())
}

fn deleted(acl: &Acl) -> DeleteAclsMatchingAcl {
    DeleteAclsMatchingAcl::default()
        .with_resource_type(acl.kind as i8)
        .with_resource_name(text(&acl.name))
        .with_pattern_type(acl.pattern as i8)
        .with_principal(text(&acl.principal))
        .with_host(text(&acl.host))
        .with_operation(acl.operation as i8)
        .with_permission_type(acl.permission as i8)
}

/// Changes the lists durably, if there are any.
async fn change<T: Default + Send + 'static>(
    cx: &Context,
    change: impl FnOnce(&mut std::collections::BTreeSet<Acl>) -> T + Send + 'static,
) -> Result<T, Refusal> {
    let shared: Arc<Shared> = cx.shared.clone();
    let done = blocking(move || match &shared.acls {
        None => Ok(T::default()),
        Some(acls) => acls.change(&shared.topics, change).map_err(|error| {
            tracing::error!(%error, "the access control lists cannot be written");
            ResponseError::KafkaStorageError
        }),
    });
    done.await.map_err(refusal)
}

/// A new line, if it can be one.
fn acl(wanted: &AclCreation) -> Result<Acl, Refusal> {
    let kind = Kind::numbered(wanted.resource_type).ok_or_else(|| invalid("Invalid resourceType"))?;
    let pattern =
        Pattern::numbered(wanted.resource_pattern_type).ok_or_else(|| invalid("Invalid patternType"))?;
    let operation = Operation::numbered(wanted.operation).ok_or_else(|| invalid("Invalid operation"))?;
    let permission =
        Permission::numbered(wanted.permission_type).ok_or_else(|| invalid("Invalid permissionType"))?;
    if wanted.resource_name.is_empty() {
        return Err(invalid("Resource name should not be empty"));
    }
    if kind == Kind::Cluster && *wanted.resource_name != *CLUSTER {
        return Err(invalid("The only valid name for the CLUSTER resource is kafka-cluster"));
    }
    if !wanted.principal.contains(':') {
        let why = format!("Could not parse principal from `{}` (no colon is present)", &*wanted.principal);
        return Err((ResponseError::InvalidRequest, why));
    }
    let own = |text: &StrBytes| text.to_string();
    let (name, principal, host) = (own(&wanted.resource_name), own(&wanted.principal), own(&wanted.host));
    Ok(Acl { kind, pattern, name, principal, host, operation, permission })
}

/// A filter of numbers and texts, as requests have them.
fn filter(
    (kind, pattern, name): (i8, i8, Option<StrBytes>),
    (principal, host): (Option<StrBytes>, Option<StrBytes>),
    (operation, permission): (i8, i8),
) -> Result<Filter, Refusal> {
    /// A number that is "any", or one of those.
    fn any<T>(code: i8, numbered: impl FnOnce(i8) -> Option<T>) -> Result<Option<T>, Refusal> {
        match code {
            ANY => Ok(None),
            code => numbered(code).map(Some).ok_or_else(|| invalid("The filter has an unknown element")),
        }
    }
    let own = |text: Option<StrBytes>| text.map(|t| t.to_string());
    Ok(Filter {
        kind: any(kind, Kind::numbered)?,
        name: own(name),
        pattern: match pattern {
            MATCH => PatternFilter::Match,
            pattern => any(pattern, Pattern::numbered)?.map_or(PatternFilter::Any, PatternFilter::Only),
        },
        principal: own(principal),
        host: own(host),
        operation: any(operation, Operation::numbered)?,
        permission: any(permission, Permission::numbered)?,
    })
}
