//! Parses Graph's answer to `GET /<NODE_ID>?fields=health_status`
//! ([Meta: health status](https://developers.facebook.com/documentation/business-messaging/whatsapp/support/health-status)).
//!
//! Use the *entities* of an answer, never its root. The root is the worst value of everything,
//! calling included: it can be BLOCKED while every entity can send messages.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::ids::Text;
use super::json::{elements, fields, integer, repair_text, scalar, string};

/// The number of entities that are read. Meta sends three or four.
const ENTITY_LIMIT: usize = 64;
/// The number of errors, and of notes, that are read from an entity.
const NOTE_LIMIT: usize = 16;

/// The meaning of one look-up.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Meta reported the health of these entities. There is at least one.
    Health(Vec<Entity>),
    /// Meta answered without health: the token may not read it.
    NoHealth,
    /// Meta was not asked, for this reason: for example, there is no token.
    NotAsked(String),
    /// Meta refused because of the token, a permission, or the node. A retry is useless.
    Refused(GraphError),
    /// Meta throttled the look-up: the account had too many calls.
    Throttled {
        /// Meta's error.
        error: GraphError,
        /// The time to wait before the next call, if Meta named one: the largest
        /// `estimated_time_to_regain_access`, at most one day.
        retry_after: Option<Duration>,
    },
    /// There was no usable answer, for this reason. A retry may succeed.
    Unreachable(String),
}

impl Answer {
    /// Returns the kind of this answer.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Health(_) => Outcome::Answered,
            Self::NoHealth => Outcome::NoHealth,
            Self::NotAsked(_) => Outcome::NotAsked,
            Self::Refused(_) => Outcome::Refused,
            Self::Throttled { .. } => Outcome::Throttled,
            Self::Unreachable(_) => Outcome::Unreachable,
        }
    }

    /// Returns the entities, if Meta reported their health.
    #[must_use]
    pub fn entities(&self) -> Option<&[Entity]> {
        match self {
            Self::Health(entities) => Some(entities),
            Self::NoHealth
            | Self::NotAsked(_)
            | Self::Refused(_)
            | Self::Throttled { .. }
            | Self::Unreachable(_) => None,
        }
    }

    /// Returns the reason why there is no health, as a text for people.
    #[must_use]
    pub fn error_text(&self) -> Option<String> {
        match self {
            Self::Health(_) => None,
            Self::NoHealth => {
                Some("Meta answered without health_status; the token may not read it".to_owned())
            }
            Self::Refused(error) | Self::Throttled { error, .. } => Some(error.to_string()),
            Self::NotAsked(reason) | Self::Unreachable(reason) => Some(reason.clone()),
        }
    }
}

/// The result of one look-up of a node's health.
#[derive(Debug, Clone)]
pub struct LookupResult {
    /// The meaning of the answer.
    pub answer: Answer,
    /// The HTTP status, if there was an HTTP response.
    pub http_status: Option<u16>,
    /// The body of the response, truncated and with the secrets removed.
    pub response: Option<String>,
    /// The duration of the look-up.
    pub duration: Duration,
}

/// The kind of an [`Answer`]: the values of `health_checks.outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Meta reported the health.
    Answered,
    /// Meta answered without the health.
    NoHealth,
    /// Meta was not asked.
    NotAsked,
    /// Meta refused.
    Refused,
    /// Meta throttled the look-up.
    Throttled,
    /// There was no answer, or one without a meaning.
    Unreachable,
}

impl Outcome {
    /// Every outcome, in the order of the declaration.
    pub const ALL: [Self; 6] = [
        Self::Answered,
        Self::NoHealth,
        Self::NotAsked,
        Self::Refused,
        Self::Throttled,
        Self::Unreachable,
    ];

    /// Returns the value of the database column.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NoHealth => "no_health",
            Self::NotAsked => "not_asked",
            Self::Refused => "refused",
            Self::Throttled => "throttled",
            Self::Unreachable => "unreachable",
        }
    }
}

/// One node in an answer: the phone number, account, business, or app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entity {
    /// The type: `PHONE_NUMBER`, `WABA`, `BUSINESS`, `APP`, or another one.
    pub entity_type: String,
    /// The node's id.
    pub id: String,
    /// The ability of the entity to send messages.
    pub can_send_message: CanSend,
    /// Notes, mostly on LIMITED entities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional_info: Vec<String>,
    /// Errors. LIMITED entities have them too, contrary to the documentation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<EntityError>,
}

