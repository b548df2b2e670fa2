//! RolloutRecords: what the watcher found out and did, and how long it took from the push.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Run, Scenario, cluster,
    policy::InForce,
    scenario::{condition, is_unobserved},
    seconds,
    wait::holds,
    wait_until,
};

/// Times under which a scenario ends soon.
pub fn short() -> Value {
    json!({
        "watch": {"earlyFailureAfter": "2s", "goodAfter": "1s", "unobservedAfter": "5s"},
        "rollback": {"announceFor": "10s"},
    })
}

/// As long as what is held is watched: three times `earlyFailureAfter` of [`short`], and long enough for a kubelet to go on
/// from one reason for a pull that fails to the next.
const HELD: Duration = seconds(6);

/// Longer than `goodAfter` of [`short`] by the second that Kubernetes' times are cut to, and one for the watcher.
const GOOD: Duration = seconds(3);

impl Scenario {
    /// Puts a policy with short times in force.
    pub fn short_policy(&self) -> InForce {
        self.put_in_force("short", short())
    }

    /// Creates a Deployment and waits until its revision is known to be good under a policy with short times.
    pub fn create_good(&self, deployment: &Value) {
        self.create_complete(deployment);
        self.becomes_good(deployment["metadata"]["name"].as_str().unwrap_or_default());
    }

    /// Waits until the current revision of a Deployment is good under a policy with short times.
    #[track_caller]
    pub fn becomes_good(&self, name: &str) {
        self.is_complete_for(name, GOOD);
    }

    /// Waits until a Deployment has been complete for `time`, by the times that Kubernetes tells.
    #[track_caller]
    pub fn is_complete_for(&self, name: &str, time: Duration) {
        wait_until(&format!("{name} is complete for {} s", time.as_secs()), time + seconds(60), || {
            let deployment = self.deployment(name);
            let complete = is_complete(&deployment) && unchanged_for(&deployment) >= time;
            holds(complete, deployment["status"].to_string())
        });
    }

    /// Waits until the current generation of a Deployment is complete by its counts: over a generation that has failed,
    /// `kubectl rollout status` fails at times, as the new one has the condition of a passed deadline for a moment.
    #[track_caller]
    pub fn recovers(&self, name: &str) {
        self.wait_for(&format!("{name} is complete again"), name, is_complete);
    }

    /// Returns the record of a Deployment; null where there is none.
    pub fn record(&self, name: &str) -> Value {
        let selector = format!("metadata.name=deployment-{name}");
        let list = self.json(["get", "rolloutrecords.rollout-guard.io", "--field-selector", &selector]);
        list["items"][0].clone()
    }

    /// Waits until the record of a Deployment is as `is` wants it, and returns it.
    #[track_caller]
    pub fn wait_for_record(&self, what: &str, name: &str, is: impl Fn(&Value) -> bool) -> Value {
        self.wait_for_record_within(seconds(60), what, name, is)
    }

    #[track_caller]
    pub fn wait_for_record_within(
        &self,
        limit: Duration,
        what: &str,
        name: &str,
        is: impl Fn(&Value) -> bool,
    ) -> Value {
        wait_until(what, limit, || {
            let record = self.record(name);
            holds(is(&record), record["status"].to_string()).map(|()| record)
        })
    }

    /// Returns the guard's events about a Deployment.
    pub fn events(&self, name: &str, reason: &str) -> Vec<Value> {
        let about = format!("involvedObject.kind=Deployment,involvedObject.name={name},reason={reason}");
        let list = self.json(["get", "events", "--field-selector", &about]);
        let ours = |event: &Value| {
            event["source"]["component"] == "rollout-guard" || event["reportingComponent"] == "rollout-guard"
        };
        list["items"].as_array().into_iter().flatten().filter(|event| ours(event)).cloned().collect()
    }

