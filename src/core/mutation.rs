//! What the mutating webhook changes: the policy's defaults, and the mark that lets the fallback know that the
//! webhook was alive.
//!
//! The patch depends on the objects alone and is empty on its own output, so that Kubernetes may ask again.

use json_patch::{
    AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation, jsonptr::PointerBuf,
};
use serde_json::{Value, json};

use super::policy::Policy;
use crate::api::{ADMITTED_ANNOTATION, policy::Mode};

/// The progress deadline that Kubernetes fills in (`pkg/apis/apps/v1/defaults.go`), in seconds.
const KUBERNETES_PROGRESS_DEADLINE: i32 = 600;

/// A Deployment that is created or updated, as the mutating phase sees it.
#[derive(Clone, Debug, Default)]
pub struct Subject<'a> {
    /// `metadata.generation` of the stored object; none on CREATE.
    pub old_generation: Option<i64>,
    /// The mark on the stored object.
    pub old_admitted: Option<&'a str>,
    /// The mark on the object as sent.
    pub admitted: Option<&'a str>,
    /// Whether the object as sent has `metadata.annotations` that are not null.
    pub has_annotations: bool,
    /// Whether the spec differs; true on CREATE.
    pub spec_changed: bool,
    /// Whether the pod template differs.
    pub template_changed: bool,
    /// `spec.progressDeadlineSeconds`.
    pub progress_deadline_seconds: Option<i32>,
    /// `spec.revisionHistoryLimit`.
    pub revision_history_limit: Option<i32>,
    /// `spec.minReadySeconds`, 0 where absent.
    pub min_ready_seconds: i32,
}

/// Returns the RFC 6902 patch for `subject`; empty where nothing is to change.
pub fn patch(subject: &Subject<'_>, policy: Option<&Policy>) -> Patch {
    // Whoever only audits wants to see what would happen, not to have objects changed.
    let policy = policy.filter(|policy| matches!(policy.mode, Mode::Enforce | Mode::Warn));
    let mut operations = Vec::new();
    stamp(subject, policy, &mut operations);
    if let Some(policy) = policy
        && subject.spec_changed
    {
        let set = |field: &'static str, value: i32| {
            PatchOperation::Replace(ReplaceOperation {
                path: PointerBuf::from_tokens(["spec", field]),
                value: json!(value),
            })
        };
        if let Some(seconds) = policy.defaults.progress_deadline_seconds
            && subject.progress_deadline_seconds == Some(KUBERNETES_PROGRESS_DEADLINE)
            && seconds != KUBERNETES_PROGRESS_DEADLINE
            // Kubernetes refuses a deadline that is not longer than minReadySeconds.
            && seconds > subject.min_ready_seconds
        {
            operations.push(set("progressDeadlineSeconds", seconds));
        }
        if let (Some(least), Some(limit)) =
            (policy.defaults.min_revision_history_limit, subject.revision_history_limit)
            && limit < least
        {
            operations.push(set("revisionHistoryLimit", least));
        }
    }
    Patch(operations)
}

