//! The routes of the TLS port, and what stands before them: a bounded queue, a body limit, panics caught.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Request as HttpRequest, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response as HttpResponse},
    routing::post,
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use jiff::Timestamp;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

use super::{
    judge::Judge,
    review::{self, Response, ReviewError},
};
use crate::telemetry::{Endpoint, Metrics};

/// Both objects of a review may have 3 MiB, and JSON in JSON adds to that. 7 MiB are taken, no more.
pub const BODY_LIMIT: usize = 7 * 1024 * 1024;

/// A body that takes longer is of no use: the API server waits 2 or 3 s.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How many calls are answered at a time, and how many may queue for it.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Calls answered at a time.
    pub in_flight: usize,
    /// Calls that wait. Those beyond are refused at once, so that overload answers fast.
    pub queued: usize,
}

struct Gate {
    all: Arc<Semaphore>,
    in_flight: Arc<Semaphore>,
    metrics: Metrics,
}

/// Returns the routes of the TLS port.
pub fn router(judge: Judge, capacity: Capacity) -> Router {
    let metrics = judge.metrics.clone();
    // Shared as one: a clone of each counter at each call would cost more than the counting.
    let gate = Arc::new(Gate {
        all: Arc::new(Semaphore::new(capacity.in_flight + capacity.queued)),
        in_flight: Arc::new(Semaphore::new(capacity.in_flight)),
        metrics: metrics.clone(),
    });
    let panicked = move |_: Box<dyn std::any::Any + Send>| {
        metrics.reject("panic");
        refused(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
    };
    Router::new()
        .route("/validate", post(validate))
        .route("/mutate", post(mutate))
        .fallback(async || refused(StatusCode::NOT_FOUND, "there are /validate and /mutate here"))
        .with_state(Arc::new(judge))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(gate, enter))
}

/// Lets a call in, or refuses it at once where the queue is full.
async fn enter(State(gate): State<Arc<Gate>>, request: HttpRequest, next: Next) -> HttpResponse {
    let Ok(_place) = gate.all.try_acquire() else {
        gate.metrics.reject("overload");
        return refused(StatusCode::SERVICE_UNAVAILABLE, "too many calls at once");
    };
    let Ok(_permit) = gate.in_flight.acquire().await else {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "shutting down");
    };
    gate.metrics.in_flight.inc();
    // Also where the client goes away and this future is dropped.
    let _counted = Counted(&gate.metrics);
    next.run(request).await
}

struct Counted<'a>(&'a Metrics);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

async fn validate(State(judge): State<Arc<Judge>>, headers: HeaderMap, body: Body) -> HttpResponse {
    let body = match read(&headers, body).await {
        Ok(body) => body,
        Err(unread) => return unread.answer(&judge.metrics),
    };
    let started = Instant::now();
    let answer = match review::parse(&body) {
        Ok(request) => judge.validate(&request, Timestamp::now()).await,
        Err(error) => Err(error),
    };
    finish(&judge, Endpoint::Validate, started, answer)
}

async fn mutate(State(judge): State<Arc<Judge>>, headers: HeaderMap, body: Body) -> HttpResponse {
    let body = match read(&headers, body).await {
        Ok(body) => body,
        Err(unread) => return unread.answer(&judge.metrics),
    };
    let started = Instant::now();
    let answer = review::parse(&body).and_then(|request| judge.mutate(&request));
    finish(&judge, Endpoint::Mutate, started, answer)
}

/// A body that was not read to its end.
struct Unread {
    cause: &'static str,
    status: StatusCode,
    why: &'static str,
}

impl Unread {
    fn answer(self, metrics: &Metrics) -> HttpResponse {
        metrics.reject(self.cause);
        refused(self.status, self.why)
    }
}

/// Reads the whole body, at most [`BODY_LIMIT`] bytes of it.
async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Unread> {
    let unread = |cause, status, why| Unread { cause, status, why };
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next()).map(str::trim);
    if !media_type.is_some_and(|media_type| media_type.eq_ignore_ascii_case("application/json")) {
        let why = "want content-type application/json";
        return Err(unread("content_type", StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_LIMIT).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(unread("too_large", StatusCode::PAYLOAD_TOO_LARGE, "body is larger than 7 MiB"))
        }
        Ok(Err(_)) => Err(unread("malformed", StatusCode::BAD_REQUEST, "body ended early")),
        Err(_) => Err(unread("timeout", StatusCode::REQUEST_TIMEOUT, "body took longer than 5 s")),
    }
}

fn finish(
    judge: &Judge,
    endpoint: Endpoint,
    started: Instant,
    answer: Result<Response, ReviewError>,
) -> HttpResponse {
    let response = answer.and_then(|response| Ok(review::answer(&response)?));
    judge.metrics.took(endpoint, started.elapsed());
    match response {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => {
            judge.metrics.reject("malformed");
            let why = crate::core::message::plain(&error.to_string(), 300);
            tracing::warn!(error = why, "not judged");
            refused(StatusCode::BAD_REQUEST, &why)
        }
    }
}

fn refused(status: StatusCode, why: &str) -> HttpResponse {
    (status, format!("{why}\n")).into_response()
}
