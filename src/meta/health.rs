//! Parses Graph's answer to `GET /<NODE_ID>?fields=health_status`
//! ([Meta: health status](https://developers.facebook.com/documentation/business-messaging/whatsapp/support/health-status)).
//!
//! Use the *entities* of an answer, never its root. The root is the worst value of everything,
//! calling included: it can be BLOCKED while every entity can send messages.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::graph_error::{Denial, GraphError, Meaning, ThrottleScope, time_to_regain_access};
use super::ids::Text;
use super::json::{elements, fields, integer, repair_text, scalar, string};
use super::node_fields::NodeFields;

/// The number of entities that are read. Meta sends three or four.
const ENTITY_LIMIT: usize = 64;
/// The number of errors, and of notes, that are read from an entity.
const NOTE_LIMIT: usize = 16;

/// The meaning of one look-up.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Meta reported the health of these entities. At least one has a verdict.
    Health(Vec<Entity>),
    /// Meta answered, but no entity that sends has a verdict.
    NoVerdict {
        /// The entities that have errors or notes.
        entities: Vec<Entity>,
        /// The verdict on all of them together, if there was one.
        root: Option<CanSend>,
    },
    /// Meta answered with an error that names the state of the account: policy, locked, payment,
    /// or country.
    State(GraphError),
    /// Meta was not asked, for this reason: for example, there is no token.
    NotAsked {
        /// The kind of reason.
        denial: Denial,
        /// The reason in a few words.
        reason: String,
    },
    /// Meta refused. An immediate retry is useless.
    Refused {
        /// The kind of refusal.
        denial: Denial,
        /// Meta's error.
        error: GraphError,
    },
    /// Meta throttled the look-up.
    Throttled {
        /// Meta's error.
        error: GraphError,
        /// What had too many calls.
        scope: ThrottleScope,
        /// The time to wait before the next call, if Meta named one.
        retry_after: Option<Duration>,
    },
    /// Meta answered with an error that nobody has told us. A retry may succeed; if not, it is a
    /// refusal.
    Unexplained(GraphError),
    /// There was no usable answer, for this reason. A retry may succeed.
    Unreachable(String),
}

impl Answer {
    /// Returns the kind of this answer.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Health(_) => Outcome::Answered,
            Self::NoVerdict { .. } => Outcome::NoHealth,
            Self::State(_) => Outcome::State,
            Self::NotAsked { .. } => Outcome::NotAsked,
            Self::Refused { .. } | Self::Unexplained(_) => Outcome::Refused,
            Self::Throttled { .. } => Outcome::Throttled,
            Self::Unreachable(_) => Outcome::Unreachable,
        }
    }

    /// Returns the entities that Meta reported.
    #[must_use]
    pub fn entities(&self) -> Option<&[Entity]> {
        match self {
            Self::Health(entities) => Some(entities),
            Self::NoVerdict { entities, .. } if !entities.is_empty() => Some(entities),
            _ => None,
        }
    }

    /// Returns why there is no health, if that is not a passing fault.
    #[must_use]
    pub fn denial(&self) -> Option<Denial> {
        match self {
            Self::NoVerdict { .. } => Some(Denial::NoVerdict),
            Self::NotAsked { denial, .. } | Self::Refused { denial, .. } => Some(*denial),
            Self::Unexplained(_) => Some(Denial::Unexplained),
            Self::Health(_) | Self::State(_) | Self::Throttled { .. } | Self::Unreachable(_) => {
                None
            }
        }
    }

    /// Returns the reason why there is no health, as a text for people.
    #[must_use]
    pub fn error_text(&self) -> Option<String> {
        match self {
            Self::Health(_) => None,
            Self::NoVerdict { root, .. } => Some(match root {
                Some(root) => format!(
                    "Meta's answer has no verdict on any entity; its verdict on all together is \
                     {root}"
                ),
                None => "Meta's answer has no verdict on any entity".to_owned(),
            }),
            Self::State(error)
            | Self::Refused { error, .. }
            | Self::Throttled { error, .. }
            | Self::Unexplained(error) => Some(error.to_string()),
            Self::NotAsked { reason, .. } | Self::Unreachable(reason) => Some(reason.clone()),
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
    /// The fields that were read beside the health.
    pub fields: NodeFields,
    /// Who asked. `None` if there was no token.
    pub caller: Option<Caller>,
    /// Whether it was tried to read the fields of the number, and of the account.
    pub tried_fields: (bool, bool),
    /// The calls to Graph that it took.
    pub calls: u16,
    /// The duration of the look-up.
    pub duration: Duration,
}

/// Who asks Graph: the token, and the app it belongs to, each as a short hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The hash of the token.
    pub token: String,
    /// The hash of the app's secret.
    pub app: String,
}

