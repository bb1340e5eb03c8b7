//! The backlog in words: what waits in the inbox, and what could not be read.

use super::text::{format_count, format_duration, format_number};
use crate::store::backlog::{Backlog, COUNT_LIMIT};

/// Callbacks that wait for longer than this are told.
const WAIT_LIMIT_SECONDS: i64 = 10;

/// Describes what a person should know about the backlog. Nothing, if all is well.
pub(crate) fn describe(backlog: &Backlog) -> Vec<String> {
    let mut sentences = Vec::new();
    let Backlog {
        inbox_callbacks: waiting,
        inbox_problems: problems,
        inbox_oldest_seconds: oldest,
        quarantined,
        ..
    } = backlog;
    if *problems > 0 {
        sentences.push(format!(
            "{} could not be processed and will be tried again. `lockwatch inbox list` says why.",
            format_count(*problems, "callback", "callbacks")
        ));
    }
    if *waiting > *problems && *oldest > WAIT_LIMIT_SECONDS {
        let count = match *waiting {
            COUNT_LIMIT.. => format!("More than {} callbacks", format_number(COUNT_LIMIT)),
            waiting => format_count(waiting, "callback", "callbacks"),
        };
        let oldest = format_duration(time::Duration::seconds(*oldest));
        sentences.push(format!(
            "{count} in the inbox, the oldest for {oldest}: their failures are not shown yet."
        ));
    }
    if *quarantined > 0 {
        let accounts: Vec<&str> = backlog
            .quarantined_accounts
            .iter()
            .map(|account| account.waba_id.as_str())
            .collect();
        sentences.push(format!(
            "{} could not be read (account {}). See `lockwatch captures list --quarantined`; after \
             an update, `lockwatch captures retry` reads them again.",
            format_count(*quarantined, "part of a callback", "parts of callbacks"),
            accounts.join(", ")
        ));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::backlog::QuarantinedAccount;

    #[test]
    fn only_what_lasts_is_told() {
        let mut backlog = Backlog {
            inbox_callbacks: 40,
            inbox_oldest_seconds: 2,
            ..Backlog::default()
        };
        assert!(describe(&backlog).is_empty());
        backlog.inbox_oldest_seconds = 90;
        assert!(describe(&backlog)[0].starts_with("40 callbacks in the inbox, the oldest for 1"));
        backlog.inbox_problems = 40;
        assert!(describe(&backlog)[0].starts_with("40 callbacks could not be processed"));
        assert_eq!(describe(&backlog).len(), 1);
        backlog.quarantined = 1;
        backlog.quarantined_accounts.push(QuarantinedAccount {
            waba_id: "unknown".to_owned(),
            parts: 1,
            reason: String::new(),
        });
        assert!(
            describe(&backlog)[1]
                .starts_with("1 part of a callback could not be read (account unknown)")
        );
    }
}
