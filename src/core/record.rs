//! The ledger: folds what is seen of a Deployment into its RolloutRecord.
//!
//! ```text
//!  new template ──▶ under way ──complete──▶ complete ──for goodAfter──▶ Good, settled
//!                       │  ▲                   │
//!                       │  └──── not so yet ───┘
//!                       └──── stuck ──▶ rolled back: Bad ──▶ the template put back is under way
//! ```
//!
//! Nothing is remembered of a Deployment that has only ever been complete. What is remembered makes timers survive a
//! restart: every decision is taken from the record, what is seen now, and `now`.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{cause::Cause, policy::Policy, rollout::Phase, template::TemplateHash};
use crate::api::{
    policy::CauseType,
    record::{
        Outcome, RecordCause, RecordPhase, RecordRevision, RecordRollback, RolloutRecordStatus, Verdict,
    },
};

/// The most templates that are remembered, and the most Bad ones among them.
const MOST: usize = 24;
const MOST_BAD: usize = 12;

/// What is seen of a Deployment at one time.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// `metadata.generation`.
    pub generation: i64,
    /// `status.observedGeneration`.
    pub observed_generation: i64,
    /// Where it stands by counts and conditions, a failure that was inherited left out.
    pub phase: Phase,
    /// `spec.paused`, observed or not: nothing is to be done about what somebody has just paused.
    pub paused: bool,
    /// `spec.replicas`: with none there is no evidence that a template is good.
    pub desired: i32,
    /// The hash of its pod template.
    pub template: TemplateHash,
    /// The images of its pod template.
    pub images: Vec<String>,
    /// The ReplicaSets that it controls; none where they were not looked at.
    pub replica_sets: Option<&'a [Set]>,
    /// What was complete right before the template of now, where that was seen.
    pub before: Option<Before>,
    /// Why it does not get on, where something says so.
    pub cause: Option<Cause>,
    /// The best that this rollout has come to, where it is under way.
    pub progress: Progress,
    /// Since when this generation was seen not to be observed, where it is so.
    pub unobserved_since: Option<Timestamp>,
    /// `spec.progressDeadlineSeconds`; none where there is no deadline.
    pub progress_deadline: Option<SignedDuration>,
    /// Whether kube-controller-manager is at work; none where that cannot be told.
    pub manager: Option<AtWork>,
}

/// How kube-controller-manager was seen to be at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtWork {
    /// It is not, as far as is known.
    No,
    /// Without a break since `since`, and last at `last`.
    Since {
        /// The first sign of life after the last silence.
        since: Timestamp,
        /// The last one.
        last: Timestamp,
    },
}

/// A ReplicaSet of the Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// The hash of its pod template.
    pub template: TemplateHash,
    /// Its revision.
    pub revision: i64,
    /// How many of its pods are available.
    pub available: i32,
    /// The images of its pod template.
    pub images: Vec<String>,
}

/// A template that was complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// Its hash.
    pub template: TemplateHash,
    /// From when to when it was complete.
    pub complete: (Timestamp, Timestamp),
}

/// The best that a rollout has come to: flapping is no progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The most updated replicas, and the most available ones beyond those of earlier templates.
    pub best: (i32, i32),
    /// When that was first so.
    pub at: Timestamp,
    /// When there were more available ones than ever before: what failed until then has not kept the rollout from getting on.
    pub available_at: Timestamp,
}

impl Progress {
    /// Returns what it is after `updated` and `available` were seen.
    pub fn with(self, updated: i32, available: i32, now: Timestamp) -> Self {
        let best = (self.best.0.max(updated), self.best.1.max(available));
        let available_at = if best.1 > self.best.1 { now } else { self.available_at };
        if best == self.best { self } else { Self { best, at: now, available_at } }
    }

    /// Returns one that begins with these counts.
    pub const fn begun(updated: i32, available: i32, at: Timestamp) -> Self {
        Self { best: (updated, available), at, available_at: at }
    }
}

/// Whether a generation is stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Nothing is due: it is settled, complete, paused or being deleted.
    No,
    /// Not before then.
    NotBefore(Timestamp),
    /// It is.
    Yes,
}

