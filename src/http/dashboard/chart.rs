//! Charts in SVG: the timeline of an incident, and sparklines.
//!
//! Horizontal positions are in percent and sizes in pixels, so that a chart fits every screen and
//! its text stays readable. Health is shown by colour, height, pattern, and text.

use maud::{Markup, PreEscaped, html};
use time::OffsetDateTime;

use super::truncate;
use crate::report::IncidentReport;
use crate::report::text::{
    describe_state, format_count, format_duration, format_number, format_short_time, format_time,
    printable,
};
use crate::report::timeline::{Lane, NumberHealth, Timeline};
use crate::store::events::AccountEvent;

const MARKER_HEIGHT: u32 = 18;
const BARS_HEIGHT: u32 = 96;
const AXIS_HEIGHT: u32 = 22;
/// The height of a lane with its name.
const LANE_HEIGHT: u32 = 40;
const LANE_NAME_HEIGHT: u32 = 16;
/// With more stretches of health than this, neither they nor the bars have titles: the page would
/// grow too large.
const TITLED_STRETCHES_LIMIT: usize = 100;
/// The most stretches that are drawn, for the same reason. Numbers after them have no lane.
const DRAWN_STRETCHES_LIMIT: usize = 300;
/// The most stretches of a lane in the text description: the latest.
const DESCRIBED_STRETCHES_LIMIT: usize = 6;

/// Renders a few bars in a row.
pub(super) fn sparkline(failures: &[u64]) -> Markup {
    let most = failures.iter().max().copied().unwrap_or_default().max(1);
    let mut path = String::new();
    for (bin, n) in failures.iter().enumerate().filter(|(_, n)| **n > 0) {
        let height = bar_height(*n, most, 20);
        path += &format!("M{} 20v-{height}h3v{height}z", bin * 4);
    }
    let view_box = format!("0 0 {} 20", failures.len() * 4);
    html! {
        svg .spark viewBox=(view_box) preserveAspectRatio="none" aria-hidden="true" {
            path d=(path) {}
        }
    }
}

/// Returns the height of a bar; at least 2, so that a single failure is visible.
fn bar_height(n: u64, most: u64, full_height: u32) -> u32 {
    let height = (n as f64 / most as f64 * f64::from(full_height)).round() as u32;
    if n > 0 { height.max(2) } else { 0 }
}

/// Renders the timeline of an incident with its legend.
pub(super) fn timeline_chart(report: &IncidentReport, timeline: &Timeline) -> Markup {
    let timeline = &limit_lanes(timeline);
    let markers = markers(report, timeline);
    let bars_top = rows_height(markers.len(), MARKER_HEIGHT) + 14;
    let axis_top = bars_top + BARS_HEIGHT;
    let lanes_top = axis_top + AXIS_HEIGHT + 6;
    let height = lanes_top + rows_height(timeline.lanes.len(), LANE_HEIGHT);
    let stretches: usize = timeline
        .lanes
        .iter()
        .map(|lane| lane.stretches().len())
        .sum();
    let has_titles = stretches <= TITLED_STRETCHES_LIMIT;
    // The text of the first marker and the scale are on opposite sides.
    let is_scale_right = timeline.position(report.incident.opened_at) < 0.5;
    html! {
        figure .chart {
            svg .timeline width="100%" height=(height) role="img"
                aria-labelledby="timeline-title timeline-text" {
                title #timeline-title {
                    "Timeline of incident " (report.incident.id)
                }
                desc #timeline-text {
                    (describe_timeline(report, timeline))
                }
                (patterns())
                @for (row, marker) in markers.iter().enumerate() {
                    (marker_row(timeline, marker, rows_height(row, MARKER_HEIGHT), axis_top))
                }
                (failure_bars(timeline, bars_top, is_scale_right, has_titles))
                line .axis x1="0" x2="100%" y1=(axis_top) y2=(axis_top) {}
                @for tick in axis_ticks(timeline) {
                    text .tick .(tick.class) x=(percent(tick.position)) y=(axis_top + 15)
                        text-anchor=(tick.anchor) { (tick.text) }
                }
                @for (row, lane) in timeline.lanes.iter().enumerate() {
                    @let top = lanes_top + rows_height(row, LANE_HEIGHT);
                    (lane_row(timeline, lane, top, has_titles))
                }
            }
            figcaption { (legend(timeline)) }
        }
    }
}

