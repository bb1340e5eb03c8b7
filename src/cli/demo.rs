//! `lockwatch demo`: the whole product in ten seconds, with a real PostgreSQL and a simulated Meta.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use reqwest::Client;
use secrecy::SecretString;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::render::{self, BOLD, DIM, GREEN, RED, YELLOW};
use super::serve::StopSignals;
use super::{Failure, print_line, start_log};
use crate::alerts::Alerting;
use crate::alerts::channel::{Channel, WebhookSecret};
use crate::config::LogFormat;
use crate::embedded::EmbeddedPostgres;
use crate::graph::{Graph, GraphSettings, Tokens};
use crate::inbox::Capturing;
use crate::lockout::cause::LockoutCause;
use crate::lockout::incident::Resolution;
use crate::meta::codes::WatchedCodes;
use crate::meta::compose::{StatusCallback, message_id};
use crate::meta::signature::{self, sign};
use crate::report::text::{format_count, state_word};
use crate::report::{self, IncidentReport};
use crate::service::{Service, Settings};
use crate::simulator::{AlertReceiver, Scenario, Simulator, story};
use crate::store::incidents::{self, Incident, IncidentFilter};
use crate::store::{Database, Pool, Word, backlog, changes};

const APP_SECRET: &str = "demo-app-secret-of-no-app";
const VERIFY_TOKEN: &str = "demo-verify-token";
const ACCESS_TOKEN: &str = "demo-access-token";
const WEBHOOK_SECRET: &str = "whsec_ZGVtby1zZWNyZXQtb2YtYW4tYWxlcnQtcmVjZWl2ZXI=";
/// The time within which every incident must have its cause.
const CAUSES_TIMEOUT: Duration = Duration::from_secs(20);
/// The time within which the alerts come.
const ALERTS_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(40);
const INCIDENTS_LIMIT: i64 = 100;
/// The speed of time in the story.
const STORY_SPEED: i32 = 600;

/// The body of the failure that the reader can send with curl.
const SAMPLE_BODY: &str = r#"{"entry": [{"id": "102290129340398", "changes": [{"value": {
  "metadata": {"phone_number_id": "106540352242922"},
  "statuses": [{"id": "wamid.mine", "status": "failed", "errors": [{"code": 131031}]}]}}]}]}"#;

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Exit after the table; exit 0 only if every incident has the expected cause
    #[arg(long)]
    exit: bool,
    /// Tell one night instead, 600 times faster: an account is warned, disabled and reinstated
    #[arg(long)]
    story: bool,
    /// Start a receiver of alerts as well, and show what it gets
    #[arg(long)]
    alerts: bool,
    /// Use the PostgreSQL programs in this folder, if several versions are installed
    #[arg(long, env = "PG_BIN_DIR", value_name = "FOLDER")]
    pg_bin_dir: Option<PathBuf>,
}

/// An account of the demo.
struct Account {
    waba_id: &'static str,
    /// Each phone number, and the number of its messages that fail.
    numbers: &'static [(&'static str, u32)],
    scenario: Scenario,
    expected_cause: LockoutCause,
}

impl Account {
    fn failure_count(&self) -> u32 {
        self.numbers.iter().map(|(_, failures)| failures).sum()
    }
}

fn accounts() -> [Account; 6] {
    [
        Account {
            waba_id: "102290129340398",
            numbers: &[("106540352242922", 3), ("106540352242923", 2)],
            scenario: Scenario::Payment,
            expected_cause: LockoutCause::Payment,
        },
        Account {
            waba_id: "104996122399160",
            numbers: &[("110200345501442", 4)],
            scenario: Scenario::Policy,
            expected_cause: LockoutCause::PolicyViolation,
        },
        Account {
            waba_id: "113045678901234",
            numbers: &[("118620431337001", 1)],
            scenario: Scenario::UnverifiedBlocked,
            expected_cause: LockoutCause::BusinessVerification,
        },
        Account {
            waba_id: "509467322246054",
            numbers: &[("520516084470925", 2)],
            scenario: Scenario::DisplayName,
            expected_cause: LockoutCause::Unreported,
        },
        Account {
            waba_id: "215589313241560",
            numbers: &[("224701234567890", 6)],
            scenario: Scenario::NotRegistered,
            expected_cause: LockoutCause::PhoneRegistration,
        },
        Account {
            waba_id: "330119876543210",
            numbers: &[("341200987654321", 1)],
            scenario: Scenario::ExpiredToken,
            expected_cause: LockoutCause::LookupDenied,
        },
    ]
}

