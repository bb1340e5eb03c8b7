//! What Graph tells of us: of our token, and of the apps that an account reports to
//! ([Meta: debug_token](https://developers.facebook.com/docs/graph-api/reference/debug_token),
//! [Meta: subscribed_apps](https://developers.facebook.com/docs/graph-api/reference/whats-app-business-account/subscribed_apps)).

use time::OffsetDateTime;

use super::json::{elements, fields, integer, repair_text, scalar};

/// Facts about an access token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// The app that it belongs to.
    pub app_id: Option<String>,
    /// `true` if Meta accepts it.
    pub is_valid: bool,
    /// The time at which it, or its access to data, ends by itself.
    pub expires_at: Option<OffsetDateTime>,
}

impl TokenInfo {
    /// Parses the answer of `debug_token`. `None`: it is another answer.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let text = repair_text(body);
        let [data] = fields(&text, ["data"])?;
        let [app_id, is_valid, expires_at, data_expires_at] = fields(
            data?.get(),
            ["app_id", "is_valid", "expires_at", "data_access_expires_at"],
        )?;
        // Zero is never.
        let ends = [expires_at, data_expires_at].into_iter().flatten();
        let ends = ends.filter_map(integer).filter(|seconds| *seconds > 0);
        Some(Self {
            app_id: app_id.and_then(scalar).map(|id| id.into_owned()),
            is_valid: is_valid?.get() == "true",
            expires_at: ends
                .min()
                .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok()),
        })
    }
}

/// Parses the answer of `subscribed_apps`: the ids of the apps. `None`: it is another answer.
#[must_use]
pub fn subscribed_apps(body: &[u8]) -> Option<Vec<String>> {
    let text = repair_text(body);
    let [data] = fields(&text, ["data"])?;
    let apps = elements(data?)?.into_iter().filter_map(|app| {
        let [app] = fields(app.get(), ["whatsapp_business_api_data"])?;
        let [id] = fields(app?.get(), ["id"])?;
        Some(scalar(id?)?.into_owned())
    });
    Some(apps.collect())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_earlier_end_of_a_token_counts_and_zero_is_never() {
        let parse = |text: &str| TokenInfo::parse(text.as_bytes());
        let info = |app_id: &str, is_valid, expires_at| TokenInfo {
            app_id: Some(app_id.to_owned()),
            is_valid,
            expires_at,
        };
        for (body, expected) in [
            (
                r#"{"data":{"app_id":"63","is_valid":true,"expires_at":0}}"#,
                Some(info("63", true, None)),
            ),
            (
                r#"{"data":{"app_id":"63","is_valid":true,"expires_at":1798761600,
                    "data_access_expires_at":1796083200}}"#,
                Some(info("63", true, Some(datetime!(2026-12-01 00:00 UTC)))),
            ),
            (
                r#"{"data":{"app_id":"63","is_valid":false,"error":{"code":190}}}"#,
                Some(info("63", false, None)),
            ),
            (r#"{"error":{"code":190,"message":"x"}}"#, None),
            ("", None),
        ] {
            assert_eq!(parse(body), expected, "{body}");
        }
    }

    #[test]
    fn the_apps_of_an_account_are_read() {
        let body = br#"{"data":[{"whatsapp_business_api_data":{"id":"63","name":"ours"}},
                                {"whatsapp_business_api_data":{"id":64}},{"other":1}]}"#;
        assert_eq!(subscribed_apps(body).unwrap(), ["63", "64"]);
        assert_eq!(subscribed_apps(br#"{"data":[]}"#).unwrap(), [""; 0]);
        assert_eq!(subscribed_apps(br#"{"error":{"code":100}}"#), None);
    }
}
