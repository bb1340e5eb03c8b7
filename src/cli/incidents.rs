//! `lockwatch incidents list|show|resolve`

use anyhow::{Context, anyhow};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde_json::json;
use time::OffsetDateTime;

use super::{Failure, chart, connect, render, say};
use crate::config::DataArgs;
use crate::lockout::cause::LockoutCause;
use crate::lockout::change::Change;
use crate::lockout::note::Note;
use crate::meta::ids::WabaId;
use crate::report::csv::{self, Row};
use crate::report::timeline::timeline;
use crate::report::{self, text};
use crate::store::bounded;
use crate::store::incident_life::{self, ManualResolution};
use crate::store::incidents::{IncidentFilter, IncidentState};

#[derive(Debug, Subcommand)]
pub(super) enum IncidentsCommand {
    /// The newest incidents first
    List(ListArgs),
    /// One incident: its cause, what to do, its timeline, numbers and checks
    Show(ShowArgs),
    /// Say that an incident is over
    Resolve(ResolveArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Which incidents
    #[arg(
        long,
        default_value = "all",
        hide_possible_values = true,
        value_name = "open|resolved|all"
    )]
    state: IncidentState,
    /// Of this account
    #[arg(long, value_name = "ID", value_parser = WabaId::parse)]
    waba_id: Option<WabaId>,
    /// With this cause
    #[arg(long, value_parser = cause_parser())]
    cause: Option<LockoutCause>,
    /// Opened at this time or later: 2026-11-22, "2026-11-22 18:00:00 UTC", or 36h for so long ago
    #[arg(long, value_name = "TIME", value_parser = text::parse_moment)]
    since: Option<OffsetDateTime>,
    /// Opened before this time
    #[arg(long, value_name = "TIME", value_parser = text::parse_moment)]
    until: Option<OffsetDateTime>,
    /// How many at the most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1000))]
    limit: i64,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The incident's number
    id: i64,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
struct FormatArgs {
    /// Print JSON: the objects of the API
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print CSV, for a spreadsheet
    #[arg(long)]
    csv: bool,
}

#[derive(Debug, Args)]
pub(super) struct ResolveArgs {
    /// The incident's number
    id: i64,
    /// Why, for those who read it later
    #[arg(long)]
    note: Option<String>,
    #[command(flatten)]
    data: DataArgs,
}

/// Shown of one incident.
const NUMBERS: usize = 20;
const CHECKS: i64 = 10;

pub(super) async fn run(command: IncidentsCommand) -> Result<(), Failure> {
    match command {
        IncidentsCommand::List(args) => list(args).await,
        IncidentsCommand::Show(args) => show(args).await,
        IncidentsCommand::Resolve(args) => resolve(args).await,
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let ListArgs {
        state,
        waba_id,
        cause,
        since,
        until,
        limit,
        format,
        data,
    } = args;
    if since
        .zip(until)
        .is_some_and(|(since, until)| since >= until)
    {
        return Err(Failure::Usage("--since is not before --until".to_owned()));
    }
    let db = connect(&data).await?;
    let has_words = waba_id.is_some() || cause.is_some();
    let has_times = since.is_some() || until.is_some();
    let is_filtered = state != IncidentState::All || has_words || has_times;
    let filter = IncidentFilter {
        state,
        waba_id,
        cause,
        since,
        until,
        ..IncidentFilter::default()
    };
    let page = report::incidents(&db, &filter, limit)
        .await
        .context("cannot list incidents")?;
    if format.json {
        say(format_args!("{:#}", json!(page.data)))?;
    } else if format.csv {
        print_csv(&page.data)?;
    } else if page.data.is_empty() && is_filtered {
        anstream::eprintln!("No such incidents.");
    } else if page.data.is_empty() {
        anstream::eprintln!(
            "No incidents. That is good news, if callbacks arrive: see the README's set-up."
        );
    } else {
        say(render::incidents(&page.data))?;
    }
    if page.next.is_some() {
        anstream::eprintln!("The newest {limit}; --limit shows more.");
    }
    Ok(())
}

async fn show(args: ShowArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let report = report::incident(&db, args.id)
        .await
        .context("cannot read the incident")?;
    let report = report.ok_or_else(|| anyhow!("there is no incident {}", args.id))?;
    if args.format.json {
        return Ok(say(format_args!("{:#}", json!(report)))?);
    }
    if args.format.csv {
        return print_csv(&[report]);
    }
    let checks = report::checks(&db, args.id, None, CHECKS)
        .await
        .context("cannot read its checks")?;
    let columns = chart::columns(render::width());
    let timeline = timeline(&db, &report, OffsetDateTime::now_utc(), columns)
        .await
        .context("cannot draw it")?;
    say(render::incident(&report))?;
    say(render::heading("Timeline"))?;
    say(chart::timeline(&report.incident, &timeline))?;
    say(render::heading("Affected numbers"))?;
    say(render::numbers(&report, NUMBERS))?;
    say(render::heading("Latest health checks"))?;
    say(render::checks(
        &checks.map_or_else(Vec::new, |page| page.data),
    ))?;
    Ok(())
}

async fn resolve(args: ResolveArgs) -> Result<(), Failure> {
    let note = Note::parse(args.note.as_deref())
        .map_err(|error| Failure::Usage(format!("--note: {error}")))?;
    let db = connect(&args.data).await?;
    let resolved = bounded(incident_life::resolve_by_hand(&db, args.id, note.as_str()))
        .await
        .context("cannot resolve it")?;
    match resolved {
        ManualResolution::Resolved(Change { waba_id, .. }) => {
            anstream::eprintln!("Incident {} of account {waba_id} is resolved.", args.id);
            Ok(())
        }
        ManualResolution::AlreadyResolved => {
            Err(anyhow!("incident {} was resolved before", args.id).into())
        }
        ManualResolution::Unknown => Err(anyhow!("there is no incident {}", args.id).into()),
    }
}

/// Accepts the words of the causes, and names them in `--help`.
fn cause_parser() -> impl TypedValueParser<Value = LockoutCause> {
    PossibleValuesParser::new(LockoutCause::ALL.map(LockoutCause::as_str))
        .map(|word| LockoutCause::parse(&word).expect("only known words are accepted"))
}

fn print_csv<T: Row>(rows: &[T]) -> Result<(), Failure> {
    use std::io::Write;
    Ok(anstream::stdout().write_all(csv::table(rows).as_bytes())?)
}
