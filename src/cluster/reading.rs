//! What the commands read for people: Deployments and records by pages, and watches of a part of the cluster.
//!
//! A page is read as text and taken apart object by object, so that no more than one object is ever a tree in memory:
//! ten thousand Deployments are listed in the room of one page.

use std::{borrow::Cow, fmt, path::Path};

use futures::stream::BoxStream;
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Namespace},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource,
    api::{ApiResource, DynamicObject, ListParams},
    config::Kubeconfig,
    core::{NamespaceResourceScope, Request},
    runtime::watcher,
};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, value::RawValue};

use super::{
    Cluster, ClusterError, call,
    deployments::RawDeployment,
    policies::{Event, events},
    records::StoredRecord,
};
use crate::api::record::RolloutRecord;

/// Objects in one answer to a list, as with kubectl.
const PAGE: u32 = 500;

/// Objects in one answer to a list that a watch begins with: the client keeps such a page as a whole, three times over.
const WATCHED_PAGE: u32 = 50;

/// Which Deployments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// The namespace; none for all of them.
    pub namespace: Option<String>,
    /// A label selector.
    pub labels: Option<String>,
    /// The name, where one alone is meant.
    pub name: Option<String>,
}

impl Scope {
    fn fields(&self) -> Option<String> {
        self.name.as_ref().map(|name| format!("metadata.name={name}"))
    }

    fn place(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("in namespace {namespace:?}"),
            None => "in all namespaces".to_owned(),
        }
    }
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// What was made of its objects.
    pub items: Vec<T>,
    /// By which the next one is asked for; none where this is the last.
    pub next: Option<String>,
}

