//! Field ownership: what the guard took by putting a template back goes to whom it belongs.
//!
//! A writer that changes a field takes it from all who owned it; a field that is removed is owned by nobody
//! (structured-merge-diff, `merge/update.go`). So after a restore the guard owns what differed and what the way back
//! added. Server-side apply by the real owner would then meet a conflict with the guard, and would not remove what the
//! bad push had removed before. With the guard's fields united into its own entry it does neither.
//!
//! What cannot be had:
//! - A field that another writer than the applier (`kubectl set`) had changed in the bad template goes to the applier as
//!   well, since the value that is there now is not that writer's. An applier that never had the field removes it with
//!   its next push.
//! - A map that the way back empties belongs to nobody then: the guard took nothing in it that could be handed back.
//!   So a volume of `emptyDir: {}` to which the bad push had added a `sizeLimit` keeps its `emptyDir` where the fix makes
//!   a secret of it by server-side apply, which the API server then refuses, as it has two sources.

use json_patch::Patch;
use serde_json::{Map, Value, json};

use super::{FIELD_MANAGER, LAST_APPLIED, guards, replace};

/// Returns the patch of `metadata.managedFields` that hands the guard's fields back; none where it has no entry, or
/// nobody else has one (an empty list would reset them all).
///
/// They go to the server-side applier of most of the template, the newest among equals; without one, to the writer of
/// most of it (client-side apply, Helm 3), so that its later move to server-side apply meets no conflict with the guard
/// either. Who applies a little of a template that somebody else writes (an annotation, say) is not its applier: with its next
/// push it would remove what it does not apply. Where nobody has anything of the template, they are nobody's. The patch makes
/// no new generation, and none is returned for its own output.
pub fn hand_back(deployment: &Value) -> Option<Patch> {
    give(deployment, None)
}

/// Like [`hand_back`], with the Deployment as it was when the template was put back: several appliers that share a
/// template get what each of them had, even if it was all they had.
pub fn hand_back_as_before(deployment: &Value, before: &Value) -> Option<Patch> {
    let is_same = deployment.pointer("/metadata/uid") == before.pointer("/metadata/uid");
    give(deployment, entries(before).filter(|_| is_same))
}

/// Returns what the owner of the annotation [`LAST_APPLIED`] owns of the pod template: the client-side applier, or null.
pub(super) fn of_client_side_applier(deployment: &Value) -> Value {
    let owner = entries(deployment).into_iter().flatten().find(|entry| {
        is_main(entry, "Update")
            && entry["fieldsV1"]["f:metadata"]["f:annotations"].get(last_applied_field()).is_some()
    });
    owner.map_or(Value::Null, |entry| entry["fieldsV1"]["f:spec"]["f:template"].clone())
}

fn give(deployment: &Value, before: Option<&Vec<Value>>) -> Option<Patch> {
    let all = entries(deployment)?;
    let (ours, mut others): (Vec<Value>, Vec<Value>) = all.iter().cloned().partition(is_guards);
    if ours.is_empty() || others.is_empty() {
        return None;
    }
    let versions: Vec<&Value> = ours.iter().map(|entry| &entry["apiVersion"]).collect();
    let mut fields = json!({});
    ours.iter().for_each(|entry| unite(&mut fields, &entry["fieldsV1"]));

    for entry in before.into_iter().flatten().filter(|entry| is_main(entry, "Apply")) {
        let lost = common(&entry["fieldsV1"], &fields);
        if versions.contains(&&entry["apiVersion"]) && lost.as_object().is_some_and(|lost| !lost.is_empty()) {
            fields = without(&fields, &lost);
            match others.iter_mut().find(|other| same_owner(other, entry)) {
                Some(other) => unite(&mut other["fieldsV1"], &lost),
                None => {
                    let mut again = entry.clone();
                    again["fieldsV1"] = lost;
                    others.push(again);
                }
            }
        }
    }

    let of = |operation: &str| {
        let eligible = |entry: &Value| {
            is_main(entry, operation) && versions.contains(&&entry["apiVersion"]) && share(entry) > 0
        };
        let eligible = others.iter().enumerate().filter(|(_, entry)| eligible(entry));
        eligible.max_by_key(|(_, entry)| (share(entry), time(entry)))
    };
    let (applier, writer) = (of("Apply"), of("Update"));
    // The selector is in every manifest of a whole Deployment.
    let whole = |entry: &Value| !entry["fieldsV1"]["f:spec"]["f:selector"].is_null();
    let most = writer.map_or(0, |(_, writer)| share(writer));
    let owner = applier.filter(|(_, applier)| whole(applier) || share(applier) * 2 >= most).or(writer);
    let owner = owner.or(applier).map(|(at, _)| at);
    if let Some(owner) = owner.and_then(|at| others.get_mut(at)) {
        if owner["operation"] == "Apply" {
            // An applier would remove the annotation with its next push, as it does not apply it.
            let annotation = json!({"f:metadata": {"f:annotations": {last_applied_field(): {}}}});
            fields = without(&fields, &annotation);
        }
        unite(&mut owner["fieldsV1"], &fields);
    }
    let mut operations = guards(deployment)?;
    operations.push(replace(["metadata", "managedFields"], Value::Array(others)));
    Some(Patch(operations))
}

