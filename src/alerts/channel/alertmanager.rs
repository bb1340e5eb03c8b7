//! Prometheus' Alertmanager ([API v2](https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml)).
//!
//! It is no queue: it is told what is wrong now, again and again, and takes for over what nobody
//! repeats. What changes, such as the cause, is an annotation: another label would be another alert.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::json;
use time::{Duration, OffsetDateTime};

use super::Delivered;
use super::http::{BadUrl, Content, HttpReceiver};
use crate::report::alert::{Message, Topic};

/// An alert that nobody repeats is over after this time.
pub(in crate::alerts) const VALIDITY: Duration = Duration::minutes(3);
/// The alerts of one request.
const CHUNK: usize = 200;

/// An Alertmanager.
#[derive(Debug, Clone)]
pub(in crate::alerts) struct Alertmanager(HttpReceiver);

/// An alert, as Alertmanager takes it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::alerts) struct State {
    labels: BTreeMap<&'static str, String>,
    annotations: BTreeMap<&'static str, String>,
    #[serde(with = "time::serde::rfc3339")]
    starts_at: OffsetDateTime,
    /// Until then it is wrong, or was.
    #[serde(with = "time::serde::rfc3339")]
    pub(in crate::alerts) ends_at: OffsetDateTime,
    #[serde(rename = "generatorURL", skip_serializing_if = "Option::is_none")]
    generator_url: Option<String>,
}

impl State {
    /// Takes what a message tells of. `None`: it is no state that lasts.
    pub(in crate::alerts) fn of(message: &Message) -> Option<Self> {
        let mut labels = BTreeMap::from([("severity", message.severity.as_str().to_owned())]);
        let mut annotations = BTreeMap::from([
            ("summary", message.title.clone()),
            ("description", message.text()),
        ]);
        let starts_at = match &message.topics[..] {
            [Topic::Incident(report)] => {
                let incident = &report.incident;
                labels.insert("alertname", "WhatsAppAccountLocked".to_owned());
                labels.insert("waba_id", incident.waba_id.to_string());
                labels.insert("incident", incident.id.to_string());
                labels.insert("kind", incident.kind.as_str().to_owned());
                annotations.insert("cause", report.cause_title().to_owned());
                incident.opened_at
            }
            [Topic::Trouble(trouble)] => {
                labels.insert("alertname", "LockwatchTrouble".to_owned());
                labels.insert("waba_id", trouble.waba_id.clone());
                labels.insert("kind", trouble.kind.clone());
                trouble.began_at
            }
            [] => {
                labels.insert("alertname", "LockwatchTest".to_owned());
                message.written_at
            }
            _ => return None,
        };
        Some(Self {
            labels,
            annotations,
            starts_at,
            ends_at: message.written_at + VALIDITY,
            generator_url: message.url.clone(),
        })
    }
}

impl Alertmanager {
    pub(super) fn new(url: &SecretString) -> Result<Self, BadUrl> {
        let url = url.expose_secret().trim_end_matches('/');
        let url = format!("{}/api/v2/alerts", url.trim_end_matches("/api/v2/alerts"));
        Ok(Self(HttpReceiver::new(&url.into())?))
    }

    /// Tells of these states. Stops at the first request that is not taken.
    pub(in crate::alerts) async fn send(&self, states: &[State]) -> Delivered {
        let mut delivered = Delivered::accepted("");
        for chunk in states.chunks(CHUNK) {
            delivered = self.0.send(Content::json(&json!(chunk))).await;
            if !delivered.is_accepted {
                break;
            }
        }
        delivered
    }

    pub(super) async fn send_message(&self, message: &Message) -> Delivered {
        let states: Vec<State> = State::of(message).into_iter().collect();
        self.send(&states).await
    }
}
