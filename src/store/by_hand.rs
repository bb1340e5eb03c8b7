//! Changes of an incident by hand: a person resolves it, opens it again, or acknowledges it.
//!
//! Call these functions from a task that nobody cancels. If one fails, nothing is changed.

use sqlx::{PgPool, Postgres, Transaction};

use super::incident_life::{self, Deed, End, Hand};
use super::incidents::{self, Incident};
use super::{StoreError, lock_account};
use crate::lockout::incident::Resolution;
use crate::lockout::person::Person;
use crate::meta::ids::WabaId;

/// The reason why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such incident.
    #[error("there is no incident {0}")]
    Unknown(i64),
    /// The incident was resolved before.
    #[error("incident {0} was resolved before; nothing changed")]
    AlreadyResolved(i64),
    /// The incident is open already.
    #[error("incident {0} is open; nothing changed")]
    AlreadyOpen(i64),
    /// The account has a later incident of the kind.
    #[error("incident {id} stays as it is: incident {later} of its account is later")]
    Followed {
        /// The incident.
        id: i64,
        /// The later one.
        later: i64,
    },
    /// Somebody acknowledged the incident before.
    #[error("incident {0} was acknowledged before; nothing changed")]
    AlreadyAcknowledged(i64),
}

/// The account of the incident, or why nothing was done.
pub type Done = Result<WabaId, Refusal>;

/// Resolves an incident.
pub async fn resolve(
    db: &PgPool,
    id: i64,
    note: Option<&str>,
    by: Option<&Person>,
) -> Result<Done, StoreError> {
    let Some((mut transaction, waba_id)) = lock_incident(db, id).await? else {
        return Ok(Err(Refusal::Unknown(id)));
    };
    let end = End {
        resolution: Resolution::Manual,
        at: None,
        hand: Hand { by, note },
    };
    let resolved = incident_life::resolve(&mut transaction, id, &waba_id, end).await?;
    transaction.commit().await?;
    Ok(match resolved {
        Some(_) => Ok(waba_id),
        None => Err(Refusal::AlreadyResolved(id)),
    })
}

/// Opens an incident again: its end was wrong. Its seven days of silence start anew, and earlier
/// clear checks no longer count.
pub async fn reopen(db: &PgPool, id: i64, by: Option<&Person>) -> Result<Done, StoreError> {
    let Some((mut transaction, waba_id)) = lock_incident(db, id).await? else {
        return Ok(Err(Refusal::Unknown(id)));
    };
    let state = sqlx::query!(
        r#"select i.ended_at is null as "is_open!",
                  (select l.id from incidents l
                    where l.waba_id = i.waba_id and l.kind = i.kind and l.opened_at > i.opened_at
                    order by l.opened_at desc
                    limit 1) as later
             from incidents i
            where i.id = $1 and i.waba_id = $2"#,
        id,
        waba_id.as_str(),
    )
    .fetch_one(&mut *transaction)
    .await?;
    if state.is_open {
        return Ok(Err(Refusal::AlreadyOpen(id)));
    }
    if let Some(later) = state.later {
        return Ok(Err(Refusal::Followed { id, later }));
    }
    incident_life::start_silence_anew(&mut transaction, id, &waba_id).await?;
    incident_life::reopen(&mut transaction, id, &waba_id, by).await?;
    transaction.commit().await?;
    Ok(Ok(waba_id))
}

/// Notes that a person has seen an open incident: reminders stop.
pub async fn acknowledge(db: &PgPool, id: i64, by: Option<&Person>) -> Result<Done, StoreError> {
    let Some((mut transaction, waba_id)) = lock_incident(db, id).await? else {
        return Ok(Err(Refusal::Unknown(id)));
    };
    let deed = incident_life::acknowledge(&mut transaction, id, &waba_id, by).await?;
    transaction.commit().await?;
    Ok(match deed {
        Deed::Done => Ok(waba_id),
        Deed::DoneBefore => Err(Refusal::AlreadyAcknowledged(id)),
        Deed::TooLate => Err(Refusal::AlreadyResolved(id)),
    })
}

/// Locks the account of an incident; `None` if there is no such incident.
async fn lock_incident(
    db: &PgPool,
    id: i64,
) -> Result<Option<(Transaction<'static, Postgres>, WabaId)>, StoreError> {
    let Some(Incident { waba_id, .. }) = incidents::find(db, id).await? else {
        return Ok(None);
    };
    let mut transaction = db.begin().await?;
    lock_account(&mut transaction, &waba_id).await?;
    Ok(Some((transaction, waba_id)))
}
