//! Causes by fixtures (`tests/fixtures/pods`, lists of pods and events as `kubectl get -o json` prints them), by
//! stories over time and by properties.

use std::{collections::BTreeSet, path::Path};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// When the fixtures were looked at.
const NOW: &str = "2026-11-23T17:18:00Z";

const REPLICA_SET: &str = "web-6fff4b7674";

fn at(text: &str) -> Timestamp {
    text.parse().expect("time")
}

/// What is looked at, with everything else in order.
struct World {
    snapshot: Snapshot<'static>,
    phase: Phase,
    replica_set: Option<ReplicaSetFacts>,
    pods: Vec<PodFacts>,
    events: Vec<PodEvent>,
    nodes_not_ready: Vec<&'static str>,
    others_failing: usize,
    controller_manager: Liveness,
    now: Timestamp,
}

impl World {
    fn new() -> Self {
        Self {
            snapshot: Snapshot {
                generation: 7,
                observed_generation: 7,
                desired: 2,
                replicas: 3,
                updated: 1,
                available: 2,
                ..Snapshot::default()
            },
            phase: Phase::Progressing,
            replica_set: Some(ReplicaSetFacts { name: REPLICA_SET.to_owned(), failure: None }),
            pods: Vec::new(),
            events: Vec::new(),
            nodes_not_ready: Vec::new(),
            others_failing: 0,
            controller_manager: Liveness::Alive,
            now: at(NOW),
        }
    }

    fn of(fixtures: &[&str]) -> Self {
        let mut world = Self::new();
        for (i, fixture) in fixtures.iter().enumerate() {
            let (pods, events) = read(fixture);
            // Several of one kind are several pods.
            let rename = |name: &str| name.replace("x7k2p", &format!("x7k{i}p"));
            world.pods.extend(pods.into_iter().map(|pod| PodFacts { name: rename(&pod.name), ..pod }));
            world
                .events
                .extend(events.into_iter().map(|event| PodEvent { pod: rename(&event.pod), ..event }));
        }
        world
    }

    fn find(&self) -> Option<Cause> {
        let input = Input {
            snapshot: &self.snapshot,
            phase: self.phase,
            replica_set: self.replica_set.as_ref(),
            pods: &self.pods,
            events: &self.events,
            node_not_ready: &|name| self.nodes_not_ready.contains(&name),
            others_failing: &|_| self.others_failing,
            controller_manager: self.controller_manager,
        };
        find(&input, self.now)
    }

    #[track_caller]
    fn cause(&self) -> Cause {
        self.find().expect("a cause")
    }

    #[track_caller]
    fn kind(&self) -> (CauseType, bool) {
        let cause = self.cause();
        (cause.kind, cause.early)
    }
}

fn read(fixture: &str) -> (Vec<PodFacts>, Vec<PodEvent>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/pods/{fixture}.json"));
    let list: Value = serde_json::from_slice(&std::fs::read(path).expect("fixture")).expect("JSON");
    let items = || list["items"].as_array().expect("items").iter();
    let pods = items().filter(|item| item["kind"] == "Pod").map(PodFacts::of).collect();
    (pods, items().filter_map(PodEvent::of).collect())
}

/// Whether all texts are bounded, on one line and harmless.
#[track_caller]
fn sound(cause: &Cause) {
    let texts = || cause.evidence.iter().map(String::as_str).chain([cause.message.as_str(), cause.key()]);
    assert!(cause.message.chars().count() <= MESSAGE && !cause.message.is_empty(), "{cause:?}");
    assert!(cause.evidence.len() <= EVIDENCE, "{cause:?}");
    assert!(cause.evidence.iter().all(|line| line.chars().count() <= LINE), "{cause:?}");
    assert!(texts().all(|text| text.chars().count() <= 2 * LINE && !text.chars().any(char::is_control)));
    let harmful = |text: &str| text.contains("is immutable") || text.contains("immutable field");
    assert!(!texts().any(|text| harmful(&text.to_lowercase())), "{cause:?}");
}

