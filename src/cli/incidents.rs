//! `lockwatch incidents list|show|resolve|reopen`

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
use crate::meta::ids::WabaId;
use crate::report::csv::{self, Row};
use crate::report::timeline::load_timeline;
use crate::report::{self, IncidentReport, text};
use crate::store::incident_life::{self, ManualReopening, ManualResolution};
use crate::store::incidents::{IncidentFilter, IncidentState};
use crate::store::{Pool, bounded};

/// Affected numbers that are shown of one incident.
const NUMBERS_LIMIT: usize = 20;
/// Health checks that are shown of one incident.
const CHECKS_LIMIT: i64 = 10;

#[derive(Debug, Subcommand)]
pub(super) enum IncidentsCommand {
    /// List incidents, newest first
    List(ListArgs),
    /// Show one incident: cause, next steps, timeline, numbers and health checks
    Show(ShowArgs),
    /// Resolve an incident by hand
    Resolve(ResolveArgs),
    /// Open an incident again: its end was wrong
    Reopen(ReopenArgs),
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
    /// Id of the incident
    id: i64,
    /// Keep this text with the incident, such as the reason
    #[arg(long)]
    note: Option<String>,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
pub(super) struct ReopenArgs {
    /// Id of the incident
    id: i64,
    #[command(flatten)]
    data: DataArgs,
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
    let columns = chart::column_count(render::terminal_width());
    let timeline = load_timeline(db, report, OffsetDateTime::now_utc(), columns)
        .await
        .context("cannot read the timeline")?;
    print_line(render::incident_details(report))?;
    print_line(render::heading("Timeline"))?;
    print_line(chart::draw_timeline(&report.incident, &timeline))?;
    print_line(render::heading("Affected numbers"))?;
    print_line(render::number_table(report, NUMBERS_LIMIT))?;
    print_line(render::heading("Latest health checks"))?;
    print_line(render::check_table(&checks))?;
    Ok(())
}

async fn resolve(args: ResolveArgs) -> Result<(), Failure> {
    let note = Note::parse(args.note.as_deref())
        .map_err(|error| Failure::Usage(format!("--note: {error}")))?;
    let db = connect(&args.data).await?;
    let resolution = bounded(incident_life::resolve_by_hand(&db, args.id, note.as_str()))
        .await
        .context("cannot resolve the incident")?;
    match resolution {
        ManualResolution::Resolved(waba_id) => {
            anstream::eprintln!("Incident {} of account {waba_id} is resolved.", args.id);
            Ok(())
        }
        ManualResolution::AlreadyResolved => {
            Err(anyhow!("incident {} was resolved before", args.id).into())
        }
        ManualResolution::Unknown => Err(anyhow!("there is no incident {}", args.id).into()),
    }
}

async fn reopen(args: ReopenArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let id = args.id;
    let reopening = bounded(incident_life::reopen_by_hand(&db, id))
        .await
        .context("cannot open the incident again")?;
    match reopening {
        ManualReopening::Reopened(waba_id) => {
            anstream::eprintln!("Incident {id} of account {waba_id} is open again.");
            Ok(())
        }
        ManualReopening::AlreadyOpen => Err(anyhow!("incident {id} is open").into()),
        ManualReopening::Followed(later) => Err(anyhow!(
            "incident {id} stays as it is: incident {later} of its account is later"
        )
        .into()),
        ManualReopening::Unknown => Err(anyhow!("there is no incident {id}").into()),
    }
}

/// Builds a parser that accepts the words of the causes, and lists them in `--help`.
fn cause_parser() -> impl TypedValueParser<Value = LockoutCause> {
    PossibleValuesParser::new(LockoutCause::ALL.map(LockoutCause::as_str))
        .map(|word| LockoutCause::parse(&word).expect("the parser accepts only known words"))
}

fn print_csv<T: Row>(rows: &[T]) -> Result<(), Failure> {
    Ok(anstream::stdout().write_all(csv::format_table(rows).as_bytes())?)
}
