//! `rollout-guard webhook`: serves admission until a signal, then drains.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::{Args, ValueEnum};
use futures::{FutureExt, future::BoxFuture};
use tokio::{net::TcpListener, task::JoinSet};

use super::watcher::WatchArgs;
use crate::{
    admin::{
        self, Admin, Readiness,
        page::{Page, Ui},
    },
    api::duration::Duration,
    cluster::Cluster,
    core::message::DOCS,
    shutdown::{self, Shutdown},
    telemetry::{self, Metrics, traces},
    tls::{self, ServedCertificate},
    watcher,
    webhook::{
        certificates,
        judge::Judge,
        router::{self, Capacity},
        server::{self, Limits},
    },
    world::{World, page, policies, records},
};

/// Where the served certificate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CertificateSource {
    /// Issued and rotated by the guard itself, kept in a Secret.
    Own,
    /// Mounted as files, such as by cert-manager.
    Mounted,
}

/// Serves the admission webhook.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rollout-guard webhook
  rollout-guard webhook --certificates mounted --certificate-dir /etc/rollout-guard/certificates

Every flag is an environment variable as well: --admin-listen is ROLLOUT_GUARD_ADMIN_LISTEN.")]
pub struct WebhookArgs {
    /// Where to serve admission, by TLS.
    #[arg(long, env = "ROLLOUT_GUARD_LISTEN", default_value = "0.0.0.0:8443", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// Where to serve /livez, /readyz, /metrics, /certificate and the page /ui, by plain HTTP.
    #[arg(long, env = "ROLLOUT_GUARD_ADMIN_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    admin_listen: SocketAddr,

    /// Who may see the page /ui.
    #[arg(long, env = "ROLLOUT_GUARD_UI", value_enum, default_value = "loopback")]
    ui: Ui,

    /// The guard's own namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "rollout-guard", value_name = "NAME")]
    namespace: String,

    /// The ServiceAccount that the guard runs as: what it writes itself is known by it. Empty: nothing is.
    #[arg(
        long,
        env = "POD_SERVICE_ACCOUNT",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME"
    )]
    service_account: String,

    /// The Service that the webhook configurations name.
    #[arg(long, env = "ROLLOUT_GUARD_SERVICE", default_value = "rollout-guard", value_name = "NAME")]
    service: String,

    /// The ValidatingWebhookConfiguration of this installation.
    #[arg(
        long,
        env = "ROLLOUT_GUARD_VALIDATING_WEBHOOK_CONFIGURATION",
        default_value = "rollout-guard",
        value_name = "NAME"
    )]
    validating_webhook_configuration: String,

    /// The MutatingWebhookConfiguration of this installation.
    #[arg(
        long,
        env = "ROLLOUT_GUARD_MUTATING_WEBHOOK_CONFIGURATION",
        default_value = "rollout-guard",
        value_name = "NAME"
    )]
    mutating_webhook_configuration: String,

    /// Where the served certificate comes from.
    #[arg(long, env = "ROLLOUT_GUARD_CERTIFICATES", value_enum, default_value = "own")]
    certificates: CertificateSource,

    /// The Secret of the guard's own certificates.
    #[arg(
        long,
        env = "ROLLOUT_GUARD_CERTIFICATE_SECRET",
        default_value = "rollout-guard-certificates",
        value_name = "NAME"
    )]
    certificate_secret: String,

    /// The directory of mounted certificates: tls.crt and tls.key.
    #[arg(
        long,
        env = "ROLLOUT_GUARD_CERTIFICATE_DIR",
        default_value = "/etc/rollout-guard/certificates",
        value_name = "DIR"
    )]
    certificate_dir: PathBuf,

    /// Only clients with a certificate of this CA may call (mTLS).
    #[arg(long, env = "ROLLOUT_GUARD_CLIENT_CA", value_name = "FILE")]
    client_ca: Option<PathBuf>,

    /// Whether each policy in Enforce gets a ValidatingAdmissionPolicy that stands in for the webhook.
    #[arg(
        long,
        env = "ROLLOUT_GUARD_FALLBACK",
        default_value_t = true,
        action = clap::ArgAction::Set,
        value_name = "BOOL"
    )]
    fallback: bool,

    /// How long to serve on, not ready, after a signal.
    #[arg(long, env = "ROLLOUT_GUARD_DRAIN_DELAY", default_value = "10s", value_name = "DURATION")]
    drain_delay: Duration,

    /// How long calls may take to finish after that.
    #[arg(long, env = "ROLLOUT_GUARD_DRAIN_TIMEOUT", default_value = "20s", value_name = "DURATION")]
    drain_timeout: Duration,

    /// Calls answered at a time; four times as many may queue, more are refused at once.
    #[arg(long, env = "ROLLOUT_GUARD_MAX_IN_FLIGHT", default_value_t = 256, value_parser = at_least_one(), value_name = "N")]
    max_in_flight: u32,

    /// Connections at a time. One more closes the oldest that never asked anything, else itself.
    #[arg(long, env = "ROLLOUT_GUARD_MAX_CONNECTIONS", default_value_t = 1000, value_parser = at_least_one(), value_name = "N")]
    max_connections: u32,

    /// Where the reason ids are explained: what messages refer to.
    #[arg(long, env = "ROLLOUT_GUARD_DOCS_URL", default_value = DOCS, value_name = "URL")]
    docs_url: String,

    /// The collector of OpenTelemetry that traces are sent to, by HTTP: http://collector:4318. Without it none are sent.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
}

