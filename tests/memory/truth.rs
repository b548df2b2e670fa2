//! What really happened to a Deployment, and what must never happen.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use rollout_guard::{
    api::record::{Outcome, RecordPhase, Verdict},
    cluster::{records::StoredRecord, rollouts::Part},
    core::{
        key::Key,
        rollout::{Phase, Snapshot, classify},
        template::TemplateHash,
    },
};
use serde_json::Value;

use super::{State, fate, secs, tag_of, text};

/// The history of one Deployment, by uid.
#[derive(Clone, Debug)]
pub struct Truth {
    pub key: Key,
    /// The template of now.
    pub template: TemplateHash,
    /// Templates that have or had a ReplicaSet.
    pub sets: BTreeSet<TemplateHash>,
    /// Templates that the guard rolled back from and that were not good since.
    pub restored_from: BTreeSet<TemplateHash>,
    /// The template of now was put there by the guard.
    pub put_back: bool,
    /// Such a one whose outcome is open.
    pub open: bool,
    /// Since when the template of now is complete.
    pub complete: Option<Timestamp>,
    /// For how long each template was complete at a stretch.
    pub longest: BTreeMap<TemplateHash, SignedDuration>,
    /// The generations that were complete at some time.
    pub complete_generations: BTreeSet<i64>,
    /// Somebody took the record away since the guard wrote it last.
    pub record_lost: bool,
    /// The record is not all that there ever was to remember.
    pub forgotten: bool,
    /// The controller manager was at work since the template of now is there.
    pub manager_seen: bool,
    /// How long a look at it has taken at the most: its time is that of its beginning.
    pub slowest: SignedDuration,
    /// From which template a rollback is decided on, and how many pushes there were then.
    pub intended: Option<(TemplateHash, u32)>,
    /// When the template of now came.
    pub pushed_at: Timestamp,
    pub restores: u32,
    pub pushes: u32,
}

impl State {
    /// Somebody other than the guard changed the template.
    pub(super) fn pushed(&mut self, key: &Key, uid: &str, template: TemplateHash) {
        let truth = self.truths.entry(uid.to_owned()).or_insert_with(|| Truth {
            key: key.clone(),
            template,
            sets: BTreeSet::new(),
            restored_from: BTreeSet::new(),
            put_back: false,
            open: false,
            complete: None,
            longest: BTreeMap::new(),
            complete_generations: BTreeSet::new(),
            record_lost: false,
            forgotten: false,
            manager_seen: false,
            slowest: secs(0),
            pushed_at: self.now,
            intended: None,
            restores: 0,
            pushes: 0,
        });
        truth.slowest = secs(0);
        truth.pushed_at = self.now;
        truth.pushes += 1;
        truth.end_complete(self.now);
        truth.template = template;
        truth.put_back = false;
        truth.open = false;
        truth.manager_seen = false;
    }

    /// A Deployment was stored.
    pub(super) fn learn(&mut self, _key: &Key, object: &Arc<Value>) {
        let now = self.now;
        let Some(truth) = self.truths.get_mut(text(&object["metadata"]["uid"])) else { return };
        let snapshot = Snapshot::of(object);
        // Annotated, say, it is not observed for a moment, and as well as before.
        let as_well = Snapshot { observed_generation: snapshot.generation, ..snapshot.clone() };
        let blinks = classify(&snapshot) == Phase::Unobserved && classify(&as_well) == Phase::Complete;
        if classify(&snapshot) == Phase::Complete {
            truth.complete.get_or_insert(now);
            truth.complete_generations.insert(snapshot.generation);
            truth.open = false;
        } else if !blinks {
            truth.end_complete(now);
        }
        if snapshot.deleting || snapshot.paused {
            truth.open = false;
        }
    }

    /// Time passes.
    pub fn advance(&mut self, to: Timestamp) {
        if to <= self.now {
            return;
        }
        if self.manager_alive {
            self.truths.values_mut().for_each(|truth| truth.manager_seen = true);
        }
        self.now = to;
    }

    /// For how long a template was complete at a stretch, the stretch of now included.
    fn complete_for(&self, truth: &Truth, template: TemplateHash) -> Option<SignedDuration> {
        let now =
            truth.complete.filter(|_| truth.template == template).map(|since| self.now.duration_since(since));
        truth.longest.get(&template).copied().into_iter().chain(now).max()
    }

