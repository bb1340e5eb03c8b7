//! The schedule of faults: a pure function of the seed.

use std::time::Duration;

use fastrand::Rng;

use crate::support::proxy::LinkState;

#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// As `pg_ctl stop -m immediate`: the server recovers from its log at the next start.
    PostgresImmediateStop,
    /// As `pg_ctl stop -m fast`: active transactions are aborted.
    PostgresFastStop,
    /// SIGSTOP of one backend, the nth of those with this application name.
    PausedBackend {
        application_name: &'static str,
        nth: usize,
    },
    /// SIGSTOP of the server and all its backends.
    PausedPostgres,
    LockedTable(&'static str),
    FullDisk,
    ReadOnlyDatabase,
    /// `kill -9`.
    KilledServe,
    /// SIGTERM.
    TerminatedServe,
    BrokenLink {
        link: Link,
        /// The position of the replica.
        replica: usize,
        state: LinkState,
    },
}

/// The two links of every replica.
#[derive(Debug, Clone, Copy)]
pub enum Link {
    Database,
    Graph,
}

/// A fault, the delay before it, and its duration.
#[derive(Debug, Clone, Copy)]
pub struct ScheduledFault {
    pub delay: Duration,
    pub fault: Fault,
    pub duration: Duration,
}

/// A round of faults of the database: each kind once, in random order.
pub fn database_faults(rng: &mut Rng) -> Vec<ScheduledFault> {
    const TABLES: [&str; 6] = [
        "accounts",
        "incidents",
        "affected_numbers",
        "failed_deliveries",
        "health_checks",
        "captures",
    ];
    let table = rng.choice(TABLES).expect("there are tables");
    let faults = vec![
        Fault::PostgresImmediateStop,
        Fault::PostgresFastStop,
        paused_backend(rng, "lockwatch recorder"),
        paused_backend(rng, "lockwatch"),
        Fault::PausedPostgres,
        Fault::LockedTable(table),
        Fault::FullDisk,
        Fault::ReadOnlyDatabase,
    ];
    shuffle_and_time(rng, faults)
}

/// A round of faults of the processes and their links. It runs at the same time as the database's.
pub fn process_faults(rng: &mut Rng, replicas: usize) -> Vec<ScheduledFault> {
    let mut faults = vec![Fault::KilledServe, Fault::TerminatedServe];
    for link in [Link::Database, Link::Graph] {
        let slow = LinkState::Slow(Duration::from_millis(rng.u64(5..300)));
        let cut = LinkState::Cut(rng.usize(..120));
        for state in [slow, LinkState::Silent, LinkState::Reset, cut] {
            faults.push(Fault::BrokenLink {
                link,
                replica: rng.usize(..replicas),
                state,
            });
        }
    }
    shuffle_and_time(rng, faults)
}

fn paused_backend(rng: &mut Rng, application_name: &'static str) -> Fault {
    Fault::PausedBackend {
        application_name,
        nth: rng.usize(..8),
    }
}

fn shuffle_and_time(rng: &mut Rng, mut faults: Vec<Fault>) -> Vec<ScheduledFault> {
    rng.shuffle(&mut faults);
    faults
        .into_iter()
        .map(|fault| {
            let millis = match fault {
                // Long enough that clients give up waiting for an answer.
                Fault::BrokenLink {
                    state: LinkState::Silent,
                    ..
                } => 8000..11_000,
                _ => 800..3500,
            };
            ScheduledFault {
                delay: Duration::from_millis(rng.u64(200..1500)),
                fault,
                duration: Duration::from_millis(rng.u64(millis)),
            }
        })
        .collect()
}
