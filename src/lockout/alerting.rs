//! Alerting: which changes of an incident a person is told of, and when a message is tried again.

use std::borrow::Cow;
use std::time::Duration;

use time::OffsetDateTime;

use super::cause::{LockoutCause, Meaning, Notice};
use super::change::ChangeKind;
use super::trouble::{ALL_ACCOUNTS, TroubleKind};

/// The opening waits for the first answer for this long, so that one message says what and why.
pub const OPENING_HOLD: Duration = Duration::from_secs(10);
/// The shortest time between two messages about the cause of an incident.
pub const CAUSE_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// The messages of a channel that go at once in [`DIGEST_INTERVAL`].
const AT_ONCE_LIMIT: i64 = 5;
/// What comes after the first few of this time goes together, at its end.
pub const DIGEST_INTERVAL: Duration = Duration::from_secs(60);
/// The time after which people are reminded of an incident that is still open.
pub const REMINDER_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// The pauses before a second try and those after it; then hourly.
const RETRY_INTERVALS: [Duration; 6] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(2 * 60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(15 * 60),
    Duration::from_secs(30 * 60),
];
const HOURLY_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// A message that nobody took for this long is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// What an alert tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlertKind {
    /// An account is locked.
    Opened,
    /// The cause became known, or is another one.
    CauseChanged,
    /// It is over.
    Resolved,
    /// It goes on.
    Reopened,
    /// It is still open a day later.
    Reminder,
    /// Meta warns of something that may lock an account.
    Notice,
    /// Something keeps Lockwatch from hearing or telling.
    Began(TroubleKind),
    /// The end of such a trouble.
    Over(TroubleKind),
}

impl AlertKind {
    const OF_INCIDENTS: [Self; 5] = [
        Self::Opened,
        Self::CauseChanged,
        Self::Resolved,
        Self::Reopened,
        Self::Reminder,
    ];

    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> {
        let troubles = TroubleKind::ALL.into_iter();
        let troubles = troubles.flat_map(|kind| [Self::Began(kind), Self::Over(kind)]);
        let fixed = Self::OF_INCIDENTS.into_iter().chain([Self::Notice]);
        fixed.chain(troubles)
    }

    /// The `type` of a webhook, and the word in the database: `incident.opened`, `account.notice`,
    /// `lockwatch.inbox_stuck`, `lockwatch.inbox_stuck_over`.
    #[must_use]
    pub fn name(self) -> Cow<'static, str> {
        match self {
            Self::Opened => "incident.opened".into(),
            Self::CauseChanged => "incident.cause_changed".into(),
            Self::Resolved => "incident.resolved".into(),
            Self::Reopened => "incident.reopened".into(),
            Self::Reminder => "incident.reminder".into(),
            Self::Notice => "account.notice".into(),
            Self::Began(kind) => format!("lockwatch.{}", kind.as_str()).into(),
            Self::Over(kind) => format!("lockwatch.{}_over", kind.as_str()).into(),
        }
    }

    /// Parses a name. `None`: a later version wrote it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::all().find(|kind| kind.name() == name)
    }
}

/// The choice of what a channel is told of. An empty list chooses everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Kinds, or their first parts: `incident`, `account`, `lockwatch`.
    pub kinds: Vec<String>,
    /// Accounts; with `labels`, an account that either chooses.
    pub accounts: Vec<String>,
    /// Labels of accounts.
    pub labels: Vec<String>,
    /// `true` if reminders are left out.
    pub is_without_reminders: bool,
}

impl Filter {
    /// Returns whether a word can stand in [`kinds`](Self::kinds).
    #[must_use]
    pub fn knows_kind(word: &str) -> bool {
        AlertKind::all().any(|kind| is_of_kind(&kind.name(), word))
    }