#[test]
fn each_trouble_has_its_cause() {
    use CauseType::{Application, Capacity, Configuration, ControlPlane, Image, Node, Registry};
    let missing = "image localhost:5000/missing/app:v1 cannot be pulled: not found";
    let command =
        "container app cannot be started: exec: \"/bin/wbe\": stat /bin/wbe: no such file or directory";
    let crash = "container app ends with exit code 3";
    let cases = [
        ("image-not-found", Image, true, missing),
        ("image-not-found-backing-off", Image, true, missing),
        ("image-not-found-before-1-31", Image, true, missing),
        (
            "image-no-reason",
            Image,
            false,
            "image localhost:5000/missing/app:v1 cannot be pulled: the node does not say why",
        ),
        (
            "image-unauthorised",
            Image,
            true,
            "image localhost:5000/private/app:v1 cannot be pulled: unauthorised",
        ),
        (
            "image-invalid-name",
            Image,
            true,
            "image localhost:5000/Shop/web:1.4.2 cannot be pulled: its name is not valid",
        ),
        (
            "image-never-pulled",
            Image,
            true,
            "image localhost:5000/shop/web:1.4.2 cannot be pulled: it is not on the node, and the pull policy is Never",
        ),
        (
            "registry-refused",
            Registry,
            true,
            "image localhost:5000/shop/web:1.4.2 cannot be pulled: the registry refuses connections (localhost:5000)",
        ),
        (
            "configmap-missing",
            Configuration,
            true,
            "container app cannot be started: configmap \"web-settings\" not found",
        ),
        (
            "configmap-volume-missing",
            Configuration,
            true,
            "a volume cannot be mounted: configmap \"web-settings\" not found",
        ),
        (
            "runs-as-root",
            Configuration,
            true,
            "container app cannot be started: container has runAsNonRoot and image will run as root (pod: \"web-6fff4b7674-*_shop(*)\", container: app)",
        ),
        ("command-missing", Configuration, true, command),
        ("command-missing-first", Configuration, true, command),
        ("crash-terminated", Application, true, crash),
        ("crash-waiting", Application, true, crash),
        (
            "out-of-memory",
            Application,
            true,
            "container app needs more memory than it may have (OOMKilled, exit code 137, limit 64Mi)",
        ),
        ("killed-by-liveness-probe", Application, true, "container app is killed by its liveness probe"),
        ("init-crash", Application, true, "init container migrate ends with exit code 1"),
        ("init-slow", Application, false, "init container migrate has not finished"),
        ("not-ready", Application, false, "container app is running but not ready"),
        (
            "not-started",
            Application,
            false,
            "container app is running, but its startup probe has not succeeded",
        ),
        (
            "unschedulable",
            Capacity,
            false,
            "pods cannot be scheduled: 0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu.",
        ),
        ("no-scheduler", ControlPlane, false, "no scheduler has looked at the pods"),
        (
            "evicted",
            Node,
            false,
            "pods are evicted from node guard-worker: The node was low on resource: memory",
        ),
        (
            "evicted-by-its-own-limit",
            Application,
            false,
            "pods are evicted: Pod ephemeral local storage usage exceeds the total limit of containers 64Mi",
        ),
        ("no-sandbox", Node, false, "the node cannot make the pods' sandbox"),
        (
            "volume-busy",
            Node,
            false,
            "a volume cannot be mounted: Multi-Attach error for volume \"*\" Volume is already used by pod(s) web-6c4c55c5b9-9xq2z",
        ),
    ];
    for (fixture, kind, early, message) in cases {
        let cause = World::of(&[fixture]).find().unwrap_or_else(|| panic!("{fixture}: no cause"));
        assert_eq!((cause.kind, cause.early, cause.message.as_str()), (kind, early, message), "{fixture}");
        sound(&cause);
        assert!(cause.evidence.len() >= 2, "{fixture}: {:?}", cause.evidence);
        assert!(!cause.message.contains("x7k"), "{fixture}: no suffix of a pod's name");
    }
}

#[test]
fn a_healthy_pod_has_no_cause() {
    assert_eq!(World::of(&["healthy", "healthy"]).find(), None);
    assert_eq!(World::new().find(), None);
}

