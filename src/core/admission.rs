//! The decision on one update of a Deployment, in the order of the table in the README.
//!
//! | # | when | verdict |
//! | --- | --- | --- |
//! | 1 | generation unchanged by this update, or the old object is being deleted | allow |
//! | 2 | written by the guard itself and the template is a recorded revision | allow |
//! | 3 | the pod template is unchanged | allow |
//! | 4 | the new template is recorded Bad | quarantined |
//! | 5 | the new template is recorded Good | allow |
//! | 6 | a freeze window is open | frozen |
//! | 7 | phase Unobserved, Failed or Progressing | as the policy says |
//! | 8 | else | allow |
//!
//! Rows 2, 4 and 5 go by the ledger that the watcher keeps. It is asked only for a new template, as that must be hashed.

use jiff::Timestamp;

use super::{
    ledger::{Bad, Recorded},
    policy::{OpenFreeze, Policy},
    rollout::{Phase, Snapshot, classify},
};
use crate::api::policy::{Action, Mode};

/// One update of a Deployment, as the validating phase sees it: the new generation is already counted and
/// the status is that of the old object.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    /// The namespace of the Deployment.
    pub namespace: &'a str,
    /// The name of the Deployment.
    pub name: &'a str,
    /// The Deployment before the update.
    pub old: Snapshot<'a>,
    /// `metadata.generation` after the update.
    pub new_generation: i64,
    /// Whether the pod template differs, by value.
    pub template_changed: bool,
    /// Whether nothing will be written.
    pub dry_run: bool,
    /// Whether the guard itself writes it.
    pub by_guard: bool,
}

/// Why an update is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// No policy matches.
    NotGuarded,
    /// The policy's mode is Off.
    Off,
    /// Row 1: nothing that Kubernetes counts as a generation has changed.
    SameGeneration,
    /// Row 1: the Deployment is being deleted.
    Deleting,
    /// Row 2: the guard puts a template back that it has recorded.
    OwnRollback,
    /// Row 3: the pod template stays.
    SameTemplate,
    /// Row 5: the new template was good.
    KnownGood,
    /// Row 7: the rollout is paused, so that nothing starts.
    Paused,
    /// Row 7: the policy allows it in this phase.
    PolicyAllows,
    /// Row 8: the current generation is complete.
    Settled,
}

impl Allowed {
    /// Returns the word for logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotGuarded => "not-guarded",
            Self::Off => "off",
            Self::SameGeneration => "same-generation",
            Self::Deleting => "deleting",
            Self::OwnRollback => "own-rollback",
            Self::SameTemplate => "same-template",
            Self::KnownGood => "known-good",
            Self::Paused => "paused",
            Self::PolicyAllows => "policy-allows",
            Self::Settled => "settled",
        }
    }
}

/// Why an update is refused. The ids are stable: pipelines match on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// RG001: the current generation is not observed.
    Unobserved,
    /// RG002: the current generation has failed.
    Failed,
    /// RG003: the current generation is rolling out.
    Progressing,
    /// RG004: the template was rolled back from.
    Quarantined,
    /// RG005: a freeze is open.
    Frozen,
}

impl Reason {
    /// Returns the id.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Unobserved => "RG001",
            Self::Failed => "RG002",
            Self::Progressing => "RG003",
            Self::Quarantined => "RG004",
            Self::Frozen => "RG005",
        }
    }

    /// Returns the reason in CamelCase.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unobserved => "Unobserved",
            Self::Failed => "Failed",
            Self::Progressing => "Progressing",
            Self::Quarantined => "Quarantined",
            Self::Frozen => "Frozen",
        }
    }
}

/// How an update is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// 403: at once.
    Deny,
    /// 429: the client asks again after so many seconds, by itself.
    Wait {
        /// `details.retryAfterSeconds`.
        retry_after_seconds: u32,
    },
}

/// A refusal, before the policy's mode and an override have their say.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal<'a> {
    /// Why.
    pub reason: Reason,
    /// How.
    pub refused: Refused,
    /// The freeze that is open, where that is the reason.
    pub freeze: Option<OpenFreeze<'a>>,
    /// What is recorded of the new template, where it was rolled back from.
    pub bad: Option<Bad<'a>>,
}

impl<'a> Refusal<'a> {
    const fn new(reason: Reason, refused: Refused) -> Self {
        Self { reason, refused, freeze: None, bad: None }
    }
}

/// What is decided about an update.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict<'a> {
    /// It goes through.
    Allow(Allowed),
    /// It does not, where the mode is Enforce and nobody overrides.
    Refuse(Refusal<'a>),
}

