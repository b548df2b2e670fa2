//! The custom resources of the group `rollout-guard.io`.

pub mod duration;
pub mod policy;
pub mod record;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, ValidationRule,
};
use kube::CustomResourceExt;

/// The API group of the guard's resources, and the prefix of its annotations.
pub const GROUP: &str = "rollout-guard.io";

/// The annotation by which a person asks for a one-shot override; its value is the reason.
pub const OVERRIDE_ANNOTATION: &str = "rollout-guard.io/override";

/// The annotation by which the mutating webhook tells the fallback that the webhook was alive: the generation
/// over which the template was last changed.
pub const ADMITTED_ANNOTATION: &str = "rollout-guard.io/admitted";

/// Returns the custom resource definitions, each with the name of the file it is kept in.
pub fn crds() -> Vec<(&'static str, CustomResourceDefinition)> {
    let mut policy = policy::RolloutPolicy::crd();
    // The name stands in labels, in names of generated objects and in messages.
    require(
        &mut policy,
        "size(self.metadata.name) <= 63",
        "the name of a RolloutPolicy must have at most 63 characters",
    );
    vec![
        ("rollout-guard.io_rolloutpolicies", policy),
        ("rollout-guard.io_rolloutrecords", record::RolloutRecord::crd()),
    ]
}

/// Adds a CEL rule on the whole object.
fn require(crd: &mut CustomResourceDefinition, rule: &str, message: &str) {
    for version in &mut crd.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
            schema.x_kubernetes_validations.get_or_insert_default().push(ValidationRule {
                rule: rule.to_owned(),
                message: Some(message.to_owned()),
                ..ValidationRule::default()
            });
        }
    }
}
