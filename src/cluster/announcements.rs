//! The announcement of a rollback on a Deployment's status, taken away for the push that comes after.

use std::time::Duration;

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::Value;

use super::{Cluster, ClusterError, FIELD_MANAGER};
use crate::core::{key::Key, restore::retract};

/// The webhook's own timeout is 3 s. An override may have taken one of them already; without one there is time left for an
/// API server that is busy.
const LIMIT: Duration = Duration::from_secs(2);

/// How often a status that changes meanwhile is read again.
const ATTEMPTS: usize = 5;

/// Takes announcements away.
pub trait Announcements: Send + Sync {
    /// Takes the announcement away from the Deployment with this `uid`, within two seconds. Fine where there is none, or no
    /// such Deployment any more.
    ///
    /// # Errors
    /// When the API server refuses or does not answer in time.
    fn retract<'a>(&'a self, key: &'a Key, uid: &'a str) -> BoxFuture<'a, Result<(), ClusterError>>;
}

impl Announcements for Cluster {
    fn retract<'a>(&'a self, key: &'a Key, uid: &'a str) -> BoxFuture<'a, Result<(), ClusterError>> {
        async move {
            let what = || format!("take the announcement of the rollback away from Deployment {key}");
            match tokio::time::timeout(LIMIT, self.try_retract(key, uid)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(source)) => Err(ClusterError::Api { what: what(), source: Box::new(source) }),
                Err(_) => Err(ClusterError::Timeout { what: what(), seconds: LIMIT.as_secs() }),
            }
        }
        .boxed()
    }
}

impl Cluster {
    async fn try_retract(&self, key: &Key, uid: &str) -> Result<(), kube::Error> {
        let resource = ApiResource::erase::<Deployment>(&());
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), &key.namespace, &resource);
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let mut attempt = 1;
        loop {
            let Some(found) = api.get_opt(&key.name).await? else { return Ok(()) };
            let deployment = serde_json::to_value(found).map_err(kube::Error::SerdeError)?;
            if deployment.pointer("/metadata/uid").and_then(Value::as_str) != Some(uid) {
                return Ok(());
            }
            let Some(patch) = retract(&deployment) else { return Ok(()) };
            match api.patch_status(&key.name, &parameters, &Patch::Json::<()>(patch)).await {
                Ok(_) => return Ok(()),
                // The status has changed meanwhile, as it does all the time during a rollout.
                Err(kube::Error::Api(status)) if status.code == 409 && attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }
}
