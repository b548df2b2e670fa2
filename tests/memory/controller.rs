//! The deployment controller and the ReplicaSet controller, as far as the guard can tell them from the real ones
//! (`pkg/controller/deployment` in Kubernetes).

use std::sync::Arc;

use jiff::Timestamp;
use rollout_guard::core::{key::Key, template::TemplateHash};
use serde_json::{Value, json};

use super::{Pod, State, fate, owner, revision, secs, tag_of, text};

/// One ReplicaSet while it is worked on.
struct Work {
    name: String,
    hash: TemplateHash,
    object: Value,
    wanted: i64,
    available: i64,
    pods: Vec<String>,
}

impl State {
    /// Whether the deployment controller has to do with a Deployment.
    pub fn is_due(&self, key: &Key) -> bool {
        let Some(object) = self.deployments.get(key) else { return false };
        if self.dirty.contains(key) {
            return true;
        }
        if self.denials.get(key).is_some_and(|tries| *tries >= 4)
            || object["metadata"]["deletionTimestamp"].is_string()
        {
            return false;
        }
        let uid = text(&object["metadata"]["uid"]);
        let available = self.available(key, uid);
        available != object["status"]["availableReplicas"].as_i64().unwrap_or(0)
            || self.deadline(key).is_some_and(|at| at <= self.now)
    }

    fn available(&self, key: &Key, uid: &str) -> i64 {
        let sets = self.sets_of(&key.namespace, uid);
        let ready = |(_, pod): &(&(String, String), &Pod)| {
            sets.iter().any(|(name, _)| *name == pod.set) && pod.ready(self.now)
        };
        let here = self.pods.iter().filter(|((namespace, _), _)| *namespace == key.namespace);
        i64::try_from(here.filter(ready).count()).expect("few")
    }

    /// When the progress deadline of a Deployment passes, where it runs.
    fn deadline(&self, key: &Key) -> Option<Timestamp> {
        let object = self.deployments.get(key)?;
        let deadline =
            object["spec"]["progressDeadlineSeconds"].as_i64().filter(|n| *n < i64::from(i32::MAX))?;
        let progressing = condition(&object["status"], "Progressing")?;
        if matches!(
            text(&progressing["reason"]),
            "NewReplicaSetAvailable" | "ProgressDeadlineExceeded" | "DeploymentPaused"
        ) {
            return None;
        }
        let at: Timestamp = text(&progressing["lastUpdateTime"]).parse().ok()?;
        Some(at + secs(deadline + 1))
    }

    /// When the next pod becomes ready or the next deadline passes.
    pub fn next_change(&self) -> Option<Timestamp> {
        let pods = self.pods.values().filter_map(|pod| pod.changes(self.now));
        let deadlines = self.deployments.keys().filter_map(|key| self.deadline(key));
        pods.chain(deadlines).filter(|at| *at > self.now).min()
    }

