//! Health of the cluster around the Deployment.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use serde_json::Value;

use super::{
    model::{Admission, ClusterState, Finding, Material, NodeFacts, NodeState, Part, Severity},
    quota::Quota,
};
use crate::core::{cause::Liveness, fallback::POLICY_LABEL, message::plain, policy::Labels};

/// The most names of one list.
const NAMES: usize = 10;

/// The most characters of a name.
const NAME: usize = 253;

/// The most Services of webhooks that are asked about.
const SERVICES: usize = 32;

/// A webhook that is called for the Deployment, its ReplicaSets or its pods.
struct Hook {
    /// `configuration/webhook`.
    name: String,
    fails_closed: bool,
    /// Namespace and name; none where it calls a URL.
    service: Option<(String, String)>,
}

/// Returns what can be said of the cluster, and what is wrong with it.
pub(super) fn cluster(material: &Material, quotas: Option<&[Quota]>) -> ClusterState {
    let nodes = material.nodes.as_deref().ok().map(nodes);
    let webhooks = material.webhooks.as_ref().ok().map(|_| admission(material));
    let mut findings = Vec::new();
    findings.extend(controller_manager(material));
    findings.extend(nodes.as_ref().map(node_findings).into_iter().flatten());
    let quotas: Option<Vec<_>> = quotas.map(|quotas| quotas.iter().map(Quota::state).collect());
    for quota in quotas.iter().flatten() {
        findings.extend(quota.used_up.iter().map(|full| {
            let then = match full.resource.as_str() {
                "count/replicasets.apps" => "no new template gets a ReplicaSet, and so none is observed",
                _ => "no pod more may be made",
            };
            let (resource, used, hard) = (&full.resource, &full.used, &full.hard);
            Finding {
                severity: Severity::Problem,
                id: "quota-used-up",
                text: format!(
                    "ResourceQuota {}: {resource} is used up ({used} of {hard}): {then}",
                    quota.name
                ),
                hint: format!(
                    "kubectl -n {} describe quota {}{}",
                    material.key.namespace, quota.name, material.flags
                ),
            }
        }));
    }
    findings.extend(webhooks.iter().flat_map(|found| &found.unreachable).map(|hook| Finding {
        severity: Severity::Problem,
        id: "webhook-unreachable",
        text: format!(
            "webhook {hook} cannot be reached, and its failurePolicy is Fail: what it is called for is refused"
        ),
        hint: "bring its Service back, or set its failurePolicy to Ignore".to_owned(),
    }));
    findings.sort_by_key(|finding| finding.severity);
    ClusterState {
        nodes,
        quotas,
        limit_ranges: material.limit_ranges.as_ref().ok().map(|ranges| names(ranges)),
        webhooks,
        admission_policies: material.admission_policies.as_ref().ok().map(|_| admission_policies(material)),
        findings,
    }
}

fn names(objects: &[Value]) -> Vec<String> {
    objects.iter().map(name_of).take(NAMES).collect()
}

fn name_of(object: &Value) -> String {
    plain(object["metadata"]["name"].as_str().unwrap_or_default(), NAME)
}

fn controller_manager(material: &Material) -> Option<Finding> {
    let lease = material.controller_manager.as_ref().ok()?;
    (lease.liveness == Liveness::Silent).then(|| Finding {
        severity: Severity::Problem,
        id: "controller-manager-silent",
        text: "kube-controller-manager does not renew its Lease: nothing is observed, no pod is made"
            .to_owned(),
        hint: format!(
            "kubectl -n kube-system get pods -l component=kube-controller-manager{}",
            material.flags
        ),
    })
}

fn nodes(nodes: &[NodeFacts]) -> NodeState {
    let named = |which: fn(&NodeFacts) -> bool| {
        nodes.iter().filter(|node| which(node)).map(|node| plain(&node.name, NAME)).take(NAMES).collect()
    };
    let pressure = nodes.iter().flat_map(|node| {
        node.pressure.iter().map(|kind| format!("{}: {}", plain(&node.name, NAME), plain(kind, NAME)))
    });
    NodeState {
        total: nodes.len(),
        ready: nodes.iter().filter(|node| node.ready).count(),
        not_ready: named(|node| !node.ready),
        cordoned: named(|node| node.cordoned),
        pressure: pressure.take(NAMES).collect(),
    }
}

fn node_findings(nodes: &NodeState) -> Vec<Finding> {
    let problem =
        |id, text, hint: &str| Finding { severity: Severity::Problem, id, text, hint: hint.to_owned() };
    let mut findings = Vec::new();
    let missing = nodes.total - nodes.ready;
    if missing > 0 {
        let text =
            format!("{missing} of {} nodes are not ready: {}", nodes.total, list(&nodes.not_ready, missing));
        findings.push(problem("nodes-not-ready", text, "kubectl describe node shows why, under Conditions"));
    }
    if !nodes.pressure.is_empty() {
        let text = format!("nodes are under pressure: {}", nodes.pressure.join(", "));
        findings.push(problem(
            "nodes-under-pressure",
            text,
            "pods are evicted from them, and none are added",
        ));
    }
    if !nodes.cordoned.is_empty() && nodes.cordoned.len() == nodes.total {
        let text = format!("all nodes are cordoned: {}", nodes.cordoned.join(", "));
        findings.push(problem("nodes-cordoned", text, "kubectl uncordon lets pods be scheduled again"));
    }
    findings
}