#[test]
fn evidence_is_what_a_person_can_check() {
    let cause = World::of(&["crash-terminated", "crash-terminated", "healthy"]).cause();
    let told = "container app: terminated: Error, exit code 3: fatal: DATABASE_URL is not set";
    assert_eq!(
        cause.evidence,
        [
            "seen in 2 of 3 pods".to_owned(),
            format!("pod web-6fff4b7674-x7k0p: {told}"),
            format!("pod web-6fff4b7674-x7k1p: {told}"),
        ]
    );
    let log = |previous| {
        let (pod, container) = ("web-6fff4b7674-x7k0p".to_owned(), "app".to_owned());
        Some(LogSource { pod, container, previous })
    };
    assert_eq!(cause.container, log(false));
    assert_eq!(World::of(&["killed-by-liveness-probe"]).cause().container, log(true));

    let evidence = World::of(&["not-ready"]).cause().evidence;
    let probe = "event Unhealthy: Readiness probe failed: HTTP probe failed with statuscode: 503";
    assert!(evidence.iter().any(|line| line == probe), "{evidence:?}");
}

#[test]
fn a_cause_is_early_only_where_half_of_the_pods_show_it() {
    assert!(World::of(&["crash-terminated", "healthy"]).cause().early);
    assert!(!World::of(&["crash-terminated", "healthy", "healthy"]).cause().early);
    // Pods that are going do not count.
    let mut world = World::of(&["crash-terminated", "healthy", "healthy"]);
    world.pods[2].deleting = true;
    assert!(world.cause().early);
    world.pods[0].deleting = true;
    assert_eq!(world.find(), None);
}

#[test]
fn the_events_of_one_pod_tell_what_all_of_them_lack() {
    let mut world = World::of(&["configmap-volume-missing", "configmap-volume-missing"]);
    world.events.retain(|event| event.pod.ends_with("x7k1p"));
    let cause = world.cause();
    assert!(cause.early);
    assert_eq!(cause.evidence[0], "seen in 2 of 2 pods");
}

#[test]
fn fault_38_what_fails_for_many_at_one_host_is_the_registrys_fault() {
    let mut world = World::of(&["image-unauthorised"]);
    for (others, kind) in [(1, CauseType::Image), (2, CauseType::Registry)] {
        world.others_failing = others;
        assert_eq!(world.kind(), (kind, true), "{others}");
    }
    let mut undecided = World::of(&["image-no-reason"]);
    undecided.others_failing = 2;
    assert_eq!(undecided.kind(), (CauseType::Registry, true));
    // The registry has answered for this image.
    let mut missing = World::of(&["image-not-found"]);
    missing.others_failing = 9;
    assert_eq!(missing.kind(), (CauseType::Image, true));

    let hosts = |fixture: &str| -> Vec<String> {
        failing_images(&read(fixture).0).iter().map(|image| host_of(image)).collect()
    };
    assert_eq!(hosts("registry-refused"), ["localhost:5000"]);
    assert_eq!(hosts("image-unauthorised"), ["localhost:5000"]);
    assert_eq!(hosts("image-not-found"), Vec::<String>::new());
    assert_eq!(hosts("healthy"), Vec::<String>::new());
}

#[test]
fn what_one_pod_does_not_say_of_a_pull_another_says() {
    let cause = World::of(&["image-no-reason", "image-not-found"]).cause();
    assert_eq!((cause.kind, cause.early), (CauseType::Image, true));
    assert_eq!(cause.evidence[0], "seen in 2 of 2 pods");
    assert_eq!(cause.message, "image localhost:5000/missing/app:v1 cannot be pulled: not found");
}

