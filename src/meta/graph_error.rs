//! Errors of the Graph API, and their meaning for a look-up
//! ([Meta: error codes](https://developers.facebook.com/documentation/business-messaging/whatsapp/support/error-codes),
//! [Graph API: handle errors](https://developers.facebook.com/docs/graph-api/guides/error-handling)).

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::ids::Text;
use super::json::{elements, fields, integer, repair_text, scalar, string};

/// An error of the Graph API: the object `error` of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GraphError {
    /// Meta's code.
    pub code: i64,
    /// Meta's message with its details, truncated.
    pub message: String,
    /// Whether Meta says that the error passes.
    pub is_transient: bool,
}

/// The meaning of an error for a look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// It names the state of the account: that is the answer.
    State,
    /// Too many calls. The scope says whose.
    Throttled(ThrottleScope),
    /// The look-up is refused, for this reason. An immediate retry is useless.
    Denied(Denial),
    /// A fault that passes.
    Passing,
    /// Nobody has told us. It may pass.
    Unknown,
}

/// What Meta throttles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThrottleScope {
    /// All calls of the app.
    App,
    /// All calls with the token.
    User,
    /// The calls about one account.
    Account,
}

impl ThrottleScope {
    /// The word for it in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::User => "user",
            Self::Account => "account",
        }
    }
}

/// Why a look-up is refused. Each has its own next step. Of several, the earlier one is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Denial {
    /// No token is configured for the account.
    NoToken,
    /// The token is invalid, or has expired.
    TokenInvalid,
    /// The token has not the permission.
    Permission,
    /// The token belongs to an app whose secret is not configured.
    OtherApp,
    /// The app demands a proof, and none was sent.
    NoProof,
    /// The app takes calls only from other addresses.
    IpAllowlist,
    /// Graph does not know the configured version, or not the field.
    GraphVersion,
    /// The node does not exist, is of another kind, or is not visible to the token.
    UnknownNode,
    /// Meta answered, but no entity has a verdict.
    NoVerdict,
    /// Meta refuses again and again, with a code that nobody has told us.
    Unexplained,
}

impl Denial {
    /// Every denial, in the order of the declaration.
    pub const ALL: [Self; 10] = [
        Self::NoToken,
        Self::TokenInvalid,
        Self::Permission,
        Self::OtherApp,
        Self::NoProof,
        Self::IpAllowlist,
        Self::GraphVersion,
        Self::UnknownNode,
        Self::NoVerdict,
        Self::Unexplained,
    ];