pub(super) async fn run(args: DemoArgs) -> Result<(), Failure> {
    start_log(LogFormat::Text, "error")?;
    let mut stop = StopSignals::install()?;
    let subject = match args.story {
        true => "a night in half a minute, as Meta tells it",
        false => "Meta locks six WhatsApp accounts, and you learn why",
    };
    print_line(format_args!("{BOLD}Lockwatch demo{BOLD:#}: {subject}.\n"))?;
    let started = Instant::now();
    let start = move |cancel: &CancellationToken| {
        EmbeddedPostgres::start_temporary(args.pg_bin_dir.as_deref(), true, cancel)
    };
    let Some(embedded) = stop.start_postgres(start).await? else {
        return Ok(());
    };
    let mut receiver = match args.alerts {
        true => Some(AlertReceiver::start().await?),
        false => None,
    };
    let url = receiver.as_ref().map(AlertReceiver::url);
    let demo = Demo::start(started, embedded, url).await?;
    let (told, printed) = watch::channel(0);
    let shown = async {
        match args.story {
            true => demo.tell_story(!args.exit).await?,
            false => demo.run(!args.exit).await?,
        }
        let expected = if args.alerts {
            expected_alerts(args.story)
        } else {
            0
        };
        wait_for_alerts(expected, printed).await
    };
    let result = tokio::select! {
        result = shown => result,
        result = print_alerts(receiver.as_mut(), told) => result,
        _ = stop.wait() => Ok(()),
    };
    demo.service.stop().await;
    let _ = spawn_blocking(move || drop(demo.embedded)).await;
    Ok(result?)
}

/// The alerts that come at once: of six accounts five, the sixth a minute later; of the story the
/// warning, the lock and its end.
const fn expected_alerts(is_story: bool) -> usize {
    if is_story { 3 } else { 5 }
}

/// Waits until that many alerts were printed.
async fn wait_for_alerts(count: usize, mut printed: watch::Receiver<usize>) -> anyhow::Result<()> {
    let waiting = printed.wait_for(|printed| *printed >= count);
    let waited = timeout(ALERTS_TIMEOUT, waiting).await;
    ensure!(waited.is_ok(), "{count} alerts did not come in time");
    Ok(())
}

