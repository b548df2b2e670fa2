//! What Deployments were last, in short and within bounds.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use crate::{
    api::{ADMITTED_ANNOTATION, OVERRIDE_ANNOTATION},
    core::{
        key::Key,
        rollout::{Phase, Snapshot, classify},
        template::TemplateHash,
    },
};

/// The most earlier templates of one Deployment that are remembered to have been complete.
const MOST_TEMPLATES: usize = 12;

/// About what an entry takes besides its texts.
const ENTRY: usize = 512;

/// What decides of a Deployment, as it was last.
#[derive(Debug)]
pub(super) struct Known {
    /// A Deployment of which only what decides is there: as text, which takes a third of the room.
    text: Box<str>,
    uid: Box<str>,
    generation: i64,
    version: u64,
    template: TemplateHash,
    complete_since: Option<Timestamp>,
    complete: Vec<(TemplateHash, SignedDuration)>,
    used: u64,
}

impl Known {
    /// Returns it as an object.
    pub(super) fn object(&self) -> Option<Value> {
        serde_json::from_str(&self.text).ok()
    }

    /// Returns for how long each template was complete, counting the one of now until `at`. Newest last.
    pub(super) fn complete_until(&self, at: Timestamp) -> Vec<(TemplateHash, SignedDuration)> {
        let mut complete = self.complete.clone();
        if let Some(since) = self.complete_since {
            count(&mut complete, self.template, at.duration_since(since));
        }
        complete
    }

    fn size(&self) -> usize {
        self.text.len()
            + self.uid.len()
            + self.complete.capacity() * size_of::<(TemplateHash, SignedDuration)>()
            + ENTRY
    }
}

/// Remembers that a template was complete for `span`, at least.
fn count(complete: &mut Vec<(TemplateHash, SignedDuration)>, template: TemplateHash, span: SignedDuration) {
    if span <= SignedDuration::ZERO {
        return;
    }
    let known = complete.iter().position(|(hash, _)| *hash == template);
    let longest = known.map_or(span, |at| complete.remove(at).1.max(span));
    complete.push((template, longest));
    if complete.len() > MOST_TEMPLATES {
        complete.remove(0);
    }
}

/// The Deployments that were written last, as many as there is room for.
#[derive(Debug, Default)]
pub(super) struct Store {
    room: usize,
    taken: usize,
    clock: u64,
    forgotten: u64,
    entries: HashMap<Key, Known>,
    by_use: BTreeMap<u64, Key>,
}

impl Store {
    pub(super) fn with_room(room: usize) -> Self {
        Self { room, ..Self::default() }
    }

    pub(super) const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Known> {
        self.entries.get(key)
    }

    pub(super) fn object(&self, key: &Key) -> Option<Value> {
        self.get(key)?.object()
    }

    pub(super) fn forget(&mut self, key: &Key) {
        if let Some(known) = self.entries.remove(key) {
            self.by_use.remove(&known.used);
            self.taken -= known.size();
        }
    }

    /// Learns what a Deployment is like since `at`. What is older than what is known is passed over: answers may be
    /// written down in another order than they were made in.
    pub(super) fn learn(&mut self, key: &Key, object: &Value, at: Timestamp) {
        let metadata = &object["metadata"];
        let uid = metadata["uid"].as_str().unwrap_or_default();
        let version = metadata["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0);
        let last = self.entries.get(key).filter(|known| *known.uid == *uid);
        if last.is_some_and(|last| version != 0 && version < last.version) {
            return;
        }
        let known = next(last, object, (uid, version), at);
        self.forget(key);
        self.insert(key, known);
        self.make_room();
    }

    fn insert(&mut self, key: &Key, mut known: Known) {
        self.clock += 1;
        known.used = self.clock;
        self.taken += known.size();
        self.by_use.insert(self.clock, key.clone());
        self.entries.insert(key.clone(), known);
    }

    fn make_room(&mut self) {
        while self.taken > self.room && self.entries.len() > 1 {
            let Some((_, oldest)) = self.by_use.first_key_value() else { return };
            let oldest = oldest.clone();
            self.forget(&oldest);
            self.forgotten += 1;
        }
    }
}

fn next(last: Option<&Known>, object: &Value, (uid, version): (&str, u64), at: Timestamp) -> Known {
    let snapshot = Snapshot::of(object);
    let same_generation = last.filter(|last| last.generation == snapshot.generation);
    // The template cannot change without the generation.
    let template =
        same_generation.map_or_else(|| TemplateHash::of(&object["spec"]["template"]), |last| last.template);
    // With no replicas there is no evidence that a template is good.
    let is_complete = classify(&snapshot) == Phase::Complete && snapshot.desired > 0;
    let continues = last.filter(|last| last.template == template).and_then(|last| last.complete_since);
    let complete = match last {
        Some(last) if continues.is_none() || !is_complete => last.complete_until(at),
        Some(last) => last.complete.clone(),
        None => Vec::new(),
    };
    let written = snapshot.written_at.or_else(|| same_generation.and_then(Known::written_at)).unwrap_or(at);
    Known {
        text: in_short(object, written).to_string().into(),
        uid: uid.into(),
        generation: snapshot.generation,
        version: if version == 0 { last.map_or(0, |last| last.version) } else { version },
        template,
        complete_since: is_complete.then(|| continues.unwrap_or(at)),
        complete,
        used: 0,
    }
}

impl Known {
    fn written_at(&self) -> Option<Timestamp> {
        Snapshot::of(&self.object()?).written_at
    }
}

/// The conditions that decide or are quoted.
const CONDITIONS: [&str; 3] = ["Progressing", "ReplicaFailure", "Stalled"];

/// Returns of a Deployment what the guard looks at.
fn in_short(object: &Value, written: Timestamp) -> Value {
    let pick = |from: &Value, fields: &[&str]| -> Map<String, Value> {
        let there = |field: &&&str| from.get(**field).is_some_and(|value| !value.is_null());
        fields.iter().filter(there).map(|field| ((*field).to_owned(), from[*field].clone())).collect()
    };
    let mut metadata = pick(&object["metadata"], &["uid", "generation", "deletionTimestamp", "labels"]);
    let annotations = pick(&object["metadata"]["annotations"], &[OVERRIDE_ANNOTATION, ADMITTED_ANNOTATION]);
    metadata.insert("annotations".to_owned(), Value::Object(annotations));
    metadata.insert("managedFields".to_owned(), json!([{"time": written.to_string()}]));
    let mut status =
        pick(&object["status"], &["observedGeneration", "replicas", "updatedReplicas", "availableReplicas"]);
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let conditions: Vec<&Value> =
        conditions.filter(|c| CONDITIONS.iter().any(|kind| c["type"] == **kind)).collect();
    status.insert("conditions".to_owned(), json!(conditions));
    json!({
        "metadata": metadata,
        "spec": pick(&object["spec"], &["replicas", "paused", "template"]),
        "status": status,
    })
}
