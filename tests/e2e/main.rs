//! The guard in a real cluster: a real kubelet, the image as it ships, the chart installed by Helm, and everything
//! said to the API server by kubectl and helm as people and pipelines say it. Nothing is simulated but the nodes of
//! the scale scenario, which kwok plays.
//!
//! `make e2e` makes the cluster and runs this. By hand, against a cluster that `tests/kind/cluster.sh up` made:
//!
//! ```sh
//! eval "$(tests/kind/cluster.sh env rollout-guard-test)"
//! cargo test --test e2e -- --nocapture
//! ```
//!
//! From the environment: `KUBECONFIG` and `PATH` (kubectl, helm), `NODE` and `NODE_EXEC` (how to run a command in
//! the node), `IMAGE` (the guard's reference, `localhost/rollout-guard:dev`) and `SAMPLE_IMAGE`
//! (`localhost/sample`, with the tags v1, v2 and v3), `KWOK` (the program, as `tests/kind/kwok.sh` prints it);
//! `CHART` where another chart than this tree's is meant. How much: `THREADS` (scenarios side by side, by `make e2e`;
//! by hand `--test-threads`), `LOOPS` (Helm's rollbacks and fixes, 10), `TURNS` (of killing the leader, 1) and `SCALE`
//! (Deployments of the scale
//! scenario, 1000).
//!
//! The chart is installed once in a run. Each scenario has a namespace of its own and runs beside the others;
//! those in [`whole_cluster`] disturb everybody, so they run alone and put back what they changed. The name of a
//! test says what holds; a number is that of the fault it comes from.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a scenario fails by panicking, in its helpers as well"
)]

mod harness;

mod admission;
mod appliers;
mod default_policy;
mod failed;
mod freezes;
mod modes;
mod overrides;
mod policies;
mod signals;
mod unobserved;
mod watcher;
mod whole_cluster;