/// How much longer than Kubernetes' progress deadline a rollout may be without any progress, in percent: the deadline is
/// Kubernetes' to tell first.
const OWN_DEADLINE_PERCENT: i32 = 120;

/// kube-controller-manager must have been seen at work so much later than a generation that it did not observe: longer
/// than between two looks at its lease, so that it has really been renewed since.
const SEEN_AT_WORK: SignedDuration = SignedDuration::from_secs(10);

/// What kube-controller-manager says of a rollout right after it was away it says by what it has not seen yet: that the
/// deadline has passed, and a moment later that it has not.
const BACK_AT_WORK: SignedDuration = SignedDuration::from_secs(30);

/// Until it is looked at again whether it was.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(2);

impl From<Phase> for RecordPhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Deleting => Self::Deleting,
            Phase::Unobserved => Self::Unobserved,
            Phase::Paused => Self::Paused,
            Phase::Complete => Self::Complete,
            Phase::Failed => Self::Failed,
            Phase::Progressing => Self::Progressing,
        }
    }
}

/// Returns the record as it is to be, conditions left as they are; none where nothing must be remembered.
pub fn fold(
    old: Option<&RolloutRecordStatus>,
    seen: &Seen<'_>,
    policy: &Policy,
    now: Timestamp,
) -> Option<RolloutRecordStatus> {
    // One that was created, and not written to yet, knows nothing.
    let Some(old) = old.filter(|old| old.template_hash.is_some()) else { return first(seen, policy, now) };
    let mut next = old.clone();
    not_ahead(&mut next, now);
    if next.template_hash.as_deref() != Some(seen.template.to_string().as_str()) {
        was_complete(&mut next, seen, policy);
        begin(&mut next, seen, now);
    }
    advance(&mut next, seen, policy, now);
    tidy(&mut next, seen, now);
    Some(next)
}

/// What was written down by a clock that is ahead began now at the latest: nothing waits for that clock's time.
fn not_ahead(status: &mut RolloutRecordStatus, now: Timestamp) {
    let latest = second(now);
    let cause = status.cause.as_mut().map(|cause| &mut cause.since);
    let times = status.since.iter_mut().chain(&mut status.rollout_started_at).chain(cause);
    times.filter(|time| time.0 > latest).for_each(|time| time.0 = latest);
}

/// The first record of a Deployment.
fn first(seen: &Seen<'_>, policy: &Policy, now: Timestamp) -> Option<RolloutRecordStatus> {
    let mut status = RolloutRecordStatus::default();
    match &seen.before {
        Some(before) if before.template != seen.template => was_complete(&mut status, seen, policy),
        // A Deployment that is new, or was under way before the guard was there: only trouble is remembered.
        _ if seen.cause.as_ref().is_some_and(|cause| cause.early) || seen.phase == Phase::Failed => {}
        _ if seen.phase == Phase::Unobserved
            && seen
                .unobserved_since
                .is_some_and(|since| now.duration_since(since) >= span(policy.watch.unobserved_after)) => {}
        _ if policy.watch.progressing_after.is_some_and(|after| {
            seen.phase == Phase::Progressing && now.duration_since(seen.progress.at) >= span(after)
        }) => {}
        _ if own_deadline(seen).is_some_and(|at| seen.phase == Phase::Progressing && now >= at) => {}
        _ => return None,
    }
    begin(&mut status, seen, now);
    if seen.before.is_none() {
        // Its rollout began before it was looked at.
        status.rollout_started_at = Some(Time(second(seen.progress.at)));
        status.since = Some(Time(second(seen.progress.at)));
    }
    advance(&mut status, seen, policy, now);
    tidy(&mut status, seen, now);
    Some(status)
}

