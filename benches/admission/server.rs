//! The servers that are compared. Each is a process of its own: this binary with `--serve`, which gets its
//! certificate and its core by standard input, prints its port, and ends when its standard input does.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use axum::{Json, Router, extract::State, http::header, routing::post};
use bytes::Bytes;
use clap::ValueEnum;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::core::{
    DynamicObject,
    admission::{AdmissionRequest, AdmissionResponse, AdmissionReview},
};
use rollout_guard::{
    admin::Readiness,
    core::policy::Policy,
    shutdown::Shutdown,
    telemetry::{self, LogFormat, Metrics},
    tls::{self, KeyPair, ServedCertificate},
    webhook::{
        certificates::issue::{Authority, Lifetimes},
        router::{self, Capacity},
        server::{self, Limits},
    },
};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::{
    common::{self, typed},
    host,
};

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The guard: the server, router, logs and metrics of `rollout-guard webhook`.
    Guard,
    /// A bare axum that sends the body back.
    Echo,
    /// A bare axum that reads the body and sends an answer of the guard's size.
    Discard,
    /// The idiomatic webhook: axum's Json of kube's typed AdmissionReview, with the same verdicts and a log line.
    Typed,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Guard, Self::Echo, Self::Discard, Self::Typed];

    /// Returns its name in tables and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Echo => "echo",
            Self::Discard => "discard",
            Self::Typed => "typed",
        }
    }
}

/// What a server is told.
#[derive(Serialize, Deserialize)]
struct Orders {
    certificate: String,
    key: String,
    core: Option<usize>,
}

/// The CA of all servers and the leaf that they serve, as the guard issues them: ECDSA P-256.
pub struct Identity {
    /// The CA as PEM.
    pub authority: String,
    certificate: String,
    key: String,
}

impl Identity {
    /// Makes one for 127.0.0.1.
    pub fn issue() -> anyhow::Result<Self> {
        let (lifetimes, now) = (Lifetimes::default(), Timestamp::now());
        let authority = Authority::issue(&lifetimes, now)?;
        let leaf = authority.sign(&["localhost".to_owned()], &lifetimes, now)?;
        Ok(Self {
            authority: authority.certificate().pem(),
            certificate: leaf.pair().certificate_pem().to_owned(),
            key: leaf.key_pem().to_owned(),
        })
    }
}

/// A server that runs. It ends with this value.
pub struct Server {
    /// Who answers.
    pub kind: Kind,
    /// Where.
    pub address: SocketAddr,
    child: Child,
}

impl Server {
    /// Starts one on `core`.
    pub fn start(kind: Kind, identity: &Identity, core: Option<usize>) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--serve", kind.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Where the log goes: it is formatted and written, and nobody reads it.
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start a server")?;
        let orders = Orders { certificate: identity.certificate.clone(), key: identity.key.clone(), core };
        let stdin = child.stdin.as_mut().context("no standard input")?;
        writeln!(stdin, "{}", serde_json::to_string(&orders)?)?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut line)?;
        let port = line.trim().parse().with_context(|| format!("{} did not start: {line}", kind.name()))?;
        Ok(Self { kind, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), child })
    }

    /// Returns the CPU time that it has taken.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        host::cpu(self.child.id())
    }

    /// Returns its resident memory now and at its peak, in KiB.
    pub fn memory(&self) -> anyhow::Result<(u64, u64)> {
        host::memory(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until standard input ends.
pub fn run(kind: Kind) -> anyhow::Result<()> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let orders: Orders = serde_json::from_str(&line)?;
    if let Some(core) = orders.core {
        host::pin(core)?;
    }
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    tls::install_provider();
    let served = ServedCertificate::default();
    served.swap(KeyPair::from_pem(&orders.certificate, &orders.key)?);
    let config = tls::server_config(served, None)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let listener = server::listen((Ipv4Addr::LOCALHOST, 0).into())?;
        println!("{}", listener.local_addr()?.port());
        match kind {
            Kind::Guard => guard(listener, config).await,
            Kind::Echo => bare(listener, config, echo()).await,
            Kind::Discard => bare(listener, config, discard()).await,
            Kind::Typed => {
                telemetry::start_logs(LogFormat::Json, "info")?;
                bare(listener, config, typed_webhook(common::policy()?)).await
            }
        }
    })
}

async fn guard(listener: TcpListener, config: ServerConfig) -> anyhow::Result<()> {
    telemetry::start_logs(LogFormat::Json, "info")?;
    let metrics = Metrics::default();
    let router = router::router(common::judge(metrics.clone())?, Capacity { in_flight: 256, queued: 1024 });
    let limits = Limits {
        connections: 1000,
        header_timeout: Duration::from_secs(5),
        drain_delay: Duration::ZERO,
        drain_timeout: Duration::ZERO,
    };
    let (trigger, shutdown) = Shutdown::new();
    let serving = Readiness::default().require("serving");
    server::serve(listener, config, router, limits, serving, metrics, shutdown).await;
    drop(trigger);
    bail!("the guard ended")
}

/// The least that a TLS server on axum can be: no limits, no timeouts, no draining.
async fn bare(listener: TcpListener, config: ServerConfig, router: Router) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                let service = TowerToHyperService::new(router);
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        });
    }
}

fn echo() -> Router {
    Router::new().route("/validate", post(|body: Bytes| async move { body }))
}

fn discard() -> Router {
    const ANSWER: &str = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"5f0c6d0e-6a0f-4a53-9d5a-1f2f0f6c9a77","allowed":true}}"#;
    let answer = |_: Bytes| async { ([(header::CONTENT_TYPE, "application/json")], ANSWER) };
    Router::new().route("/validate", post(answer))
}

fn typed_webhook(policy: Arc<Policy>) -> Router {
    async fn validate(
        State(policy): State<Arc<Policy>>,
        Json(review): Json<AdmissionReview<Deployment>>,
    ) -> Json<AdmissionReview<DynamicObject>> {
        let request: Result<AdmissionRequest<Deployment>, _> = review.try_into();
        let response = match request {
            Ok(request) => typed::answer(&request, &policy, Timestamp::now()),
            Err(error) => AdmissionResponse::invalid(error),
        };
        Json(response.into_review())
    }
    Router::new().route("/validate", post(validate)).with_state(policy)
}
