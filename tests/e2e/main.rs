//! The guard in a real cluster: a real kubelet, the image as it ships, the chart installed by Helm, and everything
//! said to the API server by kubectl and helm as people and pipelines say it; only what is looked at again and again is
//! read without them. Nothing is simulated but the nodes of the scale scenario, which kwok plays.
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
//! (`localhost/sample`, with the tags v1, v2 and v3), `KWOK`, `KUBE_STATE_METRICS` (the programs) and `PROMETHEUS` (the
//! directory) and `CHROMIUM`, as the scripts of those names in `tests/kind` print them; `INSTALLED` where the guard
//! that is there is to be used as it is;
//! `CHART` where another chart than this tree's is meant. How much: `THREADS` (scenarios side by side, by `make e2e`;
//! by hand `--test-threads`), `LOOPS` (Helm's rollbacks and fixes of each of three releases, 3), `TURNS` (of killing the leader, 1) and `SCALE`
//! (Deployments of the scale
//! scenario, 1000). `UPDATE_PICTURE=1`: the scenario `page::live` writes the pictures of the documentation.
//!
//! `make e2e` runs half of those in [`whole_cluster`] in a cluster of their own, beside the others, by the names of their
//! modules (`tests/kind/e2e.sh`). The chart is installed once in a run of the binary. Each scenario has a namespace of
//! its own and runs beside the others; those in [`whole_cluster`] disturb everybody, so they run alone and put back what
//! they changed. The name of a test says what holds; a number is that of the fault it comes from.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a scenario fails by panicking, in its helpers as well"
)]

mod harness;

mod admission;
mod appliers;
mod commands;
mod default_policy;
mod failed;
mod freezes;
mod modes;
mod monitoring;
mod overrides;
mod page;
mod policies;
mod signals;
mod unobserved;
mod watcher;
mod whole_cluster;
