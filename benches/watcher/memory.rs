//! What a process takes that watches Deployments, the guard's way and the naive one (goals G7 and G8).

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, Client, Config,
    runtime::{WatchStreamExt, reflector, watcher},
};
use rollout_guard::{
    cluster::{Cluster, policies::Event},
    watcher::store::Store,
};
use serde::{Deserialize, Serialize};

use crate::{api::Listed, host};

/// How Deployments are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The guard's stream and store.
    Guard,
    /// `reflector::store::<Deployment>()` of kube, as its examples have it.
    Reflector,
    /// An informer of controller-runtime, as Go controllers have it (`benches/peers`); the program is named by the
    /// environment's CONTROLLER_RUNTIME.
    ControllerRuntime,
    /// kube-state-metrics with `--resources=deployments`, which feeds the alert; by the environment's KUBE_STATE_METRICS.
    KubeStateMetrics,
}

impl Way {
    /// Returns the program that goes this way, with its arguments; none where the guard's own does, or nobody has named it.
    fn program(self, api: SocketAddr) -> Option<Command> {
        let named =
            |variable: &str| std::env::var_os(variable).filter(|path| !path.is_empty()).map(Command::new);
        match self {
            Self::Guard | Self::Reflector => None,
            Self::ControllerRuntime => named("CONTROLLER_RUNTIME").map(|mut command| {
                command.arg(format!("http://{api}"));
                command
            }),
            Self::KubeStateMetrics => named("KUBE_STATE_METRICS").map(|mut command| {
                command.args([
                    &format!("--apiserver=http://{api}"),
                    "--resources=deployments",
                    "--host=127.0.0.1",
                    "--telemetry-host=127.0.0.1",
                    "--port=0",
                    "--telemetry-port=0",
                ]);
                command
            }),
        }
    }

    /// Returns its name, as it is given on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Says whether it can be measured here.
    pub fn is_there(self) -> bool {
        matches!(self, Self::Guard | Self::Reflector)
            || self.program(SocketAddr::from(([127, 0, 0, 1], 0))).is_some()
    }
}

/// What a child has measured of itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Taken {
    /// How many Deployments it holds in the end.
    pub held: usize,
    /// Resident memory in KiB: before the first call, when the list was complete, after as many events, at the peak.
    pub before_kib: u64,
    pub listed_kib: u64,
    pub events_kib: u64,
    pub peak_kib: u64,
    /// CPU time for each Deployment of the list, and for each event, in microseconds.
    pub list_cpu_us: f64,
    pub event_cpu_us: f64,
    /// Seconds until the list was complete.
    pub list_seconds: f64,
}

/// Measures `way` with `count` Deployments in a process of its own; the API server is in this one.
pub async fn measure(way: Way, count: usize) -> anyhow::Result<Taken> {
    let (address, listed) = Listed::serve(count).await?;
    if let Some(program) = way.program(address) {
        return tokio::task::spawn_blocking(move || from_outside(program, count, &listed)).await?;
    }
    tokio::task::spawn_blocking(move || {
        let way = way.to_possible_value().context("a way without a name")?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--child", way.get_name(), "--count", &count.to_string(), "--api", &address.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let status = child.wait()?;
        if !status.success() {
            bail!("the child ended with {status}");
        }
        Ok(serde_json::from_str(&line)?)
    })
    .await?
}

/// How long a program may take that is measured from outside.
const LIMIT: Duration = Duration::from_secs(300);

/// Measures a program that does not do so itself: from when it asks for the list, over when it watches, to when it has taken
/// all events and rests.
fn from_outside(mut program: Command, count: usize, listed: &Listed) -> anyhow::Result<Taken> {
    let mut child = program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let measured = readings(child.id(), listed);
    let _ = child.kill();
    let _ = child.wait();
    let [before, list, after] = measured?;
    Ok(taken(count, count, &before, &list, &after))
}

