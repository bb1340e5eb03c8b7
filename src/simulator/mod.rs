//! A small Graph API for demonstrations and tests: a real HTTP server that answers as Meta does, or
//! with the faults of a bad network.
//!
//! ```
//! use lockwatch::meta::signature::appsecret_proof;
//! use lockwatch::simulator::{Scenario, Simulator};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let meta = Simulator::start("an-access-token", "an-app-secret").await?;
//! meta.set_scenarios("106540352242922", [Scenario::ServerError, Scenario::Payment]);
//!
//! // Ask as your code would. Lockwatch itself needs META_GRAPH_URL=`meta.url()`.
//! let proof = appsecret_proof("an-app-secret", "an-access-token");
//! let url = format!("{}/v25.0/106540352242922", meta.url());
//! let query = [("fields", "health_status"), ("appsecret_proof", proof.as_str())];
//! let client = reqwest::Client::new();
//! let request = client.get(&url).query(&query).bearer_auth("an-access-token");
//! let first = request.try_clone().expect("a request without a body").send().await?;
//! assert_eq!(first.status(), 500);
//! let second = request.send().await?;
//! assert!(second.text().await?.contains("141006"));
//! assert_eq!(meta.requests().len(), 2);
//! # Ok(())
//! # }
//! ```

mod receiver;
mod scenario;
pub mod story;

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
use futures_util::{Stream, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub use self::receiver::AlertReceiver;
pub use self::scenario::Scenario;
use self::scenario::{Entity, Health};
use crate::meta::signature::appsecret_proof;

/// The field of the look-ups.
const HEALTH: &str = "health_status";

/// A request that the simulator received.
#[derive(Debug, Clone)]
pub struct Request {
    /// The id of the node.
    pub node_id: String,
    /// The fields that were asked for.
    pub fields: String,
    /// The time of arrival.
    pub at: Instant,
}

/// A running simulator. It stops when it is dropped.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    app_secret: String,
    nodes: Mutex<Nodes>,
}

#[derive(Debug, Default)]
struct Nodes {
    access_token: String,
    /// The scenarios of each node, the next one last.
    scenarios: HashMap<String, Vec<Scenario>>,
    accounts: HashMap<String, String>,
    /// The fields of each node beside its health.
    fields: HashMap<String, Value>,
    token_info: Option<Value>,
    subscribed_apps: HashMap<String, Vec<String>>,
    requests: Vec<Request>,
    in_flight_per_node: HashMap<String, usize>,
    most_in_flight_per_node: usize,
    in_flight: usize,
    most_in_flight: usize,
}

