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

/// Slack reads three characters as marks; those that take the same read Markdown.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('[', "(")
        .replace(']', ")")
        .replace('@', "@\u{200b}")
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn received_text_is_no_markup() {
        assert_eq!(
            escape("<!channel> & @all [x](https://evil)"),
            "&lt;!channel&gt; &amp; @\u{200b}all (x)(https://evil)"
        );
    }
}
