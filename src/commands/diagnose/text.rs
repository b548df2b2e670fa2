//! A diagnosis as a page for people.

use jiff::Timestamp;
use textwrap::{Options, WordSplitter, wrap};

use crate::{
    api::record::RecordPhase,
    commands::output::{Line, Screen, Tone, age, ago, outcome_words, phase_tone, pod_tone},
    core::{
        diagnosis::{
            CauseLine, ConditionLine, Configuration, ContainerLine, Diagnosis, EventLine, Finding,
            Generations, GuardState, NodeState, Of, PodLine, Pods, QuotaState, Severity, Status,
        },
        lease::BREAKER_CLOSED,
    },
};

/// Under a heading.
const INDENT: &str = "   ";

/// Under a line of that.
const DEEPER: &str = "     ";

/// In place of what may not be read.
const NOT_SHOWN: &str = "not shown: see the end of the page";

/// Narrower than this it would be a column of syllables.
const NARROWEST: usize = 20;

/// Returns the page; its lines end where the screen's width does, but for commands and logs.
pub fn text(diagnosis: &Diagnosis, screen: &Screen) -> String {
    let mut page = Page { screen, now: diagnosis.at, out: String::new() };
    page.title(diagnosis);
    page.heading("1. Status and conditions");
    page.status(&diagnosis.status);
    page.heading("2. Generations");
    page.generations(&diagnosis.generations);
    page.heading("3. Strategy and configuration");
    page.configuration(&diagnosis.configuration);
    page.heading("4. Events and logs");
    page.events(diagnosis);
    page.heading("5. Health of the cluster");
    page.cluster(diagnosis);
    page.cause(diagnosis);
    page.next(diagnosis);
    page.hidden(diagnosis);
    page.out
}

struct Page<'a> {
    screen: &'a Screen,
    now: Timestamp,
    out: String,
}

