//! An API server on the loopback with canned answers, and the real binary that asks it.

#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::{
    net::TcpListener,
    process::Output,
    sync::Arc,
    time::{Duration, Instant},
};

use assert_cmd::Command;
use axum::{
    Json, Router,
    extract::Request,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

/// What is answered to a path, with its query.
#[derive(Clone, Debug)]
pub enum Answer {
    Json(Value),
    Text(&'static str),
    Refused(u16),
    /// Nothing, for longer than anybody waits.
    Silence,
}

pub fn list(items: &[Value]) -> Answer {
    Answer::Json(json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}))
}

/// Serves for as long as the test runs, and returns where.
pub fn serve(answer: impl Fn(&str, &str) -> Answer + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("set");
    let address = listener.local_addr().expect("bound").to_string();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let router = Router::new().fallback(move |request: Request| {
                let answer = answer.clone();
                async move {
                    let uri = request.uri();
                    respond(answer(uri.path(), uri.query().unwrap_or_default())).await
                }
            });
            axum::serve(listener, router).await.expect("serves");
        });
    });
    address
}

async fn respond(answer: Answer) -> Response {
    match answer {
        Answer::Json(value) => Json(value).into_response(),
        Answer::Text(text) => text.into_response(),
        Answer::Refused(code) => {
            let reason = if code == 404 { "NotFound" } else { "Forbidden" };
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "code": code, "reason": reason, "message": "User \"dev\" cannot do this"});
            (StatusCode::from_u16(code).expect("a status"), Json(status)).into_response()
        }
        Answer::Silence => std::future::pending().await,
    }
}

/// Runs `rollout-guard ARGS` by a kubeconfig of the server with the namespace shop, for a minute at the most. Returns
/// what came of it, and how long it took.
pub fn run(address: &str, args: &[&str]) -> (Output, Duration) {
    let dir = tempfile::tempdir().expect("a directory");
    let kubeconfig = dir.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: staging\nclusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}]\n\
         contexts: [{{name: staging, context: {{cluster: c, user: u, namespace: shop}}}}]\nusers: [{{name: u, user: {{}}}}]\n",
    );
    std::fs::write(&kubeconfig, text).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollout-guard"));
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "LC_ALL", "LC_CTYPE", "LANG"] {
        command.env_remove(name);
    }
    let started = Instant::now();
    let command = command.args(args).env("KUBECONFIG", &kubeconfig).env("HOME", "/nonexistent");
    let output = command.timeout(Duration::from_secs(60)).output().expect("it runs");
    (output, started.elapsed())
}

pub fn succeeds(address: &str, args: &[&str]) -> String {
    let (output, _) = run(address, args);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// It ends with status 2, nothing on standard output, and one line that says all of `parts`.
pub fn refused(address: &str, args: &[&str], parts: &[&str]) {
    let (output, _) = run(address, args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{error}");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

fn template(revision: u32) -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "app", "image": format!("localhost/web:{revision}")}]},
    })
}

/// shop/web, whose revision 3 crashes while revision 2 serves on.
pub fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u", "generation": 3, "resourceVersion": "9",
            "creationTimestamp": "2026-11-01T10:00:00Z", "annotations": {"deployment.kubernetes.io/revision": "3"},
            "managedFields": [{"manager": "helm", "operation": "Apply", "time": "2026-11-02T09:50:00Z",
                "fieldsV1": {"f:spec": {"f:template": {"f:spec": {}}}}}]},
        "spec": {"replicas": 2, "revisionHistoryLimit": 0, "progressDeadlineSeconds": 60,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": template(3)},
        "status": {"observedGeneration": 3, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 2,
            "availableReplicas": 2, "conditions": [
                {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
                 "message": "ReplicaSet \"web-3\" has timed out progressing.",
                 "lastUpdateTime": "2026-11-02T09:51:00Z", "lastTransitionTime": "2026-11-02T09:51:00Z"}]},
    })
}

fn replica_set(revision: u32, replicas: u32, available: u32) -> Value {
    let why = if revision == 2 { json!("release 2") } else { Value::Null };
    json!({
        "metadata": {"name": format!("web-{revision}"), "namespace": "shop", "uid": format!("set-{revision}"),
            "creationTimestamp": format!("2026-11-02T09:{revision}0:00Z"),
            "annotations": {"deployment.kubernetes.io/revision": revision.to_string(),
                "kubernetes.io/change-cause": why},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u",
                "controller": true}]},
        "spec": {"replicas": replicas, "template": template(revision),
            "selector": {"matchLabels": {"app": "web", "pod-template-hash": revision.to_string()}}},
        "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available},
    })
}

fn crashed() -> Value {
    let end = json!({"reason": "Error", "exitCode": 1, "startedAt": "2026-11-02T09:55:00Z",
        "finishedAt": "2026-11-02T09:55:01Z"});
    json!({
        "metadata": {"name": "web-3-abcde", "namespace": "shop", "creationTimestamp": "2026-11-02T09:50:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-3", "uid": "set-3",
                "controller": true}]},
        "spec": {"nodeName": "n1", "containers": [{"name": "app", "image": "localhost/web:3"}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "app", "image": "localhost/web:3",
            "ready": false, "restartCount": 4, "state": {"terminated": end}, "lastState": {"terminated": end}}]},
    })
}

/// The cluster around it, which is well and has no guard.
pub fn failing(path: &str, query: &str) -> Answer {
    let event = json!({"type": "Warning", "reason": "BackOff", "count": 7, "lastTimestamp": "2026-11-02T09:55:02Z",
        "message": "Back-off restarting failed container app", "involvedObject": {"kind": "Pod", "name": "web-3-abcde"}});
    match path {
        "/apis/apps/v1/namespaces/shop/deployments/web" => Answer::Json(deployment()),
        "/apis/apps/v1/namespaces/shop/replicasets" => {
            list(&[replica_set(1, 0, 0), replica_set(2, 2, 2), replica_set(3, 1, 0)])
        }
        "/api/v1/namespaces/shop/pods" => list(&[crashed()]),
        "/api/v1/namespaces/shop/pods/web-3-abcde/log" => Answer::Text("starting\nfatal: no database\n"),
        "/api/v1/namespaces/shop/events" if query.contains("Pod") => list(&[event]),
        "/api/v1/namespaces/shop" => {
            Answer::Json(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}))
        }
        "/api/v1/nodes" => list(&[json!({"metadata": {"name": "n1"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}})]),
        "/apis/rollout-guard.io/v1alpha1/rolloutpolicies" => Answer::Refused(404),
        "/apis/apps/v1/deployments" => list(&[]),
        _ if path.starts_with("/apis/admissionregistration.k8s.io/") => list(&[]),
        "/api/v1/namespaces/shop/events"
        | "/api/v1/namespaces/shop/resourcequotas"
        | "/api/v1/namespaces/shop/limitranges" => list(&[]),
        _ => Answer::Refused(404),
    }
}
