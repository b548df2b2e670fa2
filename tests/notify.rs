//! Notifications against real HTTP servers on this machine.

#![allow(clippy::expect_used, clippy::panic, reason = "what a test needs is there, or the test fails")]

#[allow(dead_code, reason = "a part of it is used here")]
#[path = "support/logs.rs"]
mod logs;
mod memory;
#[path = "notify/server.rs"]
mod server;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use futures::FutureExt;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use memory::{Broken, State, WELL, policy, reconciler, secs, short};
use rollout_guard::{
    api::policy::CauseType,
    core::{
        breaker::Why,
        key::Key,
        notification::{Kind, Notification, Reason, Severity, Subject},
        record::{AtWork, Before},
        template::TemplateHash,
    },
    notify::{self, Notifier, Pace, config},
    shutdown::{Shutdown, Trigger},
    telemetry::{Metrics, openmetrics},
    tls,
    watcher::reconcile::{Memory, Reconciler},
};
use serde_json::{Value, json};
use server::{Reply, Server, until};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::Instant};

const OK: Reply = Reply::Status(200);

fn fast() -> Pace {
    Pace {
        first: Duration::from_millis(10),
        most: Duration::from_millis(80),
        attempts: 10,
        lifetime: Duration::from_secs(10),
        resend: Duration::from_millis(400),
        poll: Duration::from_millis(30),
        drain: Duration::from_millis(500),
        queue: 1000,
    }
}

/// A notifier that runs by a file.
struct Running {
    dir: TempDir,
    notifier: Notifier,
    metrics: Metrics,
    trigger: Trigger,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(config: &str, pace: Pace) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("config.yaml"), config).expect("written");
        Self::start_in(dir, pace).await
    }

    async fn start_in(dir: TempDir, pace: Pace) -> Self {
        let metrics = Metrics::default();
        let notifier = Notifier::new(metrics.clone());
        let (trigger, shutdown) = Shutdown::new();
        let path = dir.path().join("config.yaml");
        let task = tokio::spawn(notify::keep(path, notifier.clone(), pace, shutdown));
        let running = Self { dir, notifier, metrics, trigger, task };
        until(|| running.notifier.has_receivers(), || "receivers".to_owned()).await;
        running
    }

    fn rewrite(&self, config: &str) {
        // As the kubelet does it: the new one takes the place of the old one at once.
        let new = self.dir.path().join("new");
        std::fs::write(&new, config).expect("written");
        std::fs::rename(new, self.dir.path().join("config.yaml")).expect("renamed");
    }

    fn metric(&self, line: &str) -> Option<u64> {
        let text = openmetrics(&self.metrics.registry()).expect("encodes");
        let value = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '))?;
        Some(value.parse().expect("a number"))
    }

    fn count(&self, receiver: &str, outcome: &str) -> u64 {
        let labels = format!("receiver=\"{receiver}\",outcome=\"{outcome}\"");
        self.metric(&format!("rollout_guard_notifications_total{{{labels}}}")).unwrap_or_default()
    }

    async fn wait_for_count(&self, receiver: &str, outcome: &str, count: u64) {
        let have = || self.count(receiver, outcome);
        until(|| have() >= count, || format!("{receiver} {outcome} {count}, have {}", have())).await;
        assert_eq!(have(), count);
    }
}

fn receiver(name: &str, kind: &str, url: &str) -> String {
    format!("receivers:\n- {{name: {name}, type: {kind}, url: \"{url}\"}}\n")
}

/// What the documentation says that a signature is, by another implementation than the guard's own.
fn signature(call: &server::Call, secret: &[u8]) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret).expect("a key");
    mac.update(call.header("x-rollout-guard-timestamp").as_bytes());
    mac.update(b".");
    mac.update(&call.body);
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={hex}")
}

/// The `n`th that is told.
fn stuck(n: i64) -> Notification {
    let time = Timestamp::from_second(1_800_000_000 + n).expect("in range");
    Notification {
        kind: Kind::Stuck,
        severity: Severity::Warning,
        message: format!("generation {n} is stuck: Image: not found"),
        deployment: Some(Subject {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            uid: "uid-1".to_owned(),
            generation: n,
        }),
        cause: Some(Reason {
            kind: CauseType::Image,
            message: "not found".to_owned(),
            evidence: vec!["pod web-1: ErrImagePull".to_owned()],
        }),
        ..Notification::test(time)
    }
}

