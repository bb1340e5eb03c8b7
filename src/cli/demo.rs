//! `lockwatch demo`: the whole product in ten seconds, on a real PostgreSQL and a simulated Meta.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use secrecy::SecretString;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::render::{self, BOLD, DIM, GREEN, RED, YELLOW};
use super::serve::StopSignals;
use super::{Failure, say, start_log};
use crate::config::LogFormat;
use crate::embedded::Embedded;
use crate::graph::{Graph, GraphSettings, Tokens};
use crate::lockout::cause::LockoutCause;
use crate::meta::compose::{StatusCallback, message_id};
use crate::meta::signature::{self, sign};
use crate::recorder::Capturing;
use crate::report::text::{count, state};
use crate::report::{self, IncidentReport};
use crate::service::{Service, Settings};
use crate::simulator::{Scenario, Simulator};
use crate::store::incidents::{self, Incident, IncidentFilter};
use crate::store::{Database, Pool, Word};

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Leave after the table: exit 0 only if every incident got the expected cause
    #[arg(long)]
    exit: bool,
    /// Folder of PostgreSQL's programs, where several are installed
    #[arg(long, env = "PG_BIN_DIR", value_name = "FOLDER")]
    pg_bin_dir: Option<std::path::PathBuf>,
}

const APP_SECRET: &str = "demo-app-secret-of-no-app";
const VERIFY_TOKEN: &str = "demo-verify-token";
const ACCESS_TOKEN: &str = "demo-access-token";
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(40);

/// An account of the demonstration.
struct Account {
    waba_id: &'static str,
    /// Its numbers, and how many messages of each fail.
    numbers: &'static [(&'static str, u32)],
    meta_says: Scenario,
    expected: LockoutCause,
}

fn accounts() -> [Account; 6] {
    let account = |waba_id, numbers, meta_says, expected| Account {
        waba_id,
        numbers,
        meta_says,
        expected,
    };
    [
        account(
            "102290129340398",
            &[("106540352242922", 3), ("106540352242923", 2)],
            Scenario::Payment,
            LockoutCause::Payment,
        ),
        account(
            "104996122399160",
            &[("110200345501442", 4)],
            Scenario::Policy,
            LockoutCause::PolicyViolation,
        ),
        account(
            "113045678901234",
            &[("118620431337001", 1)],
            Scenario::Unverified,
            LockoutCause::BusinessVerification,
        ),
        account(
            "509467322246054",
            &[("520516084470925", 2)],
            Scenario::DisplayName,
            LockoutCause::OtherRestriction,
        ),
        account(
            "215589313241560",
            &[("224701234567890", 6)],
            Scenario::Available,
            LockoutCause::Unreported,
        ),
        account(
            "330119876543210",
            &[("341200987654321", 1)],
            Scenario::ExpiredToken,
            LockoutCause::LookupDenied,
        ),
    ]
}

pub(super) async fn run(args: DemoArgs) -> Result<(), Failure> {
    start_log(LogFormat::Text, "error")?;
    let mut stop = StopSignals::install()?;
    say(format_args!(
        "{BOLD}Lockwatch demo{BOLD:#}: Meta locks six WhatsApp accounts, and you learn why.\n"
    ))?;
    let started = Instant::now();
    let start = move |stop: &CancellationToken| {
        Embedded::start_temporary(args.pg_bin_dir.as_deref(), true, stop)
    };
    let Some(embedded) = stop.start_postgres(start).await? else {
        return Ok(());
    };
    let demo = Demo::start(started, embedded).await?;
    let outcome = tokio::select! {
        outcome = demo.play(!args.exit) => outcome,
        _ = stop.wait() => Ok(()),
    };
    demo.service.stop().await;
    let _ = tokio::task::spawn_blocking(move || drop(demo.embedded)).await;
    Ok(outcome?)
}

struct Demo {
    started: Instant,
    embedded: Embedded,
    simulator: Simulator,
    service: Service,
    db: Pool,
}

