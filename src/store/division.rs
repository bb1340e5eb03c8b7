//! The division of an incident that Meta lifted while evidence went on: its earlier part becomes one
//! of its own. Expects that the caller has locked the account.

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::StoreError;
use super::incident_life::link;
use crate::meta::ids::WabaId;

/// The evidence of an incident on both sides of a time.
#[derive(Debug)]
pub(super) struct EvidenceAround {
    pub(super) last_before: Option<OffsetDateTime>,
    pub(super) first_after: Option<OffsetDateTime>,
    /// The first check after it that shows a block.
    pub(super) first_block_after: Option<OffsetDateTime>,
    pub(super) has_failures_before: bool,
    pub(super) has_failures_after: bool,
}

/// Finds the evidence of an incident since its opening, on both sides of a time; without some fresh
/// events.
pub(super) async fn evidence_around(
    db: &mut PgConnection,
    id: i64,
    waba_id: &WabaId,
    (since, at): (OffsetDateTime, OffsetDateTime),
    fresh: &[i64],
) -> Result<EvidenceAround, StoreError> {
    let around = sqlx::query_as!(
        EvidenceAround,
        r#"with evidence as (
             select failed_at as at, true as is_failure
               from failed_deliveries
              where incident_id = $1 and waba_id = $2 and failed_at >= $3
              union all
             select e.occurred_at, false
               from account_events e
               join incidents i on i.id = $1 and i.waba_id = $2
              where e.waba_id = $2 and e.evidence_of = i.kind and e.occurred_at >= $3
                and e.occurred_at < coalesce(i.ended_at, 'infinity') and e.id <> all($5)
           )
           select max(at) filter (where at < $4) as last_before,
                  min(at) filter (where at >= $4) as first_after,
                  (select min(checked_at) from health_checks
                    where incident_id = $1 and waba_id = $2 and checked_at >= $4
                      and (can_send_message = 'BLOCKED' or outcome = 'state'))
                    as first_block_after,
                  coalesce(bool_or(is_failure) filter (where at < $4), false)
                    as "has_failures_before!",
                  coalesce(bool_or(is_failure) filter (where at >= $4), false)
                    as "has_failures_after!"
             from evidence"#,
        id,
        waba_id.as_str(),
        since,
        at,
        fresh,
    );
    Ok(around.fetch_one(db).await?)
}

/// Moves everything before a time from an incident to another one, its earlier part. What is left
/// starts with the first evidence after it.
pub(super) async fn divide(
    db: &mut PgConnection,
    waba_id: &WabaId,
    id: i64,
    earlier: i64,
    (before, first_after): (OffsetDateTime, OffsetDateTime),
) -> Result<(), StoreError> {
    let moved = sqlx::query!(
        r#"with moved as (
             update failed_deliveries
                set incident_id = $2
              where incident_id = $1 and waba_id = $3 and failed_at < $4
             returning phone_number_id, failed_at
           ), numbers as (
             insert into affected_numbers (incident_id, waba_id, phone_number_id,
                                           display_phone_number, first_failure_at, last_failure_at,
                                           failure_count, check_due_at, error_codes)
             select $2, $3, m.phone_number_id, n.display_phone_number, m.first, m.last, m.n, now(),
                    n.error_codes
               from (select phone_number_id, min(failed_at) as first, max(failed_at) as last,
                            count(*) as n
                       from moved group by phone_number_id) m
               join affected_numbers n on n.incident_id = $1 and n.waba_id = $3
                                      and n.phone_number_id = m.phone_number_id
           ), minutes as (
             insert into failures_by_minute (incident_id, waba_id, minute, failure_count)
             select $2, $3, date_bin('1 minute', failed_at, 'epoch'), count(*)
               from moved group by 3
           ), hours as (
             insert into failures_by_hour (incident_id, waba_id, hour, failure_count)
             select $2, $3, date_bin('1 hour', failed_at, 'epoch'), count(*)
               from moved group by 3
           )
           select count(*) as "count!", max(failed_at) as last from moved"#,
        id,
        earlier,
        waba_id.as_str(),
        before,
    )
    .fetch_one(&mut *db)
    .await?;
    subtract(db, waba_id, id, earlier).await?;
    // Without a number, the account's own node is looked up.
    sqlx::query!(
        "insert into affected_numbers (incident_id, waba_id, phone_number_id, first_failure_at,
                                       last_failure_at, failure_count, check_due_at)
         select id, waba_id, waba_id, opened_at, opened_at, 0, now()
           from incidents
          where id = $1 and waba_id = $2
            and not exists (select from affected_numbers where incident_id = $1 and waba_id = $2)",
        earlier,
        waba_id.as_str(),
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "update incidents
            set failure_count   = failure_count + case when id = $1 then -$4::bigint else $4 end,
                last_failure_at = case when id = $2 then coalesce($6, last_failure_at)
                                       else last_failure_at end,
                opened_by       = case when id = $2 then (select opened_by from incidents
                                                           where id = $1 and waba_id = $3)
                                       when exists (select from failed_deliveries
                                                     where incident_id = $1 and waba_id = $3
                                                       and failed_at = $5) then 'failure'
                                       when exists (select from account_events
                                                     where waba_id = $3 and event = 'error'
                                                       and occurred_at = $5) then 'error'
                                       else 'event' end,
                reopened_at     = case when id = $2 then (select reopened_at from incidents
                                                           where id = $1 and waba_id = $3) end,
                opened_at       = case when id = $1 then $5 else opened_at end
          where id in ($1, $2) and waba_id = $3",
        id,
        earlier,
        waba_id.as_str(),
        moved.count,
        first_after,
        moved.last,
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "update incidents
            set last_failure_at = opened_at
          where id = $1 and waba_id = $2 and failure_count = 0",
        id,
        waba_id.as_str(),
    )
    .execute(&mut *db)
    .await?;
    move_checks(db, waba_id, id, earlier, before).await?;
    link(db, &[waba_id.as_str()], &["lock"], &[first_after]).await
}

