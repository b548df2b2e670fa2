//! The guard beside a bare axum echo (goal G1) and the typed webhook (G2), and a burst of handshakes (G6).
//!
//! `cargo bench --bench admission`, with `-- --json` for machines. See docs/performance.md.

mod client;
#[path = "../common/mod.rs"]
mod common;
mod host;
mod report;
mod server;

use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use client::{Client, Connection, Load};
use common::review::{self, Case};
use report::{Bound, Goal, Report, Row, Setup, Spread};
use serde_json::Value;
use server::{Identity, Kind, Server};

/// Connections of the burst.
const BURST: usize = 200;

/// Bursts at each server.
const BURSTS: usize = 15;

#[derive(Parser)]
struct Args {
    /// Prints JSON instead of tables.
    #[arg(long)]
    json: bool,

    /// Rounds; in each of them every server has its turn.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Seconds that a turn takes.
    #[arg(long, default_value_t = 2.5)]
    seconds: f64,

    /// Connections of the load.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=200))]
    connections: u32,

    /// Given by `cargo bench`; without it nothing is measured.
    #[arg(long, hide = true)]
    bench: bool,

    /// Is one of the servers.
    #[arg(long, hide = true, value_name = "KIND")]
    serve: Option<Kind>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(kind) = args.serve {
        return server::run(kind);
    }
    rollout_guard::tls::install_provider();
    let cores = host::cores()?;
    // The last two cores: the first has the interrupts.
    let (client_core, server_core) = match cores.as_slice() {
        [.., server, client] => (Some(*client), Some(*server)),
        _ => (None, None),
    };
    let identity = Identity::issue()?;
    let servers = Kind::ALL
        .iter()
        .map(|kind| Server::start(*kind, &identity, server_core))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(core) = client_core {
        host::pin(core)?;
    }
    let client = Client::new(&identity.authority)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        same_verdicts(&client, &servers).await?;
        if !args.bench {
            println!("the guard and the typed webhook agree; `cargo bench` measures them");
            return Ok(());
        }
        let bench = Bench { client, servers, request: client::request(&review::body(Case::Settled)) };
        let before = host::load()?;
        let rounds = bench.load(&args).await?;
        let bursts = bench.bursts().await?;
        let report = Report {
            setup: Setup {
                body_bytes: review::body(Case::Settled).len(),
                connections: args.connections as usize,
                rounds: args.rounds as usize,
                seconds_per_round: args.seconds,
                server_core,
                client_core,
                load_average: (before, host::load()?),
            },
            servers: bench.rows(&rounds)?,
            goals: goals(&rounds, &bursts),
        };
        if args.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            report.print();
        }
        Ok(())
    })
}

/// Fails unless the guard and the typed webhook give the same verdict on every case: else they would not compare.
async fn same_verdicts(client: &Client, servers: &[Server]) -> anyhow::Result<()> {
    for case in Case::ALL {
        let request = client::request(&review::body(case));
        let mut verdicts = Vec::new();
        for server in servers.iter().filter(|server| matches!(server.kind, Kind::Guard | Kind::Typed)) {
            let mut connection = client.open(server.address).await?;
            let answer: Value = serde_json::from_slice(connection.call(&request).await?)?;
            let response = &answer["response"];
            let code = response["status"]["code"].as_u64().unwrap_or_default();
            verdicts.push((response["allowed"].as_bool().context("no verdict")?, code));
        }
        let expected = match case {
            Case::Settled | Case::Scaled => (true, 0),
            Case::Failed => (false, 403),
            Case::Unobserved => (false, 429),
        };
        ensure!(verdicts == [expected, expected], "{}: {verdicts:?}, want {expected:?}", case.name());
    }
    Ok(())
}

/// What a server did in its turn of a round.
struct Turn {
    requests_per_second: f64,
    cpu_us: f64,
    p50_us: f64,
    p99_us: f64,
    server_busy: f64,
}

/// What the bursts took.
struct Bursts {
    guard_ms: Spread,
    /// Of the server, on average.
    guard_cpu_ms: f64,
    echo_ms: Spread,
}

/// A round: a turn of each server, in the order of [`Kind::ALL`].
type Round = Vec<Turn>;

struct Bench {
    client: Client,
    servers: Vec<Server>,
    request: Vec<u8>,
}

impl Bench {
    async fn load(&self, args: &Args) -> anyhow::Result<Vec<Round>> {
        let mut connections = Vec::new();
        for server in &self.servers {
            let mut opened = self.client.open_all(server.address, args.connections as usize).await?;
            Load::run(&mut opened, &self.request, Duration::from_millis(700)).await?;
            connections.push(opened);
        }
        let time = Duration::try_from_secs_f64(args.seconds).context("--seconds")?;
        let mut rounds = Vec::new();
        for number in 0..args.rounds {
            eprintln!("round {} of {}", number + 1, args.rounds);
            let mut round = Vec::new();
            let turns = self.servers.iter().zip(&mut connections);
            // Every other round goes backwards, so that nobody always comes after the same one.
            if number % 2 == 0 {
                for (server, connections) in turns {
                    round.push(self.turn(server, connections, time).await?);
                }
            } else {
                for (server, connections) in turns.rev() {
                    round.push(self.turn(server, connections, time).await?);
                }
                round.reverse();
            }
            rounds.push(round);
        }
        Ok(rounds)
    }

