//! What a process holds on to: memory, descriptors, and connections of its pools.

use std::fs;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::StatusCode;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep};

use super::fleet::Replica;
use super::schedule::LineTo;
use super::server::Server;
use crate::support::proxy::Line;
use crate::support::{client, within};

/// The connections of the pools of one process: of its work, and of those who look at pages.
const POOLED: [(&str, usize); 2] = [("/readyz", 8), ("/api/v1/incidents", 4)];
/// The recorder's connection comes and goes, and so does one to Graph.
const DESCRIPTORS_MORE: usize = 2;
/// An allocator keeps what a burst once took.
const MEMORY_MORE_KIB: usize = 24 * 1024;

/// How much a process holds while nothing is under way.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    memory_kib: usize,
    descriptors: usize,
}

impl Footprint {
    /// Takes every connection that the pools may have, all at once, and then looks what the process holds.
    pub async fn of(replica: &Replica, server: &Server) -> Self {
        // Graph's connections are kept for a while, as many as there were.
        replica.set(LineTo::Graph, Line::Reset);
        take_every_connection(replica, server).await;
        let mut least = Self::now(replica);
        for _ in 0..10 {
            sleep(Duration::from_millis(100)).await;
            least.descriptors = least.descriptors.min(Self::now(replica).descriptors);
        }
        replica.set(LineTo::Graph, Line::Open);
        least
    }

    fn now(replica: &Replica) -> Self {
        let process = format!("/proc/{}", replica.life().pid);
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let memory = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        let memory_kib = memory.split_whitespace().next().unwrap().parse().unwrap();
        Self {
            memory_kib,
            descriptors: fs::read_dir(format!("{process}/fd")).unwrap().count(),
        }
    }

    /// Waits until a process is back where one was.
    pub async fn is_that_of(self, replica: &Replica, server: &Server) {
        within(
            Duration::from_secs(40),
            "memory and descriptors are back where they were",
            async || {
                let now = Self::of(replica, server).await;
                println!("          a process holds {now:?}; after the start it was {self:?}");
                now.descriptors <= self.descriptors + DESCRIPTORS_MORE
                    && now.memory_kib <= self.memory_kib + MEMORY_MORE_KIB
            },
        )
        .await;
    }
}

/// A permit that was lost would be missed here, and nowhere else for a long time.
async fn take_every_connection(replica: &Replica, server: &Server) {
    let all: usize = POOLED.iter().map(|(_, n)| n).sum();
    within(
        Duration::from_secs(30),
        "every connection of the pools can be had",
        async || {
            let mut locker = server.connect().await;
            sqlx::raw_sql("begin; lock table _sqlx_migrations, incidents in access exclusive mode")
                .execute(&mut locker)
                .await
                .unwrap();
            let (answers, taken) = tokio::join!(visits(replica), all_wait(locker, all));
            taken && answers.iter().all(|answer| *answer == Some(StatusCode::OK))
        },
    )
    .await;
}

async fn visits(replica: &Replica) -> Vec<Option<StatusCode>> {
    let (client, admin) = (client(), replica.life().admin);
    let visit = |path| {
        let request = client.get(format!("{admin}{path}"));
        async { request.send().await.ok().map(|answer| answer.status()) }
    };
    join_all(
        POOLED
            .iter()
            .flat_map(|(path, n)| std::iter::repeat_n(path, *n))
            .map(visit),
    )
    .await
}

/// Whether so many wait for the locker before the first of them gives up; then the lock is gone.
async fn all_wait(mut locker: PgConnection, all: usize) -> bool {
    const SHORTER_THAN_THE_LOCK_TIMEOUT: Duration = Duration::from_millis(1500);
    let waiting = "select count(*) from pg_stat_activity where application_name = 'lockwatch' and wait_event_type = 'Lock'";
    let deadline = Instant::now() + SHORTER_THAN_THE_LOCK_TIMEOUT;
    let mut taken = false;
    while !taken && Instant::now() < deadline {
        // Statistics are read once in a transaction, unless they are asked for anew.
        sqlx::raw_sql("select pg_stat_clear_snapshot()")
            .execute(&mut locker)
            .await
            .unwrap();
        let waiting: i64 = sqlx::query_scalar(waiting)
            .fetch_one(&mut locker)
            .await
            .unwrap();
        taken = waiting == i64::try_from(all).unwrap();
        sleep(Duration::from_millis(20)).await;
    }
    locker.close().await.unwrap();
    taken
}
