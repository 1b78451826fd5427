//! A real browser without a screen: Chromium, spoken to over its debugging pipe.
//!
//! It runs in a namespace, so that it reaches what a person on that machine would. Whatever its console
//! complains about is kept, violations of the page's own content policy among it.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::patience::wait_until;
use crate::process::Daemon;

/// How long the browser may take for one thing, on a machine that has others to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// The debugging pipe is file 3 and 4 of the browser; here it is its input and output.
const PIPED: &str = r#"exec "$@" 3<&0 4>&1 </dev/null >&2"#;

/// A browser with one page; it ends with this value.
#[derive(Debug)]
pub struct Browser {
    process: Daemon,
    orders: ChildStdin,
    heard: Receiver<Value>,
    next: u64,
    session: Option<String>,
    complaints: Vec<String>,
}

/// What keeps a browser from running on this machine.
pub fn missing() -> Option<String> {
    let paths = env::var_os("PATH").unwrap_or_default();
    let is_there = env::split_paths(&paths).any(|folder| folder.join("chromium").is_file());
    (!is_there).then(|| "there is no chromium; run `make setup`".to_owned())
}

impl Browser {
    /// Starts it by `shell`, a command that runs `sh` where the browser is to be; `folder` is for its
    /// profile and its log.
    pub fn start(mut shell: Command, folder: &Path) -> Result<Self> {
        shell.args(["-c", PIPED, "sh", "chromium"]).args([
            "--headless=new",
            // Tests run as root, and the page is their own.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
        ]);
        shell.arg(format!("--user-data-dir={}", folder.join("profile").display()));
        shell.arg("about:blank");
        let (process, orders, answers) =
            Daemon::start_dialogue(&mut shell, &folder.join("chromium.log"))?;
        let heard = listen(answers);
        let (session, complaints) = (None, Vec::new());
        let mut browser = Self { process, orders, heard, next: 1, session, complaints };
        browser.attach().with_context(|| format!("chromium said:\n{}", browser.process.log()))?;
        Ok(browser)
    }

