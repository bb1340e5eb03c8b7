//! The next steps for the person who has to act.

use super::LockoutCause;

/// Returns the next steps for a person: sentences in the order to act on them. `possible_solution`
/// is Meta's own advice, if it gave any. It comes first.
#[must_use]
pub fn next_steps(cause: LockoutCause, possible_solution: Option<&str>) -> Vec<String> {
    possible_solution
        .map(|solution| format!("Meta's advice: {solution}"))
        .into_iter()
        .chain(steps_for(cause).iter().map(ToString::to_string))
        .collect()
}

/// The place where Meta shows violations and takes requests for a review.
macro_rules! support_home {
    () => {
        "Business Support Home (https://business.facebook.com/business-support-home)"
    };
}

fn steps_for(cause: LockoutCause) -> &'static [&'static str] {
    match cause {
        LockoutCause::PolicyViolation => &[
            concat!(
                "Open ",
                support_home!(),
                ", choose the account and read the violation."
            ),
            "Stop the messages that led to it, then press Request Review; Meta decides in 24 to 48 \
             hours.",
        ],
        LockoutCause::Payment => &[
            "Open Billing & payments in Meta Business Suite and add or repair the account's \
             payment method.",
            "Pay what is open there; sending works again within minutes to hours.",
        ],
        LockoutCause::BusinessVerification => &[
            "Open Security Center in Meta Business settings and start the business verification, \
             or resume it.",
            "Have the business's legal documents at hand; until Meta has decided, the limit stays.",
        ],
        LockoutCause::PhoneRegistration => &[
            "Open WhatsApp Manager > Phone numbers and check that the number is connected.",
            "If it is not, register it again (POST /<PHONE_NUMBER_ID>/register with its two-step \
             PIN).",
        ],
        LockoutCause::TwoStepVerification => &[
            "Open WhatsApp Manager > Phone numbers > Two-step verification and set a new PIN.",
            "Register the number again with that PIN; wait first if Meta says that there were too \
             many guesses.",
        ],
        LockoutCause::OtherRestriction => &[
            concat!(
                "Open ",
                support_home!(),
                ", choose the account and read the restriction."
            ),
            "If nothing there explains it, request a review.",
        ],
        LockoutCause::Unreported => &[
            concat!(
                "Look for a violation in ",
                support_home!(),
                ": during spam locks Meta's health check shows nothing."
            ),
            "If there is one, stop what led to it and press Request Review; Meta decides in 24 to \
             48 hours.",
            "If there is none, check that the two-step PIN and the account's details match what \
             your software sends.",
        ],
        LockoutCause::LookupDenied => &[
            "Give Lockwatch a system user's token (META_ACCESS_TOKEN) with \
             whatsapp_business_management and whatsapp_business_messaging for this account.",
            concat!(
                "Meanwhile, look for a violation of the account in ",
                support_home!(),
                "."
            ),
        ],
        LockoutCause::Pending => &[
            "Meta's answer is on its way: the look-up is tried again until it comes.",
            concat!(
                "Do not wait for it: look for a violation of the account in ",
                support_home!(),
                "."
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_steps_after_metas_advice() {
        for cause in LockoutCause::ALL {
            let steps = next_steps(cause, None);
            assert!(
                !steps.is_empty()
                    && steps
                        .iter()
                        .all(|step| !step.contains('{') && step.ends_with('.')),
                "{cause}"
            );
            assert_eq!(LockoutCause::parse(cause.as_str()), Some(cause));
        }
        assert_eq!(
            next_steps(LockoutCause::Payment, Some("Pay."))[0],
            "Meta's advice: Pay."
        );
    }
}