/// What was complete right before the template of now is the newest of those before it, and good if it was so for long enough:
/// also where nobody followed it meanwhile, and the record knows of earlier ones alone.
fn was_complete(status: &mut RolloutRecordStatus, seen: &Seen<'_>, policy: &Policy) {
    let Some(before) = seen.before.as_ref().filter(|before| before.template != seen.template) else { return };
    let hash = before.template.to_string();
    let known = status.revisions.iter().position(|revision| revision.template_hash == hash);
    let mut revision = known.map_or_else(RecordRevision::default, |at| status.revisions.remove(at));
    let (mut from, to) = before.complete;
    // Where it was followed, more is known of it: a crash loop is complete again and again.
    let followed = status.template_hash.as_ref() == Some(&hash);
    if let (true, Some(RecordPhase::Complete), Some(since)) = (followed, status.phase, &status.since) {
        from = from.max(since.0);
    }
    let told = status.conditions.iter().any(|c| c.type_ == "Stalled" && c.status == "True");
    let in_trouble = followed && status.settled_at.is_none() && (status.cause.is_some() || told);
    let in_progress =
        |rollback: &RecordRollback| rollback.outcome == Outcome::InProgress && rollback.from == hash;
    let rolled_back = status.rollback.as_ref().is_some_and(in_progress);
    let long_enough = to.duration_since(from) >= span(policy.watch.good_after);
    // What is Bad stays so: it gets another verdict by being followed alone.
    if revision.verdict == Verdict::Unknown && long_enough && !in_trouble && !rolled_back {
        revision.since = Some(Time(second(to)));
        revision.verdict = Verdict::Good;
    }
    revision.template_hash = hash;
    status.revisions.insert(0, revision);
}

/// The template is another one than before: its rollout begins.
fn begin(status: &mut RolloutRecordStatus, seen: &Seen<'_>, now: Timestamp) {
    let hash = seen.template.to_string();
    let known = status.revisions.iter().position(|revision| revision.template_hash == hash);
    let mut revision = known.map_or_else(RecordRevision::default, |at| status.revisions.remove(at));
    revision.template_hash.clone_from(&hash);
    revision.images.clone_from(&seen.images);
    if revision.verdict == Verdict::Bad && !is_bad(&revision, now) {
        forgive(&mut revision);
    }
    status.revisions.insert(0, revision);
    status.template_hash = Some(hash.clone());
    status.rollout_started_at = Some(Time(second(now)));
    status.rollout_generation = Some(seen.generation);
    status.settled_at = None;
    status.cause = None;
    status.phase = Some(seen.phase.into());
    status.since = Some(Time(second(now)));
    if let Some(rollback) = &mut status.rollback
        && rollback.outcome == Outcome::InProgress
        && hash != rollback.to
    {
        // Also where it is the Bad one again: it was away in between, so somebody brought it back.
        rollback.outcome = Outcome::Superseded;
        rollback.finished_at = Some(Time(second(now)));
    }
}

/// What is seen of the template that the record is of.
fn advance(status: &mut RolloutRecordStatus, seen: &Seen<'_>, policy: &Policy, now: Timestamp) {
    let phase = RecordPhase::from(seen.phase);
    let settled = status.settled_at.is_some();
    // A settled one that is scaled, or loses a pod, is nothing to be remembered, unless nobody observes it for too long.
    let passing = match phase {
        RecordPhase::Unobserved => {
            matches!(stuck(status, seen, policy, now), Stuck::No | Stuck::NotBefore(_))
        }
        RecordPhase::Progressing => status.phase != Some(RecordPhase::Unobserved),
        _ => false,
    };
    if settled && passing {
        return;
    }
    if status.phase != Some(phase) {
        status.phase = Some(phase);
        status.since = Some(Time(second(now)));
    }
    // A rollout that is paused, or has no replicas, takes no time: its clock starts when it goes on.
    if settled {
        // Its rollout is over.
    } else if seen.paused || seen.desired == 0 {
        status.rollout_started_at = None;
    } else if status.rollout_started_at.is_none() {
        status.rollout_started_at = Some(Time(second(now)));
    }
    status.generation = Some(seen.generation);
    status.deployment_observed_generation = Some(seen.observed_generation);
    let came_back = came_back(status, seen);
    if let Some(rollback) = status.rollback.as_mut().filter(|_| came_back) {
        rollback.outcome = Outcome::Superseded;
        rollback.finished_at = Some(Time(second(now)));
    }
    if let Some(rollback) = &mut status.rollback
        && rollback.outcome == Outcome::InProgress
        && rollback.to == seen.template.to_string()
        && rollback.generation.is_none()
    {
        // Put back, and killed before that was written down.
        rollback.generation = status.rollout_generation;
        rollback.restored_at = Some(Time(second(now)));
    }
    if seen.phase == Phase::Complete {
        complete(status, seen, policy, now);
    }
    // What it is told to be stuck for is kept for as long as it is, whatever says so.
    let told = status.conditions.iter().any(|c| c.type_ == "Stalled" && c.status == "True");
    let of_the_rollout = !settled || phase == RecordPhase::Unobserved;
    status.cause = if of_the_rollout { cause(status.cause.take(), seen, told, now) } else { None };
}

