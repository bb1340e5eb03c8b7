//! The fields of a number and of an account that are read beside the health, where that explains
//! nothing ([Meta: phone numbers](https://developers.facebook.com/docs/graph-api/reference/whats-app-business-account-to-number-current-status),
//! [Meta: WABA](https://developers.facebook.com/docs/graph-api/reference/whats-app-business-account)).
//!
//! None of them holds a ban or its end: those come by webhook, once.

use serde::{Deserialize, Serialize};

use super::ids::Text;
use super::json::{fields, repair_text, scalar};

/// The fields to ask a number for.
pub const NUMBER_FIELDS: &str = "status,quality_rating,name_status";
/// The fields to ask an account for.
pub const ACCOUNT_FIELDS: &str =
    "name,account_review_status,business_verification_status,owner_business_info";
/// The fields to ask an account for with a token that may not see its business.
pub const FEWER_ACCOUNT_FIELDS: &str = "name,account_review_status";

/// The fields that were read beside the health of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFields {
    /// Those of the number, if they were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<NumberFields>,
    /// Those of its account, if they were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountFields>,
}

impl NodeFields {
    /// Returns whether nothing was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the fields as names and values, those of the number first.
    #[must_use]
    pub fn texts(&self) -> Vec<(&'static str, &str)> {
        let (number, account) = (self.number.as_ref(), self.account.as_ref());
        let of_number = number.map(|fields| {
            [
                ("status", &fields.status),
                ("quality", &fields.quality_rating),
                ("display name", &fields.name_status),
            ]
        });
        let of_account = account.map(|fields| {
            [
                ("account", &fields.name),
                ("account review", &fields.account_review_status),
                ("business", &fields.business_verification_status),
                ("portfolio", &fields.portfolio_name),
            ]
        });
        let all = of_number.into_iter().flatten();
        let all = all.chain(of_account.into_iter().flatten());
        all.filter_map(|(name, value)| Some((name, value.as_deref()?)))
            .collect()
    }
}

/// The fields of a number, in Meta's words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberFields {
    /// Such as CONNECTED, BANNED, DELETED or DISCONNECTED.
    pub status: Option<String>,
    /// GREEN, YELLOW, RED, NA or UNKNOWN.
    pub quality_rating: Option<String>,
    /// The review of the display name, such as APPROVED or DECLINED.
    pub name_status: Option<String>,
}

/// The fields of an account, in Meta's words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountFields {
    /// The name of the account.
    pub name: Option<String>,
    /// APPROVED, PENDING, REJECTED or DEFERRED.
    pub account_review_status: Option<String>,
    /// Such as verified or `not_verified`.
    pub business_verification_status: Option<String>,
    /// The id of the business portfolio that owns it: only its admins can appeal.
    pub portfolio_id: Option<String>,
    /// The name of that portfolio.
    pub portfolio_name: Option<String>,
}

impl NumberFields {
    /// Parses Meta's answer to [`NUMBER_FIELDS`]; `None` if it has none of them.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let body = repair_text(body);
        let [status, quality_rating, name_status] =
            texts(&body, ["status", "quality_rating", "name_status"])?;
        let fields = Self {
            status,
            quality_rating,
            name_status,
        };
        (fields != Self::default()).then_some(fields)
    }
}

impl AccountFields {
    /// Parses Meta's answer to [`ACCOUNT_FIELDS`]; `None` if it has none of them.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let body = repair_text(body);
        let [name, account_review_status, business_verification_status] = texts(
            &body,
            [
                "name",
                "account_review_status",
                "business_verification_status",
            ],
        )?;
        let [owner] = fields(&body, ["owner_business_info"])?;
        let owner = owner.and_then(|owner| texts(owner.get(), ["id", "name"]));
        let [portfolio_id, portfolio_name] = owner.unwrap_or_default();
        let fields = Self {
            name,
            account_review_status,
            business_verification_status,
            portfolio_id: portfolio_id.filter(|id| is_id(id)),
            portfolio_name,
        };
        (fields != Self::default()).then_some(fields)
    }
}

/// Returns whether a text is an id of Meta's, which can stand in a link.
#[must_use]
pub fn is_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the named texts of a JSON object, without empty ones.
fn texts<const N: usize>(json: &str, names: [&str; N]) -> Option<[Option<String>; N]> {
    let text = |raw| {
        let text = scalar(raw)?;
        let text = Text::truncate(text.trim(), Text::SHORT_BYTES).into_string();
        (!text.is_empty()).then_some(text)
    };
    Some(fields(json, names)?.map(|raw| raw.and_then(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_one_by_one() {
        let number = NumberFields::parse(br#"{"status":"BANNED","quality_rating":7,"id":"1"}"#);
        assert_eq!(
            number,
            Some(NumberFields {
                status: Some("BANNED".into()),
                quality_rating: Some("7".into()),
                name_status: None,
            })
        );
        let account = AccountFields::parse(
            br#"{"name":" Panificadora ","owner_business_info":{"id":"7300","name":"Grupo"}}"#,
        )
        .unwrap();
        assert_eq!(account.name.as_deref(), Some("Panificadora"));
        assert_eq!(account.portfolio_id.as_deref(), Some("7300"));
        for none in ["{}", "[]", "<html>", r#"{"id":"1","name":""}"#] {
            assert_eq!(AccountFields::parse(none.as_bytes()), None, "{none}");
            assert_eq!(NumberFields::parse(none.as_bytes()), None, "{none}");
        }
        let odd = AccountFields::parse(br#"{"name":"a","owner_business_info":{"id":"7/.."}}"#);
        assert_eq!(odd.unwrap().portfolio_id, None, "it would stand in a link");
    }
}
