//! A real browser: Debian's headless Chromium, driven by
//! [WebDriver](https://www.w3.org/TR/webdriver2/) and, for the commands that WebDriver does not
//! have, by Chromium's own DevTools protocol.

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

use super::process::has_exited;
use super::{client, eventually};

pub const TAB: &str = "\u{e004}";
pub const ENTER: &str = "\u{e007}";

/// The number of browsers that may run at the same time: each takes a few hundred megabytes.
const BROWSER_LIMIT: usize = 4;
static BROWSER_SLOTS: Semaphore = Semaphore::const_new(BROWSER_LIMIT);

/// The time within which a closed browser must end, with its files.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// A browser with a profile of its own. When dropped, it leaves no process and no file behind.
pub struct Browser {
    client: Client,
    session_url: String,
    process: Pid,
    // Fields drop in order: the slot is released after the driver has ended.
    _driver: Driver,
    _slot: SemaphorePermit<'static>,
}

impl Browser {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts it with additional arguments for Chromium.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let slot = BROWSER_SLOTS.acquire().await.unwrap();
        let driver = Driver::start();
        let capabilities = capabilities(&driver, arguments);
        let client = client();
        let sessions_url = format!("http://127.0.0.1:{}/session", driver.port);
        let session = send(&client, Method::POST, &sessions_url, Some(capabilities))
            .await
            .expect("a browser must start");
        let pid = session["capabilities"]["goog:processID"].as_i64().unwrap();
        let process = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let session_id = session["sessionId"].as_str().unwrap();
        let session_url = format!("{sessions_url}/{session_id}");
        Self {
            client,
            session_url,
            process,
            _driver: driver,
            _slot: slot,
        }
    }

    /// Opens a page and waits until it is fully loaded.
    pub async fn open(&self, url: &str) {
        self.command("url", json!({"url": url})).await;
    }

    /// Opens another tab and switches to it. Returns the name of the new tab and of the previous
    /// one.
    pub async fn open_tab(&self) -> (String, String) {
        let previous = self.get("window").await;
        let tab = self.command("window/new", json!({"type": "tab"})).await;
        let tab = tab["handle"].as_str().unwrap().to_owned();
        self.switch_to_tab(&tab).await;
        (tab, previous.as_str().unwrap().to_owned())
    }

    pub async fn switch_to_tab(&self, tab: &str) {
        self.command("window", json!({"handle": tab})).await;
    }

    /// Finds the first element for a CSS selector, and returns a reference to it.
    pub async fn find(&self, selector: &str) -> Value {
        let query = json!({"using": "css selector", "value": selector});
        match self.try_command("element", query).await {
            Ok(element) => element,
            Err(error) => panic!("{selector}: {error}\n{}", self.text("body").await),
        }
    }

    /// The visible text of an element.
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
        let script = "return [...document.querySelectorAll(arguments[0])]
            .map(element => element.innerText ?? element.textContent)";
        serde_json::from_value(self.execute(script, json!([selector])).await).unwrap()
    }

    pub async fn count(&self, selector: &str) -> usize {
        self.texts(selector).await.len()
    }

    pub async fn click(&self, selector: &str) {
        self.act_on(selector, "click", json!({})).await;
    }

    /// Clicks a link or a button that leads to another page, and waits until that page is fully
    /// loaded.
    pub async fn follow(&self, selector: &str) {
        self.evaluate("window.isLeft = true").await;
        self.click(selector).await;
        self.wait_until("!window.isLeft && document.readyState === 'complete'")
            .await;
    }

    /// Types into an element.
    pub async fn type_into(&self, selector: &str, text: &str) {
        self.act_on(selector, "value", json!({"text": text})).await;
    }

    async fn act_on(&self, selector: &str, action: &str, parameters: Value) {
        let element = self.find(selector).await;
        let (_, reference) = element.as_object().unwrap().iter().next().unwrap();
        self.command(
            &format!("element/{}/{action}", reference.as_str().unwrap()),
            parameters,
        )
        .await;
    }

    /// Presses keys one after the other. They go to the element that has the focus.
    pub async fn press(&self, keys: &str) {
        // A page does not take keys before its first paint.
        self.wait_until("performance.getEntriesByType('paint').length > 0")
            .await;
        let strokes = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key})));
        let keyboard =
            json!({"type": "key", "id": "keyboard", "actions": strokes.collect::<Vec<_>>()});
        self.command("actions", json!({"actions": [keyboard]}))
            .await;
    }

    /// Runs the body of a function in the page. If it returns a promise, waits for the promise.
    pub async fn execute(&self, script: &str, arguments: Value) -> Value {
        self.command("execute/sync", json!({"script": script, "args": arguments}))
            .await
    }

    pub async fn evaluate(&self, expression: &str) -> Value {
        self.execute(&format!("return ({expression})"), json!([]))
            .await
    }

    /// Waits until an expression is true in the page.
    pub async fn wait_until(&self, expression: &str) {
        let script = json!({"script": format!("return ({expression})"), "args": []});
        // During navigation the command fails, because there is no page.
        eventually(expression, async || {
            self.try_command("execute/sync", script.clone()).await == Ok(json!(true))
        })
        .await;
    }

    /// Sends a command of the [DevTools
    /// protocol](https://chromedevtools.github.io/devtools-protocol/).
    pub async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.command(
            "goog/cdp/execute",
            json!({"cmd": command, "params": parameters}),
        )
        .await
    }

    pub async fn use_dark_theme(&self) {
        let features = json!([{"name": "prefers-color-scheme", "value": "dark"}]);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features}))
            .await;
    }

    /// Emulates the screen of a phone with this width.
    pub async fn emulate_phone(&self, width: u32) {
        let metrics =
            json!({"width": width, "height": 740, "deviceScaleFactor": 2, "mobile": true});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
            .await;
    }

    /// Doubles the font size, as a user's browser setting does.
    pub async fn double_font_size(&self) {
        let sizes = json!({"fontSizes": {"standard": 32, "fixed": 26}});
        self.devtools("Page.setFontSizes", sizes).await;
    }

    /// The browser's log since the last call: errors, refused requests, violations of the content
    /// security policy.
    pub async fn log(&self) -> Vec<String> {
        let entries = self.command("se/log", json!({"type": "browser"})).await;
        let line = |entry: &Value| format!("{}: {}", entry["level"], entry["message"]);
        entries.as_array().unwrap().iter().map(line).collect()
    }

    /// Saves a screenshot of the whole page in the folder that LOCKWATCH_SCREENSHOTS names, if it
    /// is set.
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

    async fn get(&self, path: &str) -> Value {
        send(
            &self.client,
            Method::GET,
            &format!("{}/{path}", self.session_url),
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
            &format!("{}/{path}", self.session_url),
            Some(parameters),
        )
        .await
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let session_url = std::mem::take(&mut self.session_url);
        // The test's own runtime is blocked during a drop.
        let closed = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let _ = runtime.block_on(send(&client(), Method::DELETE, &session_url, None));
        });
        let _ = closed.join();
        let deadline = Instant::now() + EXIT_TIMEOUT;
        while !has_exited(self.process) && Instant::now() < deadline {
            sleep(Duration::from_millis(10));
        }
    }
}

