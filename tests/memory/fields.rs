//! Field ownership as the API server keeps it, for the fields of `spec` and of the annotations.

use serde_json::{Map, Value, json};

/// The fields of a value, as managedFields writes them.
pub fn all(value: &Value) -> Value {
    let members = members(value);
    if members.is_empty() {
        return json!({});
    }
    Value::Object(members.into_iter().map(|(key, child)| (key, all(child))).collect())
}

/// Members of a map, and items of a list that go by their names.
fn members(value: &Value) -> Vec<(String, &Value)> {
    match value {
        Value::Object(map) => map.iter().map(|(key, child)| (format!("f:{key}"), child)).collect(),
        Value::Array(items) if !items.is_empty() && items.iter().all(|item| item["name"].is_string()) => {
            let named = |item: &Value| format!("k:{}", json!({"name": item["name"]}));
            items.iter().map(|item| (named(item), item)).collect()
        }
        _ => Vec::new(),
    }
}

/// The fields that are set anew or otherwise, and those that are gone.
fn differences(old: &Value, new: &Value, set: &mut Map<String, Value>, gone: &mut Map<String, Value>) {
    let (before, after) = (members(old), members(new));
    for (key, child) in &after {
        match before.iter().find(|(other, _)| other == key) {
            None => {
                set.insert(key.clone(), all(child));
            }
            Some((_, other)) if other == child => {}
            Some((_, other)) if members(child).is_empty() || members(other).is_empty() => {
                set.insert(key.clone(), json!({}));
            }
            Some((_, other)) => {
                let (mut inner_set, mut inner_gone) = (Map::new(), Map::new());
                differences(other, child, &mut inner_set, &mut inner_gone);
                if !inner_set.is_empty() {
                    set.insert(key.clone(), Value::Object(inner_set));
                }
                if !inner_gone.is_empty() {
                    gone.insert(key.clone(), Value::Object(inner_gone));
                }
            }
        }
    }
    for (key, child) in &before {
        if !after.iter().any(|(other, _)| other == key) {
            gone.insert(key.clone(), all(child));
        }
    }
}

fn unite(into: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (key, child) in from {
        match (into.get_mut(key), child) {
            (Some(Value::Object(mine)), Value::Object(child)) => unite(mine, child),
            (Some(_), _) => {}
            (None, _) => {
                into.insert(key.clone(), child.clone());
            }
        }
    }
}

/// Takes fields away. Returns whether nothing is left.
fn take(from: &mut Map<String, Value>, fields: &Map<String, Value>) -> bool {
    for (key, child) in fields {
        let empty = match (from.get_mut(key), child) {
            (Some(Value::Object(mine)), Value::Object(child)) if !mine.is_empty() && !child.is_empty() => {
                take(mine, child)
            }
            (Some(_), _) => true,
            (None, _) => false,
        };
        if empty {
            from.remove(key);
        }
    }
    from.is_empty()
}

/// Who changes a field takes it from all others; who applies owns all that it applies.
pub fn own(old: &Value, new: &mut Value, manager: &str, operation: &str, time: &str) {
    let part = |object: &Value| json!({"metadata": {"annotations": object["metadata"]["annotations"]}, "spec": object["spec"]});
    let (mut set, mut gone) = (Map::new(), Map::new());
    differences(&part(old), &part(new), &mut set, &mut gone);
    if set.is_empty() && gone.is_empty() {
        return;
    }
    let template = all(&new["spec"]["template"]);
    let mut entries = new["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries.retain_mut(|entry| {
        let mine = entry["manager"] == manager && entry["operation"] == operation;
        if mine && operation == "Apply" {
            return false;
        }
        let Some(fields) = entry["fieldsV1"].as_object_mut() else { return false };
        let none = take(fields, &gone) || (!mine && take(fields, &set));
        !none
    });
    if operation == "Apply" {
        unite(&mut set, json!({"f:spec": {"f:template": template}}).as_object().expect("a map"));
    }
    let mine =
        entries.iter_mut().find(|entry| entry["manager"] == manager && entry["operation"] == operation);
    match mine {
        Some(entry) => {
            unite(entry["fieldsV1"].as_object_mut().expect("fields"), &set);
            entry["time"] = json!(time);
        }
        None if !set.is_empty() => entries.push(json!({
            "manager": manager, "operation": operation, "apiVersion": "apps/v1", "time": time,
            "fieldsType": "FieldsV1", "fieldsV1": set,
        })),
        None => {}
    }
    new["metadata"]["managedFields"] = Value::Array(entries);
}
