//! `lockwatch check NODE_ID`

use std::io;

use clap::Args;
use serde_json::json;

use super::{Failure, print_line, render};
use crate::config::{GraphArgs, read_app_secrets};
use crate::lockout::cause::{
    Advice, Cause, Finding, LockoutCause, NumberEvidence, NumberFindings, choose, findings_of,
    is_stopped_by_status, next_steps, verdict,
};
use crate::lockout::codes::Kind;
use crate::lookup::{Question, look_up};
use crate::meta::health::{Answer, CanSend, LookupResult};
use crate::meta::ids::WabaId;
use crate::meta::node_fields::NodeFields;

#[derive(Debug, Args)]
#[command(after_help = "\
Prints the health of every entity in Meta's words, what it means, and the next steps.

Exit code: 0 if the node may send, also within a limit; 3 if it is blocked; 4 if Meta refuses to \
answer; 1 if there was no answer.

Needs META_APP_SECRET, and META_ACCESS_TOKEN or --meta-access-tokens-file. Secrets come from the \
environment, or from a file that NAME_FILE names.")]
pub(super) struct CheckArgs {
    /// Id of a phone number or of a WhatsApp Business Account (WABA)
    node_id: String,
    /// Account of the number: chooses the token in the file of tokens, and tells whether the number
    /// has moved to another account
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
    let node = WabaId::parse(&args.node_id)
        .map_err(|error| Failure::Usage(format!("the node id {error}")))?;
    let question = Question {
        waba_id: args.waba_id.as_ref().unwrap_or(&node),
        node_id: &args.node_id,
        portfolio_id: None,
        wants_number_fields: true,
        account_to_read: args.waba_id.as_ref(),
    };
    let lookup = look_up(&graph, &question).await;
    let result = CheckResult::new(&args, node, lookup);
    if args.json {
        result.print_json()?;
    } else {
        result.print_text()?;
    }
    result.exit()
}

/// The answer to a look-up, and what it means.
struct CheckResult {
    node_id: String,
    lookup: LookupResult,
    can_send: Option<CanSend>,
    cause: Option<Cause>,
    also_found: Vec<Finding>,
    next_steps: Vec<String>,
}

impl CheckResult {
    fn new(args: &CheckArgs, node: WabaId, lookup: LookupResult) -> Self {
        let entities = lookup.answer.entities().unwrap_or_default();
        let id_of = |kind: &str| {
            let entity = entities.iter().find(|entity| entity.entity_type == kind)?;
            Some(entity.id.clone())
        };
        // Without --waba-id, the account is the one that Meta names.
        let named = || WabaId::parse(&id_of("WABA")?).ok();
        let waba_id = args.waba_id.clone().or_else(named).unwrap_or(node);
        let can_send = verdict(entities, &waba_id).cloned();
        let findings = findings_of(&lookup.answer, &lookup.fields, &waba_id, &args.node_id);
        let cause = choose_cause(&lookup.answer, &lookup.fields, &findings);
        let is_cause = |finding: &Finding| {
            cause.as_ref().map(|cause| &cause.summary) == Some(&finding.summary)
        };
        let also_found: Vec<Finding> = findings
            .into_iter()
            .filter(|finding| !is_cause(finding))
            .collect();
        let portfolio_id = id_of("BUSINESS");
        let next_steps = cause.as_ref().map(|cause| {
            next_steps(&Advice {
                cause: cause.kind,
                denial: cause.denial,
                possible_solution: cause.possible_solution.as_deref(),
                also_found: &also_found,
                portfolio_id: portfolio_id.as_deref(),
                fault: None,
            })
        });
        Self {
            node_id: args.node_id.clone(),
            can_send,
            next_steps: next_steps.unwrap_or_default(),
            cause,
            also_found,
            lookup,
        }
    }