/// The mark says over which generation the template was last changed with the webhook alive. It is only ever
/// written together with a new template, so it never makes a generation of its own; what a user writes is put
/// back, and what a user drops (`kubectl replace`) as well.
fn stamp(subject: &Subject<'_>, policy: Option<&Policy>, operations: &mut Vec<PatchOperation>) {
    let wanted = match (subject.old_generation, policy) {
        (Some(generation), Some(_)) if subject.template_changed => Some(generation.to_string()),
        (Some(_), _) => subject.old_admitted.map(str::to_owned),
        (None, _) => None,
    };
    if wanted.as_deref() == subject.admitted {
        return;
    }
    let path = PointerBuf::from_tokens(["metadata", "annotations", ADMITTED_ANNOTATION]);
    match wanted {
        None => operations.push(PatchOperation::Remove(RemoveOperation { path })),
        Some(value) => {
            if !subject.has_annotations {
                let path = PointerBuf::from_tokens(["metadata", "annotations"]);
                operations.push(PatchOperation::Add(AddOperation { path, value: json!({}) }));
            }
            operations.push(PatchOperation::Add(AddOperation { path, value: Value::String(value) }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::compile;

    fn policy(spec: Value) -> Policy {
        compile("default", 1, &serde_json::from_value(spec).expect("spec")).expect("valid")
    }

    fn update() -> Subject<'static> {
        Subject {
            old_generation: Some(4),
            spec_changed: true,
            template_changed: true,
            progress_deadline_seconds: Some(600),
            revision_history_limit: Some(10),
            ..Subject::default()
        }
    }

    fn text(subject: &Subject<'_>, policy: Option<&Policy>) -> String {
        serde_json::to_string(&patch(subject, policy)).expect("prints")
    }

    #[test]
    fn fault_9_the_mark_is_valid_json_pointer_onto_absent_annotations() {
        let default = policy(json!({}));
        assert_eq!(
            text(&update(), Some(&default)),
            r#"[{"op":"add","path":"/metadata/annotations","value":{}},{"op":"add","path":"/metadata/annotations/rollout-guard.io~1admitted","value":"4"}]"#
        );
        let patch = patch(&update(), Some(&default));
        for mut object in [json!({"metadata": {}}), json!({"metadata": {"annotations": null}})] {
            json_patch::patch(&mut object, &patch).expect("applies");
            assert_eq!(object["metadata"]["annotations"]["rollout-guard.io/admitted"], "4");
        }
        let mut object = json!({"metadata": {"annotations": {"a/b~c": "x"}}});
        let present = Subject { has_annotations: true, ..update() };
        json_patch::patch(&mut object, &super::patch(&present, Some(&default))).expect("applies");
        assert_eq!(object["metadata"]["annotations"]["a/b~c"], "x");
    }

    #[test]
    fn the_mark_changes_with_the_template_alone_and_nobody_can_forge_it() {
        let default = policy(json!({}));
        let put = r#"{"op":"add","path":"/metadata/annotations/rollout-guard.io~1admitted","value":"3"}"#;
        let remove = r#"[{"op":"remove","path":"/metadata/annotations/rollout-guard.io~1admitted"}]"#;
        let same = Subject { template_changed: false, has_annotations: true, ..update() };
        let cases = [
            (
                "kept",
                Subject { old_admitted: Some("3"), admitted: Some("3"), ..same.clone() },
                "[]".to_owned(),
            ),
            ("never there", same.clone(), "[]".to_owned()),
            ("dropped by a replace", Subject { old_admitted: Some("3"), ..same.clone() }, format!("[{put}]")),
            (
                "forged",
                Subject { old_admitted: Some("3"), admitted: Some("9"), ..same.clone() },
                format!("[{put}]"),
            ),
            ("planted", Subject { admitted: Some("9"), ..same }, remove.to_owned()),
            (
                "planted at creation",
                Subject { old_generation: None, admitted: Some("1"), has_annotations: true, ..update() },
                remove.to_owned(),
            ),
            (
                "its own output",
                Subject { admitted: Some("4"), has_annotations: true, ..update() },
                "[]".to_owned(),
            ),
        ];
        for (name, subject, expected) in cases {
            assert_eq!(text(&subject, Some(&default)), expected, "{name}");
        }
    }

    #[test]
    fn defaults_are_filled_in_where_the_spec_changes_and_stay_valid() {
        let policy =
            policy(json!({"defaults": {"progressDeadlineSeconds": 120, "minRevisionHistoryLimit": 2}}));
        let create =
            Subject { revision_history_limit: Some(0), ..Subject { old_generation: None, ..update() } };
        assert_eq!(
            text(&create, Some(&policy)),
            r#"[{"op":"replace","path":"/spec/progressDeadlineSeconds","value":120},{"op":"replace","path":"/spec/revisionHistoryLimit","value":2}]"#
        );
        let written = Subject { progress_deadline_seconds: Some(45), ..create.clone() };
        assert!(!text(&written, Some(&policy)).contains("progressDeadlineSeconds"));
        let slow = Subject { min_ready_seconds: 120, ..create.clone() };
        assert!(!text(&slow, Some(&policy)).contains("progressDeadlineSeconds"));
        let untouched =
            Subject { old_generation: Some(1), spec_changed: false, template_changed: false, ..create };
        assert_eq!(text(&untouched, Some(&policy)), "[]");
    }

    #[test]
    fn what_is_not_guarded_or_only_audited_is_left_alone() {
        assert_eq!(text(&update(), None), "[]");
        for mode in ["Audit", "Off"] {
            assert_eq!(text(&update(), Some(&policy(json!({ "mode": mode })))), "[]", "{mode}");
        }
    }
}
