//! The message to a person at three in the morning: what, since when, how many, why, what to do.

use std::cmp::Reverse;

use serde::Serialize;
use time::OffsetDateTime;

use super::IncidentReport;
use super::text::{
    describe_state, format_count, format_duration, format_number, format_time, printable,
};
use crate::lockout::cause::support_home_url;
use crate::lockout::codes::Kind;
use crate::lockout::trouble::TroubleKind;
use crate::store::events::AccountNotice;
use crate::store::incidents::Incident;
use crate::store::troubles::Trouble;

/// The numbers that a message names. Others are counted.
const NUMBERS_LIMIT: usize = 3;
/// The things that a digest names. The rest is counted.
const DIGEST_NAMES: usize = 5;
/// The characters of a cause in a message.
const SUMMARY_LIMIT_CHARACTERS: usize = 600;
/// The characters of a title, and those of a text: receivers take about 2000 together.
const TITLE_LIMIT_CHARACTERS: usize = 200;
const TEXT_LIMIT_CHARACTERS: usize = 1500;

/// The subject of a message.
#[derive(Debug, Clone)]
pub enum Topic {
    /// An incident.
    Incident(Box<IncidentReport>),
    /// A notice of Meta's about an account.
    Notice(AccountNotice),
    /// A trouble of Lockwatch itself.
    Trouble(Trouble),
}

/// The urgency for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is to be done: it is over, or a test.
    Info,
    /// Soon.
    Warning,
    /// Now.
    Critical,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// The messages about one thing, which belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Its id: the same for all messages, on all channels.
    pub id: String,
    /// Its subject, which stays.
    pub subject: String,
    /// `true` if this message opens it.
    pub is_first: bool,
}

/// A message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its id, the same in each try and on each channel.
    pub id: String,
    /// Its kind, such as `incident.opened`; `digest`, or `test`.
    pub kind: String,
    /// What happened, in a line.
    pub title: String,
    /// The rest, in lines.
    pub lines: Vec<String>,
    /// The page about it, if it is known how people reach the dashboard.
    pub url: Option<String>,
    /// The urgency for a person.
    pub severity: Severity,
    /// `true` if its subject is over.
    pub is_over: bool,
    /// The thread that it belongs to.
    pub thread: Thread,
    /// One, in a digest several, in a test none.
    pub topics: Vec<Topic>,
    /// When it was written.
    pub written_at: OffsetDateTime,
}

impl Message {
    /// Writes the message of a kind about something.
    #[must_use]
    pub fn new(
        id: String,
        kind: &str,
        topic: Topic,
        external_url: Option<&str>,
        now: OffsetDateTime,
    ) -> Self {
        let site = external_url.map(|url| url.trim_end_matches('/'));
        let (title, lines, thread) = match &topic {
            Topic::Incident(report) => (
                incident_title(kind, report),
                incident_lines(report, now),
                incident_thread(kind, report),
            ),
            Topic::Notice(notice) => (
                notice_title(notice),
                notice_lines(notice),
                Thread {
                    id: format!("notice.{}", notice.event.id),
                    subject: notice_title(notice),
                    is_first: true,
                },
            ),
            Topic::Trouble(trouble) => (
                trouble_title(trouble),
                trouble_lines(trouble),
                trouble_thread(kind, trouble),
            ),
        };
        let path = match &topic {
            Topic::Incident(report) => format!("/incidents/{}", report.incident.id),
            Topic::Notice(_) | Topic::Trouble(_) => "/".to_owned(),
        };
        let severity = topic_severity(&topic);
        Self {
            id,
            kind: kind.to_owned(),
            title: shorten(&printable(&title), TITLE_LIMIT_CHARACTERS),
            lines: lines.iter().map(|line| printable(line)).collect(),
            url: site.map(|site| format!("{site}{path}")),
            severity,
            is_over: severity == Severity::Info,
            thread: Thread {
                subject: printable(&thread.subject),
                ..thread
            },
            topics: vec![topic],
            written_at: now,
        }
    }

    /// Writes a message that only tests a channel.
    #[must_use]
    pub fn test(id: String, now: OffsetDateTime) -> Self {
        let title = "Lockwatch: a test alert. Nothing is locked.";
        Self {
            thread: Thread {
                id: id.clone(),
                subject: title.to_owned(),
                is_first: true,
            },
            id,
            kind: "test".to_owned(),
            title: title.to_owned(),
            lines: vec!["If you read this, alerts arrive here.".to_owned()],
            url: None,
            severity: Severity::Info,
            is_over: false,
            topics: vec![],
            written_at: now,
        }
    }

    /// The text below the title.
    #[must_use]
    pub fn text(&self) -> String {
        shorten(&self.lines.join("\n"), TEXT_LIMIT_CHARACTERS)
    }
}

