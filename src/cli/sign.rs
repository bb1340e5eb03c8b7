//! `lockwatch sign FILE`

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use secrecy::ExposeSecret;

use super::{Failure, print_line};
use crate::config::SigningArgs;
use crate::meta::signature::sign;

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  curl -H \"$(lockwatch sign body.json)\" --data-binary @body.json \\
    http://127.0.0.1:8080/webhook

Needs META_APP_SECRET (the first of several is used), or --app-secret-file.")]
pub(super) struct SignArgs {
    /// File with the body, signed byte for byte; - for stdin
    file: PathBuf,
    #[command(flatten)]
    signing: SigningArgs,
}

pub(super) fn run(args: &SignArgs) -> Result<(), Failure> {
    let secret = args.signing.read_app_secret()?;
    let body = read_body(&args.file)?;
    let signature = sign(secret.expose_secret(), &body);
    Ok(print_line(format_args!(
        "X-Hub-Signature-256: {signature}"
    ))?)
}

fn read_body(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file.as_os_str() != "-" {
        return std::fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    let mut body = Vec::new();
    std::io::stdin()
        .read_to_end(&mut body)
        .context("cannot read stdin")?;
    Ok(body)
}
