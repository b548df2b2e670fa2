use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::{
    api::{policy::CauseType, record::RolloutRecordStatus},
    core::{key::Key, lease::Record, policy::Labels},
};

fn now() -> Timestamp {
    "2026-11-02T10:00:00Z".parse().expect("a time")
}

fn template(image: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{
            "name": "app", "image": image, "imagePullPolicy": "IfNotPresent",
            "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 10, "failureThreshold": 3},
        }]},
    })
}

/// Complete, of revision 2, and nothing is wrong with it.
fn good_deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {
            "name": "web", "namespace": "shop", "uid": "u", "generation": 2, "labels": {"app": "web"},
            "creationTimestamp": "2026-11-01T10:00:00Z",
            "managedFields": [
                {"manager": "kubectl-create", "operation": "Update", "time": "2026-11-01T10:00:00Z"},
                {"manager": "helm", "operation": "Apply", "time": "2026-11-02T09:50:00Z"},
                {"manager": "kube-controller-manager", "subresource": "status", "time": "2026-11-02T09:59:00Z"},
            ],
        },
        "spec": {
            "replicas": 2, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": template("localhost/web:2"),
        },
        "status": {
            "observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 2,
            "conditions": [{
                "type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable",
                "message": "ReplicaSet \"web-2\" has successfully progressed.",
                "lastUpdateTime": "2026-11-02T09:51:00Z", "lastTransitionTime": "2026-11-01T10:00:00Z",
            }],
        },
    })
}

fn replica_set(revision: i64, available: i64) -> Value {
    json!({
        "metadata": {
            "name": format!("web-{revision}"), "creationTimestamp": format!("2026-11-0{revision}T08:00:00Z"),
            "annotations": {"deployment.kubernetes.io/revision": revision.to_string()},
        },
        "spec": {"replicas": available, "template": template(&format!("localhost/web:{revision}"))},
        "status": {"replicas": available, "readyReplicas": available, "availableReplicas": available},
    })
}

fn good() -> Material {
    Material {
        key: Key::new("shop", "web"),
        flags: String::new(),
        deployment: good_deployment(),
        replica_sets: Ok(vec![replica_set(1, 0), replica_set(2, 2)]),
        pods: Ok(Vec::new()),
        events: Ok(Vec::new()),
        logs: Vec::new(),
        record: Ok(None),
        controller_manager: Ok(ControllerManager {
            liveness: Liveness::Alive,
            holder: "cp_1".to_owned(),
            renewed_at: Some(now()),
        }),
        nodes: Ok(vec![NodeFacts { name: "n1".to_owned(), ready: true, ..NodeFacts::default() }]),
        quotas: Ok(Vec::new()),
        limit_ranges: Ok(Vec::new()),
        webhooks: Ok(Vec::new()),
        endpoints: BTreeMap::new(),
        admission_policies: Ok((Vec::new(), Vec::new())),
        namespace_labels: Ok(Labels::new()),
        guard: Ok(None),
        policies: Ok(Vec::new()),
    }
}

fn changed(change: impl FnOnce(&mut Value)) -> Material {
    let mut material = good();
    change(&mut material.deployment);
    material
}

/// Progressing, as a pod of the current template is not ready.
fn rolling(pod: Value) -> Material {
    let mut material = changed(|d| {
        d["status"]["updatedReplicas"] = json!(1);
        d["status"]["replicas"] = json!(3);
    });
    material.replica_sets = Ok(vec![replica_set(1, 2), replica_set(2, 0)]);
    material.pods = Ok(vec![pod]);
    material
}

fn pod(status: Value) -> Value {
    json!({
        "metadata": {"name": "web-2-abcde", "creationTimestamp": "2026-11-02T09:50:00Z"},
        "spec": {"nodeName": "n1", "containers": [{"name": "app", "image": "localhost/web:2"}]},
        "status": status,
    })
}

fn waiting(reason: &str, message: &str) -> Value {
    pod(json!({"phase": "Pending", "containerStatuses": [{
        "name": "app", "image": "localhost/web:2", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": reason, "message": message}},
    }]}))
}