/// An error on an entity: the reason why it is BLOCKED or LIMITED.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntityError {
    /// Meta's code, such as 141006.
    pub error_code: Option<i64>,
    /// Meta's description of the problem.
    pub error_description: String,
    /// Meta's suggestion to the business.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub possible_solution: Option<String>,
}

/// The ability of an entity to send messages, ordered from best to worst.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum CanSend {
    /// The value AVAILABLE.
    Available,
    /// An unknown value, kept unchanged.
    Other(String),
    /// The value LIMITED.
    Limited,
    /// The value BLOCKED.
    Blocked,
}

impl From<String> for CanSend {
    fn from(value: String) -> Self {
        match value.as_str() {
            "AVAILABLE" => Self::Available,
            "LIMITED" => Self::Limited,
            "BLOCKED" => Self::Blocked,
            _ => Self::Other(value),
        }
    }
}

impl From<CanSend> for String {
    fn from(value: CanSend) -> Self {
        value.to_string()
    }
}

impl fmt::Display for CanSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Available => "AVAILABLE",
            Self::Other(value) => value,
            Self::Limited => "LIMITED",
            Self::Blocked => "BLOCKED",
        })
    }
}

/// Returns the worst `can_send_message`, or `None` without entities.
#[must_use]
pub fn verdict(entities: &[Entity]) -> Option<&CanSend> {
    entities.iter().map(|entity| &entity.can_send_message).max()
}

/// An error of the Graph API: the object `error` of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphError {
    /// Meta's code.
    pub code: i64,
    /// Meta's message, truncated.
    pub message: String,
}

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}) {}", self.code, self.message)
    }
}

impl GraphError {
    /// Parses the error of an answer, if it has an error with a code.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let body = repair_text(body);
        let [error] = fields(&body, ["error"])?;
        Self::from_envelope(error?).ok()
    }

    /// Parses the object `error` of an answer.
    ///
    /// # Errors
    /// The error has no code. Then its message is returned.
    fn from_envelope(error: &RawValue) -> Result<Self, String> {
        let [code, message] = fields(error.get(), ["code", "message"]).unwrap_or_default();
        let message = message.and_then(long_text).unwrap_or_default();
        match code.and_then(integer) {
            Some(code) => Ok(Self { code, message }),
            None => Err(message),
        }
    }

    /// Returns whether Meta rejected the `appsecret_proof`.
    ///
    /// Then the secret of another app may be the right one.
    #[must_use]
    pub fn is_invalid_proof(&self) -> bool {
        self.code == 100 && self.message.contains("appsecret_proof")
    }
}

/// Parses an answer.
///
/// `usage` is the value of the header `X-Business-Use-Case-Usage`, if there was one
/// ([Meta: rate limits](https://developers.facebook.com/docs/graph-api/overview/rate-limiting)).
///
/// Never fails: an invalid answer is [`Answer::Unreachable`].
#[must_use]
pub fn parse_answer(http_status: u16, usage: Option<&str>, body: &[u8]) -> Answer {
    let body = repair_text(body);
    let Some([error, health]) = fields(&body, ["error", "health_status"]) else {
        let reason = format!("HTTP {http_status}, and the body is not a JSON object");
        return Answer::Unreachable(reason);
    };
    // A 200 may carry an error, so the body is checked before the status.
    if let Some(error) = error {
        return parse_error(http_status, usage, error);
    }
    if http_status != 200 {
        return Answer::Unreachable(format!("HTTP {http_status} without an error in the body"));
    }
    let entities = health
        .and_then(|health| fields(health.get(), ["entities"]))
        .and_then(|[list]| elements(list?));
    let entities: Vec<Entity> = entities
        .into_iter()
        .flatten()
        .take(ENTITY_LIMIT)
        .filter_map(parse_entity)
        .collect();
    if entities.is_empty() {
        Answer::NoHealth
    } else {
        Answer::Health(entities)
    }
}

fn parse_error(http_status: u16, usage: Option<&str>, error: &RawValue) -> Answer {
    let error = match GraphError::from_envelope(error) {
        Ok(error) => error,
        Err(message) => {
            let reason = format!("HTTP {http_status}, an error without a code: {message}");
            return Answer::Unreachable(reason);
        }
    };
    match error.code {
        4 | 17 | 32 | 613 | 80007 | 80008 | 130_429 => Answer::Throttled {
            error,
            retry_after: usage.and_then(parse_retry_after),
        },
        0 | 3 | 10 | 100 | 190 | 200..=299 | 368 => Answer::Refused(error),
        _ => Answer::Unreachable(format!("HTTP {http_status}: {error}")),
    }
}

