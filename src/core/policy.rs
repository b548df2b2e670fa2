//! RolloutPolicy -> the effective policy of one Deployment.
//!
//! [`compile`] turns a stored spec into a [`Policy`] once, with every selector, cron expression and time zone
//! checked; a [`PolicySet`] then finds the one that applies: of those that match the highest priority, of
//! equals the first by name.

use std::{collections::BTreeMap, str::FromStr, sync::Arc};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Expression, Selector, SelectorExt};

use crate::api::policy::{
    AdmissionSpec, DefaultsSpec, EvidenceSpec, FreezeSpec, Mode, RollbackSpec, RolloutPolicySpec, WatchSpec,
};

/// Namespaces that are never guarded: a cluster heals from there.
pub const SYSTEM_NAMESPACES: [&str; 3] = ["kube-node-lease", "kube-public", "kube-system"];

/// Labels of a Deployment or a namespace.
pub type Labels = BTreeMap<String, String>;

/// Why a stored RolloutPolicy cannot be in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A selector that the API server's schema lets through but that selects nothing sensible.
    #[error("spec.{field}: {why}")]
    Selector {
        /// `selector` or `namespaceSelector`.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A cron expression that cannot be read.
    #[error("freeze {freeze:?}: schedule {schedule:?} is not a cron expression of five fields: {why}")]
    Schedule {
        /// The name of the freeze.
        freeze: String,
        /// The schedule as written.
        schedule: String,
        /// What is wrong with it.
        why: String,
    },
    /// A time zone that is not known.
    #[error("freeze {freeze:?}: time zone {zone:?} is not an IANA time zone such as Europe/Berlin")]
    TimeZone {
        /// The name of the freeze.
        freeze: String,
        /// The zone as written.
        zone: String,
    },
    /// A freeze that lasts no time, or two freezes of one name.
    #[error("freeze {freeze:?}: {why}")]
    Freeze {
        /// The name of the freeze.
        freeze: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The object does not have the fields of a RolloutPolicy.
    #[error("spec cannot be read: {0}")]
    Unreadable(String),
}

impl PolicyError {
    /// Returns the reason of the condition `Ready=False`.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Selector { .. } => "InvalidSelector",
            Self::Schedule { .. } => "InvalidSchedule",
            Self::TimeZone { .. } => "InvalidTimeZone",
            Self::Freeze { .. } => "InvalidFreeze",
            Self::Unreadable(_) => "InvalidSpec",
        }
    }
}

/// A valid RolloutPolicy, ready to decide by.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The name of the RolloutPolicy.
    pub name: String,
    /// The generation of the RolloutPolicy that this was compiled from.
    pub generation: i64,
    /// The highest that matches applies.
    pub priority: i32,
    /// How a verdict is carried out.
    pub mode: Mode,
    /// What happens in which phase.
    pub admission: AdmissionSpec,
    /// When no template may change.
    pub freezes: Vec<Freeze>,
    /// When a generation counts as stuck or good.
    pub watch: WatchSpec,
    /// What is done about a stuck generation.
    pub rollback: RollbackSpec,
    /// What is kept as evidence of a failure.
    pub evidence: EvidenceSpec,
    /// What the mutating webhook fills in.
    pub defaults: DefaultsSpec,
    /// Which namespaces, the system's not left out.
    pub namespaces: Selector,
    /// Which Deployments.
    pub deployments: Selector,
}

/// A compiled freeze.
#[derive(Clone, Debug)]
pub struct Freeze {
    /// Its name.
    pub name: String,
    /// Why, in the words of whoever wrote the policy.
    pub reason: String,
    schedule: Cron,
    zone: Tz,
    duration: std::time::Duration,
}

/// A freeze that is open, from when to when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFreeze<'a> {
    /// The name of the freeze.
    pub name: &'a str,
    /// Why it is there.
    pub reason: &'a str,
    /// When it started.
    pub since: Timestamp,
    /// When it ends; the freeze is open before this and not at it.
    pub until: Timestamp,
}