impl Demo {
    async fn start(started: Instant, embedded: Embedded) -> anyhow::Result<Self> {
        let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET)
            .await
            .context("the simulated Meta")?;
        let database = Database::parse(&embedded.url())?;
        database.migrate().await?;
        let app_secrets = vec![SecretString::from(APP_SECRET)];
        let tokens = Tokens::new(Some(ACCESS_TOKEN.into()), None)?;
        let graph = GraphSettings {
            url: simulator.url(),
            version: "v25.0".to_owned(),
            app_secrets: app_secrets.clone(),
            tokens,
        };
        let loopback = "127.0.0.1:0".parse().context("a loopback address")?;
        let settings = Settings {
            database: database.clone(),
            listen: loopback,
            admin_listen: loopback,
            admin_token: None,
            app_secrets,
            verify_token: VERIFY_TOKEN.into(),
            graph: Graph::new(graph)?,
            capturing: Capturing::Lockouts,
            retention: Duration::from_secs(90 * 24 * 3600),
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

    fn introduce(&self) -> io::Result<()> {
        for (what, is) in [
            (
                "database",
                format!(
                    "PostgreSQL {} of its own, removed in the end",
                    self.embedded.version()
                ),
            ),
            ("Meta", format!("simulated on {}", self.simulator.url())),
            ("webhook", self.webhook()),
            ("dashboard", self.dashboard()),
        ] {
            say(format_args!("  {DIM}{what:<10}{DIM:#}{is}"))?;
        }
        say("")
    }

    fn webhook(&self) -> String {
        format!("http://{}/webhook", self.service.address)
    }

    fn dashboard(&self) -> String {
        format!("http://{}/", self.service.admin_address)
    }

    /// Posts the callbacks, tells what is found, and checks that it is what was expected.
    async fn play(&self, stay: bool) -> anyhow::Result<()> {
        self.introduce()?;
        for account in accounts() {
            for (number, _) in account.numbers {
                self.simulator.script(number, [account.meta_says.clone()]);
                self.simulator.belongs_to(number, account.waba_id);
            }
        }
        let mut watch = Watch::default();
        self.post_callbacks(&mut watch).await?;
        let deadline = Instant::now() + PATIENCE;
        while !watch
            .tell(self)
            .await?
            .iter()
            .all(|incident| incident.cause != LockoutCause::Pending)
        {
            if Instant::now() > deadline {
                bail!(
                    "Meta's answers did not all come within {} s",
                    PATIENCE.as_secs()
                );
            }
            sleep(POLL).await;
        }
        let verdict = self.verify(&watch.tell(self).await?);
        let mut reports = report::incidents(&self.db, &IncidentFilter::default(), 100)
            .await?
            .data;
        reports.reverse();
        print_table(&reports)?;
        if stay {
            self.invite()?;
            loop {
                watch.tell(self).await?;
                sleep(POLL).await;
            }
        }
        verdict
    }

    /// One callback per account, but two accounts share one, and one callback comes twice.
    async fn post_callbacks(&self, watch: &mut Watch) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let now = OffsetDateTime::now_utc();
        let compose = |accounts: &[&Account]| {
            let mut callback = StatusCallback::new().at(now);
            for account in accounts {
                for (number, failures) in account.numbers {
                    for n in 1..=*failures {
                        let id = message_id("16505551234", &format!("{n:03}{number}"));
                        callback = callback.failed(account.waba_id, number, &id);
                    }
                }
            }
            callback.into_body()
        };
        let [a, b, c, d, e, f] = &accounts();
        for (accounts, note) in [
            (&[a, b][..], "two accounts in one body"),
            (&[c], ""),
            (&[d], ""),
            (&[e], ""),
            (&[e], "the same again: changes nothing"),
            (&[f], ""),
        ] {
            let body = compose(accounts);
            let failures: u32 = accounts
                .iter()
                .flat_map(|account| account.numbers)
                .map(|(_, n)| n)
                .sum();
            let signed = sign(APP_SECRET, &body);
            let answer = client
                .post(self.webhook())
                .header(signature::HEADER, signed)
                .body(body)
                .send()
                .await?;
            let status = answer.status().as_u16();
            let note = if note.is_empty() {
                String::new()
            } else {
                format!("  {DIM}{note}{DIM:#}")
            };
            let failed = count(failures.into(), "failed delivery", "failed deliveries");
            self.line(
                "callback",
                format_args!("{GREEN}{status}{GREEN:#}  {failed}{note}"),
            )?;
            watch.tell(self).await?;
        }
        Ok(())
    }

    fn line(&self, what: &str, text: impl Display) -> io::Result<()> {
        let at = self.started.elapsed().as_secs_f32();
        say(format_args!("  {DIM}{at:5.2} s{DIM:#}  {what:<9} {text}"))
    }

    fn verify(&self, found: &[Incident]) -> anyhow::Result<()> {
        for account in accounts() {
            let failures: u32 = account.numbers.iter().map(|(_, n)| n).sum();
            let incident = found
                .iter()
                .find(|incident| incident.waba_id == account.waba_id);
            let incident =
                incident.with_context(|| format!("account {} has no incident", account.waba_id))?;
            if incident.cause != account.expected || incident.failure_count != i64::from(failures) {
                bail!(
                    "account {}: expected {failures} failures by {}, found {} by {}",
                    account.waba_id,
                    account.expected,
                    incident.failure_count,
                    incident.cause
                );
            }
        }
        say(format_args!(
            "{GREEN}Six accounts, six incidents, each with its cause.{GREEN:#}"
        ))?;
        Ok(())
    }

