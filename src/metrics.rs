//! Metrics for Prometheus: counters of this process, and gauges read from the database.
//!
//! [`Metrics::new`] makes one handle of counters for each part of the service. The values of a
//! label are words of this program, and every series exists from the start. So a rate includes the
//! first event of its kind, and the number of series never grows. Received data never becomes a
//! label, least of all an id.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::lockout::change::ChangeKind;
use crate::lockout::codes::Kind;
use crate::lockout::incident::Resolution;
use crate::meta::health::{LookupResult, Outcome};
use crate::store::alerts;
use crate::store::overview::{Overview, PoolUse};
use crate::store::process::Written;

const METRIC_PREFIX: &str = "lockwatch";

/// Buckets for numbers of callbacks or failures, from one to the limit of the queue.
const SIZE_BUCKETS: [f64; 8] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0];
/// Buckets in seconds, from the commit of a fast disk to the longest time that a batch may take.
const COMMIT_BUCKETS: [f64; 11] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];
/// Buckets in seconds, from a quiet processor to a callback that waits for a person.
const WAIT_BUCKETS: [f64; 12] = [
    0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0, 3600.0,
];
/// Buckets in seconds, from the answer of a near server to the longest time that a request may
/// take.
const LOOKUP_BUCKETS: [f64; 8] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The counters of one service. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// The counters of the webhook.
    pub webhook: WebhookMetrics,
    /// The counters of the inbox.
    pub inbox: InboxMetrics,
    /// The counters of the processor.
    pub processor: ProcessorMetrics,
    /// The counters of the follow-up.
    pub follow_up: FollowUpMetrics,
    /// The counters of the change log.
    pub changes: ChangeMetrics,
    /// The counters of the alerts.
    pub alerts: AlertMetrics,
}

/// The gauges of one scrape.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    /// `true` if lockouts can be recorded.
    pub(crate) ready: bool,
    /// The connections of the pool.
    pub(crate) pool: PoolUse,
    /// `None` if the database did not answer: the gauges that come from it are then left out.
    pub(crate) overview: Option<Overview>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Creates all counters, each at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(METRIC_PREFIX);
        let webhook = WebhookMetrics::register(&mut registry);
        let inbox = InboxMetrics::register(&mut registry);
        let processor = ProcessorMetrics::register(&mut registry);
        let follow_up = FollowUpMetrics::register(&mut registry);
        let changes = ChangeMetrics::register(&mut registry);
        let alerts = AlertMetrics::register(&mut registry);
        let build = LabelledFamily {
            label: "version",
            series: vec![(env!("CARGO_PKG_VERSION"), gauge(1))],
        };
        registry.register("build_info", "1; the version as a label", build);
        Self {
            registry: Arc::new(registry),
            webhook,
            inbox,
            processor,
            follow_up,
            changes,
            alerts,
        }
    }

    /// Encodes the counters and a snapshot as [OpenMetrics
    /// 1.0](https://prometheus.io/docs/specs/om/open_metrics_spec/) text.
    #[must_use]
    pub(crate) fn encode(&self, snapshot: &Snapshot) -> String {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)
            .and_then(|()| encode_registry(&mut text, &snapshot.to_registry()))
            .and_then(|()| encode_eof(&mut text))
            .expect("writing to a String never fails");
        text
    }
}

/// The counters of the webhook. The default is not registered: its values are
/// not exported.
#[derive(Debug, Clone)]
pub struct WebhookMetrics {
    pub(crate) callbacks: CallbackCounters,
    pub(crate) handshakes: HandshakeCounters,
}

/// The callbacks, by outcome.
#[derive(Debug, Clone)]
pub(crate) struct CallbackCounters {
    pub(crate) recorded: Counter,
    pub(crate) nothing_found: Counter,
    pub(crate) bad_signature: Counter,
    pub(crate) encoded: Counter,
    pub(crate) wrong_path: Counter,
    pub(crate) wrong_method: Counter,
    pub(crate) too_large: Counter,
    pub(crate) incomplete: Counter,
    pub(crate) busy: Counter,
    pub(crate) not_recorded: Counter,
    pub(crate) abandoned: Counter,
}

/// The handshakes, by outcome.
#[derive(Debug, Clone)]
pub(crate) struct HandshakeCounters {
    pub(crate) verified: Counter,
    pub(crate) wrong_token: Counter,
    pub(crate) malformed: Counter,
}

/// Increments a counter when it is dropped. A handler is dropped halfway if its sender disconnects,
/// and must be counted all the same.
#[derive(Debug)]
pub(crate) struct CountOnDrop<'m>(pub(crate) &'m Counter);

impl Drop for CountOnDrop<'_> {
    fn drop(&mut self) {
        self.0.inc();
    }
}