/// Several things that are told together.
#[derive(Debug, Clone, Default)]
pub struct Digest {
    /// The worst of them.
    pub topics: Vec<Topic>,
    /// All incidents, open or not.
    pub incidents: i64,
    /// Those of them that are open.
    pub open: i64,
    /// All notices of Meta's.
    pub notices: i64,
    /// All troubles.
    pub troubles: i64,
}

impl Digest {
    /// Writes one message. It names the worst.
    #[must_use]
    pub fn write(mut self, id: String, external_url: Option<&str>, now: OffsetDateTime) -> Message {
        self.topics.sort_by_key(digest_rank);
        let title = self.title();
        let names = self.topics.iter().take(DIGEST_NAMES);
        let mut lines: Vec<String> = names.map(|topic| printable(&digest_line(topic))).collect();
        let named = i64::try_from(lines.len()).unwrap_or(i64::MAX);
        let more = self.incidents + self.notices + self.troubles - named;
        if more > 0 {
            lines.push(format!("And {} more.", format_number(more)));
        }
        let worst = self.topics.iter().map(topic_severity).max();
        let severity = worst.unwrap_or(Severity::Info);
        Message {
            thread: Thread {
                id: id.clone(),
                subject: title.clone(),
                is_first: true,
            },
            id,
            kind: "digest".to_owned(),
            title,
            lines,
            url: external_url.map(ToOwned::to_owned),
            severity,
            is_over: severity == Severity::Info,
            topics: self.topics,
            written_at: now,
        }
    }

    fn title(&self) -> String {
        let open = format_number(self.open);
        let parts = [
            (
                self.incidents,
                "more incident",
                "more incidents",
                format!(", {open} of them open"),
            ),
            (
                self.notices,
                "warning from Meta",
                "warnings from Meta",
                String::new(),
            ),
            (
                self.troubles,
                "trouble of Lockwatch",
                "troubles of Lockwatch",
                String::new(),
            ),
        ];
        let parts = parts.into_iter().filter(|(count, ..)| *count > 0);
        parts
            .map(|(count, one, many, rest)| format_count(count, one, many) + &rest)
            .collect::<Vec<_>>()
            .join("; ")
    }
}

/// An account, for a person.
fn account_text(name: Option<&str>, waba_id: &str) -> String {
    match name {
        Some(name) => format!("{name} ({waba_id})"),
        None => waba_id.to_owned(),
    }
}

fn account_of(incident: &Incident) -> String {
    account_text(incident.account_name.as_deref(), incident.waba_id.as_str())
}

/// The title of an incident's message.
#[must_use]
pub(crate) fn incident_title(kind: &str, report: &IncidentReport) -> String {
    let incident = &report.incident;
    let (account, state) = (account_of(incident), report.state());
    // What is stopped names the cause, but for a lock.
    let cause = match incident.kind == Kind::Lock {
        true => report.cause_title(),
        false => "",
    };
    match (kind, incident.ended_at) {
        ("incident.resolved", _) => {
            let end = describe_state(incident);
            format!("Over: account {account} {state}: {end}")
        }
        (_, Some(_)) => format!("Account {account} {state}, and that is over: {cause}"),
        ("incident.cause_changed", None) => {
            format!("Account {account}: the cause is known: {cause}")
        }
        ("incident.reopened" | "incident.reminder", None) => {
            format!("Still: account {account} {state}: {cause}")
        }
        _ => format!("Account {account} {state}: {cause}"),
    }
    .trim_end_matches(": ")
    .to_owned()
}

fn incident_lines(report: &IncidentReport, now: OffsetDateTime) -> Vec<String> {
    let incident = &report.incident;
    let mut lines = vec![format!("Why: {}", why(report))];
    let since = format_time(incident.opened_at);
    match incident.ended_at {
        Some(ended_at) => {
            let lasted = format_duration(ended_at - incident.opened_at);
            let end = describe_state(incident);
            let at = format_time(ended_at);
            let from = report.opening_label();
            lines.push(format!(
                "{from} {since}, for {lasted}. It ended at {at}: {end}."
            ));
        }
        None => {
            let age = format_duration(now - incident.opened_at);
            lines.push(format!("Since {since} ({age} ago)."));
        }
    }
    lines.push(describe_failures(report));
    if let Some(step) = report.next_steps.first()
        && incident.ended_at.is_none()
    {
        lines.push(format!("First: {step}"));
    }
    lines
}

