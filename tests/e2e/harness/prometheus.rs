//! A real Prometheus and a real kube-state-metrics beside the cluster, with the chart's alerting rules sped up.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use super::{Run, Scenario, installation, process::Background, seconds, wait::holds, wait_until};

/// The labels that the Prometheus operator gives to the guard's series.
pub const JOB: &str = "rollout-guard-metrics";
pub const NAMESPACE: &str = installation::NAME;

/// So many times sooner than in the chart does an alert fire. The times of a short policy are as much shorter than a
/// policy's own.
const FASTER: u64 = 30;

/// Both run until this is dropped.
pub struct Prometheus {
    promtool: PathBuf,
    url: String,
    processes: Vec<Background>,
    // The last field: what they write to outlives them.
    _dir: tempfile::TempDir,
}

impl Prometheus {
    /// Starts both, kube-state-metrics for the scenario's namespace, and waits until everything is scraped: it, the
    /// replicas of the guard as they are now, and the API server.
    pub fn beside(s: &Scenario) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let bin = required("PROMETHEUS", "prometheus.sh");
        let [listen, proxy, series, own] = free_ports();
        let at = |port: u16| format!("127.0.0.1:{port}");
        let path = |name: &str| dir.path().join(name);
        fs::write(path("rules.yaml"), sped_up_rules().to_string()).expect("rules");
        let targets =
            [("prometheus", at(listen)), ("kube-state-metrics", at(series)), ("apiserver", at(proxy))];
        let config = config(&path("rules.yaml"), &targets);
        fs::write(path("prometheus.yaml"), config.to_string()).expect("a configuration");
        let kubectl_proxy = [format!("--port={proxy}")];
        let state_metrics = [
            format!("--kubeconfig={}", required("KUBECONFIG", "cluster.sh env").display()),
            format!("--namespaces={}", s.namespace),
            "--resources=deployments".to_owned(),
            "--host=127.0.0.1".to_owned(),
            format!("--port={series}"),
            "--telemetry-host=127.0.0.1".to_owned(),
            format!("--telemetry-port={own}"),
        ];
        let prometheus = [
            format!("--config.file={}", path("prometheus.yaml").display()),
            format!("--storage.tsdb.path={}", path("data").display()),
            format!("--web.listen-address={}", at(listen)),
        ];
        let processes = vec![
            Background::start(
                "kubectl",
                ["proxy".to_owned()].into_iter().chain(kubectl_proxy),
                &path("proxy.log"),
            ),
            Background::start(
                required("KUBE_STATE_METRICS", "kube-state-metrics.sh"),
                state_metrics,
                &path("kube-state-metrics.log"),
            ),
            Background::start(bin.join("prometheus"), prometheus, &path("prometheus.log")),
        ];
        let url = format!("http://{}", at(listen));
        let this = Self { promtool: bin.join("promtool"), url, processes, _dir: dir };
        this.scrapes(targets.len() + replicas().len());
        this
    }

    fn scrapes(&self, targets: usize) {
        wait_until("everything is scraped", seconds(40), || {
            let up = self.query("up == 1").map_err(|words| format!("{words}\n{}", self.logs()))?;
            holds(up.len() == targets, format!("{} of {targets}: {up:?}\n{}", up.len(), self.logs()))
        });
    }

    /// Returns the series that a query gives now.
    pub fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let args = ["query", "instant", "--format=json", &self.url, query];
        let done = Run::new(&self.promtool).args(args).limit(seconds(10)).done();
        if !done.ok() {
            return Err(done.report());
        }
        serde_json::from_str(&done.stdout).map_err(|error| format!("{error}: {}", done.report()))
    }

    /// Returns the end of what the processes said.
    pub fn logs(&self) -> String {
        let end = |log: String| log.lines().rev().take(5).map(str::to_owned).collect::<Vec<_>>().join("\n");
        self.processes.iter().map(|process| end(process.log())).collect::<Vec<_>>().join("\n")
    }
}

/// What is in an environment variable; the script that prints it is named where there is none.
fn required(name: &str, script: &str) -> PathBuf {
    let value = env::var_os(name);
    value.map_or_else(|| panic!("{name} is not set: see tests/kind/{script}"), PathBuf::from)
}

/// Ports that nobody listens at.
fn free_ports<const N: usize>() -> [u16; N] {
    // All at once, so that no two are the same.
    let listeners = [(); N].map(|()| TcpListener::bind(("127.0.0.1", 0)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}

fn replicas() -> Vec<String> {
    installation::ready_pods().unwrap_or_else(|words| panic!("{words}"))
}

/// As the chart's ServiceMonitor has it, but that the replicas are reached through the API server.
fn config(rules: &Path, targets: &[(&str, String); 3]) -> Value {
    let [_, _, (_, api)] = targets;
    let replica = |pod: String| {
        json!({"targets": [api], "labels": {
            "__metrics_path__": format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8080/proxy/metrics"),
            "namespace": NAMESPACE, "endpoint": "metrics", "pod": &pod, "instance": &pod,
        }})
    };
    let replicas: Vec<Value> = replicas().into_iter().map(replica).collect();
    let others = targets.iter().map(|(job, address)| {
        let mut job =
            json!({"job_name": job, "honor_labels": true, "static_configs": [{"targets": [address]}]});
        if address == api {
            // Some ten thousand series, of which these are looked at.
            job["scrape_interval"] = json!("3s");
            job["scrape_timeout"] = json!("3s");
            job["metric_relabel_configs"] = json!([{
                "source_labels": ["__name__"], "regex": "apiserver_admission_webhook_.*", "action": "keep",
            }]);
        }
        job
    });
    let guard = json!({"job_name": JOB, "honor_labels": true, "static_configs": replicas});
    let jobs: Vec<Value> = others.chain([guard]).collect();
    json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [rules],
        "scrape_configs": jobs,
    })
}

/// The chart's rules, [`FASTER`].
fn sped_up_rules() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/rollout-guard/files/rules.yaml");
    let text = fs::read_to_string(path).expect("the rules");
    let mut rules: Value = serde_yaml_ng::from_str(&text).expect("YAML");
    for group in rules["groups"].as_array_mut().expect("groups") {
        for rule in group["rules"].as_array_mut().expect("rules") {
            let time = duration(rule["for"].as_str().expect("a time"));
            rule["for"] = json!(format!("{}s", time.as_secs() / FASTER));
        }
    }
    rules
}

/// `10m`, as the rules write it.
fn duration(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.len() - 1);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => panic!("not a time: {text}"),
    };
    seconds(number.parse::<u64>().expect("a number") * unit)
}
