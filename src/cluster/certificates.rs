//! The Secret of the guard's own certificates, and the caBundle of its two webhook configurations.

use std::{collections::BTreeMap, fmt};

use futures::{Stream, StreamExt, stream};
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        core::v1::Secret,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
    runtime::watcher,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{Cluster, ClusterError, call, patiently, watch_config, with_causes};

/// Owns the caBundle and nothing else, so that whoever applies the rest of a configuration meets no conflict.
const BUNDLE_MANAGER: &str = "rollout-guard-ca";

/// A Secret as it was read.
#[derive(Clone, Debug)]
pub struct CertificateSecret(Secret);

impl CertificateSecret {
    /// Returns its data.
    pub fn data(&self) -> BTreeMap<String, Vec<u8>> {
        self.0.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
    }
}

/// One of the two webhook configurations, by its kind and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Configuration {
    /// A ValidatingWebhookConfiguration.
    Validating(String),
    /// A MutatingWebhookConfiguration.
    Mutating(String),
}

impl Configuration {
    /// Returns its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Validating(_) => "ValidatingWebhookConfiguration",
            Self::Mutating(_) => "MutatingWebhookConfiguration",
        }
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Validating(name) | Self::Mutating(name) => name,
        }
    }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.name())
    }
}

/// The caBundle of each webhook of one configuration, as it was read.
#[derive(Clone, Debug)]
pub struct Bundles {
    uid: String,
    resource_version: String,
    /// The name of each webhook and its caBundle, empty where it has none.
    pub webhooks: Vec<(String, Vec<u8>)>,
}

impl Cluster {
    /// Reads the Secret; `None` where there is none.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn certificate_secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<CertificateSecret>, ClusterError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let secret = call(format!("get Secret {namespace}/{name}"), secrets.get_opt(name)).await?;
        Ok(secret.map(CertificateSecret))
    }

    /// Creates the Secret. Returns `None` where somebody else was faster.
    ///
    /// # Errors
    /// When the API server refuses or cannot be asked.
    pub async fn create_certificate_secret(
        &self,
        namespace: &str,
        name: &str,
        data: BTreeMap<String, Vec<u8>>,
    ) -> Result<Option<CertificateSecret>, ClusterError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let labels = ["app.kubernetes.io/name", "app.kubernetes.io/managed-by", "app.kubernetes.io/part-of"];
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                labels: Some(labels.map(|key| (key.to_owned(), "rollout-guard".to_owned())).into()),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".to_owned()),
            data: Some(data.into_iter().map(|(key, value)| (key, ByteString(value))).collect()),
            ..Secret::default()
        };
        let params =
            PostParams { field_manager: Some(super::FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let created =
            call(format!("create Secret {namespace}/{name}"), secrets.create(&params, &secret)).await;
        or_lost(created.map(CertificateSecret), &[409])
    }

    /// Replaces the keys `owned` of the Secret by `data` and leaves all else as it is. Returns `None` where
    /// the Secret is no longer the one that was read.
    ///
    /// # Errors
    /// When the API server refuses or cannot be asked.
    pub async fn replace_certificate_secret(
        &self,
        read: &CertificateSecret,
        owned: &[&str],
        data: BTreeMap<String, Vec<u8>>,
    ) -> Result<Option<CertificateSecret>, ClusterError> {
        let mut secret = read.0.clone();
        let (namespace, name) = (secret.namespace().unwrap_or_default(), secret.name_any());
        let kept = secret.data.get_or_insert_default();
        kept.retain(|key, _| !owned.contains(&key.as_str()));
        kept.extend(data.into_iter().map(|(key, value)| (key, ByteString(value))));
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let params =
            PostParams { field_manager: Some(super::FIELD_MANAGER.to_owned()), ..PostParams::default() };
        // The resourceVersion that was read goes along: a Secret that changed since then is a conflict.
        let replaced =
            call(format!("update Secret {namespace}/{name}"), secrets.replace(&name, &params, &secret)).await;
        or_lost(replaced.map(CertificateSecret), &[404, 409])
    }

    /// Reads the caBundles of a configuration; `None` where there is no such configuration.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn ca_bundles(&self, of: &Configuration) -> Result<Option<Bundles>, ClusterError> {
        let what = format!("get {of}");
        Ok(match of {
            Configuration::Validating(name) => {
                let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
                call(what, api.get_opt(name)).await?.map(|found| Bundles::of(&found))
            }
            Configuration::Mutating(name) => {
                let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
                call(what, api.get_opt(name)).await?.map(|found| Bundles::of(&found))
            }
        })
    }

    /// Writes `bundle` as the caBundle of every webhook that was read, by server-side apply of that field
    /// alone. Returns what is there now, or `None` where the configuration is no longer the one that was
    /// read; it is never created.
    ///
    /// # Errors
    /// When the API server refuses or cannot be asked.
    pub async fn publish_ca_bundle(
        &self,
        of: &Configuration,
        read: &Bundles,
        bundle: &str,
    ) -> Result<Option<Bundles>, ClusterError> {
        let bundle = ByteString(bundle.as_bytes().to_vec());
        let webhooks: Vec<_> = read
            .webhooks
            .iter()
            .map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        // uid and resourceVersion make it a conflict when the configuration was deleted or changed since
        // then: a replica that lags behind never puts an older bundle over a newer one.
        let patch = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": of.kind(),
            "metadata": {"name": of.name(), "uid": read.uid, "resourceVersion": read.resource_version},
            "webhooks": webhooks,
        });
        let params = PatchParams::apply(BUNDLE_MANAGER).force();
        let what = format!("patch the caBundle of {of}");
        let written = match of {
            Configuration::Validating(name) => {
                let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
                call(what, api.patch(name, &params, &Patch::Apply(&patch))).await.map(|o| Bundles::of(&o))
            }
            Configuration::Mutating(name) => {
                let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
                call(what, api.patch(name, &params, &Patch::Apply(&patch))).await.map(|o| Bundles::of(&o))
            }
        };
        or_lost(written, &[404, 409])
    }

    /// Returns a stream that yields whenever the Secret or one of the configurations may have changed. It
    /// never ends, and tells of its own trouble by the log alone: whoever listens looks again now and then
    /// anyway.
    pub fn certificate_changes(
        &self,
        secret: Option<(&str, &str)>,
        configurations: &[Configuration],
    ) -> impl Stream<Item = ()> + Send + Unpin + use<> {
        let mut all = Vec::new();
        if let Some((namespace, name)) = secret {
            let api: Api<PartialObjectMeta<Secret>> = Api::namespaced(self.client.clone(), namespace);
            all.push(changes(api, name, format!("Secret {namespace}/{name}")));
        }
        for configuration in configurations {
            let (name, what) = (configuration.name(), configuration.to_string());
            all.push(match configuration {
                Configuration::Validating(_) => {
                    let api: Api<PartialObjectMeta<ValidatingWebhookConfiguration>> =
                        Api::all(self.client.clone());
                    changes(api, name, what)
                }
                Configuration::Mutating(_) => {
                    let api: Api<PartialObjectMeta<MutatingWebhookConfiguration>> =
                        Api::all(self.client.clone());
                    changes(api, name, what)
                }
            });
        }
        stream::select_all(all)
    }
}