    /// Returns whether the channel is told of this kind.
    #[must_use]
    pub fn wants_kind(&self, kind: AlertKind) -> bool {
        if kind == AlertKind::Reminder && self.is_without_reminders {
            return false;
        }
        let name = kind.name();
        self.kinds.is_empty() || self.kinds.iter().any(|word| is_of_kind(&name, word))
    }

    /// Returns whether the channel is told of this account. What concerns all accounts concerns
    /// every channel.
    #[must_use]
    pub fn wants_account(&self, waba_id: &str, labels: &[String]) -> bool {
        waba_id == ALL_ACCOUNTS
            || self.accounts.is_empty() && self.labels.is_empty()
            || self.accounts.iter().any(|account| account == waba_id)
            || self.labels.iter().any(|label| labels.contains(label))
    }
}

/// The end of a trouble goes where its beginning went.
fn is_of_kind(name: &str, word: &str) -> bool {
    let rest = name.strip_prefix(word);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || rest == "_over")
}

/// A channel, as far as it is told of something.
#[derive(Debug, Clone)]
pub struct Subscriber {
    /// The name of the channel.
    pub name: String,
    /// The choice of what it is told of.
    pub filter: Filter,
}

impl Subscriber {
    /// Returns the channels that are told of this.
    #[must_use]
    pub fn wanting(
        subscribers: &[Self],
        kind: AlertKind,
        waba_id: &str,
        labels: &[String],
    ) -> Vec<String> {
        subscribers
            .iter()
            .filter(|one| one.filter.wants_kind(kind) && one.filter.wants_account(waba_id, labels))
            .map(|one| one.name.clone())
            .collect()
    }
}

/// A notice that came later than this after its event, such as a replayed one, wakes nobody.
const NOTICE_AGE_LIMIT: time::Duration = time::Duration::DAY;

/// Decides whether people are told of a notice by itself. One that opens an incident is told by
/// that, and one that explains an open incident as its cause.
#[must_use]
pub fn is_notice_told(
    notice: &Notice,
    received_at: OffsetDateTime,
    is_evidence: bool,
    has_open_incident: bool,
) -> bool {
    let is_warning = match notice.meaning() {
        Meaning::Locks(_) => !has_open_incident,
        // A changed PIN and a template are no threat to the account.
        Meaning::Warns => {
            notice.field != "security" && !notice.field.starts_with("message_template")
        }
        Meaning::Lifts(_) | Meaning::Nothing => false,
    };
    is_warning && !is_evidence && received_at - notice.occurred_at <= NOTICE_AGE_LIMIT
}

/// An incident's change, and what is known when somebody is to be told.
#[derive(Debug, Clone, Copy)]
pub struct News {
    /// The change.
    pub kind: ChangeKind,
    /// When it happened.
    pub at: OffsetDateTime,
    /// The incident's cause by now.
    pub cause: LockoutCause,
    /// When the incident was over, if it is.
    pub ended_at: Option<OffsetDateTime>,
    /// The time at which it was first seen.
    pub first_seen_at: OffsetDateTime,
    /// When people were last told of its cause: by its opening or by a change.
    pub cause_told_at: Option<OffsetDateTime>,
    /// `true` if a person wants to hear nothing of the account.
    pub is_muted: bool,
    /// Now.
    pub now: OffsetDateTime,
}

/// What becomes of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// People are told.
    Tell(AlertKind),
    /// It is decided later.
    Wait,
    /// Nobody is told.
    Skip,
}

