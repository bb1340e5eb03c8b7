//! Incidents and their affected numbers, as people read them.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::PgPool;
use sqlx::types::Json;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{StoreError, Word};
use crate::lockout::cause::{LockoutCause, NumberFindings};
use crate::lockout::codes::Kind;
use crate::lockout::incident::Resolution;
use crate::meta::graph_error::Denial;
use crate::meta::ids::{PhoneNumberId, WabaId};

/// One lockout of one account, from its first evidence until it is over. The fields are columns.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = IncidentColumns)]
pub struct Incident {
    /// The id of the incident.
    pub id: i64,
    /// The WhatsApp Business Account; Meta's test numbers as `phone:<phone_number_id>`.
    #[schema(value_type = String)]
    pub waba_id: WabaId,
    /// What is locked: `lock` (the account), or with more codes watched `payment`, `registration`,
    /// `country` or `limit`. One of a kind is open at a time.
    #[schema(value_type = String, example = "lock")]
    pub kind: Word<Kind>,
    /// Its first evidence: `failure`, `error` (of the account, without a message), or `event` (a
    /// ban).
    #[schema(example = "failure")]
    pub opened_by: String,
    /// The time of the first evidence.
    #[serde(with = "time::serde::rfc3339")]
    pub opened_at: OffsetDateTime,
    /// The time of the latest failure; of the first evidence while no message has failed.
    #[serde(with = "time::serde::rfc3339")]
    pub last_failure_at: OffsetDateTime,
    /// The time at which it was over, according to the evidence. Null while it is open.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// The time at which that was noticed, or a person resolved it. Null while it is open.
    #[serde(with = "time::serde::rfc3339::option")]
    pub resolved_at: Option<OffsetDateTime>,
    /// The reason why it ended: `recovered`, `sending_again`, `reinstated`, `expired`, `quiet` or
    /// `manual`.
    #[schema(value_type = Option<String>)]
    pub resolution: Option<Word<Resolution>>,
    /// The note of the person who resolved it.
    pub resolution_note: Option<String>,
    /// The time at which a person acknowledged it.
    #[serde(with = "time::serde::rfc3339::option")]
    pub acknowledged_at: Option<OffsetDateTime>,
    /// That person.
    pub acknowledged_by: Option<String>,
    /// The number of failed messages.
    pub failure_count: i64,
    /// The reason why the account is locked; `pending` until Meta's first answer.
    #[schema(value_type = String, example = "payment")]
    pub cause: Word<LockoutCause>,
    /// `stated` if Meta blocks an entity with this reason or names the state of the account,
    /// `inferred` if it shows less. Null if Meta names no reason.
    #[schema(example = "stated")]
    pub cause_confidence: Option<String>,
    /// `account`, or `number` if the cause is that of single numbers. Null if Meta names no reason.
    #[schema(example = "account")]
    pub cause_scope: Option<String>,
    /// Why the look-up is refused, in a word, if the cause is `lookup_denied`.
    #[schema(value_type = Option<String>, example = "token_invalid")]
    pub denial: Option<Word<Denial>>,
    /// The verdict on the entity, in Meta's words.
    #[schema(example = "BLOCKED")]
    pub cause_severity: Option<String>,
    /// The cause in a sentence.
    pub cause_summary: Option<String>,
    /// The type of the entity with the reason.
    #[schema(example = "WABA")]
    pub cause_entity_type: Option<String>,
    /// The id of that entity.
    pub cause_entity_id: Option<String>,
    /// Meta's code of the reason.
    #[schema(example = 141_006)]
    pub cause_error_code: Option<i64>,
    /// Meta's own advice.
    pub possible_solution: Option<String>,
    /// The time this cause was first recorded.
    #[serde(with = "time::serde::rfc3339::option")]
    pub cause_recorded_at: Option<OffsetDateTime>,
    /// The health check that showed the cause.
    pub cause_check_id: Option<i64>,
    /// The account's incident before this one.
    pub previous_incident_id: Option<i64>,
    /// The name of the account.
    pub account_name: Option<String>,
    /// The labels that a person gave the account.
    pub account_labels: Vec<String>,
    /// The business portfolio that owns the account: only its admins can appeal.
    #[schema(example = "506914307656634")]
    pub portfolio_id: Option<String>,
    /// The name of that portfolio.
    pub portfolio_name: Option<String>,
}

