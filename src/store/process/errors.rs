//! Errors of accounts themselves: recorded once, as evidence of a lock.

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::incidents::place_errors;
use super::{KeptCaptures, ReadCallback, Written};
use crate::meta::ids::{PhoneNumberId, Text};
use crate::meta::status::AccountError;
use crate::store::{StoreError, interval};

/// Meta repeats a callback for seven days. Later, or after the incident has ended otherwise than by
/// silence, the same error is another one.
const REPEAT_WINDOW: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 60 * 60);

/// Records the errors of accounts in these callbacks that are not recorded yet. Each is evidence:
/// it opens an incident where there is none, and its number is due for a look-up.
pub(super) async fn record(
    db: &mut PgConnection,
    callbacks: &[ReadCallback],
    kept: KeptCaptures,
    now: OffsetDateTime,
    written: &mut Written,
) -> Result<(), StoreError> {
    let mut fresh = Vec::new();
    for callback in callbacks {
        for error in &callback.intake.account_errors {
            if insert(db, error, callback.kept_capture(kept)).await? {
                fresh.push(error);
            }
        }
    }
    if fresh.is_empty() {
        return Ok(());
    }
    let times: Vec<_> = fresh
        .iter()
        .map(|error| (&error.waba_id, error.occurred_at))
        .collect();
    let placed = place_errors(db, &times, now).await?;
    for (error, incident_id) in fresh.iter().zip(&placed.ids) {
        let is_open = !placed.resolved.contains(incident_id);
        add_number(db, error, *incident_id, is_open).await?;
        written.check_due |= is_open;
    }
    written.changed = true;
    Ok(())
}

/// Inserts an error. Returns `false` if it is there already.
async fn insert(
    db: &mut PgConnection,
    error: &AccountError,
    capture_id: Option<i64>,
) -> Result<bool, StoreError> {
    let inserted = sqlx::query!(
        "insert into account_events (waba_id, field, event, state, detail, occurred_at, received_at,
                                     digest, capture_id)
         select $1, 'messages', 'error', $2, $3, $4, $4, $5, $6
          where not exists (select from account_events e
                             where waba_id = $1 and digest = $5
                               and not exists (select from incidents i
                                                where i.waba_id = $1 and i.resolution <> 'quiet'
                                                  and i.ended_at > e.received_at
                                                  and i.ended_at <= $4)
                               and received_at between $4::timestamptz - $7::interval
                                                   and $4::timestamptz + $7::interval)",
        error.waba_id.as_str(),
        error.error_code.to_string(),
        error.detail.as_str(),
        error.occurred_at,
        error.digest.as_slice(),
        capture_id,
        interval(REPEAT_WINDOW),
    )
    .execute(db)
    .await?;
    Ok(inserted.rows_affected() > 0)
}

/// Adds the number of an error to its incident, without a failure. Where there is no number, the
/// account's own node is looked up.
async fn add_number(
    db: &mut PgConnection,
    error: &AccountError,
    incident_id: i64,
    is_open: bool,
) -> Result<(), StoreError> {
    let waba_id = error.waba_id.as_str();
    let node = error.phone_number_id.as_ref();
    sqlx::query!(
        "insert into affected_numbers (incident_id, waba_id, phone_number_id, display_phone_number,
                                       first_failure_at, last_failure_at, failure_count,
                                       check_due_at)
         select $1, $2, $3, $4, $5, $5, 0, case when $6 then now() end
          where $7 or not exists (select from affected_numbers
                                   where incident_id = $1 and waba_id = $2)
             on conflict (incident_id, phone_number_id, waba_id) do nothing",
        incident_id,
        waba_id,
        node.map_or(waba_id, PhoneNumberId::as_str),
        error.display_phone_number.as_ref().map(Text::as_str),
        error.occurred_at,
        is_open,
        node.is_some(),
    )
    .execute(db)
    .await?;
    Ok(())
}
