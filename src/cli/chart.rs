//! Draws the timeline of an incident with characters.

use super::render::{BOLD, DIM, GREEN, RED, YELLOW, wrap_text};
use crate::report::text::{format_count, format_duration, format_time, printable};
use crate::report::timeline::{NumberHealth, Timeline};
use crate::store::incidents::Incident;

/// The width of the labels to the left of the columns.
const LABEL_WIDTH: usize = 20;

/// Returns the number of columns that a timeline has in a terminal of this width.
pub(super) fn column_count(width: usize) -> usize {
    width.saturating_sub(LABEL_WIDTH + 4).clamp(20, 80)
}

/// Draws failures as bars, then the events of the incident, then a lane for each number, and a
/// legend.
pub(super) fn draw_timeline(incident: &Incident, timeline: &Timeline) -> String {
    let mut lines = vec![
        labelled_row("failures", &draw_bars(&timeline.failures)),
        labelled_row("", &draw_events(incident, timeline)),
    ];
    for lane in &timeline.lanes {
        let cells: String = lane.health.iter().copied().map(draw_cell).collect();
        lines.push(labelled_row(lane.name(), &cells));
    }
    let more = timeline.numbers_without_lane;
    if more > 0 {
        let text = format_count(more, "more number", "more numbers");
        lines.push(labelled_row("", &text));
    }
    lines.push(wrap_text("  ", "  ", &describe_scale(timeline)));
    let legend = wrap_text("  ", "  ", &describe_symbols(incident, timeline));
    lines.push(format!("{DIM}{legend}{DIM:#}"));
    lines.join("\n")
}

fn labelled_row(label: &str, columns: &str) -> String {
    let label: String = printable(label).chars().take(LABEL_WIDTH - 1).collect();
    format!("  {label:<LABEL_WIDTH$}{columns}")
        .trim_end()
        .to_owned()
}

/// Draws a bar per column. The highest bar is a whole block, and a single failure is still visible.
fn draw_bars(failures: &[u64]) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = failures.iter().max().copied().unwrap_or_default().max(1);
    let mut bars = String::new();
    for count in failures {
        let eighths = usize::try_from((count * 8).div_ceil(most)).unwrap_or(8);
        bars.push(BLOCKS[eighths.min(8)]);
    }
    format!("{RED}{bars}{RED:#}")
}

/// Draws the events of the incident, each as a letter in its column.
fn draw_events(incident: &Incident, timeline: &Timeline) -> String {
    let mut events: Vec<_> = [
        (Some(incident.opened_at), 'o'),
        (incident.cause_recorded_at, 'c'),
        (incident.ended_at.or(incident.resolved_at), 'r'),
    ]
    .into_iter()
    .filter_map(|(at, symbol)| Some((at?, symbol)))
    .chain(
        timeline
            .notices
            .iter()
            .map(|event| (event.occurred_at, 'm')),
    )
    .collect();
    events.sort();
    let mut row = String::new();
    for (at, symbol) in events {
        let column = (timeline.position(at) * timeline.bins.count as f64) as usize;
        let column = column.min(timeline.bins.count - 1);
        // Events of the same column stand next to each other, in the order in which they happened.
        while row.len() < column {
            row.push(' ');
        }
        row.push(symbol);
    }
    format!("{BOLD}{}{BOLD:#}", row.trim_end())
}

fn draw_cell(health: Option<NumberHealth>) -> String {
    let Some(health) = health else {
        return " ".to_owned();
    };
    let style = match health {
        NumberHealth::Available => GREEN,
        NumberHealth::Limited => YELLOW,
        NumberHealth::Blocked => RED,
        NumberHealth::Other
        | NumberHealth::Refused
        | NumberHealth::NotAsked
        | NumberHealth::Unreachable => DIM,
    };
    format!("{style}{}{style:#}", health_symbol(health))
}

fn health_symbol(health: NumberHealth) -> char {
    match health {
        NumberHealth::Available => '·',
        NumberHealth::Limited => '▒',
        NumberHealth::Blocked => '█',
        NumberHealth::Other => '?',
        NumberHealth::Refused => 'x',
        NumberHealth::NotAsked => 'n',
        NumberHealth::Unreachable => '-',
    }
}

fn describe_scale(timeline: &Timeline) -> String {
    let start = format_time(timeline.bins.start);
    let end = format_time(timeline.until);
    let column = format_duration(timeline.bins.width);
    let most = i64::try_from(timeline.most_failures()).unwrap_or(i64::MAX);
    let most = format_count(most, "failure", "failures");
    format!("From {start} to {end}; a column is {column}, the highest {most}.")
}

fn describe_symbols(incident: &Incident, timeline: &Timeline) -> String {
    let mut legend = "o opened, c cause recorded".to_owned();
    if !timeline.notices.is_empty() {
        legend.push_str(", m Meta's notice");
    }
    if incident.resolved_at.is_some() {
        legend.push_str(", r resolved");
    }
    for health in timeline.healths() {
        legend = format!("{legend}, {} {}", health_symbol(health), health.word());
    }
    legend
}
