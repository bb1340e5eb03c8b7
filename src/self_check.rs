//! Self-checks: asks Graph every hour whether we would hear of each account and could ask for its
//! causes: whether its token lasts, and whether it reports to our app.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::error_chain::error_chain;
use crate::graph::Graph;
use crate::lockout::trouble::ALL_ACCOUNTS;
use crate::meta::ids::WabaId;
use crate::meta::self_check::TokenInfo;
use crate::report::text::{format_duration, format_time};
use crate::store::self_checks::{self, SelfCheck};
use crate::store::{Pool, StoreError, bounded};

/// The pause between two looks for accounts that are due.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// The pause between two checks of an account.
const CHECK_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// The accounts that are taken at once: Graph is asked for one after another.
const ACCOUNTS_LIMIT: i64 = 20;
/// People are told this long before a token ends.
const EXPIRY_NOTICE: time::Duration = time::Duration::days(7);

/// Checks until told to stop.
pub async fn run(db: Pool, graph: Arc<Graph>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if graph.has_tokens() {
            let checked = stop.run_until_cancelled(check_some(&db, &graph)).await;
            if let Some(Err(error)) = checked {
                debug!("self-checks wait for the database: {}", error_chain(&error));
            }
        }
        stop.run_until_cancelled(sleep(POLL_INTERVAL)).await;
    }
}

async fn check_some(db: &Pool, graph: &Graph) -> Result<(), StoreError> {
    let due = self_checks::claim_due(db, CHECK_INTERVAL, ACCOUNTS_LIMIT);
    // The accounts without a token of their own share one.
    let mut tokens: BTreeMap<String, Option<TokenInfo>> = BTreeMap::new();
    for waba_id in bounded(due).await? {
        let owner = match graph.has_own_token(&waba_id) {
            true => waba_id.as_str(),
            false => ALL_ACCOUNTS,
        };
        if !tokens.contains_key(owner) {
            let info = graph.token_info(&waba_id).await;
            if let Some(info) = &info {
                let problem = describe_token(info, OffsetDateTime::now_utc());
                let save = self_checks::save(db, owner, SelfCheck::Token, problem.as_deref());
                bounded(save).await?;
            }
            tokens.insert(owner.to_owned(), info);
        }
        let info = tokens.get(owner).and_then(Option::as_ref);
        check_subscription(db, graph, &waba_id, info).await?;
    }
    Ok(())
}

/// An answer about something else, or none, changes nothing.
async fn check_subscription(
    db: &Pool,
    graph: &Graph,
    waba_id: &WabaId,
    info: Option<&TokenInfo>,
) -> Result<(), StoreError> {
    let Some(app_id) = info.and_then(|info| info.app_id.as_deref()) else {
        return Ok(());
    };
    let Some(apps) = graph.subscribed_apps(waba_id).await else {
        return Ok(());
    };
    let problem = (!apps.iter().any(|app| app == app_id)).then(|| {
        let others = match &apps[..] {
            [] => "no app is".to_owned(),
            [other] => format!("only app {other} is"),
            others => format!("only the apps {} are", others.join(", ")),
        };
        format!("The app {app_id} is not subscribed to the account, {others}.")
    });
    let save = self_checks::save(
        db,
        waba_id.as_str(),
        SelfCheck::Subscription,
        problem.as_deref(),
    );
    bounded(save).await
}

fn describe_token(info: &TokenInfo, now: OffsetDateTime) -> Option<String> {
    if !info.is_valid {
        return Some("Meta no longer accepts the access token.".to_owned());
    }
    let end = info.expires_at.filter(|end| *end - now < EXPIRY_NOTICE)?;
    let (at, left) = (format_time(end), format_duration(end - now));
    Some(format!("The access token ends at {at}, in {left}."))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_token_is_told_a_week_before_its_end() {
        let now = datetime!(2026-11-28 03:00 UTC);
        let info = |is_valid, days: Option<i64>| TokenInfo {
            app_id: None,
            is_valid,
            expires_at: days.map(|days| now + time::Duration::days(days)),
        };
        assert_eq!(describe_token(&info(true, None), now), None);
        assert_eq!(describe_token(&info(true, Some(8)), now), None);
        assert_eq!(
            describe_token(&info(true, Some(6)), now).unwrap(),
            "The access token ends at 2026-12-04 03:00:00 UTC, in 6 days."
        );
        let refused = describe_token(&info(false, Some(99)), now).unwrap();
        assert_eq!(refused, "Meta no longer accepts the access token.");
    }
}