fn crashed() -> Value {
    let end = json!({"reason": "Error", "exitCode": 3, "startedAt": "2026-11-02T09:59:50Z",
        "finishedAt": "2026-11-02T09:59:51Z"});
    pod(json!({"phase": "Running", "containerStatuses": [{
        "name": "app", "image": "localhost/web:2", "ready": false, "restartCount": 4,
        "state": {"terminated": end}, "lastState": {"terminated": end},
    }]}))
}

fn unobserved(message: &str) -> Material {
    let mut material = changed(|d| {
        d["metadata"]["generation"] = json!(3);
        d["spec"]["template"] = template("localhost/web:3");
        d["status"]["conditions"] = json!([
            {"type": "Progressing", "status": "False", "reason": "ReplicaSetCreateError", "message": message,
             "lastUpdateTime": "2026-11-02T09:50:01Z"},
            {"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable", "message": "ok"},
        ]);
    });
    material.flags = " --context staging".to_owned();
    material
}

fn quota(name: &str, resource: &str, used: &str, hard: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"hard": {resource: hard}, "used": {resource: used}}})
}

fn ids(material: &Material) -> Vec<(Severity, &'static str)> {
    let diagnosis = diagnose(material, now());
    let all = [diagnosis.configuration.findings, diagnosis.cluster.findings, diagnosis.guard.findings];
    all.into_iter().flatten().map(|finding| (finding.severity, finding.id)).collect()
}

fn command(material: &Material) -> String {
    diagnose(material, now()).next.command.unwrap_or_default()
}

fn kind(material: &Material) -> Option<CauseType> {
    diagnose(material, now()).cause.map(|line| line.cause.kind)
}

#[test]
fn with_a_good_deployment_nothing_is_wrong_and_nothing_is_to_be_done() {
    let diagnosis = diagnose(&good(), now());
    assert_eq!(ids(&good()), []);
    assert_eq!(diagnosis.status.phase, RecordPhase::Complete);
    assert_eq!((diagnosis.cause, diagnosis.next.command), (None, None));
    assert_eq!(diagnosis.hidden, []);
    assert_eq!(diagnosis.generations.lag, 0);
    assert_eq!(diagnosis.generations.written_by.as_deref(), Some("helm"), "and not who wrote the status");
}

