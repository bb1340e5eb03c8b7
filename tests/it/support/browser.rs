//! A real browser: Debian's headless Chromium, told what to do by [WebDriver](https://www.w3.org/TR/webdriver2/)
//! and, where that has no word for it, by Chromium's own DevTools protocol.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::{Client, Method};
use rustix::process::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::process::is_gone;
use super::{client, eventually};

pub const TAB: &str = "\u{e004}";
pub const ENTER: &str = "\u{e007}";

/// Each takes a few hundred megabytes.
const AT_ONCE: usize = 4;
static SEATS: Semaphore = Semaphore::const_new(AT_ONCE);

/// How long a browser may take to go.
const PATIENCE: Duration = Duration::from_secs(10);

/// A browser with a profile of its own. Dropped, it leaves neither a process nor a file.
pub struct Browser {
    client: Client,
    session: String,
    process: Pid,
    // In this order: the seat is free once the driver is gone.
    _driver: Driver,
    _seat: SemaphorePermit<'static>,
}

impl Browser {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more arguments for Chromium.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let seat = SEATS.acquire().await.unwrap();
        let driver = Driver::start();
        let profile = format!(
            "--user-data-dir={}",
            driver.folder.path().join("profile").display()
        );
        let usual = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-proxy-server",
            "--window-size=1200,900",
            // Whatever becomes of the driver, Chromium ends with it.
            "--remote-debugging-pipe",
            &profile,
        ];
        let arguments = [&usual, arguments].concat();
        let wanted = json!({"capabilities": {"alwaysMatch": {
            // A dialog then fails whatever comes next.
            "unhandledPromptBehavior": "ignore",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": arguments},
        }}});
        let client = client();
        let sessions = format!("http://127.0.0.1:{}/session", driver.port);
        let session = send(&client, Method::POST, &sessions, Some(wanted))
            .await
            .expect("a browser starts");
        let process =
            i32::try_from(session["capabilities"]["goog:processID"].as_i64().unwrap()).unwrap();
        let process = Pid::from_raw(process).unwrap();
        let session = format!("{sessions}/{}", session["sessionId"].as_str().unwrap());
        Self {
            client,
            session,
            process,
            _driver: driver,
            _seat: seat,
        }
    }

    /// Opens a page and waits until it is there, whole.
    pub async fn open(&self, url: &str) {
        self.command("url", json!({"url": url})).await;
    }

    /// Another tab, in which everything happens from now on. Its name, and that of the one before.
    pub async fn open_tab(&self) -> (String, String) {
        let before = self.ask("window").await;
        let tab = self.command("window/new", json!({"type": "tab"})).await;
        let name = |name: &Value| name.as_str().unwrap().to_owned();
        let (tab, before) = (name(&tab["handle"]), name(&before));
        self.turn_to(&tab).await;
        (tab, before)
    }

    pub async fn turn_to(&self, tab: &str) {
        self.command("window", json!({"handle": tab})).await;
    }

    /// The first element that a CSS selector finds, as a reference to it.
    pub async fn find(&self, selector: &str) -> Value {
        let wanted = json!({"using": "css selector", "value": selector});
        match self.try_command("element", wanted).await {
            Ok(element) => element,
            Err(error) => panic!("{selector}: {error}\n{}", self.text("body").await),
        }
    }

    /// The text of an element as a reader sees it.
    pub async fn text(&self, selector: &str) -> String {
        let text = self
            .execute(
                "return document.querySelector(arguments[0])?.innerText",
                json!([selector]),
            )
            .await;
        text.as_str()
            .unwrap_or_else(|| panic!("no {selector} on the page"))
            .to_owned()
    }

    pub async fn texts(&self, selector: &str) -> Vec<String> {
        let script = "return [...document.querySelectorAll(arguments[0])].map(element => element.innerText ?? element.textContent)";
        serde_json::from_value(self.execute(script, json!([selector])).await).unwrap()
    }

    pub async fn count(&self, selector: &str) -> usize {
        self.texts(selector).await.len()
    }

    pub async fn click(&self, selector: &str) {
        self.on(selector, "click", json!({})).await;
    }

    /// Clicks what leads to another page, and waits until that is there, whole.
    pub async fn follow(&self, selector: &str) {
        self.evaluate("window.isLeft = true").await;
        self.click(selector).await;
        self.until("!window.isLeft && document.readyState === 'complete'")
            .await;
    }

    /// Types into an element.
    pub async fn type_into(&self, selector: &str, text: &str) {
        self.on(selector, "value", json!({"text": text})).await;
    }

    async fn on(&self, selector: &str, action: &str, parameters: Value) {
        let element = self.find(selector).await;
        let (_, reference) = element.as_object().unwrap().iter().next().unwrap();
        self.command(
            &format!("element/{}/{action}", reference.as_str().unwrap()),
            parameters,
        )
        .await;
    }

    /// Presses keys, one after the other, wherever the focus is.
    pub async fn press(&self, keys: &str) {
        // Before its first picture a page takes none.
        self.until("performance.getEntriesByType('paint').length > 0")
            .await;
        let strokes = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key})));
        let keyboard =
            json!({"type": "key", "id": "keyboard", "actions": strokes.collect::<Vec<_>>()});
        self.command("actions", json!({"actions": [keyboard]}))
            .await;
    }

    /// Runs a function's body in the page. A promise that it returns is waited for.
    pub async fn execute(&self, script: &str, arguments: Value) -> Value {
        self.command("execute/sync", json!({"script": script, "args": arguments}))
            .await
    }

    pub async fn evaluate(&self, expression: &str) -> Value {
        self.execute(&format!("return ({expression})"), json!([]))
            .await
    }

    /// Waits until an expression is true in the page.
    pub async fn until(&self, expression: &str) {
        let script = json!({"script": format!("return ({expression})"), "args": []});
        // On the way to another page there is none to ask.
        eventually(expression, async || {
            self.try_command("execute/sync", script.clone()).await == Ok(json!(true))
        })
        .await;
    }

    /// A command of the [DevTools protocol](https://chromedevtools.github.io/devtools-protocol/).
    pub async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.command(
            "goog/cdp/execute",
            json!({"cmd": command, "params": parameters}),
        )
        .await
    }

    pub async fn turn_dark(&self) {
        let features = json!([{"name": "prefers-color-scheme", "value": "dark"}]);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features}))
            .await;
    }

    /// As on a small telephone.
    pub async fn narrow_to(&self, width: u32) {
        let metrics =
            json!({"width": width, "height": 740, "deviceScaleFactor": 2, "mobile": true});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
            .await;
    }

    /// As somebody sets it who reads large letters.
    pub async fn double_the_text(&self) {
        let sizes = json!({"fontSizes": {"standard": 32, "fixed": 26}});
        self.devtools("Page.setFontSizes", sizes).await;
    }

    /// What the browser complained about since it was last asked: errors, refused requests, violations of the
    /// content security policy.
    pub async fn log(&self) -> Vec<String> {
        let entries = self.command("se/log", json!({"type": "browser"})).await;
        let line = |entry: &Value| format!("{}: {}", entry["level"], entry["message"]);
        entries.as_array().unwrap().iter().map(line).collect()
    }

    /// Keeps a picture of the whole page in the folder that LOCKWATCH_SCREENSHOTS names, for people to look at.
    pub async fn screenshot(&self, name: &str) {
        let Some(folder) = std::env::var_os("LOCKWATCH_SCREENSHOTS").map(PathBuf::from) else {
            return;
        };
        let picture = self
            .devtools(
                "Page.captureScreenshot",
                json!({"captureBeyondViewport": true}),
            )
            .await;
        let picture = BASE64_STANDARD
            .decode(picture["data"].as_str().unwrap())
            .unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), picture).unwrap();
    }

    async fn ask(&self, path: &str) -> Value {
        send(
            &self.client,
            Method::GET,
            &format!("{}/{path}", self.session),
            None,
        )
        .await
        .unwrap()
    }

    async fn command(&self, path: &str, parameters: Value) -> Value {
        self.try_command(path, parameters.clone())
            .await
            .unwrap_or_else(|error| panic!("{path} with {parameters}: {error}"))
    }

    async fn try_command(&self, path: &str, parameters: Value) -> Result<Value, String> {
        send(
            &self.client,
            Method::POST,
            &format!("{}/{path}", self.session),
            Some(parameters),
        )
        .await
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let session = std::mem::take(&mut self.session);
        // A test's own runtime stands still while it drops.
        let closed = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let _ = runtime.block_on(send(&client(), Method::DELETE, &session, None));
        });
        let _ = closed.join();
        let deadline = Instant::now() + PATIENCE;
        while !is_gone(self.process) && Instant::now() < deadline {
            sleep(Duration::from_millis(10));
        }
    }
}

