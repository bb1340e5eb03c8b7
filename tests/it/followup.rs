//! Look-ups of the cause: the first starts at once, they repeat within limits, and two look-ups of
//! a number never run at the same time.

use std::collections::HashMap;
use std::time::Duration as StdDuration;

use lockwatch::graph::{Graph, GraphSettings, Tokens};
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::health::{Answer, LookupResult};
use lockwatch::meta::node_fields::NodeFields;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::simulator::{Scenario, Simulator};
use lockwatch::store::by_hand;
use lockwatch::store::claims;
use lockwatch::store::conclusion::{self, SavedCheck};
use lockwatch::store::incidents::{self, IncidentFilter};
use secrecy::SecretString;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tokio::time::Instant;

use crate::support::database::TestDatabase;
use crate::support::scripted_server::{ScriptedServer, answer};
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, OTHER_NUMBER, TestApp, WABA, eventually, settings,
    start_service, waba,
};

/// Starts an app whose test number gives these answers.
async fn start_with_answers(script: impl IntoIterator<Item = Scenario>) -> TestApp {
    let app = TestApp::start().await;
    app.simulator.set_scenarios(NUMBER, script);
    app
}

/// The minutes until the next look-up of the only number.
async fn minutes_until_due(app: &TestApp) -> i64 {
    app.count(
        "select round(extract(epoch from check_due_at - now()) / 60)::bigint from affected_numbers",
    )
    .await
}

#[tokio::test]
async fn a_new_incident_is_looked_up_within_a_second() {
    let app = TestApp::start().await;
    app.fail("warm-up of another account").await;
    app.eventually("the warm-up is looked up", async || {
        app.simulator.requests().len() == 1
    })
    .await;
    let started = Instant::now();
    app.deliver(
        &StatusCallback::new()
            .timestamp(OffsetDateTime::now_utc())
            .failed("2044", OTHER_NUMBER, "x")
            .into_body(),
    )
    .await;
    app.eventually("the new incident is looked up", async || {
        app.simulator.requests().len() == 2
    })
    .await;
    let took = app.simulator.requests()[1].at - started;
    assert!(
        took < StdDuration::from_millis(900),
        "the failure must wake the follow-up: {took:?}"
    );
}

#[tokio::test]
async fn every_cause_is_found_with_its_evidence() {
    for (scenario, cause, entity, code) in [
        (Scenario::Payment, "payment", Some("WABA"), Some(141_006)),
        (
            Scenario::Policy,
            "policy_violation",
            Some("BUSINESS"),
            Some(141_005),
        ),
        (
            Scenario::UnverifiedBlocked,
            "business_verification",
            Some("BUSINESS"),
            Some(141_010),
        ),
        (
            Scenario::NotRegistered,
            "phone_registration",
            Some("PHONE_NUMBER"),
            Some(141_000),
        ),
        (Scenario::Restricted, "policy_violation", None, Some(368)),
        (Scenario::ErrorInOk, "payment", None, Some(131_042)),
        (Scenario::Unverified, "unreported", None, None),
        (Scenario::DisplayName, "unreported", None, None),
        (Scenario::Available, "unreported", None, None),
        (Scenario::CallingBlocked, "unreported", None, None),
        (Scenario::NoHealth, "lookup_denied", None, None),
        (Scenario::ExpiredToken, "lookup_denied", None, None),
        (Scenario::UnknownNode, "lookup_denied", None, None),
    ] {
        let app = start_with_answers([scenario.clone()]).await;
        app.fail("a").await;
        let incident = app.wait_for_cause(cause).await;
        assert_eq!(
            incident.cause_entity_type.as_deref(),
            entity,
            "{scenario:?}"
        );
        assert_eq!(incident.cause_error_code, code, "{scenario:?}");
        assert!(incident.cause_recorded_at.is_some() && incident.cause_summary.is_some());
        let evidence = "select count(*) from incidents i
                          join health_checks c on c.id = i.cause_check_id
                                              and c.response is not null";
        assert_eq!(app.count(evidence).await, 1, "{scenario:?}");
    }
}