// ---- what is sent -------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_webhook_gets_json_that_is_signed_with_its_time() {
    let server = Server::start(&[OK]).await;
    let config = format!(
        "clusterName: prod-eu\nreceivers:\n- name: ops\n  type: webhook\n  url: {}\n  secret: s3cret\n  headers: \
         {{authorization: Bearer t0ken}}\n",
        server.url("/hook?a=b")
    );
    let running = Running::start(&config, fast()).await;
    running.notifier.tell(stuck(7));
    let call = server.wait_for(1).await.remove(0);
    let body = call.json();
    assert_eq!(call.path, "/hook");
    assert_eq!(call.header("content-type"), "application/json");
    assert_eq!(call.header("authorization"), "Bearer t0ken");
    assert!(call.header("user-agent").starts_with("rollout-guard/"));
    assert_eq!(call.header("x-rollout-guard-id"), body["id"]);
    let expected = json!({
        "version": "1",
        "cluster": "prod-eu",
        "id": stuck(7).id,
        "kind": "Stuck",
        "severity": "warning",
        "time": "2027-01-15T08:00:07Z",
        "message": "generation 7 is stuck: Image: not found",
        "deployment": {"namespace": "shop", "name": "web", "uid": "uid-1", "generation": 7},
        "cause": {"type": "Image", "message": "not found", "evidence": ["pod web-1: ErrImagePull"]},
    });
    assert_eq!(body, expected);

    assert_eq!(call.header("x-rollout-guard-signature"), signature(&call, b"s3cret"));
    let sent: i64 = call.header("x-rollout-guard-timestamp").parse().expect("seconds");
    let age = Timestamp::now().as_second() - sent;
    assert!((0..60).contains(&age), "{age}");
    running.wait_for_count("ops", "delivered", 1).await;
}

#[tokio::test]
async fn slack_gets_a_message_without_a_signature() {
    let server = Server::start(&[OK]).await;
    let running = Running::start(&receiver("chat", "slack", &server.url("/services/x")), fast()).await;
    running.notifier.tell(stuck(7));
    let call = server.wait_for(1).await.remove(0);
    assert_eq!(call.json()["text"], "Rollout stuck: shop/web");
    assert!(call.headers.keys().all(|name| !name.as_str().starts_with("x-rollout-guard")));
}

#[tokio::test]
async fn a_receiver_is_told_what_its_filters_let_through() {
    let server = Server::start(&[OK]).await;
    let url = server.url("");
    let config = format!(
        "receivers:\n- {{name: a, type: webhook, url: \"{url}/a\", namespaces: [\"sh*\", bank]}}\n- {{name: b, type: \
         webhook, url: \"{url}/b\", events: [BreakerOpen]}}\n- {{name: c, type: webhook, url: \"{url}/c\", causes: \
         [Application]}}\n- {{name: d, type: webhook, url: \"{url}/d\", minSeverity: critical}}\n- {{name: e, type: \
         webhook, url: \"{url}/e\", namespaces: mail}}\n"
    );
    let running = Running::start(&config, fast()).await;
    running.notifier.tell(stuck(1));
    let breaker = Why::Nodes { ready: 1, total: 3 };
    running.notifier.look(std::iter::empty(), Some(&breaker), Timestamp::now());
    running.notifier.look(std::iter::empty(), None, Timestamp::now());
    running.wait_for_count("a", "delivered", 1).await;
    running.wait_for_count("b", "delivered", 1).await;
    running.wait_for_count("d", "delivered", 1).await;
    let mut seen: Vec<String> =
        server.calls().iter().map(|call| format!("{} {}", call.path, call.json()["kind"])).collect();
    seen.sort();
    assert_eq!(seen, ["/a \"Stuck\"", "/b \"BreakerOpen\"", "/d \"BreakerOpen\""]);
}

#[tokio::test]
async fn the_same_is_told_once() {
    let server = Server::start(&[OK]).await;
    let running = Running::start(&receiver("ops", "webhook", &server.url("/")), fast()).await;
    for n in [1, 1, 2, 1, 2] {
        running.notifier.tell(stuck(n));
    }
    running.wait_for_count("ops", "delivered", 2).await;
    assert_eq!(server.calls().len(), 2);
}

