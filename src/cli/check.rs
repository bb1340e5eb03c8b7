//! `lockwatch check NODE_ID`

use std::io;

use clap::Args;
use serde_json::json;

use super::{Failure, render, say};
use crate::config::{GraphArgs, app_secrets};
use crate::lockout::cause::{Cause, Evidence, Finding, LockoutCause, derive, next_steps};
use crate::meta::health::{Answer, LookupResult, verdict};
use crate::meta::ids::WabaId;

/// Asks Meta for a node's health_status and prints entities, cause and next steps. Exit 0 whenever Meta
/// answered, refusals included
#[derive(Debug, Args)]
#[command(after_help = "\
Needs META_APP_SECRET, and META_ACCESS_TOKEN or --meta-access-tokens-file (secrets: environment, or NAME_FILE).")]
pub(super) struct CheckArgs {
    /// A phone number id or an account (WABA) id
    node_id: String,
    /// The account whose token to use, where a file holds several
    #[arg(long, value_name = "ID", value_parser = WabaId::parse)]
    waba_id: Option<WabaId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    graph: GraphArgs,
}

pub(super) async fn run(args: CheckArgs) -> Result<(), Failure> {
    let graph = args.graph.graph(&app_secrets()?)?;
    if !graph.has_tokens() {
        return Err(Failure::Usage(
            "META_ACCESS_TOKEN is not set: a system user's token of your Meta business".into(),
        ));
    }
    if !args.node_id.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Failure::Usage(format!(
            "{:?} is not a node id: those have digits only",
            args.node_id
        )));
    }
    let waba_id = match args.waba_id {
        Some(waba_id) => waba_id,
        None => WabaId::parse(&args.node_id)
            .map_err(|error| Failure::Usage(format!("the node id {error}")))?,
    };
    let lookup = graph.look_up(&waba_id, &args.node_id).await;
    let error = lookup.answer.error_text();
    let finding = match &lookup.answer {
        Answer::Health(entities) => Some(Finding::Health(entities.clone())),
        Answer::NoHealth | Answer::Refused(_) => error.clone().map(Finding::Denied),
        Answer::Throttled { .. } | Answer::NotAsked(_) | Answer::Unreachable(_) => None,
    };
    let cause = finding.and_then(|finding| {
        derive(&[Evidence {
            check_id: 0,
            finding,
        }])
    });
    if args.json {
        print_json(&args.node_id, &lookup, cause.as_ref(), error.as_deref())?;
    } else {
        print_text(&args.node_id, &lookup, cause.as_ref(), error.as_deref())?;
    }
    match lookup.answer {
        Answer::NotAsked(_) | Answer::Unreachable(_) => Err(Failure::Told),
        Answer::Health(_) | Answer::NoHealth | Answer::Refused(_) | Answer::Throttled { .. } => {
            Ok(())
        }
    }
}

fn print_text(
    node_id: &str,
    lookup: &LookupResult,
    cause: Option<&Cause>,
    error: Option<&str>,
) -> io::Result<()> {
    if let Some(entities) = lookup.answer.entities() {
        say(render::entities(entities))?;
    }
    match cause {
        Some(cause) => {
            let healthy = cause.kind == LockoutCause::Unreported;
            say(render::heading(if healthy {
                "Meta reports no restriction"
            } else {
                "Cause"
            }))?;
            if !healthy {
                say(format_args!("  {}", cause.kind))?;
                say(render::paragraph("  ", &cause.summary))?;
            }
            say(render::heading(if healthy {
                "If messages fail with 131031 all the same"
            } else {
                "Next steps"
            }))?;
            for step in next_steps(cause.kind, cause.possible_solution.as_deref()) {
                say(render::step("  ", &step))?;
            }
        }
        None => anstream::eprintln!(
            "lockwatch: no answer about {node_id}: {}",
            error.unwrap_or_default()
        ),
    }
    Ok(())
}

fn print_json(
    node_id: &str,
    lookup: &LookupResult,
    cause: Option<&Cause>,
    error: Option<&str>,
) -> io::Result<()> {
    let entities = lookup.answer.entities();
    let object = json!({
        "node_id": node_id,
        "can_send_message": entities.and_then(verdict),
        "entities": entities,
        "http_status": lookup.http_status,
        "error": error,
        "duration_ms": u64::try_from(lookup.duration.as_millis()).unwrap_or(u64::MAX),
        "cause": cause.map(|cause| cause.kind.as_str()),
        "cause_summary": cause.map(|cause| &cause.summary),
        "next_steps": cause.map(|cause| next_steps(cause.kind, cause.possible_solution.as_deref())),
    });
    say(format_args!("{object:#}"))
}
