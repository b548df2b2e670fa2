//! The next command: by the cause, and by where the Deployment stands.
//!
//! Commands are pasted into a shell at night, so nothing from outside gets into one that is not a name of Kubernetes.

use super::model::{CauseLine, GuardState, Material, Next, NodeState, Of, Step};
use crate::{
    api::{
        policy::{CauseType, Mode, RollbackMode},
        record::{Outcome, RecordPhase, Verdict},
    },
    core::{
        cause::{Liveness, LogSource},
        view::{DeploymentView, RevisionView},
    },
};

/// What the next command is chosen by.
pub(super) struct Situation<'a> {
    pub(super) material: &'a Material,
    pub(super) view: &'a DeploymentView,
    pub(super) cause: Option<&'a CauseLine>,
    /// The container whose log would tell more.
    pub(super) log: Option<&'a LogSource>,
    /// A pod that is not well.
    pub(super) pod: Option<&'a str>,
    pub(super) nodes: Option<&'a NodeState>,
    pub(super) guard: &'a GuardState,
    /// Of the ResourceQuotas that are known: whether one has something used up.
    pub(super) quota_is_full: &'a dyn Fn(&str) -> Option<bool>,
}

/// Returns what to do next.
pub(super) fn next(situation: &Situation<'_>) -> Next {
    let s = situation;
    match (s.view.phase, s.cause) {
        (RecordPhase::Deleting, _) => step(
            "it is being deleted; finalizers that are left keep it",
            s.kubectl(&format!("get deployment {} -o jsonpath='{{.metadata.finalizers}}'", s.view.name)),
        ),
        (RecordPhase::Paused, _) => step(
            "it is paused: nothing is rolled out until it is resumed",
            s.kubectl(&format!("rollout resume deployment/{}", s.view.name)),
        ),
        (_, Some(cause)) if cause.of == Of::Current && s.may_get_on(cause) => {
            step("it is rolling out, and may get on by itself; this waits and says how it goes", s.wait())
                .or("the log of what is not ready", s.logs())
        }
        (_, Some(cause)) if cause.of == Of::Current => s.stuck(cause),
        (RecordPhase::Complete, _) => s.complete(),
        (RecordPhase::Unobserved, None) => {
            step("the new generation is about to be observed; this waits and says how it goes", s.wait())
        }
        (_, None | Some(_)) => step("it is rolling out; this waits and says how it goes", s.wait()),
    }
}

fn step(text: impl Into<String>, command: String) -> Next {
    Next { text: text.into(), command: Some(command), others: Vec::new() }
}

impl Next {
    fn or(mut self, text: impl Into<String>, command: Option<String>) -> Self {
        self.others.extend(command.map(|command| Step { text: text.into(), command }));
        self
    }
}

