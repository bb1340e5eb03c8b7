//! Incidents as people read and resolve them.

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::{StoreError, interval, lock_account};
use crate::lockout::cause::{LockoutCause, next_steps};
use crate::lockout::incident::{QUIET_AFTER, Resolution};

/// An incident, with the names of its columns.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the migration documents the columns")]
pub struct Incident {
    pub id: i64,
    pub waba_id: String,
    #[serde(with = "time::serde::rfc3339")]
    pub opened_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub last_failure_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub resolved_at: Option<OffsetDateTime>,
    pub resolution: Option<String>,
    pub resolution_note: Option<String>,
    pub failure_count: i64,
    pub cause: String,
    pub cause_severity: Option<String>,
    pub cause_summary: Option<String>,
    pub cause_entity_type: Option<String>,
    pub cause_entity_id: Option<String>,
    pub cause_error_code: Option<i64>,
    pub possible_solution: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub cause_recorded_at: Option<OffsetDateTime>,
    pub previous_incident_id: Option<i64>,
}

impl Incident {
    /// What a person does next.
    #[must_use]
    pub fn next_steps(&self) -> Vec<String> {
        let cause = LockoutCause::parse(&self.cause).unwrap_or(LockoutCause::OtherRestriction);
        next_steps(cause, self.possible_solution.as_deref())
    }
}

/// A number with failures in an incident, with the names of its columns.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the migration documents the columns")]
pub struct AffectedNumber {
    pub phone_number_id: String,
    pub display_phone_number: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub first_failure_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub last_failure_at: OffsetDateTime,
    pub failure_count: i64,
    #[serde(with = "time::serde::rfc3339::option")]
    pub check_due_at: Option<OffsetDateTime>,
}

/// A look-up and its answer, with the names of its columns.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the migration documents the columns")]
pub struct HealthCheck {
    pub id: i64,
    pub phone_number_id: String,
    #[serde(with = "time::serde::rfc3339")]
    pub checked_at: OffsetDateTime,
    pub outcome: String,
    pub http_status: Option<i32>,
    pub can_send_message: Option<String>,
    pub entities: Option<serde_json::Value>,
    pub error: Option<String>,
    pub duration_ms: i32,
}

/// Which incidents to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not resolved.
    Open,
    /// Resolved.
    Resolved,
    /// Both.
    All,
}

