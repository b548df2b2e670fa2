//! `rollout-guard judge`: the webhook's verdict on a review, offline.

use std::{io::Read, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, bail};
use clap::Args;
use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::Output;
use crate::{
    api::{policy::RolloutPolicySpec, record::RolloutRecord},
    cluster::{
        ClusterError,
        access::{Access, User},
        announcements::Announcements,
        records::StoredRecord,
    },
    core::{
        key::Key,
        message::DOCS,
        policy::{Labels, PolicySet, compile},
    },
    telemetry::Metrics,
    webhook::{
        judge::{Judge, Outcome},
        review::{self, Request},
    },
    world::World,
};

/// Says what the webhook would answer to a review, without a cluster.
///
/// Exit status: 0 allowed, 1 denied or told to wait, 2 bad input.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rollout-guard judge -f review.json
  rollout-guard judge -f review.json --policy policy.yaml --at 2026-11-21T12:00:00Z
  kubectl -n shop get rolloutrecord deployment-web -o yaml | rollout-guard judge -f review.json --record -
  kubectl get --raw /audit | rollout-guard judge -f - -o json")]
pub struct JudgeArgs {
    /// The AdmissionReview (admission.k8s.io/v1) as JSON; - reads standard input.
    #[arg(long, short = 'f', value_name = "FILE")]
    filename: PathBuf,

    /// RolloutPolicies as YAML, several in one file or by several flags. Without any: one with all defaults.
    #[arg(long, value_name = "FILE")]
    policy: Vec<PathBuf>,

    /// The RolloutRecord of the review's Deployment as YAML or JSON: what is known to be good or bad. Without it: nothing.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,

    /// Labels of the review's namespace, as key=value, for policies with a namespaceSelector.
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    namespace_labels: Vec<String>,

    /// The time to judge at, for freezes and waits (RFC 3339). Without it: now.
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,

    /// Take for granted that the review's user may override.
    #[arg(long)]
    may_override: bool,

    /// How to print the verdict.
    #[arg(long, short = 'o', value_enum, default_value_t)]
    output: Output,
}

/// Offline nobody can be asked, so the flag says.
struct Granted(bool);

impl Access for Granted {
    fn may_override<'a>(&'a self, _: &'a User, _: &'a str) -> BoxFuture<'a, Result<bool, ClusterError>> {
        futures::future::ready(Ok(self.0)).boxed()
    }
}

/// Offline nothing is written.
impl Announcements for Granted {
    fn retract<'a>(&'a self, _: &'a Key, _: &'a str) -> BoxFuture<'a, Result<(), ClusterError>> {
        futures::future::ready(Ok(())).boxed()
    }
}

