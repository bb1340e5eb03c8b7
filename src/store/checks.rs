//! Health checks: every look-up of a number and its answer.

use serde::Serialize;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::claims::Claim;
use super::{StoreError, Word};
use crate::lockout::cause::{is_stopped_by_status, verdict};
use crate::meta::graph_error::Denial;
use crate::meta::health::{LookupResult, Outcome};
use crate::meta::ids::PhoneNumberId;

/// A look-up of a number's health at Meta, and its answer. The fields are columns.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct HealthCheck {
    /// The id of the check. Later checks have larger ids.
    pub id: i64,
    /// The incident.
    pub incident_id: i64,
    /// The number that was looked up.
    #[schema(value_type = String)]
    pub phone_number_id: PhoneNumberId,
    /// The time of the look-up.
    #[serde(with = "time::serde::rfc3339")]
    pub checked_at: OffsetDateTime,
    /// `answered`, `no_health`, `state`, `not_asked`, `refused`, `throttled` or `unreachable`.
    #[schema(value_type = String, example = "answered")]
    pub outcome: Word<Outcome>,
    /// The HTTP status of the answer, if there was one.
    pub http_status: Option<i32>,
    /// The worst verdict of the entities that decide whether the number can send, in Meta's words.
    /// The app that asks, and entities of another account, do not count. The status of the number,
    /// such as BANNED, where that stops its messages.
    #[schema(example = "BLOCKED")]
    pub can_send_message: Option<String>,
    /// The entities of Meta's answer, with their errors.
    #[schema(value_type = Option<Vec<Object>>)]
    pub entities: Option<serde_json::Value>,
    /// The fields that were read beside the health, where that explained nothing.
    #[schema(value_type = Option<Object>)]
    pub fields: Option<serde_json::Value>,
    /// Why Meta refused to answer, in a word.
    #[schema(value_type = Option<String>, example = "token_invalid")]
    pub denial: Option<Word<Denial>>,
    /// The error, if there was one.
    pub error: Option<String>,
    /// The time that Meta took, in milliseconds.
    pub duration_ms: i32,
    /// The answer as Meta sent it, shortened and without secrets. Only lists of checks have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub response: Option<String>,
}

/// Selects checks from a table `c`. `$response` is the answer as Meta sent it, or null.
macro_rules! select_checks {
    ($response:tt, $from:tt, $($argument:expr),+ $(,)?) => {
        sqlx::query_as!(
            HealthCheck,
            r#"select c.id, c.incident_id, c.phone_number_id as "phone_number_id: _", c.checked_at,
                      c.outcome as "outcome: _", c.http_status, c.can_send_message, c.entities,
                      c.fields, c.denial as "denial: _", c.error, c.duration_ms, "# + $response + " as response " + $from,
            $($argument),+
        )
    };
}

/// Lists the checks of an incident, the latest first; with `before`, those with smaller ids. Each
/// has the answer as Meta sent it.
pub async fn list(
    db: &PgPool,
    incident_id: i64,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<HealthCheck>, StoreError> {
    let checks = select_checks!(
        "c.response",
        "from health_checks c
        where c.incident_id = $1 and ($2::bigint is null or c.id < $2)
        order by c.id desc
        limit $3",
        incident_id,
        before,
        limit,
    );
    Ok(checks.fetch_all(db).await?)
}

/// Returns the latest check of each of these numbers, given as pairs of incident and number.
pub async fn latest(
    db: &PgPool,
    numbers: &[(i64, &PhoneNumberId)],
) -> Result<Vec<HealthCheck>, StoreError> {
    let incidents: Vec<i64> = numbers.iter().map(|(incident, _)| *incident).collect();
    let numbers: Vec<&str> = numbers.iter().map(|(_, number)| number.as_str()).collect();
    let checks = select_checks!(
        "null::text",
        "from unnest($1::bigint[], $2::text[]) as n(incident_id, phone_number_id)
        cross join lateral (select *
                              from health_checks
                             where incident_id = n.incident_id
                               and phone_number_id = n.phone_number_id
                             order by checked_at desc
                             limit 1) c",
        &incidents,
        &numbers as &[&str],
    );
    Ok(checks.fetch_all(db).await?)
}

/// Returns these checks, given as pairs of id and account. Retention may have deleted some.
pub async fn by_id(db: &PgPool, checks: &[(i64, &str)]) -> Result<Vec<HealthCheck>, StoreError> {
    let (ids, accounts): (Vec<i64>, Vec<&str>) = checks.iter().copied().unzip();
    let checks = select_checks!(
        "null::text",
        "from unnest($1::bigint[], $2::text[]) as wanted(id, waba_id)
         join health_checks c on c.id = wanted.id and c.waba_id = wanted.waba_id",
        &ids,
        &accounts as &[&str],
    );
    Ok(checks.fetch_all(db).await?)
}

/// The row of a check that was just inserted.
pub(super) struct InsertedCheck {
    pub(super) id: i64,
    pub(super) checked_at: OffsetDateTime,
}

/// Returns the status of the number, if that stops its messages.
fn stopping_status(lookup: &LookupResult) -> Option<String> {
    let status = lookup.fields.number.as_ref()?.status.clone();
    status.filter(|status| is_stopped_by_status(status))
}

/// Inserts a look-up, whatever its outcome.
pub(super) async fn insert(
    db: &mut PgConnection,
    claim: &Claim,
    lookup: &LookupResult,
) -> Result<InsertedCheck, StoreError> {
    let entities = lookup.answer.entities();
    let inserted = sqlx::query_as!(
        InsertedCheck,
        "insert into health_checks (incident_id, waba_id, phone_number_id, checked_at, outcome,
                                    http_status, can_send_message, entities, response, error,
                                    duration_ms, denial, token, fields, calls)
         values ($1, $2, $3, clock_timestamp(), $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         returning id, checked_at",
        claim.incident_id,
        claim.waba_id.as_str(),
        claim.phone_number_id.as_str(),
        lookup.answer.outcome().as_str(),
        lookup.http_status.map(i32::from),
        stopping_status(lookup).or_else(|| {
            entities
                .and_then(|entities| verdict(entities, &claim.waba_id))
                .map(ToString::to_string)
        }),
        entities.map(Json) as _,
        lookup.response,
        lookup.answer.error_text(),
        i32::try_from(lookup.duration.as_millis()).unwrap_or(i32::MAX),
        lookup.answer.denial().map(Denial::as_str),
        lookup.caller.as_ref().map(|caller| &caller.token),
        Some(&lookup.fields)
            .filter(|fields| !fields.is_empty())
            .map(Json) as _,
        i16::try_from(lookup.calls).unwrap_or(i16::MAX),
    )
    .fetch_one(db)
    .await?;
    Ok(inserted)
}
