//! The page `/ui/`: what is stuck, what was rolled back, and how the guard is; read-only, and live by server-sent events.
//!
//! ```text
//!  who looks ──▶ /ui/events ──▶ Page ◀── show(): whoever gathers it, for as long as it is wanted
//! ```
//!
//! The plain port is open to the kubelet and to Prometheus, and the page tells of every namespace. So it is for those
//! alone who may forward a port into the pod: by default it answers only what comes from the pod's own loopback, by a
//! name of the loopback, and through no proxy ([`Ui::Loopback`]). It has no button and takes no input; everything that it
//! is made of is in the binary, and its policy lets the browser load and run nothing else.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header, uri::Authority},
    middleware::{self, Next},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use clap::ValueEnum;
use futures::{Stream, StreamExt, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};

use crate::shutdown::Shutdown;

/// Open streams at a time, and calls for the state as well.
const STREAMS: usize = 16;

/// A stream without news says that it is alive so often.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// After which pause a browser asks again where a stream has ended.
const RETRY: Duration = Duration::from_secs(2);

/// The longest that a call for the state waits for the lists to be complete.
const STATE_LIMIT: Duration = Duration::from_secs(20);

/// What every answer under `/ui` carries.
const HEADERS: [(&str, &str); 8] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-embedder-policy", "require-corp"),
    ("x-frame-options", "DENY"),
    ("cache-control", "no-store"),
];

/// What a proxy adds. A sidecar hands on what comes from outside as if it came from the pod itself.
const FORWARDED: [&str; 5] =
    ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-envoy-external-address"];

const HTML: &str = include_str!("page/index.html");
const CSS: &str = include_str!("page/page.css");
const JS: &str = include_str!("page/page.js");
const ICON: &str = include_str!("page/favicon.svg");

/// Who may see the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ui {
    /// Who forwards a port into the pod: kubectl port-forward.
    Loopback,
    /// Whoever reaches the plain port.
    Anyone,
    /// Nobody.
    Off,
}

/// The page: what it shows, and who looks. Clones share both.
#[derive(Clone, Debug)]
pub struct Page(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ui: Ui,
    /// How to get there, for who came another way.
    way: String,
    ending: Shutdown,
    streams: Arc<Semaphore>,
    shown: watch::Sender<Option<Shown>>,
    /// How many look.
    viewers: watch::Sender<usize>,
    count: AtomicU64,
}

#[derive(Clone, Debug)]
struct Shown {
    id: u64,
    json: Arc<str>,
    complete: bool,
}

/// Somebody who looks; does so until it is dropped.
struct Viewer {
    page: Page,
    _permit: OwnedSemaphorePermit,
}

impl Page {
    /// Returns a page that `ui` may see and that ends with `ending`. `way` is how to open it, such as a command, for
    /// those who came another way.
    pub fn new(ui: Ui, way: impl Into<String>, ending: Shutdown) -> Self {
        Self(Arc::new(Inner {
            ui,
            way: way.into(),
            ending,
            streams: Arc::new(Semaphore::new(STREAMS)),
            shown: watch::Sender::new(None),
            viewers: watch::Sender::new(0),
            count: AtomicU64::new(0),
        }))
    }

    /// Completes once somebody looks.
    pub async fn wanted(&self) {
        self.viewers_are(|count| count > 0).await;
    }

    /// Completes once nobody has looked for `grace`.
    pub async fn unwanted(&self, grace: Duration) {
        loop {
            self.viewers_are(|count| count == 0).await;
            if timeout(grace, self.wanted()).await.is_err() {
                return;
            }
        }
    }

    async fn viewers_are(&self, so: impl Fn(usize) -> bool) {
        // The sender is in `self`, so this does not fail.
        let _ = self.0.viewers.subscribe().wait_for(|count| so(*count)).await;
    }

    /// Shows `state`, which is JSON, to all who look. `complete`: nothing of it is still being listed.
    pub fn show(&self, state: String, complete: bool) {
        let id = self.0.count.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.shown.send_replace(Some(Shown { id, json: state.into(), complete }));
    }

    /// Shows nothing any more: it would grow old.
    pub fn clear(&self) {
        self.0.shown.send_replace(None);
    }

    /// Looks from now on; none where too many do.
    fn look(&self) -> Option<Viewer> {
        let permit = Arc::clone(&self.0.streams).try_acquire_owned().ok()?;
        self.0.viewers.send_modify(|count| *count += 1);
        Some(Viewer { page: self.clone(), _permit: permit })
    }