    /// The word for it in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::TokenInvalid => "token_invalid",
            Self::Permission => "permission",
            Self::OtherApp => "other_app",
            Self::NoProof => "no_proof",
            Self::IpAllowlist => "ip_allowlist",
            Self::GraphVersion => "graph_version",
            Self::UnknownNode => "unknown_node",
            Self::NoVerdict => "no_verdict",
            Self::Unexplained => "unexplained",
        }
    }

    /// Returns the denial for a word in the database; `None` for a word of a later version.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|denial| denial.as_str() == word)
    }

    /// Returns whether it concerns every node of the account: it is about the token, or about every
    /// look-up.
    #[must_use]
    pub fn is_of_account(self) -> bool {
        match self {
            Self::NoToken
            | Self::TokenInvalid
            | Self::Permission
            | Self::OtherApp
            | Self::NoProof
            | Self::IpAllowlist
            | Self::GraphVersion => true,
            Self::UnknownNode | Self::NoVerdict | Self::Unexplained => false,
        }
    }

    /// Returns whether it concerns every account.
    #[must_use]
    pub fn is_of_all_accounts(self) -> bool {
        matches!(self, Self::IpAllowlist | Self::GraphVersion)
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Denial {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Denial {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        // A word of a later version is a reason that this one does not know.
        Ok(Self::parse(&word).unwrap_or(Self::Unexplained))
    }
}

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, message, .. } = self;
        // Some messages begin with their code: "(#368) Temporarily blocked".
        let text = message
            .strip_prefix(&format!("(#{code})"))
            .unwrap_or(message)
            .trim();
        match text {
            "" => write!(f, "({code}) without a message"),
            text => write!(f, "({code}) {text}"),
        }
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
    pub(super) fn from_envelope(error: &RawValue) -> Result<Self, String> {
        let [code, message, data, transient] = fields(
            error.get(),
            ["code", "message", "error_data", "is_transient"],
        )
        .unwrap_or_default();
        let message = message.and_then(string).unwrap_or_default();
        let details = data.and_then(error_details);
        let message = match details {
            Some(details) if !message.contains(&*details) && !details.is_empty() => {
                format!("{}: {details}", message.trim_end_matches('.'))
            }
            _ => message.into_owned(),
        };
        let message = Text::truncate(&message, Text::LONG_BYTES).into_string();
        match code.and_then(integer) {
            Some(code) => Ok(Self {
                code,
                message,
                is_transient: transient.is_some_and(|flag| flag.get() == "true"),
            }),
            None => Err(message),
        }
    }

    /// Returns whether Meta rejected the `appsecret_proof`.
    ///
    /// Then the secret of another app may be the right one.
    #[must_use]
    pub fn is_invalid_proof(&self) -> bool {
        self.meaning() == Meaning::Denied(Denial::OtherApp)
    }

    /// Returns the meaning of this error for a look-up of an account's health.
    #[must_use]
    pub fn meaning(&self) -> Meaning {
        let says = |text: &str| self.message.contains(text);
        match self.code {
            368 | 131_031 | 131_042 | 130_497 => Meaning::State,
            4 | 341 => Meaning::Throttled(ThrottleScope::App),
            17 => Meaning::Throttled(ThrottleScope::User),
            32 | 613 | 80_000..=80_014 | 130_429 => Meaning::Throttled(ThrottleScope::Account),
            1 | 2 | 131_016 | 131_057 | 133_004 | 2_494_100 => Meaning::Passing,
            0 | 102 | 104 | 190 => Meaning::Denied(Denial::TokenInvalid),
            200 if says("app ID") => Meaning::Denied(Denial::TokenInvalid),
            2500 if says("access token") => Meaning::Denied(Denial::TokenInvalid),
            3 | 10 | 200..=299 | 131_005 => Meaning::Denied(Denial::Permission),
            5 => Meaning::Denied(Denial::IpAllowlist),
            2500 => Meaning::Denied(Denial::GraphVersion),
            100 if says("appsecret_proof") && says("require") => Meaning::Denied(Denial::NoProof),
            100 if says("appsecret_proof") => Meaning::Denied(Denial::OtherApp),
            100 if says("nonexisting field") => Meaning::Denied(Denial::GraphVersion),
            33 | 100 | 803 => Meaning::Denied(Denial::UnknownNode),
            _ if self.is_transient => Meaning::Passing,
            _ => Meaning::Unknown,
        }
    }
}

/// Returns the details of an error: a string, or `details` of an object.
fn error_details(data: &RawValue) -> Option<String> {
    if let Some(text) = string(data) {
        return Some(text.into_owned());
    }
    let [details] = fields(data.get(), ["details"])?;
    string(details?).map(Into::into)
}