#[tokio::test]
async fn a_calling_restriction_is_not_a_lockout() {
    let app = start_with_answers([Scenario::CallingBlocked]).await;
    app.fail("a").await;
    app.wait_for_cause("unreported").await;
    assert_eq!(
        app.checks().await[0].can_send_message.as_deref(),
        Some("AVAILABLE"),
        "the root of the answer was BLOCKED"
    );
}

#[tokio::test]
async fn after_two_server_errors_the_third_answer_is_the_cause() {
    let app = start_with_answers([
        Scenario::ServerError,
        Scenario::ServerError,
        Scenario::Payment,
    ])
    .await;
    app.fail("a").await;
    app.eventually("the first error is saved", async || {
        app.count("select count(*) from health_checks").await == 1
    })
    .await;
    assert_eq!(app.incident().await.cause, "pending");
    let due_soon = "select count(*) from affected_numbers
                     where check_due_at - now() between interval '3 seconds'
                                                    and interval '10 seconds'";
    assert_eq!(app.count(due_soon).await, 1, "backoff starts at 5 s");
    app.run_next_check(Duration::seconds(10)).await;
    app.run_next_check(Duration::seconds(30)).await;
    app.wait_for_cause("payment").await;
    let outcomes: Vec<_> = app
        .checks()
        .await
        .into_iter()
        .map(|check| check.outcome)
        .collect();
    assert_eq!(outcomes, ["unreachable", "unreachable", "answered"]);
}

#[tokio::test]
async fn a_throttled_account_waits_as_long_as_meta_says() {
    let app = start_with_answers([Scenario::Throttled(19), Scenario::Payment]).await;
    app.fail("a").await;
    app.eventually("the first answer is saved", async || {
        app.count("select count(*) from health_checks").await == 1
    })
    .await;
    assert_eq!(app.checks().await[0].outcome, "throttled");
    // Another number of the same account must wait as well.
    app.deliver(
        &StatusCallback::new()
            .timestamp(OffsetDateTime::now_utc())
            .failed(WABA, OTHER_NUMBER, "b")
            .into_body(),
    )
    .await;
    let paused = "select round(extract(epoch from until - now()) / 60)::bigint from graph_limits";
    assert_eq!(app.count(paused).await, 19);
    app.let_time_pass(Duration::minutes(18)).await;
    assert_eq!(
        claims::claim_due(&app.db, 10, &[]).await.unwrap().len(),
        0,
        "a minute is left"
    );
    assert_eq!(app.simulator.requests().len(), 1);
    app.let_time_pass(Duration::minutes(1)).await;
    app.wait_for_cause("payment").await;
    app.eventually("both numbers are looked up", async || {
        app.simulator.requests().len() == 3
    })
    .await;
}

#[tokio::test]
async fn a_refused_look_up_is_recorded_and_repeated_hourly() {
    let app = start_with_answers([Scenario::ExpiredToken, Scenario::Payment]).await;
    app.fail("a").await;
    let incident = app.wait_for_cause("lookup_denied").await;
    assert!(incident.cause_summary.unwrap().contains("(190)"));
    assert!((54..=66).contains(&minutes_until_due(&app).await));
    app.run_next_check(Duration::minutes(67)).await;
    app.wait_for_cause("payment").await;
}

#[tokio::test]
async fn look_ups_repeat_after_5_15_30_and_then_60_minutes() {
    let app = start_with_answers([Scenario::Payment]).await;
    app.fail("a").await;
    app.wait_for_cause("payment").await;
    for pause in [5, 15, 30, 60, 60] {
        let due = minutes_until_due(&app).await;
        assert!(
            (pause * 9 / 10..=pause * 11 / 10 + 1).contains(&due),
            "{due} minutes instead of {pause}"
        );
        app.fail(&format!("later {pause}")).await;
        let due_after_failure = minutes_until_due(&app).await;
        assert!(
            (due_after_failure - due).abs() <= 1,
            "a later failure must not change the time of the next look-up"
        );
        app.run_next_check(Duration::minutes(due + 1)).await;
    }
}

