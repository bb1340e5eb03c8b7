//! An incoming webhook of Slack: a `text` and one attachment, which Mattermost, Rocket.Chat and
//! Discord's `/slack` take as well
//! ([Slack: incoming webhooks](https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks)).

use serde_json::json;

use super::http::Content;
use crate::report::alert::{Message, Severity};

pub(super) fn content(message: &Message) -> Content {
    let color = match message.severity {
        Severity::Critical => "#b3261e",
        Severity::Warning => "#b26a00",
        Severity::Info => "#1b7f5a",
    };
    let mut text = escape(&message.text());
    if let Some(url) = &message.url {
        text.push_str(&format!("\n<{url}|Open in Lockwatch>"));
    }
    Content::json(&json!({
        "text": escape(&message.title),
        "attachments": [{
            "color": color,
            "fallback": message.title,
            "text": text,
        }],
    }))
}

/// Slack reads these three characters as markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn received_text_is_no_markup() {
        assert_eq!(
            escape("<!channel> & <@U1>"),
            "&lt;!channel&gt; &amp; &lt;@U1&gt;"
        );
    }
}
