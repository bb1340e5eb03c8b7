//! The text for an appeal: the facts that Meta's support asks for, ready to be pasted into the
//! request for a review.

use std::fmt::Write;

use time::OffsetDateTime;

use super::text::{format_count, format_time, printable};
use super::{IncidentReport, Recipients};
use crate::lockout::cause::LockoutCause;
use crate::lockout::codes::Kind;
use crate::meta::codes::ACCOUNT_LOCKED;
use crate::store::deliveries::Delivery;
use crate::store::incidents::AffectedNumber;

/// The number of example messages in the text.
pub(crate) const EXAMPLE_LIMIT: i64 = 5;

/// Writes the text, with up to `number_limit` numbers. `examples` are some deliveries of the
/// incident. Their ids contain the recipient's number, so the text has them only if recipients are
/// revealed.
#[must_use]
pub(crate) fn write_appeal(
    report: &IncidentReport,
    number_limit: usize,
    examples: &[Delivery],
    recipients: Recipients,
    now: OffsetDateTime,
) -> String {
    let incident = &report.incident;
    let code = examples
        .first()
        .map_or(ACCOUNT_LOCKED, |example| example.error_code);
    let what = match (incident.kind.known(), incident.failure_count) {
        (_, 0) => "it is disabled".to_owned(),
        (Some(Kind::Lock), _) => format!("each is accepted and then fails with error {code}"),
        _ => format!("some are accepted and then fail with error {code}"),
    };
    let mut appeal = Appeal::new(incident.waba_id.as_str(), incident.opened_at, &what);
    appeal.line("WhatsApp Business Account ID", incident.waba_id.as_str());
    appeal.numbers(report, number_limit);
    appeal.error(examples.first(), code);
    if incident.failure_count > 0 {
        let numbers = report.affected_numbers.iter();
        let first = numbers.map(|number| number.number.first_failure_at).min();
        let first = first.unwrap_or(incident.opened_at);
        appeal.line("First failed message", &format_time(first));
        let latest = incident.last_failure_at;
        appeal.line("Latest failed message", &format_time(latest));
    }
    appeal.line("Failed messages", &incident.failure_count.to_string());
    appeal.health_status(report);
    if recipients == Recipients::Revealed {
        for delivery in examples {
            appeal.line("Example message ID", &delivery.message_id);
        }
    }
    appeal.line("Written", &format_time(now));
    appeal.text
}

/// The text while it is written.
struct Appeal {
    text: String,
}

impl Appeal {
    fn new(waba_id: &str, opened_at: OffsetDateTime, what: &str) -> Self {
        let text = format!(
            "Since {} our WhatsApp Business Account {} cannot send messages: {what}. Please review \
             the restriction and lift it.\n\
             What we have changed: [fill in]\n\n",
            format_time(opened_at),
            printable(waba_id)
        );
        Self { text }
    }

    fn line(&mut self, name: &str, value: &str) {
        let _ = writeln!(self.text, "{name}: {}", printable(value));
    }

    fn numbers(&mut self, report: &IncidentReport, limit: usize) {
        let listed = &report.affected_numbers[..report.affected_numbers.len().min(limit)];
        for number in listed {
            self.line("Phone number", &describe_number(&number.number));
        }
        let more = report.affected_number_count - i64::try_from(listed.len()).unwrap_or(i64::MAX);
        if more > 0 {
            self.line("Phone numbers not listed", &more.to_string());
        }
    }

    fn error(&mut self, example: Option<&Delivery>, code: i32) {
        let title = example
            .and_then(|delivery| {
                delivery
                    .error_title
                    .as_deref()
                    .or(delivery.error_message.as_deref())
            })
            .unwrap_or("Business Account locked");
        self.line("Error", &format!("{code} {title}"));
    }

    /// Adds Meta's own answer, or its notice. A look-up that was not possible is no information for
    /// Meta.
    fn health_status(&mut self, report: &IncidentReport) {
        let is_metas_answer = report
            .cause()
            .is_none_or(|cause| cause.is_found() || cause == LockoutCause::Unreported);
        if let Some(summary) = &report.incident.cause_summary
            && is_metas_answer
        {
            let name = match &report.evidence {
                Some(check) => format!("health_status at {}", format_time(check.checked_at)),
                None if report.incident.cause_check_id.is_none() => "Meta's notice".to_owned(),
                None => "health_status".to_owned(),
            };
            self.line(&name, summary.trim_start_matches("Meta's notice "));
        }
    }
}

fn describe_number(number: &AffectedNumber) -> String {
    let id = &number.phone_number_id;
    let failed = format_count(number.failure_count, "message failed", "messages failed");
    match &number.display_phone_number {
        Some(display) => format!("{display}, ID {id} ({failed})"),
        None => format!("ID {id} ({failed})"),
    }
}