/// Compiles a stored spec.
///
/// # Errors
/// Whatever the CRD's schema and CEL could not check.
pub fn compile(name: &str, generation: i64, spec: &RolloutPolicySpec) -> Result<Policy, PolicyError> {
    let freezes = spec.freezes.iter().map(compile_freeze).collect::<Result<Vec<_>, _>>()?;
    for (i, freeze) in freezes.iter().enumerate() {
        if freezes[..i].iter().any(|other| other.name == freeze.name) {
            return Err(PolicyError::Freeze {
                freeze: freeze.name.clone(),
                why: "another one has the same name",
            });
        }
    }
    Ok(Policy {
        name: name.to_owned(),
        generation,
        priority: spec.priority,
        mode: spec.mode,
        admission: spec.admission.clone(),
        freezes,
        watch: spec.watch.clone(),
        rollback: spec.rollback.clone(),
        evidence: spec.evidence.clone(),
        defaults: spec.defaults.clone(),
        namespaces: compile_selector("namespaceSelector", spec.namespace_selector.as_ref())?,
        deployments: compile_selector("selector", spec.selector.as_ref())?,
    })
}

fn compile_selector(field: &'static str, selector: Option<&LabelSelector>) -> Result<Selector, PolicyError> {
    let fail = |why: String| PolicyError::Selector { field, why };
    let Some(selector) = selector else { return Ok(Selector::default()) };
    for requirement in selector.match_expressions.iter().flatten() {
        let values = requirement.values.as_ref().map_or(0, Vec::len);
        let wants_values = matches!(requirement.operator.as_str(), "In" | "NotIn");
        if wants_values && values == 0 {
            return Err(fail(format!("{} of {:?} needs values", requirement.operator, requirement.key)));
        }
        if !wants_values && values > 0 {
            return Err(fail(format!("{} of {:?} takes no values", requirement.operator, requirement.key)));
        }
    }
    Selector::try_from(selector.clone())
        .map_err(|_| fail("operator must be In, NotIn, Exists or DoesNotExist".to_owned()))
}

fn compile_freeze(spec: &FreezeSpec) -> Result<Freeze, PolicyError> {
    let freeze = || spec.name.clone();
    if spec.duration.get().is_zero() {
        return Err(PolicyError::Freeze { freeze: freeze(), why: "duration must be longer than zero" });
    }
    let schedule = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        .build()
        .parse(&spec.schedule)
        .map_err(|e| PolicyError::Schedule {
            freeze: freeze(),
            schedule: spec.schedule.clone(),
            why: e.to_string(),
        })?;
    // A day that never comes would be searched for, far back, at each admission.
    let never = |e: &dyn std::fmt::Display| PolicyError::Schedule {
        freeze: freeze(),
        schedule: spec.schedule.clone(),
        why: format!("never comes ({e})"),
    };
    schedule.find_next_occurrence(&DateTime::<Utc>::UNIX_EPOCH, true).map_err(|e| never(&e))?;
    let zone = spec.time_zone.as_deref().unwrap_or("UTC");
    let zone =
        Tz::from_str(zone).map_err(|_| PolicyError::TimeZone { freeze: freeze(), zone: zone.to_owned() })?;
    Ok(Freeze {
        name: spec.name.clone(),
        reason: spec.reason.clone(),
        schedule,
        zone,
        duration: spec.duration.get(),
    })
}