impl Simulator {
    /// Starts on a free loopback port.
    ///
    /// A request must carry this access token, and the proof of it made with this app secret.
    /// Others get the same errors as from Meta.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(access_token: &str, app_secret: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            app_secret: app_secret.to_owned(),
            nodes: Mutex::new(Nodes {
                access_token: access_token.to_owned(),
                ..Nodes::default()
            }),
        });
        let router = Router::new()
            .route("/{version}/debug_token", get(answer_about_token))
            .route("/{version}/{node}/subscribed_apps", get(answer_about_apps))
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

    /// Returns the base URL: the value for `META_GRAPH_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the answers of a node: one scenario for each request. The last one is repeated.
    pub fn set_scenarios(&self, node_id: &str, scenarios: impl IntoIterator<Item = Scenario>) {
        let mut scenarios: Vec<_> = scenarios.into_iter().collect();
        scenarios.reverse();
        self.shared
            .nodes()
            .scenarios
            .insert(node_id.to_owned(), scenarios);
    }

    /// Sets the account of a node. Without that, the entity of the account has no id.
    pub fn set_account(&self, node_id: &str, waba_id: &str) {
        self.shared
            .nodes()
            .accounts
            .insert(node_id.to_owned(), waba_id.to_owned());
    }

    /// Sets the fields of a node that are read beside its health: a JSON object. Without that, a
    /// node has none.
    pub fn set_fields(&self, node_id: &str, fields: Value) {
        self.shared
            .nodes()
            .fields
            .insert(node_id.to_owned(), fields);
    }

    /// Sets what is known of the access token: the fields of `debug_token`. Without that, it is valid
    /// for ever.
    pub fn set_token_info(&self, info: Value) {
        self.shared.nodes().token_info = Some(info);
    }

    /// Sets the apps that an account reports to. Without that, it is the one of the access token.
    pub fn set_subscribed_apps(&self, waba_id: &str, app_ids: &[&str]) {
        let apps = app_ids.iter().map(|id| (*id).to_owned()).collect();
        let mut nodes = self.shared.nodes();
        nodes.subscribed_apps.insert(waba_id.to_owned(), apps);
    }

    /// Changes the access token that a request must carry.
    pub fn set_access_token(&self, access_token: &str) {
        access_token.clone_into(&mut self.shared.nodes().access_token);
    }

    /// Returns the look-ups of health so far, in order of arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        let mut requests = self.shared.nodes().requests.clone();
        requests.retain(|request| request.fields == HEALTH);
        requests
    }

    /// Returns the requests for other fields so far, in order of arrival.
    #[must_use]
    pub fn reads(&self) -> Vec<Request> {
        let mut requests = self.shared.nodes().requests.clone();
        requests.retain(|request| request.fields != HEALTH);
        requests
    }

    /// Returns the highest number of concurrent requests for one node.
    #[must_use]
    pub fn most_in_flight_per_node(&self) -> usize {
        self.shared.nodes().most_in_flight_per_node
    }

    /// Returns the highest number of concurrent requests for all nodes together.
    #[must_use]
    pub fn most_in_flight(&self) -> usize {
        self.shared.nodes().most_in_flight
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The app of the access token.
const APP_ID: &str = "634974688087057";

async fn answer_about_token(State(shared): State<Arc<Shared>>) -> Response {
    let info = shared.nodes().token_info.clone();
    let info = info.unwrap_or_else(|| json!({"is_valid": true, "expires_at": 0}));
    let mut data = json!({"app_id": APP_ID, "type": "SYSTEM_USER"});
    for (name, value) in info.as_object().into_iter().flatten() {
        data[name] = value.clone();
    }
    json_response(200, &json!({ "data": data }))
}

async fn answer_about_apps(
    State(shared): State<Arc<Shared>>,
    Path((_version, waba_id)): Path<(String, String)>,
) -> Response {
    let apps = shared.nodes().subscribed_apps.get(&waba_id).cloned();
    let apps = apps.unwrap_or_else(|| vec![APP_ID.to_owned()]);
    let app = |id: &String| json!({"whatsapp_business_api_data": {"id": id, "name": "an app"}});
    let apps: Vec<Value> = apps.iter().map(app).collect();
    json_response(200, &json!({ "data": apps }))
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Path((_version, node_id)): Path<(String, String)>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let fields = query.get("fields").map_or("", String::as_str);
    let access_token = shared.nodes().access_token.clone();
    if fields != HEALTH {
        let mut nodes = shared.nodes();
        nodes.record(&node_id, fields);
        return fields_response(&node_id, nodes.fields.get(&node_id), fields);
    }
    let (scenario, node) = shared.nodes().begin_request(&node_id);
    // Dropped with the response, or earlier if the client disconnects.
    let _in_flight = InFlight {
        shared: Arc::clone(&shared),
        node_id: node_id.clone(),
    };
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let proof = query.get("appsecret_proof");
    if token != Some(&access_token) {
        let message = "Invalid OAuth access token - Cannot parse access token";
        return error_response(400, 190, message);
    }
    if proof != Some(&appsecret_proof(&shared.app_secret, &access_token)) {
        let message = "Invalid appsecret_proof provided in the API argument";
        return error_response(400, 100, message);
    }
    respond(scenario, &node, &access_token).await
}

impl Nodes {
    fn record(&mut self, node_id: &str, fields: &str) {
        self.requests.push(Request {
            node_id: node_id.to_owned(),
            fields: fields.to_owned(),
            at: Instant::now(),
        });
    }

    /// Records a request and returns the next scenario of its node.
    fn begin_request(&mut self, node_id: &str) -> (Scenario, Node) {
        self.record(node_id, HEALTH);
        let node_in_flight = self
            .in_flight_per_node
            .entry(node_id.to_owned())
            .or_default();
        *node_in_flight += 1;
        self.most_in_flight_per_node = self.most_in_flight_per_node.max(*node_in_flight);
        self.in_flight += 1;
        self.most_in_flight = self.most_in_flight.max(self.in_flight);
        let scenario = match self.scenarios.get_mut(node_id) {
            Some(scenarios) if scenarios.len() > 1 => scenarios.pop(),
            Some(scenarios) => scenarios.last().cloned(),
            None => None,
        };
        let node = Node {
            id: node_id.to_owned(),
            waba_id: self.accounts.get(node_id).cloned().unwrap_or_default(),
        };
        (scenario.unwrap_or(Scenario::UnknownNode), node)
    }
}

/// A request in flight. It counts as ended when this is dropped.
struct InFlight {
    shared: Arc<Shared>,
    node_id: String,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut nodes = self.shared.nodes();
        nodes.in_flight -= 1;
        if let Some(node_in_flight) = nodes.in_flight_per_node.get_mut(&self.node_id) {
            *node_in_flight -= 1;
        }
    }
}

/// A node that is looked up, and its account.
struct Node {
    id: String,
    waba_id: String,
}