/// Returns for how long to wait before the next call about one of these business objects: the
/// longest `estimated_time_to_regain_access`, at most one day.
///
/// The header is a JSON object: its keys are business objects (up to 32, also of other customers of
/// the app), its values lists of times in minutes, each with the `type` of calls that it is about
/// ([Meta: rate limits](https://developers.facebook.com/docs/graph-api/overview/rate-limiting)).
#[must_use]
pub fn time_to_regain_access(usage: &str, business_objects: &[&str]) -> Option<Duration> {
    const MAX_MINUTES: f64 = 24.0 * 60.0;
    const TYPES: [&str; 2] = ["whatsapp_business_management", "whatsapp"];
    let usage: HashMap<String, &RawValue> = serde_json::from_str(usage).ok()?;
    let ours = usage
        .into_iter()
        .filter(|(object, _)| business_objects.contains(&object.as_str()));
    let entries = ours.filter_map(|(_, list)| elements(list)).flatten();
    let minutes = entries
        .filter_map(|entry| {
            let [kind, minutes] = fields(entry.get(), ["type", "estimated_time_to_regain_access"])?;
            let is_ours = kind
                .and_then(string)
                .is_none_or(|kind| TYPES.contains(&&*kind));
            scalar(minutes?)?.parse::<f64>().ok().filter(|_| is_ours)
        })
        .filter(|minutes| *minutes > 0.0)
        .max_by(f64::total_cmp)?;
    Some(Duration::from_secs_f64(
        minutes.ceil().min(MAX_MINUTES) * 60.0,
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(code: i64, message: &str) -> GraphError {
        GraphError {
            code,
            message: message.into(),
            is_transient: false,
        }
    }

    /// Every refusal of the facts, and what it means.
    #[test]
    fn every_error_has_its_meaning() {
        let table = [
            (Meaning::State, &[368, 131_031, 131_042, 130_497][..]),
            (Meaning::Throttled(ThrottleScope::App), &[4, 341]),
            (Meaning::Throttled(ThrottleScope::User), &[17]),
            (
                Meaning::Throttled(ThrottleScope::Account),
                &[32, 613, 80_000, 80_007, 80_008, 80_014, 130_429],
            ),
            (Meaning::Denied(Denial::TokenInvalid), &[0, 102, 104, 190]),
            (
                Meaning::Denied(Denial::Permission),
                &[3, 10, 200, 250, 299, 131_005],
            ),
            (Meaning::Denied(Denial::IpAllowlist), &[5]),
            (Meaning::Denied(Denial::GraphVersion), &[2500]),
            (Meaning::Denied(Denial::UnknownNode), &[33, 100, 803]),
            (
                Meaning::Passing,
                &[1, 2, 131_016, 131_057, 133_004, 2_494_100],
            ),
            (
                Meaning::Unknown,
                &[-1, 9, 300, 367, 131_030, 80_015, 79_999, i64::MAX, i64::MIN],
            ),
        ];
        for (meaning, codes) in table {
            for code in codes {
                assert_eq!(error(*code, "What Meta said").meaning(), meaning, "{code}");
            }
        }
    }

    #[test]
    fn some_codes_mean_what_their_message_says() {
        for (code, message, denial) in [
            (200, "Provide valid app ID", Denial::TokenInvalid),
            (
                2500,
                "An active access token must be used to query information",
                Denial::TokenInvalid,
            ),
            (
                2500,
                "Unknown path components: /v99.0",
                Denial::GraphVersion,
            ),
            (
                100,
                "Invalid appsecret_proof provided in the API argument",
                Denial::OtherApp,
            ),
            (
                100,
                "API calls from the server require an appsecret_proof argument",
                Denial::NoProof,
            ),
            (
                100,
                "(#100) Tried accessing nonexisting field (health_status)",
                Denial::GraphVersion,
            ),
        ] {
            assert_eq!(
                error(code, message).meaning(),
                Meaning::Denied(denial),
                "{message}"
            );
        }
        let transient = GraphError {
            is_transient: true,
            ..error(9_999, "later")
        };
        assert_eq!(transient.meaning(), Meaning::Passing);
    }

    #[test]
    fn every_denial_has_a_word() {
        for denial in Denial::ALL {
            assert_eq!(Denial::parse(denial.as_str()), Some(denial));
        }
        let later: Denial = serde_json::from_str("\"eclipse\"").unwrap();
        assert_eq!(later, Denial::Unexplained);
    }

    #[test]
    fn an_error_is_written_without_repetitions_and_holes() {
        let parse = |error: serde_json::Value| {
            GraphError::parse(json!({ "error": error }).to_string().as_bytes()).unwrap()
        };
        let details = json!({"details": "The account has been restricted."});
        let named =
            parse(json!({"code": 368, "message": "(#368) Blocked.", "error_data": details}));
        assert_eq!(
            named.to_string(),
            "(368) Blocked: The account has been restricted."
        );
        let string = parse(json!({"code": "190", "message": "No", "error_data": "expired"}));
        assert_eq!(string.to_string(), "(190) No: expired");
        assert_eq!(
            parse(json!({"code": 7})).to_string(),
            "(7) without a message"
        );
    }

    #[test]
    fn the_usage_header_says_when_to_retry() {
        let minutes = |usage: &str| {
            time_to_regain_access(usage, &["102", "7300"]).map(|time| time.as_secs() / 60)
        };
        let usage = json!({
            "102": [
                {"type": "whatsapp_business_management", "estimated_time_to_regain_access": 3},
                {"type": "messenger", "estimated_time_to_regain_access": 600},
            ],
            "7300": [{"type": "whatsapp", "estimated_time_to_regain_access": 19}],
            "7999": [{"type": "whatsapp_business_management", "estimated_time_to_regain_access": 900}],
            "8": "odd",
        });
        assert_eq!(minutes(&usage.to_string()), Some(19));
        for odd in [
            "",
            "{}",
            "[1]",
            r#"{"102":[{"estimated_time_to_regain_access":0}]}"#,
            r#"{"7999":[{"estimated_time_to_regain_access":5}]}"#,
        ] {
            assert_eq!(minutes(odd), None, "{odd}");
        }
    }
}
