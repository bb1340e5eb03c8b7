//! Captures: reads the callbacks that are kept byte for byte.

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;

use super::StoreError;
use crate::meta::capture::Capture;
use crate::meta::ids::WabaId;
use crate::meta::signature;

/// The bytes of bodies that are fetched at once. A single body may be larger.
const PAGE_BYTES: i64 = 8 * 1024 * 1024;
/// The captures that are fetched at once.
pub(crate) const FETCH_LIMIT_ROWS: usize = 500;

/// A filter for captures. A field that is `None` or `false` does not restrict the list.
#[derive(Debug, Clone, Default)]
pub(crate) struct CaptureFilter {
    /// Only captures that were first received at this time or later.
    pub(crate) since: Option<OffsetDateTime>,
    /// Only captures that were first received before this time.
    pub(crate) until: Option<OffsetDateTime>,
    /// Only captures about this account, alone or among others.
    pub(crate) waba_id: Option<WabaId>,
    /// Only captures with failures of this incident.
    pub(crate) incident: Option<i64>,
    /// Only captures with a part in quarantine.
    pub(crate) quarantined: bool,
}

/// A capture without its body. The fields are columns, which the migration documents.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CaptureSummary {
    pub(crate) id: i64,
    pub(crate) waba_id: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) received_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) last_received_at: OffsetDateTime,
    pub(crate) times_received: i64,
    pub(crate) failure_count: i32,
    /// The length of the body in bytes.
    pub(crate) body_bytes: i32,
    /// The SHA-256 of the body in hexadecimal.
    pub(crate) digest: String,
    pub(crate) app_secret: Option<i32>,
    /// `true` if a part of the capture is in quarantine.
    pub(crate) quarantined: bool,
}

/// The position of a capture among all captures, ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CapturePosition {
    received_at: OffsetDateTime,
    id: i64,
}

/// Lists captures, the newest first.
pub(crate) async fn list(
    db: &PgPool,
    filter: &CaptureFilter,
    limit: i64,
) -> Result<Vec<CaptureSummary>, StoreError> {
    let captures = sqlx::query_as!(
        CaptureSummary,
        r#"select c.id, c.waba_id, c.received_at, c.last_received_at, c.times_received,
                  c.failure_count, octet_length(c.body) as "body_bytes!",
                  encode(c.digest, 'hex') as "digest!", c.app_secret,
                  exists (select from quarantine q where q.capture_id = c.id) as "quarantined!"
             from captures c
            where ($1::timestamptz is null or c.received_at >= $1)
              and ($2::timestamptz is null or c.received_at < $2)
              and ($3::text is null
                   or c.id in (select id from captures where waba_id = $3
                                union all
                               select capture_id from failed_deliveries where waba_id = $3))
              and ($4::bigint is null
                   or c.id in (select capture_id from failed_deliveries where incident_id = $4))
              and (not $5 or exists (select from quarantine q where q.capture_id = c.id))
            order by c.received_at desc, c.id desc
            limit $6"#,
        filter.since,
        filter.until,
        filter.waba_id.as_ref().map(WabaId::as_str),
        filter.incident,
        filter.quarantined,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(captures)
}

/// Lists the positions of the captures after `after`, the oldest first. The list is empty at the
/// end. [`fetch`] reads these captures.
pub(crate) async fn list_positions(
    db: &PgPool,
    filter: &CaptureFilter,
    after: Option<CapturePosition>,
    limit: i64,
) -> Result<Vec<CapturePosition>, StoreError> {
    let after = after.unwrap_or(CapturePosition {
        received_at: OffsetDateTime::UNIX_EPOCH,
        id: 0,
    });
    let positions = sqlx::query_as!(
        CapturePosition,
        "select c.received_at, c.id
           from captures c
          where (c.received_at, c.id) > ($1, $2)
            and ($3::timestamptz is null or c.received_at >= $3)
            and ($4::timestamptz is null or c.received_at < $4)
            and ($5::text is null
                 or c.id in (select id from captures where waba_id = $5
                              union all
                             select capture_id from failed_deliveries where waba_id = $5))
            and ($6::bigint is null
                 or c.id in (select capture_id from failed_deliveries where incident_id = $6))
            and (not $7 or exists (select from quarantine q where q.capture_id = c.id))
          order by c.received_at, c.id
          limit $8",
        after.received_at,
        after.id,
        filter.since,
        filter.until,
        filter.waba_id.as_ref().map(WabaId::as_str),
        filter.incident,
        filter.quarantined,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(positions)
}

/// Fetches the first of these captures, at most [`FETCH_LIMIT_ROWS`], as many as fit into
/// [`PAGE_BYTES`]; at least one, unless all of them have been deleted. `positions` and the result
/// are ordered by age.
pub(crate) async fn fetch(
    db: &PgPool,
    positions: &[CapturePosition],
) -> Result<Vec<(CapturePosition, Capture)>, StoreError> {
    let (Some(first), Some(last)) = (positions.first(), positions.last()) else {
        return Ok(Vec::new());
    };
    let ids: Vec<i64> = positions.iter().map(|position| position.id).collect();
    let rows = sqlx::query!(
        "select c.received_at, c.id, c.signature, c.body
           from (select id, waba_id,
                        sum(octet_length(body)) over (order by received_at, id)
                        - octet_length(body) as before
                   from captures
                  where received_at between $1 and $2 and id = any($3)) page
           join captures c using (id, waba_id)
          where page.before < $4
          order by c.received_at, c.id",
        first.received_at,
        last.received_at,
        &ids,
        PAGE_BYTES,
    )
    .fetch_all(db)
    .await?;
    let captures = rows.into_iter().map(|row| {
        let mut capture = Capture {
            received_at: Some(row.received_at),
            ..Capture::from_body(row.body)
        };
        if let Some(signature) = row.signature {
            let name = signature::SIGNATURE_HEADER.to_owned();
            capture.headers.insert(name, signature);
        }
        let position = CapturePosition {
            received_at: row.received_at,
            id: row.id,
        };
        (position, capture)
    });
    Ok(captures.collect())
}

/// Returns the key that makes this database's pseudonyms.
///
/// # Errors
/// The database does not answer, or a person deleted the key.
pub(crate) async fn pseudonym_key(db: &PgPool) -> Result<Vec<u8>, StoreError> {
    let key = sqlx::query_scalar!("select key from pseudonym_key");
    Ok(key.fetch_one(db).await?)
}