#[test]
fn the_cause_is_what_most_pods_show() {
    use CauseType::{Application, Capacity, Node};
    let mut world = World::of(&["crash-terminated", "crash-terminated", "not-ready"]);
    world.nodes_not_ready = vec!["guard-worker2"];
    world.pods[2].node = Some("guard-worker2".to_owned());
    assert_eq!(world.cause().kind, Application);
    world.pods[1].node = Some("guard-worker2".to_owned());
    assert_eq!(world.cause().kind, Node);
    // One each: the node comes first.
    world.pods.pop();
    let cause = world.cause();
    assert_eq!((cause.kind, cause.message.as_str()), (Node, "node guard-worker2 is not ready"));
    let also = "also Application in 1 of 2 pods: container app ends with exit code 3";
    assert!(cause.evidence.iter().any(|line| line == also), "{:?}", cause.evidence);

    assert_eq!(World::of(&["unschedulable", "crash-terminated"]).cause().kind, Application);
    assert_eq!(World::of(&["unschedulable", "unschedulable", "crash-terminated"]).cause().kind, Capacity);
    assert_eq!(World::of(&["unschedulable", "not-ready"]).cause().kind, Capacity);
    assert_eq!(World::of(&["evicted", "not-ready"]).cause().kind, Node);
    assert_eq!(World::of(&["evicted", "crash-terminated"]).cause().kind, Application);
}

#[test]
fn an_eviction_of_long_ago_is_forgotten() {
    let mut world = World::of(&["evicted", "healthy"]);
    assert_eq!(world.kind(), (CauseType::Node, false));
    world.now = at("2026-11-23T17:30:00Z");
    assert_eq!(world.find(), None);
}

const QUOTA: &str = r#"pods "web-6fff4b7674-j4wls" is forbidden: exceeded quota: pods, requested: pods=1, used: pods=3, limited: pods=3"#;

fn replica_set(failure: &str) -> Option<ReplicaSetFacts> {
    Some(ReplicaSetFacts::of(&json!({
        "metadata": {"name": REPLICA_SET},
        "status": {"conditions": [
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": failure}
        ]},
    })))
}

#[test]
fn fault_39_pods_that_cannot_be_created_are_a_matter_of_capacity() {
    let mut world = World::new();
    world.replica_set = replica_set(QUOTA);
    let cause = world.cause();
    assert_eq!((cause.kind, cause.early), (CauseType::Capacity, false));
    assert_eq!(
        cause.message,
        r#"pods cannot be created: pods "web-6fff4b7674-*" is forbidden: exceeded quota: pods, requested: pods=1, used: pods=3, limited: pods=3"#
    );
    sound(&cause);

    // The pods that there are fail by themselves: more of them would not help.
    let mut bad = World::of(&["image-not-found"]);
    bad.replica_set = replica_set(QUOTA);
    assert_eq!(bad.kind(), (CauseType::Image, true));
    let mut slow = World::of(&["not-ready"]);
    slow.replica_set = replica_set(QUOTA);
    assert_eq!(slow.cause().kind, CauseType::Capacity);
}

#[test]
fn a_service_account_that_is_not_there_is_configuration() {
    let mut world = World::new();
    world.replica_set = replica_set(
        r#"pods "web-6fff4b7674-" is forbidden: error looking up service account shop/web: serviceaccount "web" not found"#,
    );
    assert_eq!(world.kind(), (CauseType::Configuration, false));
}

#[test]
fn a_replica_failure_of_an_older_replicaset_is_not_believed() {
    let mut world = World::new();
    world.snapshot.replica_failure = Some(Condition {
        status: "True".into(),
        reason: "FailedCreate".into(),
        message: QUOTA.into(),
        updated_at: None,
    });
    assert_eq!(world.find(), None);
    world.replica_set = None;
    assert_eq!(world.cause().kind, CauseType::Capacity);
}

fn create_error(updated_at: &str) -> Option<Condition<'static>> {
    Some(Condition {
        status: "False".into(),
        reason: "ReplicaSetCreateError".into(),
        message: r#"Failed to create new replica set "web-6fff4b7674": replicasets.apps "web-6fff4b7674" is forbidden: exceeded quota: one-replicaset"#.into(),
        updated_at: Some(at(updated_at)),
    })
}

