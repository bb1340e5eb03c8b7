//! The overview of all accounts, which a monitoring system reads every few seconds.

use std::time::Duration;

use sqlx::PgPool;

use super::backlog::{self, Backlog};
use super::{StoreError, interval};
use crate::lockout::cause::LockoutCause;

/// A check that is later than this is overdue. Claiming, asking and saving take some of this time.
const OVERDUE_LIMIT: Duration = Duration::from_secs(120);

/// The open incidents and the overdue checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Overview {
    /// The open incidents by cause. Every cause is there, in the order of the rules.
    pub(crate) open: [(LockoutCause, i64); LockoutCause::ALL.len()],
    /// The numbers whose check has been due for more than two minutes, although their account is
    /// not paused.
    pub(crate) checks_overdue: i64,
    /// What waits in the inbox, and what is in quarantine.
    pub(crate) backlog: Backlog,
}

/// Fetches the overview.
///
/// # Errors
/// The database does not answer, or has no tables yet.
pub(crate) async fn fetch(db: &PgPool) -> Result<Overview, StoreError> {
    let mut connection = db.acquire().await?;
    let mut open = LockoutCause::ALL.map(|cause| (cause, 0));
    let rows = sqlx::query!(
        r#"select cause, count(*) as "open!"
             from incidents
            where resolved_at is null
            group by cause"#
    )
    .fetch_all(&mut *connection)
    .await?;
    for row in rows {
        // As everywhere, a cause of a later version counts as another restriction.
        let cause = LockoutCause::parse(&row.cause).unwrap_or(LockoutCause::OtherRestriction);
        open.iter_mut()
            .filter(|(known, _)| *known == cause)
            .for_each(|(_, n)| *n += row.open);
    }
    // A check with a lease counts as well: a lease that expires again and again must be visible. A
    // paused account does not count.
    let checks_overdue = sqlx::query_scalar!(
        r#"select count(*) as "overdue!"
             from affected_numbers n
             join accounts a using (waba_id)
            where n.check_due_at < now() - $1::interval
              and greatest(n.check_due_at, a.lookups_paused_until) < now() - $1::interval"#,
        interval(OVERDUE_LIMIT),
    )
    .fetch_one(&mut *connection)
    .await?;
    drop(connection);
    Ok(Overview {
        open,
        checks_overdue,
        backlog: backlog::fetch(db).await?,
    })
}

/// The use of the pool's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolUse {
    /// Connections that are open and free.
    pub(crate) idle: u32,
    /// Connections that are in use, or being opened.
    pub(crate) busy: u32,
    /// The most connections that the pool may open.
    pub(crate) max: u32,
}

/// Counts the pool's connections, without asking the database.
#[must_use]
pub(crate) fn pool_use(db: &PgPool) -> PoolUse {
    let idle = u32::try_from(db.num_idle()).unwrap_or(u32::MAX);
    PoolUse {
        idle,
        busy: db.size().saturating_sub(idle),
        max: db.options().get_max_connections(),
    }
}
