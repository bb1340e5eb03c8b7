//! The life of an incident: opens it, sets its cause, ends and reopens it.
//!
//! Nothing else writes these columns. Each function expects that the caller has locked the account,
//! and records a [`Change`] in the same transaction.

use std::collections::BTreeMap;

use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::claims::Claim;
use super::incidents::{self, Incident};
use super::{StoreError, Word, changes, interval, lock_account};
use crate::lockout::cause::{Cause, Confidence, LockoutCause, Scope};
use crate::lockout::change::{Change, ChangeKind};
use crate::lockout::incident::{QUIET_WINDOW, Resolution};
use crate::meta::graph_error::Denial;
use crate::meta::ids::WabaId;

/// The longest time that an incident that was over when it was first seen waits for Meta's answer.
const FIRST_ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// The evidence that opened an incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum OpenedBy {
    /// A failed message.
    #[default]
    Failure,
    /// An error of the account itself.
    Error,
}

impl OpenedBy {
    fn as_str(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Error => "error",
        }
    }
}

/// An incident to open.
#[derive(Debug, Clone)]
pub(super) struct NewIncident {
    pub(super) waba_id: WabaId,
    pub(super) opened_at: OffsetDateTime,
    pub(super) last_evidence_at: OffsetDateTime,
    /// The end of an incident that is over already. It is looked up once before it is resolved.
    pub(super) ended_at: Option<OffsetDateTime>,
    pub(super) opened_by: OpenedBy,
}

/// Opens incidents, and returns their ids in the same order. Each is linked to the account's
/// incident before it, and the one after it to this one.
pub(super) async fn open(
    db: &mut PgConnection,
    incidents: &[NewIncident],
) -> Result<Vec<i64>, StoreError> {
    let waba_ids: Vec<&str> = incidents.iter().map(|i| i.waba_id.as_str()).collect();
    let opened_at: Vec<OffsetDateTime> = incidents.iter().map(|i| i.opened_at).collect();
    sqlx::query!(
        "insert into accounts (waba_id)
         select distinct unnest($1::text[]) order by 1 on conflict do nothing",
        &waba_ids as &[&str],
    )
    .execute(&mut *db)
    .await?;
    let rows = sqlx::query!(
        r#"insert into incidents (waba_id, kind, opened_at, last_failure_at, last_evidence_at,
                                  ended_at, opened_by)
           select i.waba_id, 'lock', i.opened_at, i.last, i.last, i.ended_at, i.opened_by
             from unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[],
                         $5::text[]) as i(waba_id, opened_at, last, ended_at, opened_by)
           returning id, waba_id as "waba_id: WabaId", opened_at"#,
        &waba_ids as &[&str],
        &opened_at,
        &incidents
            .iter()
            .map(|i| i.last_evidence_at)
            .collect::<Vec<_>>(),
        &incidents.iter().map(|i| i.ended_at).collect::<Vec<_>>() as &[Option<OffsetDateTime>],
        &incidents
            .iter()
            .map(|i| i.opened_by.as_str())
            .collect::<Vec<_>>() as &[&str],
    )
    .fetch_all(&mut *db)
    .await?;
    sqlx::query!(
        "update incidents i
            set previous_incident_id = (select p.id from incidents p
                                         where p.waba_id = i.waba_id and p.opened_at < i.opened_at
                                         order by p.opened_at desc
                                         limit 1)
           from (select waba_id, min(opened_at) as since
                   from unnest($1::text[], $2::timestamptz[]) as n(waba_id, opened_at)
                  group by waba_id) n
          where i.waba_id = n.waba_id and i.opened_at >= n.since",
        &waba_ids as &[&str],
        &opened_at,
    )
    .execute(&mut *db)
    .await?;
    let opened: Vec<Change> = rows
        .iter()
        .map(|row| Change {
            incident_id: row.id,
            waba_id: row.waba_id.clone(),
            kind: ChangeKind::Opened,
        })
        .collect();
    changes::record(db, &opened).await?;
    // Two incidents of an account start at different times.
    let ids: BTreeMap<(&WabaId, OffsetDateTime), i64> = rows
        .iter()
        .map(|row| ((&row.waba_id, row.opened_at), row.id))
        .collect();
    let id_of = |incident: &NewIncident| ids.get(&(&incident.waba_id, incident.opened_at)).copied();
    Ok(incidents.iter().filter_map(id_of).collect())
}

