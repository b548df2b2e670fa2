//! When the caBundle makes a replica unready.
//!
//! A replica that was never ready waits for both configurations. Once it is ready, being unready would only
//! empty the Service and take the other webhook down as well, while the guard puts the caBundle back within
//! seconds: so it stays ready, unless for minutes no call at all can get through.

use jiff::{SignedDuration, Timestamp};

use crate::admin::Requirement;

/// How long no call can have got through before a replica that was ready says so.
const GRACE: SignedDuration = SignedDuration::from_mins(5);

/// What was found out about one configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// It trusts the certificate that is served.
    Right,
    /// It does not, and why.
    Wrong(String),
    /// There is none, and how that is said.
    Missing(String),
    /// It could not be read, and why.
    Unknown(String),
}

/// Remembers what was found before.
#[derive(Clone, Debug, Default)]
pub(super) struct Judge {
    met: bool,
    wrong_since: Option<Timestamp>,
}

impl Judge {
    /// Sets `requirement` by what was found about each configuration at `now`.
    pub(super) fn judge(&mut self, findings: &[Finding], requirement: &Requirement, now: Timestamp) {
        let reasons: Vec<_> = findings
            .iter()
            .filter_map(|finding| match finding {
                Finding::Right => None,
                Finding::Wrong(why) | Finding::Missing(why) | Finding::Unknown(why) => Some(why.as_str()),
            })
            .collect();
        if reasons.is_empty() {
            self.met = true;
            self.wrong_since = None;
            return requirement.met();
        }
        if !self.met {
            return requirement.unmet(reasons.join("; "));
        }
        if !findings.iter().all(|finding| matches!(finding, Finding::Wrong(_))) {
            self.wrong_since = None;
            return;
        }
        let since = *self.wrong_since.get_or_insert(now);
        if now.duration_since(since) >= GRACE {
            requirement.unmet(reasons.join("; "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Readiness;

    #[test]
    fn fault_22_a_wiped_ca_bundle_does_not_make_a_ready_replica_unready_at_once() {
        let readiness = Readiness::default();
        let requirement = readiness.require("ca-bundle");
        let mut judge = Judge::default();
        let now = Timestamp::UNIX_EPOCH;
        let wrong = || Finding::Wrong("wiped".to_owned());
        judge.judge(&[Finding::Right, wrong()], &requirement, now);
        assert_eq!(readiness.missing(), ["ca-bundle: wiped"], "never ready before");
        judge.judge(&[Finding::Right, Finding::Right], &requirement, now);
        assert!(readiness.missing().is_empty());
        judge.judge(&[wrong(), wrong()], &requirement, now);
        judge.judge(&[wrong(), wrong()], &requirement, now + SignedDuration::from_mins(4));
        assert!(readiness.missing().is_empty(), "the guard repairs it");
        judge.judge(&[wrong(), wrong()], &requirement, now + SignedDuration::from_mins(5));
        assert_eq!(readiness.missing(), ["ca-bundle: wiped; wiped"], "nobody gets through");
        judge.judge(&[Finding::Right, Finding::Right], &requirement, now + SignedDuration::from_mins(6));
        assert!(readiness.missing().is_empty());
    }

    #[test]
    fn a_configuration_that_a_person_deleted_does_not_take_the_other_webhook_down() {
        let readiness = Readiness::default();
        let requirement = readiness.require("ca-bundle");
        let mut judge = Judge::default();
        let missing = Finding::Missing("ValidatingWebhookConfiguration x does not exist".to_owned());
        judge.judge(&[missing.clone(), Finding::Right], &requirement, Timestamp::UNIX_EPOCH);
        assert_eq!(readiness.missing(), ["ca-bundle: ValidatingWebhookConfiguration x does not exist"]);
        judge.judge(&[Finding::Right, Finding::Right], &requirement, Timestamp::UNIX_EPOCH);
        for minutes in [0, 10, 20] {
            let now = Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes);
            judge.judge(&[missing.clone(), Finding::Wrong("w".to_owned())], &requirement, now);
        }
        assert!(readiness.missing().is_empty());
    }
}