fn at_least_one() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=100_000)
}

impl WebhookArgs {
    /// Serves until a signal, then drains.
    ///
    /// # Errors
    /// When a port cannot be bound, no API server is configured, or the client CA cannot be used.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        self.serve(None).await
    }

    /// Serves until a signal, then drains; follows rollouts as well where `watch` says how.
    ///
    /// # Errors
    /// As those of [`WebhookArgs::run`].
    pub async fn serve(self, watch: Option<&WatchArgs>) -> anyhow::Result<ExitCode> {
        telemetry::log_panics();
        let (trigger, shutdown) = Shutdown::new();
        shutdown::on_signals(trigger).context("cannot install signal handlers")?;

        let traces = traces::begin(self.otlp_endpoint.as_deref());
        let metrics = Metrics { traces: traces.clone(), ..Metrics::default() };
        let readiness = Readiness::default();
        let served = ServedCertificate::default();
        let tls = tls::server_config(served.clone(), self.client_ca.as_deref())?;
        let cluster = Cluster::connect(None, None).await?;
        let admin_listener = bind(self.admin_listen)?;
        let listener = bind(self.listen)?;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            listen = %self.listen,
            admin_listen = %self.admin_listen,
            namespace = self.namespace,
            certificates = ?self.certificates,
            fallback = self.fallback,
            "starting"
        );

        let serving = readiness.require("serving");
        let world = World::running_as(&self.namespace, &self.service_account);
        // What keeps something up to date, and the plain port: both go on until the drain is over.
        let (stop_rest, rest) = Shutdown::new();
        let mut keepers = JoinSet::new();
        let certificates = self.keep_certificates(
            cluster.clone(),
            served.clone(),
            &readiness,
            metrics.clone(),
            shutdown.clone(),
        );
        let drained = rest.clone();
        keepers.spawn(async move {
            // What drains writes nothing any more: it would put a Secret back that was deleted with the rest.
            certificates.await;
            drained.started().await;
        });
        keepers.spawn(policies::keep(
            cluster.clone(),
            world.clone(),
            policies::Settings {
                fallback: if self.fallback { policies::Fallback::Keep } else { policies::Fallback::Remove },
                validating_configuration: self.validating_webhook_configuration.clone(),
            },
            policies::Requirements {
                policies: readiness.require("policies"),
                namespaces: readiness.require("namespaces"),
            },
            metrics.clone(),
            rest.clone(),
        ));
        keepers.spawn(records::keep(
            cluster.clone(),
            world.clone(),
            readiness.require("records"),
            rest.clone(),
        ));
        // Told of until nothing is judged any more, so that what was tried again has time for it.
        let (notifier, telling) = watch.map(|watch| watch.notify(&metrics, rest.clone())).unzip();
        let telling = tokio::spawn(telling.unwrap_or_else(|| std::future::ready(()).boxed()));
        let notifier = notifier.unwrap_or_default();
        let watch = watch.map(|watch| watch.settings(&self.namespace));
        let page = Page::new(
            self.ui,
            super::watcher::way_to_page(&self.namespace, &self.service, self.admin_listen),
            rest.clone(),
        );
        let replica = page::Replica {
            namespace: self.namespace.clone(),
            lease: watch.as_ref().map(|watch| (watch.lease.clone(), watch.identity.clone())),
            certificate: Some(served.clone()),
        };
        keepers.spawn(page::keep(cluster.clone(), world.clone(), replica, page.clone(), rest.clone()));
        if let Some(settings) = watch {
            let (cluster, world, drained) = (cluster.clone(), world.clone(), rest.clone());
            let readiness = readiness.clone();
            let (metrics, shutdown) = (metrics.clone(), shutdown.clone());
            keepers.spawn(async move {
                // What drains leads no more: another replica takes over at once.
                watcher::run(cluster, world, settings, readiness, metrics, notifier, shutdown).await;
                drained.started().await;
            });
        }
        let admin = Admin::new(readiness, metrics.registry(), Some(served)).with_page(page);
        let admin = tokio::spawn(admin::serve(admin_listener, admin, rest));

        let judge = Judge {
            world,
            access: Arc::new(cluster.clone()),
            announcements: Arc::new(cluster),
            metrics: metrics.clone(),
            docs: self.docs_url.as_str().into(),
        };
        let in_flight = self.max_in_flight as usize;
        let router = router::router(judge, Capacity { in_flight, queued: 4 * in_flight });
        let limits = Limits {
            connections: self.max_connections as usize,
            header_timeout: std::time::Duration::from_secs(5),
            drain_delay: self.drain_delay.get(),
            drain_timeout: self.drain_timeout.get(),
        };
        tokio::select! {
            () = server::serve(listener, tls, router, limits, serving, metrics, shutdown) => {}
            // One that ends early would leave a guard that only looks alive.
            ended = keepers.join_next() => anyhow::bail!("a task of the webhook ended early: {ended:?}"),
        }
        stop_rest.start();
        let _ = tokio::join!(admin, telling, traces.stop());
        tracing::info!("drained");
        Ok(ExitCode::SUCCESS)
    }

    /// Returns what keeps the certificates until the shutdown.
    fn keep_certificates(
        &self,
        cluster: Cluster,
        served: ServedCertificate,
        readiness: &Readiness,
        metrics: Metrics,
        shutdown: Shutdown,
    ) -> BoxFuture<'static, ()> {
        let settings = certificates::Settings::new(
            &self.namespace,
            &self.service,
            &self.certificate_secret,
            &self.validating_webhook_configuration,
            &self.mutating_webhook_configuration,
        );
        let requirements = certificates::Requirements {
            certificates: readiness.require("certificates"),
            ca_bundle: readiness.require("ca-bundle"),
        };
        match self.certificates {
            CertificateSource::Own => {
                certificates::keep_own(settings, cluster, served, requirements, metrics, shutdown).boxed()
            }
            CertificateSource::Mounted => {
                let dir = self.certificate_dir.clone();
                certificates::keep_mounted(dir, settings, cluster, served, requirements, metrics, shutdown)
                    .boxed()
            }
        }
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    server::listen(address).with_context(|| format!("cannot listen on {address}"))
}
