//! An incident over time: failures in equal bins, and the health of each number in a lane of its own.

use std::collections::BTreeMap;

use time::{Duration, OffsetDateTime};

use super::{IncidentReport, NumberReport};
use crate::meta::health::{CanSend, Outcome};
use crate::meta::ids::PhoneNumberId;
use crate::store::checks::HealthCheck;
use crate::store::incidents::Incident;
use crate::store::timeline::{self, BinHealth, Bins};
use crate::store::{Pool, StoreError, Word, bounded};

/// Bins of a whole picture.
pub const PICTURE_BINS: usize = 60;
/// Bins of a sparkline.
pub const SPARKLINE_BINS: usize = 24;
/// Numbers with a lane; the others are only counted.
const LANE_LIMIT: usize = 8;

/// What a number's look-ups said, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NumberHealth {
    /// No answer came that means anything.
    Unreachable,
    /// Meta was not asked: there is no token to ask with.
    NotAsked,
    /// Meta does not let us look.
    Refused,
    /// Every entity lets messages through.
    Available,
    /// Meta uses a word that we do not know.
    Other,
    /// Meta limits an entity.
    Limited,
    /// Meta blocks an entity.
    Blocked,
}

impl NumberHealth {
    /// All of them, the best first.
    pub const ALL: [Self; 7] = [
        Self::Available,
        Self::Limited,
        Self::Blocked,
        Self::Other,
        Self::Refused,
        Self::NotAsked,
        Self::Unreachable,
    ];

    /// Returns the health that a verdict of Meta's stands for.
    #[must_use]
    pub fn from_verdict(can_send: &CanSend) -> Self {
        match can_send {
            CanSend::Available => Self::Available,
            CanSend::Limited => Self::Limited,
            CanSend::Blocked => Self::Blocked,
            CanSend::Other(_) => Self::Other,
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
            Some(Outcome::Answered) => verdict.as_ref().map_or(Self::Other, Self::from_verdict),
            Some(Outcome::NoHealth | Outcome::Refused) => Self::Refused,
            Some(Outcome::NotAsked) => Self::NotAsked,
            Some(Outcome::Throttled | Outcome::Unreachable) | None => Self::Unreachable,
        }
    }

    /// In a word: Meta's own, where it is Meta's verdict.
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

/// An incident over time.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// How time is divided, from before the first failure to the end.
    pub bins: Bins,
    /// The time it was drawn at, or the incident's end.
    pub until: OffsetDateTime,
    /// Failures in each bin.
    pub failures: Vec<u64>,
    /// The numbers with most failures, most first.
    pub lanes: Vec<Lane>,
    /// How many numbers have no lane.
    pub more: i64,
}

/// A number's health over time.
#[derive(Debug, Clone)]
pub struct Lane {
    /// The number's id at Meta.
    pub phone_number_id: PhoneNumberId,
    /// The number itself, where it is known.
    pub display_phone_number: Option<String>,
    /// What its latest look-up said.
    pub latest: Option<NumberHealth>,
    /// What was known of it in each bin. `None` before the first look-up.
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

    /// The number as people know it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.display_phone_number
            .as_deref()
            .unwrap_or(self.phone_number_id.as_str())
    }

    /// Stretches of the same health: first bin, number of bins, health.
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
    /// The failures of the highest bar.
    #[must_use]
    pub fn most_failures(&self) -> u64 {
        self.failures.iter().max().copied().unwrap_or_default()
    }

    /// What the lanes show, the worst last.
    pub fn healths(&self) -> impl Iterator<Item = NumberHealth> {
        NumberHealth::ALL.into_iter().filter(|health| {
            self.lanes
                .iter()
                .any(|lane| lane.health.contains(&Some(*health)))
        })
    }

    /// Where a moment lies, from 0 at the start to 1 at the end.
    #[must_use]
    pub fn position(&self, at: OffsetDateTime) -> f64 {
        let whole = self.bins.width.as_seconds_f64() * self.bins.count as f64;
        ((at - self.bins.start).as_seconds_f64() / whole).clamp(0.0, 1.0)
    }
}

