//! What every process holds in memory to decide by: the policies in force, the labels of namespaces, and which
//! templates are recorded Good or Bad.
//!
//! Both the webhook and the watcher decide by it; neither knows of the other.
//!
//! ```text
//!  webhook ──▶ World ◀── policies (watch, status, fallback)
//!  watcher ──▶   ▲   ▲── records (watch)
//!                └────── set_stuck, set_breaker: what the leading watcher knows
//! ```

mod listing;
pub mod page;
pub mod policies;
pub mod records;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use kube::core::{Selector, SelectorExt};

use crate::core::policy::{Labels, Policy, PolicySet, SYSTEM_NAMESPACES};

/// The label that the API server puts on every namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Policies, namespaces and records. Clones share the same state.
#[derive(Clone, Debug)]
pub struct World(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    policies: ArcSwap<PolicySet>,
    namespaces: RwLock<HashMap<String, Labels>>,
    own_namespace: String,
    /// None before the webhook configuration was read.
    called_for: ArcSwapOption<Selector>,
    own_user: Option<String>,
    stuck: ArcSwapOption<HashMap<String, i64>>,
    breaker: ArcSwapOption<String>,
    ledgers: records::Ledgers,
}

impl World {
    /// Returns a world without policies. `own_namespace` is the guard's, which is never guarded.
    pub fn new(own_namespace: impl Into<String>) -> Self {
        Self::running_as(own_namespace, "")
    }

    /// Like [`World::new`], of a guard that writes as `service_account` of its namespace. Where that is empty, nothing
    /// is taken for the guard's own writing.
    pub fn running_as(own_namespace: impl Into<String>, service_account: &str) -> Self {
        let own_namespace = own_namespace.into();
        let own_user = (!service_account.is_empty())
            .then(|| format!("system:serviceaccount:{own_namespace}:{service_account}"));
        Self(Arc::new(Inner {
            policies: ArcSwap::default(),
            namespaces: RwLock::default(),
            own_namespace,
            called_for: ArcSwapOption::empty(),
            own_user,
            stuck: ArcSwapOption::empty(),
            breaker: ArcSwapOption::empty(),
            ledgers: records::Ledgers::default(),
        }))
    }

    /// Puts `policies` in force.
    pub fn set_policies(&self, policies: PolicySet) {
        self.0.policies.store(Arc::new(policies));
    }

    /// Returns the policies in force.
    pub fn policies(&self) -> Arc<PolicySet> {
        self.0.policies.load_full()
    }

    /// Says how many Deployments of each policy are stuck, by the policy's name. None: this process does not lead,
    /// and another one counts.
    pub fn set_stuck(&self, stuck: Option<HashMap<String, i64>>) {
        self.0.stuck.store(stuck.map(Arc::new));
    }

    /// Returns how many Deployments of `policy` are stuck; none where another process counts.
    pub fn stuck(&self, policy: &str) -> Option<i64> {
        let stuck = self.0.stuck.load();
        stuck.as_ref().map(|stuck| stuck.get(policy).copied().unwrap_or_default())
    }

    /// Says how the breaker is: closed, or why it is open. None: this process does not lead, and does not know.
    pub fn set_breaker(&self, told: Option<String>) {
        self.0.breaker.store(told.map(Arc::new));
    }

    /// Returns how the breaker is, as [`World::set_breaker`] was told; none where this process does not know.
    pub fn breaker(&self) -> Option<String> {
        self.0.breaker.load().as_deref().cloned()
    }

    /// Returns the guard's own namespace.
    pub fn own_namespace(&self) -> &str {
        &self.0.own_namespace
    }

    /// Returns the user that the guard itself writes as, where that is known.
    pub fn own_user(&self) -> Option<&str> {
        self.0.own_user.as_deref()
    }

    /// Says which namespaces the webhook is called for at all, by their labels.
    pub fn set_called_for(&self, namespaces: Selector) {
        self.0.called_for.store(Some(Arc::new(namespaces)));
    }

    /// Says whether the webhook is called for Deployments of `namespace`: what it does not guard is not followed either.
    pub fn is_called_for(&self, namespace: &str) -> bool {
        let called_for = self.0.called_for.load();
        called_for.as_ref().is_none_or(|selector| self.namespace_matches(namespace, selector))
    }

