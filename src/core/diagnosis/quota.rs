//! ResourceQuotas: what of them is used up, and whether one pod more has room.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    model::{QuotaState, UsedUp},
    quantity::parse,
};
use crate::core::message::plain;

/// The most resources of one quota.
const RESOURCES: usize = 64;

/// The most characters of a name or a quantity.
const NAME: usize = 253;

/// What keeps pods or ReplicaSets from being made where it is used up.
const OF_ROLLOUTS: [&str; 12] = [
    "pods",
    "count/pods",
    "count/replicasets.apps",
    "cpu",
    "memory",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "ephemeral-storage",
];

/// A ResourceQuota.
pub(super) struct Quota {
    pub(super) name: String,
    /// For some of the pods alone: whether for these is not looked into.
    scoped: bool,
    /// Hard limit and use, by the resource.
    resources: BTreeMap<String, (String, String)>,
}

impl Quota {
    /// Reads a core/v1 ResourceQuota. What kube-controller-manager has not counted yet is left out.
    pub(super) fn of(quota: &Value) -> Self {
        let (hard, used) = (&quota["status"]["hard"], &quota["status"]["used"]);
        let both = |(resource, hard): (&String, &Value)| {
            let hard = plain(hard.as_str()?, NAME);
            Some((plain(resource, NAME), (hard, plain(used[resource].as_str()?, NAME))))
        };
        let spec = &quota["spec"];
        Self {
            name: plain(quota["metadata"]["name"].as_str().unwrap_or_default(), NAME),
            scoped: spec["scopes"].as_array().is_some_and(|scopes| !scopes.is_empty())
                || spec["scopeSelector"].is_object(),
            resources: hard.as_object().into_iter().flatten().take(RESOURCES).filter_map(both).collect(),
        }
    }

    /// Returns what is used up of that which rollouts need.
    pub(super) fn state(&self) -> QuotaState {
        let full = self.resources.iter().filter(|(resource, (hard, used))| {
            OF_ROLLOUTS.contains(&resource.as_str())
                && parse(hard).zip(parse(used)).is_some_and(|(hard, used)| used >= hard)
        });
        let used_up = full.map(|(resource, (hard, used))| UsedUp {
            resource: resource.clone(),
            used: used.clone(),
            hard: hard.clone(),
        });
        QuotaState { name: self.name.clone(), used_up: used_up.collect() }
    }

    /// Returns what there is not enough of for one pod more.
    pub(super) fn without_room_for(&self, demand: &BTreeMap<&'static str, f64>) -> Option<String> {
        if self.scoped {
            return None;
        }
        let short = |(resource, need): (&&'static str, &f64)| {
            let (hard, used) = self.resources.get(*resource)?;
            let left = parse(hard)? - parse(used)?;
            // Thousandths of a CPU and bytes are whole; what is left over is of the arithmetic.
            (left + 1e-6 < *need).then(|| format!("{resource}: {used} of {hard} used"))
        };
        demand.iter().find_map(short)
    }
}

/// Returns what one pod of this spec takes of each resource, as quotas count it.
pub(super) fn demand_of(spec: &Value) -> BTreeMap<&'static str, f64> {
    let mut demand = BTreeMap::from([("pods", 1.0), ("count/pods", 1.0)]);
    let resources = [
        ("requests", "cpu", ["cpu", "requests.cpu"]),
        ("requests", "memory", ["memory", "requests.memory"]),
        ("limits", "cpu", ["limits.cpu", "limits.cpu"]),
        ("limits", "memory", ["limits.memory", "limits.memory"]),
    ];
    for (kind, resource, names) in resources {
        let of = |list: &str| -> Vec<(f64, bool)> {
            let containers = spec[list].as_array().into_iter().flatten();
            let quantity = |c: &Value| {
                let quantity = parse(c["resources"][kind][resource].as_str()?)?;
                Some((quantity, c["restartPolicy"] == "Always"))
            };
            containers.filter_map(quantity).collect()
        };
        let running: f64 = of("containers").iter().map(|(quantity, _)| quantity).sum();
        let sidecars: f64 =
            of("initContainers").iter().filter(|(_, s)| *s).map(|(quantity, _)| quantity).sum();
        let first = of("initContainers").into_iter().filter(|(_, s)| !s).map(|(q, _)| q).fold(0.0, f64::max);
        let sum = (running + sidecars).max(first);
        if sum > 0.0 {
            demand.extend(names.map(|name| (name, sum)));
        }
    }
    demand
}
