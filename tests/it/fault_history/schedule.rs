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
    /// Somebody's transaction holds the account, or its incident's row.
    HeldAccount {
        waba_id: &'static str,
        holds_row: bool,
    },
    /// The ids of a table start anew, as after a copy of the rows alone.
    SequenceSetBack(&'static str),
    /// A foreign key of the user's that no row satisfies.
    ForeignKey(&'static str),
    /// An open snapshot, as of `pg_dump`: nothing can be vacuumed away.
    LongSnapshot,
    /// The clock of the database is wrong by these minutes.
    ShiftedClock(i32),
    /// `lockwatch migrate` beside the load.
    Migration,
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

/// The first of the accounts that get most of the callbacks.
const HOT_ACCOUNT: &str = "10220000";

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
    const TABLES: [&str; 8] = [
        "accounts",
        "incidents",
        "incident_changes",
        "affected_numbers",
        "failed_deliveries",
        "health_checks",
        "captures",
        "inbox",
    ];
    const NUMBERED: [&str; 4] = [
        "captures",
        "incidents",
        "incident_changes",
        "failed_deliveries",
    ];
    const REFERRING: [&str; 3] = ["incidents", "failed_deliveries", "affected_numbers"];
    let mut choose = |tables: &[&'static str]| *rng.choice(tables).expect("there are tables");
    let (table, numbered, referring) = (choose(&TABLES), choose(&NUMBERED), choose(&REFERRING));
    let faults = vec![
        Fault::PostgresImmediateStop,
        Fault::PostgresFastStop,
        // It commits after the client gave up: the answer to COMMIT is lost.
        paused_backend(rng, "lockwatch inbox"),
        paused_backend(rng, "lockwatch processor"),
        paused_backend(rng, "lockwatch"),
        Fault::PausedPostgres,
        Fault::LockedTable(table),
        Fault::HeldAccount {
            waba_id: HOT_ACCOUNT,
            holds_row: rng.bool(),
        },
        Fault::SequenceSetBack(numbered),
        Fault::ForeignKey(referring),
        Fault::LongSnapshot,
        Fault::ShiftedClock(if rng.bool() { 5 } else { -5 }),
        Fault::Migration,
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