// ---- trouble ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_is_not_taken_is_tried_again_in_order_with_the_same_id() {
    let server = Server::start(&[
        Reply::Status(503),
        Reply::Status(408),
        Reply::With(429, "retry-after", "1".to_owned()),
        OK,
    ])
    .await;
    let running = Running::start(&receiver("ops", "webhook", &server.url("/")), fast()).await;
    running.notifier.tell(stuck(1));
    running.notifier.tell(stuck(2));
    let calls = server.wait_for(5).await;
    let ids: Vec<&str> = calls.iter().map(|call| call.header("x-rollout-guard-id")).collect();
    assert!(ids[..4].iter().all(|id| *id == stuck(1).id) && ids[4] == stuck(2).id, "{ids:?}");
    assert!(calls[1].at - calls[0].at >= Duration::from_millis(10));
    let waited = calls[3].at - calls[2].at;
    assert!(waited >= Duration::from_secs(1), "Retry-After is honoured: {waited:?}");
    running.wait_for_count("ops", "delivered", 2).await;
    assert_eq!(running.metric("rollout_guard_notification_errors_total{receiver=\"ops\"}"), Some(3));
}

#[tokio::test]
async fn a_refusal_is_final_and_the_next_one_is_sent() {
    let server = Server::start(&[Reply::Status(400), Reply::Status(410), OK]).await;
    let running = Running::start(&receiver("ops", "webhook", &server.url("/")), fast()).await;
    (1..=3).for_each(|n| running.notifier.tell(stuck(n)));
    running.wait_for_count("ops", "delivered", 1).await;
    running.wait_for_count("ops", "refused", 2).await;
    assert_eq!(server.calls().len(), 3);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Server::start(&[OK]).await;
    for code in [301, 302, 307, 308] {
        let server = Server::start(&[Reply::With(code, "location", other.url("/"))]).await;
        let running = Running::start(&receiver("ops", "webhook", &server.url("/")), fast()).await;
        running.notifier.tell(stuck(1));
        running.wait_for_count("ops", "refused", 1).await;
    }
    assert!(other.calls().is_empty());
}

#[tokio::test]
async fn what_is_never_taken_is_given_up_after_the_last_attempt() {
    let server = Server::start(&[Reply::Status(500)]).await;
    let pace = Pace { attempts: 3, ..fast() };
    let running = Running::start(&receiver("ops", "webhook", &server.url("/")), pace).await;
    running.notifier.tell(stuck(1));
    running.wait_for_count("ops", "gave_up", 1).await;
    assert_eq!(server.calls().len(), 3);

    // Nobody listens on that port.
    let nobody =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let running = Running::start(&receiver("ops", "webhook", &format!("http://{nobody}/")), pace).await;
    running.notifier.tell(stuck(1));
    running.wait_for_count("ops", "gave_up", 1).await;
}

#[tokio::test]
async fn a_receiver_that_asks_for_more_time_than_there_is_gets_no_more() {
    let server = Server::start(&[Reply::With(503, "retry-after", "3600".to_owned())]).await;
    let running = Running::start(&receiver("ops", "webhook", &server.url("/")), fast()).await;
    running.notifier.tell(stuck(1));
    running.wait_for_count("ops", "gave_up", 1).await;
    assert_eq!(server.calls().len(), 1);
}

#[tokio::test]
async fn a_receiver_that_never_answers_holds_up_nobody_else() {
    let (slow, quick) = (Server::start(&[Reply::Hang]).await, Server::start(&[OK]).await);
    let config = format!(
        "receivers:\n- {{name: slow, type: webhook, url: \"{}\"}}\n- {{name: quick, type: slack, url: \"{}\"}}\n",
        slow.url("/"),
        quick.url("/")
    );
    let running = Running::start(&config, fast()).await;
    let begun = Instant::now();
    for n in 0..500 {
        running.notifier.tell(stuck(n));
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(500), "handing over waits for nobody: {took:?}");
    running.wait_for_count("quick", "delivered", 500).await;
    assert_eq!(slow.calls().len(), 1);
    let depth = || running.metric("rollout_guard_notification_queue_depth{receiver=\"slow\"}");
    until(|| depth() == Some(500), || format!("{:?}", depth())).await;
}

#[tokio::test]
async fn one_attempt_ends_after_the_receivers_timeout() {
    let server = Server::start(&[Reply::Hang, OK]).await;
    let config =
        format!("receivers:\n- {{name: ops, type: webhook, url: \"{}\", timeout: 100ms}}\n", server.url("/"));
    let running = Running::start(&config, fast()).await;
    running.notifier.tell(stuck(1));
    running.wait_for_count("ops", "delivered", 1).await;
}