/// Decides by the table. `policy` is the effective one, if any; `recorded` says what the ledger knows of the new
/// template, and is asked only where that decides.
pub fn decide<'a>(
    change: &Change<'_>,
    policy: Option<&'a Policy>,
    recorded: impl FnOnce() -> Recorded<'a>,
    now: Timestamp,
) -> Verdict<'a> {
    let Some(policy) = policy else { return Verdict::Allow(Allowed::NotGuarded) };
    if policy.mode == Mode::Off {
        return Verdict::Allow(Allowed::Off);
    }
    // Row 1.
    if change.new_generation == change.old.generation {
        return Verdict::Allow(Allowed::SameGeneration);
    }
    let phase = classify(&change.old);
    if phase == Phase::Deleting {
        return Verdict::Allow(Allowed::Deleting);
    }
    // Row 3, before row 2: it lets through as well, and asks nothing.
    if !change.template_changed {
        return Verdict::Allow(Allowed::SameTemplate);
    }
    let recorded = recorded();
    // Row 2.
    if change.by_guard && recorded != Recorded::Nothing {
        return Verdict::Allow(Allowed::OwnRollback);
    }
    match recorded {
        // Row 4. Where the policy allows it, a Bad template is one like any other.
        Recorded::Bad(bad) if bad.holds_at(now) => {
            if let Some(refused) = carry_out(policy.admission.quarantined, change, policy, now) {
                let refusal = Refusal::new(Reason::Quarantined, refused);
                return Verdict::Refuse(Refusal { bad: Some(bad), ..refusal });
            }
        }
        // Row 5.
        Recorded::Good => return Verdict::Allow(Allowed::KnownGood),
        Recorded::Bad(_) | Recorded::PutBack | Recorded::Nothing => {}
    }
    // Row 6.
    if let Some(freeze) = policy.open_freeze(now) {
        let refusal = Refusal::new(Reason::Frozen, Refused::Deny);
        return Verdict::Refuse(Refusal { freeze: Some(freeze), ..refusal });
    }
    // Row 7. A paused Deployment may be edited, observed or not: nothing starts before it is resumed.
    if change.old.paused {
        return Verdict::Allow(Allowed::Paused);
    }
    let (reason, action) = match phase {
        Phase::Unobserved => (Reason::Unobserved, policy.admission.unobserved),
        Phase::Failed => (Reason::Failed, policy.admission.failed),
        Phase::Progressing => (Reason::Progressing, policy.admission.progressing),
        // Row 8.
        Phase::Complete | Phase::Paused | Phase::Deleting => return Verdict::Allow(Allowed::Settled),
    };
    match carry_out(action, change, policy, now) {
        Some(refused) => Verdict::Refuse(Refusal::new(reason, refused)),
        None => Verdict::Allow(Allowed::PolicyAllows),
    }
}

/// Says how `action` refuses `change`; none where it does not.
fn carry_out(action: Action, change: &Change<'_>, policy: &Policy, now: Timestamp) -> Option<Refused> {
    match action {
        Action::Allow => None,
        // Whoever asks by dry run first (Flux) would sit in the queue with the fix behind the bad push.
        Action::Wait if change.dry_run => Some(Refused::Deny),
        Action::Wait => Some(Refused::Wait {
            retry_after_seconds: retry_after(&change.old, policy.admission.max_wait_seconds, now),
        }),
        Action::Deny => Some(Refused::Deny),
    }
}