    /// One sync of one Deployment.
    pub fn sync(&mut self, key: &Key) {
        self.dirty.remove(key);
        let Some(object) = self.deployments.get(key).cloned() else { return };
        let uid = text(&object["metadata"]["uid"]).to_owned();
        if let Some(truth) = self.truths.get_mut(&uid) {
            truth.manager_seen = true;
        }
        let mut next = (*object).clone();
        if object["metadata"]["deletionTimestamp"].is_string() {
            next["status"]["observedGeneration"] = object["metadata"]["generation"].clone();
            self.store(key, &object, next);
            return;
        }
        let template = TemplateHash::of(&object["spec"]["template"]);
        let mut sets: Vec<Work> = self
            .sets_of(&key.namespace, &uid)
            .into_iter()
            .map(|(name, set)| {
                let full = (key.namespace.clone(), name.clone());
                let pods: Vec<String> = self
                    .pods
                    .iter()
                    .filter(|((namespace, _), pod)| *namespace == key.namespace && pod.set == name)
                    .map(|((_, name), _)| name.clone())
                    .collect();
                let ready = pods
                    .iter()
                    .filter(|pod| self.pods[&(key.namespace.clone(), (*pod).clone())].ready(self.now));
                Work {
                    hash: self.hashes[&full],
                    wanted: set["spec"]["replicas"].as_i64().unwrap_or(0),
                    available: i64::try_from(ready.count()).expect("few"),
                    object: (*set).clone(),
                    pods,
                    name,
                }
            })
            .collect();
        sets.sort_by_cached_key(|set| {
            (text(&set.object["metadata"]["creationTimestamp"]).to_owned(), set.name.clone())
        });
        let paused = object["spec"]["paused"] == true;
        let has_deadline =
            object["spec"]["progressDeadlineSeconds"].as_i64().is_some_and(|n| n < i64::from(i32::MAX));
        let stamp = self.stamp();
        let mut newest = sets.iter().position(|set| set.hash == template);
        if newest.is_none() && !paused {
            let tag = tag_of(&object["spec"]["template"]);
            if fate(tag) == "denied" {
                if has_deadline {
                    let short = &template.to_string()[..10];
                    let message = format!(
                        "Failed to create new replica set \"{}-{short}\": replicasets.apps \"{}-{short}\" is forbidden: exceeded quota: sets, requested: count/replicasets.apps=1, used: count/replicasets.apps=1, limited: count/replicasets.apps=1",
                        key.name, key.name
                    );
                    set_condition(
                        &mut next["status"],
                        "Progressing",
                        "False",
                        "ReplicaSetCreateError",
                        &message,
                        &stamp,
                    );
                }
                // Tried again a few times, and then dropped.
                let tries = self.denials.entry(key.clone()).or_default();
                *tries += 1;
                let again = *tries < 4;
                self.store(key, &object, next);
                if again {
                    self.dirty.insert(key.clone());
                }
                return;
            }
            sets.push(self.new_set(key, &uid, &object, template));
            newest = Some(sets.len() - 1);
            if has_deadline {
                let name = &sets[sets.len() - 1].name;
                let message = format!("Created new replica set \"{name}\"");
                set_condition(
                    &mut next["status"],
                    "Progressing",
                    "True",
                    "NewReplicaSetCreated",
                    &message,
                    &stamp,
                );
            }
        }
        self.denials.remove(key);
        if let Some(newest) = newest
            && !paused
        {
            let others = sets.iter().enumerate().filter(|(at, _)| *at != newest);
            let highest = others.map(|(_, set)| revision(&set.object)).max().unwrap_or(0);
            if revision(&sets[newest].object) <= highest {
                sets[newest].object["metadata"]["annotations"]["deployment.kubernetes.io/revision"] =
                    json!((highest + 1).to_string());
            }
            let number =
                sets[newest].object["metadata"]["annotations"]["deployment.kubernetes.io/revision"].clone();
            next["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = number;
            if has_deadline && condition(&next["status"], "Progressing").is_none() {
                let message = format!("Found new replica set \"{}\"", sets[newest].name);
                set_condition(
                    &mut next["status"],
                    "Progressing",
                    "True",
                    "FoundNewReplicaSet",
                    &message,
                    &stamp,
                );
            }
        }
        let desired = object["spec"]["replicas"].as_i64().unwrap_or(1);
        let recreate = object["spec"]["strategy"]["type"] == "Recreate";
        scale(&mut sets, newest.filter(|_| !paused), desired, recreate, paused);
        for set in &mut sets {
            self.replicate(key, set);
        }
        self.status(&mut next, &sets, newest, desired, paused, has_deadline);
        if newest.is_some() && !paused && self.is_complete(&next, desired) {
            self.prune(key, &object, &mut sets, newest);
        }
        let mut changed = false;
        for set in sets {
            let full = (key.namespace.clone(), set.name.clone());
            if self.sets.get(&full).is_none_or(|stored| **stored != set.object) {
                changed = true;
                self.sets.insert(full.clone(), Arc::new(set.object));
                self.hashes.insert(full, set.hash);
            }
        }
        self.store(key, &object, next);
        if changed {
            // A ReplicaSet's change has its Deployment looked at again.
            self.dirty.insert(key.clone());
        }
    }

    /// Writes the status, where it is another.
    fn store(&mut self, key: &Key, old: &Value, new: Value) {
        if new != *old {
            self.put(key, new);
        }
        self.dirty.remove(key);
    }

    fn new_set(&mut self, key: &Key, uid: &str, object: &Value, hash: TemplateHash) -> Work {
        let mut template = object["spec"]["template"].clone();
        let short = hash.to_string()[..10].to_owned();
        template["metadata"]["labels"]["pod-template-hash"] = json!(short);
        let name = format!("{}-{short}", key.name);
        let object = json!({
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": name, "namespace": key.namespace, "uid": self.id("set"), "creationTimestamp": self.stamp(),
                "labels": {"app": key.name, "pod-template-hash": short},
                "annotations": {"deployment.kubernetes.io/revision": "0"},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "Deployment", "name": key.name, "uid": uid,
                    "controller": true, "blockOwnerDeletion": true,
                }],
            },
            "spec": {"replicas": 0, "selector": {"matchLabels": {"app": key.name, "pod-template-hash": short}}, "template": template},
            "status": {"replicas": 0},
        });
        if let Some(truth) = self.truths.get_mut(uid) {
            truth.sets.insert(hash);
        }
        Work { name, hash, object, wanted: 0, available: 0, pods: Vec::new() }
    }

    /// Makes as many pods as are wanted.
    fn replicate(&mut self, key: &Key, set: &mut Work) {
        set.object["spec"]["replicas"] = json!(set.wanted);
        let image = text(&set.object["spec"]["template"]["spec"]["containers"][0]["image"]).to_owned();
        let tag = image.rsplit(':').next().unwrap_or_default().to_owned();
        let refused = fate(&tag) == "quota" && set.wanted > 0;
        let wanted = if refused { 0 } else { usize::try_from(set.wanted).expect("not negative") };
        while set.pods.len() < wanted {
            let name = self.id(&set.name);
            let pod = Pod {
                set: set.name.clone(),
                set_uid: text(&set.object["metadata"]["uid"]).to_owned(),
                image: image.clone(),
                created: self.now,
            };
            self.pods.insert((key.namespace.clone(), name.clone()), pod);
            set.pods.push(name);
        }
        let now = self.now;
        while set.pods.len() > wanted {
            let pods = &self.pods;
            let ready = |name: &String| pods[&(key.namespace.clone(), name.clone())].ready(now);
            let at = set.pods.iter().position(|name| !ready(name)).unwrap_or(set.pods.len() - 1);
            let name = set.pods.remove(at);
            self.pods.remove(&(key.namespace.clone(), name));
        }
        let ready = set
            .pods
            .iter()
            .filter(|name| self.pods[&(key.namespace.clone(), (*name).clone())].ready(now))
            .count();
        set.available = i64::try_from(ready).expect("few");
        let conditions = if refused {
            json!([{
                "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
                "message": format!("pods \"{}-x\" is forbidden: exceeded quota: pods, requested: pods=1, used: pods=3, limited: pods=3", set.name),
            }])
        } else {
            json!([])
        };
        set.object["status"] = json!({
            "replicas": set.pods.len(), "availableReplicas": set.available, "readyReplicas": set.available,
            "conditions": conditions,
        });
    }

    fn status(
        &self,
        next: &mut Value,
        sets: &[Work],
        newest: Option<usize>,
        desired: i64,
        paused: bool,
        has_deadline: bool,
    ) {
        let stamp = self.stamp();
        let old = next["status"].clone();
        let number = |status: &Value, field: &str| status[field].as_i64().unwrap_or(0);
        let total: i64 = sets.iter().map(|set| set.pods.len() as i64).sum();
        let available: i64 = sets.iter().map(|set| set.available).sum();
        let updated = newest.map_or(0, |at| sets[at].pods.len() as i64);
        next["status"]["observedGeneration"] = next["metadata"]["generation"].clone();
        let status = &mut next["status"];
        status["replicas"] = json!(total);
        status["updatedReplicas"] = json!(updated);
        status["availableReplicas"] = json!(available);
        status["readyReplicas"] = json!(available);
        let failing = sets.iter().find_map(|set| condition(&set.object["status"], "ReplicaFailure"));
        match failing {
            Some(failing) => {
                let (reason, message) =
                    (text(&failing["reason"]).to_owned(), text(&failing["message"]).to_owned());
                set_condition(status, "ReplicaFailure", "True", &reason, &message, &stamp);
            }
            None => {
                if let Some(conditions) = status["conditions"].as_array_mut() {
                    conditions.retain(|c| c["type"] != "ReplicaFailure");
                }
            }
        }
        if !has_deadline {
            return;
        }
        let reason =
            condition(status, "Progressing").map(|c| text(&c["reason"]).to_owned()).unwrap_or_default();
        if paused {
            if reason != "DeploymentPaused" && reason != "ProgressDeadlineExceeded" {
                set_condition(
                    status,
                    "Progressing",
                    "Unknown",
                    "DeploymentPaused",
                    "Deployment is paused",
                    &stamp,
                );
            }
            return;
        }
        if reason == "DeploymentPaused" {
            set_condition(
                status,
                "Progressing",
                "Unknown",
                "DeploymentResumed",
                "Deployment is resumed",
                &stamp,
            );
        }
        let complete = updated == desired && total == desired && available == desired;
        let name = newest.map(|at| sets[at].name.clone());
        let named = name.as_ref().map_or_else(
            || format!("Deployment \"{}\"", text(&next["metadata"]["name"])),
            |name| format!("ReplicaSet \"{name}\""),
        );
        let status = &mut next["status"];
        if total == updated && reason == "NewReplicaSetAvailable" {
            return;
        }
        let progressed = updated > number(&old, "updatedReplicas")
            || total - updated < number(&old, "replicas") - number(&old, "updatedReplicas")
            || available > number(&old, "availableReplicas");
        if complete {
            let message = format!("{named} has successfully progressed.");
            set_condition(status, "Progressing", "True", "NewReplicaSetAvailable", &message, &stamp);
        } else if progressed {
            let message = format!("{named} is progressing.");
            set_condition(status, "Progressing", "True", "ReplicaSetUpdated", &message, &stamp);
        } else {
            let progressing = condition(status, "Progressing");
            let since: Option<Timestamp> =
                progressing.as_ref().and_then(|c| text(&c["lastUpdateTime"]).parse().ok());
            let deadline = next["spec"]["progressDeadlineSeconds"].as_i64().unwrap_or(600);
            let reason = progressing.map(|c| text(&c["reason"]).to_owned()).unwrap_or_default();
            let over = since.is_some_and(|since| self.now > since + secs(deadline));
            if over && reason != "NewReplicaSetAvailable" && reason != "ProgressDeadlineExceeded" {
                let message = format!("{named} has timed out progressing.");
                let status = &mut next["status"];
                set_condition(status, "Progressing", "False", "ProgressDeadlineExceeded", &message, &stamp);
            }
        }
    }

    fn is_complete(&self, object: &Value, desired: i64) -> bool {
        ["updatedReplicas", "replicas", "availableReplicas"]
            .iter()
            .all(|count| object["status"][count].as_i64().unwrap_or(0) == desired)
    }

    /// Deletes old ReplicaSets without pods beyond the limit.
    fn prune(&mut self, key: &Key, object: &Value, sets: &mut Vec<Work>, newest: Option<usize>) {
        let limit =
            usize::try_from(object["spec"]["revisionHistoryLimit"].as_i64().unwrap_or(10)).expect("a limit");
        let newest = newest.map(|at| sets[at].name.clone());
        let mut old: Vec<(i64, String)> = sets
            .iter()
            .filter(|set| Some(&set.name) != newest.as_ref() && set.wanted == 0 && set.pods.is_empty())
            .map(|set| (revision(&set.object), set.name.clone()))
            .collect();
        old.sort();
        let over = old.len().saturating_sub(limit);
        for (_, name) in old.into_iter().take(over) {
            let full = (key.namespace.clone(), name.clone());
            self.sets.remove(&full);
            self.hashes.remove(&full);
            sets.retain(|set| set.name != name);
        }
    }

    /// Puts a ReplicaSet with the labels of a Deployment there that is not its own.
    pub fn plant_set(&mut self, key: &Key, tag: &str) {
        let Some(object) = self.deployments.get(key).cloned() else { return };
        let template = super::template(&key.name, tag);
        let hash = TemplateHash::of(&template);
        let mut planted = (*object).clone();
        planted["spec"]["template"] = template;
        let mut set = self.new_set(key, "somebody", &planted, hash);
        set.object["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = json!("99");
        set.object["status"]["availableReplicas"] = json!(5);
        let full = (key.namespace.clone(), set.name.clone());
        if !self.sets.contains_key(&full) {
            debug_assert_eq!(owner(&set.object), "somebody");
            self.sets.insert(full.clone(), Arc::new(set.object));
            self.hashes.insert(full, hash);
        }
    }
}

