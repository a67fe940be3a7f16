//! DescribeClientQuotas and AlterClientQuotas (KIP-546); and what the handlers take out of quotas.

use kafka_protocol::{
    ResponseError,
    messages::{
        AlterClientQuotasRequest, AlterClientQuotasResponse, DescribeClientQuotasRequest,
        DescribeClientQuotasResponse,
        alter_client_quotas_request::{EntryData as Wanted, OpData},
        alter_client_quotas_response as altered,
        describe_client_quotas_request::ComponentData,
        describe_client_quotas_response::*,
    },
};

use super::{Context, Refusal, blocking, invalid, refusal, text};
use crate::{
    clock,
    quota::{Doer, Entity, EntityKind, Quota, Rates},
    security::acl::Operation,
};

impl Context {
    /// Takes out of a quota what the client did, and does not listen to it while it owes. Returns for how many
    /// milliseconds.
    pub(super) fn takes(&self, quota: Quota, amount: f64) -> i32 {
        if !self.shared.quotas.any() {
            return 0;
        }
        let owed = self.with_doer(|doer| self.shared.quotas.take(quota, doer, amount, clock::mono_ms()));
        self.client.mute(owed);
        i32::try_from(owed).unwrap_or(i32::MAX)
    }

    /// Takes partitions to be made or deleted out of the client's quota; if it owes already, it is an error that
    /// `strict` versions know (KIP-599). The others are made to wait.
    pub(super) fn mutates(&self, partitions: usize, strict: bool) -> Result<(), ResponseError> {
        if !strict {
            self.takes(Quota::Mutation, partitions as f64);
            return Ok(());
        }
        let (quotas, now) = (&self.shared.quotas, clock::mono_ms());
        let taken = self.with_doer(|d| quotas.try_take(Quota::Mutation, d, partitions as f64, now));
        taken.map_err(|owed| {
            self.client.mute(owed);
            ResponseError::ThrottlingQuotaExceeded
        })
    }

    /// What a client is told of how long it is not listened to, in milliseconds.
    pub(super) fn throttle(&self) -> i32 {
        i32::try_from(self.client.muted_ms()).unwrap_or(i32::MAX)
    }