#[tokio::test]
async fn a_found_cause_survives_answers_without_one() {
    let app = start_with_answers([
        Scenario::Policy,
        Scenario::ExpiredToken,
        Scenario::NoHealth,
        Scenario::Available,
    ])
    .await;
    app.fail("a").await;
    app.wait_for_cause("policy_violation").await;
    for _ in 0..3 {
        app.run_next_check(Duration::hours(2)).await;
        let incident = app.incident().await;
        assert_eq!(
            (incident.cause.as_str(), incident.cause_error_code),
            ("policy_violation", Some(141_005))
        );
    }
    assert_eq!(app.checks().await.len(), 4, "every answer is kept");
}

#[tokio::test]
async fn a_missing_token_is_reported_until_one_is_given() {
    let database = TestDatabase::create().await;
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    simulator.set_scenarios(NUMBER, [Scenario::Payment]);
    let app = TestApp::start_with(database, simulator, None).await;
    app.fail("a").await;
    let incident = app.wait_for_cause("lookup_denied").await;
    assert!(
        incident
            .cause_summary
            .unwrap()
            .contains("no token configured")
    );
    assert_eq!(app.checks().await[0].outcome, "not_asked");
    assert_eq!(app.simulator.requests().len(), 0);

    let TestApp {
        service: without_token,
        simulator,
        db,
        database,
        ..
    } = app;
    without_token.stop().await;
    let _restarted = start_service(database.database(), &simulator, &[APP_SECRET]).await;
    eventually("the cause is found", async || {
        let incidents = incidents::list(&db, &IncidentFilter::default(), 1)
            .await
            .unwrap();
        incidents[0].cause == "payment"
    })
    .await;
}

#[tokio::test]
async fn an_unreported_cause_survives_an_expired_token() {
    let app = start_with_answers([Scenario::Available, Scenario::ExpiredToken]).await;
    app.fail("a").await;
    app.wait_for_cause("unreported").await;
    app.run_next_check(Duration::hours(2)).await;
    assert_eq!(app.incident().await.cause, "unreported");
}

#[tokio::test]
async fn a_locked_row_delays_no_other_account() {
    let app = TestApp::start().await;
    sqlx::raw_sql(
        "insert into accounts values ('old');
         insert into incidents (waba_id, opened_at, last_failure_at, last_evidence_at, cause)
         values ('old', now() - interval '9 days', now() - interval '8 days',
                 now() - interval '8 days', 'payment')",
    )
    .execute(&app.db)
    .await
    .unwrap();
    let mut locker = app.db.begin().await.unwrap();
    sqlx::query("select from accounts where waba_id = 'old' for update")
        .execute(&mut *locker)
        .await
        .unwrap();
    let other = start_service(app.database.database(), &app.simulator, &[APP_SECRET]).await;
    app.service.stop().await;
    let request = app.client.post(format!("http://{}/webhook", other.address));
    let body = StatusCallback::new()
        .timestamp(OffsetDateTime::now_utc())
        .failed(WABA, NUMBER, "a")
        .into_body();
    request
        .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
        .body(body)
        .send()
        .await
        .unwrap();
    let simulator = &app.simulator;
    eventually("the new account is looked up", async || {
        simulator.requests().len() == 1
    })
    .await;
    locker.rollback().await.unwrap();
}

#[tokio::test]
async fn a_token_that_meta_repeats_is_not_stored() {
    let app = start_with_answers([Scenario::TokenInError]).await;
    app.fail("a").await;
    app.wait_for_cause("lookup_denied").await;
    let all_rows = "select (select string_agg(t::text, ' ') from incidents t)
                           || (select string_agg(t::text, ' ') from health_checks t)";
    let stored = app.text(all_rows).await.unwrap();
    assert!(
        stored.contains("Malformed access token [removed]"),
        "{stored}"
    );
    assert!(!stored.contains(ACCESS_TOKEN) && !stored.contains(APP_SECRET));
}

