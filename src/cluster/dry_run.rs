//! Writes that are tried and not done.

use json_patch::Patch;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, PatchParams},
};

use super::{Cluster, ClusterError, FIELD_MANAGER, call};
use crate::core::key::Key;

/// Tries writes without doing them.
pub trait DryRun: Send + Sync {
    /// Sends a patch of a Deployment as a server-side dry run: rights, guards and admission are as for the real one.
    ///
    /// # Errors
    /// When the API server would refuse it, or does not answer.
    fn dry_run(&self, key: &Key, patch: &Patch) -> impl Future<Output = Result<(), ClusterError>> + Send;
}

impl DryRun for Cluster {
    async fn dry_run(&self, key: &Key, patch: &Patch) -> Result<(), ClusterError> {
        let resource = ApiResource::erase::<Deployment>(&());
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), &key.namespace, &resource);
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            dry_run: true,
            ..PatchParams::default()
        };
        let patch = kube::api::Patch::<()>::Json(patch.clone());
        call(format!("patch Deployment {key} as a dry run"), api.patch(&key.name, &parameters, &patch))
            .await
            .map(|_| ())
    }
}