/// Decides whether people are told of a change.
#[must_use]
pub fn decide(news: &News) -> Decision {
    // What was over when it was first seen, such as a replayed payload, wakes nobody. Where people
    // were told of it meanwhile, they are told of its end.
    let was_over = news.ended_at.is_some_and(|end| end <= news.first_seen_at);
    if news.is_muted || was_over && news.cause_told_at.is_none() {
        return Decision::Skip;
    }
    match news.kind {
        ChangeKind::Opened => {
            let is_known = news.cause != LockoutCause::Pending || news.ended_at.is_some();
            match is_known || news.now - news.at >= OPENING_HOLD {
                true => Decision::Tell(AlertKind::Opened),
                false => Decision::Wait,
            }
        }
        ChangeKind::CauseFound(_) | ChangeKind::CauseChanged(_) => match news.cause_told_at {
            // The message of the opening says the cause.
            Some(told_at) if told_at >= news.at => Decision::Skip,
            _ if news.ended_at.is_some() => Decision::Skip,
            Some(told_at)
                if news.now - told_at < CAUSE_INTERVAL
                    && matches!(news.kind, ChangeKind::CauseChanged(_)) =>
            {
                Decision::Wait
            }
            _ => Decision::Tell(AlertKind::CauseChanged),
        },
        ChangeKind::Resolved(_) => match news.ended_at {
            Some(_) => Decision::Tell(AlertKind::Resolved),
            // It was opened again meanwhile.
            None => Decision::Skip,
        },
        ChangeKind::Reopened => Decision::Tell(AlertKind::Reopened),
        ChangeKind::Acknowledged => Decision::Skip,
        ChangeKind::Reminded if news.ended_at.is_some() => Decision::Skip,
        ChangeKind::Reminded => Decision::Tell(AlertKind::Reminder),
    }
}

/// How the messages that wait for a channel go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// So many of them, each by itself.
    Each(i64),
    /// All together.
    Digest,
}

/// Returns how messages go, of which so many were `told` in the last [`DIGEST_INTERVAL`] and so
/// many are `waiting`; `is_old`: one of these has waited for as long.
#[must_use]
pub fn pace(told: i64, waiting: i64, is_old: bool) -> Pace {
    match is_old && waiting > 1 {
        true => Pace::Digest,
        false => Pace::Each((AT_ONCE_LIMIT - told).clamp(0, waiting)),
    }
}