impl Default for WebhookMetrics {
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}

impl WebhookMetrics {
    fn register(registry: &mut Registry) -> Self {
        let mut outcomes = LabelledFamily::new("outcome");
        let callbacks = CallbackCounters {
            recorded: outcomes.add_counter("recorded"),
            nothing_found: outcomes.add_counter("nothing_found"),
            bad_signature: outcomes.add_counter("bad_signature"),
            encoded: outcomes.add_counter("encoded"),
            wrong_path: outcomes.add_counter("wrong_path"),
            wrong_method: outcomes.add_counter("wrong_method"),
            too_large: outcomes.add_counter("too_large"),
            incomplete: outcomes.add_counter("incomplete"),
            busy: outcomes.add_counter("busy"),
            not_recorded: outcomes.add_counter("not_recorded"),
            abandoned: outcomes.add_counter("abandoned"),
        };
        let help = "Callbacks by outcome: recorded and nothing_found were answered with 200; \
                    the sender of an abandoned one disconnected before the answer";
        registry.register("callbacks", help, outcomes);

        let mut outcomes = LabelledFamily::new("outcome");
        let handshakes = HandshakeCounters {
            verified: outcomes.add_counter("verified"),
            wrong_token: outcomes.add_counter("wrong_token"),
            malformed: outcomes.add_counter("malformed"),
        };
        registry.register(
            "handshakes",
            "Requests to verify the URL of the webhook",
            outcomes,
        );
        Self {
            callbacks,
            handshakes,
        }
    }
}

/// The counters of the inbox. The default is not registered: its values are not exported.
#[derive(Debug, Clone)]
pub struct InboxMetrics {
    batch_callbacks: Histogram,
    commit: Histogram,
    batches_failed: Counter,
}

impl Default for InboxMetrics {
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}

impl InboxMetrics {
    fn register(registry: &mut Registry) -> Self {
        let batch_callbacks = register_metric(
            registry,
            "batch_callbacks",
            "Callbacks that were appended to the inbox in one commit",
            Histogram::new(SIZE_BUCKETS),
        );
        let commit = Histogram::new(COMMIT_BUCKETS);
        let help = "Time until an append to the inbox was committed";
        registry.register_with_unit("commit", help, Unit::Seconds, commit.clone());
        let help = "Appends that were not committed; Meta is asked to send their callbacks again";
        let batches_failed = register_metric(registry, "batches_failed", help, Counter::default());
        Self {
            batch_callbacks,
            commit,
            batches_failed,
        }
    }

    /// Counts an append that was committed.
    pub(crate) fn count_committed(&self, callbacks: usize, took: Duration) {
        self.batch_callbacks.observe(callbacks as f64);
        self.commit.observe(took.as_secs_f64());
    }

    /// Counts an append that was not committed.
    pub(crate) fn count_failed(&self) {
        self.batches_failed.inc();
    }
}

/// The counters of the processor. The default is not registered: its values are not exported.
#[derive(Debug, Clone)]
pub struct ProcessorMetrics {
    batch_failures: Histogram,
    process: Histogram,
    inbox_wait: Histogram,
    divided: Counter,
    recorded: Counter,
    repeated: Counter,
    quarantined: Counter,
}

impl Default for ProcessorMetrics {
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}

impl ProcessorMetrics {
    fn register(registry: &mut Registry) -> Self {
        let batch_failures = register_metric(
            registry,
            "batch_failures",
            "Failed deliveries that were processed in one transaction",
            Histogram::new(SIZE_BUCKETS),
        );
        let process = Histogram::new(COMMIT_BUCKETS);
        let help = "Time until a batch of the inbox was processed";
        registry.register_with_unit("process", help, Unit::Seconds, process.clone());
        let inbox_wait = Histogram::new(WAIT_BUCKETS);
        let help = "Time that a callback waited in the inbox until its rows were committed";
        registry.register_with_unit("inbox_wait", help, Unit::Seconds, inbox_wait.clone());
        let help = "Batches of the inbox that were divided or tried again, because the database \
                    refused them or a lock was held";
        let divided = register_metric(registry, "batches_divided", help, Counter::default());
        let mut kinds = LabelledFamily::new("kind");
        let (recorded, repeated) = (kinds.add_counter("recorded"), kinds.add_counter("repeated"));
        let help =
            "Failed deliveries with a watched code: recorded if they were new, otherwise repeated";
        registry.register("failures", help, kinds);
        let help = "Parts of callbacks put into quarantine, because they could not be read";
        let quarantined = register_metric(registry, "quarantined", help, Counter::default());
        Self {
            batch_failures,
            process,
            inbox_wait,
            divided,
            recorded,
            repeated,
            quarantined,
        }
    }

