//! JSON for a service that takes it by HTTP: a template whose strings hold placeholders. Presets
//! are templates as data, in `presets/`.
//!
//! A placeholder without a value, such as `{url}` where no dashboard is known, takes the member
//! that consists of it with it; in a list, the object around that member goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Delivered;
use super::http::{Content, redact};
use crate::report::alert::Message;

/// The presets: name and template.
pub const PRESETS: [(&str, &str); 6] = [
    ("discord", include_str!("presets/discord.json")),
    ("google_chat", include_str!("presets/google_chat.json")),
    ("ntfy", include_str!("presets/ntfy.json")),
    ("pagerduty", include_str!("presets/pagerduty.json")),
    ("teams", include_str!("presets/teams.json")),
    ("telegram", include_str!("presets/telegram.json")),
];

/// The placeholders that every message fills.
const OF_MESSAGES: [&str; 8] = [
    "title", "text", "url", "id", "type", "thread", "action", "severity",
];

/// A template of headers and body.
#[derive(Debug, Clone)]
pub struct Template {
    headers: Vec<(String, String)>,
    body: Value,
    reads_marks: bool,
    values: Arc<BTreeMap<String, SecretString>>,
}

/// The template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    /// There is no such preset.
    #[error(
        "there is no preset {0}; there are discord, google_chat, ntfy, pagerduty, teams, telegram"
    )]
    UnknownPreset(String),
    /// A placeholder has no value.
    #[error("{{{0}}} has no value: put {0} or {0}_file under values")]
    NoValue(String),
    /// A value has the name of what a message fills.
    #[error("{0} under values: every message fills this placeholder itself")]
    Reserved(String),
    /// A header cannot be sent.
    #[error("the header {0} cannot be sent")]
    Header(String),
}

/// A preset, as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::alerts) struct Preset {
    /// The address, if the service has one for all. It may hold placeholders.
    pub(in crate::alerts) url: Option<String>,
    /// The headers besides the content type.
    #[serde(default)]
    pub(in crate::alerts) headers: BTreeMap<String, String>,
    /// The body.
    pub(in crate::alerts) body: Value,
    /// `true` if the service reads marks in a text: then those of others are taken out.
    #[serde(default)]
    pub(in crate::alerts) reads_marks: bool,
}

impl Preset {
    /// Finds a preset by its name.
    pub(in crate::alerts) fn find(name: &str) -> Result<Self, BadTemplate> {
        let preset = PRESETS.iter().find(|(known, _)| *known == name);
        let (_, text) = preset.ok_or_else(|| BadTemplate::UnknownPreset(name.to_owned()))?;
        Ok(serde_json::from_str(text).expect("a test parses every preset"))
    }

    /// Makes a template with these values, and the URL if the preset has one.
    pub(in crate::alerts) fn fill(
        self,
        values: BTreeMap<String, SecretString>,
    ) -> Result<(Template, Option<SecretString>), BadTemplate> {
        if let Some(name) = values
            .keys()
            .find(|name| OF_MESSAGES.contains(&name.as_str()))
        {
            return Err(BadTemplate::Reserved(name.clone()));
        }
        let template = Template {
            headers: self.headers.into_iter().collect(),
            body: self.body,
            reads_marks: self.reads_marks,
            values: Arc::new(values),
        };
        if let Some(name) = template.missing_value(self.url.as_deref().unwrap_or_default()) {
            return Err(BadTemplate::NoValue(name.to_owned()));
        }
        for (name, value) in &template.headers {
            let is_sendable = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && value.bytes().all(|b| (b' '..=b'~').contains(&b));
            if !is_sendable || name.is_empty() {
                return Err(BadTemplate::Header(name.clone()));
            }
        }
        let url = self
            .url
            .map(|url| replace(&url, |name| template.value(name)).into());
        Ok((template, url))
    }
}

impl Template {
    /// Returns a placeholder that nothing fills. Only values of the configuration can stand in the
    /// URL.
    fn missing_value<'t>(&'t self, url: &'t str) -> Option<&'t str> {
        let mut strings = Vec::new();
        collect_strings(&self.body, &mut strings);
        strings.extend(self.headers.iter().map(|(_, value)| value.as_str()));
        let has_value = |name: &&str| self.values.contains_key(*name);
        let in_text = strings.into_iter().flat_map(placeholders);
        in_text
            .filter(|name| !OF_MESSAGES.contains(name))
            .chain(placeholders(url))
            .find(|name| !has_value(name))
    }

    /// Returns whether the receiver is told what a message closes.
    pub(super) fn closes_threads(&self) -> bool {
        let mut strings = Vec::new();
        collect_strings(&self.body, &mut strings);
        strings
            .into_iter()
            .flat_map(placeholders)
            .any(|name| name == "action")
    }

    /// Takes the values out of an answer that repeats them.
    pub(super) fn redact(&self, mut delivered: Delivered) -> Delivered {
        for value in self.values.values() {
            delivered.answer = redact(&delivered.answer, value.expose_secret());
        }
        delivered
    }

    fn value(&self, name: &str) -> Option<String> {
        let value = self.values.get(name)?;
        Some(value.expose_secret().to_owned())
    }

    /// Returns what is posted for a message.
    pub(super) fn content(&self, message: &Message) -> Content {
        let fill = |name: &str| match name {
            "title" if self.reads_marks => Some(without_marks(&message.title)),
            "title" => Some(message.title.clone()),
            "text" if self.reads_marks => Some(without_marks(&message.text())),
            "text" => Some(message.text()),
            "url" => message.url.clone(),
            "id" => Some(message.id.clone()),
            "type" => Some(message.kind.clone()),
            "thread" => Some(message.thread.id.clone()),
            "action" => Some(
                if message.is_over {
                    "resolve"
                } else {
                    "trigger"
                }
                .to_owned(),
            ),
            "severity" => Some(message.severity.as_str().to_owned()),
            name => self.value(name),
        };
        let body = fill_value(&self.body, &fill).unwrap_or_default();
        let mut content = Content::json(&body);
        for (name, value) in &self.headers {
            // A line break would end the header.
            let value = replace(value, fill).replace(['\r', '\n'], " ");
            content = content.with_header(name, value);
        }
        content
    }
}

