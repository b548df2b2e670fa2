//! Whether the push that a pipeline waits for has come to its end, and to which.
//!
//! ```text
//!                            ┌─ complete ────────────────────────────────────────▶ Complete      0
//!  the template waited for ──┼─ given up by Kubernetes, a cause that cannot heal ─▶ Failed        1
//!    (taken at the start)    ├─ an earlier template is there in its place ───────▶ RolledBack    3
//!                            ├─ another one is ──────────────────────────────────▶ Superseded    4
//!                            └─ none of it in time ──────────────────────────────▶ TimedOut    124
//! ```
//!
//! A push is a template: a generation that scales or annotates is the same push. [`Waiting`] is fed with what is read of
//! the cluster and says what changed, until it says how it ended.
//!
//! It fails without waiting for the progress deadline where a cause stands that does not heal by itself, for
//! [`STANDS`], as one pull may fail and the next one succeed. Where the guard follows the rollout it is given the
//! time to act instead, so that the end that is told is the true one: rolled back, or held for a person. What may heal
//! (no room in the cluster, a registry, a node, the control plane) is shown and goes on being waited for.

mod end;
mod goal;

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use self::goal::{Goal, replaced};
use super::{
    key::Key,
    message::plain,
    record::later,
    view::{CauseView, DeploymentView},
};
use crate::api::{
    policy::CauseType,
    record::{Outcome, RecordPhase, RolloutRecordStatus},
};

pub use end::{Decided, End, worst};
pub use goal::JUST_NOW;

/// How long a cause that cannot heal must stand where no guard follows the rollout.
pub const STANDS: SignedDuration = SignedDuration::from_secs(10);

/// How long the guard has to say what it does about such a cause: longer than the `earlyFailureAfter` of a policy that
/// says nothing of it.
pub const GUARD_DECIDES: SignedDuration = SignedDuration::from_secs(90);

/// How long the guard has once Kubernetes has given the rollout up, and to carry out what it has decided.
pub const GUARD_ACTS: SignedDuration = SignedDuration::from_secs(30);

/// How long the API server may fail in a row.
pub const UNREACHABLE: SignedDuration = SignedDuration::from_secs(30);

/// The most characters of a text that is not known to be bounded.
const WORDS: usize = 900;

/// What is waited for, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// When the waiting began.
    pub started: Timestamp,
    /// When it ends, whatever is then.
    pub deadline: Timestamp,
    /// Whether it ends where the rollout cannot succeed any more. Else only what takes its place ends it early.
    pub fail_fast: bool,
    /// How long it must have been complete without a break.
    pub stable: SignedDuration,
    /// Which push.
    pub push: Push,
}

/// Which push is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Push {
    /// The one that is there at the start.
    #[default]
    Current,
    /// The one that is there, whoever put it there: a rollback to it is no failure.
    Undone,
    /// The one that made this generation.
    Generation(i64),
    /// The one whose ReplicaSet has this revision.
    Revision(i64),
}

/// What was read of a Deployment at one time.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The Deployment as the API server gives it.
    pub raw: &'a Value,
    /// The same as it is shown, with what is known around it: its revisions, and why it does not get on.
    pub view: &'a DeploymentView,
    /// The status of its own RolloutRecord, read after the Deployment; none where there is none, or it cannot be read.
    pub record: Option<&'a RolloutRecordStatus>,
}

/// What an observation gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing new.
    Same,
    /// It stands elsewhere than before.
    Changed(Position),
    /// It has come to its end.
    Done(Box<Decided>),
}

/// Where a rollout stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Position {
    /// The phase, a failure of the generation before left out.
    pub phase: RecordPhase,
    /// `metadata.generation`.
    pub generation: i64,
    /// `status.observedGeneration`.
    pub observed_generation: i64,
    /// `spec.replicas`.
    pub desired: i32,
    /// Pods of any revision.
    pub replicas: i32,
    /// Pods of the template that is waited for.
    pub updated: i32,
    /// Pods that are available.
    pub available: i32,
    /// Why it does not get on, in words.
    pub cause: Option<(CauseType, String)>,
    /// What the guard does about it.
    pub guard: Option<String>,
}

