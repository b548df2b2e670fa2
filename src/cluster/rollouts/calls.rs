//! [`Rollouts`] by calls to the API server, one after the other as they are asked for.
//!
//! Answers stay `Value`s: the typed objects would drop what they do not know, and a template that is put back has to
//! be the one that was there. 429 is asked again by the client itself, after `Retry-After`, within the time limit.

use std::{fmt::Write as _, time::Duration};

use futures::AsyncReadExt;
use jiff::Timestamp;
use json_patch::Patch;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::{Event, Pod},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, Time},
};
use kube::{
    Api, Resource,
    api::{DeleteParams, ListParams, LogParams, PatchParams, PostParams, Preconditions},
    core::{NamespaceResourceScope, Request, Selector, params::GetParams},
};
use serde_json::{Value, json};

use super::{Notice, Part, Rollouts};
use crate::{
    api::record::{RolloutRecord, RolloutRecordStatus},
    cluster::{
        CALL_TIMEOUT, Cluster, ClusterError, FIELD_MANAGER, call_within,
        records::{self, StoredRecord},
    },
    core::key::Key,
};

/// The longest that a log may take: it comes from a node, and it is evidence alone.
const LOG_TIMEOUT: Duration = Duration::from_secs(3);

/// The lines that are kept of a log.
const LOG_LINES: u16 = 10;

/// The bytes that are kept of a log.
const LOG_BYTES: usize = 2048;

/// The bytes that are asked for. The kubelet counts `limitBytes` from the first of the lines that `tailLines` gives
/// (`ReadLogs` in k8s.io/cri-client), so a small limit would cut off the end, which is what says why. Lines of a
/// container's log have 16 KiB at the most: the runtimes split longer ones.
const LOG_LIMIT: u32 = LOG_LINES as u32 * 16 * 1024;

/// What the kubelet answers in place of a log whose container is gone, with status 200 (`GetKubeletContainerLogs` in
/// kubernetes/pkg/kubelet/kuberuntime).
const NO_LOG: &str = "unable to retrieve container logs for ";

/// Objects in one answer to a list.
const PAGE: u32 = 50;

/// Pages of ReplicaSets that are gone through.
const PAGES: usize = 10;

/// The most Events of a pod.
const POD_EVENTS: u32 = 20;

/// The longest message of an Event, in bytes: what the newer API of Events allows.
const EVENT_MESSAGE: usize = 1024;

/// The most characters of an object's name.
const LONGEST_NAME: usize = 253;

impl Rollouts for Cluster {
    async fn deployment(&self, key: &Key) -> Result<Option<Value>, ClusterError> {
        let request = path::<Deployment>(&key.namespace).get(&key.name, &GetParams::default());
        found(self.ask(format!("read Deployment {key}"), request).await)
    }

    async fn replica_sets(&self, key: &Key, deployment: &Value) -> Result<Vec<Value>, ClusterError> {
        let what = format!("list the ReplicaSets of Deployment {key}");
        let (selector, uid) = selector_and_uid(&what, deployment)?;
        let mut list = ListParams::default().labels(&selector).limit(PAGE);
        let mut owned = Vec::new();
        for _ in 0..PAGES {
            let mut page = self.ask(&what, path::<ReplicaSet>(&key.namespace).list(&list)).await?;
            owned.extend(items(&mut page).into_iter().filter(|set| controlled_by(set, "Deployment", &uid)));
            match page["metadata"]["continue"].as_str() {
                Some(token) if !token.is_empty() => list.continue_token = Some(token.to_owned()),
                _ => return Ok(owned),
            }
        }
        let why = format!("more than {} carry the labels of its selector", PAGES * PAGE as usize);
        Err(ClusterError::Unexpected { what, why })
    }