    /// Waits for the guard's event of `reason`, says that it was told once, and returns its words.
    #[track_caller]
    pub fn is_told_once(&self, name: &str, reason: &str) -> String {
        let events = wait_until(&format!("the event {reason}"), seconds(20), || {
            let events = self.events(name, reason);
            holds(!events.is_empty(), "no such event").map(|()| events)
        });
        let told: u64 = events.iter().map(times).sum();
        assert_eq!(told, 1, "told {told} times: {events:?}");
        events[0]["message"].as_str().unwrap_or_default().to_owned()
    }

    /// Returns what the guard has told more than once in the scenario's namespace: the same of the same Deployment.
    pub fn told_again(&self) -> Vec<String> {
        let list = self.json(["get", "events"]);
        let ours = |event: &&Value| event["source"]["component"] == "rollout-guard";
        let mut told = BTreeMap::<String, u64>::new();
        for event in list["items"].as_array().into_iter().flatten().filter(ours) {
            let what = [&event["involvedObject"]["uid"], &event["reason"], &event["message"]];
            *told.entry(what.map(Value::to_string).join(" ")).or_default() += times(event);
        }
        told.into_iter()
            .filter(|(_, count)| *count > 1)
            .map(|(what, count)| format!("{count} times {what}"))
            .collect()
    }

    /// Waits until the announcement of a rollback is gone from the Deployment's status.
    #[track_caller]
    pub fn announcement_ends(&self, name: &str) {
        self.wait_for("the announcement is gone", name, |d| !is_announced(d));
    }

    /// Starts the clock of a push, with what is there before as what is good.
    pub fn about_to_push(&self, name: &str) -> Pushed<'_> {
        // The time that the look takes is not the push's.
        let good = self.deployment(name);
        Pushed { s: self, name: name.to_owned(), good, at: Instant::now(), limit: seconds(60) }
    }

    /// Sends a strategic merge patch that must be accepted, and starts its clock.
    #[track_caller]
    pub fn pushes(&self, name: &str, patch: &Value) -> Pushed<'_> {
        let pushed = self.about_to_push(name);
        self.patch(name, patch).done().succeeds();
        pushed
    }

    /// Returns the command that sends a strategic merge patch.
    pub fn patch(&self, name: &str, patch: &Value) -> Run {
        self.kubectl(["patch", "deployment", name, "--type=strategic", "-p", &patch.to_string()])
    }
}

/// A push, the time since it, and what was there before.
pub struct Pushed<'a> {
    s: &'a Scenario,
    name: String,
    /// The Deployment before the push; null where there was none.
    pub good: Value,
    at: Instant,
    limit: Duration,
}

impl<'a> Pushed<'a> {
    /// A push that creates the Deployment.
    pub fn first(s: &'a Scenario, name: &str) -> Self {
        Self { s, name: name.to_owned(), good: Value::Null, at: Instant::now(), limit: seconds(60) }
    }

    /// Allows more time than a minute.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts the clock anew: what was said counts from now.
    pub fn counted_from_now(mut self) -> Self {
        self.at = Instant::now();
        self
    }

    fn says(&self, what: &str, took: Duration, cause: &str) {
        self.s.say(&format!("push to {what}: {}: {:.1} s, cause {cause}", self.s.name, took.as_secs_f64()));
    }