/// Sends a command and takes its value out of the answer, or what went wrong.
async fn send(
    client: &Client,
    method: Method,
    url: &str,
    parameters: Option<Value>,
) -> Result<Value, String> {
    let mut request = client.request(method, url);
    if let Some(parameters) = parameters {
        request = request.body(parameters.to_string());
    }
    let response = request.send().await.map_err(|error| error.to_string())?;
    let is_success = response.status().is_success();
    let mut answer: Value =
        serde_json::from_slice(&response.bytes().await.map_err(|error| error.to_string())?)
            .map_err(|error| error.to_string())?;
    let value = answer["value"].take();
    if is_success {
        Ok(value)
    } else {
        Err(format!("{}: {}", value["error"], value["message"]))
    }
}

/// A running chromedriver in a folder of its own. Killed when dropped, with all that it started.
struct Driver {
    port: u16,
    shell: Child,
    folder: TempDir,
}

impl Driver {
    fn start() -> Self {
        // The port that a driver finds free for IPv4 may be taken for IPv6: then it gives up.
        const ATTEMPTS: usize = 5;
        let started = (0..ATTEMPTS).find_map(|_| Self::try_start());
        started.expect("no chromedriver starts: apt-get install chromium chromium-driver")
    }

    fn try_start() -> Option<Self> {
        // Killed or interrupted, the tests drop nothing; but then this shell's input ends. Its output ends
        // with the driver's.
        const WATCHED: &str =
            "chromedriver --port=0 & exec > /dev/null; read -r _; kill -9 $!; wait";
        let folder = TempDir::with_prefix("lockwatch-browser-").unwrap();
        let mut shell = Command::new("/bin/sh")
            .args(["-c", WATCHED])
            .envs(["HOME", "TMPDIR"].map(|name| (name, folder.path())))
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_CACHE_HOME")
            // An interrupt ends the tests; they end this.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(shell.stdout.take().unwrap()).lines();
        let mut driver = Self {
            port: 0,
            shell,
            folder,
        };
        let port = |line: String| {
            line.split_once("started successfully on port ")?
                .1
                .trim_matches('.')
                .parse()
                .ok()
        };
        driver.port = told.by_ref().map_while(Result::ok).find_map(port)?;
        // What it says later goes nowhere, and must not stop it.
        thread::spawn(move || told.for_each(drop));
        Some(driver)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
        // Chromium's last helpers write a little more on their way out.
        let deadline = Instant::now() + PATIENCE;
        while self.folder.path().exists() && Instant::now() < deadline {
            if std::fs::remove_dir_all(self.folder.path()).is_err() {
                sleep(Duration::from_millis(10));
            }
        }
    }
}
