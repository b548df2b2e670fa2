//! kube-controller-manager stopped: nothing is observed any more.

use std::thread;

use serde_json::json;

use crate::harness::{Scenario, cluster, deployment, scenario::is_unobserved, workload::image_of};

#[test]
fn without_kube_controller_manager_the_second_push_is_held_until_it_is_back() {
    let s = Scenario::alone("no-manager");
    s.create_complete(&deployment("web", |d| d["metadata"]["labels"]["queue"] = json!("short")));
    s.create_complete(&deployment("other", |_| {}));
    let short = json!({"selector": {"matchLabels": {"queue": "short"}}, "admission": {"maxWaitSeconds": 1}});
    let _policy = s.put_in_force("short", short);
    let stopped = cluster::without_controller_manager();
    for name in ["web", "other"] {
        s.accepts(name, |push| push.image("v2"));
        assert!(is_unobserved(&s.deployment(name)), "observed by nobody");
    }
    let held = s.rejects("web", |push| push.image("v3")).because("RG001");
    assert!(held.took > 5.0, "did not queue: {:.1} s", held.took);
    // The default policy's queue is longer than it takes to bring it back.
    let done = thread::scope(|scope| {
        let waiting = scope.spawn(|| s.push("other", |push| push.image("v3")));
        s.is_told_to_wait("other");
        drop(stopped);
        waiting.join().expect("thread")
    });
    s.say(&format!("went through by itself after {:.1} s", done.took.as_secs_f64()));
    done.succeeds();
    s.completes("other");
    assert_eq!(image_of(&s.deployment("other")), "localhost/sample:v3");
}
