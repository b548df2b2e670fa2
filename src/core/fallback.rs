//! The part of the rule that holds while no webhook answers: one ValidatingAdmissionPolicy and its binding for
//! each policy in Enforce.
//!
//! It refuses a new template over an unobserved generation that the webhook has not admitted, and nothing that
//! the webhook would let through: a Deployment that a policy of higher rank takes is left out, a paused one may
//! be edited, and whoever may override may do so here as well. Failed generations and freezes are not part
//! of it: a failed one is mended by a new template, and with the guard down nobody rolls it back.
//!
//! The ValidatingAdmissionPolicy is owned by its RolloutPolicy. The binding, without which it does nothing,
//! is owned by the webhook's configuration: so uninstalling ends the fallback of every policy at once, those
//! that stay behind included.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Expression, Selector};
use serde_json::{Value, json};

use super::policy::{Policy, PolicySet, SYSTEM_NAMESPACES};
use crate::api::{
    ADMITTED_ANNOTATION, GROUP, OVERRIDE_ANNOTATION,
    policy::{Action, Mode},
};

/// The label that names the RolloutPolicy on what is generated from it.
pub const POLICY_LABEL: &str = "rollout-guard.io/policy";

/// The label that names the installation on what is generated: the webhook configuration's name.
pub const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";

/// Who owns a generated object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Such as `rollout-guard.io/v1alpha1`.
    pub api_version: String,
    /// Such as `RolloutPolicy`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// The installation that a fallback belongs to.
#[derive(Clone, Debug)]
pub struct Release {
    /// The validating webhook configuration.
    pub owner: Owner,
    /// The namespaces whose updates the webhook is called for: elsewhere nothing carries its mark.
    pub namespaces: Selector,
}

/// The guard itself, which no fallback stands against.
#[derive(Clone, Copy, Debug)]
pub struct Guard<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// The user that it writes as, where that is known.
    pub user: Option<&'a str>,
}

/// A ValidatingAdmissionPolicy and its binding.
#[derive(Clone, Debug, PartialEq)]
pub struct Fallback {
    /// The name of both.
    pub name: String,
    /// The ValidatingAdmissionPolicy.
    pub policy: Value,
    /// The ValidatingAdmissionPolicyBinding.
    pub binding: Value,
    /// The policies of higher rank whose Deployments are left out.
    pub narrowed_by: Vec<String>,
}

/// Returns the name of what is generated from the RolloutPolicy `policy`.
pub fn name(policy: &str) -> String {
    format!("rollout-guard-{policy}")
}

/// Says whether `policy` has a fallback at all.
pub fn wanted(policy: &Policy) -> bool {
    policy.mode == Mode::Enforce && policy.admission.unobserved != Action::Allow
}

/// Returns the fallback of `policy`, one of `set`. `owner` owns the ValidatingAdmissionPolicy, the release the
/// binding; the namespace of `guard` is left out, as are the system's, and so is what it writes itself: it puts a
/// template back over a generation that is not observed.
pub fn generate(
    policy: &Policy,
    set: &PolicySet,
    owner: &Owner,
    release: &Release,
    guard: &Guard<'_>,
) -> Fallback {
    let above: Vec<&Policy> = set.above(policy).map(AsRef::as_ref).collect();
    let name = name(&policy.name);
    let metadata = |owner: &Owner| {
        json!({
            "name": name,
            "labels": {
                "app.kubernetes.io/managed-by": "rollout-guard",
                INSTANCE_LABEL: release.owner.name,
                POLICY_LABEL: policy.name,
            },
            "ownerReferences": [{
                "apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid,
            }],
        })
    };
    Fallback {
        policy: json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": metadata(owner),
            "spec": spec(policy, &above, &release.namespaces, guard),
        }),
        binding: json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": metadata(&release.owner),
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        }),
        narrowed_by: above.iter().map(|p| p.name.clone()).collect(),
        name,
    }
}