#[tokio::test]
async fn the_proof_is_made_with_the_secret_that_meta_accepts() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    simulator.set_scenarios(NUMBER, [Scenario::Payment]);
    let settings = GraphSettings {
        url: simulator.url(),
        version: "v25.0".into(),
        app_secrets: ["the-first-app-secret", "the-second-app-secret", APP_SECRET]
            .map(SecretString::from)
            .to_vec(),
        tokens: Tokens::new(Some(ACCESS_TOKEN.into()), None).unwrap(),
        proxy: None,
    };
    let graph = Graph::new(settings).unwrap();
    for requests in [3, 4] {
        assert!(matches!(
            graph.look_up(&waba(), NUMBER, None).await.answer,
            Answer::Health(_)
        ));
        assert_eq!(
            simulator.requests().len(),
            requests,
            "each secret is tried once, then the right one is remembered"
        );
    }
}

#[tokio::test]
async fn an_id_that_is_not_a_number_is_not_looked_up() {
    let app = TestApp::start().await;
    app.deliver(
        &StatusCallback::new()
            .failed(WABA, "../me?fields=id", "a")
            .into_body(),
    )
    .await;
    let incident = app.wait_for_cause("lookup_denied").await;
    assert!(incident.cause_summary.unwrap().contains("not a number"));
    assert_eq!(app.simulator.requests().len(), 0);
}

/// Starts with a slow answer, and resolves the incident by hand while its look-up is in flight.
async fn resolve_during_look_up(slow: Scenario) -> TestApp {
    let app = start_with_answers([slow]).await;
    app.fail("a").await;
    app.eventually("a look-up is in flight", async || {
        app.simulator.requests().len() == 1
    })
    .await;
    by_hand::resolve(&app.db, app.incident().await.id, None, None)
        .await
        .unwrap()
        .unwrap();
    app
}

#[tokio::test]
async fn a_look_up_after_the_resolution_changes_nothing() {
    let slow = Scenario::Delayed(StdDuration::from_secs(2), Box::new(Scenario::Payment));
    let app = resolve_during_look_up(slow).await;
    app.eventually("the answer is saved", async || {
        app.count("select count(*) from health_checks").await == 1
    })
    .await;
    assert_eq!(app.incident().await.cause, "pending");
    assert_eq!(
        app.count("select count(*) from affected_numbers where check_due_at is not null")
            .await,
        0
    );
}

#[tokio::test]
async fn look_ups_of_one_number_never_overlap() {
    let slow = Scenario::Delayed(StdDuration::from_millis(1500), Box::new(Scenario::Payment));
    let app = resolve_during_look_up(slow).await;
    app.fail_at("b", OffsetDateTime::now_utc() + Duration::seconds(50))
        .await;
    app.eventually("the cause is found", async || {
        app.incidents().await.last().unwrap().cause == "payment"
    })
    .await;
    assert_eq!(
        (
            app.simulator.requests().len(),
            app.simulator.most_in_flight_per_node()
        ),
        (2, 1)
    );
}

#[tokio::test]
async fn the_answer_of_a_lost_claim_changes_nothing() {
    let app = TestApp::start().await;
    app.service.stop().await;
    sqlx::raw_sql(
        "insert into accounts values ('1022');
         insert into incidents (waba_id, opened_at, last_failure_at, last_evidence_at)
         values ('1022', now(), now(), now());
         insert into affected_numbers (incident_id, waba_id, phone_number_id, first_failure_at,
                                       last_failure_at, failure_count, check_due_at)
         values ((select id from incidents), '1022', '1065', now(), now(), 1, now())",
    )
    .execute(&app.db)
    .await
    .unwrap();
    let lost = claims::claim_due(&app.db, 10, &[]).await.unwrap().remove(0);
    let claims = claims::claim_due(&app.db, 10, &[]).await.unwrap();
    assert!(claims.is_empty(), "the lease is still valid");
    sqlx::query("update affected_numbers set check_lease_until = now() - interval '1 second'")
        .execute(&app.db)
        .await
        .unwrap();
    let newer = claims::claim_due(&app.db, 10, &[]).await.unwrap().remove(0);

    let check = LookupResult {
        answer: Answer::NoVerdict {
            entities: vec![],
            root: None,
        },
        http_status: Some(200),
        response: None,
        fields: NodeFields::default(),
        caller: None,
        tried_fields: (false, false),
        calls: 1,
        duration: StdDuration::ZERO,
    };
    assert_eq!(
        conclusion::save(&app.db, &lost, &check, 0.5).await.unwrap(),
        SavedCheck::Late
    );
    let changes = "select concat_ws(' ', kind, detail) from incident_changes";
    let changes = async || -> Vec<String> {
        let changes = sqlx::query_scalar(changes).fetch_all(&app.db).await;
        changes.unwrap()
    };
    assert_eq!(changes().await, [""; 0]);
    assert_eq!(
        conclusion::save(&app.db, &newer, &check, 0.5)
            .await
            .unwrap(),
        SavedCheck::Concluded
    );
    assert_eq!(changes().await, ["cause_found lookup_denied"]);
    let rows: i64 = sqlx::query_scalar("select count(*) from health_checks")
        .fetch_one(&app.db)
        .await
        .unwrap();
    assert_eq!(rows, 2);
}

