//! Those who look at it meanwhile, and resolve incidents by hand.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::fleet::Replica;
use super::ledger::Ledger;
use super::workload::{Account, HOT};

pub struct People<'w> {
    pub client: &'w Client,
    pub accounts: &'w [Account],
    pub fleet: &'w [Replica],
    pub ledger: &'w Ledger,
}

impl People<'_> {
    /// Comes again and again, mostly for the hot accounts.
    pub async fn visit(&self, mut rng: Rng, stop: &AtomicBool) {
        let mut visits = 0;
        while !stop.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(rng.u64(200..1200))).await;
            let replica = rng.choice(self.fleet).unwrap();
            let known = if rng.bool() {
                &self.accounts[..HOT]
            } else {
                self.accounts
            };
            let account = rng.choice(known).unwrap();
            visits += 1;
            if let Some(resolved) = self
                .resolve(replica, &account.waba_id, &format!("by hand {visits}"))
                .await
            {
                self.ledger.book().resolved.push(resolved);
            }
            self.scrape(replica).await;
        }
    }

    /// Resolves the open incident of an account, if it can be seen and done: its number, and the note.
    async fn resolve(&self, replica: &Replica, waba_id: &str, note: &str) -> Option<(i64, String)> {
        let life = replica.life();
        let incidents = format!("{}/api/v1/incidents", life.admin);
        let open = self
            .client
            .get(format!("{incidents}?state=open&waba_id={waba_id}"));
        let open = replica
            .answer(&life, open)
            .await
            .filter(|answer| done(answer.status()))?;
        let open: Value = serde_json::from_str(&open.text().await.ok()?).ok()?;
        let id = open["data"][0]["id"].as_i64()?;
        let resolve = self.client.post(format!("{incidents}/{id}/resolve"));
        let resolve = resolve
            .header("content-type", "application/json")
            .body(json!({"note": note}).to_string());
        done(replica.answer(&life, resolve).await?.status()).then(|| (id, note.to_owned()))
    }

    /// A process tells what it counts, whatever state the database is in.
    async fn scrape(&self, replica: &Replica) {
        let life = replica.life();
        let answer = replica
            .answer(&life, self.client.get(format!("{}/metrics", life.admin)))
            .await;
        let status = answer.map(|answer| answer.status());
        assert!(
            matches!(status, None | Some(StatusCode::OK)),
            "a scrape is answered with {status:?}"
        );
    }
}

/// Whether it was done. Somebody may have done it before, and the database may be away.
fn done(status: StatusCode) -> bool {
    let known = [
        StatusCode::OK,
        StatusCode::CONFLICT,
        StatusCode::SERVICE_UNAVAILABLE,
    ];
    assert!(
        known.contains(&status),
        "the admin listener answers {status}"
    );
    status == StatusCode::OK
}