/// A phone number with failures in an incident. The fields are columns.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = AffectedNumberColumns)]
pub struct AffectedNumber {
    /// Meta's id of the business phone number, which is also the node of its look-ups.
    #[schema(value_type = String)]
    pub phone_number_id: PhoneNumberId,
    /// The phone number, as Meta writes it.
    pub display_phone_number: Option<String>,
    /// The time of its first failure.
    #[serde(with = "time::serde::rfc3339")]
    pub first_failure_at: OffsetDateTime,
    /// The time of its latest failure.
    #[serde(with = "time::serde::rfc3339")]
    pub last_failure_at: OffsetDateTime,
    /// The number of its failed messages.
    pub failure_count: i64,
    /// The time of its next look-up, which waits while Meta throttles or refuses the account's.
    /// Null once the incident is resolved.
    #[serde(with = "time::serde::rfc3339::option")]
    pub check_due_at: Option<OffsetDateTime>,
    /// The look-ups that failed since the last answer.
    pub check_failures: i32,
    /// The time since which its checks show nothing that explains a lock.
    #[serde(with = "time::serde::rfc3339::option")]
    pub clear_since: Option<OffsetDateTime>,
    /// What its checks have shown.
    #[serde(skip)]
    pub findings: NumberFindings,
}

/// The affected numbers of one incident.
#[derive(Debug, Clone, Default)]
pub struct AffectedNumbers {
    /// The numbers with the most failures, in descending order.
    pub top: Vec<AffectedNumber>,
    /// The count of all affected numbers.
    pub count: i64,
    /// The failures of all numbers that have a reason of their own.
    pub explained_failures: i64,
    /// The failures of all numbers whose own reason is the incident's cause.
    pub failures_with_cause: i64,
}

/// The state of the incidents to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, ToSchema)]
#[schema(as = State, rename_all = "lowercase")]
pub enum IncidentState {
    /// Not resolved.
    Open,
    /// Resolved.
    Resolved,
    /// Both.
    #[default]
    All,
}

/// A filter for lists of incidents. A field that is `None` does not restrict the list.
#[derive(Debug, Clone, Default)]
pub struct IncidentFilter {
    /// Open, resolved, or both.
    pub state: IncidentState,
    /// Only incidents of this account.
    pub waba_id: Option<WabaId>,
    /// Only incidents with this cause, as the column has it.
    pub cause: Option<LockoutCause>,
    /// Only incidents that were opened at this time or later.
    pub since: Option<OffsetDateTime>,
    /// Only incidents that were opened before this time.
    pub until: Option<OffsetDateTime>,
    /// Only the incidents with these ids, such as the result of `search`.
    pub among: Option<Vec<i64>>,
    /// Only incidents with a smaller id than this one, the last of the previous page.
    pub before: Option<i64>,
}

/// Lists incidents, the newest first.
pub async fn list(
    db: &PgPool,
    filter: &IncidentFilter,
    limit: i64,
) -> Result<Vec<Incident>, StoreError> {
    select(db, None, filter, limit).await
}

/// Finds an incident; `None` if there is no such incident.
pub async fn find(db: &PgPool, id: i64) -> Result<Option<Incident>, StoreError> {
    Ok(select(db, Some(id), &IncidentFilter::default(), 1)
        .await?
        .pop())
}

