//! The figures, for people and for machines.

use serde::Serialize;

/// The spread of a figure over the rounds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    /// Of `values`, of which there is at least one; all zero where there is none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or_default();
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(at(middle.saturating_sub(1)), at(middle))
        } else {
            at(middle)
        };
        Self { min: at(0), median, max: at(values.len().saturating_sub(1)) }
    }
}

/// What is the same for all.
#[derive(Debug, Serialize)]
pub struct Setup {
    pub body_bytes: usize,
    pub connections: usize,
    pub rounds: usize,
    pub seconds_per_round: f64,
    pub server_core: Option<usize>,
    pub client_core: Option<usize>,
    /// The load average of a minute, before the first round and after the last.
    pub load_average: (f64, f64),
}

/// One server under load.
#[derive(Debug, Serialize)]
pub struct Row {
    pub server: &'static str,
    pub requests_per_second: Spread,
    pub server_cpu_us_per_request: Spread,
    pub p50_us: Spread,
    pub p99_us: Spread,
    /// Share of the time that the server had a core: what is missing, others or the client took.
    pub server_busy: Spread,
    pub rss_kib: u64,
    pub peak_rss_kib: u64,
}

/// A goal and what was measured.
#[derive(Debug, Serialize)]
pub struct Goal {
    pub id: &'static str,
    pub what: &'static str,
    pub unit: &'static str,
    pub measured: Spread,
    /// None: no goal, for comparison alone.
    pub goal: Option<Bound>,
    /// By the median.
    pub met: Option<bool>,
}

/// A bound on a median.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    /// Compares the median of `measured` with `goal`.
    pub fn new(
        id: &'static str,
        what: &'static str,
        unit: &'static str,
        goal: Option<Bound>,
        measured: Spread,
    ) -> Self {
        let met = goal.map(|goal| match goal {
            Bound::AtLeast(least) => measured.median >= least,
            Bound::AtMost(most) => measured.median <= most,
        });
        Self { id, what, unit, measured, goal, met }
    }
}

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    pub setup: Setup,
    pub servers: Vec<Row>,
    pub goals: Vec<Goal>,
}

impl Report {
    /// Prints tables.
    pub fn print(&self) {
        let Setup {
            body_bytes,
            connections,
            rounds,
            seconds_per_round,
            server_core,
            client_core,
            load_average,
        } = &self.setup;
        let core = |core: &Option<usize>| core.map_or("any".to_owned(), |core| core.to_string());
        println!(
            "\nBody {body_bytes} bytes, {connections} connections with keep-alive, {rounds} interleaved rounds of \
             {seconds_per_round} s,\nserver on core {}, client on core {}; load average {:.2} before, {:.2} after.\n\
             Each figure is the median of the rounds, with the least and the greatest behind it.\n",
            core(server_core),
            core(client_core),
            load_average.0,
            load_average.1
        );
        println!(
            "{:8} {:>22} {:>22} {:>22} {:>22} {:>12} {:>8}",
            "server", "requests/s", "server CPU us/request", "p50 us", "p99 us", "server busy", "RSS MiB"
        );
        for row in &self.servers {
            println!(
                "{:8} {:>22} {:>22} {:>22} {:>22} {:>11.0}% {:>8.1}",
                row.server,
                spread(row.requests_per_second, 0),
                spread(row.server_cpu_us_per_request, 1),
                spread(row.p50_us, 0),
                spread(row.p99_us, 0),
                row.server_busy.median * 100.0,
                row.peak_rss_kib as f64 / 1024.0
            );
        }
        println!("\n{:4} {:62} {:>24} {:>10}", "goal", "", "measured", "");
        for Goal { id, what, unit, measured, goal, met } in &self.goals {
            let verdict = match met {
                Some(true) => "met",
                Some(false) => "NOT met",
                None => "",
            };
            let goal = match goal {
                Some(Bound::AtLeast(least)) => format!(">= {least} {unit}"),
                Some(Bound::AtMost(most)) => format!("<= {most} {unit}"),
                None => String::new(),
            };
            println!("{id:4} {what:62} {:>24} {goal:>10} {verdict}", spread(*measured, 2));
        }
        println!();
    }
}

fn spread(Spread { min, median, max }: Spread, digits: usize) -> String {
    format!("{median:.digits$} ({min:.digits$}-{max:.digits$})")
}
