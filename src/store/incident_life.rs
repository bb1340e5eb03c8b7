//! The life of an incident: opens it, sets its cause, and resolves it.
//!
//! Nothing else writes these columns. Each function expects that the caller has locked the account,
//! and returns a [`Change`] that takes effect when the caller commits.

use std::collections::{BTreeMap, HashSet};

use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use tracing::{info, warn};

use super::claims::Claim;
use super::incidents::{self, Incident};
use super::{StoreError, interval, lock_account};
use crate::lockout::cause::{Cause, LockoutCause};
use crate::lockout::change::{Change, ChangeKind};
use crate::lockout::incident::{QUIET_WINDOW, Resolution};
use crate::meta::failure::FailedDelivery;
use crate::meta::ids::WabaId;

/// Opens an incident for each account with failures that belong to none. A failure that is already
/// recorded opens nothing.
pub(super) async fn open(
    db: &mut PgConnection,
    failures: &[&FailedDelivery],
) -> Result<Vec<Change>, StoreError> {
    let recorded = recorded_digests(db, failures).await?;
    let mut spans: BTreeMap<&WabaId, (OffsetDateTime, OffsetDateTime)> = BTreeMap::new();
    for failure in failures {
        if recorded.contains(failure.digest.as_slice()) {
            continue;
        }
        let at = failure.failed_at;
        let (first, last) = spans.entry(&failure.waba_id).or_insert((at, at));
        *first = at.min(*first);
        *last = at.max(*last);
    }
    let rows = sqlx::query!(
        r#"insert into incidents (waba_id, opened_at, last_failure_at, previous_incident_id)
           select a.waba_id, a.opened_at, a.last_failure_at,
                  (select p.id from incidents p
                    where p.waba_id = a.waba_id
                    order by p.resolved_at desc, p.id desc
                    limit 1)
             from unnest($1::text[], $2::timestamptz[], $3::timestamptz[])
                  as a(waba_id, opened_at, last_failure_at)
           returning id, waba_id as "waba_id: WabaId""#,
        &spans.keys().map(|id| id.as_str()).collect::<Vec<_>>() as &[&str],
        &spans.values().map(|(first, _)| *first).collect::<Vec<_>>(),
        &spans.values().map(|(_, last)| *last).collect::<Vec<_>>(),
    )
    .fetch_all(db)
    .await?;
    let opened = rows.into_iter().map(|row| Change {
        incident_id: row.id,
        waba_id: row.waba_id,
        kind: ChangeKind::Opened,
    });
    Ok(opened.collect())
}

async fn recorded_digests(
    db: &mut PgConnection,
    failures: &[&FailedDelivery],
) -> Result<HashSet<Vec<u8>>, StoreError> {
    let digests = sqlx::query_scalar!(
        "select d.digest
           from unnest($1::text[], $2::bytea[]) as f(waba_id, digest)
           join failed_deliveries d on d.waba_id = f.waba_id and d.digest = f.digest",
        &failures
            .iter()
            .map(|f| f.waba_id.as_str())
            .collect::<Vec<_>>() as &[&str],
        &failures
            .iter()
            .map(|f| f.digest.as_slice())
            .collect::<Vec<_>>() as &[&[u8]],
    )
    .fetch_all(db)
    .await?;
    Ok(digests.into_iter().collect())
}

/// Sets the cause of the claim's incident. Returns a change only if the `recorded` cause was
/// another one: the same cause may have got new evidence.
pub(super) async fn set_cause(
    db: &mut PgConnection,
    claim: &Claim,
    cause: &Cause,
    recorded: LockoutCause,
) -> Result<Option<Change>, StoreError> {
    let (entity_type, entity_id) = cause.entity.clone().unzip();
    sqlx::query!(
        "update incidents
            set cause_recorded_at = case when cause = $3 then cause_recorded_at
                                         else clock_timestamp() end,
                cause = $3, cause_severity = $4, cause_summary = $5, cause_entity_type = $6,
                cause_entity_id = $7, cause_error_code = $8, possible_solution = $9,
                cause_check_id = $10
          where id = $1 and waba_id = $2",
        claim.incident_id,
        claim.waba_id.as_str(),
        cause.kind.as_str(),
        cause.severity.as_ref().map(ToString::to_string),
        cause.summary,
        entity_type,
        entity_id,
        cause.error_code,
        cause.possible_solution,
        cause.check_id,
    )
    .execute(db)
    .await?;
    Ok((cause.kind != recorded).then(|| Change {
        incident_id: claim.incident_id,
        waba_id: claim.waba_id.clone(),
        kind: ChangeKind::CauseSet(cause.kind),
    }))
}

