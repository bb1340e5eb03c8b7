//! What belongs to an incident: its deliveries and checks page by page, and both over time.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;

use super::StoreError;

/// A message that failed with 131031. The fields are columns.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Delivery {
    /// Its number; later ones are larger.
    pub id: i64,
    /// The incident.
    pub incident_id: i64,
    /// The account.
    pub waba_id: String,
    /// The business phone number that sent it.
    pub phone_number_id: String,
    /// Meta's id of the message. It contains the recipient's number in base64, which is masked too.
    pub message_id: String,
    /// Whom it was for: a phone number, or a group.
    pub recipient_id: Option<String>,
    /// Whom in the group.
    pub participant_id: Option<String>,
    /// When it failed, as Meta says.
    #[serde(with = "time::serde::rfc3339")]
    pub failed_at: OffsetDateTime,
    /// When the callback came.
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    /// Always 131031.
    pub error_code: i32,
    /// Meta's title of the error.
    pub error_title: Option<String>,
    /// Meta's message.
    pub error_message: Option<String>,
    /// Meta's details.
    pub error_details: Option<String>,
    /// The business's own text, if it sent one along (`biz_opaque_callback_data`).
    pub callback_data: Option<String>,
    /// The capture it came in first, if that was kept.
    pub capture_id: Option<i64>,
}

/// A look-up of a number's health at Meta, and its answer. The fields are columns.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct HealthCheck {
    /// Its number; later ones are larger.
    pub id: i64,
    /// The incident.
    pub incident_id: i64,
    /// The number that was looked up.
    pub phone_number_id: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub checked_at: OffsetDateTime,
    /// `answered`, `no_health`, `not_asked`, `refused`, `throttled` or `unreachable`.
    #[schema(example = "answered")]
    pub outcome: String,
    /// The answer's status, if there was an answer.
    pub http_status: Option<i32>,
    /// The worst of the entities, in Meta's words.
    #[schema(example = "BLOCKED")]
    pub can_send_message: Option<String>,
    /// The entities that Meta answered, with their errors.
    #[schema(value_type = Option<Vec<Object>>)]
    pub entities: Option<serde_json::Value>,
    /// What went wrong, if something did.
    pub error: Option<String>,
    /// How long it took.
    pub duration_ms: i32,
    /// The answer as it came, cut and cleaned. Only where checks are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub response: Option<String>,
}

