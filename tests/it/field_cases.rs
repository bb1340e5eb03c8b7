//! Cases from the field: inputs that were answered wrongly once, each with what is right
//! (`tests/cases`), told to the real program by a real Graph.

use std::collections::BTreeMap;
use std::path::Path;

use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::simulator::{Scenario, Simulator};
use lockwatch::store::Pool;
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::task::spawn_blocking;

use crate::support::database::TestDatabase;
use crate::support::process::{Serve, lockwatch};
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, OTHER_NUMBER, VERIFY_TOKEN, WABA, client, eventually, settle,
};

const SECOND_SECRET: &str = "a-second-app-secret";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    id: String,
    fault: String,
    /// What Meta posts; one failure of the number if there is nothing.
    #[serde(default)]
    callbacks: Vec<Callback>,
    /// What Graph answers for the number.
    #[serde(default)]
    graph: Vec<Answer>,
    /// The same per number.
    #[serde(default)]
    numbers: Vec<NumberCase>,
    /// A raw request.
    http: Option<HttpRequest>,
    /// Settings.
    #[serde(default)]
    env: BTreeMap<String, String>,
    signed_with: Option<String>,
    expect: Expected,
}

#[derive(Debug, Deserialize)]
struct Callback {
    body: Value,
    secret: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Value,
}

#[derive(Debug, Deserialize)]
struct NumberCase {
    failures: usize,
    graph: Vec<Answer>,
}

#[derive(Debug, Deserialize)]
struct HttpRequest {
    method: String,
    path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Expected {
    cause_in: Option<Vec<String>>,
    incidents: Option<i64>,
    resolved: bool,
    rows: Option<i64>,
    http_in: Option<Vec<u16>>,
    log_has: Option<String>,
    or_log_has: Option<String>,
    or_not_started: bool,
    summary_lacks: Option<String>,
    any_step_has: Option<String>,
    first_step_lacks: Option<String>,
    steps_have: Option<String>,
    dashboard_has: Option<String>,
    due_within_minutes: Option<i64>,
}

/// Fills in what a case leaves open.
fn fill_in(text: &str) -> String {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    text.replace("$WABA", WABA)
        .replace("$PHONE", NUMBER)
        .replace("$NOW", &now.to_string())
        .replace("$HOURAGO", &(now - 3600).to_string())
}

fn load_cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let files = std::fs::read_dir(folder).unwrap().flatten();
    let cases = files.map(|file| {
        let text = std::fs::read_to_string(file.path()).unwrap();
        serde_json::from_str(&fill_in(&text)).unwrap_or_else(|error| panic!("{file:?}: {error}"))
    });
    cases.collect()
}

