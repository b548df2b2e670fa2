//! The watcher: follows every generation until it settles, and rolls back what is stuck.
//!
//! ```text
//!  watch of Deployments ─▶ store ─▶ queue ─▶ reconcile ─▶ cluster::rollouts
//!                                              ▲   ▲
//!                                     world ───┘   └─── surroundings (breaker, nodes, what else is stuck)
//! ```
//!
//! One process leads, by a Lease, and it alone writes ([`election`]). All that is needed to go on where another one
//! stopped is in the RolloutRecords.

pub mod complete;
pub mod election;
pub mod lead;
pub mod queue;
pub mod reconcile;
pub mod store;
pub mod surroundings;

use std::sync::Arc;

use self::{
    election::{Leadership, Told},
    reconcile::{Gate, Reconciler},
    surroundings::Surroundings,
};
use crate::{
    admin::Readiness,
    cluster::Cluster,
    core::{breaker::Limits, lease::Terms},
    notify::Notifier,
    shutdown::Shutdown,
    telemetry::Metrics,
    world::World,
};

/// How the watcher runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace of the Lease: the guard's own.
    pub namespace: String,
    /// The name of the Lease.
    pub lease: String,
    /// What this process is called in the Lease: its own alone.
    pub identity: String,
    /// The breaker and the caps.
    pub limits: Limits,
}

impl Gate for Leadership {
    fn leads(&self) -> bool {
        Self::leads(self)
    }

    fn stopped(&self) -> Option<String> {
        Self::stopped(self)
    }
}

/// Stands for election, and leads where it is elected, until the shutdown.
///
/// It begins once the policies and the labels of namespaces are listed, as `readiness` has it: nothing is to be rolled
/// back by the wrong policy.
pub async fn run(
    cluster: Cluster,
    world: World,
    settings: Settings,
    readiness: Readiness,
    metrics: Metrics,
    notifier: Notifier,
    shutdown: Shutdown,
) {
    let known_here = world.clone();
    let store = cluster.lease(&settings.namespace, &settings.lease).telling(move || known_here.breaker());
    let who = election::Settings { identity: settings.identity.clone(), terms: Terms::default() };
    let gauges = metrics.clone();
    // It is released only when nothing is written any more.
    let (release, released) = Shutdown::new();
    let (leadership, elect) = election::elect(store, who, released, move |told| tell(told, &gauges));
    let election = tokio::spawn(elect);
    let leading = async {
        loop {
            let term = leadership.begins().await;
            tokio::select! {
                () = known(&world, &readiness) => {}
                () = leadership.ends(term) => continue,
            }
            let reconciler = Reconciler {
                rollouts: cluster.clone(),
                world: world.clone(),
                surroundings: Arc::new(Surroundings::new(settings.limits)),
                gate: Arc::new(leadership.clone()),
                metrics: metrics.clone(),
                notifier: notifier.clone(),
            };
            tokio::select! {
                () = lead::lead(&cluster, Arc::new(reconciler)) => {}
                () = leadership.ends(term) => {}
            }
            lead::step_down(&metrics, &world);
            notifier.step_down();
        }
    };
    tokio::select! {
        () = leading => {}
        () = shutdown.started() => {}
    }
    lead::step_down(&metrics, &world);
    release.start();
    let _ = election.await;
}

/// Completes when it is known what is guarded: nothing is to be rolled back by the wrong policy, or where the webhook is not
/// called.
async fn known(world: &World, readiness: &Readiness) {
    readiness.met(&["policies", "namespaces"]).await;
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(200));
    while !world.knows_called_for() {
        ticks.tick().await;
    }
}

fn tell(told: &Told, metrics: &Metrics) {
    match told {
        Told::Leads => {
            metrics.leader.set(1);
            tracing::info!("leads");
        }
        Told::Ended => {
            metrics.leader.set(0);
            tracing::info!("does not lead any more");
        }
        Told::Holder(holder) => tracing::info!(holder, "follows"),
        Told::Stop(Some(why)) => {
            metrics.stopped.set(1);
            tracing::warn!(why, "the kill switch is pulled: nothing is written");
        }
        Told::Stop(None) => {
            metrics.stopped.set(0);
            tracing::warn!("the kill switch is released");
        }
        Told::Failed(why) => tracing::warn!(why, "the Lease cannot be looked at, tried again"),
    }
}
