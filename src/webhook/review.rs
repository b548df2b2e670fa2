//! AdmissionReview <-> core: only what the decision needs is read, borrowed from the body where possible.
//!
//! The API server calls with tens of kilobytes of which the decision needs a few numbers and the bytes of two
//! pod templates. Typed objects would copy all of it; here the templates stay raw, of the annotations only
//! the guard's own are kept, and the body is gone over once.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    api::{ADMITTED_ANNOTATION, OVERRIDE_ANNOTATION},
    cluster::access::User,
    core::{
        policy::Labels,
        restore::{ANNOUNCED_REASON, ANNOUNCED_TYPE},
        rollout::{Condition, Snapshot},
        template::{self, TemplateHash},
    },
};

/// Why a body is no review.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// Not JSON, or not of the shape of an AdmissionReview.
    #[error("not an AdmissionReview: {0}")]
    Malformed(serde_json::Error),
    /// JSON of another kind.
    #[error("want apiVersion admission.k8s.io/v1 and kind AdmissionReview, got {0}")]
    WrongKind(String),
    /// A review without a request.
    #[error("the AdmissionReview holds no request")]
    NoRequest,
    /// A request without a uid.
    #[error("the request holds no uid")]
    NoUid,
}

impl From<serde_json::Error> for ReviewError {
    fn from(error: serde_json::Error) -> Self {
        // In the text, and so not a source as well: a chain would say it twice.
        Self::Malformed(error)
    }
}

/// Text that borrows from the body unless it holds escapes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E: de::Error>(self, v: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(v)))
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(v.to_owned())))
            }
            fn visit_unit<E: de::Error>(self) -> Result<Text<'de>, E> {
                Ok(Text::default())
            }
        }
        deserializer.deserialize_any(TextVisitor)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "O: Deserialize<'de>"))]
struct Envelope<'a, O> {
    #[serde(borrow, default)]
    api_version: Text<'a>,
    #[serde(borrow, default)]
    kind: Text<'a>,
    #[serde(borrow)]
    request: Option<Request<'a, O>>,
}

impl<'a, O> Envelope<'a, O> {
    fn open(self) -> Result<Request<'a, O>, ReviewError> {
        if self.api_version.0 != "admission.k8s.io/v1" || self.kind.0 != "AdmissionReview" {
            let got = format!("{:?} and {:?}", self.api_version.0, self.kind.0);
            return Err(ReviewError::WrongKind(crate::core::message::plain(&got, 100)));
        }
        let request = self.request.ok_or(ReviewError::NoRequest)?;
        if request.uid.0.is_empty() {
            return Err(ReviewError::NoUid);
        }
        Ok(request)
    }
}

/// The request of a review.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "O: Deserialize<'de>"))]
pub struct Request<'a, O = Deployment<'a>> {
    /// To be echoed in the answer.
    #[serde(borrow, default)]
    pub uid: Text<'a>,
    #[serde(borrow, default)]
    resource: Resource<'a>,
    #[serde(borrow, default)]
    sub_resource: Option<Text<'a>>,
    /// The name of the object; empty on a CREATE with generateName.
    #[serde(borrow, default)]
    pub name: Text<'a>,
    /// The namespace of the object.
    #[serde(borrow, default)]
    pub namespace: Text<'a>,
    /// CREATE, UPDATE, DELETE or CONNECT.
    #[serde(borrow, default)]
    pub operation: Text<'a>,
    #[serde(borrow, default)]
    user_info: UserInfo<'a>,
    #[serde(default = "none")]
    object: Option<O>,
    #[serde(default = "none")]
    old_object: Option<O>,
    #[serde(default)]
    dry_run: Option<bool>,
    /// Read only where it is asked for.
    #[serde(borrow, default)]
    options: Option<&'a RawValue>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Options<'a> {
    #[serde(borrow)]
    field_manager: Text<'a>,
}

fn none<O>() -> Option<O> {
    None
}

#[derive(Debug, Default, Deserialize)]
struct Resource<'a> {
    #[serde(borrow, default)]
    group: Text<'a>,
    #[serde(borrow, default)]
    version: Text<'a>,
    #[serde(borrow, default)]
    resource: Text<'a>,
}

