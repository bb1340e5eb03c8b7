//! What Prometheus is told: what the process counts, and how things stand in the database.
//!
//! Each part of the service has a handle with what it counts, made by [`Metrics::new`]. A label's values are
//! words of this program, all of them there from the start: so a rate sees the first of its kind, and the
//! number of series never grows. Nothing that was received becomes a label, least of all an id.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::meta::health::{LookupResult, Outcome};
use crate::store::overview::{Overview, PoolUse};
use crate::store::record::Recorded;

const PREFIX: &str = "lockwatch";

/// Callbacks or failures: from one to as many as may wait.
const SIZE_BUCKETS: [f64; 8] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0];
/// Seconds, from a fast disk's to the most that a batch may take.
const COMMIT_BUCKETS: [f64; 11] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];
/// Seconds, from a near server's to the most that a request may take.
const LOOKUP_BUCKETS: [f64; 8] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Everything that one service counts. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// For the webhook.
    pub webhook: WebhookMetrics,
    /// For the recorder.
    pub recorder: RecorderMetrics,
    /// For the follow-up.
    pub follow_up: FollowUpMetrics,
}

/// What is read for one scrape, beside what was counted.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Whether lockouts can be recorded.
    pub ready: bool,
    /// The pool.
    pub pool: PoolUse,
    /// `None` where the database did not answer: then nothing is said about what is in it.
    pub overview: Option<Overview>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let webhook = WebhookMetrics::in_registry(&mut registry);
        let recorder = RecorderMetrics::in_registry(&mut registry);
        let follow_up = FollowUpMetrics::in_registry(&mut registry);
        Self {
            registry: Arc::new(registry),
            webhook,
            recorder,
            follow_up,
        }
    }

    /// All of it in the text format of [OpenMetrics 1.0](https://prometheus.io/docs/specs/om/open_metrics_spec/).
    #[must_use]
    pub fn text(&self, reading: &Snapshot) -> String {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)
            .and_then(|()| encode_registry(&mut text, &reading.registry()))
            .and_then(|()| encode_eof(&mut text))
            .expect("a String takes any text");
        text
    }
}

/// What the webhook counts. The default is in no [`Metrics`]: it counts, and nobody looks.
#[derive(Debug, Clone)]
pub struct WebhookMetrics {
    pub(crate) callbacks: Callbacks,
    pub(crate) handshakes: Handshakes,
}

/// Callbacks, by what became of them.
#[derive(Debug, Clone)]
pub(crate) struct Callbacks {
    pub(crate) recorded: Counter,
    pub(crate) nothing_found: Counter,
    pub(crate) bad_signature: Counter,
    pub(crate) encoded: Counter,
    pub(crate) too_large: Counter,
    pub(crate) incomplete: Counter,
    pub(crate) busy: Counter,
    pub(crate) not_recorded: Counter,
    pub(crate) abandoned: Counter,
}

/// Handshakes, by what became of them.
#[derive(Debug, Clone)]
pub(crate) struct Handshakes {
    pub(crate) verified: Counter,
    pub(crate) wrong_token: Counter,
    pub(crate) malformed: Counter,
}

/// Counts once, when it goes out of scope: a handler may end in its middle, when its sender goes away.
#[derive(Debug)]
pub(crate) struct CountedAs<'m>(pub(crate) &'m Counter);

impl Drop for CountedAs<'_> {
    fn drop(&mut self) {
        self.0.inc();
    }
}

impl Default for WebhookMetrics {
    fn default() -> Self {
        Self::in_registry(&mut Registry::default())
    }
}