/// The newest incidents first.
///
/// # Errors
/// The database does not answer.
pub async fn list(db: &PgPool, state: State, limit: i64) -> Result<Vec<Incident>, StoreError> {
    let resolved = match state {
        State::Open => Some(false),
        State::Resolved => Some(true),
        State::All => None,
    };
    let incidents = sqlx::query_as!(
        Incident,
        "select id, waba_id, opened_at, last_failure_at, resolved_at, resolution, resolution_note, failure_count, cause,
                cause_severity, cause_summary, cause_entity_type, cause_entity_id, cause_error_code, possible_solution,
                cause_recorded_at, previous_incident_id
           from incidents
          where $1::boolean is null or (resolved_at is not null) = $1
          order by id desc
          limit $2",
        resolved,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(incidents)
}

/// One incident, if it exists.
///
/// # Errors
/// The database does not answer.
pub async fn find(db: &PgPool, id: i64) -> Result<Option<Incident>, StoreError> {
    let incident = sqlx::query_as!(
        Incident,
        "select id, waba_id, opened_at, last_failure_at, resolved_at, resolution, resolution_note, failure_count, cause,
                cause_severity, cause_summary, cause_entity_type, cause_entity_id, cause_error_code, possible_solution,
                cause_recorded_at, previous_incident_id
           from incidents
          where id = $1",
        id,
    )
    .fetch_optional(db)
    .await?;
    Ok(incident)
}

/// The numbers of an incident, those with most failures first.
///
/// # Errors
/// The database does not answer.
pub async fn numbers(db: &PgPool, incident_id: i64, limit: i64) -> Result<Vec<AffectedNumber>, StoreError> {
    let numbers = sqlx::query_as!(
        AffectedNumber,
        "select phone_number_id, display_phone_number, first_failure_at, last_failure_at, failure_count, check_due_at
           from affected_numbers
          where incident_id = $1
          order by failure_count desc, phone_number_id
          limit $2",
        incident_id,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(numbers)
}

/// The latest checks of an incident, newest first.
///
/// # Errors
/// The database does not answer.
pub async fn latest_checks(db: &PgPool, incident_id: i64, limit: i64) -> Result<Vec<HealthCheck>, StoreError> {
    let checks = sqlx::query_as!(
        HealthCheck,
        "select id, phone_number_id, checked_at, outcome, http_status, can_send_message, entities, error, duration_ms
           from health_checks
          where incident_id = $1
          order by id desc
          limit $2",
        incident_id,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(checks)
}

/// What came of resolving an incident by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// It is resolved now: the incident of this account.
    Now(String),
    /// It was resolved before; nothing changed.
    Before,
    /// There is no such incident.
    Unknown,
}

/// Resolves an incident because a person says so. Call it from a task that nobody cancels.
///
/// # Errors
/// Nothing is changed.
pub async fn resolve(db: &PgPool, id: i64, note: Option<&str>) -> Result<Resolved, StoreError> {
    let Some(incident) = find(db, id).await? else {
        return Ok(Resolved::Unknown);
    };
    let mut transaction = db.begin().await?;
    lock_account(&mut transaction, &incident.waba_id).await?;
    let closed = close(&mut transaction, id, &incident.waba_id, Resolution::Manual, note).await?;
    transaction.commit().await?;
    Ok(if closed { Resolved::Now(incident.waba_id) } else { Resolved::Before })
}

/// Resolves some incidents that have been quiet for long enough and have their cause. An account that is
/// locked by somebody else is left for the next time.
///
/// # Errors
/// Nothing is changed.
pub async fn resolve_quiet(db: &PgPool) -> Result<Vec<(i64, String)>, StoreError> {
    let mut transaction = db.begin().await?;
    let accounts = sqlx::query_scalar!(
        "select waba_id from accounts
          where waba_id in (select waba_id from incidents
                             where resolved_at is null and last_failure_at < now() - $1::interval and cause <> 'pending'
                             order by last_failure_at
                             limit 100)
          order by waba_id
            for update skip locked",
        interval(QUIET_AFTER),
    )
    .fetch_all(&mut *transaction)
    .await?;
    let quiet = sqlx::query!(
        "select id, waba_id from incidents
          where resolved_at is null and last_failure_at < now() - $1::interval and cause <> 'pending'
            and waba_id = any($2)",
        interval(QUIET_AFTER),
        &accounts,
    )
    .fetch_all(&mut *transaction)
    .await?;
    let mut resolved = Vec::new();
    for incident in quiet {
        close(&mut transaction, incident.id, &incident.waba_id, Resolution::Quiet, None).await?;
        resolved.push((incident.id, incident.waba_id));
    }
    transaction.commit().await?;
    Ok(resolved)
}

/// Resolves an incident whose account is locked; `false` where it was resolved before.
pub(super) async fn close(
    db: &mut PgConnection,
    id: i64,
    waba_id: &str,
    resolution: Resolution,
    note: Option<&str>,
) -> Result<bool, StoreError> {
    let closed = sqlx::query!(
        "update incidents set resolved_at = clock_timestamp(), resolution = $3, resolution_note = $4
          where id = $1 and waba_id = $2 and resolved_at is null",
        id,
        waba_id,
        resolution.as_str(),
        note,
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "update affected_numbers set check_due_at = null where incident_id = $1 and waba_id = $2",
        id,
        waba_id
    )
    .execute(db)
    .await?;
    Ok(closed.rows_affected() == 1)
}
