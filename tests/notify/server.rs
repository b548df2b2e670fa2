//! A receiver: a real HTTP server on this machine that keeps what it is sent and answers as it is told.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Bytes, to_bytes},
    extract::Request,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use tokio::{net::TcpListener, time::Instant};

/// What a receiver does with a call.
#[derive(Clone, Debug)]
pub enum Reply {
    Status(u16),
    /// With one header.
    With(u16, &'static str, String),
    /// Never answers.
    Hang,
}

/// A call as it came in.
#[derive(Clone, Debug)]
pub struct Call {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub at: Instant,
}

impl Call {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().expect("ASCII")
    }
}

/// A receiver that runs until the test ends.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    replies: Arc<Mutex<Vec<Reply>>>,
}

impl Server {
    /// One that answers by `replies`, one after the other; the last one stays.
    pub async fn start(replies: &[Reply]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = Self::new(listener.local_addr().expect("an address"), replies);
        let app = server.app();
        tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
        server
    }

    pub fn new(address: SocketAddr, replies: &[Reply]) -> Self {
        let mut replies = replies.to_vec();
        replies.reverse();
        Self { address, calls: Arc::default(), replies: Arc::new(Mutex::new(replies)) }
    }

    pub fn app(&self) -> Router {
        let server = self.clone();
        Router::new().fallback(move |request: Request| {
            let server = server.clone();
            async move { server.answer(request).await }
        })
    }

    async fn answer(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, 1 << 20).await.expect("a body");
        let call =
            Call { path: parts.uri.path().to_owned(), headers: parts.headers, body, at: Instant::now() };
        self.calls.lock().expect("not poisoned").push(call);
        let reply = {
            let mut replies = self.replies.lock().expect("not poisoned");
            if replies.len() > 1 { replies.pop() } else { replies.last().cloned() }
        };
        let status = |code| StatusCode::from_u16(code).expect("a status");
        match reply.expect("a reply") {
            Reply::Status(code) => status(code).into_response(),
            Reply::With(code, name, value) => (status(code), [(name, value)]).into_response(),
            Reply::Hang => std::future::pending().await,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("not poisoned").clone()
    }

    /// Waits until there are so many calls.
    pub async fn wait_for(&self, count: usize) -> Vec<Call> {
        until(|| self.calls().len() >= count, || format!("{count} calls: {:?}", self.calls())).await;
        self.calls()
    }
}

/// Waits for a condition.
pub async fn until(mut holds: impl FnMut() -> bool, what: impl Fn() -> String) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not within 20 s: {}", what());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
