//! An API server in memory, as far as the watch of Deployments goes: pages of a list, and events; and what clients of
//! Kubernetes ask first of all.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, Uri, header},
    response::Response,
};
use futures::{Stream, StreamExt, stream};
use tokio::net::TcpListener;

use crate::objects::Objects;

/// Deployments that are listed by pages, and then each told of once more by the watch.
pub struct Listed {
    objects: Objects,
    count: usize,
    version: AtomicU64,
    pages: AtomicUsize,
    watches: AtomicUsize,
    told: AtomicUsize,
}

impl Listed {
    /// Serves `count` Deployments on a port of the loopback, for as long as the runtime lives.
    pub async fn serve(count: usize) -> anyhow::Result<(SocketAddr, Arc<Self>)> {
        let (pages, watches, told) = Default::default();
        let version = AtomicU64::new(1_000_000);
        let listed = Arc::new(Self { objects: Objects::new()?, count, version, pages, watches, told });
        let server = Arc::clone(&listed);
        let router = Router::new().fallback(move |uri: Uri| {
            let server = Arc::clone(&server);
            async move {
                let mut response = server.answer(&uri);
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok((address, listed))
    }

    /// Whether anybody has asked for the list.
    pub fn is_asked(&self) -> bool {
        self.pages.load(Ordering::SeqCst) > 0
    }

    /// Whether anybody watches, and so has the whole list.
    pub fn is_listed(&self) -> bool {
        self.watches.load(Ordering::SeqCst) > 0
    }

    /// Whether all events have been taken.
    pub fn is_told(&self) -> bool {
        self.told.load(Ordering::SeqCst) >= self.count
    }

    fn answer(self: Arc<Self>, uri: &Uri) -> Response {
        if uri.path() != "/apis/apps/v1/deployments" {
            return discovery(uri.path());
        }
        let query = uri.query().unwrap_or_default();
        if parameter(query, "sendInitialEvents").is_some() {
            // As an API server answers that has no streaming lists: the client asks for pages then.
            let mut response = Response::new(Body::from(
                r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}"#,
            ));
            *response.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
            return response;
        }
        if parameter(query, "watch").is_some() {
            self.watches.fetch_add(1, Ordering::SeqCst);
            let events = stream::iter(0..self.count).map(move |n| {
                self.told.fetch_add(1, Ordering::SeqCst);
                event("MODIFIED", &self.objects.complete(n, self.version.fetch_add(1, Ordering::Relaxed)))
            });
            return streamed(events.chain(stream::pending()));
        }
        self.pages.fetch_add(1, Ordering::SeqCst);
        let number = |name: &str| parameter(query, name).and_then(|text| text.parse::<usize>().ok());
        let start = number("continue").unwrap_or_default();
        let end = (start + number("limit").unwrap_or(self.count)).min(self.count);
        Response::new(page(start..end, self.count, |n| {
            self.objects.complete(n, self.version.fetch_add(1, Ordering::Relaxed))
        }))
    }
}

/// What an API server says of itself.
fn discovery(path: &str) -> Response {
    let apps = r#""name":"apps","versions":[{"groupVersion":"apps/v1","version":"v1"}],"preferredVersion":{"groupVersion":"apps/v1","version":"v1"}"#;
    let said = match path {
        "/version" => r#"{"major":"1","minor":"37","gitVersion":"v1.37.2"}"#.to_owned(),
        "/api" => r#"{"kind":"APIVersions","versions":["v1"]}"#.to_owned(),
        "/apis" => format!(r#"{{"kind":"APIGroupList","apiVersion":"v1","groups":[{{{apps}}}]}}"#),
        "/apis/apps" => format!(r#"{{"kind":"APIGroup","apiVersion":"v1",{apps}}}"#),
        "/apis/apps/v1" => {
            let deployments = r#"{"name":"deployments","singularName":"deployment","namespaced":true,"kind":"Deployment","verbs":["get","list","watch"]}"#;
            format!(
                r#"{{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"apps/v1","resources":[{deployments}]}}"#
            )
        }
        _ => {
            let mut response = Response::new(Body::from(
                r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}"#,
            ));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
    };
    Response::new(Body::from(said))
}

/// Returns a page of a list of `count`, each item by its number.
pub fn page(numbers: std::ops::Range<usize>, count: usize, item: impl Fn(usize) -> String) -> Body {
    let next = if numbers.end < count { numbers.end.to_string() } else { String::new() };
    let items: Vec<String> = numbers.map(item).collect();
    Body::from(format!(
        r#"{{"kind":"DeploymentList","apiVersion":"apps/v1","metadata":{{"resourceVersion":"1000000","continue":"{next}"}},"items":[{}]}}"#,
        items.join(",")
    ))
}

/// Returns an event of a watch.
pub fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

/// Returns an answer that goes on for as long as the stream does.
pub fn streamed(lines: impl Stream<Item = String> + Send + 'static) -> Response {
    Response::new(Body::from_stream(lines.map(|line| Ok::<_, Infallible>(Bytes::from(line)))))
}

/// Returns a parameter of a query.
pub fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}