#[test]
fn fault_47_a_replicaset_that_cannot_be_created_is_the_cause() {
    let mut world = World::of(&["crash-terminated"]);
    world.phase = Phase::Unobserved;
    world.snapshot.observed_generation = 6;
    assert_eq!(world.find(), None, "the pods are of the generation before");
    world.snapshot.written_at = Some(at("2026-11-23T17:16:38Z"));
    world.snapshot.progressing = create_error("2026-11-23T17:16:39Z");
    let cause = world.cause();
    assert_eq!((cause.kind, cause.early), (CauseType::ReplicaSetCreate, true));
    assert_eq!(
        cause.message,
        r#"the ReplicaSet cannot be created: replicasets.apps "web-6fff4b7674" is forbidden: exceeded quota: one-replicaset"#
    );
    sound(&cause);
    world.controller_manager = Liveness::Silent;
    assert_eq!(world.cause().kind, CauseType::ReplicaSetCreate);
}

#[test]
fn fault_37_a_silent_controller_manager_is_the_cause_of_what_is_not_observed() {
    let mut world = World::new();
    world.phase = Phase::Unobserved;
    world.snapshot.observed_generation = 6;
    for (liveness, kind) in [
        (Liveness::Alive, None),
        (Liveness::Unknown, None),
        (Liveness::Silent, Some(CauseType::ControlPlane)),
    ] {
        world.controller_manager = liveness;
        assert_eq!(world.find().map(|cause| cause.kind), kind, "{liveness:?}");
    }
    // An error of the generation before says nothing of this one.
    world.snapshot.progressing = create_error("2026-11-23T17:00:00Z");
    world.snapshot.written_at = Some(at("2026-11-23T17:16:38Z"));
    assert_eq!(world.cause().kind, CauseType::ControlPlane);
    world.controller_manager = Liveness::Alive;
    assert_eq!(world.cause().kind, CauseType::ReplicaSetCreate);
    // Observed, and nobody goes on with it.
    let mut world = World::of(&["healthy"]);
    world.controller_manager = Liveness::Silent;
    assert_eq!(world.kind(), (CauseType::ControlPlane, false));
    let mut world = World::of(&["crash-terminated"]);
    world.controller_manager = Liveness::Silent;
    assert_eq!(world.cause().kind, CauseType::Application);
}

#[test]
fn fault_48_a_create_error_inherited_over_a_replicaset_that_is_there_is_not_believed() {
    let mut world = World::of(&["not-ready"]);
    world.phase = Phase::Failed;
    world.snapshot.progressing = create_error("2026-11-23T17:00:00Z");
    assert_eq!(world.cause().kind, CauseType::Application);
    world.replica_set = None;
    world.pods.clear();
    assert_eq!(world.cause().kind, CauseType::ReplicaSetCreate);
}

#[test]
fn what_is_complete_paused_or_deleted_has_no_cause() {
    let mut world = World::of(&["crash-terminated"]);
    for phase in [Phase::Complete, Phase::Paused, Phase::Deleting] {
        world.phase = phase;
        assert_eq!(world.find(), None, "{phase:?}");
    }
}

#[test]
fn what_nothing_explains_is_put_into_words() {
    for phase in [Phase::Failed, Phase::Unobserved, Phase::Progressing] {
        let cause = Cause::unknown(phase);
        sound(&cause);
        assert_eq!((cause.kind, cause.early, cause.key()), (CauseType::Unknown, false, "Unknown"));
    }
}

#[test]
fn the_network_and_the_volumes_of_a_new_pod_have_some_time() {
    for fixture in ["no-sandbox", "volume-busy", "no-scheduler"] {
        let mut world = World::of(&[fixture]);
        world.now = at("2026-11-23T17:17:00Z");
        assert_eq!(world.find(), None, "{fixture}");
    }
    let mut silent = World::of(&["healthy"]);
    silent.pods[0].containers[0] = ContainerFacts { name: "app".to_owned(), ..ContainerFacts::default() };
    assert_eq!(silent.cause().message, "node guard-worker has not begun with the pods");
}

#[test]
fn a_mount_that_worked_in_the_end_is_forgotten() {
    let mut world = World::of(&["configmap-volume-missing"]);
    world.events.push(PodEvent {
        pod: world.pods[0].name.clone(),
        reason: "Pulling".to_owned(),
        last_at: Some(at("2026-11-23T17:18:05Z")),
        ..PodEvent::default()
    });
    world.now = at("2026-11-23T17:18:30Z");
    assert_eq!(world.find(), None);
}