impl Position {
    fn of(view: &DeploymentView, guard: &Guard) -> Self {
        let guard = match guard {
            Guard::RollsBack => Some("the guard is rolling it back".to_owned()),
            Guard::Holds(words) => Some(format!("the guard holds it: {words}")),
            Guard::Follows if view.cause.as_ref().is_some_and(is_hard) => {
                Some("the guard follows it and is to decide".to_owned())
            }
            Guard::Absent | Guard::Follows => None,
        };
        Self {
            phase: view.phase,
            generation: view.generation,
            observed_generation: view.observed_generation,
            desired: view.desired,
            replicas: view.replicas,
            updated: view.updated,
            available: view.available,
            cause: view.cause.as_ref().map(|cause| (cause.kind, cause.message.clone())),
            guard,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { desired, updated, available, replicas, generation, observed_generation, .. } = self;
        match self.phase {
            RecordPhase::Unobserved => {
                write!(f, "generation {generation} is not observed yet (observed: {observed_generation})")?;
            }
            RecordPhase::Paused => f.write_str("paused")?,
            RecordPhase::Deleting => f.write_str("being deleted")?,
            RecordPhase::Complete => write!(f, "complete: {updated} of {desired} updated and available")?,
            RecordPhase::Failed | RecordPhase::Progressing => {
                write!(f, "{updated} of {desired} updated, {available} available")?;
                if replicas > updated {
                    write!(f, ", {} old", replicas - updated)?;
                }
            }
        }
        match (&self.guard, &self.cause) {
            // The guard's words begin with the cause.
            (Some(guard), Some((_, message))) if guard.contains(message.as_str()) => write!(f, "; {guard}"),
            (guard, cause) => {
                if let Some((kind, message)) = cause {
                    write!(f, "; {}: {message}", kind.word())?;
                }
                guard.iter().try_for_each(|guard| write!(f, "; {guard}"))
            }
        }
    }
}

/// What the guard does about the rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Guard {
    /// Nothing that is known of.
    Absent,
    /// It follows it, and has said nothing yet.
    Follows,
    /// It rolls it back.
    RollsBack,
    /// It leaves it as it is, and says why.
    Holds(String),
}

impl Guard {
    /// Reads the record, where it speaks of this template.
    fn of(record: Option<&RolloutRecordStatus>, template: &str) -> Self {
        let Some(record) = record.filter(|record| record.template_hash.as_deref() == Some(template)) else {
            return Self::Absent;
        };
        let decided = record
            .rollback
            .as_ref()
            .is_some_and(|rollback| rollback.outcome == Outcome::InProgress && rollback.from == template);
        let stalled = record.conditions.iter().find(|c| c.type_ == "Stalled" && c.status == "True");
        match stalled.map(|c| (c.reason.as_str(), c.message.as_str())) {
            Some(("Held" | "Latched", words)) => Self::Holds(plain(words, WORDS)),
            Some(("RollingBack", _)) => Self::RollsBack,
            _ if decided => Self::RollsBack,
            _ if record.settled_at.is_some() => Self::Absent,
            _ => Self::Follows,
        }
    }
}

/// Says whether what is wrong may go away without anybody pushing again.
const fn heals(kind: CauseType) -> bool {
    matches!(kind, CauseType::Capacity | CauseType::Registry | CauseType::Node | CauseType::ControlPlane)
}

/// Says whether it is a fact that neither heals nor needs the progress deadline to be believed.
const fn is_hard(cause: &CauseView) -> bool {
    cause.early && !heals(cause.kind)
}

/// Since when something has been so without a break.
#[derive(Clone, Copy, Debug, Default)]
struct Since(Option<Timestamp>);

impl Since {
    fn note(&mut self, holds: bool, now: Timestamp) {
        self.0 = holds.then(|| self.0.unwrap_or(now));
    }

    fn lasts(self, long: SignedDuration, now: Timestamp) -> bool {
        self.0.and_then(|since| later(since, long)).is_some_and(|due| due <= now)
    }
}

/// Waits for the push of one Deployment.
#[derive(Clone, Debug)]
pub struct Waiting {
    key: Key,
    terms: Terms,
    goal: Option<Goal>,
    complete: Since,
    /// It cannot succeed.
    failing: Since,
    /// Kubernetes has given it up.
    given_up: Since,
    rolling_back: Since,
    unreachable: Since,
    /// Why nothing could be read last.
    why: Option<String>,
    last: Option<Position>,
    evidence: Vec<String>,
}

impl Waiting {
    /// Waits for the Deployment `key` by `terms`.
    pub fn new(key: Key, terms: Terms) -> Self {
        Self {
            key,
            terms,
            goal: None,
            complete: Since::default(),
            failing: Since::default(),
            given_up: Since::default(),
            rolling_back: Since::default(),
            unreachable: Since::default(),
            why: None,
            last: None,
            evidence: Vec::new(),
        }
    }

