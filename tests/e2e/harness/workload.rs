//! Deployments of the sample workload, and changes of them.

use std::env;

use serde_json::{Value, json};

fn image(tag: &str) -> String {
    let repository = env::var("SAMPLE_IMAGE").unwrap_or_else(|_| "localhost/sample".to_owned());
    format!("{repository}:{tag}")
}

/// Returns a Deployment of one pod that is ready at once, changed by `with`.
pub fn deployment(name: &str, with: impl FnOnce(&mut Value)) -> Value {
    let mut deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "automountServiceAccountToken": false,
                    "containers": [{"name": "app", "image": image("v1"), "imagePullPolicy": "IfNotPresent"}],
                },
            },
        },
    });
    with(&mut deployment);
    deployment
}

/// Returns the container image of a Deployment's template.
pub fn image_of(deployment: &Value) -> &str {
    deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap_or_default()
}

/// One change of a Deployment, sent by `kubectl patch`.
pub struct Change {
    name: String,
    patch: Value,
    arguments: Vec<String>,
}

impl Change {
    pub fn of(name: &str) -> Self {
        Self { name: name.to_owned(), patch: json!({}), arguments: Vec::new() }
    }

    /// Another image: a new template.
    pub fn image(mut self, tag: &str) -> Self {
        self.patch["spec"]["template"]["spec"]["containers"] = json!([{"name": "app", "image": image(tag)}]);
        self
    }

    /// An annotation of the template: a new template.
    pub fn template_annotation(mut self, key: &str, value: &str) -> Self {
        self.patch["spec"]["template"]["metadata"]["annotations"][key] = json!(value);
        self
    }

    /// An annotation of the Deployment itself.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.patch["metadata"]["annotations"][key] = json!(value);
        self
    }

    /// The annotation that asks for an override.
    pub fn override_because(self, reason: &str) -> Self {
        self.annotation("rollout-guard.io/override", reason)
    }

    /// A field of the spec other than the template.
    pub fn spec(mut self, field: &str, value: Value) -> Self {
        self.patch["spec"][field] = value;
        self
    }

    pub fn by(mut self, user: &str) -> Self {
        self.arguments.extend(["--as".to_owned(), user.to_owned()]);
        self
    }

    pub fn dry_run(mut self) -> Self {
        self.arguments.push("--dry-run=server".to_owned());
        self
    }

    pub fn arguments(self) -> Vec<String> {
        let head = ["patch", "deployment", &self.name, "--type=strategic", "-p"].map(str::to_owned);
        head.into_iter().chain([self.patch.to_string()]).chain(self.arguments).collect()
    }
}
