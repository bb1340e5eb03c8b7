//! What Graph answers to `GET /<NODE_ID>?fields=health_status`
//! ([Meta: health status](https://developers.facebook.com/documentation/business-messaging/whatsapp/support/health-status)).
//!
//! Read the *entities*, never the root: the root is the worst of everything, calling included, and says
//! BLOCKED while every entity can send messages.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::ids::Text;
use super::json::{elements, fields, integer, readable, scalar, text};

/// At most this many entities of an answer are read; Meta sends three or four.
const MAX_ENTITIES: usize = 64;
/// At most this many errors or notes of an entity are read.
const MAX_NOTES: usize = 16;

/// What one look-up came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Meta told the health of these entities: at least one.
    Health(Vec<Entity>),
    /// Meta answered, and there is no health in it: the token may not read it.
    NoHealth,
    /// Meta was not asked, for a reason that stays until somebody changes it: there is no token.
    NotAsked(String),
    /// Meta refuses, and will again: the token, a permission, or the node.
    Refused(GraphError),
    /// Too many calls: the account rests, for as long as Meta says if it does.
    Throttled {
        /// What Meta said.
        error: GraphError,
        /// `estimated_time_to_regain_access`.
        rest: Option<Duration>,
    },
    /// No answer that means anything: worth another try soon.
    Unreachable(String),
}

impl Answer {
    /// The kind of this answer.
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

    /// The entities, if Meta told their health.
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

    /// What stood in the way of health, in words.
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

/// One look-up of a node's health, done.
#[derive(Debug, Clone)]
pub struct LookupResult {
    /// Its meaning.
    pub answer: Answer,
    /// The HTTP status, if there was an answer.
    pub http_status: Option<u16>,
    /// The answer's body, cut and without secrets.
    pub response: Option<String>,
    /// The time that it took.
    pub duration: Duration,
}

/// The kinds of answers, as the words of `health_checks.outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Meta told the health.
    Answered,
    /// Meta answered without the health.
    NoHealth,
    /// Meta was not asked.
    NotAsked,
    /// Meta refused.
    Refused,
    /// Meta throttled us.
    Throttled,
    /// There was no answer, or one without meaning.
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

    /// The word in the database.
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

/// One node of the answer: the number, its account, the business, the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entity {
    /// `PHONE_NUMBER`, `WABA`, `BUSINESS`, `APP`, or what else Meta writes.
    pub entity_type: String,
    /// The node's id.
    pub id: String,
    /// Whether it lets messages through.
    pub can_send_message: CanSend,
    /// Notes, mostly on LIMITED entities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional_info: Vec<String>,
    /// Reasons. They come on LIMITED entities too, against the documentation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<EntityError>,
}

/// A reason on an entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntityError {
    /// Meta's code, such as 141006.
    pub error_code: Option<i64>,
    /// What is wrong.
    pub error_description: String,
    /// What Meta suggests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub possible_solution: Option<String>,
}

/// Whether an entity lets messages through: from best to worst.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum CanSend {
    /// AVAILABLE.
    Available,
    /// A value that was not known when this was written, kept as it came.
    Other(String),
    /// LIMITED.
    Limited,
    /// BLOCKED.
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

/// The verdict on a set of entities: the worst of them.
#[must_use]
pub fn verdict(entities: &[Entity]) -> Option<&CanSend> {
    entities.iter().map(|entity| &entity.can_send_message).max()
}

/// Graph's error envelope, as far as it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphError {
    /// Meta's code.
    pub code: i64,
    /// Meta's message, cut.
    pub message: String,
}

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}) {}", self.code, self.message)
    }
}

impl GraphError {
    /// Reads the error of an answer, if it has one with a code.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let body = readable(body);
        let [error] = fields(&body, ["error"])?;
        Self::from_envelope(error?).ok()
    }

    /// Reads Graph's error envelope; without a code there is only the message.
    fn from_envelope(error: &RawValue) -> Result<Self, String> {
        let [code, message] = fields(error.get(), ["code", "message"]).unwrap_or_default();
        let message = message.and_then(long).unwrap_or_default();
        match code.and_then(integer) {
            Some(code) => Ok(Self { code, message }),
            None => Err(message),
        }
    }

    /// Whether Meta rejects the `appsecret_proof`, and another app's secret may be the right one.
    #[must_use]
    pub fn is_about_the_proof(&self) -> bool {
        self.code == 100 && self.message.contains("appsecret_proof")
    }
}

