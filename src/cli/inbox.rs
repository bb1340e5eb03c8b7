//! `lockwatch inbox list|retry|drop`

use std::io::{self, BufRead, IsTerminal};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use clap::{Args, Subcommand};

use super::{Failure, ListingArgs, connect, print_line, render};
use crate::config::DataArgs;
use crate::intake::Intake;
use crate::meta::interest::Interest;
use crate::report::text::format_count;
use crate::store::backlog::{self, WaitingCallback};
use crate::store::bounded;

#[derive(Debug, Subcommand)]
pub(super) enum InboxCommand {
    /// List callbacks that are not processed yet, oldest first, with what is in their way
    List(ListArgs),
    /// Process callbacks with a problem now, without waiting for their next attempt
    Retry(RetryArgs),
    /// Give up callbacks: their failures are never recorded. Their captures stay for their time
    Drop(DropArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    listing: ListingArgs,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
pub(super) struct RetryArgs {
    /// Only these callbacks, by the ids that `list` shows
    #[arg(value_name = "ID")]
    ids: Vec<i64>,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
pub(super) struct DropArgs {
    /// The callbacks, by the ids that `list` shows
    #[arg(value_name = "ID", required = true)]
    ids: Vec<i64>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    data: DataArgs,
}

pub(super) async fn run(command: InboxCommand) -> Result<(), Failure> {
    match command {
        InboxCommand::List(args) => list(args).await,
        InboxCommand::Retry(args) => retry(args).await,
        InboxCommand::Drop(args) => drop_callbacks(args).await,
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let callbacks = bounded(backlog::list(&db, None, args.listing.limit))
        .await
        .context("cannot list the inbox")?;
    let none = "The inbox is empty: every callback is processed.";
    if args.listing.print(&callbacks, none, render::inbox_table)? {
        anstream::eprintln!("The oldest {}; --limit shows more.", args.listing.limit);
    }
    Ok(())
}

async fn retry(args: RetryArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let ids = (!args.ids.is_empty()).then_some(&args.ids[..]);
    let retried = bounded(backlog::retry(&db, ids))
        .await
        .context("cannot change the inbox")?;
    let callbacks = format_count(
        i64::try_from(retried).unwrap_or(i64::MAX),
        "callback is",
        "callbacks are",
    );
    print_line(format_args!(
        "{callbacks} tried again now by the running serve."
    ))?;
    Ok(())
}

async fn drop_callbacks(args: DropArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let limit = i64::try_from(args.ids.len()).unwrap_or(i64::MAX);
    let callbacks = bounded(backlog::list(&db, Some(&args.ids), limit))
        .await
        .context("cannot read the inbox")?;
    if let Some(id) = args
        .ids
        .iter()
        .find(|id| callbacks.iter().all(|c| c.capture_id != **id))
    {
        return Err(anyhow!("callback {id} is not in the inbox; nothing was dropped").into());
    }
    anstream::eprintln!("{}", describe_loss(&callbacks));
    if !args.yes && !confirm()? {
        return Err(anyhow!("nothing was dropped").into());
    }
    let dropped = bounded(backlog::drop_callbacks(&db, &args.ids))
        .await
        .context("cannot change the inbox")?;
    print_line(format_args!("{dropped} dropped."))?;
    Ok(())
}

/// Says what is lost with these callbacks.
fn describe_loss(callbacks: &[WaitingCallback]) -> String {
    let mut accounts: Vec<String> = Vec::new();
    let mut failures = 0;
    let interest = Interest::of_everything();
    for callback in callbacks {
        let body = Bytes::copy_from_slice(&callback.body);
        let intake = Intake::parse(&body, &interest, callback.received_at);
        for failure in intake.failures {
            failures += 1;
            accounts.push(failure.waba_id.to_string());
        }
        for error in intake.account_errors {
            accounts.push(error.waba_id.to_string());
        }
    }
    accounts.sort();
    accounts.dedup();
    let lost = match &accounts[..] {
        [] => "no failed message that can be read".to_owned(),
        accounts => format!(
            "{} of {}",
            format_count(failures, "failed message", "failed messages"),
            accounts.join(", ")
        ),
    };
    format!("This gives up for good: {lost}. The captures stay until retention deletes them.")
}

fn confirm() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "there is no terminal to ask at: --yes drops without asking".to_owned(),
        ));
    }
    anstream::eprint!("Drop? [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