/// Fails one message of each of these numbers of the test account.
async fn fail_numbers(app: &TestApp, numbers: &[String]) {
    let mut callback = StatusCallback::new().timestamp(OffsetDateTime::now_utc());
    for number in numbers {
        callback = callback.failed(WABA, number, &format!("wamid.{number}"));
    }
    app.deliver(&callback.into_body()).await;
}

fn thirty_numbers() -> Vec<String> {
    (0..30).map(|n| format!("1065{n:08}")).collect()
}

#[tokio::test]
async fn one_number_is_tried_for_all_until_there_is_another_token() {
    let database = TestDatabase::create().await;
    let simulator = Simulator::start("EAAtheRightTokenOfTheTests", APP_SECRET)
        .await
        .unwrap();
    let numbers = thirty_numbers();
    for number in &numbers {
        simulator.set_scenarios(number, [Scenario::Policy]);
        simulator.set_account(number, WABA);
    }
    let mut app = TestApp::start_with(database, simulator, Some(ACCESS_TOKEN)).await;
    fail_numbers(&app, &numbers).await;
    let incident = app.wait_for_cause("lookup_denied").await;
    assert_eq!(incident.denial.unwrap(), "token_invalid");
    for restart in 1..=6 {
        app.service.stop().await;
        let before = app.simulator.requests().len();
        app.service = start_service(app.database.database(), &app.simulator, &[APP_SECRET]).await;
        app.eventually("a start tries one number", async || {
            app.simulator.requests().len() > before
        })
        .await;
        let refused = app.simulator.requests().len();
        assert!(refused <= 4 + restart, "{refused} after {restart} restarts");
    }
    app.service.stop().await;
    app.simulator.set_access_token(ACCESS_TOKEN);
    app.service = start_service(app.database.database(), &app.simulator, &[APP_SECRET]).await;
    let incident = app.wait_for_cause("policy_violation").await;
    assert_eq!(incident.denial, None);
    let unanswered = "select count(*) from affected_numbers where findings -> 'account' is null
                                                               or findings -> 'account' = 'null'";
    app.eventually("every number is looked up", async || {
        app.count(unanswered).await == 0
    })
    .await;
    assert_eq!(
        app.count("select count(*) from accounts where denial is not null")
            .await,
        0
    );
}

#[tokio::test]
async fn a_new_token_in_the_file_is_tried_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.toml");
    let write = |token: &str| {
        std::fs::write(&path, format!("{WABA:?} = {token:?}\n")).unwrap();
    };
    write("EAAanExpiredToken");
    let database = TestDatabase::create().await;
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    simulator.set_scenarios(NUMBER, [Scenario::Payment]);
    let mut settings = settings(database.database(), &simulator.url(), &[APP_SECRET], None);
    settings.graph = Graph::new(GraphSettings {
        url: simulator.url(),
        version: "v25.0".into(),
        app_secrets: vec![APP_SECRET.into()],
        tokens: Tokens::new(None, Some(path.clone())).unwrap(),
        proxy: None,
    })
    .unwrap();
    let app = TestApp::start_with_settings(database, simulator, settings).await;
    app.fail("a").await;
    app.wait_for_cause("lookup_denied").await;
    let requests = app.simulator.requests().len();
    // A hundred refusals of the old token are no reason to wait with the new one.
    app.execute(
        "insert into health_checks (incident_id, waba_id, phone_number_id, checked_at, outcome,
                                    duration_ms, token)
         select incident_id, waba_id, phone_number_id, now(), 'refused', 1, token
           from health_checks, generate_series(1, 160)",
    )
    .await;
    assert_eq!(app.simulator.requests().len(), requests);
    write(ACCESS_TOKEN);
    app.wait_for_cause("payment").await;
}