/// The kind of an [`Answer`]: the values of `health_checks.outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Meta reported the health.
    Answered,
    /// Meta answered without a verdict.
    NoHealth,
    /// Meta answered with an error that names the state of the account.
    State,
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
    pub const ALL: [Self; 7] = [
        Self::Answered,
        Self::NoHealth,
        Self::State,
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
            Self::State => "state",
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

impl Entity {
    /// Returns whether messages are stopped when it is blocked. The app that asks sends nothing of
    /// the account's, nor does a template or a flow.
    #[must_use]
    pub fn sends(&self) -> bool {
        !["APP", "MESSAGE_TEMPLATE", "FLOW"].contains(&self.entity_type.as_str())
    }
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
    /// No value.
    Unstated,
    /// The value LIMITED: it can send, within a limit.
    Limited,
    /// An unknown value, kept unchanged.
    Other(String),
    /// The value BLOCKED.
    Blocked,
}

impl From<String> for CanSend {
    fn from(value: String) -> Self {
        match value.as_str() {
            "AVAILABLE" => Self::Available,
            "UNSTATED" => Self::Unstated,
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
            Self::Unstated => "UNSTATED",
            Self::Other(value) => value,
            Self::Limited => "LIMITED",
            Self::Blocked => "BLOCKED",
        })
    }
}

/// Parses an answer about a node of this account.
///
/// `usage` is the value of the header `X-Business-Use-Case-Usage`, if there was one.
/// `business_objects` are the ids of the account and of its business portfolio, as far as known:
/// the header names other customers of the app as well.
///
/// Never fails: an invalid answer is [`Answer::Unreachable`].
#[must_use]
pub fn parse_answer(
    http_status: u16,
    usage: Option<&str>,
    business_objects: &[&str],
    body: &[u8],
) -> Answer {
    let body = repair_text(body);
    let Some([error, health]) = fields(&body, ["error", "health_status"]) else {
        let reason = format!("HTTP {http_status}, and the body is not a JSON object");
        return Answer::Unreachable(reason);
    };
    // A 200 may carry an error, so the body is checked before the status.
    if let Some(error) = error {
        return match GraphError::from_envelope(error) {
            Ok(error) => answer_of_error(http_status, usage, business_objects, error),
            Err(message) => Answer::Unreachable(format!(
                "HTTP {http_status}, an error without a code: {message}"
            )),
        };
    }
    if http_status != 200 {
        return Answer::Unreachable(format!("HTTP {http_status} without an error in the body"));
    }
    let health = health.and_then(|health| fields(health.get(), ["entities", "can_send_message"]));
    let [list, root] = health.unwrap_or_default();
    let entities: Vec<Entity> = list
        .and_then(elements)
        .into_iter()
        .flatten()
        .take(ENTITY_LIMIT)
        .filter_map(parse_entity)
        .collect();
    let has_verdict =
        |entity: &Entity| entity.sends() && entity.can_send_message != CanSend::Unstated;
    if entities.iter().any(has_verdict) {
        Answer::Health(entities)
    } else {
        let root = root.map(|root| short_text(Some(root)).into());
        Answer::NoVerdict { entities, root }
    }
}

