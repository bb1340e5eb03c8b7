//! Troubles: what keeps Lockwatch from hearing of a lock or from telling its cause, and when people
//! are told of it.
//!
//! A trouble is told once when it has lasted, and once when it is over; what comes and goes is
//! neither.

use std::time::Duration;

use time::OffsetDateTime;

/// A trouble that people were told of and that is away for less than this is not over.
pub const OVER_AFTER: Duration = Duration::from_secs(5 * 60);
/// The shortest silence that counts, however lively an account is.
pub const SILENCE_MIN: Duration = Duration::from_secs(60 * 60);
/// A silence counts from this many times the longest one of the last days.
pub const SILENCE_FACTOR: i32 = 2;
/// The days whose silences tell what is usual; it takes [`SILENCE_MIN_DAYS`] to know.
pub const SILENCE_DAYS: i32 = 14;
/// Before it has been heard on this many days, nobody knows what is usual for an account.
pub const SILENCE_MIN_DAYS: i64 = 3;
/// New parts in quarantine are news for this long.
pub const QUARANTINE_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);
/// A callback that waits in the inbox for longer than this is stuck.
pub const INBOX_WAIT_LIMIT: Duration = Duration::from_secs(60);

/// The word for trouble that concerns no single account.
pub const ALL_ACCOUNTS: &str = "all";

/// The kinds of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TroubleKind {
    /// Nothing is recorded: the database is away, or the processor stands still.
    NotRecording,
    /// No callback comes, longer than is usual.
    CallbacksSilent,
    /// An account no longer reports to our app.
    SubscriptionLost,
    /// An access token ends soon, or has ended.
    TokenExpiring,
    /// Callbacks wait in the inbox and are not processed.
    InboxStuck,
    /// Parts of callbacks could not be read.
    Quarantined,
    /// Look-ups of the cause fail again and again.
    LookupsFailing,
}

impl TroubleKind {
    /// Every kind, the gravest first.
    pub const ALL: [Self; 7] = [
        Self::NotRecording,
        Self::CallbacksSilent,
        Self::SubscriptionLost,
        Self::TokenExpiring,
        Self::InboxStuck,
        Self::Quarantined,
        Self::LookupsFailing,
    ];

    /// The kinds that the database can tell.
    pub const IN_DATABASE: [Self; 6] = [
        Self::CallbacksSilent,
        Self::SubscriptionLost,
        Self::TokenExpiring,
        Self::InboxStuck,
        Self::Quarantined,
        Self::LookupsFailing,
    ];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotRecording => "not_recording",
            Self::CallbacksSilent => "callbacks_silent",
            Self::SubscriptionLost => "subscription_lost",
            Self::TokenExpiring => "token_expiring",
            Self::InboxStuck => "inbox_stuck",
            Self::Quarantined => "quarantined",
            Self::LookupsFailing => "lookups_failing",
        }
    }

    /// Parses a word. `None`: a later version wrote it.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// The trouble in a few words for a person.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::NotRecording => "Lockwatch records nothing",
            Self::CallbacksSilent => "No callback comes from Meta",
            Self::SubscriptionLost => "Meta no longer reports to this app",
            Self::TokenExpiring => "The access token ends",
            Self::InboxStuck => "Callbacks wait and are not processed",
            Self::Quarantined => "Parts of callbacks could not be read",
            Self::LookupsFailing => "Causes cannot be looked up",
        }
    }

    /// The first thing to do.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::NotRecording => {
                "Bring the database back. Meta gets 503 and sends its callbacks again for 7 days, \
                 so nothing is lost until then."
            }
            Self::CallbacksSilent => {
                "Send a test message. If no callback comes, check in Meta's App Dashboard that the \
                 callback URL is this one, that the field messages is subscribed, and that the \
                 app is subscribed to the account."
            }
            Self::SubscriptionLost => {
                "Subscribe the app to the account again: POST /<WABA_ID>/subscribed_apps with its \
                 access token. Until then no lock of the account is reported."
            }
            Self::TokenExpiring => {
                "Make a token of a system user without an expiry, with \
                 whatsapp_business_management and whatsapp_business_messaging, and give it to \
                 Lockwatch. Without a token lockouts are recorded, but not their causes."
            }
            Self::InboxStuck => {
                "See `lockwatch inbox list` for the reason, and the log of each process."
            }
            Self::Quarantined => {
                "Update Lockwatch, then run `lockwatch captures retry`. Until then look at the \
                 account in Meta's WhatsApp Manager: a lock may be among what could not be read."
            }
            Self::LookupsFailing => {
                "See the page of an open incident for Meta's answer. `lockwatch check NODE_ID` \
                 asks Meta now."
            }
        }
    }

    /// How long it lasts before people are told. Some observations are of something that has lasted
    /// already.
    #[must_use]
    pub fn told_after(self) -> Duration {
        match self {
            Self::NotRecording | Self::InboxStuck => Duration::from_secs(60),
            // A restart of ours is followed by what Meta could not deliver meanwhile.
            Self::CallbacksSilent => Duration::from_secs(10 * 60),
            Self::Quarantined | Self::SubscriptionLost | Self::TokenExpiring => Duration::ZERO,
            Self::LookupsFailing => Duration::from_secs(60),
        }
    }
}