    /// Counts a transaction that was committed. Each of its callbacks had waited so many seconds
    /// when it began.
    pub(crate) fn count_batch(
        &self,
        written: &Written,
        waited: impl Iterator<Item = f64>,
        took: Duration,
    ) {
        let took = took.as_secs_f64();
        self.recorded.inc_by(written.new);
        self.repeated.inc_by(written.repeated);
        self.quarantined.inc_by(written.quarantined);
        self.batch_failures
            .observe((written.new + written.repeated) as f64);
        self.process.observe(took);
        for before in waited {
            self.inbox_wait.observe(before + took);
        }
    }

    /// Counts a transaction that was not committed.
    pub(crate) fn count_divided(&self) {
        self.divided.inc();
    }
}

/// The counters of the follow-up. The default is not registered: its values are
/// not exported.
#[derive(Debug, Clone)]
pub struct FollowUpMetrics {
    lookups: [Counter; Outcome::ALL.len()],
    lookup: Histogram,
}

impl Default for FollowUpMetrics {
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}

impl FollowUpMetrics {
    fn register(registry: &mut Registry) -> Self {
        let mut outcomes = LabelledFamily::new("outcome");
        let lookups = Outcome::ALL.map(|outcome| outcomes.add_counter(outcome.as_str()));
        registry.register(
            "lookups",
            "Look-ups of a number's health, by the outcomes of health_checks",
            outcomes,
        );
        let lookup = Histogram::new(LOOKUP_BUCKETS);
        let help = "Time that Meta took for a look-up, answered or not";
        registry.register_with_unit("lookup", help, Unit::Seconds, lookup.clone());
        Self { lookups, lookup }
    }

    /// Counts a look-up, and its duration if Meta was asked at all.
    pub(crate) fn count_lookup(&self, lookup: &LookupResult) {
        let outcome = lookup.answer.outcome();
        self.lookups[outcome as usize].inc();
        if outcome != Outcome::NotAsked {
            self.lookup.observe(lookup.duration.as_secs_f64());
        }
    }
}

/// The counters of what happened to incidents. The default is not registered: its values are not
/// exported.
#[derive(Debug, Clone)]
pub struct ChangeMetrics {
    opened: [Counter; Kind::ALL.len()],
    resolved: [Counter; Resolution::ALL.len()],
}

impl Default for ChangeMetrics {
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}

impl ChangeMetrics {
    fn register(registry: &mut Registry) -> Self {
        let mut kinds = LabelledFamily::new("kind");
        let opened = Kind::ALL.map(|kind| kinds.add_counter(kind.as_str()));
        let help = "Incidents that were opened, counted by the process that logged it";
        registry.register("incidents_opened", help, kinds);
        let mut resolutions = LabelledFamily::new("resolution");
        let resolved = Resolution::ALL.map(|one| resolutions.add_counter(one.as_str()));
        let help = "Incidents that were resolved, counted by the process that logged it";
        registry.register("incidents_resolved", help, resolutions);
        Self { opened, resolved }
    }

    /// Counts a change of an incident of this kind.
    pub(crate) fn count(&self, of_kind: Kind, change: ChangeKind) {
        match change {
            ChangeKind::Opened => {
                self.opened[of_kind as usize].inc();
            }
            ChangeKind::Resolved(resolution) => {
                self.resolved[resolution as usize].inc();
            }
            ChangeKind::CauseFound(_)
            | ChangeKind::CauseChanged(_)
            | ChangeKind::Acknowledged
            | ChangeKind::Reminded
            | ChangeKind::Reopened => {}
        }
    }
}

/// The counters of the alerts. The default is not registered: its values are not exported.
#[derive(Debug, Clone, Default)]
pub struct AlertMetrics {
    deliveries: Family<[(&'static str, String); 2], Counter>,
}

impl AlertMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "Deliveries of alerts by channel and outcome: accepted, retried later, or dead \
                    (given up)";
        registry.register("alerts", help, metrics.deliveries.clone());
        metrics
    }

    /// Creates the series of a channel.
    pub(crate) fn add_channel(&self, channel: &str) {
        for outcome in ["accepted", "retried", "dead"] {
            drop(self.counter(channel, outcome));
        }
    }

    /// Counts a delivery.
    pub(crate) fn count(&self, channel: &str, outcome: &alerts::Outcome) {
        let outcome = match outcome {
            alerts::Outcome::Accepted => "accepted",
            alerts::Outcome::Retry(_) => "retried",
            alerts::Outcome::Dead => "dead",
        };
        self.counter(channel, outcome).inc();
    }