/// Takes out what would be a link with another text, or call people: Meta and accounts choose words.
pub(super) fn without_marks(text: &str) -> String {
    text.replace('[', "(")
        .replace(']', ")")
        .replace('<', "‹")
        .replace('>', "›")
        .replace('@', "@\u{200b}")
}

fn collect_strings<'v>(value: &'v Value, strings: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => strings.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect_strings(item, strings)),
        Value::Object(members) => {
            members
                .values()
                .for_each(|member| collect_strings(member, strings));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Fills the strings of a value; `None` if it is nothing without a placeholder that has no value.
fn fill_value(value: &Value, fill: &impl Fn(&str) -> Option<String>) -> Option<Value> {
    match value {
        Value::String(text) => {
            let mut names = placeholders(text);
            match (names.next(), names.next()) {
                (Some(name), None) if text.len() == name.len() + 2 => fill(name).map(Value::from),
                _ => Some(replace(text, fill).trim_end().into()),
            }
        }
        Value::Array(items) => {
            let is_whole = |filled: &Value, item: &Value| match (filled, item) {
                (Value::Object(filled), Value::Object(item)) => filled.len() == item.len(),
                _ => true,
            };
            let filled = items
                .iter()
                .filter_map(|item| fill_value(item, fill).filter(|filled| is_whole(filled, item)));
            Some(filled.collect())
        }
        Value::Object(members) => {
            let filled = members
                .iter()
                .filter_map(|(name, member)| Some((name.clone(), fill_value(member, fill)?)));
            Some(Value::Object(filled.collect::<Map<_, _>>()))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Some(value.clone()),
    }
}

/// Returns the names of the placeholders in a text.
fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.split('{').skip(1).filter_map(|rest| {
        let (name, _) = rest.split_once('}')?;
        is_name(name).then_some(name)
    })
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// Replaces the placeholders in one pass: what is put in is not looked at again, whoever wrote it.
fn replace(text: &str, fill: impl Fn(&str) -> Option<String>) -> String {
    let mut parts = text.split('{');
    let mut replaced = parts.next().unwrap_or_default().to_owned();
    for rest in parts {
        match rest.split_once('}') {
            Some((name, after)) if is_name(name) => {
                replaced += &fill(name).unwrap_or_default();
                replaced += after;
            }
            _ => {
                replaced.push('{');
                replaced += rest;
            }
        }
    }
    replaced
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(body: Value, values: &[(&str, &str)]) -> Result<Template, BadTemplate> {
        let values = values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).into()));
        let preset = Preset {
            body,
            ..Preset::default()
        };
        preset.fill(values.collect()).map(|(template, _)| template)
    }

    fn message() -> Message {
        let mut message = Message::test(
            "lockwatch_test_1".to_owned(),
            time::OffsetDateTime::UNIX_EPOCH,
        );
        message.title = "{token} \"quoted\"".to_owned();
        message
    }

    #[test]
    fn what_a_message_says_is_no_template() {
        let body = json!({"a": "{title}: {token} {not a name} {", "b": [1, {"c": "{severity}"}]});
        let template = template(body, &[("token", "secret")]).unwrap();
        let content = template.content(&message());
        assert_eq!(
            serde_json::from_str::<Value>(&content.body).unwrap(),
            json!({
                "a": "{token} \"quoted\": secret {not a name} {",
                "b": [1, {"c": "info"}]
            })
        );
    }

    #[test]
    fn marks_of_others_are_taken_out() {
        let mut message = message();
        message.title = "[Verify](https://evil) <users/all> @everyone".to_owned();
        for (name, _) in PRESETS {
            let values = ["routing_key", "topic", "token", "chat_id"];
            let values = values.map(|name| (name.to_owned(), "x".into()));
            let (template, _) = Preset::find(name).unwrap().fill(values.into()).unwrap();
            let body = template.content(&message).body;
            let is_plain = ["ntfy", "pagerduty", "telegram"].contains(&name);
            assert_eq!(body.contains("[Verify]"), is_plain, "{body}");
            assert_eq!(body.contains("@everyone"), is_plain, "{body}");
        }
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let body = json!({
            "link": "{url}", "links": [{"href": "{url}", "text": "Open"}, {"text": "stays"}],
            "text": "{title}\n{url}"
        });
        let content = template(body, &[]).unwrap().content(&message());
        assert_eq!(
            serde_json::from_str::<Value>(&content.body).unwrap(),
            json!({"links": [{"text": "stays"}], "text": "{token} \"quoted\""})
        );
    }

    #[test]
    fn a_placeholder_without_a_value_is_an_error() {
        let missing = template(json!({"a": "{topic}"}), &[]).unwrap_err();
        assert_eq!(missing, BadTemplate::NoValue("topic".to_owned()));
        let reserved = template(json!({}), &[("title", "x")]).unwrap_err();
        assert_eq!(reserved, BadTemplate::Reserved("title".to_owned()));
    }

    #[test]
    fn every_preset_is_well_formed_and_named_in_the_error() {
        let error = Preset::find("pager").unwrap_err().to_string();
        for (name, _) in PRESETS {
            Preset::find(name).unwrap();
            assert!(error.contains(name), "{error}");
        }
    }
}