fn rows_height(rows: usize, height: u32) -> u32 {
    u32::try_from(rows).unwrap_or(0) * height
}

/// Returns the timeline with the first lanes that keep [`DRAWN_STRETCHES_LIMIT`]. There is room for
/// at least one: a lane has fewer bins than that.
fn limit_lanes(timeline: &Timeline) -> Timeline {
    let mut limited = timeline.clone();
    let mut stretches = 0;
    limited.lanes = timeline
        .lanes
        .iter()
        .cloned()
        .take_while(|lane| {
            stretches += lane.stretches().len();
            stretches <= DRAWN_STRETCHES_LIMIT
        })
        .collect();
    let dropped = timeline.lanes.len() - limited.lanes.len();
    limited.numbers_without_lane += i64::try_from(dropped).unwrap_or_default();
    limited
}

/// An event of the incident: a vertical line with a text.
struct Marker {
    at: OffsetDateTime,
    text: String,
    class: &'static str,
}

fn markers(report: &IncidentReport, timeline: &Timeline) -> Vec<Marker> {
    let incident = &report.incident;
    let opened = match incident.opened_by.as_str() {
        "failure" => "first failure",
        "event" => "disabled by Meta",
        _ => "opened",
    };
    // The ban that opened it is not told twice.
    let is_opening = |event: &&AccountEvent| {
        incident.opened_by == "event" && event.occurred_at == incident.opened_at
    };
    let notices = timeline.notices.iter().filter(|event| !is_opening(event));
    let mut markers = vec![Marker {
        at: incident.opened_at,
        text: format!("{opened} {}", format_short_time(incident.opened_at)),
        class: "opened",
    }];
    markers.extend(notices.map(|event| Marker {
        at: event.occurred_at,
        text: printable(&format!(
            "Meta: {} {}",
            truncate(event.short_name(), 40),
            format_short_time(event.occurred_at)
        )),
        class: "notice",
    }));
    if let Some(at) = incident.cause_recorded_at {
        markers.push(Marker {
            at,
            text: format!("cause recorded {}", format_short_time(at)),
            class: "caused",
        });
    }
    if let Some(at) = incident.ended_at.or(incident.resolved_at) {
        markers.push(Marker {
            at,
            text: format!("{} {}", describe_state(incident), format_short_time(at)),
            class: "resolved",
        });
    }
    markers.sort_by_key(|marker| marker.at);
    markers
}

fn marker_row(timeline: &Timeline, marker: &Marker, top: u32, axis_top: u32) -> Markup {
    let position = timeline.position(marker.at);
    let x = percent(position);
    // On a small screen the text must not leave the chart at either side.
    let (dx, anchor, line_top) = match position {
        ..0.3 => ("6", "start", 3),
        0.3..0.7 => ("0", "middle", MARKER_HEIGHT),
        _ => ("-6", "end", 3),
    };
    html! {
        line .marker .(marker.class) x1=(x) x2=(x) y1=(top + line_top) y2=(axis_top) {}
        text .marker .(marker.class) x=(x) dx=(dx) y=(top + 13) text-anchor=(anchor) {
            (marker.text)
        }
    }
}

