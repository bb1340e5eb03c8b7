//! The fault injector: carries out the schedule.

use std::time::Duration;

use lockwatch::store::Database;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::environment::Environment;
use super::replica::Replica;
use super::schedule::{Fault, ScheduledFault};
use crate::support::proxy::LinkState;

/// Callbacks that must be acknowledged between two faults: more than may have been under way during
/// the first one.
const CALLBACKS_BETWEEN_FAULTS: usize = 20;
/// The time within which service must return after a fault. Another fault may be active meanwhile.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(40);

/// Injects faults into an environment.
pub struct FaultInjector<'e> {
    environment: &'e Environment,
    started: Instant,
    min_duration: Duration,
}

impl<'e> FaultInjector<'e> {
    /// The time starts now and lasts at least `min_duration`.
    pub fn new(environment: &'e Environment, min_duration: Duration) -> Self {
        Self {
            environment,
            started: Instant::now(),
            min_duration,
        }
    }

    /// Injects one fault after the other: one complete round, and then more until the time is over.
    pub async fn run(&self, mut next_round: impl FnMut() -> Vec<ScheduledFault>) {
        for fault in next_round() {
            self.inject(fault).await;
        }
        for fault in std::iter::repeat_with(next_round).flatten() {
            if self.started.elapsed() > self.min_duration {
                return;
            }
            self.inject(fault).await;
        }
    }

    /// Injects one fault and ends it. Afterwards service must return without help.
    async fn inject(&self, scheduled: ScheduledFault) {
        let ScheduledFault {
            delay,
            fault,
            duration,
        } = scheduled;
        sleep(delay).await;
        println!(
            "{:8.1} s  {fault:?} for {duration:?}",
            self.started.elapsed().as_secs_f32()
        );
        let postgres = &self.environment.postgres;
        match fault {
            Fault::PostgresImmediateStop => postgres.stop(Signal::QUIT, duration).await,
            Fault::PostgresFastStop => postgres.stop(Signal::INT, duration).await,
            Fault::PausedBackend {
                application_name,
                nth,
            } => {
                postgres
                    .pause_backend(application_name, nth, duration)
                    .await;
            }
            Fault::PausedPostgres => postgres.pause(duration).await,
            Fault::LockedTable(table) => postgres.lock_table(table, duration).await,
            Fault::HeldAccount { waba_id, holds_row } => {
                postgres.hold_account(waba_id, holds_row, duration).await;
            }
            Fault::SequenceSetBack(table) => postgres.set_sequence_back(table).await,
            Fault::ForeignKey(table) => postgres.add_foreign_key(table, duration).await,
            Fault::LongSnapshot => postgres.keep_snapshot(duration).await,
            Fault::ShiftedClock(minutes) => postgres.shift_clock(minutes, duration).await,
            Fault::Migration => {
                let database = Database::parse(&postgres.url()).unwrap();
                database
                    .migrate()
                    .await
                    .expect("every migration is applied");
            }
            Fault::FullDisk => postgres.fill_disk(duration).await,
            Fault::ReadOnlyDatabase => postgres.make_read_only(duration).await,
            Fault::KilledServe => {
                self.restartable_replica()
                    .restart(Signal::KILL, duration)
                    .await;
            }
            Fault::TerminatedServe => {
                self.restartable_replica()
                    .restart(Signal::TERM, duration)
                    .await;
            }
            Fault::BrokenLink {
                link,
                replica,
                state,
            } => {
                let replica = &self.environment.replicas[replica];
                replica.set_link(link, state);
                sleep(duration).await;
                replica.set_link(link, LinkState::Open);
            }
        }
        self.environment
            .wait_for_acknowledgements(CALLBACKS_BETWEEN_FAULTS, RECOVERY_TIMEOUT)
            .await;
    }

    /// The last replica. Where there are two, the first one is never restarted: its leaks add up.
    fn restartable_replica(&self) -> &Replica {
        self.environment
            .replicas
            .last()
            .expect("there is at least one")
    }
}