/// A pod whose container runs for `run` seconds and ends with `code`, again and again, as a kubelet of 1.37 shows it at
/// a second: the back-off doubles from 10 s to 300 s, and CrashLoopBackOff shows in its last second only.
fn crash_loop(run: i64, code: i64, ready: bool, second: i64) -> PodFacts {
    let time = |second: i64| (at("2026-11-23T17:00:00Z") + SignedDuration::from_secs(second)).to_string();
    let end = |finish: i64| json!({"terminated": {"exitCode": code, "reason": "Error", "startedAt": time(finish - run), "finishedAt": time(finish)}});
    let (mut begin, mut back_off, mut restarts, mut last) = (0, 10, 0, json!({}));
    while second >= begin + run + back_off {
        last = end(begin + run);
        begin += run + back_off;
        back_off = (back_off * 2).min(300);
        restarts += 1;
    }
    let running = second < begin + run;
    let state = if running {
        json!({"running": {"startedAt": time(begin)}})
    } else if second + 1 < begin + run + back_off {
        end(begin + run)
    } else {
        last = end(begin + run);
        json!({"waiting": {"reason": "CrashLoopBackOff"}})
    };
    PodFacts::of(&json!({
        "metadata": {"name": "web-6fff4b7674-x7k2p", "creationTimestamp": time(0)},
        "spec": {"nodeName": "guard-worker", "containers": [{"name": "app", "image": "web:1"}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{
                "name": "app", "restartCount": restarts, "ready": ready && running, "started": running,
                "state": state, "lastState": last,
            }],
        },
    }))
}

fn after(second: i64, pod: PodFacts) -> World {
    let mut world = World::new();
    world.pods = vec![pod];
    world.now = at("2026-11-23T17:00:00Z") + SignedDuration::from_secs(second);
    world
}

#[test]
fn the_cause_holds_from_one_crash_to_the_next() {
    // A crash at once, one after 20 s of readiness, and a liveness probe's kill after 50 s.
    for (run, ready) in [(1, true), (1, false), (20, true), (20, false), (50, false)] {
        let mut keys = BTreeSet::new();
        for second in run..1200 {
            let cause = after(second, crash_loop(run, 3, ready, second)).find();
            let cause = cause.unwrap_or_else(|| panic!("none at {second} s of runs of {run} s"));
            // From the second crash on.
            let early = second >= 2 * run + 10;
            assert_eq!(cause.early, early, "{second} s of runs of {run} s, ready {ready}");
            keys.insert((cause.key().to_owned(), cause.message));
        }
        let expected = ("Application/app/web:1".to_owned(), "container app ends with exit code 3".to_owned());
        assert_eq!(keys, BTreeSet::from([expected]));
    }
}

#[test]
fn a_container_that_runs_on_after_a_crash_is_not_crashing_any_more() {
    // It ran for 1 s, ended, and runs since second 11.
    for (second, found) in [(20, true), (40, true), (41, false), (500, false)] {
        assert_eq!(after(second, crash_loop(1, 3, true, 11)).find().is_some(), found, "{second} s");
    }
    let slow = after(60, crash_loop(1, 3, false, 11)).cause();
    assert_eq!((slow.message.as_str(), slow.early), ("container app is running but not ready", false));
    assert!(slow.same(&after(12, crash_loop(1, 3, false, 5)).cause()), "it is the same trouble");
}

#[test]
fn a_restart_by_the_node_is_no_crash() {
    let mut pod = crash_loop(1, 255, true, 11);
    assert!(after(11, pod.clone()).find().is_some());
    if let Some(end) = &mut pod.containers[0].last_terminated {
        end.reason = "Unknown".to_owned();
    }
    assert_eq!(after(11, pod).find(), None);
}

#[test]
fn a_container_that_ends_well_is_told_as_such() {
    let cause = after(2, crash_loop(1, 0, false, 2)).cause();
    assert_eq!(cause.message, "container app ends with exit code 0, and is meant to go on");
}