#[tokio::test]
async fn a_full_queue_drops_the_oldest_and_keeps_what_matters() {
    let server = Server::start(&[Reply::Hang]).await;
    let pace = Pace { queue: 10, ..fast() };
    let running = Running::start(&receiver("ops", "webhook", &server.url("/")), pace).await;
    running.notifier.tell(stuck(0));
    server.wait_for(1).await;
    running.notifier.tell(Notification { severity: Severity::Critical, ..stuck(1) });
    for n in 2..102 {
        running.notifier.tell(stuck(n));
    }
    assert_eq!(running.count("ops", "dropped"), 91);
    let depth = || running.metric("rollout_guard_notification_queue_depth{receiver=\"ops\"}");
    until(|| depth() == Some(11), || format!("{:?}", depth())).await;
    // One that takes it after all gets the critical one first, then the newest.
    let healed = Server::start(&[OK]).await;
    running.rewrite(&receiver("ops", "webhook", &healed.url("/")));
    let calls = healed.wait_for(11).await;
    let generations: Vec<i64> = calls
        .iter()
        .map(|call| call.json()["deployment"]["generation"].as_i64().expect("a number"))
        .collect();
    assert_eq!(generations, [vec![0, 1], (93..102).collect()].concat());
}

// ---- the file -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_file_is_read_again_and_one_that_is_wrong_changes_nothing() {
    let (first, second) = (Server::start(&[OK]).await, Server::start(&[OK]).await);
    let running = Running::start(&receiver("ops", "webhook", &first.url("/")), fast()).await;
    running.notifier.tell(stuck(1));
    running.wait_for_count("ops", "delivered", 1).await;
    let valid = || running.metric("rollout_guard_notifications_config_valid");
    assert_eq!(valid(), Some(1));

    running.rewrite("receivers: [{name: ops, type: carrier-pigeon}]");
    until(|| valid() == Some(0), || format!("{:?}", valid())).await;
    running.notifier.tell(stuck(2));
    running.wait_for_count("ops", "delivered", 2).await;
    assert_eq!(first.calls().len(), 2, "the old one goes on");

    running.rewrite(&receiver("ops", "webhook", &second.url("/")));
    until(|| valid() == Some(1), || format!("{:?}", valid())).await;
    running.notifier.tell(stuck(3));
    second.wait_for(1).await;
    assert_eq!(first.calls().len(), 2);

    running.rewrite("receivers: []");
    until(|| !running.notifier.has_receivers(), || "nobody is told".to_owned()).await;
    running.notifier.tell(stuck(4));
    assert_eq!(second.calls().len(), 1);
}

#[tokio::test]
async fn what_waits_is_sent_by_a_secret_that_was_exchanged() {
    let server = Server::start(&[Reply::Status(503), Reply::Hang, OK]).await;
    let dir = tempfile::tempdir().expect("a directory");
    let config = format!(
        "receivers:\n- {{name: ops, type: webhook, urlFile: url, secretFile: key, timeout: 30s}}\n# {}\n",
        server.address
    );
    std::fs::write(dir.path().join("config.yaml"), config).expect("written");
    std::fs::write(dir.path().join("url"), format!("{}\n", server.url("/"))).expect("written");
    std::fs::write(dir.path().join("key"), "old\n").expect("written");
    let running = Running::start_in(dir, fast()).await;
    running.notifier.tell(stuck(1));
    server.wait_for(2).await;
    std::fs::write(running.dir.path().join("key"), "new\n").expect("written");
    let calls = server.wait_for(3).await;
    assert_eq!(calls[1].header("x-rollout-guard-signature"), signature(&calls[1], b"old"));
    assert_eq!(calls[2].header("x-rollout-guard-signature"), signature(&calls[2], b"new"));
    assert_eq!(calls[2].header("x-rollout-guard-id"), stuck(1).id);
}

#[tokio::test]
async fn without_a_file_at_the_start_nothing_is_told_until_there_is_one() {
    let server = Server::start(&[OK]).await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("config.yaml");
    let metrics = Metrics::default();
    let notifier = Notifier::new(metrics.clone());
    let (_trigger, shutdown) = Shutdown::new();
    let _task = tokio::spawn(notify::keep(path.clone(), notifier.clone(), fast(), shutdown));
    notifier.tell(stuck(1));
    assert!(!notifier.has_receivers());
    std::fs::write(path, receiver("ops", "webhook", &server.url("/"))).expect("written");
    until(|| notifier.has_receivers(), || "receivers".to_owned()).await;
    notifier.tell(stuck(2));
    server.wait_for(1).await;
}

fn error_of(config: &str) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("config.yaml");
    std::fs::write(&path, config).expect("written");
    std::fs::write(dir.path().join("empty"), "\n").expect("written");
    let error = config::load(&path).expect_err(config).to_string();
    assert!(!error.contains('\n'), "{error}");
    error.replace(&dir.path().display().to_string(), "DIR")
}

