//! `lockwatch incidents list|show|acknowledge|resolve|reopen`

use std::io::Write;

use anyhow::{Context, anyhow};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde_json::json;
use time::OffsetDateTime;

use super::{Failure, chart, check_time_range, connect, print_line, render};
use crate::config::DataArgs;
use crate::lockout::cause::LockoutCause;
use crate::lockout::note::Note;
use crate::lockout::person::Person;
use crate::meta::ids::WabaId;
use crate::report::csv::{self, Row};
use crate::report::timeline::load_timeline;
use crate::report::{self, IncidentReport, text};
use crate::store::by_hand::{self, Done};
use crate::store::incidents::{IncidentFilter, IncidentState};
use crate::store::{Pool, bounded};

/// Affected numbers that are shown of one incident.
const NUMBERS_LIMIT: usize = 20;
/// Health checks that are shown of one incident.
const CHECKS_LIMIT: i64 = 10;
/// Changes that are shown of one incident.
const CHANGES_LIMIT: i64 = 20;

#[derive(Debug, Subcommand)]
pub(super) enum IncidentsCommand {
    /// List incidents, newest first
    List(ListArgs),
    /// Show one incident: cause, next steps, timeline, numbers and health checks
    Show(ShowArgs),
    /// Acknowledge an incident: reminders stop
    Acknowledge(ByHandArgs),
    /// Resolve an incident by hand
    Resolve(ResolveArgs),
    /// Open an incident again: its end was wrong
    Reopen(ByHandArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Select open or resolved incidents
    #[arg(
        long,
        default_value = "all",
        hide_possible_values = true,
        value_name = "open|resolved|all"
    )]
    state: IncidentState,
    /// Select incidents of this account
    #[arg(long, value_name = "ID", value_parser = WabaId::parse)]
    waba_id: Option<WabaId>,
    /// Select incidents with this cause
    #[arg(long, value_parser = cause_parser())]
    cause: Option<LockoutCause>,
    /// Select incidents opened at or after this time: 2026-11-22, "2026-11-22 18:00:00 UTC", or 36h
    /// for 36 hours ago
    #[arg(long, value_name = "TIME", value_parser = text::parse_time)]
    since: Option<OffsetDateTime>,
    /// Select incidents opened before this time
    #[arg(long, value_name = "TIME", value_parser = text::parse_time)]
    until: Option<OffsetDateTime>,
    /// List at most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1000))]
    limit: i64,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Id of the incident
    id: i64,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
pub(super) struct ResolveArgs {
    /// Keep this text with the incident, such as the reason
    #[arg(long)]
    note: Option<String>,
    #[command(flatten)]
    by_hand: ByHandArgs,
}

#[derive(Debug, Args)]
pub(super) struct ByHandArgs {
    /// Id of the incident
    id: i64,
    /// Keep this name with the change
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    #[command(flatten)]
    data: DataArgs,
}

impl ByHandArgs {
    fn person(&self) -> Option<Person> {
        self.by.as_deref().and_then(Person::parse)
    }
}

#[derive(Debug, Args)]
struct FormatArgs {
    /// Print JSON: the objects of the API
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print CSV for a spreadsheet
    #[arg(long)]
    csv: bool,
}

