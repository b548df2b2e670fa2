//! All that a diagnosis looks at, read side by side and within a few seconds, whatever of it does not answer.
//!
//! ```text
//!  Deployment ─┬─▶ ReplicaSets ─▶ pods ─▶ Events ─┬─▶ logs
//!              ├─▶ webhooks ─▶ endpoints          │
//!              ├─▶ guard ─▶ its Lease             │
//!              └─▶ nodes, quotas, policies, … ────┘
//! ```
//!
//! What may not be read, or does not answer in time, is a part that is hidden; the rest goes on.

use std::{collections::BTreeMap, future::Future, time::Duration};

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    admissionregistration::v1::{
        MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
        ValidatingWebhookConfiguration,
    },
    core::v1::{Event, LimitRange, Namespace, Node, ResourceQuota},
};
use kube::{Api, Resource, api::ListParams, core::Request};
use serde_json::Value;
use tokio::time::Instant;

use super::{Cluster, ClusterError, call, installation::Workload, leases::LeaseStore, rollouts::Rollouts};
use crate::{
    api::policy::RolloutPolicy,
    core::{
        cause::{Liveness, LogSource},
        diagnosis::{
            ControllerManager, Hidden, Installation, Log, Material, NodeFacts, Object, Part, logs_to_read,
            objects_to_ask_about, replica_set_to_look_at, services_to_ask_about,
        },
        key::Key,
        message::plain,
        policy::Labels,
    },
};

/// The longest that a single part may take.
const PART: Duration = Duration::from_secs(5);

/// The longest that everything but the logs may take.
const WHOLE: Duration = Duration::from_secs(11);

/// The longest that the logs may take: they come from nodes.
const LOGS: Duration = Duration::from_secs(3);

/// kube-controller-manager renews its Lease every two seconds. One that is older than this by the clock here is read
/// again, as that clock may be wrong.
const FRESH: SignedDuration = SignedDuration::from_secs(20);

/// Until it is read again.
const LOOK_AGAIN: Duration = Duration::from_millis(3500);

/// Objects in one answer to a list.
const PAGE: u32 = 100;

/// The most nodes.
const NODES: usize = 5000;

/// The most other objects of a kind.
const OBJECTS: usize = 500;

/// The most characters of why something is hidden.
const WHY: usize = 300;

impl Cluster {
    /// Reads all that a diagnosis of the Deployment `key` looks at, within about 15 s, as it is at `now`. Logs only where
    /// they are wanted: they may hold secrets. `flags` are added to each command that is proposed.
    ///
    /// # Errors
    /// [`ClusterError::NotFound`] where there is no such Deployment; where it may not be read, or the API server does not
    /// answer.
    pub async fn diagnosis_material(
        &self,
        key: &Key,
        flags: String,
        logs: bool,
        now: Timestamp,
    ) -> Result<Material, ClusterError> {
        let asked = tokio::time::timeout(PART, self.deployment(key));
        let deployment = asked.await.map_err(|_| ClusterError::Timeout {
            what: format!("read Deployment {key}"),
            seconds: PART.as_secs(),
        })??;
        let deployment = deployment.ok_or_else(|| ClusterError::NotFound { key: key.clone() })?;
        let clock = Clock { until: Instant::now() + WHOLE };
        let look = Look { cluster: self, clock, key, now };
        let mut material = look.around(deployment, flags).await;
        material.events = look.events(&material).await;
        if logs {
            material.logs = self.logs(key, logs_to_read(&material, now)).await;
        }
        Ok(material)
    }

    /// Reads the ends of logs, side by side.
    async fn logs(&self, key: &Key, sources: Vec<LogSource>) -> Vec<Log> {
        let clock = Clock { until: Instant::now() + LOGS };
        join_all(sources.into_iter().map(|source| async move {
            let log = |previous| self.log(&key.namespace, &source.pod, &source.container, previous);
            let read = async {
                match log(source.previous).await {
                    // Right after a restart the run before may be gone already, and that of now has crashed as well.
                    Err(ClusterError::Unexpected { .. }) if source.previous => log(false).await,
                    other => other,
                }
            };
            let text = clock.part("logs", "get pods/log", read).await;
            Log { source, text }
        }))
        .await
    }

    /// Lists objects of a kind, page by page, `most` of them, each made into what `read` makes of its JSON.
    async fn raw_list<K: Resource<DynamicType = ()>, T>(
        &self,
        namespace: Option<&str>,
        fields: Option<&str>,
        most: usize,
        read: impl Fn(Value) -> T + Send,
    ) -> Result<Vec<T>, ClusterError> {
        let what = format!("list {}", K::plural(&()));
        let request = Request::new(K::url_path(&(), namespace));
        let mut params = ListParams::default().limit(PAGE);
        params.field_selector = fields.map(str::to_owned);
        let mut found = Vec::new();
        loop {
            let request = request.list(&params).map_err(kube::Error::BuildRequest);
            let text = call(what.as_str(), async { self.client.request_text(request?).await }).await?;
            let mut page: Value = serde_json::from_str(&text).map_err(|e| ClusterError::Unexpected {
                what: what.clone(),
                why: format!("not the JSON of a list: {e}"),
            })?;
            if let Some(Value::Array(items)) = page.pointer_mut("/items").map(Value::take) {
                found.extend(items.into_iter().map(&read));
            }
            match page["metadata"]["continue"].as_str() {
                Some(token) if !token.is_empty() && found.len() < most => {
                    params.continue_token = Some(token.to_owned());
                }
                _ => break,
            }
        }
        found.truncate(most);
        Ok(found)
    }