/// Yields for everything that happens to the object of that name, deletion included.
fn changes<K>(api: Api<K>, name: &str, what: String) -> stream::BoxStream<'static, ()>
where
    K: Resource + Clone + DeserializeOwned + Serialize + fmt::Debug + Send + 'static,
{
    let config = watch_config().fields(&format!("metadata.name={name}"));
    patiently(watcher(api, config))
        .filter_map(move |event| {
            let tells = match event {
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => None,
                Ok(_) => Some(()),
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::debug!(%what, error, "watch failed, it is tried again");
                    None
                }
            };
            std::future::ready(tells)
        })
        .boxed()
}

/// Takes the answers `codes` for a race that was lost.
fn or_lost<T>(answer: Result<T, ClusterError>, codes: &[u16]) -> Result<Option<T>, ClusterError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.code().is_some_and(|code| codes.contains(&code)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A kind that lists webhooks.
trait Webhooks {
    fn meta(&self) -> &ObjectMeta;
    fn bundles(&self) -> Vec<(String, Vec<u8>)>;
}

impl Webhooks for ValidatingWebhookConfiguration {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn bundles(&self) -> Vec<(String, Vec<u8>)> {
        let bundle = |bundle: &Option<ByteString>| bundle.as_ref().map(|b| b.0.clone()).unwrap_or_default();
        self.webhooks.iter().flatten().map(|w| (w.name.clone(), bundle(&w.client_config.ca_bundle))).collect()
    }
}

impl Webhooks for MutatingWebhookConfiguration {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn bundles(&self) -> Vec<(String, Vec<u8>)> {
        let bundle = |bundle: &Option<ByteString>| bundle.as_ref().map(|b| b.0.clone()).unwrap_or_default();
        self.webhooks.iter().flatten().map(|w| (w.name.clone(), bundle(&w.client_config.ca_bundle))).collect()
    }
}

impl Bundles {
    fn of(configuration: &impl Webhooks) -> Self {
        let meta = configuration.meta();
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            webhooks: configuration.bundles(),
        }
    }
}
