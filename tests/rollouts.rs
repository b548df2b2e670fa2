//! What the watcher's reconciler asks of the API server, call by call: each test is one exact conversation.

#![allow(clippy::expect_used, reason = "what a test needs is there, or the test fails")]

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use rollout_guard::{
    api::{
        policy::RolloutPolicyStatus,
        record::{Outcome, RecordPhase, RolloutRecordStatus, TargetRef},
    },
    cluster::{
        Cluster, ClusterError,
        announcements::Announcements,
        policies::StoredPolicy,
        records::StoredRecord,
        rollouts::{Notice, Part, Rollouts},
    },
    core::key::Key,
};
use serde_json::{Value, json};

// ---- an API server that knows its lines -----------------------------------------------------------------------

/// What came.
#[derive(Debug, PartialEq)]
struct Call {
    method: String,
    path: String,
    query: Vec<(String, String)>,
    content_type: String,
    body: Value,
}

/// What is said.
enum Answer {
    Json(u16, Value),
    Text(String),
    Silence,
}

#[derive(Clone, Default)]
struct Server {
    calls: Arc<Mutex<Vec<Call>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

impl Server {
    fn new(answers: impl IntoIterator<Item = Answer>) -> (Self, Cluster) {
        let server = Self { answers: Arc::new(Mutex::new(answers.into_iter().collect())), ..Self::default() };
        let here = server.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let here = here.clone();
            async move { Ok::<_, Infallible>(here.answer(request).await) }
        });
        let cluster = Cluster::with_client(kube::Client::new(service, "default"));
        (server, cluster)
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let query = parts.uri.query().unwrap_or_default();
        let text = |part: &str| percent_decoded(&part.replace('+', " "));
        let call = Call {
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            content_type: parts
                .headers
                .get("content-type")
                .map(|value| value.to_str().expect("text").to_owned())
                .unwrap_or_default(),
            body: if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") },
        };
        self.calls.lock().expect("whole").push(call);
        let answer = self.answers.lock().expect("whole").pop_front().expect("no more calls than answers");
        let (code, body) = match answer {
            Answer::Json(code, body) => (code, body.to_string()),
            Answer::Text(text) => (200, text),
            Answer::Silence => std::future::pending().await,
        };
        Response::builder().status(code).body(Body::from(body.into_bytes())).expect("an answer")
    }

    /// The one call that was made.
    fn only(&self) -> Call {
        let mut calls = self.calls.lock().expect("whole");
        assert_eq!(calls.len(), 1, "{calls:?}");
        calls.remove(0)
    }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().expect("a digit"), rest.next().expect("a digit")];
            let digits = str::from_utf8(&digits).expect("digits");
            bytes.push(u8::from_str_radix(digits, 16).expect("hexadecimal"));
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

fn said(code: u16, body: Value) -> [Answer; 1] {
    [Answer::Json(code, body)]
}

fn refused(code: u16, reason: &str) -> [Answer; 1] {
    said(
        code,
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "no", "reason": reason, "code": code
        }),
    )
}

fn call(method: &str, path: &str, query: &[(&str, &str)], content_type: &str, body: Value) -> Call {
    let query = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Call {
        method: method.to_owned(),
        path: path.to_owned(),
        query,
        content_type: content_type.to_owned(),
        body,
    }
}

fn get(path: &str, query: &[(&str, &str)]) -> Call {
    call("GET", path, query, "", Value::Null)
}

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/shop/deployments";
const RECORDS: &str = "/apis/rollout-guard.io/v1alpha1/namespaces/shop/rolloutrecords";

fn web() -> Key {
    Key::new("shop", "web")
}

fn deployment() -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "d-uid"},
        "spec": {"selector": {
            "matchLabels": {"app": "web", "tier": "front"},
            "matchExpressions": [
                {"key": "track", "operator": "In", "values": ["stable", "canary"]},
                {"key": "legacy", "operator": "DoesNotExist"}
            ]
        }}
    })
}

