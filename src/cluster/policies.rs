//! RolloutPolicies, and the labels by which they select: watched; status and fallback: written.

use std::collections::BTreeMap;

use futures::{Stream, StreamExt, stream::BoxStream};
use k8s_openapi::api::{
    admissionregistration::v1::{
        ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
    },
    apps::v1::Deployment,
    core::v1::Namespace,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::{PartialObjectMeta, Selector},
    runtime::watcher,
};
use serde_json::{Value, json};

use super::{Cluster, ClusterError, FIELD_MANAGER, call, patiently, watch_config, with_causes};
use crate::{
    api::policy::{RolloutPolicy, RolloutPolicyStatus},
    core::fallback::{Fallback, INSTANCE_LABEL, Owner, POLICY_LABEL, Release},
};

/// Something that a watch tells.
#[derive(Debug)]
pub enum Event<T> {
    /// A list starts: what is not told until [`Event::Synced`] is gone.
    Restarted,
    /// There, or changed.
    Applied(T),
    /// Gone.
    Deleted(T),
    /// The list is complete.
    Synced,
    /// The watch failed; it goes on by itself.
    Failed(String),
}

/// A RolloutPolicy as stored. The spec is raw: one that cannot be read must not end the watch.
#[derive(Clone, Debug)]
pub struct StoredPolicy {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its generation.
    pub generation: i64,
    /// Its spec.
    pub spec: Value,
    /// Its status; empty where it cannot be read.
    pub status: RolloutPolicyStatus,
}