    fn with_doer<T>(&self, act: impl FnOnce(Doer<'_>) -> T) -> T {
        let auth = self.client.auth();
        let user = auth.principal();
        let user = user.split_once(':').map_or(user, |(_, name)| name);
        act(Doer::Client { user, id: &self.client_id })
    }
}

/// What is asked of the name of one kind of entity.
enum Match {
    Name(String),
    Default,
    Any,
}

pub(crate) async fn describe(
    cx: Context,
    request: DescribeClientQuotasRequest,
) -> DescribeClientQuotasResponse {
    let wanted = cx.cluster(Operation::DescribeConfigs).map_err(refusal);
    let wanted = match wanted.and_then(|()| matches(&request.components)) {
        Ok(wanted) => wanted,
        Err((error, why)) => {
            let response = DescribeClientQuotasResponse::default().with_error_code(error.code());
            return response.with_error_message(Some(text(why))).with_entries(None);
        }
    };
    let takes = |entity: &Entity| {
        let all = wanted.iter().all(|(kind, wanted)| match (entity.get(kind), wanted) {
            (Some(_), Match::Any) | (Some(None), Match::Default) => true,
            (Some(Some(name)), Match::Name(wanted)) => name == wanted,
            _ => false,
        });
        all && (!request.strict || entity.len() == wanted.len())
    };
    let rates = cx.shared.quotas.all();
    let entries = rates.into_iter().filter(|(entity, _)| takes(entity)).map(|(entity, rates)| {
        let named = |(kind, name): (EntityKind, Option<String>)| {
            EntityData::default().with_entity_type(text(kind.name())).with_entity_name(name.map(text))
        };
        let value =
            |(quota, rate): (Quota, f64)| ValueData::default().with_key(text(quota.name())).with_value(rate);
        EntryData::default()
            .with_entity(entity.into_iter().map(named).collect())
            .with_values(rates.into_iter().map(value).collect())
    });
    DescribeClientQuotasResponse::default().with_entries(Some(entries.collect()))
}

fn matches(components: &[ComponentData]) -> Result<Vec<(EntityKind, Match)>, Refusal> {
    const EXACT: i8 = 0;
    const DEFAULT: i8 = 1;
    const ANY: i8 = 2;
    let mut wanted: Vec<(EntityKind, Match)> = Vec::new();
    for component in components {
        let kind = EntityKind::named(&component.entity_type).ok_or_else(|| {
            let why = format!("Custom entity type '{}' not supported", &*component.entity_type);
            (ResponseError::UnsupportedVersion, why)
        })?;
        if wanted.iter().any(|(k, _)| *k == kind) {
            return Err(invalid(format!(
                "Entity type {} cannot appear more than once in the filter",
                kind.name()
            )));
        }
        let matched = match (component.match_type, &component._match) {
            (EXACT, Some(name)) => Match::Name(name.to_string()),
            (DEFAULT, None) => Match::Default,
            (ANY, None) => Match::Any,
            _ => return Err(invalid("The match type and the match of a component do not belong together")),
        };
        wanted.push((kind, matched));
    }
    let has = |kind| wanted.iter().any(|(k, _)| *k == kind);
    if has(EntityKind::Ip) && wanted.len() > 1 {
        return Err(invalid("Invalid entity filter component combination: ip goes with no other"));
    }
    Ok(wanted)
}

/// What is changed of one entity: a rate, or none.
type Changes = (Entity, Vec<(Quota, Option<f64>)>);

pub(crate) async fn alter(cx: Context, request: AlterClientQuotasRequest) -> AlterClientQuotasResponse {
    let may = cx.cluster(Operation::AlterConfigs).map_err(refusal);
    let checked: Vec<Result<Changes, Refusal>> =
        request.entries.iter().map(|e| may.clone().and_then(|()| changes(e))).collect();
    let good: Vec<Changes> = checked.iter().filter_map(|c| c.clone().ok()).collect();
    let shared = cx.shared.clone();
    let written = if request.validate_only || good.is_empty() {
        Ok(())
    } else {
        let written = blocking(move || {
            shared.quotas.change(&shared.topics, |rates| apply(rates, good)).map_err(|error| {
                tracing::error!(%error, "the quotas cannot be written");
                ResponseError::KafkaStorageError
            })
        });
        written.await.map_err(refusal)
    };
    let entries = request.entries.into_iter().zip(checked).map(|(entry, checked)| {
        let named = |e: kafka_protocol::messages::alter_client_quotas_request::EntityData| {
            altered::EntityData::default().with_entity_type(e.entity_type).with_entity_name(e.entity_name)
        };
        let response =
            altered::EntryData::default().with_entity(entry.entity.into_iter().map(named).collect());
        match checked.map(drop).and_then(|()| written.clone()) {
            Ok(()) => response,
            Err((error, why)) => response.with_error_code(error.code()).with_error_message(Some(text(why))),
        }
    });
    AlterClientQuotasResponse::default().with_entries(entries.collect())
}

fn apply(rates: &mut Rates, changes: Vec<Changes>) {
    for (entity, changes) in changes {
        let of_entity = rates.entry(entity).or_default();
        for (quota, rate) in changes {
            match rate {
                Some(rate) => drop(of_entity.insert(quota, rate)),
                None => drop(of_entity.remove(&quota)),
            }
        }
    }
}

fn changes(wanted: &Wanted) -> Result<Changes, Refusal> {
    let mut entity = Entity::new();
    for part in &wanted.entity {
        let kind = EntityKind::named(&part.entity_type)
            .ok_or_else(|| invalid(format!("Unhandled client quota entity type: {}", &*part.entity_type)))?;
        let name = part.entity_name.as_ref().map(|n| n.to_string());
        if name.as_deref() == Some("") {
            return Err(invalid(format!("Empty {} not supported", kind.name())));
        }
        if entity.insert(kind, name).is_some() {
            return Err(invalid(format!("Duplicate entity type {}", kind.name())));
        }
    }
    if entity.is_empty() {
        return Err(invalid("Invalid empty client quota entity"));
    }
    if entity.contains_key(&EntityKind::Ip) && entity.len() > 1 {
        return Err(invalid("Invalid quota entity combination: ip goes with no other"));
    }
    let changes = wanted.ops.iter().map(|op| change(op, &entity)).collect::<Result<_, _>>()?;
    Ok((entity, changes))
}

fn change(op: &OpData, entity: &Entity) -> Result<(Quota, Option<f64>), Refusal> {
    let quota = Quota::named(&op.key).filter(|q| q.fits(entity));
    let quota = quota.ok_or_else(|| invalid(format!("Invalid configuration key {}", &*op.key)))?;
    if op.remove {
        return Ok((quota, None));
    }
    // Not a number is not greater either.
    if !op.value.is_finite() || op.value <= 0.0 {
        return Err(invalid(format!("Quota {} must be greater than 0", quota.name())));
    }
    if quota.is_whole() && op.value.fract() != 0.0 {
        return Err(invalid(format!("{} must be a whole number", quota.name())));
    }
    Ok((quota, Some(op.value)))
}
