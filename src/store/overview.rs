//! How things stand, over all accounts: what a monitoring system asks every few seconds.

use std::time::Duration;

use sqlx::PgPool;

use super::{StoreError, interval};
use crate::lockout::cause::LockoutCause;

/// A check may be this late: a look-up has to be claimed, asked and saved.
const GRACE: Duration = Duration::from_secs(120);

/// What is open, and what is late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// Open incidents by cause: every cause is there, in the order of the rules.
    pub open: [(LockoutCause, i64); LockoutCause::ALL.len()],
    /// Numbers whose check is due for more than two minutes, although their account may be looked up.
    pub checks_overdue: i64,
}

/// Looks at the open incidents and the checks that are due, which indexes know.
///
/// # Errors
/// The database does not answer, or has no tables yet.
pub async fn read(db: &PgPool) -> Result<Overview, StoreError> {
    let mut connection = db.acquire().await?;
    let mut open = LockoutCause::ALL.map(|cause| (cause, 0));
    let rows =
        sqlx::query!(r#"select cause, count(*) as "open!" from incidents where resolved_at is null group by cause"#)
            .fetch_all(&mut *connection)
            .await?;
    for row in rows {
        // As everywhere: a cause of a later version is some other restriction to this one.
        let cause = LockoutCause::parse(&row.cause).unwrap_or(LockoutCause::OtherRestriction);
        open.iter_mut()
            .filter(|(known, _)| *known == cause)
            .for_each(|(_, n)| *n += row.open);
    }
    // A lease is no excuse: one that runs out again and again is what should be seen. That an account rests is one.
    let checks_overdue = sqlx::query_scalar!(
        r#"select count(*) as "overdue!"
             from affected_numbers n
             join accounts a using (waba_id)
            where n.check_due_at < now() - $1::interval
              and greatest(n.check_due_at, a.lookups_paused_until) < now() - $1::interval"#,
        interval(GRACE),
    )
    .fetch_one(&mut *connection)
    .await?;
    Ok(Overview {
        open,
        checks_overdue,
    })
}

/// How many of the pool's connections are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolUse {
    /// Open, and waiting for somebody.
    pub idle: u32,
    /// Lent out, or just being opened.
    pub busy: u32,
    /// As many as there may be.
    pub max: u32,
}

/// Counts the pool's connections, without asking the database.
#[must_use]
pub fn pool_use(db: &PgPool) -> PoolUse {
    let idle = u32::try_from(db.num_idle()).unwrap_or(u32::MAX);
    PoolUse {
        idle,
        busy: db.size().saturating_sub(idle),
        max: db.options().get_max_connections(),
    }
}
