//! All Deployments, watched as the raw JSON that the API server sends.
//!
//! ```text
//!  list, 25 a page ──▶ watch ──▶ watch … ──▶ (410: list again)
//! ```
//!
//! Pages of 25 and no streaming list: a page is read whole, three times over while it is parsed, and by pages of 50 the
//! process is 4 MiB larger (docs/performance.md). Every API server knows pages, and
//! where streaming lists are switched off pages would be needed anyway. The pages are read without a
//! resourceVersion: with `0` the API server passes over `limit` and answers with everything at once, from a cache that
//! may be behind what was seen before.

use std::{borrow::Cow, fmt};

use futures::stream::BoxStream;
use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Resource, core::ClusterResourceScope, runtime::watcher};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{
    Cluster,
    policies::{Event, events},
    watch_config,
};
use crate::core::key::Key;

/// Objects in one answer to a list.
const PAGE: u32 = 25;

/// A Deployment as the API server sent it.
#[derive(Clone)]
pub struct RawDeployment {
    metadata: ObjectMeta,
    raw: Box<RawValue>,
}

impl RawDeployment {
    /// Returns which one it is; empty names where it does not say.
    pub fn key(&self) -> Key {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Key::new(text(&self.metadata.namespace), text(&self.metadata.name))
    }

    /// Returns its JSON.
    pub fn raw(&self) -> &str {
        self.raw.get()
    }
}

impl fmt::Debug for RawDeployment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the object: it may hold what nobody should read in a log.
        write!(f, "Deployment {}", self.key())
    }
}

/// What kube's watcher wants to know of an object. All else of the metadata stays where it is.
#[derive(Default, Deserialize)]
struct Head {
    #[serde(default)]
    metadata: HeadMetadata,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HeadMetadata {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

impl<'de> Deserialize<'de> for RawDeployment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Works in an event of a watch as the API server writes its type first: nothing is buffered then.
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        // One that cannot be read must not end the watch: whoever folds it tells.
        let Head { metadata } = serde_json::from_str(raw.get()).unwrap_or_default();
        let HeadMetadata { name, namespace, resource_version } = metadata;
        let metadata = ObjectMeta { name, namespace, resource_version, ..ObjectMeta::default() };
        Ok(Self { metadata, raw })
    }
}

impl Resource for RawDeployment {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Deployment::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Deployment::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Deployment::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Deployment::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Cluster {
    /// Watches all Deployments, raw. It goes on by itself after a failure, with pauses that grow, and lists again
    /// where the API server has forgotten what came since (410).
    pub fn watch_deployments_raw(&self) -> BoxStream<'static, Event<RawDeployment>> {
        let api = Api::<RawDeployment>::all(self.client.clone());
        events(watcher(api, watch_config().page_size(PAGE)), |deployment| deployment)
    }
}