/// The capabilities of a new WebDriver session, with all arguments for Chromium.
fn capabilities(driver: &Driver, arguments: &[&str]) -> Value {
    let profile = format!(
        "--user-data-dir={}",
        driver.folder.path().join("profile").display()
    );
    let default_arguments = [
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
        // Chromium ends with the driver, however the driver ends.
        "--remote-debugging-pipe",
        &profile,
    ];
    let arguments = [&default_arguments, arguments].concat();
    json!({"capabilities": {"alwaysMatch": {
        // An unexpected dialog makes the next command fail.
        "unhandledPromptBehavior": "ignore",
        "goog:loggingPrefs": {"browser": "ALL"},
        "goog:chromeOptions": {"args": arguments},
    }}})
}

/// Sends a command. Returns the value of the answer, or the error's text.
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

/// A running chromedriver in a folder of its own. Killed when dropped, with all its children.
struct Driver {
    port: u16,
    shell: Child,
    folder: TempDir,
}

impl Driver {
    fn start() -> Self {
        // A driver exits if the port that it found free for IPv4 is taken for IPv6.
        const ATTEMPTS: usize = 5;
        let started = (0..ATTEMPTS).find_map(|_| Self::try_start());
        started.expect("chromedriver does not start: apt-get install chromium chromium-driver")
    }

    fn try_start() -> Option<Self> {
        // Tests that are killed or interrupted drop nothing, but then the input of this shell ends,
        // and the shell kills the driver. The output of the shell ends with the output of the
        // driver.
        const WATCHDOG_SCRIPT: &str =
            "chromedriver --port=0 & exec > /dev/null; read -r _; kill -9 $!; wait";
        let folder = TempDir::with_prefix("lockwatch-browser-").unwrap();
        let mut shell = Command::new("/bin/sh")
            .args(["-c", WATCHDOG_SCRIPT])
            .envs(["HOME", "TMPDIR"].map(|name| (name, folder.path())))
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_CACHE_HOME")
            // An interrupt goes to the tests only; the end of the tests ends this shell.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(shell.stdout.take().unwrap()).lines();
        let mut driver = Self {
            port: 0,
            shell,
            folder,
        };
        let port_in = |line: String| {
            line.split_once("started successfully on port ")?
                .1
                .trim_matches('.')
                .parse()
                .ok()
        };
        driver.port = lines.by_ref().map_while(Result::ok).find_map(port_in)?;
        // Later output is read and discarded, so that a full pipe does not block the driver.
        thread::spawn(move || lines.for_each(drop));
        Some(driver)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
        // The last processes of Chromium still write files while they exit.
        let deadline = Instant::now() + EXIT_TIMEOUT;
        while self.folder.path().exists() && Instant::now() < deadline {
            if std::fs::remove_dir_all(self.folder.path()).is_err() {
                sleep(Duration::from_millis(10));
            }
        }
    }
}
