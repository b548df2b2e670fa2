//! What policies would have done with an update: the webhook's own judge, with what the log tells in place of a cluster.

use std::{collections::HashSet, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::{
    api::record::{RecordRevision, RolloutRecordStatus, TargetRef, Verdict},
    cluster::{
        ClusterError,
        access::{Access, User},
        announcements::Announcements,
        records::{self, StoredRecord},
    },
    core::{
        key::Key,
        message::DOCS,
        policy::{Labels, PolicySet},
        replay::{Objects, Unknown, Update},
    },
    telemetry::Metrics,
    webhook::{
        judge::{Judge, Outcome},
        review,
    },
    world::World,
};

/// The name of the guard's ServiceAccount, as the chart calls it.
const ACCOUNT: &str = "rollout-guard";

/// The most namespaces whose labels are learned from the log.
const MOST_NAMESPACES: usize = 50_000;

/// The longest name of a namespace.
const LONGEST_NAMESPACE: usize = 63;

/// Policies on trial.
pub(super) struct Trial {
    judge: Judge,
    by_namespace_labels: bool,
    known: HashSet<String>,
    assumed: HashSet<String>,
}

/// What would have become of an update.
pub(super) struct Row<'a> {
    /// The update.
    pub update: &'a Update,
    /// What the judge says.
    pub judged: Judged,
}

/// What the judge says.
#[derive(Debug)]
pub(super) enum Judged {
    /// This.
    Outcome(Outcome),
    /// Nothing, as the guard itself wrote it.
    Own,
    /// Nothing, as it cannot know.
    Unknown(Unknown),
}

/// In a log nobody can be asked: whoever asks for an override is taken for one who may.
struct Offline;

impl Access for Offline {
    fn may_override<'a>(&'a self, _: &'a User, _: &'a str) -> BoxFuture<'a, Result<bool, ClusterError>> {
        futures::future::ready(Ok(true)).boxed()
    }
}

impl Announcements for Offline {
    fn retract<'a>(&'a self, _: &'a Key, _: &'a str) -> BoxFuture<'a, Result<(), ClusterError>> {
        futures::future::ready(Ok(())).boxed()
    }
}

impl Trial {
    /// Returns a trial of `policies` for a guard that runs in `own_namespace`.
    pub fn new(policies: PolicySet, own_namespace: &str) -> Self {
        let by_namespace_labels = policies.ranked().iter().any(|policy| !policy.namespaces.selects_all());
        let world = World::running_as(own_namespace, ACCOUNT);
        world.set_policies(policies);
        let judge = Judge {
            world,
            access: Arc::new(Offline),
            announcements: Arc::new(Offline),
            metrics: Metrics::default(),
            docs: DOCS.into(),
        };
        Self { judge, by_namespace_labels, known: HashSet::new(), assumed: HashSet::new() }
    }

    /// Takes the labels of namespaces for granted; the log may change them.
    pub fn learn_namespaces(&mut self, namespaces: &[(String, Labels)]) {
        for (name, labels) in namespaces {
            self.namespace(name, Some(labels.clone()));
        }
    }

    /// Learns the labels of a namespace, or that it is gone.
    pub fn namespace(&mut self, name: &str, labels: Option<Labels>) {
        if name.len() > LONGEST_NAMESPACE {
            return;
        }
        if labels.is_none() {
            self.known.remove(name);
        } else if self.known.len() < MOST_NAMESPACES {
            self.known.insert(name.to_owned());
        } else if !self.known.contains(name) {
            return;
        }
        self.judge.world.set_namespace(name, labels);
    }

    /// Returns how many namespaces there were of which the labels mattered and were not known.
    pub fn assumed_namespaces(&self) -> usize {
        self.assumed.len()
    }

    /// Judges an update.
    pub async fn judge<'a>(&mut self, update: &'a Update) -> Row<'a> {
        let judged = if self.judge.world.own_user() == Some(&update.user) {
            Judged::Own
        } else {
            match &update.objects {
                Ok(objects) => self.outcome(update, objects).await,
                Err(why) => Judged::Unknown(*why),
            }
        };
        Row { update, judged }
    }

    async fn outcome(&mut self, update: &Update, objects: &Objects) -> Judged {
        let namespace = &update.key.namespace;
        if self.by_namespace_labels
            && !self.known.contains(namespace)
            && self.assumed.len() < MOST_NAMESPACES
            && namespace.len() <= LONGEST_NAMESPACE
        {
            self.assumed.insert(namespace.clone());
        }
        if let Some(record) = self.record(update, objects) {
            self.judge.world.learn_record(&record);
        }
        let review = review_of(update, objects).to_string();
        let judged = match review::parse(review.as_bytes()) {
            Ok(request) => self.judge.validate_with_outcome(&request, update.at).await,
            Err(error) => Err(error),
        };
        self.judge.world.forget_record(namespace, &records::name(&update.key.name));
        match judged {
            Ok((_, Some(outcome))) => Judged::Outcome(outcome),
            Ok((_, None)) | Err(_) => Judged::Unknown(Unknown::Unreadable),
        }
    }

    /// Returns the record that the guard would have: of the templates that were good by then, as far as the log tells.
    fn record(&self, update: &Update, objects: &Objects) -> Option<StoredRecord> {
        let Objects { before, complete, .. } = objects;
        if complete.is_empty() {
            return None;
        }
        let Key { namespace, name } = &update.key;
        let labels = || serde_json::from_value(before["metadata"]["labels"].clone()).unwrap_or_default();
        let policy = self.judge.world.effective(namespace, labels)?;
        let good_after =
            SignedDuration::try_from(policy.watch.good_after.get()).unwrap_or(SignedDuration::MAX);
        let good = complete.iter().rev().filter(|(_, span)| *span >= good_after);
        let revisions = good.map(|(template, _)| RecordRevision {
            template_hash: template.to_string(),
            verdict: Verdict::Good,
            since: Some(Time(update.at)),
            ..RecordRevision::default()
        });
        let uid = before["metadata"]["uid"].as_str()?;
        Some(StoredRecord {
            namespace: namespace.clone(),
            name: records::name(name),
            target: TargetRef { name: name.clone(), uid: uid.to_owned(), ..TargetRef::default() },
            owner_uid: uid.to_owned(),
            status: RolloutRecordStatus { revisions: revisions.collect(), ..RolloutRecordStatus::default() },
            ..StoredRecord::default()
        })
    }
}

/// Returns the review that the API server would have sent.
fn review_of(update: &Update, objects: &Objects) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "replay",
            "resource": {"group": "apps", "version": "v1", "resource": "deployments"},
            "namespace": update.key.namespace,
            "name": update.key.name,
            "operation": "UPDATE",
            "userInfo": {"username": update.user, "groups": update.groups},
            "object": objects.after,
            "oldObject": objects.before,
            "dryRun": update.dry_run,
        },
    })
}