    /// Returns the routes of the page; none where nobody may see it.
    pub(super) fn router(self) -> Router {
        if self.0.ui == Ui::Off {
            return Router::new();
        }
        let asset = |kind: &'static str, text: &'static str| {
            get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
        };
        Router::new()
            // The page asks for all else by relative paths, so the last segment must be empty.
            .route("/ui", get(|| async { (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, "ui/")]) }))
            .route("/ui/", asset("text/html; charset=utf-8", HTML))
            .route("/ui/page.css", asset("text/css; charset=utf-8", CSS))
            .route("/ui/page.js", asset("text/javascript; charset=utf-8", JS))
            .route("/ui/favicon.svg", asset("image/svg+xml", ICON))
            .route("/ui/events", get(events))
            .route("/ui/state.json", get(state))
            .layer(middleware::from_fn_with_state(self.clone(), guard))
            .with_state(self)
    }

    /// Returns why `request` is not answered, where it is not.
    fn refusal(&self, request: &Request) -> Option<String> {
        if is_of_another_site(request) {
            return Some("the page is not for other sites to read\n".to_owned());
        }
        if self.0.ui == Ui::Anyone || (comes_from_loopback(request) && names_loopback(request)) {
            return None;
        }
        let way = &self.0.way;
        Some(format!("the page is for those who forward a port into the pod:\n{way}\n"))
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.page.0.viewers.send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// Lets in who may see the page, and puts [`HEADERS`] on each answer.
async fn guard(State(page): State<Page>, request: Request, next: Next) -> Response {
    let mut response = match page.refusal(&request) {
        None => next.run(request).await,
        Some(why) => (StatusCode::FORBIDDEN, why).into_response(),
    };
    for (name, value) in HEADERS {
        let name = HeaderName::from_static(name);
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Says whether the peer is the pod itself, with no proxy in between. A sidecar's own address, such as 127.0.0.6, is not.
fn comes_from_loopback(request: &Request) -> bool {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let own = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let is_own = peer.is_some_and(|peer| own.contains(&peer.0.ip().to_canonical()));
    is_own && !FORWARDED.iter().any(|name| request.headers().contains_key(*name))
}

/// Says whether the browser asked the loopback by name: a name of somebody else's that leads here is a page of theirs
/// that would read this one.
fn names_loopback(request: &Request) -> bool {
    let is_local = |authority: &Authority| {
        let host = authority.host();
        host.eq_ignore_ascii_case("localhost") || host == "127.0.0.1" || host == "[::1]"
    };
    let mut named = request.headers().get_all(header::HOST).iter();
    let host = named.next().and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    // The address in the request line, which only proxies are sent, counts over the header.
    let in_line = request.uri().authority().is_none_or(is_local);
    host.as_ref().is_some_and(is_local) && named.next().is_none() && in_line
}

/// Says whether another site's page asks in the background. A link from there is followed.
fn is_of_another_site(request: &Request) -> bool {
    let said = |name: &str| request.headers().get(name).map(HeaderValue::as_bytes);
    let here = matches!(said("sec-fetch-site"), None | Some(b"same-origin" | b"none"));
    !here && said("sec-fetch-mode") != Some(b"navigate")
}

fn too_many() -> Response {
    let retry = [(header::RETRY_AFTER, "5")];
    (StatusCode::SERVICE_UNAVAILABLE, retry, format!("{STREAMS} look at the page already, try again later\n"))
        .into_response()
}

/// The state, whole, whenever it has changed.
async fn events(State(page): State<Page>) -> Response {
    let Some(viewer) = page.look() else { return too_many() };
    let ending = page.0.ending.clone();
    let stream = told(viewer).take_until(async move { ending.started().await });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response()
}

fn told(viewer: Viewer) -> impl Stream<Item = Result<Event, Infallible>> {
    let mut shown = viewer.page.0.shown.subscribe();
    shown.mark_changed();
    stream::unfold((viewer, shown), |(viewer, mut shown)| async move {
        loop {
            shown.changed().await.ok()?;
            let now = shown.borrow_and_update().clone();
            if let Some(now) = now {
                let event = Event::default().id(now.id.to_string()).retry(RETRY).data(now.json);
                return Some((Ok(event), (viewer, shown)));
            }
        }
    })
}

/// The state once, for scripts.
async fn state(State(page): State<Page>) -> Response {
    let Some(viewer) = page.look() else { return too_many() };
    let mut shown = viewer.page.0.shown.subscribe();
    let complete = shown.wait_for(|shown| shown.as_ref().is_some_and(|shown| shown.complete));
    let found = tokio::select! {
        found = timeout(STATE_LIMIT, complete) => found.ok().and_then(Result::ok).and_then(|shown| shown.clone()),
        () = page.0.ending.started() => None,
    };
    match found {
        Some(shown) => {
            let kind = [(header::CONTENT_TYPE, "application/json")];
            (kind, shown.json.as_ref().to_owned()).into_response()
        }
        None => {
            let words = "the records are still being listed, try again later\n";
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], words).into_response()
        }
    }
}
