//! `rollout-guard watcher`: follows rollouts and rolls back, without serving admission.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use futures::{FutureExt, future::BoxFuture};

use crate::{
    admin::{
        self, Admin, Readiness,
        page::{Page, Ui},
    },
    cluster::Cluster,
    core::breaker::Limits,
    notify::{self, Notifier, Pace},
    shutdown::{self, Shutdown},
    telemetry::{self, Metrics, traces},
    watcher,
    world::{World, page, policies},
};

/// How the watcher follows and rolls back.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Watcher")]
pub struct WatchArgs {
    /// The Lease by which replicas agree on who leads. The annotation rollout-guard.io/stop on it stops every write.
    #[arg(long, env = "ROLLOUT_GUARD_LEASE", default_value = "rollout-guard", value_name = "NAME")]
    lease: String,

    /// What this replica is called in the Lease.
    #[arg(long, env = "POD_NAME", default_value = "rollout-guard", value_name = "NAME")]
    identity: String,

    /// Rollbacks in progress at a time in one namespace.
    #[arg(long, env = "ROLLOUT_GUARD_ROLLBACKS_PER_NAMESPACE", default_value_t = 1, value_name = "N")]
    rollbacks_per_namespace: u32,

    /// Rollbacks in progress at a time in the cluster.
    #[arg(long, env = "ROLLOUT_GUARD_ROLLBACKS_PER_CLUSTER", default_value_t = 3, value_name = "N")]
    rollbacks_per_cluster: u32,

    /// Rollbacks started within an hour.
    #[arg(long, env = "ROLLOUT_GUARD_ROLLBACKS_PER_HOUR", default_value_t = 10, value_name = "N")]
    rollbacks_per_hour: u32,

    /// So many Deployments that become stuck within ten minutes open the breaker, or --stuck-percent where that is more.
    #[arg(long, env = "ROLLOUT_GUARD_STUCK_AT_LEAST", default_value_t = 3, value_name = "N")]
    stuck_at_least: u32,

    /// The share of the guarded Deployments that opens the breaker, in percent.
    #[arg(long, env = "ROLLOUT_GUARD_STUCK_PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "N")]
    stuck_percent: u32,

    /// The file that says who is told of what: webhooks, Slack, Alertmanager. It is read again when it changes.
    #[arg(long, env = "ROLLOUT_GUARD_NOTIFY_CONFIG", value_name = "FILE")]
    notify_config: Option<PathBuf>,
}

impl WatchArgs {
    /// Returns where the watcher hands over what people are told, and what tells them until the shutdown.
    pub fn notify(&self, metrics: &Metrics, shutdown: Shutdown) -> (Notifier, BoxFuture<'static, ()>) {
        let Some(path) = self.notify_config.clone() else {
            return (Notifier::off(), std::future::ready(()).boxed());
        };
        let notifier = Notifier::new(metrics.clone());
        (notifier.clone(), notify::keep(path, notifier, Pace::default(), shutdown).boxed())
    }

    /// Returns how the watcher runs in `namespace`.
    pub fn settings(&self, namespace: &str) -> watcher::Settings {
        // A container that starts again in the same pod is another process.
        let start = jiff::Timestamp::now().as_millisecond();
        watcher::Settings {
            namespace: namespace.to_owned(),
            lease: self.lease.clone(),
            identity: format!("{}_{start:x}", self.identity),
            limits: Limits {
                per_namespace: self.rollbacks_per_namespace,
                per_cluster: self.rollbacks_per_cluster,
                per_hour: self.rollbacks_per_hour,
                stuck_at_least: self.stuck_at_least,
                stuck_percent: self.stuck_percent,
                ..Limits::default()
            },
        }
    }
}

/// Follows rollouts and rolls failed ones back, without serving admission.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rollout-guard watcher
  rollout-guard watcher --rollbacks-per-hour 100

Beside `rollout-guard webhook`, which serves admission alone; `rollout-guard run` is both in one process.
Every flag is an environment variable as well: --admin-listen is ROLLOUT_GUARD_ADMIN_LISTEN.")]
pub struct WatcherArgs {
    /// Where to serve /livez, /readyz, /metrics and the page /ui, by plain HTTP.
    #[arg(long, env = "ROLLOUT_GUARD_ADMIN_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    admin_listen: SocketAddr,

    /// Who may see the page /ui.
    #[arg(long, env = "ROLLOUT_GUARD_UI", value_enum, default_value = "loopback")]
    ui: Ui,

    /// The guard's own namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "rollout-guard", value_name = "NAME")]
    namespace: String,

    /// The ValidatingWebhookConfiguration of this installation: its namespaces are those that are followed.
    #[arg(
        long,
        env = "ROLLOUT_GUARD_VALIDATING_WEBHOOK_CONFIGURATION",
        default_value = "rollout-guard",
        value_name = "NAME"
    )]
    validating_webhook_configuration: String,

    /// The collector of OpenTelemetry that traces are sent to, by HTTP: http://collector:4318. Without it none are sent.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,

    #[command(flatten)]
    watch: WatchArgs,
}

impl WatcherArgs {
    /// Follows until a signal.
    ///
    /// # Errors
    /// When the port cannot be bound, or no API server is configured.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        telemetry::log_panics();
        let (trigger, shutdown) = Shutdown::new();
        shutdown::on_signals(trigger).context("cannot install signal handlers")?;
        let traces = traces::begin(self.otlp_endpoint.as_deref());
        let metrics = Metrics { traces: traces.clone(), ..Metrics::default() };
        let readiness = Readiness::default();
        let cluster = Cluster::connect(None, None).await?;
        let listener = admin::bind(self.admin_listen)
            .await
            .with_context(|| format!("cannot listen on {}", self.admin_listen))?;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            admin_listen = %self.admin_listen,
            namespace = self.namespace,
            "starting"
        );
        let world = World::new(&self.namespace);
        let keeper = policies::keep(
            cluster.clone(),
            world.clone(),
            policies::Settings {
                fallback: policies::Fallback::LeaveAlone,
                validating_configuration: self.validating_webhook_configuration.clone(),
            },
            policies::Requirements {
                policies: readiness.require("policies"),
                namespaces: readiness.require("namespaces"),
            },
            metrics.clone(),
            shutdown.clone(),
        );
        let settings = self.watch.settings(&self.namespace);
        let way = way_to_page(&self.namespace, &settings.lease, self.admin_listen);
        let page = Page::new(self.ui, way, shutdown.clone());
        let replica = page::Replica {
            namespace: self.namespace.clone(),
            lease: Some((settings.lease.clone(), settings.identity.clone())),
            certificate: None,
        };
        let gather = page::keep(cluster.clone(), world.clone(), replica, page.clone(), shutdown.clone());
        let admin = Admin::new(readiness.clone(), metrics.registry(), None).with_page(page);
        let serve = tokio::spawn(admin::serve(listener, admin, shutdown.clone()));
        let (notifier, telling) = self.watch.notify(&metrics, shutdown.clone());
        let follow = watcher::run(cluster, world, settings, readiness, metrics, notifier, shutdown);
        tokio::join!(keeper, follow, gather, telling);
        traces.stop().await;
        let _ = serve.await;
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the command that opens the page of the Deployment `name`, and the address that it is at then.
pub fn way_to_page(namespace: &str, name: &str, listen: SocketAddr) -> String {
    let port = listen.port();
    format!(
        "kubectl -n {namespace} port-forward deployment/{name} 8080:{port}\nthen open http://localhost:8080/ui/"
    )
}
