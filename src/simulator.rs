//! A small Graph API for demonstrations and tests: a real HTTP server that answers for chosen nodes as
//! Meta does, or as badly as a network can.
//!
//! ```
//! use lockwatch::meta::signature::appsecret_proof;
//! use lockwatch::simulator::{Scenario, Simulator};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let meta = Simulator::start("an-access-token", "an-app-secret").await?;
//! meta.script("106540352242922", [Scenario::ServerError, Scenario::Payment]);
//! // Ask as your code would. With Lockwatch itself: META_GRAPH_URL is what `url` says.
//! let proof = appsecret_proof("an-app-secret", "an-access-token");
//! let url = format!("{}/v25.0/106540352242922?fields=health_status&appsecret_proof={proof}", meta.url());
//! let ask = || reqwest::Client::new().get(&url).bearer_auth("an-access-token").send();
//! assert_eq!(ask().await?.status(), 500);
//! assert!(ask().await?.text().await?.contains("141006"));
//! assert_eq!(meta.requests().len(), 2);
//! # Ok(())
//! # }
//! ```

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::meta::signature::appsecret_proof;

/// What a node answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Scenario {
    /// Every entity AVAILABLE: healthy, or locked without a reason given.
    Available,
    /// The account is BLOCKED for its payment method (141006).
    Payment,
    /// The business is BLOCKED for a commerce policy (141005).
    Policy,
    /// The business is LIMITED, not verified (141010).
    Unverified,
    /// The number is LIMITED, with a note and no code.
    DisplayName,
    /// The root is BLOCKED for calling only; every entity can send.
    CallingNoise,
    /// An answer without `health_status`.
    NoHealth,
    /// Too many calls (80008), with a usage header that says for how many minutes.
    Throttled(u64),
    /// The token expired (190).
    ExpiredToken,
    /// The token is malformed (190), and Meta repeats it.
    RepeatsToken,
    /// The node does not exist, or may not be seen (100). Nodes nobody mentioned answer this.
    UnknownNode,
    /// An internal error (HTTP 500, code 2).
    ServerError,
    /// The error in the body of a 200.
    ErrorInOk,
    /// Not JSON.
    Garbage,
    /// A redirect to this address.
    Redirect(String),
    /// The connection breaks within the body.
    Reset,
    /// A body of a gigabyte.
    Endless,
    /// A byte every 100 ms, for as long as anyone listens.
    Drip,
    /// The next one, after a while.
    Slow(Duration, Box<Scenario>),
}

/// A request that arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// The node asked for.
    pub node_id: String,
    /// When.
    pub at: Instant,
}

/// A running simulator. It stops when dropped.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    access_token: String,
    app_secret: String,
    state: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    scripts: HashMap<String, Vec<Scenario>>,
    accounts: HashMap<String, String>,
    requests: Vec<Request>,
    under_way: HashMap<String, usize>,
    most_under_way: usize,
    at_once: usize,
    most_at_once: usize,
}

