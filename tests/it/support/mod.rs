//! What every test needs: a service on a database of its own, with a simulated Meta.

pub mod browser;
pub mod database;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod wire;

use std::time::Duration;

use lockwatch::graph::{Graph, GraphSettings, Tokens};
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::ids::WabaId;
use lockwatch::meta::signature::{HEADER, sign};
use lockwatch::recorder::Capturing;
use lockwatch::service::{Service, Settings};
use lockwatch::simulator::{Scenario, Simulator};
use lockwatch::store::checks::{self, HealthCheck};
use lockwatch::store::incidents::{self, Incident, IncidentFilter};
use lockwatch::store::{Database, Pool};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use secrecy::SecretString;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use database::TestDatabase;

pub const APP_SECRET: &str = "an-app-secret-of-the-tests";
pub const VERIFY_TOKEN: &str = "a-verify-token";
pub const ACCESS_TOKEN: &str = "EAAtestsAccessToken1234567890";

/// The account of most tests, as an id.
pub fn waba() -> WabaId {
    WabaId::parse(WABA).unwrap()
}

pub const WABA: &str = "102290129340398";
pub const NUMBER: &str = "106540352242922";
pub const OTHER_NUMBER: &str = "106540352242923";

/// How long a test waits for what must happen by itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// A service under test. Several may share a database.
pub struct TestApp {
    pub service: Service,
    pub simulator: Simulator,
    pub db: Pool,
    pub client: Client,
    // Last, so that it goes last.
    pub database: TestDatabase,
}

impl TestApp {
    /// On a database of its own, with a Meta that says AVAILABLE for the two usual numbers.
    pub async fn start() -> Self {
        let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
        for number in [NUMBER, OTHER_NUMBER] {
            simulator.script(number, [Scenario::Available]);
        }
        Self::start_on(TestDatabase::create().await, simulator).await
    }

    pub async fn start_on(database: TestDatabase, simulator: Simulator) -> Self {
        Self::start_with(database, simulator, Some(ACCESS_TOKEN)).await
    }

    pub async fn start_with(
        database: TestDatabase,
        simulator: Simulator,
        token: Option<&str>,
    ) -> Self {
        let service = Service::start(settings(
            database.database(),
            &simulator.url(),
            &[APP_SECRET],
            token,
        ))
        .await
        .unwrap();
        Self::around(service, database, simulator)
    }

    /// That asks somebody else than its simulator.
    pub async fn start_asking(graph_url: &str) -> Self {
        let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
        let database = TestDatabase::create().await;
        let settings = settings(
            database.database(),
            graph_url,
            &[APP_SECRET],
            Some(ACCESS_TOKEN),
        );
        Self::around(Service::start(settings).await.unwrap(), database, simulator)
    }

    /// With a token on the admin listener.
    pub async fn guarded(admin_token: &str) -> Self {
        let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
        let database = TestDatabase::create().await;
        let settings = settings(
            database.database(),
            &simulator.url(),
            &[APP_SECRET],
            Some(ACCESS_TOKEN),
        );
        let service = Service::start(Settings {
            admin_token: Some(admin_token.into()),
            ..settings
        })
        .await
        .unwrap();
        Self::around(service, database, simulator)
    }

    fn around(service: Service, database: TestDatabase, simulator: Simulator) -> Self {
        let db = database.database().pool();
        Self {
            service,
            simulator,
            db,
            client: client(),
            database,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.service.address)
    }

    /// An address on the admin listener, as a browser on this machine names it.
    pub fn admin(&self, path: &str) -> String {
        format!(
            "http://localhost:{}{path}",
            self.service.admin_address.port()
        )
    }

