//! Traces against a real HTTP server on this machine that takes OTLP.

#[path = "../notify/server.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod collector;

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use collector::{Reply, Server, until};
use futures::FutureExt;
use jiff::Timestamp;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::{Span, span::SpanKind, status::StatusCode as SpanStatus},
};
use prost::Message;
use rollout_guard::{
    core::{
        key::Key,
        record::{AtWork, Before},
        template::TemplateHash,
    },
    telemetry::{
        Metrics,
        traces::{DecisionSpan, RollbackSpan, TraceParent, Traces},
    },
    watcher::reconcile::Memory,
};

use crate::{
    PARENT,
    memory::{self, Broken, State, WELL, reconciler, secs, short},
    support, validate,
};

/// All spans that were sent.
fn spans(server: &Server) -> Vec<Span> {
    let requests = server.calls().into_iter().map(|call| {
        assert_eq!(call.path, "/v1/traces");
        assert_eq!(call.header("content-type"), "application/x-protobuf");
        ExportTraceServiceRequest::decode(call.body).expect("OTLP")
    });
    requests
        .flat_map(|request| request.resource_spans)
        .inspect(|of| {
            let resource = of.resource.as_ref().expect("a resource");
            assert_eq!(text(&resource.attributes, "service.name"), "rollout-guard");
        })
        .flat_map(|of| of.scope_spans)
        .flat_map(|of| of.spans)
        .collect()
}

