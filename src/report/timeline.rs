//! The timeline of an incident: its failures in equal bins, and one lane for the health of each
//! number.

use std::collections::BTreeMap;

use time::{Duration, OffsetDateTime};

use super::{IncidentReport, NumberReport};
use crate::lockout::cause::is_stopped_by_status;
use crate::meta::health::{CanSend, Outcome};
use crate::meta::ids::PhoneNumberId;
use crate::store::checks::HealthCheck;
use crate::store::events::AccountEvent;
use crate::store::incidents::Incident;
use crate::store::timeline::{self, BinHealth, Bins};
use crate::store::{Pool, StoreError, Word, bounded};

/// The most bins of a full timeline.
pub const CHART_BINS: usize = 60;
/// The most bins of a sparkline.
const SPARKLINE_BINS: usize = 24;
/// The most notices. Earlier ones stand only in the list.
const NOTICE_LIMIT: usize = 8;
/// The most lanes. Numbers without a lane are only counted.
const LANE_LIMIT: usize = 8;

/// The health of a number as its look-ups show it. The order is by severity, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NumberHealth {
    /// No usable answer came.
    Unreachable,
    /// Meta was not asked: there is no token for it.
    NotAsked,
    /// Meta refuses the look-up.
    Refused,
    /// Every entity can send messages.
    Available,
    /// Meta limits an entity.
    Limited,
    /// Meta gives a verdict that this version does not know.
    Other,
    /// Meta blocks an entity, or refuses the look-up because the account is blocked.
    Blocked,
}

impl NumberHealth {
    /// Every health, in the order of a legend.
    pub const ALL: [Self; 7] = [
        Self::Available,
        Self::Limited,
        Self::Blocked,
        Self::Other,
        Self::Refused,
        Self::NotAsked,
        Self::Unreachable,
    ];

    /// Returns the health for one of Meta's verdicts.
    #[must_use]
    pub fn from_verdict(can_send: &CanSend) -> Self {
        match can_send {
            CanSend::Available => Self::Available,
            CanSend::Limited => Self::Limited,
            CanSend::Blocked => Self::Blocked,
            CanSend::Other(_) | CanSend::Unstated => Self::Other,
        }
    }

    /// Returns the health that a look-up showed.
    #[must_use]
    pub fn from_check(check: &HealthCheck) -> Self {
        Self::from_outcome(&check.outcome, check.can_send_message.as_deref())
    }

    fn from_outcome(outcome: &Word<Outcome>, can_send_message: Option<&str>) -> Self {
        let verdict = can_send_message.map(|word| CanSend::from(word.to_owned()));
        match outcome.known() {
            Some(Outcome::Answered) if can_send_message.is_some_and(is_stopped_by_status) => {
                Self::Blocked
            }
            Some(Outcome::Answered) => verdict.as_ref().map_or(Self::Other, Self::from_verdict),
            Some(Outcome::NoHealth | Outcome::Refused) => Self::Refused,
            Some(Outcome::State) => Self::Blocked,
            Some(Outcome::NotAsked) => Self::NotAsked,
            Some(Outcome::Throttled | Outcome::Unreachable) | None => Self::Unreachable,
        }
    }

    /// Returns a word for people. A verdict of Meta's keeps Meta's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Available => "AVAILABLE",
            Self::Limited => "LIMITED",
            Self::Blocked => "BLOCKED",
            Self::Other => "unknown word",
            Self::Refused => "refused",
            Self::NotAsked => "not asked",
            Self::Unreachable => "unreachable",
        }
    }
}

/// The timeline of an incident.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// The bins, from before the first failure to the end.
    pub bins: Bins,
    /// What Meta reported about the account: the latest, in their order.
    pub notices: Vec<AccountEvent>,
    /// The end of the incident, or the time of the drawing while it is open.
    pub until: OffsetDateTime,
    /// Failures in each bin.
    pub failures: Vec<u64>,
    /// The lanes of the numbers with the most failures, in descending order.
    pub lanes: Vec<Lane>,
    /// The count of numbers that have no lane.
    pub numbers_without_lane: i64,
}

/// The health of a number over time.
#[derive(Debug, Clone)]
pub struct Lane {
    /// Meta's id of the number.
    pub phone_number_id: PhoneNumberId,
    /// The phone number, if it is known.
    pub display_phone_number: Option<String>,
    /// The health at its latest look-up.
    pub latest: Option<NumberHealth>,
    /// The known health in each bin; `None` before the first look-up.
    pub health: Vec<Option<NumberHealth>>,
}

impl Lane {
    fn new(report: &NumberReport, bins: usize) -> Self {
        Self {
            phone_number_id: report.number.phone_number_id.clone(),
            display_phone_number: report.number.display_phone_number.clone(),
            latest: report.latest_check.as_ref().map(NumberHealth::from_check),
            health: vec![None; bins],
        }
    }

