//! Captures: reading the callbacks that are kept byte for byte.

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;

use super::StoreError;
use crate::meta::capture::Capture;
use crate::meta::signature;

/// The most bytes of bodies that are read at once; a single body may have more.
const PAGE_BYTES: i64 = 8 * 1024 * 1024;
const PAGE_ROWS: usize = 500;

/// Which captures to read. What is `None` or `false` does not restrict.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Received first at this time or later.
    pub since: Option<OffsetDateTime>,
    /// Received first before this time.
    pub until: Option<OffsetDateTime>,
    /// About this account, alone or among others.
    pub waba_id: Option<String>,
    /// With failures of this incident.
    pub incident: Option<i64>,
    /// Of which a part is in quarantine.
    pub quarantined: bool,
}

/// A capture without its body, with the names of its columns.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the migration documents the columns")]
pub struct Summary {
    pub id: i64,
    pub waba_id: String,
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub last_received_at: OffsetDateTime,
    pub times_received: i64,
    pub failure_count: i32,
    /// How many bytes the body has.
    pub body_bytes: i32,
    /// Its SHA-256 in hexadecimal.
    pub digest: String,
    pub app_secret: Option<i32>,
    /// Whether a part of it is in quarantine.
    pub quarantined: bool,
}

/// The newest captures first.
///
/// # Errors
/// The database does not answer.
pub async fn list(db: &PgPool, filter: &Filter, limit: i64) -> Result<Vec<Summary>, StoreError> {
    let captures = sqlx::query_as!(
        Summary,
        r#"select c.id, c.waba_id, c.received_at, c.last_received_at, c.times_received, c.failure_count,
                  octet_length(c.body) as "body_bytes!", encode(c.digest, 'hex') as "digest!", c.app_secret,
                  exists (select from quarantine q where q.capture_id = c.id) as "quarantined!"
             from captures c
            where ($1::timestamptz is null or c.received_at >= $1)
              and ($2::timestamptz is null or c.received_at < $2)
              and ($3::text is null or c.id in (select id from captures where waba_id = $3
                                                union all
                                                select capture_id from failed_deliveries where waba_id = $3))
              and ($4::bigint is null or c.id in (select capture_id from failed_deliveries where incident_id = $4))
              and (not $5 or exists (select from quarantine q where q.capture_id = c.id))
            order by c.received_at desc, c.id desc
            limit $6"#,
        filter.since,
        filter.until,
        filter.waba_id,
        filter.incident,
        filter.quarantined,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(captures)
}

/// Where a capture stands among all, by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    received_at: OffsetDateTime,
    id: i64,
}

/// The next captures after `after`, the oldest first: what to [`read`]. Empty at the end.
///
/// # Errors
/// The database does not answer.
pub async fn find(
    db: &PgPool,
    filter: &Filter,
    after: Option<Position>,
    limit: i64,
) -> Result<Vec<Position>, StoreError> {
    let after = after.unwrap_or(Position {
        received_at: OffsetDateTime::UNIX_EPOCH,
        id: 0,
    });
    let found = sqlx::query_as!(
        Position,
        "select c.received_at, c.id
           from captures c
          where (c.received_at, c.id) > ($1, $2)
            and ($3::timestamptz is null or c.received_at >= $3)
            and ($4::timestamptz is null or c.received_at < $4)
            and ($5::text is null or c.id in (select id from captures where waba_id = $5
                                              union all
                                              select capture_id from failed_deliveries where waba_id = $5))
            and ($6::bigint is null or c.id in (select capture_id from failed_deliveries where incident_id = $6))
            and (not $7 or exists (select from quarantine q where q.capture_id = c.id))
          order by c.received_at, c.id
          limit $8",
        after.received_at,
        after.id,
        filter.since,
        filter.until,
        filter.waba_id,
        filter.incident,
        filter.quarantined,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(found)
}

/// Reads the first of these captures, as many as fit into memory easily; at least one, unless none of them
/// is there any more. They stand in the order of their age, and so does what is read.
///
/// # Errors
/// The database does not answer.
pub async fn read(
    db: &PgPool,
    positions: &[Position],
) -> Result<Vec<(Position, Capture)>, StoreError> {
    let positions = &positions[..positions.len().min(PAGE_ROWS)];
    let (Some(first), Some(last)) = (positions.first(), positions.last()) else {
        return Ok(Vec::new());
    };
    let rows = sqlx::query!(
        "select c.received_at, c.id, c.signature, c.body
           from (select id, waba_id, sum(octet_length(body)) over (order by received_at, id) - octet_length(body) as before
                   from captures
                  where received_at between $1 and $2 and id = any($3)) page
           join captures c using (id, waba_id)
          where page.before < $4
          order by c.received_at, c.id",
        first.received_at,
        last.received_at,
        &positions.iter().map(|position| position.id).collect::<Vec<_>>(),
        PAGE_BYTES,
    )
    .fetch_all(db)
    .await?;
    let captures = rows.into_iter().map(|row| {
        let mut capture = Capture {
            received_at: Some(row.received_at),
            ..Capture::from_body(row.body)
        };
        capture.headers.extend(
            row.signature
                .map(|signature| (signature::HEADER.to_owned(), signature)),
        );
        (
            Position {
                received_at: row.received_at,
                id: row.id,
            },
            capture,
        )
    });
    Ok(captures.collect())
}

/// The key that makes this database's pseudonyms.
///
/// # Errors
/// The database does not answer, or somebody removed the key.
pub async fn pseudonym_key(db: &PgPool) -> Result<Vec<u8>, StoreError> {
    Ok(sqlx::query_scalar!("select key from pseudonym_key")
        .fetch_one(db)
        .await?)
}