/// Reads an answer. `usage` is the `X-Business-Use-Case-Usage` header, if it came.
#[must_use]
pub fn parse_answer(http_status: u16, usage: Option<&str>, body: &[u8]) -> Answer {
    let body = readable(body);
    let Some([error, health]) = fields(&body, ["error", "health_status"]) else {
        return Answer::Unreachable(format!(
            "HTTP {http_status}, and the body is not a JSON object"
        ));
    };
    // A 200 may carry an error; so the body is asked before the status.
    if let Some(error) = error {
        return refusal(http_status, usage, error);
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
        .take(MAX_ENTITIES)
        .filter_map(entity)
        .collect();
    if entities.is_empty() {
        Answer::NoHealth
    } else {
        Answer::Health(entities)
    }
}

fn refusal(http_status: u16, usage: Option<&str>, error: &RawValue) -> Answer {
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
            rest: usage.and_then(rest),
        },
        0 | 3 | 10 | 100 | 190 | 200..=299 | 368 => Answer::Refused(error),
        _ => Answer::Unreachable(format!("HTTP {http_status}: {error}")),
    }
}

/// The longest `estimated_time_to_regain_access`, in minutes, in the usage header: an object keyed by
/// business object, each with a list. Whose budget was spent is not said, so the longest counts.
fn rest(usage: &str) -> Option<Duration> {
    const A_DAY: f64 = 24.0 * 60.0;
    let usage: HashMap<String, &RawValue> = serde_json::from_str(usage).ok()?;
    let entries = usage.into_values().filter_map(elements).flatten();
    let minutes = entries
        .filter_map(|entry| fields(entry.get(), ["estimated_time_to_regain_access"])?[0])
        .filter_map(|minutes| scalar(minutes)?.parse::<f64>().ok())
        .filter(|minutes| *minutes > 0.0)
        .max_by(f64::total_cmp)?;
    Some(Duration::from_secs_f64(minutes.ceil().min(A_DAY) * 60.0))
}

fn entity(raw: &RawValue) -> Option<Entity> {
    let [entity_type, id, can_send, info, errors] = fields(
        raw.get(),
        [
            "entity_type",
            "id",
            "can_send_message",
            "additional_info",
            "errors",
        ],
    )?;
    let short = |raw: Option<&RawValue>| {
        raw.and_then(scalar)
            .map(|text| Text::cut(&text, Text::SHORT).into_string())
            .unwrap_or_default()
    };
    let errors: Vec<EntityError> = notes(errors).filter_map(entity_error).collect();
    // An entity that says nothing about messages is no evidence; with a reason on it, it is.
    (can_send.is_some() || !errors.is_empty()).then(|| Entity {
        entity_type: short(entity_type),
        id: short(id),
        can_send_message: if can_send.is_some() {
            short(can_send)
        } else {
            "UNSTATED".to_owned()
        }
        .into(),
        additional_info: notes(info).filter_map(long).collect(),
        errors,
    })
}

fn notes(list: Option<&RawValue>) -> impl Iterator<Item = &RawValue> {
    list.and_then(elements)
        .into_iter()
        .flatten()
        .take(MAX_NOTES)
}

fn entity_error(raw: &RawValue) -> Option<EntityError> {
    let [code, description, solution] = fields(
        raw.get(),
        ["error_code", "error_description", "possible_solution"],
    )?;
    Some(EntityError {
        error_code: code.and_then(integer),
        error_description: description.and_then(long).unwrap_or_default(),
        possible_solution: solution.and_then(long).filter(|text| !text.is_empty()),
    })
}

