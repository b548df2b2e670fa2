//! Whether a stuck generation is rolled back, and to which revision.
//!
//! Never: onto the current template, onto a Bad one, twice from one template, on a paused or deleting Deployment, for a
//! cause that the policy excludes. The target is the newest Good revision that still has a ReplicaSet; without
//! one in the ledger, or where the ledger has missed a later one, the revision that still serves; else nothing is done but said.

use std::fmt;

use jiff::Timestamp;

use super::{
    key::Key,
    message::plain,
    policy::Policy,
    record::{Seen, Set, Stuck, good_at, is_put_back, is_rolled_back, named, revision, stuck},
    rollout::Phase,
};
use crate::api::{
    policy::{CauseType, Mode, RollbackMode},
    record::{Outcome, RecordCause, RolloutRecordStatus, Verdict},
};

/// What is to be done about a Deployment.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Nothing.
    Stay(Stay),
    /// Nothing before then.
    Wait(Timestamp),
    /// It is stuck, and nothing is done but said.
    Hold(RecordCause, Hold),
    /// The template of this ReplicaSet is put back.
    Restore(RecordCause, Set),
}

/// Why nothing is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// It is being deleted.
    Deleting,
    /// It is paused.
    Paused,
    /// The current template was found good, or is complete.
    Settled,
    /// It gets on, as far as anything says.
    UnderWay,
}

/// Why a stuck generation is not rolled back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The policy says so: `rollback.mode` is Off.
    Off,
    /// The policy leaves it to a person: `rollback.mode` is Manual, or the mode is not Enforce.
    Manual {
        /// The command that does it.
        command: String,
        /// The revision that would be put back.
        revision: i64,
    },
    /// The cause is not among those that the policy rolls back.
    Excluded(CauseType),
    /// There is no revision to return to.
    NoTarget,
    /// The template was rolled back from before.
    Again,
    /// The template is the one that was found good: what is not observed is a change of something else.
    SameTemplate,
    /// The template was put back by the guard, and is stuck as well.
    Latched,
    /// The API server refuses the rollback.
    Refused,
    /// The cluster itself is not well, or as many rollbacks as allowed are in progress or were started.
    Breaker(String),
}

impl Hold {
    /// Returns the reason of the condition `Stalled`.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Latched => "Latched",
            _ => "Held",
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("the policy's rollback is Off"),
            Self::Manual { command, revision } => {
                write!(f, "would be rolled back to revision {revision}: {command}")
            }
            Self::Excluded(kind) => write!(f, "the policy does not roll back for {}", kind.word()),
            Self::NoTarget => f.write_str("there is no good revision to return to"),
            Self::SameTemplate => {
                f.write_str("its template is the one that was found good, so there is nothing to roll back")
            }
            Self::Again => f.write_str("this template was rolled back before, and came back"),
            Self::Latched => {
                f.write_str("the revision that was put back is stuck as well; nothing more is done")
            }
            Self::Refused => f.write_str("the API server refuses the rollback; see the log of the guard"),
            Self::Breaker(why) => write!(f, "no rollback while {why}"),
        }
    }
}

