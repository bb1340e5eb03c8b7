//! `lockwatch sign FILE`

use std::io::Read;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use secrecy::ExposeSecret;

use super::{Failure, say};
use crate::config::SigningArgs;
use crate::meta::signature::sign;

/// Prints the header that signs a file's bytes, ready for curl
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  curl -H \"$(lockwatch sign body.json)\" --data-binary @body.json \\
    http://127.0.0.1:8080/webhook

Needs META_APP_SECRET (the first of several), or --app-secret-file.")]
pub(super) struct SignArgs {
    /// The body, every byte of it; - for stdin
    file: PathBuf,
    #[command(flatten)]
    signing: SigningArgs,
}

pub(super) fn run(args: &SignArgs) -> Result<(), Failure> {
    let secret = args.signing.app_secret()?;
    let body = if args.file.as_os_str() == "-" {
        let mut body = Vec::new();
        std::io::stdin()
            .read_to_end(&mut body)
            .context("cannot read stdin")?;
        body
    } else {
        std::fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?
    };
    Ok(say(format_args!(
        "X-Hub-Signature-256: {}",
        sign(secret.expose_secret(), &body)
    ))?)
}