#[tokio::test]
async fn an_account_that_is_throttled_rests_alone_and_the_apps_limit_rests_all() {
    for (code, rests_all) in [(80_008, false), (17, true), (4, true)] {
        let app = TestApp::start().await;
        let error = format!(r#"{{"error":{{"code":{code},"message":"too many calls"}}}}"#);
        let throttled = Scenario::Answer {
            status: 400,
            headers: vec![],
            body: error,
        };
        app.simulator
            .set_scenarios(NUMBER, [throttled, Scenario::Payment]);
        app.simulator
            .set_scenarios(OTHER_NUMBER, [Scenario::Payment]);
        app.simulator.set_account(OTHER_NUMBER, "2044");
        app.fail("a").await;
        app.eventually("the limit is noted", async || {
            app.count("select count(*) from graph_limits").await == 1
        })
        .await;
        let now = OffsetDateTime::now_utc();
        app.fail_number("2044", OTHER_NUMBER, now).await;
        if rests_all {
            let postponed = "select count(*) from affected_numbers
                              where waba_id = '2044' and check_due_at > now() + interval '14 min'";
            app.eventually("the other account waits as well", async || {
                app.count(postponed).await == 1
            })
            .await;
            assert_eq!(app.simulator.requests().len(), 1, "{code}");
            app.let_time_pass(Duration::minutes(16)).await;
        }
        let found = "select count(*) from incidents where waba_id = '2044' and cause = 'payment'";
        app.eventually("the other account is looked up", async || {
            app.count(found).await == 1
        })
        .await;
    }
}

#[tokio::test]
async fn a_reserve_of_the_budget_is_kept_for_first_look_ups() {
    let app = start_with_answers([Scenario::Available]).await;
    app.fail("a").await;
    app.wait_for_cause("unreported").await;
    app.execute(
        "insert into health_checks (incident_id, waba_id, phone_number_id, checked_at, outcome,
                                    duration_ms, token, calls)
         select incident_id, waba_id, phone_number_id, now() - interval '9 min', 'answered', 1,
                token, 140 - calls
           from health_checks limit 1",
    )
    .await;
    app.execute("update affected_numbers set check_due_at = now()")
        .await;
    app.eventually("the repeat is not granted", async || {
        let postponed = "select count(*) from affected_numbers
                          where check_due_at > now() + interval '49 min'";
        app.count(postponed).await == 1
    })
    .await;
    app.simulator
        .set_scenarios(OTHER_NUMBER, [Scenario::Payment]);
    app.fail_number(WABA, OTHER_NUMBER, OffsetDateTime::now_utc())
        .await;
    app.wait_for_cause("payment").await;
}

