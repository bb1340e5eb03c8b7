//! The overview of all accounts, which a monitoring system reads every few seconds.

use std::time::Duration;

use sqlx::PgPool;

use super::backlog::{self, Backlog};
use super::{StoreError, interval};
use crate::lockout::cause::LockoutCause;
use crate::lockout::schedule::LASTING_FAILURES;
use crate::lockout::trouble::TroubleKind;
use crate::meta::graph_error::Denial;

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
    /// The numbers whose look-ups have failed several times in a row.
    pub(crate) lookups_failing: i64,
    /// The open incidents whose look-up is refused, by the reason. Every reason is there.
    pub(crate) denied: [(Denial, i64); Denial::ALL.len()],
    /// The troubles that people were told of and that are not over. Every kind is there that the
    /// database can tell.
    pub(crate) troubles: [(TroubleKind, i64); TroubleKind::IN_DATABASE.len()],
    /// The alerts that wait for their channels, and those that were given up in the last day.
    pub(crate) alerts: (i64, i64),
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
    let mut denied = Denial::ALL.map(|denial| (denial, 0));
    let rows = sqlx::query!(
        r#"select cause, denial, count(*) as "open!"
             from incidents
            where resolved_at is null
            group by cause, denial"#
    )
    .fetch_all(&mut *connection)
    .await?;
    for row in rows {
        // As everywhere, a cause of a later version counts as another restriction.
        let cause = LockoutCause::parse(&row.cause).unwrap_or(LockoutCause::OtherRestriction);
        open.iter_mut()
            .filter(|(known, _)| *known == cause)
            .for_each(|(_, n)| *n += row.open);
        if let Some(word) = &row.denial {
            let denial = Denial::parse(word).unwrap_or(Denial::Unexplained);
            denied
                .iter_mut()
                .filter(|(known, _)| *known == denial)
                .for_each(|(_, n)| *n += row.open);
        }
    }
    // A check with a lease counts as well: a lease that expires again and again must be visible. An
    // account that rests does not count.
    let numbers = sqlx::query!(
        r#"select count(*) filter (where n.check_failures >= $2) as "failing!",
                  count(*) filter (where greatest(n.check_due_at, a.lookups_paused_until,
                                                  a.denied_until, l.until)
                                         < now() - $1::interval) as "overdue!"
             from affected_numbers n
             join accounts a using (waba_id)
             left join graph_limits l on l.scope = 'account' and l.key = n.waba_id
            where n.check_due_at is not null"#,
        interval(OVERDUE_LIMIT),
        LASTING_FAILURES,
    )
    .fetch_one(&mut *connection)
    .await?;
    let mut troubles = TroubleKind::IN_DATABASE.map(|kind| (kind, 0));
    let rows = sqlx::query!(
        r#"select kind, count(*) as "count!"
             from troubles
            where ended_at is null and told_at is not null
            group by kind"#
    )
    .fetch_all(&mut *connection)
    .await?;
    for row in rows {
        let known = troubles
            .iter_mut()
            .find(|(kind, _)| kind.as_str() == row.kind);
        if let Some((_, count)) = known {
            *count = row.count;
        }
    }
    let alerts = sqlx::query!(
        r#"select count(*) filter (where state = 'waiting') as "waiting!",
                  count(*) filter (where state = 'dead' and ended_at > now() - interval '1 day')
                    as "dead!"
             from alerts
            where state in ('waiting', 'dead')"#
    )
    .fetch_one(&mut *connection)
    .await?;
    drop(connection);
    Ok(Overview {
        open,
        checks_overdue: numbers.overdue,
        lookups_failing: numbers.failing,
        denied,
        troubles,
        alerts: (alerts.waiting, alerts.dead),
        backlog: backlog::fetch(db).await?,
    })
}

/// What is open, in a few numbers: they differ when something else is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marker {
    latest_change: Option<i64>,
    open_incidents: i64,
    latest_trouble: Option<i64>,
    told_troubles: i64,
}

/// Returns the marker of what is open now.
pub(crate) async fn marker(db: &PgPool) -> Result<Marker, StoreError> {
    let marker = sqlx::query_as!(
        Marker,
        r#"select (select max(id) from incident_changes) as latest_change,
                  (select count(*) from incidents where resolved_at is null) as "open_incidents!",
                  (select max(id) from troubles) as latest_trouble,
                  (select count(*) from troubles
                    where ended_at is null and told_at is not null) as "told_troubles!""#
    );
    Ok(marker.fetch_one(db).await?)
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
