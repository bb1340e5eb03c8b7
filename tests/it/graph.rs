//! Whatever Meta or the network answers to a look-up: what is recorded of it, and when it is asked again.

mod classes;
mod secrets;
mod wire;

use std::collections::HashMap;
use std::ops::RangeInclusive;

use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::appsecret_proof;
use time::OffsetDateTime;

use crate::support::wire::{Move, Wire};
use crate::support::{ACCESS_TOKEN, APP_SECRET, TestApp};

/// A number's latest look-up, and what follows from it.
#[derive(Debug, sqlx::FromRow)]
struct LookedUp {
    outcome: String,
    http_status: Option<i32>,
    error: Option<String>,
    duration_ms: i32,
    cause: String,
    /// Failures in a row.
    failures: i32,
    /// Seconds from the look-up to the number's next, and to the end of its account's rest.
    next: f64,
    rest: Option<f64>,
}

impl LookedUp {
    /// It told nothing, and is asked again soon: after full jitter over five seconds, doubled each time.
    #[track_caller]
    fn is_unreachable(&self, what: &str) {
        let longest = (5.0 * 2_f64.powi(self.failures)).min(900.0);
        self.is("unreachable", "pending", 4.0..=longest, what);
        assert_eq!(self.rest, None, "{what}");
    }

    #[track_caller]
    fn is(&self, outcome: &str, cause: &str, next: RangeInclusive<f64>, what: &str) {
        assert_eq!(
            (self.outcome.as_str(), self.cause.as_str()),
            (outcome, cause),
            "{what}: {self:?}"
        );
        assert!(next.contains(&self.next), "{what}: {self:?}");
    }

    fn error(&self) -> &str {
        self.error.as_deref().unwrap_or_default()
    }
}

/// What came of looking up one number for each script, each of an account of its own.
struct Round {
    looked_up: Vec<LookedUp>,
    wire: Wire,
}

fn number(position: usize) -> String {
    format!("8{position:04}")
}

async fn look_up_each(scripts: impl IntoIterator<Item = Vec<Move>>) -> Round {
    let scripts: HashMap<_, _> = scripts
        .into_iter()
        .enumerate()
        .map(|(n, script)| (number(n), script))
        .collect();
    let numbers = scripts.len();
    let wire = Wire::start(scripts).await;
    let app = TestApp::start_asking(&wire.url).await;
    let mut callback = StatusCallback::new().at(OffsetDateTime::now_utc());
    for n in 0..numbers {
        callback = callback.failed(&format!("7{n:04}"), &number(n), "x");
    }
    app.deliver(&callback.into_body()).await;
    let all = i64::try_from(numbers).unwrap();
    app.eventually("a look-up of every number", async || {
        app.count("select count(distinct phone_number_id) from health_checks")
            .await
            == all
    })
    .await;
    app.service.stop().await;

    let everything = "select (select string_agg(t::text, ' ') from incidents t) || (select string_agg(t::text, ' ') from health_checks t)";
    let stored: String = sqlx::query_scalar(everything)
        .fetch_one(&app.db)
        .await
        .unwrap();
    for secret in [
        ACCESS_TOKEN,
        APP_SECRET,
        &appsecret_proof(APP_SECRET, ACCESS_TOKEN),
        "appsecret_proof=",
    ] {
        assert!(!stored.contains(secret), "{secret} is in {stored}");
    }
    let looked_up = sqlx::query_as(
        "select distinct on (phone_number_id) c.outcome, c.http_status, c.error, c.duration_ms, i.cause,
                n.check_failures as failures, extract(epoch from n.check_due_at - c.checked_at)::float8 as next,
                extract(epoch from a.lookups_paused_until - c.checked_at)::float8 as rest
           from health_checks c
           join affected_numbers n using (incident_id, waba_id, phone_number_id)
           join incidents i on i.id = c.incident_id
           join accounts a on a.waba_id = c.waba_id
          order by phone_number_id, c.id desc",
    );
    Round {
        looked_up: looked_up.fetch_all(&app.db).await.unwrap(),
        wire,
    }
}