fn complete(status: &mut RolloutRecordStatus, seen: &Seen<'_>, policy: &Policy, now: Timestamp) {
    let hash = seen.template.to_string();
    // Also one that was given up: it took longer than it may, and is there.
    let put_back = is_put_back(status);
    if let Some(rollback) = &mut status.rollback
        && rollback.to == hash
        && (rollback.outcome == Outcome::InProgress || put_back && rollback.outcome == Outcome::Failed)
    {
        rollback.outcome = Outcome::Succeeded;
        rollback.finished_at = Some(Time(second(now)));
    }
    if let Some(rollback) = &mut status.rollback
        && rollback.from == hash
        && rollback.outcome == Outcome::InProgress
    {
        // Decided on, held up, and not needed any more.
        rollback.outcome = Outcome::Superseded;
        rollback.finished_at = Some(Time(second(now)));
    }
    let long_enough = good_at(status, policy).is_some_and(|at| now >= at);
    if status.settled_at.is_some() || !long_enough || seen.desired == 0 {
        return;
    }
    status.settled_at = Some(Time(second(now)));
    if let Some(current) = status.revisions.iter_mut().find(|revision| revision.template_hash == hash)
        && current.verdict != Verdict::Good
    {
        // Also one that was Bad: it was let in by an override, and it works.
        current.verdict = Verdict::Good;
        current.since = Some(Time(second(now)));
        current.reason = None;
        current.until = None;
    }
}

/// Returns when a template that is complete counts as good.
pub fn good_at(status: &RolloutRecordStatus, policy: &Policy) -> Option<Timestamp> {
    let since = status.since.as_ref().filter(|_| status.phase == Some(RecordPhase::Complete))?;
    later(since.0, span(policy.watch.good_after))
}

/// What explains it keeps its time for as long as it is of one kind and the rollout does not get on all the same: pods that
/// crash some times and then run, one after the other, are none that fail.
fn cause(old: Option<RecordCause>, seen: &Seen<'_>, told: bool, now: Timestamp) -> Option<RecordCause> {
    if told
        && seen.cause.is_none()
        && matches!(seen.phase, Phase::Failed | Phase::Unobserved | Phase::Progressing)
        && old.as_ref().is_some_and(|old| old.kind == CauseType::Unknown)
    {
        return old;
    }
    // A scale, say: what the template was failing for goes on.
    if seen.cause.is_none() && seen.phase == Phase::Unobserved {
        return old;
    }
    let found = seen.cause.as_ref().filter(|cause| {
        // While it is under way only what is hard evidence is worth a write.
        let known = told && old.as_ref().is_some_and(|old| old.kind == cause.kind);
        cause.early || known || matches!(seen.phase, Phase::Failed | Phase::Unobserved)
    })?;
    // A time ahead is one of a clock that was set back since.
    let got_on = |since: Timestamp| since < seen.progress.available_at && seen.progress.available_at <= now;
    let since = match &old {
        Some(old) if old.kind == found.kind && !got_on(old.since.0) => old.since.clone(),
        _ => Time(second(now)),
    };
    Some(RecordCause {
        kind: found.kind,
        message: found.message.clone(),
        since,
        evidence: found.evidence.clone(),
    })
}

/// Forgets the cause of what is not stuck, where nothing but that spoke for it.
pub fn not_stuck(status: &mut RolloutRecordStatus, seen: &Seen<'_>) {
    let told = |cause: &Cause| cause.early || matches!(seen.phase, Phase::Failed | Phase::Unobserved);
    let goes_on = seen.cause.is_none() && seen.phase == Phase::Unobserved;
    if !goes_on && !seen.cause.as_ref().is_some_and(told) {
        status.cause = None;
    }
}

