use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;

const DAY: SignedDuration = SignedDuration::from_hours(24);

fn terms() -> Terms {
    Terms { lifetimes: Lifetimes::default(), settle: SignedDuration::from_secs(10) }
}

fn start() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().expect("a time")
}

fn names() -> Vec<String> {
    ["guard.ns.svc", "guard.ns.svc.cluster.local", "guard.ns"].map(str::to_owned).to_vec()
}

/// One process.
#[derive(Clone, Debug, Default)]
struct Replica {
    remembered: Option<Stored>,
    serving: Option<Leaf>,
    carried: Carried,
}

/// A Secret, two configurations and some replicas, without a network between them.
#[derive(Clone, Debug)]
struct World {
    now: Timestamp,
    secret: Option<BTreeMap<String, Vec<u8>>>,
    bundles: [String; 2],
    replicas: Vec<Replica>,
    names: Vec<String>,
    /// Every step that was taken.
    steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Until {
    SecretWritten,
    OneBundleWritten,
    End,
}

fn certificates(pem: &str) -> Vec<Certificate> {
    Certificate::parse_all(pem).unwrap_or_default()
}

impl World {
    fn new(replicas: usize) -> Self {
        Self {
            now: start(),
            secret: None,
            bundles: [String::new(), String::new()],
            replicas: vec![Replica::default(); replicas],
            names: names(),
            steps: Vec::new(),
        }
    }

    /// What the keeper does in one look, up to where the process is killed.
    fn look(&mut self, index: usize, until: Until) {
        let (now, terms) = (self.now, terms());
        let mut me = self.replicas[index].clone();
        me.carried.observe(&self.bundles.each_ref().map(|pem| certificates(pem)), true, now);
        let stored = loop {
            let stored = self.secret.as_ref().map(Stored::parse);
            let view = View {
                stored: stored.as_ref(),
                remembered: me.remembered.as_ref(),
                serving: me.serving.as_ref(),
                carried: &me.carried,
                names: &self.names,
            };
            let step = plan(&view, &terms, now);
            if step == Step::Keep {
                break stored.expect("there is a Secret where there is nothing to do");
            }
            self.steps.push(step);
            assert!(self.steps.len() < 1000, "goes round in circles: {:?}", &self.steps[990..]);
            self.secret = Some(apply(step, &view, &terms, now).expect("applies").data());
            if until == Until::SecretWritten {
                self.replicas[index] = Replica::default();
                return;
            }
        };
        me.remembered = Some(stored.clone());
        let wanted = bundle_pem(&stored.bundle);
        for (place, bundle) in self.bundles.iter_mut().enumerate() {
            bundle.clone_from(&wanted);
            if place == 0 && until == Until::OneBundleWritten {
                self.replicas[index] = Replica::default();
                return;
            }
        }
        me.carried.observe(&self.bundles.each_ref().map(|pem| certificates(pem)), true, now);
        let leaf = stored.leaf.clone().expect("there is a leaf where there is nothing to do");
        if may_serve(&leaf, me.serving.as_ref(), &me.carried, terms.settle, now) {
            if me.serving.as_ref().is_some_and(|serving| serving.is_alive(now)) {
                assert!(self.trusts(&leaf), "went over to a leaf that the bundles lack");
            }
            me.serving = Some(leaf);
        }
        self.replicas[index] = me;
    }

    fn trusts(&self, leaf: &Leaf) -> bool {
        self.bundles.iter().all(|pem| verify_for(leaf, &certificates(pem), self.now))
    }

    fn round(&mut self) {
        for index in 0..self.replicas.len() {
            self.look(index, Until::End);
        }
    }

    fn pass(&mut self, duration: SignedDuration) {
        self.now = after(self.now, duration);
    }

    fn stored(&self) -> Stored {
        Stored::parse(self.secret.as_ref().expect("a Secret"))
    }

