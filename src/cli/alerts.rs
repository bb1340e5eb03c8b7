//! `lockwatch alerts list|test|retry`

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use time::OffsetDateTime;

use super::{Failure, ListingArgs, connect, print_line, render};
use crate::alerts::channel::Channel;
use crate::config::{ChannelArgs, DataArgs};
use crate::report::alert::Message;
use crate::report::text::format_count;
use crate::store::{alerts, bounded};

#[derive(Debug, Subcommand)]
pub(super) enum AlertsCommand {
    /// List alerts, newest first: what became of each, and what the receiver answered
    List(ListArgs),
    /// Send a test message the real way, and print what the receiver answers
    Test(TestArgs),
    /// Send alerts again that wait or were given up
    Retry(RetryArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    listing: ListingArgs,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
pub(super) struct TestArgs {
    /// Only this channel
    #[arg(value_name = "CHANNEL")]
    channel: Option<String>,
    #[command(flatten)]
    channels: ChannelArgs,
}

#[derive(Debug, Args)]
pub(super) struct RetryArgs {
    /// Only these alerts, by the ids that `list` shows
    #[arg(value_name = "ID")]
    ids: Vec<i64>,
    #[command(flatten)]
    data: DataArgs,
}

pub(super) async fn run(command: AlertsCommand) -> Result<(), Failure> {
    match command {
        AlertsCommand::List(args) => list(args).await,
        AlertsCommand::Test(args) => test(args).await,
        AlertsCommand::Retry(args) => retry(args).await,
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let alerts = bounded(alerts::list(&db, args.listing.limit))
        .await
        .context("cannot list alerts")?;
    args.listing
        .print(&alerts, "No alert has been written.", render::alert_table)?;
    Ok(())
}

async fn test(args: TestArgs) -> Result<(), Failure> {
    let channels = args.channels.read()?.roster().channels;
    let is_wanted = |channel: &&Channel| {
        let wanted = args.channel.as_deref();
        wanted.is_none_or(|wanted| wanted == channel.name())
    };
    let wanted: Vec<&Channel> = channels.iter().filter(is_wanted).collect();
    if wanted.is_empty() {
        let names: Vec<&str> = channels.iter().map(Channel::name).collect();
        return Err(Failure::Usage(match (&args.channel, &names[..]) {
            (_, []) => "no channel is set: for example LOCKWATCH_ALERT_SLACK_URL, or \
                        LOCKWATCH_ALERTS_FILE"
                .to_owned(),
            (channel, names) => format!(
                "there is no channel {}; there is {}",
                channel.as_deref().unwrap_or_default(),
                names.join(", ")
            ),
        }));
    }
    let now = OffsetDateTime::now_utc();
    let message = Message::test(
        format!("lockwatch_test_{}", now.unix_timestamp_nanos()),
        now,
    );
    let mut refused = 0;
    for channel in wanted {
        let delivered = channel.deliver(&message).await;
        let verdict = match delivered.is_accepted {
            true => "accepted",
            false => "not accepted",
        };
        refused += i32::from(!delivered.is_accepted);
        let answer = delivered.answer;
        print_line(format_args!("{}: {verdict}: {answer}", channel.name()))?;
    }
    match refused {
        0 => Ok(()),
        _ => Err(anyhow!("not every channel takes alerts").into()),
    }
}

async fn retry(args: RetryArgs) -> Result<(), Failure> {
    let db = connect(&args.data).await?;
    let retried = bounded(alerts::retry(&db, &args.ids))
        .await
        .context("cannot change the alerts")?;
    let retried = i64::try_from(retried).unwrap_or(i64::MAX);
    let alerts = format_count(retried, "alert is", "alerts are");
    print_line(format_args!("{alerts} due now."))?;
    Ok(())
}
