//! One Deployment as a tree: itself, its ReplicaSets by revision, their pods.

use jiff::Timestamp;

use crate::{
    api::record::{RecordPhase, Verdict},
    commands::{
        look::Look,
        output::{
            Line, Screen, Tone, ago, display_width, outcome_words, phase_tone, pod_tone, verdict_of,
            verdict_tone, wrapped,
        },
    },
    core::view::{DeploymentView, PodView, RevisionView, RollbackView},
};

/// The most pods of a revision that are well and shown by name.
const WELL: usize = 10;

/// Returns the tree, a line break at its end. With `wide` all revisions, nodes and all evidence are in it.
pub fn tree(look: &Look, wide: bool, screen: &Screen, now: Timestamp) -> String {
    let tree = Tree { view: &look.view, wide, screen, now };
    let mut lines = vec![tree.deployment()];
    lines.extend(tree.cause());
    lines.extend(tree.revisions());
    lines.extend(look.view.rollback.as_ref().into_iter().flat_map(|rollback| tree.rollback(rollback)));
    for hidden in &look.hidden {
        lines.extend(wrapped("", &hidden.to_string(), Tone::Warn, screen));
    }
    lines.iter().map(|line| line.render(screen) + "\n").collect()
}

struct Tree<'a> {
    view: &'a DeploymentView,
    wide: bool,
    screen: &'a Screen,
    now: Timestamp,
}

/// A branch, the trunk beside what hangs on it, and the same for the last one.
struct Signs {
    branch: &'static str,
    trunk: &'static str,
    last: &'static str,
    nothing: &'static str,
}

const UNICODE: Signs = Signs { branch: "├─ ", trunk: "│  ", last: "└─ ", nothing: "   " };
const ASCII: Signs = Signs { branch: "|- ", trunk: "|  ", last: "`- ", nothing: "   " };

