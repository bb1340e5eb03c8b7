//! The operator: reads the admin API during the faults and resolves incidents by hand.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::ledger::{Ledger, ManualResolution};
use super::replica::Replica;
use super::workload::{Account, HOT_ACCOUNTS};

pub struct Operator<'e> {
    pub client: &'e Client,
    pub accounts: &'e [Account],
    pub replicas: &'e [Replica],
    pub ledger: &'e Ledger,
}

impl Operator<'_> {
    /// Works until told to stop, mostly on the hot accounts.
    pub async fn run(&self, mut rng: Rng, stop: &AtomicBool) {
        let mut visits = 0;
        while !stop.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(rng.u64(200..1200))).await;
            let replica = rng.choice(self.replicas).unwrap();
            let accounts = if rng.bool() {
                &self.accounts[..HOT_ACCOUNTS]
            } else {
                self.accounts
            };
            let account = rng.choice(accounts).unwrap();
            visits += 1;
            let note = format!("by hand {visits}");
            let resolution = self.resolve_incident(replica, &account.waba_id, note).await;
            if let Some(resolution) = resolution {
                self.ledger.lock().resolutions.push(resolution);
            }
            self.scrape_metrics(replica).await;
        }
    }

    /// Resolves the open incident of an account. Returns `None` if there is none, or if a request
    /// fails.
    async fn resolve_incident(
        &self,
        replica: &Replica,
        waba_id: &str,
        note: String,
    ) -> Option<ManualResolution> {
        let process = replica.process();
        let incidents = format!("{}/api/v1/incidents", process.admin);
        let url = format!("{incidents}?state=open&waba_id={waba_id}");
        let answer = replica
            .send(&process, self.client.get(url))
            .await
            .filter(|answer| is_success(answer.status()))?;
        let open: Value = serde_json::from_str(&answer.text().await.ok()?).ok()?;
        let incident_id = open["data"][0]["id"].as_i64()?;
        let request = self
            .client
            .post(format!("{incidents}/{incident_id}/resolve"))
            .header("content-type", "application/json")
            .body(json!({"note": note}).to_string());
        let answer = replica.send(&process, request).await?;
        is_success(answer.status()).then_some(ManualResolution { incident_id, note })
    }

    /// Reads the metrics, which a process must serve whatever the state of the database is.
    async fn scrape_metrics(&self, replica: &Replica) {
        let process = replica.process();
        let request = self.client.get(format!("{}/metrics", process.admin));
        let answer = replica.send(&process, request).await;
        let status = answer.map(|answer| answer.status());
        assert!(
            matches!(status, None | Some(StatusCode::OK)),
            "a scrape is answered with {status:?}"
        );
    }
}

/// Returns true for 200. The other allowed answers: the incident is already resolved, or the
/// database is unavailable.
fn is_success(status: StatusCode) -> bool {
    let allowed = [
        StatusCode::OK,
        StatusCode::CONFLICT,
        StatusCode::SERVICE_UNAVAILABLE,
    ];
    assert!(
        allowed.contains(&status),
        "the admin listener answers {status}"
    );
    status == StatusCode::OK
}
