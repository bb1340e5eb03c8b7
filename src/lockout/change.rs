//! Changes: the steps in the life of an incident.

use super::cause::LockoutCause;
use super::incident::Resolution;
use crate::meta::ids::WabaId;

/// One step in the life of an incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The incident.
    pub incident_id: i64,
    /// Its account.
    pub waba_id: WabaId,
    /// The step.
    pub kind: ChangeKind,
}

/// The kinds of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// The incident was opened.
    Opened,
    /// The incident has this cause now.
    CauseSet(LockoutCause),
    /// The incident is over.
    Resolved(Resolution),
}