/// An object by its labels.
#[derive(Clone, Debug)]
pub struct Labelled {
    /// Its namespace, empty for a namespace itself.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Cluster {
    /// Watches all RolloutPolicies.
    pub fn watch_policies(&self) -> BoxStream<'static, Event<StoredPolicy>> {
        let resource = ApiResource::erase::<RolloutPolicy>(&());
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        events(watcher(api, watch_config()), |mut object| StoredPolicy {
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            spec: object.data["spec"].take(),
            status: serde_json::from_value(object.data["status"].take()).unwrap_or_default(),
        })
    }

    /// Watches the labels of all namespaces.
    pub fn watch_namespaces(&self) -> BoxStream<'static, Event<Labelled>> {
        labels(Api::<PartialObjectMeta<Namespace>>::all(self.client.clone()))
    }

    /// Watches the labels of all Deployments; nothing else of them is kept.
    pub fn watch_deployments(&self) -> BoxStream<'static, Event<Labelled>> {
        labels(Api::<PartialObjectMeta<Deployment>>::all(self.client.clone()))
    }

    /// Writes the status of a RolloutPolicy. Any replica may: they all write the same.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn write_policy_status(
        &self,
        policy: &StoredPolicy,
        status: &RolloutPolicyStatus,
    ) -> Result<(), ClusterError> {
        let resource = ApiResource::erase::<RolloutPolicy>(&());
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            // The uid makes sure that a policy of the same name made meanwhile is not meant.
            "metadata": {"name": policy.name, "uid": policy.uid},
            "status": status,
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let what = format!("write the status of RolloutPolicy {}", policy.name);
        call(what, api.patch_status(&policy.name, &parameters, &Patch::Apply(body))).await?;
        Ok(())
    }

    /// Writes how many Deployments of a RolloutPolicy are stuck, and nothing else of its status.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn write_policy_stuck(&self, policy: &StoredPolicy, stuck: i64) -> Result<(), ClusterError> {
        let resource = ApiResource::erase::<RolloutPolicy>(&());
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let body = json!({"metadata": {"uid": policy.uid}, "status": {"stuck": stuck}});
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let what = format!("write the status of RolloutPolicy {}", policy.name);
        call(what, api.patch_status(&policy.name, &parameters, &Patch::Merge(body))).await?;
        Ok(())
    }

    /// Returns the installation whose validating webhook configuration is `name`; none where it is not there.
    ///
    /// # Errors
    /// When the API server refuses or does not answer, or the configuration's selector cannot be read.
    pub async fn release(&self, name: &str) -> Result<Option<Release>, ClusterError> {
        let api = Api::<ValidatingWebhookConfiguration>::all(self.client.clone());
        let what = format!("read ValidatingWebhookConfiguration {name}");
        let found = call(&what, api.get_opt(name)).await?;
        let Some(found) = found.filter(|found| found.metadata.deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let owner = Owner {
            api_version: ValidatingWebhookConfiguration::api_version(&()).into_owned(),
            kind: ValidatingWebhookConfiguration::kind(&()).into_owned(),
            name: name.to_owned(),
            uid: found.uid().unwrap_or_default(),
        };
        let mut namespaces = Selector::default();
        for webhook in found.webhooks.into_iter().flatten() {
            if let Some(selector) = webhook.namespace_selector {
                let selector = Selector::try_from(selector)
                    .map_err(|e| ClusterError::Unexpected { what: what.clone(), why: e.to_string() })?;
                namespaces.extend(selector);
            }
        }
        Ok(Some(Release { owner, namespaces }))
    }

    /// Puts a ValidatingAdmissionPolicy and its binding in place.
    ///
    /// # Errors
    /// When the API server refuses (such as CEL that does not compile) or does not answer.
    pub async fn apply_fallback(&self, fallback: &Fallback) -> Result<(), ClusterError> {
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let policies = Api::<ValidatingAdmissionPolicy>::all(self.client.clone());
        let what = format!("apply ValidatingAdmissionPolicy {}", fallback.name);
        call(what, policies.patch(&fallback.name, &parameters, &Patch::Apply(&fallback.policy))).await?;
        let bindings = Api::<ValidatingAdmissionPolicyBinding>::all(self.client.clone());
        let what = format!("apply ValidatingAdmissionPolicyBinding {}", fallback.name);
        call(what, bindings.patch(&fallback.name, &parameters, &Patch::Apply(&fallback.binding))).await?;
        Ok(())
    }

    /// Removes every ValidatingAdmissionPolicy and binding that the installation `instance` generated and whose
    /// name is not in `keep`.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn prune_fallbacks(&self, instance: &str, keep: &[String]) -> Result<(), ClusterError> {
        let list = ListParams::default().labels(&format!("{POLICY_LABEL},{INSTANCE_LABEL}={instance}"));
        let bindings = Api::<ValidatingAdmissionPolicyBinding>::all(self.client.clone());
        for found in call("list ValidatingAdmissionPolicyBindings", bindings.list(&list)).await? {
            prune(&bindings, found.name_any(), keep).await?;
        }
        let policies = Api::<ValidatingAdmissionPolicy>::all(self.client.clone());
        for found in call("list ValidatingAdmissionPolicies", policies.list(&list)).await? {
            prune(&policies, found.name_any(), keep).await?;
        }
        Ok(())
    }
}

async fn prune<K>(api: &Api<K>, name: String, keep: &[String]) -> Result<(), ClusterError>
where
    K: Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    if keep.contains(&name) {
        return Ok(());
    }
    let what = format!("delete {} {name}", K::kind(&()));
    match call(what, api.delete(&name, &DeleteParams::default())).await {
        Err(error) if error.code() == Some(404) => Ok(()),
        other => other.map(|_| ()),
    }
}

fn labels<K>(api: Api<PartialObjectMeta<K>>) -> BoxStream<'static, Event<Labelled>>
where
    K: Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    events(watcher(api, watch_config()), |object| Labelled {
        namespace: object.metadata.namespace.unwrap_or_default(),
        name: object.metadata.name.unwrap_or_default(),
        labels: object.metadata.labels.unwrap_or_default(),
    })
}

/// Follows a watch for ever and tells what happens in plain values.
pub(super) fn events<K: Send + 'static, T: Send + 'static>(
    stream: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
    convert: impl Fn(K) -> T + Send + 'static,
) -> BoxStream<'static, Event<T>> {
    patiently(stream)
        .map(move |event| match event {
            Ok(watcher::Event::Init) => Event::Restarted,
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                Event::Applied(convert(object))
            }
            Ok(watcher::Event::Delete(object)) => Event::Deleted(convert(object)),
            Ok(watcher::Event::InitDone) => Event::Synced,
            Err(error) => Event::Failed(with_causes(&error)),
        })
        .boxed()
}
