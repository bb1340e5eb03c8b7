//! What is older than its time leaves, in small batches. Incidents and their counts stay.

use std::time::Duration;

use sqlx::PgPool;

use super::{StoreError, interval};

/// Rows per statement: short enough to be in nobody's way.
const BATCH: i64 = 1000;
/// Captures and quarantine have bodies of up to 4 MB.
const BODIES: i64 = 100;

/// What one round deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is a table")]
pub struct Deleted {
    pub failed_deliveries: u64,
    pub health_checks: u64,
    pub quarantine: u64,
    pub captures: u64,
}

impl Deleted {
    /// All rows together.
    #[must_use]
    pub fn rows(self) -> u64 {
        self.failed_deliveries + self.health_checks + self.quarantine + self.captures
    }

    /// Adds what another round deleted.
    pub fn add(&mut self, other: Self) {
        self.failed_deliveries += other.failed_deliveries;
        self.health_checks += other.health_checks;
        self.quarantine += other.quarantine;
        self.captures += other.captures;
    }
}

/// Deletes one batch of each kind that was received longer ago than `age`. Nothing deleted: nothing is left
/// to do. Captures come last, so that nothing points to one that is gone.
///
/// The checks that an open incident rests on stay: its cause is derived from them.
///
/// # Errors
/// The database does not answer; what was deleted before stays deleted.
pub async fn delete_batch(db: &PgPool, age: Duration) -> Result<Deleted, StoreError> {
    let age = interval(age);
    let failed_deliveries = sqlx::query!(
        "delete from failed_deliveries d
          using (select id, waba_id from failed_deliveries where received_at < now() - $1::interval
                  order by received_at limit $2 for update skip locked) old
          where d.id = old.id and d.waba_id = old.waba_id",
        &age,
        BATCH
    )
    .execute(db)
    .await?
    .rows_affected();
    let health_checks = sqlx::query!(
        "delete from health_checks h
          using (select c.id, c.waba_id from health_checks c
                  where c.checked_at < now() - $1::interval
                    and not exists (select from incidents i
                                     where i.id = c.incident_id and i.waba_id = c.waba_id and i.resolved_at is null
                                       and (i.cause_check_id = c.id
                                            or exists (select from affected_numbers n
                                                        where n.incident_id = i.id and n.waba_id = i.waba_id
                                                          and n.latest_check_id = c.id)))
                  order by c.checked_at limit $2 for update skip locked) old
          where h.id = old.id and h.waba_id = old.waba_id",
        &age,
        BATCH
    )
    .execute(db)
    .await?
    .rows_affected();
    let quarantine = sqlx::query!(
        "delete from quarantine q
          using (select id, waba_id from quarantine where received_at < now() - $1::interval
                  order by received_at limit $2 for update skip locked) old
          where q.id = old.id and q.waba_id = old.waba_id",
        &age,
        BODIES
    )
    .execute(db)
    .await?
    .rows_affected();
    let captures = sqlx::query!(
        "delete from captures c
          using (select digest, waba_id from captures where received_at < now() - $1::interval
                  order by received_at limit $2 for update skip locked) old
          where c.digest = old.digest and c.waba_id = old.waba_id",
        &age,
        BODIES
    )
    .execute(db)
    .await?
    .rows_affected();
    Ok(Deleted { failed_deliveries, health_checks, quarantine, captures })
}
