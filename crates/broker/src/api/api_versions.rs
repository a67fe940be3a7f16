//! ApiVersions: what is served, in which versions.

use kafka_protocol::{
    ResponseError,
    messages::{ApiVersionsRequest, ApiVersionsResponse, api_versions_response::*},
};

use super::{Answering, Context, SERVED, produce, text, unencodable};
use crate::{connection::Hangup, wire::Reply};

pub(crate) const KEY: i16 = 18;

/// Features that clients ask for by name, as (name, lowest, highest level).
///
/// `transaction.version` 2 is what clients go by to end every transaction with a new epoch and to leave out
/// AddPartitionsToTxn (KIP-890): the versions of the requests alone do not tell them.
const FEATURES: &[(&str, i16, i16)] =
    &[("group.version", 0, 1), ("metadata.version", 7, 27), ("transaction.version", 0, 2)];

pub(crate) async fn answer(cx: Context, request: ApiVersionsRequest) -> ApiVersionsResponse {
    let valid = cx.version < 3
        || (is_name(&request.client_software_name) && is_name(&request.client_software_version));
    if !valid {
        return ApiVersionsResponse::default().with_error_code(ResponseError::InvalidRequest.code());
    }
    // Clients of older versions choke on a lowest level of 0, so Kafka does not tell them of such a feature.
    let features =
        FEATURES.iter().filter(|(_, min, _)| *min > 0 || cx.version >= 4).map(|(name, min, max)| {
            SupportedFeatureKey::default()
                .with_name(text(*name))
                .with_min_version(*min)
                .with_max_version(*max)
        });
    let finalized = FEATURES.iter().map(|(name, _, max)| {
        FinalizedFeatureKey::default()
            .with_name(text(*name))
            .with_min_version_level(*max)
            .with_max_version_level(*max)
    });
    let response = ApiVersionsResponse::default().with_api_keys(keys());
    if cx.version < 3 {
        return response;
    }
    response
        .with_supported_features(features.collect())
        .with_finalized_features(finalized.collect())
        .with_finalized_features_epoch(1)
}

/// The answer to a version that is not known: version 0's, from which the client learns which to take.
pub(crate) fn unsupported(correlation: i32) -> Result<Answering, Hangup> {
    let response = ApiVersionsResponse::default()
        .with_error_code(ResponseError::UnsupportedVersion.code())
        .with_api_keys(keys().into_iter().filter(|k| k.api_key == KEY).collect());
    let answer = Reply::frame(correlation, 0, &response).map_err(unencodable);
    Ok(Answering { future: Box::pin(async { answer.map(Some) }), pipelined: false })
}

fn keys() -> Vec<ApiVersion> {
    let produce = (produce::KEY, produce::ADVERTISED);
    let all = std::iter::once(produce).chain(SERVED.iter().copied());
    all.map(|(key, versions)| {
        ApiVersion::default().with_api_key(key).with_min_version(versions.0).with_max_version(versions.1)
    })
    .collect()
}

/// Letters, digits, dots and dashes, with a letter or digit at both ends.
fn is_name(name: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    end(name.chars().next())
        && end(name.chars().last())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '-')
}