async fn record(
    db: &mut PgConnection,
    incident_id: i64,
    waba_id: &WabaId,
    kind: ChangeKind,
) -> Result<(), StoreError> {
    let change = Change {
        incident_id,
        waba_id: waba_id.clone(),
        kind,
    };
    changes::record(db, &[change]).await
}

/// Sets the cause of an incident. It is a change only if the `recorded` cause was another
/// one: the same cause may have got new evidence.
pub(super) async fn set_cause(
    db: &mut PgConnection,
    incident_id: i64,
    waba_id: &WabaId,
    cause: &Cause,
    recorded: LockoutCause,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update incidents
            set cause_recorded_at = case when cause = $3 then cause_recorded_at
                                         else clock_timestamp() end,
                cause = $3, cause_severity = $4, cause_summary = $5, cause_entity_type = $6,
                cause_entity_id = $7, cause_error_code = $8, possible_solution = $9,
                cause_check_id = $10, cause_confidence = $11, denial = $12, cause_scope = $13
          where id = $1 and waba_id = $2",
        incident_id,
        waba_id.as_str(),
        cause.kind.as_str(),
        cause.verdict,
        cause.summary,
        cause.entity_type,
        cause.entity_id,
        cause.error_code,
        cause.possible_solution,
        cause.check_id,
        cause.confidence.map(Confidence::as_str),
        cause.denial.map(Denial::as_str),
        cause.scope.map(Scope::as_str),
    )
    .execute(&mut *db)
    .await?;
    if cause.kind == recorded {
        return Ok(());
    }
    let kind = match recorded {
        LockoutCause::Pending => ChangeKind::CauseFound(cause.kind),
        _ => ChangeKind::CauseChanged(cause.kind),
    };
    record(db, incident_id, waba_id, kind).await
}

/// Notes that a check still showed the lock: seven days of silence begin anew. An incident that was
/// over when it was first seen stays so: the check is about now.
pub(super) async fn note_evidence(
    db: &mut PgConnection,
    claim: &Claim,
    at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update incidents
            set last_evidence_at = greatest(last_evidence_at, $3)
          where id = $1 and waba_id = $2 and ended_at is null",
        claim.incident_id,
        claim.waba_id.as_str(),
        at,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Notes errors of accounts: seven days of silence begin anew.
pub(super) async fn note_error(
    db: &mut PgConnection,
    ids: &[i64],
    times: &[(&WabaId, OffsetDateTime)],
) -> Result<(), StoreError> {
    sqlx::query!(
        "update incidents i
            set opened_at        = least(i.opened_at, e.first),
                last_evidence_at = greatest(i.last_evidence_at, e.last)
           from (select id, waba_id, min(at) as first, max(at) as last
                   from unnest($1::bigint[], $2::text[], $3::timestamptz[]) as e(id, waba_id, at)
                  group by id, waba_id) e
          where i.id = e.id and i.waba_id = e.waba_id",
        ids,
        &times.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>() as &[&str],
        &times.iter().map(|(_, at)| *at).collect::<Vec<_>>(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// What ends an incident.
#[derive(Debug, Clone, Copy)]
pub(super) struct End<'e> {
    pub(super) resolution: Resolution,
    /// When it was over. `None` is now.
    pub(super) at: Option<OffsetDateTime>,
    pub(super) note: Option<&'e str>,
}

/// Resolves an incident. One that was over before for seven days of silence ends by that, whatever
/// is noticed now. Returns the resolution, or `None` if it was resolved before.
pub(super) async fn resolve(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
    end: End<'_>,
) -> Result<Option<Resolution>, StoreError> {
    let resolved = sqlx::query!(
        r#"with old as (
             select id, waba_id, last_evidence_at,
                    coalesce(ended_at, last_evidence_at + $6) as silence_until
               from incidents
              where id = $1 and waba_id = $2 and resolved_at is null
           )
           update incidents i
              set resolved_at = clock_timestamp(), resolution_note = $5,
                  resolution = case when old.silence_until <= coalesce($4, now()) then 'quiet'
                                    else $3 end,
                  ended_at = case when old.silence_until <= coalesce($4, now())
                                  then old.silence_until
                                  else greatest(coalesce($4, now()),
                                                old.last_evidence_at + interval '1 microsecond') end
             from old
            where i.id = old.id and i.waba_id = old.waba_id
           returning i.resolution as "resolution!: Word<Resolution>""#,
        id,
        waba_id.as_str(),
        end.resolution.as_str(),
        end.at,
        end.note,
        interval(QUIET_WINDOW),
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(resolution) = resolved.and_then(|row| row.resolution.known()) else {
        return Ok(None);
    };
    after_resolving(db, id, waba_id, resolution).await?;
    Ok(Some(resolution))
}

async fn after_resolving(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
    resolution: Resolution,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update affected_numbers
            set check_due_at = null
          where incident_id = $1 and waba_id = $2",
        id,
        waba_id.as_str(),
    )
    .execute(&mut *db)
    .await?;
    record(db, id, waba_id, ChangeKind::Resolved(resolution)).await
}

/// Resolves an open incident that silence ended at this time: the account's next one begins.
pub(super) async fn end_by_silence(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
    ended_at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update incidents
            set ended_at = $3, resolved_at = clock_timestamp(), resolution = 'quiet'
          where id = $1 and waba_id = $2",
        id,
        waba_id.as_str(),
        ended_at,
    )
    .execute(&mut *db)
    .await?;
    after_resolving(db, id, waba_id, Resolution::Quiet).await
}

impl End<'_> {
    /// Silence. Its time follows from the evidence.
    pub(super) const QUIET: Self = Self {
        resolution: Resolution::Quiet,
        at: None,
        note: None,
    };
}