/// Resolves an incident; `None` if it was resolved before.
pub(super) async fn resolve(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
    resolution: Resolution,
    note: Option<&str>,
) -> Result<Option<Change>, StoreError> {
    let resolved = sqlx::query!(
        "update incidents
            set resolved_at = clock_timestamp(), resolution = $3, resolution_note = $4
          where id = $1 and waba_id = $2 and resolved_at is null",
        id,
        waba_id.as_str(),
        resolution.as_str(),
        note,
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "update affected_numbers
            set check_due_at = null
          where incident_id = $1 and waba_id = $2",
        id,
        waba_id.as_str(),
    )
    .execute(db)
    .await?;
    Ok((resolved.rows_affected() == 1).then(|| Change {
        incident_id: id,
        waba_id: waba_id.clone(),
        kind: ChangeKind::Resolved(resolution),
    }))
}

/// The result of resolving an incident by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManualResolution {
    /// The incident is resolved now.
    Resolved(Change),
    /// The incident was resolved before. Nothing changed.
    AlreadyResolved,
    /// There is no such incident.
    Unknown,
}

/// Resolves an incident for a person. Call it from a task that nobody cancels.
///
/// # Errors
/// Nothing is changed.
pub async fn resolve_by_hand(
    db: &PgPool,
    id: i64,
    note: Option<&str>,
) -> Result<ManualResolution, StoreError> {
    let Some(Incident { waba_id, .. }) = incidents::find(db, id).await? else {
        return Ok(ManualResolution::Unknown);
    };
    let mut transaction = db.begin().await?;
    lock_account(&mut transaction, &waba_id).await?;
    let change = resolve(&mut transaction, id, &waba_id, Resolution::Manual, note).await?;
    transaction.commit().await?;
    Ok(change.map_or(
        ManualResolution::AlreadyResolved,
        ManualResolution::Resolved,
    ))
}

/// Resolves some incidents that have been quiet for long enough and have their cause. An account
/// that another transaction has locked is left for the next time.
///
/// # Errors
/// Nothing is changed.
pub async fn resolve_quiet(db: &PgPool) -> Result<Vec<Change>, StoreError> {
    let mut transaction = db.begin().await?;
    let accounts = sqlx::query_scalar!(
        "select waba_id from accounts
          where waba_id in (select waba_id
                              from incidents
                             where resolved_at is null
                               and last_failure_at < now() - $1::interval
                               and cause <> 'pending'
                             order by last_failure_at
                             limit 100)
          order by waba_id
            for update skip locked",
        interval(QUIET_WINDOW),
    )
    .fetch_all(&mut *transaction)
    .await?;
    let quiet = sqlx::query!(
        r#"select id, waba_id as "waba_id: WabaId"
             from incidents
            where resolved_at is null and last_failure_at < now() - $1::interval
              and cause <> 'pending' and waba_id = any($2)"#,
        interval(QUIET_WINDOW),
        &accounts,
    )
    .fetch_all(&mut *transaction)
    .await?;
    let mut changes = Vec::new();
    for row in quiet {
        let resolution = Resolution::Quiet;
        changes.extend(resolve(&mut transaction, row.id, &row.waba_id, resolution, None).await?);
    }
    transaction.commit().await?;
    Ok(changes)
}

/// Logs a change, once it is committed.
pub fn log(change: &Change) {
    let Change {
        incident_id: id,
        waba_id,
        kind,
    } = change;
    match kind {
        ChangeKind::Opened => warn!(
            incident.id = id,
            waba.id = %waba_id,
            "account locked: incident {id} opened for {waba_id}"
        ),
        ChangeKind::CauseSet(LockoutCause::LookupDenied) => warn!(
            incident.id = id,
            waba.id = %waba_id,
            "the cause of incident {id} cannot be looked up: see `lockwatch incidents show {id}`"
        ),
        ChangeKind::CauseSet(cause) => warn!(
            incident.id = id,
            waba.id = %waba_id,
            cause = %cause,
            "cause of incident {id}: {cause}"
        ),
        ChangeKind::Resolved(resolution) => {
            let reason = match resolution {
                Resolution::Recovered => "is over: recovered",
                Resolution::Quiet => "is over: seven quiet days",
                Resolution::Manual => "is resolved by hand",
            };
            info!(
                incident.id = id,
                waba.id = %waba_id,
                "incident {id} of {waba_id} {reason}"
            );
        }
    }
}