fn list(names: &[String], of: usize) -> String {
    let more = of.saturating_sub(names.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

fn admission(material: &Material) -> Admission {
    let hooks = hooks(material);
    let unreachable = hooks.iter().filter(|hook| hook.fails_closed).filter_map(|hook| {
        let (namespace, service) = hook.service.as_ref()?;
        let known = material.endpoints.get(&(namespace.clone(), service.clone()))?;
        let none = matches!(known, Part::Ok(0));
        none.then(|| format!("{} (Service {namespace}/{service} has no ready endpoints)", hook.name))
    });
    Admission {
        matching: hooks.len(),
        fail_closed: hooks.iter().filter(|hook| hook.fails_closed).count(),
        unreachable: unreachable.take(NAMES).collect(),
    }
}

/// Returns the Services of the webhooks that refuse what they are called for while they cannot be reached.
pub(super) fn services(material: &Material) -> BTreeSet<(String, String)> {
    let closed = hooks(material).into_iter().filter(|hook| hook.fails_closed);
    closed.filter_map(|hook| hook.service).take(SERVICES).collect()
}

/// The webhooks that are called for the Deployment, its ReplicaSets or its pods; also those of which that cannot be ruled
/// out.
fn hooks(material: &Material) -> Vec<Hook> {
    let scope = Scope::of(material);
    let mut found = Vec::new();
    for configuration in material.webhooks.iter().flatten() {
        for webhook in configuration["webhooks"].as_array().into_iter().flatten() {
            let rules = webhook["rules"].as_array().into_iter().flatten();
            if !scope.matches(rules, &webhook["namespaceSelector"], &webhook["objectSelector"]) {
                continue;
            }
            let service = &webhook["clientConfig"]["service"];
            let text = |key: &str| service[key].as_str().map(|text| plain(text, NAME));
            let name = plain(webhook["name"].as_str().unwrap_or_default(), NAME);
            found.push(Hook {
                name: format!("{}/{name}", name_of(configuration)),
                fails_closed: webhook["failurePolicy"].as_str().is_none_or(|policy| policy == "Fail"),
                service: text("namespace").zip(text("name")),
            });
        }
    }
    found
}

/// The ValidatingAdmissionPolicies that are called for the Deployment, its ReplicaSets or its pods, and that a binding
/// lets refuse.
fn admission_policies(material: &Material) -> Vec<String> {
    let Ok((policies, bindings)) = &material.admission_policies else { return Vec::new() };
    let scope = Scope::of(material);
    let refuses = |policy: &Value| {
        let name = &policy["metadata"]["name"];
        bindings.iter().map(|binding| &binding["spec"]).any(|binding| {
            let actions = binding["validationActions"].as_array();
            binding["policyName"] == *name
                && actions.into_iter().flatten().any(|action| action == "Deny")
                && scope.selects(&binding["matchResources"]["namespaceSelector"])
        })
    };
    let called = |policy: &&Value| {
        let constraints = &policy["spec"]["matchConstraints"];
        let rules = constraints["resourceRules"].as_array().into_iter().flatten();
        scope.matches(rules, &constraints["namespaceSelector"], &constraints["objectSelector"])
    };
    // What the guard puts there stands in for its webhook while that is down.
    let others = policies.iter().filter(|policy| policy["metadata"]["labels"].get(POLICY_LABEL).is_none());
    others.filter(called).filter(|policy| refuses(policy)).map(name_of).take(NAMES).collect()
}

/// What a rule may be about.
struct Scope<'a> {
    namespace: Option<&'a Labels>,
    /// Group, resource, operations and labels.
    objects: [(&'static str, &'static str, &'static [&'static str], Labels); 3],
}

impl<'a> Scope<'a> {
    fn of(material: &'a Material) -> Self {
        let labels = |value: &Value| serde_json::from_value::<Labels>(value.clone()).unwrap_or_default();
        let deployment = labels(&material.deployment["metadata"]["labels"]);
        let template = labels(&material.deployment["spec"]["template"]["metadata"]["labels"]);
        Self {
            namespace: material.namespace_labels.as_ref().ok(),
            objects: [
                ("apps", "deployments", &["UPDATE"], deployment),
                ("apps", "replicasets", &["CREATE", "UPDATE"], template.clone()),
                ("", "pods", &["CREATE"], template),
            ],
        }
    }

    fn matches<'r>(
        &self,
        rules: impl Iterator<Item = &'r Value>,
        namespaces: &Value,
        objects: &Value,
    ) -> bool {
        let rules: Vec<&Value> = rules.collect();
        self.selects(namespaces)
            && self.objects.iter().any(|(group, resource, operations, labels)| {
                selects(objects, Some(labels))
                    && rules.iter().any(|rule| covers(rule, group, resource, operations))
            })
    }

    /// Whether a selector takes in the namespace.
    fn selects(&self, selector: &Value) -> bool {
        selects(selector, self.namespace)
    }
}

/// Whether a selector takes in something with these labels; yes where that cannot be told.
fn selects(selector: &Value, labels: Option<&Labels>) -> bool {
    let Ok(selector) = serde_json::from_value::<LabelSelector>(selector.clone()) else { return true };
    let Ok(selector) = Selector::try_from(selector) else { return true };
    labels.is_none_or(|labels| selector.matches(labels))
}

fn covers(rule: &Value, group: &str, resource: &str, operations: &[&str]) -> bool {
    let has = |key: &str, wanted: &[&str]| {
        let values = rule[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        { values }.any(|value| value == "*" || value == "*/*" || wanted.contains(&value))
    };
    rule["scope"].as_str() != Some("Cluster")
        && has("apiGroups", &[group])
        && has("resources", &[resource])
        && has("operations", operations)
}