impl Simulator {
    /// Starts on a free loopback port. It takes this access token only, with the proof made from this
    /// app secret.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(access_token: &str, app_secret: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            access_token: access_token.to_owned(),
            app_secret: app_secret.to_owned(),
            state: Mutex::default(),
        });
        let router = Router::new()
            .route("/{version}/{node}", get(answer))
            .with_state(Arc::clone(&shared));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(
            axum::serve(listener, router)
                .with_graceful_shutdown(stopped)
                .into_future(),
        );
        Ok(Self {
            address,
            shared,
            stop,
        })
    }

    /// What to set `META_GRAPH_URL` to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on a node answers these, one after the other; the last one stays.
    pub fn script(&self, node_id: &str, scenarios: impl IntoIterator<Item = Scenario>) {
        let mut scenarios: Vec<_> = scenarios.into_iter().collect();
        scenarios.reverse();
        self.shared
            .state()
            .scripts
            .insert(node_id.to_owned(), scenarios);
    }

    /// From now on a node's answers name this account. Without it they name one of Meta's examples.
    pub fn belongs_to(&self, node_id: &str, waba_id: &str) {
        self.shared
            .state()
            .accounts
            .insert(node_id.to_owned(), waba_id.to_owned());
    }

    /// The requests so far, in order of arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// The most requests that were ever under way at once for a single node.
    #[must_use]
    pub fn most_under_way(&self) -> usize {
        self.shared.state().most_under_way
    }

    /// The most requests that were ever under way at once, for whichever nodes.
    #[must_use]
    pub fn most_at_once(&self) -> usize {
        self.shared.state().most_at_once
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Path((_version, node_id)): Path<(String, String)>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let (scenario, node) = {
        let mut state = shared.state();
        state.requests.push(Request {
            node_id: node_id.clone(),
            at: Instant::now(),
        });
        let under_way = state.under_way.entry(node_id.clone()).or_default();
        *under_way += 1;
        state.most_under_way = state.most_under_way.max(state.under_way[&node_id]);
        state.at_once += 1;
        state.most_at_once = state.most_at_once.max(state.at_once);
        let waba_id = state
            .accounts
            .get(&node_id)
            .cloned()
            .unwrap_or_else(|| "102290129340398".to_owned());
        let scenario = match state.scripts.get_mut(&node_id) {
            Some(script) if script.len() > 1 => script.pop(),
            Some(script) => script.last().cloned(),
            None => None,
        };
        (
            scenario,
            Node {
                id: node_id.clone(),
                waba_id,
            },
        )
    };
    let under_way = UnderWay {
        shared: Arc::clone(&shared),
        node_id: node_id.clone(),
    };
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let proof = query.get("appsecret_proof");
    let response = if token != Some(&shared.access_token) {
        error(
            400,
            190,
            "Invalid OAuth access token - Cannot parse access token",
        )
    } else if proof != Some(&appsecret_proof(&shared.app_secret, &shared.access_token)) {
        error(
            400,
            100,
            "Invalid appsecret_proof provided in the API argument",
        )
    } else if query.get("fields").map(String::as_str) != Some("health_status") {
        json!({"id": node_id}).to_string().into_response()
    } else {
        play(
            scenario.unwrap_or(Scenario::UnknownNode),
            &node,
            &shared.access_token,
        )
        .await
    };
    drop(under_way);
    response
}

/// Counts a request as over, also when its client went away.
struct UnderWay {
    shared: Arc<Shared>,
    node_id: String,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.at_once -= 1;
        if let Some(under_way) = state.under_way.get_mut(&self.node_id) {
            *under_way -= 1;
        }
    }
}

/// What is looked up, and the account it belongs to.
struct Node {
    id: String,
    waba_id: String,
}

