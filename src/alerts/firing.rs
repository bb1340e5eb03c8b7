//! Tells an Alertmanager what is wrong: all that is open, every minute and whenever it changes, and
//! for a while what is over. Every process does so by itself: the same alert twice is one.

use std::collections::BTreeMap;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Shared;
use super::channel::Channel;
use super::channel::alertmanager::{State, VALIDITY};
use super::worker::Worker;
use crate::error_chain::error_chain;
use crate::lockout::alerting::{AlertKind, OPENING_HOLD};
use crate::lockout::cause::LockoutCause;
use crate::lockout::trouble::TroubleKind;
use crate::report;
use crate::report::alert::{Message, Topic};
use crate::store::alerts::{Outcome, note_answer};
use crate::store::incidents::{IncidentFilter, IncidentState};
use crate::store::overview::{self, Marker};
use crate::store::{StoreError, bounded, troubles};

/// The pause between two looks for changes.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The pause between two reports of what is wrong, without a change.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);
/// The time for which the end is told: a request may be lost.
const OVER_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// The incidents that are read at once.
const PAGE_ROWS: i64 = 200;
/// The troubles that are told.
const TROUBLES_LIMIT: i64 = 1000;

/// The row that an alert is about: its kind, and its id.
type Key = (&'static str, i64);

pub(super) async fn run(shared: Shared, channel: Channel, stop: CancellationToken) {
    let mut firing = Firing {
        shared,
        channel,
        states: BTreeMap::new(),
        over: BTreeMap::new(),
        first_seen: BTreeMap::new(),
        latest: None,
        is_failing: false,
    };
    // Its queue holds nothing but tests.
    let mut tests = Worker::new(firing.shared.clone(), firing.channel.clone());
    let (mut next, mut repeat_at) = (Instant::now(), Instant::now());
    while !stop.is_cancelled() {
        tests.step(&stop).await;
        let began = Instant::now();
        if began >= next && (firing.is_changed().await || began >= repeat_at) {
            firing.refresh().await;
            firing.tell().await;
            // In a storm of changes it takes a tenth of the time.
            next = Instant::now() + (began.elapsed() * 9).min(REPEAT_INTERVAL / 2);
            repeat_at = began + REPEAT_INTERVAL;
        }
        stop.run_until_cancelled(sleep(POLL_INTERVAL)).await;
    }
}

struct Firing {
    shared: Shared,
    channel: Channel,
    states: BTreeMap<Key, State>,
    /// The states that are over, and when that was noticed.
    over: BTreeMap<Key, (State, Instant)>,
    /// The incidents that still wait for their first answer.
    first_seen: BTreeMap<i64, Instant>,
    latest: Option<Marker>,
    is_failing: bool,
}

impl Firing {
    /// Returns whether something has changed since the last time, or waited long enough.
    async fn is_changed(&mut self) -> bool {
        let is_held_back = self
            .first_seen
            .values()
            .any(|at| at.elapsed() >= OPENING_HOLD);
        let has_news = self.shared.not_recording.has_changed().unwrap_or_default();
        if has_news {
            self.shared.not_recording.mark_unchanged();
        }
        match bounded(overview::marker(&self.shared.db)).await {
            Ok(latest) if self.latest != Some(latest) => {
                self.latest = Some(latest);
                true
            }
            _ => is_held_back || has_news,
        }
    }

    /// Reads what is wrong now. Without the database, what was wrong stays so.
    async fn refresh(&mut self) {
        let now = OffsetDateTime::now_utc();
        match self.load(now).await {
            Ok(states) => {
                let before = std::mem::replace(&mut self.states, states);
                for (key, mut state) in before {
                    if !self.states.contains_key(&key) {
                        state.ends_at = now;
                        self.over.insert(key, (state, Instant::now()));
                    }
                }
            }
            Err(error) => {
                debug!("what is wrong stays as it was: {}", error_chain(&error));
                for state in self.states.values_mut() {
                    state.ends_at = now + VALIDITY;
                }
            }
        }
        let not_recording = self.shared.not_recording.borrow().clone();
        if let Some(trouble) = not_recording {
            let kind = AlertKind::Began(TroubleKind::NotRecording);
            if self.is_wanted(kind, &trouble.waba_id, &[]) {
                let state = self.state(kind, Topic::Trouble(trouble), now);
                self.states
                    .extend(state.map(|state| (("trouble", 0), state)));
            }
        }
        let states = &self.states;
        self.over
            .retain(|key, (_, at)| at.elapsed() < OVER_INTERVAL && !states.contains_key(key));
    }

    async fn load(&mut self, now: OffsetDateTime) -> Result<BTreeMap<Key, State>, StoreError> {
        let mut states = BTreeMap::new();
        let mut waiting = BTreeMap::new();
        let mut filter = IncidentFilter {
            state: IncidentState::Open,
            ..IncidentFilter::default()
        };
        loop {
            let page = report::list_incidents(&self.shared.db, &filter, PAGE_ROWS).await?;
            for report in page.data {
                let incident = &report.incident;
                let (id, waba_id) = (incident.id, incident.waba_id.as_str());
                // What was over when it was first seen is told to nobody.
                if incident.ended_at.is_some()
                    || !self.is_wanted(AlertKind::Opened, waba_id, &incident.account_labels)
                {
                    continue;
                }
                if incident.cause == LockoutCause::Pending
                    && !self.states.contains_key(&("incident", id))
                {
                    let seen = self.first_seen.get(&id).copied();
                    let seen = seen.unwrap_or_else(Instant::now);
                    if seen.elapsed() < OPENING_HOLD {
                        waiting.insert(id, seen);
                        continue;
                    }
                }
                let topic = Topic::Incident(Box::new(report));
                let state = self.state(AlertKind::Opened, topic, now);
                states.extend(state.map(|state| (("incident", id), state)));
            }
            match page.next {
                Some(before) => filter.before = Some(before),
                None => break,
            }
        }
        self.first_seen = waiting;
        for trouble in bounded(troubles::list_open(&self.shared.db, TROUBLES_LIMIT)).await? {
            let Some(kind) = TroubleKind::parse(&trouble.kind).map(AlertKind::Began) else {
                continue;
            };
            if self.is_wanted(kind, &trouble.waba_id, &trouble.labels) {
                let key = ("trouble", trouble.id);
                let state = self.state(kind, Topic::Trouble(trouble), now);
                states.extend(state.map(|state| (key, state)));
            }
        }
        Ok(states)
    }

    fn is_wanted(&self, kind: AlertKind, waba_id: &str, labels: &[String]) -> bool {
        let filter = self.channel.filter();
        filter.wants_kind(kind) && filter.wants_account(waba_id, labels)
    }

    fn state(&self, kind: AlertKind, topic: Topic, now: OffsetDateTime) -> Option<State> {
        let url = self.shared.external_url();
        State::of(&Message::new(String::new(), &kind.name(), topic, url, now))
    }

    async fn tell(&mut self) {
        let over = self.over.values().map(|(state, _)| state);
        let states: Vec<State> = self.states.values().chain(over).cloned().collect();
        let Some(receiver) = self
            .channel
            .as_alertmanager()
            .filter(|_| !states.is_empty())
        else {
            return;
        };
        let delivered = receiver.send(&states).await;
        let name = self.channel.name();
        match (delivered.is_accepted, self.is_failing) {
            (true, true) => info!("{name} takes alerts again"),
            (false, false) => warn!("{name} does not take alerts: {}", delivered.answer),
            (true, false) | (false, true) => {}
        }
        self.is_failing = !delivered.is_accepted;
        let outcome = match delivered.is_accepted {
            true => Outcome::Accepted,
            false => Outcome::Retry(REPEAT_INTERVAL),
        };
        self.shared.metrics.count(name, &outcome);
        let (db, is_accepted) = (&self.shared.db, delivered.is_accepted);
        if let Err(error) = bounded(note_answer(db, name, is_accepted, &delivered.answer)).await {
            debug!("the answer of {name} is not noted: {}", error_chain(&error));
        }
    }
}
