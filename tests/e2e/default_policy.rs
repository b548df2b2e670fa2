//! The policy that the chart installs, with its real times. (A file of its own that sorts early: the minute passes
//! while other scenarios run.)

use serde_json::json;

use crate::harness::{Scenario, deployment, seconds};

#[test]
fn a_push_over_a_generation_that_cannot_be_observed_waits_until_that_one_is_rolled_back() {
    let s = Scenario::shared("minute-rolled-back");
    s.create_unobserved(&[deployment("web", |_| {})]);
    let done = s.kubectl(["set", "image", "deployment/web", "app=localhost/sample:v3"]).done();
    s.say(&format!("kubectl went through after {:.1} s", done.took.as_secs_f64()));
    assert!((seconds(30)..seconds(120)).contains(&done.took), "{}", done.report());
    done.succeeds();
    let record = s.json(["get", "rolloutrecord", "deployment-web"]);
    assert_eq!(record["status"]["rollback"]["cause"], "ReplicaSetCreate", "{record}");
}

#[test]
fn where_rollbacks_are_left_to_people_set_image_waits_about_a_minute_and_then_says_why() {
    let s = Scenario::shared("minute");
    let _policy = s.put_in_force("manual", json!({"rollback": {"mode": "Manual"}}));
    s.create_unobserved(&[deployment("web", |_| {})]);
    let generation = s.generation("web");
    let done = s.kubectl(["set", "image", "deployment/web", "app=localhost/sample:v3"]).done();
    s.say(&format!("kubectl gave up after {:.1} s", done.took.as_secs_f64()));
    assert!((seconds(30)..seconds(120)).contains(&done.took), "{}", done.report());
    let words = done.fails();
    assert!(words.contains("RG001 ") && words.contains("(ReplicaSetCreateError)"), "{words}");
    assert!(words.contains("Fix: ") && words.contains("Override: ") && words.contains("Docs: "), "{words}");
    assert!(words.contains("exceeded quota: replicasets"), "Kubernetes' own words are missing: {words}");
    assert_eq!(s.generation("web"), generation);
}
