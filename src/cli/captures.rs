//! `lockwatch captures list|export|retry`

use std::collections::HashSet;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{Failure, ListingArgs, check_time_range, connect, print_line, render};
use crate::config::DataArgs;
use crate::meta::capture::Capture;
use crate::meta::ids::WabaId;
use crate::meta::redact::Redactor;
use crate::report::text;
use crate::store::captures::{self, CaptureFilter};
use crate::store::{Pool, StoreError, backlog, bounded, incidents};

/// Ids of captures that one query reads, ahead of the bodies.
const IDS_LIMIT: i64 = 100_000;

#[derive(Debug, Subcommand)]
pub(super) enum CapturesCommand {
    /// List captures, newest first, without their bodies
    List(ListArgs),
    /// Write captures to files, oldest first, for replay; each distinct body once
    Export(ExportArgs),
    /// Read quarantined captures again, as after an update that can read more
    Retry(RetryArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    listing: ListingArgs,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Write one file per capture into this folder, and create it if needed. Without it: lines to
    /// stdout
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Replace recipients with pseudonyms, in message ids too, and mask what people wrote. A
    /// recipient gets the same pseudonym in every export of this database
    #[arg(long)]
    redact: bool,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
pub(super) struct RetryArgs {
    /// Only these captures, by the ids that `list --quarantined` shows
    #[arg(value_name = "ID")]
    ids: Vec<i64>,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
struct FilterArgs {
    /// Select captures received at or after this time: 2026-11-22, "2026-11-22 18:00:00 UTC", or
    /// 36h for 36 hours ago
    #[arg(long, value_name = "TIME", value_parser = text::parse_time)]
    since: Option<OffsetDateTime>,
    /// Select captures received before this time
    #[arg(long, value_name = "TIME", value_parser = text::parse_time)]
    until: Option<OffsetDateTime>,
    /// Select captures about this account, alone or with other accounts
    #[arg(long, value_name = "ID", value_parser = WabaId::parse)]
    waba_id: Option<WabaId>,
    /// Select captures with failures of this incident
    #[arg(long, value_name = "ID")]
    incident: Option<i64>,
    /// Select captures with quarantined parts
    #[arg(long)]
    quarantined: bool,
}

impl FilterArgs {
    /// Builds the filter. Refuses a filter that can only be a mistake.
    async fn into_filter(self, db: &Pool) -> Result<CaptureFilter, Failure> {
        let Self {
            since,
            until,
            waba_id,
            incident,
            quarantined,
        } = self;
        check_time_range(since, until)?;
        if let Some(id) = incident {
            let found = bounded(incidents::find(db, id)).await;
            if found.context("cannot read the incident")?.is_none() {
                return Err(anyhow!("there is no incident {id}").into());
            }
        }
        Ok(CaptureFilter {
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
        CapturesCommand::Retry(args) => retry(args).await,
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let filter = args.filter.into_filter(&db).await?;
    let captures = bounded(captures::list(&db, &filter, args.listing.limit))
        .await
        .context("cannot list captures")?;
    if args
        .listing
        .print(&captures, "No captures.", render::capture_table)?
    {
        anstream::eprintln!("The newest {}; --limit shows more.", args.listing.limit);
    }
    Ok(())
}

async fn export(args: ExportArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let filter = args.filter.into_filter(&db).await?;
    let redactor = if args.redact {
        let key = bounded(captures::pseudonym_key(&db))
            .await
            .context("cannot read the key of the pseudonyms")?;
        Some(Redactor::new(&key))
    } else {
        None
    };
    let mut output = match args.out {
        Some(folder) => {
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
            ExportOutput::Folder(folder)
        }
        None => ExportOutput::Lines(BufWriter::new(io::stdout())),
    };
    let mut reader = CaptureReader::new(db, filter);
    let mut exported = 0_u64;
    loop {
        let batch = reader.next_batch().await.context("cannot read captures")?;
        if batch.is_empty() {
            break;
        }
        for capture in batch {
            match &redactor {
                Some(redactor) => output.write(&redactor.redact_capture(&capture))?,
                None => output.write(&capture)?,
            }
            exported += 1;
        }
    }
    output.finish()?;
    match exported {
        0 => anstream::eprintln!("No captures."),
        1 => anstream::eprintln!("1 capture exported."),
        _ => anstream::eprintln!("{exported} captures exported."),
    }
    Ok(())
}

async fn retry(args: RetryArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let ids = (!args.ids.is_empty()).then_some(&args.ids[..]);
    let retried = bounded(backlog::retry_quarantined(&db, ids))
        .await
        .context("cannot put captures into the inbox")?;
    let captures = text::format_count(
        i64::try_from(retried).unwrap_or(i64::MAX),
        "capture is",
        "captures are",
    );
    print_line(format_args!(
        "{captures} back in the inbox; the running serve reads them again."
    ))?;
    Ok(())
}

/// Reads captures in batches that fit in memory, each distinct body once.
struct CaptureReader {
    db: Pool,
    filter: CaptureFilter,
    /// The id of the last capture that was read.
    after: i64,
    /// Ids whose bodies are not read yet.
    pending: Vec<i64>,
    /// The first half of the SHA-256 of each body that was read.
    seen: HashSet<[u8; 16]>,
}

impl CaptureReader {
    fn new(db: Pool, filter: CaptureFilter) -> Self {
        Self {
            db,
            filter,
            after: 0,
            pending: Vec::new(),
            seen: HashSet::new(),
        }
    }

    /// Reads the next batch. It is empty at the end.
    async fn next_batch(&mut self) -> Result<Vec<Capture>, StoreError> {
        loop {
            if self.pending.is_empty() {
                let ids = captures::list_ids(&self.db, &self.filter, self.after, IDS_LIMIT);
                self.pending = bounded(ids).await?;
            }
            let wanted = &self.pending[..self.pending.len().min(captures::FETCH_LIMIT_ROWS)];
            let Some(last_wanted) = wanted.last().copied() else {
                return Ok(Vec::new());
            };
            let batch = bounded(captures::fetch(&self.db, wanted)).await?;
            // If nothing came back, retention has deleted all of these in the meantime.
            let last_read = batch.last().map_or(last_wanted, |(id, _)| *id);
            self.after = last_read;
            self.pending.retain(|id| *id > last_read);
            let captures = batch.into_iter().map(|(_, capture)| capture);
            let captures: Vec<Capture> = captures.filter(|c| self.seen.insert(digest(c))).collect();
            if !captures.is_empty() {
                return Ok(captures);
            }
        }
    }
}

fn digest(capture: &Capture) -> [u8; 16] {
    let digest: [u8; 32] = Sha256::digest(&capture.body).into();
    *digest.first_chunk().expect("it has 32 bytes")
}

/// The place where exported captures are written.
enum ExportOutput {
    Folder(PathBuf),
    Lines(BufWriter<io::Stdout>),
}

impl ExportOutput {
    fn write(&mut self, capture: &Capture) -> Result<(), Failure> {
        let line = capture.to_line() + "\n";
        match self {
            Self::Lines(stdout) => stdout.write_all(line.as_bytes())?,
            Self::Folder(folder) => {
                let path = folder.join(capture.file_name());
                fs::write(&path, line)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Lines(mut stdout) => stdout.flush(),
            Self::Folder(_) => Ok(()),
        }
    }
}
