//! What the guard does about the Deployment, and what keeps it from doing so.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use serde_json::Value;

use super::model::{Finding, FreezeLine, GuardState, Installation, Material, Severity};
use crate::{
    api::policy::{Mode, RolloutPolicy, RolloutPolicySpec},
    core::{
        lease::{BREAKER_CLOSED, pod_of},
        message::plain,
        policy::{Labels, Policy, PolicySet, SYSTEM_NAMESPACES, compile},
        view::DeploymentView,
    },
};

/// Another replica takes a Lease that is not renewed within 18 s; the clock here may be another one than there.
const TAKEOVER: SignedDuration = SignedDuration::from_secs(30);

/// The most characters of a reason.
const REASON: usize = 300;

/// Returns what is known of the guard.
pub(super) fn guard(material: &Material, view: &DeploymentView, now: Timestamp) -> GuardState {
    let mut state =
        GuardState { installed: installed(material, view), says: stalled(view), ..GuardState::default() };
    if let Ok(Some(installation)) = &material.guard {
        about(&mut state, installation, now);
    }
    if state.installed == Some(true) && material.policies.is_ok() {
        match policy(material) {
            Some(policy) => applies(&mut state, &policy, now),
            None => state.findings.push(note(
                "not-guarded",
                format!("no RolloutPolicy is for this Deployment in namespace {}", view.namespace),
                "kubectl get rolloutpolicies shows for which they are",
            )),
        }
    }
    state.findings.sort_by_key(|finding| finding.severity);
    state
}

fn problem(id: &'static str, text: String, hint: &str) -> Finding {
    Finding { severity: Severity::Problem, id, text, hint: hint.to_owned() }
}

fn note(id: &'static str, text: String, hint: &str) -> Finding {
    Finding { severity: Severity::Note, id, text, hint: hint.to_owned() }
}

fn installed(material: &Material, view: &DeploymentView) -> Option<bool> {
    let found = material.guard.as_ref().ok().map(Option::is_some);
    let told = view.guarded || material.policies.as_ref().is_ok_and(|policies| !policies.is_empty());
    if told && found.is_none() { Some(true) } else { found }
}

fn about(state: &mut GuardState, installation: &Installation, now: Timestamp) {
    let (wanted, available) = installation.replicas;
    state.namespace = Some(installation.namespace.clone());
    state.wanted = Some(wanted);
    state.available = Some(available);
    if available == 0 {
        let text = format!(
            "the guard is installed in namespace {}, and none of its replicas is available",
            installation.namespace
        );
        state.findings.push(problem("guard-down", text, "rollout-guard check says what is wrong with it"));
    }
    let Ok(Some(lease)) = &installation.lease else { return };
    let fresh = lease.renew_time.is_some_and(|at| now.duration_since(at) <= TAKEOVER);
    state.leader_renewed_at = lease.renew_time;
    state.leader = Some(plain(pod_of(&lease.holder), REASON)).filter(|pod| fresh && !pod.is_empty());
    if state.leader.is_none() {
        let text = "no replica of the guard leads: nothing is followed, nothing is rolled back".to_owned();
        state.findings.push(problem("no-leader", text, "rollout-guard check says what is wrong with it"));
    }
    if let Some(why) = &lease.stop {
        let why = plain(why, REASON);
        let text = format!("the kill switch is pulled, the guard writes nothing: {why}");
        let hint = "take the annotation rollout-guard.io/stop off its Lease";
        state.findings.push(problem("guard-stopped", text, hint));
        state.stopped = Some(why);
    }
    state.breaker = lease.breaker.as_ref().filter(|_| fresh).map(|breaker| plain(breaker, REASON));
    if let Some(open) = state.breaker.as_ref().filter(|breaker| *breaker != BREAKER_CLOSED) {
        let text = format!("the breaker is open, nothing is rolled back: {open}");
        state.findings.push(problem(
            "breaker-open",
            text,
            "rollout-guard check says more; it closes by itself",
        ));
    }
}

fn applies(state: &mut GuardState, policy: &Policy, now: Timestamp) {
    state.policy = Some(policy.name.clone());
    state.mode = Some(policy.mode);
    state.rollback_mode = Some(policy.rollback.mode);
    if policy.mode == Mode::Off {
        let text = format!("RolloutPolicy {} has the mode Off: the guard does nothing", policy.name);
        state.findings.push(note("policy-off", text, "set its spec.mode to Enforce"));
    }
    if let Some(open) = policy.open_freeze(now) {
        let freeze = FreezeLine {
            name: plain(open.name, REASON),
            reason: plain(open.reason, REASON),
            until: open.until,
        };
        let text = format!(
            "freeze {} is open until {:.0}, no new template is let in: {}",
            freeze.name, freeze.until, freeze.reason
        );
        let hint = "the last good template is let in all the same";
        state.findings.push(note("freeze-open", text, hint));
        state.freeze = Some(freeze);
    }
}

/// The record's word on why nothing is done, or what is.
fn stalled(view: &DeploymentView) -> Option<String> {
    let stalled = view.guard_condition("Stalled").filter(|condition| condition.status == "True")?;
    Some(format!("{}: {}", stalled.reason, stalled.message))
}

/// Returns the policy that applies to the Deployment, as far as can be told.
pub(super) fn policy(material: &Material) -> Option<Arc<Policy>> {
    let namespace = &material.key.namespace;
    let own = material.guard.as_ref().ok().and_then(Option::as_ref).map(|guard| &guard.namespace);
    if SYSTEM_NAMESPACES.contains(&namespace.as_str()) || own == Some(namespace) {
        return None;
    }
    let name = || Labels::from([("kubernetes.io/metadata.name".to_owned(), namespace.clone())]);
    let namespace_labels = material.namespace_labels.clone().unwrap_or_else(|_| name());
    if !is_called_for(material, &namespace_labels) {
        return None;
    }
    let labels =
        serde_json::from_value(material.deployment["metadata"]["labels"].clone()).unwrap_or_default();
    let policies = material.policies.iter().flatten().filter_map(in_force);
    PolicySet::new(policies).effective(&namespace_labels, &labels).cloned()
}

/// The policy as stored, or as it was last valid.
fn in_force(stored: &RolloutPolicy) -> Option<Arc<Policy>> {
    let name = stored.metadata.name.as_deref()?;
    let generation = stored.metadata.generation.unwrap_or_default();
    let last = || {
        let last = stored.status.as_ref()?.last_valid.as_ref()?;
        let spec: RolloutPolicySpec = serde_json::from_value(last.spec.clone()).ok()?;
        compile(name, last.generation, &spec).ok()
    };
    compile(name, generation, &stored.spec).ok().or_else(last).map(Arc::new)
}

/// Whether the guard's webhook is called for the namespace: what it is not called for is not followed either.
fn is_called_for(material: &Material, namespace: &Labels) -> bool {
    let own = |configuration: &&Value| {
        configuration["metadata"]["labels"]["app.kubernetes.io/name"] == "rollout-guard"
    };
    let configurations = material.webhooks.iter().flatten().filter(own);
    let webhooks = configurations.flat_map(|c| c["webhooks"].as_array().into_iter().flatten());
    let mut selectors = webhooks.filter_map(|webhook| {
        let selector = serde_json::from_value::<LabelSelector>(webhook["namespaceSelector"].clone()).ok()?;
        Selector::try_from(selector).ok()
    });
    selectors.all(|selector| selector.matches(namespace))
}