/// Returns the longest `estimated_time_to_regain_access`, at most one day.
///
/// The header is a JSON object: its keys are business objects, its values lists of times in
/// minutes. It does not say which budget was used up, so the longest time counts.
fn parse_retry_after(usage: &str) -> Option<Duration> {
    const MAX_MINUTES: f64 = 24.0 * 60.0;
    let usage: HashMap<String, &RawValue> = serde_json::from_str(usage).ok()?;
    let entries = usage.into_values().filter_map(elements).flatten();
    let minutes = entries
        .filter_map(|entry| fields(entry.get(), ["estimated_time_to_regain_access"])?[0])
        .filter_map(|minutes| scalar(minutes)?.parse::<f64>().ok())
        .filter(|minutes| *minutes > 0.0)
        .max_by(f64::total_cmp)?;
    Some(Duration::from_secs_f64(
        minutes.ceil().min(MAX_MINUTES) * 60.0,
    ))
}

/// Parses an entity.
///
/// Returns `None` if it is no evidence: it has neither a value nor an error.
fn parse_entity(raw: &RawValue) -> Option<Entity> {
    const FIELDS: [&str; 5] = [
        "entity_type",
        "id",
        "can_send_message",
        "additional_info",
        "errors",
    ];
    let [entity_type, id, can_send, info, errors] = fields(raw.get(), FIELDS)?;
    let errors: Vec<EntityError> = first_elements(errors)
        .filter_map(parse_entity_error)
        .collect();
    if can_send.is_none() && errors.is_empty() {
        return None;
    }
    let can_send = match can_send {
        Some(can_send) => short_text(Some(can_send)),
        None => "UNSTATED".to_owned(),
    };
    Some(Entity {
        entity_type: short_text(entity_type),
        id: short_text(id),
        can_send_message: can_send.into(),
        additional_info: first_elements(info).filter_map(long_text).collect(),
        errors,
    })
}

fn parse_entity_error(raw: &RawValue) -> Option<EntityError> {
    const FIELDS: [&str; 3] = ["error_code", "error_description", "possible_solution"];
    let [code, description, solution] = fields(raw.get(), FIELDS)?;
    Some(EntityError {
        error_code: code.and_then(integer),
        error_description: description.and_then(long_text).unwrap_or_default(),
        possible_solution: solution.and_then(long_text).filter(|text| !text.is_empty()),
    })
}

/// Returns at most [`NOTE_LIMIT`] elements of a list, if it is one.
fn first_elements(list: Option<&RawValue>) -> impl Iterator<Item = &RawValue> {
    list.and_then(elements)
        .into_iter()
        .flatten()
        .take(NOTE_LIMIT)
}

fn short_text(raw: Option<&RawValue>) -> String {
    let text = raw.and_then(scalar).unwrap_or_default();
    Text::truncate(&text, Text::SHORT_BYTES).into_string()
}

