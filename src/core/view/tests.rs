use serde_json::json;

use super::*;

fn now() -> Timestamp {
    at("2026-11-23T18:00:00Z")
}

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": image}]}})
}

fn hash(image: &str) -> String {
    TemplateHash::of(&template(image)).to_string()
}

/// Rolls out web:2 over web:1; one of two pods is updated.
fn deployment() -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": "web", "uid": "u", "generation": 2,
            "creationTimestamp": "2026-11-01T10:00:00Z", "annotations": {"deployment.kubernetes.io/revision": "2"}},
        "spec": {"replicas": 2, "template": template("web:2"), "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}}},
        "status": {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 2,
            "availableReplicas": 2, "unavailableReplicas": 1, "conditions": [
                {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated", "message": "at work",
                 "lastUpdateTime": "2026-11-23T17:59:00Z", "lastTransitionTime": "2026-11-23T17:58:00Z"}]},
    })
}

fn set(name: &str, image: &str, revision: u32, replicas: u32) -> Value {
    let mut template = template(image);
    template["metadata"]["labels"]["pod-template-hash"] = json!(name);
    json!({
        "metadata": {"name": name, "creationTimestamp": format!("2026-11-2{revision}T10:00:00Z"), "annotations":
            {"deployment.kubernetes.io/revision": revision.to_string(), "kubernetes.io/change-cause": "ticket 7"}},
        "spec": {"replicas": replicas, "template": template},
        "status": {"replicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas},
    })
}

fn record(status: Value) -> RolloutRecordStatus {
    serde_json::from_value(status).expect("a status")
}

fn view(deployment: &Value, sets: &[Value], record: Option<&RolloutRecordStatus>) -> DeploymentView {
    let around = Around { replica_sets: Some(sets), record, ..Around::default() };
    DeploymentView::of(deployment, around, now())
}

#[test]
fn revisions_come_newest_first_with_the_verdict_of_their_template() {
    let sets = [set("web-a", "web:1", 1, 2), set("web-b", "web:2", 2, 1)];
    let record = record(json!({
        "templateHash": hash("web:2"), "phase": "Progressing", "since": "2026-11-23T17:57:00Z",
        "revisions": [
            {"templateHash": hash("web:1"), "revision": 1, "verdict": "Good", "since": "2026-11-22T10:00:00Z"},
            {"templateHash": hash("web:0"), "revision": 0, "verdict": "Bad", "reason": "Image", "images": ["web:0"]},
        ],
    }));
    let view = view(&deployment(), &sets, Some(&record));
    let told: Vec<_> = view
        .revisions
        .iter()
        .map(|r| (r.revision, r.replica_set.as_deref(), r.current, r.verdict, r.images.join(",")))
        .collect();
    assert_eq!(
        told,
        [
            (Some(2), Some("web-b"), true, None, "web:2".to_owned()),
            (Some(1), Some("web-a"), false, Some(Verdict::Good), "web:1".to_owned()),
            (Some(0), None, false, Some(Verdict::Bad), "web:0".to_owned()),
        ]
    );
    assert_eq!(view.revisions[0].change_cause.as_deref(), Some("ticket 7"));
    assert_eq!(view.since, Some(at("2026-11-23T17:57:00Z")), "the record has seen when it began");
    assert!(view.guarded);
}

#[test]
fn without_a_record_everything_that_kubernetes_tells_is_there() {
    let view = view(&deployment(), &[set("web-b", "web:2", 2, 1)], None);
    assert_eq!((view.phase, view.generation, view.observed_generation), (RecordPhase::Progressing, 2, 2));
    assert_eq!((view.desired, view.replicas, view.updated, view.ready), (2, 3, 1, 2));
    assert_eq!((view.available, view.unavailable, view.revision), (2, 1, Some(2)));
    assert_eq!(view.strategy.max_surge.as_deref(), Some("25%"));
    assert_eq!(view.strategy.max_unavailable.as_deref(), Some("0"));
    assert_eq!(view.strategy.progress_deadline_seconds, Some(600));
    assert_eq!(view.condition("Progressing").map(|c| c.reason.as_str()), Some("ReplicaSetUpdated"));
    assert!(!view.guarded && view.verdict.is_none() && view.rollback.is_none());
}

#[test]
fn what_a_record_says_of_an_earlier_template_is_no_cause_of_this_one() {
    let cause = json!({"type": "Image", "message": "web:1 is not there", "since": "2026-11-23T17:00:00Z"});
    let old = record(json!({"templateHash": hash("web:1"), "phase": "Failed", "cause": cause}));
    assert_eq!(view(&deployment(), &[], Some(&old)).cause, None);
    let current = record(json!({"templateHash": hash("web:2"), "phase": "Progressing", "cause": cause}));
    let told = view(&deployment(), &[], Some(&current)).cause.expect("a cause");
    assert_eq!((told.kind, told.message.as_str()), (CauseType::Image, "web:1 is not there"));
    assert_eq!(told.since, Some(at("2026-11-23T17:00:00Z")));
}

#[test]
fn a_complete_deployment_has_no_cause_whatever_the_record_says() {
    let mut complete = deployment();
    complete["status"] =
        json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
    let cause = json!({"type": "Image", "message": "x", "since": "2026-11-23T17:00:00Z"});
    let record = record(json!({"templateHash": hash("web:2"), "phase": "Failed", "cause": cause}));
    let view = view(&complete, &[], Some(&record));
    assert_eq!((view.phase, view.cause), (RecordPhase::Complete, None));
}

#[test]
fn a_failure_that_nothing_explains_is_told_as_such_where_somebody_has_looked() {
    let mut failed = deployment();
    failed["status"]["conditions"][0] = json!({"type": "Progressing", "status": "False",
        "reason": "ProgressDeadlineExceeded", "message": "ReplicaSet \"web-b\" has timed out progressing."});
    let sets = [set("web-b", "web:2", 2, 1)];
    let looked = view(&failed, &sets, None);
    assert_eq!((looked.phase, looked.cause.map(|c| c.kind)), (RecordPhase::Failed, Some(CauseType::Unknown)));
    let listed = DeploymentView::of(&failed, Around::default(), now());
    assert_eq!((listed.phase, listed.cause), (RecordPhase::Failed, None));
    // About the ReplicaSet before.
    let inherited = view(&failed, &[set("web-c", "web:2", 2, 1)], None);
    assert_eq!(inherited.phase, RecordPhase::Progressing);
}

#[test]
fn an_unobserved_generation_has_no_revision_yet() {
    let mut pushed = deployment();
    pushed["metadata"]["generation"] = json!(3);
    let view = DeploymentView::of(&pushed, Around::default(), now());
    assert_eq!((view.phase, view.revision), (RecordPhase::Unobserved, None));
    assert!(!view.is_settled());
}

#[test]
fn a_rollback_says_whether_its_template_is_the_current_one() {
    let rollback = |to: &str, generation: Value| {
        let record = record(json!({"templateHash": hash("web:2"), "rollback": {
            "from": hash("web:9"), "to": hash(to), "fromGeneration": 1, "generation": generation, "cause": "Image",
            "message": "not there", "startedAt": "2026-11-23T17:00:00Z", "outcome": "Succeeded"}}));
        view(&deployment(), &[], Some(&record)).rollback.expect("a rollback").current
    };
    assert!(rollback("web:2", json!(2)));
    assert!(!rollback("web:1", json!(2)), "another was pushed since");
    assert!(!rollback("web:2", Value::Null), "not carried out yet");
}

#[test]
fn objects_of_any_shape_are_read() {
    for odd in [
        json!(null),
        json!({"metadata": 1, "spec": [], "status": "x"}),
        json!({"metadata": {"name": 5, "generation": "x"}, "spec": {"template": null}, "status": {"conditions": {"a": 1}}}),
        json!({"spec": {"replicas": 99_999_999_999_i64}, "status": {"conditions": [1, null, {"type": 1}]}}),
    ] {
        let sets = [odd.clone()];
        let pods = HashMap::from([(String::new(), vec![odd.clone()])]);
        let around = Around { replica_sets: Some(&sets), pods: Some(&pods), ..Around::default() };
        let view = DeploymentView::of(&odd, around, now());
        assert!(serde_json::to_string(&view).is_ok());
    }
}

#[test]
fn no_text_of_the_cluster_steers_a_terminal() {
    let mut odd = deployment();
    odd["status"]["conditions"][0]["message"] = json!("a\u{1b}[31mb\nc");
    odd["spec"]["template"] = template("web\u{1b}[2J");
    let text = serde_json::to_string(&view(&odd, &[], None)).expect("JSON");
    assert!(text.contains(r"\\u{1b}[31m") && text.contains(r"\\u{1b}[2J"), "{text}");
    assert!(!text.contains(r"\u001b"), "{text}");
}

#[test]
fn the_json_is_stable() {
    let sets = [set("web-b", "web:2", 2, 1)];
    let pods = HashMap::from([(
        "web-b".to_owned(),
        vec![json!({"metadata": {"name": "web-b-1"}, "status": {"phase": "Pending"}})],
    )]);
    let around = Around { replica_sets: Some(&sets), pods: Some(&pods), ..Around::default() };
    insta::assert_json_snapshot!(DeploymentView::of(&deployment(), around, now()));
}

// ---- pods -------------------------------------------------------------------------------------------------------

fn pod(status: Value) -> PodView {
    PodView::of(&json!({
        "metadata": {"name": "web-b-1"},
        "spec": {"initContainers": [{"name": "init"}, {"name": "second"}], "containers": [{"name": "app"}, {"name": "proxy"}]},
        "status": status,
    }))
}

fn done(name: &str) -> Value {
    json!({"name": name, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}})
}

