//! Captures: reads the callbacks that are kept byte for byte.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use time::OffsetDateTime;

use super::StoreError;
use crate::intake::Intake;
use crate::meta::capture::Capture;
use crate::meta::ids::WabaId;
use crate::meta::interest::Interest;
use crate::meta::signature;

/// The bytes of bodies that are fetched at once. A single body may be larger.
const PAGE_BYTES: i64 = 8 * 1024 * 1024;
/// The captures that are fetched at once.
pub(crate) const FETCH_LIMIT_ROWS: usize = 500;

/// A filter for captures. A field that is `None` or `false` does not restrict the list.
#[derive(Debug, Clone, Default)]
pub(crate) struct CaptureFilter {
    /// Only captures that were received at this time or later.
    pub(crate) since: Option<OffsetDateTime>,
    /// Only captures that were received before this time.
    pub(crate) until: Option<OffsetDateTime>,
    /// Only captures about this account, alone or among others.
    pub(crate) waba_id: Option<WabaId>,
    /// Only captures with failures of this incident.
    pub(crate) incident: Option<i64>,
    /// Only captures with a part in quarantine.
    pub(crate) quarantined: bool,
}

/// A capture without its body.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CaptureSummary {
    pub(crate) id: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) received_at: OffsetDateTime,
    /// The accounts with failed messages, or with parts that cannot be read.
    pub(crate) waba_ids: Vec<String>,
    /// The failed messages with a watched code in it.
    pub(crate) failure_count: usize,
    /// The length of the body in bytes.
    pub(crate) body_bytes: usize,
    /// The SHA-256 of the body in hexadecimal.
    pub(crate) digest: String,
    /// The position of the app secret that matched the signature, from 1.
    pub(crate) app_secret: Option<i32>,
    /// `true` while it is in the inbox.
    pub(crate) waiting: bool,
    /// `true` if a part of the capture is in quarantine.
    pub(crate) quarantined: bool,
}

impl CaptureSummary {
    fn of(row: CaptureRow) -> Self {
        let body = Bytes::from(row.body);
        let intake = Intake::parse(&body, &Interest::of_everything(), row.received_at);
        let failures = intake.failures.iter().map(|failure| &failure.waba_id);
        let unreadable = intake
            .unreadable
            .iter()
            .filter_map(|part| part.waba_id.as_ref());
        let waba_ids: BTreeSet<&WabaId> = failures.chain(unreadable).collect();
        Self {
            id: row.id,
            received_at: row.received_at,
            waba_ids: waba_ids.into_iter().map(ToString::to_string).collect(),
            failure_count: intake.failures.len(),
            body_bytes: body.len(),
            digest: hex::encode(Sha256::digest(&body)),
            app_secret: row.app_secret,
            waiting: row.waiting,
            quarantined: row.quarantined,
        }
    }
}

struct CaptureRow {
    id: i64,
    received_at: OffsetDateTime,
    body: Vec<u8>,
    app_secret: Option<i32>,
    waiting: bool,
    quarantined: bool,
}

/// Selects captures from a table `c`.
macro_rules! select_captures {
    ($as:ident, $columns:literal, $order:literal, $filter:expr, $after:expr, $limit:expr) => {
        sqlx::query_as!(
            $as,
            "select " + $columns + r#"
               from captures c
              where c.id > $6
                and ($1::timestamptz is null or c.received_at >= $1)
                and ($2::timestamptz is null or c.received_at < $2)
                and ($3::text is null
                     or c.id in (select capture_id from failed_deliveries where waba_id = $3
                                  union all
                                 select capture_id from quarantine where waba_id = $3))
                and ($4::bigint is null
                     or c.id in (select capture_id from failed_deliveries where incident_id = $4))
                and (not $5 or exists (select from quarantine q where q.capture_id = c.id))
              order by c.id "# + $order + " limit $7",
            $filter.since,
            $filter.until,
            $filter.waba_id.as_ref().map(WabaId::as_str),
            $filter.incident,
            $filter.quarantined,
            $after,
            $limit,
        )
    };
}

/// Lists captures, the newest first.
pub(crate) async fn list(
    db: &PgPool,
    filter: &CaptureFilter,
    limit: i64,
) -> Result<Vec<CaptureSummary>, StoreError> {
    let captures = select_captures!(
        CaptureRow,
        r#"c.id, c.received_at, c.body, c.app_secret,
           exists (select from inbox where capture_id = c.id) as "waiting!",
           exists (select from quarantine q where q.capture_id = c.id) as "quarantined!""#,
        "desc",
        filter,
        0,
        limit
    );
    let rows = captures.fetch_all(db).await?;
    Ok(rows.into_iter().map(CaptureSummary::of).collect())
}

/// The id of a capture.
struct CaptureId {
    id: i64,
}

/// Lists the ids of the captures after `after`, in the order in which they were stored. The list is
/// empty at the end. [`fetch`] reads these captures.
pub(crate) async fn list_ids(
    db: &PgPool,
    filter: &CaptureFilter,
    after: i64,
    limit: i64,
) -> Result<Vec<i64>, StoreError> {
    let ids = select_captures!(CaptureId, "c.id", "asc", filter, after, limit);
    Ok(ids
        .fetch_all(db)
        .await?
        .into_iter()
        .map(|row| row.id)
        .collect())
}

/// Fetches the first of these captures, at most [`FETCH_LIMIT_ROWS`], as many as fit into
/// [`PAGE_BYTES`]; at least one, unless all of them have been deleted. `ids` and the result are in
/// ascending order.
pub(crate) async fn fetch(db: &PgPool, ids: &[i64]) -> Result<Vec<(i64, Capture)>, StoreError> {
    let rows = sqlx::query!(
        "select c.received_at, c.id, c.signature, c.body
           from (select id, sum(octet_length(body)) over (order by id) - octet_length(body) as before
                   from captures
                  where id = any($1)) page
           join captures c using (id)
          where page.before < $2
          order by c.id",
        ids,
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
        (row.id, capture)
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