async fn select(
    db: &PgPool,
    id: Option<i64>,
    filter: &IncidentFilter,
    limit: i64,
) -> Result<Vec<Incident>, StoreError> {
    let resolved = match filter.state {
        IncidentState::Open => Some(false),
        IncidentState::Resolved => Some(true),
        IncidentState::All => None,
    };
    let incidents = sqlx::query_as!(
        Incident,
        r#"select id, waba_id as "waba_id: _", kind as "kind: _", opened_by, opened_at,
                  last_failure_at, ended_at, resolved_at, resolution as "resolution: _",
                  resolution_note, acknowledged_at, acknowledged_by, failure_count,
                  cause as "cause: _", cause_confidence, cause_scope, i.denial as "denial: _",
                  cause_severity, cause_summary, cause_entity_type, cause_entity_id,
                  cause_error_code, possible_solution, cause_recorded_at, cause_check_id,
                  previous_incident_id, a.name as account_name, a.labels as account_labels,
                  portfolio_id, portfolio_name
             from incidents i
             join accounts a using (waba_id)
            where ($1::bigint is null or id = $1)
              and ($2::boolean is null or (resolved_at is not null) = $2)
              and ($3::text is null or waba_id = $3)
              and ($4::text is null or cause = $4)
              and ($5::timestamptz is null or opened_at >= $5)
              and ($6::timestamptz is null or opened_at < $6)
              and ($7::bigint is null or id < $7)
              and ($8::bigint[] is null or id = any($8))
            order by id desc
            limit $9"#,
        id,
        resolved,
        filter.waba_id.as_ref().map(WabaId::as_str),
        filter.cause.map(LockoutCause::as_str),
        filter.since,
        filter.until,
        filter.before,
        filter.among.as_deref(),
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(incidents)
}

/// Finds the incidents with this text in the account's id, or in the id or the digits of one of
/// their numbers. It reads every affected number, so a page calls it once for all of its lists.
pub(crate) async fn search(db: &PgPool, text: &str) -> Result<Vec<i64>, StoreError> {
    // A number may be written in many ways. A text with letters is no number.
    let is_number = text
        .chars()
        .all(|c| c.is_ascii_digit() || " +()-./".contains(c));
    let digits: String = text
        .chars()
        .filter(|c| is_number && c.is_ascii_digit())
        .collect();
    let ids = sqlx::query_scalar!(
        r#"select id
             from incidents
            where strpos(waba_id, $1) > 0
               or id in (select incident_id
                           from affected_numbers
                          where strpos(phone_number_id, $1) > 0
                             or strpos(translate(display_phone_number, ' +()-./', ''), $2) > 0)"#,
        text,
        Some(digits).filter(|digits| !digits.is_empty()),
    )
    .fetch_all(db)
    .await?;
    Ok(ids)
}

/// The worst of some incidents.
#[derive(Debug, Clone, Default)]
pub struct Worst {
    /// Their ids: what is open comes first, then what hits most messages.
    pub ids: Vec<i64>,
    /// All of the incidents.
    pub count: i64,
    /// Those of them that are open.
    pub open: i64,
}

/// Returns the worst of these incidents, up to `limit`.
pub(crate) async fn worst(db: &PgPool, ids: &[i64], limit: i64) -> Result<Worst, StoreError> {
    let rows = sqlx::query!(
        r#"select id, count(*) over () as "count!",
                  count(*) filter (where ended_at is null) over () as "open!"
             from incidents
            where id = any($1)
            order by ended_at is not null, failure_count desc, id
            limit $2"#,
        ids,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(Worst {
        count: rows.first().map_or(0, |row| row.count),
        open: rows.first().map_or(0, |row| row.open),
        ids: rows.into_iter().map(|row| row.id).collect(),
    })
}

/// Counts the open incidents.
pub(crate) async fn count_open(db: &PgPool) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar!(
        r#"select count(*) as "count!" from incidents where resolved_at is null"#
    );
    Ok(count.fetch_one(db).await?)
}

/// Lists the affected numbers of some incidents, up to `limit` each, by the id of the incident. The
/// account's own node stands for them only while no message has failed.
pub async fn list_numbers(
    db: &PgPool,
    ids: &[i64],
    limit: i64,
) -> Result<BTreeMap<i64, AffectedNumbers>, StoreError> {
    let rows = sqlx::query!(
        r#"select n.incident_id, n.phone_number_id as "phone_number_id: PhoneNumberId",
                  n.display_phone_number, n.first_failure_at, n.last_failure_at, n.failure_count,
                  n.check_failures, n.clear_since, n.findings as "findings: Json<NumberFindings>",
                  case when n.check_due_at is not null
                       then greatest(n.check_due_at, a.lookups_paused_until, a.denied_until,
                                     l.until) end as check_due_at,
                  n.count as "count!", n.explained as "explained!", n.with_cause as "with_cause!"
             from unnest($1::bigint[]) as wanted(id)
             join incidents i on i.id = wanted.id
             join accounts a on a.waba_id = i.waba_id
             left join graph_limits l on l.scope = 'account' and l.key = i.waba_id
            cross join lateral (
                    select *, count(*) over () as count,
                           sum(case when reason is null then 0 else failure_count end)
                             over ()::bigint as explained,
                           sum(case when reason = i.cause then failure_count else 0 end)
                             over ()::bigint as with_cause
                      from (select *, findings #>> '{number,explains}' as reason
                              from affected_numbers
                             where incident_id = i.id
                               and (phone_number_id <> i.waba_id or i.failure_count = 0)) reasons
                     order by failure_count desc, phone_number_id
                     limit $2) n"#,
        ids,
        limit,
    )
    .fetch_all(db)
    .await?;
    let mut numbers: BTreeMap<i64, AffectedNumbers> = BTreeMap::new();
    for row in rows {
        let of_incident = numbers.entry(row.incident_id).or_default();
        of_incident.count = row.count;
        of_incident.explained_failures = row.explained;
        of_incident.failures_with_cause = row.with_cause;
        of_incident.top.push(AffectedNumber {
            phone_number_id: row.phone_number_id,
            display_phone_number: row.display_phone_number,
            first_failure_at: row.first_failure_at,
            last_failure_at: row.last_failure_at,
            failure_count: row.failure_count,
            check_due_at: row.check_due_at,
            check_failures: row.check_failures,
            clear_since: row.clear_since,
            findings: row
                .findings
                .map(|Json(findings)| findings)
                .unwrap_or_default(),
        });
    }
    Ok(numbers)
}