    /// What to try while it runs.
    fn invite(&self) -> io::Result<()> {
        let body = r#"{"entry": [{"id": "102290129340398", "changes": [{"value": {
  "metadata": {"phone_number_id": "106540352242922"},
  "statuses": [{"id": "wamid.mine", "status": "failed", "errors": [{"code": 131031}]}]}}]}]}"#;
        say(render::heading(
            "It stays up until Ctrl-C. Look at it in a browser:",
        ))?;
        say(format_args!("\n{}", self.dashboard()))?;
        say(render::heading(
            "Send a failure yourself, and watch it arrive:",
        ))?;
        say(format_args!("\ncurl -i {} \\", self.webhook()))?;
        say(format_args!(
            "-H 'X-Hub-Signature-256: {}' \\",
            sign(APP_SECRET, body.as_bytes())
        ))?;
        say(format_args!("--data-binary '{body}'"))?;
        say(render::heading("Ask the API, or the tables:"))?;
        say(format_args!(
            "\ncurl {}api/v1/incidents/1",
            self.dashboard()
        ))?;
        say(format_args!("psql '{}' \\", self.embedded.url()))?;
        say(format_args!(
            "-c 'select id, waba_id, failure_count, cause from incidents'"
        ))?;
        let program = std::env::args()
            .next()
            .unwrap_or_else(|| "lockwatch".to_owned());
        say(render::heading(
            "Or export what was kept, byte for byte, and play it back (here it changes nothing):",
        ))?;
        say(format_args!(
            "\nDATABASE_URL='{}' {program} captures export > demo.jsonl",
            self.embedded.url()
        ))?;
        say(format_args!(
            "META_APP_SECRET={APP_SECRET} {program} replay demo.jsonl --to {}\n",
            self.webhook()
        ))
    }
}

/// What was told already, so that only news is.
#[derive(Default)]
struct Watch {
    told: BTreeMap<i64, (i64, Word<LockoutCause>)>,
}

impl Watch {
    async fn tell(&mut self, demo: &Demo) -> anyhow::Result<Vec<Incident>> {
        let mut incidents = incidents::list(&demo.db, &IncidentFilter::default(), 100).await?;
        incidents.reverse();
        for incident in &incidents {
            let (id, account) = (incident.id, &incident.waba_id);
            let failures = incident.failure_count;
            let (told_failures, told_cause) = self
                .told
                .insert(id, (failures, incident.cause.clone()))
                .unwrap_or((0, Word::Known(LockoutCause::Pending)));
            if told_failures == 0 {
                let affected = incidents::numbers(&demo.db, &[id], 1)
                    .await?
                    .remove(&id)
                    .map_or(0, |numbers| numbers.count);
                let failed = count(failures, "failure", "failures");
                let numbers = count(affected, "number", "numbers");
                demo.line(
                    "locked",
                    format_args!("{RED}{account}{RED:#}  incident {id}: {failed} on {numbers}"),
                )?;
            } else if told_failures != failures {
                demo.line(
                    "locked",
                    format_args!("{RED}{account}{RED:#}  incident {id}: {failures} failures now"),
                )?;
            }
            if told_cause != incident.cause {
                demo.line(
                    "cause",
                    format_args!(
                        "{YELLOW}{account}{YELLOW:#}  {BOLD}{}{BOLD:#}",
                        incident.cause
                    ),
                )?;
            }
        }
        Ok(incidents)
    }
}

fn print_table(reports: &[IncidentReport]) -> io::Result<()> {
    say(format_args!(
        "\n{BOLD} ID  ACCOUNT          STATE  FAILURES  CAUSE{BOLD:#}"
    ))?;
    for IncidentReport {
        incident,
        next_steps,
        ..
    } in reports
    {
        let Incident {
            id,
            waba_id,
            failure_count,
            cause,
            ..
        } = incident;
        let state = state(incident);
        say(format_args!(
            "{id:>3}  {waba_id:<15}  {RED}{state:<5}{RED:#}  {failure_count:>8}  {BOLD}{cause}{BOLD:#}"
        ))?;
        let summary = incident.cause_summary.as_deref().unwrap_or_default();
        say(format_args!(
            "{DIM}{}{DIM:#}",
            render::paragraph("     ", summary)
        ))?;
        for step in next_steps {
            say(render::step("     ", step))?;
        }
        say("")?;
    }
    Ok(())
}
