//! One event of `audit.k8s.io/v1`, as far as it is looked at.

use std::{borrow::Cow, collections::BTreeMap};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::core::key::Key;

/// The webhook whose audit annotations say what the guard decided; the API server puts its name before each.
const WEBHOOK: &str = "validate.rollout-guard.io";

/// An event, borrowed from its line.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event<'a> {
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
    #[serde(borrow, default)]
    stage: Cow<'a, str>,
    #[serde(borrow, default)]
    verb: Cow<'a, str>,
    #[serde(borrow, default, rename = "requestURI")]
    request_uri: Cow<'a, str>,
    #[serde(borrow, default)]
    user: User<'a>,
    #[serde(borrow, default)]
    impersonated_user: Option<User<'a>>,
    #[serde(borrow, default)]
    object_ref: Option<ObjectRef<'a>>,
    #[serde(default)]
    response_status: Option<ResponseStatus>,
    #[serde(borrow, default)]
    request_object: Option<&'a RawValue>,
    #[serde(borrow, default)]
    response_object: Option<&'a RawValue>,
    #[serde(default)]
    request_received_timestamp: Option<Timestamp>,
    #[serde(default)]
    stage_timestamp: Option<Timestamp>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
struct User<'a> {
    #[serde(borrow, default)]
    username: Cow<'a, str>,
    #[serde(default)]
    groups: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectRef<'a> {
    #[serde(borrow, default)]
    resource: Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    api_group: Cow<'a, str>,
    #[serde(borrow, default)]
    subresource: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
struct ResponseStatus {
    #[serde(default)]
    code: Option<u16>,
}

/// What the guard said to an update at the time, by its audit annotations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// `wait`, `deny`, `warn`, `audit` or `override`.
    pub verdict: String,
    /// The reason id.
    pub reason: String,
}

impl Told {
    /// Says whether the update was refused by it.
    pub fn refuses(&self) -> bool {
        matches!(self.verdict.as_str(), "wait" | "deny")
    }
}

impl<'a> Event<'a> {
    /// Reads a line of the log.
    ///
    /// # Errors
    /// Why it is no event.
    pub fn parse(line: &'a [u8]) -> Result<Self, String> {
        let event: Self = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        if event.kind != "Event" || !event.api_version.starts_with("audit.k8s.io/") {
            return Err("not an event of audit.k8s.io".to_owned());
        }
        if event.stage_timestamp.or(event.request_received_timestamp).is_none() {
            return Err("an event without a time".to_owned());
        }
        Ok(event)
    }

    /// Returns when the API server wrote it down.
    pub fn finished(&self) -> Timestamp {
        self.stage_timestamp.or(self.request_received_timestamp).unwrap_or_default()
    }

    /// Returns when the API server received the request.
    pub fn received(&self) -> Timestamp {
        self.request_received_timestamp.or(self.stage_timestamp).unwrap_or_default()
    }

    /// Says whether it is the one that tells how a request ended.
    pub(super) fn is_complete(&self) -> bool {
        self.stage == "ResponseComplete"
    }

    pub(super) fn verb(&self) -> &str {
        &self.verb
    }

    pub(super) fn code(&self) -> Option<u16> {
        self.response_status.as_ref().and_then(|status| status.code)
    }

    /// Says whether something may have been stored by it.
    pub(super) fn written(&self) -> bool {
        !self.dry_run() && self.code().is_some_and(|code| (200..300).contains(&code))
    }

    pub(super) fn dry_run(&self) -> bool {
        let query = self.request_uri.split_once('?').map_or("", |(_, query)| query);
        query.split('&').any(|pair| pair.starts_with("dryRun="))
    }

    /// Returns the name of the namespace that it writes.
    pub(super) fn namespace_written(&self) -> Option<&str> {
        let object = self.object_ref.as_ref()?;
        let is_one = object.resource == "namespaces"
            && object.api_group.is_empty()
            && object.subresource.is_empty()
            && matches!(&*self.verb, "create" | "update" | "patch" | "delete");
        (is_one && !object.name.is_empty()).then_some(&*object.name)
    }

    /// Returns which Deployment it is about, and the subresource.
    pub(super) fn deployment(&self) -> Option<(Key, &str)> {
        let object = self.object_ref.as_ref()?;
        let is_one = object.resource == "deployments" && object.api_group == "apps";
        (is_one && !object.name.is_empty())
            .then(|| (Key::new(&*object.namespace, &*object.name), &*object.subresource))
    }

    fn sender(&self) -> &User<'a> {
        self.impersonated_user.as_ref().unwrap_or(&self.user)
    }

    pub(super) fn user(&self) -> &str {
        &self.sender().username
    }

    pub(super) fn groups(&self) -> Vec<String> {
        self.sender().groups.clone().unwrap_or_default()
    }

    /// Says whether the level is such that objects are in it.
    pub(super) fn holds_objects(&self) -> bool {
        self.request_object.is_some() || self.response_object.is_some()
    }

    /// Returns the body of the request.
    pub(super) fn request(&self) -> Option<Value> {
        serde_json::from_str(self.request_object?.get()).ok()
    }

    /// Returns the body of the answer.
    pub(super) fn answer(&self) -> Option<Value> {
        serde_json::from_str(self.response_object?.get()).ok()
    }

    /// Returns the Deployment that was answered.
    pub(super) fn deployment_after(&self) -> Option<Value> {
        self.answer().filter(is_deployment)
    }

    /// Returns the Deployment that was sent as a whole.
    pub(super) fn deployment_put(&self) -> Option<Value> {
        if self.verb != "update" {
            return None;
        }
        self.request().filter(is_deployment)
    }

    /// Returns what the guard said to it.
    pub(super) fn told(&self) -> Option<Told> {
        let annotations = self.annotations.as_ref()?;
        let of = |key: &str| annotations.get(&format!("{WEBHOOK}/{key}")).cloned();
        Some(Told { verdict: of("verdict")?, reason: of("reason").unwrap_or_default() })
    }
}

fn is_deployment(object: &Value) -> bool {
    object["kind"] == "Deployment" && object["spec"]["template"].is_object() && object["metadata"].is_object()
}
