//! Carries out the schedule.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::fleet::Replica;
use super::schedule::{Event, Fault};
use super::world::World;
use crate::support::proxy::Line;

/// Callbacks that are acknowledged after a fault before the next one comes: more than may have been under
/// way during it.
const BETWEEN: usize = 20;
/// How long that may take. Beside one fault there may be another.
const SERVICE_RETURNS_WITHIN: Duration = Duration::from_secs(40);

/// What happens to a world.
pub struct Fate<'w> {
    world: &'w World,
    began: Instant,
    length: Duration,
}

impl<'w> Fate<'w> {
    /// From now on, and for so long at the least.
    pub fn of(world: &'w World, length: Duration) -> Self {
        Self {
            world,
            began: Instant::now(),
            length,
        }
    }

    /// One event after the other: a whole round, and then more until the time is over.
    pub async fn unfolds(&self, mut round: impl FnMut() -> Vec<Event>) {
        for event in round() {
            self.happens(event).await;
        }
        for event in std::iter::repeat_with(round).flatten() {
            if self.began.elapsed() > self.length {
                return;
            }
            self.happens(event).await;
        }
    }

    /// Afterwards service returns by itself.
    async fn happens(&self, Event { calm, fault, lasts }: Event) {
        sleep(calm).await;
        println!(
            "{:8.1} s  {fault:?} for {lasts:?}",
            self.began.elapsed().as_secs_f32()
        );
        let World { server, fleet, .. } = self.world;
        match fault {
            Fault::ServerStopsAtOnce => server.stop(Signal::QUIT, lasts).await,
            Fault::ServerStops => server.stop(Signal::INT, lasts).await,
            Fault::SilentBackend { of, nth } => server.silence_backend(of, nth, lasts).await,
            Fault::SilentServer => server.silence(lasts).await,
            Fault::LockedTable(table) => server.lock_table(table, lasts).await,
            Fault::FullDisk => server.fill_disk(lasts).await,
            Fault::ReadOnly => server.read_only(lasts).await,
            Fault::ServeIsKilled => self.mortal().restart(Signal::KILL, lasts).await,
            Fault::ServeStops => self.mortal().restart(Signal::TERM, lasts).await,
            Fault::BadLine {
                to,
                of_replica,
                line,
            } => {
                fleet[of_replica].set(to, line);
                sleep(lasts).await;
                fleet[of_replica].set(to, Line::Open);
            }
        }
        self.world
            .acknowledges(BETWEEN, SERVICE_RETURNS_WITHIN)
            .await;
    }

    /// Where there are two, the first lives through everything: what it leaks adds up.
    fn mortal(&self) -> &Replica {
        self.world.fleet.last().expect("there is one at least")
    }
}
