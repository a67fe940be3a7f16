//! DescribeUserScramCredentials and AlterUserScramCredentials (KIP-554).

use std::collections::HashMap;

use kafka_protocol::{
    ResponseError,
    messages::{
        AlterUserScramCredentialsRequest, AlterUserScramCredentialsResponse,
        DescribeUserScramCredentialsRequest, DescribeUserScramCredentialsResponse,
        alter_user_scram_credentials_response::AlterUserScramCredentialsResult,
        describe_user_scram_credentials_response::*,
    },
};

use super::{Context, Refusal, blocking, refusal, text};
use crate::security::{
    acl::Operation,
    scram::{Credential, MAX_ITERATIONS, MIN_ITERATIONS, Scram},
    users::Users,
};

pub(crate) async fn describe(
    cx: Context,
    request: DescribeUserScramCredentialsRequest,
) -> DescribeUserScramCredentialsResponse {
    if let Err(e) = cx.cluster(Operation::Describe) {
        let response = DescribeUserScramCredentialsResponse::default().with_error_code(e.code());
        return response.with_error_message(Some(text(e.to_string())));
    }
    let known = cx.shared.users.described();
    let wanted: Vec<String> = match request.users {
        Some(users) if !users.is_empty() => users.into_iter().map(|u| u.name.to_string()).collect(),
        _ => known.keys().cloned().collect(),
    };
    let times = |name: &String| wanted.iter().filter(|w| *w == name).count();
    let mut results: Vec<DescribeUserScramCredentialsResult> = Vec::new();
    for name in &wanted {
        if results.iter().any(|r| *r.user == **name) {
            continue;
        }
        let result = DescribeUserScramCredentialsResult::default().with_user(text(name));
        let refused = |e: ResponseError, why: String| {
            result.clone().with_error_code(e.code()).with_error_message(Some(text(why)))
        };
        results.push(match known.get(name) {
            _ if times(name) > 1 => refused(
                ResponseError::DuplicateResource,
                format!(
                    "Cannot describe SCRAM credentials for the same user twice in a single request: {name}"
                ),
            ),
            None => refused(
                ResponseError::ResourceNotFound,
                format!("Attempt to describe a user credential that does not exist: {name}"),
            ),
            Some(credentials) => result.with_credential_infos(
                credentials
                    .iter()
                    .map(|(scram, iterations)| {
                        CredentialInfo::default().with_mechanism(scram.number()).with_iterations(*iterations)
                    })
                    .collect(),
            ),
        });
    }
    DescribeUserScramCredentialsResponse::default().with_results(results)
}

/// One change: of whom, of what, and to what.
type Change = (String, Option<Scram>, Result<Option<Credential>, Refusal>);

pub(crate) async fn alter(
    cx: Context,
    request: AlterUserScramCredentialsRequest,
) -> AlterUserScramCredentialsResponse {
    let may = cx.cluster(Operation::Alter).map_err(refusal);
    let mut changes: Vec<Change> = Vec::new();
    for deletion in request.deletions {
        let (name, scram) = (deletion.name.to_string(), Scram::numbered(deletion.mechanism));
        let checked = may.clone().and_then(|()| check(&name, scram));
        let checked = checked.and_then(|scram| exists(&cx.shared.users, &name, scram));
        changes.push((name, scram, checked.map(|()| None)));
    }
    for upsertion in request.upsertions {
        let (name, scram) = (upsertion.name.to_string(), Scram::numbered(upsertion.mechanism));
        let checked = may.clone().and_then(|()| check(&name, scram)).and_then(|scram| {
            let iterations = iterations(upsertion.iterations)?;
            let (salted, salt) = (&upsertion.salted_password, upsertion.salt.to_vec());
            Ok(Some(Credential::of_salted(scram, salted, salt, iterations)))
        });
        changes.push((name, scram, checked));
    }
    let mut outcomes = outcomes(&changes);
    let good: Vec<_> = changes
        .into_iter()
        .filter(|(name, ..)| outcomes[name].is_none())
        .filter_map(|(name, scram, change)| Some((name, scram?, change.ok()?)))
        .collect();
    let shared = cx.shared.clone();
    let written = blocking(move || {
        shared.users.alter(&shared.topics, good).map_err(|error| {
            tracing::error!(%error, "credentials cannot be written");
            ResponseError::KafkaStorageError
        })
    });
    if let Err(error) = written.await {
        for outcome in outcomes.values_mut().filter(|o| o.is_none()) {
            *outcome = Some((error, error.to_string()));
        }
    }
    let result = |(name, refusal): (String, Option<Refusal>)| {
        let result = AlterUserScramCredentialsResult::default().with_user(text(name));
        match refusal {
            None => result,
            Some((e, why)) => result.with_error_code(e.code()).with_error_message(Some(text(why))),
        }
    };
    AlterUserScramCredentialsResponse::default().with_results(outcomes.into_iter().map(result).collect())
}

/// What becomes of each user: all of its changes are made, or none.
fn outcomes(changes: &[Change]) -> HashMap<String, Option<Refusal>> {
    let mut outcomes: HashMap<String, Option<Refusal>> = HashMap::new();
    for (i, (name, scram, change)) in changes.iter().enumerate() {
        let twice = changes[..i].iter().any(|(n, s, _)| (n, s) == (name, scram)).then(|| {
            let why = "A user credential cannot be altered twice in the same request";
            (ResponseError::DuplicateResource, why.to_owned())
        });
        let refusal = change.as_ref().err().cloned().or(twice);
        let outcome = outcomes.entry(name.clone()).or_default();
        *outcome = outcome.take().or(refusal);
    }
    outcomes
}

fn check(name: &str, scram: Option<Scram>) -> Result<Scram, Refusal> {
    if name.is_empty() {
        return Err((ResponseError::UnacceptableCredential, "Username must not be empty".to_owned()));
    }
    scram.ok_or((ResponseError::UnsupportedSaslMechanism, "Unknown SCRAM mechanism".to_owned()))
}

fn exists(users: &Users, name: &str, scram: Scram) -> Result<(), Refusal> {
    let why = "Attempt to delete a user credential that does not exist";
    users.credential(name, scram).map(drop).ok_or((ResponseError::ResourceNotFound, why.to_owned()))
}

fn iterations(n: i32) -> Result<i32, Refusal> {
    let why = match n {
        n if n < MIN_ITERATIONS => "Too few iterations",
        n if n > MAX_ITERATIONS => "Too many iterations",
        n => return Ok(n),
    };
    Err((ResponseError::UnacceptableCredential, why.to_owned()))
}