#[test]
fn a_configuration_that_is_wrong_says_what_is_wrong_and_never_a_secret() {
    const HOOK: &str = "type: webhook, url: \"https://example.com/s3cret\"";
    for (receiver, why) in [
        ("name: ops, type: pigeon".to_owned(), "unknown variant `pigeon`"),
        (format!("name: ops, {HOOK}, urll: x"), "unknown field `urll`"),
        (format!("{HOOK}, secret: s3cret"), "missing field `name`"),
        (format!("name: Ops, {HOOK}"), "a name has 1 to 63"),
        ("name: ops, type: webhook".to_owned(), "receiver ops: url or urlFile is missing"),
        (format!("name: ops, {HOOK}, urlFile: x"), "url and urlFile are both there"),
        ("name: ops, type: slack, url: \"ftp://s3cret\"".to_owned(), "must begin with http"),
        ("name: ops, type: slack, url: \"https://u:s3cret@example.com\"".to_owned(), "holds a user"),
        ("name: ops, type: slack, urlFile: nowhere".to_owned(), "DIR/nowhere: No such file"),
        ("name: ops, type: slack, urlFile: empty".to_owned(), "url is empty"),
        (
            "name: ops, type: slack, url: \"https://example.com\", secret: s3cret".to_owned(),
            "slack has no signature",
        ),
        (format!("name: ops, {HOOK}, secret: 3141592"), "expected text"),
        (format!("name: ops, {HOOK}, headers: {{\"a b\": s3cret}}"), "header a b: not the name"),
        (format!("name: ops, {HOOK}, headers: {{host: s3cret}}"), "header host: is set by the guard"),
        (format!("name: ops, {HOOK}, headers: {{x: \"s3cret\\n\"}}"), "header x: the value holds"),
        (format!("name: ops, {HOOK}, events: []"), "events is empty; leave it out for all"),
        (format!("name: ops, {HOOK}, events: [Scaled]"), "unknown variant `Scaled`"),
        (format!("name: ops, {HOOK}, timeout: 2m"), "60s at the most"),
        (format!("name: ops, {HOOK}, timeout: soon"), "\"soon\" is not a duration"),
        (format!("name: ops, {HOOK}, caFile: empty"), "caFile: the CA certificates cannot be used"),
        (format!("name: ops, {HOOK}}}, {{name: ops, {HOOK}"), "there is another of this name"),
    ] {
        let error = error_of(&format!("receivers: [{{{receiver}}}]"));
        assert!(error.contains(why), "{receiver}: {error}");
        assert!(!error.contains("s3cret") && !error.contains("3141592"), "{error}");
    }
    assert!(error_of("receivers: [").starts_with("DIR/config.yaml: "));
    assert!(error_of("cluster: x\nreceivers: []").contains("unknown field `cluster`"));
    assert!(error_of("externalUrl: example.com\nreceivers: []").contains("externalUrl: the url must begin"));
    let many: String = (0..33).map(|n| format!("- {{name: r-{n}, {HOOK}}}\n")).collect();
    assert!(error_of(&format!("receivers:\n{many}")).contains("more than 32 receivers"));
    let missing = config::load(Path::new("/nowhere/config.yaml")).expect_err("no file").to_string();
    assert!(missing.starts_with("/nowhere/config.yaml: No such file"), "{missing}");
}

#[tokio::test]
async fn no_secret_is_ever_logged_or_printed() {
    let logs = logs::Logs::json();
    let server = Server::start(&[Reply::Status(503), Reply::Status(418), OK]).await;
    let config = format!(
        "receivers:\n- name: ops\n  type: webhook\n  url: {}\n  secret: s3cret-key\n  headers: {{authorization: \
         s3cret-token}}\n- {{name: chat, type: slack, url: \"http://127.0.0.1:1/s3cret-path\"}}\n",
        server.url("/s3cret-path?s3cret-query")
    );
    let running = Running::start(&config, Pace { attempts: 2, ..fast() }).await;
    (1..=3).for_each(|n| running.notifier.tell(stuck(n)));
    running.wait_for_count("ops", "refused", 1).await;
    running.wait_for_count("chat", "gave_up", 3).await;
    running.rewrite("receivers:\n- {name: ops, type: webhook, url: \"s3cret-path\", secret: s3cret-key}\n");
    let valid = || running.metric("rollout_guard_notifications_config_valid");
    until(|| valid() == Some(0), || format!("{:?}", valid())).await;
    let log = logs.read();
    assert!(log.contains("a notification is refused") && log.contains("cannot be configured"), "{log}");
    assert!(!log.contains("s3cret"), "{log}");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("config.yaml");
    std::fs::write(&path, config).expect("written");
    let debug = format!("{:?} {:?}", config::load(&path).expect("valid"), running.notifier);
    assert!(debug.contains("ops") && !debug.contains("s3cret"), "{debug}");
}