async fn play(mut scenario: Scenario, node: &Node, token: &str) -> Response {
    while let Scenario::Slow(pause, then) = scenario {
        sleep(pause).await;
        scenario = *then;
    }
    match scenario {
        Scenario::Available => health(node, "AVAILABLE", &[]),
        Scenario::Payment => health(
            node,
            "BLOCKED",
            &[(
                "WABA",
                json!({"can_send_message": "BLOCKED", "errors": [{
                    "error_code": 141_006,
                    "error_description": "There is an error with the payment method. This will block business initiated conversations.",
                    "possible_solution": "There was an error with your payment method. Please add a new payment method to the account."}]}),
            )],
        ),
        Scenario::Policy => health(
            node,
            "BLOCKED",
            &[(
                "BUSINESS",
                json!({"can_send_message": "BLOCKED", "errors": [{
                    "error_code": 141_005,
                    "error_description": "The account has failed the commerce check"}]}),
            )],
        ),
        Scenario::Unverified => health(
            node,
            "LIMITED",
            &[(
                "BUSINESS",
                json!({"can_send_message": "LIMITED", "errors": [{
                    "error_code": 141_010,
                    "error_description": "The Business has not passed business verification.",
                    "possible_solution": "Visit business settings and start or resolve the business verification request."}]}),
            )],
        ),
        Scenario::DisplayName => health(
            node,
            "LIMITED",
            &[(
                "PHONE_NUMBER",
                json!({"can_send_message": "LIMITED", "additional_info": [
                    "Your display name has not been approved yet. Your message limit will increase after the display name is approved."]}),
            )],
        ),
        Scenario::CallingNoise => {
            let sip = |code: u32, text: &str| {
                json!({"can_send_message": "AVAILABLE", "can_receive_call_sip": "BLOCKED", "errors": [{
                    "error_code": code, "error_description": text,
                    "possible_solution": "Configure SIP using {PHONE_NUMBER_ID}/settings API"}]})
            };
            health(
                node,
                "BLOCKED",
                &[
                    (
                        "PHONE_NUMBER",
                        sip(
                            138_024,
                            "WhatsApp Business calling cannot use SIP because it is not enabled",
                        ),
                    ),
                    (
                        "APP",
                        sip(
                            138_025,
                            "This app cannot use SIP for WhatsApp Business calling",
                        ),
                    ),
                ],
            )
        }
        Scenario::NoHealth => json!({"id": node.id}).to_string().into_response(),
        Scenario::Throttled(minutes) => {
            let usage = json!({"102290129340398": [{"type": "whatsapp", "call_count": 100, "total_cputime": 25,
                "total_time": 25, "estimated_time_to_regain_access": minutes}]});
            let message = "(#80008) There have been too many calls to this WhatsApp Business account. Wait a bit and try again.";
            (
                [("x-business-use-case-usage", usage.to_string())],
                error(400, 80008, message),
            )
                .into_response()
        }
        Scenario::ExpiredToken => error(
            401,
            190,
            "Error validating access token: Session has expired on Monday, 01-Jan-24 00:00:00 PST.",
        ),
        Scenario::RepeatsToken => error(400, 190, &format!("Malformed access token {token}")),
        Scenario::UnknownNode => error(
            400,
            100,
            &format!(
                "Unsupported get request. Object with ID '{}' does not exist, cannot be loaded due to missing permissions, or does not support this operation.",
                node.id
            ),
        ),
        Scenario::ServerError => error(
            500,
            2,
            "An unexpected error has occurred. Please retry your request later.",
        ),
        Scenario::ErrorInOk => error(200, 131_042, "Business eligibility payment issue"),
        Scenario::Garbage => "<html>Sorry, something went wrong.</html>".into_response(),
        Scenario::Redirect(to) => (StatusCode::FOUND, [(header::LOCATION, to)]).into_response(),
        Scenario::Reset => {
            let parts: [io::Result<Bytes>; 2] = [
                Ok(Bytes::from_static(b"{\"health_status\":")),
                Err(io::ErrorKind::ConnectionReset.into()),
            ];
            Body::from_stream(stream::iter(parts)).into_response()
        }
        Scenario::Endless => {
            const CHUNK: usize = 64 * 1024;
            let chunks = stream::iter(
                (0..(1 << 30) / CHUNK)
                    .map(|_| Ok::<_, Infallible>(Bytes::from_static(&[b' '; CHUNK]))),
            );
            Body::from_stream(chunks).into_response()
        }
        Scenario::Drip => {
            let drops = stream::unfold((), |()| async {
                sleep(Duration::from_millis(100)).await;
                Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), ()))
            });
            Body::from_stream(drops).into_response()
        }
        Scenario::Slow(..) => unreachable!("taken apart above"),
    }
}

/// An answer with the usual four entities, of which some say more than AVAILABLE.
fn health(node: &Node, root: &str, said: &[(&str, Value)]) -> Response {
    let ids = [
        ("PHONE_NUMBER", node.id.as_str()),
        ("WABA", &node.waba_id),
        ("BUSINESS", "506914307656634"),
        ("APP", "634974688087057"),
    ];
    let entities = ids.map(|(entity_type, id)| {
        let mut entity =
            json!({"entity_type": entity_type, "id": id, "can_send_message": "AVAILABLE"});
        for (_, more) in said.iter().filter(|(which, _)| *which == entity_type) {
            for (field, value) in more.as_object().into_iter().flatten() {
                entity[field] = value.clone();
            }
        }
        entity
    });
    let body =
        json!({"health_status": {"can_send_message": root, "entities": entities}, "id": node.id});
    (
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}

fn error(status: u16, code: u32, message: &str) -> Response {
    let body = json!({"error": {"message": message, "type": "OAuthException", "code": code,
                                "fbtrace_id": "AAAAAAAAAAAAAAAAAAAAAAA"}});
    let status = StatusCode::from_u16(status).expect("a real status");
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}
