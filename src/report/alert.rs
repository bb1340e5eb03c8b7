//! The message to a person at three in the morning: what, since when, how many, why, what to do.

use std::cmp::Reverse;

use time::OffsetDateTime;

use super::IncidentReport;
use super::text::{describe_state, format_count, format_duration, format_time, printable};
use crate::lockout::codes::Kind;

/// The numbers that a message names. Others are counted.
const NUMBERS_LIMIT: usize = 3;
/// The incidents that a digest names. Others are counted.
const DIGEST_NAMES: usize = 5;
/// The characters of a cause in a message.
const SUMMARY_LIMIT_CHARACTERS: usize = 600;

/// A message about an incident.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its id, the same in each try and on each channel.
    pub id: String,
    /// What it tells, as a word: `opened`, `cause_changed`, `resolved`, `reopened`, `digest` or
    /// `test`.
    pub kind: String,
    /// What happened, in a line.
    pub title: String,
    /// The rest, in lines.
    pub lines: Vec<String>,
    /// The incident's page, if it is known how people reach it.
    pub url: Option<String>,
    /// Whether the incident is over.
    pub is_over: bool,
    /// The incident; in a digest all of them, in a test none.
    pub reports: Vec<IncidentReport>,
    /// When it was written.
    pub written_at: OffsetDateTime,
}

impl Message {
    /// Writes the message about a change of an incident.
    #[must_use]
    pub fn new(
        kind: &str,
        change_id: i64,
        report: IncidentReport,
        external_url: Option<&str>,
        now: OffsetDateTime,
    ) -> Self {
        let incident = &report.incident;
        let is_over = incident.ended_at.is_some();
        let id = incident.id;
        let url = external_url.map(|url| format!("{}/incidents/{id}", url.trim_end_matches('/')));
        let mut lines = vec![format!("Why: {}", why(&report))];
        let since = format_time(incident.opened_at);
        match incident.ended_at {
            Some(ended_at) => {
                let lasted = format_duration(ended_at - incident.opened_at);
                let end = describe_state(incident);
                let at = format_time(ended_at);
                lines.push(format!(
                    "Locked from {since}, for {lasted}. It ended at {at}: {end}."
                ));
            }
            None => {
                let age = format_duration(now - incident.opened_at);
                lines.push(format!("Since {since} ({age} ago)."));
            }
        }
        lines.push(describe_failures(&report));
        if let Some(step) = report.next_steps.first().filter(|_| !is_over) {
            lines.push(format!("First: {step}"));
        }
        Self {
            id: format!("lockwatch_{change_id}"),
            kind: kind.to_owned(),
            title: title(kind, &report),
            lines: lines.iter().map(|line| printable(line)).collect(),
            url,
            is_over,
            written_at: now,
            reports: vec![report],
        }
    }

    /// Writes one message about several incidents. It names the worst.
    #[must_use]
    pub fn digest(
        latest_change_id: i64,
        mut reports: Vec<IncidentReport>,
        external_url: Option<&str>,
        now: OffsetDateTime,
    ) -> Self {
        // What is open comes first, then what hits most messages.
        reports.sort_by_key(|report| {
            let incident = &report.incident;
            (incident.ended_at.is_some(), Reverse(incident.failure_count))
        });
        let count = i64::try_from(reports.len()).unwrap_or(i64::MAX);
        let open = reports
            .iter()
            .filter(|report| report.incident.ended_at.is_none());
        let open = i64::try_from(open.count()).unwrap_or(i64::MAX);
        let mut lines: Vec<String> = reports
            .iter()
            .take(DIGEST_NAMES)
            .map(|report| {
                let failures = report.incident.failure_count;
                let failures = format_count(failures, "failed message", "failed messages");
                format!("{} ({failures})", title("", report))
            })
            .collect();
        if reports.len() > DIGEST_NAMES {
            lines.push(format!("And {} more.", reports.len() - DIGEST_NAMES));
        }
        let incidents = format_count(count, "incident", "incidents");
        Self {
            id: format!("lockwatch_digest_{latest_change_id}"),
            kind: "digest".to_owned(),
            title: format!("{incidents} more, {open} of them open"),
            lines,
            url: external_url.map(ToOwned::to_owned),
            is_over: open == 0,
            reports,
            written_at: now,
        }
    }

    /// Writes a message that only tests a channel.
    #[must_use]
    pub fn test(now: OffsetDateTime) -> Self {
        Self {
            id: format!("lockwatch_test_{}", now.unix_timestamp_nanos()),
            kind: "test".to_owned(),
            title: "Lockwatch: a test alert. Nothing is locked.".to_owned(),
            lines: vec!["If you read this, alerts arrive here.".to_owned()],
            url: None,
            is_over: true,
            reports: vec![],
            written_at: now,
        }
    }

    /// The `type` of a webhook.
    #[must_use]
    pub fn webhook_type(&self) -> String {
        match self.kind.as_str() {
            "test" | "digest" => self.kind.clone(),
            kind => format!("incident.{kind}"),
        }
    }
}

fn title(kind: &str, report: &IncidentReport) -> String {
    let incident = &report.incident;
    let account = match &incident.account_name {
        Some(name) => format!("{name} ({})", incident.waba_id),
        None => incident.waba_id.to_string(),
    };
    let state = report.state();
    // What is stopped names the cause, but for a lock.
    let cause = match incident.kind == Kind::Lock {
        true => report.cause_title(),
        false => "",
    };
    printable(&match (kind, incident.ended_at) {
        ("opened" | "cause_changed" | "reopened", Some(_)) => {
            format!("Account {account} {state}, and that is over: {cause}")
        }
        ("cause_changed", None) => format!("Account {account}: the cause is known: {cause}"),
        ("reopened", None) => format!("Account {account} {state} still: {cause}"),
        ("resolved", _) => {
            let end = describe_state(incident);
            format!("Over: account {account} {state}: {end}")
        }
        (_, Some(_)) => format!("Account {account} {state}, and that is over: {cause}"),
        _ => format!("Account {account} {state}: {cause}"),
    })
    .trim_end_matches(": ")
    .to_owned()
}

fn why(report: &IncidentReport) -> String {
    let title = report.cause_title();
    match &report.incident.cause_summary {
        Some(summary) => {
            let summary: String = summary.chars().take(SUMMARY_LIMIT_CHARACTERS).collect();
            format!("{title}. {summary}")
        }
        None => format!("{title}."),
    }
}

fn describe_failures(report: &IncidentReport) -> String {
    let failures = report.incident.failure_count;
    if failures == 0 {
        return "No message has failed yet.".to_owned();
    }
    let failed = format_count(failures, "message has failed", "messages have failed");
    let numbers = report.affected_numbers.iter().take(NUMBERS_LIMIT);
    let named: Vec<&str> = numbers
        .map(|number| {
            let number = &number.number;
            let display = number.display_phone_number.as_deref();
            display.unwrap_or(number.phone_number_id.as_str())
        })
        .collect();
    let more = report.affected_number_count - i64::try_from(named.len()).unwrap_or(i64::MAX);
    let more = match more {
        ..=0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{failed}, of {}{more}.", named.join(", "))
}
