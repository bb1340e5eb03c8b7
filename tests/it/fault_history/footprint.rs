//! The footprint of a process: its memory, its descriptors, and the connections of its pools.

use std::fs;
use std::iter::repeat_n;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::StatusCode;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep};

use super::postgres::PostgresServer;
use super::replica::Replica;
use super::schedule::Link;
use crate::support::proxy::LinkState;
use crate::support::{client, eventually_within};

/// The pools of one process: a path that uses one connection, and the size of the pool. The first
/// pool is for the process's own work, the second for readers of pages.
const POOLS: [(&str, usize); 2] = [("/readyz", 8), ("/api/v1/incidents", 4)];
/// The recorder opens and closes its connection, and so does the client of Graph.
const EXTRA_DESCRIPTORS_LIMIT: usize = 2;
/// An allocator keeps the memory of an earlier burst.
const EXTRA_MEMORY_LIMIT_KIB: usize = 24 * 1024;

/// The resources that a process holds while no request is under way.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    memory_kib: usize,
    descriptors: usize,
}

impl Footprint {
    /// Uses every connection of the pools at the same time, and then measures the process.
    pub async fn measure(replica: &Replica, postgres: &PostgresServer) -> Self {
        // Idle connections to Graph are kept for a while, and their number varies.
        replica.set_link(Link::Graph, LinkState::Reset);
        use_every_pooled_connection(replica, postgres).await;
        let mut lowest = Self::read(replica);
        for _ in 0..10 {
            sleep(Duration::from_millis(100)).await;
            lowest.descriptors = lowest.descriptors.min(Self::read(replica).descriptors);
        }
        replica.set_link(Link::Graph, LinkState::Open);
        lowest
    }

    /// Waits until a process is back at this footprint.
    pub async fn wait_until_restored(self, replica: &Replica, postgres: &PostgresServer) {
        eventually_within(
            Duration::from_secs(40),
            "memory and descriptors are back at their first values",
            async || {
                let current = Self::measure(replica, postgres).await;
                println!("          a process holds {current:?}; after the start it was {self:?}");
                current.descriptors <= self.descriptors + EXTRA_DESCRIPTORS_LIMIT
                    && current.memory_kib <= self.memory_kib + EXTRA_MEMORY_LIMIT_KIB
            },
        )
        .await;
    }

    fn read(replica: &Replica) -> Self {
        let process = format!("/proc/{}", replica.process().pid);
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
}

/// Finds a lost permit of a pool. Without this, nothing else would notice it for a long time.
async fn use_every_pooled_connection(replica: &Replica, postgres: &PostgresServer) {
    let connections: usize = POOLS.iter().map(|(_, size)| size).sum();
    eventually_within(
        Duration::from_secs(30),
        "every connection of the pools can be used",
        async || {
            let mut locker = postgres.connect().await;
            sqlx::raw_sql("begin; lock table _sqlx_migrations, incidents in access exclusive mode")
                .execute(&mut locker)
                .await
                .unwrap();
            let (answers, all_waited) =
                tokio::join!(request_all(replica), wait_for_all(locker, connections));
            all_waited && answers.iter().all(|answer| *answer == Some(StatusCode::OK))
        },
    )
    .await;
}

/// Sends one request for every connection of every pool.
async fn request_all(replica: &Replica) -> Vec<Option<StatusCode>> {
    let (client, admin) = (client(), replica.process().admin);
    let paths = POOLS.iter().flat_map(|(path, size)| repeat_n(path, *size));
    join_all(paths.map(|path| {
        let request = client.get(format!("{admin}{path}"));
        async { Some(request.send().await.ok()?.status()) }
    }))
    .await
}

/// Returns whether this number of connections waited for the locker at the same time, before the
/// first of them gave up. Releases the lock.
async fn wait_for_all(mut locker: PgConnection, connections: usize) -> bool {
    /// Shorter than the lock timeout of the process.
    const WAIT_TIMEOUT: Duration = Duration::from_millis(1500);
    const WAITING: &str = "select count(*) from pg_stat_activity
                            where application_name = 'lockwatch' and wait_event_type = 'Lock'";
    let deadline = Instant::now() + WAIT_TIMEOUT;
    let mut all_waited = false;
    while !all_waited && Instant::now() < deadline {
        // A transaction reads the statistics once and keeps them, unless they are cleared.
        sqlx::raw_sql("select pg_stat_clear_snapshot()")
            .execute(&mut locker)
            .await
            .unwrap();
        let waiting: i64 = sqlx::query_scalar(WAITING)
            .fetch_one(&mut locker)
            .await
            .unwrap();
        all_waited = waiting == i64::try_from(connections).unwrap();
        sleep(Duration::from_millis(20)).await;
    }
    locker.close().await.unwrap();
    all_waited
}