fn replica_set() -> Value {
    json!({
        "metadata": {"name": "web-6fff4b7674", "namespace": "shop", "uid": "rs-uid"},
        "spec": {"selector": {"matchLabels": {"app": "web", "pod-template-hash": "6fff4b7674"}}}
    })
}

fn owned(name: &str, kind: &str, uid: &str, controller: bool) -> Value {
    json!({
        "metadata": {"name": name, "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": kind, "name": "x", "uid": uid, "controller": controller}
        ]}
    })
}

fn names(objects: &[Value]) -> Vec<&str> {
    objects.iter().map(|object| object["metadata"]["name"].as_str().expect("a name")).collect()
}

fn stored_record() -> Value {
    json!({
        "apiVersion": "rollout-guard.io/v1alpha1", "kind": "RolloutRecord",
        "metadata": {
            "name": "deployment-web", "namespace": "shop", "uid": "r-uid", "resourceVersion": "17",
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "ConfigMap", "name": "web", "uid": "other"},
                {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d-uid"}
            ]
        },
        "spec": {"targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d-uid"}},
        "status": {"phase": "Failed", "generation": 7}
    })
}

fn record() -> StoredRecord {
    StoredRecord {
        namespace: "shop".to_owned(),
        name: "deployment-web".to_owned(),
        uid: "r-uid".to_owned(),
        resource_version: "17".to_owned(),
        target: TargetRef {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            name: "web".to_owned(),
            uid: "d-uid".to_owned(),
        },
        owner_uid: "d-uid".to_owned(),
        status: RolloutRecordStatus {
            phase: Some(RecordPhase::Failed),
            generation: Some(7),
            ..RolloutRecordStatus::default()
        },
    }
}

// ---- what is read ---------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_deployment_is_read_whole_and_none_where_there_is_none() {
    let object = json!({"metadata": {"name": "web"}, "spec": {"fieldOfTomorrow": {"x": 1.5}}});
    let (server, cluster) = Server::new(said(200, object.clone()));
    assert_eq!(cluster.deployment(&web()).await.expect("an answer"), Some(object));
    assert_eq!(server.only(), get(&format!("{DEPLOYMENTS}/web"), &[]));

    let (_, cluster) = Server::new(refused(404, "NotFound"));
    assert_eq!(cluster.deployment(&web()).await.expect("an answer"), None);
    let (_, cluster) = Server::new(refused(403, "Forbidden"));
    assert_eq!(cluster.deployment(&web()).await.expect_err("refused").code(), Some(403));
    let (_, cluster) = Server::new([Answer::Text("<html>".to_owned())]);
    let error = cluster.deployment(&web()).await.expect_err("no JSON");
    assert!(matches!(error, ClusterError::Unexpected { .. }), "{error}");
}

#[tokio::test]
async fn replica_sets_are_those_of_the_selector_that_the_deployment_controls() {
    let list = json!({"metadata": {"resourceVersion": "9"}, "items": [
        owned("good", "Deployment", "d-uid", true),
        owned("of-an-earlier-web", "Deployment", "old-uid", true),
        owned("not-controlled", "Deployment", "d-uid", false),
        owned("of-another-kind", "Rollout", "d-uid", true),
        {"metadata": {"name": "planted"}},
        {"metadata": {"name": "planted-too", "ownerReferences": null}}
    ]});
    let (server, cluster) = Server::new(said(200, list));
    let sets = cluster.replica_sets(&web(), &deployment()).await.expect("an answer");
    assert_eq!(names(&sets), ["good"]);
    let selector = "app=web,tier=front,track in (canary,stable),!legacy";
    assert_eq!(
        server.only(),
        get("/apis/apps/v1/namespaces/shop/replicasets", &[("labelSelector", selector), ("limit", "50")])
    );
}

