//! Keeps the records: watches them, and holds of each what admission goes by.
//!
//! Only the guard may write records, and yet none is trusted further than it must be: the Deployment that owns it, by
//! uid, is the one it speaks of, or it is as if it were not there.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
};

use futures::StreamExt;

use super::{World, listing::Listing};
use crate::{
    admin::Requirement,
    cluster::{
        Cluster,
        policies::Event,
        records::{self, StoredRecord},
    },
    core::{key::Key, ledger::Ledger},
    shutdown::Shutdown,
};

/// By namespace, then by the record's own name.
#[derive(Debug, Default)]
pub(super) struct Ledgers(RwLock<HashMap<String, HashMap<String, Arc<Ledger>>>>);

impl World {
    /// Learns a record as stored. One that is not of the Deployment that it names is forgotten.
    pub fn learn_record(&self, record: &StoredRecord) {
        let key = Key::new(&record.namespace, &record.target.name);
        let ledger = if record.is_of(&key, &record.target.uid) {
            Ledger::of(&record.target.uid, &record.status)
        } else {
            tracing::warn!(
                namespace = record.namespace,
                name = record.name,
                "record is not of the deployment that it names: ignored"
            );
            None
        };
        let Some(ledger) = ledger else { return self.forget_record(&record.namespace, &record.name) };
        let mut all = self.0.ledgers.0.write().unwrap_or_else(PoisonError::into_inner);
        all.entry(record.namespace.clone()).or_default().insert(record.name.clone(), Arc::new(ledger));
    }

    /// Forgets the record `name` in `namespace`.
    pub fn forget_record(&self, namespace: &str, name: &str) {
        let mut all = self.0.ledgers.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_namespace) = all.get_mut(namespace) {
            of_namespace.remove(name);
            if of_namespace.is_empty() {
                all.remove(namespace);
            }
        }
    }

    /// Returns what is remembered of the Deployment with this uid; none where nothing is, or what there is speaks of another
    /// Deployment of that name.
    pub fn ledger(&self, namespace: &str, deployment: &str, uid: &str) -> Option<Arc<Ledger>> {
        let all = self.0.ledgers.0.read().unwrap_or_else(PoisonError::into_inner);
        let of_namespace = all.get(namespace)?;
        of_namespace.get(&records::name(deployment)).filter(|ledger| ledger.uid() == uid).cloned()
    }

    /// Forgets the records that are not in `names`: pairs of a namespace and a record's name.
    fn retain_records(&self, names: &HashSet<(String, String)>) {
        let names: HashSet<(&str, &str)> = names.iter().map(|(n, r)| (n.as_str(), r.as_str())).collect();
        let mut all = self.0.ledgers.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|namespace, of_namespace| {
            of_namespace.retain(|name, _| names.contains(&(namespace.as_str(), name.as_str())));
            !of_namespace.is_empty()
        });
    }
}

/// Keeps the records until the shutdown. `listed` is met once all of them are known.
pub async fn keep(cluster: Cluster, world: World, listed: Requirement, shutdown: Shutdown) {
    let mut events = cluster.watch_records();
    let mut keeper = Keeper { world, listing: Listing::default(), synced: false };
    loop {
        tokio::select! {
            () = shutdown.started() => return,
            Some(event) = events.next() => {
                if let Event::Failed(why) = &event {
                    tracing::warn!(why, "watch of rolloutrecords failed");
                    if !keeper.synced {
                        listed.unmet(why.clone());
                    }
                }
                if keeper.event(event) {
                    listed.met();
                }
            }
        }
    }
}

struct Keeper {
    world: World,
    listing: Listing<(String, String)>,
    synced: bool,
}

impl Keeper {
    /// Takes in what the watch tells. Returns true when the list has become complete.
    fn event(&mut self, event: Event<StoredRecord>) -> bool {
        match event {
            Event::Restarted => self.listing.restart(),
            Event::Applied(record) => {
                self.listing.seen(|| (record.namespace.clone(), record.name.clone()));
                self.world.learn_record(&record);
            }
            Event::Deleted(record) => self.world.forget_record(&record.namespace, &record.name),
            Event::Synced => {
                self.world.retain_records(&self.listing.finish());
                self.synced = true;
                return true;
            }
            Event::Failed(_) => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{api::record::TargetRef, core::template::TemplateHash};

    fn record(name: &str, uid: &str) -> StoredRecord {
        let hash = TemplateHash::of(&json!({})).to_string();
        let status = json!({"revisions": [{"templateHash": hash, "verdict": "Good"}]});
        StoredRecord {
            namespace: "shop".into(),
            name: format!("deployment-{name}"),
            target: TargetRef { name: name.into(), uid: uid.into(), ..TargetRef::default() },
            owner_uid: uid.into(),
            status: serde_json::from_value(status).expect("a status"),
            ..StoredRecord::default()
        }
    }

    #[test]
    fn a_record_counts_for_the_deployment_that_owns_it_alone() {
        let world = World::new("rollout-guard");
        world.learn_record(&record("web", "u"));
        assert!(world.ledger("shop", "web", "u").is_some());
        assert!(world.ledger("shop", "web", "made-anew").is_none());
        assert!(world.ledger("shop", "web", "").is_none());
        assert!(world.ledger("shop", "api", "u").is_none());
        assert!(world.ledger("other", "web", "u").is_none());
    }

    #[test]
    fn fault_11_a_record_that_somebody_planted_is_not_believed() {
        let world = World::new("rollout-guard");
        let planted = [
            StoredRecord { owner_uid: String::new(), ..record("web", "u") },
            StoredRecord { owner_uid: "another".into(), ..record("web", "u") },
            StoredRecord { name: "deployment-web-2".into(), ..record("web", "u") },
            StoredRecord { name: "deployment-web".into(), ..record("api", "u") },
            record("web", ""),
        ];
        for planted in planted {
            world.learn_record(&planted);
            for (deployment, uid) in [("web", "u"), ("api", "u"), ("web", ""), ("web-2", "u")] {
                assert!(world.ledger("shop", deployment, uid).is_none(), "{planted:?}");
            }
        }
        // Nor does what was right stay, once it is no longer.
        world.learn_record(&record("web", "u"));
        world.learn_record(&StoredRecord { owner_uid: String::new(), ..record("web", "u") });
        assert!(world.ledger("shop", "web", "u").is_none());
    }

    #[test]
    fn fault_32_a_list_that_starts_again_drops_what_is_gone() {
        let world = World::new("rollout-guard");
        let mut keeper = Keeper { world, listing: Listing::default(), synced: false };
        keeper.event(Event::Restarted);
        keeper.event(Event::Applied(record("web", "u")));
        keeper.event(Event::Applied(record("api", "v")));
        assert!(keeper.event(Event::Synced));
        keeper.event(Event::Restarted);
        keeper.event(Event::Applied(record("api", "v")));
        assert!(keeper.world.ledger("shop", "web", "u").is_some(), "it goes on while the list comes in");
        keeper.event(Event::Failed("410 Gone".into()));
        keeper.event(Event::Synced);
        assert!(keeper.world.ledger("shop", "web", "u").is_none());
        keeper.event(Event::Deleted(record("api", "v")));
        assert!(keeper.world.ledger("shop", "api", "v").is_none());
    }
}