impl Situation<'_> {
    /// `kubectl -n shop …`.
    fn kubectl(&self, words: &str) -> String {
        format!("kubectl{} -n {} {words}", self.material.flags, self.view.namespace)
    }

    /// `kubectl …` for what has no namespace, or another one.
    fn kubectl_anywhere(&self, words: &str) -> String {
        format!("kubectl{} {words}", self.material.flags)
    }

    /// `rollout-guard undo web -n shop …`.
    fn ours(&self, command: &str, more: &str) -> String {
        let DeploymentView { namespace, name, .. } = self.view;
        format!("rollout-guard {command} {name} -n {namespace}{more}{}", self.material.flags)
    }

    fn wait(&self) -> String {
        self.ours("wait", "")
    }

    /// The revisions that there is a way back to, newest first.
    fn earlier(&self) -> impl Iterator<Item = &RevisionView> {
        self.view.revisions.iter().filter(|revision| {
            !revision.current && revision.replica_set.is_some() && revision.verdict != Some(Verdict::Bad)
        })
    }

    /// Whether one of them is known to work, so that it need not be named.
    fn is_sure(&self) -> bool {
        self.earlier().any(|revision| revision.verdict == Some(Verdict::Good) || revision.available > 0)
    }

    /// The way back, where there is one.
    fn undo(&self) -> Option<String> {
        if self.is_sure() {
            return Some(self.ours("undo", ""));
        }
        let newest = self.earlier().find_map(|revision| revision.revision)?;
        Some(self.ours("undo", &format!(" --to {newest}")))
    }

    fn logs(&self) -> Option<String> {
        let LogSource { pod, container, previous } = self.log?;
        let (pod, container) = (safe(pod)?, safe(container)?);
        let previous = if *previous { " --previous" } else { "" };
        Some(self.kubectl(&format!("logs {pod} -c {container}{previous}")))
    }

    fn describe_pod(&self) -> Option<String> {
        let pod = safe(self.pod.or(self.log.map(|log| log.pod.as_str()))?)?;
        Some(self.kubectl(&format!("describe pod {pod}")))
    }

    fn describe(&self) -> String {
        self.kubectl(&format!("describe deployment {}", self.view.name))
    }

    /// Pods that are slow to get ready look like those that never will; Kubernetes' deadline tells.
    fn may_get_on(&self, cause: &CauseLine) -> bool {
        let stalled = self.view.guard_condition("Stalled").is_some_and(|c| c.status == "True");
        self.view.phase == RecordPhase::Progressing
            && !cause.cause.early
            && !stalled
            && matches!(cause.cause.kind, CauseType::Application | CauseType::Unknown)
    }

    fn complete(&self) -> Next {
        let nothing = |text: &str| Next { text: text.to_owned(), command: None, others: Vec::new() };
        let Some(rollback) = self.view.rollback.as_ref().filter(|last| last.current) else {
            return nothing("nothing is to be done: it is complete");
        };
        // By their templates: a ReplicaSet that is used again gets another number.
        let kept = |hash: &str| {
            let of = self.view.revisions.iter().find(|r| r.template_hash == hash && r.replica_set.is_some());
            of.and_then(|revision| revision.revision)
        };
        match (kept(&rollback.to), kept(&rollback.from)) {
            (Some(good), Some(bad)) => step(
                format!(
                    "it was rolled back and is complete: mend what revision {bad} changed, then push again"
                ),
                self.ours("history", &format!(" --diff {good} {bad}")),
            ),
            _ => step(
                "it was rolled back and is complete: mend the push that was refused, then push again",
                self.ours("history", ""),
            ),
        }
    }

    fn stuck(&self, cause: &CauseLine) -> Next {
        if let Some(next) = self.under_way(cause.cause.kind) {
            return next;
        }
        let message = cause.cause.message.as_str();
        match cause.cause.kind {
            CauseType::ReplicaSetCreate => self.not_created(message, &cause.cause.evidence),
            CauseType::Configuration => self.misconfigured(message),
            CauseType::Capacity => self.no_capacity(message, &cause.cause.evidence),
            CauseType::ControlPlane => self.control_plane(message),
            CauseType::Node => self.node(message),
            CauseType::Registry => self.registry(),
            CauseType::Image => self.back(
                "the image cannot be pulled",
                self.describe_pod(),
                "what the node says of the image",
            ),
            CauseType::Application => {
                let log = self.logs().or_else(|| self.describe_pod());
                self.back("the new pods do not work", log, "all of the log")
            }
            CauseType::Unknown => self.unknown(),
        }
    }

    /// The guard is at it.
    fn under_way(&self, kind: CauseType) -> Option<Next> {
        let rollback = self.view.rollback.as_ref();
        if rollback.is_some_and(|last| last.outcome == Outcome::InProgress) {
            return Some(step("rollout-guard is rolling it back; this waits until it is safe", self.wait()));
        }
        let guard = self.guard;
        let automatic = guard.mode == Some(Mode::Enforce)
            && guard.rollback_mode == Some(RollbackMode::Automatic)
            && guard.leader.is_some()
            && guard.stopped.is_none();
        let policy = super::guard::policy(self.material)?;
        let wanted = policy.rollback.causes.contains(&kind);
        let held = self.view.guard_condition("Stalled").is_some_and(|c| c.status == "True");
        let next = step(
            "rollout-guard rolls it back by itself as soon as its policy calls it stuck; this waits until it is safe",
            self.wait(),
        );
        (automatic && wanted && !held && self.is_sure()).then(|| next.or("or go back at once", self.undo()))
    }

    /// Back to what worked; else a look at what is wrong.
    fn back(&self, why: &str, look: Option<String>, about: &str) -> Next {
        match self.undo() {
            Some(undo) => step(format!("{why}: go back to what worked"), undo).or(about, look),
            None => step(
                format!("{why}, and there is no earlier revision to return to: mend it and push again"),
                look.unwrap_or_else(|| self.describe()),
            ),
        }
    }

    fn not_created(&self, message: &str, evidence: &[String]) -> Next {
        let said = || std::iter::once(message).chain(evidence.iter().map(String::as_str));
        if let Some(quota) = said().find_map(|text| safe(after(text, "exceeded quota: ")?)) {
            return self.over_quota(quota);
        }
        if let Some(policy) = said().find_map(|text| safe(after(text, "ValidatingAdmissionPolicy '")?)) {
            return step(
                format!("ValidatingAdmissionPolicy {policy} refuses the ReplicaSet: see what it asks for"),
                self.kubectl_anywhere(&format!("describe validatingadmissionpolicy {policy}")),
            )
            .or("or go back to what worked", self.undo());
        }
        self.back("the ReplicaSet is refused", Some(self.describe()), "what Kubernetes says")
    }

    fn over_quota(&self, quota: &str) -> Next {
        let look_again = self.kubectl(&format!(
            "annotate deployment/{} rollout-guard.io/look-again=\"$(date +%s)\" --overwrite",
            self.view.name
        ));
        let describe = self.kubectl(&format!("describe quota {quota}"));
        // kube-controller-manager tries 15 times, for less than three minutes, and then no more.
        let given_up = self.view.phase == RecordPhase::Unobserved;
        if (self.quota_is_full)(quota) == Some(false) && given_up {
            return step(
                format!("ResourceQuota {quota} has room again, and Kubernetes has stopped trying: make it look again"),
                look_again,
            )
            .or("what the quota says", Some(describe));
        }
        step(format!("ResourceQuota {quota} is used up: raise it, or delete what is not needed"), describe)
            .or("or go back to what worked", self.undo())
            .or("then, where nothing happens, make Kubernetes look again", given_up.then_some(look_again))
    }

    fn misconfigured(&self, message: &str) -> Next {
        let lower = message.to_ascii_lowercase();
        let missing = |kind: &str| {
            let at = lower.find(&format!("{kind} \""))? + kind.len() + 2;
            let name = message.get(at..)?.split('"').next()?;
            safe(name.rsplit('/').next().unwrap_or(name)).filter(|_| lower.contains("not found"))
        };
        let text = |what: &str| format!("{what} is missing: create it, with the right content");
        if let Some(name) = missing("configmap") {
            let create = format!("create configmap {name} --from-literal=KEY=VALUE");
            return step(text(&format!("ConfigMap {name}")), self.kubectl(&create))
                .or("or go back to what worked", self.undo());
        }
        if let Some(name) = missing("serviceaccount") {
            return step(
                text(&format!("ServiceAccount {name}")),
                self.kubectl(&format!("create serviceaccount {name}")),
            )
            .or("or go back to what worked", self.undo());
        }
        if let Some(name) = missing("secret") {
            let create = format!("create secret generic {name} --from-literal=KEY=VALUE");
            return step(text(&format!("Secret {name}")), self.kubectl(&create))
                .or("or go back to what worked", self.undo());
        }
        self.back(
            "the pods cannot be started as they are configured",
            self.describe_pod(),
            "what the node says",
        )
    }

    fn no_capacity(&self, message: &str, evidence: &[String]) -> Next {
        let said = || std::iter::once(message).chain(evidence.iter().map(String::as_str));
        if let Some(quota) = said().find_map(|text| safe(after(text, "exceeded quota: ")?)) {
            return self.over_quota(quota);
        }
        let cordoned = self.nodes.and_then(|nodes| safe(nodes.cordoned.first()?));
        if let Some(node) = cordoned.filter(|_| message.contains("unschedulable")) {
            return step(
                format!("node {node} is cordoned: let pods be scheduled to it again"),
                self.kubectl_anywhere(&format!("uncordon {node}")),
            )
            .or("what the scheduler says", self.describe_pod());
        }
        if message.contains("Insufficient") {
            return step(
                "no node has enough room: add nodes, or let the pods ask for less",
                self.kubectl_anywhere("describe nodes | grep -A 9 'Allocated resources'"),
            )
            .or("what the scheduler says", self.describe_pod())
            .or("or go back to what worked", self.undo());
        }
        step(
            "no node takes the pods: see what the scheduler asks for",
            self.describe_pod().unwrap_or_else(|| self.describe()),
        )
        .or("or go back to what worked", self.undo())
    }

    fn control_plane(&self, message: &str) -> Next {
        let component =
            if message.contains("scheduler") { "kube-scheduler" } else { "kube-controller-manager" };
        step(
            format!(
                "{component} does not work; where it runs as a static pod, moving its manifest out of /etc/kubernetes/manifests and back starts it again"
            ),
            self.kubectl_anywhere(&format!("-n kube-system get pods -l component={component} -o wide")),
        )
    }

    fn node(&self, message: &str) -> Next {
        let named = message.split_whitespace().skip_while(|word| *word != "node").nth(1);
        let named = named.and_then(|word| safe(word.trim_end_matches(':')));
        let known =
            self.nodes.and_then(|nodes| nodes.not_ready.iter().find(|name| Some(name.as_str()) == named));
        let not_ready = self.nodes.and_then(|nodes| safe(nodes.not_ready.first()?));
        let text = "a node is in trouble: see its conditions; pods move on their own once others have room";
        match known.map(String::as_str).or(not_ready) {
            Some(node) => step(text, self.kubectl_anywhere(&format!("describe node {node}"))),
            None => step(text, self.describe_pod().unwrap_or_else(|| self.kubectl_anywhere("get nodes"))),
        }
        .or("what the node says of the pod", self.describe_pod())
    }

    fn registry(&self) -> Next {
        let look = self.describe_pod().unwrap_or_else(|| self.describe());
        step("the registry does not give the image: the pods start by themselves once it does", look)
            .or("or go back to what worked", self.undo())
    }

    fn unknown(&self) -> Next {
        if self.view.phase == RecordPhase::Unobserved {
            let silent = self.material.controller_manager.as_ref();
            let alive = silent.is_ok_and(|lease| lease.liveness == Liveness::Alive);
            let why = if alive {
                "kube-controller-manager is at work, but has not observed the generation"
            } else {
                "the generation is not observed"
            };
            return step(
                format!("{why}: a new annotation makes it look again"),
                self.kubectl(&format!(
                    "annotate deployment/{} rollout-guard.io/look-again=\"$(date +%s)\" --overwrite",
                    self.view.name
                )),
            )
            .or("what Kubernetes says", Some(self.describe()));
        }
        self.back("it does not get on", self.describe_pod(), "what Kubernetes says of a pod")
    }
}

/// Returns what comes after `head` up to what cannot be part of a name.
fn after<'a>(text: &'a str, head: &str) -> Option<&'a str> {
    let rest = &text[text.find(head)? + head.len()..];
    let end =
        rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))).unwrap_or(rest.len());
    Some(&rest[..end])
}

/// Returns `name` where it is a name of Kubernetes, and so means nothing to a shell.
fn safe(name: &str) -> Option<&str> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let outer = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    let whole = (1..=253).contains(&bytes.len()) && bytes.iter().copied().all(inner);
    (whole && bytes.first().copied().is_some_and(outer)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_shell_understands_gets_into_a_command() {
        for name in ["", "a b", "a;b", "$(reboot)", "`x`", "-n", "--all", "a\"b", "A", "ä"] {
            assert_eq!(safe(name), None, "{name}");
        }
        assert_eq!(safe("compute-quota.v1"), Some("compute-quota.v1"));
        assert_eq!(after("exceeded quota: few, requested: pods=1", "exceeded quota: "), Some("few"));
        assert_eq!(after("exceeded quota: $(reboot)", "exceeded quota: ").and_then(safe), None);
    }
}