    fn every_served_leaf_is_trusted(&self) -> bool {
        self.replicas.iter().filter_map(|replica| replica.serving.as_ref()).all(|leaf| self.trusts(leaf))
    }

    fn settle(&mut self) {
        for _ in 0..4 {
            self.round();
            self.pass(SignedDuration::from_secs(11));
        }
    }

    fn assert_sound(&self) {
        let stored = self.stored();
        assert_eq!(stored.damage, Vec::<String>::new());
        assert!(stored.signing.is_some() && stored.next.is_none(), "{stored:?}");
        let leaf = stored.leaf.as_ref().expect("a leaf");
        assert!(leaf.is_for(&self.names));
        for replica in &self.replicas {
            let serving = replica.serving.as_ref().expect("serves");
            assert_eq!(serving.certificate(), leaf.certificate());
            assert!(self.trusts(serving));
        }
    }
}

fn verify_for(leaf: &Leaf, anchors: &[Certificate], now: Timestamp) -> bool {
    super::super::issue::verify(leaf.chain(), anchors, &leaf.certificate().names[0], now).is_ok()
}

#[test]
fn fault_18_replicas_that_bootstrap_one_after_another_share_one_ca() {
    let mut world = World::new(3);
    world.round();
    world.assert_sound();
    assert_eq!(world.steps, [Step::Create]);
    assert_eq!(world.stored().bundle.len(), 1);
}

#[test]
fn a_leaf_is_renewed_at_two_thirds_of_its_life_and_no_sooner() {
    let mut world = World::new(2);
    world.round();
    world.pass(DAY * 59);
    world.round();
    assert_eq!(world.steps, [Step::Create]);
    world.pass(DAY * 2);
    world.round();
    assert_eq!(world.steps, [Step::Create, Step::RenewLeaf]);
    world.assert_sound();
}

#[test]
fn fault_19_a_ca_is_rotated_in_stages_while_a_replica_lags_behind() {
    let mut world = World::new(3);
    world.round();
    let old = world.stored().bundle[0].clone();
    // Leaves are renewed on the way; the CA is due after two thirds of ten years.
    while world.stored().next.is_none() {
        world.pass(DAY * 20);
        world.round();
    }
    assert_eq!(world.steps.last(), Some(&Step::StageCa));
    assert!(world.now < after(start(), DAY * 365 * 7), "{}", world.now);
    assert_eq!(world.stored().leaf.expect("a leaf").issuer(), &old, "the old one still signs");
    assert!(world.bundles.iter().all(|pem| certificates(pem).len() == 2), "both are published");
    world.pass(SignedDuration::from_secs(9));
    world.round();
    assert!(world.stored().next.is_some(), "not every API server may have heard of it");
    world.pass(SignedDuration::from_secs(2));
    // The third replica sees nothing for 50 days and goes on serving the old leaf.
    world.look(0, Until::End);
    world.look(1, Until::End);
    assert_eq!(world.steps.last(), Some(&Step::Promote));
    assert_ne!(world.stored().leaf.expect("a leaf").issuer(), &old);
    for _ in 0..50 {
        world.pass(DAY);
        world.look(0, Until::End);
        world.look(1, Until::End);
        let lagging = world.replicas[2].serving.clone().expect("serves");
        assert!(!lagging.is_alive(world.now) || world.trusts(&lagging), "{}", world.now);
    }
    world.pass(DAY * 41);
    world.round();
    assert_eq!(world.stored().bundle.len(), 1, "no leaf of the old one can be alive");
    assert!(world.steps.contains(&Step::DropOldCa));
    world.assert_sound();
}

#[test]
fn fault_20_a_replica_killed_after_the_secret_is_written_is_made_up_for() {
    let mut world = World::new(2);
    world.look(0, Until::SecretWritten);
    assert_eq!(world.bundles, [String::new(), String::new()]);
    world.look(1, Until::End);
    assert!(world.every_served_leaf_is_trusted());
    world.settle();
    world.assert_sound();
    assert_eq!(world.stored().bundle.len(), 1);

    // In the middle of a rotation, at each of the writes.
    for until in [Until::SecretWritten, Until::OneBundleWritten] {
        let mut world = world.clone();
        let mut data = world.secret.clone().expect("a Secret");
        data.remove(keys::AUTHORITY_KEY);
        world.secret = Some(data);
        world.look(0, until);
        assert!(world.stored().next.is_some(), "staged");
        assert!(world.every_served_leaf_is_trusted());
        for _ in 0..4 {
            world.look(1, Until::End);
            assert!(world.every_served_leaf_is_trusted());
            world.pass(SignedDuration::from_secs(6));
        }
        world.settle();
        world.assert_sound();
    }
}

#[test]
fn fault_21_a_truncated_or_mismatched_secret_is_put_back_as_it_was() {
    let mut world = World::new(2);
    world.round();
    let good = world.secret.clone().expect("a Secret");
    let leaf = world.stored().leaf.expect("a leaf");
    let other = Authority::issue(&terms().lifetimes, world.now)
        .and_then(|ca| ca.sign(&names(), &terms().lifetimes, world.now))
        .expect("issued");
    let broken: [(&str, Vec<u8>); 6] = [
        (keys::CERTIFICATE, good[keys::CERTIFICATE][..200].to_vec()),
        (keys::KEY, Vec::new()),
        (keys::KEY, other.key_pem().as_bytes().to_vec()),
        (keys::CERTIFICATE, other.pair().certificate_pem().as_bytes().to_vec()),
        (keys::BUNDLE, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec()),
        (keys::BUNDLE, vec![0xff, 0xfe]),
    ];
    for (key, value) in broken {
        let mut data = good.clone();
        data.insert(key.to_owned(), value);
        world.secret = Some(data);
        assert!(!world.stored().damage.is_empty(), "{key}");
        world.round();
        assert_eq!(world.steps.last(), Some(&Step::Restore { rotate: false }), "{key}");
        assert!(world.every_served_leaf_is_trusted());
        world.assert_sound();
        assert_eq!(world.stored().leaf.expect("a leaf").certificate(), leaf.certificate(), "{key}");
    }
}

#[test]
fn fault_21_a_broken_secret_at_the_start_is_made_anew_and_what_others_serve_stays_trusted() {
    let mut world = World::new(2);
    world.look(0, Until::End);
    let old = world.stored().bundle[0].clone();
    let mut data = world.secret.clone().expect("a Secret");
    data.insert(keys::CERTIFICATE.to_owned(), b"rubbish".to_vec());
    data.insert(keys::AUTHORITY_KEY.to_owned(), b"rubbish".to_vec());
    world.secret = Some(data);
    world.look(1, Until::End);
    assert_eq!(world.steps.last(), Some(&Step::Create));
    assert!(world.stored().bundle.contains(&old));
    assert!(world.every_served_leaf_is_trusted());
    world.settle();
    world.assert_sound();
}

#[test]
fn fault_21_a_deleted_secret_gives_new_keys_and_no_moment_of_distrust() {
    let mut world = World::new(3);
    world.round();
    let old = world.stored().bundle[0].clone();
    world.secret = None;
    for _ in 0..6 {
        for index in 0..3 {
            world.look(index, Until::End);
            assert!(world.every_served_leaf_is_trusted());
        }
        world.pass(SignedDuration::from_secs(4));
    }
    assert_eq!(world.steps, [Step::Create, Step::Restore { rotate: true }, Step::Promote]);
    world.assert_sound();
    assert_ne!(world.stored().leaf.expect("a leaf").issuer(), &old);
    world.pass(DAY * 100);
    world.round();
    assert!(!world.stored().bundle.contains(&old));
}

#[test]
fn a_new_replica_that_wins_the_race_after_a_deletion_breaks_nobody() {
    let mut world = World::new(3);
    world.round();
    world.secret = None;
    world.replicas[2] = Replica::default();
    world.look(2, Until::End);
    assert_eq!(world.steps.last(), Some(&Step::Create));
    assert!(world.every_served_leaf_is_trusted());
    world.settle();
    world.assert_sound();

    // The caBundle is wiped as well: who still serves the old leaf sees to it that it is trusted again.
    world.secret = None;
    world.bundles = [String::new(), String::new()];
    world.replicas[2] = Replica::default();
    world.look(2, Until::End);
    world.look(0, Until::End);
    assert!(world.steps.contains(&Step::TrustServed));
    assert!(world.every_served_leaf_is_trusted());
    world.settle();
    world.assert_sound();
}

#[test]
fn a_lost_ca_key_stages_a_new_ca_and_the_old_one_stays_while_its_leaf_lives() {
    let mut world = World::new(2);
    world.round();
    let old = world.stored().bundle[0].clone();
    let mut data = world.secret.clone().expect("a Secret");
    data.remove(keys::AUTHORITY_KEY);
    world.secret = Some(data);
    world.round();
    assert_eq!(world.steps.last(), Some(&Step::StageCa));
    assert_eq!(world.stored().leaf.expect("a leaf").issuer(), &old);
    world.settle();
    world.assert_sound();
    assert!(world.stored().bundle.contains(&old));
    world.pass(DAY * 91);
    world.round();
    assert!(!world.stored().bundle.contains(&old));
}

#[test]
fn other_names_give_another_leaf_and_two_versions_of_the_guard_agree() {
    let mut world = World::new(1);
    world.round();
    world.names = vec!["other.ns.svc".to_owned()];
    world.round();
    world.assert_sound();
    world.names = names();
    world.round();
    let steps = world.steps.len();
    for _ in 0..3 {
        world.names = vec!["other.ns.svc".to_owned()];
        world.round();
        world.names = names();
        world.round();
    }
    assert_eq!(world.steps.len(), steps, "renewed in turns: {:?}", world.steps);
}

#[test]
fn fault_23_a_jump_past_every_end_is_made_good_in_one_look() {
    for years in [1, 7, 9, 30] {
        let mut world = World::new(2);
        world.round();
        world.pass(DAY * 365 * years);
        world.round();
        world.settle();
        world.assert_sound();
    }
}

#[test]
fn fault_23_a_clock_that_is_behind_by_less_than_the_back_dating_changes_nothing() {
    let mut world = World::new(2);
    world.look(0, Until::End);
    world.now -= SignedDuration::from_mins(9);
    world.look(1, Until::End);
    assert_eq!(world.steps, [Step::Create]);
    world.assert_sound();
}

#[test]
fn data_survives_a_round_trip() {
    let mut world = World::new(1);
    world.round();
    world.secret = None;
    world.look(0, Until::SecretWritten);
    let stored = world.stored();
    assert!(stored.damage.is_empty() && stored.next.is_some());
    assert_eq!(Some(stored.data()), world.secret);
}

#[test]
fn fault_29_an_allowance_gives_a_burst_and_then_one_write_in_ten_seconds() {
    let every = SignedDuration::from_secs(10);
    let mut allowance = Allowance::new(every);
    let mut now = start();
    let mut writes = 0;
    let mut firsts = 0;
    for _ in 0..600 {
        match allowance.take(now) {
            Ok(()) => writes += 1,
            Err(refusal) => {
                assert!(refusal.wait.is_positive() && refusal.wait <= every);
                firsts += usize::from(refusal.first);
            }
        }
        now = after(now, SignedDuration::from_millis(100));
    }
    assert_eq!((writes, firsts), (5 + 5, 1), "a minute of somebody else's edits");
    now -= SignedDuration::from_hours(1);
    let refusal = allowance.take(now).expect_err("a clock that was set back gives nothing away");
    assert!(refusal.wait <= every);
    assert!(allowance.take(after(now, SignedDuration::from_mins(1))).is_ok());
}

#[derive(Clone, Debug)]
enum Event {
    Look(usize, u8),
    Restart(usize),
    Pass(u32),
    DeleteSecret,
    Break(usize, u8),
    Wipe(usize),
    Rename(bool),
}

fn events(disturbances: bool) -> impl Strategy<Value = Vec<Event>> {
    let calm = prop_oneof![
        6 => (0..3_usize, 0..6_u8).prop_map(|(index, until)| Event::Look(index, until)),
        3 => (0..20_u32).prop_map(Event::Pass),
        1 => (1..120 * 86_400_u32).prop_map(Event::Pass),
        1 => (0..3_usize).prop_map(Event::Restart),
        1 => Just(Event::DeleteSecret),
        2 => (0..keys::ALL.len(), 0..3_u8).prop_map(|(key, how)| Event::Break(key, how)),
        1 => any::<bool>().prop_map(Event::Rename),
    ];
    let wild = (0..2_usize).prop_map(Event::Wipe);
    let weight = u32::from(disturbances);
    let event = if disturbances { prop_oneof![10 => calm, weight => wild].boxed() } else { calm.boxed() };
    prop::collection::vec(event, 1..40)
}

fn run(world: &mut World, event: &Event) {
    match *event {
        Event::Look(index, 0) => world.look(index, Until::SecretWritten),
        Event::Look(index, 1) => world.look(index, Until::OneBundleWritten),
        Event::Look(index, _) => world.look(index, Until::End),
        Event::Restart(index) => world.replicas[index] = Replica::default(),
        Event::Pass(seconds) => world.pass(SignedDuration::from_secs(i64::from(seconds))),
        Event::DeleteSecret => world.secret = None,
        Event::Break(key, how) => {
            if let Some(data) = &mut world.secret {
                let key = keys::ALL[key];
                match how {
                    0 => drop(data.remove(key)),
                    1 => {
                        if let Some(value) = data.get_mut(key) {
                            // Never between two certificates, which nobody could tell from a bundle that is whole.
                            value.truncate(value.len() / 2 + 40);
                        }
                    }
                    _ => drop(data.insert(key.to_owned(), b"rubbish".to_vec())),
                }
            }
        }
        Event::Wipe(index) => world.bundles[index].clear(),
        Event::Rename(other) => {
            world.names = if other { vec!["other.ns.svc".to_owned()] } else { names() };
        }
    }
}

#[test]
fn fault_20_secrets_deleted_again_and_again_push_no_served_ca_out_of_the_bundle() {
    use Event::{Break, DeleteSecret, Look, Pass};
    let mut world = World::new(3);
    world.round();
    let begin = [
        DeleteSecret,
        Look(1, 0),
        Look(2, 2),
        Pass(10),
        Look(2, 1),
        DeleteSecret,
        Look(1, 0),
        Break(3, 0),
        Look(0, 2),
    ];
    let again = [DeleteSecret, Look(1, 1), DeleteSecret, Look(1, 1), DeleteSecret, Look(1, 1)];
    for event in begin.iter().chain(&again) {
        run(&mut world, event);
        assert!(world.every_served_leaf_is_trusted(), "after {event:?}: {:?}", world.steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn fault_20_whatever_happens_to_the_secret_no_replica_serves_what_the_bundles_lack(
        events in events(false),
    ) {
        let mut world = World::new(3);
        world.round();
        for event in &events {
            run(&mut world, event);
            for replica in &world.replicas {
                if let Some(leaf) = replica.serving.as_ref().filter(|leaf| leaf.is_alive(world.now)) {
                    prop_assert!(world.trusts(leaf), "after {event:?} {:?}", world.steps);
                }
            }
        }
    }

    #[test]
    fn whatever_happens_the_replicas_converge(events in events(true)) {
        let mut world = World::new(3);
        for event in &events {
            run(&mut world, event);
        }
        world.settle();
        world.assert_sound();
        let steps = world.steps.len();
        world.round();
        prop_assert_eq!(world.steps.len(), steps, "still at it: {:?}", world.steps);
    }
}