    async fn pods(&self, key: &Key, replica_set: &Value) -> Result<Vec<Value>, ClusterError> {
        let name = replica_set["metadata"]["name"].as_str().unwrap_or_default();
        let what = format!("list the pods of ReplicaSet {}/{name}", key.namespace);
        let (selector, uid) = selector_and_uid(&what, replica_set)?;
        let list = ListParams::default().labels(&selector).limit(PAGE);
        let mut page = self.ask(what, path::<Pod>(&key.namespace).list(&list)).await?;
        let mut pods = items(&mut page);
        pods.retain(|pod| controlled_by(pod, "ReplicaSet", &uid));
        pods.truncate(PAGE as usize);
        Ok(pods)
    }

    async fn pod_events(&self, namespace: &str, pod: &str) -> Result<Vec<Value>, ClusterError> {
        let fields = format!("involvedObject.kind=Pod,involvedObject.name={pod}");
        let list = ListParams::default().fields(&fields).limit(POD_EVENTS);
        let what = format!("list the Events on pod {namespace}/{pod}");
        let mut page = self.ask(what, path::<Event>(namespace).list(&list)).await?;
        let mut events = items(&mut page);
        events.truncate(POD_EVENTS as usize);
        Ok(events)
    }

    async fn log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
    ) -> Result<String, ClusterError> {
        let parameters = LogParams {
            container: Some(container.to_owned()),
            limit_bytes: Some(i64::from(LOG_LIMIT)),
            previous,
            tail_lines: Some(i64::from(LOG_LINES)),
            ..LogParams::default()
        };
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let what = format!("read the log of container {container} of pod {namespace}/{pod}");
        let read = async {
            let log = api.log_stream(pod, &parameters).await?;
            let mut bytes = Vec::new();
            // Whatever answers, no more than was asked for is taken.
            log.take(u64::from(LOG_LIMIT)).read_to_end(&mut bytes).await.map_err(kube::Error::ReadEvents)?;
            Ok(bytes)
        };
        let bytes = call_within(LOG_TIMEOUT, what.as_str(), read).await?;
        let log = String::from_utf8_lossy(&bytes);
        if log.starts_with(NO_LOG) {
            let why = "the node does not have it any more".to_owned();
            return Err(ClusterError::Unexpected { what, why });
        }
        Ok(end_of_log(&log).to_owned())
    }

    async fn record(&self, key: &Key) -> Result<Option<StoredRecord>, ClusterError> {
        let what = format!("read the RolloutRecord of Deployment {key}");
        let request =
            path::<RolloutRecord>(&key.namespace).get(&records::name(&key.name), &GetParams::default());
        Ok(found(self.ask(what, request).await)?.map(StoredRecord::read))
    }

    async fn create_record(&self, key: &Key, uid: &str) -> Result<StoredRecord, ClusterError> {
        let (api_version, kind) = (Deployment::api_version(&()), Deployment::kind(&()));
        let record = json!({
            "apiVersion": RolloutRecord::api_version(&()),
            "kind": RolloutRecord::kind(&()),
            "metadata": {
                "name": records::name(&key.name),
                "namespace": key.namespace,
                // Not the controller and blocking nothing: it goes with the Deployment, and that is all.
                "ownerReferences": [{
                    "apiVersion": api_version,
                    "kind": kind,
                    "name": key.name,
                    "uid": uid,
                    "controller": false,
                    "blockOwnerDeletion": false,
                }],
            },
            "spec": {"targetRef": {"apiVersion": api_version, "kind": kind, "name": key.name, "uid": uid}},
        });
        let what = format!("create the RolloutRecord of Deployment {key}");
        let request = path::<RolloutRecord>(&key.namespace).create(&by_us(), record.to_string().into_bytes());
        Ok(StoredRecord::read(self.ask(what, request).await?))
    }

    async fn delete_record(&self, record: &StoredRecord) -> Result<(), ClusterError> {
        let parameters = DeleteParams::default().preconditions(Preconditions {
            uid: Some(record.uid.clone()),
            resource_version: Some(record.resource_version.clone()),
        });
        let what = format!("delete RolloutRecord {}/{}", record.namespace, record.name);
        let request = path::<RolloutRecord>(&record.namespace).delete(&record.name, &parameters);
        found(self.ask(what, request).await).map(|_| ())
    }

    async fn write_record(
        &self,
        record: &StoredRecord,
        status: &RolloutRecordStatus,
    ) -> Result<StoredRecord, ClusterError> {
        let what = format!("write the status of RolloutRecord {}/{}", record.namespace, record.name);
        let body = json!({
            "apiVersion": RolloutRecord::api_version(&()),
            "kind": RolloutRecord::kind(&()),
            "metadata": {
                "name": record.name,
                "namespace": record.namespace,
                "uid": record.uid,
                "resourceVersion": record.resource_version,
            },
            "spec": {"targetRef": record.target},
            "status": status,
        });
        let request = path::<RolloutRecord>(&record.namespace).replace_subresource(
            "status",
            &record.name,
            &by_us(),
            body.to_string().into_bytes(),
        );
        Ok(StoredRecord::read(self.ask(what, request).await?))
    }

    async fn patch(&self, key: &Key, part: Part, patch: &Patch) -> Result<Value, ClusterError> {
        let parameters =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patch = kube::api::Patch::<()>::Json(patch.clone());
        let path = path::<Deployment>(&key.namespace);
        let (what, request) = match part {
            Part::Object => (format!("patch Deployment {key}"), path.patch(&key.name, &parameters, &patch)),
            Part::Status => (
                format!("patch the status of Deployment {key}"),
                path.patch_subresource("status", &key.name, &parameters, &patch),
            ),
        };
        self.ask(what, request).await
    }

    async fn tell(&self, notice: &Notice) -> Result<bool, ClusterError> {
        let what = format!("create an Event on Deployment {}", notice.key);
        let body = event(notice, Timestamp::now()).to_string().into_bytes();
        match self.ask(what, path::<Event>(&notice.key.namespace).create(&by_us(), body)).await {
            Err(error) if error.code() == Some(409) => Ok(false),
            other => other.map(|_| true),
        }
    }
}