    /// Reads the Lease of kube-controller-manager, twice where its time tells nothing.
    async fn controller_manager_at_work(&self, now: Timestamp) -> Result<ControllerManager, ClusterError> {
        let lease = self.lease("kube-system", "kube-controller-manager");
        let Some(first) = lease.read().await? else { return Ok(ControllerManager::default()) };
        let fresh = first.renew_time.is_some_and(|at| now.duration_since(at).abs() <= FRESH);
        if fresh {
            let (holder, renewed_at) = (first.holder, first.renew_time);
            return Ok(ControllerManager { liveness: Liveness::Alive, holder, renewed_at });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        let Some(second) = lease.read().await? else { return Ok(ControllerManager::default()) };
        let renewed = second.renew_time != first.renew_time;
        Ok(ControllerManager {
            liveness: if renewed { Liveness::Alive } else { Liveness::Silent },
            holder: second.holder,
            renewed_at: second.renew_time,
        })
    }
}

/// Until when parts may take.
#[derive(Clone, Copy)]
struct Clock {
    until: Instant,
}

impl Clock {
    /// Waits for a part, which is hidden where it may not be read or does not come in time. `name` is what it is called,
    /// `right` what it takes to read it.
    async fn part<T>(
        self,
        name: &str,
        right: &str,
        read: impl Future<Output = Result<T, ClusterError>>,
    ) -> Part<T> {
        let hidden = |why: String| Hidden { what: name.to_owned(), why };
        let limit = self.until.min(Instant::now() + PART);
        match tokio::time::timeout_at(limit, read).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if matches!(error.code(), Some(401 | 403)) => {
                Err(hidden(format!("may not {right}")))
            }
            Ok(Err(ClusterError::Timeout { .. })) | Err(_) => Err(hidden("no answer in time".to_owned())),
            Ok(Err(error)) => Err(hidden(plain(&error.to_string(), WHY))),
        }
    }
}

/// One look at one Deployment.
struct Look<'a> {
    cluster: &'a Cluster,
    clock: Clock,
    key: &'a Key,
    now: Timestamp,
}

