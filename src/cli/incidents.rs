//! `lockwatch incidents list|show|resolve`

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{Failure, connect, render, say};
use crate::config::DataArgs;
use crate::store::bounded;
use crate::store::incidents::{self, Incident, Resolved, State};

#[derive(Debug, Subcommand)]
pub(super) enum IncidentsCommand {
    /// The newest incidents first
    List(ListArgs),
    /// One incident: its cause, what to do, its numbers and checks
    Show(ShowArgs),
    /// Say that an incident is over
    Resolve(ResolveArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Which incidents
    #[arg(long, default_value = "all")]
    state: StateArg,
    /// How many at the most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1000))]
    limit: i64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StateArg {
    Open,
    Resolved,
    All,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The incident's number
    id: i64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: DataArgs,
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

/// Numbers and checks shown of one incident.
const SHOWN: i64 = 20;

pub(super) async fn run(command: IncidentsCommand) -> Result<(), Failure> {
    match command {
        IncidentsCommand::List(args) => list(args).await,
        IncidentsCommand::Show(args) => show(args).await,
        IncidentsCommand::Resolve(args) => resolve(args).await,
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let state = match args.state {
        StateArg::Open => State::Open,
        StateArg::Resolved => State::Resolved,
        StateArg::All => State::All,
    };
    let incidents = bounded(incidents::list(&db, state, args.limit)).await.context("cannot list incidents")?;
    if args.json {
        let objects: Vec<Value> = incidents.iter().map(to_json).collect();
        say(format_args!("{:#}", json!(objects)))?;
    } else if incidents.is_empty() {
        anstream::eprintln!("No incidents. That is good news, if callbacks arrive: see the README's set-up.");
    } else {
        say(render::incidents(&incidents))?;
    }
    Ok(())
}

async fn show(args: ShowArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let incident = bounded(incidents::find(&db, args.id)).await.context("cannot read the incident")?;
    let incident = incident.ok_or_else(|| anyhow!("there is no incident {}", args.id))?;
    let numbers = bounded(incidents::numbers(&db, args.id, SHOWN)).await.context("cannot read its numbers")?;
    let checks = bounded(incidents::latest_checks(&db, args.id, SHOWN)).await.context("cannot read its checks")?;
    if args.json {
        let mut object = to_json(&incident);
        object["affected_numbers"] = json!(numbers);
        object["health_checks"] = json!(checks);
        say(format_args!("{object:#}"))?;
    } else {
        say(render::incident(&incident))?;
        say(render::heading("Affected numbers"))?;
        say(render::numbers(&numbers))?;
        say(render::heading("Latest health checks"))?;
        say(render::checks(&checks))?;
    }
    Ok(())
}

async fn resolve(args: ResolveArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let resolved =
        bounded(incidents::resolve(&db, args.id, args.note.as_deref())).await.context("cannot resolve it")?;
    match resolved {
        Resolved::Now(waba_id) => anstream::eprintln!("Incident {} of account {waba_id} is resolved.", args.id),
        Resolved::Before => return Err(anyhow!("incident {} was resolved before", args.id).into()),
        Resolved::Unknown => return Err(anyhow!("there is no incident {}", args.id).into()),
    }
    Ok(())
}

fn to_json(incident: &Incident) -> Value {
    let mut object = json!(incident);
    object["next_steps"] = json!(incident.next_steps());
    object
}
