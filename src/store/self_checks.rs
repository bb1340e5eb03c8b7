//! Self-checks: what Graph told of our tokens and subscriptions last.

use std::time::Duration;

use sqlx::PgPool;

use super::{StoreError, interval};
use crate::lockout::trouble::{Fact, TroubleKind};
use crate::meta::ids::WabaId;

/// An account that was not heard of for longer is not checked.
const HEARD_WITHIN: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SelfCheck {
    /// The access token.
    Token,
    /// Whether the account reports to our app.
    Subscription,
}

impl SelfCheck {
    fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Subscription => "subscription",
        }
    }
}

/// Takes some accounts whose subscription was not checked for this long. Nobody else checks them
/// meanwhile.
pub(crate) async fn claim_due(
    db: &PgPool,
    age: Duration,
    limit: i64,
) -> Result<Vec<WabaId>, StoreError> {
    let accounts = sqlx::query_scalar!(
        r#"insert into self_checks as s (waba_id, kind, checked_at)
           select a.waba_id, $4, now()
             from accounts a
             left join self_checks c on c.waba_id = a.waba_id and c.kind = $4
            where a.last_callback_at > now() - $2::interval and a.muted_at is null
              and (c.checked_at is null or c.checked_at < now() - $1::interval)
            order by c.checked_at nulls first, a.waba_id
            limit $3
               on conflict (waba_id, kind) do update
              set checked_at = excluded.checked_at
            where s.checked_at < now() - $1::interval
           returning waba_id as "waba_id: WabaId""#,
        interval(age),
        interval(HEARD_WITHIN),
        limit,
        SelfCheck::Subscription.as_str(),
    );
    Ok(accounts.fetch_all(db).await?)
}

/// Notes what a check told. `None`: nothing is wrong.
pub(crate) async fn save(
    db: &PgPool,
    waba_id: &str,
    check: SelfCheck,
    problem: Option<&str>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into self_checks (waba_id, kind, checked_at, problem)
         values ($1, $2, now(), $3)
             on conflict (waba_id, kind) do update
            set checked_at = excluded.checked_at, problem = excluded.problem",
        waba_id,
        check.as_str(),
        problem,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Returns what is wrong by the latest checks.
pub(super) async fn problems(db: &PgPool) -> Result<Vec<Fact>, StoreError> {
    let rows = sqlx::query!(
        r#"select waba_id, kind, problem as "problem!"
             from self_checks
            where problem is not null
              and waba_id not in (select waba_id from accounts where muted_at is not null)"#
    )
    .fetch_all(db)
    .await?;
    let facts = rows.into_iter().map(|row| Fact::SelfCheck {
        kind: match row.kind == SelfCheck::Token.as_str() {
            true => TroubleKind::TokenExpiring,
            false => TroubleKind::SubscriptionLost,
        },
        waba_id: row.waba_id,
        problem: row.problem,
    });
    Ok(facts.collect())
}