/// Prints the alerts that the receiver gets, for ever.
async fn print_alerts(
    receiver: Option<&mut AlertReceiver>,
    printed: watch::Sender<usize>,
) -> anyhow::Result<()> {
    let Some(receiver) = receiver else {
        return std::future::pending().await;
    };
    while let Some(alert) = receiver.next().await {
        let text = |pointer| {
            alert
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let (kind, title) = (text("/type"), text("/data/title"));
        print_line(format_args!(
            "\n  {GREEN}alert{GREEN:#} {DIM}{kind}{DIM:#}  {BOLD}{title}{BOLD:#}"
        ))?;
        for line in text("/data/text").lines() {
            print_line(render::wrap_paragraph("        ", line))?;
        }
        printed.send_modify(|count| *count += 1);
    }
    Ok(())
}

struct Demo {
    started: Instant,
    embedded: EmbeddedPostgres,
    simulator: Simulator,
    service: Service,
    db: Pool,
}

impl Demo {
    async fn start(
        started: Instant,
        embedded: EmbeddedPostgres,
        receiver: Option<&str>,
    ) -> anyhow::Result<Self> {
        let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET)
            .await
            .context("cannot start the simulated Meta")?;
        for account in accounts() {
            for (number, _) in account.numbers {
                simulator.set_scenarios(number, [account.scenario.clone()]);
                simulator.set_account(number, account.waba_id);
            }
        }
        let database = Database::parse(&embedded.url())?;
        database.migrate().await?;
        let app_secrets = vec![SecretString::from(APP_SECRET)];
        let graph = GraphSettings {
            proxy: None,
            url: simulator.url(),
            version: "v25.0".to_owned(),
            app_secrets: app_secrets.clone(),
            tokens: Tokens::new(Some(ACCESS_TOKEN.into()), None)?,
        };
        let mut alerting = Alerting::default();
        if let Some(url) = receiver {
            let secret = WebhookSecret::parse(WEBHOOK_SECRET)?;
            let channel = Channel::webhook("demo", &url.into(), secret)?;
            alerting.channels.push(channel);
        }
        let loopback = "127.0.0.1:0".parse().context("a loopback address")?;
        let settings = Settings {
            database: database.clone(),
            listen: loopback,
            admin_listen: loopback,
            admin_token: None,
            app_secrets,
            verify_token: VERIFY_TOKEN.into(),
            graph: Graph::new(graph)?,
            codes: WatchedCodes::default(),
            capturing: Capturing::Lockouts,
            retention: Duration::from_secs(90 * 24 * 3600),
            alerting,
        };
        let service = Service::start(settings).await?;
        Ok(Self {
            started,
            embedded,
            simulator,
            service,
            db: database.pool(),
        })
    }

    /// Posts the callbacks, prints what Lockwatch finds, and checks it against the expected causes.
    async fn run(&self, stay: bool) -> anyhow::Result<()> {
        self.print_setup()?;
        let mut printer = IncidentPrinter::default();
        self.post_callbacks(&mut printer).await?;
        let incidents = self.wait_for_causes(&mut printer).await?;
        let verdict = verify_incidents(&incidents);
        let filter = IncidentFilter::default();
        let page = report::list_incidents(&self.db, &filter, INCIDENTS_LIMIT).await?;
        let mut reports = page.data;
        reports.reverse();
        print_table(&reports)?;
        if stay {
            self.print_suggestions()?;
            loop {
                printer.print_changes(self).await?;
                sleep(POLL_INTERVAL).await;
            }
        }
        verdict
    }

    /// Tells a night: posts what Meta tells when it is due, and prints what Lockwatch makes of it.
    async fn tell_story(&self, stay: bool) -> anyhow::Result<()> {
        for node in [story::ACCOUNT, story::NUMBER] {
            self.simulator.set_scenarios(node, [Scenario::Available]);
        }
        self.print_setup()?;
        let client = Client::builder().no_proxy().build()?;
        let began = Instant::now();
        // The night ends now, so that its times are plausible.
        let start = OffsetDateTime::now_utc() - story::LENGTH;
        let mut told = 0;
        for scene in story::night(start) {
            let due = (scene.at - start) / STORY_SPEED;
            let due = began + Duration::from_secs_f64(due.as_seconds_f64());
            while Instant::now() < due {
                told = self.print_new_changes(told).await?;
                sleep(POLL_INTERVAL).await;
            }
            let (at, who, line) = (story_time(scene.at), scene.who, scene.line);
            print_line(format_args!("  {DIM}{at}{DIM:#}  {who:<10} {line}"))?;
            if let Some(callback) = scene.callback {
                let status = self.post(&client, callback).await?;
                ensure!(status == 200, "the webhook answered {status}");
            }
        }
        let deadline = Instant::now() + CAUSES_TIMEOUT;
        while backlog::fetch(&self.db).await?.inbox_callbacks > 0 {
            ensure!(Instant::now() < deadline, "callbacks are not processed");
            sleep(POLL_INTERVAL).await;
        }
        self.print_new_changes(told).await?;
        let reports = report::list_incidents(&self.db, &IncidentFilter::default(), 1).await?;
        let report = reports.data.first().context("the story has no incident")?;
        print_line("")?;
        super::incidents::print_incident(&self.db, report).await?;
        let incident = &report.incident;
        if stay {
            let page = format!("{}incidents/{}", self.dashboard_url(), incident.id);
            print_line(render::heading(
                "It runs until Ctrl-C. Look at it in a browser:",
            ))?;
            print_line(format_args!("\n{page}"))?;
            std::future::pending::<()>().await;
        }
        let is_as_told = incident.cause == LockoutCause::PolicyViolation
            && incident
                .resolution
                .as_ref()
                .is_some_and(|end| *end == Resolution::Reinstated);
        ensure!(is_as_told, "the incident is not what the story tells");
        Ok(())
    }

    /// Prints the changes of the incident after this one, and returns the id of the latest.
    async fn print_new_changes(&self, after: i64) -> anyhow::Result<i64> {
        let changes = changes::list_after(&self.db, after).await?;
        for change in &changes {
            let (id, kind) = (change.incident_id, change.kind.replace('_', " "));
            let detail = change.detail.as_deref().unwrap_or_default();
            print_line(format_args!(
                "         {YELLOW}Lockwatch{YELLOW:#}  incident {id} {kind} {BOLD}{detail}{BOLD:#}"
            ))?;
        }
        Ok(changes.last().map_or(after, |change| change.id))
    }

    fn webhook_url(&self) -> String {
        format!("http://{}/webhook", self.service.address)
    }

    fn dashboard_url(&self) -> String {
        format!("http://{}/", self.service.admin_address)
    }

    fn print_setup(&self) -> io::Result<()> {
        let version = self.embedded.version();
        let database = format!("its own PostgreSQL {version}, removed at the end");
        let meta = format!("simulated on {}", self.simulator.url());
        for (name, value) in [
            ("database", database),
            ("Meta", meta),
            ("webhook", self.webhook_url()),
            ("dashboard", self.dashboard_url()),
        ] {
            print_line(format_args!("  {DIM}{name:<10}{DIM:#}{value}"))?;
        }
        print_line("")
    }

    /// Posts one callback per account. Two accounts share a callback, and one callback comes twice.
    async fn post_callbacks(&self, printer: &mut IncidentPrinter) -> anyhow::Result<()> {
        let client = Client::builder().no_proxy().build()?;
        let now = OffsetDateTime::now_utc();
        let [a, b, c, d, e, f] = &accounts();
        for (accounts, note) in [
            (&[a, b][..], "two accounts in one body"),
            (&[c], ""),
            (&[d], ""),
            (&[e], ""),
            (&[e], "the same again: changes nothing"),
            (&[f], ""),
        ] {
            let status = self.post(&client, compose_callback(accounts, now)).await?;
            let failures: u32 = accounts.iter().map(|account| account.failure_count()).sum();
            let failures = format_count(failures.into(), "failed delivery", "failed deliveries");
            let note = if note.is_empty() {
                String::new()
            } else {
                format!("  {DIM}{note}{DIM:#}")
            };
            self.print_event(
                "callback",
                format_args!("{GREEN}{status}{GREEN:#}  {failures}{note}"),
            )?;
            printer.print_changes(self).await?;
        }
        Ok(())
    }

    async fn post(&self, client: &Client, body: Vec<u8>) -> anyhow::Result<u16> {
        let response = client
            .post(self.webhook_url())
            .header(signature::SIGNATURE_HEADER, sign(APP_SECRET, &body))
            .body(body)
            .send()
            .await?;
        Ok(response.status().as_u16())
    }

    /// Waits until every incident has a cause, and returns them.
    async fn wait_for_causes(
        &self,
        printer: &mut IncidentPrinter,
    ) -> anyhow::Result<Vec<Incident>> {
        let deadline = Instant::now() + CAUSES_TIMEOUT;
        loop {
            let incidents = printer.print_changes(self).await?;
            let has_cause = |incident: &Incident| incident.cause != LockoutCause::Pending;
            // Callbacks are processed a moment after they are answered.
            if incidents.len() == accounts().len() && incidents.iter().all(has_cause) {
                return Ok(incidents);
            }
            ensure!(
                Instant::now() <= deadline,
                "Meta's answers did not all come within {} s",
                CAUSES_TIMEOUT.as_secs()
            );
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Prints an event with the seconds since the start.
    fn print_event(&self, kind: &str, text: impl Display) -> io::Result<()> {
        let at = self.started.elapsed().as_secs_f32();
        print_line(format_args!("  {DIM}{at:5.2} s{DIM:#}  {kind:<9} {text}"))
    }

    /// Prints what the reader can try while the demo runs.
    fn print_suggestions(&self) -> io::Result<()> {
        let dashboard = self.dashboard_url();
        let webhook = self.webhook_url();
        let database = self.embedded.url();
        let signature = sign(APP_SECRET, SAMPLE_BODY.as_bytes());
        let program = std::env::args()
            .next()
            .unwrap_or_else(|| "lockwatch".to_owned());
        for (heading, commands) in [
            (
                "It runs until Ctrl-C. Look at it in a browser:",
                dashboard.clone(),
            ),
            (
                "Send a failure yourself, and watch it arrive:",
                format!(
                    "curl -i {webhook} \\\n\
                     -H 'X-Hub-Signature-256: {signature}' \\\n\
                     --data-binary '{SAMPLE_BODY}'"
                ),
            ),
            (
                "Ask the API, or the tables:",
                format!(
                    "curl {dashboard}api/v1/incidents/1\n\
                     psql '{database}' \\\n\
                     -c 'select id, waba_id, failure_count, cause from incidents'"
                ),
            ),
            (
                "Export the captures byte for byte, and replay them (here this changes nothing):",
                format!(
                    "DATABASE_URL='{database}' {program} captures export > demo.jsonl\n\
                     META_APP_SECRET={APP_SECRET} {program} replay demo.jsonl --to {webhook}\n"
                ),
            ),
        ] {
            print_line(render::heading(heading))?;
            print_line(format_args!("\n{commands}"))?;
        }
        Ok(())
    }
}

/// The time of day in the story.
fn story_time(at: OffsetDateTime) -> String {
    format!("{:02}:{:02}", at.hour(), at.minute())
}

fn compose_callback(accounts: &[&Account], now: OffsetDateTime) -> Vec<u8> {
    let mut callback = StatusCallback::new().timestamp(now);
    for account in accounts {
        for (number, failures) in account.numbers {
            for n in 1..=*failures {
                let id = message_id("16505551234", &format!("{n:03}{number}"));
                callback = callback.failed(account.waba_id, number, &id);
            }
        }
    }
    callback.into_body()
}

fn verify_incidents(incidents: &[Incident]) -> anyhow::Result<()> {
    for account in accounts() {
        let waba_id = account.waba_id;
        let failures = account.failure_count();
        let incident = incidents
            .iter()
            .find(|incident| incident.waba_id == waba_id)
            .with_context(|| format!("account {waba_id} has no incident"))?;
        if incident.cause != account.expected_cause || incident.failure_count != i64::from(failures)
        {
            bail!(
                "account {waba_id}: expected {failures} failures with cause {}, \
                 found {} with cause {}",
                account.expected_cause,
                incident.failure_count,
                incident.cause
            );
        }
    }
    print_line(format_args!(
        "{GREEN}Six accounts, six incidents, each with its cause.{GREEN:#}"
    ))?;
    Ok(())
}

/// Prints each change of an incident once.
#[derive(Default)]
struct IncidentPrinter {
    /// The failures and the cause that were printed last, by incident.
    printed: BTreeMap<i64, (i64, Word<LockoutCause>)>,
}

impl IncidentPrinter {
    /// Prints what changed since the last call, and returns all incidents, oldest first.
    async fn print_changes(&mut self, demo: &Demo) -> anyhow::Result<Vec<Incident>> {
        let mut incidents =
            incidents::list(&demo.db, &IncidentFilter::default(), INCIDENTS_LIMIT).await?;
        incidents.reverse();
        for incident in &incidents {
            let state = (incident.failure_count, incident.cause.clone());
            let (printed_failures, printed_cause) = self
                .printed
                .insert(incident.id, state)
                .unwrap_or((0, Word::Known(LockoutCause::Pending)));
            if printed_failures != incident.failure_count {
                print_failures(demo, incident, printed_failures == 0).await?;
            }
            if printed_cause != incident.cause {
                let (account, cause) = (&incident.waba_id, &incident.cause);
                demo.print_event(
                    "cause",
                    format_args!("{YELLOW}{account}{YELLOW:#}  {BOLD}{cause}{BOLD:#}"),
                )?;
            }
        }
        Ok(incidents)
    }
}

async fn print_failures(demo: &Demo, incident: &Incident, is_new: bool) -> anyhow::Result<()> {
    let (id, account) = (incident.id, &incident.waba_id);
    let failures = incident.failure_count;
    let text = if is_new {
        let numbers = incidents::list_numbers(&demo.db, &[id], 1)
            .await?
            .remove(&id)
            .map_or(0, |numbers| numbers.count);
        let failures = format_count(failures, "failure", "failures");
        let numbers = format_count(numbers, "number", "numbers");
        format!("{failures} on {numbers}")
    } else {
        format!("{failures} failures now")
    };
    demo.print_event(
        "locked",
        format_args!("{RED}{account}{RED:#}  incident {id}: {text}"),
    )?;
    Ok(())
}

fn print_table(reports: &[IncidentReport]) -> io::Result<()> {
    print_line(format_args!(
        "\n{BOLD} ID  ACCOUNT          STATE  FAILURES  CAUSE{BOLD:#}"
    ))?;
    for report in reports {
        let incident = &report.incident;
        let Incident {
            id,
            waba_id,
            failure_count,
            cause,
            ..
        } = incident;
        let state = state_word(incident);
        print_line(format_args!(
            "{id:>3}  {waba_id:<15}  {RED}{state:<5}{RED:#}  {failure_count:>8}  \
             {BOLD}{cause}{BOLD:#}"
        ))?;
        let summary = incident.cause_summary.as_deref().unwrap_or_default();
        let summary = render::wrap_paragraph("     ", summary);
        print_line(format_args!("{DIM}{summary}{DIM:#}"))?;
        for step in &report.next_steps {
            print_line(render::wrap_step("     ", step))?;
        }
        print_line("")?;
    }
    Ok(())
}
