//! What an installation of the guard consists of, as `rollout-guard check` reads it.

use k8s_openapi::{
    api::{
        admissionregistration::v1::{
            MutatingWebhookConfiguration, ServiceReference, ValidatingAdmissionPolicy,
            ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration, WebhookClientConfig,
        },
        apps::v1::Deployment,
        core::v1::{Container, Pod, Secret},
        discovery::v1::EndpointSlice,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
};
use serde_json::json;

use super::{Cluster, ClusterError, call, certificates::Configuration};
use crate::{
    api::{ADMITTED_ANNOTATION, policy::RolloutPolicy},
    core::fallback,
};

/// The label that all objects of an installation carry.
pub const LABEL: &str = "app.kubernetes.io/name=rollout-guard";

/// The name of the port that serves `/certificate`, and its number where no port has that name.
const ADMIN_PORT: (&str, i32) = ("admin", 8080);

/// A CustomResourceDefinition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Says whether the API server has taken it up.
    pub established: bool,
    /// The versions that it serves.
    pub served: Vec<String>,
}

/// A Deployment of the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How many replicas are wanted.
    pub wanted: i32,
    /// How many are available.
    pub available: i32,
    /// The Lease by which its replicas agree on who watches; `None` where they serve admission alone.
    pub lease: Option<String>,
}

/// A replica of the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// The name of its pod.
    pub pod: String,
    /// Says whether it is ready.
    pub ready: bool,
    /// The number of its plain port.
    pub admin_port: i32,
}

/// One webhook of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// `Fail` or `Ignore`.
    pub failure_policy: String,
    /// Namespace and name of the Service that it calls; `None` where it calls a URL.
    pub service: Option<(String, String)>,
    /// Its caBundle, empty where it has none.
    pub ca_bundle: Vec<u8>,
}

/// A webhook configuration of the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// Which one.
    pub configuration: Configuration,
    /// Its webhooks.
    pub hooks: Vec<Hook>,
}

/// Whether the fallback of one RolloutPolicy is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallbackObjects {
    /// The name of both objects.
    pub name: String,
    /// The ValidatingAdmissionPolicy exists.
    pub policy: bool,
    /// The ValidatingAdmissionPolicyBinding exists.
    pub binding: bool,
}

