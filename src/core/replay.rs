//! What the audit log of an API server tells of Deployments: each update, with the Deployment before and after it.
//!
//! ```text
//!  event ──▶ History ──▶ Update { before, after } ──▶ the webhook's own judge
//!               ▲  │
//!               └──┘ what each Deployment was last, in short: bounded
//! ```
//!
//! An event holds what was asked for and, at level RequestResponse, the whole object after the write. What was before is
//! what the write before left behind. The status in the answer to an update is that of before it, as an update of the
//! main resource cannot write it: so the phase is known exactly, whether or not writes of the status are in the log.
//!
//! At level Request, and of what was refused, only the request is known. A PUT holds the object; a patch is laid over
//! what was before, as far as that can be told from the patch alone. What cannot be known is said and never guessed.

mod event;
mod known;
mod overlay;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

pub use event::{Event, Told};
use known::{Known, Store};
use overlay::laid_over;

use super::{key::Key, template::TemplateHash};

/// An update of a Deployment, or what is known of one.
#[derive(Clone, Debug)]
pub struct Update {
    /// When the API server received it.
    pub at: Timestamp,
    /// Which Deployment.
    pub key: Key,
    /// Who sent it; who was impersonated, where somebody was.
    pub user: String,
    /// The groups of that user.
    pub groups: Vec<String>,
    /// The HTTP status it was answered with; none where the event does not say.
    pub code: Option<u16>,
    /// Whether nothing was to be written.
    pub dry_run: bool,
    /// What the guard itself said to it at the time, where it refused or would have.
    pub told: Option<Told>,
    /// The Deployment before and after; why not, where they are not known.
    pub objects: Result<Objects, Unknown>,
}

/// A Deployment before and after an update.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects {
    /// Before, in short: what decides, and no more.
    pub before: Value,
    /// After.
    pub after: Value,
    /// The templates that were complete before, and for how long without a break as far as the log tells. Newest last.
    pub complete: Vec<(TemplateHash, SignedDuration)>,
}

/// Why an update cannot be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unknown {
    /// The event is of level Metadata.
    NoObjects,
    /// Nothing was in the log of this Deployment before.
    FirstSeen,
    /// Another write came between that is not in the log.
    Gap,
    /// It failed for reasons that are not the guard's.
    Failed,
    /// Of a patch that was refused, or whose answer is not in the log, what it changes cannot be told.
    PatchAlone,
    /// An object is not of the shape of a Deployment.
    Unreadable,
}

impl Unknown {
    /// Returns the word for programs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoObjects => "level-metadata",
            Self::FirstSeen => "first-seen",
            Self::Gap => "writes-missing",
            Self::Failed => "failed-anyway",
            Self::PatchAlone => "patch-alone",
            Self::Unreadable => "unreadable",
        }
    }

    /// Returns why, in words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::NoObjects => {
                "the log holds no objects of it (level Metadata): it takes level Request, or better RequestResponse"
            }
            Self::FirstSeen => "it is the first of its Deployment in the log: what was before is not known",
            Self::Gap => "a write before it is not in the log",
            Self::Failed => "it failed anyway, and not by the guard",
            Self::PatchAlone => "only the patch is in the log, and what it changes cannot be told by that",
            Self::Unreadable => "its objects do not have the shape of a Deployment",
        }
    }
}

/// What one event tells.
#[derive(Clone, Debug)]
pub enum Taken {
    /// Nothing that matters.
    Other,
    /// What a Deployment is like now.
    Learned,
    /// The labels of a namespace; none: it is gone.
    Namespace {
        /// Its name.
        name: String,
        /// Its labels.
        labels: Option<super::policy::Labels>,
    },
    /// An update of a Deployment.
    Update(Box<Update>),
}

/// Follows the Deployments of an audit log.
#[derive(Debug, Default)]
pub struct History {
    known: Store,
    status_writes: u64,
}

impl History {
    /// Returns a history that keeps at most about `bytes` of what Deployments were like; what was not written for the
    /// longest time is forgotten first.
    pub fn with_room(bytes: usize) -> Self {
        Self { known: Store::with_room(bytes), ..Self::default() }
    }

    /// Returns how many Deployments were forgotten for want of room.
    pub const fn forgotten(&self) -> u64 {
        self.known.forgotten()
    }

    /// Returns how many writes of a Deployment's status there were with the object in them.
    pub const fn status_writes(&self) -> u64 {
        self.status_writes
    }

    /// Takes in one event. They come in the order in which they happened.
    pub fn take(&mut self, event: &Event<'_>) -> Taken {
        if !event.is_complete() {
            return Taken::Other;
        }
        if let Some(name) = event.namespace_written() {
            return namespace(event, name);
        }
        let Some((key, subresource)) = event.deployment() else { return Taken::Other };
        match (event.verb(), subresource) {
            ("create", "") => self.created(event, &key),
            // Server-side apply of what was not there.
            ("patch", "") if event.code() == Some(201) => self.created(event, &key),
            ("update" | "patch", "") => self.updated(event, key),
            ("update" | "patch", "status") => self.status(event, &key),
            ("update" | "patch", "scale") => self.scaled(event, &key),
            ("delete", "") => self.deleted(event, &key),
            _ => Taken::Other,
        }
    }

    fn created(&mut self, event: &Event<'_>, key: &Key) -> Taken {
        match event.written().then(|| event.deployment_after()).flatten() {
            Some(object) => self.learn(key, &object, event),
            None => Taken::Other,
        }
    }

    fn status(&mut self, event: &Event<'_>, key: &Key) -> Taken {
        let object = event.written().then(|| event.deployment_after().or_else(|| event.deployment_put()));
        let Some(object) = object.flatten() else { return Taken::Other };
        self.status_writes += 1;
        self.learn(key, &object, event)
    }

