//! What was complete before a push, of Deployments that do not say so themselves at that moment.
//!
//! A Deployment that is complete tells since when by its condition `Progressing`. Three cannot:
//!
//! - one that was complete and is just scaled, or has lost a pod: what it was is as good as before;
//! - one that was complete and then had the policy of a progress deadline taken away (`progressDeadlineSeconds` of
//!   2147483647): it has no such condition at all;
//! - one without replicas, of which nothing can be said.
//!
//! Only those of the first two kinds are kept here, and nearly no Deployment is one of them.

use std::collections::HashMap;

use jiff::Timestamp;

use super::store::View;
use crate::core::{key::Key, record::Before, rollout::Phase, template::TemplateHash};

/// Deployments that were complete, or are and do not say since when.
#[derive(Debug, Default)]
pub struct CompleteOnce(HashMap<Key, Once>);

#[derive(Clone, Debug)]
struct Once {
    template: TemplateHash,
    since: Timestamp,
    /// None while it is complete.
    until: Option<Timestamp>,
}

impl CompleteOnce {
    /// Takes in a change that was seen at `now`. Returns what was complete before it, where it brings another template and
    /// anything was.
    pub fn take_in(
        &mut self,
        key: &Key,
        before: Option<&View>,
        after: &View,
        now: Timestamp,
    ) -> Option<Before> {
        let complete = |view: &View| view.phase == Phase::Complete;
        let kept =
            self.0.get(key).filter(|once| before.is_some_and(|before| before.template == once.template));
        // What is complete, by its own words or by what was seen; without replicas anything is.
        let seen = |view: &View| {
            let since = view.complete_since.or(kept.map(|once| once.since)).filter(|_| view.desired > 0);
            since.unwrap_or(now).min(now)
        };
        let was = before.filter(|before| complete(before)).map(|before| (seen(before), now)).or_else(|| {
            let once = kept?;
            Some((once.since, once.until.unwrap_or(now)))
        });
        let pushed = before.is_some_and(|before| before.template != after.template);
        if pushed || before.is_none() {
            self.0.remove(key);
        }
        if complete(after) {
            if after.complete_since.is_some() || after.desired == 0 {
                self.0.remove(key);
            } else {
                let since = kept_since(self.0.get(key)).unwrap_or(now);
                self.0.insert(key.clone(), Once { template: after.template, since, until: None });
            }
        } else if let (false, Some(before), Some((since, until))) = (pushed, before, was) {
            let template = before.template;
            self.0.insert(key.clone(), Once { template, since, until: Some(until) });
        }
        let before = before.filter(|_| pushed)?;
        was.map(|complete| Before { template: before.template, complete })
    }

    /// Forgets a Deployment that is gone.
    pub fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }
}

/// Since when one is complete that has not ceased to be.
fn kept_since(once: Option<&Once>) -> Option<Timestamp> {
    once.filter(|once| once.until.is_none()).map(|once| once.since)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::core::policy::Labels;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("in range")
    }

    fn template(n: u32) -> TemplateHash {
        TemplateHash::of(&json!(n))
    }

    fn view(n: u32, phase: Phase, complete_since: Option<i64>) -> View {
        View {
            uid: "u".to_owned(),
            generation: 1,
            observed_generation: 1,
            phase,
            template: template(n),
            desired: 2,
            updated: 2,
            available: 2,
            progressing: None,
            complete_since: complete_since.map(at),
            replica_failure: false,
            announced: false,
            hand_back_due: false,
            written_at: None,
            labels: Arc::new(Labels::new()),
        }
    }

    /// What is told of the last of these changes, ten seconds apart.
    fn told(views: &[View]) -> Option<Before> {
        let (key, mut complete) = (Key::new("shop", "web"), CompleteOnce::default());
        let mut last = None;
        for (i, after) in views.iter().enumerate() {
            let before = i.checked_sub(1).and_then(|i| views.get(i));
            let now = at(10 * i64::try_from(i).expect("few"));
            last = complete.take_in(&key, before, after, now);
        }
        last
    }

    fn before(n: u32, from: i64, to: i64) -> Option<Before> {
        Some(Before { template: template(n), complete: (at(from), at(to)) })
    }

    #[test]
    fn what_is_complete_says_since_when_itself() {
        let good = view(1, Phase::Complete, Some(-500));
        assert_eq!(told(&[good.clone(), good.clone()]), None, "nothing is pushed");
        assert_eq!(told(&[good.clone(), view(2, Phase::Unobserved, None)]), before(1, -500, 10));
        let none = View { desired: 0, ..good };
        assert_eq!(told(&[none, view(2, Phase::Unobserved, None)]), before(1, 10, 10), "no evidence");
    }

    #[test]
    fn what_was_complete_until_it_was_scaled_or_lost_a_pod_is_known_at_the_push() {
        let good = view(1, Phase::Complete, Some(-500));
        let scaled = [Phase::Unobserved, Phase::Progressing].map(|phase| view(1, phase, None));
        let pushed = view(2, Phase::Unobserved, None);
        let [unobserved, progressing] = scaled;
        assert_eq!(
            told(&[good.clone(), unobserved.clone(), progressing.clone(), pushed.clone()]),
            before(1, -500, 10)
        );
        // A template that was never complete is none.
        assert_eq!(told(&[unobserved.clone(), progressing.clone(), pushed.clone()]), None);
        let other = view(3, Phase::Progressing, None);
        assert_eq!(told(&[good, unobserved, other, pushed]), None, "of the template before");
    }

    #[test]
    fn what_is_complete_without_saying_since_when_is_so_since_it_was_seen() {
        let silent = view(1, Phase::Complete, None);
        let pushed = view(2, Phase::Unobserved, None);
        assert_eq!(told(&[silent.clone(), silent.clone(), silent.clone(), pushed.clone()]), before(1, 0, 30));
        let rolling = view(1, Phase::Progressing, None);
        assert_eq!(told(&[rolling, silent.clone(), silent, pushed]), before(1, 10, 30));
    }
}
