//! What the guard tells about traces. Sending them is tested where the feature `otlp` is: `--features otlp`.

#![allow(clippy::expect_used, clippy::panic, reason = "what a test needs is there, or the test fails")]

#[cfg(feature = "otlp")]
mod memory;
#[cfg(feature = "otlp")]
#[path = "traces/otlp.rs"]
mod otlp;
mod support;

use std::sync::Arc;

use axum::body::Body;
use http::HeaderValue;
use http_body_util::BodyExt;
use rollout_guard::{
    core::policy::PolicySet,
    telemetry::{Metrics, traces::Traces},
    webhook::{judge::Judge, router::router},
    world::World,
};
use serde_json::{Value, json};
use tower::ServiceExt;

/// Of an API server that traces, and samples, this call.
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Sends a captured review to the real router and returns the response.
async fn validate(metrics: Metrics, fixture: &str, parent: Option<&str>) -> Value {
    let world = World::running_as("rollout-guard", "rollout-guard");
    world.set_policies(PolicySet::new([support::policy("default", json!({}))]));
    let judge = Judge {
        world,
        access: Arc::new(support::Asked::new(support::Answers::No)),
        announcements: Arc::new(support::Retracted::default()),
        metrics,
        docs: "docs/reasons.md".into(),
    };
    let mut request = support::post("/validate", Body::from(support::fixture(fixture)));
    if let Some(parent) = parent {
        request.headers_mut().insert("traceparent", HeaderValue::from_str(parent).expect("a header"));
    }
    let response = router(judge, support::ROOMY).oneshot(request).await.expect("infallible");
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let mut review: Value = serde_json::from_slice(&body).expect("JSON");
    review["response"].take()
}

#[tokio::test]
async fn the_log_line_of_a_decision_carries_the_callers_trace_in_every_build() {
    let logs = support::logs::Logs::json();
    validate(Metrics::default(), "update-failed.validate", Some(PARENT)).await;
    validate(Metrics::default(), "update-failed.validate", None).await;
    validate(Metrics::default(), "update-failed.validate", Some("00-nonsense")).await;
    let log = logs.read();
    let decisions: Vec<&str> = log.lines().filter(|line| line.contains("\"decision\"")).collect();
    let with: Vec<bool> = decisions
        .iter()
        .map(|line| line.contains("\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\""))
        .collect();
    assert_eq!(with, [true, false, false], "{log}");
    assert!(!decisions[1].contains("trace_id") && !decisions[2].contains("trace_id"), "{log}");
}

#[tokio::test]
async fn a_binary_without_the_feature_says_so() {
    let started = Traces::start(Some("http://127.0.0.1:4318"));
    assert_eq!(started.is_ok(), cfg!(feature = "otlp"));
    if let Err(error) = started {
        assert!(error.to_string().ends_with("built without the feature otlp"), "{error}");
    }
}