fn readings(pid: u32, listed: &Listed) -> anyhow::Result<[Reading; 3]> {
    let started = Instant::now();
    let reached = |what: &str, is: &dyn Fn() -> bool| -> anyhow::Result<Reading> {
        while !is() {
            anyhow::ensure!(started.elapsed() < LIMIT, "{what}: not within {} s", LIMIT.as_secs());
            Reading::of(pid).with_context(|| format!("{what}: the program has ended"))?;
            std::thread::sleep(Duration::from_millis(2));
        }
        Reading::of(pid)
    };
    let before = reached("the list is asked for", &|| listed.is_asked())?;
    let list = reached("the list is complete", &|| listed.is_listed())?;
    let mut after = reached("all events are taken", &|| listed.is_told())?;
    // What was taken is worked on until no more CPU time goes into it.
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = Reading::of(pid)?;
        if now.cpu.saturating_sub(after.cpu) < Duration::from_millis(20) {
            return Ok([before, list, now]);
        }
        anyhow::ensure!(started.elapsed() < LIMIT, "it does not come to rest");
        after = now;
    }
}

/// Is the child: watches, measures itself, prints one line.
pub fn child(way: Way, count: usize, api: SocketAddr) -> anyhow::Result<()> {
    rollout_guard::tls::install_provider();
    // As many workers as the guard has on two cores.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let config = Config::new(format!("http://{api}").parse()?);
    let taken = runtime.block_on(async {
        // On a worker, as the watcher is.
        tokio::spawn(async move {
            match way {
                Way::Guard => guard(config, count).await,
                Way::Reflector => naive(config, count).await,
                Way::ControllerRuntime | Way::KubeStateMetrics => bail!("is a program of its own"),
            }
        })
        .await?
    })?;
    println!("{}", serde_json::to_string(&taken)?);
    Ok(())
}

/// What is read at a point in time.
struct Reading {
    at: Instant,
    cpu: Duration,
    rss_kib: u64,
    peak_kib: u64,
}

impl Reading {
    fn now() -> anyhow::Result<Self> {
        Self::of(std::process::id())
    }

    fn of(pid: u32) -> anyhow::Result<Self> {
        let (rss_kib, peak_kib) = host::memory(pid)?;
        Ok(Self { at: Instant::now(), cpu: host::cpu(pid)?, rss_kib, peak_kib })
    }
}

fn taken(held: usize, count: usize, before: &Reading, listed: &Reading, after: &Reading) -> Taken {
    let each = |from: &Reading, to: &Reading| (to.cpu - from.cpu).as_secs_f64() * 1e6 / count as f64;
    Taken {
        held,
        before_kib: before.rss_kib,
        listed_kib: listed.rss_kib,
        events_kib: after.rss_kib,
        peak_kib: after.peak_kib,
        list_cpu_us: each(before, listed),
        event_cpu_us: each(listed, after),
        list_seconds: (listed.at - before.at).as_secs_f64(),
    }
}

async fn guard(config: Config, count: usize) -> anyhow::Result<Taken> {
    let before = Reading::now()?;
    let mut stream = Cluster::new(config)?.watch_deployments_raw();
    let mut store = Store::new();
    let (mut listed, mut events) = (None, 0);
    while let Some(event) = stream.next().await {
        match event {
            Event::Restarted => store.restart(),
            Event::Applied(object) => {
                store.apply(object.raw())?;
                events += usize::from(listed.is_some());
            }
            Event::Deleted(object) => {
                store.delete(&object.key());
            }
            Event::Synced => listed = Some(Reading::now()?),
            Event::Failed(why) => bail!(why),
        }
        if events == count {
            break;
        }
    }
    let after = Reading::now()?;
    Ok(taken(store.len(), count, &before, &listed.context("no list")?, &after))
}

async fn naive(config: Config, count: usize) -> anyhow::Result<Taken> {
    let before = Reading::now()?;
    let api = Api::<Deployment>::all(Client::try_from(config)?);
    let (store, writer) = reflector::store::<Deployment>();
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    let mut stream = std::pin::pin!(reflector(writer, stream));
    let (mut listed, mut events) = (None, 0);
    while let Some(event) = stream.next().await {
        match event? {
            watcher::Event::InitDone => listed = Some(Reading::now()?),
            watcher::Event::Apply(_) => events += 1,
            _ => {}
        }
        if events == count {
            break;
        }
    }
    let after = Reading::now()?;
    Ok(taken(store.len(), count, &before, &listed.context("no list")?, &after))
}
