//! `lockwatch captures list|export`

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime};

use super::{Failure, connect, render, say};
use crate::config::DataArgs;
use crate::meta::capture::Capture;
use crate::meta::redact::Redaction;
use crate::store::captures::{self, Filter, Position};
use crate::store::{Pool, StoreError, bounded};

/// Captures that are found ahead of reading their bodies.
const AHEAD: i64 = 10_000;

#[derive(Debug, Subcommand)]
pub(super) enum CapturesCommand {
    /// The newest captures first, without their bodies
    List(ListArgs),
    /// Write captures as files, the oldest first, for replay
    Export(ExportArgs),
}

#[derive(Debug, Args)]
struct FilterArgs {
    /// Received at this time or later (2026-11-22 or 2026-11-22T18:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<OffsetDateTime>,
    /// Received before this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<OffsetDateTime>,
    /// About this account, alone or among others
    #[arg(long, value_name = "ID")]
    waba_id: Option<String>,
    /// With failures of this incident
    #[arg(long, value_name = "ID")]
    incident: Option<i64>,
    /// Only those with something in quarantine
    #[arg(long)]
    quarantined: bool,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// How many at the most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1000))]
    limit: i64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// A folder, made if need be: one file per capture. Without: lines on stdout
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Replace recipients by pseudonyms, in message ids too, and mask what people wrote. The same
    /// recipient gets the same pseudonym in every export of this database
    #[arg(long)]
    redact: bool,
    #[command(flatten)]
    data: DataArgs,
}

impl From<FilterArgs> for Filter {
    fn from(args: FilterArgs) -> Self {
        let FilterArgs { since, until, waba_id, incident, quarantined } = args;
        Self { since, until, waba_id, incident, quarantined }
    }
}

fn moment(text: &str) -> Result<OffsetDateTime, String> {
    let day = time::macros::format_description!("[year]-[month]-[day]");
    let midnight = |_| Date::parse(text, day).map(|date| date.midnight().assume_utc());
    OffsetDateTime::parse(text, &Rfc3339)
        .or_else(midnight)
        .map_err(|_| "not a day (2026-11-22) or a time (2026-11-22T18:00:00Z)".to_owned())
}

pub(super) async fn run(command: CapturesCommand) -> Result<(), Failure> {
    match command {
        CapturesCommand::List(args) => list(args).await,
        CapturesCommand::Export(args) => export(args).await,
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let captures = bounded(captures::list(&db, &args.filter.into(), args.limit)).await;
    let captures = captures.context("cannot list captures")?;
    if args.json {
        say(format_args!("{:#}", json!(captures)))?;
    } else if captures.is_empty() {
        anstream::eprintln!("No captures.");
    } else {
        say(render::captures(&captures))?;
    }
    Ok(())
}

async fn export(args: ExportArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let redaction = match args.redact {
        true => Some(Redaction::new(
            &bounded(captures::pseudonym_key(&db)).await.context("cannot read the pseudonyms' key")?,
        )),
        false => None,
    };
    let mut out = match args.out {
        Some(folder) => {
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
            Out::Folder(folder)
        }
        None => Out::Lines(BufWriter::new(io::stdout())),
    };
    let mut reader = Reader { db, filter: args.filter.into(), after: None, ahead: Vec::new() };
    let mut exported = 0_u64;
    loop {
        let page = reader.next().await.context("cannot read captures")?;
        if page.is_empty() {
            break;
        }
        for capture in page {
            out.write(&redaction.as_ref().map_or(capture.clone(), |redaction| redaction.capture(&capture)))?;
            exported += 1;
        }
    }
    out.finish()?;
    match exported {
        0 => anstream::eprintln!("No captures."),
        1 => anstream::eprintln!("1 capture exported."),
        _ => anstream::eprintln!("{exported} captures exported."),
    }
    Ok(())
}

/// Reads captures a few at a time, however many there are.
struct Reader {
    db: Pool,
    filter: Filter,
    after: Option<Position>,
    ahead: Vec<Position>,
}

impl Reader {
    /// The next few; none at the end.
    async fn next(&mut self) -> Result<Vec<Capture>, StoreError> {
        loop {
            if self.ahead.is_empty() {
                self.ahead = bounded(captures::find(&self.db, &self.filter, self.after, AHEAD)).await?;
            }
            let Some(last) = self.ahead.last().copied() else {
                return Ok(Vec::new());
            };
            let page = bounded(captures::read(&self.db, &self.ahead)).await?;
            // Those that are gone meanwhile are not waited for.
            let read = page.last().map_or(last, |(position, _)| *position);
            self.after = Some(read);
            self.ahead.retain(|position| *position > read);
            if !page.is_empty() {
                return Ok(page.into_iter().map(|(_, capture)| capture).collect());
            }
        }
    }
}

enum Out {
    Folder(PathBuf),
    Lines(BufWriter<io::Stdout>),
}

impl Out {
    fn write(&mut self, capture: &Capture) -> Result<(), Failure> {
        let line = capture.to_line() + "\n";
        match self {
            Self::Lines(out) => Ok(out.write_all(line.as_bytes())?),
            Self::Folder(folder) => {
                let path = folder.join(capture.file_name());
                Ok(fs::write(&path, line).with_context(|| format!("cannot write {}", path.display()))?)
            }
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Lines(mut out) => out.flush(),
            Self::Folder(_) => Ok(()),
        }
    }
}
