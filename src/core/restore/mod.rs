//! The writes that put an earlier template back and keep the appliers' bookkeeping right.
//!
//! The rule: **after a rollback the next push gives exactly what it would have given without it.** Whoever applies
//! a Deployment remembers what it applied: `kubectl apply` in an annotation, server-side apply in
//! `metadata.managedFields`. A template that is put back behind their backs makes that memory wrong, so that the next push
//! meets conflicts or leaves fields behind.
//!
//! ```text
//!  announce ─▶ restore ─────────────────────────▶ hand_back ──────────▶ retract
//!  status:     spec.template, and what            metadata.             status: gone before
//!  Stalled     kubectl last applied               managedFields alone   the next push is seen
//! ```
//!
//! Each is one JSON patch (RFC 6902) that carries two guards: a `test` of the uid, and a `replace` of the resourceVersion
//! by the one that was read. A stale `replace` is a clean 409, where a stale `test` would be a 422 without a reason.

use json_patch::{Patch, PatchOperation, ReplaceOperation, TestOperation, jsonptr::PointerBuf};
use serde_json::Value;

use super::template::{POD_TEMPLATE_HASH, TemplateHash};

mod announce;
mod last_applied;
mod managed_fields;

pub use announce::{ANNOUNCED_REASON, ANNOUNCED_TYPE, announce, retract};
pub use managed_fields::{hand_back, hand_back_as_before};

/// The annotation in which `kubectl apply` remembers what it applied (`kubectl/pkg/util/apply.go`).
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Under which name the guard writes, so that it knows its own entry in `metadata.managedFields`.
pub const FIELD_MANAGER: &str = "rollout-guard";

/// Why a template cannot be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The object as read lacks what every stored object has.
    #[error("the {kind} as read has no {field}")]
    Incomplete {
        /// The kind of the object.
        kind: &'static str,
        /// The path of the field.
        field: &'static str,
    },
    /// Somebody planted the ReplicaSet, or it belongs to a Deployment of the same name that was deleted.
    #[error("the ReplicaSet is not controlled by the Deployment")]
    NotOwned,
    /// The Deployment has the ReplicaSet's template already.
    #[error("the Deployment has this template already")]
    Unchanged,
}

/// Returns the patch of `deployment` that puts the template of `replica_set` back.
///
/// The template is copied as it is, fields that this guard does not know included, without the one label that the
/// deployment controller adds to ReplicaSets. Where [`LAST_APPLIED`] is there, its template is corrected in the same
/// patch; a text that cannot be read, or that would grow beyond what annotations may hold, is left alone. Nothing else
/// changes: neither replicas, labels nor any other annotation.
///
/// # Errors
/// [`RestoreError`]; whether the template is the recorded one is for the caller to check, by [`TemplateHash`].
pub fn restore(deployment: &Value, replica_set: &Value) -> Result<Patch, RestoreError> {
    let incomplete = |kind, field| RestoreError::Incomplete { kind, field };
    let mut operations = guards(deployment).ok_or(incomplete("Deployment", "uid or resourceVersion"))?;
    let bad = deployment
        .pointer("/spec/template")
        .filter(|t| t.is_object())
        .ok_or(incomplete("Deployment", "spec.template"))?;
    let good = template_of(replica_set).ok_or(incomplete("ReplicaSet", "spec.template"))?;
    if !controls(deployment, replica_set) {
        return Err(RestoreError::NotOwned);
    }
    if TemplateHash::of(bad) == TemplateHash::of(&good) {
        return Err(RestoreError::Unchanged);
    }
    if let Some(text) = last_applied::corrected(deployment, bad, &good) {
        operations.push(replace(["metadata", "annotations", LAST_APPLIED], Value::String(text)));
    }
    operations.push(replace(["spec", "template"], good));
    Ok(Patch(operations))
}

/// Returns the pod template of a ReplicaSet as its Deployment had it: without the label `pod-template-hash`, which the
/// deployment controller adds (`deployment_util.go`). None where there is no template.
pub fn template_of(replica_set: &Value) -> Option<Value> {
    let mut template = replica_set.pointer("/spec/template").filter(|t| t.is_object())?.clone();
    if let Some(Value::Object(labels)) = template.pointer_mut("/metadata/labels") {
        labels.remove(POD_TEMPLATE_HASH);
    }
    Some(template)
}

/// Says whether the controller among the owners of `replica_set` is `deployment`, by uid.
fn controls(deployment: &Value, replica_set: &Value) -> bool {
    let uid = deployment.pointer("/metadata/uid").and_then(Value::as_str);
    let owners = replica_set.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    uid.is_some()
        && owners.into_iter().flatten().any(|owner| {
            owner["controller"] == true && owner["kind"] == "Deployment" && owner["uid"].as_str() == uid
        })
}

/// The guards of every patch of `deployment`; none where it has no uid or no resourceVersion.
fn guards(deployment: &Value) -> Option<Vec<PatchOperation>> {
    let text = |field| deployment.get("metadata")?.get(field)?.as_str().filter(|text| !text.is_empty());
    let test =
        TestOperation { path: PointerBuf::from_tokens(["metadata", "uid"]), value: text("uid")?.into() };
    Some(vec![
        PatchOperation::Test(test),
        replace(["metadata", "resourceVersion"], text("resourceVersion")?.into()),
    ])
}

fn replace<'a>(path: impl IntoIterator<Item = &'a str>, value: Value) -> PatchOperation {
    PatchOperation::Replace(ReplaceOperation { path: PointerBuf::from_tokens(path), value })
}