#[derive(Debug, Default, Deserialize)]
struct UserInfo<'a> {
    #[serde(borrow, default)]
    username: Text<'a>,
    #[serde(borrow, default)]
    uid: Text<'a>,
    #[serde(borrow, default)]
    groups: Option<Vec<Text<'a>>>,
    #[serde(borrow, default)]
    extra: Option<BTreeMap<Text<'a>, Vec<Text<'a>>>>,
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A Deployment of apps/v1 is created.
    Create,
    /// A Deployment of apps/v1 is updated.
    Update,
    /// Not the guard's business: another kind, version, subresource or operation.
    Other,
}

/// Reads a body as an AdmissionReview.
///
/// # Errors
/// When it is none, holds no request or uid, or says that it is about a Deployment and is not.
pub fn parse(body: &[u8]) -> Result<Request<'_>, ReviewError> {
    let body = str::from_utf8(body).map_err(<serde_json::Error as de::Error>::custom)?;
    // In one pass where both objects have the shape of a Deployment: nearly always.
    if let Ok(envelope) = serde_json::from_str::<Envelope<'_, Deployment<'_>>>(body) {
        return envelope.open();
    }
    serde_json::from_str::<Envelope<'_, &RawValue>>(body)?.open()?.read()
}

impl<'a> Request<'a, &'a RawValue> {
    /// Reads the objects, except those that need not have the shape of a Deployment.
    fn read(self) -> Result<Request<'a>, ReviewError> {
        let other = self.subject() == Subject::Other;
        let read = |raw: Option<&'a RawValue>| match raw {
            Some(raw) if !other => serde_json::from_str::<Deployment<'a>>(raw.get()).map(Some),
            _ => Ok(None),
        };
        let Self { uid, resource, sub_resource, name, namespace, operation, .. } = self;
        Ok(Request {
            uid,
            resource,
            sub_resource,
            name,
            namespace,
            operation,
            user_info: self.user_info,
            object: read(self.object)?,
            old_object: read(self.old_object)?,
            dry_run: self.dry_run,
            options: self.options,
        })
    }
}

impl<'a, O> Request<'a, O> {
    /// Returns what the request is about.
    pub fn subject(&self) -> Subject {
        let Resource { group, version, resource } = &self.resource;
        let deployments = group.0 == "apps" && version.0 == "v1" && resource.0 == "deployments";
        let whole = self.sub_resource.as_ref().is_none_or(|s| s.0.is_empty());
        match &*self.operation.0 {
            "CREATE" if deployments && whole => Subject::Create,
            "UPDATE" if deployments && whole => Subject::Update,
            _ => Subject::Other,
        }
    }

    /// Says whether nothing will be written.
    pub fn dry_run(&self) -> bool {
        self.dry_run.unwrap_or_default()
    }

    /// Returns under which name the client writes; empty where it says none.
    pub fn field_manager(&self) -> Cow<'a, str> {
        let options = self.options.map(|options| serde_json::from_str::<Options<'a>>(options.get()));
        options.and_then(Result::ok).unwrap_or_default().field_manager.0
    }

    /// Returns the name of the user.
    pub fn user_name(&self) -> &str {
        &self.user_info.username.0
    }

    /// Returns who sent the request, copied: needed for an override alone.
    pub fn user(&self) -> User {
        let UserInfo { username, uid, groups, extra } = &self.user_info;
        let strings =
            |texts: &[Text<'_>]| texts.iter().map(|text| text.0.clone().into_owned()).collect::<Vec<_>>();
        User {
            name: username.0.clone().into_owned(),
            uid: uid.0.clone().into_owned(),
            groups: groups.as_deref().map(strings).unwrap_or_default(),
            extra: extra.iter().flatten().map(|(k, v)| (k.0.clone().into_owned(), strings(v))).collect(),
        }
    }

    /// Returns the object as it is to be; none where the request holds none.
    pub fn object(&self) -> Option<&O> {
        self.object.as_ref()
    }

    /// Returns the object as it is stored; none where the request holds none.
    pub fn old_object(&self) -> Option<&O> {
        self.old_object.as_ref()
    }
}

/// A Deployment, as far as the guard looks at it.
#[derive(Debug, Deserialize)]
pub struct Deployment<'a> {
    #[serde(borrow, default)]
    metadata: Metadata<'a>,
    #[serde(borrow, default)]
    spec: Option<Spec<'a>>,
    #[serde(borrow, default)]
    status: Option<Status<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow, default)]
    uid: Text<'a>,
    #[serde(default)]
    generation: Option<i64>,
    #[serde(borrow, default)]
    deletion_timestamp: Option<Text<'a>>,
    #[serde(borrow, default)]
    labels: Option<&'a RawValue>,
    #[serde(borrow, default)]
    annotations: Option<GuardAnnotations<'a>>,
    #[serde(borrow, default)]
    managed_fields: Option<Vec<ManagedFields<'a>>>,
}

