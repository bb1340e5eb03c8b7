//! The health look-up: `GET /<NODE_ID>?fields=health_status`.

use std::time::Instant;

use super::{Graph, NoReply};
use crate::meta::health::{Answer, LookupResult, parse_answer};
use crate::meta::ids::{Text, WabaId};

/// The length to which an answer is truncated before it is stored.
const STORED_LIMIT_BYTES: usize = 16 * 1024;

impl Graph {
    /// Looks up the health of an account's node. An error is an answer too.
    pub async fn look_up(&self, waba_id: &WabaId, node_id: &str) -> LookupResult {
        let started = Instant::now();
        let (answer, http_status, response) =
            match self.get(waba_id, node_id, "health_status").await {
                Ok(reply) => {
                    let answer =
                        parse_answer(reply.http_status, reply.usage.as_deref(), &reply.body);
                    let body = String::from_utf8_lossy(&reply.body);
                    let stored = Text::truncate(&body, STORED_LIMIT_BYTES).into_string();
                    (answer, Some(reply.http_status), Some(stored))
                }
                Err(NoReply::NotAsked(reason)) => (Answer::NotAsked(reason), None, None),
                Err(NoReply::Unreachable {
                    http_status,
                    reason,
                }) => (Answer::Unreachable(reason), http_status, None),
            };
        LookupResult {
            answer,
            http_status,
            response,
            duration: started.elapsed(),
        }
    }
}