    /// Waits until what was there before is back, observed and complete, prints the seconds, and says that this
    /// was one rollback for `cause` that the record, the conditions and the events tell of. Returns the record.
    #[track_caller]
    pub fn is_safe(&self, cause: &str) -> Value {
        let (s, name) = (self.s, self.name.as_str());
        let deployment = wait_until(&format!("{name} is safe"), self.limit, || {
            let deployment = s.deployment(name);
            let back =
                same_template(&deployment, &self.good) && generation(&deployment) > generation(&self.good);
            holds(back && is_complete(&deployment), deployment["status"].to_string()).map(|()| deployment)
        });
        self.says("safe", self.at.elapsed(), cause);
        let record = s.wait_for_record("the rollback is verified", name, |r| outcome(r) == "Succeeded");
        let rollback = &record["status"]["rollback"];
        assert_eq!(rollback["cause"], cause, "{rollback}");
        assert!(has_words(&rollback["message"]), "{rollback}");
        // One write, and nobody has written since.
        let restored = rollback["fromGeneration"].as_i64().map(|from| from + 1);
        assert_eq!(restored, rollback["generation"].as_i64(), "{rollback}");
        assert_eq!(restored, Some(generation(&deployment)), "{rollback}");
        assert_eq!(generation(&s.deployment(name)), generation(&deployment), "written after the rollback");
        let (from, to) = (revision(&record, &rollback["from"]), revision(&record, &rollback["to"]));
        assert_eq!((&from["verdict"], &from["reason"]), (&json!("Bad"), &json!(cause)), "{record}");
        assert_eq!(to["verdict"], "Good", "{record}");
        let told = condition(&record, "RolledBack");
        assert_eq!((&told["status"], &told["reason"]), (&json!("True"), &json!("Succeeded")), "{told}");
        for reason in ["RolledBack", "RollbackVerified"] {
            assert!(!s.is_told_once(name, reason).is_empty(), "{reason} without words");
        }
        record
    }

    /// Waits until the record says that the push is held for `cause`, prints the seconds, and says that nothing
    /// was written, then or in the seconds after that. Returns the words of the condition.
    #[track_caller]
    pub fn is_held(&self, cause: &str) -> String {
        let (s, name) = (self.s, self.name.as_str());
        let is = |record: &Value| {
            let stalled = condition(record, "Stalled");
            // A deadline may pass before the kubelet says why.
            let why = record["status"]["cause"]["type"] == cause;
            stalled["status"] == "True" && stalled["reason"] == "Held" && why
        };
        s.wait_for_record_within(self.limit, &format!("{name} is held"), name, is);
        self.says("held", self.at.elapsed(), cause);
        let record = wait_until(&format!("{name} stays held"), self.limit, || {
            let record = s.record(name);
            assert!(is(&record), "not held any more: {}", record["status"]);
            assert!(!same_template(&s.deployment(name), &self.good), "held, and yet put back: {record}");
            let since =
                condition(&record, "Stalled")["lastTransitionTime"].as_str().and_then(|at| at.parse().ok());
            let held =
                since.and_then(|since| Duration::try_from(Timestamp::now().duration_since(since)).ok());
            holds(held >= Some(HELD), format!("for {held:?}")).map(|()| record)
        });
        let status = &record["status"];
        assert!(has_words(&status["cause"]["message"]), "{status}");
        self.is_untouched(&record);
        let words = condition(&record, "Stalled")["message"].as_str().unwrap_or_default().to_owned();
        assert!(!words.is_empty(), "held without saying why: {status}");
        assert!(!s.is_told_once(name, "RollbackHeld").is_empty(), "RollbackHeld without words");
        words
    }

    /// Says that the push still stands as it was sent, and that no record speaks of a rollback.
    #[track_caller]
    pub fn is_untouched(&self, record: &Value) {
        let deployment = self.s.deployment(&self.name);
        assert!(!same_template(&deployment, &self.good), "put back: {deployment}");
        assert_eq!(deployment["spec"]["paused"].as_bool(), self.good["spec"]["paused"].as_bool());
        let status = &record["status"];
        assert!(status["rollback"].is_null(), "{status}");
        let current = revision(record, &status["templateHash"]);
        assert_ne!(current["verdict"], "Bad", "{status}");
        assert!(!is_announced(&deployment), "{}", deployment["status"]);
        assert!(self.s.events(&self.name, "RolledBack").is_empty(), "told of a rollback");
        let wrote = deployment["metadata"]["managedFields"].as_array().into_iter().flatten();
        let wrote =
            wrote.filter(|entry| entry["manager"] == "rollout-guard" && entry["subresource"].is_null());
        assert_eq!(wrote.count(), 0, "{deployment}");
    }
}

/// Whether all replicas are of the current generation and available, and no other is there.
pub fn is_complete(deployment: &Value) -> bool {
    let status = &deployment["status"];
    let count = |field: &str| status[field].as_i64().unwrap_or_default();
    let all = ["updatedReplicas", "replicas", "availableReplicas"];
    !is_unobserved(deployment)
        && all.iter().all(|field| Some(count(field)) == deployment["spec"]["replicas"].as_i64())
}