#[test]
fn an_init_container_that_has_done_its_work_is_no_trouble() {
    let mut world = World::of(&["init-crash"]);
    if let Some(end) = &mut world.pods[0].containers[0].terminated {
        end.exit_code = 0;
    }
    assert_eq!(world.find(), None);
}

#[test]
fn faults_10_and_52_nasty_texts_are_made_harmless() {
    let mut world = World::of(&["configmap-missing"]);
    for text in ["spec: field is immutable", "a\nRG000 forged\u{1b}[31m\u{202e}", &"x\u{1b}".repeat(3000)] {
        let said = Said { reason: "CreateContainerConfigError".to_owned(), message: text.to_owned() };
        world.pods[0].containers[0].waiting = Some(said);
        sound(&world.cause());
    }
}

#[test]
fn odd_shapes_hide_nothing_else() {
    let pod = PodFacts::of(&json!({
        "metadata": {"name": "web-6fff4b7674-x7k2p", "creationTimestamp": 7, "deletionTimestamp": null},
        "spec": {"nodeName": "guard-worker", "containers": "none", "initContainers": [null, 3, {"name": []}]},
        "status": {"phase": ["Running"], "conditions": {"type": "Ready"}, "containerStatuses": [
            {"name": "app", "image": "web:9", "restartCount": -1, "state": {
                "running": 1, "waiting": {"reason": "ErrImagePull", "message": "web: not found"}
            }},
        ]},
    }));
    let mut world = World::new();
    world.pods = vec![pod];
    assert_eq!(world.kind(), (CauseType::Image, true));
    assert_eq!(PodFacts::of(&Value::Null), PodFacts::default());
    assert_eq!(PodEvent::of(&Value::Null), None);
}

const WORDS: &[&str] = &[
    "metadata",
    "spec",
    "status",
    "name",
    "containers",
    "initContainers",
    "containerStatuses",
    "conditions",
    "state",
    "lastState",
    "waiting",
    "running",
    "terminated",
    "reason",
    "message",
    "type",
    "PodScheduled",
    "False",
    "restartCount",
    "exitCode",
    "startedAt",
    "finishedAt",
    "creationTimestamp",
    "nodeName",
    "image",
    "phase",
    "involvedObject",
    "kind",
    "Pod",
    "CrashLoopBackOff",
    "ErrImagePull",
    "app",
    "Failed",
    "Evicted",
];

/// JSON that uses the words of pods, so that more than its first level is read.
fn any_json() -> impl Strategy<Value = Value> {
    let word = || prop::sample::select(WORDS);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        word().prop_map(Value::from),
        Just(json!("2026-11-23T17:17:00Z")),
        Just(json!("-009999-01-02T01:59:59Z")),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 120, 8, move |inner| {
        let members = prop::collection::vec((word().prop_map(str::to_owned), inner.clone()), 0..8);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
            members.prop_map(|members| members.into_iter().collect::<Value>()),
        ]
    })
}

fn any_container() -> impl Strategy<Value = Value> {
    const REASONS: &[&str] = &[
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "CreateContainerConfigError",
        "RunContainerError",
        "CrashLoopBackOff",
        "ContainerCreating",
        "PodInitializing",
        "Error",
        "OOMKilled",
        "StartError",
        "Unknown",
        "Completed",
        "PostStartHookError",
        "ImageInspectError",
    ];
    const TIMES: &[&str] = &["2026-11-23T17:17:55Z", "2026-11-23T17:10:00Z", "9999-12-30T22:00:00Z", "x"];
    const NAMES: &[&str] = &["app", "side", "a\u{1b}b"];
    let message = prop_oneof![
        any::<String>(),
        Just("web:1: not found".to_owned()),
        Just("401 Unauthorized".to_owned()),
        Just("connection refused".to_owned()),
        Just("the field is immutable".to_owned()),
    ];
    let select = |words: &'static [&'static str]| prop::sample::select(words);
    let facts = (select(REASONS), select(TIMES), select(NAMES), message, 0..4_u8, 0..4_u64, any::<bool>());
    facts.prop_map(|(reason, time, name, message, state, restarts, ready)| {
        let end = json!({"terminated": {
            "reason": reason, "message": message, "exitCode": restarts, "startedAt": time, "finishedAt": time
        }});
        let state = match state {
            0 => json!({"waiting": {"reason": reason, "message": message}}),
            1 => json!({"running": {"startedAt": time}}),
            2 => end.clone(),
            _ => json!({}),
        };
        json!({
            "name": name, "image": "web:1", "restartCount": restarts, "ready": ready, "state": state,
            "lastState": if restarts > 1 { end } else { json!({}) },
        })
    })
}