#[tokio::test]
async fn replica_sets_are_read_page_by_page_and_not_for_ever() {
    let page = |name: &str, next: &str| {
        Answer::Json(
            200,
            json!({"metadata": {"continue": next}, "items": [owned(name, "Deployment", "d-uid", true)]}),
        )
    };
    let (server, cluster) = Server::new([page("a", "next"), page("b", "")]);
    let sets = cluster.replica_sets(&web(), &deployment()).await.expect("an answer");
    assert_eq!(names(&sets), ["a", "b"]);
    let second = server.calls.lock().expect("whole").pop().expect("a call");
    assert!(second.query.contains(&("continue".to_owned(), "next".to_owned())), "{second:?}");

    let (server, cluster) = Server::new((0..20).map(|_| page("a", "next")));
    let error = cluster.replica_sets(&web(), &deployment()).await.expect_err("too many");
    assert!(error.to_string().ends_with("more than 500 carry the labels of its selector"), "{error}");
    assert_eq!(server.calls.lock().expect("whole").len(), 10);
}

#[tokio::test]
async fn without_a_selector_or_a_uid_nothing_is_listed() {
    for (field, value) in [
        ("/spec/selector", json!({})),
        ("/spec/selector", Value::Null),
        ("/spec/selector", json!({"matchExpressions": [{"key": "a", "operator": "Near"}]})),
        ("/metadata/uid", Value::Null),
        ("/metadata/uid", json!("")),
    ] {
        let mut object = deployment();
        *object.pointer_mut(field).expect("a field") = value;
        let (server, cluster) = Server::new([]);
        let error = cluster.replica_sets(&web(), &object).await.expect_err(field);
        assert!(matches!(error, ClusterError::Unexpected { .. }), "{error}");
        assert!(cluster.pods(&web(), &object).await.is_err());
        assert!(server.calls.lock().expect("whole").is_empty());
    }
}

#[tokio::test]
async fn pods_are_those_that_the_replica_set_controls_and_fifty_at_the_most() {
    let mut pods: Vec<Value> =
        (0..60).map(|n| owned(&format!("pod-{n}"), "ReplicaSet", "rs-uid", true)).collect();
    pods.insert(0, owned("planted", "ReplicaSet", "other", true));
    let (server, cluster) = Server::new(said(200, json!({"items": pods})));
    let pods = cluster.pods(&web(), &replica_set()).await.expect("an answer");
    assert_eq!((pods.len(), names(&pods)[0]), (50, "pod-0"));
    let selector = "app=web,pod-template-hash=6fff4b7674";
    assert_eq!(
        server.only(),
        get("/api/v1/namespaces/shop/pods", &[("labelSelector", selector), ("limit", "50")])
    );
}

#[tokio::test]
async fn events_on_a_pod_are_twenty_at_the_most() {
    let events: Vec<Value> = (0..30).map(|n| json!({"metadata": {"name": format!("e{n}")}})).collect();
    let (server, cluster) = Server::new(said(200, json!({"items": events})));
    assert_eq!(cluster.pod_events("shop", "web-1").await.expect("an answer").len(), 20);
    let fields = "involvedObject.kind=Pod,involvedObject.name=web-1";
    assert_eq!(
        server.only(),
        get("/api/v1/namespaces/shop/events", &[("fieldSelector", fields), ("limit", "20")])
    );
    for nothing in [json!({"items": null}), json!({}), json!([]), json!("x")] {
        let (_, cluster) = Server::new(said(200, nothing));
        assert_eq!(cluster.pod_events("shop", "web-1").await.expect("an answer"), Vec::<Value>::new());
    }
}

#[tokio::test]
async fn of_a_log_the_last_ten_lines_and_two_kibibytes_come() {
    let log: String = (0..40).map(|n| format!("{n} {}\n", "x".repeat(400))).collect();
    let (server, cluster) = Server::new([Answer::Text(format!("{log}panic: no database\n"))]);
    let end = cluster.log("shop", "web-1", "app", true).await.expect("an answer");
    assert!(end.len() <= 2048 && end.lines().count() <= 10, "{end}");
    assert!(end.ends_with("panic: no database"), "{end}");
    // limitBytes cuts off the end, so it is what ten of the longest lines have.
    let query = [("container", "app"), ("limitBytes", "163840"), ("previous", "true"), ("tailLines", "10")];
    assert_eq!(server.only(), get("/api/v1/namespaces/shop/pods/web-1/log", &query));

    let (_, cluster) = Server::new([Answer::Text("y".repeat(10_000_000))]);
    assert_eq!(cluster.log("shop", "web-1", "app", false).await.expect("an answer").len(), 2048);
    let (_, cluster) = Server::new(refused(400, "BadRequest"));
    assert_eq!(cluster.log("shop", "web-1", "app", false).await.expect_err("none").code(), Some(400));
}