fn spec(policy: &Policy, above: &[&Policy], called_for: &Selector, guard: &Guard<'_>) -> Value {
    let mut namespaces = policy.namespaces.clone();
    namespaces.extend(called_for.clone());
    let excluded = SYSTEM_NAMESPACES.iter().copied().chain([guard.namespace]).map(str::to_owned);
    namespaces.extend([Expression::NotIn("kubernetes.io/metadata.name".to_owned(), excluded.collect())]);

    let taken_by_others = above
        .iter()
        .map(|other| {
            let namespace = cel(&other.namespaces, "variables.namespaceLabels");
            let deployment = cel(&other.deployments, "variables.labels");
            format!("({namespace} && {deployment})")
        })
        .collect::<Vec<_>>();
    let taken_by_others =
        if taken_by_others.is_empty() { "false".to_owned() } else { taken_by_others.join(" || ") };

    json!({
        "failurePolicy": "Ignore",
        "matchConstraints": {
            "matchPolicy": "Equivalent",
            "namespaceSelector": LabelSelector::from(namespaces),
            "objectSelector": LabelSelector::from(policy.deployments.clone()),
            "resourceRules": [{
                "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"],
                "operations": ["UPDATE"], "scope": "Namespaced",
            }],
        },
        "matchConditions": match_conditions(guard),
        "variables": [
            {"name": "labels", "expression":
                "has(oldObject.metadata.labels) ? oldObject.metadata.labels : {}"},
            {"name": "namespaceLabels", "expression":
                "has(namespaceObject.metadata.labels) ? namespaceObject.metadata.labels : {}"},
            // The selector above also takes a Deployment that only comes to match by this update.
            {"name": "notThisPolicys", "expression":
                format!("!({}) || {taken_by_others}", cel(&policy.deployments, "variables.labels"))},
            {"name": "observed", "expression":
                "has(oldObject.status.observedGeneration) ? oldObject.status.observedGeneration : 0"},
            {"name": "overridden", "expression": override_expression(&policy.name)},
        ],
        "validations": [{
            "expression":
                "variables.notThisPolicys || variables.observed >= oldObject.metadata.generation || \
                 has(oldObject.metadata.deletionTimestamp) || \
                 (has(oldObject.spec.paused) && oldObject.spec.paused) || variables.overridden",
            "reason": "Forbidden",
            "message": "RG001: the current generation is not observed",
            "messageExpression": message_expression(&policy.name),
        }],
    })
}

/// What an update must be for the fallback to look at it at all.
fn match_conditions(guard: &Guard<'_>) -> Vec<Value> {
    let mut conditions = vec![
        json!({"name": "template-changed", "expression": "object.spec.template != oldObject.spec.template"}),
        json!({"name": "not-admitted-by-the-webhook", "expression": format!(
            "!(has(object.metadata.annotations) && '{ADMITTED_ANNOTATION}' in object.metadata.annotations && \
             object.metadata.annotations['{ADMITTED_ANNOTATION}'] == string(oldObject.metadata.generation))"
        )}),
    ];
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':');
    if let Some(user) = guard.user.filter(|user| user.chars().all(is_plain)) {
        let expression = format!("request.userInfo.username != '{user}'");
        conditions.push(json!({"name": "not-by-the-guard", "expression": expression}));
    }
    conditions
}

/// The override as the webhook grants it: set or changed by this very update, with a reason, by someone who may.
fn override_expression(policy: &str) -> String {
    let at = |object: &str| format!("{object}.metadata.annotations['{OVERRIDE_ANNOTATION}']");
    let has = |object: &str| {
        format!(
            "(has({object}.metadata.annotations) && '{OVERRIDE_ANNOTATION}' in {object}.metadata.annotations)"
        )
    };
    format!(
        "{has_new} && {new}.trim() != '' && (!{has_old} || {new} != {old}) && \
         authorizer.group('{GROUP}').resource('rolloutpolicies').name('{policy}').check('override').allowed()",
        has_new = has("object"),
        has_old = has("oldObject"),
        new = at("object"),
        old = at("oldObject"),
    )
}

/// One line: Kubernetes drops a message that has line breaks.
fn message_expression(policy: &str) -> String {
    format!(
        "'RG001 ' + oldObject.metadata.namespace + '/' + oldObject.metadata.name + ' is blocked: generation ' + \
         string(oldObject.metadata.generation) + ' is not observed (rollout-guard does not answer, its fallback does). \
         Fix: remove what keeps the generation from being observed, then push again. \
         Override: set the annotation {OVERRIDE_ANNOTATION} in the same update; it takes the verb override on rolloutpolicies/{policy}.'"
    )
}