impl Freeze {
    /// Returns the window that is open at `now`: that of the latest start at or before `now`.
    pub fn open_at(&self, now: Timestamp) -> Option<OpenFreeze<'_>> {
        let local = DateTime::<Utc>::from_timestamp(now.as_second(), 0)?.with_timezone(&self.zone);
        let start = self.schedule.find_previous_occurrence(&local, true).ok()?;
        let since = Timestamp::from_second(start.timestamp()).ok()?;
        let until = since.checked_add(self.duration).ok()?;
        (now < until).then_some(OpenFreeze { name: &self.name, reason: &self.reason, since, until })
    }

    /// Returns the window that is open at `now`, if one is, and those that start after it: at most `most`, in order.
    pub fn windows(&self, now: Timestamp, most: usize) -> Vec<OpenFreeze<'_>> {
        let mut windows: Vec<_> = self.open_at(now).into_iter().take(most).collect();
        let Some(now) = DateTime::<Utc>::from_timestamp(now.as_second(), 0) else { return windows };
        let mut start = now.with_timezone(&self.zone);
        while windows.len() < most {
            let Ok(next) = self.schedule.find_next_occurrence(&start, false) else { break };
            let since = Timestamp::from_second(next.timestamp()).ok();
            let window = since.and_then(|since| Some((since, since.checked_add(self.duration).ok()?)));
            let Some((since, until)) = window else { break };
            windows.push(OpenFreeze { name: &self.name, reason: &self.reason, since, until });
            start = next;
        }
        windows
    }

    /// Returns the IANA name of its time zone.
    pub fn zone(&self) -> &'static str {
        self.zone.name()
    }

    /// Returns `time` in its time zone, for people: `Fri 2026-11-20 18:00 CET`.
    pub fn local(&self, time: Timestamp) -> String {
        let utc = DateTime::<Utc>::from_timestamp(time.as_second(), 0).unwrap_or_default();
        utc.with_timezone(&self.zone).format("%a %Y-%m-%d %H:%M %Z").to_string()
    }
}

impl Policy {
    /// Returns the freeze that is open at `now`; of several the one that ends last.
    pub fn open_freeze(&self, now: Timestamp) -> Option<OpenFreeze<'_>> {
        self.freezes.iter().filter_map(|freeze| freeze.open_at(now)).max_by_key(|open| open.until)
    }

    /// Says whether a Deployment with these labels in a namespace with those is this policy's, if no policy
    /// of higher rank takes it.
    pub fn matches(&self, namespace: &Labels, deployment: &Labels) -> bool {
        self.namespaces.matches(namespace) && self.deployments.matches(deployment)
    }

    /// Says whether some Deployment can match both policies; true where that cannot be ruled out.
    pub fn may_overlap(&self, other: &Self) -> bool {
        !(disjoint(&self.namespaces, &other.namespaces) || disjoint(&self.deployments, &other.deployments))
    }
}

/// Says whether nothing can match both selectors, going by pairs of requirements on the same key.
fn disjoint(a: &Selector, b: &Selector) -> bool {
    let a: Vec<Expression> = a.clone().into_iter().collect();
    let b: Vec<Expression> = b.clone().into_iter().collect();
    a.iter().any(|x| b.iter().any(|y| contradict(x, y) || contradict(y, x)))
}

fn contradict(x: &Expression, y: &Expression) -> bool {
    use Expression::{DoesNotExist, Equal, Exists, In, NotEqual, NotIn};
    match (x, y) {
        (Equal(k, v), Equal(l, w)) => k == l && v != w,
        (Equal(k, v), In(l, ws)) => k == l && !ws.contains(v),
        (Equal(k, v), NotEqual(l, w)) => k == l && v == w,
        (Equal(k, v), NotIn(l, ws)) => k == l && ws.contains(v),
        (In(k, vs), In(l, ws)) => k == l && vs.is_disjoint(ws),
        (In(k, vs), NotIn(l, ws)) => k == l && vs.is_subset(ws),
        (Equal(k, _) | In(k, _) | Exists(k), DoesNotExist(l)) => k == l,
        _ => false,
    }
}

/// All valid policies, the first that matches is the one that applies.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    ranked: Vec<Arc<Policy>>,
}

