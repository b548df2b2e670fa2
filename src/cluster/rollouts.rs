//! Deployments, what belongs to them, and what the watcher writes.
//!
//! [`Rollouts`] is all that the watcher's reconciler asks of the API server, so that the very same reconciler runs
//! against one in memory (`tests/simulation.rs`).

mod calls;

use std::future::Future;

use json_patch::Patch;
use serde_json::Value;

use super::{ClusterError, records::StoredRecord};
use crate::{api::record::RolloutRecordStatus, core::key::Key};

/// Which part of a Deployment a patch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The object without its status.
    Object,
    /// The status: moves no generation.
    Status,
}

/// An Event on a Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The Deployment.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// Whether it is a Warning; else Normal.
    pub warning: bool,
    /// The reason in CamelCase.
    pub reason: &'static str,
    /// In words, bounded.
    pub message: String,
    /// What makes it one and the same: told twice it is one Event.
    pub once: String,
}

/// What the reconciler asks of the API server. Objects are raw JSON, so that nothing of them is lost.
pub trait Rollouts: Send + Sync + 'static {
    /// Reads a Deployment; none where it is not there.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    fn deployment(&self, key: &Key) -> impl Future<Output = Result<Option<Value>, ClusterError>> + Send;

    /// Lists the ReplicaSets that `deployment` controls, by its selector and uid; whatever else carries the labels
    /// is left out.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    fn replica_sets(
        &self,
        key: &Key,
        deployment: &Value,
    ) -> impl Future<Output = Result<Vec<Value>, ClusterError>> + Send;

    /// Lists pods that `replica_set` controls: 50 at the most.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    fn pods(
        &self,
        key: &Key,
        replica_set: &Value,
    ) -> impl Future<Output = Result<Vec<Value>, ClusterError>> + Send;

    /// Lists the Events on a pod: 20 at the most.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    fn pod_events(
        &self,
        namespace: &str,
        pod: &str,
    ) -> impl Future<Output = Result<Vec<Value>, ClusterError>> + Send;

    /// Returns the end of a container's log, of its `previous` run where wanted: 2 KiB and 10 lines at the most.
    ///
    /// # Errors
    /// When the API server or the kubelet refuses or does not answer.
    fn log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
    ) -> impl Future<Output = Result<String, ClusterError>> + Send;

    /// Reads the RolloutRecord of a Deployment; none where there is none.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    fn record(&self, key: &Key) -> impl Future<Output = Result<Option<StoredRecord>, ClusterError>> + Send;

    /// Creates the RolloutRecord of the Deployment with this uid, which owns it, with an empty status.
    ///
    /// # Errors
    /// When the API server refuses (409 where there is one) or does not answer.
    fn create_record(
        &self,
        key: &Key,
        uid: &str,
    ) -> impl Future<Output = Result<StoredRecord, ClusterError>> + Send;

    /// Deletes a RolloutRecord that is not the guard's, as stored.
    ///
    /// # Errors
    /// When the API server refuses (409 where it has changed) or does not answer.
    fn delete_record(&self, record: &StoredRecord) -> impl Future<Output = Result<(), ClusterError>> + Send;

    /// Replaces the status of a RolloutRecord as stored.
    ///
    /// # Errors
    /// When the API server refuses (409 where it has changed) or does not answer.
    fn write_record(
        &self,
        record: &StoredRecord,
        status: &RolloutRecordStatus,
    ) -> impl Future<Output = Result<StoredRecord, ClusterError>> + Send;

    /// Patches a Deployment by RFC 6902 and returns it as it is then.
    ///
    /// # Errors
    /// When the API server refuses (409 where it has changed) or does not answer.
    fn patch(
        &self,
        key: &Key,
        part: Part,
        patch: &Patch,
    ) -> impl Future<Output = Result<Value, ClusterError>> + Send;

    /// Writes an Event; one that is there already is fine. Says whether it is new.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    fn tell(&self, notice: &Notice) -> impl Future<Output = Result<bool, ClusterError>> + Send;
}