fn entries(deployment: &Value) -> Option<&Vec<Value>> {
    deployment.pointer("/metadata/managedFields")?.as_array()
}

fn last_applied_field() -> String {
    format!("f:{LAST_APPLIED}")
}

/// Says whether an entry is of the main resource and this operation.
fn is_main(entry: &Value, operation: &str) -> bool {
    entry["operation"] == operation
        && entry["subresource"].as_str().is_none_or(str::is_empty)
        && entry["fieldsV1"].is_object()
}

fn is_guards(entry: &Value) -> bool {
    entry["manager"] == FIELD_MANAGER && is_main(entry, "Update")
}

fn same_owner(a: &Value, b: &Value) -> bool {
    ["manager", "operation", "apiVersion", "subresource"].iter().all(|field| a[field] == b[field])
}

/// How much of the pod template an entry owns, in fields.
fn share(entry: &Value) -> usize {
    fn count(tree: &Value) -> usize {
        children(tree).map(|(_, child)| 1 + count(child)).sum()
    }
    count(&entry["fieldsV1"]["f:spec"]["f:template"])
}

/// When an entry was written, as text: RFC 3339 in UTC sorts by time.
fn time(entry: &Value) -> String {
    entry["time"].as_str().unwrap_or_default().to_owned()
}

// ---- sets of fields, as trees ---------------------------------------------------------------------------------
//
// A field is in the set if its node is empty or has the member "." (structured-merge-diff, `fieldpath/serialize.go`).

const SELF: &str = ".";

fn is_in(tree: &Value) -> bool {
    tree.as_object().is_some_and(|members| members.is_empty() || members.contains_key(SELF))
}

fn children(tree: &Value) -> impl Iterator<Item = (&String, &Value)> {
    tree.as_object().into_iter().flatten().filter(|(key, _)| *key != SELF)
}

/// Returns a tree of children and of whether the field itself is in; null where there is nothing.
fn tree(mut children: Map<String, Value>, itself: bool) -> Value {
    if children.is_empty() {
        return if itself { json!({}) } else { Value::Null };
    }
    if itself {
        children.insert(SELF.to_owned(), json!({}));
    }
    Value::Object(children)
}

/// Adds the fields of `from`. An empty root is an empty set; below it, an empty node is a field.
fn unite(into: &mut Value, from: &Value) {
    fn united(a: &Value, b: &Value) -> Value {
        if !a.is_object() || !b.is_object() {
            return if a.is_object() { a.clone() } else { b.clone() };
        }
        tree(both(a, b), is_in(a) || is_in(b))
    }
    fn both(a: &Value, b: &Value) -> Map<String, Value> {
        let mut members: Map<String, Value> =
            children(a).map(|(key, child)| (key.clone(), child.clone())).collect();
        for (key, child) in children(b) {
            let child = united(members.get(key).unwrap_or(&Value::Null), child);
            members.insert(key.clone(), child);
        }
        members
    }
    *into = Value::Object(both(into, from));
}

/// The fields that are in both; null where there are none.
fn common(a: &Value, b: &Value) -> Value {
    let both = children(a).filter_map(|(key, child)| {
        let child = common(child, b.get(key)?);
        (!child.is_null()).then(|| (key.clone(), child))
    });
    tree(both.collect(), is_in(a) && is_in(b))
}

/// The fields of `a` that are not in `b`; null where there are none.
fn without(a: &Value, b: &Value) -> Value {
    let rest = children(a).filter_map(|(key, child)| {
        let child = b.get(key).map_or_else(|| child.clone(), |other| without(child, other));
        (!child.is_null()).then(|| (key.clone(), child))
    });
    tree(rest.collect(), is_in(a) && !is_in(b))
}