    /// Says whether it is known which namespaces the webhook is called for.
    pub fn knows_called_for(&self) -> bool {
        self.0.called_for.load().is_some()
    }

    /// Says whether Deployments of `namespace` are never guarded.
    pub fn is_excluded(&self, namespace: &str) -> bool {
        SYSTEM_NAMESPACES.contains(&namespace) || namespace == self.0.own_namespace
    }

    /// Learns the labels of a namespace, or that it is gone.
    pub fn set_namespace(&self, name: &str, labels: Option<Labels>) {
        let mut namespaces = self.0.namespaces.write().unwrap_or_else(PoisonError::into_inner);
        match labels {
            Some(labels) => {
                namespaces.insert(name.to_owned(), labels);
            }
            None => {
                namespaces.remove(name);
            }
        }
    }

    /// Says whether `selector` matches the labels of the namespace.
    pub fn namespace_matches(&self, namespace: &str, selector: &Selector) -> bool {
        let namespaces = self.0.namespaces.read().unwrap_or_else(PoisonError::into_inner);
        match namespaces.get(namespace) {
            Some(labels) => selector.matches(labels),
            None => selector.matches(&name_label(namespace)),
        }
    }

    /// Forgets the namespaces that are not in `names`.
    pub fn retain_namespaces(&self, names: &std::collections::HashSet<String>) {
        let mut namespaces = self.0.namespaces.write().unwrap_or_else(PoisonError::into_inner);
        namespaces.retain(|name, _| names.contains(name));
    }

    /// Returns the policy that applies to a Deployment. `labels` is asked only if some policy selects by them.
    pub fn effective(&self, namespace: &str, labels: impl FnOnce() -> Labels) -> Option<Arc<Policy>> {
        if self.is_excluded(namespace) {
            return None;
        }
        let policies = self.0.policies.load();
        // The most common case is one policy for everything: no labels are copied or looked up for it.
        if let Some(first) = policies.ranked().first()
            && first.namespaces.selects_all()
            && first.deployments.selects_all()
        {
            return Some(Arc::clone(first));
        }
        let labels = labels();
        let namespaces = self.0.namespaces.read().unwrap_or_else(PoisonError::into_inner);
        match namespaces.get(namespace) {
            Some(known) => policies.effective(known, &labels).cloned(),
            None => policies.effective(&name_label(namespace), &labels).cloned(),
        }
    }
}

/// The one label that a namespace has for certain, though it was created a moment ago.
fn name_label(namespace: &str) -> Labels {
    Labels::from([(NAME_LABEL.to_owned(), namespace.to_owned())])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::core::policy::compile;

    fn world(specs: &[(&str, serde_json::Value)]) -> World {
        let world = World::new("rollout-guard");
        let policies = specs.iter().map(|(name, spec)| {
            Arc::new(compile(name, 1, &serde_json::from_value(spec.clone()).expect("spec")).expect("valid"))
        });
        world.set_policies(PolicySet::new(policies));
        world
    }

    fn named(world: &World, namespace: &str) -> Option<String> {
        world.effective(namespace, Labels::new).map(|policy| policy.name.clone())
    }

    #[test]
    fn system_namespaces_and_the_guards_own_are_never_guarded() {
        let world = world(&[("default", json!({}))]);
        for namespace in ["kube-system", "kube-public", "kube-node-lease", "rollout-guard"] {
            assert_eq!(named(&world, namespace), None, "{namespace}");
        }
        assert_eq!(named(&world, "shop"), Some("default".to_owned()));
    }

    #[test]
    fn a_namespace_selector_goes_by_the_labels_of_the_namespace() {
        let prod = json!({"priority": 1, "namespaceSelector": {"matchLabels": {"env": "prod"}}});
        let world = world(&[("default", json!({})), ("prod", prod)]);
        assert_eq!(named(&world, "shop"), Some("default".to_owned()));
        world.set_namespace("shop", Some(Labels::from([("env".to_owned(), "prod".to_owned())])));
        assert_eq!(named(&world, "shop"), Some("prod".to_owned()));
        world.set_namespace("shop", None);
        assert_eq!(named(&world, "shop"), Some("default".to_owned()));
    }
}