    /// The phone number, or its id if the number is not known.
    #[must_use]
    pub fn name(&self) -> &str {
        self.display_phone_number
            .as_deref()
            .unwrap_or(self.phone_number_id.as_str())
    }

    /// Returns the stretches of equal health, each as its first bin, its length in bins, and the
    /// health.
    #[must_use]
    pub fn stretches(&self) -> Vec<(usize, usize, NumberHealth)> {
        let mut stretches: Vec<(usize, usize, NumberHealth)> = Vec::new();
        for (bin, health) in self.health.iter().enumerate() {
            match (stretches.last_mut(), health) {
                (Some((start, length, same)), Some(health))
                    if same == health && *start + *length == bin =>
                {
                    *length += 1;
                }
                (_, Some(health)) => stretches.push((bin, 1, *health)),
                (_, None) => {}
            }
        }
        stretches
    }
}

impl Timeline {
    /// The failures in the highest bar.
    #[must_use]
    pub fn most_failures(&self) -> u64 {
        self.failures.iter().max().copied().unwrap_or_default()
    }

    /// Returns every health that a lane shows, in the order of [`NumberHealth::ALL`].
    pub fn healths(&self) -> impl Iterator<Item = NumberHealth> {
        NumberHealth::ALL.into_iter().filter(|health| {
            self.lanes
                .iter()
                .any(|lane| lane.health.contains(&Some(*health)))
        })
    }

    /// The position of a time, from 0.0 at the start to 1.0 at the end.
    #[must_use]
    pub fn position(&self, at: OffsetDateTime) -> f64 {
        let length = self.bins.width.as_seconds_f64() * self.bins.count as f64;
        ((at - self.bins.start).as_seconds_f64() / length).clamp(0.0, 1.0)
    }
}

/// Loads the timeline of an incident, from its opening until its end or until now, in up to
/// `bin_limit` bins.
pub async fn load_timeline(
    db: &Pool,
    report: &IncidentReport,
    now: OffsetDateTime,
    bin_limit: usize,
) -> Result<Timeline, StoreError> {
    let id = report.incident.id;
    let notices = notices_of_timeline(report);
    let first_notice = notices.iter().map(|event| event.occurred_at).min();
    let bins = bins_of_incident(&report.incident, first_notice, now, bin_limit);
    let numbers = &report.affected_numbers[..report.affected_numbers.len().min(LANE_LIMIT)];
    let number_ids: Vec<&str> = numbers
        .iter()
        .map(|report| report.number.phone_number_id.as_str())
        .collect();
    let (failures, health) = bounded(async {
        let failures = timeline::failures_over_time(db, &[(id, bins)]).await?;
        let health = timeline::health_over_time(db, id, &number_ids, bins).await?;
        Ok((failures, health))
    })
    .await?;
    let mut lanes: Vec<Lane> = numbers
        .iter()
        .map(|report| Lane::new(report, bins.count))
        .collect();
    fill_lanes(&mut lanes, health);
    let lane_count = i64::try_from(lanes.len()).unwrap_or(i64::MAX);
    Ok(Timeline {
        bins,
        notices,
        until: report.incident.resolved_at.unwrap_or(now),
        failures: failures.into_values().next().unwrap_or_default(),
        numbers_without_lane: report.affected_number_count - lane_count,
        lanes,
    })
}

/// Loads the failures of each incident in a few bins, by the id of the incident.
pub(crate) async fn load_sparklines(
    db: &Pool,
    incidents: &[IncidentReport],
    now: OffsetDateTime,
) -> Result<BTreeMap<i64, Vec<u64>>, StoreError> {
    let bins: Vec<(i64, Bins)> = incidents
        .iter()
        .map(|report| &report.incident)
        .map(|incident| {
            (
                incident.id,
                bins_of_incident(incident, None, now, SPARKLINE_BINS),
            )
        })
        .collect();
    bounded(timeline::failures_over_time(db, &bins)).await
}

/// Fills the lanes. A bin shows the worst health that was seen within it: a lockout does not vanish
/// from the chart as soon as it is over. A bin without a look-up shows the latest one before it.
fn fill_lanes(lanes: &mut [Lane], health: Vec<BinHealth>) {
    let (within, before): (Vec<_>, Vec<_>) = health.into_iter().partition(|at| at.is_within);
    for at in within.into_iter().chain(before) {
        let lane = lanes
            .iter_mut()
            .find(|lane| lane.phone_number_id == at.phone_number_id);
        if let Some(bin) = lane.and_then(|lane| lane.health.get_mut(at.bin))
            && (at.is_within || bin.is_none())
        {
            let health = NumberHealth::from_outcome(&at.outcome, at.can_send_message.as_deref());
            *bin = (*bin).max(Some(health));
        }
    }
}

