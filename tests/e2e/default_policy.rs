//! The policy that the chart installs, with its real times. (A file of its own that sorts early: the minute passes
//! while other scenarios run.)

use crate::harness::{Scenario, deployment, seconds};

#[test]
fn set_image_waits_about_a_minute_under_the_default_policy_and_then_says_why() {
    let s = Scenario::shared("minute");
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
