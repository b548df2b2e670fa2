//! The guard is restarted while everybody works.

use std::time::Instant;

use crate::harness::{
    Scenario, Stream,
    cluster::kubectl,
    installation::{self, Values},
    seconds,
    stream::failures,
    wait::holds,
    wait_until,
};

#[test]
fn a_rolling_restart_under_a_stream_of_updates_loses_none_even_with_fail() {
    // The chart's own times of the drain.
    let values = ["webhook.failurePolicy=Fail", "shutdown.drainDelaySeconds=10", "shutdown.preStopSeconds=2"];
    let s = Scenario::alone_with("restart", &Values::of(&values));
    let before = installation::ready_pods().expect("pods");
    let stream = Stream::start(&s);
    wait_until("the stream flows", seconds(20), || holds(stream.sent() >= 5, stream.sent().to_string()));
    let started = Instant::now();
    kubectl(["rollout", "restart", "deployment", installation::NAME, "-n", installation::NAME]).succeeds();
    installation::rolled_out();
    wait_until("the old replicas are gone", seconds(90), || {
        let now = installation::pods()?;
        holds(now.len() == 2 && now.iter().all(|pod| !before.contains(pod)), format!("{now:?}"))
    });
    let took = started.elapsed().as_secs_f64();
    let meanwhile = stream.sent();
    wait_until("200 updates", seconds(120), || holds(stream.sent() >= 200, stream.sent().to_string()));
    let updates = stream.finish();
    let slowest = updates.iter().map(|update| update.done.took).max().unwrap_or_default();
    s.say(&format!(
        "{meanwhile} updates while the restart took {took:.1} s, {} in all, slowest {:.1} s",
        updates.len(),
        slowest.as_secs_f64(),
    ));
    let failures = failures(&updates);
    assert!(failures.is_empty(), "{} of {} failed: {}", failures.len(), updates.len(), failures.join("\n"));
}
