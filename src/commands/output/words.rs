//! The colours and words that all commands use for the same things.

use super::screen::Tone;
use crate::{
    api::record::{Outcome, RecordPhase, Verdict},
    core::view::{DeploymentView, PodView, RevisionView},
};

/// Returns the colour of a phase.
pub const fn phase_tone(phase: RecordPhase) -> Tone {
    match phase {
        RecordPhase::Complete => Tone::Good,
        RecordPhase::Unobserved | RecordPhase::Progressing => Tone::Warn,
        RecordPhase::Failed => Tone::Bad,
        RecordPhase::Paused | RecordPhase::Deleting => Tone::Dim,
    }
}

/// Returns the colour of a verdict.
pub const fn verdict_tone(verdict: Option<Verdict>) -> Tone {
    match verdict {
        Some(Verdict::Good) => Tone::Good,
        Some(Verdict::Bad) => Tone::Bad,
        Some(Verdict::Unknown) | None => Tone::Dim,
    }
}

/// Returns the verdict of a revision with its reason: `Good`, `Bad (Image)`; empty where nobody judged it.
pub fn verdict_of(revision: &RevisionView) -> String {
    match (revision.verdict, revision.reason) {
        (Some(Verdict::Bad), Some(reason)) => format!("Bad ({})", reason.word()),
        (Some(verdict @ (Verdict::Good | Verdict::Bad)), _) => verdict.word().to_owned(),
        (Some(Verdict::Unknown) | None, _) => String::new(),
    }
}

/// Returns the words for what became of a rollback.
pub const fn outcome_words(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::InProgress => "in progress",
        Outcome::Succeeded => "succeeded",
        Outcome::Failed => "failed",
        Outcome::Superseded => "superseded",
    }
}

/// Returns the colour of a pod's reason.
pub fn pod_tone(pod: &PodView) -> Tone {
    let under_way = ["ContainerCreating", "PodInitializing", "Pending", "Running", "Terminating"];
    match pod.reason.as_str() {
        _ if pod.is_well() => Tone::Good,
        reason if under_way.contains(&reason) || is_init_count(reason) => Tone::Warn,
        _ => Tone::Bad,
    }
}

/// `Init:0/2`, and not `Init:Error`.
fn is_init_count(reason: &str) -> bool {
    reason.strip_prefix("Init:").is_some_and(|rest| rest.contains('/'))
}

/// Returns one word on why it does not get on: the kind of cause, else the reason that Kubernetes gives for a failure;
/// empty where there is nothing to say.
pub fn cause_word(view: &DeploymentView) -> &str {
    if let Some(cause) = &view.cause {
        return cause.kind.word();
    }
    let failed = view.condition("Progressing").filter(|condition| condition.status == "False");
    match view.phase {
        RecordPhase::Failed => failed.map_or("", |condition| condition.reason.as_str()),
        _ => "",
    }
}
