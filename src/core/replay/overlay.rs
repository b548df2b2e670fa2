//! What a patch makes of a Deployment, as far as the patch itself tells.
//!
//! An audit event does not say of which type a patch is. A list is a JSON patch, an object is merged: lists of objects by
//! their keys, as a strategic merge patch and server-side apply do. (A plain merge patch replaces lists as a whole; one
//! that brings whole containers gives the same.) What gives orders to the merge (`$patch`, `$retainKeys`) is left alone.

use serde_json::{Map, Value};

/// The fields that tell the items of a list apart, in the order in which they are looked for.
const KEYS: [&str; 6] = ["name", "containerPort", "mountPath", "devicePath", "ip", "topologyKey"];

/// The deepest that a patch is followed.
const DEEPEST: usize = 64;

/// Returns `before` with `patch` on it; none where that cannot be told.
pub(super) fn laid_over(before: &Value, patch: &Value) -> Option<Value> {
    let mut after = before.clone();
    match patch {
        Value::Array(_) => {
            let operations: json_patch::Patch = serde_json::from_value(patch.clone()).ok()?;
            operations.0.iter().filter(|operation| concerns_us(operation)).try_for_each(|operation| {
                json_patch::patch(&mut after, std::slice::from_ref(operation)).ok()
            })?;
        }
        Value::Object(patch) => merge_object(&mut after, patch, DEEPEST)?,
        _ => return None,
    }
    Some(after)
}

/// Of the Deployment before only what decides is known, so that operations on the rest would fail.
fn concerns_us(operation: &json_patch::PatchOperation) -> bool {
    let path = operation.path().to_string();
    let ours =
        ["/spec/template", "/spec/replicas", "/spec/paused", "/metadata/annotations/rollout-guard.io~1"];
    (path.is_empty() || path == "/spec" || ours.iter().any(|ours| path.starts_with(ours)))
        && !matches!(operation, json_patch::PatchOperation::Test(_))
}

fn merge_object(into: &mut Value, patch: &Map<String, Value>, depth: usize) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (field, value) in patch {
        // Order is all that it sets.
        if field.starts_with("$setElementOrder/") {
            continue;
        }
        if field.starts_with('$') {
            return None;
        }
        match value {
            Value::Null => {
                into.as_object_mut()?.remove(field);
            }
            Value::Object(patch) => merge_object(&mut into[field.as_str()], patch, depth)?,
            Value::Array(items) => merge_list(&mut into[field.as_str()], items, depth)?,
            value => into[field.as_str()] = value.clone(),
        }
    }
    Some(())
}

fn merge_list(into: &mut Value, items: &[Value], depth: usize) -> Option<()> {
    let key = KEYS.iter().find(|key| !items.is_empty() && items.iter().all(|item| item.get(**key).is_some()));
    let (Some(key), Some(there)) = (key, into.as_array_mut()) else {
        if items.iter().any(gives_orders) {
            return None;
        }
        *into = Value::Array(items.to_vec());
        return Some(());
    };
    for item in items {
        let patch = item.as_object()?;
        match there.iter_mut().find(|there| there.get(*key) == item.get(*key)) {
            Some(there) => merge_object(there, patch, depth)?,
            None if gives_orders(item) => return None,
            None => there.push(item.clone()),
        }
    }
    Some(())
}

fn gives_orders(item: &Value) -> bool {
    item.as_object().is_some_and(|item| item.keys().any(|field| field.starts_with('$')))
}
