//! The page over states that are made up: no cluster is asked.

use std::net::SocketAddr;

use jiff::{SignedDuration, Timestamp};
use rollout_guard::{
    admin::{
        self, Admin, Readiness,
        page::{Page, Ui},
    },
    shutdown::{Shutdown, Trigger},
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{is_accessible, is_readable, tabs_through};
use crate::harness::{browser::Browser, seconds};

/// The plain port of a guard that is not there.
struct Served {
    page: Page,
    address: SocketAddr,
    stop: Trigger,
    runtime: Runtime,
}

impl Served {
    fn at(address: &str, state: &Value) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let (stop, stopped) = Shutdown::new();
        let page = Page::new(Ui::Loopback, "kubectl port-forward", stopped.clone());
        let admin = Admin::new(Readiness::default(), Default::default(), None).with_page(page.clone());
        let listener = runtime.block_on(admin::bind(address.parse().expect("an address"))).expect("a port");
        let address = listener.local_addr().expect("bound");
        runtime.spawn(admin::serve(listener, admin, stopped));
        page.show(state.to_string(), true);
        Self { page, address, stop, runtime }
    }

    fn start(state: &Value) -> Self {
        Self::at("127.0.0.1:0", state)
    }

    fn url(&self) -> String {
        format!("http://localhost:{}/ui", self.address.port())
    }

    fn show(&self, state: &Value) {
        self.page.show(state.to_string(), true);
    }

    /// Ends as a pod does.
    fn end(self) -> SocketAddr {
        self.stop.start();
        self.runtime.shutdown_timeout(seconds(5));
        self.address
    }
}

fn ago(seconds: i64) -> String {
    (Timestamp::now() - SignedDuration::from_secs(seconds)).to_string()
}

fn stuck(namespace: &str, name: &str, state: &str, message: &str) -> Value {
    json!({
        "namespace": namespace, "name": name, "state": state, "cause": "Image", "message": message,
        "whyHeld": (state == "held").then_some("the policy does not roll back for Image"), "since": ago(75),
        "pushedAt": ago(140), "phase": "Failed", "generation": 7, "images": ["localhost/sample:v9"],
        "evidence": ["pod web-7d9: ImagePullBackOff: not found", "event FailedToPull: 404"],
        "command": format!("rollout-guard diagnose {name} -n {namespace}"),
    })
}

fn rolled_back(namespace: &str, name: &str, seconds: i64) -> Value {
    json!({
        "namespace": namespace, "name": name, "outcome": "Succeeded", "cause": "Configuration",
        "message": "the ConfigMap settings is missing", "pushedAt": ago(seconds + 12), "startedAt": ago(seconds + 4),
        "finishedAt": ago(seconds), "secondsToSafety": 12, "fromRevision": 3, "toRevision": 2,
        "fromImages": ["localhost/sample:v3"], "toImages": ["localhost/sample:v2"], "evidence": ["pod web: CreateContainerConfigError"],
        "command": format!("rollout-guard diagnose {name} -n {namespace}"),
    })
}

fn state(stuck: &[Value], rolled_back: &[Value]) -> Value {
    json!({
        "at": Timestamp::now(), "listing": false, "problems": [],
        "stuck": {"count": stuck.len(), "rows": stuck}, "failing": {"count": 0, "rows": []},
        "rollbacks": {"count": rolled_back.len(), "rows": rolled_back},
        "policies": {"count": 2, "rows": [
            {"name": "default", "mode": "Enforce", "guarded": 1200, "stuck": 2, "valid": true, "whyNotValid": null,
                "freeze": {"name": "weekend", "reason": "nobody is there", "until": ago(-7200)}},
            {"name": "broken", "mode": "Audit", "guarded": null, "stuck": null, "valid": false,
                "whyNotValid": "spec.freezes[0].schedule: 'x' is no cron expression", "freeze": null},
        ]},
        "guard": {"version": "0.1.0", "replica": "rollout-guard-5f6d8c7b9d-x2x7k", "watches": true,
            "leader": "rollout-guard-5f6d8c7b9d-4kq2v", "leads": false, "stopped": null, "certificateEnds": ago(-60 * 86_400),
            "breaker": {"state": "open", "why": "only 1 of 9 nodes are ready"}},
    })
}