#[test]
fn each_fault_of_the_configuration_is_found() {
    use Severity::{Note, Problem};
    type Case = (Severity, &'static str, fn(&mut Value));
    let cases: [Case; 14] = [
        (Problem, "paused", |d| d["spec"]["paused"] = json!(true)),
        (Problem, "no-deadline", |d| d["spec"]["progressDeadlineSeconds"] = json!(i32::MAX)),
        (Problem, "deadline-too-short", |d| {
            d["spec"]["minReadySeconds"] = json!(20);
            d["spec"]["progressDeadlineSeconds"] = json!(30);
            d["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["initialDelaySeconds"] =
                json!(15);
        }),
        (Note, "deadline-short", |d| {
            let probe = json!({"periodSeconds": 10, "failureThreshold": 90});
            d["spec"]["template"]["spec"]["containers"][0]["startupProbe"] = probe;
        }),
        (Problem, "no-history", |d| d["spec"]["revisionHistoryLimit"] = json!(0)),
        (Note, "recreate", |d| d["spec"]["strategy"] = json!({"type": "Recreate"})),
        (Note, "no-replicas", |d| d["spec"]["replicas"] = json!(0)),
        (Note, "no-readiness-probe", |d| {
            d["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = Value::Null;
        }),
        (Problem, "liveness-before-readiness", |d| {
            let containers = &mut d["spec"]["template"]["spec"]["containers"];
            containers[0]["readinessProbe"]["initialDelaySeconds"] = json!(60);
            containers[0]["livenessProbe"] = json!({"periodSeconds": 10, "failureThreshold": 3});
        }),
        (Note, "liveness-harsh", |d| {
            let probe = json!({"periodSeconds": 2, "failureThreshold": 2});
            d["spec"]["template"]["spec"]["containers"][0]["livenessProbe"] = probe;
        }),
        (Note, "image-latest", |d| d["spec"]["template"] = template("localhost:5000/web")),
        (Note, "image-latest", |d| d["spec"]["template"] = template("localhost/web:latest")),
        (Note, "pull-policies-differ", |d| {
            let second = json!({"name": "b", "image": "localhost/web:2", "imagePullPolicy": "Always"});
            d["spec"]["template"]["spec"]["initContainers"] = json!([second]);
        }),
        (Note, "image-latest", |d| {
            d["spec"]["template"]["spec"]["initContainers"] = json!([{"name": "b", "image": "a/b:latest"}]);
        }),
    ];
    for (severity, id, change) in cases {
        let material = changed(change);
        assert_eq!(ids(&material), [(severity, id)], "{id}");
    }
}

#[test]
fn what_merely_differs_from_the_defaults_is_no_fault() {
    type Case = (&'static str, fn(&mut Value));
    let cases: [Case; 4] = [
        ("maxUnavailable 0 with room", |d| {
            d["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] = json!(0);
        }),
        ("a digest", |d| d["spec"]["template"] = template("localhost/web@sha256:0123")),
        ("a port in the host", |d| d["spec"]["template"] = template("localhost:5000/web:1")),
        ("probes as they are by default", |d| {
            let containers = &mut d["spec"]["template"]["spec"]["containers"];
            containers[0]["livenessProbe"] = json!({"httpGet": {"port": 80}});
            containers[0]["startupProbe"] = json!({"periodSeconds": 10, "failureThreshold": 30});
        }),
    ];
    for (what, change) in cases {
        assert_eq!(ids(&changed(change)), [], "{what}");
    }
}

#[test]
fn without_room_for_one_pod_more_a_rollout_that_needs_it_is_told_to_have_none() {
    let mut material = changed(|d| {
        d["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "500m"}});
    });
    let found = |material: &Material| ids(material).into_iter().any(|(_, id)| id == "no-room");
    material.quotas = Ok(vec![quota("cpu", "requests.cpu", "1500m", "2")]);
    assert!(!found(&material), "there is room for exactly one");
    material.quotas = Ok(vec![quota("cpu", "requests.cpu", "1501m", "2")]);
    assert!(found(&material));
    material.deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] = json!(1);
    assert!(!found(&material), "an old pod may go first");
    material.deployment["spec"]["strategy"] = json!({"type": "Recreate"});
    assert!(!found(&material), "all of them go first");
}

#[test]
fn each_fault_of_the_cluster_is_found() {
    type Case = (&'static str, fn(&mut Material));
    let cases: [Case; 6] = [
        ("controller-manager-silent", |m| {
            m.controller_manager = Ok(ControllerManager { liveness: Liveness::Silent, ..Default::default() });
        }),
        ("nodes-not-ready", |m| {
            m.nodes.as_mut().expect("read").push(NodeFacts { name: "n2".to_owned(), ..Default::default() });
        }),
        ("nodes-under-pressure", |m| {
            m.nodes.as_mut().expect("read")[0].pressure.push("DiskPressure".to_owned());
        }),
        ("nodes-cordoned", |m| m.nodes.as_mut().expect("read")[0].cordoned = true),
        ("quota-used-up", |m| m.quotas = Ok(vec![quota("few", "count/replicasets.apps", "2", "2")])),
        ("webhook-unreachable", |m| {
            m.webhooks = Ok(vec![webhook("Fail", "pods")]);
            m.endpoints.insert(("sec".to_owned(), "hook".to_owned()), Ok(0));
        }),
    ];
    for (id, change) in cases {
        let mut material = good();
        change(&mut material);
        assert_eq!(ids(&material), [(Severity::Problem, id)], "{id}");
    }
}

fn webhook(failure_policy: &str, resource: &str) -> Value {
    json!({"metadata": {"name": "security"}, "webhooks": [{
        "name": "hook.example.com", "failurePolicy": failure_policy,
        "clientConfig": {"service": {"namespace": "sec", "name": "hook"}},
        "rules": [{"apiGroups": ["", "apps"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"],
            "resources": [resource]}],
        "namespaceSelector": {"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]},
        "objectSelector": {},
    }]})
}

#[test]
fn a_webhook_counts_only_where_it_is_called_and_would_refuse() {
    let asked = |hook: Value, labels: &[(&str, &str)]| {
        let mut material = good();
        material.webhooks = Ok(vec![hook]);
        let label = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        material.namespace_labels = Ok(labels.iter().map(label).collect());
        services_to_ask_about(&material).len()
    };
    assert_eq!(asked(webhook("Fail", "pods"), &[]), 1);
    assert_eq!(asked(webhook("Fail", "*"), &[]), 1);
    assert_eq!(asked(webhook("Ignore", "pods"), &[]), 0);
    assert_eq!(asked(webhook("Fail", "services"), &[]), 0);
    assert_eq!(asked(webhook("Fail", "pods"), &[("skip", "")]), 0);
}

#[test]
fn a_quota_on_replica_sets_is_the_cause_and_is_named_by_the_next_command() {
    let message = "Failed to create new replica set \"web-3\": replicasets.apps \"web-3\" is forbidden: exceeded quota: \
                   few, requested: count/replicasets.apps=1";
    let mut material = unobserved(message);
    assert_eq!(kind(&material), Some(CauseType::ReplicaSetCreate));
    assert_eq!(command(&material), "kubectl --context staging -n shop describe quota few");
    let diagnosis = diagnose(&material, now());
    let inherited: Vec<bool> = diagnosis.status.conditions.iter().map(|line| line.inherited).collect();
    assert_eq!(inherited, [false, true], "what is not about the ReplicaSet is of the generation before");
    let undo = "rollout-guard undo web -n shop --context staging";
    assert!(diagnosis.next.others.iter().any(|step| step.command == undo), "{:?}", diagnosis.next);
    // Kubernetes gives up after 15 tries: room alone does not help.
    material.quotas = Ok(vec![quota("few", "count/replicasets.apps", "1", "5")]);
    assert!(command(&material).contains("annotate deployment/web"), "{}", command(&material));
}

#[test]
fn the_next_command_goes_by_the_cause() {
    let pull = waiting("ImagePullBackOff", "localhost/web:2: not found");
    let config = waiting("CreateContainerConfigError", "configmap \"settings\" not found");
    let secret = waiting("CreateContainerConfigError", "secret \"keys\" not found");
    let unschedulable = |message: &str| {
        let mut pod = pod(json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}));
        pod["spec"]["nodeName"] = Value::Null;
        pod
    };
    let cases = [
        (pull, CauseType::Image, "rollout-guard undo web -n shop"),
        (
            config,
            CauseType::Configuration,
            "kubectl -n shop create configmap settings --from-literal=KEY=VALUE",
        ),
        (
            secret,
            CauseType::Configuration,
            "kubectl -n shop create secret generic keys --from-literal=KEY=VALUE",
        ),
        (crashed(), CauseType::Application, "rollout-guard undo web -n shop"),
        (
            unschedulable("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."),
            CauseType::Capacity,
            "kubectl -n shop describe pod web-2-abcde",
        ),
        (
            unschedulable("0/1 nodes are available: 1 Insufficient cpu."),
            CauseType::Capacity,
            "kubectl describe nodes | grep -A 9 'Allocated resources'",
        ),
    ];
    for (pod, cause, next) in cases {
        let material = rolling(pod);
        assert_eq!((kind(&material), command(&material).as_str()), (Some(cause), next));
    }
    let mut material = rolling(unschedulable("0/1 nodes are available: 1 node(s) were unschedulable."));
    material.nodes.as_mut().expect("read")[0].cordoned = true;
    assert_eq!(command(&material), "kubectl uncordon n1");
}

#[test]
fn nothing_that_is_quoted_from_outside_is_run_by_a_shell() {
    let evil = waiting("CreateContainerConfigError", "configmap \"$(reboot)\" not found");
    let material = rolling(evil);
    let diagnosis = diagnose(&material, now());
    let commands: Vec<&str> = diagnosis
        .next
        .command
        .iter()
        .chain(diagnosis.next.others.iter().map(|o| &o.command))
        .map(|c| &**c)
        .collect();
    assert!(
        !commands.is_empty() && !commands.iter().any(|command| command.contains("reboot")),
        "{commands:?}"
    );
}

#[test]
fn without_an_earlier_revision_there_is_no_way_back_to_be_proposed() {
    let mut material = rolling(crashed());
    material.replica_sets = Ok(vec![replica_set(2, 0)]);
    assert!(!command(&material).contains("undo"), "{}", command(&material));
    // One that serves no more must be named.
    material.replica_sets = Ok(vec![replica_set(1, 0), replica_set(2, 0)]);
    assert_eq!(command(&material), "rollout-guard undo web -n shop --to 1");
}

#[test]
fn a_pod_that_may_be_slow_is_waited_for() {
    let slow = pod(json!({"phase": "Running", "containerStatuses": [{
        "name": "app", "ready": false, "restartCount": 0, "state": {"running": {"startedAt": "2026-11-02T09:59:50Z"}},
    }]}));
    assert_eq!(command(&rolling(slow)), "rollout-guard wait web -n shop");
}

#[test]
fn a_deployment_that_looks_complete_between_two_crashes_is_not_well() {
    let mut material = good();
    material.pods = Ok(vec![crashed()]);
    assert_eq!(kind(&material), Some(CauseType::Application));
    assert_eq!(command(&material), "rollout-guard undo web -n shop --to 1");
}

#[test]
fn a_crash_shows_its_exit_code_and_the_end_of_its_log() {
    let mut material = rolling(crashed());
    let wanted = logs_to_read(&material, now());
    assert_eq!(wanted.len(), 1, "{wanted:?}");
    material.logs =
        vec![Log { source: wanted[0].clone(), text: Ok("one\nfatal: no \u{1b}[31mdatabase\n".to_owned()) }];
    let pods = diagnose(&material, now()).pods.expect("read");
    let container = &pods.failing[0].containers[0];
    assert_eq!((container.exit_code, container.restarts, container.state), (Some(3), 4, "terminated"));
    let log = container.log.as_ref().expect("read");
    assert_eq!(log.lines, ["one", "fatal: no \\u{1b}[31mdatabase"]);
}

#[test]
fn after_a_rollback_the_next_command_shows_what_was_wrong() {
    let mut material = good();
    let hash = |n: i64| TemplateHash::of(&template(&format!("localhost/web:{n}"))).to_string();
    // A ReplicaSet that is used again gets another number.
    let mut back = replica_set(2, 2);
    back["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = json!("4");
    material.replica_sets = Ok(vec![back, replica_set(3, 0)]);
    let record: RolloutRecordStatus = serde_json::from_value(json!({
        "templateHash": hash(2), "phase": "Complete",
        "revisions": [{"templateHash": hash(3), "verdict": "Bad", "reason": "Image", "revision": 3}],
        "rollback": {"from": hash(3), "to": hash(2), "fromGeneration": 3, "generation": 4, "fromRevision": 3,
            "toRevision": 2, "cause": "Image", "message": "image localhost/web:3 cannot be pulled: not found",
            "startedAt": "2026-11-02T09:58:00Z", "outcome": "Succeeded"},
    }))
    .expect("a record");
    material.record = Ok(Some(record));
    let diagnosis = diagnose(&material, now());
    assert_eq!(diagnosis.next.command.as_deref(), Some("rollout-guard history web -n shop --diff 4 3"));
    let line = diagnosis.cause.expect("told");
    assert_eq!((line.cause.kind, line.of), (CauseType::Image, Of::RolledBack));
}

#[test]
fn what_is_hidden_is_told_once_and_nothing_is_concluded_from_it() {
    let hidden = |what: &str| Hidden { what: what.to_owned(), why: format!("may not list {what}") };
    let mut material = changed(|d| {
        d["status"]["updatedReplicas"] = json!(0);
        d["status"]["conditions"][0] = json!({"type": "Progressing", "status": "False",
            "reason": "ProgressDeadlineExceeded", "message": "ReplicaSet \"web-2\" has timed out progressing."});
    });
    material.replica_sets = Err(hidden("replicasets"));
    material.pods = Err(hidden("pods"));
    material.events = Err(hidden("events"));
    material.nodes = Err(hidden("nodes"));
    material.quotas = Err(hidden("quotas"));
    material.webhooks = Err(hidden("webhooks"));
    material.guard = Err(hidden("guard"));
    material.policies = Err(hidden("policies"));
    material.controller_manager = Err(hidden("leases"));
    let diagnosis = diagnose(&material, now());
    assert_eq!(diagnosis.hidden.len(), 9);
    assert_eq!(diagnosis.status.phase, RecordPhase::Failed);
    assert!(!diagnosis.status.conditions[0].inherited, "whose it is cannot be told");
    let cause = diagnosis.cause.expect("told").cause;
    assert!(cause.message.contains("may not be read"), "{}", cause.message);
    assert_eq!((diagnosis.cluster.nodes, diagnosis.events, diagnosis.guard.installed), (None, None, None));
    assert_eq!(diagnosis.cluster.findings, []);
    assert!(diagnosis.next.command.is_some());
}

#[test]
fn the_guards_troubles_are_found() {
    let installed = |change: fn(&mut Record)| {
        let mut material = good();
        let mut lease = Record {
            holder: "guard-1_a".to_owned(),
            lease_duration_seconds: 15,
            acquire_time: None,
            renew_time: Some(now()),
            lease_transitions: 0,
            uid: "l".to_owned(),
            resource_version: "1".to_owned(),
            stop: None,
            breaker: Some("closed".to_owned()),
        };
        change(&mut lease);
        let installation =
            Installation { namespace: "rollout-guard".to_owned(), replicas: (2, 2), lease: Ok(Some(lease)) };
        material.guard = Ok(Some(installation));
        let policy = json!({"apiVersion": "rollout-guard.io/v1alpha1", "kind": "RolloutPolicy",
            "metadata": {"name": "default"}, "spec": {}});
        material.policies = Ok(vec![serde_json::from_value(policy).expect("a policy")]);
        material
    };
    let well = installed(|_| {});
    let state = diagnose(&well, now()).guard;
    assert_eq!(state.findings, []);
    assert_eq!((state.leader.as_deref(), state.policy.as_deref()), (Some("guard-1"), Some("default")));
    assert_eq!(ids(&installed(|l| l.renew_time = None)), [(Severity::Problem, "no-leader")]);
    assert_eq!(
        ids(&installed(|l| l.stop = Some("drill".to_owned()))),
        [(Severity::Problem, "guard-stopped")]
    );
    let open = installed(|l| l.breaker = Some("only 1 of 9 nodes are ready".to_owned()));
    assert_eq!(ids(&open), [(Severity::Problem, "breaker-open")]);
    let mut elsewhere = installed(|_| {});
    elsewhere.policies = Ok(Vec::new());
    assert_eq!(ids(&elsewhere), [(Severity::Note, "not-guarded")]);
}

#[test]
fn events_that_say_the_same_are_one_and_what_is_routine_is_left_out() {
    let event = |kind: &str, reason: &str, pod: &str, message: &str, at: &str| {
        json!({"type": kind, "reason": reason, "message": message, "count": 2,
            "involvedObject": {"kind": "Pod", "name": pod}, "lastTimestamp": at})
    };
    let mut events: Vec<Value> = (0..30)
        .map(|i| event("Normal", &format!("Odd{i}"), "p", "odd", &format!("2026-11-02T09:00:{i:02}Z")))
        .collect();
    events.extend([
        event("Warning", "BackOff", "web-a", "back-off of web-a", "2026-11-02T09:59:00Z"),
        event("Normal", "Pulled", "web-a", "pulled", "2026-11-02T09:59:30Z"),
        event("Warning", "BackOff", "web-b", "back-off of web-b", "2026-11-02T09:58:00Z"),
    ]);
    let lines = incidents::lines(&events);
    assert_eq!(lines.len(), 15);
    let last = lines.last().expect("some");
    assert_eq!((last.reason.as_str(), last.object.as_str()), ("BackOff", "Pod/web-a"));
    assert_eq!((last.count, last.objects), (4, 2));
    assert!(lines.iter().all(|line| line.reason != "Pulled"));
}

#[test]
fn the_keys_of_the_json_stay() {
    let json = serde_json::to_value(diagnose(&rolling(crashed()), now())).expect("JSON");
    let keys =
        |value: &Value| -> Vec<String> { value.as_object().expect("an object").keys().cloned().collect() };
    insta::assert_json_snapshot!("keys", {
        let mut all = BTreeMap::from([("", keys(&json))]);
        for key in ["status", "generations", "configuration", "pods", "cluster", "guard", "cause", "next"] {
            all.insert(key, keys(&json[key]));
        }
        all.insert("pods.failing", keys(&json["pods"]["failing"][0]));
        all.insert("pods.failing.notWell", keys(&json["pods"]["failing"][0]["notWell"][0]));
        all
    });
}
