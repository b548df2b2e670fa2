//! The condition that tells whoever waits for a push that it was rolled back.
//!
//! After a rollback the old template runs well, which `helm upgrade --wait` and Flux take for the success of the bad
//! push. kstatus (Helm 4, Flux, cli-utils) reads `Stalled=True` on the status as a failure, and the deployment controller
//! keeps conditions that are not its own. Left standing it would fail the next, good push as well: it must go before that one is seen.

use jiff::Timestamp;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, jsonptr::PointerBuf};
use serde_json::{Value, json};

use super::{guards, replace};

/// The type of the condition, which kstatus takes for a failure.
pub const ANNOUNCED_TYPE: &str = "Stalled";

/// The reason of the condition, by which the guard knows its own.
pub const ANNOUNCED_REASON: &str = "RolledBack";

/// Returns the patch of the status subresource of `deployment` that says in `message` that it was rolled back; none
/// where it says so already, or the object has no uid or resourceVersion.
///
/// There is one condition of a type: another's `Stalled` is replaced, as two of one type would be refused. The time of
/// transition stays while the status does (API conventions, "Typical status properties").
pub fn announce(deployment: &Value, message: &str, now: Timestamp) -> Option<Patch> {
    let now = format!("{now:.0}");
    let conditions = deployment.pointer("/status/conditions").filter(|conditions| !conditions.is_null());
    let standing = conditions
        .and_then(Value::as_array)
        .and_then(|all| all.iter().enumerate().find(|(_, condition)| condition["type"] == ANNOUNCED_TYPE));
    let mut transition = json!(now);
    if let Some((_, standing)) = standing
        && standing["status"] == "True"
    {
        if is_ours(standing) && standing["message"] == message {
            return None;
        }
        if standing["lastTransitionTime"].is_string() {
            transition = standing["lastTransitionTime"].clone();
        }
    }
    let condition = json!({
        "type": ANNOUNCED_TYPE,
        "status": "True",
        "reason": ANNOUNCED_REASON,
        "message": message,
        "lastUpdateTime": now,
        "lastTransitionTime": transition,
    });
    let mut operations = guards(deployment)?;
    operations.push(match (standing, conditions) {
        (Some((at, _)), _) => replace(["status", "conditions", &at.to_string()], condition),
        (None, Some(_)) => add(["status", "conditions", "-"], condition),
        (None, None) if deployment.get("status").is_some_and(|status| !status.is_null()) => {
            add(["status", "conditions"], json!([condition]))
        }
        (None, None) => add(["status"], json!({ "conditions": [condition] })),
    });
    Some(Patch(operations))
}

/// Returns the patch of the status subresource of `deployment` that removes what [`announce`] wrote, and no condition of
/// anybody else; none where there is nothing to remove, or the object has no uid or resourceVersion.
pub fn retract(deployment: &Value) -> Option<Patch> {
    let conditions = deployment.pointer("/status/conditions").and_then(Value::as_array)?;
    let ours = conditions.iter().enumerate().filter(|(_, condition)| is_ours(condition));
    // From the end, as a removal moves what comes after it.
    let removals = ours.rev().map(|(at, _)| {
        let path = PointerBuf::from_tokens(["status", "conditions", &at.to_string()]);
        PatchOperation::Remove(RemoveOperation { path })
    });
    let removals: Vec<_> = removals.collect();
    if removals.is_empty() {
        return None;
    }
    let mut operations = guards(deployment)?;
    operations.extend(removals);
    Some(Patch(operations))
}

fn is_ours(condition: &Value) -> bool {
    condition["type"] == ANNOUNCED_TYPE && condition["reason"] == ANNOUNCED_REASON
}

fn add<'a>(path: impl IntoIterator<Item = &'a str>, value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path), value })
}
