//! `lockwatch accounts list|name|label|import|mute`

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};

use super::{Failure, ListingArgs, connect, render};
use crate::config::DataArgs;
use crate::meta::ids::WabaId;
use crate::report::text::format_count;
use crate::store::accounts::{self, Description};
use crate::store::bounded;

/// The longest name, and the longest label, in characters.
const WORD_LIMIT_CHARACTERS: usize = 100;

#[derive(Debug, Subcommand)]
pub(super) enum AccountsCommand {
    /// List accounts, those with open incidents first
    List(ListArgs),
    /// Name an account; an empty name leaves it to Meta
    Name(NameArgs),
    /// Set the labels of an account, by which channels of alerts choose accounts
    Label(LabelArgs),
    /// Name and label accounts from a CSV file with the columns waba_id, name and labels (with
    /// spaces or | between labels); of name and labels one may be missing
    Import(ImportArgs),
    /// Tell nobody of an account: an old one, or one of tests. Its incidents are recorded all the same
    Mute(MuteArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    listing: ListingArgs,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
pub(super) struct NameArgs {
    /// Id of the account
    #[arg(value_parser = WabaId::parse)]
    waba_id: WabaId,
    /// Its name
    #[arg(value_parser = parse_word)]
    name: String,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
pub(super) struct LabelArgs {
    /// Id of the account
    #[arg(value_parser = WabaId::parse)]
    waba_id: WabaId,
    /// All of its labels; none takes them away
    #[arg(value_name = "LABEL", value_parser = parse_word)]
    labels: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// The CSV file
    file: PathBuf,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
pub(super) struct MuteArgs {
    /// Id of the account
    #[arg(value_parser = WabaId::parse)]
    waba_id: WabaId,
    /// Tell people again
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    data: DataArgs,
}

fn parse_word(text: &str) -> Result<String, String> {
    let word = text.trim();
    match word.chars().any(char::is_control) || word.chars().count() > WORD_LIMIT_CHARACTERS {
        true => Err(format!(
            "has control characters, or more than {WORD_LIMIT_CHARACTERS} characters"
        )),
        false => Ok(word.to_owned()),
    }
}

pub(super) async fn run(command: AccountsCommand) -> Result<(), Failure> {
    match command {
        AccountsCommand::List(args) => list(args).await,
        AccountsCommand::Name(NameArgs {
            waba_id,
            name,
            data,
        }) => {
            let description = Description {
                waba_id,
                name: Some(name),
                labels: None,
            };
            describe(&data, &[description]).await
        }
        AccountsCommand::Label(LabelArgs {
            waba_id,
            labels,
            data,
        }) => {
            let description = Description {
                waba_id,
                name: None,
                labels: Some(labels),
            };
            describe(&data, &[description]).await
        }
        AccountsCommand::Mute(args) => mute(args).await,
        AccountsCommand::Import(args) => {
            let descriptions = read_csv(&args.file)
                .with_context(|| format!("cannot use {}", args.file.display()))?;
            describe(&args.data, &descriptions).await
        }
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let accounts = bounded(accounts::list(&db, args.listing.limit))
        .await
        .context("cannot list accounts")?;
    let none = "No callback has come, and no account has a name.";
    args.listing.print(&accounts, none, render::account_table)?;
    Ok(())
}

async fn mute(MuteArgs { waba_id, off, data }: MuteArgs) -> Result<(), Failure> {
    let db = connect(&data).await?;
    bounded(accounts::set_muted(&db, &waba_id, !off))
        .await
        .context("cannot change the account")?;
    match off {
        true => anstream::eprintln!("People are told of account {waba_id}."),
        false => anstream::eprintln!("Nobody is told of account {waba_id} any more."),
    }
    Ok(())
}

async fn describe(data: &DataArgs, descriptions: &[Description]) -> Result<(), Failure> {
    let db = connect(data).await?;
    bounded(accounts::describe(&db, descriptions))
        .await
        .context("cannot change the accounts")?;
    let count = i64::try_from(descriptions.len()).unwrap_or(i64::MAX);
    let changed = format_count(count, "account is", "accounts are");
    anstream::eprintln!("{changed} described.");
    Ok(())
}

/// Reads all lines before one is used: a file with an error changes nothing.
fn read_csv(file: &PathBuf) -> anyhow::Result<Vec<Description>> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_path(file)?;
    let headers = reader.headers()?.clone();
    // A spreadsheet may write a byte order mark.
    let column = |name: &str| {
        let mut names = headers
            .iter()
            .map(|header| header.trim_start_matches('\u{feff}'));
        names.position(|header| header.eq_ignore_ascii_case(name))
    };
    let id = column("waba_id").ok_or_else(|| anyhow!("there is no column waba_id"))?;
    let (name, labels) = (column("name"), column("labels"));
    if name.is_none() && labels.is_none() {
        return Err(anyhow!("there is no column name or labels"));
    }
    let mut descriptions = BTreeMap::new();
    for record in reader.records() {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let at_line = |reason: String| anyhow!("line {line}: {reason}");
        let cell = |column: usize| record.get(column).unwrap_or_default();
        let waba_id = WabaId::parse(cell(id)).map_err(|error| at_line(error.to_string()))?;
        let name = name.map(|column| parse_word(cell(column))).transpose();
        let labels = labels.map(|column| {
            let words = cell(column).split(['|', ' ', ',', ';']);
            words
                .filter(|word| !word.is_empty())
                .map(parse_word)
                .collect()
        });
        let description = Description {
            waba_id: waba_id.clone(),
            name: name.map_err(at_line)?,
            labels: labels.transpose().map_err(at_line)?,
        };
        if descriptions.insert(waba_id.clone(), description).is_some() {
            return Err(at_line(format!("{waba_id} is there twice")));
        }
    }
    Ok(descriptions.into_values().collect())
}
