//! The quarantine: parts of callbacks that could not be read.

use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use tracing::warn;

use super::ReadCallback;
use crate::meta::ids::WabaId;
use crate::store::StoreError;

/// Stands for the account where none can be read.
const UNKNOWN_ACCOUNT: &str = "unknown";

/// Puts the unreadable parts of these callbacks into quarantine, and returns the number of those
/// that were not there yet.
pub(super) async fn insert(
    db: &mut PgConnection,
    callbacks: &[ReadCallback],
) -> Result<u64, StoreError> {
    let parts: Vec<_> = callbacks
        .iter()
        .flat_map(|callback| {
            callback
                .intake
                .unreadable
                .iter()
                .map(move |part| (callback, part))
        })
        .collect();
    if parts.is_empty() {
        return Ok(0);
    }
    for (callback, part) in &parts {
        warn!(
            waba.id = part.waba_id.as_ref().map(tracing::field::display),
            "a part of callback {} is quarantined: {}", callback.capture_id, part.reason
        );
    }
    let account = |id: Option<&WabaId>| id.map_or(UNKNOWN_ACCOUNT, WabaId::as_str).to_owned();
    let inserted = sqlx::query!(
        "insert into quarantine (waba_id, received_at, reason, body, digest, capture_id)
         select *
           from unnest($1::text[], $2::timestamptz[], $3::text[], $4::bytea[], $5::bytea[],
                       $6::bigint[])
             on conflict (waba_id, digest) do nothing",
        &parts
            .iter()
            .map(|(_, part)| account(part.waba_id.as_ref()))
            .collect::<Vec<_>>(),
        &parts
            .iter()
            .map(|(callback, _)| callback.received_at)
            .collect::<Vec<_>>(),
        &parts
            .iter()
            .map(|(_, part)| part.reason.to_string())
            .collect::<Vec<_>>(),
        &parts
            .iter()
            .map(|(_, part)| part.bytes.as_ref())
            .collect::<Vec<_>>() as &[&[u8]],
        &parts
            .iter()
            .map(|(_, part)| Sha256::digest(&part.bytes).to_vec())
            .collect::<Vec<_>>(),
        &parts
            .iter()
            .map(|(callback, _)| callback.capture_id)
            .collect::<Vec<_>>(),
    )
    .execute(db)
    .await?;
    Ok(inserted.rows_affected())
}