// ---- TLS ----------------------------------------------------------------------------------------------------

/// A receiver by TLS, and the certificate of its CA.
async fn start_tls() -> (Server, String) {
    tls::install_provider();
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut ca = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).expect("a certificate");
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
    let pair = tls::KeyPair::from_pem(&leaf.pem(), &key.serialize_pem()).expect("a pair");
    let served = tls::ServedCertificate::default();
    served.swap(pair);
    let config = tls::server_config(served, None).expect("a configuration");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let server = Server::new(listener.local_addr().expect("an address"), &[OK]);
    let app = server.app();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let (acceptor, app) = (acceptor.clone(), app.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper_util::service::TowerToHyperService::new(app);
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            });
        }
    });
    (server, ca_certificate.pem())
}

#[tokio::test]
async fn a_receiver_is_trusted_by_the_ca_that_is_named_and_by_no_other() {
    let (server, ca) = start_tls().await;
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("ca.crt"), ca).expect("written");
    let url = format!("https://{}/", server.address);
    let config = format!(
        "receivers:\n- {{name: trusted, type: webhook, url: \"{url}\", caFile: ca.crt}}\n- {{name: public, type: \
         webhook, url: \"{url}\"}}\n"
    );
    std::fs::write(dir.path().join("config.yaml"), config).expect("written");
    let logs = logs::Logs::json();
    let running = Running::start_in(dir, Pace { attempts: 2, ..fast() }).await;
    running.notifier.tell(stuck(1));
    running.wait_for_count("trusted", "delivered", 1).await;
    running.wait_for_count("public", "gave_up", 1).await;
    assert_eq!(server.calls().len(), 1);
    let log = logs.read();
    assert!(log.contains("invalid peer certificate: UnknownIssuer"), "{log}");
}

// ---- Alertmanager -------------------------------------------------------------------------------------------

/// Each alert of a call: its name, and whether it goes on.
fn alerts(call: &server::Call) -> Vec<(String, bool)> {
    let now = Timestamp::now();
    let on = |alert: &Value| {
        let ends: Timestamp = alert["endsAt"].as_str().expect("text").parse().expect("a time");
        ends > now
    };
    let all = call.json();
    let name = |alert: &Value| alert["labels"]["alertname"].as_str().expect("text").to_owned();
    all.as_array().expect("a list").iter().map(|alert| (name(alert), on(alert))).collect()
}

#[tokio::test]
async fn an_alertmanager_is_told_as_long_as_it_lasts_and_when_it_is_over() {
    let server = Server::start(&[OK]).await;
    let running = Running::start(&receiver("am", "alertmanager", &server.url("/prefix/")), fast()).await;
    let told = Notification { time: Timestamp::now(), ..stuck(1) };
    let look = |stuck: bool| {
        let keys = stuck.then(|| Key::new("shop", "web")).into_iter();
        running.notifier.look(keys, None, Timestamp::now());
    };
    running.notifier.tell(told.clone());
    running.notifier.lasts(&told, Timestamp::now());
    look(true);
    let first = server.wait_for(1).await.remove(0);
    assert_eq!(first.path, "/prefix/api/v2/alerts");
    assert_eq!(alerts(&first), [("RolloutStuck".to_owned(), true)]);
    assert_eq!(first.json()[0]["labels"]["deployment"], "web");

    // Told again although nothing has changed.
    let again = server.wait_for(2).await.remove(1);
    assert_eq!(alerts(&again), [("RolloutStuck".to_owned(), true)]);
    assert_eq!(again.json()[0]["labels"], first.json()[0]["labels"]);
    assert_eq!(again.json()[0]["startsAt"], first.json()[0]["startsAt"]);
    assert!(again.at - first.at >= Duration::from_millis(400));

    look(false);
    look(false);
    let ended = || server.calls().iter().any(|call| alerts(call) == [("RolloutStuck".to_owned(), false)]);
    until(ended, || format!("{:?}", server.calls())).await;
    assert_eq!(running.count("am", "delivered"), 2, "that it began and that it ended");
}