impl PolicySet {
    /// Ranks `policies`: highest priority first, equals by name.
    pub fn new(policies: impl IntoIterator<Item = Arc<Policy>>) -> Self {
        let mut ranked: Vec<_> = policies.into_iter().collect();
        ranked.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
        Self { ranked }
    }

    /// Returns the policies, the one of highest rank first.
    pub fn ranked(&self) -> &[Arc<Policy>] {
        &self.ranked
    }

    /// Returns the policy that applies to a Deployment with these labels in a namespace with those.
    pub fn effective(&self, namespace: &Labels, deployment: &Labels) -> Option<&Arc<Policy>> {
        self.ranked.iter().find(|policy| policy.matches(namespace, deployment))
    }

    /// Returns the policies of higher rank than `policy` that may match one of its Deployments.
    pub fn above<'a>(&'a self, policy: &'a Policy) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.ranked
            .iter()
            .take_while(|other| other.name != policy.name)
            .filter(|other| other.may_overlap(policy))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(value: serde_json::Value) -> RolloutPolicySpec {
        serde_json::from_value(value).expect("spec")
    }

    fn policy(name: &str, value: serde_json::Value) -> Arc<Policy> {
        Arc::new(compile(name, 1, &spec(value)).expect("valid"))
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("time")
    }

    fn weekend() -> Arc<Policy> {
        policy(
            "p",
            json!({"freezes": [{"name": "weekend", "schedule": "0 18 * * FRI", "duration": "62h",
                                "timeZone": "Europe/Berlin", "reason": "no pushes at the weekend"}]}),
        )
    }

    #[test]
    fn an_empty_spec_has_the_documented_defaults() {
        let policy = policy("default", json!({}));
        assert_eq!(policy.mode, Mode::Enforce);
        assert_eq!(policy.admission, AdmissionSpec::default());
        assert_eq!(policy.defaults.min_revision_history_limit, Some(2));
        assert!(policy.matches(&labels(&[]), &labels(&[("any", "thing")])));
    }

    #[test]
    fn a_freeze_is_open_from_its_start_until_its_end() {
        let policy = weekend();
        // Friday 2026-11-20 18:00 in Berlin is 17:00 UTC; 62 hours later it is Monday 08:00.
        assert_eq!(policy.open_freeze(at("2026-11-20T16:59:59Z")), None);
        let open = policy.open_freeze(at("2026-11-20T17:00:00Z")).expect("open");
        assert_eq!(
            (open.name, open.since, open.until),
            ("weekend", at("2026-11-20T17:00:00Z"), at("2026-11-23T07:00:00Z"))
        );
        assert!(policy.open_freeze(at("2026-11-23T06:59:59Z")).is_some());
        assert_eq!(policy.open_freeze(at("2026-11-23T07:00:00Z")), None);
    }