impl Cluster {
    /// Returns the version of the API server.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn version(&self) -> Result<String, ClusterError> {
        Ok(call("get the API server's version", self.client.apiserver_version()).await?.git_version)
    }

    /// Returns the namespace of the kubeconfig's context, or the pod's own.
    pub fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// Reads a CustomResourceDefinition; `None` where there is none.
    ///
    /// # Errors
    /// When the API server cannot be asked, or refuses.
    pub async fn definition(&self, name: &str) -> Result<Option<Definition>, ClusterError> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let found =
            call(format!("get customresourcedefinitions.apiextensions.k8s.io {name}"), api.get_opt(name))
                .await?;
        Ok(found.map(|definition| {
            let conditions = definition.status.and_then(|status| status.conditions).unwrap_or_default();
            Definition {
                established: conditions.iter().any(|c| c.type_ == "Established" && c.status == "True"),
                served: definition.spec.versions.into_iter().filter(|v| v.served).map(|v| v.name).collect(),
            }
        }))
    }

    /// Lists the guard's Deployments in `namespace`, or everywhere.
    ///
    /// # Errors
    /// When the API server cannot be asked, or refuses.
    pub async fn guard_workloads(&self, namespace: Option<&str>) -> Result<Vec<Workload>, ClusterError> {
        let api: Api<Deployment> = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let params = ListParams::default().labels(LABEL);
        let found = call(format!("list deployments.apps ({LABEL})"), api.list(&params)).await?;
        let workload = |deployment: Deployment| Workload {
            namespace: deployment.namespace().unwrap_or_default(),
            name: deployment.name_any(),
            wanted: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
            available: deployment.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0),
            lease: lease(&deployment),
        };
        Ok(found.items.into_iter().map(workload).collect())
    }

    /// Lists the guard's pods in `namespace` that are not being deleted.
    ///
    /// # Errors
    /// When the API server cannot be asked, or refuses.
    pub async fn guard_replicas(&self, namespace: &str) -> Result<Vec<Replica>, ClusterError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = ListParams::default().labels(LABEL);
        let found = call(format!("list pods in {namespace} ({LABEL})"), api.list(&params)).await?;
        let replica = |pod: Pod| {
            let ports =
                pod.spec.iter().flat_map(|spec| &spec.containers).flat_map(|c| c.ports.iter().flatten());
            let admin =
                ports.filter(|port| port.name.as_deref() == Some(ADMIN_PORT.0)).map(|p| p.container_port);
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            Replica {
                pod: pod.name_any(),
                ready: conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True"),
                admin_port: { admin }.next().unwrap_or(ADMIN_PORT.1),
            }
        };
        let live = found.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(live.map(replica).collect())
    }

    /// Counts the ready endpoints of a Service.
    ///
    /// # Errors
    /// When the API server cannot be asked, or refuses.
    pub async fn ready_endpoints(&self, namespace: &str, service: &str) -> Result<usize, ClusterError> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), namespace);
        let params = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let what = format!("list endpointslices.discovery.k8s.io in {namespace} of the Service {service}");
        let slices = call(what, api.list(&params)).await?;
        let endpoints = slices.items.iter().flat_map(|slice| &slice.endpoints);
        // No word on readiness counts as ready, says the API.
        let ready = endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
        // A Service of two address families has each endpoint twice.
        let names: std::collections::BTreeSet<_> = ready
            .map(|e| {
                e.target_ref.as_ref().and_then(|t| t.name.clone()).unwrap_or_else(|| e.addresses.join(","))
            })
            .collect();
        Ok(names.len())
    }

    /// Lists the guard's validating webhook configurations.
    ///
    /// # Errors
    /// When the API server cannot be asked, or refuses.
    pub async fn guard_validating_hooks(&self) -> Result<Vec<Hooks>, ClusterError> {
        let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        let what = "list validatingwebhookconfigurations.admissionregistration.k8s.io";
        let found = call(what, api.list(&ListParams::default().labels(LABEL))).await?;
        let hooks = |configuration: ValidatingWebhookConfiguration| Hooks {
            configuration: Configuration::Validating(configuration.name_any()),
            hooks: configuration
                .webhooks
                .into_iter()
                .flatten()
                .map(|webhook| hook(webhook.name, webhook.failure_policy, webhook.client_config))
                .collect(),
        };
        Ok(found.items.into_iter().map(hooks).collect())
    }

    /// Lists the guard's mutating webhook configurations.
    ///
    /// # Errors
    /// When the API server cannot be asked, or refuses.
    pub async fn guard_mutating_hooks(&self) -> Result<Vec<Hooks>, ClusterError> {
        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let what = "list mutatingwebhookconfigurations.admissionregistration.k8s.io";
        let found = call(what, api.list(&ListParams::default().labels(LABEL))).await?;
        let hooks = |configuration: MutatingWebhookConfiguration| Hooks {
            configuration: Configuration::Mutating(configuration.name_any()),
            hooks: configuration
                .webhooks
                .into_iter()
                .flatten()
                .map(|webhook| hook(webhook.name, webhook.failure_policy, webhook.client_config))
                .collect(),
        };
        Ok(found.items.into_iter().map(hooks).collect())
    }

    /// Returns the certificate that a replica serves, as PEM, asked of its plain port through the API server.
    ///
    /// # Errors
    /// When the API server cannot be asked or refuses, or the replica does not answer.
    pub async fn replica_certificate(
        &self,
        namespace: &str,
        replica: &Replica,
    ) -> Result<String, ClusterError> {
        self.replica_page(namespace, replica, "certificate").await
    }

    /// Returns the metrics of a replica as OpenMetrics text, asked of its plain port through the API server.
    ///
    /// # Errors
    /// When the API server cannot be asked or refuses, or the replica does not answer.
    pub async fn replica_metrics(&self, namespace: &str, replica: &Replica) -> Result<String, ClusterError> {
        self.replica_page(namespace, replica, "metrics").await
    }

    async fn replica_page(
        &self,
        namespace: &str,
        replica: &Replica,
        page: &str,
    ) -> Result<String, ClusterError> {
        let Replica { pod, admin_port, .. } = replica;
        let what = format!("get pods/proxy {pod}:{admin_port}/{page} in {namespace}");
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{admin_port}/proxy/{page}");
        let request = http::Request::get(path)
            .body(Vec::new())
            .map_err(|e| ClusterError::Unexpected { what: what.clone(), why: e.to_string() })?;
        call(what, self.client.request_text(request)).await
    }

    /// Lists the RolloutPolicies.
    ///
    /// # Errors
    /// When the API server cannot be asked, or refuses.
    pub async fn stored_policies(&self) -> Result<Vec<RolloutPolicy>, ClusterError> {
        let api: Api<RolloutPolicy> = Api::all(self.client.clone());
        Ok(call("list rolloutpolicies.rollout-guard.io", api.list(&ListParams::default())).await?.items)
    }

    /// Says whether the fallback of the RolloutPolicy `policy` is there.
    ///
    /// # Errors
    /// When the API server cannot be asked, or refuses.
    pub async fn fallback_objects(&self, policy: &str) -> Result<FallbackObjects, ClusterError> {
        let name = fallback::name(policy);
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(self.client.clone());
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(self.client.clone());
        let what = |kind: &str| format!("get {kind}.admissionregistration.k8s.io {name}");
        let policy = call(what("validatingadmissionpolicies"), policies.get_opt(&name)).await?.is_some();
        let binding =
            call(what("validatingadmissionpolicybindings"), bindings.get_opt(&name)).await?.is_some();
        Ok(FallbackObjects { policy, binding, name })
    }

    /// Creates a Deployment as a dry run, with the mark that the mutating webhook alone may set. Returns
    /// whether the mark was taken away, which says that the webhook was called and answered.
    ///
    /// # Errors
    /// When the API server cannot be asked, or refuses the Deployment.
    pub async fn probe_webhook(&self, namespace: &str) -> Result<bool, ClusterError> {
        let labels = json!({"app.kubernetes.io/name": "rollout-guard-check"});
        let probe: Result<Deployment, _> = serde_json::from_value(json!({
            "metadata": {"generateName": "rollout-guard-check-", "annotations": {ADMITTED_ANNOTATION: "probe"}},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    // No container ever runs; it is there, and as strict as can be, for other admission.
                    "spec": {
                        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                        "containers": [{
                            "name": "none",
                            "image": "none",
                            "securityContext": {
                                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                            },
                        }],
                    },
                },
            },
        }));
        let what = format!("create a Deployment in {namespace} as a dry run");
        let probe = probe.map_err(|e| ClusterError::Unexpected { what: what.clone(), why: e.to_string() })?;
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams { dry_run: true, field_manager: Some(super::FIELD_MANAGER.to_owned()) };
        let answer = call(what, api.create(&params, &probe)).await?;
        Ok(!answer.annotations().contains_key(ADMITTED_ANNOTATION))
    }

    /// Reads the text under `key` of a Secret; `None` where there is no such Secret.
    ///
    /// # Errors
    /// When the API server cannot be asked or refuses, or the Secret has no such text.
    pub async fn secret_text(
        &self,
        namespace: &str,
        name: &str,
        key: &str,
    ) -> Result<Option<String>, ClusterError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("get secrets {name} in {namespace}");
        let Some(secret) = call(what.clone(), api.get_opt(name)).await? else { return Ok(None) };
        let unexpected =
            |why: &str| ClusterError::Unexpected { what: what.clone(), why: format!("{key} {why}") };
        let value =
            secret.data.and_then(|mut data| data.remove(key)).ok_or_else(|| unexpected("is missing"))?;
        String::from_utf8(value.0).map(Some).map_err(|_| unexpected("is not text"))
    }
}

