//! The changes of incidents: records them, and writes the log from the records.

use sqlx::{PgConnection, PgPool};
use tracing::{info, warn};

use super::{StoreError, Word};
use crate::lockout::cause::LockoutCause;
use crate::lockout::change::{Change, ChangeKind};
use crate::lockout::codes::Kind;
use crate::lockout::incident::Resolution;
use crate::meta::ids::WabaId;

/// Changes that are logged in one transaction.
const LOG_LIMIT: i64 = 500;

/// Records changes in the transaction that makes them true.
pub(super) async fn record(db: &mut PgConnection, changes: &[Change]) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into incident_changes (incident_id, waba_id, kind, detail)
         select * from unnest($1::bigint[], $2::text[], $3::text[], $4::text[])",
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
    )
    .execute(db)
    .await?;
    Ok(())
}

/// A change of an incident. The fields are columns.
#[derive(Debug, Clone)]
pub(crate) struct ChangeRow {
    pub(crate) id: i64,
    pub(crate) incident_id: i64,
    pub(crate) kind: String,
    pub(crate) detail: Option<String>,
}

/// Lists the changes with larger ids than this one.
pub(crate) async fn list_after(db: &PgPool, id: i64) -> Result<Vec<ChangeRow>, StoreError> {
    let changes = sqlx::query_as!(
        ChangeRow,
        "select id, incident_id, kind, detail from incident_changes where id > $1 order by id",
        id,
    );
    Ok(changes.fetch_all(db).await?)
}

/// Logs the changes that no process has logged yet, and returns their number. A process that dies
/// here may leave some to be logged twice; none is lost. Call it from a task that nobody cancels.
///
/// # Errors
/// Some lines may have been written that will be written again.
pub(crate) async fn log_new(db: &PgPool) -> Result<usize, StoreError> {
    let mut transaction = db.begin().await?;
    let rows = sqlx::query!(
        r#"select c.id, c.incident_id, c.waba_id as "waba_id: WabaId", c.kind, c.detail,
                  i.kind as "of_kind: Word<Kind>"
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
        return Ok(0);
    }
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    for row in rows {
        match ChangeKind::parse(&row.kind, row.detail.as_deref()) {
            Some(kind) => {
                let of_kind = row.of_kind.known().unwrap_or(Kind::Lock);
                log(row.incident_id, &row.waba_id, of_kind, kind);
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
    Ok(ids.len())
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
        ChangeKind::Reopened => warn!(
            incident.id = id,
            waba.id = %waba_id,
            "{goes_on}: incident {id} of {waba_id} is open again"
        ),
    }
}