    /// The answer is a Scale; what else the Deployment is stays.
    fn scaled(&mut self, event: &Event<'_>, key: &Key) -> Taken {
        let scale = event.written().then(|| event.answer()).flatten();
        let replicas = scale.as_ref().and_then(|scale| scale["spec"]["replicas"].as_i64());
        let (Some(replicas), Some(mut object)) = (replicas, self.known.object(key)) else {
            return Taken::Other;
        };
        if object["spec"]["replicas"].as_i64() != Some(replicas) {
            object["spec"]["replicas"] = json!(replicas);
            object["metadata"]["generation"] = json!(generation(&object) + 1);
            object["metadata"]["managedFields"] = Value::Null;
        }
        self.learn(key, &object, event)
    }

    fn deleted(&mut self, event: &Event<'_>, key: &Key) -> Taken {
        if !event.written() {
            return Taken::Other;
        }
        // One with finalizers stays for a while, and is answered as it is.
        match event.deployment_after() {
            Some(object) => self.learn(key, &object, event),
            None => {
                self.known.forget(key);
                Taken::Learned
            }
        }
    }

    fn learn(&mut self, key: &Key, object: &Value, event: &Event<'_>) -> Taken {
        self.known.learn(key, object, event.finished());
        Taken::Learned
    }

    fn updated(&mut self, event: &Event<'_>, key: Key) -> Taken {
        let before = self.known.get(&key);
        let (objects, stored) = objects(event, before);
        if let Some(after) = stored {
            self.known.learn(&key, &after, event.finished());
        }
        Taken::Update(Box::new(Update {
            at: event.received(),
            key,
            user: event.user().to_owned(),
            groups: event.groups(),
            code: event.code(),
            dry_run: event.dry_run(),
            told: event.told(),
            objects,
        }))
    }
}

/// Returns the objects of an update, and the one that is stored by it, where that is known.
fn objects(event: &Event<'_>, before: Option<&Known>) -> (Result<Objects, Unknown>, Option<Value>) {
    if !event.holds_objects() {
        return (Err(Unknown::NoObjects), None);
    }
    let refused = event.code().is_some_and(|code| code >= 400);
    if refused && !event.told().is_some_and(|told| told.refuses()) {
        return (Err(Unknown::Failed), None);
    }
    let exact = if refused { None } else { event.deployment_after() };
    let Some(known) = before else {
        return (Err(Unknown::FirstSeen), exact.filter(|_| event.written()));
    };
    let complete = known.complete_until(event.received());
    let Some(mut before) = known.object() else { return (Err(Unknown::Unreadable), exact) };
    let (objects, after) = match exact {
        Some(after) => {
            let follows =
                is_same(&before, &after) && (0..=1).contains(&(generation(&after) - generation(&before)));
            // What an update of the main resource leaves as it was.
            before["status"] = after["status"].clone();
            (if follows { Ok(()) } else { Err(Unknown::Gap) }, after)
        }
        None => match asked_for(event, &before) {
            Ok(after) => (Ok(()), after),
            Err(why) => return (Err(why), None),
        },
    };
    let stored = event.written().then(|| after.clone());
    (objects.map(|()| Objects { before, after, complete }), stored)
}

/// Returns what a request asks for, where the answer does not say what came of it.
fn asked_for(event: &Event<'_>, before: &Value) -> Result<Value, Unknown> {
    let mut after = if event.verb() == "update" {
        let put = event.deployment_put().ok_or(Unknown::Unreadable)?;
        let (uid, read) = (&put["metadata"]["uid"], put["metadata"]["generation"].as_i64());
        // The generation that a client sends is the one it has read.
        if uid.is_string() && *uid != before["metadata"]["uid"]
            || read.is_some_and(|read| read != generation(before))
        {
            return Err(Unknown::Gap);
        }
        put
    } else {
        let patch = event.request().ok_or(Unknown::PatchAlone)?;
        let after = laid_over(before, &patch).ok_or(Unknown::PatchAlone)?;
        // An apply that leaves a field out takes it away: by the patch alone that is not seen.
        if patch["apiVersion"].is_string() && same_template(before, &after) {
            return Err(Unknown::PatchAlone);
        }
        after
    };
    if !after.is_object() || !matches!(after["metadata"], Value::Object(_) | Value::Null) {
        return Err(Unknown::PatchAlone);
    }
    after["metadata"]["uid"] = before["metadata"]["uid"].clone();
    let changed = !same_template(before, &after)
        || ["replicas", "paused"].iter().any(|field| after["spec"][field] != before["spec"][field]);
    after["metadata"]["generation"] = json!(generation(before) + i64::from(changed));
    after["status"] = before["status"].clone();
    after["metadata"]["managedFields"] = Value::Null;
    Ok(after)
}

fn same_template(a: &Value, b: &Value) -> bool {
    TemplateHash::of(&a["spec"]["template"]) == TemplateHash::of(&b["spec"]["template"])
}

fn is_same(a: &Value, b: &Value) -> bool {
    a["metadata"]["uid"] == b["metadata"]["uid"]
}

fn generation(object: &Value) -> i64 {
    object["metadata"]["generation"].as_i64().unwrap_or_default()
}

fn namespace(event: &Event<'_>, name: &str) -> Taken {
    if !event.written() {
        return Taken::Other;
    }
    if event.verb() == "delete" {
        return Taken::Namespace { name: name.to_owned(), labels: None };
    }
    let Some(object) = event.answer().filter(|object| object["kind"] == "Namespace") else {
        return Taken::Other;
    };
    let labels = serde_json::from_value(object["metadata"]["labels"].clone()).unwrap_or_default();
    Taken::Namespace { name: name.to_owned(), labels: Some(labels) }
}

#[cfg(test)]
mod tests;
