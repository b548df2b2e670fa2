//! An API server in memory, as far as the watch of Deployments goes: pages of a list, and events.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::Uri,
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
}

impl Listed {
    /// Serves `count` Deployments on a port of the loopback, for as long as the runtime lives.
    pub async fn serve(count: usize) -> anyhow::Result<SocketAddr> {
        let listed = Arc::new(Self { objects: Objects::new()?, count, version: AtomicU64::new(1_000_000) });
        let router = Router::new().fallback(move |uri: Uri| {
            let listed = Arc::clone(&listed);
            async move { listed.answer(&uri) }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(address)
    }

    fn answer(self: Arc<Self>, uri: &Uri) -> Response {
        let query = uri.query().unwrap_or_default();
        if parameter(query, "watch").is_some() {
            let events = stream::iter(0..self.count).map(move |n| {
                event("MODIFIED", &self.objects.complete(n, self.version.fetch_add(1, Ordering::Relaxed)))
            });
            return streamed(events.chain(stream::pending()));
        }
        let number = |name: &str| parameter(query, name).and_then(|text| text.parse::<usize>().ok());
        let start = number("continue").unwrap_or_default();
        let end = (start + number("limit").unwrap_or(self.count)).min(self.count);
        Response::new(page(start..end, self.count, |n| {
            self.objects.complete(n, self.version.fetch_add(1, Ordering::Relaxed))
        }))
    }
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
