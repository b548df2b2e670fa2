//! `rollout-guard watcher`: follows rollouts and rolls back, without serving admission.

use std::{net::SocketAddr, process::ExitCode};

use anyhow::Context;
use clap::Args;

use crate::{
    admin::{self, Admin, Readiness},
    cluster::Cluster,
    core::breaker::Limits,
    shutdown::{self, Shutdown},
    telemetry::{self, Metrics},
    watcher,
    world::{World, policies},
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
}

impl WatchArgs {
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
    /// Where to serve /livez, /readyz and /metrics, by plain HTTP.
    #[arg(long, env = "ROLLOUT_GUARD_ADMIN_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    admin_listen: SocketAddr,

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
        let metrics = Metrics::default();
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
        let admin = Admin::new(readiness.clone(), metrics.registry(), None);
        let serve = tokio::spawn(admin::serve(listener, admin, shutdown.clone()));
        let settings = self.watch.settings(&self.namespace);
        let follow = watcher::run(cluster, world, settings, readiness, metrics, shutdown);
        tokio::join!(keeper, follow);
        let _ = serve.await;
        Ok(ExitCode::SUCCESS)
    }
}