fn failure_bars(timeline: &Timeline, top: u32, is_scale_right: bool, has_titles: bool) -> Markup {
    let most = timeline.most_failures();
    let bin_width = 100.0 / timeline.bins.count as f64;
    let bar_width = two_decimals(bin_width * 0.86);
    let duration = format_duration(timeline.bins.width);
    let (x, anchor) = if is_scale_right {
        ("100%", "end")
    } else {
        ("0", "start")
    };
    html! {
        line .grid x1="0" x2="100%" y1=(top) y2=(top) {}
        text .most x=(x) y=(top - 3) text-anchor=(anchor) {
            "highest bar: " (format_failures(most)) " in " (duration)
        }
        @for (bin, n) in timeline.failures.iter().enumerate().filter(|(_, n)| **n > 0) {
            @let height = bar_height(*n, most, BARS_HEIGHT);
            rect .bar x={ (two_decimals(bin as f64 * bin_width)) "%" }
                y=(top + BARS_HEIGHT - height) width={ (bar_width) "%" } height=(height) {
                @if has_titles {
                    title {
                        (format_failures(*n)) " in " (duration) " from "
                        (format_time(timeline.bins.start_of(bin)))
                    }
                }
            }
        }
    }
}

fn format_failures(n: u64) -> String {
    format_count(i64::try_from(n).unwrap_or(i64::MAX), "failure", "failures")
}

/// A time at the axis.
struct Tick {
    position: f64,
    anchor: &'static str,
    class: &'static str,
    text: String,
}

/// Returns the times at both ends of the axis and, with enough bins, at its quarters. The style
/// sheet hides the quarters on small screens.
fn axis_ticks(timeline: &Timeline) -> Vec<Tick> {
    let bins = timeline.bins.count;
    let mut ticks = vec![Tick {
        position: 0.0,
        anchor: "start",
        class: "",
        text: format!("{} UTC", format_short_time(timeline.bins.start)),
    }];
    let quarters = [(1, "between"), (2, "middle"), (3, "between")];
    for (quarter, class) in quarters.into_iter().filter(|_| bins >= 8) {
        let bin = bins * quarter / 4;
        ticks.push(Tick {
            position: bin as f64 / bins as f64,
            anchor: "middle",
            class,
            text: format_short_time(timeline.bins.start_of(bin)),
        });
    }
    ticks.push(Tick {
        position: 1.0,
        anchor: "end",
        class: "",
        text: format_short_time(timeline.bins.start_of(bins)),
    });
    ticks
}

/// Renders the health of one number over time.
fn lane_row(timeline: &Timeline, lane: &Lane, top: u32, has_titles: bool) -> Markup {
    let name = lane_name(lane);
    let latest = lane.latest.map_or("not looked up yet", NumberHealth::word);
    let bars_top = top + LANE_NAME_HEIGHT;
    let bin_width = 100.0 / timeline.bins.count as f64;
    // Health after now is not known.
    let end = timeline.position(timeline.until) * 100.0;
    let stretches = lane.stretches();
    let of_health = |health: NumberHealth| {
        stretches
            .iter()
            .filter(move |(_, _, other)| *other == health)
    };
    html! {
        text .lane x="0" y=(top + 12) {
            (name) ": " tspan .word { (latest) }
        }
        rect .track x="0" y=(bars_top) width="100%" height="16" {}
        @for health in NumberHealth::ALL {
            @if of_health(health).next().is_some() {
                @let (offset, height) = bar_shape(health);
                g .(health_class(health)) {
                    @for (bin, length, _) in of_health(health) {
                        @let x = *bin as f64 * bin_width;
                        @let width = (*length as f64 * bin_width).min(end - x);
                        rect x={ (two_decimals(x)) "%" } y=(bars_top + offset)
                            width={ (two_decimals(width)) "%" } height=(height) {
                            @if has_titles {
                                (stretch_title(timeline, &name, health, *bin, *length))
                            }
                        }
                    }
                }
            }
        }
    }
}

fn stretch_title(
    timeline: &Timeline,
    name: &str,
    health: NumberHealth,
    bin: usize,
    length: usize,
) -> Markup {
    let start = timeline.bins.start_of(bin);
    let end = timeline.bins.start_of(bin + length).min(timeline.until);
    html! {
        title {
            (name) ": " (health.word())
            " from about " (format_time(start)) " to " (format_time(end))
        }
    }
}

