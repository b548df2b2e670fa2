//! What the tests of the webhook share: captured reviews, a judge of the test's own, calls to the real router.

#![allow(dead_code, reason = "each test crate uses a part of it")]

pub mod logs;
pub mod server;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt;
use rollout_guard::{
    cluster::{
        ClusterError,
        access::{Access, User},
        announcements::Announcements,
    },
    core::{
        key::Key,
        policy::{Policy, PolicySet, compile},
    },
    telemetry::Metrics,
    webhook::{
        judge::Judge,
        router::{Capacity, router},
    },
    world::World,
};
use serde_json::Value;
use tokio::sync::Semaphore;
use tower::ServiceExt;

/// Where the captured reviews are.
pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A captured review, as it was sent: `update-failed.validate`.
pub fn fixture(name: &str) -> Vec<u8> {
    let path = fixtures().join(format!("{name}.json"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A captured review as a value, for a test to change.
pub fn review(name: &str) -> Value {
    serde_json::from_slice(&fixture(name)).expect("a captured review is JSON")
}

/// The names of all captured reviews.
pub fn all_fixtures() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(fixtures())
        .expect("fixtures")
        .filter_map(|entry| {
            entry.expect("an entry").file_name().to_str()?.strip_suffix(".json").map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}

/// A valid policy.
pub fn policy(name: &str, spec: Value) -> Arc<Policy> {
    Arc::new(compile(name, 1, &serde_json::from_value(spec).expect("a spec")).expect("a valid policy"))
}

/// Who may override, in a test; counts how often it was asked.
#[derive(Clone)]
pub struct Asked {
    answer: Answers,
    count: Arc<AtomicUsize>,
    user: Arc<std::sync::Mutex<Option<(User, String)>>>,
}

/// What the API server would answer.
#[derive(Clone)]
pub enum Answers {
    Yes,
    No,
    Failure,
    Panic,
    /// Nothing, until the semaphore has a permit.
    Held(Arc<Semaphore>),
}

impl Asked {
    pub fn new(answer: Answers) -> Self {
        Self { answer, count: Arc::default(), user: Arc::default() }
    }

    /// How often somebody asked.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// About whom, and which policy, was asked last.
    pub fn last(&self) -> Option<(User, String)> {
        self.user.lock().expect("not poisoned").clone()
    }
}

impl Access for Asked {
    fn may_override<'a>(
        &'a self,
        user: &'a User,
        policy: &'a str,
    ) -> BoxFuture<'a, Result<bool, ClusterError>> {
        self.count.fetch_add(1, Ordering::SeqCst);
        *self.user.lock().expect("not poisoned") = Some((user.clone(), policy.to_owned()));
        let answer = self.answer.clone();
        async move {
            match answer {
                Answers::Yes => Ok(true),
                Answers::No => Ok(false),
                Answers::Failure => Err(ClusterError::Timeout { what: "ask".to_owned(), seconds: 1 }),
                Answers::Panic => panic!("the access review panics on purpose"),
                Answers::Held(gate) => {
                    let permit = gate.acquire().await.expect("open");
                    drop(permit);
                    Ok(true)
                }
            }
        }
        .boxed()
    }
}

/// The announcements that were taken away, in a test.
#[derive(Clone, Default)]
pub struct Retracted {
    calls: Arc<std::sync::Mutex<Vec<(String, String)>>>,
    fails: Arc<std::sync::atomic::AtomicBool>,
}

impl Retracted {
    /// From which Deployments, by name and uid, in order.
    pub fn calls(&self) -> Vec<(String, String)> {
        self.calls.lock().expect("not poisoned").clone()
    }

    /// From now on the API server does not answer.
    pub fn fail(&self) {
        self.fails.store(true, Ordering::SeqCst);
    }
}

impl Announcements for Retracted {
    fn retract<'a>(&'a self, key: &'a Key, uid: &'a str) -> BoxFuture<'a, Result<(), ClusterError>> {
        self.calls.lock().expect("not poisoned").push((key.to_string(), uid.to_owned()));
        let fails = self.fails.load(Ordering::SeqCst);
        let error = || ClusterError::Timeout { what: "retract".to_owned(), seconds: 1 };
        futures::future::ready(if fails { Err(error()) } else { Ok(()) }).boxed()
    }
}

