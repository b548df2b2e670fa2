//! What scenarios look at again and again, read from the API server directly: with a kubectl for each look, the looking
//! would take most of the machine.

use std::sync::OnceLock;

use kube::Client;
use serde_json::Value;
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

use super::seconds;

/// Kinds by the words of kubectl, and where the API server has them.
const KINDS: [(&[&str], &str); 7] = [
    (&["deployment", "deployments"], "apis/apps/v1 deployments"),
    (&["replicaset", "replicasets"], "apis/apps/v1 replicasets"),
    (&["pod", "pods"], "api/v1 pods"),
    (&["event", "events"], "api/v1 events"),
    (&["lease", "leases"], "apis/coordination.k8s.io/v1 leases"),
    (
        &["rolloutrecord", "rolloutrecords", "rolloutrecords.rollout-guard.io"],
        "apis/rollout-guard.io/v1alpha1 rolloutrecords",
    ),
    (&["rolloutpolicy", "rolloutpolicies"], "apis/rollout-guard.io/v1alpha1 rolloutpolicies"),
];

/// Returns the path of what `kubectl ARGS` reads; none where that is not one of these kinds, or not as simple.
pub fn path_of(args: &[String]) -> Option<String> {
    let mut args = args.iter().map(String::as_str);
    if args.next()? != "get" {
        return None;
    }
    let kind = args.next()?;
    let (_, place) = KINDS.iter().find(|(words, _)| words.contains(&kind))?;
    let (api, plural) = place.split_once(' ')?;
    let (mut name, mut namespace, mut query) = (None, None, String::new());
    while let Some(arg) = args.next() {
        match arg {
            "-n" => namespace = Some(args.next()?),
            "-l" => query = format!("?labelSelector={}", args.next()?),
            "--field-selector" => query = format!("?fieldSelector={}", args.next()?),
            "--all-namespaces" => {}
            flag if flag.starts_with('-') => return None,
            word => name = Some(word),
        }
    }
    let namespace = namespace.map(|namespace| format!("/namespaces/{namespace}"));
    let name = name.map(|name| format!("/{name}"));
    // There is nothing in a namespace among policies, whatever kubectl is told.
    let namespace = namespace.filter(|_| plural != "rolloutpolicies").unwrap_or_default();
    Some(format!("/{api}{namespace}/{plural}{}{query}", name.unwrap_or_default()))
}

/// Returns an object, or a list of which each item says its kind, as with kubectl; the words of the API server where it
/// fails.
pub fn read(path: &str) -> Result<Value, String> {
    let text = text(path)?;
    let mut found: Value = serde_json::from_str(&text).map_err(|error| format!("{path}: {error}: {text}"))?;
    let version = found["apiVersion"].clone();
    let kind = found["kind"].as_str().and_then(|kind| kind.strip_suffix("List")).map(Value::from);
    if let (Some(kind), Some(items)) = (kind, found["items"].as_array_mut()) {
        for item in items {
            item["apiVersion"] = version.clone();
            item["kind"] = kind.clone();
        }
    }
    Ok(found)
}

/// Returns what the API server answers at a path, or its words where it fails.
pub fn text(path: &str) -> Result<String, String> {
    let (runtime, client) = connection();
    let request = http::Request::get(path).body(Vec::new()).map_err(|error| format!("{path}: {error}"))?;
    let asked = async { timeout(seconds(10), client.request_text(request)).await };
    let answer = runtime.block_on(asked).map_err(|_| format!("{path}: no answer within 10 s"))?;
    answer.map_err(|error| format!("{path}: {error}"))
}

fn connection() -> &'static (Runtime, Client) {
    static CONNECTION: OnceLock<(Runtime, Client)> = OnceLock::new();
    CONNECTION.get_or_init(|| {
        // Several may be linked into the test: the one that is first counts.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let client = runtime.block_on(Client::try_default()).expect("KUBECONFIG is of a cluster");
        (runtime, client)
    })
}
