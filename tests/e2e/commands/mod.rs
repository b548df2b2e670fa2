//! The commands as people and pipelines run them: the real binary, by a kubeconfig.

mod diagnose;
mod history;
mod policy;
mod status;
mod undo;
mod wait;

use serde_json::{Value, json};

use crate::harness::{Run, Scenario, seconds, wait_until};

/// Returns `rollout-guard ARGS` in the scenario's namespace, with the rights of the cluster's kubeconfig. The first of
/// `ARGS` is the subcommand.
pub fn guard<'a>(s: &'a Scenario, args: impl IntoIterator<Item = &'a str>) -> Run {
    Run::new(env!("CARGO_BIN_EXE_rollout-guard")).args(args).args(["-n", &s.namespace]).limit(seconds(120))
}

/// A kubeconfig of its own, of a ServiceAccount of the scenario's namespace. The file is gone when it is dropped.
pub struct Account {
    dir: std::path::PathBuf,
}

impl Account {
    /// Makes a ServiceAccount that may do what the rules of a Role say, and nothing else.
    pub fn with_rules(s: &Scenario, name: &str, rules: &Value) -> Self {
        s.kubectl(["create", "serviceaccount", name]).succeeds();
        if rules.as_array().is_some_and(|rules| !rules.is_empty()) {
            let role = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
                "metadata": {"name": name}, "rules": rules,
            });
            s.create(&role);
            let account = format!("--serviceaccount={}:{name}", s.namespace);
            let role = format!("--role={name}");
            s.kubectl(["create", "rolebinding", name, &role, &account]).succeeds();
        }
        let token = s.kubectl(["create", "token", name]).succeeds();
        let of_admin = s.kubectl(["config", "view", "--raw", "--minify", "-o", "json"]).succeeds();
        let mut config: Value = serde_json::from_str(&of_admin).expect("a kubeconfig");
        config["users"][0]["user"] = json!({"token": token.trim()});
        let dir = std::env::temp_dir().join(format!("rollout-guard-e2e-{}-{name}", s.namespace));
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::write(dir.join("kubeconfig"), config.to_string()).expect("written");
        let account = Self { dir };
        let user = format!("system:serviceaccount:{}:{name}", s.namespace);
        if let Some(rule) = rules.as_array().and_then(|rules| rules.last()) {
            let word = |key: &str| rule[key][0].as_str().unwrap_or_default().to_owned();
            let what = format!("{}.{}", word("resources"), word("apiGroups"));
            wait_until("the account has its rights", seconds(10), || {
                let verb = word("verbs");
                let asked =
                    s.kubectl(["auth", "can-i", &verb, what.trim_end_matches('.'), "--as", &user]).done();
                if asked.ok() { Ok(()) } else { Err(asked.report()) }
            });
        }
        account
    }

    /// Returns `rollout-guard ARGS` in the scenario's namespace, with this account's rights.
    pub fn guard<'a>(&self, s: &'a Scenario, args: impl IntoIterator<Item = &'a str>) -> Run {
        guard(s, args).arg("--kubeconfig").arg(self.dir.join("kubeconfig"))
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
