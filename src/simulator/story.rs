//! A night as Meta tells it: an account is warned, disabled, and reinstated in the morning.

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::meta::compose::{StatusCallback, message_id};

/// The account of the story.
pub const ACCOUNT: &str = "102290129340398";
/// Its number.
pub const NUMBER: &str = "106540352242922";
/// The length of the story.
pub const LENGTH: Duration = Duration::minutes(300);

/// One thing that happens in the story.
#[derive(Debug, Clone)]
pub struct Scene {
    /// When it happens.
    pub at: OffsetDateTime,
    /// Who does it: Meta, or you.
    pub who: &'static str,
    /// What happens, for a person.
    pub line: &'static str,
    /// The callback that Meta posts about it; `None` if nobody tells Lockwatch.
    pub callback: Option<Vec<u8>>,
}

/// Returns the scenes of a night that starts at this time, in their order.
#[must_use]
pub fn night(start: OffsetDateTime) -> Vec<Scene> {
    let event = |minutes: i64, line: &'static str, field: &str, value: Value| {
        let at = start + Duration::minutes(minutes);
        let change = json!({"field": field, "value": value});
        let entry = json!({"id": ACCOUNT, "time": at.unix_timestamp(), "changes": [change]});
        let body = json!({"object": "whatsapp_business_account", "entry": [entry]});
        let callback = Some(body.to_string().into_bytes());
        let who = "Meta";
        Scene {
            at,
            who,
            line,
            callback,
        }
    };
    let ban =
        |state: &str| json!({"event": "DISABLED_UPDATE", "ban_info": {"waba_ban_state": state}});
    let messages = |minutes: i64, line: &'static str, failed: u32| {
        let at = start + Duration::minutes(minutes);
        let mut callback = StatusCallback::new().timestamp(at);
        for n in 1..=failed {
            let id = message_id("16505551234", &format!("{minutes:03}{n:03}"));
            callback = callback.failed(ACCOUNT, NUMBER, &id);
        }
        if failed == 0 {
            callback = callback.sent(ACCOUNT, NUMBER, &message_id("16505551234", "again"));
        }
        let callback = Some(callback.into_body());
        let who = "Meta";
        Scene {
            at,
            who,
            line,
            callback,
        }
    };
    let restrictions = [
        "RESTRICTED_BIZ_INITIATED_MESSAGING",
        "RESTRICTED_CUSTOMER_INITIATED_MESSAGING",
    ]
    .map(|kind| {
        let end = start + Duration::days(30);
        json!({"restriction_type": kind, "expiration": end.unix_timestamp()})
    });
    vec![
        event(
            0,
            "account_update: the account is scheduled to be disabled",
            "account_update",
            ban("SCHEDULE_FOR_DISABLE"),
        ),
        event(
            40,
            "message_template_status_update: a template is rejected",
            "message_template_status_update",
            json!({
                "event": "REJECTED",
                "message_template_id": 1_689_556_908_129_832_i64,
                "message_template_name": "spring_cashback_2",
                "message_template_language": "en_US",
                "reason": "SCAM",
            }),
        ),
        event(
            98,
            "account_update: a violation of the policies",
            "account_update",
            json!({
                "event": "ACCOUNT_VIOLATION",
                "violation_info": {
                    "violation_type": "SCAM",
                    "remediation":
                        "Stop these messages, and ask for a review in Business Support Home.",
                },
            }),
        ),
        event(
            100,
            "account_update: the account is disabled",
            "account_update",
            ban("DISABLE"),
        ),
        messages(104, "messages: the first message fails with 131031", 1),
        event(
            106,
            "account_update: restricted for 30 days",
            "account_update",
            json!({"event": "ACCOUNT_RESTRICTION", "restriction_info": restrictions}),
        ),
        messages(112, "messages: 60 more fail", 60),
        messages(125, "messages: 25 more fail", 25),
        Scene {
            at: start + Duration::minutes(130),
            who: "you",
            line: "ask Meta for a review, with the text from the incident's page",
            callback: None,
        },
        messages(150, "messages: 12 more fail", 12),
        event(
            290,
            "account_update: the account is reinstated",
            "account_update",
            ban("REINSTATE"),
        ),
        messages(294, "messages: the first message is sent again", 0),
    ]
}
