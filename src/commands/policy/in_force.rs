//! What policies say, without a log: which is asked first, which overlap, when the freezes come.

use std::io::{self, Write};

use jiff::Timestamp;
use kube::core::Selector;
use serde_json::{Value, json};

use super::{
    Format,
    documents::{Documents, Problem},
};
use crate::core::{
    message::plain,
    policy::{Freeze, Policy, PolicySet},
};

/// How many windows of each freeze are told.
const WINDOWS: usize = 3;

/// The most characters of a selector.
const LONGEST_SELECTOR: usize = 200;

pub(super) fn print(
    out: &mut impl Write,
    policies: &Documents,
    format: Format,
    now: Timestamp,
) -> io::Result<()> {
    match format {
        Format::Table => text(out, policies, now),
        Format::Json => {
            for policy in policies.valid.ranked() {
                writeln!(out, "{}", as_json(policy, &policies.valid, now))?;
            }
            for Problem { file, policy, why } in &policies.problems {
                writeln!(out, "{}", json!({"policy": policy, "valid": false, "file": file, "why": why}))?;
            }
            Ok(())
        }
    }
}

fn text(out: &mut impl Write, policies: &Documents, now: Timestamp) -> io::Result<()> {
    for problem in &policies.problems {
        writeln!(out, "invalid: {problem}")?;
    }
    let ranked = policies.valid.ranked();
    if !ranked.is_empty() {
        writeln!(out, "Policies, in the order in which they are asked; the first that matches applies:")?;
    }
    for (at, policy) in ranked.iter().enumerate() {
        let (namespaces, deployments) = (selector(&policy.namespaces), selector(&policy.deployments));
        let Policy { name, priority, admission, rollback, .. } = &**policy;
        writeln!(out, "{:>3}. {name}: priority {priority}, mode {:?}", at + 1, policy.mode)?;
        writeln!(out, "     namespaces {namespaces}; Deployments {deployments}")?;
        writeln!(
            out,
            "     unobserved {:?}, failed {:?}, progressing {:?}, quarantined {:?}; rollback {:?}",
            admission.unobserved,
            admission.failed,
            admission.progressing,
            admission.quarantined,
            rollback.mode
        )?;
        let above: Vec<&str> = policies.valid.above(policy).map(|other| other.name.as_str()).collect();
        if !above.is_empty() {
            writeln!(out, "     comes after {} where both match", above.join(", "))?;
        }
    }
    for policy in ranked {
        for freeze in &policy.freezes {
            print_freeze(out, policy, freeze, now)?;
        }
    }
    if !policies.passed_over.is_empty() {
        let kinds: Vec<String> =
            policies.passed_over.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        writeln!(out, "Passed over, as they are no RolloutPolicies: {}", kinds.join(", "))?;
    }
    Ok(())
}

fn print_freeze(out: &mut impl Write, policy: &Policy, freeze: &Freeze, now: Timestamp) -> io::Result<()> {
    let name = plain(&freeze.name, 63);
    let reason = plain(&freeze.reason, 256);
    let reason = if reason.is_empty() { reason } else { format!(": {reason}") };
    writeln!(out, "Freeze {name} of {} ({}){reason}", policy.name, freeze.zone())?;
    for window in freeze.windows(now, WINDOWS) {
        let open = if window.since <= now { "   (open now)" } else { "" };
        writeln!(out, "     {} to {}{open}", freeze.local(window.since), freeze.local(window.until))?;
    }
    Ok(())
}

fn as_json(policy: &Policy, all: &PolicySet, now: Timestamp) -> Value {
    let freezes: Vec<Value> = policy.freezes.iter().map(|freeze| freeze_as_json(freeze, now)).collect();
    let above: Vec<&str> = all.above(policy).map(|other| other.name.as_str()).collect();
    json!({
        "policy": policy.name,
        "valid": true,
        "priority": policy.priority,
        "mode": policy.mode,
        "namespaces": selector(&policy.namespaces),
        "deployments": selector(&policy.deployments),
        "mayOverlapWithHigher": above,
        "freezes": freezes,
    })
}

fn freeze_as_json(freeze: &Freeze, now: Timestamp) -> Value {
    let windows: Vec<Value> = freeze
        .windows(now, WINDOWS)
        .iter()
        .map(|window| json!({"since": format!("{:.0}", window.since), "until": format!("{:.0}", window.until)}))
        .collect();
    json!({"name": freeze.name, "timeZone": freeze.zone(), "reason": freeze.reason, "next": windows})
}

fn selector(selector: &Selector) -> String {
    if selector.selects_all() { "all".to_owned() } else { plain(&selector.to_string(), LONGEST_SELECTOR) }
}