#[test]
fn a_pods_reason_is_the_one_that_kubectl_shows() {
    let waiting = |name: &str, reason: &str| json!({"name": name, "state": {"waiting": {"reason": reason, "message": "why"}}});
    let inits = json!([done("init"), done("second")]);
    let running = json!({"name": "proxy", "ready": true, "state": {"running": {}}});
    let ready = json!([{"type": "Ready", "status": "True"}]);
    let cases = [
        (json!({"phase": "Pending"}), "Pending"),
        (json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}), "Evicted"),
        (
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            "SchedulingGated",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [waiting("init", "PodInitializing")]}),
            "Init:0/2",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [done("init"), {"name": "second", "state": {"running": {}}}]}),
            "Init:1/2",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [waiting("init", "ImagePullBackOff")]}),
            "Init:ImagePullBackOff",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "init", "state": {"terminated": {"exitCode": 3}}}]}),
            "Init:ExitCode:3",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": inits, "containerStatuses": [waiting("app", "CrashLoopBackOff"), running]}),
            "CrashLoopBackOff",
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": inits, "containerStatuses": [
                {"name": "app", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}, running]}),
            "OOMKilled",
        ),
        (
            json!({"phase": "Running", "conditions": ready, "initContainerStatuses": inits, "containerStatuses": [done("app"), running]}),
            "Running",
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": inits, "containerStatuses": [done("app"), running]}),
            "NotReady",
        ),
        (
            json!({"phase": "Succeeded", "initContainerStatuses": inits, "containerStatuses": [done("app"), done("proxy")]}),
            "Completed",
        ),
    ];
    for (status, expected) in cases {
        assert_eq!(pod(status.clone()).reason, expected, "{status}");
    }
}

#[test]
fn a_pod_that_goes_is_terminating_unless_its_node_is_lost() {
    let going = |status: Value| {
        PodView::of(&json!({"metadata": {"deletionTimestamp": "2026-11-23T17:00:00Z"}, "status": status}))
            .reason
    };
    assert_eq!(going(json!({"phase": "Running"})), "Terminating");
    assert_eq!(going(json!({"phase": "Running", "reason": "NodeLost"})), "Unknown");
    assert_eq!(going(json!({"phase": "Failed"})), "Failed");
}

#[test]
fn a_crash_loop_says_how_the_run_before_ended() {
    let pod = pod(json!({"phase": "Running", "containerStatuses": [{"name": "app", "restartCount": 4,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
        "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}));
    assert_eq!(pod.message, "container app: OOMKilled, exit code 137");
    assert_eq!((pod.restarts, pod.ready_containers, pod.containers), (4, 0, 2));
}