fn value(attributes: &[KeyValue], key: &str) -> Any {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    found.and_then(|a| a.value.clone()?.value).unwrap_or_else(|| panic!("no {key} in {attributes:?}"))
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Any::StringValue(text) => text,
        other => panic!("{key} is {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Traces to a collector that answers by `replies`.
async fn tracing_to(replies: &[Reply]) -> (Server, Traces) {
    let server = Server::start(replies).await;
    let traces = Traces::start(Some(&server.url(""))).expect("a collector");
    (server, traces)
}

fn decision(parent: Option<TraceParent>) -> DecisionSpan<'static> {
    DecisionSpan {
        parent,
        took: Duration::from_millis(7),
        uid: "uid-1",
        namespace: "shop",
        name: "web",
        verdict: "deny",
        reason: "RG002",
        policy: "default",
        mode: "enforce",
        dry_run: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_on_a_real_call_is_one_span_under_that_of_the_caller() {
    let (server, traces) = tracing_to(&[Reply::Status(200)]).await;
    let logs = support::logs::Logs::json();
    let metrics = Metrics { traces: traces.clone(), ..Metrics::default() };
    let answer = validate(metrics, "update-failed.validate", Some(PARENT)).await;
    assert_eq!(answer["allowed"], false, "{answer}");
    let review = support::review("update-failed.validate");
    traces.stop().await;

    let spans = spans(&server);
    let [span] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!((span.name.as_str(), span.kind), ("decision", i32::from(SpanKind::Server)));
    assert_eq!(hex(&span.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(hex(&span.parent_span_id), "00f067aa0ba902b7");
    let attribute = |key: &str| text(&span.attributes, key);
    assert_eq!(attribute("k8s.namespace.name"), review["request"]["namespace"]);
    assert_eq!(attribute("k8s.deployment.name"), review["request"]["name"]);
    assert_eq!(attribute("rollout_guard.review.uid"), review["request"]["uid"]);
    assert_eq!(attribute("rollout_guard.verdict"), "deny");
    assert_eq!(attribute("rollout_guard.reason"), "RG002");
    assert_eq!(attribute("rollout_guard.policy"), "default");
    assert_eq!(attribute("rollout_guard.mode"), "enforce");
    assert_eq!(value(&span.attributes, "rollout_guard.dry_run"), Any::BoolValue(false));
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    assert!(logs.read().contains("\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\""), "{}", logs.read());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_without_a_caller_has_a_trace_of_its_own() {
    let (server, traces) = tracing_to(&[Reply::Status(200)]).await;
    let id = traces.decision(&decision(None)).expect("a trace");
    traces.stop().await;
    let spans = spans(&server);
    assert_eq!(hex(&spans[0].trace_id), id.to_string());
    assert!(spans[0].parent_span_id.is_empty());
    let took = spans[0].end_time_unix_nano - spans[0].start_time_unix_nano;
    assert_eq!(took, 7_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_the_caller_does_not_sample_is_logged_and_not_sent() {
    let (server, traces) = tracing_to(&[Reply::Status(200)]).await;
    let parent = TraceParent::parse(&format!("{}00", &PARENT[..53])).expect("a parent");
    assert_eq!(traces.decision(&decision(Some(parent))), Some(parent.trace_id()));
    traces.stop().await;
    assert!(server.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_is_one_span_from_its_intent_to_its_outcome() {
    let (server, traces) = tracing_to(&[Reply::Status(200)]).await;
    let mut state = State::new(1, 1, Broken::default());
    let key = Key::new("shop", "web");
    state.create(&key, "good-1", 2);
    state.good_after = secs(10);
    state.switches[0].leads.store(true, Ordering::SeqCst);
    let state = Arc::new(Mutex::new(state));
    let mut reconciler = reconciler(&state, 0, memory::policy(short("Enforce", "Automatic")));
    reconciler.metrics.traces = traces.clone();
    reconciler.surroundings.set_guarded(10);
    let pass = |seconds: i64| {
        let mut state = state.lock().expect("not poisoned");
        for _ in 0..seconds {
            let now = state.now;
            state.advance(now + secs(1));
            for _ in 0..5 {
                if state.is_due(&key) {
                    state.sync(&key);
                }
            }
        }
    };
    pass(30);
    let mut memory = Memory::default();
    {
        let mut state = state.lock().expect("not poisoned");
        let before = TemplateHash::of(&state.deployments[&key]["spec"]["template"]);
        let now = state.now;
        state.push(&key, "missing-2");
        memory.before = Some(Before { template: before, complete: (now - secs(25), now) });
    }
    for _ in 0..60 {
        let now = state.lock().expect("not poisoned").now;
        let at_work = AtWork::Since { since: memory::start(), last: now };
        reconciler.surroundings.set_health(WELL, Some(at_work), Default::default(), now);
        let _ = reconciler.reconcile(&key, &mut memory, now).now_or_never().expect("it waits for nobody");
        pass(1);
    }
    traces.stop().await;

    let record = state.lock().expect("not poisoned").own_record(&key).expect("a record").status.clone();
    let rollback = record.rollback.expect("a rollback");
    let spans = spans(&server);
    let [span] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!(span.name, "rollback");
    let nanos = |time: Timestamp| u64::try_from(time.as_nanosecond()).expect("in range");
    assert_eq!(span.start_time_unix_nano, nanos(rollback.started_at.0));
    assert_eq!(span.end_time_unix_nano, nanos(rollback.finished_at.expect("it is over").0));
    let events: Vec<&str> = span.events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(events, ["intend", "restore", "verified"]);
    assert!(span.events.windows(2).all(|pair| pair[0].time_unix_nano <= pair[1].time_unix_nano));
    let attribute = |key: &str| text(&span.attributes, key);
    assert_eq!(
        (attribute("k8s.namespace.name"), attribute("k8s.deployment.name")),
        ("shop".into(), "web".into())
    );
    assert_eq!(attribute("rollout_guard.cause"), "Image");
    assert_eq!(attribute("rollout_guard.outcome"), "succeeded");
    assert_eq!(attribute("rollout_guard.from.template_hash"), rollback.from);
    assert_eq!(attribute("rollout_guard.to.template_hash"), rollback.to);
    assert_eq!(value(&span.attributes, "rollout_guard.from.revision"), Any::IntValue(2));
    assert_eq!(value(&span.attributes, "rollout_guard.to.revision"), Any::IntValue(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_that_failed_is_a_span_with_an_error() {
    let (server, traces) = tracing_to(&[Reply::Status(200)]).await;
    let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).expect("in range");
    traces.rollback(&RollbackSpan {
        namespace: "shop",
        name: "web",
        uid: "uid-1",
        cause: "Image",
        outcome: "failed",
        from: (None, "bad"),
        to: (Some(1), "good"),
        intended: at(0),
        restored: None,
        finished: at(9),
    });
    traces.stop().await;
    let spans = spans(&server);
    assert_eq!(spans[0].status.as_ref().map(|status| status.code), Some(i32::from(SpanStatus::Error)));
    assert!(spans[0].attributes.iter().all(|attribute| attribute.key != "rollout_guard.from.revision"));
    assert_eq!(spans[0].events.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_holds_up_no_decision() {
    let (server, traces) = tracing_to(&[Reply::Hang]).await;
    let begun = Instant::now();
    for _ in 0..20_000 {
        let _ = traces.decision(&decision(None));
    }
    let each = begun.elapsed() / 20_000;
    println!("{each:?} each, with a collector that hangs");
    assert!(each < Duration::from_millis(1), "{each:?}");
    let stopping = Instant::now();
    traces.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(15), "the end waits for some seconds only");
    until(|| !server.calls().is_empty(), || "it was called".to_owned()).await;
}

#[tokio::test]
async fn without_an_endpoint_nothing_is_sent_and_a_wrong_one_is_an_error() {
    let traces = Traces::start(None).expect("nothing");
    assert_eq!(traces.decision(&decision(None)), None);
    let parent = TraceParent::parse(PARENT);
    assert_eq!(traces.decision(&decision(parent)), parent.map(TraceParent::trace_id));
    for endpoint in ["collector:4318", "grpc://collector:4317", "https://user:s3cret@collector"] {
        let error = Traces::start(Some(endpoint)).expect_err(endpoint).to_string();
        assert!(error.starts_with("traces cannot be sent: the url"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}