/// A list as the API server sends it, its objects not taken apart.
#[derive(Deserialize)]
struct RawPage<'a> {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(default, borrow, deserialize_with = "no_items")]
    items: Vec<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct PageMetadata {
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

/// Go writes an empty list as null at times.
fn no_items<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<&'a RawValue>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Cluster {
    /// Reads one page of Deployments, each made into what `read` makes of its JSON. A page whose token has expired (410)
    /// goes on by the token that the API server offers instead, where it does.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn deployments_page<T>(
        &self,
        scope: &Scope,
        next: Option<&str>,
        read: impl FnMut(Value) -> T + Send,
    ) -> Result<Page<T>, ClusterError> {
        let path = Deployment::url_path(&(), scope.namespace.as_deref());
        let what = format!("list deployments.apps {}", scope.place());
        self.page(&path, &what, scope, next, read).await
    }

    /// Reads one page of RolloutRecords; an empty one where the cluster has no such resource.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn records_page<T>(
        &self,
        namespace: Option<&str>,
        next: Option<&str>,
        mut read: impl FnMut(StoredRecord) -> T + Send,
    ) -> Result<Page<T>, ClusterError> {
        let path = RolloutRecord::url_path(&(), namespace);
        let scope = Scope { namespace: namespace.map(str::to_owned), ..Scope::default() };
        let what = format!("list rolloutrecords.rollout-guard.io {}", scope.place());
        let page = self.page(&path, &what, &scope, next, |record| read(StoredRecord::read(record))).await;
        match page {
            Err(error) if error.code() == Some(404) => Ok(Page { items: Vec::new(), next: None }),
            other => other,
        }
    }

    async fn page<T>(
        &self,
        path: &str,
        what: &str,
        scope: &Scope,
        next: Option<&str>,
        mut read: impl FnMut(Value) -> T + Send,
    ) -> Result<Page<T>, ClusterError> {
        let text = match self.page_text(path, what, scope, next).await {
            Err(error) => match instead(&error) {
                Some(token) => self.page_text(path, what, scope, Some(&token)).await?,
                None => return Err(error),
            },
            Ok(text) => text,
        };
        let unexpected = |e: serde_json::Error| ClusterError::Unexpected {
            what: what.to_owned(),
            why: format!("not the JSON of a list: {e}"),
        };
        let page: RawPage<'_> = serde_json::from_str(&text).map_err(unexpected)?;
        let mut items = Vec::with_capacity(page.items.len());
        for raw in page.items {
            items.push(read(serde_json::from_str(raw.get()).map_err(unexpected)?));
        }
        Ok(Page { items, next: page.metadata.next.filter(|token| !token.is_empty()) })
    }

    async fn page_text(
        &self,
        path: &str,
        what: &str,
        scope: &Scope,
        next: Option<&str>,
    ) -> Result<String, ClusterError> {
        let params = ListParams {
            label_selector: scope.labels.clone(),
            field_selector: scope.fields(),
            limit: Some(PAGE),
            continue_token: next.map(str::to_owned),
            ..ListParams::default()
        };
        let request = Request::new(path).list(&params).map_err(kube::Error::BuildRequest);
        call(what, async { self.client.request_text(request?).await }).await
    }

    /// Returns the names of the namespaces: the first 500.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn namespace_names(&self) -> Result<Vec<String>, ClusterError> {
        let api = Api::<Namespace>::all(self.client.clone());
        let page = call("list namespaces", api.list_metadata(&ListParams::default().limit(PAGE))).await?;
        Ok(page.items.into_iter().filter_map(|namespace| namespace.metadata.name).collect())
    }

    /// Returns the names of the Deployments of a namespace: the first 500.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn deployment_names(&self, namespace: &str) -> Result<Vec<String>, ClusterError> {
        let api = Api::<Deployment>::namespaced(self.client.clone(), namespace);
        let what = format!("list deployments.apps in namespace {namespace:?}");
        let page = call(what, api.list_metadata(&ListParams::default().limit(PAGE))).await?;
        Ok(page.items.into_iter().filter_map(|deployment| deployment.metadata.name).collect())
    }

    /// Watches the Deployments of a scope. It goes on by itself after a failure, with pauses that grow, and lists
    /// again where the API server has forgotten what came since (410).
    pub fn watch_scope(&self, scope: &Scope) -> BoxStream<'static, Event<RawDeployment>> {
        let api = match &scope.namespace {
            Some(namespace) => Api::<Scoped>::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let config = watcher::Config {
            label_selector: scope.labels.clone(),
            field_selector: scope.fields(),
            ..watcher::Config::default().page_size(WATCHED_PAGE)
        };
        events(watcher(api, config), |Scoped(deployment)| deployment)
    }

    /// Watches the RolloutRecords of a namespace, or all. Without the right or the resource it fails again and again.
    pub fn watch_records_of(&self, namespace: Option<&str>) -> BoxStream<'static, Event<StoredRecord>> {
        let resource = ApiResource::erase::<RolloutRecord>(&());
        let api = match namespace {
            Some(namespace) => {
                Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &resource)
            }
            None => Api::all_with(self.client.clone(), &resource),
        };
        events(watcher(api, watcher::Config::default().page_size(WATCHED_PAGE)), |object| {
            StoredRecord::read(serde_json::to_value(object).unwrap_or_default())
        })
    }
}

/// The token that the API server offers where one has expired: what follows is of a later time, and whole.
fn instead(error: &ClusterError) -> Option<String> {
    let ClusterError::Api { source, .. } = error else { return None };
    let kube::Error::Api(status) = source.as_ref() else { return None };
    let token = status.metadata.as_ref().and_then(|metadata| metadata.continue_.clone())?;
    (status.code == 410 && !token.is_empty()).then_some(token)
}

/// A Deployment that can be asked for by namespace.
#[derive(Clone)]
struct Scoped(RawDeployment);

impl fmt::Debug for Scoped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Scoped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        RawDeployment::deserialize(deserializer).map(Self)
    }
}

impl Resource for Scoped {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        RawDeployment::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        RawDeployment::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        RawDeployment::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        RawDeployment::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

/// Returns the names of the contexts of a kubeconfig, or of that of the environment; none where it cannot be read.
pub fn contexts(kubeconfig: Option<&Path>) -> Vec<String> {
    let read = match kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    read.map(|config| config.contexts.into_iter().map(|context| context.name).collect()).unwrap_or_default()
}
