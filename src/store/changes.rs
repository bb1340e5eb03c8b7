//! The changes of incidents: records and lists them, and writes the log from the records.

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use tracing::{info, warn};
use utoipa::ToSchema;

use super::{StoreError, Word};
use crate::lockout::cause::LockoutCause;
use crate::lockout::change::{Change, ChangeKind};
use crate::lockout::codes::Kind;
use crate::lockout::incident::Resolution;
use crate::lockout::person::Person;
use crate::meta::ids::WabaId;

/// Changes that are logged in one transaction.
const LOG_LIMIT: i64 = 500;

/// Records changes in the transaction that makes them true.
pub(super) async fn record(db: &mut PgConnection, changes: &[Change]) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into incident_changes (incident_id, waba_id, kind, detail, by)
         select * from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[])",
        &changes
            .iter()
            .map(|change| change.incident_id)
            .collect::<Vec<_>>(),
        &changes
            .iter()
            .map(|change| change.waba_id.as_str())
            .collect::<Vec<_>>() as &[&str],
        &changes
            .iter()
            .map(|change| change.kind.as_str())
            .collect::<Vec<_>>() as &[&str],
        &changes
            .iter()
            .map(|change| change.kind.detail())
            .collect::<Vec<_>>() as &[Option<&str>],
        &changes
            .iter()
            .map(|change| change.by.as_ref().map(Person::as_str))
            .collect::<Vec<_>>() as &[Option<&str>],
    )
    .execute(db)
    .await?;
    Ok(())
}

/// One step in the life of an incident. The fields are columns.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct IncidentChange {
    /// The id of the change. Later changes have larger ids.
    pub id: i64,
    /// The incident.
    pub incident_id: i64,
    /// `opened`, `cause_found`, `cause_changed`, `acknowledged`, `reminded`, `reopened` or
    /// `resolved`.
    #[schema(example = "cause_found")]
    pub kind: String,
    /// The time of the change.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Who did it by hand. Null: nobody, or somebody without a name.
    pub by: Option<String>,
    /// The cause or the resolution, in a word.
    #[schema(example = "payment")]
    pub detail: Option<String>,
}

/// Lists the changes of an incident, the latest first; with `before`, those with smaller ids.
pub(crate) async fn list(
    db: &PgPool,
    incident_id: i64,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<IncidentChange>, StoreError> {
    let changes = sqlx::query_as!(
        IncidentChange,
        "select id, incident_id, kind, at, by, detail
           from incident_changes
          where incident_id = $1 and ($2::bigint is null or id < $2)
          order by id desc
          limit $3",
        incident_id,
        before,
        limit,
    );
    Ok(changes.fetch_all(db).await?)
}

/// Lists the changes of all incidents with larger ids than this one, the earliest first.
pub(crate) async fn list_after(db: &PgPool, id: i64) -> Result<Vec<IncidentChange>, StoreError> {
    let changes = sqlx::query_as!(
        IncidentChange,
        "select id, incident_id, kind, at, by, detail
           from incident_changes
          where id > $1
          order by id",
        id,
    );
    Ok(changes.fetch_all(db).await?)
}

/// Logs the changes that no process has logged yet, and returns them, each with the kind of its
/// incident, but for what was over when it was first seen; `None` if there are none. A process that
/// dies here may leave some to be logged twice; none is lost. Call it from a task that nobody
/// cancels.
///
/// # Errors
/// Some lines may have been written that will be written again.
pub(crate) async fn log_new(db: &PgPool) -> Result<Option<Vec<(Kind, ChangeKind)>>, StoreError> {
    let mut transaction = db.begin().await?;
    let rows = sqlx::query!(
        r#"select c.id, c.incident_id, c.waba_id as "waba_id: WabaId", c.kind, c.detail,
                  i.kind as "of_kind: Word<Kind>",
                  coalesce(i.ended_at <= i.created_at, false) as "was_over!"
             from incident_changes c
             join incidents i on i.id = c.incident_id and i.waba_id = c.waba_id
            where c.logged_at is null
            order by c.id
            limit $1
              for update of c skip locked"#,
        LOG_LIMIT,
    )
    .fetch_all(&mut *transaction)
    .await?;
    if rows.is_empty() {
        transaction.rollback().await?;
        return Ok(None);
    }
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let mut logged = Vec::new();
    for row in rows {
        match ChangeKind::parse(&row.kind, row.detail.as_deref()) {
            Some(kind) => {
                let of_kind = row.of_kind.known().unwrap_or(Kind::Lock);
                log(row.incident_id, &row.waba_id, of_kind, kind);
                // What was over when it was first seen, such as a replayed payload, is no news.
                if !row.was_over {
                    logged.push((of_kind, kind));
                }
            }
            None => info!(
                incident.id = row.incident_id,
                waba.id = %row.waba_id,
                "incident {}: {}", row.incident_id, row.kind
            ),
        }
    }
    sqlx::query!(
        "update incident_changes set logged_at = now() where id = any($1)",
        &ids
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Some(logged))
}

fn log(id: i64, waba_id: &WabaId, of_kind: Kind, kind: ChangeKind) {
    let (opened, goes_on) = match of_kind {
        Kind::Lock => (
            "account locked".to_owned(),
            "account still locked".to_owned(),
        ),
        kind => (
            format!("{waba_id} {}", kind.state(true)),
            format!("{waba_id} still {}", kind.state(true)),
        ),
    };
    match kind {
        ChangeKind::Opened => warn!(
            incident.id = id,
            waba.id = %waba_id,
            "{opened}: incident {id} opened for {waba_id}"
        ),
        ChangeKind::CauseFound(LockoutCause::LookupDenied)
        | ChangeKind::CauseChanged(LockoutCause::LookupDenied) => warn!(
            incident.id = id,
            waba.id = %waba_id,
            "the cause of incident {id} cannot be looked up: see `lockwatch incidents show {id}`"
        ),
        ChangeKind::CauseFound(cause) | ChangeKind::CauseChanged(cause) => warn!(
            incident.id = id,
            waba.id = %waba_id,
            cause = %cause,
            "cause of incident {id}: {cause}"
        ),
        ChangeKind::Resolved(resolution) => {
            let reason = match resolution {
                Resolution::Recovered => "is over: recovered",
                Resolution::SendingAgain => "is over: messages are sent again",
                Resolution::Reinstated => "is over: Meta lifted the lock",
                Resolution::Expired => "is over: the end that Meta announced has passed",
                Resolution::Quiet => "is over: seven quiet days",
                Resolution::Manual => "is resolved by hand",
            };
            info!(
                incident.id = id,
                waba.id = %waba_id,
                "incident {id} of {waba_id} {reason}"
            );
        }
        ChangeKind::Acknowledged => info!(
            incident.id = id,
            waba.id = %waba_id,
            "incident {id} of {waba_id} is acknowledged"
        ),
        ChangeKind::Reminded => warn!(
            incident.id = id,
            waba.id = %waba_id,
            "{goes_on}: incident {id} of {waba_id} has been open for another day, and nobody has \
             acknowledged it"
        ),
        ChangeKind::Reopened => warn!(
            incident.id = id,
            waba.id = %waba_id,
            "{goes_on}: incident {id} of {waba_id} is open again"
        ),
    }
}
