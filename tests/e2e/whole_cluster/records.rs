//! One watch of all RolloutRecords: sees each state in between, and at once.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

pub struct Watch {
    kubectl: Child,
    changes: Receiver<Change>,
}

/// What the watch said of one record, oldest first.
pub struct Change {
    pub namespace: String,
    pub name: String,
    /// Of the last rollback; empty where there was none.
    pub outcome: String,
}

impl Watch {
    pub fn start() -> Self {
        let fields = ["{.metadata.namespace}", "{.spec.targetRef.name}", "{.status.rollback.outcome}"];
        let template = fields.join(" ") + r#"{"\n"}"#;
        let mut kubectl = Command::new("kubectl")
            .args(["get", "rolloutrecords.rollout-guard.io", "--all-namespaces", "--watch", "-o"])
            .arg(format!("jsonpath={template}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl");
        let lines = BufReader::new(kubectl.stdout.take().expect("a pipe")).lines();
        let (into, changes) = channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut words = line.split(' ').map(str::to_owned);
                let mut word = || words.next().unwrap_or_default();
                let change = Change { namespace: word(), name: word(), outcome: word() };
                if into.send(change).is_err() {
                    break;
                }
            }
        });
        Self { kubectl, changes }
    }

    /// Gives each change to `see` until that says that it has seen enough; panics when `limit` is over before.
    #[track_caller]
    pub fn until(&self, what: &str, limit: Duration, mut see: impl FnMut(&Change) -> bool) {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.changes.recv_timeout(left) {
                Ok(change) if see(&change) => return,
                Ok(_) => {}
                Err(why) => panic!("{what}: not within {} s ({why})", limit.as_secs()),
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}
