//! The guard killed by SIGKILL in the middle of a rollback: the rollback is carried out, and it is one.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{gates, guard, records};
use crate::{
    harness::{
        Scenario,
        cluster::kubectl,
        deployment, installation,
        record::{Pushed, is_announced, outcome, same_template, short},
        seconds,
    },
    watcher::without_settings,
};

#[test]
fn faults_30_and_50_a_leader_that_is_killed_before_any_step_of_a_rollback_leaves_it_to_the_next() {
    let s = Scenario::alone("leader-killed");
    is_carried_out_once(&s, |leader| vec![leader]);
}

#[test]
fn faults_24_and_30_with_all_replicas_killed_during_rollbacks_each_is_carried_out_once_and_nobody_is_needed()
{
    let s = Scenario::alone("all-killed");
    is_carried_out_once(&s, |_| installation::ready_pods().expect("pods"));
}

#[test]
fn fault_33_a_leader_that_is_paused_beyond_its_lease_in_the_middle_of_rollbacks_writes_nothing_when_it_goes_on()
 {
    let s = Scenario::alone("leader-paused");
    let _policy = s.put_in_force("short", patient());
    create_good(&s, &gates::STEPS);
    let closed = gates::closed(&s);
    let pushed = push_at_once(&s, &gates::STEPS);
    gates::are_reached(&s, &gates::STEPS);
    let leader = guard::holder().expect("a leader");
    let pods = [guard::pod_of(&leader)];
    let restarts = guard::restarts();
    let goes_on = guard::Kill::by("CONT", &pods);
    guard::Kill::by("STOP", &pods).now();
    s.say("seconds are from when it was paused");
    let pushed: Vec<Pushed<'_>> = pushed.into_iter().map(Pushed::counted_from_now).collect();
    drop(closed);
    let next = guard::another_leads(&leader);
    // All are written by the next leader before the one that was paused goes on.
    for (step, pushed) in gates::STEPS.into_iter().zip(&pushed) {
        s.wait_for("the template is back", step, |d| same_template(d, &pushed.good));
    }
    goes_on.now();
    s.say(&format!("{leader} was paused, {next} leads, {leader} goes on"));
    are_safe(&s, &gates::STEPS, pushed);
    assert_eq!(guard::restarts(), restarts, "the one that was paused was ended, and did not go on");
    assert_eq!(guard::holder().as_deref(), Ok(next.as_str()), "the lead went back");
}

/// A policy with short times but for the announcement, which is there for longer than the guard stands before the gates.
fn patient() -> Value {
    let mut policy = short();
    policy["rollback"]["announceFor"] = json!("30s");
    policy
}

/// Five rollbacks that stand before one step each; then the guard is killed in the pods that `victims` makes of the
/// leader's.
fn is_carried_out_once(s: &Scenario, victims: impl FnOnce(String) -> Vec<String>) {
    let policy = s.put_in_force("short", patient());
    create_good(s, &gates::STEPS);
    let closed = gates::closed(s);
    let pushed = push_at_once(s, &gates::STEPS);
    gates::are_reached(s, &gates::STEPS);
    for (step, pushed) in gates::STEPS.into_iter().zip(&pushed) {
        let (deployment, record) = (s.deployment(step), s.record(step));
        let restored = same_template(&deployment, &pushed.good);
        let there = gates::stands_before(step, &record, restored, is_announced(&deployment));
        assert!(there, "not before {step}: restored {restored}, {}, {record}", deployment["status"]);
    }
    let leader = guard::holder().expect("a leader");
    guard::Kill::prepared(&victims(guard::pod_of(&leader))).now();
    s.say("seconds are from the kill");
    let pushed: Vec<Pushed<'_>> = pushed.into_iter().map(Pushed::counted_from_now).collect();
    // The next leader meets no gate: the lease of the one that was killed lasts for longer than this takes.
    drop(closed);
    let next = guard::another_leads(&leader);
    s.say(&format!("killed {leader}, {next} leads"));
    // All that stood before a gate has been seen, and the end of the announcements is waited for.
    let soon = json!({"spec": {"rollback": {"announceFor": "1s"}}}).to_string();
    kubectl(["patch", "rolloutpolicy", &policy.name, "--type=merge", "-p", &soon]).succeeds();
    are_safe(s, &gates::STEPS, pushed);
}

