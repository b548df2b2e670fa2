//! The routes of the TLS port, and what stands before them: a bounded queue, a body limit, panics caught.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::{Request as HttpRequest, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response as HttpResponse},
    routing::post,
};
use http_body_util::BodyExt;
use jiff::Timestamp;
use tokio::sync::{Semaphore, SemaphorePermit};
use tower_http::catch_panic::CatchPanicLayer;

use super::{
    judge::Judge,
    review::{self, Response, ReviewError},
};
use crate::telemetry::{Endpoint, Metrics, traces::TraceParent};

/// Both objects of a review may have 3 MiB, and JSON in JSON adds to that. 7 MiB are taken, no more.
pub const BODY_LIMIT: usize = 7 * 1024 * 1024;

/// A body that takes longer is of no use: the API server waits 2 or 3 s.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// The most bytes of bodies in memory at a time, whoever sends them. Twenty kilobytes are usual.
const BODIES_LIMIT: usize = 64 * 1024 * 1024;

/// How many calls are answered at a time, and how many may queue for it.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Calls answered at a time.
    pub in_flight: usize,
    /// Calls that wait, or whose body is still on its way. Those beyond are refused at once, so that overload
    /// answers fast.
    pub queued: usize,
}

#[derive(Clone)]
struct App {
    judge: Judge,
    gate: Gate,
}

#[derive(Clone)]
struct Gate {
    /// Every call from its header on.
    all: Arc<Semaphore>,
    /// Bytes of bodies.
    bytes: Arc<Semaphore>,
    /// Calls whose body is there: one that is sent slowly takes no place from the others.
    in_flight: Arc<Semaphore>,
    metrics: Metrics,
}

/// Returns the routes of the TLS port.
pub fn router(judge: Judge, capacity: Capacity) -> Router {
    let metrics = judge.metrics.clone();
    let gate = Gate {
        all: Arc::new(Semaphore::new(capacity.in_flight + capacity.queued)),
        bytes: Arc::new(Semaphore::new(BODIES_LIMIT)),
        in_flight: Arc::new(Semaphore::new(capacity.in_flight)),
        metrics: metrics.clone(),
    };
    let panicked = move |_: Box<dyn std::any::Any + Send>| {
        metrics.reject("panic");
        refused(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
    };
    Router::new()
        .route("/validate", post(validate))
        .route("/mutate", post(mutate))
        .fallback(async || refused(StatusCode::NOT_FOUND, "there are /validate and /mutate here"))
        .with_state(App { judge, gate: gate.clone() })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(gate, enter))
}

/// Lets a call in, or refuses it at once where the queue is full.
async fn enter(State(gate): State<Gate>, request: HttpRequest, next: Next) -> HttpResponse {
    let Ok(_place) = gate.all.try_acquire() else {
        gate.metrics.reject("overload");
        return refused(StatusCode::SERVICE_UNAVAILABLE, "too many calls at once");
    };
    next.run(request).await
}

async fn validate(State(app): State<App>, headers: HeaderMap, body: Body) -> HttpResponse {
    let call = match app.gate.read(&headers, body).await {
        Ok(call) => call,
        Err(unread) => return unread.answer(&app.gate.metrics),
    };
    let started = Instant::now();
    // Of an API server that traces its own calls.
    let caller = headers.get("traceparent").and_then(|value| TraceParent::parse(value.to_str().ok()?));
    let answer = match review::parse(&call.body) {
        Ok(request) => {
            app.judge.validate_from(&request, caller, Timestamp::now()).await.map(|(answer, _)| answer)
        }
        Err(error) => Err(error),
    };
    finish(&app.judge, Endpoint::Validate, started, answer)
}

async fn mutate(State(app): State<App>, headers: HeaderMap, body: Body) -> HttpResponse {
    let call = match app.gate.read(&headers, body).await {
        Ok(call) => call,
        Err(unread) => return unread.answer(&app.gate.metrics),
    };
    let started = Instant::now();
    let answer = review::parse(&call.body).and_then(|request| app.judge.mutate(&request));
    finish(&app.judge, Endpoint::Mutate, started, answer)
}

/// A call whose body is there, with its place among those that are answered.
struct Call<'a> {
    body: Vec<u8>,
    gate: &'a Gate,
    _bytes: Option<SemaphorePermit<'a>>,
    _place: SemaphorePermit<'a>,
}

impl Drop for Call<'_> {
    /// Also where the client goes away and the future is dropped.
    fn drop(&mut self) {
        self.gate.metrics.in_flight.dec();
    }
}

/// A call that is not judged.
struct Unread {
    cause: &'static str,
    status: StatusCode,
    why: &'static str,
}

impl Unread {
    const TOO_LARGE: Self =
        Self { cause: "too_large", status: StatusCode::PAYLOAD_TOO_LARGE, why: "body is larger than 7 MiB" };
    const OVERLOAD: Self =
        Self { cause: "overload", status: StatusCode::SERVICE_UNAVAILABLE, why: "too many bytes at once" };

    fn answer(self, metrics: &Metrics) -> HttpResponse {
        metrics.reject(self.cause);
        refused(self.status, self.why)
    }
}

impl Gate {
    /// Reads the whole body and waits for a place.
    async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Call<'_>, Unread> {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = content_type.and_then(|value| value.split(';').next()).map(str::trim);
        if !media_type.is_some_and(|media_type| media_type.eq_ignore_ascii_case("application/json")) {
            return Err(Unread {
                cause: "content_type",
                status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
                why: "want content-type application/json",
            });
        }
        let (body, bytes) =
            tokio::time::timeout(BODY_TIMEOUT, self.collect(body)).await.map_err(|_| Unread {
                cause: "timeout",
                status: StatusCode::REQUEST_TIMEOUT,
                why: "body took longer than 5 s",
            })??;
        // The semaphore is never closed.
        let place = self.in_flight.acquire().await.map_err(|_| Unread::OVERLOAD)?;
        self.metrics.in_flight.inc();
        Ok(Call { body, gate: self, _bytes: bytes, _place: place })
    }

    /// Reads at most [`BODY_LIMIT`] bytes, and of all bodies together at most [`BODIES_LIMIT`], counted as they come:
    /// what somebody only announces takes nothing from the others.
    async fn collect(&self, mut body: Body) -> Result<(Vec<u8>, Option<SemaphorePermit<'_>>), Unread> {
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if announced > BODY_LIMIT {
            return Err(Unread::TOO_LARGE);
        }
        let mut collected = Vec::with_capacity(announced.min(64 * 1024));
        let mut held: Option<SemaphorePermit<'_>> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Unread {
                cause: "malformed",
                status: StatusCode::BAD_REQUEST,
                why: "body ended early",
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if collected.len() + data.len() > BODY_LIMIT {
                return Err(Unread::TOO_LARGE);
            }
            let count = u32::try_from(data.len()).map_err(|_| Unread::TOO_LARGE)?;
            let more = self.bytes.try_acquire_many(count).map_err(|_| Unread::OVERLOAD)?;
            match &mut held {
                Some(held) => held.merge(more),
                None => held = Some(more),
            }
            collected.extend_from_slice(&data);
        }
        Ok((collected, held))
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
