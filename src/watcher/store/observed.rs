//! What one event tells of a Deployment, borrowed from its raw JSON.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};
use serde_json::value::RawValue;

use super::{
    Unreadable,
    entry::{Facts, Reason, Second, Truth},
};
use crate::core::{
    key::Key,
    restore::{ANNOUNCED_REASON, ANNOUNCED_TYPE, FIELD_MANAGER},
};

/// Text that borrows from the event unless it holds escapes; empty where it is null.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

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

impl Text<'_> {
    /// The second of a time in RFC 3339.
    fn second(&self) -> Option<i64> {
        self.0.parse::<Timestamp>().ok().map(Timestamp::as_second)
    }
}

/// A Deployment as one event tells of it, borrowed from the event.
#[derive(Debug, Deserialize)]
pub struct Observed<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow, default)]
    spec: Option<Spec<'a>>,
    #[serde(borrow, default)]
    status: Option<Status<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(borrow, default)]
    namespace: Text<'a>,
    #[serde(borrow, default)]
    uid: Text<'a>,
    #[serde(default)]
    generation: Option<i64>,
    #[serde(borrow, default)]
    deletion_timestamp: Text<'a>,
    #[serde(borrow, default)]
    labels: Option<BTreeMap<Text<'a>, Text<'a>>>,
    #[serde(borrow, default)]
    managed_fields: Option<Vec<ManagedFields<'a>>>,
}

#[derive(Debug, Deserialize)]
struct ManagedFields<'a> {
    #[serde(borrow, default)]
    manager: Text<'a>,
    #[serde(borrow, default)]
    operation: Text<'a>,
    #[serde(borrow, default)]
    subresource: Text<'a>,
    #[serde(borrow, default)]
    time: Text<'a>,
}

#[derive(Debug, Default, Deserialize)]
struct Spec<'a> {
    #[serde(default)]
    replicas: Option<i32>,
    #[serde(default)]
    paused: Option<bool>,
    #[serde(borrow, default)]
    template: Option<&'a RawValue>,
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
    last_update_time: Text<'a>,
}

impl<'a> Observed<'a> {
    /// Reads the JSON of a Deployment. Nothing is copied but texts with escapes.
    ///
    /// # Errors
    /// When it is not JSON of the shape of a Deployment, or says no name.
    pub fn parse(raw: &'a str) -> Result<Self, Unreadable> {
        let observed: Self =
            serde_json::from_str(raw).map_err(|e| Unreadable { key: name_alone(raw), why: e.to_string() })?;
        if observed.metadata.name.0.is_empty() || observed.metadata.namespace.0.is_empty() {
            return Err(Unreadable { key: None, why: "it has no name or no namespace".to_owned() });
        }
        Ok(observed)
    }

    /// Returns which Deployment it is.
    pub fn key(&self) -> Key {
        Key::new(&*self.metadata.namespace.0, &*self.metadata.name.0)
    }

    pub(super) fn uid(&self) -> &str {
        &self.metadata.uid.0
    }

    pub(super) fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.metadata.labels.iter().flatten().map(|(key, value)| (&*key.0, &*value.0))
    }

    /// The raw template; `null` where there is none.
    pub(super) fn template(&self) -> &'a str {
        self.spec.as_ref().and_then(|spec| spec.template).map_or("null", RawValue::get)
    }

    pub(super) fn facts(&self) -> Facts {
        let Metadata { generation, deletion_timestamp, managed_fields, .. } = &self.metadata;
        let (none, empty) = (Status::default(), Spec::default());
        let status = self.status.as_ref().unwrap_or(&none);
        let spec = self.spec.as_ref().unwrap_or(&empty);
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let condition = |kind: &str| conditions.iter().find(|condition| condition.kind.0 == kind);
        // Of the object, not of its status.
        let writes = || managed_fields.iter().flatten().filter(|entry| entry.subresource.0.is_empty());
        let is_ours = |condition: &StatusCondition<'_>| {
            condition.kind.0 == ANNOUNCED_TYPE && condition.reason.0 == ANNOUNCED_REASON
        };
        let progressing = condition("Progressing");
        Facts {
            generation: generation.unwrap_or_default(),
            observed_generation: status.observed_generation.unwrap_or_default(),
            desired: spec.replicas.unwrap_or(1),
            replicas: status.replicas.unwrap_or_default(),
            updated: status.updated_replicas.unwrap_or_default(),
            available: status.available_replicas.unwrap_or_default(),
            progressing: progressing.map(|c| (Truth::of(&c.status.0), Reason::of(&c.reason.0))),
            progressing_at: Second::of(progressing.and_then(|c| c.last_update_time.second())),
            // A write of the subresource `scale` is one of the object.
            written_at: Second::of(
                managed_fields
                    .iter()
                    .flatten()
                    .filter(|entry| entry.subresource.0 != "status")
                    .filter_map(|entry| entry.time.second())
                    .max(),
            ),
            paused: spec.paused.unwrap_or_default(),
            deleting: !deletion_timestamp.0.is_empty(),
            replica_failure: condition("ReplicaFailure").is_some_and(|c| c.status.0 == "True"),
            announced: conditions.iter().any(is_ours),
            hand_back_due: writes()
                .any(|entry| entry.manager.0 == FIELD_MANAGER && entry.operation.0 == "Update"),
        }
    }
}

/// Which Deployment it is, of one that cannot be read otherwise.
fn name_alone(raw: &str) -> Option<Key> {
    #[derive(Deserialize)]
    struct Named {
        metadata: Names,
    }
    #[derive(Deserialize)]
    struct Names {
        namespace: String,
        name: String,
    }
    let Named { metadata } = serde_json::from_str(raw).ok()?;
    Some(Key::new(metadata.namespace, metadata.name))
}
