//! Pictures in SVG: an incident over time, and a sparkline.
//!
//! Places are given in percent of the width and sizes in pixels, so that a picture fits any screen and its
//! words stay readable. Health is told by colour, by height, by pattern, and in words.

use maud::{Markup, PreEscaped, html};
use time::OffsetDateTime;

use super::cut;
use crate::report::IncidentReport;
use crate::report::text::{count, duration, ended, grouped, moment, printable, short_moment};
use crate::report::timeline::{Lane, NumberHealth, Timeline};

const MARKER: u32 = 18;
const BARS: u32 = 96;
const AXIS: u32 = 22;
const LANE: u32 = 40;
/// Stretches of health that get a title each, and bars with them: with more the page would grow too large.
const TITLES: usize = 100;
/// Stretches that are drawn at all, at the same price. Numbers after that have no lane.
const STRETCHES: usize = 300;
/// Stretches of a lane that are told in words: the latest.
const TOLD: usize = 6;
/// Of a lane, for its name.
const NAME: u32 = 16;

/// A few bars in a row.
pub(super) fn sparkline(failures: &[u64]) -> Markup {
    let most = failures.iter().max().copied().unwrap_or_default().max(1);
    let bars = failures
        .iter()
        .enumerate()
        .filter(|(_, n)| **n > 0)
        .map(|(bin, n)| {
            let height = bar_height(*n, most, 20);
            format!("M{} 20v-{height}h3v{height}z", bin * 4)
        });
    html! {
        svg .spark viewBox={ "0 0 " (failures.len() * 4) " 20" } preserveAspectRatio="none" aria-hidden="true" {
            path d=(bars.collect::<String>()) {}
        }
    }
}

/// Any failure at all can be seen.
fn bar_height(n: u64, most: u64, whole: u32) -> u32 {
    let height = (n as f64 / most as f64 * f64::from(whole)).round() as u32;
    if n > 0 { height.max(2) } else { 0 }
}

struct Marker {
    at: OffsetDateTime,
    text: String,
    class: &'static str,
}

/// The picture with its legend.
pub(super) fn timeline(report: &IncidentReport, timeline: &Timeline) -> Markup {
    let timeline = &fitting(timeline);
    let markers = markers(report);
    let bars_top = u32::try_from(markers.len()).unwrap_or(0) * MARKER + 14;
    let axis = bars_top + BARS;
    let lanes_top = axis + AXIS + 6;
    let height = lanes_top + u32::try_from(timeline.lanes.len()).unwrap_or(0) * LANE;
    let percent = |at: OffsetDateTime| percent(timeline.position(at));
    let has_titles = timeline
        .lanes
        .iter()
        .map(|lane| lane.stretches().len())
        .sum::<usize>()
        <= TITLES;
    html! {
        figure .picture {
            svg .timeline width="100%" height=(height) role="img" aria-labelledby="timeline-title timeline-text" {
                title #timeline-title { "Timeline of incident " (report.incident.id) }
                desc #timeline-text { (in_words(report, timeline)) }
                (patterns())
                @for (row, marker) in markers.iter().enumerate() {
                    @let y = u32::try_from(row).unwrap_or(0) * MARKER;
                    @let (dx, anchor, from) = beside(timeline.position(marker.at));
                    line .marker .(marker.class) x1=(percent(marker.at)) x2=(percent(marker.at)) y1=(y + from) y2=(axis) {}
                    text .marker .(marker.class) x=(percent(marker.at)) dx=(dx) y=(y + 13) text-anchor=(anchor) { (marker.text) }
                }
                (bars(timeline, bars_top, timeline.position(report.incident.opened_at) < 0.5, has_titles))
                line .axis x1="0" x2="100%" y1=(axis) y2=(axis) {}
                @for (place, anchor, class, text) in ticks(timeline) {
                    text .tick .(class) x=(self::percent(place)) y=(axis + 15) text-anchor=(anchor) { (text) }
                }
                @for (position, lane) in timeline.lanes.iter().enumerate() {
                    (lane_of(timeline, lane, lanes_top + u32::try_from(position).unwrap_or(0) * LANE, has_titles))
                }
            }
            figcaption { (legend(timeline)) }
        }
    }
}

