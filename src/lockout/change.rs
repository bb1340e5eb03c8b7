//! Changes of an incident: it is opened, gets a cause, and is resolved.

use super::cause::LockoutCause;
use super::incident::Resolution;
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
}

/// The kinds of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// The incident was opened.
    Opened,
    /// The incident got this cause.
    CauseSet(LockoutCause),
    /// The incident was resolved.
    Resolved(Resolution),
}