fn answer_of_error(
    http_status: u16,
    usage: Option<&str>,
    business_objects: &[&str],
    error: GraphError,
) -> Answer {
    match error.meaning() {
        Meaning::State => Answer::State(error),
        Meaning::Denied(denial) => Answer::Refused { denial, error },
        Meaning::Throttled(scope) => Answer::Throttled {
            error,
            scope,
            retry_after: usage.and_then(|usage| time_to_regain_access(usage, business_objects)),
        },
        Meaning::Unknown if http_status < 500 => Answer::Unexplained(error),
        Meaning::Unknown | Meaning::Passing => {
            Answer::Unreachable(format!("HTTP {http_status}: {error}"))
        }
    }
}

/// Parses an entity.
///
/// Returns `None` if it is no evidence: it has neither a value nor an error nor a note.
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
    let additional_info: Vec<String> = first_elements(info).filter_map(long_text).collect();
    let can_send = can_send.map(|can_send| short_text(Some(can_send)));
    let can_send = can_send.filter(|can_send| !can_send.is_empty());
    if can_send.is_none() && errors.is_empty() && additional_info.is_empty() {
        return None;
    }
    Some(Entity {
        entity_type: short_text(entity_type),
        id: short_text(id),
        can_send_message: can_send.map_or(CanSend::Unstated, CanSend::from),
        additional_info,
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
        parse_answer(status, None, &[], body.to_string().as_bytes())
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
        let stored = serde_json::to_string(&entities).unwrap();
        let loaded: Vec<Entity> = serde_json::from_str(&stored).unwrap();
        assert_eq!(loaded, entities);
    }

    #[test]
    fn an_answer_without_a_verdict_is_no_health() {
        let flow = json!({"entity_type": "FLOW", "id": "9"});
        for (health, root) in [
            (json!(null), None),
            (json!({"entities": [flow.clone()]}), None),
            (
                json!({"can_send_message": "BLOCKED", "entities": []}),
                Some(CanSend::Blocked),
            ),
        ] {
            let entities = vec![];
            assert_eq!(
                answer(200, &json!({"health_status": health, "id": "1"})),
                Answer::NoVerdict { entities, root }
            );
        }
        let errors = json!([{"error_code": 141006}]);
        let blamed = json!({"entity_type": "WABA", "id": "2", "errors": errors});
        let body = json!({"health_status": {"entities": [flow, blamed]}});
        let Answer::NoVerdict { entities, .. } = answer(200, &body) else {
            panic!("a verdict")
        };
        assert_eq!(entities.len(), 1, "the one without any evidence is skipped");
        assert_eq!(entities[0].can_send_message, CanSend::Unstated);
    }

    #[test]
    fn an_error_is_an_answer_of_its_meaning() {
        let refused = |code| match answer(400, &error(code)) {
            Answer::Refused { denial, .. } => Some(denial),
            _ => None,
        };
        assert_eq!(refused(190), Some(Denial::TokenInvalid));
        assert_eq!(refused(5), Some(Denial::IpAllowlist));
        assert!(matches!(answer(403, &error(368)), Answer::State(_)));
        assert!(matches!(answer(400, &error(4)), Answer::Throttled { .. }));
        assert!(matches!(answer(400, &error(9999)), Answer::Unexplained(_)));
        for (status, code) in [(500, 9999), (500, 2), (400, 2)] {
            let answer = answer(status, &error(code));
            assert!(matches!(answer, Answer::Unreachable(_)), "{code}");
        }
    }

    #[test]
    fn an_error_in_a_200_is_an_error() {
        assert!(matches!(answer(200, &error(190)), Answer::Refused { .. }));
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
            let answer = parse_answer(status, None, &[], body.as_bytes());
            assert!(matches!(answer, Answer::Unreachable(_)), "{status} {body}");
        }
    }
}