/// Whether the Deployment's status says that its push was rolled back.
pub fn is_announced(deployment: &Value) -> bool {
    let stalled = condition(deployment, "Stalled");
    stalled["status"] == "True" && stalled["reason"] == "RolledBack"
}

pub fn same_template(one: &Value, other: &Value) -> bool {
    one["spec"]["template"] == other["spec"]["template"]
}

/// What became of the last rollback; empty where there was none.
pub fn outcome(record: &Value) -> &str {
    record["status"]["rollback"]["outcome"].as_str().unwrap_or_default()
}

/// Returns what a record knows of a template; null where it knows nothing.
pub fn revision<'a>(record: &'a Value, hash: &Value) -> &'a Value {
    let mut revisions = record["status"]["revisions"].as_array().into_iter().flatten();
    revisions.find(|revision| revision["templateHash"] == *hash).unwrap_or(&Value::Null)
}

/// What is known of the current template.
pub fn verdict(record: &Value) -> &str {
    revision(record, &record["status"]["templateHash"])["verdict"].as_str().unwrap_or_default()
}

pub fn generation(object: &Value) -> i64 {
    object["metadata"]["generation"].as_i64().unwrap_or_default()
}

fn has_words(text: &Value) -> bool {
    text.as_str().is_some_and(|text| !text.is_empty())
}

/// How often an event was seen.
fn times(event: &Value) -> u64 {
    let counts = [&event["series"]["count"], &event["count"]];
    counts.into_iter().find_map(Value::as_u64).unwrap_or(1)
}

/// The time since Kubernetes last said anything new about a Deployment.
pub fn unchanged_for(deployment: &Value) -> Duration {
    let said = ["Available", "Progressing"].map(|kind| condition(deployment, kind));
    let times = said.iter().flat_map(|c| [&c["lastUpdateTime"], &c["lastTransitionTime"]]);
    let last = times.filter_map(|time| time.as_str()?.parse::<Timestamp>().ok()).max();
    last.and_then(|last| Duration::try_from(Timestamp::now().duration_since(last)).ok()).unwrap_or_default()
}

/// Where one replica answers reviews.
fn webhook_of(pod: &str) -> Result<String, String> {
    let pod = cluster::json(["get", "pod", pod, "-n", "rollout-guard"])?;
    Ok(format!("https://{}:8443/validate", pod["status"]["podIP"].as_str().unwrap_or_default()))
}

/// The guard's answer to a review, from one replica: asked from the node, as the API server would.
pub fn judged_by(pod: &str, review: &Value) -> Result<Value, String> {
    let url = webhook_of(pod)?;
    let (kind, body) = ("content-type: application/json", review.to_string());
    let done =
        cluster::in_node(&["curl", "-ks", "--max-time", "5", "-H", kind, "--data-binary", &body, &url]);
    if !done.ok() {
        return Err(done.report());
    }
    serde_json::from_str(&done.stdout).map_err(|error| format!("{error}: {}", done.report()))
}

/// Asks one replica again and again from within the node, where that takes no time, until it refuses for `reason`.
/// Returns when it did, by the clock that the node and this machine share.
pub fn refused_by(pod: &str, review: &Value, reason: &str) -> Timestamp {
    const SCRIPT: &str = r#"
        until curl -ks --max-time 5 -H "content-type: application/json" --data-binary "$1" "$0" | grep -F "\"$2 "
        do sleep 0.1
        done
        date -u +%FT%T.%6NZ"#;
    let url = webhook_of(pod).unwrap_or_else(|words| panic!("{words}"));
    let asked = cluster::in_node(&["timeout", "60", "sh", "-c", SCRIPT, &url, &review.to_string(), reason]);
    let said = asked.succeeds();
    let at = said.lines().last().and_then(|time| time.parse().ok());
    at.unwrap_or_else(|| panic!("no time: {said}"))
}
