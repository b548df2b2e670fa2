//! What the watcher keeps of every Deployment: the few facts that say whether it must be looked at.
//!
//! ```text
//!  watch ─▶ raw JSON ─▶ Observed (borrowed) ─▶ entry ─▶ Change {before, after}
//! ```
//!
//! A whole object would cost tens of kilobytes. The template is hashed only when its bytes have changed; a list that
//! begins anew changes the entries where they are, and no second copy is made.

mod entry;
mod observed;

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    fmt,
    hash::BuildHasher,
    sync::Arc,
};

use jiff::Timestamp;

use self::entry::{Entry, Facts, LabelKeys, Uid};
pub use self::{entry::Reason, observed::Observed};
use crate::core::{key::Key, policy::Labels, rollout::Phase, template::TemplateHash};

/// A Deployment that cannot be read. It is kept out of the store; all others stay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} cannot be read: {why}", named(.key.as_ref()))]
pub struct Unreadable {
    /// Which one, where that much can be read.
    pub key: Option<Key>,
    /// What is wrong with it.
    pub why: String,
}

fn named(key: Option<&Key>) -> String {
    key.map_or_else(|| "a Deployment without a name".to_owned(), |key| format!("Deployment {key}"))
}

/// What the store knows of one Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Its uid.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `status.observedGeneration`, 0 where there is no status yet.
    pub observed_generation: i64,
    /// Where the generation stands.
    pub phase: Phase,
    /// The hash of the pod template.
    pub template: TemplateHash,
    /// `spec.replicas`, 1 where absent.
    pub desired: i32,
    /// `status.updatedReplicas`.
    pub updated: i32,
    /// `status.availableReplicas`.
    pub available: i32,
    /// The reason of the condition `Progressing`, where there is one.
    pub progressing: Option<Reason>,
    /// When its rollout was complete: `lastUpdateTime` of `Progressing`, where that is `NewReplicaSetAvailable` and
    /// the phase is Complete. Kubernetes writes it when a rollout completes; a pod that is lost and comes back later
    /// does not move it.
    pub complete_since: Option<Timestamp>,
    /// Whether `ReplicaFailure` is True.
    pub replica_failure: bool,
    /// Whether the guard's announcement of a rollback stands on the status.
    pub announced: bool,
    /// Whether the guard still owns fields that it has to hand back.
    pub hand_back_due: bool,
    /// When the object (not its status) was last written, by its managedFields; in whole seconds.
    pub written_at: Option<Timestamp>,
    /// Its labels.
    pub labels: Arc<Labels>,
}

impl View {
    fn new(entry: &Entry, labels: Arc<Labels>) -> Self {
        let Facts {
            generation,
            observed_generation,
            desired,
            replicas: _,
            updated,
            available,
            progressing,
            progressing_at,
            written_at,
            paused: _,
            deleting: _,
            replica_failure,
            announced,
            hand_back_due,
        } = entry.facts;
        let phase = entry.facts.phase();
        let progressing = progressing.map(|(_, reason)| reason);
        let complete = phase == Phase::Complete && progressing == Some(Reason::NewReplicaSetAvailable);
        Self {
            uid: entry.uid.to_string(),
            generation,
            observed_generation,
            phase,
            template: entry.template,
            desired,
            updated,
            available,
            progressing,
            complete_since: progressing_at.time().filter(|_| complete),
            replica_failure,
            announced,
            hand_back_due,
            written_at: written_at.time(),
            labels,
        }
    }
}

/// What an event has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which Deployment.
    pub key: Key,
    /// What was known before; none where it is new, or another one of the same name (another uid).
    pub before: Option<View>,
    /// What is known now.
    pub after: View,
}

/// What a complete list has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    /// How many Deployments the list held, those included that could not be read.
    pub listed: usize,
    /// Those that are in the store and were not in the list, by namespace and name.
    pub gone: Vec<Key>,
}

impl Synced {
    /// Says whether the list was empty while Deployments are known. A cluster whose storage was emptied or swapped
    /// looks like that, too: nothing is to be done about it, and it is no fact before a second list says the same.
    pub const fn is_suspicious(&self) -> bool {
        self.listed == 0 && !self.gone.is_empty()
    }
}

/// All Deployments.
#[derive(Default)]
pub struct Store {
    /// By namespace and name, so that a namespace is kept once.
    namespaces: BTreeMap<Box<str>, BTreeMap<Box<str>, Box<Entry>>>,
    keys: LabelKeys,
    /// Keyed at random: nobody can make two templates of one hash.
    hasher: RandomState,
    length: usize,
    round: u32,
    listed: usize,
    unreadable: u64,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store of {} Deployments", self.length)
    }
}