/// The subject names no cause: that may change, and the messages stay together.
fn incident_thread(kind: &str, report: &IncidentReport) -> Thread {
    let incident = &report.incident;
    let opened = incident.opened_at.unix_timestamp();
    let stopped = match incident.kind.known().unwrap_or(Kind::Lock) {
        Kind::Lock => "locked",
        Kind::Payment => "stopped by a payment problem",
        Kind::Registration => "stopped: a number is not registered",
        Kind::Country => "stopped for some countries",
        Kind::Limit => "stopped by its limit",
    };
    Thread {
        id: format!("incident.{}.{opened}", incident.id),
        subject: printable(&format!(
            "Account {} {stopped} (incident {})",
            account_of(incident),
            incident.id
        )),
        is_first: kind == "incident.opened",
    }
}

fn why(report: &IncidentReport) -> String {
    let title = report.cause_title();
    match &report.incident.cause_summary {
        Some(summary) => format!("{title}. {}", shorten(summary, SUMMARY_LIMIT_CHARACTERS)),
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

fn notice_title(notice: &AccountNotice) -> String {
    let account = account_text(notice.account_name.as_deref(), &notice.waba_id);
    let (event, state) = (
        &notice.event,
        notice.event.state.as_deref().unwrap_or_default(),
    );
    match (event.field.as_str(), event.event.as_str(), state) {
        (_, "DISABLED_UPDATE", "SCHEDULE_FOR_DISABLE") => {
            format!("Meta is about to disable account {account}")
        }
        (_, "ACCOUNT_VIOLATION", violation) => {
            format!("Meta found a violation by account {account}: {violation}")
        }
        (_, "ACCOUNT_RESTRICTION", restrictions) => {
            let restrictions = restrictions.replace(',', ", ");
            format!("Meta restricts account {account}: {restrictions}")
        }
        ("phone_number_quality_update", what, _) => {
            format!("Meta rates a number of account {account}: {what}")
        }
        ("account_review_update", ..) => format!("Meta has not approved account {account}"),
        (_, what, "") => format!("Meta warns account {account}: {what}"),
        (_, _, state) => format!("Meta warns account {account}: {}", state.replace(',', ", ")),
    }
}

fn notice_lines(notice: &AccountNotice) -> Vec<String> {
    let event = &notice.event;
    let summary = event.to_notice().summary();
    let support_home = support_home_url(notice.portfolio_id.as_deref());
    vec![
        shorten(&summary, SUMMARY_LIMIT_CHARACTERS),
        format!("At {}.", format_time(event.occurred_at)),
        format!("First: See in Business Support Home ({support_home}) what Meta expects."),
    ]
}

fn trouble_title(trouble: &Trouble) -> String {
    match trouble.ended_at {
        Some(_) => format!("Over: {}", trouble.title()),
        None => trouble.title(),
    }
}

fn trouble_thread(kind: &str, trouble: &Trouble) -> Thread {
    // Processes that record nothing tell so each by itself, of the same.
    let began = match trouble.id {
        0 => 0,
        _ => trouble.began_at.unix_timestamp(),
    };
    Thread {
        id: format!("{}.{}.{began}", trouble.kind, trouble.waba_id),
        subject: trouble.title(),
        is_first: !kind.ends_with("_over"),
    }
}

fn trouble_lines(trouble: &Trouble) -> Vec<String> {
    let began = format_time(trouble.began_at);
    match trouble.ended_at {
        Some(ended_at) => {
            let lasted = format_duration(ended_at - trouble.began_at);
            let at = format_time(ended_at);
            vec![format!("It lasted from {began} to {at}, for {lasted}.")]
        }
        None => vec![
            trouble.detail.clone(),
            format!("Seen since {began}."),
            format!("First: {}", trouble.advice()),
        ],
    }
}

fn topic_severity(topic: &Topic) -> Severity {
    match topic {
        Topic::Incident(report) if report.incident.ended_at.is_none() => Severity::Critical,
        Topic::Notice(_) => Severity::Warning,
        Topic::Trouble(trouble) if trouble.ended_at.is_none() => {
            match trouble.kind == TroubleKind::NotRecording.as_str() {
                true => Severity::Critical,
                false => Severity::Warning,
            }
        }
        Topic::Incident(_) | Topic::Trouble(_) => Severity::Info,
    }
}

/// Ranks for a digest: open things first, then by the messages that failed.
fn digest_rank(topic: &Topic) -> (Reverse<Severity>, Reverse<i64>) {
    let failures = match topic {
        Topic::Incident(report) => report.incident.failure_count,
        Topic::Notice(_) | Topic::Trouble(_) => 0,
    };
    (Reverse(topic_severity(topic)), Reverse(failures))
}

fn digest_line(topic: &Topic) -> String {
    match topic {
        Topic::Incident(report) => {
            let failures = report.incident.failure_count;
            let failures = format_count(failures, "failed message", "failed messages");
            format!("{} ({failures})", incident_title("", report))
        }
        Topic::Notice(notice) => notice_title(notice),
        Topic::Trouble(trouble) => trouble_title(trouble),
    }
}

fn shorten(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