impl Page<'_> {
    fn line(&mut self, line: &Line) {
        // As it is: what is pasted or read by a person must not be cut.
        let whole = Screen { width: None, ..*self.screen };
        self.out.push_str(&line.render(&whole));
        self.out.push('\n');
    }

    /// Breaks `text` between words alone: names and images are copied from here.
    fn say(&mut self, indent: &str, text: &str, tone: Tone) {
        let room = self.screen.width.map_or(usize::MAX, |width| width.saturating_sub(indent.len()));
        let options =
            Options::new(room.max(NARROWEST)).break_words(false).word_splitter(WordSplitter::NoHyphenation);
        for line in wrap(text.trim(), options).into_iter().filter(|line| !line.is_empty()) {
            self.line(&Line::new(indent, Tone::Plain).then(line, tone));
        }
    }

    fn heading(&mut self, text: &str) {
        self.out.push('\n');
        self.line(&Line::new(text, Tone::Strong));
    }

    fn title(&mut self, diagnosis: &Diagnosis) {
        let Diagnosis { namespace, name, status, .. } = diagnosis;
        let since = status.since.map(|since| format!("since {}", age(self.now.duration_since(since))));
        let line = Line::new(format!("deployment/{name} in namespace {namespace}"), Tone::Strong)
            .gap(status.phase.word(), phase_tone(status.phase))
            .gap(since.unwrap_or_default(), Tone::Dim);
        self.line(&line);
    }

    fn status(&mut self, status: &Status) {
        self.say(INDENT, &format!("{}: {}", status.phase.word(), status.summary), phase_tone(status.phase));
        let replicas = &status.replicas;
        let counts = format!(
            "replicas: {} desired, {} there, {} updated, {} ready, {} available",
            replicas.desired, replicas.total, replicas.updated, replicas.ready, replicas.available
        );
        self.say(INDENT, &counts, Tone::Plain);
        for condition in &status.conditions {
            self.condition(condition);
        }
    }

    fn condition(&mut self, line: &ConditionLine) {
        let ConditionLine { condition, inherited } = line;
        let good = condition.kind != "ReplicaFailure" && condition.kind != "Stalled";
        let tone = match condition.status.as_str() {
            _ if *inherited => Tone::Dim,
            "True" if good => Tone::Good,
            "False" if !good => Tone::Good,
            "Unknown" => Tone::Warn,
            _ => Tone::Bad,
        };
        let since = condition.since.map(|since| format!("for {}", age(self.now.duration_since(since))));
        let inherited = if *inherited { "(of the generation before)" } else { "" };
        let shown = Line::new(INDENT, Tone::Plain)
            .then(format!("{}={}", condition.kind, condition.status), tone)
            .gap(condition.reason.as_str(), Tone::Plain)
            .gap(since.unwrap_or_default(), Tone::Dim)
            .gap(inherited, Tone::Dim);
        self.line(&shown);
        self.say(DEEPER, &condition.message, Tone::Dim);
    }

    fn generations(&mut self, generations: &Generations) {
        let Generations { generation, observed, lag, written_at, written_by, controller_manager } =
            generations;
        let (text, tone) = match lag {
            0 => (format!("generation {generation}, observed {observed}: they match"), Tone::Good),
            lag => (format!("generation {generation}, observed {observed}: {lag} behind"), Tone::Bad),
        };
        self.say(INDENT, &text, tone);
        if let Some(at) = written_at {
            let by = written_by.as_deref().unwrap_or("a manager that is not known");
            let text = format!("last written {} ago by {by}", age(self.now.duration_since(*at)));
            self.say(INDENT, &text, Tone::Plain);
        }
        let renewed = format!("its Lease was renewed {} ago", ago(controller_manager.renewed_at, self.now));
        let (text, tone) = match controller_manager.state {
            "alive" => (format!("kube-controller-manager is at work: {renewed}"), Tone::Good),
            "silent" => (format!("kube-controller-manager is not at work: {renewed}"), Tone::Bad),
            _ => (
                "whether kube-controller-manager is at work cannot be told from its Lease".to_owned(),
                Tone::Dim,
            ),
        };
        self.say(INDENT, &text, tone);
    }

    fn configuration(&mut self, configuration: &Configuration) {
        let strategy = &configuration.strategy;
        let mut words = vec![strategy.kind.clone()];
        words.extend(strategy.max_unavailable.as_ref().map(|n| format!("maxUnavailable {n}")));
        words.extend(strategy.max_surge.as_ref().map(|n| format!("maxSurge {n}")));
        words.push(match strategy.progress_deadline_seconds {
            Some(seconds) => format!("deadline {seconds} s"),
            None => "no deadline".to_owned(),
        });
        words.push(format!("minReadySeconds {}", strategy.min_ready_seconds));
        words.push(format!("revisionHistoryLimit {}", strategy.revision_history_limit));
        self.say(INDENT, &words.join(", "), Tone::Plain);
        for image in &configuration.images {
            self.say(INDENT, &format!("image {image}"), Tone::Plain);
        }
        if configuration.findings.is_empty() {
            self.say(INDENT, "nothing is wrong with it", Tone::Good);
        }
        self.findings(&configuration.findings);
    }

    fn findings(&mut self, findings: &[Finding]) {
        for finding in findings {
            let (word, tone) = match finding.severity {
                Severity::Problem => ("problem: ", Tone::Bad),
                Severity::Note => ("note: ", Tone::Warn),
            };
            self.say(INDENT, &format!("{word}{}", finding.text), tone);
            self.say(DEEPER, &finding.hint, Tone::Dim);
        }
    }

    fn events(&mut self, diagnosis: &Diagnosis) {
        match diagnosis.events.as_deref() {
            None => {}
            Some([]) => self.say(
                INDENT,
                "no Events that tell of trouble (Kubernetes keeps them for an hour)",
                Tone::Dim,
            ),
            Some(events) => events.iter().for_each(|event| self.event(event)),
        }
        if let Some(pods) = &diagnosis.pods {
            self.pods(pods);
        }
        if diagnosis.events.is_none() && diagnosis.pods.is_none() {
            self.say(INDENT, NOT_SHOWN, Tone::Warn);
        }
    }

    fn event(&mut self, event: &EventLine) {
        let tone = if event.kind == "Normal" { Tone::Plain } else { Tone::Warn };
        let times = if event.count > 1 { format!("{} times", event.count) } else { String::new() };
        let more = match event.objects {
            1 => String::new(),
            objects => format!("and {} more", objects - 1),
        };
        let line = Line::new(INDENT, Tone::Plain)
            .then(format!("{} ago", ago(event.last_at, self.now)), Tone::Dim)
            .gap(event.reason.as_str(), tone)
            .gap(event.object.as_str(), Tone::Plain)
            .gap(more, Tone::Plain)
            .gap(times, Tone::Dim);
        self.line(&line);
        self.say(DEEPER, &event.message, Tone::Dim);
    }

    fn pods(&mut self, pods: &Pods) {
        let of = match &pods.replica_set {
            Some(name) => format!(" of ReplicaSet {name}"),
            None => return self.say(INDENT, "there is no ReplicaSet, and so there are no pods", Tone::Warn),
        };
        let tone = if pods.ready == pods.total { Tone::Good } else { Tone::Bad };
        self.say(INDENT, &format!("{} of {} pods{of} are ready", pods.ready, pods.total), tone);
        for pod in &pods.failing {
            self.pod(pod);
        }
        if pods.omitted > 0 {
            self.say(INDENT, &format!("and {} more that are not well", pods.omitted), Tone::Dim);
        }
    }

    fn pod(&mut self, line: &PodLine) {
        let PodLine { pod, containers } = line;
        let node = pod.node.as_ref().map(|node| format!("on {node}")).unwrap_or_default();
        let shown = Line::new(INDENT, Tone::Plain)
            .then(format!("pod {}", pod.name), Tone::Plain)
            .gap(pod.reason.as_str(), pod_tone(pod))
            .gap(node, Tone::Dim);
        self.line(&shown);
        if containers.iter().all(|container| container.message.is_none()) {
            self.say(DEEPER, &pod.message, Tone::Dim);
        }
        for container in containers {
            self.container(container);
        }
    }

    fn container(&mut self, container: &ContainerLine) {
        let mut words = vec![container.state.to_owned()];
        words.extend(container.reason.clone());
        if container.restarts > 0 {
            words.push(format!("{} restarts", container.restarts));
        }
        if let Some(code) = container.exit_code {
            let reason = container.exit_reason.as_ref().map(|reason| format!(" ({reason})"));
            let ended = ago(container.exited_at, self.now);
            words.push(format!("last exit code {code}{}, {ended} ago", reason.unwrap_or_default()));
        }
        self.say(DEEPER, &format!("container {}: {}", container.name, words.join(", ")), Tone::Plain);
        if let Some(message) = &container.message {
            self.say(DEEPER, message, Tone::Dim);
        }
        let Some(log) = &container.log else { return };
        let which = if log.previous { "the log of the run before" } else { "the log" };
        if log.lines.is_empty() {
            return self.say(DEEPER, &format!("{which} is empty"), Tone::Dim);
        }
        self.say(DEEPER, &format!("the end of {which}:"), Tone::Dim);
        for line in &log.lines {
            let line = Line::new(DEEPER, Tone::Plain).then("| ", Tone::Dim).then(line.as_str(), Tone::Plain);
            self.line(&line);
        }
    }

    fn cluster(&mut self, diagnosis: &Diagnosis) {
        let cluster = &diagnosis.cluster;
        if let Some(nodes) = &cluster.nodes {
            let (text, tone) = nodes_in_words(nodes);
            self.say(INDENT, &text, tone);
        }
        if let Some(quotas) = &cluster.quotas {
            self.say(INDENT, &quotas_in_words(quotas), Tone::Plain);
        }
        if let Some(ranges) = cluster.limit_ranges.as_ref().filter(|ranges| !ranges.is_empty()) {
            let text = format!("LimitRanges that set or bound what pods ask for: {}", ranges.join(", "));
            self.say(INDENT, &text, Tone::Plain);
        }
        if let Some(webhooks) = cluster.webhooks.as_ref().filter(|webhooks| webhooks.matching > 0) {
            let text = format!(
                "webhooks called for it: {}, {} of them with failurePolicy Fail",
                webhooks.matching, webhooks.fail_closed
            );
            self.say(INDENT, &text, Tone::Plain);
        }
        if let Some(policies) = cluster.admission_policies.as_ref().filter(|policies| !policies.is_empty()) {
            let text = format!("ValidatingAdmissionPolicies that may refuse it: {}", policies.join(", "));
            self.say(INDENT, &text, Tone::Plain);
        }
        self.guard(&diagnosis.guard);
        self.findings(&cluster.findings);
        self.findings(&diagnosis.guard.findings);
        if cluster.nodes.is_none() && cluster.quotas.is_none() && cluster.webhooks.is_none() {
            self.say(INDENT, NOT_SHOWN, Tone::Warn);
        }
        let hidden = diagnosis.hidden.iter().any(|hidden| hidden.what == "nodes");
        if cluster.findings.is_empty() && diagnosis.guard.findings.is_empty() && !hidden {
            self.say(INDENT, "nothing is wrong with it", Tone::Good);
        }
    }

    fn guard(&mut self, guard: &GuardState) {
        if guard.installed == Some(false) {
            return self.say(INDENT, "rollout-guard is not installed", Tone::Dim);
        }
        let mut words = Vec::new();
        words.extend(guard.policy.as_ref().map(|policy| {
            let mode = guard.mode.map_or("", |mode| mode.label());
            let rollback = guard.rollback_mode.map(|mode| format!(", rollback {mode:?}").to_lowercase());
            format!("policy {policy} ({mode}{})", rollback.unwrap_or_default())
        }));
        words.extend(guard.leader.as_ref().map(|leader| format!("leader {leader}")));
        words.extend(
            guard.breaker.as_ref().filter(|b| *b == BREAKER_CLOSED).map(|_| "breaker closed".to_owned()),
        );
        if !words.is_empty() {
            self.say(INDENT, &format!("rollout-guard: {}", words.join(", ")), Tone::Plain);
        }
        if let Some(says) = &guard.says {
            self.say(INDENT, &format!("rollout-guard says: {says}"), Tone::Warn);
        }
    }

    fn cause(&mut self, diagnosis: &Diagnosis) {
        if let Some(last) = &diagnosis.rollback {
            self.heading("Rollback");
            let number = |revision: Option<i64>| {
                revision.map_or_else(|| "one without a ReplicaSet".to_owned(), |n| n.to_string())
            };
            let text = format!(
                "{} ago rollout-guard went from revision {} back to {}: {}",
                age(self.now.duration_since(last.started_at)),
                number(last.from_revision),
                number(last.to_revision),
                outcome_words(last.outcome)
            );
            self.say(INDENT, &text, Tone::Plain);
        }
        let Some(CauseLine { cause, of }) = &diagnosis.cause else {
            if diagnosis.status.phase != RecordPhase::Complete {
                let seen = if diagnosis.hidden.is_empty() { "" } else { " in what may be read" };
                self.heading(&format!("Cause: none is to be seen{seen}"));
            }
            return;
        };
        self.out.push('\n');
        let (what, tone) = match of {
            Of::Current => ("Cause: ", Tone::Bad),
            Of::RolledBack => ("What was wrong with it: ", Tone::Warn),
        };
        self.line(&Line::new(what, Tone::Strong).then(cause.kind.word(), tone));
        self.say(INDENT, &cause.message, tone);
        for fact in cause.evidence.iter().filter(|fact| !fact.is_empty()) {
            self.say(DEEPER, fact, Tone::Dim);
        }
    }

    fn next(&mut self, diagnosis: &Diagnosis) {
        let next = &diagnosis.next;
        self.heading("Next");
        self.say(INDENT, &next.text, Tone::Plain);
        if let Some(command) = &next.command {
            self.line(&Line::new(DEEPER, Tone::Plain).then(command.as_str(), Tone::Strong));
        }
        for other in &next.others {
            self.say(INDENT, &format!("{}:", other.text), Tone::Dim);
            self.line(&Line::new(DEEPER, Tone::Plain).then(other.command.as_str(), Tone::Plain));
        }
    }

    fn hidden(&mut self, diagnosis: &Diagnosis) {
        if diagnosis.hidden.is_empty() {
            return;
        }
        self.heading("Not shown");
        for hidden in &diagnosis.hidden {
            self.say(INDENT, &format!("{}: {}", hidden.what, hidden.why), Tone::Warn);
        }
    }
}

fn nodes_in_words(nodes: &NodeState) -> (String, Tone) {
    let mut text = format!("{} of {} nodes are ready", nodes.ready, nodes.total);
    if !nodes.cordoned.is_empty() {
        text.push_str(&format!("; cordoned: {}", nodes.cordoned.join(", ")));
    }
    (text, if nodes.ready == nodes.total { Tone::Good } else { Tone::Bad })
}

fn quotas_in_words(quotas: &[QuotaState]) -> String {
    let full = quotas.iter().filter(|quota| !quota.used_up.is_empty()).count();
    match (quotas.len(), full) {
        (0, _) => "no ResourceQuotas".to_owned(),
        (count, 0) => format!("ResourceQuotas: {count}, none used up"),
        (count, full) => format!("ResourceQuotas: {count}, {full} used up"),
    }
}
