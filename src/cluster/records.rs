//! RolloutRecords: as stored, and watched.

use futures::stream::BoxStream;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams},
    runtime::watcher,
};
use serde_json::Value;

use super::{
    Cluster, ClusterError, call,
    policies::{Event, events},
    watch_config,
};
use crate::{
    api::record::{RolloutRecord, RolloutRecordStatus, TargetRef},
    core::key::Key,
};

/// A RolloutRecord as stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredRecord {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its resourceVersion.
    pub resource_version: String,
    /// Which Deployment it says it is of.
    pub target: TargetRef,
    /// The uid of the Deployment that owns it; empty where none does.
    pub owner_uid: String,
    /// Its status; empty where it cannot be read.
    pub status: RolloutRecordStatus,
}

impl StoredRecord {
    /// Reads a RolloutRecord. What of it cannot be read is empty, and so it is nobody's record.
    pub fn read(mut record: Value) -> Self {
        let mut taken = |pointer: &str| record.pointer_mut(pointer).map(Value::take).unwrap_or_default();
        let target = serde_json::from_value(taken("/spec/targetRef")).unwrap_or_default();
        let status = serde_json::from_value(taken("/status")).unwrap_or_default();
        let metadata = &record["metadata"];
        let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
        let owners = metadata["ownerReferences"].as_array();
        let mut owner_uids = owners
            .into_iter()
            .flatten()
            .filter(|owner| owner["kind"] == "Deployment" && owner["apiVersion"] == "apps/v1")
            .filter_map(|owner| owner["uid"].as_str());
        Self {
            namespace: text("namespace"),
            name: text("name"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            owner_uid: owner_uids.next().unwrap_or_default().to_owned(),
            target,
            status,
        }
    }

    /// Says whether this is the record of the Deployment `key` with this `uid`: by name, target and owner. What a
    /// user planted, or what is of an earlier Deployment of the same name, is not.
    pub fn is_of(&self, key: &Key, uid: &str) -> bool {
        self.namespace == key.namespace
            && self.name == name(&key.name)
            && self.target.name == key.name
            && self.target.uid == uid
            && self.owner_uid == uid
            && !uid.is_empty()
    }
}

impl Cluster {
    /// Watches all RolloutRecords. The list comes in pages, and one that cannot be read does not end the watch.
    pub fn watch_records(&self) -> BoxStream<'static, Event<StoredRecord>> {
        let resource = ApiResource::erase::<RolloutRecord>(&());
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        events(watcher(api, watch_config()), |object| {
            StoredRecord::read(serde_json::to_value(object).unwrap_or_default())
        })
    }

    /// Hands all RolloutRecords to `take`, one by one as their pages come: there may be as many as Deployments.
    ///
    /// # Errors
    /// When the API server refuses or does not answer; what was handed over until then is not all.
    pub async fn each_record(&self, mut take: impl FnMut(StoredRecord)) -> Result<(), ClusterError> {
        let resource = ApiResource::erase::<RolloutRecord>(&());
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = call("list rolloutrecords", api.list(&params)).await?;
            for object in page.items {
                take(StoredRecord::read(serde_json::to_value(object).unwrap_or_default()));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(()),
            }
        }
    }
}

/// How many records are asked for in one call: some kilobytes each.
const PAGE: u32 = 100;

/// The most characters of an object's name.
const LONGEST_NAME: usize = 253;

/// Returns the name of the RolloutRecord of a Deployment: `deployment-<name>`, shortened with a hash over 253.
pub fn name(deployment: &str) -> String {
    let name = format!("deployment-{deployment}");
    if name.len() <= LONGEST_NAME {
        return name;
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, deployment.as_bytes());
    let hash: String = digest.as_ref().iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let head = name[..LONGEST_NAME - hash.len() - 1].trim_end_matches(['-', '.']);
    format!("{head}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_too_long_is_shortened_and_stays_unique() {
        assert_eq!(name("web"), "deployment-web");
        let (a, b) = (name(&format!("{}a", "x".repeat(252))), name(&format!("{}b", "x".repeat(252))));
        assert_eq!((a.len(), b.len()), (253, 253));
        assert_ne!(a, b);
    }

    #[test]
    fn a_record_that_cannot_be_read_is_empty_and_no_error() {
        let read = |status: serde_json::Value, target: serde_json::Value| {
            let object = serde_json::json!({
                "apiVersion": "rollout-guard.io/v1alpha1", "kind": "RolloutRecord",
                "metadata": {"namespace": "shop", "name": "deployment-web", "uid": "r", "resourceVersion": "5",
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u"}]},
                "spec": {"targetRef": target}, "status": status,
            });
            StoredRecord::read(object)
        };
        let target = serde_json::json!({"name": "web", "uid": "u", "newer": true});
        let record = read(serde_json::json!({"phase": "Complete", "newer": 1}), target.clone());
        assert!(record.is_of(&Key::new("shop", "web"), "u"));
        assert_eq!(record.status.phase, Some(crate::api::record::RecordPhase::Complete));
        let odd = read(serde_json::json!({"phase": "Elsewhere"}), target);
        assert_eq!(odd.status, RolloutRecordStatus::default());
        assert!(!read(serde_json::Value::Null, serde_json::json!(5)).is_of(&Key::new("shop", "web"), "u"));
    }

    #[test]
    fn a_record_is_of_the_deployment_that_owns_it_and_of_no_other() {
        let key = Key::new("shop", "web");
        let record = StoredRecord {
            namespace: "shop".to_owned(),
            name: "deployment-web".to_owned(),
            target: TargetRef { name: "web".to_owned(), uid: "u".to_owned(), ..TargetRef::default() },
            owner_uid: "u".to_owned(),
            ..StoredRecord::default()
        };
        assert!(record.is_of(&key, "u"));
        assert!(!record.is_of(&key, "other"));
        assert!(!record.is_of(&Key::new("shop", "api"), "u"));
        assert!(!StoredRecord { owner_uid: String::new(), ..record }.is_of(&key, "u"));
    }
}