    #[test]
    fn the_next_windows_of_a_freeze_begin_with_the_one_that_is_open() {
        let policy = weekend();
        let windows = |now: &str| {
            let freeze = policy.freezes.first().expect("one");
            let windows = freeze.windows(at(now), 2);
            windows.iter().map(|w| (freeze.local(w.since), freeze.local(w.until))).collect::<Vec<_>>()
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let first = pair("Fri 2026-03-20 18:00 CET", "Mon 2026-03-23 08:00 CET");
        // The clocks go forward in the night to Sunday: 62 hours later it is nine.
        let second = pair("Fri 2026-03-27 18:00 CET", "Mon 2026-03-30 09:00 CEST");
        assert_eq!(windows("2026-03-20T16:59:59Z"), [first.clone(), second.clone()]);
        assert_eq!(windows("2026-03-20T17:00:00Z"), [first.clone(), second.clone()]);
        assert_eq!(windows("2026-03-23T06:59:59Z"), [first, second.clone()]);
        assert_eq!(windows("2026-03-23T07:00:00Z").first(), Some(&second));
    }

    #[test]
    fn a_freeze_follows_summer_time_of_its_zone() {
        let policy = weekend();
        // In July Berlin is two hours ahead of UTC.
        assert_eq!(policy.open_freeze(at("2026-07-03T15:59:59Z")), None);
        assert!(policy.open_freeze(at("2026-07-03T16:00:00Z")).is_some());
    }

    #[test]
    fn what_cel_cannot_check_is_an_error_that_names_the_freeze() {
        let freeze = |schedule: &str, zone: &str| {
            spec(
                json!({"freezes": [{"name": "f", "schedule": schedule, "duration": "1h", "timeZone": zone}]}),
            )
        };
        let error = |s: &RolloutPolicySpec| compile("p", 1, s).expect_err("invalid");
        assert_eq!(error(&freeze("every friday", "UTC")).reason(), "InvalidSchedule");
        assert_eq!(error(&freeze("61 * * * *", "UTC")).reason(), "InvalidSchedule");
        assert_eq!(error(&freeze("0 0 18 * * FRI", "UTC")).reason(), "InvalidSchedule");
        assert!(error(&freeze("0 0 30 2 *", "UTC")).to_string().contains("never comes"));
        let zone = error(&freeze("0 18 * * FRI", "Europe/Atlantis"));
        assert_eq!(zone.reason(), "InvalidTimeZone");
        assert!(zone.to_string().contains("\"f\"") && zone.to_string().contains("Europe/Atlantis"), "{zone}");
        let selector = spec(json!({"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}));
        assert_eq!(error(&selector).reason(), "InvalidSelector");
        let operator = spec(json!({"selector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}));
        assert_eq!(error(&operator).reason(), "InvalidSelector");
    }

    #[test]
    fn the_highest_priority_that_matches_applies_and_equals_go_by_name() {
        let set = PolicySet::new([
            policy("default", json!({})),
            policy("b", json!({"priority": 5, "selector": {"matchLabels": {"team": "x"}}})),
            policy("a", json!({"priority": 5, "selector": {"matchLabels": {"team": "x"}}})),
            policy("top", json!({"priority": 9, "namespaceSelector": {"matchLabels": {"env": "prod"}}})),
        ]);
        let name = |ns: &[(&str, &str)], d: &[(&str, &str)]| {
            set.effective(&labels(ns), &labels(d)).map(|p| p.name.clone()).expect("one")
        };
        assert_eq!(name(&[], &[]), "default");
        assert_eq!(name(&[], &[("team", "x")]), "a");
        assert_eq!(name(&[("env", "prod")], &[("team", "x")]), "top");
    }

    #[test]
    fn overlap_is_ruled_out_only_by_requirements_that_contradict() {
        let with = |selector: serde_json::Value| policy("p", json!({"selector": selector}));
        let team = |v: &str| with(json!({"matchLabels": {"team": v}}));
        let expr = |op: &str, values: &[&str]| {
            with(json!({"matchExpressions": [{"key": "team", "operator": op, "values": values}]}))
        };
        assert!(!team("a").may_overlap(&team("b")));
        assert!(team("a").may_overlap(&team("a")));
        assert!(!team("a").may_overlap(&expr("NotIn", &["a", "b"])));
        assert!(!expr("In", &["a"]).may_overlap(&expr("In", &["b"])));
        assert!(expr("In", &["a", "c"]).may_overlap(&expr("In", &["b", "c"])));
        assert!(!expr("DoesNotExist", &[]).may_overlap(&team("a")));
        assert!(expr("Exists", &[]).may_overlap(&with(json!({"matchLabels": {"other": "x"}}))));
        let set = PolicySet::new([policy("low", json!({})), policy("high", json!({"priority": 1}))]);
        let above = |i: usize| set.above(&set.ranked()[i]).map(|p| p.name.as_str()).collect::<Vec<_>>();
        assert_eq!((above(0), above(1)), (vec![], vec!["high"]));
    }
}