/// Returns the name of a lane. It leaves room for the health beside it on a small screen; Meta's
/// numbers and ids are short enough.
fn lane_name(lane: &Lane) -> String {
    printable(&truncate(lane.name(), 20))
}

/// Returns the offset and the height of a lane's bar: the worse the health, the higher.
fn bar_shape(health: NumberHealth) -> (u32, u32) {
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

pub(super) fn health_class(health: NumberHealth) -> &'static str {
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
    const PATTERNS: &str = concat!(
        "<defs>",
        "<pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\"",
        " patternTransform=\"rotate(45)\">",
        "<rect class=\"ground\" width=\"6\" height=\"6\"/>",
        "<rect class=\"ink\" width=\"2.5\" height=\"6\"/></pattern>",
        "<pattern id=\"dots\" width=\"6\" height=\"5\" patternUnits=\"userSpaceOnUse\">",
        "<rect class=\"ground\" width=\"6\" height=\"5\"/>",
        "<circle class=\"ink\" cx=\"3\" cy=\"2.5\" r=\"1.4\"/></pattern>",
        "</defs>"
    );
    PreEscaped(PATTERNS.to_owned())
}

/// Renders the legend: one entry for each shape that is in the chart.
fn legend(timeline: &Timeline) -> Markup {
    let without_lane = timeline.numbers_without_lane;
    html! {
        span .key {
            svg .swatch width="14" height="16" aria-hidden="true" {
                rect .bar width="14" height="16" {}
            }
            "failures"
        }
        @for health in timeline.healths() {
            @let (offset, height) = bar_shape(health);
            span .key {
                svg .swatch width="22" height="16" aria-hidden="true" {
                    rect .health .(health_class(health)) y=(offset) width="22" height=(height) {}
                }
                (legend_text(health))
            }
        }
        @if without_lane > 0 {
            span .key {
                (format_count(without_lane, "more number", "more numbers")) " without a lane"
            }
        }
    }
}

fn legend_text(health: NumberHealth) -> &'static str {
    match health {
        NumberHealth::Available => "AVAILABLE: can send",
        NumberHealth::Limited => "LIMITED",
        NumberHealth::Blocked => "BLOCKED: cannot send",
        NumberHealth::Other => "unknown word from Meta",
        NumberHealth::Refused => "look-up refused",
        NumberHealth::NotAsked => "not asked: no token",
        NumberHealth::Unreachable => "Meta not reached",
    }
}

/// Describes the timeline as text, for readers who do not see the chart.
fn describe_timeline(report: &IncidentReport, timeline: &Timeline) -> String {
    let incident = &report.incident;
    let mut text = format!(
        "{} failures from {} to {}, up to {} in {}.",
        format_number(incident.failure_count),
        format_time(incident.opened_at),
        format_time(incident.last_failure_at),
        format_number(i64::try_from(timeline.most_failures()).unwrap_or(i64::MAX)),
        format_duration(timeline.bins.width),
    );
    for lane in &timeline.lanes {
        let stretches = lane.stretches();
        let skipped = stretches.len().saturating_sub(DESCRIBED_STRETCHES_LIMIT);
        let described: Vec<String> = stretches[skipped..]
            .iter()
            .map(|(bin, _, health)| {
                let start = format_time(timeline.bins.start_of(*bin));
                format!("{} from about {start}", health.word())
            })
            .collect();
        let described = if described.is_empty() {
            "not looked up yet".to_owned()
        } else {
            described.join(", then ")
        };
        text = format!("{text} {}: {described}.", lane_name(lane));
    }
    text
}

fn percent(part: f64) -> String {
    format!("{}%", two_decimals(part * 100.0))
}

fn two_decimals(n: f64) -> String {
    format!("{n:.2}")
}