fn script(answers: Vec<Answer>) -> Vec<Scenario> {
    let scenario = |answer: Answer| Scenario::Answer {
        status: answer.status,
        headers: answer.headers.into_iter().collect(),
        body: answer.body.to_string(),
    };
    match answers.is_empty() {
        true => vec![Scenario::Available],
        false => answers.into_iter().map(scenario).collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_from_the_field_gives_what_is_right() {
    let cases = load_cases();
    assert!(cases.len() >= 16, "{}", cases.len());
    for case in cases {
        run(case).await;
    }
}

async fn run(mut case: Case) {
    let name = format!("{}, {}", case.id, case.fault);
    let database = TestDatabase::create().await;
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    simulator.set_scenarios(NUMBER, script(std::mem::take(&mut case.graph)));
    let numbers = [NUMBER, OTHER_NUMBER];
    for (number, of_number) in numbers.iter().zip(&mut case.numbers) {
        // A case writes $PHONE for each of its numbers.
        let mut answers = std::mem::take(&mut of_number.graph);
        for answer in &mut answers {
            let body = answer.body.to_string().replace(NUMBER, number);
            answer.body = serde_json::from_str(&body).unwrap();
        }
        simulator.set_scenarios(number, script(answers));
    }
    let (graph_url, secrets) = (simulator.url(), format!("{APP_SECRET},{SECOND_SECRET}"));
    let mut settings = vec![
        ("META_APP_SECRET", secrets.as_str()),
        ("META_ACCESS_TOKEN", ACCESS_TOKEN),
        ("META_GRAPH_URL", &graph_url),
    ];
    settings.extend(
        case.env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    if case.expect.or_not_started && !starts(&database.url, &settings).await {
        return;
    }
    let serve = Serve::on_database(&database.url, &settings);
    serve.wait_for_log("the database is ready");
    let db = database.database().pool();
    let told = Told {
        name,
        serve,
        db,
        _simulator: simulator,
        _database: database,
    };
    told.tell(&case).await;
    told.expect(&case).await;
}

/// Returns whether the program takes these settings.
async fn starts(database_url: &str, settings: &[(&str, &str)]) -> bool {
    let mut command = lockwatch(&["serve", "--listen", "127.0.0.1:0"]);
    command
        .args(["--admin-listen", "127.0.0.1:0"])
        .env("DATABASE_URL", database_url)
        .env("META_VERIFY_TOKEN", VERIFY_TOKEN)
        .envs(settings.iter().copied());
    let started = spawn_blocking(move || {
        let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        for _ in 0..100 {
            if let Some(status) = child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(2), "a wrong setting");
                return false;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        true
    });
    started.await.unwrap()
}

/// A program that was told a case.
struct Told {
    name: String,
    serve: Serve,
    db: Pool,
    _simulator: Simulator,
    _database: TestDatabase,
}

impl Told {
    async fn tell(&self, case: &Case) {
        if let Some(request) = &case.http {
            return self.send(case, request).await;
        }
        for callback in &case.callbacks {
            let secret = match callback.secret {
                Some(2) => SECOND_SECRET,
                _ => APP_SECRET,
            };
            self.post(callback.body.to_string().as_bytes(), secret)
                .await;
        }
        let failures: Vec<(&str, usize)> = match case.numbers.is_empty() {
            true => vec![(NUMBER, 1)],
            false => [NUMBER, OTHER_NUMBER]
                .into_iter()
                .zip(case.numbers.iter().map(|number| number.failures))
                .collect(),
        };
        if case.callbacks.is_empty() {
            let mut callback = StatusCallback::new().timestamp(OffsetDateTime::now_utc());
            for (number, failures) in failures {
                for n in 0..failures {
                    callback = callback.failed(WABA, number, &format!("wamid.{number}.{n}"));
                }
            }
            let secret = case.signed_with.as_deref().unwrap_or(APP_SECRET);
            self.post(&callback.into_body(), secret).await;
        }
        settle(&self.db).await;
    }

    async fn send(&self, case: &Case, request: &HttpRequest) {
        let base = self.serve.webhook.trim_end_matches("/webhook");
        let path = request.path.replace("verify-me", VERIFY_TOKEN);
        let method = request.method.parse().unwrap();
        let mut http = client().request(method, format!("{base}{path}"));
        if request.method == "POST" {
            let body = StatusCallback::new().failed(WABA, NUMBER, "a").into_body();
            http = http
                .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
                .body(body);
        }
        let status = http.send().await.unwrap().status().as_u16();
        let expected = case.expect.http_in.as_ref().unwrap();
        if !expected.contains(&status) {
            let part = case.expect.or_log_has.as_ref();
            let part = part.unwrap_or_else(|| panic!("{}: {status}", self.name));
            self.serve.wait_for_log(part);
        }
    }

    async fn post(&self, body: &[u8], secret: &str) {
        let request = client()
            .post(&self.serve.webhook)
            .header(SIGNATURE_HEADER, sign(secret, body))
            .body(body.to_vec());
        let status = request.send().await.unwrap().status();
        assert!(status.is_success(), "{}: {status}", self.name);
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.db).await.unwrap()
    }

    async fn get(&self, path: &str) -> String {
        let url = format!(
            "{}{path}",
            self.serve.admin.replace("127.0.0.1", "localhost")
        );
        let response = client().get(url).header("accept", "text/html").send().await;
        response.unwrap().text().await.unwrap()
    }

    async fn expect(&self, case: &Case) {
        let name = &self.name;
        let expected = &case.expect;
        if let Some(incidents) = expected.incidents {
            assert_eq!(
                self.count("select count(*) from incidents").await,
                incidents,
                "{name}"
            );
        }
        if let Some(rows) = expected.rows {
            let sql = "select count(*) from failed_deliveries";
            assert_eq!(self.count(sql).await, rows, "{name}");
        }
        if case.graph.is_empty() && case.http.is_none() {
            let unchecked = "select count(*) from affected_numbers where latest_check_id is null
                                and not exists (select from health_checks
                                                 where outcome = 'throttled')";
            eventually(name, async || self.count(unchecked).await == 0).await;
        }
        if let Some(causes) = &expected.cause_in {
            let cause = "select cause from incidents";
            eventually(name, async || {
                let cause: String = sqlx::query_scalar(cause).fetch_one(&self.db).await.unwrap();
                causes.contains(&cause)
            })
            .await;
        }
        if let Some(minutes) = expected.due_within_minutes {
            let checked = "select count(*) from health_checks";
            eventually(name, async || self.count(checked).await > 0).await;
            let due = "select ceil(extract(epoch from greatest(max(check_due_at),
                                                               max(a.lookups_paused_until),
                                                               max(until)) - now()) / 60)::bigint
                         from affected_numbers n
                         join accounts a using (waba_id)
                         left join graph_limits l on l.key = n.waba_id";
            let due = self.count(due).await;
            assert!((1..=minutes).contains(&due), "{name}: {due}");
        }
        if expected.resolved {
            let open = "select count(*) from incidents where resolved_at is null";
            eventually(name, async || self.count(open).await == 0).await;
        }
        if let Some(part) = &expected.log_has {
            self.serve.wait_for_log(part);
        }
        if let Some(part) = &expected.dashboard_has {
            let page = self.get("/").await;
            assert!(page.contains(part.as_str()), "{name}: {page}");
        }
        self.expect_words(expected).await;
    }

    /// Checks the summary and the steps that a person reads.
    async fn expect_words(&self, expected: &Expected) {
        let name = &self.name;
        let list: Value = serde_json::from_str(&self.get("/api/v1/incidents").await).unwrap();
        let incident = &list["data"][0];
        let summary = incident["cause_summary"].as_str().unwrap_or_default();
        let steps = incident["next_steps"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let has = |step: &Value, part: &str| step.as_str().unwrap().contains(part);
        if let Some(part) = &expected.summary_lacks {
            assert!(
                !summary.is_empty() && !summary.contains(part),
                "{name}: {summary}"
            );
        }
        for part in [&expected.any_step_has, &expected.steps_have]
            .into_iter()
            .flatten()
        {
            assert!(
                steps.iter().any(|step| has(step, part)),
                "{name}: {steps:?}"
            );
        }
        if let Some(part) = &expected.first_step_lacks {
            assert!(!has(&steps[0], part), "{name}: {steps:?}");
        }
    }
}