#[tokio::test]
async fn an_alertmanager_that_was_away_hears_what_is_the_case_then() {
    let server = Server::start(&[Reply::Status(503), Reply::Status(503), OK]).await;
    let running = Running::start(&receiver("am", "alertmanager", &server.url("")), fast()).await;
    let why = Why::ControllerManager;
    running.notifier.look(std::iter::empty(), Some(&why), Timestamp::now());
    let calls = server.wait_for(3).await;
    assert_eq!(alerts(&calls[2]), [("RolloutGuardBreakerOpen".to_owned(), true)]);
    running.notifier.look(std::iter::empty(), None, Timestamp::now());
    let ended = || server.calls().last().is_some_and(|call| !alerts(call)[0].1);
    until(ended, || format!("{:?}", server.calls())).await;
}

#[tokio::test]
async fn who_does_not_lead_any_more_tells_an_alertmanager_nothing_more() {
    let server = Server::start(&[OK]).await;
    let running = Running::start(&receiver("am", "alertmanager", &server.url("")), fast()).await;
    running.notifier.lasts(&stuck(1), Timestamp::now());
    server.wait_for(1).await;
    running.notifier.step_down();
    let count = server.calls().len();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(server.calls().len() <= count + 1);
}

// ---- the watcher --------------------------------------------------------------------------------------------

/// One Deployment, followed by a reconciler that tells.
struct Story {
    state: Arc<Mutex<State>>,
    reconciler: Reconciler<memory::Api>,
    memory: Memory,
    key: Key,
}

impl Story {
    /// good-1 is complete; then a broken one is pushed.
    fn new(notifier: Notifier) -> Self {
        let mut state = State::new(1, 2, Broken::default());
        let key = Key::new("shop", "web");
        state.create(&key, "good-1", 2);
        state.good_after = secs(10);
        state.switches[0].leads.store(true, Ordering::SeqCst);
        let state = Arc::new(Mutex::new(state));
        let mut story =
            Self { reconciler: process(&state, 0, notifier), state, memory: Memory::default(), key };
        story.pass(30);
        let mut state = story.state.lock().expect("not poisoned");
        let before = TemplateHash::of(&state.deployments[&story.key]["spec"]["template"]);
        let now = state.now;
        state.push(&story.key, "missing-2");
        drop(state);
        story.memory.before = Some(Before { template: before, complete: (now - secs(25), now) });
        story
    }

    fn pass(&self, seconds: i64) {
        let mut state = self.state.lock().expect("not poisoned");
        for _ in 0..seconds {
            let now = state.now;
            state.advance(now + secs(1));
            for _ in 0..5 {
                if state.is_due(&self.key) {
                    state.sync(&self.key);
                }
            }
        }
    }

    /// The guard looks, the cluster goes on, for so many seconds. Each look ends without waiting for anything.
    fn go(&mut self, seconds: i64) {
        for _ in 0..seconds {
            let now = self.state.lock().expect("not poisoned").now;
            let at_work = AtWork::Since { since: memory::start(), last: now };
            self.reconciler.surroundings.set_health(WELL, Some(at_work), Default::default(), now);
            let look = self.reconciler.reconcile(&self.key, &mut self.memory, now);
            let _ = look.now_or_never().expect("a look never waits for a receiver");
            self.pass(1);
        }
    }
}

fn process(state: &Arc<Mutex<State>>, number: usize, notifier: Notifier) -> Reconciler<memory::Api> {
    let mut reconciler = reconciler(state, number, policy(short("Enforce", "Automatic")));
    reconciler.surroundings.set_guarded(10);
    reconciler.notifier = notifier;
    reconciler
}

#[tokio::test]
async fn a_rollback_is_told_from_beginning_to_end_once_whoever_leads() {
    let (server, slack) = (Server::start(&[OK]).await, Server::start(&[Reply::Hang]).await);
    let config = format!(
        "receivers:\n- {{name: ops, type: webhook, url: \"{}\"}}\n- {{name: slow, type: slack, url: \"{}\"}}\n",
        server.url("/"),
        slack.url("/")
    );
    let running = Running::start(&config, fast()).await;
    let mut story = Story::new(running.notifier.clone());
    story.go(60);
    running.wait_for_count("ops", "delivered", 3).await;

    // Another process takes over, with nothing in mind: Events and records say what was told.
    let state = Arc::clone(&story.state);
    {
        let state = state.lock().expect("not poisoned");
        state.switches[0].leads.store(false, Ordering::SeqCst);
        state.switches[1].leads.store(true, Ordering::SeqCst);
    }
    let other = Running::start(&config, fast()).await;
    story.reconciler = process(&state, 1, other.notifier.clone());
    story.memory = Memory::default();
    story.go(10);
    assert_eq!(other.metric("rollout_guard_notification_queue_depth{receiver=\"ops\"}"), Some(0));
    assert_eq!(other.count("ops", "delivered"), 0);

    let calls = server.calls();
    let kinds: Vec<Value> = calls.iter().map(|call| call.json()["kind"].clone()).collect();
    assert_eq!(kinds, ["Stuck", "RolledBack", "RollbackVerified"]);
    let back = calls[1].json();
    assert_eq!(back["rollback"]["from"]["revision"], 2);
    assert_eq!(back["rollback"]["to"]["revision"], 1);
    assert_eq!(back["rollback"]["to"]["images"].as_array().map(Vec::len), Some(1));
    assert_eq!(back["cause"]["type"], "Image");
    assert_eq!(back["deployment"]["generation"], 3);
    assert_eq!(calls[2].json()["rollback"]["outcome"], "Succeeded");
    assert!(story.state.lock().expect("not poisoned").violations.is_empty());
}