pub(super) async fn run(command: IncidentsCommand) -> Result<(), Failure> {
    match command {
        IncidentsCommand::List(args) => list(args).await,
        IncidentsCommand::Show(args) => show(args).await,
        IncidentsCommand::Acknowledge(args) => acknowledge(args).await,
        IncidentsCommand::Resolve(args) => resolve(args).await,
        IncidentsCommand::Reopen(args) => reopen(args).await,
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    check_time_range(args.since, args.until)?;
    let db = connect(&args.data).await?;
    let is_filtered = args.state != IncidentState::All
        || args.waba_id.is_some()
        || args.cause.is_some()
        || args.since.is_some()
        || args.until.is_some();
    let filter = IncidentFilter {
        state: args.state,
        waba_id: args.waba_id,
        cause: args.cause,
        since: args.since,
        until: args.until,
        ..IncidentFilter::default()
    };
    let page = report::list_incidents(&db, &filter, args.limit)
        .await
        .context("cannot list incidents")?;
    if args.format.json {
        print_line(format_args!("{:#}", json!(page.data)))?;
    } else if args.format.csv {
        print_csv(&page.data)?;
    } else if !page.data.is_empty() {
        print_line(render::incident_table(&page.data))?;
    } else if is_filtered {
        anstream::eprintln!("No such incidents.");
    } else {
        anstream::eprintln!(
            "No incidents. This is good news if callbacks arrive: see the set-up in the README."
        );
    }
    if page.next.is_some() {
        anstream::eprintln!("The newest {}; --limit shows more.", args.limit);
    }
    Ok(())
}

async fn show(args: ShowArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let report = report::find_incident(&db, args.id)
        .await
        .context("cannot read the incident")?
        .ok_or_else(|| anyhow!("there is no incident {}", args.id))?;
    if args.format.json {
        Ok(print_line(format_args!("{:#}", json!(report)))?)
    } else if args.format.csv {
        print_csv(&[report])
    } else {
        Ok(print_incident(&db, &report).await?)
    }
}

/// Prints an incident with its timeline, numbers and look-ups.
pub(super) async fn print_incident(db: &Pool, report: &IncidentReport) -> anyhow::Result<()> {
    let checks = report::list_checks(db, report.incident.id, None, CHECKS_LIMIT)
        .await
        .context("cannot read the health checks")?;
    let checks = checks.map_or_else(Vec::new, |page| page.data);
    let changes = report::list_changes(db, report.incident.id, None, CHANGES_LIMIT)
        .await
        .context("cannot read the changes")?;
    let changes = changes.map_or_else(Vec::new, |page| page.data);
    let columns = chart::column_count(render::terminal_width());
    let timeline = load_timeline(db, report, OffsetDateTime::now_utc(), columns)
        .await
        .context("cannot read the timeline")?;
    print_line(render::incident_details(report))?;
    print_line(render::heading("Timeline"))?;
    print_line(chart::draw_timeline(&report.incident, &timeline))?;
    print_line(render::heading("Affected numbers"))?;
    print_line(render::number_table(report, NUMBERS_LIMIT))?;
    print_line(render::heading("History"))?;
    print_line(render::change_table(&changes))?;
    print_line(render::heading("Latest health checks"))?;
    print_line(render::check_table(&checks))?;
    Ok(())
}

async fn acknowledge(args: ByHandArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let person = args.person();
    let done = bounded(by_hand::acknowledge(&db, args.id, person.as_ref()));
    let done = done.await.context("cannot acknowledge the incident")?;
    print_done(args.id, done, "acknowledged")
}

async fn resolve(
    ResolveArgs {
        note,
        by_hand: args,
    }: ResolveArgs,
) -> Result<(), Failure> {
    let note =
        Note::parse(note.as_deref()).map_err(|error| Failure::Usage(format!("--note: {error}")))?;
    let db = connect(&args.data).await?;
    let person = args.person();
    let done = bounded(by_hand::resolve(
        &db,
        args.id,
        note.as_str(),
        person.as_ref(),
    ));
    let done = done.await.context("cannot resolve the incident")?;
    print_done(args.id, done, "resolved")
}

async fn reopen(args: ByHandArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let person = args.person();
    let done = bounded(by_hand::reopen(&db, args.id, person.as_ref()));
    let done = done.await.context("cannot open the incident again")?;
    print_done(args.id, done, "open again")
}

fn print_done(id: i64, done: Done, state: &str) -> Result<(), Failure> {
    let waba_id = done.map_err(anyhow::Error::new)?;
    anstream::eprintln!("Incident {id} of account {waba_id} is {state}.");
    Ok(())
}

/// Builds a parser that accepts the words of the causes, and lists them in `--help`.
fn cause_parser() -> impl TypedValueParser<Value = LockoutCause> {
    PossibleValuesParser::new(LockoutCause::ALL.map(LockoutCause::as_str))
        .map(|word| LockoutCause::parse(&word).expect("the parser accepts only known words"))
}

fn print_csv<T: Row>(rows: &[T]) -> Result<(), Failure> {
    Ok(anstream::stdout().write_all(csv::format_table(rows).as_bytes())?)
}
