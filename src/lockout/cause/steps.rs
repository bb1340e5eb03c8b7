//! The next steps for the person who has to act.

use super::LockoutCause;
use super::findings::{Finding, Scope, Source};
use crate::meta::graph_error::Denial;
use crate::meta::node_fields::is_id;

/// What the next steps follow from.
#[derive(Debug, Clone, Copy)]
pub struct Advice<'a> {
    /// The cause.
    pub cause: LockoutCause,
    /// Why the look-up is refused, if that is the cause.
    pub denial: Option<Denial>,
    /// Meta's own advice.
    pub possible_solution: Option<&'a str>,
    /// What was found beside the cause.
    pub also_found: &'a [Finding],
    /// The id of the business portfolio that owns the account: its admins can appeal.
    pub portfolio_id: Option<&'a str>,
    /// How the last look-up failed, if look-ups have failed for long.
    pub fault: Option<&'a str>,
}

/// Returns the next steps for a person: sentences in the order to act on them. Meta's own advice
/// comes first, if it gave any.
#[must_use]
pub fn next_steps(advice: &Advice<'_>) -> Vec<String> {
    let mut steps: Vec<String> = advice
        .possible_solution
        .map(|solution| format!("Meta's advice: {solution}"))
        .into_iter()
        .collect();
    steps.extend(moved_numbers(advice.also_found));
    steps.extend(steps_for(advice));
    steps
}

/// Returns a link to the place where Meta shows violations and takes requests for a review.
#[must_use]
pub fn support_home_url(portfolio_id: Option<&str>) -> String {
    const URL: &str = "https://business.facebook.com/business-support-home";
    match portfolio_id.filter(|id| is_id(id)) {
        Some(id) => format!("{URL}/?business_id={id}"),
        None => URL.to_owned(),
    }
}

/// A number that moved to another account fails for that reason alone.
fn moved_numbers(also_found: &[Finding]) -> Option<String> {
    let moved = also_found.iter().find(|finding| {
        finding.source == Source::Check
            && finding.scope == Scope::Number
            && finding.entity_type.as_deref() == Some("WABA")
    })?;
    let account = moved.entity_id.as_deref().unwrap_or_default();
    Some(format!(
        "Look at account {account} first: at least one of the numbers belongs to it now, and what \
         Meta says there decides."
    ))
}

fn steps_for(advice: &Advice<'_>) -> Vec<String> {
    let home = format!(
        "Business Support Home ({})",
        support_home_url(advice.portfolio_id)
    );
    let text = |steps: &[&str]| steps.iter().map(ToString::to_string).collect();
    match advice.cause {
        LockoutCause::PolicyViolation => vec![
            format!("Open {home}, choose the account and read the violation."),
            "Stop the messages that led to it, then press Request Review; Meta decides in 24 to 48 \
             hours. Only an admin of the business portfolio can do that."
                .to_owned(),
        ],
        LockoutCause::Payment => text(&[
            "Open Billing & payments (https://business.facebook.com/billing_hub) in Meta Business \
             Suite and add or repair the account's payment method.",
            "Pay what is open there; sending works again within minutes to hours.",
        ]),
        LockoutCause::BusinessVerification => text(&[
            "Open Security Center in Meta Business settings and start the business verification, \
             or resume it.",
            "Have the business's legal documents at hand; until Meta has decided, the block stays.",
        ]),
        LockoutCause::PhoneRegistration => text(&[
            "Open WhatsApp Manager > Phone numbers and check that the number is connected.",
            "If it is not, register it again (POST /<PHONE_NUMBER_ID>/register with its two-step \
             PIN).",
        ]),
        LockoutCause::TwoStepVerification => text(&[
            "Open WhatsApp Manager > Phone numbers > Two-step verification and set a new PIN.",
            "Register the number again with that PIN; wait first if Meta says that there were too \
             many guesses.",
        ]),
        LockoutCause::OtherRestriction => vec![
            format!("Open {home}, choose the account and read the restriction."),
            "If nothing there explains it, request a review.".to_owned(),
        ],
        LockoutCause::Unreported => vec![
            format!(
                "Look for a violation in {home}: during spam locks Meta's health check shows \
                 nothing."
            ),
            "If there is one, stop what led to it and press Request Review; Meta decides in 24 to \
             48 hours."
                .to_owned(),
            "If there is none, check that the two-step PIN and the account's details match what \
             your software sends."
                .to_owned(),
        ],
        LockoutCause::LookupDenied => vec![
            denial_step(advice.denial.unwrap_or(Denial::Unexplained)).to_owned(),
            format!("Meanwhile, look for a violation of the account in {home}."),
        ],
        LockoutCause::Pending => {
            let first = match advice.fault {
                Some(fault) => format!(
                    "Check that this server can reach graph.facebook.com over HTTPS (through a \
                     proxy: LOCKWATCH_GRAPH_PROXY): look-ups keep failing, the last one with: {}.",
                    fault.trim_end_matches('.')
                ),
                None => "Meta's answer is on its way: the look-up is tried again until it comes."
                    .to_owned(),
            };
            vec![
                first,
                format!("Do not wait for it: look for a violation of the account in {home}."),
            ]
        }
    }
}

/// Returns what makes the look-up work again.
#[must_use]
pub(crate) fn denial_step(denial: Denial) -> &'static str {
    match denial {
        Denial::NoToken => {
            "Give Lockwatch the token of a system user (META_ACCESS_TOKEN) with \
             whatsapp_business_management and whatsapp_business_messaging for this account."
        }
        Denial::TokenInvalid => {
            "Make a new token of a system user, with no expiry, with whatsapp_business_management \
             and whatsapp_business_messaging, and give it to Lockwatch (META_ACCESS_TOKEN). After \
             a ban Meta can make tokens invalid, too."
        }
        Denial::Permission => {
            "Give the token's system user access to this account in Meta Business settings, and \
             the token the permissions whatsapp_business_management and \
             whatsapp_business_messaging."
        }
        Denial::OtherApp => {
            "Make the token in the app whose app secret is in META_APP_SECRET, or add the app \
             secret of the token's app there, after a comma."
        }
        Denial::NoProof => {
            "The app demands an appsecret_proof, and Lockwatch sent none: this is a defect of \
             Lockwatch. Please report it."
        }
        Denial::IpAllowlist => {
            "Add the address of this server to the app's allowed addresses (App Dashboard > App \
             settings > Advanced > Security > Server IP allowlist)."
        }
        Denial::GraphVersion => {
            "Set META_GRAPH_VERSION to a version that exists, such as v25.0, and check that the id is \
             that of a phone number: Graph does not know the version, or not the field."
        }
        Denial::UnknownNode => {
            "Check whether the number still exists and which business owns it; if it does, give \
             the token's system user access to its account in Meta Business settings."
        }
        Denial::NoVerdict => {
            "Ask again with `lockwatch check` later: Meta answers the look-up, but without a \
             verdict on any entity."
        }
        Denial::Unexplained => {
            "Look up Meta's error code: Meta refuses the look-up again and again, with a code that \
             Lockwatch does not know."
        }
    }
}