#[tokio::test]
async fn what_the_api_server_does_not_take_as_an_event_is_told_all_the_same() {
    let server = Server::start(&[OK]).await;
    let running = Running::start(&receiver("ops", "webhook", &server.url("/")), fast()).await;
    let mut story = Story::new(running.notifier.clone());
    for _ in 0..100 {
        story.state.lock().expect("not poisoned").planned.push(("tell", memory::Fault::Code(403)));
    }
    story.go(60);
    running.wait_for_count("ops", "delivered", 3).await;
}

// ---- the end ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_waits_at_the_shutdown_is_sent_and_what_hangs_is_left() {
    let (server, hangs) =
        (Server::start(&[Reply::Status(503), OK]).await, Server::start(&[Reply::Hang]).await);
    let config = format!(
        "receivers:\n- {{name: ops, type: webhook, url: \"{}\"}}\n- {{name: hangs, type: slack, url: \"{}\"}}\n",
        server.url("/"),
        hangs.url("/")
    );
    let running = Running::start(&config, fast()).await;
    (1..=20).for_each(|n| running.notifier.tell(stuck(n)));
    running.trigger.start();
    let Running { task, metrics, .. } = running;
    tokio::time::timeout(Duration::from_secs(5), task).await.expect("it ends").expect("no panic");
    assert_eq!(server.calls().len(), 21);
    let text = openmetrics(&metrics.registry()).expect("encodes");
    let left = "rollout_guard_notifications_total{receiver=\"hangs\",outcome=\"gave_up\"} 20";
    assert!(text.contains(left), "{text}");
}

// ---- the command --------------------------------------------------------------------------------------------

fn notify_test(config: &Path, more: &[&str]) -> (i32, String, String) {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_rollout-guard"))
        .args(["notify", "test", "--config"])
        .arg(config)
        .args(more)
        .output()
        .expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (out.status.code().expect("a status"), text(out.stdout), text(out.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_sends_a_test_and_says_what_became_of_it() {
    let (good, bad) = (Server::start(&[OK]).await, Server::start(&[Reply::Status(403)]).await);
    let dir = tempfile::tempdir().expect("a directory");
    let path: PathBuf = dir.path().join("config.yaml");
    let config = format!(
        "receivers:\n- {{name: ops, type: webhook, url: \"{}\", minSeverity: critical}}\n- {{name: am, type: \
         alertmanager, url: \"{}\"}}\n- {{name: chat, type: slack, url: \"{}\"}}\n",
        good.url("/hook"),
        good.url(""),
        bad.url("/s3cret")
    );
    std::fs::write(&path, config).expect("written");
    let (code, out, _) = notify_test(&path, &[]);
    assert_eq!(
        (code, out.as_str()),
        (
            1,
            "ops (webhook): delivered, answered 200 OK\nam (alertmanager): delivered, answered 200 OK\nchat (slack): \
             not delivered: answered 403 Forbidden\n"
        )
    );
    let calls = good.calls();
    assert_eq!(calls[0].json()["kind"], "Test");
    assert_eq!(alerts(&calls[1]), [("RolloutGuardTest".to_owned(), true)]);
    assert_eq!(notify_test(&path, &["--receiver", "ops"]).0, 0);

    let (code, out, err) = notify_test(&path, &["--receiver", "nobody"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.ends_with("there is no receiver \"nobody\"\n"), "{err}");
    std::fs::write(&path, "receivers: [{name: ops}]").expect("written");
    let (code, _, err) = notify_test(&path, &[]);
    assert!(code == 2 && err.contains("missing field `type`") && err.lines().count() == 1, "{err}");
}