    fn attach(&mut self) -> Result<()> {
        let all = self.order("Target.getTargets", json!({}))?;
        let targets = all["targetInfos"].as_array().context("no list of targets")?;
        let page = targets.iter().find(|target| target["type"] == "page").context("no page")?;
        let attached = self.order(
            "Target.attachToTarget",
            json!({"targetId": page["targetId"], "flatten": true}),
        )?;
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            self.order(domain, json!({}))?;
        }
        self.resize(1280, 900)
    }

    /// Goes to an address.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let gone = self.order("Page.navigate", json!({"url": url}))?;
        ensure!(gone["errorText"].is_null(), "{url}: {}", gone["errorText"]);
        self.wait_for("document.readyState === 'complete'")
    }

    /// What an expression of the page's language is worth; promises are waited for.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let outcome = self.order(
            "Runtime.evaluate",
            json!({"expression": expression, "awaitPromise": true, "returnByValue": true}),
        )?;
        if !outcome["exceptionDetails"].is_null() {
            bail!("{expression}: {}", outcome["exceptionDetails"]);
        }
        Ok(outcome["result"]["value"].clone())
    }

    /// The text that an expression is worth.
    pub fn text(&mut self, expression: &str) -> Result<String> {
        let value = self.evaluate(expression)?;
        Ok(value.as_str().with_context(|| format!("{expression} is {value}"))?.to_owned())
    }

    /// Waits until an expression is true.
    pub fn wait_for(&mut self, expression: &str) -> Result<()> {
        let mut last = String::new();
        wait_until(expression, PATIENCE, || match self.evaluate(expression) {
            Ok(value) => Ok(value == true),
            // While a page goes and another comes there is none to ask.
            Err(error) => {
                last = format!("{error:#}");
                Ok(false)
            }
        })
        .with_context(|| last)
        .with_context(|| self.complaints.join("\n"))
    }

    /// Presses a key, as `Tab`, `Enter`, `ArrowDown` or a letter.
    pub fn press(&mut self, key: &str) -> Result<()> {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            " " => (32, " "),
            "End" => (35, ""),
            "Home" => (36, ""),
            "ArrowLeft" => (37, ""),
            "ArrowUp" => (38, ""),
            "ArrowRight" => (39, ""),
            "ArrowDown" => (40, ""),
            other => (0, other),
        };
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            self.order(
                "Input.dispatchKeyEvent",
                json!({"type": kind, "key": key, "text": text, "windowsVirtualKeyCode": code}),
            )?;
        }
        Ok(())
    }

    /// Types into what has the focus.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        self.order("Input.insertText", json!({"text": text})).map(drop)
    }

    /// Moves the pointer.
    pub fn point(&mut self, x: f64, y: f64) -> Result<()> {
        self.order("Input.dispatchMouseEvent", json!({"type": "mouseMoved", "x": x, "y": y}))
            .map(drop)
    }

    /// Gives the window another size.
    pub fn resize(&mut self, width: u32, height: u32) -> Result<()> {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.order("Emulation.setDeviceMetricsOverride", size).map(drop)
    }

    /// Says which colours the person likes: `light` or `dark`.
    pub fn prefer(&mut self, scheme: &str) -> Result<()> {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.order("Emulation.setEmulatedMedia", json!({"features": features})).map(drop)
    }

    /// Takes the network away, or gives it back.
    pub fn set_offline(&mut self, is_offline: bool) -> Result<()> {
        self.order("Network.enable", json!({}))?;
        let none = json!({"offline": is_offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
        self.order("Network.emulateNetworkConditions", none).map(drop)
    }

    /// What the page's objects take, in octets.
    pub fn heap(&mut self) -> Result<u64> {
        self.order("HeapProfiler.collectGarbage", json!({}))?;
        let used = self.order("Runtime.getHeapUsage", json!({}))?;
        used["usedSize"].as_f64().map(|size| size as u64).context("no heap size")
    }

    /// Writes what is to be seen as a PNG.
    pub fn screenshot(&mut self, path: &Path) -> Result<()> {
        let shot = self.order("Page.captureScreenshot", json!({"format": "png"}))?;
        let picture = STANDARD.decode(shot["data"].as_str().context("no picture")?)?;
        fs::write(path, picture).with_context(|| format!("cannot write {}", path.display()))
    }

    /// What the console complained about so far.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Forgets what it complained about: of what a test provoked.
    pub fn forget_complaints(&mut self) {
        self.complaints.clear();
    }

    fn order(&mut self, method: &str, parameters: Value) -> Result<Value> {
        let id = self.next;
        self.next += 1;
        let mut order = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            order["sessionId"] = session.as_str().into();
        }
        let mut line = serde_json::to_vec(&order)?;
        line.push(0);
        self.orders.write_all(&line).context("chromium is gone")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = match self.heard.recv_timeout(left) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => bail!("{method}: not within {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("chromium ended: {}", self.process.log())
                }
            };
            if message["id"] == id {
                ensure!(message["error"].is_null(), "{method}: {}", message["error"]);
                return Ok(message["result"].clone());
            }
            self.complaints.extend(complaint(&message));
        }
    }
}

/// Messages are JSON, each ended by a zero.
fn listen(answers: ChildStdout) -> Receiver<Value> {
    let (tell, heard) = mpsc::channel();
    thread::spawn(move || {
        for message in BufReader::new(answers).split(0) {
            let Ok(Ok(message)) = message.map(|text| serde_json::from_slice(&text)) else { return };
            if tell.send(message).is_err() {
                return;
            }
        }
    });
    heard
}

fn complaint(message: &Value) -> Option<String> {
    let told = &message["params"];
    match message["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(told["exceptionDetails"].to_string()),
        "Log.entryAdded" if told["entry"]["level"] == "error" => Some(told["entry"].to_string()),
        "Runtime.consoleAPICalled" if told["type"] == "error" => Some(told["args"].to_string()),
        _ => None,
    }
}