/// Fills in what ReplicaSets tell, and forgets what is no longer of use.
fn tidy(status: &mut RolloutRecordStatus, seen: &Seen<'_>, now: Timestamp) {
    let Some(sets) = seen.replica_sets else { return };
    for revision in &mut status.revisions {
        let set = sets.iter().find(|set| set.template.to_string() == revision.template_hash);
        if let Some(set) = set {
            revision.revision = Some(set.revision);
            revision.replica_set = Some(set.name.clone());
            revision.images.clone_from(&set.images);
        }
    }
    let current = status.template_hash.clone();
    // Also what was rolled back from, as long as what was put back stands there: the record goes on telling of it.
    let told = |rollback: &&RecordRollback| {
        rollback.outcome == Outcome::InProgress || Some(&rollback.to) == current.as_ref()
    };
    let rollback = status.rollback.as_ref().filter(told);
    let involved: Vec<String> =
        rollback.into_iter().flat_map(|rollback| [rollback.from.clone(), rollback.to.clone()]).collect();
    let mut bad = 0;
    let mut count = 0;
    status.revisions.retain(|revision| {
        let hash = &revision.template_hash;
        if Some(hash) == current.as_ref() || involved.contains(hash) {
            count += 1;
            return true;
        }
        let quarantined = is_bad(revision, now);
        let has_set = sets.iter().any(|set| set.template.to_string() == *hash);
        bad += usize::from(quarantined);
        let kept = count < MOST && if quarantined { bad <= MOST_BAD } else { has_set };
        count += usize::from(kept);
        kept
    });
    for revision in &mut status.revisions {
        let over = revision.verdict == Verdict::Bad && revision.until.as_ref().is_some_and(|u| u.0 <= now);
        if over && Some(&revision.template_hash) != current.as_ref() {
            forgive(revision);
        }
    }
}

/// Forgets what was held against a template.
fn forgive(revision: &mut RecordRevision) {
    revision.verdict = Verdict::Unknown;
    revision.since = None;
    revision.reason = None;
    revision.until = None;
}

/// Says whether a template is Bad at `now`.
pub fn is_bad(revision: &RecordRevision, now: Timestamp) -> bool {
    revision.verdict == Verdict::Bad && revision.until.as_ref().is_none_or(|until| now < until.0)
}

/// Says whether the current generation is stuck, by the policy's times.
pub fn stuck(status: &RolloutRecordStatus, seen: &Seen<'_>, policy: &Policy, now: Timestamp) -> Stuck {
    let settled = status.settled_at.is_some();
    if settled && seen.phase != Phase::Unobserved {
        return Stuck::No;
    }
    // Of a settled one the record tells the time of its rollout, not of what was written since.
    let told = status.conditions.iter().any(|c| c.type_ == "Stalled" && c.status == "True");
    if settled && told {
        return Stuck::Yes;
    }
    let since = match settled {
        true => seen.unobserved_since.unwrap_or(now).min(now),
        false => status.since.as_ref().map_or(now, |since| since.0),
    };
    let hard = seen.cause.as_ref().filter(|cause| cause.early).and(status.cause.as_ref());
    let early = hard.and_then(|cause| later(cause.since.0, span(policy.watch.early_failure_after)));
    let due = match seen.phase {
        Phase::Complete | Phase::Paused | Phase::Deleting => return Stuck::No,
        Phase::Unobserved => {
            // Nobody is blamed for what is not observed while nothing is: somebody must have been at work since.
            let patience = span(policy.watch.unobserved_after);
            let after = match seen.manager.filter(|_| seen.cause.is_none()) {
                None => later(since, patience),
                Some(AtWork::No) => later(now, LOOK_AGAIN),
                Some(AtWork::Since { since: at_work, last }) => {
                    let due = later(since.max(at_work), patience.max(SEEN_AT_WORK));
                    // It may have stopped before, and its lease not be over yet.
                    let seen_after = Some(last) >= later(since, SEEN_AT_WORK);
                    if seen_after { due } else { due.max(later(now, LOOK_AGAIN)) }
                }
            };
            // What stands there may be of the template before, as long as nobody has looked at this one.
            let unseen = matches!(seen.manager, Some(AtWork::Since { last, .. }) if Some(last) < later(since, SEEN_AT_WORK));
            let early = if unseen { early.max(early.and(later(now, LOOK_AGAIN))) } else { early };
            [after, early]
        }
        // Kubernetes has waited long enough: no need for a record to say since when.
        Phase::Failed => {
            let patience = span(policy.watch.failed_after);
            let due = if patience.is_zero() { Some(now) } else { later(since, patience) };
            let back = match seen.manager {
                // What was said before it came back, by somebody who was there all the time, is believed.
                Some(AtWork::Since { since: at_work, .. }) if later(since, SEEN_AT_WORK) > Some(at_work) => {
                    later(at_work, BACK_AT_WORK)
                }
                Some(AtWork::Since { .. }) => None,
                Some(AtWork::No) if !told => later(now, LOOK_AGAIN),
                Some(AtWork::No) | None => None,
            };
            [due.max(due.and(back)), early]
        }
        Phase::Progressing => {
            let begun = status.rollout_started_at.as_ref().map_or(since, |begun| begun.0);
            let own = policy.watch.progressing_after.and_then(|after| later(begun, span(after)));
            [own.into_iter().chain(own_deadline(seen)).min(), early]
        }
    };
    match due.into_iter().flatten().min() {
        None => Stuck::No,
        Some(due) if now < due => Stuck::NotBefore(due),
        Some(_) => Stuck::Yes,
    }
}

