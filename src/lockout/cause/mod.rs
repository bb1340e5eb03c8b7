//! The cause of a lockout, and the next steps for a person.
//!
//! A [`LockoutCause`] is the kind of reason. [`findings_of`] reads Meta's answers, [`choose`] finds
//! the cause in what they show, and [`next_steps`] returns the sentences for the person who has to
//! act.

mod choice;
mod events;
mod findings;
mod steps;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::choice::{
    Cause, Confidence, Denied, NumberEvidence, NumberFindings, Shown, choose, explain_nothing,
    findings_of, is_clear,
};
pub(crate) use self::events::NOTICE_WINDOW;
pub use self::events::{
    Lifted, Meaning, Notice, findings_of_notices, is_ban, meaning, notice_times,
};
pub use self::findings::{Finding, Scope, Severity, Source, is_stopped_by_status, verdict};
pub(crate) use self::steps::denial_step;
pub use self::steps::{Advice, next_steps, support_home_url};

/// The reason why an account is locked. The order is that of the rules: of equally severe reasons,
/// the earlier one is the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, utoipa::ToSchema)]
#[schema(as = Cause, rename_all = "snake_case")]
pub enum LockoutCause {
    /// The account or its business broke a policy.
    PolicyViolation,
    /// A payment method is missing or failed.
    Payment,
    /// The business has not passed verification.
    BusinessVerification,
    /// The number is not registered, or its certificate does not match.
    PhoneRegistration,
    /// The two-step verification PIN is missing or wrong.
    TwoStepVerification,
    /// Meta restricts an entity, with an unknown code or with none.
    OtherRestriction,
    /// Meta reports everything as AVAILABLE and gives no reason.
    Unreported,
    /// Meta refuses the look-up, or there is no token for it.
    LookupDenied,
    /// Meta has not answered yet.
    Pending,
}

impl LockoutCause {
    /// Every cause, in the order of the rules.
    pub const ALL: [Self; 9] = [
        Self::PolicyViolation,
        Self::Payment,
        Self::BusinessVerification,
        Self::PhoneRegistration,
        Self::TwoStepVerification,
        Self::OtherRestriction,
        Self::Unreported,
        Self::LookupDenied,
        Self::Pending,
    ];

    /// The word for it in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PolicyViolation => "policy_violation",
            Self::Payment => "payment",
            Self::BusinessVerification => "business_verification",
            Self::PhoneRegistration => "phone_registration",
            Self::TwoStepVerification => "two_step_verification",
            Self::OtherRestriction => "other_restriction",
            Self::Unreported => "unreported",
            Self::LookupDenied => "lookup_denied",
            Self::Pending => "pending",
        }
    }

    /// Returns the cause for a word in the database; `None` for a word of a later version.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == word)
    }

    /// The cause in a few words for a person.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::PolicyViolation => "Policy violation",
            Self::Payment => "Payment problem",
            Self::BusinessVerification => "Business not verified",
            Self::PhoneRegistration => "Number not registered",
            Self::TwoStepVerification => "Two-step PIN problem",
            Self::OtherRestriction => "Other restriction by Meta",
            Self::Unreported => "Meta gives no reason",
            Self::LookupDenied => "Cause unknown, look-up refused",
            Self::Pending => "Cause is being looked up",
        }
    }

    /// Returns whether Meta named this cause. A found cause stays until another found one replaces
    /// it.
    #[must_use]
    pub fn is_found(self) -> bool {
        match self {
            Self::PolicyViolation
            | Self::Payment
            | Self::BusinessVerification
            | Self::PhoneRegistration
            | Self::TwoStepVerification
            | Self::OtherRestriction => true,
            Self::Unreported | Self::LookupDenied | Self::Pending => false,
        }
    }
}

impl fmt::Display for LockoutCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for LockoutCause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for LockoutCause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        // A cause of a later version explains the lock, too.
        Ok(Self::parse(&word).unwrap_or(Self::OtherRestriction))
    }
}