/// The guard's own annotations; all others are passed over.
#[derive(Debug, Default)]
struct GuardAnnotations<'a> {
    admitted: Option<Text<'a>>,
    overrides: Option<Text<'a>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for GuardAnnotations<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnnotationsVisitor;
        impl<'de> Visitor<'de> for AnnotationsVisitor {
            type Value = GuardAnnotations<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of annotations")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = GuardAnnotations::default();
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    if key.0 == ADMITTED_ANNOTATION {
                        found.admitted = Some(map.next_value()?);
                    } else if key.0 == OVERRIDE_ANNOTATION {
                        found.overrides = Some(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(AnnotationsVisitor)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManagedFields<'a> {
    #[serde(borrow, default)]
    manager: Option<Text<'a>>,
    #[serde(borrow, default)]
    time: Option<Text<'a>>,
    #[serde(borrow, default)]
    subresource: Option<Text<'a>>,
    #[serde(borrow, default)]
    fields_v1: Option<&'a RawValue>,
}

#[derive(Debug, Default)]
struct Spec<'a> {
    replicas: Option<i32>,
    paused: Option<bool>,
    progress_deadline_seconds: Option<i32>,
    revision_history_limit: Option<i32>,
    min_ready_seconds: Option<i32>,
    template: Option<&'a RawValue>,
    /// All other fields: only whether they change is asked.
    others: BTreeMap<Text<'a>, Option<&'a RawValue>>,
}

/// The fields that are read; one that is there twice is refused, as in all that serde derives.
const SPEC_FIELDS: [&str; 6] =
    ["replicas", "paused", "progressDeadlineSeconds", "revisionHistoryLimit", "minReadySeconds", "template"];

impl<'de: 'a, 'a> Deserialize<'de> for Spec<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SpecVisitor;
        impl<'de> Visitor<'de> for SpecVisitor {
            type Value = Spec<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the spec of a Deployment")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut spec = Spec::default();
                let mut seen = [false; SPEC_FIELDS.len()];
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    if let Some(index) = SPEC_FIELDS.iter().position(|field| *field == key.0)
                        && std::mem::replace(&mut seen[index], true)
                    {
                        return Err(de::Error::duplicate_field(SPEC_FIELDS[index]));
                    }
                    match &*key.0 {
                        "replicas" => spec.replicas = map.next_value()?,
                        "paused" => spec.paused = map.next_value()?,
                        "progressDeadlineSeconds" => spec.progress_deadline_seconds = map.next_value()?,
                        "revisionHistoryLimit" => spec.revision_history_limit = map.next_value()?,
                        "minReadySeconds" => spec.min_ready_seconds = map.next_value()?,
                        "template" => spec.template = map.next_value()?,
                        _ => {
                            let value = map.next_value()?;
                            spec.others.insert(key, value);
                        }
                    }
                }
                Ok(spec)
            }
        }
        deserializer.deserialize_map(SpecVisitor)
    }
}