    fn counter(&self, channel: &str, outcome: &'static str) -> Counter {
        let labels = [
            ("channel", channel.to_owned()),
            ("outcome", outcome.to_owned()),
        ];
        self.deliveries.get_or_create_owned(&labels)
    }
}

impl Snapshot {
    fn to_registry(&self) -> Registry {
        let Self {
            ready,
            pool,
            overview,
        } = self;
        let mut registry = Registry::with_prefix(METRIC_PREFIX);
        registry.register(
            "ready",
            "1 if lockouts can be recorded, as /readyz says",
            gauge(*ready),
        );
        let help = "1 if the database answered this scrape; otherwise its metrics are missing";
        registry.register("database_up", help, gauge(overview.is_some()));
        let states = LabelledFamily {
            label: "state",
            series: vec![("idle", gauge(pool.idle)), ("busy", gauge(pool.busy))],
        };
        registry.register(
            "pool_connections",
            "Open connections of the pool, which everything except inbox and processor uses",
            states,
        );
        registry.register(
            "pool_connections_max",
            "Connections that the pool may open",
            gauge(pool.max),
        );
        if let Some(overview) = overview {
            overview.register(&mut registry);
        }
        registry
    }
}

fn gauge(n: impl Into<i64>) -> ConstGauge {
    ConstGauge::new(n.into())
}

impl Overview {
    fn register(&self, registry: &mut Registry) {
        let causes = self.open.iter();
        let causes = causes.map(|(cause, n)| (cause.as_str(), gauge(*n)));
        let help = "Incidents that are not resolved, in the database that all replicas share";
        let open = LabelledFamily {
            label: "cause",
            series: causes.collect(),
        };
        registry.register("incidents_open", help, open);
        let help = "Numbers whose look-up is two minutes late or more, in the database that all \
                    replicas share";
        registry.register("checks_overdue", help, gauge(self.checks_overdue));
        let help = "Numbers whose look-up has failed several times in a row, in the database that \
                    all replicas share";
        registry.register("lookups_failing", help, gauge(self.lookups_failing));
        let denials = self.denied.iter();
        let denials = denials.map(|(denial, n)| (denial.as_str(), gauge(*n)));
        let help = "Incidents that are not resolved and whose cause Meta refuses to tell, by the \
                    reason of the refusal";
        let denied = LabelledFamily {
            label: "denial",
            series: denials.collect(),
        };
        registry.register("incidents_denied", help, denied);
        let troubles = self.troubles.iter();
        let troubles = LabelledFamily {
            label: "kind",
            series: troubles
                .map(|(kind, n)| (kind.as_str(), gauge(*n)))
                .collect(),
        };
        let help = "Troubles of Lockwatch that last, in the database that all replicas share";
        registry.register("troubles", help, troubles);
        let alerts = LabelledFamily {
            label: "state",
            series: vec![
                ("waiting", gauge(self.alerts.0)),
                ("dead", gauge(self.alerts.1)),
            ],
        };
        let help = "Alerts that wait for their channels, and those that were given up in the last day, \
                    in the database that all replicas share";
        registry.register("alerts_open", help, alerts);
        let backlog = &self.backlog;
        let help = "Callbacks in the inbox, counted up to 100,000, in the database that all \
                    replicas share";
        registry.register("inbox_callbacks", help, gauge(backlog.inbox_callbacks));
        let help = "Callbacks in the inbox that could not be processed and are tried again";
        registry.register("inbox_problems", help, gauge(backlog.inbox_problems));
        let help = "Time since the oldest callback in the inbox was appended";
        let oldest = gauge(backlog.inbox_oldest_seconds);
        registry.register_with_unit("inbox_oldest", help, Unit::Seconds, oldest);
        let help = "Parts of callbacks that could not be read and are in quarantine";
        registry.register("quarantine_parts", help, gauge(backlog.quarantined));
    }
}

/// Registers a metric without labels.
fn register_metric<M: Metric + Clone>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    metric: M,
) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// A metric with one label, and one series for each value of the label, in a fixed order. The
/// library's own families create a series when it is first used, and would accept any value.
#[derive(Debug)]
struct LabelledFamily<M> {
    label: &'static str,
    series: Vec<(&'static str, M)>,
}

impl LabelledFamily<Counter> {
    fn new(label: &'static str) -> Self {
        Self {
            label,
            series: Vec::new(),
        }
    }

    fn add_counter(&mut self, word: &'static str) -> Counter {
        let counter = Counter::default();
        self.series.push((word, counter.clone()));
        counter
    }
}

impl<M: EncodeMetric + TypedMetric> EncodeMetric for LabelledFamily<M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (word, metric) in &self.series {
            metric.encode(encoder.encode_family(&[(self.label, *word)])?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}