    fn exit(&self) -> Result<(), Failure> {
        const BLOCKED: u8 = 3;
        const REFUSED: u8 = 4;
        match &self.lookup.answer {
            Answer::State(_) => Err(Failure::Code(BLOCKED)),
            Answer::Health(_) if self.is_stopped() => Err(Failure::Code(BLOCKED)),
            Answer::Health(_) if self.can_send.is_none() => Err(Failure::Code(REFUSED)),
            Answer::Health(_) => Ok(()),
            Answer::NoVerdict { .. } | Answer::Refused { .. } | Answer::Unexplained(_) => {
                Err(Failure::Code(REFUSED))
            }
            Answer::NotAsked { .. } | Answer::Throttled { .. } | Answer::Unreachable(_) => {
                Err(Failure::Reported)
            }
        }
    }

    /// Returns whether the node cannot send, or has a verdict that we don't know.
    fn is_stopped(&self) -> bool {
        let number = self.lookup.fields.number.as_ref();
        let status = number.and_then(|fields| fields.status.as_deref());
        status.is_some_and(is_stopped_by_status)
            || matches!(self.can_send, Some(CanSend::Blocked | CanSend::Other(_)))
    }

    fn print_text(&self) -> io::Result<()> {
        let Self { lookup, .. } = self;
        if let Some(entities) = lookup.answer.entities() {
            print_line(render::entity_table(entities))?;
        }
        for (name, value) in lookup.fields.texts() {
            print_line(format_args!("  {name}: {value}"))?;
        }
        let error = lookup.answer.error_text();
        let Some(cause) = &self.cause else {
            let error = error.unwrap_or_default();
            anstream::eprintln!("lockwatch: no answer about {}: {error}", self.node_id);
            return Ok(());
        };
        if let Some(error) = error {
            print_line(render::heading("Meta's answer"))?;
            print_line(render::wrap_paragraph("  ", &error))?;
        }
        match cause.kind {
            LockoutCause::Unreported => {
                print_line(render::heading("Meta reports no block"))?;
            }
            kind => {
                print_line(render::heading("Cause"))?;
                print_line(format_args!("  {kind}: {}", kind.title()))?;
                print_line(render::wrap_paragraph("  ", &cause.summary))?;
            }
        }
        if !self.also_found.is_empty() {
            print_line(render::heading("Also found"))?;
        }
        for finding in &self.also_found {
            print_line(render::wrap_paragraph("  ", &finding.summary))?;
        }
        print_line(render::heading(match cause.kind {
            LockoutCause::Unreported => "If messages still fail with error 131031",
            _ => "Next steps",
        }))?;
        for step in &self.next_steps {
            print_line(render::wrap_step("  ", step))?;
        }
        Ok(())
    }

    fn print_json(&self) -> io::Result<()> {
        let Self { lookup, cause, .. } = self;
        let cause = cause.as_ref();
        let also_found: Vec<&str> = self.also_found.iter().map(|f| f.summary.as_str()).collect();
        let object = json!({
            "node_id": self.node_id,
            "can_send_message": self.can_send,
            "entities": lookup.answer.entities(),
            "fields": lookup.fields,
            "http_status": lookup.http_status,
            "error": lookup.answer.error_text(),
            "denial": lookup.answer.denial(),
            "duration_ms": u64::try_from(lookup.duration.as_millis()).unwrap_or(u64::MAX),
            "cause": cause.map(|cause| cause.kind),
            "cause_confidence": cause.and_then(|cause| Some(cause.confidence?.as_str())),
            "cause_summary": cause.map(|cause| &cause.summary),
            "also_found": also_found,
            "next_steps": self.next_steps,
        });
        print_line(format_args!("{object:#}"))
    }
}

/// Chooses the cause from this answer alone, as the follow-up would for an incident.
fn choose_cause(answer: &Answer, fields: &NodeFields, findings: &[Finding]) -> Option<Cause> {
    if matches!(
        answer,
        Answer::Throttled { .. } | Answer::Unreachable(_) | Answer::NotAsked { .. }
    ) {
        return None;
    }
    let mut number = NumberFindings::default();
    number.add(0, answer, fields, findings.to_vec());
    choose(
        Kind::Lock,
        &[NumberEvidence {
            failure_count: 0,
            error_codes: &[],
            findings: &number,
            is_given_up: true,
        }],
        &[],
    )
}