/// The latest deliveries of an incident first, from before `before` on.
///
/// # Errors
/// The database does not answer.
pub async fn deliveries(
    db: &PgPool,
    incident_id: i64,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Delivery>, StoreError> {
    let deliveries = sqlx::query_as!(
        Delivery,
        "select id, incident_id, waba_id, phone_number_id, message_id, recipient_id, participant_id, failed_at,
                received_at, error_code, error_title, error_message, error_details, callback_data, capture_id
           from failed_deliveries
          where incident_id = $1 and ($2::bigint is null or id < $2)
          order by id desc
          limit $3",
        incident_id,
        before,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(deliveries)
}

/// The latest checks of an incident first, from before `before` on, each with its answer as it came.
///
/// # Errors
/// The database does not answer.
pub async fn checks(
    db: &PgPool,
    incident_id: i64,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<HealthCheck>, StoreError> {
    let checks = sqlx::query_as!(
        HealthCheck,
        "select id, incident_id, phone_number_id, checked_at, outcome, http_status, can_send_message, entities, error,
                duration_ms, response
           from health_checks
          where incident_id = $1 and ($2::bigint is null or id < $2)
          order by id desc
          limit $3",
        incident_id,
        before,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(checks)
}

/// The latest check of each of these numbers, given as pairs of incident and number; without the answer
/// as it came.
///
/// # Errors
/// The database does not answer.
pub async fn latest_checks(
    db: &PgPool,
    numbers: &[(i64, &str)],
) -> Result<Vec<HealthCheck>, StoreError> {
    let (incidents, numbers): (Vec<i64>, Vec<&str>) = numbers.iter().copied().unzip();
    let checks = sqlx::query_as!(
        HealthCheck,
        "select c.id, c.incident_id, c.phone_number_id, c.checked_at, c.outcome, c.http_status, c.can_send_message,
                c.entities, c.error, c.duration_ms, null::text as response
           from unnest($1::bigint[], $2::text[]) as n(incident_id, phone_number_id)
          cross join lateral (select *
                                from health_checks
                               where incident_id = n.incident_id and phone_number_id = n.phone_number_id
                               order by checked_at desc
                               limit 1) c",
        &incidents,
        &numbers as &[&str],
    )
    .fetch_all(db)
    .await?;
    Ok(checks)
}

/// These checks, given as pairs of number and account; without the answer as it came. Retention may have
/// taken some.
///
/// # Errors
/// The database does not answer.
pub async fn checks_by_id(
    db: &PgPool,
    checks: &[(i64, &str)],
) -> Result<Vec<HealthCheck>, StoreError> {
    let (ids, accounts): (Vec<i64>, Vec<&str>) = checks.iter().copied().unzip();
    let checks = sqlx::query_as!(
        HealthCheck,
        "select c.id, c.incident_id, c.phone_number_id, c.checked_at, c.outcome, c.http_status, c.can_send_message,
                c.entities, c.error, c.duration_ms, null::text as response
           from unnest($1::bigint[], $2::text[]) as wanted(id, waba_id)
           join health_checks c on c.id = wanted.id and c.waba_id = wanted.waba_id",
        &ids,
        &accounts as &[&str],
    )
    .fetch_all(db)
    .await?;
    Ok(checks)
}

/// A stretch of time, divided into equal bins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bins {
    /// When the first one starts: a whole minute, or a whole hour where bins are whole hours.
    pub start: OffsetDateTime,
    /// How long each is: whole minutes.
    pub width: Duration,
    /// How many there are.
    pub count: usize,
}

impl Bins {
    /// When a bin starts; the one after the last starts at the end.
    #[must_use]
    pub fn start_of(&self, bin: usize) -> OffsetDateTime {
        let seconds = self
            .width
            .whole_seconds()
            .saturating_mul(i64::try_from(bin).unwrap_or(i64::MAX));
        self.start.saturating_add(Duration::seconds(seconds))
    }
}

/// How many failures each incident has in each bin. What lies outside counts to the nearest. Bins of whole
/// hours are filled from hours: however long an incident, a few thousand rows are read.
///
/// # Errors
/// The database does not answer.
pub async fn failures_over_time(
    db: &PgPool,
    of: &[(i64, Bins)],
) -> Result<BTreeMap<i64, Vec<u64>>, StoreError> {
    let rows = sqlx::query!(
        r#"select b.incident_id as "incident_id!",
                  least(greatest(extract(epoch from f.at - b.start)::bigint / b.seconds, 0), b.count - 1) as "bin!",
                  sum(f.failure_count)::bigint as "failures!"
             from unnest($1::bigint[], $2::timestamptz[], $3::bigint[], $4::int[]) as b(incident_id, start, seconds, count)
            cross join lateral (select minute as at, failure_count
                                  from failures_by_minute
                                 where incident_id = b.incident_id and b.seconds % 3600 <> 0
                                 union all
                                select hour, failure_count
                                  from failures_by_hour
                                 where incident_id = b.incident_id and b.seconds % 3600 = 0) f
            group by 1, 2"#,
        &of.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        &of.iter().map(|(_, bins)| bins.start).collect::<Vec<_>>(),
        &of.iter().map(|(_, bins)| bins.width.whole_seconds()).collect::<Vec<_>>(),
        &of.iter().map(|(_, bins)| i32::try_from(bins.count).unwrap_or(i32::MAX)).collect::<Vec<_>>(),
    )
    .fetch_all(db)
    .await?;
    let mut failures: BTreeMap<i64, Vec<u64>> = of
        .iter()
        .map(|(id, bins)| (*id, vec![0; bins.count]))
        .collect();
    for row in rows {
        let bin = failures
            .get_mut(&row.incident_id)
            .and_then(|bins| bins.get_mut(usize::try_from(row.bin).ok()?));
        if let Some(bin) = bin {
            *bin += u64::try_from(row.failures).unwrap_or_default();
        }
    }
    Ok(failures)
}

/// What some look-ups of a number said in a bin.
#[derive(Debug, Clone)]
pub struct HealthAt {
    /// The number.
    pub phone_number_id: String,
    /// The bin.
    pub bin: usize,
    /// Whether they were in the bin, or are the latest before it.
    pub is_within: bool,
    /// How they ended.
    pub outcome: String,
    /// What they came to.
    pub can_send_message: Option<String>,
}

/// What the last few look-ups of each number said in each bin, and what the latest before it did: so many
/// rows at the most, however many look-ups there were.
///
/// # Errors
/// The database does not answer.
pub async fn health_over_time(
    db: &PgPool,
    incident_id: i64,
    numbers: &[&str],
    bins: Bins,
) -> Result<Vec<HealthAt>, StoreError> {
    let starts: Vec<OffsetDateTime> = (0..bins.count).map(|bin| bins.start_of(bin)).collect();
    let ends: Vec<OffsetDateTime> = (1..=bins.count).map(|bin| bins.start_of(bin)).collect();
    let rows = sqlx::query!(
        r#"select n.phone_number_id as "phone_number_id!", b.position as "position!", c.is_within as "is_within!",
                  c.outcome as "outcome!", c.can_send_message
             from unnest($2::text[]) as n(phone_number_id)
            cross join unnest($3::timestamptz[], $4::timestamptz[]) with ordinality as b(start, until, position)
            cross join lateral ((select false as is_within, outcome, can_send_message
                                   from health_checks
                                  where incident_id = $1 and phone_number_id = n.phone_number_id
                                    and checked_at < b.start
                                  order by checked_at desc
                                  limit 1)
                                 union all
                                select distinct true, outcome, can_send_message
                                  from (select outcome, can_send_message
                                          from health_checks
                                         where incident_id = $1 and phone_number_id = n.phone_number_id
                                           and checked_at >= b.start and checked_at < b.until
                                         order by checked_at desc
                                         limit 6) latest) c"#,
        incident_id,
        numbers as &[&str],
        &starts,
        &ends,
    )
    .fetch_all(db)
    .await?;
    let health = rows.into_iter().map(|row| HealthAt {
        phone_number_id: row.phone_number_id,
        bin: usize::try_from(row.position - 1).expect("ordinality counts from one"),
        is_within: row.is_within,
        outcome: row.outcome,
        can_send_message: row.can_send_message,
    });
    Ok(health.collect())
}