// ---- records --------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_record_is_read_and_none_where_there_is_none() {
    let (server, cluster) = Server::new(said(200, stored_record()));
    let found = cluster.record(&web()).await.expect("an answer").expect("a record");
    assert_eq!(found, record());
    assert!(found.is_of(&web(), "d-uid"));
    assert_eq!(server.only(), get(&format!("{RECORDS}/deployment-web"), &[]));

    let (_, cluster) = Server::new(refused(404, "NotFound"));
    assert_eq!(cluster.record(&web()).await.expect("an answer"), None);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_nobodys() {
    let mut planted = stored_record();
    planted["status"] = json!({"phase": "Splendid"});
    planted["spec"] = json!("x");
    planted["metadata"]["ownerReferences"] = json!([{"uid": 5}]);
    let (_, cluster) = Server::new(said(200, planted));
    let found = cluster.record(&web()).await.expect("an answer").expect("a record");
    assert_eq!(found.status, RolloutRecordStatus::default());
    assert!(!found.is_of(&web(), "d-uid") && !found.is_of(&web(), ""));
    assert_eq!((found.uid.as_str(), found.resource_version.as_str()), ("r-uid", "17"), "it can be deleted");
}

#[tokio::test]
async fn a_record_is_created_with_the_deployment_as_its_owner() {
    let (server, cluster) = Server::new(said(201, stored_record()));
    assert_eq!(cluster.create_record(&web(), "d-uid").await.expect("an answer"), record());
    let body = json!({
        "apiVersion": "rollout-guard.io/v1alpha1", "kind": "RolloutRecord",
        "metadata": {"name": "deployment-web", "namespace": "shop", "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d-uid",
            "controller": false, "blockOwnerDeletion": false
        }]},
        "spec": {"targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d-uid"}}
    });
    let manager = [("fieldManager", "rollout-guard")];
    assert_eq!(server.only(), call("POST", RECORDS, &manager, "application/json", body));

    let (_, cluster) = Server::new(refused(409, "AlreadyExists"));
    assert_eq!(cluster.create_record(&web(), "d-uid").await.expect_err("there").code(), Some(409));
}

#[tokio::test]
async fn the_status_of_a_record_is_replaced_as_it_was_read() {
    let (server, cluster) = Server::new(said(200, stored_record()));
    let status = RolloutRecordStatus { phase: Some(RecordPhase::Complete), ..RolloutRecordStatus::default() };
    cluster.write_record(&record(), &status).await.expect("an answer");
    let body = json!({
        "apiVersion": "rollout-guard.io/v1alpha1", "kind": "RolloutRecord",
        "metadata": {"name": "deployment-web", "namespace": "shop", "uid": "r-uid", "resourceVersion": "17"},
        "spec": {"targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d-uid"}},
        "status": {"phase": "Complete"}
    });
    let path = format!("{RECORDS}/deployment-web/status");
    let manager = [("fieldManager", "rollout-guard")];
    assert_eq!(server.only(), call("PUT", &path, &manager, "application/json", body));

    let (_, cluster) = Server::new(refused(409, "Conflict"));
    assert_eq!(cluster.write_record(&record(), &status).await.expect_err("stale").code(), Some(409));
    // Only to see that the words of the status are those of the resource.
    assert_eq!(serde_json::to_value(Outcome::InProgress).expect("JSON"), "InProgress");
}