impl Cluster {
    /// Sends one request and returns the JSON of the answer.
    async fn ask(
        &self,
        what: impl Into<String>,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Value, ClusterError> {
        let what = what.into();
        let answer = async {
            let request = request.map_err(kube::Error::BuildRequest)?;
            self.client.request_text(request).await
        };
        let text = call_within(CALL_TIMEOUT, what.clone(), answer).await?;
        serde_json::from_str(&text)
            .map_err(|e| ClusterError::Unexpected { what, why: format!("not the JSON of an object: {e}") })
    }
}

/// The path of objects of a kind in a namespace.
fn path<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(namespace: &str) -> Request {
    Request::new(K::url_path(&(), Some(namespace)))
}

fn by_us() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

/// None where the API server says 404.
fn found<T>(result: Result<T, ClusterError>) -> Result<Option<T>, ClusterError> {
    match result {
        Err(error) if error.code() == Some(404) => Ok(None),
        other => other.map(Some),
    }
}

fn items(list: &mut Value) -> Vec<Value> {
    match taken(list, "/items") {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

/// Takes a part out; null where there is none. (An index would panic where the whole is no object.)
fn taken(object: &mut Value, pointer: &str) -> Value {
    object.pointer_mut(pointer).map(Value::take).unwrap_or_default()
}

/// The selector of a Deployment or ReplicaSet as text, and its uid. A selector that is empty would take in every
/// object of the namespace; the API server lets none through, so one is not believed.
fn selector_and_uid(what: &str, object: &Value) -> Result<(String, String), ClusterError> {
    let unexpected = |why: String| ClusterError::Unexpected { what: what.to_owned(), why };
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    if uid.is_empty() {
        return Err(unexpected("it has no uid".to_owned()));
    }
    let selector = serde_json::from_value::<LabelSelector>(object["spec"]["selector"].clone())
        .map_err(|e| unexpected(format!("its spec.selector cannot be read: {e}")))?;
    let selector = Selector::try_from(selector)
        .map_err(|e| unexpected(format!("its spec.selector cannot be read: {e}")))?
        .to_string();
    if selector.is_empty() {
        return Err(unexpected("its spec.selector is empty".to_owned()));
    }
    Ok((selector, uid))
}

/// Says whether the controller of `object` is the one with this uid: what merely carries its labels is not.
fn controlled_by(object: &Value, kind: &str, uid: &str) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array();
    owners.into_iter().flatten().any(|owner| {
        owner["controller"] == true
            && owner["uid"] == uid
            && owner["kind"] == kind
            && owner["apiVersion"].as_str().is_some_and(|version| version.starts_with("apps/"))
    })
}

/// The last lines of a log, as many whole characters as fit.
fn end_of_log(log: &str) -> &str {
    let log = log.trim_end();
    let lines = log.rmatch_indices('\n').nth(usize::from(LOG_LINES) - 1).map_or(0, |(at, _)| at + 1);
    let bytes = log.ceil_char_boundary(log.len().saturating_sub(LOG_BYTES));
    &log[lines.max(bytes)..]
}

/// The Event for a notice, as `kubectl describe deployment` looks for it.
fn event(notice: &Notice, now: Timestamp) -> Value {
    let Notice { key, uid, warning, reason, message, once } = notice;
    let now = Time(now);
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": event_name(&key.name, uid, once), "namespace": key.namespace},
        "involvedObject": {
            "apiVersion": Deployment::api_version(&()),
            "kind": Deployment::kind(&()),
            "name": key.name,
            "namespace": key.namespace,
            "uid": uid,
        },
        "type": if *warning { "Warning" } else { "Normal" },
        "reason": reason,
        "message": &message[..message.floor_char_boundary(EVENT_MESSAGE)],
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "reportingInstance": FIELD_MANAGER,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    })
}

