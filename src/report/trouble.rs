//! Troubles in sentences.

use super::text::{format_count, format_duration, format_time};
use crate::lockout::trouble::{ALL_ACCOUNTS, Fact, TroubleKind};
use crate::store::troubles::Trouble;

/// Describes what was observed.
#[must_use]
pub(crate) fn describe_fact(fact: &Fact) -> String {
    match fact {
        Fact::InboxStuck {
            callbacks,
            oldest,
            problem,
        } => {
            let waiting = format_count(*callbacks, "callback waits", "callbacks wait");
            let oldest = format_duration(*oldest);
            let problem = problem
                .as_deref()
                .map(|problem| format!(" One of them: {problem}"));
            finish(format!(
                "{waiting}, the oldest for {oldest}.{}",
                problem.unwrap_or_default()
            ))
        }
        Fact::Quarantined { parts, reason, .. } => {
            let parts = format_count(*parts, "part of a callback", "parts of callbacks");
            finish(format!(
                "{parts} came in the last day and could not be read: {reason}"
            ))
        }
        Fact::LookupsFailing {
            numbers,
            failures,
            error,
            ..
        } => {
            let numbers = format_count(*numbers, "number", "numbers");
            let error = error
                .as_deref()
                .map(|error| format!(" The latest answer: {error}"));
            finish(format!(
                "The look-ups of {numbers} have failed {failures} times in a row.{}",
                error.unwrap_or_default()
            ))
        }
        Fact::SelfCheck { problem, .. } => problem.clone(),
        Fact::CallbacksSilent {
            last_at,
            silence,
            usual,
            ..
        } => format!(
            "The last callback came at {}, {} ago. The longest silence of the days before was {}.",
            format_time(*last_at),
            format_duration(*silence),
            format_duration(*usual)
        ),
    }
}

fn finish(sentence: String) -> String {
    format!("{}.", sentence.trim_end_matches('.'))
}

impl Trouble {
    /// The trouble in a line for a person.
    #[must_use]
    pub fn title(&self) -> String {
        let title = match self.known_kind() {
            Some(kind) => kind.title(),
            None => &self.kind,
        };
        match self.waba_id.as_str() {
            ALL_ACCOUNTS => title.to_owned(),
            account => format!("{title}: account {account}"),
        }
    }

    /// The first thing to do; empty for a kind of a later version.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        self.known_kind().map_or("", TroubleKind::advice)
    }

    fn known_kind(&self) -> Option<TroubleKind> {
        TroubleKind::parse(&self.kind)
    }
}