#[tokio::test]
async fn a_record_is_deleted_as_it_was_read_and_gone_is_gone() {
    let (server, cluster) = Server::new(said(200, json!({"kind": "Status", "status": "Success"})));
    cluster.delete_record(&record()).await.expect("an answer");
    let body = json!({"preconditions": {"uid": "r-uid", "resourceVersion": "17"}});
    let path = format!("{RECORDS}/deployment-web");
    assert_eq!(server.only(), call("DELETE", &path, &[], "application/json", body));

    let (_, cluster) = Server::new(refused(404, "NotFound"));
    cluster.delete_record(&record()).await.expect("gone already");
    let (_, cluster) = Server::new(refused(409, "Conflict"));
    assert_eq!(cluster.delete_record(&record()).await.expect_err("changed").code(), Some(409));
}

// ---- what is written on Deployments ---------------------------------------------------------------------------

#[tokio::test]
async fn a_patch_is_a_json_patch_by_our_name_and_the_answer_comes_back_whole() {
    let operations = json!([
        {"op": "test", "path": "/metadata/uid", "value": "d-uid"},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": "41"},
        {"op": "replace", "path": "/spec/template", "value": {"spec": {"fieldOfTomorrow": true}}}
    ]);
    let patch: json_patch::Patch = serde_json::from_value(operations.clone()).expect("a patch");
    let manager = [("fieldManager", "rollout-guard")];
    for (part, path) in
        [(Part::Object, format!("{DEPLOYMENTS}/web")), (Part::Status, format!("{DEPLOYMENTS}/web/status"))]
    {
        let after = json!({"metadata": {"generation": 8}, "spec": {"fieldOfTomorrow": 1}});
        let (server, cluster) = Server::new(said(200, after.clone()));
        assert_eq!(cluster.patch(&web(), part, &patch).await.expect("an answer"), after);
        let wanted = call("PATCH", &path, &manager, "application/json-patch+json", operations.clone());
        assert_eq!(server.only(), wanted);
    }
    for (code, reason) in [(409, "Conflict"), (422, "Invalid"), (404, "NotFound")] {
        let (_, cluster) = Server::new(refused(code, reason));
        assert_eq!(cluster.patch(&web(), Part::Object, &patch).await.expect_err(reason).code(), Some(code));
    }
}

fn notice() -> Notice {
    Notice {
        key: web(),
        uid: "d-uid".to_owned(),
        warning: true,
        reason: "RolloutStuck",
        message: "localhost/web:1.4.2: not found".to_owned(),
        once: "stuck:7".to_owned(),
    }
}

#[tokio::test]
async fn an_event_is_on_the_deployment_where_describe_finds_it() {
    let (server, cluster) = Server::new(said(201, json!({})));
    cluster.tell(&notice()).await.expect("an answer");
    let Call { method, path, query, content_type, mut body } = server.only();
    assert_eq!((method.as_str(), path.as_str()), ("POST", "/api/v1/namespaces/shop/events"));
    assert_eq!(query, [("fieldManager".to_owned(), "rollout-guard".to_owned())]);
    assert_eq!(content_type, "application/json");
    for field in ["firstTimestamp", "lastTimestamp"] {
        let time = body[field].take();
        let time: jiff::Timestamp = time.as_str().expect("a time").parse().expect("RFC 3339");
        assert!(jiff::Timestamp::now().duration_since(time).abs() < jiff::SignedDuration::from_secs(60));
    }
    let name = body["metadata"]["name"].take();
    let name = name.as_str().expect("a name");
    assert!(name.starts_with("web.") && name.len() == "web.".len() + 16, "{name}");
    assert_eq!(
        body,
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": null, "namespace": "shop"},
            "involvedObject": {
                "apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "web", "uid": "d-uid"
            },
            "type": "Warning", "reason": "RolloutStuck", "message": "localhost/web:1.4.2: not found",
            "source": {"component": "rollout-guard"},
            "reportingComponent": "rollout-guard", "reportingInstance": "rollout-guard",
            "firstTimestamp": null, "lastTimestamp": null, "count": 1
        })
    );
}