fn long(raw: &RawValue) -> Option<String> {
    text(raw).map(|text| Text::cut(&text, Text::LONG).into_string())
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
    fn entities_are_read_with_notes_and_reasons() {
        let body = json!({"health_status": {"can_send_message": "LIMITED", "entities": [
            {"entity_type": "PHONE_NUMBER", "id": "1", "can_send_message": "LIMITED", "additional_info": ["name"]},
            {"entity_type": "WABA", "id": 2, "can_send_message": "SLEEPING"},
            {"entity_type": "BUSINESS", "id": "3", "can_send_message": "LIMITED",
             "errors": [{"error_code": 141010, "error_description": "d", "possible_solution": "s"}]},
        ]}, "id": "1"});
        let Answer::Health(entities) = answer(200, &body) else {
            panic!("no health")
        };
        assert_eq!(entities[0].additional_info, ["name"]);
        assert_eq!(
            (entities[1].id.as_str(), &entities[1].can_send_message),
            ("2", &CanSend::Other("SLEEPING".into()))
        );
        assert_eq!(entities[2].errors[0].error_code, Some(141_010));
        assert_eq!(
            entities[2].errors[0].possible_solution.as_deref(),
            Some("s")
        );
        assert_eq!(verdict(&entities), Some(&CanSend::Limited));
        let stored = serde_json::to_string(&entities).unwrap();
        assert_eq!(
            serde_json::from_str::<Vec<Entity>>(&stored).unwrap(),
            entities
        );
    }

    #[test]
    fn an_answer_without_entities_tells_no_health() {
        for body in [
            json!({"id": "1"}),
            json!({"health_status": {"can_send_message": "BLOCKED", "entities": []}}),
        ] {
            assert_eq!(answer(200, &body), Answer::NoHealth);
        }
    }

    #[test]
    fn an_entity_that_says_nothing_about_messages_is_no_evidence() {
        let flow = json!({"entity_type": "FLOW", "id": "9"});
        let blamed = json!({"entity_type": "WABA", "id": "2", "errors": [{"error_code": 141006}]});
        let Answer::Health(entities) =
            answer(200, &json!({"health_status": {"entities": [flow, blamed]}}))
        else {
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
            assert!(
                matches!(answer(400, &error(code)), Answer::Refused(e) if e.code == code),
                "{code}"
            );
        }
        for code in [4, 17, 32, 613, 80007, 80008, 130_429] {
            assert!(
                matches!(
                    answer(400, &error(code)),
                    Answer::Throttled { rest: None, .. }
                ),
                "{code}"
            );
        }
        for code in [1, 2, 33, 300, 131_042, -1] {
            assert!(
                matches!(answer(500, &error(code)), Answer::Unreachable(_)),
                "{code}"
            );
        }
    }

    #[test]
    fn an_error_in_a_200_is_an_error() {
        assert!(matches!(answer(200, &error(190)), Answer::Refused(_)));
        assert!(matches!(
            answer(200, &json!({"error": "odd"})),
            Answer::Unreachable(_)
        ));
    }

    #[test]
    fn what_is_no_answer_is_tried_again() {
        for (status, body) in [
            (200, "<html>"),
            (502, ""),
            (302, "{}"),
            (200, "[]"),
            (500, "{\"health_status\":{}}"),
        ] {
            assert!(
                matches!(
                    parse_answer(status, None, body.as_bytes()),
                    Answer::Unreachable(_)
                ),
                "{status} {body}"
            );
        }
    }

    #[test]
    fn the_usage_header_says_how_many_minutes_to_rest() {
        let usage = json!({"102290129340398": [{"type": "whatsapp", "estimated_time_to_regain_access": 19}],
                           "7": [{"estimated_time_to_regain_access": 3}], "8": "odd"});
        let throttled = parse_answer(
            400,
            Some(&usage.to_string()),
            error(80008).to_string().as_bytes(),
        );
        assert!(
            matches!(throttled, Answer::Throttled { rest: Some(rest), .. } if rest == Duration::from_secs(19 * 60))
        );
        for odd in [
            "",
            "{}",
            "[1]",
            "{\"1\":[{\"estimated_time_to_regain_access\":0}]}",
        ] {
            let throttled = parse_answer(400, Some(odd), error(80008).to_string().as_bytes());
            assert!(
                matches!(throttled, Answer::Throttled { rest: None, .. }),
                "{odd}"
            );
        }
    }

    #[test]
    fn a_rejected_proof_is_told_apart() {
        let error = |code, message: &str| GraphError {
            code,
            message: message.into(),
        };
        assert!(
            error(100, "Invalid appsecret_proof provided in the API argument").is_about_the_proof()
        );
        assert!(!error(100, "Unsupported get request").is_about_the_proof());
    }
}
