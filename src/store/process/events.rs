//! Account events: recorded once, and told to the account's open incident.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use super::{KeptCaptures, ReadCallback, Written};
use crate::meta::event::AccountEvent;
use crate::meta::ids::{Text, WabaId};
use crate::store::{StoreError, conclusion};

/// Records the events in these callbacks that are not recorded yet. The cause of an open incident of
/// their accounts is chosen again.
pub(super) async fn record(
    db: &mut PgConnection,
    callbacks: &[ReadCallback],
    kept: KeptCaptures,
    written: &mut Written,
) -> Result<(), StoreError> {
    let mut accounts: BTreeSet<&WabaId> = BTreeSet::new();
    for callback in callbacks {
        for event in &callback.intake.events {
            if insert(db, event, callback, kept).await? {
                accounts.insert(&event.waba_id);
            }
        }
    }
    for waba_id in accounts {
        written.changed |= conclusion::choose_again(db, waba_id).await?;
    }
    Ok(())
}

/// Inserts an event. Returns `false` if it is there already.
async fn insert(
    db: &mut PgConnection,
    event: &AccountEvent,
    callback: &ReadCallback,
    kept: KeptCaptures,
) -> Result<bool, StoreError> {
    let inserted = sqlx::query!(
        "insert into account_events (waba_id, field, event, state, detail, expires_at, occurred_at,
                                     received_at, digest, capture_id)
         select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10
          where not exists (select from account_events where waba_id = $1 and digest = $9)",
        event.waba_id.as_str(),
        event.field.as_str(),
        event.event.as_str(),
        event.state.as_ref().map(Text::as_str),
        event.detail.as_ref().map(Text::as_str),
        event.expires_at,
        event.occurred_at,
        callback.received_at,
        event.digest.as_slice(),
        callback.kept_capture(kept),
    )
    .execute(db)
    .await?;
    Ok(inserted.rows_affected() > 0)
}