#[tokio::test]
async fn an_event_told_twice_is_one_and_a_long_one_is_cut() {
    let (_, cluster) = Server::new(refused(409, "AlreadyExists"));
    cluster.tell(&notice()).await.expect("told before");

    let long = Notice {
        warning: false,
        key: Key::new("shop", "w".repeat(253)),
        message: "ä".repeat(5000),
        ..notice()
    };
    let (server, cluster) = Server::new(said(201, json!({})));
    cluster.tell(&long).await.expect("an answer");
    let body = server.only().body;
    assert_eq!(body["metadata"]["name"].as_str().expect("a name").len(), 253);
    assert_eq!(body["message"].as_str().expect("a message").len(), 1024);
    assert_eq!(body["type"], "Normal");

    let (_, cluster) = Server::new(refused(403, "Forbidden"));
    assert_eq!(cluster.tell(&notice()).await.expect_err("refused").code(), Some(403));
}

// ---- what does not answer -------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn every_call_ends_within_its_time_limit() {
    let limit = async |seconds: u64, asked: tokio::time::Instant, error: ClusterError| {
        assert!(matches!(error, ClusterError::Timeout { .. }), "{error}");
        assert_eq!(asked.elapsed().as_secs(), seconds, "{error}");
        assert_eq!(error.code(), None);
    };
    let silent = || Server::new([Answer::Silence]).1;
    let patch = json_patch::Patch(Vec::new());
    let status = RolloutRecordStatus::default();
    let now = tokio::time::Instant::now;

    let asked = now();
    limit(10, asked, silent().deployment(&web()).await.expect_err("silent")).await;
    let asked = now();
    limit(10, asked, silent().replica_sets(&web(), &deployment()).await.expect_err("silent")).await;
    let asked = now();
    limit(10, asked, silent().pods(&web(), &replica_set()).await.expect_err("silent")).await;
    let asked = now();
    limit(10, asked, silent().pod_events("shop", "web-1").await.expect_err("silent")).await;
    let asked = now();
    limit(3, asked, silent().log("shop", "web-1", "app", true).await.expect_err("silent")).await;
    let asked = now();
    limit(10, asked, silent().record(&web()).await.expect_err("silent")).await;
    let asked = now();
    limit(10, asked, silent().create_record(&web(), "u").await.expect_err("silent")).await;
    let asked = now();
    limit(10, asked, silent().write_record(&record(), &status).await.expect_err("silent")).await;
    let asked = now();
    limit(10, asked, silent().delete_record(&record()).await.expect_err("silent")).await;
    let asked = now();
    limit(10, asked, silent().patch(&web(), Part::Object, &patch).await.expect_err("silent")).await;
    let asked = now();
    limit(10, asked, silent().tell(&notice()).await.expect_err("silent")).await;
}

#[tokio::test]
async fn too_many_requests_are_asked_again_by_the_client_itself() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a connection");
        let busy = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";
        let there = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
        for answer in [busy, there] {
            let mut request = [0; 4096];
            assert!(socket.read(&mut request).await.expect("a request") > 0);
            socket.write_all(answer.as_bytes()).await.expect("sent");
        }
    });
    rollout_guard::tls::install_provider();
    let url = format!("http://{address}").parse().expect("a URL");
    let cluster = Cluster::new(kube::Config::new(url)).expect("a client");
    let asked = std::time::Instant::now();
    assert_eq!(cluster.deployment(&web()).await.expect("the second answer"), Some(json!({})));
    assert!(asked.elapsed() >= Duration::from_secs(1), "after Retry-After: {:?}", asked.elapsed());
    server.await.expect("both were asked");
}

// ---- what admission writes ------------------------------------------------------------------------------------

const STATUS: &str = "/apis/apps/v1/namespaces/shop/deployments/web/status";
const OBJECT: &str = "/apis/apps/v1/namespaces/shop/deployments/web";

/// The Deployment with a rollback announced on it.
fn announced(resource_version: &str) -> Value {
    let mut deployment = deployment();
    deployment["metadata"]["uid"] = json!("u");
    deployment["metadata"]["resourceVersion"] = json!(resource_version);
    deployment["status"] = json!({"conditions": [
        {"type": "Available", "status": "True"},
        {"type": "Stalled", "status": "True", "reason": "RolledBack", "message": "rolled back to revision 6"},
    ]});
    deployment
}