fn long_text(raw: &RawValue) -> Option<String> {
    let text = string(raw)?;
    Some(Text::truncate(&text, Text::LONG_BYTES).into_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(status: u16, body: &serde_json::Value) -> Answer {
        parse_answer(status, None, body.to_string().as_bytes())
    }

    fn error(code: i64) -> serde_json::Value {
        json!({"error": {"message": "m", "type": "OAuthException", "code": code}})
    }

    #[test]
    fn entities_keep_their_notes_and_errors() {
        let body = json!({
            "health_status": {
                "can_send_message": "LIMITED",
                "entities": [
                    {
                        "entity_type": "PHONE_NUMBER",
                        "id": "1",
                        "can_send_message": "LIMITED",
                        "additional_info": ["name"],
                    },
                    {"entity_type": "WABA", "id": 2, "can_send_message": "SLEEPING"},
                    {
                        "entity_type": "BUSINESS",
                        "id": "3",
                        "can_send_message": "LIMITED",
                        "errors": [{
                            "error_code": 141010,
                            "error_description": "d",
                            "possible_solution": "s",
                        }],
                    },
                ],
            },
            "id": "1",
        });
        let Answer::Health(entities) = answer(200, &body) else {
            panic!("no health")
        };
        assert_eq!(entities[0].additional_info, ["name"]);
        assert_eq!(entities[1].id, "2");
        assert_eq!(
            entities[1].can_send_message,
            CanSend::Other("SLEEPING".into())
        );
        let error = &entities[2].errors[0];
        assert_eq!(error.error_code, Some(141_010));
        assert_eq!(error.possible_solution.as_deref(), Some("s"));
        assert_eq!(verdict(&entities), Some(&CanSend::Limited));
        let stored = serde_json::to_string(&entities).unwrap();
        let loaded: Vec<Entity> = serde_json::from_str(&stored).unwrap();
        assert_eq!(loaded, entities);
    }

    #[test]
    fn an_answer_without_entities_is_no_health() {
        for body in [
            json!({"id": "1"}),
            json!({"health_status": {"can_send_message": "BLOCKED", "entities": []}}),
        ] {
            assert_eq!(answer(200, &body), Answer::NoHealth);
        }
    }

    #[test]
    fn an_entity_without_a_value_or_an_error_is_skipped() {
        let flow = json!({"entity_type": "FLOW", "id": "9"});
        let errors = json!([{"error_code": 141006}]);
        let blamed = json!({"entity_type": "WABA", "id": "2", "errors": errors});
        let body = json!({"health_status": {"entities": [flow, blamed]}});
        let Answer::Health(entities) = answer(200, &body) else {
            panic!("no health")
        };
        assert_eq!(entities.len(), 1);
        assert_eq!(
            entities[0].can_send_message,
            CanSend::Other("UNSTATED".into())
        );
    }

    #[test]
    fn every_error_code_has_its_class() {
        for code in [0, 3, 10, 100, 190, 200, 250, 299, 368] {
            let Answer::Refused(error) = answer(400, &error(code)) else {
                panic!("{code} is not refused")
            };
            assert_eq!(error.code, code);
        }
        for code in [4, 17, 32, 613, 80007, 80008, 130_429] {
            let Answer::Throttled { retry_after, .. } = answer(400, &error(code)) else {
                panic!("{code} is not throttled")
            };
            assert_eq!(retry_after, None, "{code}");
        }
        for code in [1, 2, 33, 300, 131_042, -1] {
            let answer = answer(500, &error(code));
            assert!(matches!(answer, Answer::Unreachable(_)), "{code}");
        }
    }

    #[test]
    fn an_error_in_a_200_is_an_error() {
        assert!(matches!(answer(200, &error(190)), Answer::Refused(_)));
        let odd = answer(200, &json!({"error": "odd"}));
        assert!(matches!(odd, Answer::Unreachable(_)));
    }

    #[test]
    fn an_answer_without_meaning_is_unreachable() {
        for (status, body) in [
            (200, "<html>"),
            (502, ""),
            (302, "{}"),
            (200, "[]"),
            (500, "{\"health_status\":{}}"),
        ] {
            let answer = parse_answer(status, None, body.as_bytes());
            assert!(matches!(answer, Answer::Unreachable(_)), "{status} {body}");
        }
    }

    #[test]
    fn the_usage_header_says_when_to_retry() {
        let retry_after = |usage: &str| {
            let body = error(80008).to_string();
            match parse_answer(400, Some(usage), body.as_bytes()) {
                Answer::Throttled { retry_after, .. } => retry_after,
                other => panic!("not throttled: {other:?}"),
            }
        };
        let usage = json!({
            "102290129340398": [{"type": "whatsapp", "estimated_time_to_regain_access": 19}],
            "7": [{"estimated_time_to_regain_access": 3}],
            "8": "odd",
        });
        let expected = Duration::from_secs(19 * 60);
        assert_eq!(retry_after(&usage.to_string()), Some(expected));
        for odd in [
            "",
            "{}",
            "[1]",
            "{\"1\":[{\"estimated_time_to_regain_access\":0}]}",
        ] {
            assert_eq!(retry_after(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_rejected_proof_is_recognised() {
        let error = |code, message: &str| GraphError {
            code,
            message: message.into(),
        };
        let rejected = "Invalid appsecret_proof provided in the API argument";
        assert!(error(100, rejected).is_invalid_proof());
        assert!(!error(100, "Unsupported get request").is_invalid_proof());
    }
}