/// Moves the checks before a time to the earlier part, with what they have shown. The later part is
/// looked up anew.
async fn move_checks(
    db: &mut PgConnection,
    waba_id: &WabaId,
    id: i64,
    earlier: i64,
    before: OffsetDateTime,
) -> Result<(), StoreError> {
    let moved = sqlx::query!(
        "update health_checks set incident_id = $2
          where incident_id = $1 and waba_id = $3 and checked_at < $4",
        id,
        earlier,
        waba_id.as_str(),
        before,
    )
    .execute(&mut *db)
    .await?;
    if moved.rows_affected() == 0 {
        return Ok(());
    }
    sqlx::query!(
        "update affected_numbers e
            set findings = n.findings, check_answers = n.check_answers,
                latest_check_id = n.latest_check_id, latest_answer_at = n.latest_answer_at
           from affected_numbers n
          where e.incident_id = $2 and n.incident_id = $1 and e.waba_id = $3 and n.waba_id = $3
            and e.phone_number_id = n.phone_number_id",
        id,
        earlier,
        waba_id.as_str(),
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "update affected_numbers n
            set findings = null, check_answers = 0, clear_since = null, latest_check_id = null,
                latest_answer_at = null, fields_read_at = null,
                check_due_at = case when i.resolved_at is null then now() end
           from incidents i
          where n.incident_id = $1 and n.waba_id = $2 and i.id = $1 and i.waba_id = $2",
        id,
        waba_id.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Subtracts the counts of an earlier part from those of the incident that it was part of.
async fn subtract(
    db: &mut PgConnection,
    waba_id: &WabaId,
    id: i64,
    earlier: i64,
) -> Result<(), StoreError> {
    sqlx::query!(
        "with minutes as (
           update failures_by_minute m
              set failure_count = m.failure_count - e.failure_count
             from failures_by_minute e
            where m.incident_id = $1 and e.incident_id = $2 and m.waba_id = $3 and e.waba_id = $3
              and m.minute = e.minute
         ), hours as (
           update failures_by_hour h
              set failure_count = h.failure_count - e.failure_count
             from failures_by_hour e
            where h.incident_id = $1 and e.incident_id = $2 and h.waba_id = $3 and e.waba_id = $3
              and h.hour = e.hour
         )
         update affected_numbers n
            set failure_count    = n.failure_count - e.failure_count,
                first_failure_at = coalesce((select min(failed_at) from failed_deliveries d
                                              where d.incident_id = $1 and d.waba_id = $3
                                                and d.phone_number_id = n.phone_number_id),
                                            n.last_failure_at)
           from affected_numbers e
          where n.incident_id = $1 and e.incident_id = $2 and n.waba_id = $3 and e.waba_id = $3
            and n.phone_number_id = e.phone_number_id",
        id,
        earlier,
        waba_id.as_str(),
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "delete from affected_numbers n
          where incident_id = $1 and waba_id = $2 and failure_count = 0
            and phone_number_id <> $2
            and exists (select from affected_numbers
                         where incident_id = $1 and waba_id = $2
                           and (failure_count > 0 or phone_number_id = $2))
            and exists (select from affected_numbers e
                         where e.incident_id = $3 and e.waba_id = $2
                           and e.phone_number_id = n.phone_number_id)",
        id,
        waba_id.as_str(),
        earlier,
    )
    .execute(db)
    .await?;
    Ok(())
}