    /// The guard has patched a Deployment.
    pub(super) fn judge_patch(&mut self, process: usize, key: &Key, part: Part, old: &Value, new: &Value) {
        let mut wrong = Vec::new();
        if part == Part::Status {
            let plain = |object: &Value| {
                let mut status = object["status"].clone();
                if let Some(conditions) = status["conditions"].as_array_mut() {
                    conditions.retain(|c| c["type"] != "Stalled");
                }
                status.to_string()
            };
            let (before, after) = (plain(old), plain(new));
            // A list that was not there is as good as an empty one.
            if before != after
                && before.replace(",\"conditions\":[]", "") != after.replace(",\"conditions\":[]", "")
            {
                wrong.push(format!("the status of {key} is not kept: {before} {after}"));
            }
        } else {
            let spec = |object: &Value| {
                let mut spec = object["spec"].clone();
                spec["template"] = Value::Null;
                spec
            };
            if spec(old) != spec(new) {
                wrong.push(format!("the spec of {key} is not kept: {} {}", spec(old), spec(new)));
            }
            let foreign = |object: &Value| {
                let mut annotations = object["metadata"]["annotations"].clone();
                annotations["kubectl.kubernetes.io/last-applied-configuration"] = Value::Null;
                (annotations, object["metadata"]["labels"].clone(), object["metadata"]["uid"].clone())
            };
            if foreign(old) != foreign(new) {
                wrong.push(format!("annotations, labels or uid of {key} are not kept"));
            }
        }
        for what in wrong {
            self.wrong(what);
        }
        let (from, to) = (&old["spec"]["template"], &new["spec"]["template"]);
        if from != to {
            self.judge_restore(process, key, old, (from, to));
        }
    }

    fn judge_restore(&mut self, process: usize, key: &Key, old: &Value, (from, to): (&Value, &Value)) {
        self.restores += 1;
        let words = format!("{key} from {} to {} by process {process}", tag_of(from), tag_of(to));
        let (from, to) = (TemplateHash::of(from), TemplateHash::of(to));
        let uid = text(&old["metadata"]["uid"]).to_owned();
        let truth = self.truths[&uid].clone();
        let snapshot = Snapshot::of(old);
        let mut wrong: Vec<String> = Vec::new();
        let mut say = |is: bool, what: &str| {
            if is {
                wrong.push(format!("{what}: {words}"));
            }
        };
        say(snapshot.paused, "restored while paused");
        say(snapshot.deleting, "restored while being deleted");
        say(from == to, "restored onto the current template");
        let agreed = self.in_step.is_some_and(|since| self.now.duration_since(since) > secs(300));
        // Kubernetes' own word that it does not is taken.
        let own_word = agreed && classify(&snapshot) != Phase::Failed;
        say(
            own_word && matches!(fate(tag_of(&old["spec"]["template"])), "good" | "slow"),
            "restored though it gets on",
        );
        say(truth.template != from, "restored from a template that is not there");
        say(!truth.sets.contains(&to), "restored onto a template without a ReplicaSet of its own");
        let automatic = self.began.get(&(process, key.clone())).copied().unwrap_or(true);
        say(!self.automatic && !automatic, "restored against the policy");
        // Put back and pushed again before anybody could observe it: as if it had never been put back.
        let unseen = truth.intended.is_some_and(|(of, pushes)| of == from && pushes < truth.pushes);
        let unseen = unseen && !truth.manager_seen;
        say(
            agreed && !unseen && snapshot.observed_generation < snapshot.generation && !truth.manager_seen,
            "restored though nobody was there to observe",
        );
        let lost = truth.record_lost || truth.forgotten;
        if !lost {
            say(truth.put_back, "restored twice from one push");
            say(!unseen && truth.restored_from.contains(&from), "restored twice from one template");
            say(truth.restored_from.contains(&to), "restored onto a template that was rolled back from");
        }
        let record = self.records.get(key).filter(|record| record.is_of(key, &uid));
        match record.map(|record| &record.status) {
            None => say(!truth.record_lost, "restored without a record"),
            Some(status) => {
                let intent =
                    status.rollback.as_ref().filter(|rollback| rollback.outcome == Outcome::InProgress);
                let intended = intent.is_some_and(|r| r.from == from.to_string() && r.to == to.to_string());
                say(!intended && !truth.record_lost, "restored without the intent, or other than intended");
                let bad = status.revisions.iter().any(|revision| {
                    revision.template_hash == to.to_string()
                        && revision.verdict == Verdict::Bad
                        && revision.until.as_ref().is_none_or(|until| until.0 > self.now + secs(700))
                });
                say(bad, "restored onto a Bad template");
            }
        }
        let others: Vec<&Truth> = self
            .truths
            .iter()
            .filter(|(other, truth)| **other != uid && truth.open && !truth.record_lost)
            .filter(|(other, truth)| {
                self.deployments.get(&truth.key).is_some_and(|o| o["metadata"]["uid"] == **other)
            })
            .map(|(_, truth)| truth)
            .collect();
        let here = others.iter().filter(|other| other.key.namespace == key.namespace).count();
        say(here >= self.limits.per_namespace as usize, "more at a time in one namespace than allowed");
        say(others.len() >= self.limits.per_cluster as usize, "more at a time than allowed");
        for what in wrong {
            self.wrong(what);
        }
        let now = self.now;
        let truth = self.truths.get_mut(&uid).expect("known");
        truth.end_complete(now);
        truth.restored_from.insert(from);
        truth.template = to;
        truth.put_back = true;
        truth.open = true;
        truth.manager_seen = false;
        truth.restores += 1;
    }