impl Store {
    /// Returns an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a Deployment as an event or a list tells of it, in raw JSON, and says what has changed. Told again
    /// what is known, `before` and `after` are the same.
    ///
    /// # Errors
    /// When it cannot be read. It is kept out then, and what was known of it is forgotten: nothing may be decided by
    /// what is no longer so.
    pub fn apply(&mut self, raw: &str) -> Result<Change, Unreadable> {
        self.listed += 1;
        self.take_in(raw).inspect_err(|error| {
            self.unreadable += 1;
            if let Some(key) = &error.key {
                self.delete(key);
            }
        })
    }

    fn take_in(&mut self, raw: &str) -> Result<Change, Unreadable> {
        let observed = Observed::parse(raw)?;
        let key = observed.key();
        let unreadable = |why: &str| Unreadable { key: Some(key.clone()), why: why.to_owned() };
        let facts = observed.facts();
        let uid = Uid::of(observed.uid());
        let packed = self.keys.pack(observed.labels()).ok_or_else(|| unreadable("a label is too long"))?;
        let labels = Arc::new(self.keys.unpack(&packed));
        let text = observed.template();
        let template_bytes = self.hasher.hash_one(text);
        let hash = || TemplateHash::of_text(text).ok_or_else(|| unreadable("its template cannot be read"));

        let names = self.namespaces.get_mut(key.namespace.as_str());
        let known = names.and_then(|names| names.get_mut(key.name.as_str()));
        if let Some(entry) = known.filter(|entry| entry.uid == uid) {
            let same = entry.template_bytes == template_bytes;
            let template = if same { entry.template } else { hash()? };
            let labels_before = if entry.labels == packed {
                Arc::clone(&labels)
            } else {
                Arc::new(self.keys.unpack(&entry.labels))
            };
            let before = View::new(entry, labels_before);
            **entry = Entry { uid, facts, template, template_bytes, labels: packed, round: self.round };
            let after = View::new(entry, labels);
            return Ok(Change { key, before: Some(before), after });
        }
        let template = hash()?;
        let entry = Entry { uid, facts, template, template_bytes, labels: packed, round: self.round };
        let after = View::new(&entry, labels);
        let names = match self.namespaces.get_mut(key.namespace.as_str()) {
            Some(names) => names,
            None => self.namespaces.entry(key.namespace.as_str().into()).or_default(),
        };
        if names.insert(key.name.as_str().into(), Box::new(entry)).is_none() {
            self.length += 1;
        }
        Ok(Change { key, before: None, after })
    }

    /// Forgets a Deployment, and returns what was known of it.
    pub fn delete(&mut self, key: &Key) -> Option<View> {
        let names = self.namespaces.get_mut(key.namespace.as_str())?;
        let entry = names.remove(key.name.as_str())?;
        if names.is_empty() {
            self.namespaces.remove(key.namespace.as_str());
        }
        self.length -= 1;
        Some(self.view(&entry))
    }

    /// A list begins: what it does not tell of is gone, once it is complete. Nothing is forgotten yet.
    pub const fn restart(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.listed = 0;
    }

    /// The list is complete. Says what was not in it, and **forgets nothing**: an empty list after there were many may
    /// be a lie (see [`Synced::is_suspicious`]), so it is for the caller to [`Store::delete`] each one, or to wait
    /// for a second list, which tells of the same ones again.
    pub fn synced(&self) -> Synced {
        let gone = self.namespaces.iter().flat_map(|(namespace, names)| {
            let gone = names.iter().filter(|(_, entry)| entry.round != self.round);
            gone.map(move |(name, _)| Key::new(&**namespace, &**name))
        });
        Synced { listed: self.listed, gone: gone.collect() }
    }

    /// Returns what is known of a Deployment.
    pub fn get(&self, key: &Key) -> Option<View> {
        let entry = self.namespaces.get(key.namespace.as_str())?.get(key.name.as_str())?;
        Some(self.view(entry))
    }

    /// Returns how many Deployments there are.
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Says whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Returns how many times a Deployment could not be read.
    pub const fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// Goes through all Deployments, by namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = (Key, View)> {
        self.namespaces.iter().flat_map(move |(namespace, names)| {
            names.iter().map(move |(name, entry)| (Key::new(&**namespace, &**name), self.view(entry)))
        })
    }

    fn view(&self, entry: &Entry) -> View {
        View::new(entry, Arc::new(self.keys.unpack(&entry.labels)))
    }
}
