//! `lockwatch migrate`

use anyhow::Context;
use clap::Args;

use super::{Failure, locate_database};
use crate::config::DataArgs;

#[derive(Debug, Args)]
pub(super) struct MigrateArgs {
    #[command(flatten)]
    data: DataArgs,
}

pub(super) async fn run(args: MigrateArgs) -> Result<(), Failure> {
    let database = locate_database(&args.data)?;
    database
        .migrate()
        .await
        .with_context(|| format!("cannot migrate {}", database.location()))?;
    anstream::eprintln!("The tables are up to date: {}", database.location());
    Ok(())
}
