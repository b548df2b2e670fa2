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
    /// When the holder took it, by the holder's clock: another process, or one that had lost it, takes it anew.
    pub acquire_time: Option<Timestamp>,
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
    /// Reads the Lease `kube-system/kube-controller-manager`. `None` where there is none or the guard may not
    /// read it, as where the control plane is managed by somebody else: nothing is known then, and nothing is
    /// suspicious.
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
                    acquire_time: spec.acquire_time.map(|time| time.0),
                }
            })),
            Err(error) if error.code() == Some(403) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads all nodes, page by page.
    ///
    /// # Errors
    /// When the API server refuses or cannot be asked.
    pub async fn nodes(&self) -> Result<Nodes, ClusterError> {
        let api: Api<SlimNode> = Api::all_with(self.client.clone(), &ApiResource::erase::<Node>(&()));
        // Without resourceVersion=0: with it the API server takes no notice of a limit, and answers all at once.
        let mut params = ListParams::default().limit(PAGE);
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use kube::{Client, client::Body};
    use serde_json::{Value, json};

    use super::*;

    /// Asks a server that answers the query of each call by `answer`.
    fn cluster(
        answer: impl Fn(&str) -> (u16, Value) + Send + Sync + 'static,
    ) -> (Cluster, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (kept, answer) = (asked.clone(), Arc::new(answer));
        let service = tower::service_fn(move |request: Request<Body>| {
            let uri = request.uri().to_string();
            let (status, json) = answer(&uri);
            kept.lock().expect("no panic").push(uri);
            let response = Response::builder().status(status).body(Body::from(json.to_string().into_bytes()));
            std::future::ready(Ok::<_, tower::BoxError>(response.expect("a response")))
        });
        (Cluster { client: Client::new(service, "default") }, asked)
    }

    fn refusal(code: u16) -> (u16, Value) {
        let reason = if code == 404 { "NotFound" } else { "Other" };
        (
            code,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}),
        )
    }

    fn node(name: &str, ready: Option<&str>) -> Value {
        let ready = ready.map(|status| json!({"type": "Ready", "status": status}));
        let pressure = json!({"type": "DiskPressure", "status": "True"});
        let conditions: Vec<_> = ready.into_iter().chain([pressure]).collect();
        json!({"metadata": {"name": name}, "spec": {"podCIDR": "10.0.0.0/24"},
            "status": {"conditions": conditions, "images": [{"names": ["a"], "sizeBytes": 1}]}})
    }

    #[tokio::test]
    async fn nodes_are_read_page_by_page_and_unknown_is_not_ready() {
        let (cluster, asked) = cluster(|uri| {
            let (token, items) = if uri.contains("continue=") {
                ("", vec![node("c", None), json!({"metadata": {"name": "d"}, "spec": {}})])
            } else {
                ("next", vec![node("a", Some("True")), node("b", Some("Unknown"))])
            };
            (
                200,
                json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"continue": token}, "items": items}),
            )
        });
        let nodes = cluster.nodes().await.expect("read");
        assert_eq!(nodes.count(), NodeCount { ready: 1, total: 4 });
        assert_eq!(nodes.not_ready, ["b", "c", "d"].map(str::to_owned).into());
        let asked = asked.lock().expect("no panic");
        assert!(asked[0].contains("limit=500") && asked[1].contains("continue=next"), "{asked:?}");
    }

    #[tokio::test]
    async fn fault_36_nodes_that_may_not_be_read_are_an_error() {
        let (cluster, _) = cluster(|_| refusal(403));
        assert_eq!(cluster.nodes().await.expect_err("refused").code(), Some(403));
    }

    #[tokio::test]
    async fn a_lease_of_the_controller_manager_that_is_not_there_or_not_to_be_read_is_none() {
        for code in [403, 404] {
            let (cluster, _) = cluster(move |_| refusal(code));
            assert_eq!(cluster.controller_manager_lease().await.expect("told"), None, "{code}");
        }
        let (cluster, asked) = cluster(|_| {
            (
                200,
                json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": "kube-controller-manager"},
                "spec": {"holderIdentity": "a", "renewTime": "2027-01-15T08:00:00.000000Z"}}),
            )
        });
        let lease = cluster.controller_manager_lease().await.expect("read").expect("there");
        assert_eq!(
            (lease.holder.as_str(), lease.renew_time.map(|t| t.as_second())),
            ("a", Some(1_800_000_000))
        );
        assert!(
            asked.lock().expect("no panic")[0]
                .ends_with("/namespaces/kube-system/leases/kube-controller-manager")
        );
    }
}
