//! The webhook as one would write it with kube: typed objects in, the same verdicts and words out.

use std::borrow::Cow;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition};
use kube::core::{
    admission::{AdmissionRequest, AdmissionResponse},
    response::StatusDetails,
};
use rollout_guard::core::{
    admission::{Change, Refused, Verdict, decide},
    ledger::Recorded,
    message::{self, DOCS},
    policy::Policy,
    rollout::{Condition, Snapshot},
};

/// Answers a request by the guard's own table.
pub fn answer(request: &AdmissionRequest<Deployment>, policy: &Policy, now: Timestamp) -> AdmissionResponse {
    let response = AdmissionResponse::from(request);
    let (Some(object), Some(old)) = (&request.object, &request.old_object) else { return response };
    let generation = object.metadata.generation.unwrap_or_default();
    let change = Change {
        namespace: request.namespace.as_deref().unwrap_or_default(),
        name: &request.name,
        old: snapshot(old),
        new_generation: generation,
        template_changed: object.spec.as_ref().map(|spec| &spec.template)
            != old.spec.as_ref().map(|spec| &spec.template),
        dry_run: request.dry_run,
        by_guard: false,
    };
    let verdict = decide(&change, Some(policy), || Recorded::Nothing, now);
    tracing::info!(
        uid = request.uid,
        namespace = change.namespace,
        name = change.name,
        user = request.user_info.username,
        allowed = matches!(verdict, Verdict::Allow(_)),
        "decision"
    );
    match verdict {
        Verdict::Allow(_) => response,
        Verdict::Refuse(refusal) => {
            let words = message::refusal(&change, &refusal, &policy.name, DOCS);
            let (code, reason, retry_after_seconds) = match refusal.refused {
                Refused::Deny => (403, "Forbidden", 0),
                Refused::Wait { retry_after_seconds } => (429, "TooManyRequests", retry_after_seconds),
            };
            let mut response = response.deny(words.text);
            response.result.code = code;
            reason.clone_into(&mut response.result.reason);
            response.result.details = Some(StatusDetails {
                name: request.name.clone(),
                group: "apps".to_owned(),
                kind: "deployments".to_owned(),
                uid: String::new(),
                causes: Vec::new(),
                retry_after_seconds,
            });
            response
        }
    }
}

fn snapshot(deployment: &Deployment) -> Snapshot<'_> {
    let spec = deployment.spec.as_ref();
    let status = deployment.status.as_ref();
    let count = |count: Option<i32>| count.unwrap_or_default();
    let condition = |kind: &str| {
        let found = status?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)?;
        let DeploymentCondition { status, reason, message, last_update_time, .. } = found;
        Some(Condition {
            status: Cow::Borrowed(status),
            reason: Cow::Borrowed(reason.as_deref().unwrap_or_default()),
            message: Cow::Borrowed(message.as_deref().unwrap_or_default()),
            updated_at: last_update_time.as_ref().map(|time| time.0),
        })
    };
    Snapshot {
        generation: deployment.metadata.generation.unwrap_or_default(),
        observed_generation: status.and_then(|status| status.observed_generation).unwrap_or_default(),
        deleting: deployment.metadata.deletion_timestamp.is_some(),
        paused: spec.and_then(|spec| spec.paused).unwrap_or_default(),
        desired: spec.and_then(|spec| spec.replicas).unwrap_or(1),
        replicas: count(status.and_then(|status| status.replicas)),
        updated: count(status.and_then(|status| status.updated_replicas)),
        available: count(status.and_then(|status| status.available_replicas)),
        progressing: condition("Progressing"),
        replica_failure: condition("ReplicaFailure"),
        written_at: deployment
            .metadata
            .managed_fields
            .iter()
            .flatten()
            .filter(|entry| entry.subresource.as_deref().unwrap_or_default().is_empty())
            .filter_map(|entry| entry.time.as_ref().map(|time| time.0))
            .max(),
    }
}