impl Tree<'_> {
    fn signs(&self) -> &'static Signs {
        if self.screen.unicode { &UNICODE } else { &ASCII }
    }

    fn deployment(&self) -> Line {
        let view = self.view;
        let since = view.since.map(|since| format!("for {}", ago(Some(since), self.now)));
        let observed = if view.observed_generation == view.generation {
            format!("generation {} (observed)", view.generation)
        } else {
            format!("generation {} (observed {})", view.generation, view.observed_generation)
        };
        let behind = view.observed_generation < view.generation;
        Line::new(format!("Deployment {}/{}", view.namespace, view.name), Tone::Strong)
            .gap(view.phase.word(), phase_tone(view.phase))
            .then(since.map(|since| format!(" {since}")).unwrap_or_default(), Tone::Plain)
            .gap(observed, if behind { Tone::Warn } else { Tone::Plain })
            .gap(format!("{}/{} ready, {} updated", view.ready, view.desired, view.updated), Tone::Plain)
            .gap(if view.paused && view.phase != RecordPhase::Paused { "paused" } else { "" }, Tone::Warn)
    }

    fn cause(&self) -> Vec<Line> {
        let Some(cause) = &self.view.cause else { return Vec::new() };
        let trunk = self.trunk();
        let tone = phase_tone(self.view.phase);
        let mut lines =
            wrapped(trunk, &format!("{}: {}", cause.kind.word(), cause.message), tone, self.screen);
        let indent = format!("{trunk}  ");
        // The pods below say the same of themselves.
        let below = self.view.current().is_some_and(|revision| !revision.pods.is_empty());
        let told = |line: &&String| {
            self.wide || !below || !(line.starts_with("pod ") || line.starts_with("seen in "))
        };
        for evidence in cause.evidence.iter().filter(told) {
            lines.extend(wrapped(&indent, evidence, Tone::Dim, self.screen));
        }
        lines
    }

    /// What stands before the lines between the Deployment and its first ReplicaSet.
    fn trunk(&self) -> &'static str {
        if self.view.revisions.is_empty() { self.signs().nothing } else { self.signs().trunk }
    }

    fn revisions(&self) -> Vec<Line> {
        let told = |revision: &&RevisionView| {
            self.wide
                || revision.current
                || revision.replicas > 0
                || revision.desired > 0
                || !revision.pods.is_empty()
                || matches!(revision.verdict, Some(Verdict::Good | Verdict::Bad))
        };
        let (shown, rest): (Vec<&RevisionView>, Vec<&RevisionView>) =
            self.view.revisions.iter().partition(told);
        let signs = self.signs();
        let mut lines = Vec::new();
        for (place, revision) in shown.iter().enumerate() {
            let last = place + 1 == shown.len() && rest.is_empty();
            let (branch, trunk) =
                if last { (signs.last, signs.nothing) } else { (signs.branch, signs.trunk) };
            lines.push(self.revision(branch, revision));
            if let Some(failure) = &revision.failure {
                lines.extend(wrapped(&format!("{trunk}  "), failure, Tone::Bad, self.screen));
            }
            lines.extend(self.pods(trunk, revision));
        }
        if !rest.is_empty() {
            let numbers: Vec<String> =
                rest.iter().filter_map(|revision| revision.revision).map(|n| n.to_string()).collect();
            let text = format!("without pods and verdict: {}", numbers.join(", "));
            lines.push(Line::new(signs.last, Tone::Dim).then(text, Tone::Dim));
        }
        lines
    }

    fn revision(&self, branch: &str, revision: &RevisionView) -> Line {
        let number = revision.revision.map_or_else(|| "revision -".to_owned(), |n| format!("revision {n}"));
        let set = revision.replica_set.as_deref().unwrap_or("(its ReplicaSet is gone)");
        let verdict = verdict_of(revision);
        let since = revision.since.filter(|_| !verdict.is_empty());
        let counts = format!("{}/{} ready", revision.ready, revision.desired);
        let idle = revision.desired == 0 && revision.replicas == 0;
        Line::new(branch, Tone::Dim)
            .then(number, if revision.current { Tone::Strong } else { Tone::Plain })
            .gap(set, Tone::Plain)
            .gap(if revision.current { "current" } else { "" }, Tone::Strong)
            .gap(verdict, verdict_tone(revision.verdict))
            .then(
                since.map(|since| format!(" for {}", ago(Some(since), self.now))).unwrap_or_default(),
                Tone::Dim,
            )
            .gap(if idle { String::new() } else { counts }, Tone::Plain)
            .gap(revision.images.join(", "), Tone::Plain)
            .gap(revision.change_cause.as_ref().map(|why| format!("({why})")).unwrap_or_default(), Tone::Dim)
    }

    fn pods(&self, trunk: &str, revision: &RevisionView) -> Vec<Line> {
        let mut well = 0;
        let shown: Vec<&PodView> = revision
            .pods
            .iter()
            .filter(|pod| {
                well += usize::from(pod.is_well());
                !pod.is_well() || self.wide || well <= WELL
            })
            .collect();
        let widest = |text: fn(&PodView) -> &str| {
            shown.iter().map(|pod| display_width(text(pod))).max().unwrap_or_default()
        };
        let (names, reasons) = (widest(|pod| &pod.name), widest(|pod| &pod.reason));
        let listed = revision.pods.len();
        let all = usize::try_from(revision.replicas).unwrap_or_default().max(listed);
        let more = if listed == 0 { 0 } else { all - shown.len() };
        let signs = self.signs();
        let mut lines = Vec::new();
        for (place, pod) in shown.iter().enumerate() {
            let last = place + 1 == shown.len() && more == 0;
            let (branch, under) =
                if last { (signs.last, signs.nothing) } else { (signs.branch, signs.trunk) };
            lines.push(self.pod(&format!("{trunk}{branch}"), pod, names, reasons));
            if !pod.message.is_empty() && !pod.is_well() {
                let indent = format!("{trunk}{under}  ");
                let most = if self.wide { usize::MAX } else { 2 };
                lines.extend(wrapped(&indent, &pod.message, Tone::Dim, self.screen).into_iter().take(most));
            }
        }
        if more > 0 {
            let text = format!("and {more} more");
            lines.push(Line::new(format!("{trunk}{}", signs.last), Tone::Dim).then(text, Tone::Dim));
        }
        lines
    }

    fn pod(&self, branch: &str, pod: &PodView, names: usize, reasons: usize) -> Line {
        let padded = |text: &str, width: usize| text.to_owned() + &" ".repeat(width - display_width(text));
        let times =
            if pod.restarts == 1 { "1 restart".to_owned() } else { format!("{} restarts", pod.restarts) };
        let tone = if pod.restarts > 0 { Tone::Warn } else { Tone::Dim };
        let node = pod.node.as_deref().filter(|_| self.wide).unwrap_or_default();
        Line::new(branch, Tone::Dim)
            .then(padded(&pod.name, names), Tone::Plain)
            .gap(padded(&pod.reason, reasons), pod_tone(pod))
            .gap(format!("{}/{} ready", pod.ready_containers, pod.containers), Tone::Plain)
            .gap(times, tone)
            .gap(ago(pod.created_at, self.now), Tone::Dim)
            .gap(node, Tone::Dim)
    }

    fn rollback(&self, rollback: &RollbackView) -> Vec<Line> {
        let name =
            |number: Option<i64>| number.map_or_else(|| "a template".to_owned(), |n| format!("revision {n}"));
        let tone = match rollback.outcome {
            crate::api::record::Outcome::Failed => Tone::Bad,
            crate::api::record::Outcome::InProgress => Tone::Warn,
            _ => Tone::Plain,
        };
        let text = format!(
            "rolled back {} ago from {} to {} ({}): {}: {}",
            ago(Some(rollback.started_at), self.now),
            name(rollback.from_revision),
            name(rollback.to_revision),
            outcome_words(rollback.outcome),
            rollback.cause.word(),
            rollback.message,
        );
        wrapped("", &text, tone, self.screen)
    }
}