/// The Lease that the containers are told to use, where one of them is told to watch.
fn lease(deployment: &Deployment) -> Option<String> {
    let containers = &deployment.spec.as_ref()?.template.spec.as_ref()?.containers;
    let words = |container: &Container| -> Vec<String> {
        container.command.iter().chain(&container.args).flatten().cloned().collect()
    };
    let watches = |words: &[String]| words.iter().any(|word| word == "run" || word == "watcher");
    let (container, words) =
        containers.iter().map(|container| (container, words(container))).find(|(_, words)| watches(words))?;
    let after = |at: usize| words.get(at + 1).cloned();
    let given = words.iter().find_map(|word| word.strip_prefix("--lease=").map(str::to_owned));
    let apart = words.iter().position(|word| word == "--lease").and_then(after);
    let mut variables = container.env.iter().flatten();
    let variable = variables.find(|variable| variable.name == "ROLLOUT_GUARD_LEASE");
    let name = given.or(apart).or_else(|| variable.and_then(|variable| variable.value.clone()));
    Some(name.unwrap_or_else(|| "rollout-guard".to_owned()))
}

fn hook(name: String, failure_policy: Option<String>, config: WebhookClientConfig) -> Hook {
    Hook {
        name,
        failure_policy: failure_policy.unwrap_or_else(|| "Fail".to_owned()),
        service: config.service.map(|ServiceReference { namespace, name, .. }| (namespace, name)),
        ca_bundle: config.ca_bundle.map(|bundle| bundle.0).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_is_the_one_that_the_container_is_told() {
        let of = |container: serde_json::Value| {
            let deployment =
                json!({"spec": {"selector": {}, "template": {"spec": {"containers": [container]}}}});
            lease(&serde_json::from_value(deployment).expect("a Deployment"))
        };
        let told = |name: &str| Some(name.to_owned());
        assert_eq!(of(json!({"name": "c", "args": ["webhook", "--lease=x"]})), None);
        assert_eq!(of(json!({"name": "c", "args": ["run", "--lease=x"]})), told("x"));
        assert_eq!(
            of(json!({"name": "c", "command": ["/rollout-guard", "watcher", "--lease", "x"]})),
            told("x")
        );
        let env = json!([{"name": "ROLLOUT_GUARD_LEASE", "value": "y"}]);
        assert_eq!(of(json!({"name": "c", "args": ["run"], "env": env})), told("y"));
        assert_eq!(of(json!({"name": "c", "args": ["run", "--lease=x"], "env": env})), told("x"));
        assert_eq!(of(json!({"name": "c", "args": ["run"]})), told("rollout-guard"));
        assert_eq!(of(json!({"name": "c"})), None);
    }
}