    /// The guard has written a record.
    pub(super) fn judge_record(&mut self, process: usize, key: &Key, old: &StoredRecord, new: &StoredRecord) {
        let Some(truth) = self.truths.get(&new.owner_uid).cloned() else { return };
        let mut wrong = Vec::new();
        let status = &new.status;
        if !new.is_of(key, &new.owner_uid) {
            wrong.push(format!("a record that is not of {key} is written"));
        }
        if status.revisions.len() > 24 {
            wrong.push(format!("{} revisions of {key} are kept", status.revisions.len()));
        }
        let mut good_again = Vec::new();
        for revision in &status.revisions {
            let hash = TemplateHash::parse(&revision.template_hash).expect("a hash");
            let before = old.status.revisions.iter().find(|r| r.template_hash == revision.template_hash);
            if revision.verdict != Verdict::Good || before.is_some_and(|r| r.verdict == Verdict::Good) {
                continue;
            }
            good_again.push(hash);
            match self.complete_for(&truth, hash) {
                None => wrong.push(format!("{key}: Good, and never complete (process {process})")),
                Some(span) => {
                    // By clocks that agree it must have been so for long enough.
                    let agreed = self.in_step.is_some_and(|since| self.now.duration_since(since) > secs(120));
                    if agreed && span + truth.slowest < self.good_after - secs(1) {
                        wrong.push(format!("{key}: Good after {span:#} of being complete"));
                    }
                }
            }
        }
        let became = status.phase == Some(RecordPhase::Complete) && old.status.phase != status.phase;
        if became {
            let generation = status.generation.unwrap_or_default();
            if status.deployment_observed_generation.unwrap_or_default() < generation {
                wrong.push(format!("{key}: Complete in the record while unobserved"));
            }
            if !truth.complete_generations.contains(&generation) {
                wrong.push(format!(
                    "{key}: Complete in the record in generation {generation}, which never was"
                ));
            }
        }
        for what in wrong {
            self.wrong(what);
        }
        let over = status.rollback.as_ref().is_some_and(|rollback| rollback.outcome != Outcome::InProgress);
        let open = |record: &StoredRecord| {
            let rollback = record.status.rollback.as_ref().filter(|r| r.outcome == Outcome::InProgress)?;
            TemplateHash::parse(&rollback.from)
        };
        let decided = open(new).filter(|from| open(old) != Some(*from));
        let truth = self.truths.get_mut(&new.owner_uid).expect("known");
        if let Some(from) = decided {
            truth.intended = Some((from, truth.pushes));
        }
        for hash in good_again {
            truth.restored_from.remove(&hash);
        }
        if truth.record_lost {
            truth.record_lost = false;
            // What was known of earlier templates is gone with the record.
            truth.forgotten = true;
        }
        if over {
            truth.open = false;
        }
    }

    /// A look at a Deployment took so long.
    pub fn looked(&mut self, key: &Key, took: SignedDuration) {
        if let Some(truth) = self.uid_of(key).and_then(|uid| self.truths.get_mut(&uid)) {
            truth.slowest = truth.slowest.max(took);
        }
    }

    /// The watch tells of the template of now only now.
    pub fn told(&mut self, key: &Key) {
        let now = self.now;
        if let Some(truth) = self.uid_of(key).and_then(|uid| self.truths.get_mut(&uid)) {
            truth.slowest = truth.slowest.max(now.duration_since(truth.pushed_at));
        }
    }

    /// Everything that is remembered of what the guard may have forgotten is forgotten as well.
    pub fn forgive(&mut self) {
        for truth in self.truths.values_mut() {
            if truth.forgotten {
                truth.forgotten = false;
                truth.restored_from.clear();
                truth.put_back = false;
            }
        }
    }
}

impl Truth {
    fn end_complete(&mut self, now: Timestamp) {
        if let Some(since) = self.complete.take() {
            let span = now.duration_since(since);
            let longest = self.longest.entry(self.template).or_insert(span);
            *longest = (*longest).max(span);
        }
    }
}