    async fn turn(
        &self,
        server: &Server,
        connections: &mut [Connection],
        time: Duration,
    ) -> anyhow::Result<Turn> {
        let before = server.cpu()?;
        let load = Load::run(connections, &self.request, time).await?;
        let server_cpu = (server.cpu()? - before).as_secs_f64();
        let elapsed = load.elapsed.as_secs_f64();
        let requests = load.latencies.len() as f64;
        Ok(Turn {
            requests_per_second: requests / elapsed,
            cpu_us: server_cpu * 1e6 / requests,
            p50_us: load.quantile(0.5),
            p99_us: load.quantile(0.99),
            server_busy: server_cpu / elapsed,
        })
    }

    /// Bursts at the guard and at the echo, in turns.
    async fn bursts(&self) -> anyhow::Result<Bursts> {
        let [guard, echo] = [Kind::Guard, Kind::Echo].map(|kind| {
            self.servers.iter().find(|server| server.kind == kind).context("a server is missing")
        });
        let (guard, echo) = (guard?, echo?);
        let (mut guard_ms, mut echo_ms) = (Vec::new(), Vec::new());
        let cpu_before = guard.cpu()?;
        for _ in 0..BURSTS {
            for (server, times) in [(guard, &mut guard_ms), (echo, &mut echo_ms)] {
                // What the last burst left behind is closed meanwhile.
                tokio::time::sleep(Duration::from_millis(100)).await;
                let took = self.client.burst(server.address, BURST, &self.request).await?;
                times.push(took.as_secs_f64() * 1e3);
            }
        }
        let cpu_ms = (guard.cpu()? - cpu_before).as_secs_f64() * 1e3 / BURSTS as f64;
        Ok(Bursts { guard_ms: Spread::of(guard_ms), guard_cpu_ms: cpu_ms, echo_ms: Spread::of(echo_ms) })
    }

    fn rows(&self, rounds: &[Round]) -> anyhow::Result<Vec<Row>> {
        let row = |(index, server): (usize, &Server)| {
            let over =
                |figure: fn(&Turn) -> f64| Spread::of(rounds.iter().map(|round| figure(&round[index])));
            let (rss_kib, peak_rss_kib) = server.memory()?;
            Ok(Row {
                server: server.kind.name(),
                requests_per_second: over(|turn| turn.requests_per_second),
                server_cpu_us_per_request: over(|turn| turn.cpu_us),
                p50_us: over(|turn| turn.p50_us),
                p99_us: over(|turn| turn.p99_us),
                server_busy: over(|turn| turn.server_busy),
                rss_kib,
                peak_rss_kib,
            })
        };
        self.servers.iter().enumerate().map(row).collect()
    }
}

fn goals(rounds: &[Round], bursts: &Bursts) -> Vec<Goal> {
    let ratio =
        |of: fn(&[Turn; 4]) -> f64| Spread::of(rounds.iter().filter_map(|round| round.as_array().map(of)));
    let typed = Some(Bound::AtLeast(5.0));
    vec![
        Goal::new(
            "G1",
            "requests/s, guard over echo",
            "x",
            Some(Bound::AtLeast(0.75)),
            ratio(|[guard, echo, ..]| guard.requests_per_second / echo.requests_per_second),
        ),
        Goal::new(
            "",
            "requests per server CPU second, guard over echo",
            "x",
            None,
            ratio(|[guard, echo, ..]| echo.cpu_us / guard.cpu_us),
        ),
        Goal::new(
            "",
            "requests per server CPU second, guard over discard",
            "x",
            None,
            ratio(|[guard, _, discard, _]| discard.cpu_us / guard.cpu_us),
        ),
        Goal::new(
            "G2",
            "requests/s, guard over typed",
            "x",
            typed,
            ratio(|[guard, .., webhook]| guard.requests_per_second / webhook.requests_per_second),
        ),
        Goal::new(
            "G2",
            "server CPU per request, typed over guard",
            "x",
            typed,
            ratio(|[guard, .., webhook]| webhook.cpu_us / guard.cpu_us),
        ),
        Goal::new(
            "G2",
            "the same without what TLS and HTTP cost (less discard)",
            "x",
            typed,
            ratio(|[guard, _, discard, webhook]| {
                (webhook.cpu_us - discard.cpu_us) / (guard.cpu_us - discard.cpu_us)
            }),
        ),
        Goal::new(
            "G6",
            "200 fresh TLS connections at once, a request each, guard",
            "ms",
            Some(Bound::AtMost(60.0)),
            bursts.guard_ms,
        ),
        Goal::new("", "CPU of the guard in it, mean", "ms", None, Spread::of([bursts.guard_cpu_ms])),
        Goal::new("", "the same burst at the echo", "ms", None, bursts.echo_ms),
    ]
}