    /// Returns which Deployment is waited for.
    pub const fn key(&self) -> &Key {
        &self.key
    }

    /// Takes in what was read; none where the Deployment is not there.
    pub fn observe(&mut self, seen: Option<&Observed<'_>>, now: Timestamp) -> Step {
        (self.unreachable, self.why) = (Since::default(), None);
        let Some(seen) = seen else { return Step::Done(self.is_missing()) };
        let mut goal = match self.goal.take().map_or_else(|| Goal::of(self, seen, now), Ok) {
            Ok(goal) => goal,
            Err(decided) => return Step::Done(decided),
        };
        let current = seen.view.template_hash == goal.template;
        if current {
            goal.revision = seen.view.revision.or(goal.revision);
        }
        self.goal = Some(goal.clone());
        if seen.view.uid != goal.uid {
            return Step::Done(self.failed("it was deleted while it was waited for, and made anew"));
        }
        if seen.view.phase == RecordPhase::Deleting {
            return Step::Done(self.failed("it is being deleted"));
        }
        if !current {
            return Step::Done(replaced(self, &goal, seen));
        }
        let guard = Guard::of(seen.record, &goal.template);
        let position = Position::of(seen.view, &guard);
        let changed = self.last.as_ref() != Some(&position);
        self.last = Some(position.clone());
        self.evidence = seen.view.cause.as_ref().map(|cause| cause.evidence.clone()).unwrap_or_default();
        match self.decide(seen, guard, now).or_else(|| self.late(now)) {
            Some(decided) => Step::Done(decided),
            None if changed => Step::Changed(position),
            None => Step::Same,
        }
    }

    /// Takes in that nothing could be read, and why: ends it once that lasts.
    pub fn fails(&mut self, why: &str, now: Timestamp) -> Option<Box<Decided>> {
        self.unreachable.note(true, now);
        self.why = Some(why.to_owned());
        if self.unreachable.lasts(UNREACHABLE, now) {
            return Some(self.refused(why));
        }
        self.late(now)
    }

    /// Ends it for an error that does not go away by waiting, such as a right that is missing.
    pub fn refused(&self, why: &str) -> Box<Decided> {
        self.ended(End::Error, plain(why, WORDS))
    }

    /// Returns how long it may still take.
    pub fn left(&self, now: Timestamp) -> std::time::Duration {
        self.terms.deadline.duration_since(now).try_into().unwrap_or_default()
    }

    /// Ends it where its time is over.
    pub fn late(&self, now: Timestamp) -> Option<Box<Decided>> {
        (now >= self.terms.deadline).then(|| {
            // What was never read is not late.
            if let (None, Some(why)) = (&self.goal, &self.why) {
                return self.refused(why);
            }
            let limit = self.terms.deadline.duration_since(self.terms.started).as_secs();
            let stood = self.last.as_ref().map_or_else(|| "never read".to_owned(), ToString::to_string);
            let mut decided = self.ended(End::TimedOut, format!("not complete within {limit} s: {stood}"));
            decided.next = Some(self.diagnose());
            decided
        })
    }

    fn decide(&mut self, seen: &Observed<'_>, guard: Guard, now: Timestamp) -> Option<Box<Decided>> {
        let view = seen.view;
        // What is paused can be complete, of the same template: nothing is left to be rolled out.
        let counts = view.updated == view.desired
            && view.replicas == view.desired
            && view.available == view.desired
            && view.observed_generation >= view.generation;
        self.complete.note(counts, now);
        if counts {
            (self.failing, self.given_up) = (Since::default(), Since::default());
            return self.complete.lasts(self.terms.stable, now).then(|| self.is_complete(view, now));
        }
        if !self.terms.fail_fast {
            return None;
        }
        if view.phase == RecordPhase::Paused {
            let mut decided =
                self.ended(End::Failed, "it is paused, and does not get on before it is resumed".to_owned());
            let (namespace, name) = self.names();
            decided.next = Some(format!("kubectl -n {namespace} rollout resume deployment/{name}"));
            return Some(decided);
        }
        let words = self.is_hopeless(seen, guard, now)?;
        Some(self.has_failed(seen, words))
    }

