//! The account-level error codes of failed messages: what is locked, and why.
//!
//! | code | kind | stops | explains |
//! | --- | --- | --- | --- |
//! | 131031 | `lock` | every message of the account | nothing: Meta gives no reason |
//! | 368 | `lock` | every message of the account | a policy violation |
//! | 131042 | `payment` | the account's templates | a payment problem |
//! | 131045, 133010 | `registration` | every message of the number | the number is not registered |
//! | 130497 | `country` | messages to some countries | another restriction |
//! | 131064 | `limit` | the account's templates | another restriction |
//!
//! Source: [Meta: error codes](https://developers.facebook.com/documentation/business-messaging/whatsapp/support/error-codes).

use super::cause::{Finding, LockoutCause, Scope, Severity, Source};

/// What is locked. An account has one open incident of each kind at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The account.
    Lock,
    /// Its templates, for want of a payment.
    Payment,
    /// Single numbers, which are not registered.
    Registration,
    /// Messages to some countries.
    Country,
    /// Its templates, of which a limit is used up.
    Limit,
}

impl Kind {
    /// Every kind, the gravest first.
    pub const ALL: [Self; 5] = [
        Self::Lock,
        Self::Payment,
        Self::Registration,
        Self::Country,
        Self::Limit,
    ];

    /// The word for it in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Payment => "payment",
            Self::Registration => "registration",
            Self::Country => "country",
            Self::Limit => "limit",
        }
    }

    /// Parses a word of the database.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// Returns the kind of incident that a watched code belongs to.
    #[must_use]
    pub fn of_code(code: i32) -> Self {
        match code {
            131_042 => Self::Payment,
            131_045 | 133_010 => Self::Registration,
            130_497 => Self::Country,
            131_064 => Self::Limit,
            _ => Self::Lock,
        }
    }

    /// What an account is or was, after "Account 1022" in a sentence for a person.
    #[must_use]
    pub fn state(self, is_open: bool) -> &'static str {
        match (self, is_open) {
            (Self::Lock, true) => "is locked",
            (Self::Lock, false) => "was locked",
            (Self::Payment, true) => "cannot send templates, for want of a payment",
            (Self::Payment, false) => "could not send templates, for want of a payment",
            (Self::Registration, true) => "has a number that is not registered",
            (Self::Registration, false) => "had a number that was not registered",
            (Self::Country, true) => "cannot reach some countries",
            (Self::Country, false) => "could not reach some countries",
            (Self::Limit, true) => "has used up its limit for templates",
            (Self::Limit, false) => "had used up its limit for templates",
        }
    }

    /// The reason that the codes of this kind name; `None` for a lock, which may have any.
    #[must_use]
    pub fn cause(self) -> Option<LockoutCause> {
        match self {
            Self::Lock => None,
            Self::Payment => Some(LockoutCause::Payment),
            Self::Registration => Some(LockoutCause::PhoneRegistration),
            Self::Country | Self::Limit => Some(LockoutCause::OtherRestriction),
        }
    }
}

/// Returns what the code of a failed message says about the reason; `None` for 131031, which names
/// none.
#[must_use]
pub fn finding_of_code(code: i32) -> Option<Finding> {
    let (scope, explains, severity, text) = match code {
        368 => (
            Scope::Account,
            LockoutCause::PolicyViolation,
            Severity::Full,
            "Messages fail with 368: Meta has blocked the account for violations of its policies.",
        ),
        131_042 => (
            Scope::Account,
            LockoutCause::Payment,
            Severity::Partial,
            "Messages fail with 131042: Meta cannot charge the account.",
        ),
        131_045 => (
            Scope::Number,
            LockoutCause::PhoneRegistration,
            Severity::Full,
            "Messages fail with 131045: the registration of the number has failed.",
        ),
        133_010 => (
            Scope::Number,
            LockoutCause::PhoneRegistration,
            Severity::Full,
            "Messages fail with 133010: the number is not registered.",
        ),
        130_497 => (
            Scope::Account,
            LockoutCause::OtherRestriction,
            Severity::Partial,
            "Messages fail with 130497: the account may not message people in some countries.",
        ),
        131_064 => (
            Scope::Account,
            LockoutCause::OtherRestriction,
            Severity::Partial,
            "Messages fail with 131064: the limit for templates is used up, after templates that \
             were classified wrongly.",
        ),
        _ => return None,
    };
    Some(Finding {
        scope,
        source: Source::Failure,
        explains: Some(explains),
        severity,
        summary: text.to_owned(),
        verdict: None,
        entity_type: None,
        entity_id: None,
        error_code: Some(i64::from(code)),
        possible_solution: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::codes::ACCOUNT_CODES;

    #[test]
    fn every_code_has_a_kind_and_its_reason() {
        for code in ACCOUNT_CODES {
            let kind = Kind::of_code(code);
            let finding = finding_of_code(code);
            let explains = finding.as_ref().and_then(|finding| finding.explains);
            match code {
                131_031 => assert_eq!((kind, explains), (Kind::Lock, None)),
                368 => assert_eq!(explains, Some(LockoutCause::PolicyViolation)),
                _ => assert_eq!(explains, kind.cause(), "{code}"),
            }
            if let Some(finding) = finding {
                assert!(finding.summary.contains(&code.to_string()), "{code}");
            }
            assert_eq!(Kind::parse(kind.as_str()), Some(kind));
        }
    }
}