/// An incident from its opening until it was over, or until now; `at_most` bins.
///
/// # Errors
/// The database does not answer.
pub async fn timeline(
    db: &Pool,
    report: &IncidentReport,
    now: OffsetDateTime,
    at_most: usize,
) -> Result<Timeline, StoreError> {
    let bins = bins_of(&report.incident, now, at_most);
    let shown = &report.affected_numbers[..report.affected_numbers.len().min(LANE_LIMIT)];
    let numbers: Vec<&str> = shown
        .iter()
        .map(|report| report.number.phone_number_id.as_str())
        .collect();
    let id = report.incident.id;
    let (failures, health) = bounded(async {
        let failures = timeline::failures_over_time(db, &[(id, bins)]).await?;
        let health = timeline::health_over_time(db, id, &numbers, bins).await?;
        Ok((failures, health))
    })
    .await?;
    let mut lanes: Vec<Lane> = shown
        .iter()
        .map(|report| Lane::new(report, bins.count))
        .collect();
    fill(&mut lanes, health);
    Ok(Timeline {
        bins,
        until: report.incident.resolved_at.unwrap_or(now),
        failures: failures.into_values().next().unwrap_or_default(),
        more: report.affected_number_count - i64::try_from(lanes.len()).unwrap_or(i64::MAX),
        lanes,
    })
}

/// Fills the lanes. The worst health that was seen within a bin counts: a lockout does not vanish from
/// the picture as soon as it is over. Without a look-up in the bin, the latest one before it counts.
fn fill(lanes: &mut [Lane], health: Vec<BinHealth>) {
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

/// The failures of each incident in a few bins, by incident.
///
/// # Errors
/// The database does not answer.
pub async fn sparklines(
    db: &Pool,
    incidents: &[IncidentReport],
    now: OffsetDateTime,
) -> Result<BTreeMap<i64, Vec<u64>>, StoreError> {
    let of: Vec<(i64, Bins)> = incidents
        .iter()
        .map(|report| {
            (
                report.incident.id,
                bins_of(&report.incident, now, SPARKLINE_BINS),
            )
        })
        .collect();
    bounded(timeline::failures_over_time(db, &of)).await
}

fn bins_of(incident: &Incident, now: OffsetDateTime, at_most: usize) -> Bins {
    /// A single bar as wide as the picture would say nothing.
    const SHORTEST: Duration = Duration::minutes(15);
    let until = incident.resolved_at.unwrap_or(now).max(incident.opened_at);
    bins(
        incident.opened_at.min(until.saturating_sub(SHORTEST)),
        until,
        at_most,
    )
}

/// Divides a stretch of time into at most so many bins of a width that people can read off an axis.
fn bins(from: OffsetDateTime, to: OffsetDateTime, at_most: usize) -> Bins {
    const MINUTES: [i64; 14] = [
        1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10_080,
    ];
    const WEEK: i64 = 10_080;
    let at_most = i64::try_from(at_most.max(1)).unwrap_or(i64::MAX);
    let divided = |minutes: i64| {
        let seconds = minutes * 60;
        let start = from.unix_timestamp().div_euclid(seconds);
        let end = to.max(from).unix_timestamp().div_euclid(seconds);
        (start * seconds, seconds, end - start + 1)
    };
    let wide = (1..).map(|n| n * WEEK);
    let fitting = MINUTES
        .into_iter()
        .chain(wide)
        .map(divided)
        .find(|(_, _, count)| *count <= at_most);
    let (start, seconds, count) = fitting.expect("some width is wide enough");
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
    fn bins_have_round_widths_and_cover_everything() {
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
            let bins = bins(from, from + length, 60);
            assert_eq!((bins.width, bins.count), (width, count), "{length}");
            assert!(bins.start <= from && bins.start_of(count) > from + length);
            assert_eq!(bins.start.second(), 0);
        }
        assert_eq!(
            bins(from, from - Duration::days(1), 60).count,
            1,
            "a clock that went back"
        );
    }

    #[test]
    fn a_lane_falls_into_stretches_of_the_same_health() {
        let (a, b) = (Some(NumberHealth::Available), Some(NumberHealth::Blocked));
        let lane = |health: &[Option<NumberHealth>]| {
            Lane {
                phone_number_id: PhoneNumberId::parse("1").unwrap(),
                display_phone_number: None,
                latest: None,
                health: health.to_vec(),
            }
            .stretches()
        };
        assert_eq!(
            lane(&[None, b, b, a, b]),
            [
                (1, 2, NumberHealth::Blocked),
                (3, 1, NumberHealth::Available),
                (4, 1, NumberHealth::Blocked)
            ]
        );
        assert_eq!(lane(&[None, None]), []);
        assert_eq!(lane(&[a, None, a]).len(), 2);
    }

    #[test]
    fn every_outcome_has_its_health() {
        let answered = Word::Known(Outcome::Answered);
        for (outcome, verdict, health) in [
            (answered.clone(), Some("BLOCKED"), NumberHealth::Blocked),
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
                Word::Later("dreamt".to_owned()),
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
