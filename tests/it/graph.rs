//! The answers of Meta and of the network to a look-up: the values that are recorded for each, and
//! the time of the next look-up.

mod classes;
mod network;
mod secrets;

use std::collections::HashMap;
use std::ops::RangeInclusive;

use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::appsecret_proof;
use lockwatch::store::Pool;
use time::OffsetDateTime;

use crate::support::scripted_server::{ScriptedServer, Step};
use crate::support::{ACCESS_TOKEN, APP_SECRET, TestApp};

/// The latest look-up of a number, with its consequences.
#[derive(Debug, sqlx::FromRow)]
struct LookupRow {
    outcome: String,
    http_status: Option<i32>,
    error: Option<String>,
    duration_ms: i32,
    cause: String,
    /// Failures in a row.
    failures: i32,
    /// Seconds from this look-up to the next one of the number.
    next_seconds: f64,
    /// Seconds from this look-up to the end of the account's pause.
    pause_seconds: Option<f64>,
}

impl LookupRow {
    /// The look-up gave no information and is repeated soon: full jitter over five seconds, doubled
    /// with each failure.
    #[track_caller]
    fn assert_unreachable(&self, case: &str) {
        let longest = (5.0 * 2_f64.powi(self.failures)).min(900.0);
        self.assert_result("unreachable", "pending", 4.0..=longest, case);
        assert_eq!(self.pause_seconds, None, "{case}");
    }

    #[track_caller]
    fn assert_result(
        &self,
        outcome: &str,
        cause: &str,
        next_seconds: RangeInclusive<f64>,
        case: &str,
    ) {
        assert_eq!(
            (self.outcome.as_str(), self.cause.as_str()),
            (outcome, cause),
            "{case}: {self:?}"
        );
        assert!(
            next_seconds.contains(&self.next_seconds),
            "{case}: {self:?}"
        );
    }

    fn error(&self) -> &str {
        self.error.as_deref().unwrap_or_default()
    }
}

/// The rows of all look-ups, and the server that answered them.
struct Lookups {
    rows: Vec<LookupRow>,
    server: ScriptedServer,
}

fn account_at(position: usize) -> String {
    format!("7{position:04}")
}

fn number_at(position: usize) -> String {
    format!("8{position:04}")
}

/// Looks up one number for each script. Every number has an account of its own.
async fn look_up_scripts(scripts: impl IntoIterator<Item = Vec<Step>>) -> Lookups {
    let scripts: HashMap<_, _> = scripts
        .into_iter()
        .enumerate()
        .map(|(n, script)| (number_at(n), script))
        .collect();
    let numbers = scripts.len();
    let server = ScriptedServer::start(scripts).await;
    let app = TestApp::start_with_graph_url(&server.url).await;
    let mut callback = StatusCallback::new().timestamp(OffsetDateTime::now_utc());
    for n in 0..numbers {
        callback = callback.failed(&account_at(n), &number_at(n), "x");
    }
    app.deliver(&callback.into_body()).await;
    let expected = i64::try_from(numbers).unwrap();
    app.eventually("every number is looked up", async || {
        app.count("select count(distinct phone_number_id) from health_checks")
            .await
            == expected
    })
    .await;
    app.service.stop().await;
    assert_no_secret_is_stored(&app.db).await;
    Lookups {
        rows: latest_look_ups(&app.db).await,
        server,
    }
}

async fn assert_no_secret_is_stored(db: &Pool) {
    let all_rows = "select (select string_agg(t::text, ' ') from incidents t)
                           || (select string_agg(t::text, ' ') from health_checks t)";
    let stored: String = sqlx::query_scalar(all_rows).fetch_one(db).await.unwrap();
    for secret in [
        ACCESS_TOKEN,
        APP_SECRET,
        &appsecret_proof(APP_SECRET, ACCESS_TOKEN),
        "appsecret_proof=",
    ] {
        assert!(!stored.contains(secret), "{secret} is in {stored}");
    }
}

async fn latest_look_ups(db: &Pool) -> Vec<LookupRow> {
    sqlx::query_as(
        "select distinct on (phone_number_id)
                c.outcome, c.http_status, c.error, c.duration_ms, i.cause,
                n.check_failures as failures,
                extract(epoch from n.check_due_at - c.checked_at)::float8 as next_seconds,
                extract(epoch from l.until - c.checked_at)::float8 as pause_seconds
           from health_checks c
           join affected_numbers n using (incident_id, waba_id, phone_number_id)
           join incidents i on i.id = c.incident_id
           left join graph_limits l on l.scope = 'account' and l.key = c.waba_id
          order by phone_number_id, c.id desc",
    )
    .fetch_all(db)
    .await
    .unwrap()
}