/// Returns `selector` as a CEL expression over the map `labels`.
fn cel(selector: &Selector, labels: &str) -> String {
    let terms: Vec<String> =
        selector.clone().into_iter().map(|expression| cel_term(&expression, labels)).collect();
    if terms.is_empty() { "true".to_owned() } else { terms.join(" && ") }
}

fn cel_term(expression: &Expression, labels: &str) -> String {
    let has = |key: &str| format!("{} in {labels}", quoted(key));
    let value = |key: &str| format!("{labels}[{}]", quoted(key));
    let list = |values: &std::collections::BTreeSet<String>| {
        format!("[{}]", values.iter().map(|v| quoted(v)).collect::<Vec<_>>().join(", "))
    };
    match expression {
        Expression::In(key, values) => format!("({} && {} in {})", has(key), value(key), list(values)),
        Expression::NotIn(key, values) => format!("!({} && {} in {})", has(key), value(key), list(values)),
        Expression::Equal(key, v) => format!("({} && {} == {})", has(key), value(key), quoted(v)),
        Expression::NotEqual(key, v) => format!("!({} && {} == {})", has(key), value(key), quoted(v)),
        Expression::Exists(key) => format!("({})", has(key)),
        Expression::DoesNotExist(key) => format!("!({})", has(key)),
    }
}

/// Label keys and values hold no quotes where the API server has checked them; whatever else is left out.
fn quoted(text: &str) -> String {
    let safe: String =
        text.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/')).collect();
    format!("'{safe}'")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::policy::compile;

    fn policy(name: &str, spec: Value) -> Arc<Policy> {
        Arc::new(compile(name, 1, &serde_json::from_value(spec).expect("spec")).expect("valid"))
    }

    fn owner(kind: &str) -> Owner {
        Owner { api_version: "v1".into(), kind: kind.into(), name: "n".into(), uid: "u".into() }
    }

    #[test]
    fn only_a_policy_that_enforces_over_unobserved_generations_has_a_fallback() {
        assert!(wanted(&policy("p", json!({}))));
        assert!(wanted(&policy("p", json!({"admission": {"unobserved": "Deny"}}))));
        for spec in [
            json!({"mode": "Warn"}),
            json!({"mode": "Audit"}),
            json!({"mode": "Off"}),
            json!({"admission": {"unobserved": "Allow"}}),
        ] {
            assert!(!wanted(&policy("p", spec.clone())), "{spec}");
        }
    }

    #[test]
    fn the_fallback_leaves_out_the_system_the_guard_and_what_higher_policies_take() {
        let low = policy("low", json!({"selector": {"matchLabels": {"tier": "web"}}}));
        let high = policy(
            "high",
            json!({"priority": 5, "namespaceSelector": {"matchExpressions": [{"key": "env", "operator": "In", "values": ["dev"]}]}}),
        );
        let elsewhere =
            policy("elsewhere", json!({"priority": 5, "selector": {"matchLabels": {"tier": "db"}}}));
        let set = PolicySet::new([Arc::clone(&low), high, elsewhere]);
        let release = Release {
            owner: owner("ValidatingWebhookConfiguration"),
            namespaces: Selector::from(Expression::DoesNotExist("unguarded".into())),
        };
        let guard = Guard { namespace: "guard", user: Some("system:serviceaccount:guard:guard") };
        let fallback = generate(&low, &set, &owner("RolloutPolicy"), &release, &guard);
        assert_eq!(fallback.narrowed_by, ["high"]);
        insta::assert_json_snapshot!(fallback.policy);
        insta::assert_json_snapshot!(fallback.binding);
    }

    #[test]
    fn a_guard_that_is_not_known_or_is_no_user_is_not_let_through() {
        let names = |user: Option<&str>| -> Vec<String> {
            let conditions = match_conditions(&Guard { namespace: "guard", user });
            conditions.iter().map(|c| c["name"].as_str().expect("a name").to_owned()).collect()
        };
        let usual = ["template-changed", "not-admitted-by-the-webhook"];
        assert_eq!(names(None), usual);
        assert_eq!(names(Some("x' || true || 'x")), usual);
        assert_eq!(names(Some("system:serviceaccount:guard:guard")).len(), 3);
    }

    #[test]
    fn a_message_of_the_fallback_is_one_line() {
        assert!(!message_expression("default").contains('\n'));
    }
}