    /// Says whether it cannot succeed and the guard has had the time to do something about it; with what the guard says.
    fn is_hopeless(&mut self, seen: &Observed<'_>, guard: Guard, now: Timestamp) -> Option<Option<String>> {
        let view = seen.view;
        let given_up = view.phase == RecordPhase::Failed;
        let hard = view.cause.as_ref().is_some_and(is_hard);
        // What the guard holds is stuck by the policy's times, where no hard fact says so.
        let held =
            matches!(guard, Guard::Holds(_)) && view.cause.as_ref().is_some_and(|cause| !heals(cause.kind));
        self.given_up.note(given_up, now);
        self.failing.note(given_up || hard || held, now);
        self.rolling_back.note(guard == Guard::RollsBack, now);
        match guard {
            Guard::RollsBack => self
                .rolling_back
                .lasts(GUARD_ACTS, now)
                .then(|| Some("the guard has decided on a rollback, and not carried it out".to_owned())),
            Guard::Holds(words) => (given_up || hard || held).then_some(Some(words)),
            Guard::Follows => (self.failing.lasts(GUARD_DECIDES, now)
                || self.given_up.lasts(GUARD_ACTS, now))
            .then(|| Some("the guard has not acted on it so far".to_owned())),
            Guard::Absent => (given_up || self.failing.lasts(STANDS, now)).then_some(None),
        }
    }

    fn is_complete(&self, view: &DeploymentView, now: Timestamp) -> Box<Decided> {
        let what = self.goal.as_ref().map(Goal::named).unwrap_or_default();
        let mut message = format!("complete: {what}, generation {}", view.generation);
        message += &match view.desired {
            0 => ", with no replicas wanted".to_owned(),
            1 => ", 1 replica".to_owned(),
            n => format!(", {n} replicas"),
        };
        let took = now.duration_since(self.terms.started).as_secs();
        if took > 0 {
            message += &format!(", after {took} s");
        }
        let mut decided = self.ended(End::Complete, message);
        (decided.cause, decided.evidence) = (None, Vec::new());
        decided
    }

    /// Why it has failed, in words, and what can be done.
    fn has_failed(&self, seen: &Observed<'_>, guard: Option<String>) -> Box<Decided> {
        let view = seen.view;
        let why = match &view.cause {
            Some(cause) => format!("{}: {}", cause.kind.word(), cause.message),
            None => "it does not get on".to_owned(),
        };
        let given_up = (view.phase == RecordPhase::Failed)
            .then(|| view.condition("Progressing").map_or("", |condition| condition.reason.as_str()))
            .map(|reason| format!(" (given up by Kubernetes: {reason})"))
            .unwrap_or_default();
        // The guard's words begin with the cause.
        let message = match guard {
            Some(words) if words.contains(&why) => format!("failed: {words}{given_up}"),
            Some(words) => format!("failed: {why}{given_up}; {words}"),
            None => format!("failed: {why}{given_up}"),
        };
        let mut decided = self.ended(End::Failed, message);
        let earlier =
            view.revisions.iter().any(|revision| !revision.current && revision.replica_set.is_some());
        let (namespace, name) = self.names();
        decided.next =
            Some(if earlier { format!("rollout-guard undo -n {namespace} {name}") } else { self.diagnose() });
        decided
    }

    fn is_missing(&self) -> Box<Decided> {
        match &self.goal {
            Some(_) => self.failed("it was deleted while it was waited for"),
            None => self.ended(End::Error, "there is no such Deployment".to_owned()),
        }
    }

    fn failed(&self, why: &str) -> Box<Decided> {
        let mut decided = self.ended(End::Failed, why.to_owned());
        (decided.cause, decided.evidence) = (None, Vec::new());
        decided
    }

    /// An end, with all that is known of where it stood.
    fn ended(&self, end: End, message: String) -> Box<Decided> {
        let last = self.last.as_ref();
        Box::new(Decided {
            key: self.key.clone(),
            end,
            message,
            cause: last.and_then(|last| last.cause.as_ref()).map(|(kind, _)| *kind),
            evidence: self.evidence.clone(),
            next: None,
            generation: last.map(|last| last.generation),
            revision: self.goal.as_ref().and_then(|goal| goal.revision),
        })
    }

    fn diagnose(&self) -> String {
        let (namespace, name) = self.names();
        format!("rollout-guard diagnose -n {namespace} {name}")
    }

    fn names(&self) -> (String, String) {
        (plain(&self.key.namespace, 64), plain(&self.key.name, 254))
    }
}
