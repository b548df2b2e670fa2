//! What both benchmarks share: a realistic review, and the typed webhook that the guard is measured against.

pub mod review;
pub mod typed;

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use rollout_guard::{
    api::policy::RolloutPolicySpec,
    cluster::{
        ClusterError,
        access::{Access, User},
        announcements::Announcements,
    },
    core::{
        key::Key,
        message::DOCS,
        policy::{Policy, PolicySet, compile},
    },
    telemetry::Metrics,
    webhook::judge::Judge,
    world::World,
};

/// Nobody may override, so that no API server is asked.
struct Nobody;

impl Access for Nobody {
    fn may_override<'a>(&'a self, _: &'a User, _: &'a str) -> BoxFuture<'a, Result<bool, ClusterError>> {
        async { Ok(false) }.boxed()
    }
}

impl Announcements for Nobody {
    fn retract<'a>(&'a self, _: &'a Key, _: &'a str) -> BoxFuture<'a, Result<(), ClusterError>> {
        async { Ok(()) }.boxed()
    }
}

/// Returns the one policy in force: `default`, with an empty spec.
pub fn policy() -> anyhow::Result<Arc<Policy>> {
    let spec: RolloutPolicySpec = serde_json::from_str("{}")?;
    Ok(Arc::new(compile("default", 1, &spec)?))
}

/// Returns a judge as `rollout-guard webhook` makes it, with [`policy`] in force.
pub fn judge(metrics: Metrics) -> anyhow::Result<Judge> {
    let world = World::new("rollout-guard");
    world.set_policies(PolicySet::new([policy()?]));
    Ok(Judge { world, access: Arc::new(Nobody), announcements: Arc::new(Nobody), metrics, docs: DOCS.into() })
}
