//! `lockwatch captures list|export`

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use serde_json::json;
use time::OffsetDateTime;

use super::{Failure, connect, render, say};
use crate::config::DataArgs;
use crate::meta::capture::Capture;
use crate::meta::redact::Redaction;
use crate::report::text;
use crate::store::captures::{self, Filter, Position};
use crate::store::{Pool, StoreError, bounded, incidents};

/// Captures that are found ahead of reading their bodies.
const AHEAD: i64 = 100_000;

#[derive(Debug, Subcommand)]
pub(super) enum CapturesCommand {
    /// The newest captures first, without their bodies
    List(ListArgs),
    /// Write captures as files, the oldest first, for replay
    Export(ExportArgs),
}

#[derive(Debug, Args)]
struct FilterArgs {
    /// Received at this time or later: 2026-11-22, "2026-11-22 18:00:00 UTC", or 36h for so long ago
    #[arg(long, value_name = "TIME", value_parser = text::parse_moment)]
    since: Option<OffsetDateTime>,
    /// Received before this time
    #[arg(long, value_name = "TIME", value_parser = text::parse_moment)]
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

impl FilterArgs {
    /// Refuses what can only be a mistake.
    async fn filter(self, db: &Pool) -> Result<Filter, Failure> {
        let Self {
            since,
            until,
            waba_id,
            incident,
            quarantined,
        } = self;
        if since
            .zip(until)
            .is_some_and(|(since, until)| since >= until)
        {
            return Err(Failure::Usage("--since is not before --until".to_owned()));
        }
        if let Some(id) = incident
            && bounded(incidents::find(db, id))
                .await
                .context("cannot read the incident")?
                .is_none()
        {
            return Err(anyhow!("there is no incident {id}").into());
        }
        Ok(Filter {
            since,
            until,
            waba_id,
            incident,
            quarantined,
        })
    }
}

pub(super) async fn run(command: CapturesCommand) -> Result<(), Failure> {
    match command {
        CapturesCommand::List(args) => list(args).await,
        CapturesCommand::Export(args) => export(args).await,
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let filter = args.filter.filter(&db).await?;
    let captures = bounded(captures::list(&db, &filter, args.limit)).await;
    let captures = captures.context("cannot list captures")?;
    if args.json {
        say(format_args!("{:#}", json!(captures)))?;
    } else if captures.is_empty() {
        anstream::eprintln!("No captures.");
    } else {
        say(render::captures(&captures))?;
        if i64::try_from(captures.len()).ok() == Some(args.limit) {
            anstream::eprintln!("The newest {}; --limit shows more.", args.limit);
        }
    }
    Ok(())
}

async fn export(args: ExportArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let filter = args.filter.filter(&db).await?;
    let redaction = match args.redact {
        true => Some(Redaction::new(
            &bounded(captures::pseudonym_key(&db))
                .await
                .context("cannot read the pseudonyms' key")?,
        )),
        false => None,
    };
    let mut out = match args.out {
        Some(folder) => {
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
            Out::Folder(folder)
        }
        None => Out::Lines(BufWriter::new(io::stdout())),
    };
    let mut reader = Reader {
        db,
        filter,
        after: None,
        ahead: Vec::new(),
    };
    let mut exported = 0_u64;
    loop {
        let page = reader.next().await.context("cannot read captures")?;
        if page.is_empty() {
            break;
        }
        for capture in page {
            match &redaction {
                Some(redaction) => out.write(&redaction.capture(&capture))?,
                None => out.write(&capture)?,
            }
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
                self.ahead =
                    bounded(captures::find(&self.db, &self.filter, self.after, AHEAD)).await?;
            }
            let Some(last) = self.ahead.last().copied() else {
                return Ok(Vec::new());
            };
            let page = bounded(captures::read(&self.db, &self.ahead)).await?;
            // Those that are gone meanwhile are not waited for.
            let read = page.last().map_or(last, |(position, _)| *position);
            self.after = Some(read);
            self.ahead
                .drain(..self.ahead.partition_point(|position| *position <= read));
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
                Ok(fs::write(&path, line)
                    .with_context(|| format!("cannot write {}", path.display()))?)
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
