//! `lockwatch check NODE_ID`

use std::io;

use clap::Args;
use serde_json::json;

use super::{Failure, print_line, render};
use crate::config::{GraphArgs, read_app_secrets};
use crate::lockout::cause::{Cause, Evidence, Finding, LockoutCause, derive, next_steps};
use crate::meta::health::{Answer, LookupResult, verdict};
use crate::meta::ids::WabaId;

#[derive(Debug, Args)]
#[command(after_help = "\
Prints the health of every entity, the cause and the next steps. Exits 0 if Meta answered, even \
with a refusal.

Needs META_APP_SECRET, and META_ACCESS_TOKEN or --meta-access-tokens-file. Secrets come from the \
environment, or from a file that NAME_FILE names.")]
pub(super) struct CheckArgs {
    /// Id of a phone number or of a WhatsApp Business Account (WABA)
    node_id: String,
    /// Use the token of this account, if the file of tokens holds several
    #[arg(long, value_name = "ID", value_parser = WabaId::parse)]
    waba_id: Option<WabaId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    graph: GraphArgs,
}

pub(super) async fn run(args: CheckArgs) -> Result<(), Failure> {
    let graph = args.graph.build_client(&read_app_secrets()?)?;
    if !graph.has_tokens() {
        return Err(Failure::Usage(
            "META_ACCESS_TOKEN is not set: \
             set it to the token of a system user of your Meta business"
                .to_owned(),
        ));
    }
    if !args.node_id.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Failure::Usage(format!(
            "{:?} is not a node id: a node id has digits only",
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
    let cause = derive_cause(&lookup.answer);
    if args.json {
        print_json(&args.node_id, &lookup, cause.as_ref(), error.as_deref())?;
    } else {
        print_text(&args.node_id, &lookup, cause.as_ref(), error.as_deref())?;
    }
    match lookup.answer {
        Answer::NotAsked(_) | Answer::Unreachable(_) => Err(Failure::Reported),
        Answer::Health(_) | Answer::NoHealth | Answer::Refused(_) | Answer::Throttled { .. } => {
            Ok(())
        }
    }
}

/// Derives the cause from this answer alone, as the follow-up would for an incident.
fn derive_cause(answer: &Answer) -> Option<Cause> {
    let finding = match answer {
        Answer::Health(entities) => Finding::Health(entities.clone()),
        Answer::NoHealth | Answer::Refused(_) => Finding::Denied(answer.error_text()?),
        Answer::Throttled { .. } | Answer::NotAsked(_) | Answer::Unreachable(_) => return None,
    };
    derive(&[Evidence {
        check_id: 0,
        finding,
    }])
}

fn print_text(
    node_id: &str,
    lookup: &LookupResult,
    cause: Option<&Cause>,
    error: Option<&str>,
) -> io::Result<()> {
    if let Some(entities) = lookup.answer.entities() {
        print_line(render::entity_table(entities))?;
    }
    let Some(cause) = cause else {
        let error = error.unwrap_or_default();
        anstream::eprintln!("lockwatch: no answer about {node_id}: {error}");
        return Ok(());
    };
    if cause.kind == LockoutCause::Unreported {
        print_line(render::heading("Meta reports no restriction"))?;
        print_line(render::heading("If messages still fail with error 131031"))?;
    } else {
        print_line(render::heading("Cause"))?;
        print_line(format_args!("  {}", cause.kind))?;
        print_line(render::wrap_paragraph("  ", &cause.summary))?;
        print_line(render::heading("Next steps"))?;
    }
    for step in next_steps(cause.kind, cause.possible_solution.as_deref()) {
        print_line(render::wrap_step("  ", &step))?;
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
    let steps = cause.map(|cause| next_steps(cause.kind, cause.possible_solution.as_deref()));
    let object = json!({
        "node_id": node_id,
        "can_send_message": entities.and_then(verdict),
        "entities": entities,
        "http_status": lookup.http_status,
        "error": error,
        "duration_ms": u64::try_from(lookup.duration.as_millis()).unwrap_or(u64::MAX),
        "cause": cause.map(|cause| cause.kind.as_str()),
        "cause_summary": cause.map(|cause| &cause.summary),
        "next_steps": steps,
    });
    print_line(format_args!("{object:#}"))
}