    /// What the admin API answers, which must be 200.
    pub async fn api(&self, path: &str) -> Value {
        let response = self
            .client
            .get(self.admin(&format!("/api/v1{path}")))
            .send()
            .await
            .unwrap();
        let (status, body) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub fn unsigned(&self, body: &[u8]) -> RequestBuilder {
        self.client.post(self.url("/webhook")).body(body.to_vec())
    }

    pub async fn post(&self, body: &[u8]) -> Response {
        self.unsigned(body)
            .header(HEADER, sign(APP_SECRET, body))
            .send()
            .await
            .unwrap()
    }

    /// Posts a signed body that must be taken.
    pub async fn deliver(&self, body: &[u8]) {
        let response = self.post(body).await;
        let status = response.status();
        assert_eq!(status, StatusCode::OK, "{}", response.text().await.unwrap());
    }

    /// A message of the usual number fails now.
    pub async fn fail(&self, message_id: &str) {
        self.fail_at(message_id, OffsetDateTime::now_utc()).await;
    }

    pub async fn fail_at(&self, message_id: &str, at: OffsetDateTime) {
        self.deliver(
            &StatusCallback::new()
                .at(at)
                .failed(WABA, NUMBER, message_id)
                .into_body(),
        )
        .await;
    }

    /// A message of some account and number fails.
    pub async fn fail_of(&self, waba_id: &str, number: &str, at: OffsetDateTime) {
        self.deliver(
            &StatusCallback::new()
                .at(at)
                .failed(waba_id, number, "wamid.1")
                .into_body(),
        )
        .await;
    }

    pub async fn incidents(&self) -> Vec<Incident> {
        let mut incidents = incidents::list(&self.db, &IncidentFilter::default(), 1000)
            .await
            .unwrap();
        incidents.reverse();
        incidents
    }

    pub async fn incident(&self) -> Incident {
        let mut incidents = self.incidents().await;
        assert_eq!(incidents.len(), 1, "{incidents:#?}");
        incidents.remove(0)
    }

    pub async fn checks(&self) -> Vec<HealthCheck> {
        let mut checks = checks::list(&self.db, self.incident().await.id, None, 1000)
            .await
            .unwrap();
        checks.reverse();
        checks
    }

    /// Waits until the only incident has this cause.
    pub async fn caused(&self, cause: &str) -> Incident {
        self.eventually(cause, async || self.incident().await.cause == cause)
            .await;
        self.incident().await
    }

    /// Waits until a condition holds.
    pub async fn eventually(&self, what: &str, condition: impl AsyncFn() -> bool) {
        eventually(what, condition).await;
    }

    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.db).await.unwrap()
    }

    pub async fn execute(&self, sql: &'static str) {
        sqlx::query(sql).execute(&self.db).await.unwrap();
    }

    pub async fn text(&self, sql: &'static str) -> Option<String> {
        sqlx::query_scalar(sql).fetch_one(&self.db).await.unwrap()
    }

    /// How many recorders wait for a lock in its database.
    pub async fn waiting_recorders(&self) -> i64 {
        self.count(
            "select count(*) from pg_stat_activity
              where datname = current_database() and application_name = 'lockwatch recorder' and wait_event_type = 'Lock'",
        )
        .await
    }

    /// Moves everything in the database into the past, as if time had passed.
    pub async fn let_time_pass(&self, time: time::Duration) {
        let columns: Vec<(String, String)> = sqlx::query_as(
            "select table_name::text, column_name::text from information_schema.columns
              where table_schema = 'public' and data_type = 'timestamp with time zone' and table_name <> '_sqlx_migrations'",
        )
        .fetch_all(&self.db)
        .await
        .unwrap();
        let mut transaction = self.db.begin().await.unwrap();
        for (table, column) in columns {
            // In two steps: a row must not take the place of one that has yet to move.
            for step in [
                format!("+ interval '400 years {} seconds'", -time.whole_seconds()),
                "- interval '400 years'".to_owned(),
            ] {
                let sql = format!(
                    "update {table} set {column} = {column} {step} where {column} is not null"
                );
                sqlx::query(AssertSqlSafe(sql))
                    .execute(&mut *transaction)
                    .await
                    .unwrap();
            }
        }
        transaction.commit().await.unwrap();
    }

    /// Lets time pass until the next check is due, and waits for its answer.
    pub async fn next_check(&self, after: time::Duration) {
        let before = self.count("select count(*) from health_checks").await;
        self.let_time_pass(after).await;
        self.eventually("another check", async || {
            self.count("select count(*) from health_checks").await > before
        })
        .await;
    }
}

pub async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    within(PATIENCE, what, condition).await;
}

/// Waits until a condition holds, for so long.
pub async fn within(limit: Duration, what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition().await {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Starts a service; the first secret also makes the proof for the simulator.
pub async fn service(database: Database, simulator: &Simulator, app_secrets: &[&str]) -> Service {
    Service::start(settings(
        database,
        &simulator.url(),
        app_secrets,
        Some(ACCESS_TOKEN),
    ))
    .await
    .unwrap()
}

fn settings(
    database: Database,
    graph_url: &str,
    app_secrets: &[&str],
    token: Option<&str>,
) -> Settings {
    let app_secrets: Vec<SecretString> = app_secrets
        .iter()
        .map(|secret| SecretString::from(*secret))
        .collect();
    let graph = graph(graph_url, &app_secrets, token);
    let loopback = "127.0.0.1:0".parse().unwrap();
    Settings {
        database,
        listen: loopback,
        admin_listen: loopback,
        admin_token: None,
        app_secrets,
        verify_token: VERIFY_TOKEN.into(),
        graph,
        capturing: Capturing::Lockouts,
        retention: Duration::from_secs(90 * 24 * 3600),
    }
}

/// A client that asks there.
pub fn graph(url: &str, app_secrets: &[SecretString], token: Option<&str>) -> Graph {
    Graph::new(GraphSettings {
        url: url.to_owned(),
        version: "v25.0".to_owned(),
        app_secrets: app_secrets.to_vec(),
        tokens: Tokens::new(token.map(SecretString::from), None).unwrap(),
    })
    .unwrap()
}

pub fn client() -> Client {
    Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(30))
        .build()
        .unwrap()
}

/// A callback with one failure of the usual number.
pub fn one_failure(message_id: &str) -> Vec<u8> {
    StatusCallback::new()
        .at(OffsetDateTime::now_utc())
        .failed(WABA, NUMBER, message_id)
        .into_body()
}