/// The name of an Event: told twice it is the same, so that the API server refuses the second. The uid is in it: a
/// Deployment made anew is told of anew.
fn event_name(deployment: &str, uid: &str, once: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{uid}\n{once}").as_bytes());
    let hash = digest.as_ref().iter().take(8).fold(String::new(), |mut hash, byte| {
        let _ = write!(hash, "{byte:02x}");
        hash
    });
    let longest = LONGEST_NAME - hash.len() - 1;
    let head = deployment[..deployment.floor_char_boundary(longest)].trim_end_matches(['-', '.']);
    format!("{head}.{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_log_the_end_is_kept() {
        assert_eq!(end_of_log("one\ntwo\n"), "one\ntwo");
        let lines: Vec<String> = (0..25).map(|n| format!("line {n}")).collect();
        assert_eq!(end_of_log(&lines.join("\n")), lines[15..].join("\n"));
        let long = format!("{}fatal: no database\n", "ä".repeat(9000));
        let end = end_of_log(&long);
        assert!(end.len() <= LOG_BYTES, "{}", end.len());
        assert!(end.ends_with("fatal: no database"));
        assert_eq!(end_of_log(""), "");
    }

    #[test]
    fn an_event_has_a_name_of_its_own_that_is_the_same_the_second_time() {
        let name = event_name("web", "u", "stuck:7");
        assert_eq!(name, event_name("web", "u", "stuck:7"));
        assert_ne!(name, event_name("web", "u", "stuck:8"));
        assert_ne!(name, event_name("web", "v", "stuck:7"));
        assert_eq!(name.len(), "web.".len() + 16);
        let long = event_name(&format!("{}.b", "a".repeat(235)), "u", "x");
        assert!(long.len() <= LONGEST_NAME, "{}", long.len());
        assert!(!long.contains(".."), "{long}");
    }
}