/// The guard's own user, in a test.
pub const GUARD: &str = "system:serviceaccount:rollout-guard:rollout-guard";

/// The real router over policies and an answer of the test's.
#[derive(Clone)]
pub struct Door {
    pub router: Router,
    pub access: Asked,
    pub retracted: Retracted,
    pub metrics: Metrics,
    pub world: World,
}

/// A capacity that no test reaches by accident.
pub const ROOMY: Capacity = Capacity { in_flight: 64, queued: 256 };

impl Door {
    /// With one policy named `default`.
    pub fn new(spec: Value, answer: Answers) -> Self {
        Self::with([policy("default", spec)], answer, ROOMY)
    }

    pub fn with(
        policies: impl IntoIterator<Item = Arc<Policy>>,
        answer: Answers,
        capacity: Capacity,
    ) -> Self {
        let (metrics, access, retracted) = (Metrics::default(), Asked::new(answer), Retracted::default());
        let world = World::running_as("rollout-guard", "rollout-guard");
        world.set_policies(PolicySet::new(policies));
        let judge = Judge {
            world: world.clone(),
            access: Arc::new(access.clone()),
            announcements: Arc::new(retracted.clone()),
            metrics: metrics.clone(),
            docs: "docs/reasons.md".into(),
        };
        Self { router: router(judge, capacity), access, retracted, metrics, world }
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let answer = tokio::time::timeout(Duration::from_secs(10), self.router.clone().oneshot(request));
        let response = answer.await.expect("an answer within ten seconds").expect("infallible");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn call(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send(post(path, body)).await
    }

    /// Asks for a verdict, which must come.
    pub async fn validate(&self, review: &Value) -> Value {
        self.call("/validate", review.to_string()).await.response()
    }

    /// Asks for a patch; null where there is none.
    pub async fn mutate(&self, review: &Value) -> Value {
        self.call("/mutate", review.to_string()).await.patch()
    }

    /// The metrics as Prometheus would read them.
    pub fn metric(&self, line: &str) -> Option<u64> {
        let text = rollout_guard::telemetry::openmetrics(&self.metrics.registry()).expect("encodes");
        let line = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' ').map(str::to_owned))?;
        line.parse().ok()
    }
}

/// A call as the API server makes it.
pub fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.into())
        .expect("a valid request")
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    /// The `response` of a well-formed AdmissionReview.
    pub fn response(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text());
        assert_eq!(self.headers.get(header::CONTENT_TYPE).expect("a content type"), "application/json");
        let mut review: Value = serde_json::from_slice(&self.body).expect("JSON");
        assert_eq!(review["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(review["kind"], "AdmissionReview");
        let response = review["response"].take();
        assert!(response["uid"].is_string() && response["allowed"].is_boolean(), "{response}");
        response
    }

    /// The patch in a response, as JSON; null where there is none.
    pub fn patch(&self) -> Value {
        let response = self.response();
        assert_eq!(response["allowed"], true, "a mutating webhook refuses nothing");
        match &response["patch"] {
            Value::Null => {
                assert_eq!(response["patchType"], Value::Null);
                Value::Null
            }
            encoded => {
                assert_eq!(response["patchType"], "JSONPatch");
                let bytes: k8s_openapi::ByteString = serde_json::from_value(encoded.clone()).expect("base64");
                serde_json::from_slice(&bytes.0).expect("a patch is JSON")
            }
        }
    }
}

/// Applies a patch as the API server does; null changes nothing.
pub fn patched(object: &Value, patch: &Value) -> Value {
    let mut object = object.clone();
    if !patch.is_null() {
        let patch: json_patch::Patch = serde_json::from_value(patch.clone()).expect("RFC 6902");
        json_patch::patch(&mut object, &patch).expect("applies");
    }
    object
}
