//! What happens, and when: a pure function of the seed.

use std::time::Duration;

use fastrand::Rng;

use crate::support::proxy::Line;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// As `pg_ctl stop -m immediate`: it recovers from its log when it starts again.
    ServerStopsAtOnce,
    /// As `pg_ctl stop -m fast`: transactions under way are aborted.
    ServerStops,
    /// SIGSTOP of one backend, the nth of those with this application name.
    SilentBackend {
        of: &'static str,
        nth: usize,
    },
    /// SIGSTOP of the server and all its backends.
    SilentServer,
    LockedTable(&'static str),
    FullDisk,
    ReadOnly,
    /// `kill -9`.
    ServeIsKilled,
    /// SIGTERM.
    ServeStops,
    BadLine {
        to: LineTo,
        of_replica: usize,
        line: Line,
    },
}

/// The two lines of every replica.
#[derive(Debug, Clone, Copy)]
pub enum LineTo {
    Database,
    Graph,
}

/// A fault, the calm before it, and how long it lasts.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    pub calm: Duration,
    pub fault: Fault,
    pub lasts: Duration,
}

/// A round of what may happen to the database: each kind once, in any order.
pub fn of_the_server(rng: &mut Rng) -> Vec<Event> {
    const TABLES: [&str; 6] = [
        "accounts",
        "incidents",
        "affected_numbers",
        "failed_deliveries",
        "health_checks",
        "captures",
    ];
    let table = rng.choice(TABLES).expect("there are tables");
    let backend = |rng: &mut Rng, of| Fault::SilentBackend {
        of,
        nth: rng.usize(..8),
    };
    let faults = vec![
        Fault::ServerStopsAtOnce,
        Fault::ServerStops,
        backend(rng, "lockwatch recorder"),
        backend(rng, "lockwatch"),
        Fault::SilentServer,
        Fault::LockedTable(table),
        Fault::FullDisk,
        Fault::ReadOnly,
    ];
    shuffled(rng, faults)
}

/// A round of what may happen to the processes and their lines, beside that.
pub fn of_the_processes(rng: &mut Rng, replicas: usize) -> Vec<Event> {
    let mut faults = vec![Fault::ServeIsKilled, Fault::ServeStops];
    for to in [LineTo::Database, LineTo::Graph] {
        let slow = Line::Slow(Duration::from_millis(rng.u64(5..300)));
        for line in [slow, Line::Silent, Line::Reset, Line::Cut(rng.usize(..120))] {
            faults.push(Fault::BadLine {
                to,
                of_replica: rng.usize(..replicas),
                line,
            });
        }
    }
    shuffled(rng, faults)
}

fn shuffled(rng: &mut Rng, mut faults: Vec<Fault>) -> Vec<Event> {
    rng.shuffle(&mut faults);
    let mut at_random = |millis| Duration::from_millis(rng.u64(millis));
    let event = |fault| {
        let lasts = match fault {
            // Until those who wait for an answer give up.
            Fault::BadLine {
                line: Line::Silent, ..
            } => 8000..11_000,
            _ => 800..3500,
        };
        Event {
            calm: at_random(200..1500),
            fault,
            lasts: at_random(lasts),
        }
    };
    faults.into_iter().map(event).collect()
}
