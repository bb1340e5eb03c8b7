//! An incident's timeline in characters.

use super::render::{BOLD, DIM, GREEN, RED, YELLOW, hanging};
use crate::report::text::{count, duration, moment, printable};
use crate::report::timeline::{NumberHealth, Timeline};
use crate::store::incidents::Incident;

/// What stands before the columns.
const LABEL: usize = 20;

/// How many columns a picture has in a terminal of this width.
pub(super) fn columns(width: usize) -> usize {
    width.saturating_sub(LABEL + 4).clamp(20, 80)
}

/// Failures as bars, then when what happened, then a lane for each number.
pub(super) fn timeline(incident: &Incident, timeline: &Timeline) -> String {
    let mut lines = vec![
        row("failures", &bars(&timeline.failures)),
        row("", &events(incident, timeline)),
    ];
    lines.extend(timeline.lanes.iter().map(|lane| {
        row(
            lane.name(),
            &lane
                .health
                .iter()
                .map(|health| cell(*health))
                .collect::<String>(),
        )
    }));
    if timeline.more > 0 {
        lines.push(row(
            "",
            &count(timeline.more, "more number", "more numbers"),
        ));
    }
    let each = duration(timeline.bins.width);
    let most = count(
        i64::try_from(timeline.most_failures()).unwrap_or(i64::MAX),
        "failure",
        "failures",
    );
    lines.push(hanging(
        "  ",
        "  ",
        &format!(
            "From {} to {}; a column is {each}, the highest {most}.",
            moment(timeline.bins.start),
            moment(timeline.until)
        ),
    ));
    let mut legend = "o opened, c cause recorded".to_owned();
    if incident.resolved_at.is_some() {
        legend.push_str(", r resolved");
    }
    for health in timeline.healths() {
        legend = format!("{legend}, {} {}", cell_text(health), health.word());
    }
    lines.push(format!("{DIM}{}{DIM:#}", hanging("  ", "  ", &legend)));
    lines.join("\n")
}

fn row(name: &str, columns: &str) -> String {
    let name: String = printable(name).chars().take(LABEL - 1).collect();
    format!("  {name:<LABEL$}{columns}").trim_end().to_owned()
}

/// The highest bar is a whole block; any failure at all can be seen.
fn bars(failures: &[u64]) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = failures.iter().max().copied().unwrap_or_default().max(1);
    let bars: String = failures
        .iter()
        .map(|n| BLOCKS[usize::try_from((n * 8).div_ceil(most)).unwrap_or(8).min(8)])
        .collect();
    format!("{RED}{bars}{RED:#}")
}

fn events(incident: &Incident, timeline: &Timeline) -> String {
    let mut events: Vec<_> = [
        (Some(incident.opened_at), 'o'),
        (incident.cause_recorded_at, 'c'),
        (incident.resolved_at, 'r'),
    ]
    .into_iter()
    .filter_map(|(at, sign)| Some((at?, sign)))
    .collect();
    events.sort();
    let mut columns: Vec<char> = Vec::new();
    for (at, sign) in events {
        let column = (timeline.position(at) * timeline.bins.count as f64) as usize;
        // What happened in the same column stands after it, in the order in which it happened.
        columns.resize(columns.len().max(column.min(timeline.bins.count - 1)), ' ');
        columns.push(sign);
    }
    format!(
        "{BOLD}{}{BOLD:#}",
        columns.into_iter().collect::<String>().trim_end()
    )
}

fn cell(health: Option<NumberHealth>) -> String {
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
    format!("{style}{}{style:#}", cell_text(health))
}

fn cell_text(health: NumberHealth) -> char {
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