impl WebhookMetrics {
    fn in_registry(registry: &mut Registry) -> Self {
        let mut outcomes = Labelled::new("outcome");
        let callbacks = Callbacks {
            recorded: outcomes.counter("recorded"),
            nothing_found: outcomes.counter("nothing_found"),
            bad_signature: outcomes.counter("bad_signature"),
            encoded: outcomes.counter("encoded"),
            too_large: outcomes.counter("too_large"),
            incomplete: outcomes.counter("incomplete"),
            busy: outcomes.counter("busy"),
            not_recorded: outcomes.counter("not_recorded"),
            abandoned: outcomes.counter("abandoned"),
        };
        let help = "Callbacks by outcome: recorded and nothing_found were answered with 200; the sender of an \
                    abandoned one went away before the answer";
        registry.register("callbacks", help, outcomes);

        let mut outcomes = Labelled::new("outcome");
        let handshakes = Handshakes {
            verified: outcomes.counter("verified"),
            wrong_token: outcomes.counter("wrong_token"),
            malformed: outcomes.counter("malformed"),
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

/// What the recorder counts. The default is in no [`Metrics`]: it counts, and nobody looks.
#[derive(Debug, Clone)]
pub struct RecorderMetrics {
    batch_callbacks: Histogram,
    batch_failures: Histogram,
    commit: Histogram,
    batches_failed: Counter,
    recorded: Counter,
    repeated: Counter,
    quarantined: Counter,
}

impl Default for RecorderMetrics {
    fn default() -> Self {
        Self::in_registry(&mut Registry::default())
    }
}

impl RecorderMetrics {
    fn in_registry(registry: &mut Registry) -> Self {
        let sizes = || Histogram::new(SIZE_BUCKETS);
        let batch_callbacks = register_metric(
            registry,
            "batch_callbacks",
            "Callbacks in a batch that was committed",
            sizes(),
        );
        let batch_failures = register_metric(
            registry,
            "batch_failures",
            "Failed deliveries in a batch that was committed",
            sizes(),
        );
        let commit = Histogram::new(COMMIT_BUCKETS);
        let help = "How long a batch took until it was committed";
        registry.register_with_unit("commit", help, Unit::Seconds, commit.clone());
        let help = "Batches that were not committed; Meta is asked to send their callbacks again";
        let batches_failed = register_metric(registry, "batches_failed", help, Counter::default());
        let mut kinds = Labelled::new("kind");
        let (recorded, repeated) = (kinds.counter("recorded"), kinds.counter("repeated"));
        let help = "Failed deliveries with error 131031: recorded, or repeated where they were there already";
        registry.register("failures", help, kinds);
        let help = "Parts of callbacks put into quarantine, since they could not be read or stored";
        let quarantined = register_metric(registry, "quarantined", help, Counter::default());
        Self {
            batch_callbacks,
            batch_failures,
            commit,
            batches_failed,
            recorded,
            repeated,
            quarantined,
        }
    }

    /// Counts what is in the database now: also of a batch whose rest failed.
    pub(crate) fn count_rows(&self, written: &Recorded) {
        self.recorded.inc_by(written.new);
        self.repeated.inc_by(written.repeated);
        self.quarantined.inc_by(written.quarantined);
    }

    /// Counts a batch that is in the database as a whole.
    pub(crate) fn count_committed(&self, callbacks: usize, failures: usize, took: Duration) {
        self.batch_callbacks.observe(callbacks as f64);
        self.batch_failures.observe(failures as f64);
        self.commit.observe(took.as_secs_f64());
    }

    /// Counts a batch that is not.
    pub(crate) fn count_failed(&self) {
        self.batches_failed.inc();
    }
}

/// What the follow-up counts. The default is in no [`Metrics`]: it counts, and nobody looks.
#[derive(Debug, Clone)]
pub struct FollowUpMetrics {
    lookups: [Counter; Outcome::ALL.len()],
    lookup: Histogram,
}

impl Default for FollowUpMetrics {
    fn default() -> Self {
        Self::in_registry(&mut Registry::default())
    }
}

impl FollowUpMetrics {
    fn in_registry(registry: &mut Registry) -> Self {
        let mut outcomes = Labelled::new("outcome");
        let lookups = Outcome::ALL.map(|outcome| outcomes.counter(outcome.as_str()));
        registry.register(
            "lookups",
            "Look-ups of a number's health, with the outcomes of health_checks",
            outcomes,
        );
        let lookup = Histogram::new(LOOKUP_BUCKETS);
        let help = "How long Meta took for a look-up, answered or not";
        registry.register_with_unit("lookup", help, Unit::Seconds, lookup.clone());
        Self { lookups, lookup }
    }

    /// Counts a look-up, and how long it took if Meta was asked at all.
    pub(crate) fn count_lookup(&self, lookup: &LookupResult) {
        let outcome = lookup.answer.outcome();
        self.lookups[outcome as usize].inc();
        if outcome != Outcome::NotAsked {
            self.lookup.observe(lookup.duration.as_secs_f64());
        }
    }
}

impl Snapshot {
    fn registry(&self) -> Registry {
        fn gauge(n: impl Into<i64>) -> ConstGauge {
            ConstGauge::new(n.into())
        }
        let Self {
            ready,
            pool,
            overview,
        } = self;
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register(
            "ready",
            "1 where lockouts can be recorded, as /readyz says",
            gauge(*ready),
        );
        let help =
            "1 where the database answered this scrape; otherwise what is read from it is missing";
        registry.register("database_up", help, gauge(overview.is_some()));
        let states = Labelled {
            label: "state",
            series: vec![("idle", gauge(pool.idle)), ("busy", gauge(pool.busy))],
        };
        registry.register(
            "pool_connections",
            "Open connections of the pool, which everything but the recorder uses",
            states,
        );
        registry.register(
            "pool_connections_max",
            "Connections that the pool may open",
            gauge(pool.max),
        );
        if let Some(Overview {
            open,
            checks_overdue,
        }) = overview
        {
            let causes = open
                .iter()
                .map(|(cause, n)| (cause.as_str(), gauge(*n)))
                .collect();
            let help = "Incidents that are not resolved, in the database that all replicas share";
            registry.register(
                "incidents_open",
                help,
                Labelled {
                    label: "cause",
                    series: causes,
                },
            );
            let help = "Numbers whose look-up is two minutes late or more, in the database that all replicas share";
            registry.register("checks_overdue", help, gauge(*checks_overdue));
        }
        registry
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

/// A metric with one label: a series for each of its words, in their order. The library's own families
/// create series when they are first used, and would take any word.
#[derive(Debug)]
struct Labelled<M> {
    label: &'static str,
    series: Vec<(&'static str, M)>,
}

impl Labelled<Counter> {
    fn new(label: &'static str) -> Self {
        Self {
            label,
            series: Vec::new(),
        }
    }

    fn counter(&mut self, word: &'static str) -> Counter {
        let counter = Counter::default();
        self.series.push((word, counter.clone()));
        counter
    }
}

impl<M: EncodeMetric + TypedMetric> EncodeMetric for Labelled<M> {
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
