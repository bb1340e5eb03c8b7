//! What keeps Lockwatch from hearing or telling is told once when it lasts, and once when it is over.

use lockwatch::simulator::Scenario;
use lockwatch::store::troubles::{HeardAccount, note_heard};
use rustix::process::Signal;
use serde_json::Value;

use super::{Receiver, WEBHOOK_SECRET, start_with, webhook};
use crate::support::database::TestDatabase;
use crate::support::process::Serve;
use crate::support::proxy::LinkState;
use crate::support::{APP_SECRET, TestApp, WABA, client, eventually, eventually_within};

fn trouble(message: &super::Received) -> &Value {
    &message.body["data"]["trouble"]
}

/// Waits until a look for troubles has gone by that began after now.
async fn wait_for_watch(app: &TestApp) {
    app.execute("update troubles set seen_at = seen_at - interval '1 s' where ended_at is null")
        .await;
    app.execute(
        "insert into troubles (kind, waba_id, detail, began_at, seen_at)
         values ('inbox_stuck', 'marker', '', now(), now() - interval '1 h')",
    )
    .await;
    let marker = "select count(*) from troubles where waba_id = 'marker'";
    app.eventually("a look for troubles", async || app.count(marker).await == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_told_when_it_is_longer_than_usual() {
    let hook = Receiver::start([]).await;
    let app = start_with(vec![webhook(&hook)], vec![Scenario::Available]).await;
    // Heard every twenty minutes on each of four days, and last 41 minutes ago: nothing unusual,
    // since less than an hour.
    app.execute(
        "insert into accounts (waba_id, last_callback_at)
         values ('1', now() - interval '41 min'), ('2', now() - interval '41 min')",
    )
    .await;
    app.execute(
        "insert into callback_gaps (waba_id, day, longest)
         select waba_id, current_date - day, interval '20 min'
           from unnest(array['all', '1', '2']) as accounts(waba_id), generate_series(1, 4) as day",
    )
    .await;
    wait_for_watch(&app).await;
    assert_eq!(app.count("select count(*) from troubles").await, 0);
    // After an hour it is. Of single accounts it is told only where others are heard.
    app.execute("update accounts set last_callback_at = now() - interval '61 min'")
        .await;
    let began = "select count(*) from troubles where told_at is null";
    eventually("it is noticed", async || app.count(began).await == 1).await;
    wait_for_watch(&app).await;
    assert!(hook.types().is_empty(), "it has not lasted yet");
    app.execute("update troubles set began_at = began_at - interval '10 min'")
        .await;
    eventually("it is told", async || hook.types().len() == 1).await;
    assert_eq!(hook.types(), ["lockwatch.callbacks_silent"]);
    let told = hook.received()[0].clone();
    assert_eq!(trouble(&told)["waba_id"], "all");
    let text = told.body["data"]["text"].as_str().unwrap();
    assert!(
        text.contains("1 h 1 min ago. The longest silence of the days before was 20 min."),
        "{text}"
    );
    let page = app.client.get(app.admin("/")).header("accept", "text/html");
    let page = page.send().await.unwrap().text().await.unwrap();
    assert!(page.contains("No callback comes from Meta"), "{page}");
    assert!(
        !page.contains("No account is locked"),
        "silence is never green"
    );
    let status = app.api("/status").await;
    assert_eq!(status["troubles"][0]["kind"], "callbacks_silent");

    // One account is heard again: then the other one is silent by itself.
    app.execute("update accounts set last_callback_at = now() where waba_id = '1'")
        .await;
    let of_one = "select count(*) from troubles where waba_id = '2'";
    eventually("the other one is", async || app.count(of_one).await == 1).await;
    app.execute("update troubles set seen_at = seen_at - interval '5 min' where waba_id = 'all'")
        .await;
    eventually("its end is told", async || hook.types().len() == 2).await;
    assert_eq!(hook.types()[1], "lockwatch.callbacks_silent_over");
}

/// The account is read off the callback, and what it usually does is learned.
#[tokio::test(flavor = "multi_thread")]
async fn callbacks_of_any_kind_are_heard() {
    let database = TestDatabase::create().await;
    let mut serve = Serve::on_database(&database.url, &[]);
    serve.wait_for_log("the database is ready");
    let db = database.database().pool();
    sqlx::query(
        "insert into accounts (waba_id, last_callback_at) values ($1, now() - interval '3 h')",
    )
    .bind(WABA)
    .execute(&db)
    .await
    .unwrap();
    let body = format!(
        r#"{{"object":"whatsapp_business_account","entry":[{{"id":"{WABA}","changes":[]}}]}}"#
    );
    let signature = lockwatch::meta::signature::sign(APP_SECRET, body.as_bytes());
    let request = client()
        .post(&serve.webhook)
        .header(lockwatch::meta::signature::SIGNATURE_HEADER, signature);
    assert_eq!(request.body(body).send().await.unwrap().status(), 200);
    // What was heard is written at the end.
    serve.signal(Signal::TERM);
    serve.wait();
    let heard: (bool, Vec<String>) = sqlx::query_as(
        "select (select last_callback_at > now() - interval '1 min' from accounts),
                array(select waba_id || ' ' || round(extract(epoch from longest) / 3600)
                        from callback_gaps
                       order by waba_id)",
    )
    .fetch_one(&db)
    .await
    .unwrap();
    // What came before the process is not Meta's silence alone.
    assert_eq!(heard, (true, vec![format!("{WABA} 0"), "all 0".to_owned()]));
    let now = time::OffsetDateTime::now_utc();
    let heard = [("all", now), (WABA, now)].map(|(waba_id, at)| HeardAccount {
        waba_id: waba_id.to_owned(),
        first: at + time::Duration::hours(2),
        last: at + time::Duration::hours(2),
    });
    note_heard(&db, &heard, false).await.unwrap();
    let longest: Vec<String> = sqlx::query_scalar(
        "select waba_id || ' ' || round(extract(epoch from max(longest)) / 3600)
           from callback_gaps
          group by waba_id
          order by waba_id",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    assert_eq!(longest, [format!("{WABA} 2"), "all 2".to_owned()]);
}

/// Graph says that a token ends soon, and that an account reports to another app.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_subscription_and_the_end_of_a_token_are_told() {
    let hook = Receiver::start([]).await;
    let app = start_with(vec![webhook(&hook)], vec![Scenario::Available]).await;
    let in_three_days = time::OffsetDateTime::now_utc().unix_timestamp() + 3 * 24 * 3600;
    let info = serde_json::json!({"is_valid": true, "expires_at": in_three_days});
    app.simulator.set_token_info(info);
    app.simulator.set_subscribed_apps("2", &["63", "64"]);
    app.execute(
        "insert into accounts (waba_id, last_callback_at) values ('1', now()), ('2', now())",
    )
    .await;
    eventually("both are told", async || hook.types().len() == 2).await;
    let mut told = hook.types();
    told.sort();
    assert_eq!(
        told,
        ["lockwatch.subscription_lost", "lockwatch.token_expiring"]
    );
    let text = |kind: &str| {
        let received = hook.received();
        let found = received.iter().find(|message| message.body["type"] == kind);
        let data = &found.unwrap().body["data"];
        format!("{} {}", data["title"], data["text"])
    };
    let lost = text("lockwatch.subscription_lost");
    assert!(lost.contains("this app: account 2"), "{lost}");
    assert!(lost.contains("only the apps 63, 64 are."), "{lost}");
    let ends = text("lockwatch.token_expiring");
    assert!(ends.contains("The access token ends"), "{ends}");
    assert!(ends.contains("in 2 days."), "{ends}");

    // An hour later all is well.
    app.simulator
        .set_token_info(serde_json::json!({"is_valid": true}));
    app.simulator.set_subscribed_apps("2", &["634974688087057"]);
    app.execute("update self_checks set checked_at = checked_at - interval '1 h'")
        .await;
    let problems = "select count(*) from self_checks where problem is not null";
    eventually("it is noticed", async || app.count(problems).await == 0).await;
    wait_for_watch(&app).await;
    app.execute("update troubles set seen_at = seen_at - interval '5 min'")
        .await;
    eventually("the ends are told", async || hook.types().len() == 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_or_cannot_be_read_is_told() {
    let hook = Receiver::start([]).await;
    let app = start_with(vec![webhook(&hook)], vec![Scenario::Available]).await;
    let mut processing = app.stop_processing().await;
    app.acknowledged(
        &lockwatch::meta::compose::StatusCallback::new()
            .timestamp(time::OffsetDateTime::now_utc())
            .failed(WABA, "1", "a")
            .into_body(),
    )
    .await;
    app.execute(
        "insert into quarantine (waba_id, received_at, reason, body, digest, capture_id)
         values ('9', now(), 'the id of a message is no text', '', '', 0)",
    )
    .await;
    eventually("the quarantine is told at once", async || {
        hook.types() == ["lockwatch.quarantined"]
    })
    .await;
    let text = hook.received()[0].body["data"]["text"].to_string();
    assert!(text.contains("1 part of a callback came"), "{text}");
    assert!(text.contains("the id of a message is no text"), "{text}");
    app.execute("update inbox set appended_at = appended_at - interval '2 min'")
        .await;
    let began = "select count(*) from troubles where kind = 'inbox_stuck'";
    eventually("it is noticed", async || app.count(began).await == 1).await;
    app.execute("update troubles set began_at = began_at - interval '1 min'")
        .await;
    eventually("the inbox is told", async || hook.types().len() == 2).await;
    assert_eq!(hook.types()[1], "lockwatch.inbox_stuck");
    crate::support::resume_processing(&mut processing).await;
    app.settle().await;
    wait_for_watch(&app).await;
    eventually("the lock itself is told", async || hook.types().len() == 3).await;
    app.execute(
        "update troubles set seen_at = seen_at - interval '5 min' where kind = 'inbox_stuck'",
    )
    .await;
    eventually("its end is told", async || {
        hook.types()
            .contains(&"lockwatch.inbox_stuck_over".to_owned())
    })
    .await;
}

/// The database is away, and with it the queue of alerts.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes seven minutes: it has to last for one, and to be over for five"]
async fn that_nothing_is_recorded_is_told_without_the_database() {
    let hook = Receiver::start([]).await;
    let database = TestDatabase::create().await;
    let (link, database_url) = database.link().await;
    let url = format!("{}/hook", hook.address);
    let serve = Serve::on_database(
        &database_url,
        &[
            ("LOCKWATCH_ALERT_WEBHOOK_URL", &url),
            ("LOCKWATCH_ALERT_WEBHOOK_SECRET", WEBHOOK_SECRET),
        ],
    );
    serve.wait_for_log("the database is ready");
    link.set(LinkState::Reset);
    let limit = std::time::Duration::from_secs(90);
    eventually_within(limit, "it is told", async || hook.types().len() == 1).await;
    let told = hook.received()[0].clone();
    assert_eq!(hook.types(), ["lockwatch.not_recording"]);
    assert_eq!(told.body["data"]["severity"], "critical");
    assert!(
        trouble(&told)["detail"]
            .as_str()
            .unwrap()
            .contains("the database")
    );
    link.set(LinkState::Open);
    let limit = std::time::Duration::from_secs(6 * 60);
    eventually_within(limit, "its end is told", async || hook.types().len() == 2).await;
    assert_eq!(hook.types()[1], "lockwatch.not_recording_over");
}