/// Opens an incident again that only silence had ended, and makes its numbers due for a look-up.
pub(super) async fn reopen(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
) -> Result<(), StoreError> {
    let before = sqlx::query!(
        r#"with old as (select id, resolved_at from incidents where id = $1 and waba_id = $2)
           update incidents i
              set ended_at = null, resolved_at = null, resolution = null, resolution_note = null
             from old
            where i.id = old.id and i.waba_id = $2
           returning old.resolved_at is not null as "was_resolved!""#,
        id,
        waba_id.as_str(),
    )
    .fetch_one(&mut *db)
    .await?;
    if !before.was_resolved {
        return Ok(());
    }
    sqlx::query!(
        "update affected_numbers
            set check_due_at = now(), clear_since = null
          where incident_id = $1 and waba_id = $2",
        id,
        waba_id.as_str(),
    )
    .execute(&mut *db)
    .await?;
    record(db, id, waba_id, ChangeKind::Reopened).await
}

/// Moves the end of an incident that only silence has ended.
pub(super) async fn move_end(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
    ended_at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update incidents set ended_at = $3 where id = $1 and waba_id = $2",
        id,
        waba_id.as_str(),
        ended_at,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The result of resolving an incident by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManualResolution {
    /// The incident of this account is resolved now.
    Resolved(WabaId),
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
    let end = End {
        resolution: Resolution::Manual,
        at: None,
        note,
    };
    let resolved = resolve(&mut transaction, id, &waba_id, end).await?;
    transaction.commit().await?;
    Ok(match resolved {
        Some(_) => ManualResolution::Resolved(waba_id),
        None => ManualResolution::AlreadyResolved,
    })
}

/// Resolves some incidents that are over by seven days of silence. An account that another
/// transaction has locked is left for the next time. Returns whether there were any.
///
/// # Errors
/// Nothing is changed.
pub async fn resolve_quiet(db: &PgPool) -> Result<bool, StoreError> {
    let mut transaction = db.begin().await?;
    let over = sqlx::query!(
        r#"select id, waba_id as "waba_id: WabaId"
             from (select id, waba_id
                     from incidents
                    where resolved_at is null
                      and (last_evidence_at + $1 <= now() and ended_at is null
                           or created_at + $2 <= now() and ended_at is not null)
                    limit 100) over
            where pg_try_advisory_xact_lock(hashtextextended(waba_id, 131031))"#,
        interval(QUIET_WINDOW),
        interval(FIRST_ANSWER_TIMEOUT),
    )
    .fetch_all(&mut *transaction)
    .await?;
    let is_any_over = !over.is_empty();
    for row in over {
        // Read again behind the lock: a failure may have come in between.
        let is_over = sqlx::query_scalar!(
            r#"select ended_at is not null or last_evidence_at + $3 <= now() as "is_over!"
                 from incidents where id = $1 and waba_id = $2"#,
            row.id,
            row.waba_id.as_str(),
            interval(QUIET_WINDOW),
        )
        .fetch_one(&mut *transaction)
        .await?;
        if is_over {
            resolve(&mut transaction, row.id, &row.waba_id, End::QUIET).await?;
        }
    }
    transaction.commit().await?;
    Ok(is_any_over)
}