/// Seconds until a client should ask again: as many as the generation is old, from 1 to `max`. Ten of them, as
/// client-go asks, are a second for two quick pushes and about a minute for one that is stuck.
fn retry_after(old: &Snapshot<'_>, max: u32, now: Timestamp) -> u32 {
    let age = old.written_at.map_or(0, |written| now.as_second() - written.as_second());
    let max = max.max(1);
    u32::try_from(age.max(1)).unwrap_or(max).min(max)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::core::{policy::compile, rollout::Condition};

    fn now() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().expect("time")
    }

    fn policy(spec: serde_json::Value) -> Policy {
        compile("default", 1, &serde_json::from_value(spec).expect("spec")).expect("valid")
    }

    fn complete() -> Change<'static> {
        Change {
            namespace: "shop",
            name: "web",
            old: Snapshot {
                generation: 7,
                observed_generation: 7,
                desired: 2,
                replicas: 2,
                updated: 2,
                available: 2,
                ..Snapshot::default()
            },
            new_generation: 8,
            template_changed: true,
            dry_run: false,
            by_guard: false,
        }
    }

    fn with(old: Snapshot<'static>) -> Change<'static> {
        Change { old, ..complete() }
    }

    fn unobserved() -> Change<'static> {
        with(Snapshot { observed_generation: 6, ..complete().old })
    }

    fn progressing() -> Change<'static> {
        with(Snapshot { updated: 1, ..complete().old })
    }

    fn failed() -> Change<'static> {
        let condition = Condition { status: "False".into(), ..Condition::default() };
        with(Snapshot { progressing: Some(condition), ..progressing().old })
    }

    fn refusal(reason: Reason, refused: Refused) -> Verdict<'static> {
        Verdict::Refuse(Refusal::new(reason, refused))
    }

    fn nothing<'a>() -> Recorded<'a> {
        Recorded::Nothing
    }

    #[test]
    fn every_row_of_the_table() {
        let default = policy(json!({}));
        let frozen =
            policy(json!({"freezes": [{"name": "now", "schedule": "0 0 * * *", "duration": "24h"}]}));
        let strict =
            policy(json!({"admission": {"progressing": "Deny", "unobserved": "Deny", "failed": "Wait"}}));
        let loose = policy(json!({"admission": {"unobserved": "Allow", "failed": "Allow"}}));
        let wait = |seconds| Refused::Wait { retry_after_seconds: seconds };
        let open = || frozen.open_freeze(now());
        let cases: Vec<(&str, Change<'_>, &Policy, Verdict<'_>)> = vec![
            (
                "1 same generation",
                Change { new_generation: 7, ..failed() },
                &frozen,
                Verdict::Allow(Allowed::SameGeneration),
            ),
            (
                "1 deleting",
                with(Snapshot { deleting: true, ..failed().old }),
                &frozen,
                Verdict::Allow(Allowed::Deleting),
            ),
            (
                "3 same template",
                Change { template_changed: false, ..failed() },
                &frozen,
                Verdict::Allow(Allowed::SameTemplate),
            ),
            (
                "6 frozen",
                complete(),
                &frozen,
                Verdict::Refuse(Refusal { freeze: open(), ..Refusal::new(Reason::Frozen, Refused::Deny) }),
            ),
            ("7 unobserved", unobserved(), &default, refusal(Reason::Unobserved, wait(1))),
            ("7 failed", failed(), &default, refusal(Reason::Failed, Refused::Deny)),
            ("7 progressing", progressing(), &default, Verdict::Allow(Allowed::PolicyAllows)),
            ("7 unobserved, strict", unobserved(), &strict, refusal(Reason::Unobserved, Refused::Deny)),
            ("7 failed, waiting", failed(), &strict, refusal(Reason::Failed, wait(1))),
            ("7 progressing, strict", progressing(), &strict, refusal(Reason::Progressing, Refused::Deny)),
            ("7 unobserved, loose", unobserved(), &loose, Verdict::Allow(Allowed::PolicyAllows)),
            ("7 failed, loose", failed(), &loose, Verdict::Allow(Allowed::PolicyAllows)),
            (
                "7 paused",
                with(Snapshot { paused: true, ..failed().old }),
                &default,
                Verdict::Allow(Allowed::Paused),
            ),
            (
                "7 paused, unobserved",
                with(Snapshot { paused: true, ..unobserved().old }),
                &default,
                Verdict::Allow(Allowed::Paused),
            ),
            ("8 settled", complete(), &default, Verdict::Allow(Allowed::Settled)),
        ];
        for (row, change, policy, expected) in cases {
            assert_eq!(decide(&change, Some(policy), nothing, now()), expected, "row {row}");
        }
        assert_eq!(decide(&failed(), None, nothing, now()), Verdict::Allow(Allowed::NotGuarded));
        assert_eq!(
            decide(&failed(), Some(&policy(json!({"mode": "Off"}))), nothing, now()),
            Verdict::Allow(Allowed::Off)
        );
    }

    fn bad() -> Bad<'static> {
        Bad {
            since: Some(now()),
            until: Timestamp::from_second(now().as_second() + 60).ok(),
            ..Bad::default()
        }
    }

    #[test]
    fn every_row_of_the_ledger() {
        let default = policy(json!({}));
        let frozen =
            policy(json!({"freezes": [{"name": "now", "schedule": "0 0 * * *", "duration": "24h"}]}));
        let quarantined = |action: &str| policy(json!({"admission": {"quarantined": action}}));
        let (waiting, lax) = (quarantined("Wait"), quarantined("Allow"));
        let of_guard = |change: Change<'static>| Change { by_guard: true, ..change };
        let dry = |change: Change<'static>| Change { dry_run: true, ..change };
        let allow = |why| Verdict::Allow(why);
        let refuse = |refused| {
            Verdict::Refuse(Refusal { bad: Some(bad()), ..Refusal::new(Reason::Quarantined, refused) })
        };
        let wait = Refused::Wait { retry_after_seconds: 1 };
        let held = Recorded::Bad(bad());
        let expired = Recorded::Bad(Bad { until: Some(now()), ..bad() });
        let for_ever = Bad { until: None, ..bad() };
        let cases = [
            ("2 good", of_guard(failed()), &frozen, Recorded::Good, allow(Allowed::OwnRollback)),
            ("2 put back", of_guard(unobserved()), &frozen, Recorded::PutBack, allow(Allowed::OwnRollback)),
            (
                "2 not recorded",
                of_guard(failed()),
                &default,
                nothing(),
                refusal(Reason::Failed, Refused::Deny),
            ),
            (
                "2 not the guard",
                failed(),
                &default,
                Recorded::PutBack,
                refusal(Reason::Failed, Refused::Deny),
            ),
            ("4 bad", complete(), &default, held, refuse(Refused::Deny)),
            ("4 bad, dry run", dry(complete()), &waiting, held, refuse(Refused::Deny)),
            ("4 bad, waiting", complete(), &waiting, held, refuse(wait)),
            ("4 bad, allowed", complete(), &lax, held, allow(Allowed::Settled)),
            ("4 bad, allowed, over failed", failed(), &lax, held, refusal(Reason::Failed, Refused::Deny)),
            ("4 bad, before a freeze", complete(), &frozen, held, refuse(Refused::Deny)),
            ("4 expired", complete(), &default, expired, allow(Allowed::Settled)),
            ("4 expired, over failed", failed(), &default, expired, refusal(Reason::Failed, Refused::Deny)),
            (
                "4 for ever",
                complete(),
                &default,
                Recorded::Bad(for_ever),
                Verdict::Refuse(Refusal {
                    bad: Some(for_ever),
                    ..Refusal::new(Reason::Quarantined, Refused::Deny)
                }),
            ),
            ("5 good, over failed", failed(), &default, Recorded::Good, allow(Allowed::KnownGood)),
            ("5 good, over unobserved", unobserved(), &default, Recorded::Good, allow(Allowed::KnownGood)),
            ("5 good, in a freeze", complete(), &frozen, Recorded::Good, allow(Allowed::KnownGood)),
        ];
        for (row, change, policy, recorded, expected) in cases {
            assert_eq!(decide(&change, Some(policy), || recorded, now()), expected, "row {row}");
        }
    }

    #[test]
    fn the_ledger_is_asked_only_where_it_decides() {
        fn never<'a>() -> Recorded<'a> {
            panic!("the template would be hashed for nothing")
        }
        let (default, off) = (policy(json!({})), policy(json!({"mode": "Off"})));
        decide(&Change { new_generation: 7, ..failed() }, Some(&default), never, now());
        decide(&Change { template_changed: false, ..failed() }, Some(&default), never, now());
        decide(&with(Snapshot { deleting: true, ..failed().old }), Some(&default), never, now());
        decide(&failed(), Some(&off), never, now());
        decide(&failed(), None, never, now());
    }

    #[test]
    fn fault_53_a_dry_run_is_never_told_to_wait() {
        let dry_run = Change { dry_run: true, ..unobserved() };
        assert_eq!(
            decide(&dry_run, Some(&policy(json!({}))), nothing, now()),
            refusal(Reason::Unobserved, Refused::Deny)
        );
    }

    #[test]
    fn the_wait_grows_with_the_age_of_the_generation_up_to_the_policys_limit() {
        for (age, expected) in [(-5, 1), (0, 1), (1, 1), (2, 2), (7, 7), (10, 10), (3600, 10)] {
            let written_at = Timestamp::from_second(now().as_second() - age).ok();
            let change = with(Snapshot { written_at, ..unobserved().old });
            let wait = Refused::Wait { retry_after_seconds: expected };
            assert_eq!(
                decide(&change, Some(&policy(json!({}))), nothing, now()),
                refusal(Reason::Unobserved, wait),
                "age {age}"
            );
        }
    }

    #[test]
    fn ten_waits_queue_a_stuck_push_for_about_a_minute() {
        let written = now();
        let old = Snapshot { written_at: Some(written), ..unobserved().old };
        let mut elapsed = 0;
        for _ in 0..10 {
            let then = Timestamp::from_second(written.as_second() + elapsed).expect("time");
            elapsed += i64::from(retry_after(&old, 10, then));
        }
        assert!((50..=80).contains(&elapsed), "{elapsed} s");
    }
}