/// How many replicas each ReplicaSet is to have: one more than desired at the most, never fewer available.
fn scale(sets: &mut [Work], newest: Option<usize>, desired: i64, recreate: bool, paused: bool) {
    let Some(newest) = newest else {
        // Paused: what is there alone is scaled.
        let active: Vec<usize> =
            sets.iter().enumerate().filter(|(_, set)| set.wanted > 0).map(|(at, _)| at).collect();
        if paused && let [only] = active[..] {
            sets[only].wanted = desired;
        }
        return;
    };
    let old = |at: &usize| *at != newest;
    if recreate {
        let mut left = false;
        for at in (0..sets.len()).filter(old) {
            sets[at].wanted = 0;
            left |= !sets[at].pods.is_empty();
        }
        if !left {
            sets[newest].wanted = desired;
        }
        return;
    }
    let total: i64 = sets.iter().map(|set| set.wanted).sum();
    if sets[newest].wanted > desired {
        sets[newest].wanted = desired;
    } else {
        let room = (desired + 1 - total).max(0);
        sets[newest].wanted += room.min(desired - sets[newest].wanted);
    }
    let total: i64 = sets.iter().map(|set| set.wanted).sum();
    let unavailable = (sets[newest].wanted - sets[newest].available).max(0);
    let mut most = total - desired - unavailable;
    for at in (0..sets.len()).filter(old) {
        let unhealthy = (sets[at].wanted - sets[at].available).clamp(0, most.max(0));
        sets[at].wanted -= unhealthy;
        most -= unhealthy;
    }
    let available: i64 = sets.iter().map(|set| set.available).sum();
    let mut surplus = available - desired;
    for at in (0..sets.len()).filter(old) {
        let away = sets[at].wanted.min(surplus.max(0));
        sets[at].wanted -= away;
        surplus -= away;
    }
}

pub fn condition(status: &Value, kind: &str) -> Option<Value> {
    status["conditions"].as_array()?.iter().find(|c| c["type"] == kind).cloned()
}

fn set_condition(status: &mut Value, kind: &str, word: &str, reason: &str, message: &str, stamp: &str) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let conditions = status["conditions"].as_array_mut().expect("a list");
    let old = conditions.iter().position(|c| c["type"] == kind).map(|at| conditions.remove(at));
    if let Some(old) = &old
        && old["status"] == word
        && old["reason"] == reason
    {
        // As it was: `SetDeploymentCondition` leaves it alone.
        if reason != "ReplicaSetUpdated" {
            conditions.push(old.clone());
            return;
        }
    }
    let transition =
        old.filter(|old| old["status"] == word).map_or(json!(stamp), |old| old["lastTransitionTime"].clone());
    conditions.push(json!({
        "type": kind, "status": word, "reason": reason, "message": message,
        "lastUpdateTime": stamp, "lastTransitionTime": transition,
    }));
}