/// A trouble as it is observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// Callbacks wait in the inbox.
    InboxStuck {
        /// So many.
        callbacks: i64,
        /// The oldest for so long.
        oldest: time::Duration,
        /// Why one of them could not be processed.
        problem: Option<String>,
    },
    /// Parts of callbacks came that could not be read.
    Quarantined {
        /// The account, or `unknown`.
        waba_id: String,
        /// So many.
        parts: i64,
        /// Why one of them could not be read.
        reason: String,
    },
    /// Look-ups fail again and again.
    LookupsFailing {
        /// The account.
        waba_id: String,
        /// Of so many numbers.
        numbers: i64,
        /// So many times in a row.
        failures: i32,
        /// The latest answer of Meta or the network.
        error: Option<String>,
    },
    /// Graph told something of us.
    SelfCheck {
        /// Its meaning.
        kind: TroubleKind,
        /// The account, or `all`.
        waba_id: String,
        /// The problem in a sentence.
        problem: String,
    },
    /// No callback comes.
    CallbacksSilent {
        /// The account, or `all`.
        waba_id: String,
        /// The time of the last one.
        last_at: OffsetDateTime,
        /// For so long.
        silence: time::Duration,
        /// The longest silence of the days before.
        usual: time::Duration,
    },
}

impl Fact {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> TroubleKind {
        match self {
            Self::InboxStuck { .. } => TroubleKind::InboxStuck,
            Self::Quarantined { .. } => TroubleKind::Quarantined,
            Self::LookupsFailing { .. } => TroubleKind::LookupsFailing,
            Self::CallbacksSilent { .. } => TroubleKind::CallbacksSilent,
            Self::SelfCheck { kind, .. } => *kind,
        }
    }

    /// The account that it concerns, or `all`.
    #[must_use]
    pub fn waba_id(&self) -> &str {
        match self {
            Self::InboxStuck { .. } => ALL_ACCOUNTS,
            Self::Quarantined { waba_id, .. }
            | Self::LookupsFailing { waba_id, .. }
            | Self::SelfCheck { waba_id, .. }
            | Self::CallbacksSilent { waba_id, .. } => waba_id,
        }
    }
}

/// A trouble, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Course {
    /// The time at which it was first seen.
    pub began_at: OffsetDateTime,
    /// The time at which it was last seen.
    pub seen_at: OffsetDateTime,
    /// `true` if people were told.
    pub is_told: bool,
}

/// The next step of a trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing changes.
    Stay,
    /// People are told that it lasts.
    TellBegin,
    /// It is over, and people are told.
    TellEnd,
    /// It is over, and nobody ever knew.
    Forget,
}

/// Decides what becomes of a trouble that is there now, or is not.
#[must_use]
pub fn next_step(kind: TroubleKind, course: &Course, is_there: bool, now: OffsetDateTime) -> Step {
    if is_there {
        let has_lasted = now - course.began_at >= kind.told_after();
        return match has_lasted && !course.is_told {
            true => Step::TellBegin,
            false => Step::Stay,
        };
    }
    // What went away before people were told did not last.
    match course.is_told {
        false => Step::Forget,
        true if now - course.seen_at >= OVER_AFTER => Step::TellEnd,
        true => Step::Stay,
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_trouble_is_told_when_it_lasts_and_when_it_is_over() {
        let began_at = datetime!(2026-11-28 03:00 UTC);
        let seen = |seconds: i64, is_told| Course {
            began_at,
            seen_at: began_at + Duration::seconds(seconds),
            is_told,
        };
        let at = |seconds| began_at + Duration::seconds(seconds);
        for (course, is_there, now, step) in [
            (seen(0, false), true, 59, Step::Stay),
            (seen(59, false), true, 60, Step::TellBegin),
            (seen(60, true), true, 3600, Step::Stay),
            (seen(60, true), false, 61, Step::Stay),
            (seen(60, true), false, 359, Step::Stay),
            (seen(60, true), false, 360, Step::TellEnd),
            (seen(10, false), false, 15, Step::Forget),
        ] {
            let kind = TroubleKind::InboxStuck;
            assert_eq!(next_step(kind, &course, is_there, at(now)), step, "{now}");
        }
    }

    #[test]
    fn words_are_parsed_back() {
        for kind in TroubleKind::ALL {
            assert_eq!(TroubleKind::parse(kind.as_str()), Some(kind));
        }
    }
}
