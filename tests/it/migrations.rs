//! Migrations beside others: a role with few rights, another build, a lock, a copied database.

use lockwatch::store::{Database, MigrateError};
use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::database::TestDatabase;
use crate::support::process::Serve;
use crate::support::{TestApp, eventually, one_failure};

async fn execute(url: &str, sql: impl Into<String>) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let statements = sqlx::raw_sql(AssertSqlSafe(sql.into()));
    statements.execute(&mut connection).await.unwrap();
}

/// SHA-384 of the files in `migrations`. A migration that has been released never changes.
const CHECKSUMS: [&str; 5] = [
    "08a2f2d8f42528b7080a088e38b556135abc5d5c1a3f5ee65cc4c7057ee64f53cef67f7112f32d6cf27a9a26d2b2d184",
    "e22f5e0e9f21d771a2fda5ba1e89cb5bbc0cb6485b028c3c50f60fcd1f30d9c8ddcb638aae41c36011788ba6776cb3d2",
    "0f019a0fe266d1e1b61ebe1da81884993cf00076e35163d29f12deb0c11e5c7c112b2e0076c8d94f34d0f280a101ecd9",
    "b661165debd04655ad16555a658be681e382ac2ba5c286b356a5f2afe19429c143a22c24bb887fff6f9a24f0d7b25a9f",
    "82dd5c8809929de432c7632341fd5a138ff7f322d8d775c554bbf0da4ca2ff8702054a634fc17ba415bac3d78bc6aef2",
];

#[test]
fn the_checksums_of_migrations_are_pinned() {
    let migrations = lockwatch::MIGRATOR.iter();
    let checksums: Vec<(i64, String)> = migrations
        .map(|migration| (migration.version, hex::encode(&migration.checksum)))
        .collect();
    let pinned = CHECKSUMS.iter().map(|checksum| (*checksum).to_owned());
    assert_eq!(checksums, (1..).zip(pinned).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_role_that_may_not_create_can_serve() {
    let database = TestDatabase::create().await;
    // Roles are of the whole server, and tests share it.
    let role = format!("reader_{}", std::process::id());
    execute(
        &database.url,
        format!(
            "create role {role} login;
             revoke create on schema public from public;
             grant select, insert, update, delete on all tables in schema public to {role};
             grant usage on all sequences in schema public to {role}"
        ),
    )
    .await;
    let mut url = reqwest::Url::parse(&database.url).unwrap();
    url.set_username(&role).unwrap();
    let limited = Database::parse(url.as_str()).unwrap();
    let migrated = limited.migrate().await;
    let mut serve = Serve::on_database(url.as_str(), &[("META_GRAPH_URL", "http://127.0.0.1:1")]);
    serve.wait_for_log("the database is ready");
    serve.signal(Signal::TERM);
    serve.wait();
    let log = serve.whole_log().join("\n");
    execute(
        &database.url,
        format!("drop owned by {role}; drop role {role}"),
    )
    .await;
    migrated.unwrap();
    assert!(!log.contains("could not be checked"), "{log}");
}

#[tokio::test]
async fn tables_of_another_build_are_a_fatal_error() {
    let database = TestDatabase::create().await;
    let change = "update _sqlx_migrations set checksum = 'x' where version = 1";
    execute(&database.url, change).await;
    let error = database.database().migrate().await.unwrap_err();
    assert!(matches!(error, MigrateError::OtherBuild(1)), "{error}");

    let mut serve = Serve::on_database(&database.url, &[]);
    assert_eq!(serve.wait().code(), Some(1));
    let log = serve.whole_log().join("\n");
    assert!(
        log.contains("another build of lockwatch (its migration 1 differs)"),
        "{log}"
    );
}

#[tokio::test]
async fn a_migration_that_waits_for_a_lock_gives_way_and_retries() {
    let database = TestDatabase::create().await;
    let mut locker = PgConnection::connect(&database.url).await.unwrap();
    let lock = "begin; lock table _sqlx_migrations in access exclusive mode";
    sqlx::raw_sql(lock).execute(&mut locker).await.unwrap();
    let migrating = tokio::spawn({
        let database = database.database();
        async move { database.migrate().await }
    });
    let mut starts = std::collections::BTreeSet::new();
    let starts = tokio::sync::Mutex::new(&mut starts);
    eventually("it has waited twice", async || {
        let started: Option<String> = sqlx::query_scalar(
            "select query_start::text from pg_stat_activity
              where application_name = 'lockwatch migrate' and datname = current_database()
                and wait_event_type = 'Lock'",
        )
        .fetch_optional(&mut PgConnection::connect(&database.url).await.unwrap())
        .await
        .unwrap();
        let mut starts = starts.lock().await;
        starts.extend(started);
        starts.len() >= 2
    })
    .await;
    sqlx::raw_sql("rollback")
        .execute(&mut locker)
        .await
        .unwrap();
    migrating.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_sequence_behind_its_rows_is_advanced_at_start() {
    let app = TestApp::start().await;
    app.deliver(&one_failure("wamid.before")).await;
    app.execute(
        "select setval('failed_deliveries_id_seq', 1, false), setval('captures_id_seq', 1, false),
                setval('incidents_id_seq', 1, false)",
    )
    .await;
    app.database.database().migrate().await.unwrap();
    app.deliver(&one_failure("wamid.after")).await;
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 2);
    assert_eq!(
        app.count("select count(distinct id) from captures").await,
        2
    );
}