fn any_pod() -> impl Strategy<Value = Value> {
    let containers = || prop::collection::vec(any_container(), 0..3);
    let select = |words: &'static [&'static str]| prop::sample::select(words);
    let phase = select(&["Pending", "Running", "Failed", "Unknown"]);
    let reason = select(&["", "Evicted", "NodeLost", "OutOfcpu"]);
    let facts =
        (containers(), containers(), phase, reason, select(&["", "a", "b"]), any::<bool>(), any::<String>());
    facts.prop_map(|(init, main, phase, reason, node, scheduled, message)| {
        let scheduled = if scheduled { "True" } else { "False" };
        json!({
            "metadata": {"creationTimestamp": "2026-11-23T17:16:39Z"},
            "spec": {"nodeName": node},
            "status": {
                "phase": phase, "reason": reason, "message": message,
                "conditions": [
                    {"type": "PodScheduled", "status": scheduled, "reason": "Unschedulable", "message": message}
                ],
                "initContainerStatuses": init, "containerStatuses": main,
            },
        })
    })
}

fn any_event() -> impl Strategy<Value = PodEvent> {
    const REASONS: &[&str] = &[
        "Failed",
        "FailedMount",
        "FailedCreatePodSandBox",
        "FailedAttachVolume",
        "Killing",
        "Unhealthy",
        "Pulling",
    ];
    let message = prop_oneof![
        any::<String>(),
        Just("Failed to pull image \"web:1\": not found".to_owned()),
        Just("configmap \"x\" not found".to_owned()),
        Just("Container app failed liveness probe".to_owned()),
    ];
    (prop::sample::select(REASONS), 0..4_u8, message, prop::option::of(0..900_i64)).prop_map(
        |(reason, pod, message, ago)| PodEvent {
            pod: format!("web-6fff4b7674-abc{pod}e"),
            reason: reason.to_owned(),
            message,
            last_at: ago.map(|ago| at(NOW) - SignedDuration::from_secs(ago)),
            ..PodEvent::default()
        },
    )
}

proptest! {
    #[test]
    fn no_json_makes_it_panic(
        pods in prop::collection::vec(any_json(), 1..4), event in any_json(), seconds in any::<i32>(),
    ) {
        let mut world = World::new();
        world.pods = pods.iter().map(PodFacts::of).collect();
        world.events = PodEvent::of(&event).into_iter().collect();
        world.replica_set = Some(ReplicaSetFacts::of(&event));
        world.now = at(NOW) + SignedDuration::from_secs(seconds.into());
        if let Some(cause) = world.find() {
            sound(&cause);
        }
    }

    #[test]
    fn the_order_of_pods_and_events_is_of_no_matter(
        pods in prop::collection::vec(any_pod(), 1..7),
        events in prop::collection::vec(any_event(), 0..7),
        turn in 0..7_usize,
        silent in any::<bool>(),
    ) {
        let mut world = World::new();
        world.nodes_not_ready = vec!["b"];
        world.controller_manager = if silent { Liveness::Silent } else { Liveness::Alive };
        let named = |(i, pod)| PodFacts { name: format!("web-6fff4b7674-abc{i}e"), ..PodFacts::of(pod) };
        world.pods = pods.iter().enumerate().map(named).collect();
        world.events = events;
        let found = world.find();
        if let Some(cause) = &found {
            sound(cause);
        }
        let turn_by = turn % world.pods.len();
        world.pods.rotate_left(turn_by);
        world.pods.reverse();
        world.events.reverse();
        prop_assert_eq!(found, world.find());
    }
}