impl Look<'_> {
    /// Reads what does not depend on one another side by side; Events and logs are left out.
    async fn around(&self, deployment: Value, flags: String) -> Material {
        let Self { cluster, clock, key, now } = self;
        let namespace = Some(key.namespace.as_str());
        let objects = |value: Value| value;
        let (
            (replica_sets, pods),
            record,
            controller_manager,
            nodes,
            quotas,
            limit_ranges,
            webhooks,
            admission_policies,
            namespace_labels,
            guard,
            policies,
        ) = tokio::join!(
            self.pods(&deployment),
            clock.part("the guard's record", "get rolloutrecords", cluster.record(key)),
            clock.part(
                "kube-controller-manager",
                "get leases in namespace kube-system",
                cluster.controller_manager_at_work(*now),
            ),
            clock.part("nodes", "list nodes", cluster.raw_list::<Node, _>(None, None, NODES, |n| node(&n))),
            clock.part(
                "quotas",
                "list resourcequotas",
                cluster.raw_list::<ResourceQuota, _>(namespace, None, OBJECTS, objects),
            ),
            clock.part(
                "limit ranges",
                "list limitranges",
                cluster.raw_list::<LimitRange, _>(namespace, None, OBJECTS, objects),
            ),
            clock.part("webhooks", "list webhook configurations", self.webhooks()),
            clock.part("admission policies", "list validatingadmissionpolicies", self.admission_policies()),
            clock.part("labels of the namespace", "get namespaces", self.namespace_labels()),
            self.guard(),
            clock.part("the guard's policies", "list rolloutpolicies", self.policies()),
        );
        let uid = deployment["metadata"]["uid"].as_str().unwrap_or_default();
        let record = record.map(|record| record.filter(|r| r.is_of(key, uid)).map(|record| record.status));
        let mut material = Material {
            key: (*key).clone(),
            flags,
            deployment,
            replica_sets,
            pods,
            events: Ok(Vec::new()),
            logs: Vec::new(),
            record,
            controller_manager,
            nodes,
            quotas,
            limit_ranges,
            webhooks,
            endpoints: BTreeMap::new(),
            admission_policies,
            namespace_labels,
            guard,
            policies,
        };
        let services = services_to_ask_about(&material);
        material.endpoints = join_all(services.into_iter().map(|(namespace, service)| async move {
            let name = format!("endpoints of the webhook's Service {namespace}/{service}");
            let right = format!("list endpointslices in namespace {namespace}");
            let ready = clock.part(&name, &right, cluster.ready_endpoints(&namespace, &service)).await;
            ((namespace, service), ready)
        }))
        .await
        .into_iter()
        .collect();
        material
    }

    async fn pods(&self, deployment: &Value) -> (Part<Vec<Value>>, Part<Vec<Value>>) {
        let Self { cluster, clock, key, .. } = self;
        let sets = cluster.replica_sets(key, deployment);
        let sets = clock.part("revisions", "list replicasets", sets).await;
        let pods = match &sets {
            Ok(sets) => match replica_set_to_look_at(deployment, sets) {
                Some(set) => clock.part("pods", "list pods", cluster.pods(key, set)).await,
                None => Ok(Vec::new()),
            },
            Err(hidden) => {
                Err(Hidden { what: "pods".to_owned(), why: format!("{}, which name them", hidden.why) })
            }
        };
        (sets, pods)
    }

    async fn events(&self, material: &Material) -> Part<Vec<Value>> {
        let uid = material.deployment["metadata"]["uid"].as_str().unwrap_or_default();
        let lists = objects_to_ask_about(material, self.now).into_iter().map(|Object { kind, name }| {
            let uid = if kind == "Deployment" { format!(",involvedObject.uid={uid}") } else { String::new() };
            let fields = format!("involvedObject.kind={kind},involvedObject.name={name}{uid}");
            let namespace = self.key.namespace.as_str();
            async move {
                let list = self.cluster.raw_list::<Event, _>(Some(namespace), Some(&fields), OBJECTS, |e| e);
                self.clock.part("events", "list events", list).await
            }
        });
        let mut events = Vec::new();
        for list in join_all(lists).await {
            events.extend(list?);
        }
        Ok(events)
    }

    async fn webhooks(&self) -> Result<Vec<Value>, ClusterError> {
        let list = |value: Value| value;
        let (validating, mutating) = tokio::join!(
            self.cluster.raw_list::<ValidatingWebhookConfiguration, _>(None, None, OBJECTS, list),
            self.cluster.raw_list::<MutatingWebhookConfiguration, _>(None, None, OBJECTS, list),
        );
        let mut all = validating?;
        all.extend(mutating?);
        Ok(all)
    }

    async fn admission_policies(&self) -> Result<(Vec<Value>, Vec<Value>), ClusterError> {
        let list = |value: Value| value;
        let (policies, bindings) = tokio::join!(
            self.cluster.raw_list::<ValidatingAdmissionPolicy, _>(None, None, OBJECTS, list),
            self.cluster.raw_list::<ValidatingAdmissionPolicyBinding, _>(None, None, OBJECTS, list),
        );
        Ok((policies?, bindings?))
    }

    async fn namespace_labels(&self) -> Result<Labels, ClusterError> {
        let api = Api::<Namespace>::all(self.cluster.client.clone());
        let what = format!("get namespace {}", self.key.namespace);
        let found = call(what, api.get_metadata(&self.key.namespace)).await?;
        Ok(found.metadata.labels.unwrap_or_default())
    }

    /// A cluster without the resource has no policies.
    async fn policies(&self) -> Result<Vec<RolloutPolicy>, ClusterError> {
        match self.cluster.stored_policies().await {
            Err(error) if error.code() == Some(404) => Ok(Vec::new()),
            other => other,
        }
    }

    async fn guard(&self) -> Part<Option<Installation>> {
        let Self { cluster, clock, .. } = self;
        let listed = cluster.guard_workloads(None);
        let mut workloads = clock.part("the guard", "list deployments in all namespaces", listed).await?;
        // The one that watches, where admission is served by another.
        workloads.sort_by_key(|workload| workload.lease.is_none());
        let Some(Workload { namespace, wanted, available, lease, .. }) = workloads.into_iter().next() else {
            return Ok(None);
        };
        let lease = match lease {
            Some(name) => {
                let right = format!("get leases in namespace {namespace}");
                let lease = cluster.lease(&namespace, &name);
                clock.part("who leads the guard", &right, lease.read()).await
            }
            None => Ok(None),
        };
        Ok(Some(Installation { namespace, replicas: (wanted, available), lease }))
    }
}

/// Reads a core/v1 Node.
fn node(node: &Value) -> NodeFacts {
    let conditions = || node["status"]["conditions"].as_array().into_iter().flatten();
    let holds = |condition: &Value| condition["status"] == "True";
    // Those of Kubernetes whose being true is bad; what others add may mean anything.
    let bad = ["MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"];
    let pressure = conditions().filter(|condition| holds(condition));
    NodeFacts {
        name: node["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        ready: conditions().any(|condition| condition["type"] == "Ready" && holds(condition)),
        cordoned: node["spec"]["unschedulable"] == true,
        pressure: pressure
            .filter_map(|condition| condition["type"].as_str())
            .filter(|kind| bad.contains(kind))
            .map(str::to_owned)
            .collect(),
    }
}