/// Returns the pause before the next try after so many failed ones; `None`: the message is given
/// up. `chance` is uniform between 0.0 and 1.0.
#[must_use]
pub fn next_try(attempts: u32, age: Duration, chance: f64) -> Option<Duration> {
    if age >= GIVE_UP_AFTER {
        return None;
    }
    let step = usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX);
    let pause = RETRY_INTERVALS
        .get(step)
        .copied()
        .unwrap_or(HOURLY_INTERVAL);
    Some(pause.mul_f64(0.9 + 0.2 * chance))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::super::incident::Resolution;
    use super::*;

    const T: OffsetDateTime = datetime!(2026-11-22 12:00 UTC);

    fn news(kind: ChangeKind) -> News {
        News {
            kind,
            at: T,
            cause: LockoutCause::Payment,
            ended_at: None,
            first_seen_at: T,
            cause_told_at: None,
            is_muted: false,
            now: T + time::Duration::SECOND,
        }
    }

    #[test]
    fn the_opening_waits_ten_seconds_for_the_cause() {
        let pending = News {
            cause: LockoutCause::Pending,
            ..news(ChangeKind::Opened)
        };
        assert_eq!(decide(&pending), Decision::Wait);
        let late = News {
            now: T + OPENING_HOLD,
            ..pending
        };
        assert_eq!(decide(&late), Decision::Tell(AlertKind::Opened));
        let known = news(ChangeKind::Opened);
        assert_eq!(decide(&known), Decision::Tell(AlertKind::Opened));
    }

    #[test]
    fn a_cause_is_told_once_and_changes_at_intervals() {
        let found = ChangeKind::CauseFound(LockoutCause::Payment);
        let changed = ChangeKind::CauseChanged(LockoutCause::Payment);
        let told = |kind, seconds: i64| News {
            cause_told_at: Some(T + time::Duration::seconds(seconds)),
            ..news(kind)
        };
        assert_eq!(decide(&told(found, 0)), Decision::Skip, "in the opening");
        assert_eq!(
            decide(&told(found, -3)),
            Decision::Tell(AlertKind::CauseChanged)
        );
        assert_eq!(decide(&told(changed, -3)), Decision::Wait);
        assert_eq!(
            decide(&told(changed, -300)),
            Decision::Tell(AlertKind::CauseChanged)
        );
    }

    #[test]
    fn what_was_over_when_it_was_first_seen_wakes_nobody() {
        for kind in [
            ChangeKind::Opened,
            ChangeKind::CauseFound(LockoutCause::Payment),
            ChangeKind::Resolved(Resolution::Quiet),
        ] {
            let old = News {
                ended_at: Some(T - time::Duration::DAY),
                ..news(kind)
            };
            assert_eq!(decide(&old), Decision::Skip, "{kind:?}");
        }
        let told = News {
            ended_at: Some(T - time::Duration::DAY),
            cause_told_at: Some(T),
            ..news(ChangeKind::Resolved(Resolution::Reinstated))
        };
        assert_eq!(
            decide(&told),
            Decision::Tell(AlertKind::Resolved),
            "it was told as open"
        );
        let muted = News {
            is_muted: true,
            ..news(ChangeKind::Opened)
        };
        assert_eq!(decide(&muted), Decision::Skip);
        let over = News {
            ended_at: Some(T + time::Duration::SECOND),
            ..news(ChangeKind::Resolved(Resolution::Reinstated))
        };
        assert_eq!(decide(&over), Decision::Tell(AlertKind::Resolved));
    }

    #[test]
    fn names_are_parsed_back_and_families_choose() {
        for kind in AlertKind::all() {
            assert_eq!(AlertKind::parse(&kind.name()), Some(kind));
        }
        let wants = |words: &[&str], kind| {
            let kinds = words.iter().map(|word| (*word).to_owned()).collect();
            let filter = Filter {
                kinds,
                ..Filter::default()
            };
            filter.wants_kind(kind)
        };
        let silent = TroubleKind::CallbacksSilent;
        assert!(wants(&[], AlertKind::Reminder));
        assert!(wants(&["incident"], AlertKind::Reopened));
        assert!(!wants(&["incident.opened"], AlertKind::Resolved));
        assert!(!wants(&["incident"], AlertKind::Began(silent)));
        assert!(wants(
            &["lockwatch.callbacks_silent"],
            AlertKind::Over(silent)
        ));
        assert!(Filter::knows_kind("account") && Filter::knows_kind("account.notice"));
        assert!(!Filter::knows_kind("accounts") && !Filter::knows_kind("incident.open"));
        assert!(!Filter::knows_kind(""));
    }

    #[test]
    fn accounts_and_labels_choose_accounts() {
        let filter = Filter {
            accounts: vec!["1".to_owned()],
            labels: vec!["eu".to_owned()],
            ..Filter::default()
        };
        let eu = ["eu".to_owned()];
        assert!(filter.wants_account("1", &[]));
        assert!(filter.wants_account("2", &eu));
        assert!(!filter.wants_account("2", &[]));
        assert!(filter.wants_account(ALL_ACCOUNTS, &[]));
    }

    #[test]
    fn five_go_at_once_and_the_rest_together() {
        assert_eq!(pace(0, 40, false), Pace::Each(5));
        assert_eq!(pace(3, 40, false), Pace::Each(2));
        assert_eq!(pace(5, 35, false), Pace::Each(0));
        assert_eq!(pace(5, 35, true), Pace::Digest);
        assert_eq!(pace(0, 1, true), Pace::Each(1), "one is no digest");
    }

    #[test]
    fn tries_grow_to_hourly_and_end_after_a_day() {
        let pause = |attempts| next_try(attempts, Duration::ZERO, 0.5).unwrap().as_secs();
        assert_eq!(
            [1, 2, 3, 6, 7, 99].map(pause),
            [5, 30, 120, 1800, 3600, 3600]
        );
        assert_eq!(next_try(1, GIVE_UP_AFTER, 0.5), None);
    }
}
