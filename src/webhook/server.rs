//! The TLS port: accepts, bounds, times out and drains connections.
//!
//! The API server keeps up to 25 idle connections open and does not retry a POST on one that is closed under
//! it, so an idle connection is never closed, except at the very end of a drain. What is closed is what holds
//! a place without using it: a handshake or a request's header that does not come. hyper's own header timeout
//! cannot tell the two apart, hence [`HeaderTimed`].

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use http::{HeaderValue, header};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
    time::{Sleep, sleep},
};
use tokio_rustls::TlsAcceptor;
use tower::{ServiceExt, util::MapResponseLayer};

use crate::{admin::Requirement, shutdown::Shutdown, telemetry::Metrics};

/// How the port is bounded.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time. One more closes the oldest that has not asked anything yet; where there is none,
    /// it is closed itself.
    pub connections: usize,
    /// The longest that a handshake, or the header of a request once begun, may take.
    pub header_timeout: Duration,
    /// How long the port serves on, while not ready, before it stops: until every proxy knows.
    pub drain_delay: Duration,
    /// How long calls may take to finish after that.
    pub drain_timeout: Duration,
}

/// How long a new connection waits for the place of one that is being closed for it.
const PLACE_TIMEOUT: Duration = Duration::from_secs(1);

/// Connections that may wait to be accepted. Of the 128 that `TcpListener::bind` asks for, a burst of some hundred
/// leaves a few over, and their clients try again only after a second. The kernel's own bound is `somaxconn`, 4096.
const BACKLOG: u32 = 4096;

/// Listens on `address`, ready for a burst of connections.
///
/// # Errors
/// When the address cannot be bound.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for what the connections of the one before leave behind.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `router` over TLS until the shutdown, then drains: not ready, serve on with `Connection: close`, stop
/// to accept, finish what is begun.
pub async fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    router: Router,
    limits: Limits,
    serving: Requirement,
    metrics: Metrics,
    shutdown: Shutdown,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let places = Arc::new(Semaphore::new(limits.connections));
    let draining = Arc::new(AtomicBool::new(false));
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let unused = Unused::default();
    let connection =
        Connection { acceptor, router, limits, metrics, draining: Arc::clone(&draining), stopping };
    serving.met();

    let drained = async {
        shutdown.started().await;
        draining.store(true, Ordering::Relaxed);
        serving.unmet("draining");
        sleep(limits.drain_delay).await;
    };
    tokio::pin!(drained);
    loop {
        tokio::select! {
            () = &mut drained => break,
            // Ended connections are taken out as they end.
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // A connection that never asked anything makes room for one that may.
                    if places.available_permits() == 0 && !unused.close_oldest() {
                        connection.metrics.reject("connections");
                        continue;
                    }
                    let (connection, places) = (connection.clone(), Arc::clone(&places));
                    let newcomer = unused.enter();
                    connections.spawn(async move {
                        let place = tokio::time::timeout(PLACE_TIMEOUT, places.acquire_owned()).await;
                        match place {
                            Ok(Ok(_place)) => connection.run(stream, newcomer).await,
                            _ => connection.metrics.reject("connections"),
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: leave the ones that are open a moment to end.
                    tracing::warn!(%error, "cannot accept");
                    sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    stop.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain_timeout, all).await.is_err() {
        tracing::warn!("calls were still open at the end of the drain");
    }
}

#[derive(Clone)]
struct Connection {
    acceptor: TlsAcceptor,
    router: Router,
    limits: Limits,
    metrics: Metrics,
    draining: Arc<AtomicBool>,
    stopping: watch::Receiver<bool>,
}

impl Connection {
    async fn run(self, stream: TcpStream, newcomer: Newcomer) {
        let metrics = self.metrics.clone();
        let closed = Arc::clone(&newcomer.close);
        tokio::select! {
            () = self.serve(stream, newcomer) => {}
            () = closed.notified() => metrics.reject("connections"),
        }
    }

    async fn serve(mut self, stream: TcpStream, newcomer: Newcomer) {
        let _ = stream.set_nodelay(true);
        let handshake = tokio::time::timeout(self.limits.header_timeout, self.acceptor.accept(stream));
        let stream = match handshake.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, "handshake failed");
                self.metrics.reject("handshake");
                return;
            }
            Err(_) => {
                self.metrics.reject("timeout");
                return;
            }
        };
        let _open = Open::new(&self.metrics);
        let stage = Arc::new(Stage::default());
        let io = TokioIo::new(HeaderTimed::new(stream, Arc::clone(&stage), self.limits.header_timeout));
        let draining = Arc::clone(&self.draining);
        let close = MapResponseLayer::new(move |mut response: axum::response::Response| {
            if draining.load(Ordering::Relaxed) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        });
        let begun = Arc::clone(&stage);
        let newcomer = Arc::new(Mutex::new(Some(newcomer)));
        let service = tower::ServiceBuilder::new()
            .layer(close)
            .service(self.router.clone())
            .map_request(move |request: http::Request<hyper::body::Incoming>| {
                begun.set(Stage::HANDLING);
                // From its first request on a connection is not closed for the sake of another.
                newcomer.lock().unwrap_or_else(PoisonError::into_inner).take();
                request
            })
            .map_response(move |response: axum::response::Response| {
                // Only what was judged has had its body read to the end for certain.
                let judged = response.status() == http::StatusCode::OK;
                stage.set(if judged { Stage::IDLE } else { Stage::REFUSED });
                response
            });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .serve_connection(io, TowerToHyperService::new(service));
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut self.stopping) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended early");
        }
    }
}

