//! An incoming webhook of Slack: a `text` and one attachment, which Mattermost, Rocket.Chat and
//! Discord's `/slack` take as well
//! ([Slack: incoming webhooks](https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks)).

use reqwest::RequestBuilder;
use serde_json::json;

use crate::report::alert::Message;

pub(super) fn request(request: RequestBuilder, message: &Message) -> RequestBuilder {
    let color = match message.is_over {
        true => "#1b7f5a",
        false => "#b3261e",
    };
    let mut text = escape(&message.lines.join("\n"));
    if let Some(url) = &message.url {
        text.push_str(&format!("\n<{url}|Open the incident>"));
    }
    let body = json!({
        "text": escape(&message.title),
        "attachments": [{
            "color": color,
            "fallback": message.title,
            "text": text,
        }],
    });
    request
        .header("content-type", "application/json")
        .body(body.to_string())
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