/// The same with as many lanes as there is room for. At least one fits.
fn fitting(timeline: &Timeline) -> Timeline {
    let mut fitting = timeline.clone();
    let mut stretches = 0;
    fitting.lanes = timeline
        .lanes
        .iter()
        .cloned()
        .take_while(|lane| {
            stretches += lane.stretches().len();
            stretches <= STRETCHES
        })
        .collect();
    fitting.more += i64::try_from(timeline.lanes.len() - fitting.lanes.len()).unwrap_or_default();
    fitting
}

/// Where a marker's words and line go, so that they stay in the picture on a small screen.
fn beside(position: f64) -> (&'static str, &'static str, u32) {
    match position {
        ..0.3 => ("6", "start", 3),
        0.3..0.7 => ("0", "middle", MARKER),
        _ => ("-6", "end", 3),
    }
}

fn markers(report: &IncidentReport) -> Vec<Marker> {
    let incident = &report.incident;
    let mut markers = vec![Marker {
        at: incident.opened_at,
        text: format!("first failure {}", short_moment(incident.opened_at)),
        class: "opened",
    }];
    if let Some(at) = incident.cause_recorded_at {
        markers.push(Marker {
            at,
            text: format!("cause recorded {}", short_moment(at)),
            class: "caused",
        });
    }
    if let Some(at) = incident.resolved_at {
        markers.push(Marker {
            at,
            text: format!("{} {}", ended(incident), short_moment(at)),
            class: "resolved",
        });
    }
    markers
}

/// The scale stands where the markers' words do not.
fn bars(timeline: &Timeline, top: u32, is_scale_right: bool, has_titles: bool) -> Markup {
    let most = timeline.most_failures();
    let wide = 100.0 / timeline.bins.count as f64;
    let (x, anchor) = if is_scale_right {
        ("100%", "end")
    } else {
        ("0", "start")
    };
    html! {
        line .grid x1="0" x2="100%" y1=(top) y2=(top) {}
        text .most x=(x) y=(top - 3) text-anchor=(anchor) { "highest bar: " (failed(most)) " in " (duration(timeline.bins.width)) }
        @for (bin, n) in timeline.failures.iter().enumerate().filter(|(_, n)| **n > 0) {
            @let height = bar_height(*n, most, BARS);
            rect .bar x={ (two(bin as f64 * wide)) "%" } y=(top + BARS - height) width={ (two(wide * 0.86)) "%" } height=(height) {
                @if has_titles { title { (failed(*n)) " from " (moment(timeline.bins.start_of(bin))) " on, in " (duration(timeline.bins.width)) } }
            }
        }
    }
}

fn failed(n: u64) -> String {
    count(i64::try_from(n).unwrap_or(i64::MAX), "failure", "failures")
}

/// The axis's times: both ends, and what lies between where there is room.
fn ticks(timeline: &Timeline) -> Vec<(f64, &'static str, &'static str, String)> {
    let bins = timeline.bins.count;
    let mut ticks = vec![(
        0.0,
        "start",
        "",
        format!("{} UTC", short_moment(timeline.bins.start)),
    )];
    for quarter in [1, 2, 3] {
        let bin = bins * quarter / 4;
        if bins >= 8 {
            let class = if quarter == 2 { "middle" } else { "between" };
            ticks.push((
                bin as f64 / bins as f64,
                "middle",
                class,
                short_moment(timeline.bins.start_of(bin)),
            ));
        }
    }
    ticks.push((1.0, "end", "", short_moment(timeline.bins.start_of(bins))));
    ticks
}

fn lane_of(timeline: &Timeline, lane: &Lane, top: u32, has_titles: bool) -> Markup {
    let wide = 100.0 / timeline.bins.count as f64;
    let name = name(lane);
    // What comes after now nobody knows.
    let end = timeline.position(timeline.until) * 100.0;
    html! {
        text .lane x="0" y=(top + 12) {
            (name) ": " tspan .word { (lane.latest.map_or("not looked up yet", NumberHealth::word)) }
        }
        rect .track x="0" y=(top + NAME) width="100%" height="16" {}
        @for health in NumberHealth::ALL.into_iter().filter(|health| lane.health.contains(&Some(*health))) {
            @let (offset, high) = shape(health);
            g .(class(health)) {
                @for (bin, length, _) in lane.stretches().into_iter().filter(|(_, _, other)| *other == health) {
                    rect x={ (two(bin as f64 * wide)) "%" } y=(top + NAME + offset) width={ (two((length as f64 * wide).min(end - bin as f64 * wide))) "%" } height=(high) {
                        @if has_titles {
                            title { (name) ": " (health.word()) " from about " (moment(timeline.bins.start_of(bin))) " to " (moment(timeline.bins.start_of(bin + length).min(timeline.until))) }
                        }
                    }
                }
            }
        }
    }
}

