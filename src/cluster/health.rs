//! What says whether the cluster itself is well: the lease of kube-controller-manager, nodes.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, NodeCondition},
};
use kube::{
    Api,
    api::{ApiResource, ListParams},
    core::Object,
};
use serde::Deserialize;

use super::{Cluster, ClusterError, call};
use crate::core::breaker::NodeCount;

/// How many nodes are asked for in one call.
const PAGE: u32 = 500;

/// The Lease of kube-controller-manager, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerManagerLease {
    /// Its holder; empty where there is none.
    pub holder: String,
    /// When it was last renewed, by the holder's clock. Compare it with what was read before, never with a clock.
    pub renew_time: Option<Timestamp>,
}

/// The nodes, as they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// How many there are.
    pub total: u32,
    /// The names of those whose condition `Ready` is not `True`: unknown is not ready, as for the scheduler.
    pub not_ready: BTreeSet<String>,
}

impl Nodes {
    /// Returns how many are ready, of how many.
    pub fn count(&self) -> NodeCount {
        let not_ready = u32::try_from(self.not_ready.len()).unwrap_or(u32::MAX);
        NodeCount { ready: self.total.saturating_sub(not_ready), total: self.total }
    }
}

/// What is kept of a node; images and addresses are most of it, and are skipped where they stand.
type SlimNode = Object<Skipped, SlimStatus>;

#[derive(Clone, Debug, Deserialize)]
struct Skipped {}

#[derive(Clone, Debug, Default, Deserialize)]
struct SlimStatus {
    #[serde(default)]
    conditions: Vec<NodeCondition>,
}

impl Cluster {
    /// Reads the Lease `kube-system/kube-controller-manager`. `None` where there is none or the guard may not read it,
    /// as where the control plane is managed by somebody else: nothing is known then, and nothing is suspicious.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn controller_manager_lease(&self) -> Result<Option<ControllerManagerLease>, ClusterError> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-system");
        let name = "kube-controller-manager";
        match call(format!("get Lease kube-system/{name}"), leases.get_opt(name)).await {
            Ok(lease) => Ok(lease.map(|lease| {
                let spec = lease.spec.unwrap_or_default();
                ControllerManagerLease {
                    holder: spec.holder_identity.unwrap_or_default(),
                    renew_time: spec.renew_time.map(|time| time.0),
                }
            })),
            Err(error) if error.code() == Some(403) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads all nodes, from the API server's cache.
    ///
    /// # Errors
    /// When the API server refuses or cannot be asked.
    pub async fn nodes(&self) -> Result<Nodes, ClusterError> {
        let api: Api<SlimNode> = Api::all_with(self.client.clone(), &ApiResource::erase::<Node>(&()));
        // resourceVersion=0: as the cache has it. A page that continues takes none.
        let mut params = ListParams::default().limit(PAGE).match_any();
        let mut nodes = Nodes::default();
        loop {
            let page = call("list nodes", api.list(&params)).await?;
            for node in page.items {
                nodes.total = nodes.total.saturating_add(1);
                if !is_ready(&node) {
                    nodes.not_ready.extend(node.metadata.name);
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = ListParams::default().limit(PAGE).continue_token(&token),
                None => return Ok(nodes),
            }
        }
    }
}

fn is_ready(node: &SlimNode) -> bool {
    let conditions = node.status.iter().flat_map(|status| &status.conditions);
    conditions.filter(|c| c.type_ == "Ready").any(|c| c.status == "True")
}