impl Spec<'_> {
    fn same(&self, other: &Self) -> bool {
        let Self {
            replicas,
            paused,
            progress_deadline_seconds,
            revision_history_limit,
            min_ready_seconds,
            template,
            others,
        } = self;
        *replicas == other.replicas
            && *paused == other.paused
            && *progress_deadline_seconds == other.progress_deadline_seconds
            && *revision_history_limit == other.revision_history_limit
            && *min_ready_seconds == other.min_ready_seconds
            && same(*template, other.template)
            && others.len() == other.others.len()
            && others.iter().zip(&other.others).all(|((k, v), (l, w))| k == l && same(*v, *w))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    #[serde(default)]
    observed_generation: Option<i64>,
    #[serde(default)]
    replicas: Option<i32>,
    #[serde(default)]
    updated_replicas: Option<i32>,
    #[serde(default)]
    available_replicas: Option<i32>,
    #[serde(borrow, default)]
    conditions: Option<Vec<StatusCondition<'a>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatusCondition<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow, default)]
    status: Text<'a>,
    #[serde(borrow, default)]
    reason: Text<'a>,
    #[serde(borrow, default)]
    message: Text<'a>,
    #[serde(borrow, default)]
    last_update_time: Option<Text<'a>>,
}

/// The part of a spec that the mutating webhook looks at.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `progressDeadlineSeconds`.
    pub progress_deadline_seconds: Option<i32>,
    /// `revisionHistoryLimit`.
    pub revision_history_limit: Option<i32>,
    /// `minReadySeconds`, 0 where absent.
    pub min_ready_seconds: i32,
}

impl<'a> Deployment<'a> {
    /// Returns `metadata.generation`, 0 where absent.
    pub fn generation(&self) -> i64 {
        self.metadata.generation.unwrap_or_default()
    }

    /// Returns `metadata.uid`, empty where absent.
    pub fn uid(&self) -> &str {
        &self.metadata.uid.0
    }

    /// Returns the labels, copied; empty where they cannot be read.
    pub fn labels(&self) -> Labels {
        self.metadata
            .labels
            .and_then(|raw| serde_json::from_str::<Option<Labels>>(raw.get()).ok().flatten())
            .unwrap_or_default()
    }

    /// Says whether the object has annotations at all.
    pub fn has_annotations(&self) -> bool {
        self.metadata.annotations.is_some()
    }

    /// Returns the mark of the mutating webhook.
    pub fn admitted(&self) -> Option<&str> {
        self.metadata.annotations.as_ref()?.admitted.as_ref().map(|text| &*text.0)
    }

    /// Returns the reason given for an override.
    pub fn override_reason(&self) -> Option<&str> {
        self.metadata.annotations.as_ref()?.overrides.as_ref().map(|text| &*text.0)
    }

    /// Says whether the specs are the same, by value.
    pub fn same_spec(&self, other: &Self) -> bool {
        match (&self.spec, &other.spec) {
            (Some(a), Some(b)) => a.same(b),
            (None, None) => true,
            _ => false,
        }
    }

    /// Says whether the pod templates are the same, by value.
    pub fn same_template(&self, other: &Self) -> bool {
        let template = |deployment: &Self| deployment.spec.as_ref().and_then(|spec| spec.template);
        same(template(self), template(other))
    }

    /// Returns the hash of the pod template; none where there is none, or it is nested too deep to be read.
    pub fn template_hash(&self) -> Option<TemplateHash> {
        TemplateHash::of_text(self.spec.as_ref()?.template?.get())
    }

    /// Says whether a rollback stands announced on the status.
    pub fn announces_rollback(&self) -> bool {
        let conditions = self.status.as_ref().and_then(|status| status.conditions.as_deref());
        conditions.unwrap_or_default().iter().any(|condition| {
            condition.kind.0 == ANNOUNCED_TYPE
                && condition.reason.0 == ANNOUNCED_REASON
                && condition.status.0 == "True"
        })
    }

    /// Says whether `manager` owns anything of the containers: who does and writes, pushes, even if nothing changes by it.
    pub fn template_is_of(&self, manager: &str) -> bool {
        let entries = self.metadata.managed_fields.iter().flatten();
        let mut of_manager = entries.filter(|entry| {
            entry.manager.as_ref().is_some_and(|name| name.0 == manager)
                && entry.subresource.as_ref().is_none_or(|subresource| subresource.0.is_empty())
        });
        of_manager
            .any(|entry| entry.fields_v1.is_some_and(|fields| fields.get().contains("\"f:containers\"")))
    }

