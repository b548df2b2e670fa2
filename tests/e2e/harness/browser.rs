//! A headless Chromium, spoken to by its DevTools protocol: one page, whose complaints are kept.
//!
//! Chromium reads the protocol from file 3 and writes it to file 4, a JSON text and a zero byte each. A shell opens two
//! named pipes as those, so neither a WebSocket nor unsafe code is needed.

use std::{
    env,
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Run, seconds, wait::holds, wait_until};

/// The longest that Chromium may take for an answer.
const ANSWER: Duration = seconds(60);

/// A page in a browser of its own. Ends with this value.
pub struct Browser {
    child: Child,
    to: File,
    from: Receiver<Value>,
    session: String,
    next: u64,
    events: Vec<Value>,
    _dir: TempDir,
}

/// What the page looks like to whoever looks at it.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub width: u32,
    pub height: u32,
    pub dark: bool,
}

/// A screen on a desk, and a phone.
pub const DESK: View = View { width: 1280, height: 900, dark: false };
pub const PHONE: View = View { width: 360, height: 740, dark: false };

impl Browser {
    /// Starts Chromium, `CHROMIUM` of the environment.
    pub fn start() -> Self {
        let program = env::var("CHROMIUM")
            .unwrap_or_else(|_| panic!("CHROMIUM is not set: export CHROMIUM=$(tests/kind/chromium.sh)"));
        let dir = tempfile::tempdir().expect("a directory");
        let pipe = |name: &str| dir.path().join(name);
        Run::new("mkfifo").arg(pipe("to")).arg(pipe("from")).succeeds();
        let profile = format!("--user-data-dir={}", pipe("profile").display());
        let child = Command::new("sh")
            .args(["-c", r#"exec 3<"$1" 4>"$2"; shift 2; exec "$@""#, "sh"])
            .args([pipe("to"), pipe("from")])
            .args([program.as_str(), &profile])
            .args([
                "--headless",
                "--remote-debugging-pipe",
                // Whoever runs the tests may be root, and the page is ours.
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-extensions",
                "--disable-background-networking",
                "--disable-sync",
                "--no-first-run",
                "--hide-scrollbars",
                "--force-color-profile=srgb",
                "--lang=en-US",
                "about:blank",
            ])
            .env("TZ", "UTC")
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        // In the order in which the shell opens them: each waits for the other side.
        let to = OpenOptions::new().write(true).open(pipe("to")).expect("a pipe");
        let from = messages(File::open(pipe("from")).expect("a pipe"));
        let mut browser =
            Self { child, to, from, session: String::new(), next: 0, events: Vec::new(), _dir: dir };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Log", "Network", "Audits", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Sends a command and returns its result; panics where Chromium refuses.
    #[track_caller]
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).expect("Chromium reads");
        loop {
            let mut answer =
                self.from.recv_timeout(ANSWER).unwrap_or_else(|error| panic!("{method}: no answer: {error}"));
            if answer["id"] == self.next {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
            self.events.push(answer);
        }
    }

    /// Returns the value of a JavaScript expression, or what its promise gives.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut result = self.call("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].take()
    }

    /// Waits until a JavaScript expression is true.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, limit: Duration, expression: &str) {
        wait_until(what, limit, || {
            let value = self.eval(expression);
            holds(value == true, format!("{value}\n{}", self.text()))
        });
    }

    /// Returns the text of the page as it is seen.
    pub fn text(&mut self) -> String {
        self.eval("document.body?.innerText ?? ''").as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({"url": url}));
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
        self.wait_for("the page is loaded", seconds(20), "document.readyState === 'complete'");
    }

    pub fn look(&mut self, view: View) {
        let size = json!({"width": view.width, "height": view.height, "deviceScaleFactor": 1,
            "mobile": view.width < 600});
        self.call("Emulation.setDeviceMetricsOverride", size);
        let scheme = if view.dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// Presses a key: `Tab`, `Enter` or ` `.
    pub fn press(&mut self, key: &str) {
        let (code, number, text) = match key {
            "Tab" => ("Tab", 9, ""),
            "Enter" => ("Enter", 13, "\r"),
            " " => ("Space", 32, " "),
            other => panic!("no key {other}"),
        };
        let mut event = json!({"type": if text.is_empty() { "rawKeyDown" } else { "keyDown" }, "key": key, "code": code,
            "windowsVirtualKeyCode": number, "nativeVirtualKeyCode": number, "text": text});
        self.call("Input.dispatchKeyEvent", event.clone());
        event["type"] = json!("keyUp");
        self.call("Input.dispatchKeyEvent", event);
    }

    /// Returns what the page complained of since this was last asked: errors, warnings and what its policy stopped.
    pub fn complaints(&mut self) -> Vec<String> {
        // The answer comes after all that happened before.
        self.eval("0");
        let complains = |event: &Value| {
            let params = &event["params"];
            match event["method"].as_str().unwrap_or_default() {
                "Runtime.exceptionThrown" | "Audits.issueAdded" => true,
                "Log.entryAdded" => {
                    params["entry"]["level"] != "info" && params["entry"]["level"] != "verbose"
                }
                "Runtime.consoleAPICalled" => params["type"] == "error" || params["type"] == "warning",
                _ => false,
            }
        };
        let events = std::mem::take(&mut self.events);
        events.into_iter().filter(complains).map(|event| event["params"].to_string()).collect()
    }

    /// Returns the addresses that were asked for since the page was opened.
    pub fn requests(&self) -> Vec<String> {
        let sent = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.filter_map(|event| Some(event["params"]["request"]["url"].as_str()?.to_owned())).collect()
    }

    /// Returns the nodes of the accessibility tree that are not ignored, as pairs of role and name.
    pub fn accessible(&mut self) -> Vec<(String, String)> {
        let tree = self.call("Accessibility.getFullAXTree", json!({}));
        let nodes = tree["nodes"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        let seen = nodes.iter().filter(|node| node["ignored"] == false);
        seen.map(|node| (text(&node["role"]), text(&node["name"]))).collect()
    }

    /// Returns a picture of what is seen, a PNG.
    pub fn picture(&mut self) -> Vec<u8> {
        let shot = self.call("Page.captureScreenshot", json!({"format": "png", "optimizeForSpeed": false}));
        serde_json::from_value::<ByteString>(shot["data"].clone()).expect("base64").0
    }

    /// Writes a picture of what is seen.
    pub fn picture_to(&mut self, path: &Path) {
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        std::fs::write(path, self.picture()).expect("written");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads messages, each ended by a zero byte, until Chromium ends.
fn messages(from: File) -> Receiver<Value> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for message in BufReader::new(from).split(0).map_while(Result::ok) {
            let Ok(message) = serde_json::from_slice(&message) else { continue };
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    receiver
}