/// What was asked, as pairs of method and path.
fn asked(server: &Server) -> Vec<(String, String)> {
    let calls = server.calls.lock().expect("whole");
    calls.iter().map(|call| (call.method.clone(), call.path.clone())).collect()
}

fn steps(steps: &[(&str, &str)]) -> Vec<(String, String)> {
    steps.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect()
}

#[tokio::test]
async fn fault_51_an_announcement_is_taken_away_by_a_status_patch_that_is_tried_again_where_it_was_stale() {
    let (server, cluster) = Server::new([
        Answer::Json(200, announced("5")),
        refused(409, "Conflict").into_iter().next().expect("one"),
        Answer::Json(200, announced("6")),
        Answer::Json(200, deployment()),
    ]);
    cluster.retract(&web(), "u").await.expect("taken away");
    let expected = [("GET", OBJECT), ("PATCH", STATUS), ("GET", OBJECT), ("PATCH", STATUS)];
    assert_eq!(asked(&server), steps(&expected));
    let calls = server.calls.lock().expect("whole");
    let last = calls.last().expect("a patch");
    assert_eq!(last.content_type, "application/json-patch+json");
    assert_eq!(last.query, [("fieldManager".to_owned(), "rollout-guard".to_owned())]);
    assert_eq!(
        last.body,
        json!([
            {"op": "test", "path": "/metadata/uid", "value": "u"},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": "6"},
            {"op": "remove", "path": "/status/conditions/1"},
        ])
    );
}

#[tokio::test]
async fn nothing_is_written_where_no_announcement_stands() {
    let mut gone = announced("5");
    gone["status"] = json!({});
    let mut another = announced("5");
    another["metadata"]["uid"] = json!("other");
    for answer in [gone, another] {
        let (server, cluster) = Server::new(said(200, answer));
        cluster.retract(&web(), "u").await.expect("fine");
        assert_eq!(asked(&server), steps(&[("GET", OBJECT)]));
    }
    let (server, cluster) = Server::new(refused(404, "NotFound"));
    cluster.retract(&web(), "u").await.expect("fine");
    assert_eq!(asked(&server), steps(&[("GET", OBJECT)]));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_silent_holds_admission_for_two_seconds() {
    let started = tokio::time::Instant::now();
    let (_server, cluster) = Server::new([Answer::Json(200, announced("5")), Answer::Silence]);
    let error = cluster.retract(&web(), "u").await.expect_err("no answer");
    assert!(matches!(error, ClusterError::Timeout { seconds: 2, .. }), "{error}");
    assert!(error.to_string().contains("Deployment shop/web"), "{error}");
    assert_eq!(started.elapsed(), Duration::from_secs(2));

    // Nor does one that refuses for ever.
    let conflicts =
        (0..5).flat_map(|_| [Answer::Json(200, announced("5"))].into_iter().chain(refused(409, "Conflict")));
    let (server, cluster) = Server::new(conflicts);
    let error = cluster.retract(&web(), "u").await.expect_err("stale for ever");
    assert_eq!((error.code(), asked(&server).len()), (Some(409), 10));
}

#[tokio::test]
async fn of_a_policys_status_the_watcher_writes_how_many_are_stuck_and_nothing_else() {
    let policy = StoredPolicy {
        name: "default".to_owned(),
        uid: "p".to_owned(),
        generation: 1,
        spec: Value::Null,
        status: RolloutPolicyStatus::default(),
    };
    let stored = json!({
        "apiVersion": "rollout-guard.io/v1alpha1", "kind": "RolloutPolicy", "metadata": {"name": "default"},
    });
    let (server, cluster) = Server::new(said(200, stored));
    cluster.write_policy_stuck(&policy, 3).await.expect("written");
    assert_eq!(
        server.only(),
        call(
            "PATCH",
            "/apis/rollout-guard.io/v1alpha1/rolloutpolicies/default/status",
            &[("fieldManager", "rollout-guard")],
            "application/merge-patch+json",
            json!({"metadata": {"uid": "p"}, "status": {"stuck": 3}}),
        )
    );
}
