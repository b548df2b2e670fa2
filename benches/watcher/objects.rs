//! Deployments as a large cluster has them: each with its own name, labels, images and managedFields.

use rollout_guard::core::key::Key;
use serde_json::{Value, json};

use crate::common::review::{self, Case};

/// How many sizes there are.
const SIZES: usize = 8;

/// Deployments in one namespace.
const PER_NAMESPACE: usize = 25;

/// What is put in for each Deployment. None of these is part of another text of the object.
const UID: &str = "a3e0b2cf-2c5e-4c9f-b4c6-7f8a9b0c1d2e";
const RESOURCE_VERSION: &str = "918273645";

/// Makes Deployments: the same number is the same Deployment.
pub struct Objects {
    /// JSON with the words of one Deployment in it, from small to large.
    complete: Vec<String>,
}

impl Objects {
    /// Prepares what they are made of.
    pub fn new() -> anyhow::Result<Self> {
        let review: Value = serde_json::from_slice(&review::body(Case::Settled))?;
        let object = &review["request"]["oldObject"];
        Ok(Self { complete: (0..SIZES).map(|size| sized(object.clone(), size).to_string()).collect() })
    }

    /// Returns which Deployment number `n` is.
    pub fn key(n: usize) -> Key {
        Key::new(format!("team-{}", n / PER_NAMESPACE), name(n))
    }

    /// Returns the JSON of number `n`, complete and at rest, as of `version`.
    pub fn complete(&self, n: usize, version: u64) -> String {
        let Key { namespace, name } = Self::key(n);
        self.complete[n % SIZES]
            .replace("checkout", &name)
            .replace("\"namespace\":\"shop\"", &format!("\"namespace\":\"{namespace}\""))
            .replace("\\\"namespace\\\":\\\"shop\\\"", &format!("\\\"namespace\\\":\\\"{namespace}\\\""))
            .replace(UID, &uid(n))
            .replace(RESOURCE_VERSION, &version.to_string())
            .replace("2.17.3", &format!("{}.{}.{}", n % 7, n % 41, n % 13))
            .replace("\"payments\"", &format!("\"team-{}\"", n / PER_NAMESPACE % 97))
    }

    /// The bytes of the smallest, of the largest, and of one on the average.
    pub fn bytes(&self) -> (usize, usize, usize) {
        let sizes: Vec<usize> = (0..SIZES).map(|n| self.complete(n, 1_000_000).len()).collect();
        let mean = sizes.iter().sum::<usize>() / SIZES;
        (sizes[0], sizes[SIZES - 1], mean)
    }
}

/// Returns the uid of number `n`.
pub fn uid(n: usize) -> String {
    format!("{:08x}-2c5e-4c9f-b4c6-{n:012x}", n.wrapping_mul(0x9e37_79b1) & 0xffff_ffff)
}

fn name(n: usize) -> String {
    const WORDS: [&str; 12] = [
        "orders",
        "billing",
        "search",
        "basket",
        "mailer",
        "catalogue",
        "invoices",
        "shipping-labels",
        "auth",
        "recommendations",
        "images",
        "gateway",
    ];
    format!("{}-{n}", WORDS[n % WORDS.len()])
}

/// Adds environment to the container, with its fields in managedFields, or takes away what a small one has not.
fn sized(mut object: Value, size: usize) -> Value {
    if size == 0 {
        object["spec"]["template"]["spec"]["containers"][0]["env"] = json!([]);
        object["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:containers"]
            ["k:{\"name\":\"app\"}"]["f:env"] = json!({});
        if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
        return object;
    }
    for n in 0..(size - 1) * 9 {
        let name = format!("FEATURE_SETTING_{n}");
        if let Some(env) = object["spec"]["template"]["spec"]["containers"][0]["env"].as_array_mut() {
            env.push(json!({"name": name, "value": format!("https://settings.example.com/v2/feature/{n}")}));
        }
        object["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:containers"]
            ["k:{\"name\":\"app\"}"]["f:env"][format!("k:{{\"name\":\"{name}\"}}")] =
            json!({".": {}, "f:name": {}, "f:value": {}});
    }
    object
}