/// Where the kill falls is left to chance here: four rollbacks begin at nearly the same time, and the leader is killed as
/// soon as the first, the second and the third of them is written down.
#[test]
fn fault_30_a_leader_that_is_killed_at_any_moment_of_its_rollbacks_leaves_none_undone_and_none_done_twice() {
    // Each kill costs a lease's time: one turn, or as many as TURNS says, up to three.
    let turns = std::env::var("TURNS").ok().and_then(|turns| turns.parse().ok()).unwrap_or(1);
    let s = Scenario::alone("killed-anywhere");
    let _policy = s.short_policy();
    for turn in [1, 0, 2].into_iter().take(turns) {
        let names: Vec<String> = (0..4).map(|i| format!("web-{turn}-{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        create_good(&s, &names);
        let leader = guard::holder().expect("a leader");
        let watch = records::Watch::start();
        let kill = guard::Kill::prepared(&[guard::pod_of(&leader)]);
        let pushed = push_at_once(&s, &names);
        let mut begun = BTreeSet::new();
        watch.until("rollbacks begin", seconds(60), |change| {
            if change.namespace == s.namespace
                && names.contains(&change.name.as_str())
                && !change.outcome.is_empty()
            {
                begun.insert(change.name.clone());
            }
            begun.len() > turn
        });
        kill.now();
        let records: Vec<Value> = names.iter().map(|name| s.record(name)).collect();
        assert!(
            records.iter().any(|record| outcome(record) != "Succeeded"),
            "all were over before the leader was killed"
        );
        let state = |(name, record): (&&str, &Value)| format!("{name} {}", record["status"]["rollback"]);
        let states: Vec<String> = names.iter().zip(&records).map(state).collect();
        s.say(&format!("killed {leader} in turn {turn}:\n{}", states.join("\n")));
        guard::another_leads(&leader);
        are_safe(&s, &names, pushed);
    }
}

fn create_good(s: &Scenario, names: &[&str]) {
    let list: Vec<Value> = names.iter().map(|name| deployment(name, |_| {})).collect();
    s.create(&json!({"apiVersion": "v1", "kind": "List", "items": list}));
    names.iter().for_each(|name| s.completes(name));
    names.iter().for_each(|name| s.becomes_good(name));
}

/// Pushes what the kubelet turns down to all of them by one command.
fn push_at_once<'a>(s: &'a Scenario, names: &[&str]) -> Vec<Pushed<'a>> {
    let pushed = names.iter().map(|name| s.about_to_push(name).within(seconds(120)));
    let pushed: Vec<Pushed<'a>> = pushed.collect();
    let mut patch = without_settings();
    // A value that is put back is owned by the guard until it hands it back; what is only taken away is not.
    patch["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(1);
    let patch = patch.to_string();
    s.kubectl(["patch", "deployment"]).args(names).args(["--type=strategic", "-p", &patch]).succeeds();
    pushed.into_iter().map(Pushed::counted_from_now).collect()
}

/// Says that each was rolled back once, that all traces go, and that all replicas come back by themselves.
fn are_safe(s: &Scenario, names: &[&str], pushed: Vec<Pushed<'_>>) {
    for pushed in &pushed {
        pushed.is_safe("Configuration");
    }
    installation::wait_ready();
    for (name, pushed) in names.iter().zip(&pushed) {
        s.announcement_ends(name);
        let deployment = s.deployment(name);
        assert!(same_template(&deployment, &pushed.good), "{deployment}");
        guard::wrote_once(&deployment);
        s.is_told_once(name, "RolledBack");
    }
}
