//! The watcher: memory for 10,000 and 150,000 Deployments (goals G7 and G8), and the time from a failure to the
//! acknowledged rollback (G9).
//!
//! `cargo bench --bench watcher`, with `-- --json` for machines. See docs/performance.md.

mod api;
#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "the typed webhook and its judge are the other benchmarks'")]
mod common;
#[path = "../admission/host.rs"]
#[allow(dead_code, reason = "nothing is pinned here")]
mod host;
mod memory;
mod objects;
mod safety;

use std::net::SocketAddr;

use anyhow::Context;
use clap::Parser;
use memory::{Taken, Way};
use objects::Objects;
use safety::Safety;
use serde::Serialize;

#[derive(Parser)]
struct Args {
    /// Prints JSON instead of tables.
    #[arg(long)]
    json: bool,

    /// Deployments of the small cluster.
    #[arg(long, default_value_t = 10_000)]
    small: usize,

    /// Deployments of the large one; 0 leaves it out.
    #[arg(long, default_value_t = 150_000)]
    large: usize,

    /// Rollbacks whose time is measured; 0 leaves them out.
    #[arg(long, default_value_t = 300)]
    rollbacks: usize,

    /// Given by `cargo bench`; without it next to nothing is measured.
    #[arg(long, hide = true)]
    bench: bool,

    /// Is a process whose memory is measured.
    #[arg(long, hide = true)]
    child: Option<Way>,

    /// The Deployments that a child waits for.
    #[arg(long, hide = true, default_value_t = 0)]
    count: usize,

    /// Where a child finds the API server.
    #[arg(long, hide = true)]
    api: Option<SocketAddr>,
}

#[derive(Serialize)]
struct Report {
    /// Of the smallest object, the largest, and one on the average.
    object_bytes: (usize, usize, usize),
    memory: Vec<Memory>,
    /// The load average of a minute, before and after.
    load_average: (f64, f64),
    safety: Option<Safety>,
}

#[derive(Serialize)]
struct Memory {
    way: Way,
    deployments: usize,
    taken: Taken,
}

impl Memory {
    /// KiB for each Deployment, over what the process took before.
    fn each_kib(&self) -> f64 {
        let after = self.taken.events_kib.max(self.taken.listed_kib);
        after.saturating_sub(self.taken.before_kib) as f64 / self.deployments as f64
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(way) = args.child {
        return memory::child(way, args.count, args.api.context("no API server")?);
    }
    rollout_guard::tls::install_provider();
    let (small, large, rollbacks) =
        if args.bench { (args.small, args.large, args.rollbacks) } else { (200, 0, 3) };
    let before = host::load()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut memory = Vec::new();
    let peers = if args.bench { small } else { 0 };
    let runs = [
        (Way::Guard, small),
        (Way::Reflector, small),
        (Way::ControllerRuntime, peers),
        (Way::KubeStateMetrics, peers),
        (Way::Guard, large),
    ];
    for (way, deployments) in runs.into_iter().filter(|(_, deployments)| *deployments > 0) {
        if !way.is_there() {
            eprintln!("{way:?} is not measured: `make bench` names its program");
            continue;
        }
        let taken = runtime.block_on(memory::measure(way, deployments))?;
        anyhow::ensure!(taken.held == deployments, "{way:?} holds {} of {deployments}", taken.held);
        memory.push(Memory { way, deployments, taken });
    }
    let safety = if rollbacks > 0 { Some(safety::measure(small, rollbacks)?) } else { None };
    let report = Report {
        object_bytes: Objects::new()?.bytes(),
        memory,
        load_average: (before, host::load()?),
        safety,
    };
    if !args.bench {
        println!(
            "guard and reflector hold the same, and rollbacks are acknowledged; `cargo bench` measures them"
        );
    } else if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print();
    }
    Ok(())
}

impl Report {
    fn print(&self) {
        let (least, most, mean) = self.object_bytes;
        let (before, after) = self.load_average;
        println!(
            "\nDeployments of {least} to {most} bytes of JSON, {mean} on the average; load average {before:.2} before, \
             {after:.2} after.\n"
        );
        println!(
            "{:18} {:>11} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>11} {:>8}",
            "",
            "Deployments",
            "start MiB",
            "list MiB",
            "then MiB",
            "peak MiB",
            "KiB each",
            "list us",
            "event us",
            "list s"
        );
        for row in &self.memory {
            let mib = |kib: u64| kib as f64 / 1024.0;
            let Taken { before_kib, listed_kib, events_kib, peak_kib, .. } = row.taken;
            println!(
                "{:18} {:>11} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.2} {:>10.1} {:>11.1} {:>8.1}",
                row.way.name(),
                row.deployments,
                mib(before_kib),
                mib(listed_kib),
                mib(events_kib),
                mib(peak_kib),
                row.each_kib(),
                row.taken.list_cpu_us,
                row.taken.event_cpu_us,
                row.taken.list_seconds,
            );
        }
        println!(
            "\nResident memory: at the start, when the list is complete, after as many events, and the peak.\n"
        );
        for (goal, what, measured, bound, unit) in self.goals() {
            let verdict = if measured <= bound { "met" } else { "NOT met" };
            println!("{goal:4} {what:66} {measured:>8.2} {unit:3} <= {bound:>6.2} {verdict}");
        }
        for (what, measured, bound) in self.ratios() {
            let verdict = if measured >= bound { "met" } else { "NOT met" };
            println!("G7   {what:66} {measured:>8.2} x   >= {bound:>6.2} {verdict}");
        }
        if let Some(safety) = &self.safety {
            safety.print();
        }
        println!();
    }

    /// What, how many times more than the guard's, at the least. By the peak over what a process took before it asked for the
    /// list: that is what the Deployments cost.
    fn ratios(&self) -> Vec<(&'static str, f64, f64)> {
        let over = |row: &Memory| row.taken.peak_kib.saturating_sub(row.taken.before_kib) as f64;
        let of = |way: Way| self.memory.iter().find(|row| row.way == way).map(over);
        let Some(guard) = of(Way::Guard) else { return Vec::new() };
        let ratio = |way, what, bound| Some((what, of(way)? / guard, bound));
        let ratios = [
            ratio(Way::ControllerRuntime, "a controller-runtime cache takes, over the guard's", 20.0),
            ratio(Way::KubeStateMetrics, "kube-state-metrics takes, over the guard's", 10.0),
        ];
        ratios.into_iter().flatten().collect()
    }

    /// Goal, what, measured, at the most, unit. By the peak, not by what is left when all is quiet.
    fn goals(&self) -> Vec<(&'static str, &'static str, f64, f64, &'static str)> {
        let guards: Vec<&Memory> = self.memory.iter().filter(|row| row.way == Way::Guard).collect();
        let mib = |row: &Memory| row.taken.peak_kib as f64 / 1024.0;
        let mut goals = Vec::new();
        if let Some(small) = guards.first() {
            goals.push(("G7", "peak RSS with the small cluster", mib(small), 20.0, "MiB"));
            goals.push(("G7", "for each Deployment, over the start", small.each_kib(), 0.5, "KiB"));
        }
        if let Some(large) = guards.get(1) {
            goals.push(("G8", "peak RSS with the large cluster", mib(large), 100.0, "MiB"));
            goals.push(("", "for each Deployment, over the start", large.each_kib(), 0.5, "KiB"));
        }
        if let Some(safety) = &self.safety {
            goals.push(("G9", "failure sent to rollback answered, p99", safety.restored_ms.p99, 50.0, "ms"));
        }
        goals
    }
}