/// Decides. `breaker` says why no rollback may start at all, where that is so.
pub fn plan(
    key: &Key,
    status: &RolloutRecordStatus,
    seen: &Seen<'_>,
    policy: &Policy,
    breaker: Option<&str>,
    now: Timestamp,
) -> Plan {
    match seen.phase {
        Phase::Deleting => return Plan::Stay(Stay::Deleting),
        Phase::Paused => return Plan::Stay(Stay::Paused),
        _ if seen.paused => return Plan::Stay(Stay::Paused),
        Phase::Complete if status.settled_at.is_none() && seen.desired > 0 => {
            return good_at(status, policy).map_or(Plan::Stay(Stay::Settled), Plan::Wait);
        }
        Phase::Complete => return Plan::Stay(Stay::Settled),
        Phase::Unobserved | Phase::Failed | Phase::Progressing => {}
    }
    let current = seen.template.to_string();
    let under_way = status.rollback.as_ref().filter(|r| r.outcome == Outcome::InProgress);
    if let Some(rollback) = under_way.filter(|rollback| rollback.from == current) {
        // Decided before, and not carried out: whatever came between, once.
        let cause = RecordCause {
            kind: rollback.cause,
            message: rollback.message.clone(),
            since: rollback.started_at.clone(),
            evidence: rollback.evidence.clone(),
        };
        let set = seen.replica_sets.into_iter().flatten().find(|set| set.template.to_string() == rollback.to);
        return match (set, breaker) {
            _ if policy.rollback.mode == RollbackMode::Off => Plan::Hold(cause, Hold::Off),
            (None, _) => Plan::Hold(cause, Hold::NoTarget),
            (Some(set), _) if is_left_to_people(policy) => Plan::Hold(cause, manual(key, set)),
            (Some(_), Some(why)) => Plan::Hold(cause, Hold::Breaker(why.to_owned())),
            (Some(set), None) => Plan::Restore(cause, set.clone()),
        };
    }
    match stuck(status, seen, policy, now) {
        Stuck::No if status.settled_at.is_some() => return Plan::Stay(Stay::Settled),
        Stuck::No => return Plan::Stay(Stay::UnderWay),
        Stuck::NotBefore(due) => return Plan::Wait(due),
        Stuck::Yes => {}
    }
    let cause = named(status, seen, now);
    let hold = |why| Plan::Hold(cause.clone(), why);
    if status.settled_at.is_some() {
        return hold(Hold::SameTemplate);
    }
    if is_put_back(status) {
        return hold(Hold::Latched);
    }
    if is_refused(status, &current) {
        return hold(Hold::Refused);
    }
    if policy.rollback.mode == RollbackMode::Off {
        return hold(Hold::Off);
    }
    if revision(status, &current).is_some_and(|revision| revision.verdict == Verdict::Bad) {
        return hold(Hold::Again);
    }
    if !is_rolled_back(policy, cause.kind) {
        return hold(Hold::Excluded(cause.kind));
    }
    let Some(target) = target(status, seen) else { return hold(Hold::NoTarget) };
    if is_left_to_people(policy) {
        return hold(manual(key, target));
    }
    if let Some(why) = breaker {
        return hold(Hold::Breaker(why.to_owned()));
    }
    Plan::Restore(cause, target.clone())
}

/// Says whether the policy leaves rollbacks to people: also in Warn and Audit, which change nothing in the cluster.
fn is_left_to_people(policy: &Policy) -> bool {
    policy.mode != Mode::Enforce || policy.rollback.mode != RollbackMode::Automatic
}

/// Says whether the last rollback of the current template failed before the template was put back.
fn is_refused(status: &RolloutRecordStatus, current: &str) -> bool {
    status.rollback.as_ref().is_some_and(|rollback| {
        rollback.outcome == Outcome::Failed
            && rollback.from == current
            && rollback.generation.is_none()
            && status.rollout_generation <= Some(rollback.from_generation)
    })
}

fn manual(key: &Key, target: &Set) -> Hold {
    let (namespace, name) = (plain(&key.namespace, 63), plain(&key.name, 253));
    let revision = target.revision;
    Hold::Manual {
        command: format!("kubectl rollout-guard undo {name} -n {namespace} --to {revision}"),
        revision,
    }
}

/// Returns the ReplicaSet to return to.
pub fn target<'a>(status: &RolloutRecordStatus, seen: &Seen<'a>) -> Option<&'a Set> {
    let sets = seen.replica_sets?;
    let of = |hash: &str| sets.iter().find(|set| set.template.to_string() == hash);
    let other = |set: &&Set| set.template != seen.template;
    let good = status.revisions.iter().filter(|revision| revision.verdict == Verdict::Good);
    let good = good.filter_map(|revision| of(&revision.template_hash)).find(other);
    let known = |set: &Set| revision(status, &set.template.to_string());
    let bad = |set: &&Set| known(set).is_some_and(|revision| revision.verdict == Verdict::Bad);
    let serving = sets.iter().filter(other).filter(|set| set.available > 0 && !bad(set));
    let serving = serving.max_by_key(|set| (set.available, set.revision));
    match (good, serving) {
        // Nobody followed it when it was rolled out, and it serves more than what was good before it.
        (Some(good), Some(serving))
            if known(serving).is_none()
                && serving.revision > good.revision
                && serving.available > good.available =>
        {
            Some(serving)
        }
        (Some(good), _) => Some(good),
        (None, serving) => serving,
    }
}