/// What fits beside a word on a small screen; numbers and ids of Meta's do.
fn name(lane: &Lane) -> String {
    printable(&cut(lane.name(), 20))
}

/// The worse, the higher.
fn shape(health: NumberHealth) -> (u32, u32) {
    match health {
        NumberHealth::Available => (11, 5),
        NumberHealth::Limited => (6, 10),
        NumberHealth::Blocked
        | NumberHealth::Other
        | NumberHealth::Refused
        | NumberHealth::NotAsked => (0, 16),
        NumberHealth::Unreachable => (6, 10),
    }
}

pub(super) fn class(health: NumberHealth) -> &'static str {
    match health {
        NumberHealth::Available => "available",
        NumberHealth::Limited => "limited",
        NumberHealth::Blocked => "blocked",
        NumberHealth::Other => "other",
        NumberHealth::Refused => "refused",
        NumberHealth::NotAsked => "not-asked",
        NumberHealth::Unreachable => "unreachable",
    }
}

fn patterns() -> Markup {
    PreEscaped(
        "<defs>\
         <pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
         <rect class=\"ground\" width=\"6\" height=\"6\"/><rect class=\"ink\" width=\"2.5\" height=\"6\"/></pattern>\
         <pattern id=\"dots\" width=\"6\" height=\"5\" patternUnits=\"userSpaceOnUse\">\
         <rect class=\"ground\" width=\"6\" height=\"5\"/><circle class=\"ink\" cx=\"3\" cy=\"2.5\" r=\"1.4\"/></pattern>\
         </defs>"
            .to_owned(),
    )
}

/// What is in the picture, with the same shapes; nothing that is not.
fn legend(timeline: &Timeline) -> Markup {
    html! {
        span .key { svg .swatch width="14" height="16" aria-hidden="true" { rect .bar width="14" height="16" {} } "failures" }
        @for health in timeline.healths() {
            @let (offset, high) = shape(health);
            span .key {
                svg .swatch width="22" height="16" aria-hidden="true" {
                    rect .health .(class(health)) y=(offset) width="22" height=(high) {}
                }
                (meaning(health))
            }
        }
        @if timeline.more > 0 { span .key { (count(timeline.more, "more number", "more numbers")) " without a lane" } }
    }
}

fn meaning(health: NumberHealth) -> &'static str {
    match health {
        NumberHealth::Available => "AVAILABLE: can send",
        NumberHealth::Limited => "LIMITED",
        NumberHealth::Blocked => "BLOCKED: cannot send",
        NumberHealth::Other => "a word of Meta's that we do not know",
        NumberHealth::Refused => "look-up refused",
        NumberHealth::NotAsked => "not asked: no token",
        NumberHealth::Unreachable => "Meta not reached",
    }
}

/// The same for who does not see it.
fn in_words(report: &IncidentReport, timeline: &Timeline) -> String {
    let incident = &report.incident;
    let mut text = format!(
        "{} failures from {} to {}, up to {} in {}.",
        grouped(incident.failure_count),
        moment(incident.opened_at),
        moment(incident.last_failure_at),
        grouped(i64::try_from(timeline.most_failures()).unwrap_or(i64::MAX)),
        duration(timeline.bins.width),
    );
    for lane in &timeline.lanes {
        let stretches = lane.stretches();
        let stretches: Vec<String> = stretches[stretches.len().saturating_sub(TOLD)..]
            .iter()
            .map(|(bin, _, health)| {
                format!(
                    "{} from about {}",
                    health.word(),
                    moment(timeline.bins.start_of(*bin))
                )
            })
            .collect();
        let stretches = if stretches.is_empty() {
            "not looked up yet".to_owned()
        } else {
            stretches.join(", then ")
        };
        text = format!("{text} {}: {stretches}.", name(lane));
    }
    text
}

fn percent(part: f64) -> String {
    format!("{}%", two(part * 100.0))
}

fn two(n: f64) -> String {
    format!("{n:.2}")
}
