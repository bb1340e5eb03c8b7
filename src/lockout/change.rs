//! Changes of an incident: it is opened, gets a cause, is acknowledged, is resolved, and is open
//! again.

use super::cause::LockoutCause;
use super::incident::Resolution;
use super::person::Person;
use crate::meta::ids::WabaId;

/// One change of an incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The incident.
    pub incident_id: i64,
    /// Its account.
    pub waba_id: WabaId,
    /// The kind of the change.
    pub kind: ChangeKind,
    /// The person who made it, if one did.
    pub by: Option<Person>,
}

/// The kinds of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// The incident was opened.
    Opened,
    /// The incident got its first cause.
    CauseFound(LockoutCause),
    /// The incident got another cause.
    CauseChanged(LockoutCause),
    /// The incident was resolved.
    Resolved(Resolution),
    /// A person has seen it.
    Acknowledged,
    /// It is still open a day after people were last told.
    Reminded,
    /// The incident goes on: a late failure or notice shows it, or a person said so.
    Reopened,
}

impl ChangeKind {
    /// The word for it in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::CauseFound(_) => "cause_found",
            Self::CauseChanged(_) => "cause_changed",
            Self::Resolved(_) => "resolved",
            Self::Acknowledged => "acknowledged",
            Self::Reminded => "reminded",
            Self::Reopened => "reopened",
        }
    }

    /// The cause or the resolution, as a word.
    #[must_use]
    pub fn detail(self) -> Option<&'static str> {
        match self {
            Self::Opened | Self::Acknowledged | Self::Reminded | Self::Reopened => None,
            Self::CauseFound(cause) | Self::CauseChanged(cause) => Some(cause.as_str()),
            Self::Resolved(resolution) => Some(resolution.as_str()),
        }
    }

    /// Parses the words of the database. `None`: a later version wrote them.
    #[must_use]
    pub fn parse(kind: &str, detail: Option<&str>) -> Option<Self> {
        let cause = || detail.and_then(LockoutCause::parse);
        match kind {
            "opened" => Some(Self::Opened),
            "cause_found" => cause().map(Self::CauseFound),
            "cause_changed" => cause().map(Self::CauseChanged),
            "resolved" => detail.and_then(Resolution::parse).map(Self::Resolved),
            "acknowledged" => Some(Self::Acknowledged),
            "reminded" => Some(Self::Reminded),
            "reopened" => Some(Self::Reopened),
            _ => None,
        }
    }
}