    /// Returns what the mutating webhook looks at.
    pub fn settings(&self) -> Settings {
        let spec = self.spec.as_ref();
        Settings {
            progress_deadline_seconds: spec.and_then(|spec| spec.progress_deadline_seconds),
            revision_history_limit: spec.and_then(|spec| spec.revision_history_limit),
            min_ready_seconds: spec.and_then(|spec| spec.min_ready_seconds).unwrap_or_default(),
        }
    }

    /// Returns what the Deployment says of itself.
    pub fn snapshot(&self) -> Snapshot<'_> {
        let spec = self.spec.as_ref();
        let status = self.status.as_ref();
        let condition = |kind: &str| {
            let found = status?.conditions.as_ref()?.iter().find(|c| c.kind.0 == kind)?;
            Some(Condition {
                status: Cow::Borrowed(&*found.status.0),
                reason: Cow::Borrowed(&*found.reason.0),
                message: Cow::Borrowed(&*found.message.0),
                updated_at: found.last_update_time.as_ref().and_then(time),
            })
        };
        let count = |field: fn(&Status<'_>) -> Option<i32>| status.and_then(field).unwrap_or_default();
        Snapshot {
            generation: self.generation(),
            observed_generation: status.and_then(|s| s.observed_generation).unwrap_or_default(),
            deleting: self.metadata.deletion_timestamp.is_some(),
            paused: spec.and_then(|spec| spec.paused).unwrap_or_default(),
            desired: spec.and_then(|spec| spec.replicas).unwrap_or(1),
            replicas: count(|s| s.replicas),
            updated: count(|s| s.updated_replicas),
            available: count(|s| s.available_replicas),
            progressing: condition("Progressing"),
            replica_failure: condition("ReplicaFailure"),
            written_at: self.written_at(),
        }
    }

    /// When the object itself was last written: the newest entry of managedFields that is not of its status.
    fn written_at(&self) -> Option<Timestamp> {
        let entries = self.metadata.managed_fields.as_ref()?;
        entries
            .iter()
            .filter(|entry| entry.subresource.as_ref().is_none_or(|s| s.0 != "status"))
            .filter_map(|entry| entry.time.as_ref().and_then(time))
            .max()
    }
}

fn same(a: Option<&RawValue>, b: Option<&RawValue>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => template::same(a.get(), b.get()),
        (None, None) => true,
        _ => false,
    }
}

fn time(text: &Text<'_>) -> Option<Timestamp> {
    text.0.parse().ok()
}

/// The answer to one request.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// The request's uid.
    pub uid: String,
    /// Whether the request goes through.
    pub allowed: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<RefusalStatus>,
    /// An RFC 6902 patch in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<String>,
    /// `JSONPatch` where there is a patch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch_type: Option<&'static str>,
    /// For the audit log; the API server puts the webhook's name before each key.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub audit_annotations: BTreeMap<&'static str, String>,
    /// Shown by kubectl and Helm.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A `metav1.Status`: code and reason are both set, else the API server says 400.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusalStatus {
    /// Always `Failure`.
    pub status: &'static str,
    /// The HTTP status for the client.
    pub code: u16,
    /// The reason in Kubernetes' words.
    pub reason: &'static str,
    /// All lines of the message.
    pub message: String,
    /// The same for machines.
    pub details: Details,
}

/// `metav1.StatusDetails`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// The name of the Deployment.
    pub name: String,
    /// `apps`.
    pub group: &'static str,
    /// `deployments`.
    pub kind: &'static str,
    /// Why, for machines.
    pub causes: Vec<StatusCause>,
    /// Seconds after which the client asks again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// `metav1.StatusCause`.
#[derive(Debug, Serialize)]
pub struct StatusCause {
    /// What the message speaks of.
    pub reason: &'static str,
    /// Its value.
    pub message: String,
    /// The field that is refused.
    pub field: &'static str,
}

/// Returns the AdmissionReview that answers with `response`.
///
/// # Errors
/// Never in practice: everything in it can be written as JSON.
pub fn answer(response: &Response) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer<'a> {
        api_version: &'static str,
        kind: &'static str,
        response: &'a Response,
    }
    serde_json::to_vec(&Answer { api_version: "admission.k8s.io/v1", kind: "AdmissionReview", response })
}
