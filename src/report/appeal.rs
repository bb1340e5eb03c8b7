//! What Meta's support asks for, ready to be pasted into the request for a review.

use std::fmt::Write;

use time::OffsetDateTime;

use super::text::{count, moment, printable};
use super::{IncidentReport, Recipients};
use crate::lockout::cause::LockoutCause;
use crate::store::deliveries::Delivery;

/// Example messages in it.
pub const EXAMPLES: i64 = 5;

/// The text, with up to so many numbers. `examples` are some deliveries; their ids contain the recipient's
/// number, and stand in it only where recipients may be seen.
#[must_use]
pub fn appeal(
    report: &IncidentReport,
    numbers: usize,
    examples: &[Delivery],
    recipients: Recipients,
    now: OffsetDateTime,
) -> String {
    let incident = &report.incident;
    let mut text = format!(
        "Since {} our WhatsApp Business Account {} cannot send messages: each is accepted and then fails with error \
         131031. Please review the restriction and lift it.\nWhat we have changed: [fill in]\n\n",
        moment(incident.opened_at),
        printable(incident.waba_id.as_str())
    );
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name}: {}", printable(&value));
    };
    line("WhatsApp Business Account ID", incident.waba_id.to_string());
    let listed = &report.affected_numbers[..report.affected_numbers.len().min(numbers)];
    for number in listed {
        let number = &number.number;
        let failed = count(number.failure_count, "message failed", "messages failed");
        let display = number
            .display_phone_number
            .as_ref()
            .map(|display| format!("{display}, "))
            .unwrap_or_default();
        line(
            "Phone number",
            format!("{display}ID {} ({failed})", number.phone_number_id),
        );
    }
    let more = report.affected_number_count - i64::try_from(listed.len()).unwrap_or(i64::MAX);
    if more > 0 {
        line("Phone numbers not listed", more.to_string());
    }
    let said = examples.first().and_then(|delivery| {
        delivery
            .error_title
            .clone()
            .or(delivery.error_message.clone())
    });
    line(
        "Error",
        format!(
            "131031 {}",
            said.unwrap_or_else(|| "Business Account locked".to_owned())
        ),
    );
    line("First failed message", moment(incident.opened_at));
    line("Latest failed message", moment(incident.last_failure_at));
    line("Failed messages", incident.failure_count.to_string());
    // That we could not look is nothing to tell Meta.
    let is_metas_answer = report
        .cause()
        .is_none_or(|cause| cause.is_found() || cause == LockoutCause::Unreported);
    if let Some(summary) = incident.cause_summary.as_ref().filter(|_| is_metas_answer) {
        let at = report
            .evidence
            .as_ref()
            .map(|check| format!(" at {}", moment(check.checked_at)))
            .unwrap_or_default();
        line(&format!("health_status{at}"), summary.clone());
    }
    if recipients == Recipients::Revealed {
        examples
            .iter()
            .for_each(|delivery| line("Example message ID", delivery.message_id.clone()));
    }
    line("Written", moment(now));
    text
}
