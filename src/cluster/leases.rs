//! The Lease by which replicas agree on a leader.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, api::PostParams};

use super::{Cluster, ClusterError, FIELD_MANAGER, call_within};
use crate::core::{
    lease::{Record, STOP_ANNOTATION},
    message::plain,
};

/// Two of these fit into the ten seconds for which a renewal counts.
const LIMIT: Duration = Duration::from_secs(4);

/// The most characters of the reason to stop.
const REASON: usize = 200;

/// Where the Lease is kept. Every call answers within 4 s.
pub trait LeaseStore: Send + Sync {
    /// Reads the Lease as it is now; `None` where there is none.
    ///
    /// # Errors
    /// When the store cannot be asked.
    fn read(&self) -> BoxFuture<'_, Result<Option<Record>, ClusterError>>;

    /// Creates the Lease and returns it as it is stored; `None` where there is one already.
    ///
    /// # Errors
    /// When the store refuses or does not answer. It may have been created.
    fn create(&self, record: Record) -> BoxFuture<'_, Result<Option<Record>, ClusterError>>;

    /// Replaces the Lease of the record's resourceVersion and returns it as it is stored; `None` where it is another one
    /// now, or gone. What is not in a record stays, the annotations among it.
    ///
    /// # Errors
    /// When the store refuses or does not answer. It may have been replaced.
    fn replace(&self, record: Record) -> BoxFuture<'_, Result<Option<Record>, ClusterError>>;
}

/// One Lease in the cluster.
pub struct ClusterLease {
    api: Api<Lease>,
    namespace: String,
    name: String,
    /// As it was last answered. A replacement is made from it, so that nothing of others is lost.
    last: Mutex<Option<Lease>>,
}

impl Cluster {
    /// Returns the Lease `name`, which need not be there.
    pub fn lease(&self, namespace: &str, name: &str) -> ClusterLease {
        ClusterLease {
            api: Api::namespaced(self.client.clone(), namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            last: Mutex::new(None),
        }
    }
}

impl ClusterLease {
    fn what(&self, verb: &str) -> String {
        format!("{verb} Lease {}/{}", self.namespace, self.name)
    }

    fn params() -> PostParams {
        PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
    }

    fn keep(&self, lease: Option<Lease>) -> Option<Record> {
        let record = lease.as_ref().map(record_of);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = lease;
        record
    }

    /// The Lease that was last answered, where it is the one that `record` was made from.
    fn last(&self, record: &Record) -> Option<Lease> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        (last.metadata.resource_version.as_ref() == Some(&record.resource_version)).then_some(last)
    }

    /// Takes the answers `codes` for a race that was lost.
    fn or_lost(
        &self,
        answer: Result<Lease, ClusterError>,
        codes: &[u16],
    ) -> Result<Option<Record>, ClusterError> {
        match answer {
            Ok(lease) => Ok(self.keep(Some(lease))),
            Err(error) if error.code().is_some_and(|code| codes.contains(&code)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl LeaseStore for ClusterLease {
    fn read(&self) -> BoxFuture<'_, Result<Option<Record>, ClusterError>> {
        async move {
            // Without a resourceVersion: from etcd, not from a cache.
            let lease = call_within(LIMIT, self.what("get"), self.api.get_opt(&self.name)).await?;
            Ok(self.keep(lease))
        }
        .boxed()
    }

    fn create(&self, record: Record) -> BoxFuture<'_, Result<Option<Record>, ClusterError>> {
        async move {
            let labels =
                ["app.kubernetes.io/name", "app.kubernetes.io/managed-by", "app.kubernetes.io/part-of"];
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    namespace: Some(self.namespace.clone()),
                    labels: Some(labels.map(|key| (key.to_owned(), "rollout-guard".to_owned())).into()),
                    annotations: record
                        .stop
                        .clone()
                        .map(|reason| BTreeMap::from([(STOP_ANNOTATION.to_owned(), reason)])),
                    ..ObjectMeta::default()
                },
                spec: Some(with(LeaseSpec::default(), &record)),
            };
            let params = Self::params();
            let created = call_within(LIMIT, self.what("create"), self.api.create(&params, &lease)).await;
            self.or_lost(created, &[409])
        }
        .boxed()
    }

    fn replace(&self, record: Record) -> BoxFuture<'_, Result<Option<Record>, ClusterError>> {
        async move {
            let Some(mut lease) = self.last(&record) else { return Ok(None) };
            lease.spec = Some(with(lease.spec.take().unwrap_or_default(), &record));
            let params = Self::params();
            // The resourceVersion that was read goes along: a Lease that changed since then is a conflict.
            let replaced =
                call_within(LIMIT, self.what("update"), self.api.replace(&self.name, &params, &lease)).await;
            self.or_lost(replaced, &[404, 409])
        }
        .boxed()
    }
}

fn record_of(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let stop = lease.metadata.annotations.as_ref().and_then(|all| all.get(STOP_ANNOTATION));
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        lease_duration_seconds: spec.lease_duration_seconds.unwrap_or_default(),
        acquire_time: spec.acquire_time.map(|time| time.0),
        renew_time: spec.renew_time.map(|time| time.0),
        lease_transitions: spec.lease_transitions.unwrap_or_default(),
        resource_version: lease.metadata.resource_version.clone().unwrap_or_default(),
        stop: stop.map(|reason| plain(reason, REASON)),
    }
}

/// Puts `record` into `spec` and leaves what is not in a record.
fn with(spec: LeaseSpec, record: &Record) -> LeaseSpec {
    LeaseSpec {
        // As client-go writes one that is released.
        holder_identity: Some(record.holder.clone()).filter(|holder| !holder.is_empty()),
        lease_duration_seconds: Some(record.lease_duration_seconds),
        acquire_time: record.acquire_time.map(MicroTime),
        renew_time: record.renew_time.map(MicroTime),
        lease_transitions: Some(record.lease_transitions),
        ..spec
    }
}