/// When Kubernetes should have given up long ago: it takes flapping for progress, and a ReplicaSet that is used again
/// and gets nowhere for complete.
fn own_deadline(seen: &Seen<'_>) -> Option<Timestamp> {
    let deadline = seen.progress_deadline?.checked_mul(OWN_DEADLINE_PERCENT)?.checked_div(100)?;
    let at = match seen.manager {
        // Nothing gets on while nobody works on it.
        Some(AtWork::Since { since, .. }) => seen.progress.at.max(since),
        _ => seen.progress.at,
    };
    later(at, deadline + SignedDuration::from_secs(5))
}

/// Notes that a rollback is decided on: before it is carried out, so that it happens once whatever comes between.
pub fn intend(
    status: &mut RolloutRecordStatus,
    seen: &Seen<'_>,
    target: &Set,
    cause: &RecordCause,
    policy: &Policy,
    now: Timestamp,
) {
    let (from, to) = (seen.template.to_string(), target.template.to_string());
    let until = later(now, span(policy.rollback.quarantine_for));
    let mut from_revision = None;
    for revision in &mut status.revisions {
        if revision.template_hash == from {
            from_revision = revision.revision;
            revision.verdict = Verdict::Bad;
            revision.reason = Some(cause.kind);
            revision.since = Some(Time(second(now)));
            revision.until = until.map(|until| Time(second(until)));
        }
    }
    if !status.revisions.iter().any(|revision| revision.template_hash == to) {
        // What still serves is put back without having been seen to become good.
        status.revisions.insert(
            1.min(status.revisions.len()),
            RecordRevision {
                template_hash: to.clone(),
                revision: Some(target.revision),
                replica_set: Some(target.name.clone()),
                images: target.images.clone(),
                ..RecordRevision::default()
            },
        );
    }
    status.rollback = Some(RecordRollback {
        from,
        to,
        from_generation: seen.generation,
        generation: None,
        from_revision,
        to_revision: Some(target.revision),
        cause: cause.kind,
        message: cause.message.clone(),
        evidence: cause.evidence.clone(),
        pushed_at: status.rollout_started_at.clone(),
        started_at: Time(second(now)),
        restored_at: None,
        finished_at: None,
        outcome: Outcome::InProgress,
    });
}

/// Notes that a rollback that was decided on is not carried out, for this `outcome`: nothing was written, so its template
/// is no worse than any other.
pub fn give_up(status: &mut RolloutRecordStatus, outcome: Outcome, now: Timestamp) {
    let Some(rollback) = &mut status.rollback else { return };
    rollback.outcome = outcome;
    rollback.finished_at = Some(Time(second(now)));
    if let Some(from) = status.revisions.iter_mut().find(|revision| revision.template_hash == rollback.from) {
        forgive(from);
    }
}