/// Returns the notices that a timeline shows: those with a meaning for a lock, from a day before
/// it.
fn notices_of_timeline(report: &IncidentReport) -> Vec<AccountEvent> {
    let since = report.incident.opened_at.saturating_sub(Duration::DAY);
    let mut notices: Vec<AccountEvent> = report
        .account_events
        .iter()
        .filter(|event| event.occurred_at >= since && event.has_meaning())
        .cloned()
        .collect();
    notices.drain(..notices.len().saturating_sub(NOTICE_LIMIT));
    notices
}

fn bins_of_incident(
    incident: &Incident,
    first_notice: Option<OffsetDateTime>,
    now: OffsetDateTime,
    bin_limit: usize,
) -> Bins {
    /// A shorter time would be drawn as a single bar as wide as the chart.
    const MIN_LENGTH: Duration = Duration::minutes(15);
    let until = incident.resolved_at.unwrap_or(now).max(incident.opened_at);
    let opened_at = first_notice.map_or(incident.opened_at, |at| at.min(incident.opened_at));
    let from = opened_at.min(until.saturating_sub(MIN_LENGTH));
    divide(from, until, bin_limit)
}

/// Divides a time into up to `bin_limit` bins of a width that people can read from an axis.
fn divide(from: OffsetDateTime, to: OffsetDateTime, bin_limit: usize) -> Bins {
    const WIDTHS_IN_MINUTES: [i64; 14] = [
        1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10_080,
    ];
    const WEEK_IN_MINUTES: i64 = 10_080;
    let bin_limit = i64::try_from(bin_limit.max(1)).unwrap_or(i64::MAX);
    let weeks = (1..).map(|n| n * WEEK_IN_MINUTES);
    let (start, seconds, count) = WIDTHS_IN_MINUTES
        .into_iter()
        .chain(weeks)
        .map(|minutes| {
            let seconds = minutes * 60;
            let first = from.unix_timestamp().div_euclid(seconds);
            let last = to.max(from).unix_timestamp().div_euclid(seconds);
            (first * seconds, seconds, last - first + 1)
        })
        .find(|(_, _, count)| *count <= bin_limit)
        .expect("some width is wide enough");
    Bins {
        start: OffsetDateTime::from_unix_timestamp(start).unwrap_or(from),
        width: Duration::seconds(seconds),
        count: usize::try_from(count).unwrap_or(1),
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn bins_have_round_widths_and_cover_the_time() {
        let from = datetime!(2026-11-22 03:07:30 UTC);
        for (length, width, count) in [
            (Duration::ZERO, Duration::minutes(1), 1),
            (Duration::seconds(31), Duration::minutes(1), 2),
            (Duration::minutes(59), Duration::minutes(1), 60),
            (Duration::minutes(61), Duration::minutes(2), 32),
            (Duration::hours(24), Duration::minutes(30), 49),
            (Duration::days(90), Duration::days(2), 46),
            (Duration::days(3650), Duration::weeks(9), 59),
        ] {
            let bins = divide(from, from + length, 60);
            assert_eq!((bins.width, bins.count), (width, count), "{length}");
            assert!(bins.start <= from && bins.start_of(count) > from + length);
            assert_eq!(bins.start.second(), 0);
        }
        assert_eq!(
            divide(from, from - Duration::days(1), 60).count,
            1,
            "the clock was set back"
        );
    }

    #[test]
    fn a_lane_has_stretches_of_equal_health() {
        let (a, b) = (Some(NumberHealth::Available), Some(NumberHealth::Blocked));
        let stretches = |health: &[Option<NumberHealth>]| {
            let lane = Lane {
                phone_number_id: PhoneNumberId::parse("1").unwrap(),
                display_phone_number: None,
                latest: None,
                health: health.to_vec(),
            };
            lane.stretches()
        };
        assert_eq!(
            stretches(&[None, b, b, a, b]),
            [
                (1, 2, NumberHealth::Blocked),
                (3, 1, NumberHealth::Available),
                (4, 1, NumberHealth::Blocked)
            ]
        );
        assert_eq!(stretches(&[None, None]), []);
        assert_eq!(stretches(&[a, None, a]).len(), 2);
    }

    #[test]
    fn every_outcome_has_a_health() {
        let answered = Word::Known(Outcome::Answered);
        for (outcome, verdict, health) in [
            (answered.clone(), Some("BLOCKED"), NumberHealth::Blocked),
            (answered.clone(), Some("BANNED"), NumberHealth::Blocked),
            (answered.clone(), Some("SLEEPING"), NumberHealth::Other),
            (answered, None, NumberHealth::Other),
            (Word::Known(Outcome::NotAsked), None, NumberHealth::NotAsked),
            (Word::Known(Outcome::NoHealth), None, NumberHealth::Refused),
            (
                Word::Known(Outcome::Throttled),
                None,
                NumberHealth::Unreachable,
            ),
            (
                Word::Later("unheard_of".to_owned()),
                None,
                NumberHealth::Unreachable,
            ),
        ] {
            assert_eq!(
                NumberHealth::from_outcome(&outcome, verdict),
                health,
                "{outcome}"
            );
        }
    }
}