async fn respond(mut scenario: Scenario, node: &Node, access_token: &str) -> Response {
    while let Scenario::Delayed(delay, next) = scenario {
        sleep(delay).await;
        scenario = *next;
    }
    if let Some(health) = scenario.health() {
        return health_response(node, health);
    }
    if let Some(refusal) = scenario.refusal(&node.id, access_token) {
        let response = error_response(refusal.http_status, refusal.code, &refusal.message);
        return match scenario {
            Scenario::Throttled(minutes) => with_usage(response, &node.waba_id, minutes),
            _ => response,
        };
    }
    match scenario {
        Scenario::Answer {
            status,
            headers,
            body,
        } => raw_response(status, &headers, body),
        Scenario::Garbage => "<html>Sorry, something went wrong.</html>".into_response(),
        Scenario::Redirect(to) => (StatusCode::FOUND, [(header::LOCATION, to)]).into_response(),
        Scenario::Reset => Body::from_stream(broken_body()).into_response(),
        Scenario::Endless => Body::from_stream(endless_body()).into_response(),
        Scenario::SlowBody => Body::from_stream(slow_body()).into_response(),
        _ => id_response(&node.id),
    }
}

fn raw_response(status: u16, headers: &[(String, String)], body: String) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    let response = response.body(Body::from(body));
    response.unwrap_or_else(|error| {
        let reason = format!("the scenario is no HTTP answer: {error}");
        (StatusCode::INTERNAL_SERVER_ERROR, reason).into_response()
    })
}

/// Returns those of a node's fields that are asked for, and its id. An object with an `error` is
/// returned as it is.
fn fields_response(node_id: &str, known: Option<&Value>, asked: &str) -> Response {
    let mut body = json!({"id": node_id});
    let Some(known) = known else {
        return json_response(200, &body);
    };
    if known.get("error").is_some() {
        return json_response(400, known);
    }
    for field in asked.split(',') {
        if let Some(value) = known.get(field) {
            body[field] = value.clone();
        }
    }
    json_response(200, &body)
}

fn broken_body() -> impl Stream<Item = io::Result<Bytes>> {
    stream::iter([
        Ok(Bytes::from_static(b"{\"health_status\":")),
        Err(io::ErrorKind::ConnectionReset.into()),
    ])
}

fn endless_body() -> impl Stream<Item = Result<Bytes, Infallible>> {
    const CHUNK_BYTES: usize = 64 * 1024;
    let chunk = Bytes::from_static(&[b' '; CHUNK_BYTES]);
    stream::iter((0..(1 << 30) / CHUNK_BYTES).map(move |_| Ok(chunk.clone())))
}

fn slow_body() -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold((), |()| async {
        sleep(Duration::from_millis(100)).await;
        Some((Ok(Bytes::from_static(b" ")), ()))
    })
}

/// Returns Meta's four entities: AVAILABLE, except those in `health`.
fn health_response(node: &Node, health: &Health) -> Response {
    let ids = [
        ("PHONE_NUMBER", node.id.as_str()),
        ("WABA", &node.waba_id),
        ("BUSINESS", "506914307656634"),
        ("APP", APP_ID),
    ];
    let entities = ids.map(|(entity_type, id)| {
        let mut entity = json!({"entity_type": entity_type, "can_send_message": "AVAILABLE"});
        if !id.is_empty() {
            entity["id"] = json!(id);
        }
        let mut listed = health.entities.iter();
        if let Some(details) = listed.find(|listed| listed.entity_type == entity_type) {
            add_details(&mut entity, details);
        }
        entity
    });
    let status = json!({"can_send_message": health.root, "entities": entities});
    json_response(200, &json!({"health_status": status, "id": node.id}))
}

fn add_details(entity: &mut Value, details: &Entity) {
    entity["can_send_message"] = json!(details.can_send_message);
    if let Some(verdict) = details.can_receive_call_sip {
        entity["can_receive_call_sip"] = json!(verdict);
    }
    if let Some(info) = details.additional_info {
        entity["additional_info"] = json!([info]);
    }
    if let Some(error) = &details.error {
        let mut object = json!({"error_code": error.code, "error_description": error.description});
        if let Some(solution) = error.solution {
            object["possible_solution"] = json!(solution);
        }
        entity["errors"] = json!([object]);
    }
}

fn id_response(node_id: &str) -> Response {
    json_response(200, &json!({"id": node_id}))
}

fn error_response(http_status: u16, code: u32, message: &str) -> Response {
    let error = json!({
        "message": message,
        "type": "OAuthException",
        "code": code,
        "fbtrace_id": "AAAAAAAAAAAAAAAAAAAAAAA",
    });
    json_response(http_status, &json!({"error": error}))
}

/// Adds the usage header, with the minutes until the account may be used again.
fn with_usage(response: Response, waba_id: &str, minutes: u64) -> Response {
    let usage = json!({waba_id: [{
        "type": "whatsapp",
        "call_count": 100,
        "total_cputime": 25,
        "total_time": 25,
        "estimated_time_to_regain_access": minutes,
    }]});
    ([("x-business-use-case-usage", usage.to_string())], response).into_response()
}

fn json_response(http_status: u16, body: &Value) -> Response {
    let status = StatusCode::from_u16(http_status).expect("a real status");
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (status, headers, body.to_string()).into_response()
}