/// Counts a connection while it is open, however it ends.
struct Open(Metrics);

impl Open {
    fn new(metrics: &Metrics) -> Self {
        metrics.connections.inc();
        Self(metrics.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// The connections that have not asked anything yet, by age. Clones share them.
#[derive(Clone, Default)]
struct Unused(Arc<Mutex<BTreeMap<u64, Arc<Notify>>>>);

/// One of them; it is none any more when this is dropped.
struct Newcomer {
    unused: Unused,
    id: u64,
    close: Arc<Notify>,
}

impl Unused {
    fn enter(&self) -> Newcomer {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = all.last_key_value().map_or(0, |(id, _)| id + 1);
        let close = Arc::new(Notify::new());
        all.insert(id, Arc::clone(&close));
        Newcomer { unused: self.clone(), id, close }
    }

    /// Closes the oldest. Returns false where there is none.
    fn close_oldest(&self) -> bool {
        let oldest = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
        oldest.is_some_and(|(_, close)| {
            close.notify_one();
            true
        })
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let mut all = self.unused.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The number may have been given again to a later one.
        if all.get(&self.id).is_some_and(|close| Arc::ptr_eq(close, &self.close)) {
            all.remove(&self.id);
        }
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is a stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Where a connection stands between two requests.
#[derive(Default)]
struct Stage(AtomicU8);

impl Stage {
    /// Between two requests, or before the first.
    const IDLE: u8 = 0;
    /// The first byte of a request is there and its header is not complete.
    const HEADER: u8 = 1;
    /// The header is complete and the answer is not begun.
    const HANDLING: u8 = 2;
    /// Answered, perhaps before the body was read: what comes next may be the rest of it, which hyper takes
    /// with one read to go on using the connection. It is not to be timed as a header.
    const REFUSED: u8 = 3;

    fn set(&self, stage: u8) {
        self.0.store(stage, Ordering::Relaxed);
    }

    fn is(&self, stage: u8) -> bool {
        self.0.load(Ordering::Relaxed) == stage
    }
}

/// A stream that ends with an error where the header of a request, once begun, takes longer than the limit.
struct HeaderTimed<S> {
    inner: S,
    stage: Arc<Stage>,
    limit: Duration,
    deadline: Pin<Box<Sleep>>,
}

impl<S> HeaderTimed<S> {
    fn new(inner: S, stage: Arc<Stage>, limit: Duration) -> Self {
        Self { inner, stage, limit, deadline: Box::pin(sleep(limit)) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeaderTimed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let poll = Pin::new(&mut this.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            if this.stage.is(Stage::IDLE) {
                this.stage.set(Stage::HEADER);
                this.deadline.as_mut().reset(tokio::time::Instant::now() + this.limit);
            } else if this.stage.is(Stage::REFUSED) {
                this.stage.set(Stage::IDLE);
            }
        }
        if this.stage.is(Stage::HEADER) && this.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeaderTimed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