#[tokio::test]
async fn the_fields_beside_the_health_are_read_where_it_explains_nothing() {
    let app = start_with_answers([Scenario::DisplayName]).await;
    let banned = json!({"status": "BANNED", "quality_rating": "RED"});
    app.simulator.set_fields(NUMBER, banned);
    let account = json!({
        "name": "Padaria Sol",
        "account_review_status": "REJECTED",
        "owner_business_info": {"id": "7300", "name": "Grupo Sol"},
    });
    app.simulator.set_fields(WABA, account);
    app.fail("a").await;
    app.wait_for_cause("other_restriction").await;
    let incident = &app.api("/incidents").await["data"][0];
    assert_eq!(incident["account_name"], "Padaria Sol");
    assert_eq!(incident["portfolio_name"], "Grupo Sol");
    assert_eq!(incident["cause_scope"], "number");
    assert_eq!(
        incident["cause_summary"],
        format!("Number {NUMBER} has the status BANNED.")
    );
    let number = &incident["affected_numbers"][0];
    assert_eq!(number["latest_check"]["can_send_message"], "BANNED");
    let also: Vec<_> = incident["also_found"].as_array().unwrap().iter().collect();
    for part in ["RED", "REJECTED", "display name"] {
        let has = |found: &&&Value| found["summary"].as_str().unwrap().contains(part);
        assert!(also.iter().any(|found| has(&found)), "{part}: {also:?}");
    }
    let step = incident["next_steps"][0].as_str().unwrap();
    assert!(step.contains("?business_id=7300"), "{step}");

    // It ends when the status that explained it has gone, in two checks.
    app.simulator
        .set_fields(NUMBER, json!({"status": "CONNECTED"}));
    app.let_time_pass(Duration::minutes(10)).await;
    app.run_next_check(Duration::hours(2)).await;
    app.run_next_check(Duration::hours(2)).await;
    app.wait_for_recovery().await;
}

#[tokio::test]
async fn a_field_that_is_not_readable_costs_nothing_else() {
    let app = start_with_answers([Scenario::Available]).await;
    let refused = json!({"error": {"code": 200, "message": "Missing permission"}});
    app.simulator.set_fields(WABA, refused.clone());
    app.simulator.set_fields(NUMBER, refused);
    app.fail("a").await;
    let incident = app.wait_for_cause("unreported").await;
    assert_eq!((incident.denial, incident.account_name), (None, None));
    let fields: Vec<String> = app
        .simulator
        .reads()
        .into_iter()
        .filter(|read| read.node_id == WABA)
        .map(|read| read.fields)
        .collect();
    assert_eq!(fields.len(), 2, "{fields:?}");
    assert!(!fields[1].contains("business"), "{fields:?}");
    assert_eq!(
        app.count("select sum(calls)::bigint from health_checks")
            .await,
        4
    );
}

#[tokio::test]
async fn a_code_that_nobody_knows_is_told_when_it_lasts() {
    let unknown = Scenario::Answer {
        status: 400,
        headers: vec![],
        body: r#"{"error":{"code":99999,"message":"The moon is in the way"}}"#.to_owned(),
    };
    let app = start_with_answers([unknown]).await;
    app.fail("a").await;
    for tries in 1..=4 {
        let failed = "select coalesce(max(check_failures), 0)::bigint from affected_numbers";
        app.eventually("another try", async || app.count(failed).await >= tries)
            .await;
        if tries < 4 {
            assert_eq!(app.incident().await.cause, "pending", "{tries}");
            app.let_time_pass(Duration::minutes(16)).await;
        }
    }
    let incident = app.wait_for_cause("lookup_denied").await;
    assert_eq!(incident.denial.unwrap(), "unexplained");
    assert!(
        incident
            .cause_summary
            .unwrap()
            .contains("The moon is in the way")
    );
}

#[tokio::test]
async fn graph_is_reached_through_the_proxy() {
    let proxy = ScriptedServer::start(HashMap::from([(
        NUMBER.to_owned(),
        answer(
            "200 OK",
            r#"{"health_status":{"entities":[{"entity_type":"WABA","can_send_message":"BLOCKED"}]}}"#,
        ),
    )]))
    .await;
    let graph = |proxy: &str| {
        Graph::new(GraphSettings {
            // Nothing listens there.
            url: "http://127.0.0.1:1".into(),
            version: "v25.0".into(),
            app_secrets: vec![APP_SECRET.into()],
            tokens: Tokens::new(Some(ACCESS_TOKEN.into()), None).unwrap(),
            proxy: Some(proxy.into()),
        })
    };
    let lookup = graph(&proxy.url)
        .unwrap()
        .look_up(&waba(), NUMBER, None)
        .await;
    assert!(matches!(lookup.answer, Answer::Health(_)), "{lookup:?}");
    for bad in ["", "proxy", "ftp://proxy.example", "http://"] {
        let error = graph(bad).unwrap_err().to_string();
        assert!(error.contains("LOCKWATCH_GRAPH_PROXY"), "{error}");
    }
}
