//! One look-up: the health of a node, and where that explains nothing, the fields beside it.

use std::time::Duration;

use tokio::time::timeout;

use crate::graph::Graph;
use crate::lockout::cause::{explain_nothing, findings_of};
use crate::meta::health::{Answer, LookupResult};
use crate::meta::ids::WabaId;
use crate::meta::node_fields::NodeFields;

/// The longest time for reading the fields. Together with the look-up it is shorter than the lease
/// of a claim.
const FIELDS_TIMEOUT: Duration = Duration::from_secs(8);

/// What to look up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<'q> {
    /// The account whose token asks.
    pub(crate) waba_id: &'q WabaId,
    /// The node.
    pub(crate) node_id: &'q str,
    /// The business portfolio of the account, if it is known.
    pub(crate) portfolio_id: Option<&'q str>,
    /// Whether to read the fields of the number as well.
    pub(crate) wants_number_fields: bool,
    /// Whether to read the fields of this account as well.
    pub(crate) account_to_read: Option<&'q WabaId>,
}

/// Asks Graph. A field that is not readable costs nothing else.
pub(crate) async fn look_up(graph: &Graph, question: &Question<'_>) -> LookupResult {
    let Question {
        waba_id,
        node_id,
        portfolio_id,
        ..
    } = *question;
    let mut lookup = graph.look_up(waba_id, node_id, portfolio_id).await;
    let is_answered = matches!(lookup.answer, Answer::Health(_) | Answer::NoVerdict { .. });
    let findings = findings_of(&lookup.answer, &lookup.fields, waba_id, node_id);
    if is_answered && explain_nothing(&findings) {
        read_fields(graph, question, &mut lookup).await;
    }
    lookup
}

/// Reads the fields that a question wants, and adds them to its answer.
async fn read_fields(graph: &Graph, question: &Question<'_>, lookup: &mut LookupResult) {
    let number_fields = async {
        match question.wants_number_fields {
            true => (
                graph.read_number(question.waba_id, question.node_id).await,
                1,
            ),
            false => (None, 0),
        }
    };
    let account_fields = async {
        match question.account_to_read {
            Some(account) => graph.read_account(account).await,
            None => (None, 0),
        }
    };
    let wants_account = question.account_to_read.is_some();
    lookup.tried_fields = (question.wants_number_fields, wants_account);
    let both = async { tokio::join!(number_fields, account_fields) };
    match timeout(FIELDS_TIMEOUT, both).await {
        Ok(((number, calls), (account, more_calls))) => {
            lookup.fields = NodeFields { number, account };
            lookup.calls += calls + more_calls;
        }
        // They were asked, whatever came of it.
        Err(_) => {
            lookup.calls += u16::from(question.wants_number_fields) + u16::from(wants_account);
        }
    }
}