#[test]
fn five_hundred_rows_are_readable_on_every_screen_and_text_of_the_cluster_is_only_text() {
    let evil = r#"<img src=x onerror="window.pwned = 1"><script>window.pwned = 1</script>"#;
    let long = "x".repeat(253);
    let mut rows: Vec<Value> =
        (0..498).map(|i| stuck("shop", &format!("web-{i}"), "held", "image not found")).collect();
    rows.insert(0, stuck("shop", evil, "held", evil));
    rows.insert(1, stuck(&long, &long, "failing", &long));
    let backs: Vec<Value> = (0..200).map(|i| rolled_back("shop", &format!("api-{i}"), i * 60)).collect();
    let mut all = state(&rows, &backs);
    all["stuck"]["count"] = json!(1200);
    all["problems"] = json!([evil]);
    let served = Served::start(&all);
    let mut browser = Browser::start();
    browser.look(crate::harness::browser::DESK);
    browser.open(&served.url());
    browser.wait_for(
        "the rows are there",
        seconds(20),
        "document.querySelectorAll('#trouble tbody tr').length === 500",
    );
    browser.eval("document.querySelectorAll('details').forEach((d, i) => { d.open = i % 7 === 0; })");
    is_readable(&mut browser);
    is_accessible(&mut browser);
    assert_eq!(browser.eval("window.pwned ?? null"), Value::Null, "text became code");
    assert_eq!(browser.eval("document.querySelectorAll('main img, main script').length"), 0);
    let text = browser.text();
    assert!(text.contains(evil), "the text is there as it is");
    assert!(text.contains("and 700 more that are not shown"), "{}", text.len());
    assert_eq!(browser.eval("document.title"), "(1200 stuck) rollout-guard");
    // Nothing but its own, and nothing that the policy had to stop.
    let own = format!("http://localhost:{}/ui", served.address.port());
    for request in browser.requests() {
        assert!(request.starts_with(&own) || request.starts_with("data:"), "{request}");
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn the_page_is_used_by_keyboard_alone_and_what_is_open_stays_so_when_something_changes() {
    let mut rows =
        vec![stuck("shop", "web", "held", "image not found"), stuck("shop", "api", "latched", "crashes")];
    let served = Served::start(&state(&rows, &[rolled_back("shop", "cart", 600)]));
    let mut browser = Browser::start();
    browser.look(crate::harness::browser::DESK);
    browser.open(&served.url());
    browser.wait_for("the rows are there", seconds(20), "document.querySelectorAll('tbody tr').length === 5");
    let reached = tabs_through(&mut browser);
    assert_eq!(reached.iter().filter(|at| at.starts_with("SUMMARY")).count(), 3, "{reached:?}");

    // Enter opens what has the focus, and only then can be copied what is in it.
    browser.eval("document.querySelector('#trouble summary').focus()");
    browser.press("Enter");
    browser.wait_for("it is open", seconds(5), "document.querySelector('#trouble details').open");
    assert!(browser.text().contains("pod web-7d9: ImagePullBackOff: not found"));
    assert!(browser.text().contains("rollout-guard diagnose web -n shop"));
    browser.press("Tab");
    assert_eq!(browser.eval("document.activeElement.textContent"), "Copy");

    // News comes in: another row above, other words in this one.
    rows.insert(0, stuck("bank", "ledger", "rollingBack", "the ConfigMap settings is missing"));
    rows[1]["evidence"] = json!(["pod web-9: still not found"]);
    served.show(&state(&rows, &[]));
    browser.wait_for(
        "the row is there",
        seconds(5),
        "document.querySelectorAll('#trouble tbody tr').length === 3",
    );
    assert!(browser.text().contains("pod web-9: still not found"), "{}", browser.text());
    assert_eq!(browser.eval("document.activeElement.textContent"), "Copy", "the focus is where it was");
    let news = browser.eval("document.getElementById('news').textContent");
    assert!(news.as_str().is_some_and(|news| news.contains("bank/ledger is stuck")), "{news}");

    // What had the focus is gone: one is where it was, not at the top.
    served.show(&state(&rows[2..], &[]));
    browser.wait_for(
        "the row is gone",
        seconds(5),
        "document.querySelectorAll('#trouble tbody tr').length === 1",
    );
    assert_eq!(browser.eval("document.activeElement.id"), "trouble-heading");

    // The filter.
    served.show(&state(&rows, &[]));
    browser.eval("document.getElementById('filter').focus()");
    browser.call("Input.insertText", json!({"text": "LEDGER bank"}));
    let shown =
        "[...document.querySelectorAll('#trouble tbody tr')].filter((r) => r.checkVisibility()).length === 1";
    browser.wait_for("only what is asked for is shown", seconds(5), shown);

    served.show(&state(&[], &[]));
    browser.wait_for("it says so", seconds(5), "document.body.innerText.includes('Nothing is stuck')");
    assert_eq!(browser.eval("document.title"), "rollout-guard");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_page_that_lost_its_connection_says_so_and_comes_back_by_itself() {
    let before = state(&[stuck("shop", "web", "held", "image not found")], &[]);
    let served = Served::start(&before);
    let mut browser = Browser::start();
    browser.open(&served.url());
    browser.wait_for(
        "it is live",
        seconds(20),
        "document.getElementById('connection').dataset.state === 'live'",
    );
    let address = served.end();
    let lost = "document.getElementById('connection').innerText.startsWith('Connection lost, trying again')";
    browser.wait_for("it says so", seconds(20), lost);
    assert!(browser.text().contains("image not found"), "what was known stays");
    let _served = Served::at(&address.to_string(), &state(&[], &[]));
    browser.wait_for(
        "it is live again",
        seconds(30),
        "document.getElementById('connection').dataset.state === 'live'",
    );
    browser.wait_for(
        "with what is so now",
        seconds(5),
        "document.body.innerText.includes('Nothing is stuck')",
    );
}
