//! The position from which the inbox is read.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Ids are not commit order: an append may commit this long after a later one.
const STRAGGLER_WINDOW: Duration = Duration::from_secs(3);
/// The inbox is read from its beginning this often: callbacks that failed are due again.
const REWIND_INTERVAL: Duration = Duration::from_secs(5);
/// A position is kept at most this often.
const RESOLUTION: Duration = Duration::from_millis(100);

/// Where the processor stood at what time.
///
/// Behind a long transaction of somebody else, such as a dump, the dead rows of processed callbacks
/// pile up at the head of the inbox. So it is read from where the processor stood a moment ago.
#[derive(Debug, Default)]
pub(super) struct Position {
    stood: VecDeque<(Instant, i64)>,
    latest: i64,
    rewound_at: Option<Instant>,
}

impl Position {
    /// Returns the id after which to read now.
    pub(super) fn start(&mut self) -> i64 {
        let now = Instant::now();
        let is_rewind_due = self.rewound_at.is_none_or(|at| now - at >= REWIND_INTERVAL);
        if is_rewind_due {
            self.rewound_at = Some(now);
            return 0;
        }
        while self
            .stood
            .get(1)
            .is_some_and(|(at, _)| now - *at >= STRAGGLER_WINDOW)
        {
            self.stood.pop_front();
        }
        let oldest = self.stood.front();
        oldest
            .filter(|(at, _)| now - *at >= STRAGGLER_WINDOW)
            .map_or(0, |(_, id)| *id)
    }

    /// Notes the last id that was taken.
    pub(super) fn advance(&mut self, last: Option<i64>) {
        self.latest = self.latest.max(last.unwrap_or_default());
        let now = Instant::now();
        if self
            .stood
            .back()
            .is_none_or(|(at, _)| now - *at >= RESOLUTION)
        {
            self.stood.push_back((now, self.latest));
        }
    }

    /// Reads from the beginning next time.
    pub(super) fn reset(&mut self) {
        self.rewound_at = None;
    }
}
