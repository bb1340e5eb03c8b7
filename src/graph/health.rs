//! The look-ups: `GET /<NODE_ID>?fields=health_status`, and the fields beside it.

use std::time::Instant;

use super::{Graph, NoReply, Reply};
use crate::meta::graph_error::{GraphError, Meaning};
use crate::meta::health::{Answer, LookupResult, parse_answer};
use crate::meta::ids::{Text, WabaId};
use crate::meta::node_fields::{
    ACCOUNT_FIELDS, AccountFields, FEWER_ACCOUNT_FIELDS, NUMBER_FIELDS, NodeFields, NumberFields,
    is_id,
};

/// The length to which an answer is truncated before it is stored.
const STORED_LIMIT_BYTES: usize = 16 * 1024;

impl Graph {
    /// Looks up the health of an account's node. An error is an answer too. `portfolio_id` is the
    /// business portfolio of the account, if it is known: Meta may throttle that.
    pub async fn look_up(
        &self,
        waba_id: &WabaId,
        node_id: &str,
        portfolio_id: Option<&str>,
    ) -> LookupResult {
        let started = Instant::now();
        let token = self.tokens.for_account(waba_id);
        let reply = self.get(token.as_deref(), node_id, "health_status").await;
        let (answer, http_status, response) = match reply {
            Ok(reply) => {
                let objects: Vec<&str> =
                    [waba_id.as_str()].into_iter().chain(portfolio_id).collect();
                let usage = reply.usage.as_deref();
                let answer = parse_answer(reply.http_status, usage, &objects, &reply.body);
                let body = String::from_utf8_lossy(&reply.body);
                let stored = Text::truncate(&body, STORED_LIMIT_BYTES).into_string();
                (answer, Some(reply.http_status), Some(stored))
            }
            Err(NoReply::NotAsked { denial, reason }) => {
                let reason = reason.to_owned();
                (Answer::NotAsked { denial, reason }, None, None)
            }
            Err(NoReply::Unreachable {
                http_status,
                reason,
            }) => (Answer::Unreachable(reason), http_status, None),
        };
        LookupResult {
            answer,
            http_status,
            response,
            fields: NodeFields::default(),
            caller: token.map(|token| self.caller_with(&token)),
            tried_fields: (false, false),
            calls: 1,
            duration: started.elapsed(),
        }
    }

    /// Reads the fields of a number; `None` if there is no answer with any.
    pub async fn read_number(&self, waba_id: &WabaId, node_id: &str) -> Option<NumberFields> {
        let token = self.tokens.for_account(waba_id);
        let reply = self.get(token.as_deref(), node_id, NUMBER_FIELDS).await;
        let reply = reply.ok()?;
        NumberFields::parse(&successful(&reply)?.body)
    }

    /// Reads the fields of an account; `None` if there is no answer with any. Returns the number of
    /// calls as well: a token that may not see the business still sees the account.
    pub async fn read_account(&self, waba_id: &WabaId) -> (Option<AccountFields>, u16) {
        if !is_id(waba_id.as_str()) {
            return (None, 0);
        }
        let token = self.tokens.for_account(waba_id);
        let read = async |fields| {
            let reply = self.get(token.as_deref(), waba_id.as_str(), fields).await;
            reply.ok()
        };
        let parse = |reply: &Reply| AccountFields::parse(&successful(reply)?.body);
        let Some(reply) = read(ACCOUNT_FIELDS).await else {
            return (None, 1);
        };
        let is_denied = GraphError::parse(&reply.body)
            .is_some_and(|error| matches!(error.meaning(), Meaning::Denied(_)));
        if !is_denied {
            return (parse(&reply), 1);
        }
        let fewer = read(FEWER_ACCOUNT_FIELDS).await;
        (fewer.as_ref().and_then(parse), 2)
    }
}

/// Returns the reply if it is neither an error nor another page.
pub(super) fn successful(reply: &Reply) -> Option<&Reply> {
    (reply.http_status == 200 && GraphError::parse(&reply.body).is_none()).then_some(reply)
}
