//! Sending again: ends incidents that a sent message proves to be over.

use std::collections::HashSet;

use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::incident_life::{self, End, Hand};
use super::{StoreError, conclusion, lock_account};
use crate::lockout::incident::Resolution;
use crate::lockout::sending::{Proof, Senders};
use crate::meta::ids::{PhoneNumberId, WabaId};

/// Messages of a number that Meta has sent, since they were last concluded from.
#[derive(Debug, Clone, Copy)]
pub struct SentAgain<'s> {
    /// The account.
    pub waba_id: &'s WabaId,
    /// The number that sent them.
    pub phone_number_id: &'s PhoneNumberId,
    /// Whether they were templates, if that is known.
    pub is_template: Option<bool>,
    /// The time of the first.
    pub first: OffsetDateTime,
    /// The time of the last.
    pub last: OffsetDateTime,
}

impl SentAgain<'_> {
    /// Returns the time of the first message that is known to come after another time.
    fn after(&self, at: OffsetDateTime) -> Option<OffsetDateTime> {
        [self.first, self.last].into_iter().find(|sent| *sent > at)
    }
}

/// Returns the accounts with an open incident.
pub async fn open_accounts(db: &PgPool) -> Result<HashSet<WabaId>, StoreError> {
    let open = sqlx::query_scalar!(
        r#"select distinct waba_id as "waba_id: WabaId"
             from incidents
            where resolved_at is null and ended_at is null"#
    );
    Ok(open.fetch_all(db).await?.into_iter().collect())
}

/// Ends the open incidents of an account that these messages prove to be over. Call it from a task
/// that nobody cancels. Returns `false` while callbacks wait that came before: a later failure may
/// be among them.
///
/// # Errors
/// Nothing is changed.
pub async fn end_if_sending(db: &PgPool, sent: &SentAgain<'_>) -> Result<bool, StoreError> {
    let mut transaction = db.begin().await?;
    lock_account(&mut transaction, sent.waba_id).await?;
    let waits = sqlx::query_scalar!(
        r#"select exists (select from inbox
                           where problem is null and appended_at < now() - interval '1 s')
                  as "waits!""#
    );
    if waits.fetch_one(&mut *transaction).await? {
        transaction.rollback().await?;
        return Ok(false);
    }
    for incident in conclusion::open_with_proofs(&mut transaction, sent.waba_id).await? {
        if sent.is_template != Some(true) && incident.proof.needs_template {
            continue;
        }
        let Some(at) = proven_end(&mut transaction, &incident, sent).await? else {
            continue;
        };
        let end = End {
            resolution: Resolution::SendingAgain,
            at: Some(at),
            hand: Hand::default(),
        };
        incident_life::resolve(&mut transaction, incident.id, sent.waba_id, end).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// An open incident, and the messages that would prove its end.
#[derive(Debug)]
pub(super) struct ProvableIncident {
    pub(super) id: i64,
    /// The last failure, error of the account, or ban; or when a person opened it again.
    pub(super) last_failure_at: OffsetDateTime,
    pub(super) has_failures: bool,
    pub(super) proof: Proof,
}

/// Returns the time from which the messages prove that an incident is over, if they do.
async fn proven_end(
    db: &mut PgConnection,
    incident: &ProvableIncident,
    sent: &SentAgain<'_>,
) -> Result<Option<OffsetDateTime>, StoreError> {
    // Where no message has failed, there is no number to ask for more.
    if incident.proof.senders == Senders::Any || !incident.has_failures {
        return Ok(sent.after(incident.last_failure_at));
    }
    let own_last_failure = sqlx::query_scalar!(
        r#"select greatest(n.last_failure_at, i.reopened_at) as "last_failure_at!"
             from affected_numbers n
             join incidents i on i.id = n.incident_id and i.waba_id = n.waba_id
            where n.incident_id = $1 and n.waba_id = $2 and n.phone_number_id = $3"#,
        incident.id,
        sent.waba_id.as_str(),
        sent.phone_number_id.as_str(),
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(own_last_failure) = own_last_failure else {
        return Ok(None);
    };
    if incident.proof.senders == Senders::Affected {
        return Ok(sent.after(incident.last_failure_at));
    }
    let Some(at) = sent.after(own_last_failure) else {
        return Ok(None);
    };
    sqlx::query!(
        "update affected_numbers
            set sent_at = greatest(sent_at, $4)
          where incident_id = $1 and waba_id = $2 and phone_number_id = $3",
        incident.id,
        sent.waba_id.as_str(),
        sent.phone_number_id.as_str(),
        at,
    )
    .execute(&mut *db)
    .await?;
    let end = sqlx::query_scalar!(
        "select max(sent_at)
           from affected_numbers
          where incident_id = $1 and waba_id = $2 and failure_count > 0
         having bool_and(coalesce(sent_at > last_failure_at, false))",
        incident.id,
        sent.waba_id.as_str(),
    )
    .fetch_optional(db)
    .await?;
    Ok(end.flatten().filter(|end| *end > incident.last_failure_at))
}
