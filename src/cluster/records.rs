//! RolloutRecords: as stored, and watched.

use crate::{
    api::record::{RolloutRecordStatus, TargetRef},
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