impl JudgeArgs {
    /// Judges and prints.
    ///
    /// # Errors
    /// When the review, a policy or the record cannot be read, or the record is of another Deployment.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let stdin = |path: &PathBuf| path.as_os_str() == "-";
        if self.policy.iter().chain(&self.record).chain([&self.filename]).filter(|path| stdin(path)).count()
            > 1
        {
            bail!("standard input can be read once: want - for one file only");
        }
        let body = read(&self.filename)?;
        let request = review::parse(&body).with_context(|| self.filename.display().to_string())?;
        // The installation's own namespace is not known offline; the system's are.
        let world = World::new("");
        world.set_policies(self.policies()?);
        world.set_namespace(&request.namespace.0, Some(self.labels(&request.namespace.0)?));
        if let Some(path) = &self.record {
            let record = record(&read(path)?, &request).with_context(|| path.display().to_string())?;
            world.learn_record(&record);
        }
        let judge = Judge {
            world,
            access: Arc::new(Granted(self.may_override)),
            announcements: Arc::new(Granted(false)),
            metrics: Metrics::default(),
            docs: DOCS.into(),
        };
        let now = self.at.unwrap_or_else(Timestamp::now);
        let (response, outcome) = judge
            .validate_with_outcome(&request, now)
            .await
            .with_context(|| self.filename.display().to_string())?;
        match self.output {
            Output::Json => {
                let printed = json!({
                    "allowed": response.allowed,
                    "verdict": outcome.as_ref().map_or("allow", |o| o.verdict),
                    "reason": outcome.as_ref().map_or("none", |o| o.reason),
                    "because": outcome.as_ref().map_or(Some("not-guarded"), |o| o.allowed_because),
                    "policy": outcome.as_ref().and_then(|o| o.policy.clone()),
                    "code": response.status.as_ref().map(|s| s.code),
                    "retryAfterSeconds": response.status.as_ref().and_then(|s| s.details.retry_after_seconds),
                    "message": outcome.as_ref().and_then(|o| o.message.as_ref()).map(|m| m.text.clone()),
                    "warnings": response.warnings,
                });
                println!("{}", serde_json::to_string_pretty(&printed)?);
            }
            Output::Text => print_text(response.status.as_ref(), outcome.as_ref()),
        }
        Ok(ExitCode::from(u8::from(!response.allowed)))
    }

    fn policies(&self) -> anyhow::Result<PolicySet> {
        #[derive(Deserialize)]
        struct Document {
            #[serde(default)]
            kind: String,
            #[serde(default)]
            metadata: Metadata,
            #[serde(default)]
            spec: RolloutPolicySpec,
        }
        #[derive(Default, Deserialize)]
        struct Metadata {
            #[serde(default)]
            name: String,
        }
        let mut policies = Vec::new();
        for path in &self.policy {
            let shown = path.display();
            let text = String::from_utf8(read(path)?).with_context(|| format!("{shown}: not UTF-8"))?;
            for document in serde_yaml_ng::Deserializer::from_str(&text) {
                // kubectl warns of a field that is none; here nobody else would.
                let mut unknown = Vec::new();
                let document: Option<Document> =
                    serde_ignored::deserialize(document, |path| unknown.push(path.to_string()))
                        .with_context(|| shown.to_string())?;
                if let Some(path) = unknown.iter().map(|path| path.trim_start_matches("?.")).find(is_of_spec)
                {
                    bail!("{shown}: there is no field {path}");
                }
                // An empty document, as between two `---`.
                let Some(document) = document else { continue };
                if document.kind != "RolloutPolicy" {
                    bail!("{shown}: want kind RolloutPolicy, got {:?}", document.kind);
                }
                let name = &document.metadata.name;
                let policy = compile(name, 1, &document.spec)
                    .with_context(|| format!("{shown}: RolloutPolicy {name:?}"))?;
                policies.push(Arc::new(policy));
            }
            if policies.is_empty() {
                bail!("{shown}: holds no RolloutPolicy");
            }
        }
        if policies.is_empty() {
            policies.push(Arc::new(compile("default", 1, &RolloutPolicySpec::default())?));
        }
        Ok(PolicySet::new(policies))
    }

    fn labels(&self, namespace: &str) -> anyhow::Result<Labels> {
        let mut labels = Labels::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]);
        for pair in &self.namespace_labels {
            let (key, value) = pair
                .split_once('=')
                .with_context(|| format!("--namespace-labels {pair:?}: want key=value"))?;
            labels.insert(key.to_owned(), value.to_owned());
        }
        Ok(labels)
    }
}

/// Reads the record of the Deployment that `request` is about.
fn record(text: &[u8], request: &Request<'_>) -> anyhow::Result<StoredRecord> {
    let text = str::from_utf8(text).context("not UTF-8")?;
    let value: serde_json::Value = serde_yaml_ng::from_str(text)?;
    let kind = value["kind"].as_str().unwrap_or_default();
    if kind != "RolloutRecord" {
        bail!("want kind RolloutRecord, got {kind:?}");
    }
    // The guard takes what it cannot read for nothing; a person wants to know.
    let _: RolloutRecord = serde_json::from_value(value.clone()).context("not a RolloutRecord")?;
    let record = StoredRecord::read(value);
    let key = Key::new(&*request.namespace.0, &*request.name.0);
    let uid = request.old_object().map(|old| old.uid()).unwrap_or_default();
    if !record.is_of(&key, uid) {
        let StoredRecord { namespace, target, owner_uid, .. } = &record;
        let owner = if owner_uid.is_empty() { "nothing".to_owned() } else { format!("uid {owner_uid}") };
        bail!(
            "is the record of {namespace}/{} with uid {}, owned by {owner}; the review is about {key} with uid {uid}",
            target.name,
            target.uid,
        );
    }
    Ok(record)
}

/// Of the metadata only the name is read; all of the spec is.
fn is_of_spec(path: &&str) -> bool {
    path.starts_with("spec.")
}

fn read(path: &PathBuf) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    if path.as_os_str() == "-" {
        let mut body = Vec::new();
        std::io::stdin().read_to_end(&mut body).context("standard input")?;
        return Ok(body);
    }
    std::fs::read(path).with_context(|| format!("cannot read {shown}"))
}

fn print_text(status: Option<&review::RefusalStatus>, outcome: Option<&Outcome>) {
    let Some(outcome) = outcome else {
        println!("allow: not an update of a Deployment");
        return;
    };
    let policy = outcome.policy.as_deref().unwrap_or("none");
    let because = outcome.allowed_because.map(|why| format!(" ({why})")).unwrap_or_default();
    let retry = status.and_then(|s| s.details.retry_after_seconds);
    let retry = retry.map(|s| format!(", retry after {s} s")).unwrap_or_default();
    let code = status.map(|s| format!(", {}", s.code)).unwrap_or_default();
    println!("{}{because}: policy {policy}{code}{retry}", outcome.verdict);
    if let Some(message) = &outcome.message {
        println!("{}", message.text);
    }
}
