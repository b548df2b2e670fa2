//! The watcher: from a bad push to safe, without a person. Each scenario prints its seconds in a line that begins
//! with "push to".

pub mod appliers;
mod causes;
mod default_policy;
mod forged;
mod held;
mod people;
mod quarantine;
pub mod registry;
mod switched_off;
mod targets;

use serde_json::{Value, json};

/// A change of the container: a new template.
pub fn container(mut change: Value) -> Value {
    change["name"] = json!("app");
    json!({"spec": {"template": {"spec": {"containers": [change]}}}})
}

/// The same change with a progress deadline. It comes with the bad push, as a good one may take longer than that on a
/// machine that is busy.
fn by_deadline(mut change: Value, seconds: u32) -> Value {
    change["spec"]["progressDeadlineSeconds"] = json!(seconds);
    change
}

/// A push that the kubelet turns down at once and that has nothing to do with any registry.
pub fn without_settings() -> Value {
    container(json!({"envFrom": [{"configMapRef": {"name": "settings"}}]}))
}

/// A push of an image that a registry denies having.
fn missing_image() -> Value {
    container(json!({"image": registry::image("missing")}))
}
