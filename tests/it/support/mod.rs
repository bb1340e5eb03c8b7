//! The test service: Lockwatch on a database of its own, with a simulated Meta.

pub mod browser;
pub mod database;
pub mod load;
pub mod process;
pub mod proxy;
pub mod raw_http;
pub mod scripted_server;

use std::time::Duration;

use lockwatch::alerts::Alerting;
use lockwatch::graph::{Graph, GraphSettings, Tokens};
use lockwatch::inbox::Capturing;
use lockwatch::meta::codes::WatchedCodes;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::ids::WabaId;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::service::{Service, Settings};
use lockwatch::simulator::{Scenario, Simulator};
use lockwatch::store::checks::{self, HealthCheck};
use lockwatch::store::incidents::{self, Incident, IncidentFilter};
use lockwatch::store::{Database, Pool};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use secrecy::SecretString;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
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

/// The time within which an expected event must happen by itself.
const EVENT_TIMEOUT: Duration = Duration::from_secs(20);

/// A service under test. Several may share a database.
pub struct TestApp {
    pub service: Service,
    pub simulator: Simulator,
    pub db: Pool,
    pub client: Client,
    // Fields drop in order: the database goes last.
    pub database: TestDatabase,
}

impl TestApp {
    /// Starts it on a database of its own. The simulator answers AVAILABLE for the two test
    /// numbers.
    pub async fn start() -> Self {
        let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
        for number in [NUMBER, OTHER_NUMBER] {
            simulator.set_scenarios(number, [Scenario::Available]);
            simulator.set_account(number, WABA);
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
        Self::new(service, database, simulator)
    }

    /// Starts it with health checks that go to another server than the simulator.
    pub async fn start_with_graph_url(graph_url: &str) -> Self {
        let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
        let database = TestDatabase::create().await;
        let settings = settings(
            database.database(),
            graph_url,
            &[APP_SECRET],
            Some(ACCESS_TOKEN),
        );
        Self::new(Service::start(settings).await.unwrap(), database, simulator)
    }

    /// Starts it with an access token on the admin listener.
    pub async fn start_with_admin_token(admin_token: &str) -> Self {
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
        Self::new(service, database, simulator)
    }

    /// Starts it with these settings.
    pub async fn start_with_settings(
        database: TestDatabase,
        simulator: Simulator,
        settings: Settings,
    ) -> Self {
        Self::new(Service::start(settings).await.unwrap(), database, simulator)
    }

    fn new(service: Service, database: TestDatabase, simulator: Simulator) -> Self {
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

    /// A URL on the admin listener, as a browser on the same machine writes it.
    pub fn admin(&self, path: &str) -> String {
        format!(
            "http://localhost:{}{path}",
            self.service.admin_address.port()
        )
    }

    /// Gets a path of the admin API, which must answer 200, and parses the body.
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

    pub fn unsigned_request(&self, body: &[u8]) -> RequestBuilder {
        self.client.post(self.url("/webhook")).body(body.to_vec())
    }

    pub async fn post(&self, body: &[u8]) -> Response {
        self.unsigned_request(body)
            .header(SIGNATURE_HEADER, sign(APP_SECRET, body))
            .send()
            .await
            .unwrap()
    }

    /// Posts a signed body, which must be answered with 200, and waits until it is processed.
    pub async fn deliver(&self, body: &[u8]) {
        self.acknowledged(body).await;
        self.settle().await;
    }

    /// Posts a signed body, which must be answered with 200.
    pub async fn acknowledged(&self, body: &[u8]) {
        let response = self.post(body).await;
        let status = response.status();
        assert_eq!(status, StatusCode::OK, "{}", response.text().await.unwrap());
    }

    /// Waits until every callback is processed.
    pub async fn settle(&self) {
        settle(&self.db).await;
    }

    /// Takes the processor's lock: callbacks stay in the inbox until [`resume_processing`], or
    /// until the connection is closed.
    pub async fn stop_processing(&self) -> PgConnection {
        let mut connection = PgConnection::connect(&self.database.url).await.unwrap();
        sqlx::query("select pg_advisory_lock(131031000)")
            .execute(&mut connection)
            .await
            .unwrap();
        connection
    }

    /// Delivers a callback: a message of the test number failed now.
    pub async fn fail(&self, message_id: &str) {
        self.fail_at(message_id, OffsetDateTime::now_utc()).await;
    }

    pub async fn fail_at(&self, message_id: &str, at: OffsetDateTime) {
        self.deliver(
            &StatusCallback::new()
                .timestamp(at)
                .failed(WABA, NUMBER, message_id)
                .into_body(),
        )
        .await;
    }

    /// Delivers a callback: a message of this account and number failed.
    pub async fn fail_number(&self, waba_id: &str, number: &str, at: OffsetDateTime) {
        self.deliver(
            &StatusCallback::new()
                .timestamp(at)
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

    /// Waits until the only incident has this cause, and returns the incident.
    pub async fn wait_for_cause(&self, cause: &str) -> Incident {
        self.eventually(cause, async || self.incident().await.cause == cause)
            .await;
        self.incident().await
    }

    /// Waits until the only incident is resolved as recovered.
    pub async fn wait_for_recovery(&self) {
        self.eventually("the incident is recovered", async || {
            let resolution = self.incident().await.resolution;
            resolution.is_some_and(|resolution| resolution == "recovered")
        })
        .await;
    }

    /// Waits until a condition holds.
    pub async fn eventually(&self, event: &str, condition: impl AsyncFn() -> bool) {
        eventually(event, condition).await;
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

    /// Moves every time in the database into the past, as if time had passed.
    pub async fn let_time_pass(&self, time: time::Duration) {
        let columns: Vec<(String, String)> = sqlx::query_as(
            "select table_name::text, column_name::text from information_schema.columns
              where table_schema = 'public'
                and data_type = 'timestamp with time zone'
                and table_name <> '_sqlx_migrations'",
        )
        .fetch_all(&self.db)
        .await
        .unwrap();
        let mut statements = Vec::new();
        for (table, column) in columns {
            // Two steps, because a moved row must not collide with a row that has not moved yet.
            for step in [
                format!("+ interval '400 years {} seconds'", -time.whole_seconds()),
                "- interval '400 years'".to_owned(),
            ] {
                statements.push(format!(
                    "update {table} set {column} = {column} {step} where {column} is not null"
                ));
            }
        }
        // The service changes rows as well, in another order: one of the two may have to give way.
        self.eventually("time passes", async || {
            let mut transaction = self.db.begin().await.unwrap();
            for sql in &statements {
                let moved = sqlx::query(AssertSqlSafe(sql.clone()))
                    .execute(&mut *transaction)
                    .await;
                match moved {
                    Ok(_) => {}
                    Err(error) if is_deadlock(&error) => return false,
                    Err(error) => panic!("{sql}: {error}"),
                }
            }
            transaction.commit().await.unwrap();
            true
        })
        .await;
    }

    /// Waits until silence has ended the incident of another account: by then it has ended all that
    /// it can end.
    pub async fn wait_until_silence_ends_another(&self) {
        let long_ago = OffsetDateTime::now_utc() - time::Duration::days(30);
        self.fail_number("9", "9", long_ago).await;
        let quiet = "select count(*) from incidents where resolution = 'quiet' and waba_id = '9'";
        self.eventually("what is over is resolved", async || {
            self.count(quiet).await == 1
        })
        .await;
    }

    /// Lets time pass until the next health check is due, and waits for its answer.
    pub async fn run_next_check(&self, after: time::Duration) {
        let before = self.count("select count(*) from health_checks").await;
        self.let_time_pass(after).await;
        self.eventually("another health check is saved", async || {
            self.count("select count(*) from health_checks").await > before
        })
        .await;
    }
}

fn is_deadlock(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "40P01")
}

/// Waits until every callback in this database is processed.
pub async fn settle(db: &Pool) {
    let deadline = Instant::now() + EVENT_TIMEOUT;
    let waiting = "select count(*) from inbox";
    while sqlx::query_scalar::<_, i64>(waiting)
        .fetch_one(db)
        .await
        .unwrap()
        > 0
    {
        assert!(Instant::now() < deadline, "the inbox is not processed");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Gives back the lock of [`TestApp::stop_processing`].
pub async fn resume_processing(connection: &mut PgConnection) {
    sqlx::query("select pg_advisory_unlock_all()")
        .execute(connection)
        .await
        .unwrap();
}

/// Waits until a condition holds; panics with the event's name when the time is over.
pub async fn eventually(event: &str, condition: impl AsyncFn() -> bool) {
    eventually_within(EVENT_TIMEOUT, event, condition).await;
}

/// Waits until a condition holds, with a limit of its own.
pub async fn eventually_within(limit: Duration, event: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition().await {
        assert!(Instant::now() < deadline, "did not happen: {event}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Starts a service. The first secret also makes the `appsecret_proof` for the simulator.
pub async fn start_service(
    database: Database,
    simulator: &Simulator,
    app_secrets: &[&str],
) -> Service {
    Service::start(settings(
        database,
        &simulator.url(),
        app_secrets,
        Some(ACCESS_TOKEN),
    ))
    .await
    .unwrap()
}

pub fn settings(
    database: Database,
    graph_url: &str,
    app_secrets: &[&str],
    token: Option<&str>,
) -> Settings {
    let app_secrets: Vec<SecretString> = app_secrets
        .iter()
        .map(|secret| SecretString::from(*secret))
        .collect();
    let graph = graph_client(graph_url, &app_secrets, token);
    let loopback = "127.0.0.1:0".parse().unwrap();
    Settings {
        database,
        listen: loopback,
        admin_listen: loopback,
        admin_token: None,
        app_secrets,
        verify_token: VERIFY_TOKEN.into(),
        graph,
        codes: WatchedCodes::default(),
        capturing: Capturing::Lockouts,
        retention: Duration::from_secs(90 * 24 * 3600),
        alerting: Alerting::default(),
    }
}

/// A Graph client for this URL.
pub fn graph_client(url: &str, app_secrets: &[SecretString], token: Option<&str>) -> Graph {
    Graph::new(GraphSettings {
        url: url.to_owned(),
        version: "v25.0".to_owned(),
        app_secrets: app_secrets.to_vec(),
        tokens: Tokens::new(token.map(SecretString::from), None).unwrap(),
        proxy: None,
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

/// The body of a callback with one failure of the test number.
pub fn one_failure(message_id: &str) -> Vec<u8> {
    StatusCallback::new()
        .timestamp(OffsetDateTime::now_utc())
        .failed(WABA, NUMBER, message_id)
        .into_body()
}
