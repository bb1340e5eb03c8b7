//! Looks up the health of a node.

use std::time::Instant;

use super::{Graph, NoReply};
use crate::meta::health::{Answer, LookupResult, parse_answer};
use crate::meta::ids::{Text, WabaId};

/// An answer is stored up to this length.
const STORED_LIMIT_BYTES: usize = 16 * 1024;

impl Graph {
    /// Looks up the health of a node of an account. Never fails: an error is an answer too.
    pub async fn look_up(&self, waba_id: &WabaId, node_id: &str) -> LookupResult {
        let started = Instant::now();
        let (answer, http_status, response) =
            match self.get(waba_id, node_id, "health_status").await {
                Ok(reply) => (
                    parse_answer(reply.http_status, reply.usage.as_deref(), &reply.body),
                    Some(reply.http_status),
                    Some(Text::cut(
                        &String::from_utf8_lossy(&reply.body),
                        STORED_LIMIT_BYTES,
                    )),
                ),
                Err(NoReply::NotAsked(reason)) => (Answer::NotAsked(reason), None, None),
                Err(NoReply::Unreachable {
                    http_status,
                    reason,
                }) => (Answer::Unreachable(reason), http_status, None),
            };
        LookupResult {
            answer,
            http_status,
            response: response.map(Text::into_string),
            duration: started.elapsed(),
        }
    }
}