/// Returns the cause that a stuck generation is told with.
pub fn named(status: &RolloutRecordStatus, seen: &Seen<'_>, now: Timestamp) -> RecordCause {
    let found = seen.cause.clone().unwrap_or_else(|| Cause::unknown(seen.phase));
    let since = status.cause.as_ref().filter(|old| old.kind == found.kind).map(|old| old.since.clone());
    RecordCause {
        kind: found.kind,
        message: found.message,
        since: since.unwrap_or_else(|| Time(second(now))),
        evidence: found.evidence,
    }
}

/// Returns the verdict on the template with this hash.
pub fn revision<'a>(status: &'a RolloutRecordStatus, hash: &str) -> Option<&'a RecordRevision> {
    status.revisions.iter().find(|revision| revision.template_hash == hash)
}

/// Says whether two records differ in something worth a write. Words that were found for what is known already,
/// and the number of a generation of a settled template, are not.
pub fn differ(old: &RolloutRecordStatus, new: &RolloutRecordStatus) -> bool {
    let plain = |status: &RolloutRecordStatus| {
        let mut status = status.clone();
        if let Some(cause) = &mut status.cause {
            cause.message.clear();
            cause.evidence.clear();
        }
        status.deployment_observed_generation = None;
        let settled = status.settled_at.is_some();
        if settled {
            status.generation = None;
        }
        for condition in &mut status.conditions {
            if settled && condition.status == "True" && condition.type_ == "Ready" {
                condition.message.clear();
            }
        }
        status
    };
    plain(old) != plain(new)
}

/// Returns the policy's word on a cause: whether it is rolled back.
pub fn is_rolled_back(policy: &Policy, kind: CauseType) -> bool {
    policy.rollback.causes.contains(&kind)
}

/// A time as records hold it: Kubernetes keeps whole seconds. The next one, so that nothing is due too early.
pub fn second(time: Timestamp) -> Timestamp {
    let up = i64::from(time.subsec_nanosecond() > 0);
    Timestamp::from_second(time.as_second().saturating_add(up)).unwrap_or(time)
}

/// Notes that the template was put back, in the generation that this made.
pub fn restored(status: &mut RolloutRecordStatus, seen: &Seen<'_>, now: Timestamp) {
    begin(status, seen, now);
    status.generation = Some(seen.generation);
    status.deployment_observed_generation = Some(seen.observed_generation);
    if let Some(rollback) = &mut status.rollback {
        rollback.generation = Some(seen.generation);
        rollback.restored_at = Some(Time(second(now)));
    }
}

/// Says whether the current template is the one that the last rollback put back, and nobody else did.
pub fn is_put_back(status: &RolloutRecordStatus) -> bool {
    status.rollback.as_ref().is_some_and(|rollback| {
        Some(&rollback.to) == status.template_hash.as_ref()
            && rollback.generation.is_some()
            && rollback.generation == status.rollout_generation
    })
}

/// Says whether a rollback that was decided on was carried out without anybody writing it down, and its template
/// was then brought back: two generations more, the same template, and its ReplicaSet or that of the template that was
/// put back with another revision (or none then), as Kubernetes numbers one anew that becomes the current one again.
pub fn came_back(status: &RolloutRecordStatus, seen: &Seen<'_>) -> bool {
    let of = |hash: &str| {
        let mut sets = seen.replica_sets.into_iter().flatten();
        sets.find(|set| set.template.to_string() == hash).map(|set| set.revision)
    };
    status.rollback.as_ref().is_some_and(|rollback| {
        let to = of(&rollback.to);
        let numbered_anew = rollback.from_revision.is_none()
            || of(&rollback.from) != rollback.from_revision
            || to.is_some() && to != rollback.to_revision;
        rollback.outcome == Outcome::InProgress
            && rollback.from == seen.template.to_string()
            && seen.generation - rollback.from_generation >= 2
            && numbered_anew
    })
}

/// A length of time of a policy.
pub fn span(duration: crate::api::duration::Duration) -> SignedDuration {
    SignedDuration::try_from(duration.get()).unwrap_or(SignedDuration::MAX)
}

/// `time` and then `span`; none beyond the end of time.
pub fn later(time: Timestamp, span: SignedDuration) -> Option<Timestamp> {
    time.checked_add(span).ok()
}
